#include "kernels.h"

#include <math.h>
#include <stddef.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

enum {
    AHEAD = 4096, /* bytes */
    AT_ONCE = 4,  /* rows that one token is multiplied by, at most */
    FOURS = 64,   /* 4-bit weights that are unpacked together */
    TILE_ROWS = 4,
    TILE_TOKENS = 2,
};

#define UNROLLED _Pragma("GCC unroll 8")

/* Of a block of a row. */
static inline int zero_point(const Matrix *m, size_t row, int block) {
    if (!m->zeros) return 1 << (m->bits - 1);
    const size_t blocks = (size_t)(m->columns / m->block);
    if (m->bits == 8) return m->zeros[row * blocks + block];
    const uint8_t pair = m->zeros[row * ((blocks + 1) / 2) + block / 2];
    return block % 2 ? pair >> 4 : pair & 15;
}

static inline Activations of_token(const Matrix *m, const Activations *x, int token) {
    const size_t at = (size_t)token, blocks = (size_t)(m->columns / m->block);
    const size_t stride = (size_t)padded((int)blocks);
    return (Activations){x->codes + at * m->columns, x->starts + at * blocks * MOST_INTS,
                         x->scales + at * stride, x->sums + at * stride};
}

/* Codes of activations of 8 bits. */
static inline int8_t *bytes_of(const Activations *x) { return (int8_t *)x->codes; }

/* `count` zero points of 4 bits from block `i` on, the first one lowest, 0 where there are no more. */
static inline uint64_t zero_bits(const Matrix *m, size_t row, int i, int count) {
    const int blocks = m->columns / m->block, bytes = (blocks + 1) / 2;
    const uint8_t *zeros = m->zeros + row * (size_t)bytes;
    uint64_t bits = 0;
    if (i + count <= blocks) memcpy(&bits, zeros + i / 2, (size_t)count / 2);
    else
        for (int j = i / 2; j < bytes; j++) bits |= (uint64_t)zeros[j] << 8 * (j - i / 2);
    return bits;
}

/* Columns that share a vector of sums: a block, or two blocks of 32 with 4 bits. */
static inline int unit_of(int bits, int block) { return bits == 4 && block == 32 ? FOURS : block; }

#define TABLE(isa, check)                                                                        \
    {                                                                                            \
        #isa, check, rows_##isa, rows_by_tokens_##isa, quantize_##isa, lookup_##isa,             \
            rms_norm_##isa, activate_##isa, retain_##isa                                         \
    }

#if defined(__x86_64__)
#include "isa_avx512.h"
#include "kernels_of.h"
#include "isa_avx2.h"
#include "kernels_of.h"

static int has_avx512(void) {
    return __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni");
}
static int has_avx2(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
#elif defined(__aarch64__)
#include "isa_neon.h"
#include "kernels_of.h"
#endif
#include "isa_plain.h"
#include "kernels_of.h"

static int always(void) { return 1; }

static const Kernels ALL[] = {
#if defined(__x86_64__)
    TABLE(avx512, has_avx512),
    TABLE(avx2, has_avx2),
#elif defined(__aarch64__)
    TABLE(neon, always),
#endif
    TABLE(plain, always),
};
enum { COUNT = sizeof ALL / sizeof ALL[0] };

const Kernels *find_kernels(const char *name) {
    for (int i = 0; i < COUNT; i++)
        if (ALL[i].supported() && (!name || !strcmp(name, ALL[i].name))) return &ALL[i];
    return NULL;
}
