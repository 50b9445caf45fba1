/*
 * Attention of some queries over everything a layer keeps: each KV head on its own, cold
 * blocks first, in the codec's domain, then the half tiers, then the merge.
 */
#include <string.h>

#include "core/fused.h"
#include "core/half.h"
#include "core/kernels.h"
#include "store/session_priv.h"

/* Query tokens worked on at once: enough to pay for unpacking a block, few enough that their
 * partial results stay in the cache. */
enum { MAX_ROWS = 512, MAX_BATCH_TOKENS = 128 };

/* Up to so many rows a block is attended to in its codes: unpacking it costs more (measured: even
 * at 32 rows with AVX2, later with AVX-512). */
enum { MAX_FUSED_ROWS = 32 };

/* The working memory of one KV head, laid out in one piece. */
struct work {
    float *q;      /* [rows][head_dim_k] as it came */
    float *coded;  /* [rows][tile_dim] */
    float *tile;   /* [tile_dim][64] */
    float *values; /* [64][head_dim_v] */
    float *out;    /* [rows][head_dim_v] */
    float *lse;    /* [rows] */
    void *cold;    /* partials */
    void *half;
    void *scratch;
    void *fused;
    size_t bytes;
};

struct attend {
    const struct tkv_session *s;
    const struct tkv_layer *l;
    const struct tkv_step *step;
    const int32_t *positions;
    uint32_t batch_tokens;
    uint8_t *memory; /* n_kv_heads works */
    size_t work_bytes;
};

static bool is_fused(const struct tkv_layer *l, size_t n_rows)
{
    return n_rows <= MAX_FUSED_ROWS && tkv_fused_keys(l->layout.k) && tkv_fused_values(l->layout.v);
}

static void *take(uint8_t *base, size_t *at, size_t bytes)
{
    void *p = base ? base + *at : NULL;

    *at += tkv_align(bytes, 64);
    return p;
}

/* Carve the working memory out of base; with base NULL, only learn its size. */
static struct work work_layout(const struct tkv_layer *l, uint32_t batch_tokens, uint8_t *base)
{
    const struct tkv_shape *shape = &l->config.shape;
    const size_t rows = (size_t)batch_tokens * tkv_group(shape);
    const uint32_t tile_dim = l->layout.k->tile_dim;
    const uint32_t widest = tile_dim > shape->head_dim_k ? tile_dim : shape->head_dim_k;
    struct work w = {0};
    size_t at = 0;

    w.q = take(base, &at, rows * shape->head_dim_k * sizeof(float));
    w.coded = take(base, &at, rows * tile_dim * sizeof(float));
    w.tile = take(base, &at, (size_t)tile_dim * TKV_BLOCK_TOKENS * sizeof(float));
    w.values = take(base, &at, (size_t)shape->head_dim_v * TKV_BLOCK_TOKENS * sizeof(float));
    w.out = take(base, &at, rows * shape->head_dim_v * sizeof(float));
    w.lse = take(base, &at, rows * sizeof(float));
    w.cold = take(base, &at, tkv_partial_bytes(rows, shape->head_dim_v));
    w.half = take(base, &at, tkv_partial_bytes(rows, shape->head_dim_v));
    w.scratch = take(base, &at, tkv_attend_scratch_bytes(rows, widest, shape->head_dim_v));
    /* Also with more rows: what is left of a request may be few, in memory made for many. */
    if (is_fused(l, 1))
        w.fused = take(base, &at,
                       tkv_fused_bytes(l->layout.k, rows < MAX_FUSED_ROWS ? rows : MAX_FUSED_ROWS));
    w.bytes = at;
    return w;
}

/* Rows are [token][head in group]; the request has [token][query head]. */
static void load_queries(const struct attend *a, uint32_t kv_head, uint32_t first, uint32_t n,
                         struct work *w)
{
    const struct tkv_shape *shape = &a->l->config.shape;
    const size_t row = (size_t)tkv_group(shape) * shape->head_dim_k;
    const size_t element_bytes = tkv_dtype_bytes(a->step->dtype);

    for (uint32_t i = 0; i < n; i++) {
        const size_t at = ((size_t)(first + i) * shape->n_kv_heads + kv_head) * row;

        tkv_to_f32(a->s->kn, w->q + i * row, (const uint8_t *)a->step->q + at * element_bytes,
                   a->step->dtype, row);
    }
    for (size_t r = 0; r < (size_t)n * tkv_group(shape); r++)
        tkv_code_query(a->l->layout.k, a->s->kn, w->q + r * shape->head_dim_k,
                       w->coded + r * a->l->layout.k->tile_dim);
}

static void block_positions(const struct tkv_block_layout *layout, const struct tkv_block *block,
                            void *bytes, int32_t *positions)
{
    const uint16_t *distance = tkv_block_positions(layout, bytes);

    for (uint32_t t = 0; t < block->n_tokens; t++)
        positions[t] = block->first_position + distance[t];
}

/* Ask for a block's memory while the one before it is worked on: blocks of a head lie apart, too
 * short for the processor to see a pattern. */
static void fetch_ahead(const struct tkv_arena *arena, const struct tkv_head *head, uint32_t b,
                        size_t bytes)
{
    const char *p;

    if (b >= head->n_blocks)
        return;
    p = tkv_arena_at(arena, head->blocks[b].id);
    for (size_t at = 0; at < bytes; at += 64)
        __builtin_prefetch(p + at);
}

static void attend_codes(const struct attend *a, const struct tkv_attn_rows *rows,
                         const struct tkv_head *head, struct work *w, struct tkv_partial *p)
{
    const struct tkv_block_layout *layout = &a->l->layout;
    int32_t positions[TKV_BLOCK_TOKENS];
    struct tkv_fused f;

    tkv_fused_init(&f, a->s->kn, layout->k, p->n_rows, w->coded, w->fused);
    for (uint32_t b = 0; b < head->n_blocks; b++) {
        const struct tkv_block *block = &head->blocks[b];
        void *bytes = tkv_arena_at(a->s->arena, block->id);

        fetch_ahead(a->s->arena, head, b + 1, layout->bytes);
        block_positions(layout, block, bytes, positions);
        tkv_fused_attend(&f, layout->v, &a->l->config.attn, rows, bytes,
                         tkv_block_values(layout, bytes), positions, block->n_tokens, p);
    }
}

static void attend_tiles(const struct attend *a, const struct tkv_attn_rows *rows,
                         const struct tkv_head *head, struct work *w, struct tkv_partial *p)
{
    const struct tkv_block_layout *layout = &a->l->layout;
    const struct tkv_kernels *kn = a->s->kn;
    int32_t positions[TKV_BLOCK_TOKENS];

    for (uint32_t b = 0; b < head->n_blocks; b++) {
        const struct tkv_block *block = &head->blocks[b];
        void *bytes = tkv_arena_at(a->s->arena, block->id);

        block_positions(layout, block, bytes, positions);
        tkv_key_tile(layout->k, kn, bytes, w->tile);
        tkv_value_rows(layout->v, kn, tkv_block_values(layout, bytes), block->n_tokens, w->values);
        tkv_attend_tile(kn, &a->l->config.attn, rows, w->coded, layout->k->tile_dim, w->tile,
                        w->values, positions, block->n_tokens, p, w->scratch);
    }
}

static void attend_cold(const struct attend *a, const struct tkv_attn_rows *rows,
                        const struct tkv_head *head, struct work *w, struct tkv_partial *p)
{
    if (is_fused(a->l, p->n_rows))
        attend_codes(a, rows, head, w, p);
    else
        attend_tiles(a, rows, head, w, p);
    for (size_t r = 0; r < p->n_rows; r++)
        tkv_uncode_value(a->l->layout.v, a->s->kn, p->out + r * p->dim);
}

static void attend_half_tier(const struct attend *a, const struct tkv_attn_rows *rows,
                             const struct tkv_half_tier *tier, uint32_t kv_head, struct work *w,
                             struct tkv_partial *p)
{
    const struct tkv_shape *shape = &a->l->config.shape;
    const size_t dk = shape->head_dim_k;
    const size_t dv = shape->head_dim_v;
    const size_t at = (size_t)kv_head * tier->cap;

    if (tier->n > 0)
        tkv_attend_half(a->s->kn, &a->l->config.attn, rows, w->q, shape->head_dim_k,
                        tier->k + at * dk, dk, tier->v + at * dv, dv, tier->positions, tier->n, p,
                        w->scratch);
}

static void store_result(const struct attend *a, uint32_t kv_head, uint32_t first, uint32_t n,
                         const struct work *w)
{
    const struct tkv_shape *shape = &a->l->config.shape;
    const size_t group = tkv_group(shape);
    const size_t dv = shape->head_dim_v;

    for (size_t i = 0; i < n; i++) {
        const size_t head = (first + i) * shape->n_q_heads + kv_head * group;

        memcpy(a->step->out + head * dv, w->out + i * group * dv, group * dv * sizeof(float));
        if (a->step->lse)
            memcpy(a->step->lse + head, w->lse + i * group, group * sizeof(float));
    }
}

static void attend_batch(const struct attend *a, uint32_t kv_head, uint32_t first, uint32_t n,
                         struct work *w)
{
    const struct tkv_layer *l = a->l;
    const uint32_t group = tkv_group(&l->config.shape);
    const struct tkv_attn_rows rows = {n, group, a->positions + first};
    struct tkv_partial cold, half;

    load_queries(a, kv_head, first, n, w);
    tkv_partial_init(&cold, w->cold, (size_t)n * group, l->config.shape.head_dim_v);
    tkv_partial_init(&half, w->half, (size_t)n * group, l->config.shape.head_dim_v);
    if (l->config.sinks)
        tkv_partial_add_sinks(&half, l->config.sinks + (size_t)kv_head * group, group);
    attend_half_tier(a, &rows, &l->pinned, kv_head, w, &half);
    attend_half_tier(a, &rows, &l->tail, kv_head, w, &half);
    if (l->heads[kv_head].n_blocks > 0) {
        attend_cold(a, &rows, &l->heads[kv_head], w, &cold);
        tkv_partial_merge(&half, &cold);
    }
    tkv_partial_finish(&half, w->out, w->lse);
    store_result(a, kv_head, first, n, w);
}

static void attend_head(void *arg, size_t kv_head)
{
    const struct attend *a = arg;
    struct work w = work_layout(a->l, a->batch_tokens, a->memory + kv_head * a->work_bytes);

    for (uint32_t first = 0; first < a->step->n_tokens; first += a->batch_tokens) {
        const uint32_t left = a->step->n_tokens - first;

        attend_batch(a, (uint32_t)kv_head, first, left < a->batch_tokens ? left : a->batch_tokens,
                     &w);
    }
}

static uint32_t batch_size(const struct tkv_layer *l, uint32_t n_tokens)
{
    uint32_t n = MAX_ROWS / tkv_group(&l->config.shape);

    if (n > MAX_BATCH_TOKENS)
        n = MAX_BATCH_TOKENS;
    return n < n_tokens ? n : n_tokens;
}

size_t tkv_attend_bytes(const struct tkv_layer *l, uint32_t n_tokens)
{
    return work_layout(l, batch_size(l, n_tokens), NULL).bytes * l->config.shape.n_kv_heads;
}

void tkv_layer_attend(const struct tkv_session *s, const struct tkv_layer *l,
                      const struct tkv_step *step, const int32_t *positions, void *memory,
                      const struct tkv_exec *exec)
{
    struct attend a = {.s = s, .l = l, .step = step, .positions = positions, .memory = memory};

    a.batch_tokens = batch_size(l, step->n_tokens);
    a.work_bytes = work_layout(l, a.batch_tokens, NULL).bytes;
    tkv_exec_run(exec, l->config.shape.n_kv_heads, attend_head, &a);
}
