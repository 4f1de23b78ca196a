#include "table.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A plan under check, where a sentence about it goes, and how many bytes its places took so far. */
typedef struct {
    const ModelPlan *plan;
    char *error;
    size_t size;
    uint64_t *taken;
} Check;

/* 0, after the sentence. */
static int refuse(const Check *c, const char *format, ...) {
    if (c->error && c->size) {
        va_list values;
        va_start(values, format);
        vsnprintf(c->error, c->size, format, values);
        va_end(values);
    }
    return 0;
}

static int in_range(const Check *c, const char *what, int64_t value, int64_t least, int64_t most) {
    if (value >= least && value <= most) return 1;
    return refuse(c, "%s is %lld; allowed is %lld to %lld", what, (long long)value,
                  (long long)least, (long long)most);
}

/* The memory of a place that has `expected` bytes, numbers of `align` bytes each; NULL: refused. */
static const void *place(const Check *c, const char *of, const char *part, const Place *p,
                         uint64_t expected, size_t align) {
    const Bytes *in = p->own ? &c->plan->own : &c->plan->weights;
    if (p->size != expected) {
        refuse(c, "%s: %s has %llu bytes; its shape needs %llu", of, part,
               (unsigned long long)p->size, (unsigned long long)expected);
        return NULL;
    }
    if (!in->data || p->offset > in->size || p->size > in->size - p->offset) {
        refuse(c, "%s: %s lies at byte %llu, and has %llu, of a buffer of %llu", of, part,
               (unsigned long long)p->offset, (unsigned long long)p->size,
               (unsigned long long)(in->data ? in->size : 0));
        return NULL;
    }
    /* a tied head is there twice; a thousand layers in one place would be looked at as often */
    const uint64_t most = 2 * (c->plan->weights.size + c->plan->own.size);
    *c->taken += p->size;
    if (*c->taken > most) {
        refuse(c, "%s: up to its %s, tensors have %llu bytes; at most twice what is there is allowed, %llu",
               of, part, (unsigned long long)*c->taken, (unsigned long long)most);
        return NULL;
    }
    const char *found = (const char *)in->data + p->offset;
    if ((uintptr_t)found % align) {
        refuse(c, "%s: %s lies at byte %llu; its numbers need a multiple of %llu", of, part,
               (unsigned long long)p->offset, (unsigned long long)align);
        return NULL;
    }
    return found;
}

/* Without a branch in the loops, which a compiler turns into vectors: a model has a million scales. */
static int all_finite(const Check *c, const char *of, const char *part, const float *x, size_t n) {
    uint32_t odd = 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &x[i], sizeof bits);
        odd |= (bits & 0x7f800000) == 0x7f800000;
    }
    return odd ? refuse(c, "%s: %s holds what is no finite number", of, part) : 1;
}

static int halves_finite(const Check *c, const char *of, const uint16_t *x, size_t n) {
    uint32_t odd = 0;
    for (size_t i = 0; i < n; i++) odd |= (x[i] & 0x7c00) == 0x7c00;
    return odd ? refuse(c, "%s: scales holds what is no finite number", of) : 1;
}

static const float *norm(const Check *c, const char *of, const char *part, const Place *p, int n) {
    const float *found = place(c, of, part, p, sizeof(float) * (uint64_t)n, sizeof(float));
    return found && all_finite(c, of, part, found, (size_t)n) ? found : NULL;
}

static int matrix(const Check *c, const char *of, const MatrixPlan *p, int64_t rows, int64_t inputs,
                  Matrix *m) {
    if (p->rows != rows || p->inputs != inputs)
        return refuse(c, "%s is [%d, %d]; the model says [%lld, %lld]", of, p->rows, p->inputs,
                      (long long)rows, (long long)inputs);
    if (p->bits != 4 && p->bits != 8)
        return refuse(c, "%s has %d bits; allowed are 4 and 8", of, p->bits);
    if (p->block != 32 && p->block != 64 && p->block != 128 && p->block != 256)
        return refuse(c, "%s has blocks of %d; allowed are 32, 64, 128 and 256", of, p->block);
    const uint64_t blocks = ((uint64_t)inputs + (uint64_t)p->block - 1) / (uint64_t)p->block;
    const uint64_t columns = blocks * (uint64_t)p->block, all = (uint64_t)rows * blocks;
    const size_t scale = p->half_scales ? sizeof(uint16_t) : sizeof(float);
    *m = (Matrix){.rows = p->rows, .inputs = p->inputs, .columns = (int32_t)columns,
                  .bits = p->bits, .block = p->block, .half_scales = p->half_scales != 0};
    m->codes = place(c, of, "codes", &p->codes, (uint64_t)rows * (columns * (uint64_t)p->bits / 8),
                     1);
    if (!m->codes) return 0;
    m->scales = place(c, of, "scales", &p->scales, all * scale, scale);
    if (!m->scales) return 0;
    if (p->half_scales ? !halves_finite(c, of, m->scales, all)
                       : !all_finite(c, of, "scales", m->scales, all))
        return 0;
    if (!p->own_zeros) return 1;
    m->zeros = place(c, of, "zeros", &p->zeros,
                     (uint64_t)rows * ((blocks * (uint64_t)p->bits + 7) / 8), 1);
    return m->zeros != NULL;
}

static int layer(const Check *c, int index, Layer *to) {
    const ModelPlan *p = c->plan;
    const LayerPlan *from = &p->layers[index];
    const int64_t keys = (int64_t)p->heads * p->key_dim, values = (int64_t)p->heads * p->value_dim;
    const struct {
        const char *name;
        const Place *place;
        int n;
        const float **to;
    } norms[] = {{"retention_norm", &from->retention_norm, p->d_model, &to->retention_norm},
                 {"head_norm", &from->head_norm, p->value_dim, &to->head_norm},
                 {"ffn_norm", &from->ffn_norm, p->d_model, &to->ffn_norm}};
    const struct {
        const char *name;
        const MatrixPlan *plan;
        int64_t rows, inputs;
        Matrix *to;
    } matrices[] = {{"qkvg", &from->qkvg, 2 * keys + 2 * values, p->d_model, &to->qkvg},
                    {"out", &from->out, p->d_model, values, &to->out},
                    {"inner", &from->inner, (p->gated ? 2 : 1) * (int64_t)p->ffn_dim, p->d_model,
                     &to->inner},
                    {"down", &from->down, p->d_model, p->ffn_dim, &to->down}};
    char of[64];
    snprintf(of, sizeof of, "layer %d", index);
    for (size_t i = 0; i < sizeof norms / sizeof *norms; i++)
        if (!(*norms[i].to = norm(c, of, norms[i].name, norms[i].place, norms[i].n))) return 0;
    for (size_t i = 0; i < sizeof matrices / sizeof *matrices; i++) {
        snprintf(of, sizeof of, "layer %d %s", index, matrices[i].name);
        if (!in_range(c, of, matrices[i].rows, 1, MOST_WIDTH) ||
            !in_range(c, of, matrices[i].inputs, 1, MOST_WIDTH) ||
            !matrix(c, of, matrices[i].plan, matrices[i].rows, matrices[i].inputs, matrices[i].to))
            return 0;
    }
    return 1;
}

static int sizes(const Check *c) {
    const ModelPlan *p = c->plan;
    return in_range(c, "layers", p->layer_count, 1, MOST_LAYERS) &&
           in_range(c, "heads", p->heads, 1, MOST_HEADS) &&
           in_range(c, "d_model", p->d_model, 1, MOST_WIDTH) &&
           in_range(c, "key_head_dim", p->key_dim, 2, MOST_WIDTH) &&
           in_range(c, "value_head_dim", p->value_dim, 1, MOST_WIDTH) &&
           in_range(c, "ffn_dim", p->ffn_dim, 1, MOST_WIDTH) &&
           in_range(c, "vocab_size", p->vocab_size, 1, MOST_WIDTH) &&
           (p->key_dim % 2 == 0 ||
            refuse(c, "key_head_dim is %d; rotary pairs need an even number", p->key_dim)) &&
           in_range(c, "the number of layers' plans", p->layer_plans, p->layer_count,
                    p->layer_count) &&
           in_range(c, "the number of gammas", p->gamma_count, p->heads, p->heads) &&
           in_range(c, "the number of thetas", p->frequency_count, p->key_dim / 2,
                    p->key_dim / 2) &&
           ((p->layers && p->gammas && p->frequencies) || refuse(c, "a part is missing"));
}

static int numbers(const Check *c) {
    const ModelPlan *p = c->plan;
    for (int i = 0; i < p->gamma_count; i++)
        if (!(p->gammas[i] > 0 && p->gammas[i] <= 1))
            return refuse(c, "gammas holds %g; a decay lies in (0, 1]", p->gammas[i]);
    for (int i = 0; i < p->frequency_count; i++)
        if (!(fabs(p->frequencies[i]) < (double)INFINITY))
            return refuse(c, "thetas holds what is no finite number");
    if (!(p->norm_eps > 0 && p->norm_eps <= 1))
        return refuse(c, "norm_eps is %g as float32; allowed is (0, 1]", (double)p->norm_eps);
    if (!(p->head_norm_eps > 0 && p->head_norm_eps <= 1))
        return refuse(c, "head_norm_eps is %g as float32; allowed is (0, 1]",
                      (double)p->head_norm_eps);
    return 1;
}

static void *copied(const void *from, size_t bytes) {
    void *to = malloc(bytes);
    return to ? memcpy(to, from, bytes) : NULL;
}

int check_plan(const ModelPlan *plan, Model *model, char *error, size_t size) {
    uint64_t taken = 0;
    const Check c = {plan, error, size, &taken};
    *model = (Model){0};
    if (error && size) *error = 0;
    if (!sizes(&c)) return RETNET_BAD_FILE;
    *model = (Model){.layer_count = plan->layer_count, .d_model = plan->d_model,
                     .heads = plan->heads, .key_dim = plan->key_dim,
                     .value_dim = plan->value_dim, .ffn_dim = plan->ffn_dim,
                     .vocab_size = plan->vocab_size, .gated = plan->gated, .gelu = plan->gelu,
                     .eps_z_n = plan->eps_z_n, .norm_eps = plan->norm_eps,
                     .head_norm_eps = plan->head_norm_eps};
    Layer *layers = calloc((size_t)plan->layer_count, sizeof *layers);
    model->layers = layers;
    model->gammas = copied(plan->gammas, sizeof(double) * (size_t)plan->gamma_count);
    model->frequencies = copied(plan->frequencies, sizeof(double) * (size_t)plan->frequency_count);
    int status = layers && model->gammas && model->frequencies ? RETNET_OK : RETNET_NO_MEMORY;
    if (!status && !(numbers(&c) &&
                     matrix(&c, "embedding", &plan->embedding, plan->vocab_size, plan->d_model,
                            &model->embedding) &&
                     matrix(&c, "head", &plan->head, plan->vocab_size, plan->d_model,
                            &model->head) &&
                     (model->final_norm = norm(&c, "model", "final_norm", &plan->final_norm,
                                               plan->d_model))))
        status = RETNET_BAD_FILE;
    for (int i = 0; !status && i < plan->layer_count; i++)
        if (!layer(&c, i, &layers[i])) status = RETNET_BAD_FILE;
    if (status) free_model(model);
    return status;
}

void free_model(Model *model) {
    free((void *)model->layers);
    free((void *)model->gammas);
    free((void *)model->frequencies);
    *model = (Model){0};
}

/* Do `count` records of `bytes` lie in the table at `offset`, on a multiple of 8? */
static int in_table(const Check *c, const char *what, Bytes table, uint64_t offset, int64_t count,
                    uint64_t bytes) {
    if (count >= 0 && offset % 8 == 0 && offset <= table.size &&
        (uint64_t)count <= (table.size - offset) / bytes)
        return 1;
    return refuse(c, "%lld %s lie at byte %llu of a table of %llu, or at no multiple of 8",
                  (long long)count, what, (unsigned long long)offset,
                  (unsigned long long)table.size);
}

int read_table(Bytes table, Bytes weights, ModelPlan *plan, char *error, size_t size) {
    const Check c = {plan, error, size, NULL};
    *plan = (ModelPlan){0};
    if (error && size) *error = 0;
    const char *bytes = table.data;
    retnet_table_header h;
    if (table.size < sizeof h) {
        refuse(&c, "it has %llu bytes; at least %llu are needed", (unsigned long long)table.size,
               (unsigned long long)sizeof h);
        return RETNET_BAD_FILE;
    }
    memcpy(&h, bytes, sizeof h);
    const uint32_t known = RETNET_GATED_FFN | RETNET_GELU | RETNET_EPS_Z_N;
    if (h.version != RETNET_TABLE_VERSION || h.header_bytes != sizeof h ||
        h.layer_bytes != sizeof(LayerPlan)) {
        refuse(&c, "its version is %u, with records of %u and %u bytes; this library reads %d, with "
               "%llu and %llu", h.version, h.header_bytes, h.layer_bytes, RETNET_TABLE_VERSION,
               (unsigned long long)sizeof h, (unsigned long long)sizeof(LayerPlan));
        return RETNET_BAD_FILE;
    }
    if (h.flags & ~known || h.decay != RETNET_DECAY_CONSTANT || h.conv_width || h.reserved) {
        refuse(&c, "it asks for what this library does not know: flags %u, decay %u, convolution %u",
               h.flags, h.decay, h.conv_width);
        return RETNET_BAD_FILE;
    }
    if (h.table_bytes != table.size) {
        refuse(&c, "it has %llu bytes, and says %llu", (unsigned long long)table.size,
               (unsigned long long)h.table_bytes);
        return RETNET_BAD_FILE;
    }
    if (!in_table(&c, "layers", table, h.layers_offset, h.layer_count, sizeof(LayerPlan)) ||
        !in_table(&c, "gammas", table, h.gammas_offset, h.heads, sizeof(double)) ||
        !in_table(&c, "frequencies", table, h.frequencies_offset, h.key_dim / 2, sizeof(double)) ||
        !in_table(&c, "own bytes", table, h.own_offset,
                  h.own_bytes > INT64_MAX ? -1 : (int64_t)h.own_bytes, 1))
        return RETNET_BAD_FILE;
    *plan = (ModelPlan){.weights = weights,
                        .own = {bytes + h.own_offset, h.own_bytes},
                        .gammas = (const void *)(bytes + h.gammas_offset),
                        .frequencies = (const void *)(bytes + h.frequencies_offset),
                        .layers = (const void *)(bytes + h.layers_offset),
                        .embedding = h.embedding, .head = h.head, .final_norm = h.final_norm,
                        .layer_count = h.layer_count, .d_model = h.d_model, .heads = h.heads,
                        .key_dim = h.key_dim, .value_dim = h.value_dim, .ffn_dim = h.ffn_dim,
                        .vocab_size = h.vocab_size, .layer_plans = h.layer_count,
                        .gamma_count = h.heads, .frequency_count = h.key_dim / 2,
                        .gated = (h.flags & RETNET_GATED_FFN) != 0,
                        .gelu = (h.flags & RETNET_GELU) != 0,
                        .eps_z_n = (h.flags & RETNET_EPS_Z_N) != 0, .norm_eps = h.norm_eps,
                        .head_norm_eps = h.head_norm_eps};
    return RETNET_OK;
}
