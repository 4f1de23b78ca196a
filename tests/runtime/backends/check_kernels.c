/* Every set of kernels that this processor has, against a product by the definition of the layout.
 * Built and run by test_native_kernels.py; writes what is wrong, and exits with 1. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../../native/kernels.h"
#include "../../../native/platform.h"
#include "../../../native/pool.h"

enum { TOKENS = 5, ROWS = 37 };

static int failures = 0;
static uint64_t product_bits; /* of the kernels at hand: a hash of all products (FNV-1a) */

static void expect(int holds, const char *what, const Matrix *m, const char *kernels) {
    if (holds) return;
    failures++;
    printf("%s: %s with %d bits, blocks of %d, %d inputs, %s scales, %s zeros\n", kernels, what,
           m->bits, m->block, m->inputs, m->half_scales ? "half" : "single",
           m->zeros ? "own" : "middle");
}

static double uniform(void) { return 2.0 * rand() / RAND_MAX - 1; }

static double weight(const Matrix *m, const float *scales, int row, int k) {
    const size_t at = (size_t)row * m->columns + k;
    const int blocks = m->columns / m->block, b = k / m->block;
    const int code = m->bits == 8 ? m->codes[at] : m->codes[at / 2] >> (at % 2 * 4) & 15;
    int zero = 1 << (m->bits - 1);
    if (m->zeros && m->bits == 8) zero = m->zeros[row * blocks + b];
    if (m->zeros && m->bits == 4)
        zero = m->zeros[row * ((blocks + 1) / 2) + b / 2] >> (b % 2 * 4) & 15;
    return (code - zero) * (double)scales[row * blocks + b];
}

static void *random_bytes(size_t n) {
    uint8_t *found = malloc(n);
    for (size_t i = 0; i < n; i++) found[i] = (uint8_t)rand();
    return found;
}

static Activations activations(const Matrix *m) {
    const size_t blocks = (size_t)(m->columns / m->block),
                 stride = (size_t)padded_blocks((int)blocks);
    return (Activations){malloc(sizeof(int16_t) * TOKENS * m->columns),
                         malloc(sizeof(int32_t) * TOKENS * blocks * MAX_I32_LANES),
                         malloc(sizeof(float) * TOKENS * stride),
                         malloc(sizeof(float) * TOKENS * stride)};
}

static void check(const Kernels *k, int bits, int block, int inputs, int half, int own_zeros) {
    const int blocks = (inputs + block - 1) / block, columns = blocks * block;
    float *scales = malloc(sizeof(float) * ROWS * blocks);
    uint16_t *halves = malloc(sizeof(uint16_t) * ROWS * blocks);
    for (int i = 0; i < ROWS * blocks; i++) {
        /* 0.25 to 2 in steps that a half has, by its bits; every eighth one too small to be normal
         */
        const int exponent = i % 8 ? 13 + rand() % 3 : 0, digits = rand() % 1024;
        const int negative = rand() % 2;
        halves[i] = (uint16_t)(negative << 15 | exponent << 10 | digits);
        scales[i] = exponent ? ldexpf(1 + digits / 1024.0f, exponent - 15) : ldexpf(digits, -24);
        if (negative) scales[i] = -scales[i];
    }
    Matrix m = {random_bytes((size_t)ROWS * columns * bits / 8),
                half ? (void *)halves : scales,
                own_zeros ? random_bytes((size_t)ROWS * blocks) : NULL,
                ROWS, inputs, columns, bits, block, half};
    float *x = malloc(sizeof(float) * TOKENS * inputs);
    for (int i = 0; i < TOKENS * inputs; i++) x[i] = (float)(uniform() * (i % 97 ? 1 : 50));
    Activations codes = activations(&m);
    void *scratch = allocate_aligned((size_t)PANEL_ROWS * columns * 4 + 16384);
    for (int t = 0; t < TOKENS; t++) {
        k->quantize(&m, x + t * inputs, &codes, t, scratch);
        for (int b = 0; b < blocks; b++) {
            float largest = 0;
            for (int i = bits == 8 ? 0 : b * block; i < inputs; i++)
                if (bits == 8 || i < (b + 1) * block)
                    largest = fmaxf(largest, fabsf(x[t * inputs + i]));
            const float step = codes.scales[t * padded_blocks(blocks) + b];
            expect(step == largest / (bits == 8 ? (float)k->int8_limit : 127.0f), "a step", &m, k->name);
        }
    }
    float one[TOKENS * ROWS], many[TOKENS * ROWS], added[TOKENS * ROWS], row[4096];
    for (int i = 0; i < TOKENS * ROWS; i++) added[i] = 1;
    for (int t = 0; t < TOKENS; t++) {
        Activations token = {
            codes.codes + (size_t)t * columns, codes.acc_init + (size_t)t * blocks * MAX_I32_LANES,
            codes.scales + t * padded_blocks(blocks), codes.sums + t * padded_blocks(blocks)};
        /* of what is multiplied by twos and fours, each number of rows is left over once */
        const int chunks[] = {0, 16, 18, 21, ROWS};
        for (int i = 0; i < 4; i++)
            k->gemv(&m, chunks[i], chunks[i + 1], &token, one + t * ROWS, 0, scratch);
    }
    for (int first = 0; first < ROWS; first += PANEL_ROWS) {
        const int last = first + PANEL_ROWS < ROWS ? first + PANEL_ROWS : ROWS;
        k->gemm(&m, first, last, &codes, TOKENS, many, 0, scratch);
        k->gemm(&m, first, last, &codes, TOKENS, added, 1, scratch);
    }
    for (size_t i = 0; i < sizeof one; i++)
        product_bits = (product_bits ^ ((uint8_t *)one)[i]) * 1099511628211u;
    for (int t = 0; t < TOKENS; t++)
        for (int r = 0; r < ROWS; r++) {
            /* a code is rounded by half a step at most, and sums to float32 */
            double exact = 0, bound = 0;
            for (int i = 0; i < inputs; i++) {
                const double w = weight(&m, scales, r, i);
                const float half = codes.scales[t * padded_blocks(blocks) + i / block] / 2;
                exact += w * x[t * inputs + i];
                bound += fabs(w) * (1.001 * half + 1e-5 * fabs(x[t * inputs + i]));
            }
            const int i = t * ROWS + r;
            expect(fabs(one[i] - exact) <= bound, "a product", &m, k->name);
            expect(!memcmp(&one[i], &many[i], sizeof(float)), "other bits among tokens", &m,
                   k->name);
            expect(added[i] == many[i] + 1, "an addition", &m, k->name);
        }
    for (int r = 0; r < ROWS; r++) {
        k->embedding_row(&m, (size_t)r, row, scratch);
        for (int i = 0; i < inputs; i++)
            expect(fabs(row[i] - weight(&m, scales, r, i)) <= 1e-6 * fabs(row[i]), "a lookup", &m,
                   k->name);
    }
    free((void *)m.codes);
    free((void *)m.zeros);
    free(codes.codes), free(codes.sums), free(codes.acc_init), free(codes.scales);
    free(scales), free(halves), free(x), free_aligned(scratch);
}

/* Blocks of 256 in which every product is as large as can be, all of one sign or half of each: what
 * is summed in int32 must hold it. */
static void check_extremes(const Kernels *k, int bits, int zero) {
    enum { COLUMNS = 512, BLOCK = 256, LARGEST = 4 };
    const int most = (1 << bits) - 1, blocks = COLUMNS / BLOCK;
    uint8_t codes[LARGEST * COLUMNS], zeros[LARGEST * 2];
    float scales[LARGEST * 2], x[TOKENS * COLUMNS], one[LARGEST], many[TOKENS * LARGEST];
    memset(zeros, bits == 8 ? zero : zero * 17, sizeof zeros);
    for (int i = 0; i < LARGEST * blocks; i++) scales[i] = 0.5f;
    for (int r = 0; r < LARGEST; r++) /* row 0: the largest code, 1: 0, 2 and 3: by turns */
        for (int i = 0; i < COLUMNS * bits / 8; i++) {
            const int large = r == 0 || (r > 1 && (i ^ r) & 1);
            codes[r * COLUMNS * bits / 8 + i] = large ? 255 : 0;
        }
    for (int t = 0; t < TOKENS; t++) /* 1, -1, and by turns as the codes' bytes are */
        for (int i = 0; i < COLUMNS; i++)
            x[t * COLUMNS + i] = t == 0 ? 1 : t == 1 ? -1 : i * bits / 8 & 1 ? 1 : -1;
    const Matrix m = {codes, scales, zero < 0 ? NULL : zeros, LARGEST, COLUMNS, COLUMNS,
                      bits, BLOCK, 0};
    Activations all = activations(&m);
    void *scratch = allocate_aligned((size_t)PANEL_ROWS * COLUMNS * 4 + 16384);
    for (int t = 0; t < TOKENS; t++) k->quantize(&m, x + t * COLUMNS, &all, t, scratch);
    k->gemm(&m, 0, LARGEST, &all, TOKENS, many, 0, scratch);
    for (int t = 0; t < TOKENS; t++) {
        const Activations token = {
            all.codes + t * COLUMNS, all.acc_init + t * blocks * MAX_I32_LANES,
            all.scales + t * padded_blocks(blocks), all.sums + t * padded_blocks(blocks)};
        k->gemv(&m, 0, LARGEST, &token, one, 0, scratch);
        for (int r = 0; r < LARGEST; r++) {
            double exact = 0;
            for (int i = 0; i < COLUMNS; i++)
                exact += weight(&m, scales, r, i) * x[t * COLUMNS + i];
            expect(fabs(one[r] - exact) <= 2e-6 * most * COLUMNS, "an extreme product", &m,
                   k->name);
            expect(!memcmp(&one[r], &many[t * LARGEST + r], sizeof(float)),
                   "other extremes among tokens", &m, k->name);
        }
    }
    free(all.codes), free(all.sums), free(all.acc_init), free(all.scales), free_aligned(scratch);
}

static void check_vector_kernels(const Kernels *k) {
    enum { N = 53 };
    const Matrix none = {0};
    float x[N], y[N], w[N], out[N];
    for (int i = 0; i < N; i++)
        x[i] = (float)(30 * uniform()), y[i] = (float)uniform(), w[i] = y[i] + 2;
    double squares = 0;
    for (int i = 0; i < N; i++) squares += x[i] * (double)x[i];
    k->rms_norm(x, w, N, 0.1f, out);
    for (int i = 0; i < N; i++) {
        const double exact = x[i] / sqrt(squares / N + 0.1f) * w[i];
        expect(fabs(out[i] - exact) < 1e-6 * fabs(exact), "a norm", &none, k->name);
    }
    for (int gelu = 0; gelu < 2; gelu++) {
        k->activate(x, y, N, gelu, out);
        for (int i = 0; i < N; i++) {
            const double act =
                gelu ? 0.5 * x[i] * (1 + erf(x[i] * sqrt(0.5))) : x[i] / (1 + exp(-x[i]));
            expect(fabs(out[i] - act * y[i]) < 1e-6 * (1e-3 + fabs(x[i])), "an activation", &none,
                   k->name);
        }
    }
    enum { KEYS = 6, VALUES = 11 };
    float state[KEYS * VALUES], before[KEYS * VALUES], o[VALUES];
    for (int i = 0; i < KEYS * VALUES; i++) before[i] = state[i] = (float)uniform();
    k->retention_step(state, x, y, w, 0.9f, KEYS, VALUES, o);
    for (int j = 0; j < VALUES; j++) {
        double sum = 0, size = 0;
        for (int i = 0; i < KEYS; i++) {
            const double s = 0.9f * (double)before[i * VALUES + j] + y[i] * (double)w[j];
            expect(fabs(state[i * VALUES + j] - s) < 1e-6, "a state", &none, k->name);
            sum += x[i] * s;
            size += fabs(x[i] * s);
        }
        expect(fabs(o[j] - sum) < 1e-6 * size, "an output", &none, k->name);
    }
}

static int counted[1000];

static void count(void *arg, int chunk, int thread) {
    (void)thread;
    (*(int(*)[1000])arg)[chunk]++;
}

/* Every chunk of every task is done once, and before the call returns. */
static void check_pool(int threads) {
    Pool *pool = pool_new(threads);
    const Matrix none = {0};
    for (int task = 1; task <= 3000; task++) {
        const int chunks = 1 + task % 1000;
        memset(counted, 0, sizeof counted);
        pool_run(pool, count, counted, chunks);
        for (int i = 0; i < 1000; i++) expect(counted[i] == (i < chunks), "a chunk", &none, "pool");
    }
    pool_free(pool);
}

int main(void) {
    const char *names[] = {"avx512", "avx2", "i8mm", "dotprod", "neon", "plain"};
    const Kernels *best = NULL;
    uint64_t of_i8mm = 0;
    for (size_t n = 0; n < sizeof names / sizeof names[0]; n++) {
        const Kernels *k = find_kernels(names[n]);
        if (!k) continue;
        if (!best) best = k;
        srand(1);
        product_bits = 0;
        printf("%s\n", k->name);
        check_vector_kernels(k);
        for (int bits = 4; bits <= 8; bits += 4)
            for (int i = 0; i < 3; i++) /* zero points in the middle, at 0, at the other end */
                check_extremes(k, bits, i < 2 ? i - 1 : (1 << bits) - 1);
        for (int bits = 4; bits <= 8; bits += 4)
            for (int block = 32; block <= 256; block *= 2)
                for (int inputs = 20; inputs <= 600; inputs += 171)
                    for (int kind = 0; kind < 4; kind++)
                        check(k, bits, block, inputs, kind & 1, kind >> 1);
        if (!strcmp(k->name, "i8mm")) of_i8mm = product_bits;
        const Matrix none = {0};
        if (!strcmp(k->name, "dotprod") && of_i8mm)
            expect(product_bits == of_i8mm, "other bits than i8mm's", &none, k->name);
    }
    const Matrix none = {0};
    expect(find_kernels(NULL) == best, "not the best kernels are chosen", &none, "all");
    for (int threads = 1; threads <= 4; threads++) check_pool(threads);
    return failures > 0;
}
