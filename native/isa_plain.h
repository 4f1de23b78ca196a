/* Any other processor: plain C. */
#define NAME(name) name##_plain
#define TARGET
#define LANES 32
#define INTS 32
#define FLOATS 1
typedef struct {
    int32_t v[LANES];
} Ints_plain;
typedef struct {
    float v;
} Floats_plain;

static inline Ints_plain dot_plain(Ints_plain sum, Ints_plain a, Ints_plain b) {
    for (int i = 0; i < LANES; i++) sum.v[i] += a.v[i] * b.v[i];
    return sum;
}
static inline Ints_plain load_plain(const int16_t *x) {
    Ints_plain v;
    for (int i = 0; i < LANES; i++) v.v[i] = x[i];
    return v;
}
static inline void store_plain(int16_t *x, Ints_plain v) {
    for (int i = 0; i < LANES; i++) x[i] = (int16_t)v.v[i];
}
static inline Ints_plain wide8_plain(const uint8_t *codes) {
    Ints_plain v;
    for (int i = 0; i < LANES; i++) v.v[i] = codes[i];
    return v;
}
static inline void wide4_plain(const uint8_t *codes, Ints_plain v[1]) {
    for (int i = 0; i < LANES / 2; i++) {
        v->v[i] = codes[i] & 15;
        v->v[i + LANES / 2] = codes[i] >> 4;
    }
}
static inline Ints_plain load_ints_plain(const int32_t *x) {
    Ints_plain v;
    memcpy(v.v, x, sizeof v.v);
    return v;
}
static inline Floats_plain none_plain(void) { return (Floats_plain){0}; }
static inline Floats_plain scaled_plain(Floats_plain sum, Ints_plain v, float scale) {
    int64_t total = 0;
    for (int i = 0; i < LANES; i++) total += v.v[i];
    return (Floats_plain){sum.v + scale * (float)total};
}
static inline Floats_plain loadf_plain(const float *x) { return (Floats_plain){*x}; }
static inline Floats_plain plus_plain(Floats_plain sum, Floats_plain a, Floats_plain b) {
    return (Floats_plain){sum.v + a.v * b.v};
}
static inline Floats_plain minus_plain(Floats_plain a, Floats_plain b) {
    return (Floats_plain){a.v - b.v};
}
static inline float total_plain(Floats_plain v) { return v.v; }
static inline void widen_halves_plain(const uint16_t *halves, float *out, int n) {
    for (int i = 0; i < n; i++) {
        uint32_t sign = (uint32_t)(halves[i] & 0x8000) << 16, magnitude = halves[i] & 0x7fff;
        union {
            uint32_t bits;
            float value;
        } wide = {.bits = magnitude << 13};
        wide.value *= 0x1p112f; /* exponents are counted from -112 less in a half */
        wide.bits |= sign;
        out[i] = wide.value;
    }
}
static inline float fma_plain(float a, float b, float c) { return a * b + c; }
