#include "core/block.h"

#include <string.h>

#include "core/half.h"

enum { ROW_BYTES = TKV_BLOCK_TOKENS * sizeof(uint16_t) };

static void place_rest(struct tkv_block_layout *l, size_t values_bytes)
{
    l->positions_offset = l->values_offset + tkv_align(values_bytes, 2);
    l->scores_offset = l->positions_offset + ROW_BYTES;
    l->bytes = tkv_align(l->scores_offset + l->n_score_heads * (size_t)TKV_BLOCK_TOKENS, 64);
}

void tkv_block_layout_init(struct tkv_block_layout *l, const struct tkv_coder *k,
                           const struct tkv_coder *v, uint32_t n_score_heads)
{
    l->k = k;
    l->v = v;
    l->raw_dim = 0;
    l->n_score_heads = n_score_heads;
    /* The codes of both start on a cache line, with all small things between them. */
    l->values_offset = tkv_align(k->k_block_bytes + v->v_codes_offset, 64) - v->v_codes_offset;
    place_rest(l, v->v_block_bytes);
}

void tkv_block_layout_init_latents(struct tkv_block_layout *l, const struct tkv_coder *k,
                                   uint32_t raw_dim)
{
    l->k = l->v = k;
    l->raw_dim = raw_dim;
    l->n_score_heads = 0;
    l->values_offset = tkv_align(k->k_block_bytes, 64);
    place_rest(l, raw_dim * (size_t)ROW_BYTES);
}

/* ---- keys and values ------------------------------------------------------------------------- */

static uint16_t *raw_row(const struct tkv_block_layout *l, const void *block, uint32_t i)
{
    return (uint16_t *)((uintptr_t)block + l->values_offset) + i * (size_t)TKV_BLOCK_TOKENS;
}

void tkv_block_put_raw(const struct tkv_block_layout *l, void *block, const uint16_t *keys,
                       size_t stride, size_t n)
{
    const uint16_t *from = keys + l->k->dim;

    for (uint32_t i = 0; i < l->raw_dim; i++) {
        uint16_t *row = raw_row(l, block, i);

        for (size_t t = 0; t < n; t++)
            row[t] = from[t * stride + i];
        memset(row + n, 0, (TKV_BLOCK_TOKENS - n) * sizeof(*row));
    }
}

void tkv_block_code_query(const struct tkv_block_layout *l, const struct tkv_kernels *kn,
                          const float *q, float *out)
{
    tkv_code_query(l->k, kn, q, out);
    memcpy(out + l->k->tile_dim, q + l->k->dim, l->raw_dim * sizeof(*out));
}

void tkv_block_key_tile(const struct tkv_block_layout *l, const struct tkv_kernels *kn,
                        const void *block, float *tile)
{
    tkv_key_tile(l->k, kn, block, tile);
    if (l->raw_dim > 0)
        tkv_to_f32(kn, tile + l->k->tile_dim * (size_t)TKV_BLOCK_TOKENS, raw_row(l, block, 0),
                   TKV_F16, l->raw_dim * (size_t)TKV_BLOCK_TOKENS);
}

/* Vector types of the compiler, so one source serves every instruction set. */
typedef float float4 __attribute__((vector_size(16)));

static inline float4 load4(const float *x)
{
    float4 v;

    memcpy(&v, x, sizeof(v));
    return v;
}

static inline void store4(float *to, float4 v)
{
    memcpy(to, &v, sizeof(v));
}

/* to[c][r] = from[r][c] of 4 by 4. */
static inline void turn_4x4(const float *from, size_t from_stride, float *to, size_t to_stride)
{
    const float4 a = load4(from), b = load4(from + from_stride);
    const float4 c = load4(from + 2 * from_stride), d = load4(from + 3 * from_stride);
    const float4 ac = __builtin_shufflevector(a, c, 0, 4, 1, 5);
    const float4 bd = __builtin_shufflevector(b, d, 0, 4, 1, 5);
    const float4 ac_high = __builtin_shufflevector(a, c, 2, 6, 3, 7);
    const float4 bd_high = __builtin_shufflevector(b, d, 2, 6, 3, 7);

    store4(to, __builtin_shufflevector(ac, bd, 0, 4, 1, 5));
    store4(to + to_stride, __builtin_shufflevector(ac, bd, 2, 6, 3, 7));
    store4(to + 2 * to_stride, __builtin_shufflevector(ac_high, bd_high, 0, 4, 1, 5));
    store4(to + 3 * to_stride, __builtin_shufflevector(ac_high, bd_high, 2, 6, 3, 7));
}

/* rows[n][dim] = the lanes of tile[dim][64]. */
static void turn_tile(const float *tile, size_t dim, size_t n, float *rows)
{
    const size_t n_whole = n / 4 * 4, dim_whole = dim / 4 * 4;

    /* Rows lie a power of two apart, so that more of them at a time would drive each other out of
     * the cache. */
    for (size_t t = 0; t < n_whole; t += 4)
        for (size_t i = 0; i < dim_whole; i += 4)
            turn_4x4(tile + i * TKV_BLOCK_TOKENS + t, TKV_BLOCK_TOKENS, rows + t * dim + i, dim);
    for (size_t t = 0; t < n; t++)
        for (size_t i = t < n_whole ? dim_whole : 0; i < dim; i++)
            rows[t * dim + i] = tile[i * TKV_BLOCK_TOKENS + t];
}

void tkv_block_value_rows(const struct tkv_block_layout *l, const struct tkv_kernels *kn,
                          const void *block, const float *tile, size_t n, float *rows)
{
    if (l->raw_dim > 0)
        turn_tile(tile, l->k->dim, n, rows);
    else
        tkv_value_rows(l->v, kn, (const uint8_t *)block + l->values_offset, n, rows);
}

void tkv_block_decode_key(const struct tkv_block_layout *l, const struct tkv_kernels *kn,
                          const void *block, size_t t, float *x)
{
    tkv_decode_key(l->k, kn, block, t, x);
    for (uint32_t i = 0; i < l->raw_dim; i++)
        x[l->k->dim + i] = tkv_f16_to_f32(raw_row(l, block, i)[t]);
}

void tkv_block_decode_value(const struct tkv_block_layout *l, const struct tkv_kernels *kn,
                            const void *block, size_t t, float *x)
{
    if (l->raw_dim > 0)
        tkv_decode_key(l->k, kn, block, t, x);
    else
        tkv_decode_value(l->v, kn, (const uint8_t *)block + l->values_offset, t, x);
}

/* ---- gathering -------------------------------------------------------------------------------- */

static void zero_gap(void *block, size_t from, size_t to)
{
    memset((uint8_t *)block + from, 0, to - from);
}

void tkv_block_gather(const struct tkv_block_layout *l, const struct tkv_kernels *kn, void *block,
                      const struct tkv_gather *g)
{
    const size_t values_bytes =
        l->raw_dim > 0 ? l->raw_dim * (size_t)ROW_BYTES : l->v->v_block_bytes;
    const size_t n_score_bytes = l->n_score_heads * (size_t)TKV_BLOCK_TOKENS;

    tkv_gather_keys(l->k, kn, block, g);
    if (l->raw_dim == 0)
        tkv_gather_values(l->v, kn, tkv_block_values(l, block), g, l->values_offset);
    for (uint32_t i = 0; i < l->raw_dim; i++)
        tkv_gather_halves(kn, raw_row(l, block, i), g, l->values_offset + i * (size_t)ROW_BYTES);
    for (size_t at = 0; at < n_score_bytes; at += TKV_BLOCK_TOKENS)
        tkv_gather_bytes(kn, tkv_block_scores(l, block, 0) + at, g, l->scores_offset + at);
    zero_gap(block, l->k->k_block_bytes, l->values_offset);
    zero_gap(block, l->values_offset + values_bytes, l->positions_offset);
    zero_gap(block, l->scores_offset + n_score_bytes, l->bytes);
}
