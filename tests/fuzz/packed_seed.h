/* Small packed files that are whole, and the state file of one: what damage begins with. */
#ifndef PACKED_SEED_H
#define PACKED_SEED_H

#include "../../native/sha256.h"
#include "../runtime/backends/small_model.h"

enum { MOST_FILE = 96 << 10, ROOM_FOR_RECORDS = 3, SEED_FILES = 10 };

/* A file in memory with room for more. */
typedef struct {
    uint8_t data[MOST_FILE];
    size_t size;
} File;

static inline uint64_t round_up(uint64_t at, uint64_t to) { return (at + to - 1) / to * to; }

/* How many records of sections lie in the file, whatever its header says. */
static inline uint32_t records_in(const File *file) {
    uint32_t count;
    if (file->size < sizeof(retnet_file_header)) return 0;
    memcpy(&count, file->data + offsetof(retnet_file_header, section_count), 4);
    const uint64_t room = (file->size - sizeof(retnet_file_header)) / sizeof(retnet_section);
    if (count > RETNET_MOST_SECTIONS) count = RETNET_MOST_SECTIONS;
    return count < room ? count : (uint32_t)room;
}

static inline size_t record_at(uint32_t index) {
    return sizeof(retnet_file_header) + index * sizeof(retnet_section);
}

static inline retnet_section record_of(const File *file, uint32_t index) {
    retnet_section found;
    memcpy(&found, file->data + record_at(index), sizeof found);
    return found;
}

static inline void put_record(File *file, uint32_t index, const retnet_section *record) {
    memcpy(file->data + record_at(index), record, sizeof *record);
}

static inline int in_file(const File *file, const retnet_section *s) {
    return s->offset <= file->size && s->bytes <= file->size - s->offset;
}

/* The digests of sections and header are those of what stands there. */
static inline void mend_packed(File *file) {
    const uint32_t count = records_in(file);
    for (uint32_t i = 0; i < count; i++) {
        retnet_section s = record_of(file, i);
        if (!in_file(file, &s)) continue;
        sha256(file->data + s.offset, s.bytes, s.sha256);
        put_record(file, i, &s);
    }
    if (file->size < sizeof(retnet_file_header)) return;
    uint8_t *digest = file->data + offsetof(retnet_file_header, sha256), found[32];
    memset(digest, 0, sizeof found);
    sha256(file->data, record_at(count), found);
    memcpy(digest, found, sizeof found);
}

static inline void mend_state(File *file) {
    if (file->size >= 32) sha256(file->data, file->size - 32, file->data + file->size - 32);
}

static inline void add_section(File *file, uint32_t kind, const void *content, uint64_t size) {
    const uint32_t index = records_in(file);
    const uint64_t align = kind == RETNET_KIND_WEIGHTS ? RETNET_WEIGHTS_ALIGN : 64;
    const retnet_section s = {.kind = kind, .version = 1, .offset = round_up(file->size, align),
                              .bytes = size};
    memcpy(file->data + s.offset, content, size);
    file->size = s.offset + size;
    put_record(file, index, &s);
    retnet_file_header *h = (void *)file->data;
    h->section_count = index + 1;
    h->header_bytes = (uint32_t)record_at(index + 1);
    h->file_bytes = file->size;
}

static const uint8_t SEED_FINGERPRINT[32] = {9, 8, 7, 6, 5, 4, 3, 2, 1};

static inline void add_golden(File *file, const Shape *s) {
    enum { ROWS = 2 };
    const retnet_golden_header h = {RETNET_GOLDEN_VERSION, 3, ROWS, ROWS, 1 << 20};
    const uint64_t numbers = 3 + ROWS + 2 * ROWS * (uint64_t)s->vocab +
                             (uint64_t)(s->layers * s->heads * s->key_dim * s->value_dim);
    uint8_t *golden = calloc(1, sizeof h + 4 * numbers);
    memcpy(golden, &h, sizeof h);
    add_section(file, RETNET_KIND_GOLDEN, golden, sizeof h + 4 * numbers);
    free(golden);
}

/* Of a model whose shape `which` (0 to SEED_FILES - 1) decides; the smallest ones among them. The
 * last ones lack what a file may lack. tokenizer: its table, or size 0. */
static inline void make_seed(File *file, int which, const uint8_t *tokenizer, size_t size) {
    uint64_t seed = (uint64_t)which + 1, table_size;
    const Shape shape = {.layers = 1 + which % 2, .d_model = 8, .heads = 1 + which % 3,
                         .key_dim = 2 + which % 2 * 2, .value_dim = 2 + which % 4, .ffn_dim = 8,
                         .vocab = 16, .gated = which / 2 % 2, .gelu = which / 4 % 2,
                         .eps_z_n = which / 3 % 2, .norm_eps = 1e-5f, .head_norm_eps = 1e-3f,
                         .bits = which % 3 ? which % 3 * 4 : 0, .block = 32, .half = which / 2 % 2,
                         .own_zeros = which / 3 % 2};
    SmallModel m;
    make_small(&m, &shape, &seed);
    uint64_t *table = small_table(&m, &table_size);
    memset(file, 0, sizeof *file);
    retnet_file_header *h = (void *)file->data;
    memcpy(h->magic, RETNET_FILE_MAGIC, 8);
    memcpy(h->fingerprint, SEED_FINGERPRINT, 32);
    h->version = RETNET_FILE_VERSION;
    file->size = record_at(8 + ROOM_FOR_RECORDS);
    add_section(file, RETNET_KIND_TABLE, table, table_size);
    if (which < SEED_FILES - 2) {
        struct {
            retnet_generation_record record;
            int32_t ends[3];
        } g = {{RETNET_GENERATION_VERSION, 3, 15, 1, 0, 40, 0.8, 0.95, 0, 1}, {0, 2, 15}};
        add_section(file, RETNET_KIND_GENERATION, &g, sizeof g.record + sizeof g.ends);
    }
    if (size && which % 2 == 0) add_section(file, RETNET_KIND_TOKENIZER, tokenizer, size);
    if (which < SEED_FILES - 1) {
        add_golden(file, &shape);
        add_section(file, RETNET_KIND_LICENCE, "All rights and wrongs.", 22);
        add_section(file, RETNET_KIND_CHAT_TEMPLATE, "{{ m }}", which % 3 ? 7 : 0);
    }
    add_section(file, RETNET_KIND_WEIGHTS, m.weights, m.plan.weights.size);
    mend_packed(file);
    free(table);
    free_small(&m);
}

/* A state of the model of seed 0, after some tokens. */
static inline void make_state(File *file, int layers, uint64_t state_bytes) {
    const retnet_state_header h = {.version = RETNET_STATE_VERSION,
                                   .state_count = (uint32_t)layers, .position = 7,
                                   .token_count = 4, .seen_count = 3};
    static const int32_t ids[] = {3, 3, 1, 9, 1, 3, 9};
    memset(file, 0, sizeof *file);
    memcpy(file->data, &h, sizeof h);
    memcpy(file->data, RETNET_STATE_MAGIC, 8);
    memcpy(file->data + offsetof(retnet_state_header, fingerprint), SEED_FINGERPRINT, 32);
    file->size = sizeof h + round_up(4 * (uint64_t)layers, 8);
    memcpy(file->data + file->size, ids, sizeof ids);
    file->size += sizeof ids;
    for (uint64_t i = 0; i < state_bytes / 4; i++) {
        const float x = (float)((int)(i % 13) - 6) / 8;
        memcpy(file->data + file->size + 4 * i, &x, 4);
    }
    file->size += state_bytes + 32;
    mend_state(file);
}

#endif
