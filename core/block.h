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

struct tkv_block_layout {
    const struct tkv_coder *k;
    const struct tkv_coder *v;
    uint32_t n_score_heads; /* the group, or 0 if the method keeps no norm terms */
    size_t values_offset;
    size_t positions_offset;
    size_t scores_offset;
    size_t bytes; /* multiple of 64 */
};

void tkv_block_layout_init(struct tkv_block_layout *l, const struct tkv_coder *k,
                           const struct tkv_coder *v, uint32_t n_score_heads);

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

/* The norm terms of one query head of the group, [64] halves. */
static inline uint16_t *tkv_block_scores(const struct tkv_block_layout *l, void *block,
                                         uint32_t head_in_group)
{
    return (uint16_t *)(void *)((uint8_t *)block + l->scores_offset) +
           (size_t)head_in_group * TKV_BLOCK_TOKENS;
}

/* Fill a block with tokens of other blocks of this layout, which have the same means. Every byte is
 * written, but for the positions. */
void tkv_block_gather(const struct tkv_block_layout *l, const struct tkv_kernels *kn, void *block,
                      const struct tkv_gather *g);

#endif /* TKV_CORE_BLOCK_H */
