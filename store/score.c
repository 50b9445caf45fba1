/* TriAttention scores of what a KV head could keep, computed on the codes themselves. */
#include <math.h>

#include "core/fused.h"
#include "core/half.h"
#include "core/kernels.h"
#include "store/session_priv.h"

/* Working memory of one head, carved from one piece. */
struct work {
    float *queries; /* [group * n_queries][head_dim_k] virtual queries */
    float *coded;   /* [group * n_queries][tile_dim] */
    float *tile;    /* [tile_dim][64] */
    float *dots;    /* [group * n_queries][64] */
    void *fused;
    float *rows; /* [group][n_candidates] */
    size_t bytes;
};

static float *take(uint8_t *base, size_t *at, size_t n)
{
    float *p = base ? (float *)(void *)(base + *at) : NULL;

    *at += tkv_align(n * sizeof(float), 64);
    return p;
}

static struct work work_layout(const struct tkv_session *s, const struct tkv_layer *l,
                               size_t n_candidates, uint8_t *base)
{
    const size_t group = tkv_group(&l->config.shape);
    const size_t n_queries = group * s->fold.n_queries;
    const size_t tile_dim = l->layout.k->tile_dim;
    struct work w = {0};
    size_t at = 0;

    w.queries = take(base, &at, n_queries * l->config.shape.head_dim_k);
    w.coded = take(base, &at, n_queries * tile_dim);
    w.tile = take(base, &at, tile_dim * TKV_BLOCK_TOKENS);
    w.dots = take(base, &at, n_queries * TKV_BLOCK_TOKENS);
    w.rows = take(base, &at, group * n_candidates);
    w.fused = base ? base + at : NULL;
    if (tkv_fused_keys(l->layout.k))
        at += tkv_fused_bytes(l->layout.k, n_queries);
    w.bytes = at;
    return w;
}

size_t tkv_score_bytes(const struct tkv_session *s, const struct tkv_layer *l, size_t n_candidates)
{
    return work_layout(s, l, n_candidates, NULL).bytes;
}

/* The virtual queries of the group at this moment, plain and in the codec's domain. */
static void make_queries(const struct tkv_session *s, const struct tkv_layer *l, uint32_t kv_head,
                         struct work *w)
{
    const uint32_t group = tkv_group(&l->config.shape);
    const size_t n_bands = s->rope.n_bands;
    const size_t dim = l->config.shape.head_dim_k;

    for (uint32_t g = 0; g < group; g++) {
        const float *base = l->config.stats + ((size_t)kv_head * group + g) * 3 * n_bands;
        const struct tkv_tri_stats stats = {base, base + n_bands, base + 2 * n_bands};

        tkv_tri_queries(&s->fold, &s->rope, &stats, (int64_t)l->last_position + 1,
                        w->queries + (size_t)g * s->fold.n_queries * dim);
    }
    for (size_t i = 0; i < (size_t)group * s->fold.n_queries; i++)
        tkv_code_query(l->layout.k, s->kn, w->queries + i * dim,
                       w->coded + i * l->layout.k->tile_dim);
}

/* One candidate, whose dot products stand in column `lane` of all[group * n_queries][64]. */
static float score_of(const struct tkv_session *s, const float *all, uint32_t g, size_t lane,
                      float norm_term)
{
    float dots[TKV_MAX_OFFSETS];

    if (s->fold.n_queries == 1) /* as tkv_tri_score has it, for the usual case */
        return all[(size_t)g * TKV_BLOCK_TOKENS + lane] + norm_term;
    for (uint32_t i = 0; i < s->fold.n_queries; i++)
        dots[i] = all[((size_t)g * s->fold.n_queries + i) * TKV_BLOCK_TOKENS + lane];
    return tkv_tri_score(&s->fold, dots, norm_term);
}

static void score_cold(const struct tkv_session *s, const struct tkv_layer *l,
                       const struct tkv_head *head, struct work *w, size_t n_candidates)
{
    const uint32_t group = tkv_group(&l->config.shape);
    const size_t n_queries = (size_t)group * s->fold.n_queries;
    const float *dots = w->dots;
    struct tkv_fused f;
    size_t at = 0;

    if (tkv_fused_keys(l->layout.k)) {
        tkv_fused_init(&f, s->kn, l->layout.k, n_queries, w->coded, w->fused);
        dots = f.x[0];
    }
    for (uint32_t b = 0; b < head->n_blocks; b++) {
        void *block = tkv_arena_at(s->arena, head->blocks[b].id);

        if (tkv_fused_keys(l->layout.k)) {
            tkv_fused_logits(&f, block, 1, NULL);
        } else {
            tkv_key_tile(l->layout.k, s->kn, block, w->tile);
            s->kn->logits(w->dots, w->coded, n_queries, w->tile, l->layout.k->tile_dim);
        }
        for (uint32_t g = 0; g < group; g++) {
            float norm_terms[TKV_BLOCK_TOKENS];

            s->kn->f16_to_f32(norm_terms, tkv_block_scores(&l->layout, block, g), TKV_BLOCK_TOKENS);
            for (uint32_t t = 0; t < head->blocks[b].n_tokens; t++)
                w->rows[g * n_candidates + at + t] = score_of(s, dots, g, t, norm_terms[t]);
        }
        at += head->blocks[b].n_tokens;
    }
}

static void score_warm(const struct tkv_session *s, const struct tkv_layer *l, uint32_t kv_head,
                       struct work *w, size_t n_candidates)
{
    const uint32_t group = tkv_group(&l->config.shape);
    const uint32_t n_warm = tkv_layer_warm(s, l);
    const size_t dim = l->config.shape.head_dim_k;
    float key[TKV_MAX_HEAD_DIM];

    for (uint32_t t = 0; t < n_warm; t++) {
        s->kn->f16_to_f32(key, l->tail.k + ((size_t)kv_head * l->tail.cap + t) * dim, dim);
        for (size_t i = 0; i < (size_t)group * s->fold.n_queries; i++)
            w->dots[i * TKV_BLOCK_TOKENS] = s->kn->dot(w->queries + i * dim, key, dim);
        for (uint32_t g = 0; g < group; g++) {
            const size_t q_head = (size_t)kv_head * group + g;

            w->rows[g * n_candidates + l->heads[kv_head].n_cold + t] =
                score_of(s, w->dots, g, 0, l->tail.scores[q_head * l->tail.cap + t]);
        }
    }
}

void tkv_score_head(const struct tkv_session *s, const struct tkv_layer *l, uint32_t kv_head,
                    float *out, void *scratch)
{
    const size_t n = l->heads[kv_head].n_cold + tkv_layer_warm(s, l);
    struct work w = work_layout(s, l, n, scratch);

    make_queries(s, l, kv_head, &w);
    score_cold(s, l, &l->heads[kv_head], &w, n);
    score_warm(s, l, kv_head, &w, n);
    for (size_t i = 0; i < n; i++)
        out[i] = -INFINITY;
    for (uint32_t g = 0; g < tkv_group(&l->config.shape); g++) {
        float *row = w.rows + g * n;

        if (s->config.normalize_scores)
            tkv_tri_normalize(row, n);
        tkv_fold_max(out, row, n);
    }
}
