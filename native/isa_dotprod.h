/* AArch64 with SDOT: four sums of four products of signed bytes (Cortex-A55 and A76 of 2018 on,
 * Apple's since the A13). Codes of 8 bits are made signed by turning their highest bit over, which
 * takes 128 off. */
#define NAME(name) name##_dotprod
#define TARGET ARM_TARGET("dotprod")
#define CODE_OFFSET 128

TARGET static inline uint8x16_t NAME(operand)(uint8x16_t codes) {
    return veorq_u8(codes, vdupq_n_u8(CODE_OFFSET));
}
TARGET static inline int32x4_t NAME(dot)(int32x4_t sum, uint8x16_t w, int8x16_t x) {
#if ARM_ASSEMBLY
    __asm__("sdot %0.4s, %1.16b, %2.16b" : "+w"(sum) : "w"(w), "w"(x));
    return sum;
#else
    return vdotq_s32(sum, vreinterpretq_s8_u8(w), x);
#endif
}

/* 16 columns of four rows: four columns of each row, then the next four. */
TARGET static inline void NAME(pack)(uint8_t *to, const uint8x16_t rows[DOT_ROWS]) {
    uint32x4x4_t words;
    for (int i = 0; i < DOT_ROWS; i++) words.val[i] = vreinterpretq_u32_u8(rows[i]);
    vst4q_u32((uint32_t *)(void *)to, words);
}

/* sum[t] += 16 columns of four rows, as `pack` leaves them, times token t: a lane is a row. */
TARGET static inline void NAME(tile_step)(int32x4_t sum[DOT_TOKENS], const uint8_t *packed,
                                          const int8x16_t x[DOT_TOKENS]) {
#if ARM_ASSEMBLY
#define DOT_LANE(i)                                                                               \
    __asm__("sdot %0.4s, %1.16b, %2.4b[" #i "]" : "+w"(sum[t]) : "w"(w[i]), "w"(x[t]))
#else
#define DOT_LANE(i) sum[t] = vdotq_laneq_s32(sum[t], w[i], x[t], i)
#endif
    int8x16_t w[4];
    UNROLL for (int i = 0; i < 4; i++) w[i] = vld1q_s8((const int8_t *)packed + 16 * i);
    UNROLL for (int t = 0; t < DOT_TOKENS; t++) {
        DOT_LANE(0);
        DOT_LANE(1);
        DOT_LANE(2);
        DOT_LANE(3);
    }
#undef DOT_LANE
}
/* From what `tile_step` sums in to a vector of rows for each token. */
TARGET static inline void NAME(rows_of_tokens)(int32x4_t sum[DOT_TOKENS]) { (void)sum; }
