/* What ARM processors with dot products have in common: how a function asks for instructions that
 * not every one has, how the operating system says that they are there, and the steps of four rows.
 * The instructions are asked for function by function, so that one library runs on all. */

#if defined(__linux__)
#include <sys/auxv.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif

/* Of kernels_dot_impl.h. */
enum {
    DOT_ROWS = 4,     /* rows whose sums lie in one vector */
    DOT_TOKENS = 4,   /* of a tile */
    DOT_TILE = 8,     /* rows of a tile */
    DOT_COLUMNS = 32, /* that are multiplied together: 4-bit weights of a register */
    DOT_INIT = 4,     /* lanes that a block's sum begins with */
    CACHE_LINE = 64,  /* bytes */
    NEON_LANES = 8,   /* of a vector of floats in isa_neon.h */
    SPLIT_LIMIT = 127 * 256 + 127, /* the largest code that is 256 times one byte plus another */
};

/* No reading of memory is moved across it by the compiler. */
#define DOT_BARRIER __asm__ volatile("" ::: "memory")

/* GCC takes an intrinsic only into a function of an architecture that holds the intrinsic's whole;
 * Clang before 16 knows no architectures here, and later ones both. */
#if defined(__clang__)
#define ARM_TARGET(extension) __attribute__((target(extension)))
#else
#define ARM_TARGET(extension) __attribute__((target("arch=armv8.2-a+" extension)))
#endif

/* Clang before 16 (Apple's counts otherwise) declares the intrinsics only where a whole file is
 * compiled for them. */
#if defined(__clang__) && __clang_major__ < 17
#define ARM_ASSEMBLY 1
#else
#define ARM_ASSEMBLY 0
#endif

/* `bit` of AT_HWCAP or AT_HWCAP2 (the kernel's numbers, which do not change; old headers lack
 * them), `name` of Apple's sysctl. Elsewhere: no. */
static int arm_has(unsigned long capabilities, int bit, const char *name) {
#if defined(__linux__)
    (void)name;
    return (getauxval(capabilities) >> bit & 1) != 0;
#elif defined(__APPLE__)
    int found = 0;
    size_t size = sizeof found;
    (void)capabilities, (void)bit;
    return !sysctlbyname(name, &found, &size, NULL, 0) && found;
#else
    (void)capabilities, (void)bit, (void)name;
    return 0;
#endif
}

static int has_dotprod(void) { return arm_has(16, 20, "hw.optional.arm.FEAT_DotProd"); }
static int has_i8mm(void) { return arm_has(26, 13, "hw.optional.arm.FEAT_I8MM"); }

/* `arm_steps` of blocks i … i + NEON_LANES - 1. whole: they are all there. The last four are
 * constants. */
static inline __attribute__((always_inline)) void
arm_steps_of(const Matrix *m, const int rows[DOT_ROWS], const Activations *x, int i, float *steps,
             VecF32_neon of_zeros[DOT_ROWS], const int bits, const int half, const int zeros,
             const int whole) {
    const int blocks = m->columns / m->block;
    VecF32_neon products[DOT_ROWS];
    UNROLL for (int r = 0; r < DOT_ROWS; r++) {
        const size_t row = (size_t)rows[r], at = row * (size_t)blocks + (size_t)i;
        VecF32_neon scales, levels;
        if (!whole) scales = scales_neon(m, row, i);
        else if (half) scales = load_partial_f16_neon((const uint16_t *)m->scales + at, NEON_LANES);
        else scales = load_f32_neon((const float *)m->scales + at);
        products[r] = bits == 4 ? mul_neon(scales, load_f32_neon(x->scales + i)) : scales;
        if (!zeros) continue;
        if (whole && bits == 4) {
            uint32_t packed;
            memcpy(&packed, m->zeros + row * (size_t)((blocks + 1) / 2) + i / 2, sizeof packed);
            levels = nibbles_to_f32_neon(packed);
        } else levels = zeros_neon(m, row, i);
        of_zeros[r] =
            fmadd_neon(of_zeros[r], mul_neon(scales, levels), load_f32_neon(x->sums + i));
    }
    UNROLL for (int part = 0; part < 2; part++) {
        float32x4x4_t four;
        UNROLL for (int r = 0; r < DOT_ROWS; r++) four.val[r] = products[r].val[part];
        vst4q_f32(steps + DOT_ROWS * (i + NEON_LANES / 2 * part), four);
    }
}

static inline __attribute__((always_inline)) void
arm_steps(const Matrix *m, const int rows[DOT_ROWS], const Activations *x, float *steps,
          float of_zeros[DOT_ROWS], const int bits, const int half, const int zeros) {
    /* copies, which no store into `steps` can change */
    const Matrix matrix = *m;
    const Activations token = *x;
    const int blocks = matrix.columns / matrix.block;
    VecF32_neon parts[DOT_ROWS];
    UNROLL for (int r = 0; r < DOT_ROWS; r++) parts[r] = zero_f32_neon();
    int i = 0;
    for (; i + NEON_LANES <= blocks; i += NEON_LANES) {
        LOOP_MARK(bits, 2 * half + zeros);
        arm_steps_of(&matrix, rows, &token, i, steps, parts, bits, half, zeros, 1);
    }
    if (i < blocks) arm_steps_of(&matrix, rows, &token, i, steps, parts, bits, half, zeros, 0);
    UNROLL for (int r = 0; r < DOT_ROWS; r++) of_zeros[r] = reduce_add_neon(parts[r]);
}

/* What the products of four rows' blocks are multiplied with, side by side, [padded blocks,
 * DOT_ROWS]: their scales, with 4 bits times the token's. What the rows' own zero points, if they
 * have any, add to their sums, in the order of `combined_scales`. */
static __attribute__((noinline)) void arm_block_steps(const Matrix *m, const int rows[DOT_ROWS],
                                                      const Activations *x, float *steps,
                                                      float of_zeros[DOT_ROWS]) {
    switch (m->bits + 2 * (m->half_scales != 0) + (m->zeros != NULL)) {
    case 4: arm_steps(m, rows, x, steps, of_zeros, 4, 0, 0); break;
    case 5: arm_steps(m, rows, x, steps, of_zeros, 4, 0, 1); break;
    case 6: arm_steps(m, rows, x, steps, of_zeros, 4, 1, 0); break;
    case 7: arm_steps(m, rows, x, steps, of_zeros, 4, 1, 1); break;
    case 8: arm_steps(m, rows, x, steps, of_zeros, 8, 0, 0); break;
    case 9: arm_steps(m, rows, x, steps, of_zeros, 8, 0, 1); break;
    case 10: arm_steps(m, rows, x, steps, of_zeros, 8, 1, 0); break;
    default: arm_steps(m, rows, x, steps, of_zeros, 8, 1, 1);
    }
}
