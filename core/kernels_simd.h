/*
 * The body of the SIMD kernels, written once with the compilers' vector types and
 * included by one file for each instruction set, which first defines
 *
 *   GEMM_VECS    vectors of columns in the largest register block, beside 4 rows
 *   vec, fma_vec(a, b, c), load_part(p, n), store_part(p, v, n)
 *   load_f16(p), load_bf16(p)   LANES halves at any address as floats
 *   vec_int, widen(bytes)
 *   struct table, load_table(lut, factor), lookup_vec(table, indices below 16)
 *   count_below(n, a, b)   n + 1 where a <= b, else n
 *   split_units(high, low, v)   bits 7 and up, and those below, of 4 vectors, a byte for each number;
 *                  all under 2^14
 *   OWN_EXP2       1 if exp2_weight is defined, see below
 *
 * and what core/kernels_codes.h, core/kernels_picks.h and core/kernels_trials.h want. It defines the half conversions itself. "Part" functions
 * touch the first n < LANES floats only; the lanes beyond are 0.
 */
#ifndef TKV_CORE_KERNELS_SIMD_H
#define TKV_CORE_KERNELS_SIMD_H

#include <math.h>
#include <string.h>

#include "core/half.h"
#include "core/kernels_codes.h"

typedef uint8_t vec_u8 __attribute__((vector_size(LANES)));
typedef float vec_unaligned __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef float vec_anywhere __attribute__((vector_size(4 * LANES), aligned(1), may_alias));
typedef int32_t ints_unaligned __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

INLINE vec load(const float *p)
{
    return *(const vec_unaligned *)p;
}

/* LANES elements of x from i on. */
INLINE vec load_as(const void *x, const enum tkv_dtype type, size_t i)
{
    const uint8_t *from = (const uint8_t *)x + i * tkv_dtype_bytes(type);

    if (type == TKV_F16)
        return load_f16(from);
    if (type == TKV_BF16)
        return load_bf16(from);
    return *(const vec_anywhere *)(const void *)from;
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

/* Every lane and the one h away, so that after all halves each has the result. */
#define FOLD_STEP(op, v, h) op(v, __builtin_shufflevector(v, v, PARTNERS(h)))

INLINE vec plus(vec a, vec b)
{
    return a + b;
}

/* Halves folded onto halves. */
INLINE float add_lanes(vec v)
{
#if LANES == 16
    v = FOLD_STEP(plus, v, 8);
#endif
#if LANES >= 8
    v = FOLD_STEP(plus, v, 4);
#endif
    v = FOLD_STEP(plus, v, 2);
    v = FOLD_STEP(plus, v, 1);
    return v[0];
}

INLINE float max_lane(vec v)
{
#if LANES == 16
    v = FOLD_STEP(larger, v, 8);
#endif
#if LANES >= 8
    v = FOLD_STEP(larger, v, 4);
#endif
    v = FOLD_STEP(larger, v, 2);
    v = FOLD_STEP(larger, v, 1);
    return v[0];
}

/* -1 in lanes with bit h set, those that hold the b of a butterfly, else 1. */
INLINE vec sides(unsigned h)
{
    vec side = {0};

    for (unsigned i = 0; i < LANES; i++)
        side[i] = i & h ? -1.0f : 1.0f;
    return side;
}

/* One stage inside a vector: self * (+-1) + partner, rounded once: the same as a + b and a - b. */
#define STAGE_IN(v, h) fma_vec(v, sides(h), __builtin_shufflevector(v, v, PARTNERS(h)))

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

/* The stages inside n_vecs vectors from element `at` on, then those between them. */
INLINE void first_stages(float *y, const void *x, const enum tkv_dtype type, const float *factor,
                         size_t at, const size_t n_vecs)
{
    vec v[8];

    UNROLL
    for (size_t i = 0; i < n_vecs; i++) {
        v[i] = load_as(x, type, at + i * LANES);
        if (factor)
            v[i] *= load(factor + at + i * LANES);
        v[i] = stages_in(v[i]);
    }
    UNROLL
    for (size_t h = 1; h < n_vecs; h *= 2) {
        UNROLL
        for (size_t i = 0; i < n_vecs; i++) {
            const vec a = v[i & ~h], b = v[i | h];

            if (i & h)
                continue;
            v[i] = a + b;
            v[i | h] = a - b;
        }
    }
    UNROLL
    for (size_t i = 0; i < n_vecs; i++)
        store(y + at + i * LANES, v[i]);
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

/* Stages from h on. */
INLINE void other_stages(float *y, size_t n, size_t h)
{
    for (; 4 * h <= n; h *= 4)
        for (size_t i = 0; i < n; i += 4 * h)
            for (size_t j = i; j < i + h; j += LANES)
                two_stages(y + j, h);
    for (size_t j = 0; h < n && j < h; j += LANES) {
        const vec a = load(y + j), b = load(y + h + j);

        store(y + j, a + b);
        store(y + h + j, a - b);
    }
}

INLINE void fwht_all(float *y, const void *x, const enum tkv_dtype type, const float *factor,
                     size_t n)
{
    if (n < 4 * LANES) {
        for (size_t i = 0; i < n; i += LANES)
            first_stages(y, x, type, factor, i, 1);
        other_stages(y, n, LANES);
    } else if (n == 4 * LANES) {
        first_stages(y, x, type, factor, 0, 4);
    } else {
        for (size_t i = 0; i < n; i += 8 * LANES)
            first_stages(y, x, type, factor, i, 8);
        other_stages(y, n, 8 * LANES);
    }
}

void KERNEL(fwht)(float *y, const void *x, enum tkv_dtype type, const float *factor, size_t n)
{
    if (n < LANES || (!factor && type != TKV_F32)) /* halves come to be rotated, with signs */
        tkv_fwht_c(y, x, type, factor, n);
    else if (!factor)
        fwht_all(y, x, TKV_F32, NULL, n);
    else if (type == TKV_F32)
        fwht_all(y, x, TKV_F32, factor, n);
    else if (type == TKV_F16)
        fwht_all(y, x, TKV_F16, factor, n);
    else
        fwht_all(y, x, TKV_BF16, factor, n);
}

/* n_vecs vectors of sums, from element i on. */
INLINE void sum_columns(float *sum, const struct tkv_vectors *x, const enum tkv_dtype type,
                        size_t n, size_t i, float factor, const size_t n_vecs)
{
    const size_t row_bytes = x->stride * tkv_dtype_bytes(type);
    const uint8_t *row = x->x;
    vec s[8];

    UNROLL
    for (size_t v = 0; v < n_vecs; v++)
        s[v] = (vec){0};
    for (size_t t = 0; t < n; t++, row += row_bytes) {
        UNROLL
        for (size_t v = 0; v < n_vecs; v++)
            s[v] += load_as(row, type, i + v * LANES) * factor;
    }
    UNROLL
    for (size_t v = 0; v < n_vecs; v++)
        store(sum + i + v * LANES, s[v]);
}

INLINE void sum_all(float *sum, const struct tkv_vectors *x, const enum tkv_dtype type, size_t n,
                    size_t dim, float factor)
{
    size_t i = 0;

    for (; i + 8 * LANES <= dim; i += 8 * LANES)
        sum_columns(sum, x, type, n, i, factor, 8);
    for (; i + LANES <= dim; i += LANES)
        sum_columns(sum, x, type, n, i, factor, 1);
    for (; i < dim; i++) {
        sum[i] = 0;
        for (size_t t = 0; t < n; t++)
            sum[i] += tkv_element(tkv_vectors_from(*x, t).x, type, i) * factor;
    }
}

void KERNEL(sum_vectors)(float *sum, const struct tkv_vectors *x, size_t n, size_t dim,
                         float factor)
{
    switch (x->type) {
    case TKV_F16: sum_all(sum, x, TKV_F16, n, dim, factor); break;
    case TKV_BF16: sum_all(sum, x, TKV_BF16, n, dim, factor); break;
    default: sum_all(sum, x, TKV_F32, n, dim, factor); break;
    }
}

/* The end of 16 running sums, as tkv_fold16 has it. */
INLINE float fold_sums(const vec *sum)
{
#if LANES == 16
    return add_lanes(sum[0]);
#elif LANES == 8
    return add_lanes(sum[0] + sum[1]);
#else
    return add_lanes((sum[0] + sum[2]) + (sum[1] + sum[3]));
#endif
}

float KERNEL(norm2)(const float *x, size_t n)
{
    vec sum[16 / LANES] = {{0}};
    size_t i = 0;

    for (; i + 16 <= n; i += 16)
        UNROLL
    for (size_t v = 0; v < 16 / LANES; v++) {
        const vec a = load(x + i + v * LANES);

        sum[v] += a * a;
    }
    UNROLL
    for (size_t v = 0; v < 16 / LANES; v++) {
        const size_t at = i + v * LANES;
        const vec a = at < n ? load_n(x + at, n - at) : (vec){0};

        sum[v] += a * a;
    }
    return fold_sums(sum);
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

/* A search tree, and its first three edges for all lanes. */
struct tree {
    struct table edge;
    vec root, lower, upper;
};

INLINE struct tree load_tree(const float *edge)
{
    return (struct tree){load_table(edge, 1), all(edge[1]), all(edge[2]), all(edge[3])};
}

INLINE vec_u32 count(vec_u32 n, vec edge, vec t)
{
    return (vec_u32)count_below((vec_int)n, edge, t);
}

/* Down the search tree: the cells of t among 2^w. The first two levels in one, since a step waits
 * for the one before. */
INLINE vec_u32 cells_of(vec t, const struct tree *tree, const unsigned w)
{
    vec_u32 node = count((vec_u32){0} + (w == 1 ? 2 : 4), tree->root, t);

    if (w >= 2)
        node = count(count(node, tree->lower, t), tree->upper, t);
    UNROLL
    for (unsigned level = 2; level < w; level++)
        node = count(node + node, lookup_vec(&tree->edge, (vec_int)node), t);
    return node - (1u << w);
}

INLINE void store_codes(uint8_t *codes, vec_u32 code, size_t left)
{
    const vec_u8 bytes = __builtin_convertvector(code, vec_u8);

    if (left >= LANES)
        memcpy(codes, &bytes, LANES);
    else
        memcpy(codes, &bytes, left);
}

INLINE void quantise_all(uint8_t *codes, const float *x, size_t n, const float *edge,
                         const unsigned w, float scale)
{
    const struct tree tree = load_tree(edge);
    size_t i = 0;

    for (; i + LANES <= n; i += LANES)
        store_codes(codes + i, cells_of(load(x + i) * scale, &tree, w), LANES);
    if (i < n)
        store_codes(codes + i, cells_of(load_part(x + i, n - i) * scale, &tree, w), n - i);
}

#ifndef OWN_QUANTISE
void KERNEL(quantise)(uint8_t *codes, const float *x, size_t n, const struct tkv_cells *cells,
                      unsigned w, float scale)
{
    switch (w) {
    case 1: quantise_all(codes, x, n, cells->edge, 1, scale); break;
    case 2: quantise_all(codes, x, n, cells->edge, 2, scale); break;
    case 3: quantise_all(codes, x, n, cells->edge, 3, scale); break;
    default: quantise_all(codes, x, n, cells->edge, 4, scale); break;
    }
}
#endif

INLINE vec size_of(vec x)
{
    return (vec)((vec_u32)x & 0x7fffffffu);
}

INLINE void split_vec(uint8_t *high, uint8_t *low, vec x, float units, size_t n)
{
    const vec_u32 code = (vec_u32) __builtin_convertvector(x * units + 128, vec_i32);

    store_codes(high, code >> 4, n);
    store_codes(low, code & 15, n);
}

float KERNEL(split_bytes)(uint8_t *high, uint8_t *low, const float *x, size_t n)
{
    const size_t whole = n - n % LANES;
    vec most = {0};
    float largest, units;

    for (size_t i = 0; i < n; i += LANES)
        most = larger(most, size_of(load_n(x + i, n - i)));
    largest = max_lane(most);
    units = largest > 0 ? 127.5f / largest : 0;
    for (size_t i = 0; i < whole; i += LANES)
        split_vec(high + i, low + i, load(x + i), units, LANES);
    if (whole < n)
        split_vec(high + whole, low + whole, load_part(x + whole, n - whole), units, n - whole);
    return largest;
}

/* The codes of up to LANES floats, and their part of the sums. */
INLINE void fit_vec(uint8_t *codes, vec x, size_t left, const struct tree *tree,
                    const struct table *levels, const unsigned w, float scale, vec *product,
                    vec *square)
{
    const vec_u32 code = cells_of(x * scale, tree, w);
    vec y = lookup_vec(levels, (vec_int)code);
    float s[LANES];

    store_codes(codes, code, left);
    if (left < LANES) { /* beyond them x is 0, but its level is not */
        store(s, y);
        y = load_part(s, left);
    }
    *product += x * y;
    *square += y * y;
}

INLINE void fit_all(uint8_t *codes, const float *x, size_t n, const float *edge, const unsigned w,
                    float scale, const float *level, float *fit)
{
    const struct tree tree = load_tree(edge);
    const struct table levels = load_table(level, 1);
    vec product[16 / LANES] = {{0}}, square[16 / LANES] = {{0}};
    size_t i = 0;

    for (; i + 16 <= n; i += 16)
        UNROLL
    for (size_t v = 0; v < 16 / LANES; v++)
        fit_vec(codes + i + v * LANES, load(x + i + v * LANES), LANES, &tree, &levels, w, scale,
                &product[v], &square[v]);
    UNROLL
    for (size_t v = 0; v < 16 / LANES; v++) {
        const size_t at = i + v * LANES;

        if (at < n)
            fit_vec(codes + at, load_n(x + at, n - at), n - at, &tree, &levels, w, scale,
                    &product[v], &square[v]);
    }
    fit[0] = fold_sums(product);
    fit[1] = fold_sums(square);
}

void KERNEL(fit)(uint8_t *codes, const float *x, size_t n, const struct tkv_cells *cells,
                 unsigned w, float scale, const float *level, float *fit)
{
    switch (w) {
    case 1: fit_all(codes, x, n, cells->edge, 1, scale, level, fit); break;
    case 2: fit_all(codes, x, n, cells->edge, 2, scale, level, fit); break;
    case 3: fit_all(codes, x, n, cells->edge, 3, scale, level, fit); break;
    default: fit_all(codes, x, n, cells->edge, 4, scale, level, fit); break;
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
    vec p, r2, high, low;

    /* In pairs, for a short chain: (1 + r) + r^2 ((1/2 + r/6) + r^2 ((1/24 + r/120) + ...)) */
    r = fma_vec(k, all(2.12194440e-4f), r);
    r2 = r * r;
    high = fma_vec(r2, fma_vec(r, all(1.0f / 5040), all(1.0f / 720)),
                   fma_vec(r, all(1.0f / 120), all(1.0f / 24)));
    low = fma_vec(r, all(1.0f / 6), all(0.5f));
    p = fma_vec(r2, fma_vec(r2, high, low), r + 1.0f);
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

float KERNEL(scale_dots)(float *x, const int32_t *dots, size_t stride, size_t n_blocks,
                         const float *scale, float factor, const float *offset)
{
    vec max = all(-INFINITY);

    for (size_t b = 0; b < n_blocks; b++) {
        UNROLL
        for (size_t t = 0; t < TKV_BLOCK_TOKENS; t += LANES) {
            const vec_i32 d = *(const ints_unaligned *)(dots + b * stride + t);
            const vec v = __builtin_convertvector(d, vec_f32) *
                              (load(scale + b * TKV_BLOCK_TOKENS + t) * factor) +
                          all(offset[b]);

            store(x + b * stride + t, v);
            max = larger(max, v);
        }
    }
    return max_lane(max);
}

#if !OWN_EXP2
/*
 * 2^t for t <= 0, as 2^k p(f) with t = k + f, |f| <= 1/2. p is the polynomial of degree 4 that keeps
 * the largest relative error least, 2.7e-6: weights need no more. k comes out of the low bits of t +
 * 1.5 * 2^23, where a float's unit is 1. Where 2^k would leave the normal range, the result is 0.
 */
INLINE vec exp2_weight(vec t)
{
    const vec_u32 keep = ~(vec_u32)(t < all(-126.0f));
    const vec shifted = t + 0x1.8p23f;
    const vec f = t - (shifted - 0x1.8p23f), f2 = f * f;
    const vec middle = fma_vec(f, all(5.59178591e-2f), all(0.240247443f));
    const vec low = fma_vec(f, all(0.693121791f), all(0.999999285f));
    const vec p = fma_vec(f2, fma_vec(f2, all(9.57010221e-3f), middle), low);

    return (vec)(((vec_u32)p + ((vec_u32)shifted << 23)) & keep);
}
#endif

/* w[64] = exp(x - max) * scale of a block; returns the largest lanes so far, *sum the exponentials'. */
INLINE vec weigh_block(float *w, const float *x, float max, const float *scale, vec most,
                       float *sum)
{
    vec total = {0};

    UNROLL
    for (size_t i = 0; i < TKV_BLOCK_TOKENS; i += LANES) {
        const vec e = exp2_weight((load(x + i) - max) * 1.44269504f);
        const vec scaled = e * load(scale + i);

        total += e;
        store(w + i, scaled);
        most = larger(most, scaled);
    }
    *sum = add_lanes(total);
    return most;
}

float KERNEL(weigh)(uint8_t *high, uint8_t *low, const float *x, size_t stride, size_t n_blocks,
                    float max, const float *scale, float *sum)
{
    float w[TKV_RUN_TOKENS] __attribute__((aligned(64)));
    vec most = {0};
    float largest, inverse;

    for (size_t b = 0; b < n_blocks; b++) {
        const size_t at = b * TKV_BLOCK_TOKENS;

        most = weigh_block(w + at, x + b * stride, max, scale + at, most, sum + b);
    }
    largest = max_lane(most);
    inverse = largest >= TKV_LEAST_WEIGHT ? TKV_WEIGHT_UNITS / largest : 0;
    for (size_t i = 0; i < n_blocks * TKV_BLOCK_TOKENS; i += 4 * LANES) {
        vec_i32 units[4];

        UNROLL
        for (size_t v = 0; v < 4; v++)
            units[v] = __builtin_convertvector(
                fma_vec(load(w + i + v * LANES), all(inverse), all(0.5f)), vec_i32);
        split_units(high + i, low + i, units);
    }
    return largest * (1 / TKV_WEIGHT_UNITS);
}

#include "core/kernels_gemm.h"
#include "core/kernels_picks.h"
#include "core/kernels_scores.h"
#include "core/kernels_tiles.h"
#include "core/kernels_trials.h"

#endif /* TKV_CORE_KERNELS_SIMD_H */
