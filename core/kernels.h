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
 */
#ifndef TKV_CORE_KERNELS_H
#define TKV_CORE_KERNELS_H

#include "core/types.h"

struct tkv_kernels {
    /* In-place Walsh-Hadamard transform of x[n], unnormalised; n is a power of
     * two, 1 <= n <= 1024. Exact. */
    void (*fwht)(float *x, size_t n);

    /* Sum of x[i]^2 in one fixed order: 16 running sums, then halves folded onto
     * halves. Exact. */
    float (*norm2)(const float *x, size_t n);

    /* Sum of a[i] * b[i]. Close: 2 * n * FLT_EPSILON * sum |a[i] * b[i]|. */
    float (*dot)(const float *a, const float *b, size_t n);

    /* dst[i] = src[i], halves to floats and back (round to nearest even). Exact. */
    void (*f16_to_f32)(float *dst, const uint16_t *src, size_t n);
    void (*f32_to_f16)(uint16_t *dst, const float *src, size_t n);

    /* codes[i] = how many of the ascending edge[n_edges] are <= x[i] * scale, n_edges <= 15: the
     * index of the cell of a quantiser. Not for NaN. Exact. */
    void (*quantise)(uint8_t *codes, const float *x, size_t n, const float *edge, unsigned n_edges,
                     float scale);

    /* dst[i] = lut[codes[i]] * scale for n one-byte codes below 16 and lut[16]. Exact. */
    void (*lookup)(float *dst, const uint8_t *codes, size_t n, const float *lut, float scale);

    /*
     * The same for n codes of w = 1..4 bits packed in planes (core/pack.h), n a multiple
     * of 8: dst[j] = lut[code j] * scale. Exact.
     */
    void (*expand)(float *dst, const uint8_t *planes, size_t n, unsigned w, const float *lut,
                   float scale);

    /* tile[r][t] = lut[code t of row r] * scale[t] for n_rows packed rows of 64 codes. Exact. */
    void (*expand_tile)(float *tile, const uint8_t *rows, size_t n_rows, unsigned w,
                        const float *lut, const float *scale);

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
};

/* Fill *k with the best variants that `cpu` (tkv_cpu_flags) allows; 0 gives the reference. */
void tkv_kernels_init(struct tkv_kernels *k, unsigned cpu);

#endif /* TKV_CORE_KERNELS_H */
