/*
 * After a selection: survivors move into new blocks, and the old blocks are released. Codes are copied
 * as they are, never decoded and coded again, which needs the same mean in all blocks
 * (fold.c says which).
 */
#include <assert.h>
#include <string.h>

#include "core/kernels.h"
#include "store/session_priv.h"

/* The survivors of one block. */
struct source {
    struct tkv_lane_run run;
    int32_t first_position;
};

/* Survivors that make one new block: whole sources from `first` on or parts of them. */
struct batch {
    struct tkv_lane_run runs[TKV_BLOCK_TOKENS];
    uint32_t n_runs, n;
    uint32_t first;
    int32_t first_position;
};

/* How far the sources are used up. */
struct place {
    uint32_t source;
    uint64_t taken; /* lanes of it */
};

/* One KV head on its way: sources[n_sources] are the survivors that go to new blocks. */
struct head_work {
    struct source *sources;
    struct tkv_block *fresh; /* new entries */
    uint32_t n_sources;
    uint32_t n_whole; /* leading blocks that stay */
    uint32_t n_fresh;
};

struct rebuild {
    struct tkv_session *s;
    struct tkv_layer *l;
    const struct tkv_keep *keep;
    uint8_t *memory;
    size_t head_bytes;
};

static void *take(uint8_t *base, size_t *at, size_t bytes)
{
    void *p = base ? base + *at : NULL;

    *at += tkv_align(bytes, 64);
    return p;
}

/* The head's own state sits at the start of its memory, so that it lasts from phase to phase. */
static struct head_work *head_layout(size_t cap_blocks, uint8_t *base, size_t *bytes)
{
    size_t at = 0;
    struct head_work *h = take(base, &at, sizeof(*h));
    struct source *sources = take(base, &at, cap_blocks * sizeof(*sources));
    struct tkv_block *fresh = take(base, &at, cap_blocks * sizeof(*fresh));

    if (h)
        *h = (struct head_work){.sources = sources, .fresh = fresh};
    *bytes = at;
    return h;
}

size_t tkv_rebuild_bytes(size_t cap_blocks)
{
    size_t bytes;

    (void)head_layout(cap_blocks, NULL, &bytes);
    return bytes;
}

/* ---- phase 1: what stays, what moves -------------------------------------------------------- */

static uint32_t kept_index(const struct tkv_keep *keep, uint32_t i)
{
    return keep->index ? keep->index[i] : i;
}

/* The lanes of the next block of n candidates, the first of which is `first`, that are kept;
 * *i goes on to the first kept candidate after them. */
static uint64_t kept_lanes(const struct tkv_keep *keep, uint32_t first, uint32_t n, uint32_t *i)
{
    uint64_t lanes = 0;

    for (; *i < keep->n && kept_index(keep, *i) - first < n; ++*i)
        lanes |= UINT64_C(1) << (kept_index(keep, *i) - first);
    return lanes;
}

/* Is block b as full as it can be? Others are made full with what comes after them. */
static bool is_closed(const struct tkv_head *head, uint32_t b)
{
    const struct tkv_block *block = &head->blocks[b];

    return block->n_tokens == TKV_BLOCK_TOKENS || b + 1 == head->n_blocks ||
           block[1].first_position - block->first_position > TKV_BLOCK_SPAN;
}

/* The survivors of the old blocks. Leading blocks that are kept whole stay as they are. */
static void plan_sources(const struct rebuild *r, const struct tkv_head *head,
                         const struct tkv_keep *keep, struct head_work *w)
{
    uint32_t first = 0, i = 0;

    for (uint32_t b = 0; b < head->n_blocks; b++) {
        const struct tkv_block *block = &head->blocks[b];
        const uint64_t all = UINT64_MAX >> (TKV_BLOCK_TOKENS - block->n_tokens);
        const uint64_t lanes = kept_lanes(keep, first, block->n_tokens, &i);

        if (w->n_whole == b && lanes == all && is_closed(head, b))
            w->n_whole++;
        else if (lanes)
            w->sources[w->n_sources++] =
                (struct source){.run = {tkv_arena_at(r->s->arena, block->id), lanes},
                                .first_position = block->first_position};
        first += block->n_tokens;
    }
}

static int32_t position_of(const struct rebuild *r, const struct source *source, unsigned lane)
{
    const uint16_t *distance = (const uint16_t *)(const void *)((const uint8_t *)source->run.block +
                                                                r->l->layout.positions_offset);

    return source->first_position + distance[lane];
}

static unsigned first_lane(uint64_t lanes)
{
    return (unsigned)__builtin_ctzll(lanes);
}

static unsigned last_lane(uint64_t lanes)
{
    return 63 - (unsigned)__builtin_clzll(lanes);
}

/* The first lanes of a source: at most n, which is lessened, and all within the span of a block
 * that begins at first_position. */
static uint64_t take_lanes(const struct rebuild *r, const struct source *source, uint64_t lanes,
                           int32_t first_position, uint32_t *n)
{
    uint64_t left = lanes;

    for (; left && *n > 0; --*n)
        left &= left - 1;
    for (lanes &= ~left;
         lanes && position_of(r, source, last_lane(lanes)) - first_position > TKV_BLOCK_SPAN; ++*n)
        lanes &= ~(UINT64_C(1) << last_lane(lanes));
    return lanes;
}

/* The next 64 survivors, or fewer where positions lie too far apart or none are left. */
static void take_batch(const struct rebuild *r, const struct head_work *w, struct place *at,
                       struct batch *b)
{
    uint32_t room = TKV_BLOCK_TOKENS;

    b->first = at->source;
    b->n_runs = 0;
    for (; at->source < w->n_sources && room > 0; *at = (struct place){.source = at->source + 1}) {
        const struct source *source = &w->sources[at->source];
        const uint64_t left = source->run.lanes & ~at->taken;
        uint64_t lanes;

        if (room == TKV_BLOCK_TOKENS)
            b->first_position = position_of(r, source, first_lane(left));
        lanes = take_lanes(r, source, left, b->first_position, &room);
        if (lanes)
            b->runs[b->n_runs++] = (struct tkv_lane_run){source->run.block, lanes};
        at->taken |= lanes;
        if (lanes != left)
            break;
    }
    b->n = TKV_BLOCK_TOKENS - room;
}

static struct head_work *head_at(const struct rebuild *r, size_t kv_head)
{
    return (struct head_work *)(void *)(r->memory + kv_head * r->head_bytes);
}

static void plan_head(void *arg, size_t kv_head)
{
    const struct rebuild *r = arg;
    const struct tkv_head *head = &r->l->heads[kv_head];
    struct place at = {0};
    struct head_work *w;
    struct batch b;
    size_t bytes;

    w = head_layout(head->cap_blocks, r->memory + kv_head * r->head_bytes, &bytes);
    assert(bytes <= r->head_bytes);
    plan_sources(r, head, &r->keep[kv_head], w);
    for (take_batch(r, w, &at, &b); b.n > 0; take_batch(r, w, &at, &b)) {
        assert(w->n_whole + w->n_fresh < head->cap_blocks);
        w->fresh[w->n_fresh++] =
            (struct tkv_block){.first_position = b.first_position, .n_tokens = b.n};
    }
}

/* ---- phases 2 to 4: blocks are allocated, filled, and take the place of the old ------------- */

/* Distances of gathered tokens from the first: those of their sources, moved. */
static void gather_positions(const struct rebuild *r, const struct head_work *w,
                             const struct batch *b, const struct tkv_gather *g, uint16_t *distance)
{
    const size_t at = r->l->layout.positions_offset;

    tkv_gather_halves(r->s->kn, distance, g, at);
    for (size_t i = 0; i < b->n_runs; i++) {
        const int32_t from = w->sources[b->first + i].first_position - b->first_position;

        for (size_t t = g->first[i]; t < g->first[i + 1]; t++)
            distance[t] = (uint16_t)(distance[t] + from);
    }
}

/* Ask for the memory of a source that the next block will need. */
static void fetch_source(const struct rebuild *r, const struct head_work *w, uint32_t i)
{
    const char *p;

    if (i >= w->n_sources)
        return;
    p = w->sources[i].run.block;
    for (size_t at = 0; at < r->l->layout.bytes; at += 64)
        __builtin_prefetch(p + at);
}

static void fill_block(const struct rebuild *r, const struct head_work *w, const struct batch *b,
                       void *bytes)
{
    struct tkv_gather g;

    tkv_gather_init(&g, b->runs, b->n_runs);
    tkv_block_gather(&r->l->layout, r->s->kn, bytes, &g);
    gather_positions(r, w, b, &g, tkv_block_positions(&r->l->layout, bytes));
}

static void fill_head(void *arg, size_t kv_head)
{
    const struct rebuild *r = arg;
    const struct head_work *w = head_at(r, kv_head);
    struct place at = {0};
    struct batch survivors;

    for (uint32_t b = 0; b < w->n_fresh; b++) {
        take_batch(r, w, &at, &survivors);
        fetch_source(r, w, at.source + 1);
        fill_block(r, w, &survivors, tkv_arena_at(r->s->arena, w->fresh[b].id));
    }
}

static void install_head(const struct rebuild *r, uint32_t kv_head)
{
    struct tkv_head *head = &r->l->heads[kv_head];
    const struct head_work *w = head_at(r, kv_head);

    for (uint32_t b = w->n_whole; b < head->n_blocks; b++)
        tkv_arena_unref(r->s->arena, head->blocks[b].id);
    memcpy(head->blocks + w->n_whole, w->fresh, w->n_fresh * sizeof(*w->fresh));
    head->n_blocks = w->n_whole + w->n_fresh;
    r->s->n_evicted += head->n_cold - r->keep[kv_head].n;
    head->n_cold = r->keep[kv_head].n;
}

void tkv_layer_rebuild(struct tkv_session *s, struct tkv_layer *l, const struct tkv_keep *keep,
                       void *memory, size_t head_bytes, const struct tkv_exec *exec)
{
    const uint32_t n_kv_heads = l->config.shape.n_kv_heads;
    struct rebuild r = {.s = s, .l = l, .keep = keep, .memory = memory, .head_bytes = head_bytes};

    tkv_exec_run(exec, n_kv_heads, plan_head, &r);
    for (uint32_t h = 0; h < n_kv_heads; h++)
        for (uint32_t b = 0; b < head_at(&r, h)->n_fresh; b++)
            head_at(&r, h)->fresh[b].id = tkv_arena_take(s->arena, l->layout.bytes);
    tkv_exec_run(exec, n_kv_heads, fill_head, &r);
    for (uint32_t h = 0; h < n_kv_heads; h++)
        install_head(&r, h);
    s->generation++;
}
