/*
 * A cold block: up to 64 tokens of one KV head of one layer, in a fixed amount of shared
 * memory. Its form is that of proto/shm_layout.h. Blocks are written once, before anyone
 * else can see them, and never changed.
 */
#ifndef TKV_CORE_BLOCK_H
#define TKV_CORE_BLOCK_H

#include "core/codec.h"
#include "core/types.h"

/* A block's place, valid while it is referred to: its offset / 64, then 28 bits of its slab. */
struct tkv_block_id {
    uint64_t place;
};

enum { TKV_SLAB_BITS = 28 };

static inline uint64_t tkv_block_offset(struct tkv_block_id id)
{
    return (id.place >> TKV_SLAB_BITS) * 64;
}

/* An entry of a KV head's table, in private memory. */
struct tkv_block {
    struct tkv_block_id id;
    int32_t first_position;
    uint16_t n_tokens;
    uint16_t tier; /* which of the layer's layouts it has */
};

/*
 * Keys, values, positions, norm terms. Of latents: codes of the latents as those of keys, then, in the
 * place of values, their raw coordinates [raw_dim][64], halves as they came.
 */
struct tkv_block_layout {
    const struct tkv_coder *k;
    const struct tkv_coder *v; /* of latents the same */
    uint32_t raw_dim;          /* of latents, else 0 */
    uint32_t n_score_heads;    /* the group, or 0 if the method keeps no norm terms */
    size_t values_offset;
    size_t positions_offset;
    size_t scores_offset;
    size_t bytes; /* multiple of 64 */
};

void tkv_block_layout_init(struct tkv_block_layout *l, const struct tkv_coder *k,
                           const struct tkv_coder *v, uint32_t n_score_heads);

/* Of latents of k->dim, and raw_dim coordinates beside them. */
void tkv_block_layout_init_latents(struct tkv_block_layout *l, const struct tkv_coder *k,
                                   uint32_t raw_dim);

/* Bytes of keys and values in a block. */
static inline size_t tkv_block_k_bytes(const struct tkv_block_layout *l)
{
    return l->k->k_block_bytes + l->raw_dim * (size_t)TKV_BLOCK_TOKENS * sizeof(uint16_t);
}

static inline size_t tkv_block_v_bytes(const struct tkv_block_layout *l)
{
    return l->raw_dim > 0 ? 0 : l->v->v_block_bytes;
}

/* Rows of a tile of whole keys. */
static inline uint32_t tkv_block_tile_dim(const struct tkv_block_layout *l)
{
    return l->k->tile_dim + l->raw_dim;
}

/* The span of positions one block can hold. */
enum { TKV_BLOCK_SPAN = 0xffff };

static inline void *tkv_block_values(const struct tkv_block_layout *l, void *block)
{
    return (uint8_t *)block + l->values_offset;
}

static inline uint16_t *tkv_block_positions(const struct tkv_block_layout *l, void *block)
{
    return (uint16_t *)(void *)((uint8_t *)block + l->positions_offset);
}

/* The norm terms of one query head of the group, [64], as core/ruler.h codes them. */
static inline uint8_t *tkv_block_scores(const struct tkv_block_layout *l, void *block,
                                        uint32_t head_in_group)
{
    return (uint8_t *)block + l->scores_offset + (size_t)head_in_group * TKV_BLOCK_TOKENS;
}

/* The raw coordinates of n latents, the last of keys[n][stride]. */
void tkv_block_put_raw(const struct tkv_block_layout *l, void *block, const uint16_t *keys,
                       size_t stride, size_t n);

/* What core/codec.h has for keys and values alone, for both kinds of blocks: out[tile_dim] of a whole
 * query; a tile of whole keys; from that, or from the block, n value rows; keys and values decoded. */
void tkv_block_code_query(const struct tkv_block_layout *l, const struct tkv_kernels *kn,
                          const float *q, float *out);
void tkv_block_key_tile(const struct tkv_block_layout *l, const struct tkv_kernels *kn,
                        const void *block, float *tile);
void tkv_block_value_rows(const struct tkv_block_layout *l, const struct tkv_kernels *kn,
                          const void *block, const float *tile, size_t n, float *rows);
void tkv_block_decode_key(const struct tkv_block_layout *l, const struct tkv_kernels *kn,
                          const void *block, size_t t, float *x);
void tkv_block_decode_value(const struct tkv_block_layout *l, const struct tkv_kernels *kn,
                            const void *block, size_t t, float *x);

/* Fill a block with tokens of other blocks of this layout, which have the same means. Every byte is
 * written, but for the positions. */
void tkv_block_gather(const struct tkv_block_layout *l, const struct tkv_kernels *kn, void *block,
                      const struct tkv_gather *g);

#endif /* TKV_CORE_BLOCK_H */
