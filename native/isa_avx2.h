/* AVX2: 16 lanes of int16, 8 of int32 and float. */
#define NAME(name) name##_avx2
#define TARGET __attribute__((target("avx2,fma,f16c")))
#define LANES 16
#define INTS 8
#define FLOATS 8
typedef __m256i Ints_avx2;
typedef __m256 Floats_avx2;

TARGET static inline Ints_avx2 dot_avx2(Ints_avx2 sum, Ints_avx2 a, Ints_avx2 b) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b));
}
TARGET static inline Ints_avx2 load_avx2(const int16_t *x) {
    return _mm256_loadu_si256((const __m256i *)x);
}
TARGET static inline void store_avx2(int16_t *x, Ints_avx2 v) {
    _mm256_storeu_si256((__m256i *)x, v);
}
TARGET static inline Ints_avx2 wide8_avx2(const uint8_t *codes) {
    return _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)codes));
}
TARGET static inline void wide4_avx2(const uint8_t *codes, Ints_avx2 v[2]) {
    Ints_avx2 both = wide8_avx2(codes);
    v[0] = _mm256_and_si256(both, _mm256_set1_epi16(15));
    v[1] = _mm256_srli_epi16(both, 4);
}
TARGET static inline Ints_avx2 load_ints_avx2(const int32_t *x) {
    return _mm256_loadu_si256((const __m256i *)x);
}
TARGET static inline Floats_avx2 none_avx2(void) { return _mm256_setzero_ps(); }
TARGET static inline Floats_avx2 scaled_avx2(Floats_avx2 sum, Ints_avx2 v, float scale) {
    return _mm256_fmadd_ps(_mm256_cvtepi32_ps(v), _mm256_set1_ps(scale), sum);
}
TARGET static inline Floats_avx2 loadf_avx2(const float *x) { return _mm256_loadu_ps(x); }
TARGET static inline Floats_avx2 plus_avx2(Floats_avx2 sum, Floats_avx2 a, Floats_avx2 b) {
    return _mm256_fmadd_ps(a, b, sum);
}
TARGET static inline Floats_avx2 minus_avx2(Floats_avx2 a, Floats_avx2 b) {
    return _mm256_sub_ps(a, b);
}
TARGET static inline float total_avx2(Floats_avx2 v) {
    __m128 h = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    h = _mm_add_ps(h, _mm_movehl_ps(h, h));
    return _mm_cvtss_f32(_mm_add_ss(h, _mm_movehdup_ps(h)));
}
TARGET static inline void widen_halves_avx2(const uint16_t *halves, float *out, int n) {
    int i = 0;
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(halves + i))));
    for (; i < n; i++) out[i] = _cvtsh_ss(halves[i]);
}
TARGET static inline float fma_avx2(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
