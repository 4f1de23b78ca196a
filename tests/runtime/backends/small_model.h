/* A RetNet of random weights in memory, small enough to be run by its definition. Between two
 * tensors stand bytes that are no numbers, and the buffers end with the last weight: who reads on is
 * seen. */
#ifndef SMALL_MODEL_H
#define SMALL_MODEL_H

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "../../../native/plan.h"
#include "../../../native/retnet.h"

enum { SMALL_LAYERS = 2, SMALL_HEADS = 3, SMALL_WIDTH = 512, SMALL_GAP = 4 };

/* bits 0: of each matrix by chance, and so are blocks, scales and zeros. */
typedef struct {
    int layers, d_model, heads, key_dim, value_dim, ffn_dim, vocab, gated, gelu, eps_z_n;
    int bits, block, half, own_zeros;
    float norm_eps, head_norm_eps;
} Shape;

typedef struct {
    ModelPlan plan;
    LayerPlan layers[SMALL_LAYERS];
    double gammas[SMALL_HEADS], frequencies[SMALL_WIDTH];
    uint8_t *weights, *own;
} SmallModel;

static inline uint32_t small_random(uint64_t *seed) {
    *seed = *seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*seed >> 33);
}

static inline double small_uniform(uint64_t *seed) {
    return 2.0 * small_random(seed) / 2147483647.0 - 1;
}

static inline Place small_place(Bytes *in, uint64_t size, uint64_t align, int own) {
    in->size = (in->size + align - 1) / align * align;
    const Place found = {in->size, size, own};
    in->size += size + SMALL_GAP;
    return found;
}

static inline MatrixPlan small_matrix(ModelPlan *p, const Shape *s, uint64_t *seed, int rows,
                                      int inputs) {
    const int bits = s->bits ? s->bits : small_random(seed) % 2 ? 8 : 4;
    const int block = s->bits ? s->block : 32 << small_random(seed) % 4;
    const int half = s->bits ? s->half : (int)(small_random(seed) % 2);
    const int zeros = s->bits ? s->own_zeros : (int)(small_random(seed) % 2);
    const uint64_t blocks = (uint64_t)((inputs + block - 1) / block), n = (uint64_t)rows;
    MatrixPlan m = {.rows = rows, .inputs = inputs, .bits = bits, .block = block,
                    .half_scales = half, .own_zeros = zeros};
    const uint64_t scale = half ? 2 : 4;
    m.scales = small_place(&p->weights, n * blocks * scale, scale, 0);
    if (zeros) m.zeros = small_place(&p->own, n * ((blocks * (uint64_t)bits + 7) / 8), 1, 1);
    m.codes = small_place(&p->weights, n * blocks * (uint64_t)(block * bits / 8), 1, 0);
    return m;
}

static inline void fill_matrix(const SmallModel *m, const MatrixPlan *p, uint64_t *seed) {
    for (uint64_t i = 0; i < p->codes.size; i++)
        m->weights[p->codes.offset + i] = (uint8_t)small_random(seed);
    for (uint64_t i = 0; p->own_zeros && i < p->zeros.size; i++)
        m->own[p->zeros.offset + i] = p->bits == 8 ? (uint8_t)(100 + small_random(seed) % 56)
                                                   : (uint8_t)(0x66 + small_random(seed) % 3 * 17);
    /* weights of the size of 1 / sqrt(inputs), in steps that a half has too */
    const double step = 2.0 / ((1 << p->bits) * sqrt((double)p->inputs));
    int exponent;
    frexp(step, &exponent);
    for (uint64_t i = 0; i < p->scales.size / (p->half_scales ? 2 : 4); i++) {
        const uint32_t digits = small_random(seed) % 1024;
        if (p->half_scales) {
            const uint16_t bits = (uint16_t)((exponent + 14) << 10 | digits);
            memcpy(m->weights + p->scales.offset + 2 * i, &bits, 2);
        } else {
            const float value = ldexpf(1 + (float)digits / 1024, exponent - 1);
            memcpy(m->weights + p->scales.offset + 4 * i, &value, 4);
        }
    }
}

static inline void fill_norm(const SmallModel *m, const Place *p, uint64_t *seed) {
    for (uint64_t i = 0; i < p->size / 4; i++) {
        const float value = (float)(1 + 0.3 * small_uniform(seed));
        memcpy((p->own ? m->own : m->weights) + p->offset + 4 * i, &value, 4);
    }
}

static inline void make_small(SmallModel *m, const Shape *s, uint64_t *seed) {
    ModelPlan *p = &m->plan;
    *p = (ModelPlan){.layers = m->layers, .gammas = m->gammas, .frequencies = m->frequencies,
                     .layer_count = s->layers, .d_model = s->d_model, .heads = s->heads,
                     .key_dim = s->key_dim, .value_dim = s->value_dim, .ffn_dim = s->ffn_dim,
                     .vocab_size = s->vocab, .layer_plans = s->layers, .gamma_count = s->heads,
                     .frequency_count = s->key_dim / 2, .gated = s->gated, .gelu = s->gelu,
                     .eps_z_n = s->eps_z_n, .norm_eps = s->norm_eps,
                     .head_norm_eps = s->head_norm_eps};
    const int keys = s->heads * s->key_dim, values = s->heads * s->value_dim;
    for (int i = 0; i < s->layers; i++) {
        LayerPlan *l = &m->layers[i];
        l->retention_norm = small_place(&p->own, 4 * (uint64_t)s->d_model, 4, 1);
        l->head_norm = small_place(&p->own, 4 * (uint64_t)s->value_dim, 4, 1);
        l->ffn_norm = small_place(&p->weights, 4 * (uint64_t)s->d_model, 4, 0);
        l->qkvg = small_matrix(p, s, seed, 2 * keys + 2 * values, s->d_model);
        l->out = small_matrix(p, s, seed, s->d_model, values);
        l->inner = small_matrix(p, s, seed, (s->gated ? 2 : 1) * s->ffn_dim, s->d_model);
        l->down = small_matrix(p, s, seed, s->d_model, s->ffn_dim);
    }
    p->final_norm = small_place(&p->own, 4 * (uint64_t)s->d_model, 4, 1);
    p->embedding = small_matrix(p, s, seed, s->vocab, s->d_model);
    p->head = small_matrix(p, s, seed, s->vocab, s->d_model);
    p->weights.size -= SMALL_GAP;
    p->own.size -= SMALL_GAP;
    p->weights.data = m->weights = malloc(p->weights.size);
    p->own.data = m->own = malloc(p->own.size);
    memset(m->weights, 0xff, p->weights.size);
    memset(m->own, 0xff, p->own.size);
    for (int i = 0; i < s->layers; i++) {
        const LayerPlan *l = &m->layers[i];
        fill_norm(m, &l->retention_norm, seed);
        fill_norm(m, &l->head_norm, seed);
        fill_norm(m, &l->ffn_norm, seed);
        fill_matrix(m, &l->qkvg, seed);
        fill_matrix(m, &l->out, seed);
        fill_matrix(m, &l->inner, seed);
        fill_matrix(m, &l->down, seed);
    }
    fill_norm(m, &p->final_norm, seed);
    fill_matrix(m, &p->embedding, seed);
    fill_matrix(m, &p->head, seed);
    for (int i = 0; i < s->heads; i++) m->gammas[i] = i ? 1 - ldexp(1, -2 - i) : 1;
    for (int i = 0; i < s->key_dim / 2; i++) m->frequencies[i] = pow(0.3, i) / 6.3;
}

static inline void free_small(SmallModel *m) {
    free(m->weights);
    free(m->own);
}

/* The model's table as format.h has it, with its own bytes; for `free`. */
static inline uint64_t *small_table(const SmallModel *m, uint64_t *size) {
    const ModelPlan *p = &m->plan;
    retnet_table_header h = {
        .version = RETNET_TABLE_VERSION, .header_bytes = sizeof h, .layer_bytes = sizeof(LayerPlan),
        .flags = (uint32_t)((p->gated ? RETNET_GATED_FFN : 0) | (p->gelu ? RETNET_GELU : 0) |
                            (p->eps_z_n ? RETNET_EPS_Z_N : 0)),
        .layer_count = p->layer_count, .d_model = p->d_model, .heads = p->heads,
        .key_dim = p->key_dim, .value_dim = p->value_dim, .ffn_dim = p->ffn_dim,
        .vocab_size = p->vocab_size, .norm_eps = p->norm_eps, .head_norm_eps = p->head_norm_eps,
        .final_norm = p->final_norm, .embedding = p->embedding, .head = p->head};
    const uint64_t layers = (uint64_t)p->layer_plans * sizeof(LayerPlan);
    const uint64_t gammas = (uint64_t)p->gamma_count * 8;
    const uint64_t frequencies = (uint64_t)p->frequency_count * 8;
    h.layers_offset = sizeof h;
    h.gammas_offset = h.layers_offset + layers;
    h.frequencies_offset = h.gammas_offset + gammas;
    h.own_offset = h.frequencies_offset + frequencies;
    h.own_bytes = p->own.size;
    h.table_bytes = *size = h.own_offset + h.own_bytes;
    char *to = malloc(h.table_bytes);
    memcpy(to, &h, sizeof h);
    memcpy(to + h.layers_offset, m->layers, layers);
    memcpy(to + h.gammas_offset, m->gammas, gammas);
    memcpy(to + h.frequencies_offset, m->frequencies, frequencies);
    memcpy(to + h.own_offset, m->own, p->own.size);
    return (uint64_t *)(void *)to;
}

static inline int state_floats(const ModelPlan *p) { return p->heads * p->key_dim * p->value_dim; }

#endif
