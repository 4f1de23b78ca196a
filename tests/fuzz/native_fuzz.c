/* The C engine on models, weights, states and calls that nobody would write: bytes decide what is
 * changed, and a sanitizer sees what comes of it. `native_fuzz.py` builds and runs it.
 *
 * Buffers are as large as is said (an engine cannot know better); all else may be anything. Every
 * model is refused in a sentence or runs, and every call too. With -DLIBFUZZER the bytes are
 * libFuzzer's, else those of a seed: `native_fuzz CASES SEED`. */
#include <stdio.h>

#include "../runtime/backends/small_model.h"

typedef struct {
    const uint8_t *at, *end;
} Input;

static long long refused, ran;

static uint32_t next(Input *in, int bytes) {
    uint32_t found = 0;
    for (int i = 0; i < bytes && in->at < in->end; i++) found = found << 8 | *in->at++;
    return found;
}

static int below(Input *in, int n) { return (int)(next(in, 2) % (uint32_t)n); }

static void must(int holds, const char *what) {
    if (holds) return;
    fprintf(stderr, "%s\n", what);
    abort();
}

/* Numbers at the edges of what is stored in so many bytes. */
static uint64_t odd_number(Input *in, uint64_t was) {
    switch (below(in, 10)) {
        case 0: return 0;
        case 1: return 1;
        case 2: return was + 1;
        case 3: return was - 1;
        case 4: return was * 2;
        case 5: return was / 2;
        case 6: return UINT64_MAX - (uint64_t)below(in, 3);
        case 7: return (uint64_t)1 << below(in, 64);
        case 8: return ((uint64_t)1 << below(in, 64)) - 1;
        default: return (uint64_t)next(in, 4) << below(in, 33);
    }
}

static uint32_t odd_float(Input *in) {
    const uint32_t odd[] = {0, 0x80000000, 1, 0x7f800000, 0xff800000, 0x7fc00000, 0x7f7fffff,
                            0x00800000, 0x3f800000, 0x3f800001};
    const int which = below(in, 14);
    return which < 10 ? odd[which] : next(in, 4);
}

static void change_float(Input *in, float *x) {
    const uint32_t bits = odd_float(in);
    memcpy(x, &bits, 4);
}

static void change_double(Input *in, double *x) {
    const double odd[] = {0, -0.0, 1, 1.5, -1, NAN, INFINITY, -INFINITY, 1e300, 1e-320, 0.999999999};
    *x = odd[below(in, 11)];
}

static void change_i32(Input *in, int32_t *x) {
    *x = (int32_t)(uint32_t)odd_number(in, (uint64_t)(int64_t)*x);
}

static void change_place(Input *in, Place *p) {
    switch (below(in, 4)) {
        case 0: p->offset = odd_number(in, p->offset); break;
        case 1: p->size = odd_number(in, p->size); break;
        case 2: p->own = !p->own; break;
        default: p->offset += (uint64_t)below(in, 9) - 4;
    }
}

static void change_matrix(Input *in, MatrixPlan *m) {
    int32_t *const numbers[] = {&m->rows, &m->inputs, &m->bits, &m->block, &m->half_scales,
                                &m->own_zeros};
    switch (below(in, 6)) {
        case 0: change_place(in, &m->codes); break;
        case 1: change_place(in, &m->scales); break;
        case 2: change_place(in, &m->zeros); break;
        case 3: m->block = 16 * below(in, 40); break;
        default: change_i32(in, numbers[below(in, 6)]);
    }
}

static void change_plan(Input *in, SmallModel *m) {
    ModelPlan *p = &m->plan;
    LayerPlan *l = &m->layers[below(in, SMALL_LAYERS)];
    int32_t *const numbers[] = {&p->layer_count, &p->d_model, &p->heads, &p->key_dim, &p->value_dim,
                                &p->ffn_dim, &p->vocab_size, &p->gated, &p->gelu, &p->eps_z_n};
    Place *const places[] = {&p->final_norm, &l->retention_norm, &l->head_norm, &l->ffn_norm};
    MatrixPlan *const matrices[] = {&p->embedding, &p->head, &l->qkvg, &l->out, &l->inner, &l->down};
    switch (below(in, 12)) {
        case 0: case 1: change_place(in, places[below(in, 4)]); break;
        case 2: case 3: case 4: change_matrix(in, matrices[below(in, 6)]); break;
        case 5: change_float(in, below(in, 2) ? &p->norm_eps : &p->head_norm_eps); break;
        case 6: change_double(in, &m->gammas[below(in, SMALL_HEADS)]); break;
        case 7: change_double(in, &m->frequencies[below(in, 8)]); break;
        case 8: /* fewer than there are */
            p->weights.size = odd_number(in, p->weights.size) % (p->weights.size + 1);
            break;
        case 9: p->own.size = odd_number(in, p->own.size) % (p->own.size + 1); break;
        default: change_i32(in, numbers[below(in, 10)]);
    }
}

/* Scales, norms, codes and zeros: all that lies in the buffers. */
static void change_weights(Input *in, SmallModel *m, uint64_t weights, uint64_t own) {
    const int inside = below(in, 2);
    uint8_t *bytes = inside ? m->own : m->weights;
    const uint64_t size = inside ? own : weights, at = next(in, 3) % (size / 4) * 4;
    const uint32_t bits = odd_float(in);
    memcpy(bytes + at, &bits, 4);
}

static Shape any_shape(Input *in) {
    Shape s = {.layers = 1 + below(in, SMALL_LAYERS), .d_model = 1 + below(in, 90),
               .heads = 1 + below(in, SMALL_HEADS), .key_dim = 2 + 2 * below(in, 8),
               .value_dim = 1 + below(in, 20), .ffn_dim = 1 + below(in, 80),
               .vocab = 1 + below(in, 60), .gated = below(in, 2), .gelu = below(in, 2),
               .eps_z_n = below(in, 2), .norm_eps = 1e-5f, .head_norm_eps = 1e-3f};
    if (below(in, 4) == 0) { /* all matrices alike, in blocks that may be none */
        s.bits = below(in, 2) ? 8 : 4;
        s.block = below(in, 2) ? 32 * (1 + below(in, 9)) : 32 << below(in, 4);
        s.half = below(in, 2), s.own_zeros = below(in, 2);
    }
    return s;
}

/* A call with as much memory as it says, which need not be as much as it should have. `changed`:
 * the model was, so that logits need not be numbers. */
static void call(Input *in, Engine *engine, const ModelPlan *p, int changed) {
    const int32_t layers = below(in, 8) ? p->layer_count : below(in, 4);
    Floats states[SMALL_LAYERS + 2];
    uint64_t logit_count = (uint64_t)p->vocab_size;
    if (!below(in, 12)) logit_count = odd_number(in, logit_count) % 4096;
    for (int i = 0; i < SMALL_LAYERS + 2; i++) {
        uint64_t count = (uint64_t)state_floats(p);
        if (!below(in, 16)) count = odd_number(in, count) % 4096;
        states[i] = (Floats){malloc(count ? count * sizeof(float) : 1), count};
        if (count) memset(states[i].data, 0, count * sizeof(float));
        for (int j = below(in, 8) - 5; j > 0 && count; j--, changed = 1)
            change_float(in, &states[i].data[next(in, 2) % count]);
    }
    float *logits = malloc(logit_count ? logit_count * sizeof(float) : 1);
    int64_t tokens[20], position = below(in, 5000);
    int64_t count = 1 + below(in, 20);
    for (int i = 0; i < 20; i++) tokens[i] = below(in, p->vocab_size);
    if (!below(in, 12)) tokens[below(in, 20)] = (int64_t)odd_number(in, (uint64_t)p->vocab_size);
    if (!below(in, 8)) position = (int64_t)odd_number(in, (uint64_t)position);
    if (!below(in, 12)) {
        count = (int64_t)odd_number(in, (uint64_t)count);
        if (count > 20 && count <= RETNET_MOST_TOKENS) count = 20;
    }
    const int status = retnet_run(engine, tokens, count, position, states, layers, logits,
                                  logit_count);
    must(status == RETNET_OK || status >= RETNET_BAD_COUNT, "a call's status");
    if (status == RETNET_OK && !changed)
        for (uint64_t i = 0; i < logit_count; i++) must(isfinite(logits[i]), "a finite logit");
    for (int i = 0; i < SMALL_LAYERS + 2; i++) free(states[i].data);
    free(logits);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    Input in = {data, data + size};
    uint64_t seed = next(&in, 4);
    const Shape shape = any_shape(&in);
    SmallModel *m = calloc(1, sizeof *m);
    make_small(m, &shape, &seed);
    const uint64_t weights = m->plan.weights.size, own = m->plan.own.size;
    const int plans = below(&in, 3) ? 0 : 1 + below(&in, 3), bytes = below(&in, 4);
    for (int i = 0; i < plans; i++) change_plan(&in, m);
    for (int i = 0; i < bytes; i++) change_weights(&in, m, weights, own);
    const char *const kernels[] = {NULL, "avx512", "avx2", "neon", "plain"};
    int threads = 1 + below(&in, 8) / 7;
    if (!below(&in, 40)) threads = (int)(int32_t)odd_number(&in, 256);
    if (threads > 4 && threads <= RETNET_MOST_THREADS) threads = 4;
    char sentence[256];
    Engine *engine;
    const int status = retnet_new(&m->plan, threads, kernels[below(&in, 5)], &engine, sentence,
                                  sizeof sentence);
    must(status == RETNET_OK ? engine != NULL : engine == NULL, "an engine or a refusal");
    must((status == RETNET_BAD_PLAN) == (*sentence != 0), "a sentence where a plan is refused");
    must(status == RETNET_OK || status == RETNET_BAD_PLAN || status == RETNET_BAD_THREADS ||
             status == RETNET_NO_KERNELS, "an engine's status");
    if (engine) {
        ran++;
        for (int i = 1 + below(&in, 2); i; i--) call(&in, engine, &m->plan, plans || bytes);
        must(retnet_free(engine) == RETNET_OK, "an engine that ends");
    } else refused++;
    free_small(m);
    free(m);
    return 0;
}

#ifndef LIBFUZZER
int main(int count, char **words) {
    const long long cases = count > 1 ? atoll(words[1]) : 10000;
    const long long first = count > 2 ? atoll(words[2]) : 1;
    for (long long i = 0; i < cases; i++) {
        uint8_t data[400];
        uint64_t seed = (uint64_t)(first + i) * 0x9e3779b97f4a7c15u;
        for (size_t j = 0; j < sizeof data; j++) data[j] = (uint8_t)small_random(&seed);
        fprintf(stderr, "\rcase %lld ", first + i); /* stands before a sanitizer's report */
        LLVMFuzzerTestOneInput(data, sizeof data);
    }
    printf("%lld cases: %lld engines ran, %lld models were refused\n", cases, ran, refused);
    return 0;
}
#endif
