/* The engine (native/retnet.c, check.c, pool.c) on small models: what it computes against the
 * definition in double, what it refuses, who may call it at once, and where a process was forked
 * off. Built and run by test_native_kernels.py; writes what is wrong, and exits with 1. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "small_model.h"

enum { TOKENS = 9 };

static const char *const KERNELS[] = {"avx512", "avx2", "neon", "plain"};
static int failures = 0;

static void expect(int holds, const char *what, const char *of) {
    if (holds) return;
    failures++;
    printf("%s: %s\n", of, what);
}

/* ------------------------------------------------------------------ the model by its definition */

static double weight(const SmallModel *m, const MatrixPlan *p, int row, int k) {
    const int blocks = (p->inputs + p->block - 1) / p->block, b = k / p->block;
    const size_t at = (size_t)row * (size_t)(blocks * p->block) + (size_t)k;
    const uint8_t *codes = m->weights + p->codes.offset, *zeros = m->own + p->zeros.offset;
    const int code = p->bits == 8 ? codes[at] : codes[at / 2] >> (at % 2 * 4) & 15;
    int zero = 1 << (p->bits - 1);
    if (p->own_zeros && p->bits == 8) zero = zeros[row * blocks + b];
    if (p->own_zeros && p->bits == 4)
        zero = zeros[row * ((blocks + 1) / 2) + b / 2] >> (b % 2 * 4) & 15;
    const uint8_t *scale = m->weights + p->scales.offset;
    if (!p->half_scales) {
        float value;
        memcpy(&value, scale + 4 * (row * blocks + b), 4);
        return (code - zero) * (double)value;
    }
    uint16_t half;
    memcpy(&half, scale + 2 * (row * blocks + b), 2);
    return (code - zero) * ldexp(1 + (half & 1023) / 1024.0, (half >> 10) - 15);
}

static void product(const SmallModel *m, const MatrixPlan *p, const double *x, double *y) {
    for (int row = 0; row < p->rows; row++) {
        double sum = 0;
        for (int k = 0; k < p->inputs; k++) sum += weight(m, p, row, k) * x[k];
        y[row] = sum;
    }
}

static void normed(const SmallModel *m, const Place *p, const double *x, int n, double eps,
                   double *y) {
    double squares = 0;
    for (int i = 0; i < n; i++) squares += x[i] * x[i];
    for (int i = 0; i < n; i++) {
        float by;
        memcpy(&by, (p->own ? m->own : m->weights) + p->offset + 4 * i, 4);
        y[i] = x[i] / sqrt(squares / n + eps) * by;
    }
}

static double act(double x, int gelu) {
    return gelu ? 0.5 * x * (1 + erf(x / sqrt(2))) : x / (1 + exp(-x));
}

static void turn(double *x, const ModelPlan *p, int64_t position, double scale) {
    const int half = p->key_dim / 2;
    for (int i = 0; i < half; i++) {
        const double turns = (double)position * p->frequencies[i];
        const double angle = 2 * 3.14159265358979323846 * (turns - floor(turns));
        const double a = x[i], b = x[i + half];
        x[i] = scale * (a * cos(angle) - b * sin(angle));
        x[i + half] = scale * (b * cos(angle) + a * sin(angle));
    }
}

/* Z_n: the sum of gamma^j, j = 0 ... n - 1, where n counts from 1. */
static double decays(double gamma, int64_t n) {
    double sum = 0;
    for (int64_t j = 0; j < n; j++) sum = sum * gamma + 1;
    return sum;
}

static void define_layer(const SmallModel *m, const LayerPlan *l, int64_t position, double *x,
                         double *state) {
    const ModelPlan *p = &m->plan;
    const int keys = p->key_dim, values = p->value_dim, heads = p->heads, all = heads * keys;
    double n[SMALL_WIDTH], y[4 * SMALL_WIDTH], o[SMALL_WIDTH], added[SMALL_WIDTH];
    normed(m, &l->retention_norm, x, p->d_model, p->norm_eps, n);
    product(m, &l->qkvg, n, y);
    for (int h = 0; h < heads; h++) {
        double *q = y + h * keys, *k = y + all + h * keys, *v = y + 2 * all + h * values;
        const double *gate = y + 2 * all + heads * values + h * values;
        double *s = state + h * keys * values, *out = o + h * values;
        turn(q, p, position, 1 / sqrt(keys));
        turn(k, p, position, 1);
        for (int j = 0; j < values; j++) {
            out[j] = 0;
            for (int i = 0; i < keys; i++) {
                double *at = &s[i * values + j];
                *at = p->gammas[h] * *at + k[i] * v[j];
                out[j] += q[i] * *at;
            }
        }
        const double z = p->eps_z_n ? decays(p->gammas[h], position + 1) : 1;
        normed(m, &l->head_norm, out, values, p->head_norm_eps * z, out);
        for (int j = 0; j < values; j++) out[j] *= act(gate[j], 0);
    }
    product(m, &l->out, o, added);
    for (int i = 0; i < p->d_model; i++) x[i] += added[i];
    normed(m, &l->ffn_norm, x, p->d_model, p->norm_eps, n);
    product(m, &l->inner, n, y);
    for (int i = 0; i < p->ffn_dim; i++)
        o[i] = act(y[i], p->gelu) * (p->gated ? y[p->ffn_dim + i] : 1);
    product(m, &l->down, o, added);
    for (int i = 0; i < p->d_model; i++) x[i] += added[i];
}

static void define_step(const SmallModel *m, int64_t token, int64_t position, double **states,
                        double *logits) {
    double x[SMALL_WIDTH];
    for (int i = 0; i < m->plan.d_model; i++) x[i] = weight(m, &m->plan.embedding, (int)token, i);
    for (int i = 0; i < m->plan.layer_count; i++)
        define_layer(m, &m->layers[i], position, x, states[i]);
    normed(m, &m->plan.final_norm, x, m->plan.d_model, m->plan.norm_eps, x);
    product(m, &m->plan.head, x, logits);
}

/* ------------------------------------------------------------------------- what is computed */

typedef struct {
    Floats states[SMALL_LAYERS];
    float *logits;
    const ModelPlan *plan;
} Run;

static Run new_run(const ModelPlan *p) {
    Run r = {.plan = p, .logits = calloc((size_t)p->vocab_size, sizeof(float))};
    const size_t n = (size_t)state_floats(p);
    for (int i = 0; i < p->layer_count; i++) {
        r.states[i] = (Floats){calloc(n, sizeof(float)), n};
        for (size_t j = 0; j < n; j++) r.states[i].data[j] = (float)((int)(j * 7 % 11) - 5) / 9;
    }
    return r;
}

static void free_run(Run *r) {
    for (int i = 0; i < r->plan->layer_count; i++) free(r->states[i].data);
    free(r->logits);
}

static int feed(Engine *engine, Run *r, const int64_t *tokens, int64_t count, int64_t position) {
    return retnet_run(engine, tokens, count, position, r->states, r->plan->layer_count, r->logits,
                      (uint64_t)r->plan->vocab_size);
}

static int same_bits(const Run *a, const Run *b) {
    const ModelPlan *p = a->plan;
    for (int i = 0; i < p->layer_count; i++)
        if (memcmp(a->states[i].data, b->states[i].data, sizeof(float) * a->states[i].count))
            return 0;
    return !memcmp(a->logits, b->logits, sizeof(float) * (size_t)p->vocab_size);
}

static double difference(const float *found, const double *exact, size_t n) {
    double most = 0, size = 0;
    for (size_t i = 0; i < n; i++) {
        most = fmax(most, isnan(found[i]) ? INFINITY : fabs(found[i] - exact[i]));
        size = fmax(size, fabs(exact[i]));
    }
    return most / size;
}

/* Logits and states of every step against the definition; a prompt in pieces, on any number of
 * threads, against the steps' bits. */
static void check_numbers(const Shape *shape, const char *kernels, int64_t position,
                          uint64_t seed) {
    SmallModel m;
    make_small(&m, shape, &seed);
    char sentence[256], of[128];
    snprintf(of, sizeof of, "%s, %d bits, blocks of %d, d %d, ffn %d%s%s%s", kernels, shape->bits,
             shape->block, shape->d_model, shape->ffn_dim, shape->gated ? ", gated" : "",
             shape->gelu ? ", gelu" : "", shape->eps_z_n ? ", z_n" : "");
    Engine *engine;
    const int status = retnet_new(&m.plan, 1, kernels, &engine, sentence, sizeof sentence);
    expect(!status && !*sentence, sentence, of);
    if (status) return;
    expect(!strcmp(retnet_kernels(engine), kernels), "other kernels", of);
    Run alone = new_run(&m.plan);
    int64_t tokens[TOKENS];
    double *states[SMALL_LAYERS], *logits = malloc(sizeof(double) * (size_t)shape->vocab);
    for (int i = 0; i < shape->layers; i++) {
        states[i] = malloc(sizeof(double) * alone.states[i].count);
        for (size_t j = 0; j < alone.states[i].count; j++) states[i][j] = alone.states[i].data[j];
    }
    const double bound = shape->bits == 8 ? 2e-3 : 0.1;
    for (int t = 0; t < TOKENS; t++) {
        tokens[t] = t ? (int)(small_random(&seed) % (uint32_t)shape->vocab) : shape->vocab - 1;
        define_step(&m, tokens[t], position + t, states, logits);
        expect(!feed(engine, &alone, &tokens[t], 1, position + t), "a step's status", of);
        expect(difference(alone.logits, logits, (size_t)shape->vocab) < bound, "logits", of);
        for (int i = 0; i < shape->layers; i++)
            expect(difference(alone.states[i].data, states[i], alone.states[i].count) < bound,
                   "states", of);
    }
    double seconds[RETNET_STAGES];
    expect(!retnet_seconds(engine, seconds), "seconds' status", of);
    for (int i = 0; i < RETNET_STAGES; i++)
        expect(seconds[i] > 0 && seconds[i] < 60, "seconds", of);
    expect(!retnet_free(engine), "freeing", of);
    for (int threads = 1; threads <= 3; threads++) {
        expect(!retnet_new(&m.plan, threads, kernels, &engine, NULL, 0), "a plan", of);
        for (int piece = 2; piece <= TOKENS; piece += 3) {
            Run together = new_run(&m.plan);
            for (int t = 0; t < TOKENS; t += piece)
                expect(!feed(engine, &together, tokens + t,
                             t + piece < TOKENS ? piece : TOKENS - t, position + t),
                       "a prompt's status", of);
            expect(same_bits(&together, &alone), "a prompt has other bits", of);
            free_run(&together);
        }
        retnet_free(engine);
    }
    free_run(&alone);
    for (int i = 0; i < shape->layers; i++) free(states[i]);
    free(logits);
    free_small(&m);
}

static const Shape BASE = {.layers = 2, .d_model = 48, .heads = 2, .key_dim = 10, .value_dim = 14,
                           .ffn_dim = 37, .vocab = 61, .gated = 1, .norm_eps = 1e-5f,
                           .head_norm_eps = 1e-5f, .bits = 8, .block = 32};

static void check_shapes(const char *kernels) {
    Shape s = BASE;
    check_numbers(&s, kernels, 0, 1);
    s.eps_z_n = 1, s.head_norm_eps = 0.9f, s.norm_eps = 0.8f;
    check_numbers(&s, kernels, 0, 2);
    s.gelu = 1, s.gated = 0, s.half = 1, s.own_zeros = 1, s.block = 64, s.heads = 3;
    check_numbers(&s, kernels, 1000, 3);
    s.bits = 4, s.block = 32, s.layers = 1;
    check_numbers(&s, kernels, 7, 4);
    s.own_zeros = 0, s.half = 0, s.block = 256, s.gated = 1, s.gelu = 0;
    check_numbers(&s, kernels, 123456, 5);
    /* wide enough that a thread's chunk is no whole matrix; the most columns are a block's */
    s = BASE;
    s.d_model = 300, s.ffn_dim = 490, s.vocab = 700, s.block = 256, s.layers = 1;
    check_numbers(&s, kernels, 3, 6);
    s.d_model = 1, s.ffn_dim = 1, s.vocab = 1, s.heads = 1, s.key_dim = 2, s.value_dim = 1;
    check_numbers(&s, kernels, 3, 7);
}

/* What is not finite shows in all logits; what is too small to have an inverse is 0. */
static void check_odd_numbers(const char *kernels) {
    for (int odd = 0; odd < 3; odd++)
        for (int bits = 4; bits <= 8; bits += 4) {
            uint64_t seed = 11;
            Shape s = BASE;
            s.bits = bits;
            SmallModel m;
            make_small(&m, &s, &seed);
            const float tiny = 1e-37f;
            for (int i = 0; odd == 2 && i < s.d_model; i++)
                memcpy(m.own + m.layers[0].retention_norm.offset + 4 * i, &tiny, 4);
            Engine *engine;
            expect(!retnet_new(&m.plan, 1, kernels, &engine, NULL, 0), "a plan", kernels);
            Run r = new_run(&m.plan);
            if (odd < 2) r.states[0].data[3] = odd ? INFINITY : NAN;
            const int64_t tokens[] = {3, 5};
            expect(!feed(engine, &r, tokens, 2, 0), "a status", kernels);
            for (int i = 0; i < s.vocab; i++)
                expect(!isfinite(r.logits[i]) == (odd < 2), "what is not finite", kernels);
            free_run(&r);
            retnet_free(engine);
            free_small(&m);
        }
}

/* ------------------------------------------------------------------------- what is refused */

typedef struct {
    const char *says;
    size_t at;   /* of a field of the plan */
    int of_layer; /* of the last layer's */
    int size;    /* of the field */
    int64_t value;
} Change;

#define OF_PLAN(field, value, says)                                                               \
    {says, offsetof(ModelPlan, field), 0, sizeof(((ModelPlan *)0)->field), value}
#define OF_LAYER(field, value, says)                                                              \
    {says, offsetof(LayerPlan, field), 1, sizeof(((LayerPlan *)0)->field), value}

static const Change CHANGES[] = {
    OF_PLAN(layer_count, 0, "layers is 0; allowed is 1 to 1024"),
    OF_PLAN(layer_count, 1025, "layers is 1025;"),
    OF_PLAN(layer_count, 3, "the number of layers' plans is 2; allowed is 3 to 3"),
    OF_PLAN(layer_plans, 1, "the number of layers' plans is 1; allowed is 2 to 2"),
    OF_PLAN(heads, 0, "heads is 0;"),
    OF_PLAN(heads, 1025, "heads is 1025;"),
    OF_PLAN(heads, 1, "the number of gammas is 2; allowed is 1 to 1"),
    OF_PLAN(heads, 3, "the number of gammas is 2;"),
    OF_PLAN(gamma_count, 1, "the number of gammas is 1; allowed is 2 to 2"),
    OF_PLAN(frequency_count, 4, "the number of thetas is 4; allowed is 5 to 5"),
    OF_PLAN(frequency_count, 6, "the number of thetas is 6;"),
    OF_PLAN(key_dim, 0, "key_head_dim is 0; allowed is 2 to 16777216"),
    OF_PLAN(key_dim, 11, "key_head_dim is 11; rotary pairs need an even number"),
    OF_PLAN(key_dim, -2147483647 - 1, "key_head_dim is -2147483648;"),
    OF_PLAN(value_dim, 0, "value_head_dim is 0; allowed is 1 to 16777216"),
    OF_PLAN(value_dim, 15, "layer 0: head_norm has 56 bytes; its shape needs 60"),
    OF_PLAN(value_dim, 16777217, "value_head_dim is 16777217;"),
    OF_PLAN(d_model, 0, "d_model is 0;"),
    OF_PLAN(d_model, 49, "embedding is [61, 48]; the model says [61, 49]"),
    OF_PLAN(d_model, 16777217, "d_model is 16777217;"),
    OF_PLAN(ffn_dim, 0, "ffn_dim is 0;"),
    OF_PLAN(ffn_dim, 38, "layer 0 inner is [74, 48]; the model says [76, 48]"),
    OF_PLAN(ffn_dim, 16777217, "ffn_dim is 16777217;"),
    OF_PLAN(ffn_dim, 16777216, "layer 0 inner is 33554432; allowed is 1 to 16777216"),
    OF_PLAN(gated, 0, "layer 0 inner is [74, 48]; the model says [37, 48]"),
    OF_PLAN(vocab_size, 0, "vocab_size is 0;"),
    OF_PLAN(vocab_size, 60, "embedding is [61, 48]; the model says [60, 48]"),
    OF_PLAN(vocab_size, 62, "embedding is [61, 48]; the model says [62, 48]"),
    OF_PLAN(vocab_size, 16777217, "vocab_size is 16777217;"),
    OF_PLAN(weights.size, 100, "lies at byte"),
    OF_PLAN(weights.data, 0, "lies at byte"),
    OF_PLAN(own.size, 1, "lies at byte"),
    OF_PLAN(layers, 0, "a part is missing"),
    OF_PLAN(gammas, 0, "a part is missing"),
    OF_PLAN(frequencies, 0, "a part is missing"),
    OF_PLAN(final_norm.size, 188, "model: final_norm has 188 bytes; its shape needs 192"),
    OF_PLAN(final_norm.offset, 2, "model: final_norm lies at byte 2; its numbers need a multiple"),
    OF_PLAN(final_norm.offset, -4, "model: final_norm lies at byte 18446744073709551612,"),
    OF_PLAN(embedding.rows, 60, "embedding is [60, 48]; the model says [61, 48]"),
    OF_PLAN(embedding.bits, 5, "embedding has 5 bits; allowed are 4 and 8"),
    OF_PLAN(embedding.bits, 4, "embedding: codes has 3904 bytes; its shape needs 1952"),
    OF_PLAN(embedding.codes.offset, 1 << 30, "embedding: codes lies at byte 1073741824"),
    OF_PLAN(head.inputs, 47, "head is [61, 47]; the model says [61, 48]"),
    OF_PLAN(head.block, 0, "head has blocks of 0; allowed are 32, 64, 128 and 256"),
    OF_PLAN(head.block, 96, "head has blocks of 96;"),
    OF_PLAN(head.block, 512, "head has blocks of 512;"),
    OF_PLAN(head.block, 128, "head: codes has 3904 bytes; its shape needs 7808"),
    OF_PLAN(head.codes.offset, -1, "head: codes lies at byte 18446744073709551615"),
    OF_PLAN(head.codes.own, 1, "head: codes lies at byte"),
    OF_PLAN(head.half_scales, 1, "head: scales has 488 bytes; its shape needs 244"),
    OF_PLAN(head.scales.offset, 6, "head: scales lies at byte 6; its numbers need a multiple of 4"),
    OF_PLAN(head.own_zeros, 1, "head: zeros has 0 bytes; its shape needs 122"),
    OF_LAYER(qkvg.rows, 95, "layer 1 qkvg is [95, 48]; the model says [96, 48]"),
    OF_LAYER(out.inputs, 27, "layer 1 out is [48, 27]; the model says [48, 28]"),
    OF_LAYER(down.inputs, 38, "layer 1 down is [48, 38]; the model says [48, 37]"),
    OF_LAYER(inner.block, 160, "layer 1 inner has blocks of 160;"),
    OF_LAYER(ffn_norm.size, 0, "layer 1: ffn_norm has 0 bytes; its shape needs 192"),
    OF_LAYER(retention_norm.offset, 1, "layer 1: retention_norm lies at byte 1;"),
    OF_LAYER(head_norm.own, 0, ""), /* elsewhere, and numbers all the same */
};

/* Without an error, or with one of these words. */
static void refused(const SmallModel *m, const char *says) {
    char sentence[256], cut[8];
    Engine *engine = (Engine *)sentence;
    const int status = retnet_new(&m->plan, 1, NULL, &engine, sentence, sizeof sentence);
    if (!*says) {
        expect(status == RETNET_OK || status == RETNET_BAD_PLAN, "a status", "refused");
        retnet_free(engine);
        return;
    }
    expect(status == RETNET_BAD_PLAN, says, "not refused");
    expect(strstr(sentence, says) != NULL, says, sentence);
    expect(engine == NULL, says, "an engine all the same");
    expect(retnet_new(&m->plan, 1, NULL, &engine, NULL, 0) == status, says, "without words");
    expect(retnet_new(&m->plan, 1, NULL, &engine, cut, sizeof cut) == status && !cut[7], says,
           "few words");
}

static void set_float(SmallModel *m, const Place *p, uint64_t at, uint32_t bits, int bytes) {
    memcpy((p->own ? m->own : m->weights) + p->offset + at, &bits, (size_t)bytes);
}

static void check_plans(void) {
    for (size_t i = 0; i < sizeof CHANGES / sizeof *CHANGES; i++) {
        uint64_t seed = 21;
        SmallModel m;
        make_small(&m, &BASE, &seed);
        char *field = (CHANGES[i].of_layer ? (char *)&m.layers[1] : (char *)&m.plan) + CHANGES[i].at;
        memcpy(field, &CHANGES[i].value, (size_t)CHANGES[i].size); /* little-endian */
        refused(&m, CHANGES[i].says);
        free_small(&m);
    }
    const double bad_gammas[] = {0, -0.5, 1.0000001, NAN, INFINITY};
    for (int i = 0; i < 5; i++) {
        uint64_t seed = 22;
        SmallModel m;
        make_small(&m, &BASE, &seed);
        m.gammas[1] = bad_gammas[i];
        refused(&m, "a decay lies in (0, 1]");
        m.gammas[1] = 0.5;
        m.frequencies[4] = i % 2 ? NAN : -INFINITY;
        refused(&m, "thetas holds what is no finite number");
        m.frequencies[4] = 0;
        float *eps = i % 2 ? &m.plan.norm_eps : &m.plan.head_norm_eps;
        *eps = (float)bad_gammas[i];
        refused(&m, i % 2 ? "norm_eps is" : "head_norm_eps is");
        *eps = 1;
        const uint32_t bits = i % 2 ? 0x7f800000 : 0xffc00000; /* inf, NaN */
        const Place *odd[] = {&m.plan.final_norm, &m.layers[1].head_norm, &m.plan.head.scales,
                              &m.layers[0].down.scales, &m.layers[1].retention_norm};
        set_float(&m, odd[i], odd[i]->size - 4, bits, 4);
        refused(&m, "holds what is no finite number");
        free_small(&m);
    }
    Shape halves = BASE;
    halves.half = 1;
    uint64_t seed = 23;
    SmallModel m;
    make_small(&m, &halves, &seed);
    set_float(&m, &m.plan.head.scales, m.plan.head.scales.size - 2, 0xfc00, 2);
    refused(&m, "head: scales holds what is no finite number");
    set_float(&m, &m.plan.head.scales, m.plan.head.scales.size - 2, 0xfbff, 2);
    m.layers[0].out.scales.offset += 1;
    refused(&m, "its numbers need a multiple of 2");
    free_small(&m);
}

static void check_calls(void) {
    uint64_t seed = 31;
    SmallModel m;
    make_small(&m, &BASE, &seed);
    Engine *engine;
    for (int threads = -1; threads <= 100000; threads = threads ? threads * 20 + 20 : 257)
        if (threads < 1 || threads > RETNET_MOST_THREADS)
            expect(retnet_new(&m.plan, threads, NULL, &engine, NULL, 0) == RETNET_BAD_THREADS &&
                       !engine, "a number of threads", "refused");
    expect(!retnet_new(&m.plan, RETNET_MOST_THREADS, NULL, &engine, NULL, 0), "256 threads",
           "refused");
    retnet_free(engine);
    expect(retnet_new(&m.plan, 1, "sse9", &engine, NULL, 0) == RETNET_NO_KERNELS && !engine,
           "kernels", "refused");
    expect(retnet_free(NULL) == RETNET_OK, "nothing to free", "freed");
    expect(!retnet_new(&m.plan, 2, NULL, &engine, NULL, 0), "a plan", "calls");
    Run r = new_run(&m.plan), before = new_run(&m.plan);
    int64_t many[RETNET_MOST_TOKENS + 1] = {0};
    const int64_t low[] = {0, -1}, high[] = {0, BASE.vocab}, good[] = {BASE.vocab - 1, 0};
    const Floats kept = r.states[1];
    const uint64_t vocab = (uint64_t)BASE.vocab;
    expect(feed(engine, &r, good, 0, 0) == RETNET_BAD_COUNT, "0 tokens", "refused");
    expect(feed(engine, &r, good, -1, 0) == RETNET_BAD_COUNT, "-1 tokens", "refused");
    expect(feed(engine, &r, many, RETNET_MOST_TOKENS + 1, 0) == RETNET_BAD_COUNT, "4097 tokens",
           "refused");
    expect(feed(engine, &r, NULL, 1, 0) == RETNET_BAD_COUNT, "no tokens", "refused");
    expect(feed(engine, &r, low, 2, 0) == RETNET_BAD_TOKEN, "token -1", "refused");
    expect(feed(engine, &r, high, 2, 0) == RETNET_BAD_TOKEN, "token 61", "refused");
    expect(feed(engine, &r, good, 2, -1) == RETNET_BAD_POSITION, "position -1", "refused");
    expect(feed(engine, &r, good, 2, INT64_MAX - 1) == RETNET_BAD_POSITION, "a position",
           "refused");
    expect(retnet_run(engine, good, 2, 0, r.states, 1, r.logits, vocab) == RETNET_BAD_BUFFER,
           "one state", "refused");
    expect(retnet_run(engine, good, 2, 0, NULL, 2, r.logits, vocab) == RETNET_BAD_BUFFER,
           "no states", "refused");
    for (int off = -1; off <= 1; off += 2)
        expect(retnet_run(engine, good, 2, 0, r.states, 2, r.logits, vocab + (uint64_t)off) ==
                   RETNET_BAD_BUFFER, "logits", "refused");
    expect(retnet_run(engine, good, 2, 0, r.states, 2, NULL, vocab) == RETNET_BAD_BUFFER,
           "no logits", "refused");
    const Floats bad[] = {{kept.data, kept.count - 1}, {kept.data, kept.count + 1}, {NULL, kept.count},
                          {(float *)((char *)kept.data + 2), kept.count}};
    for (int i = 0; i < 4; i++) {
        r.states[1] = bad[i];
        expect(feed(engine, &r, good, 2, 0) == RETNET_BAD_BUFFER, "a state", "refused");
    }
    r.states[1] = kept;
    expect(same_bits(&r, &before), "a refused call changed something", "calls");
    expect(!feed(engine, &r, good, 2, INT64_MAX - 2), "the last position", "calls");
    expect(!feed(engine, &r, many, RETNET_MOST_TOKENS, 0), "the most tokens", "calls");
    free_run(&r), free_run(&before);
    retnet_free(engine);
    /* gammas, frequencies and layers were copied */
    Run one = new_run(&m.plan), other = new_run(&m.plan);
    Engine *second;
    expect(!retnet_new(&m.plan, 1, NULL, &engine, NULL, 0), "a plan", "copies");
    expect(!retnet_new(&m.plan, 1, NULL, &second, NULL, 0), "a plan", "copies");
    expect(!feed(engine, &one, good, 2, 5), "a status", "copies");
    memset(m.layers, 0xff, sizeof m.layers);
    memset(m.gammas, 0xff, sizeof m.gammas);
    memset(m.frequencies, 0xff, sizeof m.frequencies);
    expect(!feed(second, &other, good, 2, 5), "a status", "copies");
    expect(same_bits(&one, &other), "what was to be copied", "copies");
    free_run(&one), free_run(&other);
    retnet_free(engine), retnet_free(second);
    free_small(&m);
}

/* ----------------------------------------------------------------- several threads, one engine */

typedef struct {
    Engine *engine;
    Run run;
    int64_t first;
    int busy;
} Caller;

enum { CALLS = 60 };

/* Its own sequence, on the engine that others call too: again where it was busy. */
static void *call_often(void *arg) {
    Caller *c = arg;
    for (int64_t i = 0; i < CALLS;) {
        const int64_t tokens[] = {(c->first + i) % BASE.vocab, i, 7};
        const int status = feed(c->engine, &c->run, tokens, 3, 3 * i);
        if (status == RETNET_OK) i++;
        else if (status == RETNET_BUSY) c->busy++;
        else expect(0, "a status", "callers");
    }
    return NULL;
}

static void check_callers(int threads) {
    uint64_t seed = 41;
    SmallModel m;
    make_small(&m, &BASE, &seed);
    Engine *engine;
    expect(!retnet_new(&m.plan, threads, NULL, &engine, NULL, 0), "a plan", "callers");
    Caller alone[3], together[3];
    for (int i = 0; i < 3; i++) {
        alone[i] = (Caller){engine, new_run(&m.plan), i, 0};
        together[i] = (Caller){engine, new_run(&m.plan), i, 0};
        call_often(&alone[i]);
        expect(!alone[i].busy, "busy without others", "callers");
    }
    int busy = 0;
    for (int round = 0; round < 1000 && !busy; round++) {
        pthread_t callers[3];
        double seconds[RETNET_STAGES];
        for (int i = 0; i < 3; i++) {
            free_run(&together[i].run);
            together[i].run = new_run(&m.plan);
            pthread_create(&callers[i], NULL, call_often, &together[i]);
        }
        for (int i = 0; i < 100; i++) {
            const int status = retnet_seconds(engine, seconds);
            expect(status == RETNET_OK || status == RETNET_BUSY, "seconds' status", "callers");
        }
        for (int i = 0; i < 3; i++) {
            pthread_join(callers[i], NULL);
            busy += together[i].busy;
            expect(same_bits(&alone[i].run, &together[i].run), "other bits", "callers");
        }
    }
    expect(busy, "nobody was ever told to wait", "callers");
    for (int i = 0; i < 3; i++) free_run(&alone[i].run), free_run(&together[i].run);
    retnet_free(engine);
    free_small(&m);
}

/* A process that was forked off has none of the engine's threads: it computes the same, and ends. */
static void check_fork(void) {
    uint64_t seed = 51;
    SmallModel m;
    make_small(&m, &BASE, &seed);
    Engine *engine;
    expect(!retnet_new(&m.plan, 3, NULL, &engine, NULL, 0), "a plan", "fork");
    const int64_t tokens[] = {1, 2, 3, 4};
    Run first = new_run(&m.plan), again = new_run(&m.plan);
    expect(!feed(engine, &first, tokens, 4, 0), "a status", "fork");
    const pid_t child = fork();
    if (!child) {
        alarm(60);
        const int wrong = feed(engine, &again, tokens, 4, 0) || !same_bits(&first, &again) ||
                          retnet_free(engine);
        _exit(wrong);
    }
    int status = -1;
    waitpid(child, &status, 0);
    expect(status == 0, "the child", "fork");
    free_run(&first), free_run(&again);
    retnet_free(engine);
    free_small(&m);
}

int main(void) {
    for (int n = 0; n < 4; n++) {
        uint64_t seed = 1;
        SmallModel m;
        make_small(&m, &BASE, &seed);
        Engine *engine;
        const int status = retnet_new(&m.plan, 1, KERNELS[n], &engine, NULL, 0);
        retnet_free(engine);
        free_small(&m);
        if (status == RETNET_NO_KERNELS) continue;
        printf("%s\n", KERNELS[n]);
        check_shapes(KERNELS[n]);
        check_odd_numbers(KERNELS[n]);
    }
    check_plans();
    check_calls();
    for (int threads = 1; threads <= 3; threads++) check_callers(threads);
    check_fork();
    return failures > 0;
}
