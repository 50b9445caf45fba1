/*
 * Attention of some queries over everything a layer keeps: each KV head on its own, cold
 * blocks first, in the codec's domain, then the half tiers, then the merge.
 */
#include "core/cache.h"

#include <string.h>

#include "core/fused.h"
#include "core/half.h"
#include "core/kernels.h"

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
    const struct tkv_cache *c;
    const struct tkv_queries *q;
    uint32_t batch_tokens;
    uint8_t *memory; /* n_kv_heads works */
    size_t work_bytes;
};

/* What all tiers have in common: rotation, and the dimensions of a tile. */
static const struct tkv_block_layout *any_tier(const struct tkv_cache *c)
{
    return &c->tiers[0];
}

static bool is_fused(const struct tkv_cache *c, size_t n_rows)
{
    return n_rows <= MAX_FUSED_ROWS && tkv_fused_keys(any_tier(c)->k) &&
           tkv_fused_values(any_tier(c)->v);
}

static size_t fused_bytes(const struct tkv_cache *c, size_t n_rows)
{
    size_t most = 0;

    for (uint32_t i = 0; i < c->n_tiers; i++) {
        const size_t bytes = tkv_fused_bytes(c->tiers[i].k, n_rows);

        most = bytes > most ? bytes : most;
    }
    return most;
}

static void *take(uint8_t *base, size_t *at, size_t bytes)
{
    void *p = base ? base + *at : NULL;

    *at += tkv_align(bytes, 64);
    return p;
}

/* Carve the working memory out of base; with base NULL, only learn its size. */
static struct work work_layout(const struct tkv_cache *c, uint32_t batch_tokens, uint8_t *base)
{
    const struct tkv_shape *shape = &c->shape;
    const size_t rows = (size_t)batch_tokens * tkv_group(shape);
    const uint32_t tile_dim = any_tier(c)->k->tile_dim;
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
    if (is_fused(c, 1))
        w.fused = take(base, &at, fused_bytes(c, rows < MAX_FUSED_ROWS ? rows : MAX_FUSED_ROWS));
    w.bytes = at;
    return w;
}

/* Rows are [token][head in group]; the request has [token][query head]. */
static void load_queries(const struct attend *a, uint32_t kv_head, uint32_t first, uint32_t n,
                         struct work *w)
{
    const struct tkv_shape *shape = &a->c->shape;
    const size_t row = (size_t)tkv_group(shape) * shape->head_dim_k;
    const size_t element_bytes = tkv_dtype_bytes(a->q->dtype);

    for (uint32_t i = 0; i < n; i++) {
        const size_t at = ((size_t)(first + i) * shape->n_kv_heads + kv_head) * row;

        tkv_to_f32(a->c->kn, w->q + i * row, (const uint8_t *)a->q->q + at * element_bytes,
                   a->q->dtype, row);
    }
    for (size_t r = 0; r < (size_t)n * tkv_group(shape); r++)
        tkv_code_query(any_tier(a->c)->k, a->c->kn, w->q + r * shape->head_dim_k,
                       w->coded + r * any_tier(a->c)->k->tile_dim);
}

static void block_positions(const struct tkv_block_layout *layout, const struct tkv_block *block,
                            void *bytes, int32_t *positions)
{
    const uint16_t *distance = tkv_block_positions(layout, bytes);

    for (uint32_t t = 0; t < block->n_tokens; t++)
        positions[t] = block->first_position + distance[t];
}

/* Whether every row sees a whole block, with nothing to look at but its ends. */
static bool is_seen_whole(const struct attend *a, const struct tkv_attn_rows *rows,
                          const struct tkv_block *block, const uint16_t *distance)
{
    const uint32_t window = a->c->attn.window_tokens;
    const int64_t first = block->first_position;
    const int64_t last = first + distance[block->n_tokens - 1];

    for (size_t i = 0; i < rows->n_tokens; i++)
        if (last > rows->positions[i] ||
            (window > 0 && first <= rows->positions[i] - (int64_t)window))
            return false;
    return true;
}

/* The block that follows b in the next run: its codes are asked for while those of b are read, for
 * blocks of a head lie apart, too short for the processor to see a pattern. */
static void plan_fetch(const struct attend *a, const struct tkv_head *head, uint32_t b,
                       struct tkv_fused_block *block)
{
    const uint32_t next = b + TKV_RUN_BLOCKS;
    const struct tkv_block_layout *layout;
    void *bytes;

    if (next >= head->n_blocks)
        return;
    layout = &a->c->tiers[head->blocks[next].tier];
    bytes = tkv_cache_at(a->c, head->blocks[next].id);
    block->next_keys = bytes;
    block->next_values = tkv_block_values(layout, bytes);
    __builtin_prefetch(tkv_block_positions(layout, bytes) + head->blocks[next].n_tokens - 1);
}

/* A run is of one tier. */
static bool ends_run(const struct tkv_head *head, uint32_t b)
{
    return b + 1 == head->n_blocks || head->blocks[b + 1].tier != head->blocks[b].tier;
}

static void attend_codes(const struct attend *a, const struct tkv_attn_rows *rows,
                         const struct tkv_head *head, struct work *w, struct tkv_partial *p)
{
    const struct tkv_block_layout *layout = NULL;
    struct tkv_fused_block blocks[TKV_RUN_BLOCKS];
    int32_t positions[TKV_RUN_BLOCKS][TKV_BLOCK_TOKENS];
    struct tkv_fused f;
    size_t n = 0;

    for (uint32_t b = 0; b < head->n_blocks; b++) {
        const struct tkv_block *block = &head->blocks[b];
        void *bytes = tkv_cache_at(a->c, block->id);

        if (layout != &a->c->tiers[block->tier]) {
            layout = &a->c->tiers[block->tier];
            tkv_fused_init(&f, a->c->kn, layout->k, p->n_rows, w->coded, w->fused);
        }
        blocks[n] = (struct tkv_fused_block){
            .keys = bytes, .values = tkv_block_values(layout, bytes), .n = block->n_tokens};
        plan_fetch(a, head, b, &blocks[n]);
        if (!is_seen_whole(a, rows, block, tkv_block_positions(layout, bytes))) {
            block_positions(layout, block, bytes, positions[n]);
            blocks[n].positions = positions[n];
        }
        if (++n == TKV_RUN_BLOCKS || ends_run(head, b)) {
            tkv_fused_attend(&f, layout->v, &a->c->attn, rows, blocks, n, p);
            n = 0;
        }
    }
}

static void attend_tiles(const struct attend *a, const struct tkv_attn_rows *rows,
                         const struct tkv_head *head, struct work *w, struct tkv_partial *p)
{
    const struct tkv_kernels *kn = a->c->kn;
    int32_t positions[TKV_BLOCK_TOKENS];

    for (uint32_t b = 0; b < head->n_blocks; b++) {
        const struct tkv_block *block = &head->blocks[b];
        const struct tkv_block_layout *layout = &a->c->tiers[block->tier];
        void *bytes = tkv_cache_at(a->c, block->id);

        block_positions(layout, block, bytes, positions);
        tkv_key_tile(layout->k, kn, bytes, w->tile);
        tkv_value_rows(layout->v, kn, tkv_block_values(layout, bytes), block->n_tokens, w->values);
        tkv_attend_tile(kn, &a->c->attn, rows, w->coded, layout->k->tile_dim, w->tile, w->values,
                        positions, block->n_tokens, p, w->scratch);
    }
}

static void attend_cold(const struct attend *a, const struct tkv_attn_rows *rows,
                        const struct tkv_head *head, struct work *w, struct tkv_partial *p)
{
    if (is_fused(a->c, p->n_rows))
        attend_codes(a, rows, head, w, p);
    else
        attend_tiles(a, rows, head, w, p);
    for (size_t r = 0; r < p->n_rows; r++)
        tkv_uncode_value(any_tier(a->c)->v, a->c->kn, p->out + r * p->dim);
}

static void attend_half_tier(const struct attend *a, const struct tkv_attn_rows *rows,
                             const struct tkv_half_run *tier, uint32_t kv_head, struct work *w,
                             struct tkv_partial *p)
{
    const struct tkv_shape *shape = &a->c->shape;
    const size_t dk = shape->head_dim_k;
    const size_t dv = shape->head_dim_v;
    const size_t at = (size_t)kv_head * tier->cap;

    if (tier->n > 0)
        tkv_attend_half(a->c->kn, &a->c->attn, rows, w->q, shape->head_dim_k, tier->k + at * dk, dk,
                        tier->v + at * dv, dv, tier->positions, tier->n, p, w->scratch);
}

static void store_result(const struct attend *a, uint32_t kv_head, uint32_t first, uint32_t n,
                         const struct work *w)
{
    const struct tkv_shape *shape = &a->c->shape;
    const size_t group = tkv_group(shape);
    const size_t dv = shape->head_dim_v;

    for (size_t i = 0; i < n; i++) {
        const size_t head = (first + i) * shape->n_q_heads + kv_head * group;

        memcpy(a->q->out + head * dv, w->out + i * group * dv, group * dv * sizeof(float));
        if (a->q->lse)
            memcpy(a->q->lse + head, w->lse + i * group, group * sizeof(float));
    }
}

static void attend_batch(const struct attend *a, uint32_t kv_head, uint32_t first, uint32_t n,
                         struct work *w)
{
    const struct tkv_cache *c = a->c;
    const uint32_t group = tkv_group(&c->shape);
    const struct tkv_attn_rows rows = {n, group, a->q->positions + first};
    struct tkv_partial cold, half;

    load_queries(a, kv_head, first, n, w);
    tkv_partial_init(&cold, w->cold, (size_t)n * group, c->shape.head_dim_v);
    tkv_partial_init(&half, w->half, (size_t)n * group, c->shape.head_dim_v);
    if (c->sinks)
        tkv_partial_add_sinks(&half, c->sinks + (size_t)kv_head * group, group);
    attend_half_tier(a, &rows, &c->pinned, kv_head, w, &half);
    attend_half_tier(a, &rows, &c->tail, kv_head, w, &half);
    if (c->heads[kv_head].n_blocks > 0) {
        attend_cold(a, &rows, &c->heads[kv_head], w, &cold);
        tkv_partial_merge(&half, &cold);
    }
    tkv_partial_finish(&half, w->out, w->lse);
    store_result(a, kv_head, first, n, w);
}

static void attend_head(void *arg, size_t kv_head)
{
    const struct attend *a = arg;
    struct work w = work_layout(a->c, a->batch_tokens, a->memory + kv_head * a->work_bytes);

    for (uint32_t first = 0; first < a->q->n_tokens; first += a->batch_tokens) {
        const uint32_t left = a->q->n_tokens - first;

        attend_batch(a, (uint32_t)kv_head, first, left < a->batch_tokens ? left : a->batch_tokens,
                     &w);
    }
}

static uint32_t batch_size(const struct tkv_cache *c, uint32_t n_tokens)
{
    uint32_t n = MAX_ROWS / tkv_group(&c->shape);

    if (n > MAX_BATCH_TOKENS)
        n = MAX_BATCH_TOKENS;
    return n < n_tokens ? n : n_tokens;
}

size_t tkv_cache_attend_bytes(const struct tkv_cache *c, uint32_t n_tokens)
{
    return work_layout(c, batch_size(c, n_tokens), NULL).bytes * c->shape.n_kv_heads;
}

void tkv_cache_attend(const struct tkv_cache *c, const struct tkv_queries *q, void *memory,
                      const struct tkv_exec *exec)
{
    struct attend a = {.c = c, .q = q, .memory = memory};

    a.batch_tokens = batch_size(c, q->n_tokens);
    a.work_bytes = work_layout(c, a.batch_tokens, NULL).bytes;
    tkv_exec_run(exec, c->shape.n_kv_heads, attend_head, &a);
}

size_t tkv_cache_check_queries(const struct tkv_cache *c, const struct tkv_queries *q)
{
    const size_t n = (size_t)q->n_tokens * c->shape.n_q_heads * c->shape.head_dim_k;
    const size_t element_bytes = tkv_dtype_bytes(q->dtype);
    uint16_t part[1024];

    for (size_t at = 0; at < n; at += sizeof(part) / sizeof(part[0])) {
        const size_t m = n - at < 1024 ? n - at : 1024;
        const size_t good =
            tkv_to_f16(c->kn, part, (const uint8_t *)q->q + at * element_bytes, q->dtype, m);

        if (good < m)
            return at + good;
    }
    return n;
}
