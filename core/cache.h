/*
 * What attention needs to know of one layer's cache, wherever the bytes lie: in the daemon's own
 * mapping of an arena or in that of a client, who both compute with the same code and get the
 * same bits. Nothing in here owns anything.
 */
#ifndef TKV_CORE_CACHE_H
#define TKV_CORE_CACHE_H

#include "core/attention.h"
#include "core/block.h"
#include "core/types.h"

struct tkv_kernels;

/* The cold blocks of a KV head, ascending in position. */
struct tkv_head {
    struct tkv_block *blocks;
    uint32_t n_blocks, cap_blocks;
    uint32_t n_cold; /* tokens in them */
};

/* A run of half tokens: K [n_kv_heads][cap][head_dim_k], V likewise, if they are not latents. The
 * pointers are those of the first token held. */
struct tkv_half_run {
    const uint16_t *k;
    const uint16_t *v;
    const int32_t *positions;
    uint32_t n;
    uint32_t cap;
};

struct tkv_cache {
    const struct tkv_kernels *kn;
    uint8_t *base; /* of the mapping that blocks have their offsets in; only read */
    struct tkv_shape shape;
    struct tkv_attn_params attn;
    const float *sinks;                   /* [n_q_heads], or NULL */
    const struct tkv_block_layout *tiers; /* [n_tiers] layouts of blocks, which share the
                                           * rotated domain; all of them made */
    uint32_t n_tiers;
    struct tkv_half_run pinned;
    struct tkv_half_run tail;
    const struct tkv_head *heads; /* [n_kv_heads] */
};

static inline void *tkv_cache_at(const struct tkv_cache *c, struct tkv_block_id id)
{
    return c->base + tkv_block_offset(id);
}

/* Queries of a layer and where their results go. */
struct tkv_queries {
    uint32_t n_tokens;
    enum tkv_dtype dtype;
    const int32_t *positions; /* [n_tokens], increasing */
    const void *q;            /* [n_tokens][n_q_heads][head_dim_k] */
    float *out;               /* [n_tokens][n_q_heads][head_dim_v] */
    float *lse;               /* [n_tokens][n_q_heads], or NULL */
};

/* Attention in memory of tkv_cache_attend_bytes() from the caller, so that it cannot fail; the same
 * bits whatever `exec` is. The memory does for any part of n_tokens, which may be appended meanwhile. */
size_t tkv_cache_attend_bytes(const struct tkv_cache *c, uint32_t n_tokens);
void tkv_cache_attend(const struct tkv_cache *c, const struct tkv_queries *q, void *memory,
                      const struct tkv_exec *exec);

/* The first value of q that is not a finite number of at most 65504, or how many there are. */
size_t tkv_cache_check_queries(const struct tkv_cache *c, const struct tkv_queries *q);

/* Tokens first .. first + n_tokens - 1 of those that a KV head keeps, in order of position. */
struct tkv_cache_read {
    uint32_t kv_head;
    uint64_t first;
    uint32_t n_tokens;
    enum tkv_dtype dtype; /* TKV_F32 or TKV_F16 */
    int32_t *positions;   /* [n_tokens] */
    void *k;              /* a token every k_stride elements */
    void *v;
    size_t k_stride, v_stride;
};

uint64_t tkv_cache_n_kept(const struct tkv_cache *c, uint32_t kv_head);

/* Decode them; they must be there. */
void tkv_cache_read(const struct tkv_cache *c, const struct tkv_cache_read *r);

/* True if these are the halves that were appended, to the bit. */
bool tkv_cache_is_exact(const struct tkv_cache *c, const struct tkv_cache_read *r);

#endif /* TKV_CORE_CACHE_H */
