/* AVX-512 (F, BW, DQ, VL): 16 lanes, tails by mask. */
#if defined(__x86_64__)
#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define ISA       avx512
#define LANES     16
#define GEMM_VECS 4

typedef __m512 vec;
typedef __m512i vec_int;

static inline __mmask16 head_mask(size_t n)
{
    return _cvtu32_mask16((1u << n) - 1);
}

static inline vec load_part(const float *p, size_t n)
{
    return _mm512_maskz_loadu_ps(head_mask(n), p);
}

static inline void store_part(float *p, vec v, size_t n)
{
    _mm512_mask_storeu_ps(p, head_mask(n), v);
}

static inline vec fma_vec(vec a, vec b, vec c)
{
    return _mm512_fmadd_ps(a, b, c);
}

struct table {
    __m512 entry;
};

static inline struct table load_table(const float *lut, float factor)
{
    return (struct table){_mm512_mul_ps(_mm512_loadu_ps(lut), _mm512_set1_ps(factor))};
}

static inline __m512i widen(const uint8_t *bytes)
{
    return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i_u *)bytes));
}

static inline __m512i pairs_of_8(const uint8_t *bytes)
{
    const __m512i shift = _mm512_set_epi32(1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0);
    long long word;

    memcpy(&word, bytes, sizeof(word));
    return _mm512_srlv_epi32(_mm512_cvtepu8_epi32(_mm_set1_epi64x(word)), shift);
}

static inline vec lookup_vec(const struct table *t, __m512i index)
{
    return _mm512_permutexvar_ps(index, t->entry);
}

#include "core/kernels_simd.h"

static __mmask16 up_to_16(size_t n)
{
    return n < 16 ? head_mask(n) : _cvtu32_mask16(0xffff);
}

void tkv_f16_to_f32_avx512(float *dst, const uint16_t *src, size_t n)
{
    for (size_t i = 0; i < n; i += 16) {
        const __mmask16 m = up_to_16(n - i);

        _mm512_mask_storeu_ps(dst + i, m, _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(m, src + i)));
    }
}

void tkv_f32_to_f16_avx512(uint16_t *dst, const float *src, size_t n)
{
    for (size_t i = 0; i < n; i += 16) {
        const __mmask16 m = up_to_16(n - i);

        _mm256_mask_storeu_epi16(
            dst + i, m,
            _mm512_cvtps_ph(_mm512_maskz_loadu_ps(m, src + i), _MM_FROUND_TO_NEAREST_INT));
    }
}
#endif
