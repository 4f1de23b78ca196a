/* Any other processor: plain C. */
#define NAME(name) name##_plain
#define TARGET
#define I16_LANES 32
#define I32_LANES 2
#define F32_LANES 2
#define SECOND_BLOCK_LANE 1 /* the first lane of a second block */
typedef struct {
    int32_t v[I32_LANES];
} VecI32_plain;
typedef struct {
    int16_t v[I16_LANES];
} VecI16_plain;
typedef struct {
    float v[F32_LANES];
} VecF32_plain;

static inline VecI32_plain load_i32_plain(const int32_t *x) { return (VecI32_plain){{x[0], x[1]}}; }
static inline VecI16_plain load_i16_plain(const int16_t *x) {
    VecI16_plain v;
    memcpy(v.v, x, sizeof v.v);
    return v;
}
static inline void store_i16_plain(int16_t *x, VecI16_plain v) { memcpy(x, v.v, sizeof v.v); }
static inline VecI16_plain widen_u8_plain(const uint8_t *codes) {
    VecI16_plain v;
    for (int i = 0; i < I16_LANES; i++) v.v[i] = codes[i];
    return v;
}
static inline VecI32_plain dot_i16_plain(VecI32_plain sum, VecI16_plain a, VecI16_plain b) {
    for (int i = 0; i < I16_LANES; i++) sum.v[0] += a.v[i] * b.v[i];
    return sum;
}
/* 64 weights: low halves of 32 bytes, and high ones; `half`: only the first 16 bytes are there. */
typedef struct {
    uint8_t v[INT4_PER_VEC];
} Int4x64_plain;

static inline Int4x64_plain unpack_int4_plain(const uint8_t *codes, int half) {
    Int4x64_plain v = {{0}};
    for (int i = 0; i < (half ? INT4_PER_VEC / 4 : INT4_PER_VEC / 2); i++) {
        v.v[i] = codes[i] & 15;
        v.v[i + INT4_PER_VEC / 2] = codes[i] >> 4;
    }
    return v;
}
static inline Int4x64_plain load_int4_plain(const uint8_t *x) {
    Int4x64_plain v;
    memcpy(v.v, x, sizeof v.v);
    return v;
}
static inline void store_int4_plain(uint8_t *x, Int4x64_plain v) { memcpy(x, v.v, sizeof v.v); }
static inline VecI32_plain dot_int4_plain(VecI32_plain sum, Int4x64_plain w, const int8_t *x) {
    for (int i = 0; i < INT4_PER_VEC; i++)
        sum.v[i % (INT4_PER_VEC / 2) / (INT4_PER_VEC / 4)] += w.v[i] * x[i];
    return sum;
}
static inline VecF32_plain to_f32_plain(VecI32_plain v) {
    return (VecF32_plain){{(float)v.v[0], (float)v.v[1]}};
}
static inline VecF32_plain make_f32_plain(float a, float b) { return (VecF32_plain){{a, b}}; }
static inline VecF32_plain splat_pair_plain(const float *x) { return make_f32_plain(x[0], x[1]); }
static inline VecF32_plain splat_plain(float x) { return make_f32_plain(x, x); }
static inline VecF32_plain zero_f32_plain(void) { return make_f32_plain(0, 0); }
static inline VecF32_plain load_f32_plain(const float *x) { return make_f32_plain(x[0], x[1]); }
static inline void store_f32_plain(float *x, VecF32_plain v) { memcpy(x, v.v, sizeof v.v); }
static inline float half_to_float(uint16_t half) {
    const uint32_t sign = (uint32_t)(half & 0x8000) << 16, magnitude = half & 0x7fff;
    union {
        uint32_t bits;
        float value;
    } wide = {.bits = magnitude << 13};
    wide.value *= 0x1p112f; /* exponents are counted from -112 less in a half */
    wide.bits |= sign;
    return wide.value;
}
/* The first n of 2; the other is 0. */
static inline VecF32_plain load_partial_plain(const float *x, int n) {
    return make_f32_plain(x[0], n > 1 ? x[1] : 0);
}
static inline VecF32_plain load_partial_f16_plain(const uint16_t *x, int n) {
    return make_f32_plain(half_to_float(x[0]), n > 1 ? half_to_float(x[1]) : 0);
}
static inline VecF32_plain fmadd_plain(VecF32_plain sum, VecF32_plain a, VecF32_plain b) {
    return make_f32_plain(sum.v[0] + a.v[0] * b.v[0], sum.v[1] + a.v[1] * b.v[1]);
}
static inline VecF32_plain mul_plain(VecF32_plain a, VecF32_plain b) {
    return make_f32_plain(a.v[0] * b.v[0], a.v[1] * b.v[1]);
}
static inline float reduce_add_plain(VecF32_plain v) { return v.v[0] + v.v[1]; }
static inline VecF32_plain nibbles_to_f32_plain(uint64_t bits) {
    return make_f32_plain((float)(bits & 15), (float)(bits >> 4 & 15));
}
static inline float fma_plain(float a, float b, float c) { return a * b + c; }
