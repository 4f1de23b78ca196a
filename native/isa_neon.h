/* AArch64: 16 lanes of int16, 8 of int32 and float, in two registers each. */
#define NAME(name) name##_neon
#define TARGET
#define I16_LANES 16
#define I32_LANES 8
#define F32_LANES 8
#define SECOND_BLOCK_LANE 4 /* the first lane of a second block */
typedef int32x4x2_t VecI32_neon;
typedef int16x8x2_t VecI16_neon;
typedef float32x4x2_t VecF32_neon;

static inline VecI32_neon load_i32_neon(const int32_t *x) {
    return (VecI32_neon){{vld1q_s32(x), vld1q_s32(x + 4)}};
}
static inline VecI16_neon load_i16_neon(const int16_t *x) {
    return (VecI16_neon){{vld1q_s16(x), vld1q_s16(x + 8)}};
}
static inline void store_i16_neon(int16_t *x, VecI16_neon v) {
    vst1q_s16(x, v.val[0]);
    vst1q_s16(x + 8, v.val[1]);
}
static inline VecI16_neon widen_u8_neon(const uint8_t *codes) {
    const uint8x16_t all = vld1q_u8(codes);
    return (VecI16_neon){{vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(all))),
                          vreinterpretq_s16_u16(vmovl_high_u8(all))}};
}
static inline VecI32_neon dot_i16_neon(VecI32_neon sum, VecI16_neon a, VecI16_neon b) {
    for (int i = 0; i < 2; i++) {
        sum.val[0] = vmlal_s16(sum.val[0], vget_low_s16(a.val[i]), vget_low_s16(b.val[i]));
        sum.val[1] = vmlal_high_s16(sum.val[1], a.val[i], b.val[i]);
    }
    return sum;
}
/* 64 weights: low halves of 32 bytes, and high ones; `half`: only the first 16 bytes are there. */
typedef struct {
    int8x16x2_t low, high;
} Int4x64_neon;

static inline Int4x64_neon unpack_int4_neon(const uint8_t *codes, int half) {
    Int4x64_neon v;
    for (int i = 0; i < 2; i++) {
        const uint8x16_t both = i && half ? vdupq_n_u8(0) : vld1q_u8(codes + 16 * i);
        v.low.val[i] = vreinterpretq_s8_u8(vandq_u8(both, vdupq_n_u8(15)));
        v.high.val[i] = vreinterpretq_s8_u8(vshrq_n_u8(both, 4));
    }
    return v;
}
static inline Int4x64_neon load_int4_neon(const uint8_t *x) {
    Int4x64_neon v;
    for (int i = 0; i < 2; i++) {
        v.low.val[i] = vld1q_s8((const int8_t *)x + 16 * i);
        v.high.val[i] = vld1q_s8((const int8_t *)x + 32 + 16 * i);
    }
    return v;
}
static inline void store_int4_neon(uint8_t *x, Int4x64_neon v) {
    for (int i = 0; i < 2; i++) {
        vst1q_s8((int8_t *)x + 16 * i, v.low.val[i]);
        vst1q_s8((int8_t *)x + 32 + 16 * i, v.high.val[i]);
    }
}
/* Four products of 15 by 127 fit into 16 bits. */
static inline VecI32_neon dot_int4_neon(VecI32_neon sum, Int4x64_neon w, const int8_t *x) {
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
static inline VecF32_neon to_f32_neon(VecI32_neon v) {
    return (VecF32_neon){{vcvtq_f32_s32(v.val[0]), vcvtq_f32_s32(v.val[1])}};
}
/* x[0] in the lower half of the lanes and x[1] in the upper one. */
static inline VecF32_neon splat_pair_neon(const float *x) {
    return (VecF32_neon){{vdupq_n_f32(x[0]), vdupq_n_f32(x[1])}};
}
static inline VecF32_neon splat_neon(float x) {
    return (VecF32_neon){{vdupq_n_f32(x), vdupq_n_f32(x)}};
}
static inline VecF32_neon zero_f32_neon(void) { return splat_neon(0); }
static inline VecF32_neon load_f32_neon(const float *x) {
    return (VecF32_neon){{vld1q_f32(x), vld1q_f32(x + 4)}};
}
static inline void store_f32_neon(float *x, VecF32_neon v) {
    vst1q_f32(x, v.val[0]);
    vst1q_f32(x + 4, v.val[1]);
}
/* The first n of 8; the others are 0. */
static inline VecF32_neon load_partial_neon(const float *x, int n) {
    if (n == 8) return load_f32_neon(x);
    float some[8] = {0};
    for (int i = 0; i < n; i++) some[i] = x[i];
    return load_f32_neon(some);
}
static inline VecF32_neon load_partial_f16_neon(const uint16_t *x, int n) {
    uint16_t some[8] = {0};
    if (n == 8) memcpy(some, x, sizeof some);
    else
        for (int i = 0; i < n; i++) some[i] = x[i];
    const float16x8_t halves = vreinterpretq_f16_u16(vld1q_u16(some));
    return (VecF32_neon){{vcvt_f32_f16(vget_low_f16(halves)), vcvt_high_f32_f16(halves)}};
}
static inline VecF32_neon fmadd_neon(VecF32_neon sum, VecF32_neon a, VecF32_neon b) {
    return (VecF32_neon){{vfmaq_f32(sum.val[0], a.val[0], b.val[0]),
                          vfmaq_f32(sum.val[1], a.val[1], b.val[1])}};
}
static inline VecF32_neon mul_neon(VecF32_neon a, VecF32_neon b) {
    return (VecF32_neon){{vmulq_f32(a.val[0], b.val[0]), vmulq_f32(a.val[1], b.val[1])}};
}
static inline float reduce_add_neon(VecF32_neon v) {
    return vaddvq_f32(vaddq_f32(v.val[0], v.val[1]));
}
static inline VecF32_neon nibbles_to_f32_neon(uint64_t bits) {
    const uint8x8_t pairs = vcreate_u8(bits & UINT32_MAX);
    const uint8x8_t low = vand_u8(pairs, vdup_n_u8(15)), high = vshr_n_u8(pairs, 4);
    const uint16x8_t each = vmovl_u8(vzip1_u8(low, high));
    return (VecF32_neon){{vcvtq_f32_u32(vmovl_u16(vget_low_u16(each))),
                          vcvtq_f32_u32(vmovl_high_u16(each))}};
}
static inline float fma_neon(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
