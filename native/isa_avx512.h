/* AVX-512 with VNNI: 32 lanes of int16, 16 of int32 and float. */
#define NAME(name) name##_avx512
#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")))
#define LANES 32
#define INTS 16
#define FLOATS 16
typedef __m512i Ints_avx512;
typedef __m512 Floats_avx512;

TARGET static inline Ints_avx512 dot_avx512(Ints_avx512 sum, Ints_avx512 a, Ints_avx512 b) {
    return _mm512_dpwssd_epi32(sum, a, b);
}
TARGET static inline Ints_avx512 load_avx512(const int16_t *x) { return _mm512_loadu_si512(x); }
TARGET static inline void store_avx512(int16_t *x, Ints_avx512 v) { _mm512_storeu_si512(x, v); }
TARGET static inline Ints_avx512 wide8_avx512(const uint8_t *codes) {
    return _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)codes));
}
TARGET static inline void wide4_avx512(const uint8_t *codes, Ints_avx512 v[1]) {
    __m256i both = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)codes));
    __m256i low = _mm256_and_si256(both, _mm256_set1_epi16(15));
    v[0] = _mm512_inserti64x4(_mm512_castsi256_si512(low), _mm256_srli_epi16(both, 4), 1);
}
TARGET static inline Ints_avx512 load_ints_avx512(const int32_t *x) {
    return _mm512_loadu_si512(x);
}
TARGET static inline Floats_avx512 none_avx512(void) { return _mm512_setzero_ps(); }
TARGET static inline Floats_avx512 scaled_avx512(Floats_avx512 sum, Ints_avx512 v, float scale) {
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(v), _mm512_set1_ps(scale), sum);
}
TARGET static inline Floats_avx512 loadf_avx512(const float *x) { return _mm512_loadu_ps(x); }
TARGET static inline Floats_avx512 plus_avx512(Floats_avx512 sum, Floats_avx512 a, Floats_avx512 b) {
    return _mm512_fmadd_ps(a, b, sum);
}
TARGET static inline Floats_avx512 minus_avx512(Floats_avx512 a, Floats_avx512 b) {
    return _mm512_sub_ps(a, b);
}
TARGET static inline float total_avx512(Floats_avx512 v) { return _mm512_reduce_add_ps(v); }
TARGET static inline void widen_halves_avx512(const uint16_t *halves, float *out, int n) {
    int i = 0;
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(halves + i))));
    for (; i < n; i++) out[i] = _cvtsh_ss(halves[i]);
}
TARGET static inline float fma_avx512(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
