/* Any other processor: plain C. */
#define NAME(name) name##_plain
#define TARGET
#define LANES 32
#define INTS 2
#define FLOATS 2
#define HALF 1 /* the first lane of a second block */
typedef struct {
    int32_t v[INTS];
} Ints_plain;
typedef struct {
    int16_t v[LANES];
} Shorts_plain;
typedef struct {
    float v[FLOATS];
} Floats_plain;

static inline Ints_plain load_ints_plain(const int32_t *x) { return (Ints_plain){{x[0], x[1]}}; }
static inline Shorts_plain load_plain(const int16_t *x) {
    Shorts_plain v;
    memcpy(v.v, x, sizeof v.v);
    return v;
}
static inline void store_plain(int16_t *x, Shorts_plain v) { memcpy(x, v.v, sizeof v.v); }
static inline Shorts_plain wide_plain(const uint8_t *codes) {
    Shorts_plain v;
    for (int i = 0; i < LANES; i++) v.v[i] = codes[i];
    return v;
}
static inline Ints_plain dot_plain(Ints_plain sum, Shorts_plain a, Shorts_plain b) {
    for (int i = 0; i < LANES; i++) sum.v[0] += a.v[i] * b.v[i];
    return sum;
}
/* 64 weights: low halves of 32 bytes, and high ones; `half`: only the first 16 bytes are there. */
typedef struct {
    uint8_t v[FOURS];
} Fours_plain;

static inline Fours_plain fours_plain(const uint8_t *codes, int half) {
    Fours_plain v = {{0}};
    for (int i = 0; i < (half ? FOURS / 4 : FOURS / 2); i++) {
        v.v[i] = codes[i] & 15;
        v.v[i + FOURS / 2] = codes[i] >> 4;
    }
    return v;
}
static inline Fours_plain load_fours_plain(const uint8_t *x) {
    Fours_plain v;
    memcpy(v.v, x, sizeof v.v);
    return v;
}
static inline void store_fours_plain(uint8_t *x, Fours_plain v) { memcpy(x, v.v, sizeof v.v); }
static inline Ints_plain dot_fours_plain(Ints_plain sum, Fours_plain w, const int8_t *x) {
    for (int i = 0; i < FOURS; i++) sum.v[i % (FOURS / 2) / (FOURS / 4)] += w.v[i] * x[i];
    return sum;
}
static inline Floats_plain to_floats_plain(Ints_plain v) {
    return (Floats_plain){{(float)v.v[0], (float)v.v[1]}};
}
static inline Floats_plain both_plain(float a, float b) { return (Floats_plain){{a, b}}; }
static inline Floats_plain pair_plain(const float *x) { return both_plain(x[0], x[1]); }
static inline Floats_plain all_plain(float x) { return both_plain(x, x); }
static inline Floats_plain none_plain(void) { return both_plain(0, 0); }
static inline Floats_plain loadf_plain(const float *x) { return both_plain(x[0], x[1]); }
static inline void storef_plain(float *x, Floats_plain v) { memcpy(x, v.v, sizeof v.v); }
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
static inline Floats_plain some_plain(const float *x, int n) {
    return both_plain(x[0], n > 1 ? x[1] : 0);
}
static inline Floats_plain some_halves_plain(const uint16_t *x, int n) {
    return both_plain(half_to_float(x[0]), n > 1 ? half_to_float(x[1]) : 0);
}
static inline Floats_plain plus_plain(Floats_plain sum, Floats_plain a, Floats_plain b) {
    return both_plain(sum.v[0] + a.v[0] * b.v[0], sum.v[1] + a.v[1] * b.v[1]);
}
static inline Floats_plain times_plain(Floats_plain a, Floats_plain b) {
    return both_plain(a.v[0] * b.v[0], a.v[1] * b.v[1]);
}
static inline float total_plain(Floats_plain v) { return v.v[0] + v.v[1]; }
static inline Floats_plain nibbles_plain(uint64_t bits) {
    return both_plain((float)(bits & 15), (float)(bits >> 4 & 15));
}
static inline float fma_plain(float a, float b, float c) { return a * b + c; }
