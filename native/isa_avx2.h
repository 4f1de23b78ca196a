/* AVX2: 16 lanes of int16, 8 of int32 and float. */
#define NAME(name) name##_avx2
#define TARGET __attribute__((target("avx2,fma,f16c")))
#define I16_LANES 16
#define I32_LANES 8
#define F32_LANES 8
#define SECOND_BLOCK_LANE 4 /* the first lane of a second block */
typedef __m256i VecI32_avx2;
typedef __m256i VecI16_avx2;
typedef __m256 VecF32_avx2;

TARGET static inline VecI32_avx2 load_i32_avx2(const int32_t *x) {
    return _mm256_loadu_si256((const __m256i *)x);
}
TARGET static inline VecI16_avx2 load_i16_avx2(const int16_t *x) {
    return _mm256_loadu_si256((const __m256i *)x);
}
TARGET static inline void store_i16_avx2(int16_t *x, VecI16_avx2 v) {
    _mm256_storeu_si256((__m256i *)x, v);
}
TARGET static inline VecI16_avx2 widen_u8_avx2(const uint8_t *codes) {
    return _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)codes));
}
TARGET static inline VecI32_avx2 dot_i16_avx2(VecI32_avx2 sum, VecI16_avx2 a, VecI16_avx2 b) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b));
}
#include "isa_x86.h"

/* Four products of 15 by 127 fit into 16 bits. */
TARGET static inline VecI32_avx2 dot_int4_avx2(VecI32_avx2 sum, Int4x64_avx2 w, const int8_t *x) {
    const __m256i low = _mm256_maddubs_epi16(w.low, _mm256_loadu_si256((const __m256i *)x));
    const __m256i high =
        _mm256_maddubs_epi16(w.high, _mm256_loadu_si256((const __m256i *)(x + 32)));
    const __m256i four = _mm256_add_epi16(low, high);
    return _mm256_add_epi32(sum, _mm256_madd_epi16(four, _mm256_set1_epi16(1)));
}
TARGET static inline VecF32_avx2 to_f32_avx2(VecI32_avx2 v) { return _mm256_cvtepi32_ps(v); }
TARGET static inline VecF32_avx2 zero_f32_avx2(void) { return _mm256_setzero_ps(); }
TARGET static inline VecF32_avx2 splat_avx2(float x) { return _mm256_set1_ps(x); }
/* x[0] in the lower half of the lanes and x[1] in the upper one. */
TARGET static inline VecF32_avx2 splat_pair_avx2(const float *x) {
    const __m256 both = _mm256_castpd_ps(_mm256_broadcast_sd((const double *)(const void *)x));
    return _mm256_permutevar8x32_ps(both, _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1));
}
TARGET static inline VecF32_avx2 load_f32_avx2(const float *x) { return _mm256_loadu_ps(x); }
TARGET static inline VecF32_avx2 fmadd_avx2(VecF32_avx2 sum, VecF32_avx2 a, VecF32_avx2 b) {
    return _mm256_fmadd_ps(a, b, sum);
}
TARGET static inline VecF32_avx2 mul_avx2(VecF32_avx2 a, VecF32_avx2 b) {
    return _mm256_mul_ps(a, b);
}
TARGET static inline float reduce_add_avx2(VecF32_avx2 v) {
    __m128 h = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    h = _mm_add_ps(h, _mm_movehl_ps(h, h));
    return _mm_cvtss_f32(_mm_add_ss(h, _mm_movehdup_ps(h)));
}
/* The first n of 8; the others are 0. */
TARGET static inline VecF32_avx2 load_partial_avx2(const float *x, int n) {
    if (n == 8) return _mm256_loadu_ps(x);
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_maskload_ps(x, _mm256_cmpgt_epi32(_mm256_set1_epi32(n), lane));
}
TARGET static inline VecF32_avx2 load_partial_f16_avx2(const uint16_t *x, int n) {
    if (n == 8) return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)x));
    uint16_t some[8] = {0};
    for (int i = 0; i < n; i++) some[i] = x[i];
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)some));
}
TARGET static inline void store_f32_avx2(float *x, VecF32_avx2 v) { _mm256_storeu_ps(x, v); }
TARGET static inline VecF32_avx2 nibbles_to_f32_avx2(uint64_t bits) {
    const __m256i all = _mm256_set1_epi32((int32_t)bits);
    const __m256i each = _mm256_srlv_epi32(all, _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28));
    return _mm256_cvtepi32_ps(_mm256_and_si256(each, _mm256_set1_epi32(15)));
}
