/* The comparison kernels for AVX2. */
#if defined(__x86_64__)
#include "bench/peers_x86.h"

#define ISA      avx2
#define ISA_NAME "AVX2"
#define LANES    8

typedef __m256 vec;
typedef __m256 partial;

static inline vec fma_vec(vec a, vec b, vec c)
{
    return _mm256_fmadd_ps(a, b, c);
}

static inline vec max_vec(vec a, vec b)
{
    return _mm256_max_ps(a, b);
}

static inline void store_low_bytes(uint8_t *dst, vec v)
{
    const __m256i gather = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1));
    const __m256i bytes = _mm256_shuffle_epi8(_mm256_castps_si256(v), gather);

    _mm_storel_epi64((__m128i_u *)dst, _mm_unpacklo_epi32(_mm256_castsi256_si128(bytes),
                                                          _mm256_extracti128_si256(bytes, 1)));
}

static inline float largest_lane(vec v)
{
    return largest_of_8(v);
}

/* Pairs fit 16 bits: no code is -128. */
static inline partial dot_codes(struct codes c, const int8_t *y)
{
    const __m256i pairs = _mm256_maddubs_epi16(c.size, signed_like(c, y));

    return _mm256_cvtepi32_ps(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

static inline void widen_codes(float *dst, struct codes c, float scale)
{
    const __m128i half[2] = {_mm256_castsi256_si128(c.value), _mm256_extracti128_si256(c.value, 1)};

    for (int i = 0; i < 2; i++) {
        const __m256 low = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(half[i]));
        const __m256 high = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(half[i], 8)));

        _mm256_storeu_ps(dst + 16 * i, _mm256_mul_ps(low, _mm256_set1_ps(scale)));
        _mm256_storeu_ps(dst + 16 * i + 8, _mm256_mul_ps(high, _mm256_set1_ps(scale)));
    }
}

#include "bench/peers_simd.h"
#endif
