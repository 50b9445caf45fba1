/* How a session looks inside. Only store/ and its tests include this. */
#ifndef TKV_STORE_SESSION_PRIV_H
#define TKV_STORE_SESSION_PRIV_H

#include "store/arena.h"
#include "store/block.h"
#include "store/session.h"

/* One KV head of a layer: its cold blocks, ascending in position. */
struct tkv_head {
    struct tkv_block *blocks;
    uint32_t n_blocks, cap_blocks;
    uint32_t n_cold; /* tokens in them */
};

/* A run of half tokens: K [n_kv_heads][cap][head_dim_k], V likewise, in one allocation. */
struct tkv_half_tier {
    uint16_t *k;
    uint16_t *v;
    int32_t *positions; /* [cap] */
    float *scores;      /* [n_q_heads][cap] norm terms; NULL if the method needs none */
    void *memory;
    size_t bytes;
    uint32_t n, cap;
};

struct tkv_layer {
    struct tkv_layer_config config;
    float *sinks;        /* own copy of config.sinks */
    float *norm_weights; /* [n_q_heads][n_bands], or NULL */
    struct tkv_block_layout layout;
    struct tkv_half_tier pinned;
    struct tkv_half_tier tail;
    struct tkv_head *heads; /* [n_kv_heads] */
    uint64_t n_seen;
    uint32_t n_rounds;
    int32_t last_position; /* -1 before the first token */
};

struct tkv_session {
    struct tkv_budget *budget;
    const struct tkv_kernels *kn;
    struct tkv_session_config config; /* layers and rope point to own copies */
    struct tkv_rope rope;
    struct tkv_tri_fold fold;
    struct tkv_layer *layers;
    struct tkv_coder *coders; /* one per distinct (codec, dim) */
    size_t coders_bytes;
    uint32_t n_coders;
    struct tkv_arena *arena;
    size_t own_bytes; /* private memory: half tiers, tables, coders */
    uint64_t generation;
    uint64_t n_evicted; /* (token, layer, KV head) triples */
};

/* Zeroed memory that counts as the session's own; NULL over the cap. */
void *tkv_session_alloc(struct tkv_session *s, size_t bytes);
void tkv_session_free(struct tkv_session *s, void *p, size_t bytes);

static inline uint32_t tkv_layer_warm(const struct tkv_session *s, const struct tkv_layer *l)
{
    return l->tail.n > s->config.recent_tokens ? l->tail.n - s->config.recent_tokens : 0;
}

static inline bool tkv_layer_full(const struct tkv_layer *l)
{
    return l->tail.n == l->tail.cap;
}

/* True if all layers must hold their rounds together. */
static inline bool tkv_session_couples_layers(const struct tkv_session *s)
{
    return s->config.method == TKV_METHOD_TRIATTENTION &&
           s->config.eviction_mode != TKV_PER_LAYER_PERHEAD;
}

/* store/check.c: 0, or what is wrong with a config, field and layer named. */
int tkv_session_check(const struct tkv_session_config *c, struct tkv_report *why);

/* store/tail.c: n tokens of halves [n][n_kv_heads][dim] and their positions enter the pinned tier or
 * the tail, which have room. x holds the same tokens in the request's own type. */
struct tkv_half_tokens {
    const uint16_t *k;
    const uint16_t *v;
    const void *exact_k; /* for the norm terms */
    enum tkv_dtype dtype;
    const int32_t *positions;
    uint32_t n;
};
void tkv_layer_push(const struct tkv_session *s, struct tkv_layer *l,
                    const struct tkv_half_tokens *t, const struct tkv_exec *exec);

/* The first warm tokens leave the tail. */
void tkv_tail_drop(struct tkv_half_tier *t, const struct tkv_shape *shape, uint32_t n);

/* store/attend.c: attention of the queries of step (out, lse) at the given positions, in memory of
 * tkv_attend_bytes() from the caller, so that it cannot fail. */
size_t tkv_attend_bytes(const struct tkv_layer *l, uint32_t n_tokens);
void tkv_layer_attend(const struct tkv_session *s, const struct tkv_layer *l,
                      const struct tkv_step *step, const int32_t *positions, void *memory,
                      const struct tkv_exec *exec);

/*
 * store/round.c. Rounds are prepared before a request changes anything: arena blocks, tables and
 * working memory for the rounds that n_new more tokens (the last at last_position) can
 * cause in layer l, or in all layers if l is NULL or layers are coupled. Then running them cannot
 * fail. Release gives the working memory and unused blocks back.
 */
struct tkv_round_memory {
    void *base;
    size_t bytes;
};
int tkv_round_prepare(struct tkv_session *s, struct tkv_layer *l, uint32_t n_new,
                      int32_t last_position, struct tkv_round_memory *m, struct tkv_report *why);
void tkv_round_run(struct tkv_session *s, struct tkv_layer *l, const struct tkv_round_memory *m,
                   const struct tkv_exec *exec);
void tkv_round_release(struct tkv_session *s, struct tkv_round_memory *m);

/* store/score.c: the scores of all candidates of one KV head, cold tokens then warm ones,
 * out[n_cold + n_warm]; scratch of tkv_score_bytes(n_candidates). */
size_t tkv_score_bytes(const struct tkv_session *s, const struct tkv_layer *l, size_t n_candidates);
void tkv_score_head(const struct tkv_session *s, const struct tkv_layer *l, uint32_t kv_head,
                    float *out, void *scratch);

/*
 * store/rebuild.c: make the blocks of every head of l those of the kept candidates (indices as
 * in tkv_score_head, ascending), and drop the warm tokens from the tail. Blocks that stay whole
 * are shared with the old table. Arena blocks and tables were prepared.
 */
struct tkv_keep {
    const uint32_t *index; /* NULL: all */
    uint32_t n;
};
size_t tkv_rebuild_bytes(const struct tkv_session *s, const struct tkv_layer *l,
                         size_t n_candidates, uint32_t n_warm);
void tkv_layer_rebuild(struct tkv_session *s, struct tkv_layer *l, const struct tkv_keep *keep,
                       void *memory, size_t head_bytes, const struct tkv_exec *exec);

#endif /* TKV_STORE_SESSION_PRIV_H */
