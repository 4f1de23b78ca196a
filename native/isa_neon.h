/* AArch64: 16 lanes of int16, 8 of int32 and float, in two registers each. */
#define NAME(name) name##_neon
#define TARGET
#define LANES 16
#define INTS 8
#define FLOATS 8
#define HALF 4 /* the first lane of a second block */
typedef int32x4x2_t Ints_neon;
typedef int16x8x2_t Shorts_neon;
typedef float32x4x2_t Floats_neon;

static inline Ints_neon load_ints_neon(const int32_t *x) {
    return (Ints_neon){{vld1q_s32(x), vld1q_s32(x + 4)}};
}
static inline Shorts_neon load_neon(const int16_t *x) {
    return (Shorts_neon){{vld1q_s16(x), vld1q_s16(x + 8)}};
}
static inline void store_neon(int16_t *x, Shorts_neon v) {
    vst1q_s16(x, v.val[0]);
    vst1q_s16(x + 8, v.val[1]);
}
static inline Shorts_neon wide_neon(const uint8_t *codes) {
    const uint8x16_t all = vld1q_u8(codes);
    return (Shorts_neon){{vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(all))),
                          vreinterpretq_s16_u16(vmovl_high_u8(all))}};
}
static inline Ints_neon dot_neon(Ints_neon sum, Shorts_neon a, Shorts_neon b) {
    for (int i = 0; i < 2; i++) {
        sum.val[0] = vmlal_s16(sum.val[0], vget_low_s16(a.val[i]), vget_low_s16(b.val[i]));
        sum.val[1] = vmlal_high_s16(sum.val[1], a.val[i], b.val[i]);
    }
    return sum;
}
/* 64 weights: low halves of 32 bytes, and high ones; `half`: only the first 16 bytes are there. */
typedef struct {
    int8x16x2_t low, high;
} Fours_neon;

static inline Fours_neon fours_neon(const uint8_t *codes, int half) {
    Fours_neon v;
    for (int i = 0; i < 2; i++) {
        const uint8x16_t both = i && half ? vdupq_n_u8(0) : vld1q_u8(codes + 16 * i);
        v.low.val[i] = vreinterpretq_s8_u8(vandq_u8(both, vdupq_n_u8(15)));
        v.high.val[i] = vreinterpretq_s8_u8(vshrq_n_u8(both, 4));
    }
    return v;
}
static inline Fours_neon load_fours_neon(const uint8_t *x) {
    Fours_neon v;
    for (int i = 0; i < 2; i++) {
        v.low.val[i] = vld1q_s8((const int8_t *)x + 16 * i);
        v.high.val[i] = vld1q_s8((const int8_t *)x + 32 + 16 * i);
    }
    return v;
}
static inline void store_fours_neon(uint8_t *x, Fours_neon v) {
    for (int i = 0; i < 2; i++) {
        vst1q_s8((int8_t *)x + 16 * i, v.low.val[i]);
        vst1q_s8((int8_t *)x + 32 + 16 * i, v.high.val[i]);
    }
}
/* Four products of 15 by 127 fit into 16 bits. */
static inline Ints_neon dot_fours_neon(Ints_neon sum, Fours_neon w, const int8_t *x) {
    for (int i = 0; i < 2; i++) {
        const int8x16_t low = vld1q_s8(x + 16 * i), high = vld1q_s8(x + 32 + 16 * i);
        int16x8_t four = vmull_s8(vget_low_s8(w.low.val[i]), vget_low_s8(low));
        four = vmlal_high_s8(four, w.low.val[i], low);
        four = vmlal_s8(four, vget_low_s8(w.high.val[i]), vget_low_s8(high));
        four = vmlal_high_s8(four, w.high.val[i], high);
        sum.val[i] = vpadalq_s16(sum.val[i], four);
    }
    return sum;
}
static inline Floats_neon to_floats_neon(Ints_neon v) {
    return (Floats_neon){{vcvtq_f32_s32(v.val[0]), vcvtq_f32_s32(v.val[1])}};
}
/* x[0] in the lower half of the lanes and x[1] in the upper one. */
static inline Floats_neon pair_neon(const float *x) {
    return (Floats_neon){{vdupq_n_f32(x[0]), vdupq_n_f32(x[1])}};
}
static inline Floats_neon all_neon(float x) {
    return (Floats_neon){{vdupq_n_f32(x), vdupq_n_f32(x)}};
}
static inline Floats_neon none_neon(void) { return all_neon(0); }
static inline Floats_neon loadf_neon(const float *x) {
    return (Floats_neon){{vld1q_f32(x), vld1q_f32(x + 4)}};
}
static inline void storef_neon(float *x, Floats_neon v) {
    vst1q_f32(x, v.val[0]);
    vst1q_f32(x + 4, v.val[1]);
}
/* The first n of 8; the others are 0. */
static inline Floats_neon some_neon(const float *x, int n) {
    if (n == 8) return loadf_neon(x);
    float some[8] = {0};
    for (int i = 0; i < n; i++) some[i] = x[i];
    return loadf_neon(some);
}
static inline Floats_neon some_halves_neon(const uint16_t *x, int n) {
    uint16_t some[8] = {0};
    if (n == 8) memcpy(some, x, sizeof some);
    else
        for (int i = 0; i < n; i++) some[i] = x[i];
    const float16x8_t halves = vreinterpretq_f16_u16(vld1q_u16(some));
    return (Floats_neon){{vcvt_f32_f16(vget_low_f16(halves)), vcvt_high_f32_f16(halves)}};
}
static inline Floats_neon plus_neon(Floats_neon sum, Floats_neon a, Floats_neon b) {
    return (Floats_neon){{vfmaq_f32(sum.val[0], a.val[0], b.val[0]),
                          vfmaq_f32(sum.val[1], a.val[1], b.val[1])}};
}
static inline Floats_neon times_neon(Floats_neon a, Floats_neon b) {
    return (Floats_neon){{vmulq_f32(a.val[0], b.val[0]), vmulq_f32(a.val[1], b.val[1])}};
}
static inline float total_neon(Floats_neon v) { return vaddvq_f32(vaddq_f32(v.val[0], v.val[1])); }
static inline Floats_neon nibbles_neon(uint64_t bits) {
    float each[8];
    for (int i = 0; i < 8; i++) each[i] = (float)(bits >> 4 * i & 15);
    return loadf_neon(each);
}
static inline float fma_neon(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
