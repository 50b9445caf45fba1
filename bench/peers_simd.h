/*
 * The body of the comparison kernels, included by one file for each instruction set, which
 * first defines
 *
 *   ISA, ISA_NAME, LANES   suffix of the names; for people; floats in a vector
 *   vec, fma_vec, max_vec, largest_lane
 *   store_low_bytes(dst, v)   the low byte of every float
 *   struct codes         32 signed bytes; load_codes(bytes), load_nibbles(16 bytes) minus 8
 *   partial, dot_codes(c, bytes)   a vector whose sum is the dot product of two sets of 32 bytes,
 *   add_partial(v)          and that sum
 *   widen_codes(dst, c, scale)   dst[32] = c * scale
 *   half_to_float(bytes), float_to_half(x)
 */
#ifndef TKV_BENCH_PEERS_SIMD_H
#define TKV_BENCH_PEERS_SIMD_H

#include <math.h>
#include <string.h>

#include "bench/peers_priv.h"

#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 8")
#endif

#define PASTE(a, b, c)  a##b##c
#define EXPAND(a, b, c) PASTE(a, b, c)
#define KERNEL(op)      EXPAND(tkv_peer_##op, _, ISA)
#define INLINE          static inline __attribute__((always_inline))

typedef float vec_loose __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t vec_int __attribute__((vector_size(4 * LANES)));
typedef uint8_t bytes16 __attribute__((vector_size(16)));
typedef uint64_t words __attribute__((vector_size(4 * LANES), aligned(8), may_alias));

enum { PER_BLOCK = TKV_PEER_BLOCK / LANES, STEP = TKV_PEER_STEP_TOKENS };

INLINE vec load(const float *p)
{
    return *(const vec_loose *)p;
}

INLINE void store(float *p, vec v)
{
    *(vec_loose *)p = v;
}

INLINE vec all(float x)
{
    return x - (vec){0};
}

uint64_t KERNEL(read)(const void *bytes, size_t n)
{
    const size_t step = sizeof(words);
    const char *p = bytes;
    words sum[8] = {{0}};
    uint64_t total = 0;

    for (; n >= 8 * step; n -= 8 * step, p += 8 * step) {
        UNROLL
        for (size_t i = 0; i < 8; i++)
            sum[i] += *(const words *)(p + i * step);
    }
    for (size_t i = 1; i < 8; i++)
        sum[0] += sum[i];
    for (size_t i = 0; i < step / 8; i++)
        total += sum[0][i];
    return total;
}

/* dst[LANES] = the nearest whole numbers: the low byte of a float made 1.5 * 2^23 larger is that,
 * in two's complement. */
INLINE void store_whole(uint8_t *dst, vec x)
{
    store_low_bytes(dst, x + all(12582912.0f));
}

INLINE void encode_q8(uint8_t *block, const float *x, float *scale)
{
    vec largest = {0};
    float d, inverse;

    for (size_t i = 0; i < PER_BLOCK; i++)
        largest = max_vec(largest, max_vec(load(x + i * LANES), -load(x + i * LANES)));
    d = largest_lane(largest) / 127;
    inverse = d > 0 ? 1 / d : 0;
    *scale = d;
    for (size_t i = 0; i < PER_BLOCK; i++)
        store_whole(block + i * LANES, load(x + i * LANES) * inverse);
}

INLINE void encode_q4(uint8_t *block, const float *x, float *scale)
{
    uint8_t codes[TKV_PEER_BLOCK];
    bytes16 low16, high16;
    vec high = load(x);
    vec low = -load(x);
    float d, inverse;

    for (size_t i = 1; i < PER_BLOCK; i++) {
        high = max_vec(high, load(x + i * LANES));
        low = max_vec(low, -load(x + i * LANES));
    }
    d = largest_lane(high) > largest_lane(low) ? largest_lane(high) / -8 : largest_lane(low) / 8;
    inverse = d != 0 ? 1 / d : 0;
    *scale = d;
    for (size_t i = 0; i < PER_BLOCK; i++) {
        /* min(15, x / d + 8), and then the nearest whole number. */
        const vec v = -max_vec(all(-15), -(load(x + i * LANES) * inverse + 8.0f));

        store_whole(codes + i * LANES, v);
    }
    memcpy(&low16, codes, sizeof(low16));
    memcpy(&high16, codes + sizeof(low16), sizeof(high16));
    low16 |= high16 << 4;
    memcpy(block, &low16, sizeof(low16));
}

void KERNEL(encode)(enum tkv_peer_format f, uint8_t *row, const float *x, uint32_t dim)
{
    const size_t block_bytes = tkv_peer_row_bytes(f, TKV_PEER_BLOCK);

    for (uint32_t i = 0; i < dim; i += TKV_PEER_BLOCK, row += block_bytes) {
        float d;
        uint16_t half;

        if (f == TKV_PEER_Q8_0)
            encode_q8(row + 2, x + i, &d);
        else
            encode_q4(row + 2, x + i, &d);
        half = float_to_half(d);
        memcpy(row, &half, sizeof(half));
    }
}

/* exp(x) for x <= 0: 2^n * e^r with |r| <= ln 2 / 2, e^r by its series to the sixth power. */
INLINE vec exp_vec(vec x)
{
    const vec least = max_vec(x, all(-87));
    const vec n = (least * 1.44269504f + 12582912.0f) - 12582912.0f;
    const vec r = least - n * 0.693359375f + n * 2.12194440e-4f;
    vec p = all(1.0f / 720);
    vec_int power;
    vec scale;

    p = fma_vec(p, r, all(1.0f / 120));
    p = fma_vec(p, r, all(1.0f / 24));
    p = fma_vec(p, r, all(1.0f / 6));
    p = fma_vec(p, r, all(0.5f));
    p = fma_vec(p, r, all(1));
    p = fma_vec(p, r, all(1));
    power = (__builtin_convertvector(n, vec_int) + 127) << 23;
    memcpy(&scale, &power, sizeof(scale));
    return p * scale;
}

INLINE struct codes load_block(enum tkv_peer_format f, const uint8_t *block)
{
    return f == TKV_PEER_Q8_0 ? load_codes(block + 2) : load_nibbles(block + 2);
}

/* Logits of one token for the n queries from `first` on; f and n are constants to the compiler. */
INLINE void dot_row(struct tkv_peer_work *w, const uint8_t *row, enum tkv_peer_format f,
                    size_t n_blocks, size_t first, size_t n, size_t token, float scale)
{
    const size_t block_bytes = tkv_peer_row_bytes(f, TKV_PEER_BLOCK);
    partial sum[4] = {{0}};

    for (size_t b = 0; b < n_blocks; b++, row += block_bytes) {
        const struct codes c = load_block(f, row);
        const float d = half_to_float(row);

        UNROLL
        for (size_t g = 0; g < n; g++)
            sum[g] +=
                dot_codes(c, w->q[first + g] + b * TKV_PEER_BLOCK) * (d * w->q_scale[first + g][b]);
    }
    UNROLL
    for (size_t g = 0; g < n; g++)
        w->logits[first + g][token] = add_partial(sum[g]) * scale;
}

INLINE void logits_of(const struct tkv_peer_head *h, enum tkv_peer_format f, size_t at, size_t n,
                      float scale, struct tkv_peer_work *w)
{
    const size_t row_bytes = tkv_peer_row_bytes(f, h->dim);
    const size_t n_blocks = h->dim / TKV_PEER_BLOCK;

    for (size_t t = 0; t < n; t++) {
        const uint8_t *row = h->k + (at + t) * row_bytes;
        size_t g = 0;

        for (; g + 4 <= h->group; g += 4)
            dot_row(w, row, f, n_blocks, g, 4, t, scale);
        for (; g < h->group; g++)
            dot_row(w, row, f, n_blocks, g, 1, t, scale);
    }
    for (size_t g = 0; g < h->group; g++)
        for (size_t t = n; t < STEP; t++)
            w->logits[g][t] = -INFINITY;
}

/* Logits to weights, and the sums so far to the new maximum. */
INLINE void soften(struct tkv_peer_work *w, size_t g, uint32_t dim)
{
    float *x = w->logits[g];
    vec largest = all(w->max[g]);
    vec sum = {0};
    float max, shrink;

    for (size_t t = 0; t < STEP; t += LANES)
        largest = max_vec(largest, load(x + t));
    max = largest_lane(largest);
    shrink = expf(w->max[g] - max);
    for (size_t t = 0; t < STEP; t += LANES) {
        const vec p = exp_vec(load(x + t) - max);

        store(x + t, p);
        sum += p;
    }
    for (size_t i = 0; i < LANES; i++)
        w->sum[g] = i ? w->sum[g] + sum[i] : w->sum[g] * shrink + sum[0];
    w->max[g] = max;
    if (shrink == 1)
        return;
    for (uint32_t i = 0; i < dim; i += LANES)
        store(w->acc[g] + i, load(w->acc[g] + i) * shrink);
}

INLINE void unpack_values(const struct tkv_peer_head *h, enum tkv_peer_format f, size_t at,
                          size_t n, float *rows)
{
    const size_t block_bytes = tkv_peer_row_bytes(f, TKV_PEER_BLOCK);
    const uint8_t *block = h->v + at * tkv_peer_row_bytes(f, h->dim);
    const size_t n_blocks = n * h->dim / TKV_PEER_BLOCK;

    for (size_t b = 0; b < n_blocks; b++, block += block_bytes)
        widen_codes(rows + b * TKV_PEER_BLOCK, load_block(f, block), half_to_float(block));
}

/* acc[first + g][i ..] += weights * rows, two vectors wide; n is a constant to the compiler. */
INLINE void add_columns(struct tkv_peer_work *w, size_t first, size_t n, size_t i, uint32_t dim,
                        size_t n_tokens)
{
    vec sum[4][2];

    UNROLL
    for (size_t g = 0; g < n; g++) {
        sum[g][0] = load(w->acc[first + g] + i);
        sum[g][1] = load(w->acc[first + g] + i + LANES);
    }
    for (size_t t = 0; t < n_tokens; t++) {
        const vec a = load(w->rows + t * dim + i);
        const vec b = load(w->rows + t * dim + i + LANES);

        UNROLL
        for (size_t g = 0; g < n; g++) {
            const vec p = all(w->logits[first + g][t]);

            sum[g][0] = fma_vec(p, a, sum[g][0]);
            sum[g][1] = fma_vec(p, b, sum[g][1]);
        }
    }
    UNROLL
    for (size_t g = 0; g < n; g++) {
        store(w->acc[first + g] + i, sum[g][0]);
        store(w->acc[first + g] + i + LANES, sum[g][1]);
    }
}

INLINE void add_values(struct tkv_peer_work *w, uint32_t group, uint32_t dim, size_t n_tokens)
{
    size_t g = 0;

    for (; g + 4 <= group; g += 4)
        for (uint32_t i = 0; i < dim; i += 2 * LANES)
            add_columns(w, g, 4, i, dim, n_tokens);
    for (; g < group; g++)
        for (uint32_t i = 0; i < dim; i += 2 * LANES)
            add_columns(w, g, 1, i, dim, n_tokens);
}

INLINE void attend_format(const struct tkv_peer_head *h, enum tkv_peer_format f, float scale,
                          struct tkv_peer_work *w)
{
    for (size_t at = 0; at < h->n_tokens; at += STEP) {
        const size_t n = h->n_tokens - at < STEP ? h->n_tokens - at : STEP;

        logits_of(h, f, at, n, scale, w);
        for (size_t g = 0; g < h->group; g++)
            soften(w, g, h->dim);
        unpack_values(h, f, at, n, w->rows);
        add_values(w, h->group, h->dim, n);
    }
}

void KERNEL(attend)(const struct tkv_peer_head *h, const float *q, float scale, float *out,
                    struct tkv_peer_work *w)
{
    for (uint32_t g = 0; g < h->group; g++) {
        for (uint32_t i = 0; i < h->dim; i += TKV_PEER_BLOCK)
            encode_q8((uint8_t *)w->q[g] + i, q + g * h->dim + i,
                      &w->q_scale[g][i / TKV_PEER_BLOCK]);
        memset(w->acc[g], 0, h->dim * sizeof(float));
        w->max[g] = -INFINITY;
        w->sum[g] = 0;
    }
    if (h->format == TKV_PEER_Q8_0)
        attend_format(h, TKV_PEER_Q8_0, scale, w);
    else
        attend_format(h, TKV_PEER_Q4_0, scale, w);
    for (uint32_t g = 0; g < h->group; g++)
        for (uint32_t i = 0; i < h->dim; i++)
            out[g * h->dim + i] = w->acc[g][i] / w->sum[g];
}

const struct tkv_peer_kernels KERNEL(kernels) = {ISA_NAME, KERNEL(read), KERNEL(encode),
                                                 KERNEL(attend)};

#endif /* TKV_BENCH_PEERS_SIMD_H */
