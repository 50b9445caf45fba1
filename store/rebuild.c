/*
 * After a selection: survivors move into new blocks, and the old blocks are free. Codes are copied
 * as they are, never decoded and coded again, which needs the same mean in all blocks
 * (fold.c says which). Places in the arena are taken and given back by who holds the round.
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
struct rebuild {
    const struct tkv_session *s;
    const struct tkv_block_layout *layout;
    struct source *sources;
    struct tkv_block *fresh; /* new entries */
    struct tkv_places *places;
    uint32_t n_sources;
    uint32_t n_whole; /* leading blocks that stay */
    uint32_t n_fresh;
};

static size_t source_bytes(size_t cap_blocks)
{
    return tkv_align(cap_blocks * sizeof(struct source), 64);
}

size_t tkv_rebuild_bytes(size_t cap_blocks)
{
    return source_bytes(cap_blocks) + tkv_align(cap_blocks * sizeof(struct tkv_block), 64);
}

/* ---- what stays, what moves ------------------------------------------------------------------- */

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
static void plan_sources(struct rebuild *r, const struct tkv_head *head,
                         const struct tkv_keep *keep)
{
    uint32_t first = 0, i = 0;

    for (uint32_t b = 0; b < head->n_blocks; b++) {
        const struct tkv_block *block = &head->blocks[b];
        const uint64_t all = UINT64_MAX >> (TKV_BLOCK_TOKENS - block->n_tokens);
        const uint64_t lanes = kept_lanes(keep, first, block->n_tokens, &i);

        if (r->n_whole == b && lanes == all && is_closed(head, b))
            r->n_whole++;
        else if (lanes)
            r->sources[r->n_sources++] =
                (struct source){.run = {tkv_arena_at(r->s->arena, block->id), lanes},
                                .first_position = block->first_position};
        first += block->n_tokens;
    }
}

static int32_t position_of(const struct rebuild *r, const struct source *source, unsigned lane)
{
    const uint16_t *distance = (const uint16_t *)(const void *)((const uint8_t *)source->run.block +
                                                                r->layout->positions_offset);

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
    uint32_t count = (uint32_t)__builtin_popcountll(lanes);

    for (; count > *n; count--)
        lanes &= ~(UINT64_C(1) << last_lane(lanes));
    for (; count > 0 && position_of(r, source, last_lane(lanes)) - first_position > TKV_BLOCK_SPAN;
         count--)
        lanes &= ~(UINT64_C(1) << last_lane(lanes));
    *n -= count;
    return lanes;
}

/* The next 64 survivors, or fewer where positions lie too far apart or none are left. */
static void take_batch(const struct rebuild *r, struct place *at, struct batch *b)
{
    uint32_t room = TKV_BLOCK_TOKENS;

    b->first = at->source;
    b->n_runs = 0;
    for (; at->source < r->n_sources && room > 0; *at = (struct place){.source = at->source + 1}) {
        const struct source *source = &r->sources[at->source];
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

/* ---- blocks are filled and take the place of the old ------------------------------------------ */

/* Distances of gathered tokens from the first: those of their sources, moved. */
static void gather_positions(const struct rebuild *r, const struct batch *b,
                             const struct tkv_gather *g, uint16_t *distance)
{
    const size_t at = r->layout->positions_offset;

    tkv_gather_halves(r->s->kn, distance, g, at);
    for (size_t i = 0; i < b->n_runs; i++) {
        const int32_t from = r->sources[b->first + i].first_position - b->first_position;

        for (size_t t = g->first[i]; t < g->first[i + 1]; t++)
            distance[t] = (uint16_t)(distance[t] + from);
    }
}

/* Ask for the memory of a source that the next block will need. */
static void fetch_source(const struct rebuild *r, uint32_t i)
{
    const char *p;

    if (i >= r->n_sources)
        return;
    p = r->sources[i].run.block;
    for (size_t at = 0; at < r->layout->bytes; at += 64)
        __builtin_prefetch(p + at);
}

static void fill_block(const struct rebuild *r, const struct batch *b, void *bytes)
{
    struct tkv_gather g;

    tkv_gather_init(&g, b->runs, b->n_runs);
    tkv_block_gather(r->layout, r->s->kn, bytes, &g);
    gather_positions(r, b, &g, tkv_block_positions(r->layout, bytes));
}

/* How many it will be is only known when the last survivor has its place. */
static void fill_blocks(struct rebuild *r, const struct tkv_head *head)
{
    struct place at = {0};
    struct batch b;

    for (take_batch(r, &at, &b); b.n > 0; take_batch(r, &at, &b)) {
        struct tkv_block *fresh = &r->fresh[r->n_fresh++];

        assert(r->n_whole + r->n_fresh <= head->cap_blocks && r->n_fresh <= r->places->n);
        fetch_source(r, at.source + 1);
        *fresh = (struct tkv_block){.id = r->places->ids[r->n_fresh - 1],
                                    .first_position = b.first_position,
                                    .n_tokens = (uint16_t)b.n};
        fill_block(r, &b, tkv_arena_at(r->s->arena, fresh->id));
    }
}

/* The places not used, then those of the old blocks: what was read last is the first to be used again. */
static void list_free(const struct rebuild *r, const struct tkv_head *head)
{
    struct tkv_places *p = r->places;

    p->n -= r->n_fresh;
    memmove(p->ids, p->ids + r->n_fresh, p->n * sizeof(*p->ids));
    for (uint32_t b = r->n_whole; b < head->n_blocks; b++)
        p->ids[p->n++] = head->blocks[b].id;
}

size_t tkv_places_bytes(size_t cap_blocks)
{
    return tkv_align(2 * cap_blocks * sizeof(struct tkv_block_id), 64);
}

void tkv_head_rebuild(const struct tkv_session *s, const struct tkv_block_layout *layout,
                      struct tkv_head *head, const struct tkv_keep *keep, struct tkv_places *places,
                      void *memory)
{
    struct rebuild r = {
        .s = s,
        .layout = layout,
        .sources = memory,
        .fresh = (void *)((uint8_t *)memory + source_bytes(head->cap_blocks)),
        .places = places,
    };

    plan_sources(&r, head, keep);
    fill_blocks(&r, head);
    list_free(&r, head);
    memcpy(head->blocks + r.n_whole, r.fresh, r.n_fresh * sizeof(*r.fresh));
    head->n_blocks = r.n_whole + r.n_fresh;
    head->n_cold = keep->n;
}
