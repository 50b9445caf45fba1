/* The comparison kernels for AVX-512 with VNNI. */
#if defined(__x86_64__)
#include "bench/peers_x86.h"

#define ISA      vnni
#define ISA_NAME "AVX-512 VNNI"
#define LANES    16

typedef __m512 vec;
typedef __m256 partial;

static inline vec fma_vec(vec a, vec b, vec c)
{
    return _mm512_fmadd_ps(a, b, c);
}

static inline vec max_vec(vec a, vec b)
{
    return _mm512_max_ps(a, b);
}

static inline void store_low_bytes(uint8_t *dst, vec v)
{
    _mm_storeu_si128((__m128i_u *)dst, _mm512_cvtepi32_epi8(_mm512_castps_si512(v)));
}

static inline float largest_lane(vec v)
{
    return largest_of_8(_mm256_max_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1)));
}

static inline partial dot_codes(struct codes c, const int8_t *y)
{
    return _mm256_cvtepi32_ps(
        _mm256_dpbusd_epi32(_mm256_setzero_si256(), c.size, signed_like(c, y)));
}

static inline void widen_codes(float *dst, struct codes c, float scale)
{
    const __m512 low = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_castsi256_si128(c.value)));
    const __m512 high =
        _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_extracti128_si256(c.value, 1)));

    _mm512_storeu_ps(dst, _mm512_mul_ps(low, _mm512_set1_ps(scale)));
    _mm512_storeu_ps(dst + 16, _mm512_mul_ps(high, _mm512_set1_ps(scale)));
}

#include "bench/peers_simd.h"
#endif
