/* What the engine computes on small models, against the model's definition in double. Built and run
 * by test_native_kernels.py; writes which kernels ran and what is wrong, and exits with 1. */
#include "engine_checks.h"

enum { TOKENS = 9 };

static const char *const KERNELS[] = {"avx512", "avx2", "i8mm", "dotprod", "neon", "plain"};
enum { KERNEL_COUNT = sizeof KERNELS / sizeof KERNELS[0] };

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
    retnet_error error;
    char of[128];
    snprintf(of, sizeof of, "%s, %d bits, blocks of %d, d %d, ffn %d%s%s%s", kernels, shape->bits,
             shape->block, shape->d_model, shape->ffn_dim, shape->gated ? ", gated" : "",
             shape->gelu ? ", gelu" : "", shape->eps_z_n ? ", z_n" : "");
    Opened o;
    const retnet_status status = open_small(&m, &o, &error);
    expect(!status && !*error.message && !error.code, error.message, of);
    if (status) return;
    Run alone = new_run(o.model, &m.plan, 1, kernels, position);
    expect(!strcmp(retnet_session_kernels(alone.session), kernels), "other kernels", of);
    expect(!retnet_session_logits(alone.session), "logits of nothing", of);
    int32_t tokens[TOKENS];
    const size_t n = (size_t)state_floats(&m.plan);
    double *states[SMALL_LAYERS], *logits = malloc(sizeof(double) * (size_t)shape->vocab);
    for (int i = 0; i < shape->layers; i++) {
        states[i] = malloc(sizeof(double) * n);
        for (size_t j = 0; j < n; j++) states[i][j] = alone.states[(size_t)i * n + j];
    }
    const double bound = shape->bits == 8 ? 2e-3 : 0.1;
    for (int t = 0; t < TOKENS; t++) {
        tokens[t] = t ? (int)(small_random(&seed) % (uint32_t)shape->vocab) : shape->vocab - 1;
        define_step(&m, tokens[t], position + t, states, logits);
        expect(!feed(&alone, &tokens[t], 1), "a step's status", of);
        expect(difference(alone.logits, logits, (size_t)shape->vocab) < bound, "logits", of);
        for (int i = 0; i < shape->layers; i++)
            expect(difference(alone.states + (size_t)i * n, states[i], n) < bound, "states", of);
    }
    double seconds[RETNET_STAGES];
    expect(!retnet_session_seconds(alone.session, seconds), "seconds' status", of);
    for (int i = 0; i < RETNET_STAGES; i++)
        expect(seconds[i] > 0 && seconds[i] < 60, "seconds", of);
    for (int threads = 1; threads <= 3; threads++)
        for (int piece = 2; piece <= TOKENS; piece += 3) {
            Run together = new_run(o.model, &m.plan, threads, kernels, position);
            for (int t = 0; t < TOKENS; t += piece)
                expect(!feed(&together, tokens + t, t + piece < TOKENS ? piece : TOKENS - t),
                       "a prompt's status", of);
            expect(same_bits(&together, &alone), "a prompt has other bits", of);
            free_run(&together);
        }
    free_run(&alone);
    for (int i = 0; i < shape->layers; i++) free(states[i]);
    free(logits);
    close_small(&o);
    free_small(&m);
}

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
            Opened o;
            expect(!open_small(&m, &o, NULL), "a plan", kernels);
            Run r = new_run(o.model, &m.plan, 1, kernels, 0);
            if (odd < 2) r.states[3] = odd ? INFINITY : NAN;
            expect(!retnet_session_set_states(r.session, r.states,
                                              all_states(&m.plan) * sizeof(float), 0, NULL, 0),
                   "states", kernels);
            const int32_t tokens[] = {3, 5};
            expect(!feed(&r, tokens, 2), "a status", kernels);
            for (int i = 0; i < s.vocab; i++)
                expect(!isfinite(r.logits[i]) == (odd < 2), "what is not finite", kernels);
            free_run(&r);
            close_small(&o);
            free_small(&m);
        }
}

int main(void) {
    for (int n = 0; n < KERNEL_COUNT; n++) {
        uint64_t seed = 1;
        SmallModel m;
        make_small(&m, &BASE, &seed);
        Opened o;
        expect(!open_small(&m, &o, NULL), "a plan", "small");
        Run r = new_run(o.model, &m.plan, 1, KERNELS[n], 0);
        const int there = r.session != NULL;
        free_run(&r);
        close_small(&o);
        free_small(&m);
        if (!there) continue;
        printf("%s\n", KERNELS[n]);
        check_shapes(KERNELS[n]);
        check_odd_numbers(KERNELS[n]);
    }
    return failures > 0;
}
