/* AVX2: 16 lanes of int16, 8 of int32 and float. */
#define NAME(name) name##_avx2
#define TARGET __attribute__((target("avx2,fma,f16c")))
#define LANES 16
#define INTS 8
#define FLOATS 8
#define HALF 4 /* the first lane of a second block */
typedef __m256i Ints_avx2;
typedef __m256i Shorts_avx2;
typedef __m256 Floats_avx2;

TARGET static inline Ints_avx2 load_ints_avx2(const int32_t *x) {
    return _mm256_loadu_si256((const __m256i *)x);
}
TARGET static inline Shorts_avx2 load_avx2(const int16_t *x) {
    return _mm256_loadu_si256((const __m256i *)x);
}
TARGET static inline void store_avx2(int16_t *x, Shorts_avx2 v) {
    _mm256_storeu_si256((__m256i *)x, v);
}
TARGET static inline Shorts_avx2 wide_avx2(const uint8_t *codes) {
    return _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)codes));
}
TARGET static inline Ints_avx2 dot_avx2(Ints_avx2 sum, Shorts_avx2 a, Shorts_avx2 b) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b));
}
#include "isa_x86.h"

/* Four products of 15 by 127 fit into 16 bits. */
TARGET static inline Ints_avx2 dot_fours_avx2(Ints_avx2 sum, Fours_avx2 w, const int8_t *x) {
    const __m256i low = _mm256_maddubs_epi16(w.low, _mm256_loadu_si256((const __m256i *)x));
    const __m256i high =
        _mm256_maddubs_epi16(w.high, _mm256_loadu_si256((const __m256i *)(x + 32)));
    const __m256i four = _mm256_add_epi16(low, high);
    return _mm256_add_epi32(sum, _mm256_madd_epi16(four, _mm256_set1_epi16(1)));
}
TARGET static inline Floats_avx2 to_floats_avx2(Ints_avx2 v) { return _mm256_cvtepi32_ps(v); }
TARGET static inline Floats_avx2 none_avx2(void) { return _mm256_setzero_ps(); }
TARGET static inline Floats_avx2 all_avx2(float x) { return _mm256_set1_ps(x); }
/* x[0] in the lower half of the lanes and x[1] in the upper one. */
TARGET static inline Floats_avx2 pair_avx2(const float *x) {
    const __m256 both = _mm256_castpd_ps(_mm256_broadcast_sd((const double *)(const void *)x));
    return _mm256_permutevar8x32_ps(both, _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1));
}
TARGET static inline Floats_avx2 loadf_avx2(const float *x) { return _mm256_loadu_ps(x); }
TARGET static inline Floats_avx2 plus_avx2(Floats_avx2 sum, Floats_avx2 a, Floats_avx2 b) {
    return _mm256_fmadd_ps(a, b, sum);
}
TARGET static inline Floats_avx2 times_avx2(Floats_avx2 a, Floats_avx2 b) {
    return _mm256_mul_ps(a, b);
}
TARGET static inline float total_avx2(Floats_avx2 v) {
    __m128 h = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    h = _mm_add_ps(h, _mm_movehl_ps(h, h));
    return _mm_cvtss_f32(_mm_add_ss(h, _mm_movehdup_ps(h)));
}
/* The first n of 8; the others are 0. */
TARGET static inline Floats_avx2 some_avx2(const float *x, int n) {
    if (n == 8) return _mm256_loadu_ps(x);
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_maskload_ps(x, _mm256_cmpgt_epi32(_mm256_set1_epi32(n), lane));
}
TARGET static inline Floats_avx2 some_halves_avx2(const uint16_t *x, int n) {
    if (n == 8) return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)x));
    uint16_t some[8] = {0};
    for (int i = 0; i < n; i++) some[i] = x[i];
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)some));
}
TARGET static inline void storef_avx2(float *x, Floats_avx2 v) { _mm256_storeu_ps(x, v); }
TARGET static inline Floats_avx2 nibbles_avx2(uint64_t bits) {
    const __m256i all = _mm256_set1_epi32((int32_t)bits);
    const __m256i each = _mm256_srlv_epi32(all, _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28));
    return _mm256_cvtepi32_ps(_mm256_and_si256(each, _mm256_set1_epi32(15)));
}
