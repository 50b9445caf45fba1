/* How attention over a cache is cut up, and the working memory of a piece. */
#ifndef TKV_CORE_CACHE_PRIV_H
#define TKV_CORE_CACHE_PRIV_H

#include "core/cache.h"

/* The working memory of a range of one KV head, laid out in one piece. */
struct tkv_work {
    struct tkv_partial *cold;
    struct tkv_partial *half; /* this and what else says so: of the first range alone */
    float *q;                 /* [rows][head_dim_k] as it came */
    float *coded;             /* [rows][tile_dim] */
    float *tile;              /* [tile_dim][64], for rows too many to be attended to in codes */
    float *values;            /* [64][head_dim_v], the same */
    float *out;               /* [rows][head_dim_v], first range */
    float *lse;               /* [rows], first range */
    void *cold_memory;
    void *half_memory;
    void *scratch; /* of tiles */
    void *fused;
    size_t bytes;
};

/* What all tiers have in common: rotation, and the dimensions of a tile. */
static inline const struct tkv_block_layout *tkv_cache_any_tier(const struct tkv_cache *c)
{
    return &c->tiers[0];
}

/* Whether so many rows are attended to in the codes. */
bool tkv_cache_is_fused(const struct tkv_cache *c, size_t n_rows);

/* How many of n_tokens are worked on at once. */
uint32_t tkv_cache_batch(const struct tkv_cache *c, uint32_t n_tokens);

/* Cold tokens of the longest head. */
uint32_t tkv_cache_longest(const struct tkv_cache *c);

/* In how many ranges n_cold tokens are attended to by batches of so many tokens. */
uint32_t tkv_cache_ranges(const struct tkv_cache *c, uint64_t n_cold, uint32_t batch_tokens);

/* Carve the working memory of a head's range out of base; with base NULL, only learn its size. */
struct tkv_work tkv_work_layout(const struct tkv_cache *c, uint32_t batch_tokens, uint32_t range,
                                uint8_t *base);

#endif /* TKV_CORE_CACHE_PRIV_H */
