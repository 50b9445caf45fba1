/*
 * The numeric kernels: one plain C reference each, and faster variants chosen
 * once per process. No kernel allocates, fails, or keeps a pointer.
 *
 * A kernel is exact (every variant gives the same bits) or close (within the
 * stated bound of the C reference). Whatever feeds packed bytes is exact.
 * Inputs and outputs may be unaligned and must not overlap unless said.
 *
 * A tile is what attention works on: TKV_BLOCK_TOKENS tokens across the lanes,
 * one row of 64 floats per coordinate, so that logits need no sum across lanes.
 * With few queries attention works on the codes themselves instead, in integers: code_dots,
 * scale_dots, weigh, code_sums. How codes lie is drawn in core/pack.h.
 */
#ifndef TKV_CORE_KERNELS_H
#define TKV_CORE_KERNELS_H

#include "core/cells.h"
#include "core/types.h"

/* Codes of a section of a block: n coordinates of w bits. Keys have their second 32 tokens
 * `stride` bytes after the first. */
struct tkv_codes {
    const uint8_t *bytes;
    size_t stride;
    size_t n;
    unsigned w;
    const int8_t *level; /* [16] what a code stands for, -63..63; entries that no code has are 0 */
    const uint8_t *next; /* the bytes wanted after these, asked for while these are read; or NULL */
};

/* Blocks that share their softmax weights' unit: what is done once for each of them, or of its
 * rows, costs a quarter. */
enum { TKV_RUN_BLOCKS = 4, TKV_RUN_TOKENS = TKV_RUN_BLOCKS * TKV_BLOCK_TOKENS };

/* Queries as integers, 128 * high + low, both -127..127, in the order in which they are used: of
 * four coordinates in turn, and of each query, the four high parts, then the low ones. Padded with
 * zeros to whole units of codes. */
struct tkv_code_queries {
    const int8_t *bytes;      /* [coordinates / 4][n][2][4] */
    const int16_t *words;     /* [coordinates / 4][n][4]: the same whole, of four numbers 0 2 1 3 */
    const int32_t (*sums)[2]; /* [n] of high and of low: spares some variants their own */
    size_t n;
    bool first; /* nothing was added to the dot products before */
};

/* Where codes of a block's tile come from; a tile is 16 tokens of keys or 4 of values. */
struct tkv_pick {
    const uint8_t *block; /* another block */
    uint8_t tile;         /* of that one */
    uint8_t to;           /* of the new one */
    uint8_t from[16];     /* for each place in the new tile that in the other; over 0x80: none */
};

/* Where a section of n codes of w bits lies in every block; stride as in struct tkv_codes. */
struct tkv_codes_at {
    size_t offset;
    size_t stride;
    size_t n;
    unsigned w;
};

enum { TKV_N_TRIALS = 8 };

struct tkv_kernels {
    /* y[n] = the Walsh-Hadamard transform, unnormalised, of x[i] * factor[i], or of x if factor is
     * NULL; n is a power of two, 1 <= n <= 1024; y may be x, if that has floats. Exact. */
    void (*fwht)(float *y, const void *x, enum tkv_dtype type, const float *factor, size_t n);

    /* sum[i] = sum of x[t][i] * factor over n vectors of dim elements, t ascending, from 0 on. Exact. */
    void (*sum_vectors)(float *sum, const struct tkv_vectors *x, size_t n, size_t dim,
                        float factor);

    /* Sum of x[i]^2 in one fixed order: 16 running sums, then halves folded onto
     * halves. Exact. */
    float (*norm2)(const float *x, size_t n);

    /* Sum of a[i] * b[i]. Close: 2 * n * FLT_EPSILON * sum |a[i] * b[i]|. */
    float (*dot)(const float *a, const float *b, size_t n);

    /* dst[i] = src[i], halves to floats and back (round to nearest even). Exact. */
    void (*f16_to_f32)(float *dst, const uint16_t *src, size_t n);
    void (*f32_to_f16)(uint16_t *dst, const float *src, size_t n);

    /*
     * codes[i] = the cell of x[i] * scale among 2^w, w = 1..4: the number of edges that are not
     * above it. With w > 1, |x[i] * scale| < 2^17. Not for NaN. Exact.
     */
    void (*quantise)(uint8_t *codes, const float *x, size_t n, const struct tkv_cells *cells,
                     unsigned w, float scale);

    /* The same, and how well the levels of the codes fit: fit[0] = sum of x[i] * level[code i],
     * fit[1] = sum of level^2, in the order of norm2. Exact. */
    void (*fit)(uint8_t *codes, const float *x, size_t n, const struct tkv_cells *cells, unsigned w,
                float scale, const float *level, float *fit);

    /*
     * How TKV_N_TRIALS ways to code x[n], n <= TKV_MAX_HEAD_DIM, would fit: with m = |x[i]| * scale
     * rounded to a whole number (halves up) and 127 at most, sums[0][t] = sum of
     * m * level[t][m / 2] and sums[1][t] = sum of level[t][m / 2]^2, levels 0..63.
     * |x[i]| * scale < 2^30. Exact.
     */
    void (*try_scales)(int32_t (*sums)[TKV_N_TRIALS], const float *x, size_t n, float scale,
                       const uint8_t (*level)[64]);

    /*
     * Codes of 8 bits in two halves: with m the largest |x[i]|, high[i] and low[i] are the upper and
     * the lower 4 bits of the whole part of x[i] * (127.5 / m) + 128, which is 0..255. Returns m,
     * which must be 0 (all codes are 128) or over 1e-30. Exact.
     */
    float (*split_bytes)(uint8_t *high, uint8_t *low, const float *x, size_t n);

    /* dst[i] = lut[codes[i]] * scale for n one-byte codes below 16 and lut[16]. Exact. */
    void (*lookup)(float *dst, const uint8_t *codes, size_t n, const float *lut, float scale);

    /* tile[i][t] = lut[code of coordinate i of token t] * scale[t] + mean[i], of a section of keys;
     * mean may be NULL: 0. Exact. */
    void (*key_tile)(float *tile, const struct tkv_codes *codes, const float *lut,
                     const float *scale, const float *mean);

    /* rows[t][i] = the same of a section of values, for t < n_tokens, rows `stride` apart. */
    void (*value_rows)(float *rows, size_t stride, const struct tkv_codes *codes, size_t n_tokens,
                       const float *lut, const float *scale, const float *mean);

    /*
     * Logits of a tile: out[r][t] = sum over i of q[r][i] * tile[i][t], for
     * n_rows queries of dim floats each and 64 tokens; out is [n_rows][64].
     * Close: 2 * dim * FLT_EPSILON * sum |q * tile| for each element.
     */
    void (*logits)(float *out, const float *q, size_t n_rows, const float *tile, size_t dim);

    /*
     * Weighted values: acc[r][i] += sum over t < n_tokens of w[r][t] * rows[t][i];
     * w is [n_rows][64], rows [n_tokens][dim], acc [n_rows][dim].
     * Close: 2 * n_tokens * FLT_EPSILON * (|acc| + sum |w * rows|) for each element.
     */
    void (*accumulate)(float *acc, const float *w, size_t n_rows, const float *rows,
                       size_t n_tokens, size_t dim);

    /*
     * x[i] = exp(x[i] - max) in place, returns their sum; -INFINITY gives exactly
     * 0. Needs x[i] <= max, max finite. Close: relative 4e-7 for each element (an element under
     * 1e-37 may be 0), (4e-7 + n * FLT_EPSILON) * sum for the sum.
     */
    float (*exp_sum)(float *x, size_t n, float max);

    /* dots[r][t] += sum over i of q[r][i] * level[code i of token t], for all queries and 64
     * tokens, or are set to it if q->first; the sums fit 32 bits. Exact. */
    void (*code_dots)(int32_t (*dots)[TKV_BLOCK_TOKENS], const struct tkv_codes *keys,
                      const struct tkv_code_queries *q);

    /* dots[r] = sum over i < n of q[r][i] * level[codes[i]], one code a byte, for all queries; n is a
     * multiple of 64, the sums fit 32 bits, and q->bytes is [q->n][2][n] here. Exact. */
    void (*level_dots)(int32_t *dots, const uint8_t *codes, size_t n, const int8_t *level,
                       const struct tkv_code_queries *q);

    /* x[b][t] = dots[b][t] * (scale[64 b + t] * factor) + offset[b] for the 64 tokens of each of
     * n_blocks <= TKV_RUN_BLOCKS blocks, x and dots `stride` apart; they must not overflow. Returns
     * the largest. Exact. */
    float (*scale_dots)(float *x, const int32_t *dots, size_t stride, size_t n_blocks,
                        const float *scale, float factor, const float *offset);

    /*
     * The logits of one query over a run of n_blocks <= TKV_RUN_BLOCKS blocks, x[b][64] `stride`
     * floats apart, become softmax weights: e = exp(x - max) as in exp_sum, and weights
     * w = e * scale[64 b + t] as integers 128 * high + low, both 0..127, in units of the returned
     * number, the largest w / 16383. sum[b] = the sum of e of a block; -INFINITY gives exactly 0.
     * Needs x <= max, max finite; scale >= 0, finite. Close: sum[b] within 1e-5 of itself, and
     * every weight within 1.001 units + 1e-5 of the largest w; if that is under 1e-30, all are 0.
     */
    float (*weigh)(uint8_t *high, uint8_t *low, const float *x, size_t stride, size_t n_blocks,
                   float max, const float *scale, float *sum);

    /*
     * acc[r][i] += unit[r] * sum over the tokens t of n_blocks <= TKV_RUN_BLOCKS blocks of
     * weight[r][t] * level[code i of token t], for a section of values, the same in each block;
     * weights are high parts and low. The sum is one integer, rounded once. acc rows `stride`
     * apart. Exact.
     */
    void (*code_sums)(float *acc, size_t stride, const struct tkv_codes *values, size_t n_blocks,
                      const uint8_t (*weights)[2][TKV_RUN_TOKENS], const float *unit,
                      size_t n_rows);

    /* sums[0] = sum of x[i] - from, sums[1] = sum of (x[i] - from)^2, in doubles and the order of
     * norm2. Exact. */
    void (*moments)(double *sums, const float *x, size_t n, double from);

    /* dst[i] = the larger of itself and (x[i] - mean) * scale, computed in doubles and rounded;
     * itself if that is not a number. Exact. */
    void (*fold_scores)(float *dst, const float *x, size_t n, double mean, double scale);

    /* dst[i] = x[i] + (base + step * codes[i]). Exact. */
    void (*add_steps)(float *dst, const float *x, const uint8_t *codes, size_t n, float base,
                      float step);

    /* How many of keys[n] are at least `least`. Exact. */
    size_t (*count_from)(const uint32_t *keys, size_t n, uint32_t least);

    /* A section of the keys or of the values of block dst: every token's codes as picks say,
     * which are ascending in `to`, at most one for each token; the rest of the section becomes
     * zero. Exact. */
    void (*pick_keys)(uint8_t *dst, const struct tkv_codes_at *at, const struct tkv_pick *picks,
                      size_t n_picks);
    void (*pick_values)(uint8_t *dst, const struct tkv_codes_at *at, const struct tkv_pick *picks,
                        size_t n_picks);

    /* dst[i] = half lane[i] < 64 of the 64 at src, for n <= 64; src and dst at any address. Exact. */
    void (*pick_halves)(void *dst, const void *src, const uint8_t *lane, size_t n);

    /* The same of bytes. Exact. */
    void (*pick_bytes)(uint8_t *dst, const uint8_t *src, const uint8_t *lane, size_t n);
};

/* Fill *k with the best variants that `cpu` (tkv_cpu_flags) allows; 0 gives the reference. */
void tkv_kernels_init(struct tkv_kernels *k, unsigned cpu);

#endif /* TKV_CORE_KERNELS_H */
