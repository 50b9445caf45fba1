/* AVX-512 with VNNI and VBMI: the kernels on codes, a byte table and a four-way dot product. */
#if defined(__x86_64__)
#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

#define ISA       vnni
#define LANES     16
#define BIAS      64
#define PERIODIC  1
#define OWN_DOTS  0
#define SETTLE(v) ((void)(v))
#define PAIRS     0
#define SLICES_1  4
#define SLICES_2  2
#define SLICES_4  2
#define FIELDS_4  2

static inline __m512 load_part(const float *p, size_t n)
{
    return _mm512_maskz_loadu_ps(_cvtu32_mask16((1u << n) - 1), p);
}

static inline void store_part(float *p, __m512 v, size_t n)
{
    _mm512_mask_storeu_ps(p, _cvtu32_mask16((1u << n) - 1), v);
}

/* 64 entries that repeat, so that the bits above a code choose among equals. */
struct levels {
    __m512i entry;
};

static inline struct levels load_levels(const int8_t *level, unsigned w, int bias)
{
    const __m512i numbers =
        _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
    const __m128i table =
        _mm_add_epi8(_mm_loadu_si128((const __m128i_u *)level), _mm_set1_epi8((char)bias));
    const __m512i from = _mm512_and_si512(numbers, _mm512_set1_epi8((char)((1u << w) - 1)));

    return (struct levels){_mm512_permutexvar_epi8(from, _mm512_broadcast_i32x4(table))};
}

typedef uint32_t words __attribute__((vector_size(64)));
typedef int32_t sums __attribute__((vector_size(64)));

static inline words lookup_levels(const struct levels *t, words bytes)
{
    return (words)_mm512_permutexvar_epi8((__m512i)bytes, t->entry);
}

static inline sums dot4(sums sum, words a, words b)
{
    return (sums)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
}

struct indices {
    words all;
};

static inline struct indices split_indices(words index)
{
    return (struct indices){index};
}

static inline words lookup_64(const uint8_t *table, const struct indices *at)
{
    return (words)_mm512_permutexvar_epi8((__m512i)at->all, _mm512_loadu_si512(table));
}

static inline int32_t sum_words(sums v)
{
    return _mm512_reduce_add_epi32((__m512i)v);
}

#include "core/kernels_codes.h"

#include "core/kernels_trials.h"
#endif
