/* Opening a model: everything in a file is checked here, or in what this calls, before it is
 * used. */
#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "session.h"
#include "sha256.h"
#include "table.h"

retnet_model *hold_model(retnet_model *model) {
    atomic_fetch_add(&model->users, 1);
    return model;
}

void retnet_model_close(retnet_model *model) {
    if (!model || atomic_fetch_sub(&model->users, 1) != 1) return;
    free_model(&model->model);
    unmap(&model->mapping);
    free(model);
}

static int same_bytes(const void *data, uint64_t size, const uint8_t expected[32]) {
    uint8_t digest[32];
    sha256(data, (size_t)size, digest);
    return !memcmp(digest, expected, sizeof digest);
}

static const retnet_section *find_section(const retnet_model *model, uint32_t kind) {
    for (int32_t i = 0; i < model->section_count; i++)
        if (model->sections[i].kind == kind) return &model->sections[i];
    return NULL;
}

/* The header and the sections' records; what they say of the file's size. */
static retnet_status read_header(retnet_model *model, const uint8_t *file, uint64_t size,
                                 retnet_error *error) {
    const retnet_file_header *header = (const void *)file;
    if (size < sizeof *header || memcmp(header->magic, RETNET_FILE_MAGIC, sizeof header->magic))
        return fail(error, RETNET_BAD_FILE, 0, "not a packed model: it does not begin with %s",
                    RETNET_FILE_MAGIC);
    if (header->version != RETNET_FILE_VERSION)
        return fail(error, RETNET_BAD_FILE, offsetof(retnet_file_header, version),
                    "the file's version is %u; this library reads %d", header->version,
                    RETNET_FILE_VERSION);
    if (header->section_count > RETNET_MOST_SECTIONS)
        return fail(error, RETNET_BAD_FILE, offsetof(retnet_file_header, section_count),
                    "the file has %u sections; at most %d are allowed", header->section_count,
                    RETNET_MOST_SECTIONS);
    const uint64_t expected = sizeof *header + header->section_count * sizeof(retnet_section);
    if (header->header_bytes != expected || header->file_bytes != size || size < expected)
        return fail(error, RETNET_BAD_FILE, offsetof(retnet_file_header, file_bytes),
                    "the file has %llu bytes; its header says %llu, and a header of %u",
                    (unsigned long long)size, (unsigned long long)header->file_bytes,
                    header->header_bytes);
    retnet_file_header without = *header;
    uint8_t digest[32];
    Sha256 hash;
    memset(without.sha256, 0, sizeof without.sha256);
    sha256_begin(&hash);
    sha256_add(&hash, &without, sizeof without);
    sha256_add(&hash, file + sizeof *header, (size_t)(expected - sizeof *header));
    sha256_end(&hash, digest);
    if (memcmp(digest, header->sha256, sizeof digest))
        return fail(error, RETNET_BAD_FILE, offsetof(retnet_file_header, sha256),
                    "the file's header was changed: its SHA-256 does not fit");
    memcpy(model->fingerprint, header->fingerprint, sizeof model->fingerprint);
    model->sections = (const void *)(file + sizeof *header);
    model->section_count = (int32_t)header->section_count;
    return RETNET_OK;
}

/* Where a section lies, that no other lies there too, and its hash. */
static retnet_status check_section(const retnet_model *model, int32_t index, const uint8_t *file,
                                   uint64_t size, uint32_t flags, retnet_error *error) {
    const retnet_section *s = &model->sections[index];
    const uint64_t at = (uint64_t)((const uint8_t *)s - file);
    const uint64_t first = sizeof(retnet_file_header) +
                           (uint64_t)model->section_count * sizeof(retnet_section);
    const uint64_t align =
        s->kind == RETNET_KIND_WEIGHTS ? RETNET_WEIGHTS_ALIGN : RETNET_SECTION_ALIGN;
    if (s->offset < first || s->offset > size || s->bytes > size - s->offset)
        return fail(error, RETNET_BAD_FILE, at,
                    "section %d lies at bytes %llu to %llu; the file has %llu, and a header of %llu",
                    index, (unsigned long long)s->offset, (unsigned long long)(s->offset + s->bytes),
                    (unsigned long long)size, (unsigned long long)first);
    if (s->offset % align)
        return fail(error, RETNET_BAD_FILE, at, "section %d lies at byte %llu; it needs a multiple of %llu",
                    index, (unsigned long long)s->offset, (unsigned long long)align);
    for (int32_t i = 0; i < index; i++) {
        const retnet_section *other = &model->sections[i];
        if (s->kind == other->kind)
            return fail(error, RETNET_BAD_FILE, at, "sections %d and %d are both of kind %u", i,
                        index, s->kind);
        if (s->offset < other->offset + other->bytes && other->offset < s->offset + s->bytes)
            return fail(error, RETNET_BAD_FILE, at, "section %d lies over section %d", index, i);
    }
    if (s->kind > RETNET_KIND_GENERATION) return RETNET_OK; /* when it is asked for */
    if (s->kind == RETNET_KIND_WEIGHTS && flags & RETNET_SKIP_WEIGHT_HASH) return RETNET_OK;
    if (!same_bytes(file + s->offset, s->bytes, s->sha256))
        return fail(error, RETNET_BAD_FILE, s->offset,
                    "section %d was changed: its SHA-256 does not fit", index);
    return RETNET_OK;
}

/* The model of table and weights, at `offset` of the file. */
static retnet_status use_table(retnet_model *model, Bytes table, Bytes weights, uint64_t offset,
                               retnet_error *error) {
    ModelPlan plan;
    char sentence[RETNET_ERROR_BYTES] = "";
    int status = read_table(table, weights, &plan, sentence, sizeof sentence);
    if (status == RETNET_OK) status = check_plan(&plan, &model->model, sentence, sizeof sentence);
    if (status == RETNET_NO_MEMORY)
        return fail(error, RETNET_NO_MEMORY, NO_OFFSET, "no memory for the model's layers");
    if (status != RETNET_OK)
        return fail(error, (retnet_status)status, offset, "model table: %s", sentence);
    model->weight_bytes = weights.size;
    return RETNET_OK;
}

/* Is `x` in [least, most]? Not where it is no number. */
static int within(double x, double least, double most) { return x >= least && x <= most; }

static retnet_status use_generation(retnet_model *model, const uint8_t *file, retnet_error *error) {
    const int32_t vocabulary = model->model.vocab_size;
    const retnet_section *s = find_section(model, RETNET_KIND_GENERATION);
    if (!s) return RETNET_OK;
    retnet_generation_record r;
    if (s->bytes < sizeof r)
        return fail(error, RETNET_BAD_FILE, s->offset,
                    "the generation record has %llu bytes; at least %llu are needed",
                    (unsigned long long)s->bytes, (unsigned long long)sizeof r);
    memcpy(&r, file + s->offset, sizeof r);
    if (r.version != RETNET_GENERATION_VERSION)
        return fail(error, RETNET_BAD_FILE, s->offset,
                    "the generation record's version is %u; this library reads %d", r.version,
                    RETNET_GENERATION_VERSION);
    if (s->bytes != sizeof r + sizeof(int32_t) * (uint64_t)r.end_count)
        return fail(error, RETNET_BAD_FILE, s->offset,
                    "the generation record has %llu bytes; with %u ends it needs %llu",
                    (unsigned long long)s->bytes, r.end_count,
                    (unsigned long long)(sizeof r + sizeof(int32_t) * (uint64_t)r.end_count));
    const int32_t *ends = (const void *)(file + s->offset + sizeof r);
    for (uint32_t i = 0; i < r.end_count; i++)
        if (ends[i] < 0 || ends[i] >= vocabulary)
            return fail(error, RETNET_BAD_FILE, s->offset + sizeof r + 4 * (uint64_t)i,
                        "an end of text is token %d; allowed is 0 to %d", ends[i], vocabulary - 1);
    if (r.begin < -1 || r.begin >= vocabulary || r.padding < -1 || r.padding >= vocabulary ||
        r.drawable < 1 || r.drawable > vocabulary)
        return fail(error, RETNET_BAD_FILE, s->offset,
                    "the generation record names a token that the vocabulary of %d lacks",
                    vocabulary);
    if (!within(r.temperature, 0, 1e30) || !within(r.top_p, 1e-300, 1) || !within(r.min_p, 0, 1) ||
        !within(r.repetition_penalty, 0.01, 100) || r.top_k < 0)
        return fail(error, RETNET_BAD_FILE, s->offset,
                    "the generation record holds an option of sampling that is out of its range");
    model->generation = r;
    model->ends = ends;
    return RETNET_OK;
}

static retnet_status use_file(retnet_model *model, const uint8_t *file, uint64_t size,
                              uint32_t flags, retnet_error *error) {
    if ((uintptr_t)file % RETNET_BUFFER_ALIGN)
        return fail(error, RETNET_BAD_BUFFER, NO_OFFSET, "a model in memory has to begin at a multiple of %d bytes",
                    RETNET_BUFFER_ALIGN);
    if (flags & ~(uint32_t)RETNET_SKIP_WEIGHT_HASH)
        return fail(error, RETNET_BAD_ARGUMENT, NO_OFFSET, "flags is %u; allowed are 0 and %d", flags,
                    RETNET_SKIP_WEIGHT_HASH);
    model->file = file;
    retnet_status status = read_header(model, file, size, error);
    for (int32_t i = 0; status == RETNET_OK && i < model->section_count; i++)
        status = check_section(model, i, file, size, flags, error);
    if (status != RETNET_OK) return status;
    const retnet_section *table = find_section(model, RETNET_KIND_TABLE);
    const retnet_section *weights = find_section(model, RETNET_KIND_WEIGHTS);
    if (!table || !weights)
        return fail(error, RETNET_BAD_FILE, sizeof(retnet_file_header),
                    "the file has no model table or no weights");
    status = use_table(model, (Bytes){file + table->offset, table->bytes},
                       (Bytes){file + weights->offset, weights->bytes}, table->offset, error);
    if (status == RETNET_OK) status = use_generation(model, file, error);
    const retnet_section *tokenizer = find_section(model, RETNET_KIND_TOKENIZER);
    if (status == RETNET_OK && tokenizer)
        return fail(error, RETNET_BAD_FILE, tokenizer->offset,
                    "tokenizer table: this library was built without tokenizers");
    return status;
}

/* A model with one user and nothing in it; until a file says otherwise, it draws every token by
 * Python's defaults. */
static retnet_model *new_model(retnet_error *error) {
    retnet_model *model = calloc(1, sizeof *model);
    if (!model) {
        fail(error, RETNET_NO_MEMORY, NO_OFFSET, "no memory for a model");
        return NULL;
    }
    atomic_store(&model->users, 1);
    model->generation = (retnet_generation_record){
        .begin = -1, .padding = -1, .top_k = 40, .temperature = 0.8, .top_p = 0.95,
        .repetition_penalty = 1};
    return model;
}

/* The model to the caller, or to nobody. */
static retnet_status hand_over(retnet_model *model, retnet_status status, retnet_model **to) {
    if (status != RETNET_OK) {
        retnet_model_close(model);
        return status;
    }
    if (!model->generation.drawable) model->generation.drawable = model->model.vocab_size;
    *to = model;
    return RETNET_OK;
}

static retnet_status open_mapping(Mapping *mapping, uint32_t flags, retnet_model **to,
                                  retnet_error *error) {
    retnet_model *model = new_model(error);
    if (!model) {
        unmap(mapping);
        return RETNET_NO_MEMORY;
    }
    model->mapping = *mapping;
    return hand_over(model, use_file(model, mapping->data, mapping->size, flags, error), to);
}

retnet_status retnet_model_open(const char *path, uint32_t flags, retnet_model **model,
                                retnet_error *error) {
    Mapping mapping;
    no_error(error);
    *model = NULL;
    const retnet_status status = map_path(path, &mapping, error);
    return status == RETNET_OK ? open_mapping(&mapping, flags, model, error) : status;
}

retnet_status retnet_model_open_fd(int fd, uint64_t offset, uint64_t size, uint32_t flags,
                                   retnet_model **model, retnet_error *error) {
    Mapping mapping;
    no_error(error);
    *model = NULL;
    const retnet_status status = map_fd(fd, offset, size, &mapping, error);
    return status == RETNET_OK ? open_mapping(&mapping, flags, model, error) : status;
}

retnet_status retnet_model_open_buffer(const void *data, uint64_t size, uint32_t flags,
                                       retnet_model **to, retnet_error *error) {
    no_error(error);
    *to = NULL;
    if (!data) return fail(error, RETNET_BAD_BUFFER, NO_OFFSET, "there is no buffer");
    retnet_model *model = new_model(error);
    if (!model) return RETNET_NO_MEMORY;
    return hand_over(model, use_file(model, data, size, flags, error), to);
}

retnet_status retnet_model_open_parts(const void *table, uint64_t table_size, const void *weights,
                                      uint64_t weights_size,
                                      const uint8_t fingerprint[RETNET_FINGERPRINT_BYTES],
                                      retnet_model **to, retnet_error *error) {
    no_error(error);
    *to = NULL;
    if (!table || !weights || (uintptr_t)table % sizeof(uint64_t))
        return fail(error, RETNET_BAD_BUFFER, NO_OFFSET,
                    "table and weights have to be there, the table at a multiple of 8 bytes");
    retnet_model *model = new_model(error);
    if (!model) return RETNET_NO_MEMORY;
    memcpy(model->fingerprint, fingerprint, sizeof model->fingerprint);
    return hand_over(model, use_table(model, (Bytes){table, table_size},
                                      (Bytes){weights, weights_size}, 0, error), to);
}

static uint64_t matrix_bytes(const Matrix *m) {
    const uint64_t rows = (uint64_t)m->rows, blocks = (uint64_t)(m->columns / m->block);
    const uint64_t bits = (uint64_t)m->bits, zeros = m->zeros ? (blocks * bits + 7) / 8 : 0;
    return rows * ((uint64_t)m->columns * bits / 8 + blocks * (m->half_scales ? 2 : 4) + zeros);
}

static uint64_t step_bytes(const Model *m) {
    const uint64_t norms = 2 * (uint64_t)m->d_model + (uint64_t)m->value_dim;
    uint64_t bytes = matrix_bytes(&m->head) + 4 * (uint64_t)m->d_model;
    for (int32_t i = 0; i < m->layer_count; i++) {
        const Layer *l = &m->layers[i];
        bytes += 4 * norms + matrix_bytes(&l->qkvg) + matrix_bytes(&l->out) +
                 matrix_bytes(&l->inner) + matrix_bytes(&l->down);
    }
    return bytes;
}

void retnet_model_get_info(const retnet_model *model, retnet_model_info *info) {
    const Model *m = &model->model;
    *info = (retnet_model_info){.layers = m->layer_count, .d_model = m->d_model,
                                .heads = m->heads, .key_dim = m->key_dim,
                                .value_dim = m->value_dim, .ffn_dim = m->ffn_dim,
                                .vocab_size = m->vocab_size,
                                .drawable = model->generation.drawable,
                                .begin_token = model->generation.begin,
                                .weight_bytes = model->weight_bytes,
                                .step_bytes = step_bytes(m),
                                .state_bytes = sizeof(float) * state_floats(m)};
    memcpy(info->fingerprint, model->fingerprint, sizeof info->fingerprint);
}

const void *retnet_model_section(const retnet_model *model, int32_t kind, uint64_t *size) {
    const retnet_section *s = kind > 0 ? find_section(model, (uint32_t)kind) : NULL;
    if (s && s->kind > RETNET_KIND_GENERATION &&
        !same_bytes(model->file + s->offset, s->bytes, s->sha256))
        s = NULL;
    *size = s ? s->bytes : 0;
    return s ? model->file + s->offset : NULL;
}

const int32_t *retnet_model_ends(const retnet_model *model, int32_t *count) {
    *count = (int32_t)model->generation.end_count;
    return model->ends;
}

void retnet_model_get_sampling(const retnet_model *model, retnet_sampling *sampling) {
    const retnet_generation_record *r = &model->generation;
    *sampling = (retnet_sampling){.temperature = r->temperature, .top_p = r->top_p,
                                  .min_p = r->min_p, .repetition_penalty = r->repetition_penalty,
                                  .top_k = r->top_k};
}

const char *retnet_version(void) { return "1.0"; }
