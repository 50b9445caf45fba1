/* AVX2 with FMA and F16C: 8 lanes, tails by the masked moves. */
#if defined(__x86_64__)
#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "core/avx2_codes.h"

#define ISA       avx2
#define GEMM_VECS 2 /* 8 sums, 2 columns and a weight of 16 registers */
#define PAIRS     1
#define OWN_EXP2  0
#define SLICES_1  4
#define SLICES_2  2
#define SLICES_4  2
#define FIELDS_4  2

typedef __m256 vec;
typedef __m256i vec_int;

static inline vec fma_vec(vec a, vec b, vec c)
{
    return _mm256_fmadd_ps(a, b, c);
}

static inline vec load_f16(const void *halves)
{
    return _mm256_cvtph_ps(_mm_loadu_si128(halves));
}

static inline vec load_bf16(const void *halves)
{
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(halves));

    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}

struct table {
    __m256 low, high;
};

static inline struct table load_table(const float *lut, float factor)
{
    const __m256 f = _mm256_set1_ps(factor);

    return (struct table){_mm256_mul_ps(_mm256_loadu_ps(lut), f),
                          _mm256_mul_ps(_mm256_loadu_ps(lut + 8), f)};
}

static inline __m256i widen(const uint8_t *bytes)
{
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i_u *)bytes));
}

/* Both halves are looked up by the low three bits; bit 3, moved to the sign, chooses. */
static inline vec lookup_vec(const struct table *t, __m256i index)
{
    const __m256 choose = _mm256_castsi256_ps(_mm256_slli_epi32(index, 28));

    return _mm256_blendv_ps(_mm256_permutevar8x32_ps(t->low, index),
                            _mm256_permutevar8x32_ps(t->high, index), choose);
}

static inline __m256i count_below(__m256i n, vec a, vec b)
{
    return _mm256_sub_epi32(n, _mm256_castps_si256(_mm256_cmp_ps(a, b, _CMP_LE_OS)));
}

static inline vec larger(vec a, vec b)
{
    return _mm256_max_ps(a, b);
}

/* Pairs of products fit 16 bits: 127 * 127 * 2. */
static inline sums dot4(sums sum, words a, words b)
{
    const __m256i pairs = _mm256_maddubs_epi16((__m256i)a, (__m256i)b);

    return sum + (sums)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}

static inline sums dot2(sums sum, words a, words b)
{
    return sum + (sums)_mm256_madd_epi16((__m256i)a, (__m256i)b);
}

/* Packing works in halves of a vector: words 4 i .. 4 i + 3 end as byte quads i of each. */
static inline void split_units(uint8_t *high, uint8_t *low, const sums *v)
{
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    const __m256i a = _mm256_packus_epi32((__m256i)v[0], (__m256i)v[1]);
    const __m256i b = _mm256_packus_epi32((__m256i)v[2], (__m256i)v[3]);
    const __m256i mask = _mm256_set1_epi16(127);
    const __m256i top = _mm256_packus_epi16(_mm256_srli_epi16(a, 7), _mm256_srli_epi16(b, 7));
    const __m256i rest = _mm256_packus_epi16(_mm256_and_si256(a, mask), _mm256_and_si256(b, mask));

    _mm256_storeu_si256((__m256i_u *)high, _mm256_permutevar8x32_epi32(top, order));
    _mm256_storeu_si256((__m256i_u *)low, _mm256_permutevar8x32_epi32(rest, order));
}

/* Words 0 .. 7 of a new row, then 8 .. 15. */
struct places {
    __m256i from[2];
    __m256i second[2]; /* sign: from words 8 .. 15 */
    __m256i none[2];
};

static inline struct places load_places(const uint8_t *from)
{
    struct places p;

    for (int v = 0; v < 2; v++) {
        p.from[v] = widen(from + 8 * v);
        p.second[v] = _mm256_slli_epi32(p.from[v], 28);
        p.none[v] = _mm256_cmpgt_epi32(p.from[v], _mm256_set1_epi32(15));
    }
    return p;
}

static inline words pick_words(const uint8_t *row, const struct places *p, size_t v)
{
    const __m256i low = _mm256_loadu_si256((const __m256i_u *)row);
    const __m256i high = _mm256_loadu_si256((const __m256i_u *)(row + 32));
    const __m256 both =
        _mm256_blendv_ps(_mm256_castsi256_ps(_mm256_permutevar8x32_epi32(low, p->from[v])),
                         _mm256_castsi256_ps(_mm256_permutevar8x32_epi32(high, p->from[v])),
                         _mm256_castsi256_ps(p->second[v]));

    return (words)_mm256_andnot_si256(p->none[v], _mm256_castps_si256(both));
}

#include "core/kernels_simd.h"

void tkv_f16_to_f32_avx2(float *dst, const uint16_t *src, size_t n)
{
    size_t i = 0;

    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(dst + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i_u *)(src + i))));
    for (; i < n; i++)
        dst[i] = _cvtsh_ss(src[i]);
}

void tkv_f32_to_f16_avx2(uint16_t *dst, const float *src, size_t n)
{
    size_t i = 0;

    for (; i + 8 <= n; i += 8)
        _mm_storeu_si128((__m128i_u *)(dst + i),
                         _mm256_cvtps_ph(_mm256_loadu_ps(src + i), _MM_FROUND_TO_NEAREST_INT));
    for (; i < n; i++)
        dst[i] = _cvtss_sh(src[i], _MM_FROUND_TO_NEAREST_INT);
}

/* Nothing moves halves between lanes by index: the reference, compiled here. */
void tkv_pick_halves_avx2(void *dst, const void *src, const uint8_t *lane, size_t n)
{
    for (size_t i = 0; i < n; i++)
        memcpy((uint8_t *)dst + 2 * i, (const uint8_t *)src + 2 * (size_t)lane[i], 2);
}

void tkv_pick_bytes_avx2(uint8_t *dst, const uint8_t *src, const uint8_t *lane, size_t n)
{
    for (size_t i = 0; i < n; i++)
        dst[i] = src[lane[i]];
}
#endif
