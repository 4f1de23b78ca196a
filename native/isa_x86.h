/* What AVX2 and AVX-512 have in common, under the NAME and TARGET of the header that includes it.
 */

/* 64 weights: low halves of 32 bytes, and high ones; `half`: only the first 16 bytes are there. */
typedef struct {
    __m256i low, high;
} NAME(Int4x64);

TARGET static inline NAME(Int4x64) NAME(unpack_int4)(const uint8_t *codes, int half) {
    const __m256i both = half ? _mm256_zextsi128_si256(_mm_loadu_si128((const __m128i *)codes))
                              : _mm256_loadu_si256((const __m256i *)codes);
    const __m256i mask = _mm256_set1_epi8(15);
    return (NAME(Int4x64)){_mm256_and_si256(both, mask),
                       _mm256_and_si256(_mm256_srli_epi16(both, 4), mask)};
}
TARGET static inline NAME(Int4x64) NAME(load_int4)(const uint8_t *x) {
    return (NAME(Int4x64)){_mm256_loadu_si256((const __m256i *)x),
                       _mm256_loadu_si256((const __m256i *)(x + 32))};
}
TARGET static inline void NAME(store_int4)(uint8_t *x, NAME(Int4x64) v) {
    _mm256_storeu_si256((__m256i *)x, v.low);
    _mm256_storeu_si256((__m256i *)(x + 32), v.high);
}
TARGET static inline float NAME(fma)(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
