/*
 * The body of the SIMD kernels, written once with the compilers' vector types and
 * included by one file for each instruction set, which first defines
 *
 *   ISA          suffix of the kernel names: avx2, avx512, neon
 *   LANES        floats in a vector: 4, 8, 16
 *   GEMM_VECS    vectors of columns in the largest register block, beside 4 rows
 *   vec, fma_vec(a, b, c), load_part(p, n), store_part(p, v, n)
 *   vec_int, widen(bytes)
 *   struct table, load_table(lut, factor), lookup_vec(table, indices below 16)
 *   PAIRS_OF_8   if LANES is 16: pairs_of_8(bytes), lane l = byte l % 8 >> l / 8
 *
 * and which defines the half conversions itself. "Part" functions touch the first
 * n < LANES floats only; the lanes beyond are 0.
 */
#ifndef TKV_CORE_KERNELS_SIMD_H
#define TKV_CORE_KERNELS_SIMD_H

#include <math.h>
#include <string.h>

#include "core/kernels_priv.h"

/* Before loops of a constant count whose sums must stay in registers. */
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

#define PASTE(a, b, c)  a##b##c
#define EXPAND(a, b, c) PASTE(a, b, c)
#define KERNEL(op)      EXPAND(tkv_##op, _, ISA)
#define INLINE          static inline __attribute__((always_inline))

typedef uint32_t vec_u32 __attribute__((vector_size(4 * LANES)));
typedef uint8_t vec_u8 __attribute__((vector_size(LANES)));
typedef float vec_unaligned __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

INLINE vec load(const float *p)
{
    return *(const vec_unaligned *)p;
}

INLINE void store(float *p, vec v)
{
    *(vec_unaligned *)p = v;
}

INLINE vec all(float x)
{
    return x - (vec){0};
}

INLINE vec load_n(const float *p, size_t n)
{
    return n >= LANES ? load(p) : load_part(p, n);
}

INLINE void store_n(float *p, vec v, size_t n)
{
    if (n >= LANES)
        store(p, v);
    else
        store_part(p, v, n);
}

INLINE float add_lanes(vec v)
{
    float s[LANES];

    store(s, v);
    for (size_t half = LANES / 2; half; half /= 2)
        for (size_t i = 0; i < half; i++)
            s[i] += s[i + half];
    return s[0];
}

/* Lane i of PARTNERS(h) is i ^ h. */
#define PARTNERS4(h, i) (i) ^ (h), ((i) + 1) ^ (h), ((i) + 2) ^ (h), ((i) + 3) ^ (h)
#define PARTNERS8(h, i) PARTNERS4(h, i), PARTNERS4(h, (i) + 4)
#define PARTNERS16(h)   PARTNERS8(h, 0), PARTNERS8(h, 8)
#if LANES == 4
#define PARTNERS(h) PARTNERS4(h, 0)
#elif LANES == 8
#define PARTNERS(h) PARTNERS8(h, 0)
#else
#define PARTNERS(h) PARTNERS16(h)
#endif

/* 0x80000000 in lanes with bit h set: those that hold the b of a butterfly. */
INLINE vec_u32 second_of_pair(unsigned h)
{
    vec_u32 sign = {0};

    for (unsigned i = 0; i < LANES; i++)
        sign[i] = i & h ? 0x80000000u : 0;
    return sign;
}

/* One stage inside a vector: partner + (+-self), the same sums as a + b and a - b. */
#define STAGE_IN(v, h) \
    (__builtin_shufflevector(v, v, PARTNERS(h)) + (vec)((vec_u32)(v) ^ second_of_pair(h)))

INLINE vec stages_in(vec v)
{
    v = STAGE_IN(v, 1);
    v = STAGE_IN(v, 2);
#if LANES >= 8
    v = STAGE_IN(v, 4);
#endif
#if LANES >= 16
    v = STAGE_IN(v, 8);
#endif
    return v;
}

/* Stages h and 2h of the four vectors that are h apart. */
INLINE void two_stages(float *x, size_t h)
{
    const vec a = load(x), b = load(x + h), c = load(x + 2 * h), d = load(x + 3 * h);
    const vec ab = a + b, ab_ = a - b, cd = c + d, cd_ = c - d;

    store(x, ab + cd);
    store(x + h, ab_ + cd_);
    store(x + 2 * h, ab - cd);
    store(x + 3 * h, ab_ - cd_);
}

void KERNEL(fwht)(float *x, size_t n)
{
    size_t h = LANES;

    if (n < LANES) {
        tkv_fwht_c(x, n);
        return;
    }
    for (size_t i = 0; i < n; i += LANES)
        store(x + i, stages_in(load(x + i)));
    for (; 4 * h <= n; h *= 4)
        for (size_t i = 0; i < n; i += 4 * h)
            for (size_t j = i; j < i + h; j += LANES)
                two_stages(x + j, h);
    for (size_t j = 0; h < n && j < h; j += LANES) {
        const vec a = load(x + j), b = load(x + h + j);

        store(x + j, a + b);
        store(x + h + j, a - b);
    }
}

float KERNEL(norm2)(const float *x, size_t n)
{
    vec sum[16 / LANES] = {{0}};
    float s[16];

    for (size_t i = 0; i < n; i += 16) {
        UNROLL
        for (size_t v = 0; v < 16 / LANES; v++) {
            const size_t at = i + v * LANES;
            const vec a = at < n ? load_n(x + at, n - at) : (vec){0};

            sum[v] += a * a;
        }
    }
    for (size_t v = 0; v < 16 / LANES; v++)
        store(s + v * LANES, sum[v]);
    return tkv_fold16(s);
}

float KERNEL(dot)(const float *a, const float *b, size_t n)
{
    vec sum[4] = {{0}};
    size_t i = 0;

    for (; i + 4 * LANES <= n; i += 4 * LANES)
        UNROLL
    for (size_t v = 0; v < 4; v++)
        sum[v] = fma_vec(load(a + i + v * LANES), load(b + i + v * LANES), sum[v]);
    for (; i < n; i += LANES)
        sum[0] = fma_vec(load_n(a + i, n - i), load_n(b + i, n - i), sum[0]);
    return add_lanes((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

void KERNEL(quantise)(uint8_t *codes, const float *x, size_t n, const float *edge, unsigned n_edges,
                      float scale)
{
    for (size_t i = 0; i < n; i += LANES) {
        const size_t left = n - i;
        const vec t = load_n(x + i, left) * scale;
        vec_u32 code = {0};
        vec_u8 bytes;

        for (unsigned e = 0; e < n_edges; e++)
            code -= (vec_u32)(all(edge[e]) <= t);
        bytes = __builtin_convertvector(code, vec_u8);
        memcpy(codes + i, &bytes, left < LANES ? left : LANES);
    }
}

/* Up to LANES bytes as integers; no byte from n on is read. */
INLINE vec_u32 bytes_at(const uint8_t *p, size_t n)
{
    uint8_t padded[LANES];

    if (n >= LANES)
        return (vec_u32)widen(p);
    for (size_t i = 0; i < LANES; i++)
        padded[i] = i < n ? p[i] : 0;
    return (vec_u32)widen(padded);
}

/* The table is scaled, not each result: the same products, so the same bits. */
void KERNEL(lookup)(float *dst, const uint8_t *codes, size_t n, const float *lut, float scale)
{
    const struct table table = load_table(lut, scale);

    for (size_t i = 0; i < n; i += LANES)
        store_n(dst + i, lookup_vec(&table, (vec_int)bytes_at(codes + i, n - i)), n - i);
}

/*
 * Lane l = byte j % m of a 1-bit plane of m bytes, shifted by j / m, j = i + l < 2m. Bit
 * 2k of it belongs to the code that has bits 2k and 2k + 1 of byte j of a 2-bit plane.
 */
INLINE vec_u32 bits_at(const uint8_t *plane, size_t m, size_t i)
{
    uint8_t bits[LANES];

#if LANES == 16
    if (m == 8)
        return (vec_u32)pairs_of_8(plane);
#endif
    if (i + LANES <= m)
        return (vec_u32)widen(plane + i);
    if (i >= m && i + LANES <= 2 * m)
        return (vec_u32)widen(plane + i - m) >> 1;
    for (size_t j = i; j < i + LANES; j++)
        bits[j - i] = (uint8_t)(j < m ? plane[j] : j < 2 * m ? plane[j - m] >> 1 : 0);
    return (vec_u32)widen(bits);
}

/*
 * Up to LANES bytes from byte i on of the first plane of n codes, and the codes that
 * are in them: w = 4 goes in steps of its plane, 2 and 3 in steps of the 2-bit plane, and
 * an odd width takes one more bit from a 1-bit plane (as if w = 1 had an empty one
 * before it). scale may be NULL.
 */
INLINE void expand_step(float *dst, const uint8_t *planes, size_t n, const unsigned w,
                        const struct table *table, const float *scale, size_t i, size_t left)
{
    const unsigned b = w == 4 ? 4 : 2, n_fields = 8 / b;
    const size_t m = n * b / 8;
    const uint8_t *ones = planes + (w == 3 ? m : 0);
    const vec_u32 bytes = w == 1 ? (vec_u32){0} : bytes_at(planes + i, left);
    const vec_u32 bits = w % 2 ? bits_at(ones, m / 2, i) : (vec_u32){0};

    UNROLL
    for (unsigned k = 0; k < n_fields; k++) {
        const size_t j = k * m + i;
        vec_u32 code = bytes >> (k * b) & ((1u << b) - 1);
        vec x;

        if (w % 2)
            code |= (bits >> (2 * k) & 1) << (w - 1);
        x = lookup_vec(table, (vec_int)code);
        if (scale)
            x *= load_n(scale + j, left);
        store_n(dst + j, x, left);
    }
}

INLINE void expand_codes(float *dst, const uint8_t *planes, size_t n, const unsigned w,
                         const struct table *table, const float *scale)
{
    const size_t m = n * (w == 4 ? 4 : 2) / 8;
    size_t i = 0;

    for (; i + LANES <= m; i += LANES)
        expand_step(dst, planes, n, w, table, scale, i, LANES);
    if (i < m)
        expand_step(dst, planes, n, w, table, scale, i, m - i);
}

void KERNEL(expand)(float *dst, const uint8_t *planes, size_t n, unsigned w, const float *lut,
                    float scale)
{
    const struct table table = load_table(lut, scale);

    switch (w) {
    case 1: expand_codes(dst, planes, n, 1, &table, NULL); break;
    case 2: expand_codes(dst, planes, n, 2, &table, NULL); break;
    case 3: expand_codes(dst, planes, n, 3, &table, NULL); break;
    default: expand_codes(dst, planes, n, 4, &table, NULL); break;
    }
}

INLINE void expand_rows(float *tile, const uint8_t *rows, size_t n_rows, const unsigned w,
                        const float *lut, const float *scale)
{
    const struct table table = load_table(lut, 1);

    for (size_t r = 0; r < n_rows; r++)
        expand_codes(tile + r * TKV_BLOCK_TOKENS, rows + r * (TKV_BLOCK_TOKENS / 8 * w),
                     TKV_BLOCK_TOKENS, w, &table, scale);
}

void KERNEL(expand_tile)(float *tile, const uint8_t *rows, size_t n_rows, unsigned w,
                         const float *lut, const float *scale)
{
    switch (w) {
    case 1: expand_rows(tile, rows, n_rows, 1, lut, scale); break;
    case 2: expand_rows(tile, rows, n_rows, 2, lut, scale); break;
    case 3: expand_rows(tile, rows, n_rows, 3, lut, scale); break;
    default: expand_rows(tile, rows, n_rows, 4, lut, scale); break;
    }
}

/*
 * exp(d) for d <= 0: d = k ln 2 + r with |r| <= ln(2) / 2, and exp(r) by Taylor's
 * polynomial of degree 7, whose remainder r^8 / 8! is below 6e-9. ln 2 is taken in
 * two parts, the first short enough that k times it is exact. k comes out of the low
 * bits of d / ln 2 + 1.5 * 2^23, where a float's unit is 1. Below -87, where exp is
 * under 1.7e-38 and 2^k would leave the normal range, the result is 0.
 */
INLINE vec exp_vec(vec d)
{
    const vec_u32 keep = ~(vec_u32)(d < all(-87.0f));
    const vec shifted = d * 1.44269504f + 0x1.8p23f;
    const vec k = shifted - 0x1.8p23f;
    const vec scale = (vec)(((vec_u32)shifted << 23) + 0x3f800000u);
    vec r = fma_vec(k, all(-0.693359375f), d);
    vec p = all(1.0f / 5040);

    r = fma_vec(k, all(2.12194440e-4f), r);
    p = fma_vec(p, r, all(1.0f / 720));
    p = fma_vec(p, r, all(1.0f / 120));
    p = fma_vec(p, r, all(1.0f / 24));
    p = fma_vec(p, r, all(1.0f / 6));
    p = fma_vec(p, r, all(0.5f));
    p = fma_vec(p, r, all(1.0f));
    p = fma_vec(p, r, all(1.0f));
    return (vec)((vec_u32)(p * scale) & keep);
}

float KERNEL(exp_sum)(float *x, size_t n, float max)
{
    vec sum = {0};
    float last[LANES];
    size_t i = 0;

    for (; i + LANES <= n; i += LANES) {
        const vec e = exp_vec(load(x + i) - max);

        store(x + i, e);
        sum += e;
    }
    if (i < n) {
        for (size_t l = 0; l < LANES; l++)
            last[l] = i + l < n ? x[i + l] : -INFINITY;
        sum += exp_vec(load(last) - max);
        store_part(x + i, exp_vec(load(last) - max), n - i);
    }
    return add_lanes(sum);
}

#include "core/kernels_gemm.h"

#endif /* TKV_CORE_KERNELS_SIMD_H */
