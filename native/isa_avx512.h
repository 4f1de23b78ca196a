/* AVX-512 with VNNI: 32 lanes of int16, 16 of int32 and float. */
#define NAME(name) name##_avx512
#define TARGET                                                                                     \
    __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")))
#define I16_LANES 32
#define I32_LANES 16
#define F32_LANES 16
#define SECOND_BLOCK_LANE 4 /* the first lane of a second block */
typedef __m512i VecI32_avx512;
typedef __m512i VecI16_avx512;
typedef __m512 VecF32_avx512;

TARGET static inline VecI32_avx512 load_i32_avx512(const int32_t *x) {
    return _mm512_loadu_si512(x);
}
TARGET static inline VecI16_avx512 load_i16_avx512(const int16_t *x) {
    return _mm512_loadu_si512(x);
}
TARGET static inline void store_i16_avx512(int16_t *x, VecI16_avx512 v) {
    _mm512_storeu_si512(x, v);
}
TARGET static inline VecI16_avx512 widen_u8_avx512(const uint8_t *codes) {
    return _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)codes));
}
TARGET static inline VecI32_avx512 dot_i16_avx512(VecI32_avx512 sum, VecI16_avx512 a,
                                                  VecI16_avx512 b) {
    return _mm512_dpwssd_epi32(sum, a, b);
}
#include "isa_x86.h"

/* The upper lanes stay what they are. */
TARGET static inline VecI32_avx512 dot_int4_avx512(VecI32_avx512 sum, Int4x64_avx512 w,
                                                  const int8_t *x) {
    const __m256i low = _mm256_loadu_si256((const __m256i *)x);
    const __m256i high = _mm256_loadu_si256((const __m256i *)(x + 32));
    sum = _mm512_dpbusd_epi32(sum, _mm512_zextsi256_si512(w.low), _mm512_zextsi256_si512(low));
    return _mm512_dpbusd_epi32(sum, _mm512_zextsi256_si512(w.high), _mm512_zextsi256_si512(high));
}
TARGET static inline VecF32_avx512 to_f32_avx512(VecI32_avx512 v) {
    return _mm512_cvtepi32_ps(v);
}
TARGET static inline VecF32_avx512 zero_f32_avx512(void) { return _mm512_setzero_ps(); }
TARGET static inline VecF32_avx512 splat_avx512(float x) { return _mm512_set1_ps(x); }
/* x[0] in the first four lanes and x[1] in the next four. */
TARGET static inline VecF32_avx512 splat_pair_avx512(const float *x) {
    const __m256 both = _mm256_castpd_ps(_mm256_broadcast_sd((const double *)(const void *)x));
    const __m256i order = _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1);
    return _mm512_zextps256_ps512(_mm256_permutevar8x32_ps(both, order));
}
TARGET static inline VecF32_avx512 load_f32_avx512(const float *x) { return _mm512_loadu_ps(x); }
TARGET static inline VecF32_avx512 fmadd_avx512(VecF32_avx512 sum, VecF32_avx512 a,
                                                VecF32_avx512 b) {
    return _mm512_fmadd_ps(a, b, sum);
}
TARGET static inline VecF32_avx512 mul_avx512(VecF32_avx512 a, VecF32_avx512 b) {
    return _mm512_mul_ps(a, b);
}
TARGET static inline float reduce_add_avx512(VecF32_avx512 v) { return _mm512_reduce_add_ps(v); }
/* The first n of 16; the others are 0. */
TARGET static inline VecF32_avx512 load_partial_avx512(const float *x, int n) {
    return _mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), x);
}
TARGET static inline VecF32_avx512 load_partial_f16_avx512(const uint16_t *x, int n) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16((__mmask16)((1u << n) - 1), x));
}
TARGET static inline void store_f32_avx512(float *x, VecF32_avx512 v) { _mm512_storeu_ps(x, v); }
TARGET static inline VecF32_avx512 nibbles_to_f32_avx512(uint64_t bits) {
    const __m512i all =
        _mm512_inserti64x4(_mm512_set1_epi32((int32_t)bits),
                           _mm256_set1_epi32((int32_t)(bits >> 32)), 1);
    const __m512i each = _mm512_srlv_epi32(all, _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 4,
                                                                  8, 12, 16, 20, 24, 28));
    return _mm512_cvtepi32_ps(_mm512_and_si512(each, _mm512_set1_epi32(15)));
}
