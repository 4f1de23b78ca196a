/* AArch64 with 8-bit integer matrices (Cortex-A510 and X2 of 2021 on, Apple's since the M2): USDOT,
 * which takes unsigned codes as they lie, and USMMLA, eight columns of two rows times two tokens. */
#define NAME(name) name##_i8mm
#define TARGET ARM_TARGET("i8mm")
#define CODE_OFFSET 0

TARGET static inline uint8x16_t NAME(operand)(uint8x16_t codes) { return codes; }
TARGET static inline int32x4_t NAME(dot)(int32x4_t sum, uint8x16_t w, int8x16_t x) {
#if ARM_ASSEMBLY
    __asm__("usdot %0.4s, %1.16b, %2.16b" : "+w"(sum) : "w"(w), "w"(x));
    return sum;
#else
    return vusdotq_s32(sum, w, x);
#endif
}
/* 2 by 2 sums: of the first row with both tokens, then of the second. */
TARGET static inline int32x4_t NAME(matrix)(int32x4_t sum, uint8x16_t rows, int8x16_t tokens) {
#if ARM_ASSEMBLY
    __asm__("usmmla %0.4s, %1.16b, %2.16b" : "+w"(sum) : "w"(rows), "w"(tokens));
    return sum;
#else
    return vusmmlaq_s32(sum, rows, tokens);
#endif
}

TARGET static inline int8x16_t NAME(first_halves)(int8x16_t a, int8x16_t b) {
    return vreinterpretq_s8_s64(vzip1q_s64(vreinterpretq_s64_s8(a), vreinterpretq_s64_s8(b)));
}
TARGET static inline int8x16_t NAME(second_halves)(int8x16_t a, int8x16_t b) {
    return vreinterpretq_s8_s64(vzip2q_s64(vreinterpretq_s64_s8(a), vreinterpretq_s64_s8(b)));
}

/* 16 columns of four rows: eight columns of the first two rows, of the others, then the next
 * eight. */
TARGET static inline void NAME(pack)(uint8_t *to, const uint8x16_t rows[DOT_ROWS]) {
    for (int i = 0; i < DOT_ROWS; i++)
        for (int half = 0; half < 2; half++) {
            const uint64x2_t both = vreinterpretq_u64_u8(rows[i]);
            const uint64_t eight = half ? vgetq_lane_u64(both, 1) : vgetq_lane_u64(both, 0);
            memcpy(to + 32 * half + 8 * i, &eight, sizeof eight);
        }
}

/* sum[2 p + r] += 16 columns of rows 2 r and 2 r + 1, as `pack` leaves them, times tokens 2 p and
 * 2 p + 1. */
TARGET static inline void NAME(tile_step)(int32x4_t sum[DOT_TOKENS], const uint8_t *packed,
                                          const int8x16_t x[DOT_TOKENS]) {
    UNROLL for (int p = 0; p < DOT_TOKENS / 2; p++) {
        const int8x16_t first = NAME(first_halves)(x[2 * p], x[2 * p + 1]);
        const int8x16_t second = NAME(second_halves)(x[2 * p], x[2 * p + 1]);
        UNROLL for (int r = 0; r < DOT_ROWS / 2; r++) {
            int32x4_t *to = &sum[2 * p + r];
            *to = NAME(matrix)(*to, vld1q_u8(packed + 16 * r), first);
            *to = NAME(matrix)(*to, vld1q_u8(packed + 32 + 16 * r), second);
        }
    }
}
/* From what `tile_step` sums in to a vector of rows for each token. */
TARGET static inline void NAME(rows_of_tokens)(int32x4_t sum[DOT_TOKENS]) {
    UNROLL for (int p = 0; p < DOT_TOKENS; p += 2) {
        const int32x4_t first = sum[p], second = sum[p + 1];
        sum[p] = vuzp1q_s32(first, second);
        sum[p + 1] = vuzp2q_s32(first, second);
    }
}
