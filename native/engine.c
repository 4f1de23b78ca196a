#include "engine.h"

#include <math.h>
#include <stdlib.h>

#include "kernels.h"
#include "platform.h"
#include "pool.h"

#define PI 3.14159265358979323846

enum {
    CHUNK_BYTES = 96 * 1024, /* of a matrix that a thread multiplies by one token at a time */
    CACHE_LINE = 64,
};

/* What a call needs beside weights and states, for a number of tokens. */
typedef struct {
    char *memory;   /* that all lie in */
    float *x;       /* [tokens, d_model] the residual stream */
    float *normed;  /* [tokens, d_model] */
    float *projected;    /* [tokens, widest] what qkvg or inner give */
    float *hidden;  /* [tokens, widest] what out or down take */
    float *cos_sin;  /* [tokens, key_dim] cosines, then sines, of key_dim / 2 angles */
    float *eps;     /* [tokens, heads] of the head norm */
    Activations codes;
} Buffers;

struct Engine {
    const Model *model;
    const Kernels *kernels;
    Pool *pool;
    int threads;
    int widest;     /* the most columns or rows of a layer's matrix */
    Buffers single; /* of a step */
    char *scratch;  /* of each thread */
    uint64_t scratch_bytes;
    double seconds[RETNET_STAGES];
    double stage_start; /* the end of the stage before */
};

/* One call under way. */
typedef struct {
    Engine *engine;
    const Layer *layer;
    int tokens;
    const Buffers *b;
    float *state;
} Call;

typedef struct {
    const Engine *engine;
    const Matrix *matrix;
    const Activations *x;
    int tokens, add, rows; /* rows: of a chunk */
    float *y;
} LinearTask;

/* Where row `index` of rows of `width` begins. */
static size_t row_start(int index, int width) { return (size_t)index * (size_t)width; }

static int max_int(int a, int b) { return a > b ? a : b; }

static uint64_t round_to_cache_line(uint64_t bytes) {
    return (bytes + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE;
}

/* Lay the buffers of a call out from `memory` on, each on a cache line; the bytes they take. NULL:
 * only count. */
static uint64_t lay_out(const Engine *engine, uint64_t tokens, char *memory, Buffers *b) {
    const Model *m = engine->model;
    const uint64_t widest = (uint64_t)engine->widest;
    uint64_t at = 0;
#define ALLOCATE_FIELD(field, count)                        \
    b->field = memory ? (void *)(memory + at) : NULL;              \
    at += round_to_cache_line(tokens * (count) * sizeof *b->field)
    ALLOCATE_FIELD(x, (uint64_t)m->d_model);
    ALLOCATE_FIELD(normed, (uint64_t)m->d_model);
    ALLOCATE_FIELD(projected, widest);
    ALLOCATE_FIELD(hidden, widest);
    ALLOCATE_FIELD(cos_sin, (uint64_t)m->key_dim);
    ALLOCATE_FIELD(eps, (uint64_t)m->heads);
    ALLOCATE_FIELD(codes.codes, widest);
    ALLOCATE_FIELD(codes.sums, widest / COLUMN_ALIGN + 1 + BLOCK_ALIGN);
    ALLOCATE_FIELD(codes.scales, widest / COLUMN_ALIGN + 1 + BLOCK_ALIGN);
    ALLOCATE_FIELD(codes.acc_init, (widest / COLUMN_ALIGN + 1) * MAX_I32_LANES);
#undef ALLOCATE_FIELD
    return at;
}

static int new_buffers(const Engine *engine, int tokens, Buffers *b) {
    b->memory = allocate_aligned(lay_out(engine, (uint64_t)tokens, NULL, b));
    if (b->memory) lay_out(engine, (uint64_t)tokens, b->memory, b);
    return b->memory != NULL;
}

/* All time since the stage before belongs to this one. */
static void end_stage(Engine *engine, int stage) {
    const double at = monotonic_seconds();
    engine->seconds[stage] += at - engine->stage_start;
    engine->stage_start = at;
}

static void *thread_scratch(const Engine *engine, int thread) {
    return engine->scratch + (size_t)thread * engine->scratch_bytes;
}

static void linear_chunk(void *arg, int chunk, int thread) {
    const LinearTask *p = arg;
    const int first = chunk * p->rows, end = first + p->rows;
    const int last = end < p->matrix->rows ? end : p->matrix->rows;
    void *scratch = thread_scratch(p->engine, thread);
    if (p->tokens == 1)
        p->engine->kernels->gemv(p->matrix, first, last, p->x, p->y, p->add, scratch);
    else
        p->engine->kernels->gemm(p->matrix, first, last, p->x, p->tokens, p->y, p->add,
                                           scratch);
}

/* y [tokens, rows] = x W', or y += x W'. */
static void linear(const Engine *engine, const Matrix *m, const Activations *x, int tokens,
                    float *y, int add) {
    const int row_bytes = m->columns * m->bits / 8;
    const int rows = tokens > 1 ? PANEL_ROWS : max_int(2, CHUNK_BYTES / row_bytes / 2 * 2);
    LinearTask p = {engine, m, x, tokens, add, rows, y};
    pool_run(engine->pool, linear_chunk, &p, (m->rows + rows - 1) / rows);
}

static void norm_and_quantize(Call *call, const float *weight, const Matrix *next, int token,
                              int thread) {
    const Model *m = call->engine->model;
    const Kernels *k = call->engine->kernels;
    float *normed = call->b->normed + row_start(token, m->d_model);
    Activations codes = call->b->codes;
    k->rms_norm(call->b->x + row_start(token, m->d_model), weight, m->d_model, m->norm_eps, normed);
    k->quantize(next, normed, &codes, token, thread_scratch(call->engine, thread));
}

static void retention_norm(void *arg, int token, int thread) {
    Call *call = arg;
    norm_and_quantize(call, call->layer->retention_norm, &call->layer->qkvg, token, thread);
}

static void ffn_norm(void *arg, int token, int thread) {
    Call *call = arg;
    norm_and_quantize(call, call->layer->ffn_norm, &call->layer->inner, token, thread);
}

/* Channel i is paired with i + n/2. */
static void rotate(const float *x, const float *cos_sin, int n, float scale, float *out) {
    const float *cosines = cos_sin, *sines = cos_sin + n / 2;
    for (int i = 0; i < n / 2; i++) {
        out[i] = scale * (x[i] * cosines[i] - x[i + n / 2] * sines[i]);
        out[i + n / 2] = scale * (x[i + n / 2] * cosines[i] + x[i] * sines[i]);
    }
}

/* One head, all tokens: from q, k, v, gate in `projected` to silu(gate) * norm(o) in `hidden`. */
static void retention_head(void *arg, int head, int thread) {
    const Call *call = arg;
    const Model *m = call->engine->model;
    const Kernels *kernels = call->engine->kernels;
    const int keys = m->key_dim, values = m->value_dim, all_keys = m->heads * keys;
    const int all_values = m->heads * values, width = 2 * all_keys + 2 * all_values;
    float *q = thread_scratch(call->engine, thread), *k = q + keys;
    float *state = call->state + row_start(head, keys) * (size_t)values;
    for (int token = 0; token < call->tokens; token++) {
        const float *row = call->b->projected + row_start(token, width);
        const float *cos_sin = call->b->cos_sin + row_start(token, keys);
        float *o = call->b->hidden + row_start(token, all_values) + head * values;
        rotate(row + head * keys, cos_sin, keys, 1.0f / sqrtf((float)keys), q);
        rotate(row + all_keys + head * keys, cos_sin, keys, 1.0f, k);
        kernels->retention_step(state, q, k, row + 2 * all_keys + head * values,
                                (float)m->gammas[head], keys, values, o);
        kernels->rms_norm(o, call->layer->head_norm, values,
                          call->b->eps[token * m->heads + head], o);
        kernels->activate(row + 2 * all_keys + all_values + head * values, o, values, 0, o);
    }
}

static void quantize_retention(void *arg, int token, int thread) {
    const Call *call = arg;
    const Matrix *out = &call->layer->out;
    const float *hidden = call->b->hidden + row_start(token, out->inputs);
    Activations codes = call->b->codes;
    call->engine->kernels->quantize(out, hidden, &codes, token,
                                    thread_scratch(call->engine, thread));
}

static void ffn_activation(void *arg, int token, int thread) {
    const Call *call = arg;
    const Model *m = call->engine->model;
    const Kernels *kernels = call->engine->kernels;
    const float *projected = call->b->projected + row_start(token, call->layer->inner.rows);
    float *hidden = call->b->hidden + row_start(token, m->ffn_dim);
    Activations codes = call->b->codes;
    kernels->activate(projected, m->gated ? projected + m->ffn_dim : NULL, m->ffn_dim, m->gelu,
                      hidden);
    kernels->quantize(&call->layer->down, hidden, &codes, token,
                      thread_scratch(call->engine, thread));
}

/* Angles and head norm's eps of a token; n counts from 1. */
static void set_position_terms(const Model *m, const Buffers *b, int token, int64_t position) {
    float *cos_sin = b->cos_sin + row_start(token, m->key_dim);
    for (int i = 0; i < m->key_dim / 2; i++) {
        const double angle = 2 * PI * fmod((double)position * m->frequencies[i], 1.0);
        cos_sin[i] = (float)cos(angle);
        cos_sin[i + m->key_dim / 2] = (float)sin(angle);
    }
    const double n = (double)position + 1;
    for (int head = 0; head < m->heads; head++) {
        const double gamma = m->gammas[head];
        const double z = gamma == 1 ? n : -expm1(n * log(gamma)) / (1 - gamma);
        b->eps[token * m->heads + head] = m->head_norm_eps * (m->eps_z_n ? (float)z : 1.0f);
    }
}

static void run_layer(Call *call) {
    Engine *engine = call->engine;
    const Buffers *b = call->b;
    const Layer *layer = call->layer;
    const int tokens = call->tokens;
    pool_run(engine->pool, retention_norm, call, tokens);
    end_stage(engine, RETNET_OTHER);
    linear(engine, &layer->qkvg, &b->codes, tokens, b->projected, 0);
    end_stage(engine, RETNET_QKVG);
    pool_run(engine->pool, retention_head, call, engine->model->heads);
    end_stage(engine, RETNET_RETENTION);
    pool_run(engine->pool, quantize_retention, call, tokens);
    end_stage(engine, RETNET_OTHER);
    linear(engine, &layer->out, &b->codes, tokens, b->x, 1);
    end_stage(engine, RETNET_OUT);
    pool_run(engine->pool, ffn_norm, call, tokens);
    end_stage(engine, RETNET_OTHER);
    linear(engine, &layer->inner, &b->codes, tokens, b->projected, 0);
    end_stage(engine, RETNET_INNER);
    pool_run(engine->pool, ffn_activation, call, tokens);
    end_stage(engine, RETNET_OTHER);
    linear(engine, &layer->down, &b->codes, tokens, b->x, 1);
    end_stage(engine, RETNET_DOWN);
}

int engine_run(Engine *engine, const int32_t *tokens, int count, int64_t position, float *states,
               float *logits) {
    const Model *m = engine->model;
    const size_t state = (size_t)m->heads * (size_t)m->key_dim * (size_t)m->value_dim;
    Buffers many;
    const Buffers *b = &engine->single;
    pool_enter(engine->pool);
    if (count > 1) {
        if (!new_buffers(engine, count, &many)) return RETNET_NO_MEMORY;
        b = &many;
    }
    engine->stage_start = monotonic_seconds();
    for (int token = 0; token < count; token++) {
        engine->kernels->embedding_row(&m->embedding, (size_t)tokens[token],
                                b->x + row_start(token, m->d_model), engine->scratch);
        set_position_terms(m, b, token, position + token);
    }
    Call call = {.engine = engine, .tokens = count, .b = b};
    for (int i = 0; i < m->layer_count; i++) {
        call.layer = &m->layers[i];
        call.state = states + (size_t)i * state;
        run_layer(&call);
    }
    Activations last = b->codes;
    const float *x = b->x + row_start(count - 1, m->d_model);
    engine->kernels->rms_norm(x, m->final_norm, m->d_model, m->norm_eps, b->normed);
    engine->kernels->quantize(&m->head, b->normed, &last, 0, engine->scratch);
    end_stage(engine, RETNET_OTHER);
    linear(engine, &m->head, &last, 1, logits, 0);
    end_stage(engine, RETNET_HEAD);
    if (count > 1) free_aligned(many.memory);
    return RETNET_OK;
}

/* The most columns or rows of a matrix whose products a call keeps. */
static int widest_of(const Model *m) {
    int widest = max_int(m->d_model, max_int(m->head.columns, m->embedding.columns));
    for (int i = 0; i < m->layer_count; i++) {
        const Matrix *all[] = {&m->layers[i].qkvg, &m->layers[i].out, &m->layers[i].inner,
                               &m->layers[i].down};
        for (int j = 0; j < 4; j++)
            widest = max_int(widest, max_int(all[j]->rows, all[j]->columns));
    }
    return widest;
}

int engine_new(const Model *model, int threads, const char *kernels, Engine **to) {
    *to = NULL;
    if (threads < 1 || threads > RETNET_MOST_THREADS) return RETNET_BAD_THREADS;
    const Kernels *found = find_kernels(kernels);
    if (!found) return RETNET_NO_KERNELS;
    Engine *engine = calloc(1, sizeof *engine);
    if (!engine) return RETNET_NO_MEMORY;
    engine->model = model;
    engine->kernels = found;
    engine->threads = threads;
    engine->widest = widest_of(model);
    /* expanded rows of a chunk, with scales and levels of their blocks; or q and k of a head */
    const uint64_t chunk = (uint64_t)PANEL_ROWS * (uint64_t)engine->widest;
    const uint64_t blocks = chunk / COLUMN_ALIGN + PANEL_ROWS * (BLOCK_ALIGN + 1);
    engine->scratch_bytes = round_to_cache_line(chunk * sizeof(int16_t) +
                                                2 * blocks * sizeof(float) +
                                                2 * sizeof(float) * (uint64_t)model->key_dim);
    engine->scratch = allocate_aligned(engine->scratch_bytes * (uint64_t)threads);
    engine->pool = pool_new(threads);
    if (!new_buffers(engine, 1, &engine->single) || !engine->scratch || !engine->pool) {
        engine_free(engine);
        return RETNET_NO_MEMORY;
    }
    *to = engine;
    return RETNET_OK;
}

void engine_free(Engine *engine) {
    if (!engine) return;
    if (engine->pool) pool_free(engine->pool);
    free_aligned(engine->single.memory);
    free_aligned(engine->scratch);
    free(engine);
}

int engine_threads(const Engine *engine) { return engine->threads; }
const char *engine_kernels(const Engine *engine) { return engine->kernels->name; }
const double *engine_seconds(const Engine *engine) { return engine->seconds; }
