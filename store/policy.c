/*
 * Which score a method gives to what a KV head could keep. TriAttention has a file of its own
 * (score.c); observed attention is gathered in observe.c and only read here.
 */
#include <string.h>

#include "core/half.h"
#include "core/kernels.h"
#include "core/policy.h"
#include "store/session_priv.h"

/* Neighbours that share the attention one token saw, so that phrases are kept whole. */
enum { SNAPKV_POOL = 5 };

/* Working memory of novelty. */
struct work {
    float *tile; /* [tile_dim][64] */
    float *sum;
    size_t bytes;
};

static float *take(uint8_t *base, size_t *at, size_t n)
{
    float *p = base ? (float *)(void *)(base + *at) : NULL;

    *at += tkv_align(n * sizeof(float), 64);
    return p;
}

static struct work work_layout(const struct tkv_layer *l, uint8_t *base)
{
    const size_t tile_dim = tkv_block_tile_dim(&l->layout);
    size_t at = 0;
    struct work w = {0};

    w.tile = take(base, &at, tile_dim * TKV_BLOCK_TOKENS);
    w.sum = take(base, &at, tile_dim);
    w.bytes = at;
    return w;
}

/* Both passes of novelty go over the same tiles: with scores NULL the sum is made. */
static void novelty_pass(const struct tkv_session *s, const struct tkv_layer *l, uint32_t kv_head,
                         float *scores, struct work *w)
{
    const struct tkv_head *head = &l->heads[kv_head];
    const size_t dim = l->config.shape.head_dim_k;
    size_t at = 0;

    for (uint32_t b = 0; b < head->n_blocks; b++) {
        tkv_block_key_tile(&l->layout, s->kn, tkv_arena_at(s->arena, head->blocks[b].id), w->tile);
        if (scores)
            tkv_score_novelty(scores + at, w->sum, w->tile, dim, head->blocks[b].n_tokens);
        else
            tkv_add_directions(w->sum, w->tile, dim, head->blocks[b].n_tokens);
        at += head->blocks[b].n_tokens;
    }
}

static void score_novelty(const struct tkv_session *s, const struct tkv_layer *l, uint32_t kv_head,
                          float *out, void *scratch)
{
    struct work w = work_layout(l, scratch);

    memset(w.sum, 0, l->config.shape.head_dim_k * sizeof(float));
    novelty_pass(s, l, kv_head, NULL, &w);
    novelty_pass(s, l, kv_head, out, &w);
}

size_t tkv_policy_bytes(const struct tkv_session *s, const struct tkv_layer *l, size_t n_candidates)
{
    switch (l->config.method) {
    case TKV_METHOD_TRIATTENTION: return tkv_score_bytes(s, l, n_candidates);
    case TKV_METHOD_KEYDIFF: return work_layout(l, NULL).bytes;
    default: return 0;
    }
}

size_t tkv_policy_common_bytes(const struct tkv_session *s, const struct tkv_layer *l)
{
    return l->config.method == TKV_METHOD_TRIATTENTION ? tkv_score_common_bytes(s) : 0;
}

void tkv_policy_common(const struct tkv_session *s, const struct tkv_layer *l, void *common)
{
    if (l->config.method == TKV_METHOD_TRIATTENTION)
        tkv_score_common(s, l, common);
}

void tkv_policy_score(const struct tkv_session *s, const struct tkv_layer *l, uint32_t kv_head,
                      const void *common, float *out, void *scratch)
{
    const struct tkv_head *head = &l->heads[kv_head];
    const size_t n = head->n_cold;

    switch (l->config.method) {
    case TKV_METHOD_NONE: /* nothing is dropped, nothing is scored */
    case TKV_METHOD_DEFAULT: /* what is dropped was planned */ break;
    case TKV_METHOD_TRIATTENTION: tkv_score_head(s, l, kv_head, common, out, scratch); break;
    case TKV_METHOD_STREAMING: tkv_score_recency(out, n); break;
    case TKV_METHOD_H2O: memcpy(out, l->mass[kv_head].x, n * sizeof(float)); break;
    case TKV_METHOD_SNAPKV: tkv_pool_scores(out, l->mass[kv_head].x, n, SNAPKV_POOL); break;
    case TKV_METHOD_KEYDIFF: score_novelty(s, l, kv_head, out, scratch); break;
    }
}
