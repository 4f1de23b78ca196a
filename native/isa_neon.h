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
typedef struct {
    int8x16_t even, odd;
} Bytes_neon;
typedef float32x4_t Floats_neon;

static inline Ints_neon load_ints_neon(const int32_t *x) { return (Ints_neon){.w = vld1q_s32(x)}; }
static inline Ints_neon load_neon(const int16_t *x) { return (Ints_neon){.h = vld1q_s16(x)}; }
static inline void store_neon(int16_t *x, Ints_neon v) { vst1q_s16(x, v.h); }
static inline Ints_neon wide_neon(const uint8_t *codes) {
    return (Ints_neon){.h = vreinterpretq_s16_u16(vmovl_u8(vld1_u8(codes)))};
}
static inline Ints_neon dot_neon(Ints_neon sum, Ints_neon a, Ints_neon b) {
    sum.w = vmlal_s16(sum.w, vget_low_s16(a.h), vget_low_s16(b.h));
    sum.w = vmlal_high_s16(sum.w, a.h, b.h);
    return sum;
}
static inline Bytes_neon load_bytes_neon(const uint8_t *x) {
    return (Bytes_neon){vld1q_s8((const int8_t *)x), vld1q_s8((const int8_t *)x + 16)};
}
static inline void store_bytes_neon(uint8_t *x, Bytes_neon v) {
    vst1q_s8((int8_t *)x, v.even);
    vst1q_s8((int8_t *)x + 16, v.odd);
}
/* 16 low halves, then 16 high ones. */
static inline Bytes_neon nibbles_neon(const uint8_t *codes) {
    const uint8x16_t both = vld1q_u8(codes);
    return (Bytes_neon){vreinterpretq_s8_u8(vandq_u8(both, vdupq_n_u8(15))),
                        vreinterpretq_s8_u8(vshrq_n_u8(both, 4))};
}
/* Four products of 15 by 127 fit into 16 bits. */
static inline Ints_neon dot_bytes_neon(Ints_neon sum, Bytes_neon w, const int8_t *x) {
    const int8x16_t even = vld1q_s8(x), odd = vld1q_s8(x + 16);
    int16x8_t four = vmull_s8(vget_low_s8(w.even), vget_low_s8(even));
    four = vmlal_high_s8(four, w.even, even);
    four = vmlal_s8(four, vget_low_s8(w.odd), vget_low_s8(odd));
    four = vmlal_high_s8(four, w.odd, odd);
    sum.w = vpadalq_s16(sum.w, four);
    return sum;
}
static inline Floats_neon to_floats_neon(Ints_neon v) { return vcvtq_f32_s32(v.w); }
static inline Floats_neon none_neon(void) { return vdupq_n_f32(0); }
static inline Floats_neon all_neon(float x) { return vdupq_n_f32(x); }
static inline Floats_neon loadf_neon(const float *x) { return vld1q_f32(x); }
static inline Floats_neon plus_neon(Floats_neon sum, Floats_neon a, Floats_neon b) {
    return vfmaq_f32(sum, a, b);
}
static inline Floats_neon times_neon(Floats_neon a, Floats_neon b) { return vmulq_f32(a, b); }
static inline Floats_neon minus_neon(Floats_neon a, Floats_neon b) { return vsubq_f32(a, b); }
static inline float total_neon(Floats_neon v) { return vaddvq_f32(v); }
/* The first n of 4; the others are 0. */
static inline Floats_neon some_neon(const float *x, int n) {
    if (n == 4) return vld1q_f32(x);
    float some[4] = {0};
    for (int i = 0; i < n; i++) some[i] = x[i];
    return vld1q_f32(some);
}
static inline Floats_neon some_halves_neon(const uint16_t *x, int n) {
    uint16_t some[4] = {0};
    for (int i = 0; i < n; i++) some[i] = x[i];
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(some)));
}
static inline void storef_neon(float *x, Floats_neon v) { vst1q_f32(x, v); }
static inline void nibbles_to_floats_neon(uint32_t eight, float *out) {
    for (int i = 0; i < 8; i++) out[i] = (float)(eight >> 4 * i & 15);
}
static inline float fma_neon(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
