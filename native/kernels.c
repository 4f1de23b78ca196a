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
    PREFETCH_BYTES = 4096, /* bytes */
    GEMV_ROWS = 4,  /* rows that one token is multiplied by, at most */
    INT4_PER_VEC = 64,   /* 4-bit weights that are unpacked together */
    TILE_ROWS = 4,
    TILE_TOKENS = 2,
};

#define TINY 1e-33f /* 32767 / TINY is finite */

#define UNROLL _Pragma("GCC unroll 8")

/* Of a block of a row. */
static inline int zero_point(const Matrix *m, size_t row, int block) {
    if (!m->zeros) return 1 << (m->bits - 1);
    const size_t blocks = (size_t)(m->columns / m->block);
    const size_t at = (size_t)block;
    if (m->bits == 8) return m->zeros[row * blocks + at];
    const uint8_t pair = m->zeros[row * ((blocks + 1) / 2) + at / 2];
    return block % 2 ? pair >> 4 : pair & 15;
}

static inline Activations token_activations(const Matrix *m, const Activations *x, int token) {
    const size_t at = (size_t)token, blocks = (size_t)(m->columns / m->block);
    const size_t stride = (size_t)padded_blocks((int)blocks);
    return (Activations){x->codes + at * (size_t)m->columns,
                         x->acc_init + at * blocks * MAX_I32_LANES,
                         x->scales + at * stride, x->sums + at * stride};
}

/* Codes of activations of 8 bits. */
static inline int8_t *int8_codes(const Activations *x) { return (int8_t *)x->codes; }

/* `count` zero points of 4 bits from block `i` on, the first one lowest, 0 where there are no more.
 */
static inline uint64_t packed_zero_points(const Matrix *m, size_t row, int i, int count) {
    const int blocks = m->columns / m->block, bytes = (blocks + 1) / 2;
    const uint8_t *zeros = m->zeros + row * (size_t)bytes;
    uint64_t bits = 0;
    if (i + count <= blocks) memcpy(&bits, zeros + i / 2, (size_t)count / 2);
    else
        for (int j = i / 2; j < bytes; j++) bits |= (uint64_t)zeros[j] << 8 * (j - i / 2);
    return bits;
}

/* Columns that share a vector of sums: a block, or two blocks of 32 with 4 bits. */
static inline int columns_per_accumulator(int bits, int block) {
    return bits == 4 && block == 32 ? INT4_PER_VEC : block;
}

/* `products`: the set that has products of its own; `rest`: the one that all else is of. */
#define KERNEL_TABLE_OF(products, rest, check, limit)                                              \
    {#products,       check,           limit,                                                      \
     gemv_##products, gemm_##products, quantize_##products,                                        \
     embedding_row_##rest, rms_norm_##rest, activate_##rest, retention_step_##rest}
#define KERNEL_TABLE(isa, check) KERNEL_TABLE_OF(isa, isa, check, INT16_MAX)

/* Where benchmarks/speed/arm_model.py finds a loop; block 0: a prompt's. */
#ifdef RETNET_MARK_LOOPS
#define LOOP_MARK(bits, block) __asm__ volatile("// loop %0 %1" ::"i"(bits), "ri"(block))
#else
#define LOOP_MARK(bits, block) (void)0
#endif

#if defined(__x86_64__)
#include "isa_avx512.h"
#include "kernels_impl.h"
#include "isa_avx2.h"
#include "kernels_impl.h"

static int has_avx512(void) {
    return __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni");
}
static int has_avx2(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
#elif defined(__aarch64__)
#include "isa_neon.h"
#include "kernels_impl.h"
#include "isa_arm.h"
#include "isa_dotprod.h"
#include "kernels_dot_impl.h"
#include "isa_i8mm.h"
#include "kernels_dot_impl.h"
#endif
#include "isa_plain.h"
#include "kernels_impl.h"

static int always_supported(void) { return 1; }

static const Kernels KERNEL_SETS[] = {
#if defined(__x86_64__)
    KERNEL_TABLE(avx512, has_avx512),
    KERNEL_TABLE(avx2, has_avx2),
#elif defined(__aarch64__)
    KERNEL_TABLE_OF(i8mm, neon, has_i8mm, SPLIT_LIMIT),
    KERNEL_TABLE_OF(dotprod, neon, has_dotprod, SPLIT_LIMIT),
    KERNEL_TABLE(neon, always_supported),
#endif
    KERNEL_TABLE(plain, always_supported),
};
enum { KERNEL_SET_COUNT = sizeof KERNEL_SETS / sizeof KERNEL_SETS[0] };

const Kernels *find_kernels(const char *name) {
    for (int i = 0; i < KERNEL_SET_COUNT; i++)
        if (KERNEL_SETS[i].supported() && (!name || !strcmp(name, KERNEL_SETS[i].name)))
            return &KERNEL_SETS[i];
    return NULL;
}
