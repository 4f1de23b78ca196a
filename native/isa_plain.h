/* Any other processor: plain C. */
#define NAME(name) name##_plain
#define TARGET
#define LANES 32
#define INTS 1
#define FLOATS 1
typedef struct {
    int32_t total;
    int16_t v[LANES];
} Ints_plain;
typedef struct {
    uint8_t v[GROUP];
} Bytes_plain;
typedef float Floats_plain;

static inline Ints_plain load_ints_plain(const int32_t *x) { return (Ints_plain){.total = *x}; }
static inline Ints_plain load_plain(const int16_t *x) {
    Ints_plain v;
    memcpy(v.v, x, sizeof v.v);
    return v;
}
static inline void store_plain(int16_t *x, Ints_plain v) { memcpy(x, v.v, sizeof v.v); }
static inline Ints_plain wide_plain(const uint8_t *codes) {
    Ints_plain v;
    for (int i = 0; i < LANES; i++) v.v[i] = codes[i];
    return v;
}
static inline Ints_plain dot_plain(Ints_plain sum, Ints_plain a, Ints_plain b) {
    for (int i = 0; i < LANES; i++) sum.total += a.v[i] * b.v[i];
    return sum;
}
static inline Bytes_plain load_bytes_plain(const uint8_t *x) {
    Bytes_plain v;
    memcpy(v.v, x, sizeof v.v);
    return v;
}
static inline void store_bytes_plain(uint8_t *x, Bytes_plain v) { memcpy(x, v.v, sizeof v.v); }
/* 16 low halves, then 16 high ones. */
static inline Bytes_plain nibbles_plain(const uint8_t *codes) {
    Bytes_plain v;
    for (int i = 0; i < GROUP / 2; i++) {
        v.v[i] = codes[i] & 15;
        v.v[i + GROUP / 2] = codes[i] >> 4;
    }
    return v;
}
static inline Ints_plain dot_bytes_plain(Ints_plain sum, Bytes_plain w, const int8_t *x) {
    for (int i = 0; i < GROUP; i++) sum.total += w.v[i] * x[i];
    return sum;
}
static inline Floats_plain to_floats_plain(Ints_plain v) { return (float)v.total; }
static inline Floats_plain none_plain(void) { return 0; }
static inline Floats_plain all_plain(float x) { return x; }
static inline Floats_plain loadf_plain(const float *x) { return *x; }
static inline Floats_plain plus_plain(Floats_plain sum, Floats_plain a, Floats_plain b) {
    return sum + a * b;
}
static inline Floats_plain times_plain(Floats_plain a, Floats_plain b) { return a * b; }
static inline Floats_plain minus_plain(Floats_plain a, Floats_plain b) { return a - b; }
static inline float total_plain(Floats_plain v) { return v; }
/* One of one. */
static inline Floats_plain some_plain(const float *x, int n) { return n ? *x : 0; }
static inline Floats_plain some_halves_plain(const uint16_t *x, int n) {
    (void)n;
    const uint32_t sign = (uint32_t)(*x & 0x8000) << 16, magnitude = *x & 0x7fff;
    union {
        uint32_t bits;
        float value;
    } wide = {.bits = magnitude << 13};
    wide.value *= 0x1p112f; /* exponents are counted from -112 less in a half */
    wide.bits |= sign;
    return wide.value;
}
static inline void storef_plain(float *x, Floats_plain v) { *x = v; }
static inline void nibbles_to_floats_plain(uint32_t eight, float *out) {
    for (int i = 0; i < 8; i++) out[i] = (float)(eight >> 4 * i & 15);
}
static inline float fma_plain(float a, float b, float c) { return a * b + c; }
