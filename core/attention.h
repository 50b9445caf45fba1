/*
 * Attention over tiers, each a partial result that merges with the others by the
 * online-softmax rule (Milakov and Gimelshein, arXiv 1805.02867; the partial form
 * is that of FlashAttention, arXiv 2205.14135).
 *
 * One call works on one KV head and its group of query heads. A row is one query:
 * row r = token * group + head_in_group. A partial is, for every row, the maximum
 * m of its logits, the sum l of exp(logit - m), and the unnormalised output.
 *
 * logit(q, k) = scale * <q, k>; with softcap c > 0 it becomes c * tanh(logit / c).
 * A key is seen by a query if its position is not later, and, with a window of w
 * tokens, if it is less than w positions earlier.
 *
 * What a row gets does not depend on the rows beside it, to the bit. A row that sees
 * a logit that is not finite (before the softcap) becomes NaN, and stays so.
 */
#ifndef TKV_CORE_ATTENTION_H
#define TKV_CORE_ATTENTION_H

#include "core/types.h"

struct tkv_kernels;
struct tkv_coder;

struct tkv_attn_params {
    float scale;            /* usually 1 / sqrt(head_dim) */
    float softcap;          /* 0: none */
    uint32_t window_tokens; /* 0: no sliding window */
};

/* The queries of one KV head. */
struct tkv_attn_rows {
    size_t n_tokens;
    uint32_t group;
    const int32_t *positions; /* [n_tokens] */
};

/* A partial result, in the caller's memory. Row count is n_tokens * group. */
struct tkv_partial {
    size_t n_rows;
    uint32_t dim;
    float *max; /* [n_rows] */
    float *sum; /* [n_rows] */
    float *out; /* [n_rows][dim] */
};

/* Bytes a partial of n_rows by dim needs, and its making in such memory (64-byte aligned).
 * It starts empty: max -INFINITY, sum 0, out 0. */
size_t tkv_partial_bytes(size_t n_rows, uint32_t dim);
void tkv_partial_init(struct tkv_partial *p, void *memory, size_t n_rows, uint32_t dim);

/* Attention sinks (a learned logit per query head that has no value, as in gpt-oss):
 * sinks[group] enter every row's max and sum. Call once, on an empty partial. -INFINITY is
 * no sink, another sink that is not finite spoils its rows. */
void tkv_partial_add_sinks(struct tkv_partial *p, const float *sinks, uint32_t group);

/* Bytes of scratch for tkv_attend_* of n_rows rows and this tile size. */
size_t tkv_attend_scratch_bytes(size_t n_rows, uint32_t tile_dim, uint32_t v_dim);

/*
 * Add n <= 64 tokens to a partial. tile[tile_dim][64] and values[n][v_dim] as
 * core/codec.h makes them, q[n_rows][tile_dim] in the same domain, key_positions[n] ascending.
 * Lanes from n on may hold anything.
 * Rows that see none of the tokens are left unchanged.
 */
void tkv_attend_tile(const struct tkv_kernels *kn, const struct tkv_attn_params *a,
                     const struct tkv_attn_rows *rows, const float *q, uint32_t tile_dim,
                     const float *tile, const float *values, const int32_t *key_positions, size_t n,
                     struct tkv_partial *p, void *scratch);

/* Half tokens that are not coded, any number: k[n][k_stride] and v[n][v_stride] (strides in
 * elements, rows of q's dimension tile_dim and p->dim). */
struct tkv_half_rows {
    const uint16_t *k;
    size_t k_stride;
    const uint16_t *v;
    size_t v_stride;
    const int32_t *positions;
    size_t n;
};

/* The same for these; those of runs[1] come behind those of runs[0], also in a tile of both: a tile
 * costs as much with one token as with 64. */
void tkv_attend_half(const struct tkv_kernels *kn, const struct tkv_attn_params *a,
                     const struct tkv_attn_rows *rows, const float *q, uint32_t tile_dim,
                     const struct tkv_half_rows runs[2], struct tkv_partial *p, void *scratch);

/* dst = dst merged with src; both over the same rows, both in the same value domain. */
void tkv_partial_merge(struct tkv_partial *dst, const struct tkv_partial *src);

/* out[n_rows][dim] = the normalised outputs, lse[n_rows] = max + log(sum), sinks included.
 * A row that saw nothing gets 0 and -INFINITY. */
void tkv_partial_finish(const struct tkv_partial *p, float *out, float *lse);

#endif /* TKV_CORE_ATTENTION_H */
