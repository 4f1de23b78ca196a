/* AArch64: 8 lanes of int16, 4 of int32 and float. */
#define NAME(name) name##_neon
#define TARGET
#define LANES 8
#define INTS 4
#define FLOATS 4
typedef union {
    int16x8_t h;
    int32x4_t w;
} Ints_neon;
typedef float32x4_t Floats_neon;

static inline Ints_neon dot_neon(Ints_neon sum, Ints_neon a, Ints_neon b) {
    sum.w = vmlal_s16(sum.w, vget_low_s16(a.h), vget_low_s16(b.h));
    sum.w = vmlal_high_s16(sum.w, a.h, b.h);
    return sum;
}
static inline Ints_neon load_neon(const int16_t *x) { return (Ints_neon){.h = vld1q_s16(x)}; }
static inline void store_neon(int16_t *x, Ints_neon v) { vst1q_s16(x, v.h); }
static inline Ints_neon wide8_neon(const uint8_t *codes) {
    return (Ints_neon){.h = vreinterpretq_s16_u16(vmovl_u8(vld1_u8(codes)))};
}
static inline void wide4_neon(const uint8_t *codes, Ints_neon v[4]) {
    uint8x16_t both = vld1q_u8(codes);
    uint8x16_t low = vandq_u8(both, vdupq_n_u8(15)), high = vshrq_n_u8(both, 4);
    v[0].h = vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(low)));
    v[1].h = vreinterpretq_s16_u16(vmovl_high_u8(low));
    v[2].h = vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(high)));
    v[3].h = vreinterpretq_s16_u16(vmovl_high_u8(high));
}
static inline Ints_neon load_ints_neon(const int32_t *x) {
    return (Ints_neon){.w = vld1q_s32(x)};
}
static inline Floats_neon none_neon(void) { return vdupq_n_f32(0); }
static inline Floats_neon scaled_neon(Floats_neon sum, Ints_neon v, float scale) {
    return vfmaq_n_f32(sum, vcvtq_f32_s32(v.w), scale);
}
static inline Floats_neon loadf_neon(const float *x) { return vld1q_f32(x); }
static inline Floats_neon plus_neon(Floats_neon sum, Floats_neon a, Floats_neon b) {
    return vfmaq_f32(sum, a, b);
}
static inline Floats_neon minus_neon(Floats_neon a, Floats_neon b) { return vsubq_f32(a, b); }
static inline float total_neon(Floats_neon v) { return vaddvq_f32(v); }
static inline void widen_halves_neon(const uint16_t *halves, float *out, int n) {
    const __fp16 *h = (const __fp16 *)halves;
    for (int i = 0; i < n; i++) out[i] = (float)h[i];
}
static inline float fma_neon(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
