/*
 * Attention of few query rows straight from codes, in integers: logits from the codes of keys,
 * online softmax block by block, weighted sums of the codes of values. What core/attention.h does
 * over tiles of floats, which is better for many rows; the results merge with its partials.
 *
 * A query is an integer of 14 bits and a sign (two of 8 bits) for each rotated coordinate, in units
 * of its largest / 16319: its rounding moves a logit by less than |q|_inf / 32638 * |k|_1. The
 * weights of a run of blocks are integers of 14 bits in units of the largest / 16383. Both
 * sums are exact in 32 bits, so that all instruction sets agree.
 *
 * A run is skipped for a row if its largest logit is over TKV_FUSED_SKIP = 24 under the largest
 * of the row so far. The sum of weights is at least 1 at that point, so that n skipped tokens
 * change the row by at most n * exp(-24) * (|v|_max + |out|), and its lse by n * exp(-24),
 * 5e-6 for 128 k tokens if all of them were just below the limit. Of the other runs, the values of
 * a block are read if some row has a weight there that is not rounded to zero.
 */
#ifndef TKV_CORE_FUSED_H
#define TKV_CORE_FUSED_H

#include "core/attention.h"
#include "core/codec.h"
#include "core/kernels.h"

#define TKV_FUSED_SKIP 24.0f

/* Whether keys and values of these coders can be attended to so. */
bool tkv_fused_keys(const struct tkv_coder *k);
bool tkv_fused_values(const struct tkv_coder *v);

/* Queries of one KV head made ready. All pointers are into the caller's memory. */
struct tkv_fused {
    const struct tkv_kernels *kn;
    const struct tkv_coder *k;
    size_t n_rows;
    const float *q;                    /* [n_rows][tile_dim], as tkv_code_query made them; a view */
    int8_t *bytes;                     /* [n_slots / 4][n_rows][2][4] */
    int16_t *words;                    /* [n_slots / 4][n_rows][4] */
    int32_t (*sums)[2];                /* [section][n_rows] */
    float *step;                       /* [n_rows] */
    int8_t *mean_bytes;                /* [n_rows][2][mean_slots]: what means are multiplied with */
    int32_t (*mean_sums)[2];           /* [n_rows] */
    float *mean_step;                  /* [n_rows] */
    int32_t *mean_dots;                /* [n_rows] */
    size_t mean_slots;                 /* coordinates padded to a multiple of 64 */
    int32_t (*dots)[TKV_BLOCK_TOKENS]; /* [TKV_RUN_BLOCKS][n_rows] */
    float (*x)[TKV_BLOCK_TOKENS];      /* the same */
    float (*offset)[TKV_RUN_BLOCKS];   /* [n_rows] what the means of keys add */
    float (*mass)[TKV_BLOCK_TOKENS];   /* [n_rows] weights of each block, added up */
    uint8_t (*weights)[2][TKV_RUN_TOKENS];
    float *unit; /* [n_rows] */
};

/* Bytes of memory (64-byte aligned) for n_rows queries, and their making ready. */
size_t tkv_fused_bytes(const struct tkv_coder *k, size_t n_rows);
void tkv_fused_init(struct tkv_fused *f, const struct tkv_kernels *kn, const struct tkv_coder *k,
                    size_t n_rows, const float *q, void *memory);

/* f->x[r][t] = factor * <query r, key t> of a block; max[r] = the largest of 64 lanes, NaN if
 * they may overflow (max may be NULL). `next` is the block asked about after it, brought near
 * meanwhile, or NULL. The lanes that hold no token have what the mean alone gives. */
void tkv_fused_logits(struct tkv_fused *f, const void *keys, const void *next, float factor,
                      float *max);

/* A block of n tokens at ascending positions; NULL: all rows see all of them. `next` is the block
 * that will be worked on after it, brought near meanwhile; or NULL. */
struct tkv_fused_block {
    const void *keys, *values;
    const void *next_keys, *next_values;
    const int32_t *positions;
    size_t n;
};

/* Add a run of n_blocks <= TKV_RUN_BLOCKS to a partial in v's rotated domain, its rows as in
 * tkv_attend_tile. */
void tkv_fused_attend(struct tkv_fused *f, const struct tkv_coder *v,
                      const struct tkv_attn_params *a, const struct tkv_attn_rows *rows,
                      const struct tkv_fused_block *blocks, size_t n_blocks, struct tkv_partial *p);

enum { TKV_FUSED_MAX_ROWS = 64 };

#endif /* TKV_CORE_FUSED_H */
