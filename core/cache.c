/*
 * Attention of some queries over everything a layer keeps: each KV head on its own, cold
 * blocks first, in the codec's domain, then the half tiers, then the merge.
 *
 * The cold blocks of a long head are attended to in ranges, each with a partial result of its own,
 * and merged in order. How many there are depends on nothing but how long and what kind the
 * cache is, so the result has the same bits however many threads share the ranges.
 */
#include "core/cache_priv.h"

#include <string.h>

#include "core/fused.h"
#include "core/half.h"
#include "core/kernels.h"

struct attend {
    const struct tkv_cache *c;
    const struct tkv_queries *q;
    uint32_t batch_tokens;
    uint32_t n_ranges;   /* of the longest head */
    uint32_t first, n;   /* the batch at hand */
    uint8_t *memory;     /* the first range of all KV heads, then the second ... */
    size_t first_bytes;  /* of a head's first range */
    size_t others_bytes; /* of each of the others */
};

static uint32_t ranges_of(const struct attend *a, size_t kv_head)
{
    return tkv_cache_ranges(a->c, a->c->heads[kv_head].n_cold, a->batch_tokens);
}

static struct tkv_work work_of(const struct attend *a, size_t kv_head, uint32_t range)
{
    const size_t n_heads = a->c->shape.n_kv_heads;
    uint8_t *at = a->memory + kv_head * (range ? a->others_bytes : a->first_bytes);

    if (range > 0)
        at += n_heads * (a->first_bytes + (range - 1) * a->others_bytes);
    return tkv_work_layout(a->c, a->batch_tokens, range, at);
}

/* Rows are [token][head in group]; the request has [token][query head]. Coded: as blocks want them, too. */
static void load_queries(const struct attend *a, size_t kv_head, bool coded, struct tkv_work *w)
{
    const struct tkv_shape *shape = &a->c->shape;
    const struct tkv_block_layout *layout = tkv_cache_any_tier(a->c);
    const size_t row = (size_t)tkv_group(shape) * shape->head_dim_k;
    const size_t element_bytes = tkv_dtype_bytes(a->q->dtype);

    for (uint32_t i = 0; i < a->n; i++) {
        const size_t at = ((size_t)(a->first + i) * shape->n_kv_heads + kv_head) * row;

        tkv_to_f32(a->c->kn, w->q + i * row, (const uint8_t *)a->q->q + at * element_bytes,
                   a->q->dtype, row);
    }
    for (size_t r = 0; coded && r < (size_t)a->n * tkv_group(shape); r++)
        tkv_block_code_query(layout, a->c->kn, w->q + r * shape->head_dim_k,
                             w->coded + r * tkv_block_tile_dim(layout));
}

static void block_positions(const struct tkv_block_layout *layout, const struct tkv_block *block,
                            void *bytes, int32_t *positions)
{
    const uint16_t *distance = tkv_block_positions(layout, bytes);

    for (uint32_t t = 0; t < block->n_tokens; t++)
        positions[t] = block->first_position + distance[t];
}

/* No token of block b is later. Positions ascend from block to block, so only the last of them must
 * be looked into: a block's positions lie apart from its codes. */
static int64_t last_position(const struct tkv_block_layout *layout, const struct tkv_head *head,
                             uint32_t b, void *bytes)
{
    const struct tkv_block *block = &head->blocks[b];

    if (b + 1 < head->n_blocks)
        return (int64_t)block[1].first_position - 1;
    return block->first_position + tkv_block_positions(layout, bytes)[block->n_tokens - 1];
}

/* Whether every row sees a whole block of tokens from `first` to `last`. */
static bool is_seen_whole(const struct attend *a, const struct tkv_attn_rows *rows, int64_t first,
                          int64_t last)
{
    const uint32_t window = a->c->attn.window_tokens;

    for (size_t i = 0; i < rows->n_tokens; i++)
        if (last > rows->positions[i] ||
            (window > 0 && first <= rows->positions[i] - (int64_t)window))
            return false;
    return true;
}

/* Blocks of a range of a head: whole runs. */
struct span {
    const struct tkv_head *head;
    uint32_t first, end;
};

static struct span span_of(const struct tkv_head *head, uint32_t range, uint32_t n_ranges)
{
    const uint64_t n = head->n_blocks;
    struct span s = {head, (uint32_t)(n * range / n_ranges), head->n_blocks};

    s.first -= s.first % TKV_RUN_BLOCKS;
    if (range + 1 < n_ranges) {
        s.end = (uint32_t)(n * (range + 1) / n_ranges);
        s.end -= s.end % TKV_RUN_BLOCKS;
    }
    return s;
}

/* The block that follows b in the next run: its codes are asked for while those of b are read, for
 * blocks of a head lie apart, too short for the processor to see a pattern. */
static void plan_fetch(const struct attend *a, const struct span *s, uint32_t b,
                       struct tkv_fused_block *block)
{
    const struct tkv_head *head = s->head;
    const uint32_t next = b + TKV_RUN_BLOCKS;
    const struct tkv_block_layout *layout;
    void *bytes;

    if (next >= s->end)
        return;
    layout = &a->c->tiers[head->blocks[next].tier];
    bytes = tkv_cache_at(a->c, head->blocks[next].id);
    block->next_keys = bytes;
    block->next_values = tkv_block_values(layout, bytes);
}

/* A run is of one tier. */
static bool ends_run(const struct span *s, uint32_t b)
{
    return b + 1 == s->end || s->head->blocks[b + 1].tier != s->head->blocks[b].tier;
}

static void attend_codes(const struct attend *a, const struct tkv_attn_rows *rows,
                         const struct span *s, struct tkv_work *w, struct tkv_partial *p)
{
    const struct tkv_block_layout *layout = NULL;
    struct tkv_fused_block blocks[TKV_RUN_BLOCKS];
    int32_t positions[TKV_RUN_BLOCKS][TKV_BLOCK_TOKENS];
    struct tkv_fused f;
    size_t n = 0;

    for (uint32_t b = s->first; b < s->end; b++) {
        const struct tkv_block *block = &s->head->blocks[b];
        void *bytes = tkv_cache_at(a->c, block->id);

        if (layout != &a->c->tiers[block->tier]) {
            layout = &a->c->tiers[block->tier];
            tkv_fused_init(&f, a->c->kn, layout->k, p->n_rows, w->coded, w->fused);
        }
        blocks[n] = (struct tkv_fused_block){
            .keys = bytes, .values = tkv_block_values(layout, bytes), .n = block->n_tokens};
        plan_fetch(a, s, b, &blocks[n]);
        if (!is_seen_whole(a, rows, block->first_position,
                           last_position(layout, s->head, b, bytes))) {
            block_positions(layout, block, bytes, positions[n]);
            blocks[n].positions = positions[n];
        }
        if (++n == TKV_RUN_BLOCKS || ends_run(s, b)) {
            tkv_fused_attend(&f, layout->v, &a->c->attn, rows, blocks, n, p);
            n = 0;
        }
    }
}

static void attend_tiles(const struct attend *a, const struct tkv_attn_rows *rows,
                         const struct span *s, struct tkv_work *w, struct tkv_partial *p)
{
    const struct tkv_kernels *kn = a->c->kn;
    int32_t positions[TKV_BLOCK_TOKENS];

    for (uint32_t b = s->first; b < s->end; b++) {
        const struct tkv_block *block = &s->head->blocks[b];
        const struct tkv_block_layout *layout = &a->c->tiers[block->tier];
        void *bytes = tkv_cache_at(a->c, block->id);

        block_positions(layout, block, bytes, positions);
        tkv_block_key_tile(layout, kn, bytes, w->tile);
        tkv_block_value_rows(layout, kn, bytes, w->tile, block->n_tokens, w->values);
        tkv_attend_tile(kn, &a->c->attn, rows, w->coded, tkv_block_tile_dim(layout), w->tile,
                        w->values, positions, block->n_tokens, p, w->scratch);
    }
}

static struct tkv_half_rows rows_of_head(const struct attend *a, const struct tkv_half_run *tier,
                                         size_t kv_head)
{
    const struct tkv_shape *shape = &a->c->shape;
    const size_t dk = shape->head_dim_k;
    const size_t dv = shape->rope_dim > 0 ? dk : shape->head_dim_v; /* from one value to the next */
    const uint16_t *v = shape->rope_dim > 0 ? tier->k : tier->v;
    const size_t at = kv_head * tier->cap;

    if (tier->n == 0)
        return (struct tkv_half_rows){.n = 0};
    return (struct tkv_half_rows){
        .k = tier->k + at * dk,
        .k_stride = dk,
        .v = v + at * dv,
        .v_stride = dv,
        .positions = tier->positions,
        .n = tier->n,
    };
}

static void attend_halves(const struct attend *a, const struct tkv_attn_rows *rows, size_t kv_head,
                          struct tkv_work *w)
{
    const struct tkv_cache *c = a->c;
    const struct tkv_half_rows runs[2] = {rows_of_head(a, &c->pinned, kv_head),
                                          rows_of_head(a, &c->tail, kv_head)};

    tkv_partial_init(w->half, w->half_memory, rows->n_tokens * rows->group, c->shape.head_dim_v);
    if (c->sinks)
        tkv_partial_add_sinks(w->half, c->sinks + kv_head * rows->group, rows->group);
    tkv_attend_half(c->kn, &c->attn, rows, w->q, c->shape.head_dim_k, runs, w->half, w->scratch);
}

/* The batch at hand over one range of a KV head, and with the first one over its half tiers. */
static void attend_range(const struct attend *a, size_t kv_head, uint32_t range, uint32_t n_ranges,
                         struct tkv_work *w)
{
    const struct tkv_cache *c = a->c;
    const struct tkv_attn_rows rows = {a->n, tkv_group(&c->shape), a->q->positions + a->first};
    const struct span s = span_of(&c->heads[kv_head], range, n_ranges);

    load_queries(a, kv_head, s.first < s.end, w);
    tkv_partial_init(w->cold, w->cold_memory, rows.n_tokens * rows.group, c->shape.head_dim_v);
    if (range == 0)
        attend_halves(a, &rows, kv_head, w);
    if (s.first == s.end)
        return;
    if (tkv_cache_is_fused(c, w->cold->n_rows))
        attend_codes(a, &rows, &s, w, w->cold);
    else
        attend_tiles(a, &rows, &s, w, w->cold);
}

static void store_result(const struct attend *a, size_t kv_head, const struct tkv_work *w)
{
    const struct tkv_shape *shape = &a->c->shape;
    const size_t group = tkv_group(shape);
    const size_t dv = shape->head_dim_v;

    for (size_t i = 0; i < a->n; i++) {
        const size_t head = (a->first + i) * shape->n_q_heads + kv_head * group;

        memcpy(a->q->out + head * dv, w->out + i * group * dv, group * dv * sizeof(float));
        if (a->q->lse)
            memcpy(a->q->lse + head, w->lse + i * group, group * sizeof(float));
    }
}

/* Merges the ranges of a KV head in order, all into the first, which w is. */
static void finish_head(const struct attend *a, size_t kv_head, uint32_t n_ranges,
                        const struct tkv_work *w)
{
    struct tkv_partial *cold = w->cold;

    for (uint32_t i = 1; i < n_ranges; i++)
        tkv_partial_merge(cold, work_of(a, kv_head, i).cold);
    if (a->c->heads[kv_head].n_blocks > 0) {
        for (size_t r = 0; r < cold->n_rows; r++)
            tkv_uncode_value(tkv_cache_any_tier(a->c)->v, a->c->kn, cold->out + r * cold->dim);
        tkv_partial_merge(w->half, cold);
    }
    tkv_partial_finish(w->half, w->out, w->lse);
    store_result(a, kv_head, w);
}

/* All batches of a short head at once. */
static void attend_head(void *arg, size_t kv_head)
{
    struct attend a = *(const struct attend *)arg;
    struct tkv_work w = work_of(&a, kv_head, 0);

    for (; a.first < a.q->n_tokens; a.first += a.batch_tokens) {
        a.n = a.q->n_tokens - a.first < a.batch_tokens ? a.q->n_tokens - a.first : a.batch_tokens;
        attend_range(&a, kv_head, 0, 1, &w);
        finish_head(&a, kv_head, 1, &w);
    }
}

static void attend_part(void *arg, size_t i)
{
    const struct attend *a = arg;
    const size_t kv_head = i % a->c->shape.n_kv_heads;
    const uint32_t range = (uint32_t)(i / a->c->shape.n_kv_heads);
    const uint32_t n_ranges = ranges_of(a, kv_head);
    struct tkv_work w;

    if (range >= n_ranges)
        return;
    w = work_of(a, kv_head, range);
    attend_range(a, kv_head, range, n_ranges, &w);
}

static void finish_part(void *arg, size_t kv_head)
{
    const struct attend *a = arg;
    const struct tkv_work w = work_of(a, kv_head, 0);

    finish_head(a, kv_head, ranges_of(a, kv_head), &w);
}

static void attend_ranges(struct attend *a, const struct tkv_exec *exec)
{
    const size_t n_heads = a->c->shape.n_kv_heads;

    for (; a->first < a->q->n_tokens; a->first += a->batch_tokens) {
        const uint32_t left = a->q->n_tokens - a->first;

        a->n = left < a->batch_tokens ? left : a->batch_tokens;
        tkv_exec_run(exec, n_heads * a->n_ranges, attend_part, a);
        tkv_exec_run(exec, n_heads, finish_part, a);
    }
}

void tkv_cache_attend(const struct tkv_cache *c, const struct tkv_queries *q, void *memory,
                      const struct tkv_exec *exec)
{
    struct attend a = {.c = c, .q = q, .memory = memory};

    a.batch_tokens = tkv_cache_batch(c, q->n_tokens);
    a.n_ranges = tkv_cache_ranges(c, tkv_cache_longest(c), a.batch_tokens);
    a.first_bytes = tkv_work_layout(c, a.batch_tokens, 0, NULL).bytes;
    if (a.n_ranges > 1)
        a.others_bytes = tkv_work_layout(c, a.batch_tokens, 1, NULL).bytes;
    if (a.n_ranges == 1)
        tkv_exec_run(exec, c->shape.n_kv_heads, attend_head, &a);
    else
        attend_ranges(&a, exec);
}

size_t tkv_cache_check_queries(const struct tkv_cache *c, const struct tkv_queries *q)
{
    return tkv_check_f16(c->kn, q->q, q->dtype,
                         (size_t)q->n_tokens * c->shape.n_q_heads * c->shape.head_dim_k);
}
