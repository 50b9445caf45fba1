/* TriAttention scores of what a KV head could keep, computed on the codes themselves. */
#include <math.h>

#include "core/fused.h"
#include "core/half.h"
#include "core/kernels.h"
#include "store/session_priv.h"

/* Working memory of one head, carved from one piece. */
struct work {
    float *queries;                 /* [group * n_queries][head_dim_k] virtual queries */
    float *coded;                   /* [group * n_queries][tile_dim] */
    float *tile;                    /* [tile_dim][64] */
    float *dots;                    /* [group * n_queries][64] */
    const struct tkv_ruler *rulers; /* [group] */
    void *fused;
    float *rows; /* [group][stride] */
    size_t stride;
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
    const size_t n_queries = group * s->fold->n_queries;
    const size_t tile_dim = l->layout.k->tile_dim;
    struct work w = {0};
    size_t at = 0;

    w.queries = take(base, &at, n_queries * l->config.shape.head_dim_k);
    w.coded = take(base, &at, n_queries * tile_dim);
    w.tile = take(base, &at, tile_dim * TKV_BLOCK_TOKENS);
    w.dots = take(base, &at, n_queries * TKV_BLOCK_TOKENS);
    w.stride = tkv_align(n_candidates, 16) + TKV_BLOCK_TOKENS;
    w.rows = take(base, &at, group * w.stride);
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

size_t tkv_score_common_bytes(const struct tkv_session *s)
{
    return tkv_align((size_t)s->fold->n_queries * 2 * s->rope.n_bands * sizeof(double), 64);
}

void tkv_score_common(const struct tkv_session *s, const struct tkv_layer *l, void *common)
{
    tkv_tri_turns(s->fold, &s->rope, (int64_t)l->last_position + 1, common);
}

/* The virtual queries of the group at this moment, plain and in the codec's domain. */
static void make_queries(const struct tkv_session *s, const struct tkv_layer *l, uint32_t kv_head,
                         const double *turns, struct work *w)
{
    const uint32_t group = tkv_group(&l->config.shape);
    const size_t n_bands = s->rope.n_bands;
    const size_t dim = l->config.shape.head_dim_k;

    for (uint32_t g = 0; g < group; g++) {
        const float *base = l->config.stats + ((size_t)kv_head * group + g) * 3 * n_bands;
        const struct tkv_tri_stats stats = {base, base + n_bands, base + 2 * n_bands};

        tkv_tri_turn_queries(s->fold, &s->rope, &stats, turns,
                             w->queries + (size_t)g * s->fold->n_queries * dim);
    }
    for (size_t i = 0; i < (size_t)group * s->fold->n_queries; i++)
        tkv_code_query(l->layout.k, s->kn, w->queries + i * dim,
                       w->coded + i * l->layout.k->tile_dim);
}

/* row[64] = the scores of a block: dots[n_queries][64] and norm terms. */
static void score_lanes(const struct tkv_session *s, const float *dots, const uint8_t *norm_terms,
                        const struct tkv_ruler *ruler, float *row)
{
    if (s->fold->n_queries == 1) { /* as tkv_tri_score has it, for the usual case */
        s->kn->add_steps(row, dots, norm_terms, TKV_BLOCK_TOKENS, ruler->base, ruler->step);
        return;
    }
    for (size_t t = 0; t < TKV_BLOCK_TOKENS; t++) {
        float of_token[TKV_MAX_OFFSETS];

        for (uint32_t i = 0; i < s->fold->n_queries; i++)
            of_token[i] = dots[(size_t)i * TKV_BLOCK_TOKENS + t];
        row[t] = tkv_tri_score(s->fold, of_token, tkv_ruler_term(ruler, norm_terms[t]));
    }
}

static void fetch(const void *block, size_t from, size_t end)
{
    const uint8_t *p = block;

    for (size_t at = from; at < end; at += 64)
        __builtin_prefetch(p + at);
}

/* Blocks lie apart, and a round sees each but once, twice in turn: what the next one is scored by is
 * asked for now, while there is work to do, and what this one will be rebuilt from, its values, in
 * parts, since only so many lines can be on their way. */
static void score_block(const struct tkv_session *s, const struct tkv_layer *l, struct work *w,
                        void *block, const void *next, size_t at)
{
    const struct tkv_block_layout *layout = &l->layout;
    const size_t group = tkv_group(&l->config.shape);
    const size_t values = layout->values_offset, end = layout->positions_offset;

    if (next)
        fetch(next, layout->positions_offset, layout->bytes);
    for (size_t g = 0; g < group; g++) {
        fetch(block, values + (end - values) * g / group,
              values + (end - values) * (g + 1) / group);
        score_lanes(s, w->dots + g * s->fold->n_queries * TKV_BLOCK_TOKENS,
                    tkv_block_scores(layout, block, (uint32_t)g), &w->rulers[g],
                    w->rows + g * w->stride + at);
    }
}

/* Rows have room for 64 lanes from each block's first on; those it has not are overwritten. */
static void score_cold(const struct tkv_session *s, const struct tkv_layer *l,
                       const struct tkv_head *head, struct work *w)
{
    const size_t n_queries = (size_t)tkv_group(&l->config.shape) * s->fold->n_queries;
    const bool fused = tkv_fused_keys(l->layout.k);
    struct tkv_fused f;
    size_t at = 0;

    if (fused)
        tkv_fused_init(&f, s->kn, l->layout.k, n_queries, w->coded, w->fused);
    w->dots = fused ? f.x[0] : w->dots;
    for (uint32_t b = 0; b < head->n_blocks; b++) {
        void *block = tkv_arena_at(s->arena, head->blocks[b].id);
        const void *next =
            b + 1 < head->n_blocks ? tkv_arena_at(s->arena, head->blocks[b + 1].id) : NULL;

        if (fused) {
            tkv_fused_logits(&f, block, next, 1, NULL);
        } else {
            tkv_key_tile(l->layout.k, s->kn, block, w->tile);
            s->kn->logits(w->dots, w->coded, n_queries, w->tile, l->layout.k->tile_dim);
        }
        score_block(s, l, w, block, next, at);
        at += head->blocks[b].n_tokens;
    }
}

void tkv_score_head(const struct tkv_session *s, const struct tkv_layer *l, uint32_t kv_head,
                    const void *common, float *out, void *scratch)
{
    const size_t n = l->heads[kv_head].n_cold;
    struct work w = work_layout(s, l, n, scratch);

    w.rulers = l->rulers + (size_t)kv_head * tkv_group(&l->config.shape);
    make_queries(s, l, kv_head, common, &w);
    score_cold(s, l, &l->heads[kv_head], &w);
    for (size_t i = 0; i < n; i++)
        out[i] = -INFINITY;
    for (uint32_t g = 0; g < tkv_group(&l->config.shape); g++) {
        const float *row = w.rows + g * w.stride;

        tkv_tri_fold_row(s->kn, out, row, n, s->config.normalize_scores);
    }
}
