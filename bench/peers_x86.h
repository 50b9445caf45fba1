/* What the AVX2 and VNNI forms of the comparison kernels share: 32 bytes in one register. */
#ifndef TKV_BENCH_PEERS_X86_H
#define TKV_BENCH_PEERS_X86_H

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

/* The unsigned magnitudes and the values whose signs the other factor takes. */
struct codes {
    __m256i value;
    __m256i size;
};

static inline struct codes load_codes(const uint8_t *bytes)
{
    const __m256i v = _mm256_loadu_si256((const __m256i_u *)bytes);

    return (struct codes){v, _mm256_abs_epi8(v)};
}

static inline struct codes load_nibbles(const uint8_t *bytes)
{
    const __m128i b = _mm_loadu_si128((const __m128i_u *)bytes);
    const __m256i both = _mm256_set_m128i(_mm_srli_epi16(b, 4), b);
    const __m256i v =
        _mm256_sub_epi8(_mm256_and_si256(both, _mm256_set1_epi8(15)), _mm256_set1_epi8(8));

    return (struct codes){v, _mm256_abs_epi8(v)};
}

static inline __m256i signed_like(struct codes c, const int8_t *y)
{
    return _mm256_sign_epi8(_mm256_loadu_si256((const __m256i_u *)y), c.value);
}

static inline float half_to_float(const uint8_t *bytes)
{
    uint16_t h;

    __builtin_memcpy(&h, bytes, sizeof(h));
    return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(h)));
}

static inline uint16_t float_to_half(float x)
{
    return (uint16_t)_mm_cvtsi128_si32(_mm_cvtps_ph(_mm_set_ss(x), _MM_FROUND_TO_NEAREST_INT));
}

static inline float largest_of_8(__m256 v)
{
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));

    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

static inline float add_partial(__m256 v)
{
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));

    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

#endif /* TKV_BENCH_PEERS_X86_H */
