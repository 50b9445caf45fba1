/* What the two files of AVX2 give to the kernels on codes: everything but the dot product. */
#ifndef TKV_CORE_AVX2_CODES_H
#define TKV_CORE_AVX2_CODES_H

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

#define LANES     8
#define BIAS      64
#define PERIODIC  0
#define OWN_DOTS  0
#define SETTLE(v) __asm__("" : "+x"(v))

/* Eight words from entry 8 - n on: n of all ones, then zeros. */
static const int32_t head_mask[16] = {-1, -1, -1, -1, -1, -1, -1, -1};

static inline __m256i mask_of(size_t n)
{
    return _mm256_loadu_si256((const __m256i_u *)(head_mask + 8 - n));
}

static inline __m256 load_part(const float *p, size_t n)
{
    return _mm256_maskload_ps(p, mask_of(n));
}

static inline void store_part(float *p, __m256 v, size_t n)
{
    _mm256_maskstore_ps(p, mask_of(n), v);
}

struct levels {
    __m256i entry; /* 16 bytes, twice */
};

static inline struct levels load_levels(const int8_t *level, unsigned w, int bias)
{
    const __m128i table = _mm_loadu_si128((const __m128i_u *)level);

    (void)w;
    return (struct levels){
        _mm256_broadcastsi128_si256(_mm_add_epi8(table, _mm_set1_epi8((char)bias)))};
}

typedef uint32_t words __attribute__((vector_size(32)));
typedef int32_t sums __attribute__((vector_size(32)));

static inline words lookup_levels(const struct levels *t, words bytes)
{
    return (words)_mm256_shuffle_epi8(t->entry, (__m256i)bytes);
}

static inline int32_t sum_words(sums v)
{
    const __m128i low = _mm256_castsi256_si128((__m256i)v);
    __m128i sum = _mm_add_epi32(low, _mm256_extracti128_si256((__m256i)v, 1));

    sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4e));
    sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xb1));
    return _mm_cvtsi128_si32(sum);
}

static inline words pick_bytes(words row, words places)
{
    return (words)_mm256_shuffle_epi8((__m256i)row, (__m256i)places);
}

/* 16 bytes in every lane that a shuffle looks into. */
static inline words spread_16(const uint8_t *table)
{
    return (words)_mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i_u *)table));
}

#include "core/kernels_shuffle.h"

#endif /* TKV_CORE_AVX2_CODES_H */
