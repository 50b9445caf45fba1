/* AVX-512 (F, BW, DQ, VL): 16 lanes, tails by mask. */
#if defined(__x86_64__)
#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define ISA       avx512
#define LANES     16
#define GEMM_VECS 4
#define BIAS      64
#define PERIODIC  0
#define OWN_DOTS  0
#define SETTLE(v) ((void)(v))
#define PAIRS     1
#define OWN_EXP2  1
#define SLICES_1  4
#define SLICES_2  2
#define SLICES_4  2
#define FIELDS_4  2
#define OWN_QUANTISE

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

static inline vec load_f16(const void *halves)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256(halves));
}

static inline vec load_bf16(const void *halves)
{
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(halves));

    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
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

static inline vec lookup_vec(const struct table *t, __m512i index)
{
    return _mm512_permutexvar_ps(index, t->entry);
}

static inline __m512i count_below(__m512i n, vec a, vec b)
{
    return _mm512_mask_add_epi32(n, _mm512_cmp_ps_mask(a, b, _CMP_LE_OS), n, _mm512_set1_epi32(1));
}

static inline vec larger(vec a, vec b)
{
    return _mm512_max_ps(a, b);
}

/* 2^t for t <= 0 as 2^k p(f), t = k + f with 0 <= f < 1; p is the polynomial of degree 4 that keeps the
 * largest relative error least, 2.7e-6. scalef takes k out of t, and makes 0 of what is too small. */
static inline vec exp2_weight(vec t)
{
    const __m512 f = _mm512_reduce_ps(t, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    __m512 p = _mm512_set1_ps(1.35341678e-2f);

    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(5.20114601e-2f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.241442755f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.693003833f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0000026f));
    return _mm512_scalef_ps(p, t);
}

struct levels {
    __m512i entry; /* 16 bytes, four times */
};

static inline struct levels load_levels(const int8_t *level, unsigned w, int bias)
{
    const __m128i table = _mm_loadu_si128((const __m128i_u *)level);

    (void)w;
    return (struct levels){_mm512_broadcast_i32x4(_mm_add_epi8(table, _mm_set1_epi8((char)bias)))};
}

typedef uint32_t words __attribute__((vector_size(64)));
typedef int32_t sums __attribute__((vector_size(64)));

static inline words lookup_levels(const struct levels *t, words bytes)
{
    return (words)_mm512_shuffle_epi8(t->entry, (__m512i)bytes);
}

/* Pairs of products fit 16 bits: 127 * 127 * 2. */
static inline sums dot4(sums sum, words a, words b)
{
    const __m512i pairs = _mm512_maddubs_epi16((__m512i)a, (__m512i)b);

    return sum + (sums)_mm512_madd_epi16(pairs, _mm512_set1_epi16(1));
}

static inline sums dot2(sums sum, words a, words b)
{
    return sum + (sums)_mm512_madd_epi16((__m512i)a, (__m512i)b);
}

static inline int32_t sum_words(sums v)
{
    return _mm512_reduce_add_epi32((__m512i)v);
}

/* Packing works in quarters of a vector: words 4 i .. 4 i + 3 end as byte quads i of each. */
static inline void split_units(uint8_t *high, uint8_t *low, const sums *v)
{
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m512i a = _mm512_packus_epi32((__m512i)v[0], (__m512i)v[1]);
    const __m512i b = _mm512_packus_epi32((__m512i)v[2], (__m512i)v[3]);
    const __m512i mask = _mm512_set1_epi16(127);
    const __m512i top = _mm512_packus_epi16(_mm512_srli_epi16(a, 7), _mm512_srli_epi16(b, 7));
    const __m512i rest = _mm512_packus_epi16(_mm512_and_si512(a, mask), _mm512_and_si512(b, mask));

    _mm512_storeu_si512(high, _mm512_permutexvar_epi32(order, top));
    _mm512_storeu_si512(low, _mm512_permutexvar_epi32(order, rest));
}

struct places {
    __m512i from;
    __mmask16 some;
};

static inline struct places load_places(const uint8_t *from)
{
    const __m512i place = widen(from);

    return (struct places){place, _mm512_cmplt_epu32_mask(place, _mm512_set1_epi32(16))};
}

static inline words pick_words(const uint8_t *row, const struct places *p, size_t v)
{
    (void)v;
    return (words)_mm512_maskz_permutexvar_epi32(p->some, p->from, _mm512_loadu_si512(row));
}

static inline words pick_bytes(words row, words places)
{
    return (words)_mm512_shuffle_epi8((__m512i)row, (__m512i)places);
}

/* 16 bytes in every lane that a shuffle looks into. */
static inline words spread_16(const uint8_t *table)
{
    return (words)_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i_u *)table));
}

#include "core/kernels_shuffle.h"
#include "core/kernels_simd.h"

/* ---- cells in 16 bits, twice as many at a time as floats ------------------------------------------ */

struct spans {
    __m512i code, next;
};

/* Cells of numbers in units, rounded down, which moves none over an edge. */
static inline __m512i cells_of_halves(__m512i v, const struct spans *s)
{
    const __m512i span = _mm512_srli_epi16(v, 11);
    const __m512i code = _mm512_permutexvar_epi16(span, s->code);
    const __mmask32 above = _mm512_cmple_epi16_mask(_mm512_permutexvar_epi16(span, s->next), v);

    return _mm512_mask_add_epi16(code, above, code, _mm512_set1_epi16(1));
}

static inline __m512i floor_units(__m512 x)
{
    return _mm512_cvt_roundps_epi32(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
}

/* The codes of x[64], back in their order after two packings of quarters. */
static inline __m512i cells_of_64(const float *x, __m512 scale, const struct spans *s)
{
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m512i low =
        _mm512_packs_epi32(floor_units(load(x) * scale), floor_units(load(x + 16) * scale));
    const __m512i high =
        _mm512_packs_epi32(floor_units(load(x + 32) * scale), floor_units(load(x + 48) * scale));

    return _mm512_permutexvar_epi32(
        order, _mm512_packus_epi16(cells_of_halves(low, s), cells_of_halves(high, s)));
}

void tkv_quantise_avx512(uint8_t *codes, const float *x, size_t n, const struct tkv_cells *cells,
                         unsigned w, float factor)
{
    const struct spans s = {_mm512_loadu_si512(cells->code), _mm512_loadu_si512(cells->next)};
    const __m512 scale = _mm512_set1_ps(factor * TKV_CELL_UNITS);
    float last[64] = {0};
    size_t i = 0;

    if (w == 1) {
        quantise_all(codes, x, n, cells->edge, 1, factor);
        return;
    }
    for (; i + 64 <= n; i += 64)
        _mm512_storeu_si512(codes + i, cells_of_64(x + i, scale, &s));
    if (i == n)
        return;
    memcpy(last, x + i, (n - i) * sizeof(*last));
    _mm512_mask_storeu_epi8(codes + i, _cvtu64_mask64((UINT64_C(1) << (n - i)) - 1),
                            cells_of_64(last, scale, &s));
}

/* ---- halves ------------------------------------------------------------------------------------- */

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

/* Up to 32 halves at dst from the 64 in low and high. */
static void pick_32(uint8_t *dst, __m512i low, __m512i high, const uint8_t *lane, size_t n)
{
    const __mmask32 m = _cvtu32_mask32(n < 32 ? (1u << n) - 1 : 0xffffffffu);
    const __m512i index = _mm512_cvtepu8_epi16(_mm256_maskz_loadu_epi8(m, lane));

    _mm512_mask_storeu_epi16(dst, m, _mm512_permutex2var_epi16(low, index, high));
}

void tkv_pick_halves_avx512(void *dst, const void *src, const uint8_t *lane, size_t n)
{
    const __m512i low = _mm512_loadu_si512(src);
    const __m512i high = _mm512_loadu_si512((const uint8_t *)src + 64);

    pick_32(dst, low, high, lane, n);
    if (n > 32)
        pick_32((uint8_t *)dst + 64, low, high, lane + 32, n - 32);
}

void tkv_pick_bytes_avx512(uint8_t *dst, const uint8_t *src, const uint8_t *lane, size_t n)
{
    const __mmask64 m = _cvtu64_mask64(n < 64 ? (UINT64_C(1) << n) - 1 : UINT64_MAX);
    const struct indices at = split_indices((words)_mm512_maskz_loadu_epi8(m, lane));

    _mm512_mask_storeu_epi8(dst, m, (__m512i)lookup_64(src, &at));
}
#endif
