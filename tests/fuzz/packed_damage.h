/* Damage to packed files and state files that follows their layout: records, places, numbers that
 * stand for sizes, whole sections. Digests are made to fit again in nine of ten cases. */
#ifndef PACKED_DAMAGE_H
#define PACKED_DAMAGE_H

#include "fuzz_input.h"
#include "packed_seed.h"

typedef struct {
    uint16_t at, bytes;
} Field;

#define FIELD(type, name) {offsetof(type, name), sizeof(((type *)0)->name)}

/* Another number in place of one; now and then one that stands elsewhere in the file. */
static inline void change_number(Input *in, File *file, uint64_t at, int bytes) {
    uint64_t value = 0;
    if (at > file->size || (uint64_t)bytes > file->size - at) return;
    memcpy(&value, file->data + at, (size_t)bytes);
    if (below(in, 8)) value = odd_number(in, value);
    else if (file->size >= 8)
        memcpy(&value, file->data + (uint64_t)below(in, 256) * 8 % (file->size - 7),
               (size_t)bytes);
    memcpy(file->data + at, &value, (size_t)bytes);
}

static inline void change_field(Input *in, File *file, uint64_t start, const Field *fields,
                                int count) {
    const Field *f = &fields[below(in, count)];
    change_number(in, file, start + f->at, f->bytes);
}

static inline void put_bits(Input *in, File *file, uint64_t at, int is_double) {
    const double x = odd_double(in);
    const uint32_t bits = odd_float(in);
    const size_t size = is_double ? 8 : 4;
    if (at <= file->size && size <= file->size - at)
        memcpy(file->data + at, is_double ? (const void *)&x : &bits, size);
}

static inline void set_count(File *file, uint32_t count) {
    const uint32_t bytes = (uint32_t)record_at(count);
    memcpy(file->data + offsetof(retnet_file_header, section_count), &count, 4);
    memcpy(file->data + offsetof(retnet_file_header, header_bytes), &bytes, 4);
}

static inline void change_header(Input *in, File *file) {
    static const Field fields[] = {
        FIELD(retnet_file_header, version),    FIELD(retnet_file_header, header_bytes),
        FIELD(retnet_file_header, file_bytes), FIELD(retnet_file_header, section_count),
        FIELD(retnet_file_header, reserved),   {0, 8}, {32, 8}};
    if (below(in, 4) || file->size < sizeof(retnet_file_header))
        change_field(in, file, 0, fields, sizeof fields / sizeof *fields);
    else set_count(file, (uint32_t)below(in, 70)); /* what follows is read as records */
}

static inline void change_record(Input *in, File *file) {
    static const Field fields[] = {
        FIELD(retnet_section, kind),     FIELD(retnet_section, version),
        FIELD(retnet_section, offset),   FIELD(retnet_section, offset),
        FIELD(retnet_section, bytes),    FIELD(retnet_section, bytes),
        FIELD(retnet_section, reserved), {32, 8}};
    const uint32_t count = records_in(file);
    if (!count) return;
    const uint32_t i = (uint32_t)below(in, (int)count), j = (uint32_t)below(in, (int)count);
    retnet_section s = record_of(file, i), other = record_of(file, j);
    switch (below(in, 12)) {
        case 0: s.kind = (uint32_t)below(in, 13); break;
        case 1: s.offset = other.offset; break;
        case 2: s.offset = other.offset + (uint64_t)(below(in, 5) - 2) * 64; break;
        case 3: s.bytes = file->size - s.offset + (uint64_t)(below(in, 3) - 1); break;
        case 4: s.bytes = (uint64_t)below(in, 512); break;
        case 5: s.bytes += (uint64_t)(below(in, 33) - 16); break;
        case 6: put_record(file, j, &s); s = other; break; /* two change places */
        case 7: s = other; break;                          /* twice */
        case 8: /* one less */
            for (uint32_t k = i; k + 1 < count; k++) {
                const retnet_section moved = record_of(file, k + 1);
                put_record(file, k, &moved);
            }
            set_count(file, count - 1);
            return;
        case 9: /* one more, of a kind that nobody knows */
            if (record_at(count + 1) > file->size) return;
            s = (retnet_section){.kind = (uint32_t)below(in, 40), .offset = (uint64_t)below(in, 300) * 64,
                                 .bytes = (uint64_t)below(in, 200)};
            put_record(file, count, &s);
            set_count(file, count + 1);
            return;
        default: change_field(in, file, record_at(i), fields, sizeof fields / sizeof *fields); return;
    }
    put_record(file, i, &s);
}

/* The section of a kind; bytes 0 where there is none. */
static inline retnet_section section_of(const File *file, uint32_t kind) {
    for (uint32_t i = 0; i < records_in(file); i++) {
        const retnet_section s = record_of(file, i);
        if (s.kind == kind && in_file(file, &s)) return s;
    }
    return (retnet_section){0};
}

/* Other blocks or bits, and as many bytes as they take, from anywhere in the weights. */
static inline void reshape(Input *in, File *file, uint64_t at, uint64_t weights) {
    MatrixPlan m;
    if (at > file->size || sizeof m > file->size - at) return;
    memcpy(&m, file->data + at, sizeof m);
    m.bits = below(in, 2) ? 8 : 4;
    m.block = 32 << below(in, 4);
    m.half_scales = below(in, 2), m.own_zeros = below(in, 2);
    const uint64_t rows = (uint32_t)m.rows, block = (uint32_t)m.block, bits = (uint32_t)m.bits;
    const uint64_t blocks = ((uint32_t)m.inputs + block - 1) / block;
    m.codes.size = rows * blocks * block * bits / 8;
    m.scales.size = rows * blocks * (m.half_scales ? 2 : 4);
    m.zeros.size = rows * ((blocks * bits + 7) / 8);
    Place *const places[] = {&m.codes, &m.scales, &m.zeros};
    for (int i = 0; i < 3; i++) {
        const uint64_t room = weights > places[i]->size ? weights - places[i]->size : 0;
        places[i]->own = 0; /* the very end of the weights, just behind it, or within */
        places[i]->offset = below(in, 3) ? room + (uint64_t)below(in, 2)
                                         : (uint64_t)below(in, 256) * 4 % (room + 1);
    }
    memcpy(file->data + at, &m, sizeof m);
}

/* The table at the end of the file, with as many layers as may be, all of them its first one. */
static inline void repeat_layer(Input *in, File *file, const retnet_section *s) {
    const uint64_t at = round_up(file->size, 64), start = at + round_up(s->bytes, 8);
    const uint64_t count = 1 + (uint64_t)below(in, below(in, 2) ? 4 : 60);
    const uint64_t end = start + count * sizeof(LayerPlan);
    retnet_table_header h;
    memcpy(&h, file->data + s->offset, sizeof h);
    if (end > MOST_FILE || h.layers_offset > s->bytes ||
        sizeof(LayerPlan) > s->bytes - h.layers_offset)
        return;
    memset(file->data + file->size, 0, end - file->size);
    memcpy(file->data + at, file->data + s->offset, s->bytes);
    for (uint64_t i = 0; i < count; i++)
        memcpy(file->data + start + i * sizeof(LayerPlan),
               file->data + s->offset + h.layers_offset, sizeof(LayerPlan));
    h.layers_offset = start - at, h.layer_count = (int32_t)count, h.table_bytes = end - at;
    memcpy(file->data + at, &h, sizeof h);
    file->size = end;
    memcpy(file->data + offsetof(retnet_file_header, file_bytes), &end, 8);
    for (uint32_t i = 0; i < records_in(file); i++) {
        retnet_section moved = record_of(file, i);
        if (moved.kind != RETNET_KIND_TABLE) continue;
        moved.offset = at, moved.bytes = end - at;
        put_record(file, i, &moved);
    }
}

static inline void change_table(Input *in, File *file) {
    static const Field numbers[] = {
        {0, 4}, {4, 4}, {8, 4}, {12, 4}, {16, 4}, {20, 4}, {24, 4}, {28, 4}, {32, 4}, {36, 4},
        {40, 4}, {44, 4}, {48, 4}, {52, 4}, {64, 8}, {72, 8}, {80, 8}, {88, 8}, {96, 8}, {104, 8}};
    static const Field of_matrix[] = {
        {0, 8}, {8, 8}, {16, 8}, {24, 8}, {32, 8}, {40, 8}, {48, 8}, {56, 8}, {64, 8},
        {72, 4}, {76, 4}, {80, 4}, {84, 4}, {88, 4}, {92, 4}};
    const retnet_section s = section_of(file, RETNET_KIND_TABLE);
    retnet_table_header h;
    if (s.bytes < sizeof h) return;
    memcpy(&h, file->data + s.offset, sizeof h);
    const uint64_t layer = s.offset + h.layers_offset % (s.bytes + 1) +
                           (uint64_t)below(in, 3) / 2 * sizeof(LayerPlan);
    const uint64_t matrix = below(in, 3) ? layer + 72 + (uint64_t)below(in, 4) * 96
                                         : s.offset + 136 + (uint64_t)below(in, 2) * 96;
    switch (below(in, 13)) {
        case 0: case 1: case 2:
            change_field(in, file, s.offset, numbers, sizeof numbers / sizeof *numbers);
            break;
        case 3: change_number(in, file, layer + (uint64_t)below(in, 9) * 8, 8); break; /* norms */
        case 4: change_number(in, file, s.offset + 112 + (uint64_t)below(in, 3) * 8, 8); break;
        case 5: case 6: case 7:
            change_field(in, file, matrix, of_matrix, sizeof of_matrix / sizeof *of_matrix);
            break;
        case 8:
            reshape(in, file, matrix, section_of(file, RETNET_KIND_WEIGHTS).bytes);
            break;
        case 9: put_bits(in, file, s.offset + h.gammas_offset % s.bytes +
                                       (uint64_t)below(in, 6) * 8, 1); break;
        case 12: repeat_layer(in, file, &s); break;
        case 10: put_bits(in, file, s.offset + 56 + (uint64_t)below(in, 2) * 4, 0); break;
        default: put_bits(in, file, s.offset + (uint64_t)below(in, 4096) * 4 % s.bytes, 0);
    }
}

static inline void change_generation(Input *in, File *file) {
    static const Field fields[] = {{0, 4}, {4, 4}, {4, 4}, {8, 4}, {12, 4}, {16, 4}, {20, 4}};
    const retnet_section s = section_of(file, RETNET_KIND_GENERATION);
    if (!s.bytes) return;
    switch (below(in, 4)) {
        case 0: put_bits(in, file, s.offset + 24 + (uint64_t)below(in, 4) * 8, 1); break;
        case 1: change_number(in, file, s.offset + 56 + (uint64_t)below(in, 4) * 4, 4); break;
        default: change_field(in, file, s.offset, fields, sizeof fields / sizeof *fields);
    }
}

/* Bits, bytes, words and repeats within `size` bytes from `at` on. */
static inline void change_bytes(Input *in, File *file, uint64_t at, uint64_t size) {
    if (!size || at > file->size || size > file->size - at) return;
    for (int i = 1 + below(in, 3); i; i--) {
        const uint64_t where = at + next(in, 3) % size;
        switch (below(in, 5)) {
            case 0: file->data[where] ^= (uint8_t)(1 << below(in, 8)); break;
            case 1: file->data[where] = (uint8_t)next(in, 1); break;
            case 2: change_number(in, file, where & ~(uint64_t)3, 4); break;
            case 3: put_bits(in, file, where & ~(uint64_t)3, 0); break;
            default: { /* a copy of other bytes of it */
                const uint64_t from = at + next(in, 3) % size, left = at + size - where;
                uint64_t n = 1 + (uint64_t)below(in, 64);
                if (n > left) n = left;
                if (n > at + size - from) n = at + size - from;
                memmove(file->data + where, file->data + from, n);
            }
        }
    }
}

/* A section moves to the end of the file, whole or cut, so that who reads on behind it is seen. */
static inline void move_to_end(Input *in, File *file) {
    const uint32_t count = records_in(file);
    if (!count) return;
    const uint32_t index = (uint32_t)below(in, (int)count);
    retnet_section s = record_of(file, index);
    if (!in_file(file, &s)) return;
    const uint64_t at = round_up(file->size, s.kind == RETNET_KIND_WEIGHTS ? RETNET_WEIGHTS_ALIGN : 64);
    if (at + s.bytes > MOST_FILE) return;
    memset(file->data + file->size, 0, at - file->size);
    memcpy(file->data + at, file->data + s.offset, s.bytes);
    if (!below(in, 3) && s.bytes) s.bytes -= 1 + next(in, 3) % s.bytes;
    else if (!below(in, 3) && s.bytes > 32) s.bytes -= (uint64_t)below(in, 32);
    s.offset = at;
    file->size = at + s.bytes;
    put_record(file, index, &s);
    const uint64_t size = file->size;
    memcpy(file->data + offsetof(retnet_file_header, file_bytes), &size, 8);
}

/* Shorter or longer; the header says so in most cases. */
static inline void change_size(Input *in, File *file) {
    const size_t most[] = {4, 64, 512, file->size};
    size_t by = next(in, 3) % (most[below(in, 4)] + 1);
    if (below(in, 2)) file->size -= by < file->size ? by : file->size;
    else {
        if (by > MOST_FILE - file->size) by = MOST_FILE - file->size;
        memset(file->data + file->size, below(in, 2) ? 0 : 0xa5, by);
        file->size += by;
    }
    if (below(in, 6) && file->size >= sizeof(retnet_file_header) &&
        !memcmp(file->data, RETNET_FILE_MAGIC, 8)) {
        const uint64_t size = file->size;
        memcpy(file->data + offsetof(retnet_file_header, file_bytes), &size, 8);
    }
}

static inline void damage_packed(Input *in, File *file) {
    for (int i = below(in, 3) ? 1 : 1 + below(in, 4); i; i--) {
        const uint32_t count = records_in(file);
        retnet_section s = {0};
        switch (below(in, 22)) {
            case 0: change_header(in, file); break;
            case 1: case 2: case 3: case 4: change_record(in, file); break;
            case 5: case 6: case 7: case 8: case 9: case 10: change_table(in, file); break;
            case 11: case 12: change_generation(in, file); break;
            case 13: s = section_of(file, RETNET_KIND_WEIGHTS); break;
            case 14: case 15: s = section_of(file, RETNET_KIND_TOKENIZER); break;
            case 16: case 17: if (count) s = record_of(file, (uint32_t)below(in, (int)count)); break;
            case 18: change_bytes(in, file, 0, file->size); break;
            case 19: case 20: move_to_end(in, file); break;
            default: change_size(in, file);
        }
        change_bytes(in, file, s.offset, s.bytes);
    }
    if (below(in, 10)) mend_packed(file);
}

/* Header, ids, states, or as many ids or bytes more as the header says. */
static inline void damage_state(Input *in, File *file) {
    static const Field fields[] = {{0, 8}, {8, 4}, {12, 4}, {16, 8}, {16, 8}, {24, 8}, {32, 8},
                                   {40, 8}, {72, 4}, {76, 4}};
    for (int i = below(in, 3) ? 1 : 1 + below(in, 4); i; i--) {
        const size_t ids = 80, at = ids + 4 * (size_t)below(in, 12);
        switch (below(in, 9)) {
            case 0: case 1: change_field(in, file, 0, fields, sizeof fields / sizeof *fields); break;
            case 2: change_number(in, file, at, 4); break;
            case 3: change_bytes(in, file, 0, file->size); break;
            case 4: put_bits(in, file, (size_t)below(in, 4096) * 4 % (file->size + 1), 0); break;
            case 5: change_size(in, file); break;
            case 6: if (file->size > 8) file->data[7] = below(in, 2) ? 'E' : '4'; break;
            default: { /* ids more, or fewer, and their number */
                const int seen = below(in, 2), less = below(in, 2);
                uint64_t count;
                if (file->size < ids + 4 || file->size + 4 > MOST_FILE) break;
                uint8_t *number = file->data + (seen ? 32 : 24);
                memcpy(&count, number, 8);
                count += less ? UINT64_MAX : 1;
                memcpy(number, &count, 8);
                if (less) memmove(file->data + ids, file->data + ids + 4, file->size - ids - 4);
                else memmove(file->data + ids + 4, file->data + ids, file->size - ids);
                file->size += less ? (size_t)-4 : 4;
            }
        }
    }
    if (below(in, 10)) mend_state(file);
}

#endif
