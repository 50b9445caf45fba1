/*
 * After a selection: survivors move into new blocks, warm ones are encoded on the way, and the
 * old blocks are released. Codes are copied as they are, never decoded and coded again, which
 * needs the same mean in all blocks, and that is zero: a mean of the first tokens turns
 * away from later keys with their RoPE phases, which was measured to be worse than none
 * (tests/check_kv_quality.c). Without eviction nothing moves: blocks are added, each with
 * the mean of its own tokens.
 */
#include <string.h>

#include "core/half.h"
#include "core/kernels.h"
#include "store/session_priv.h"

/* The survivors of one block, or of one that holds encoded warm tokens. */
struct source {
    struct tkv_lane_run run;
    int32_t first_position;
    const int32_t *positions; /* of warm tokens; NULL: in the block */
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
    uint8_t *encoded;        /* blocks of the warm survivors */
    int32_t *positions;      /* of the warm survivors, 64 for each of these blocks */
    float *x;                /* [64][dim] */
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
    uint32_t n_warm;
};

static void *take(uint8_t *base, size_t *at, size_t bytes)
{
    void *p = base ? base + *at : NULL;

    *at += tkv_align(bytes, 64);
    return p;
}

static bool evicts(const struct tkv_session *s)
{
    return s->config.method != TKV_METHOD_NONE;
}

/* The head's own state sits at the start of its memory, so that it lasts from phase to phase. */
static struct head_work *head_layout(const struct tkv_session *s, const struct tkv_layer *l,
                                     size_t n_candidates, uint32_t n_warm, uint8_t *base,
                                     size_t *bytes)
{
    const struct tkv_shape *shape = &l->config.shape;
    const size_t dim =
        shape->head_dim_k > shape->head_dim_v ? shape->head_dim_k : shape->head_dim_v;
    const size_t n_moving = evicts(s) ? n_candidates : 0;
    const size_t n_encoded = evicts(s) ? (n_warm + TKV_BLOCK_TOKENS - 1) / TKV_BLOCK_TOKENS : 0;
    size_t at = 0;
    struct head_work *h = take(base, &at, sizeof(*h));
    /* Every block holds one of the candidates at least. */
    struct source *sources = take(base, &at, n_moving * sizeof(*sources));
    uint8_t *encoded = take(base, &at, n_encoded * l->layout.bytes);
    int32_t *positions = take(base, &at, n_encoded * TKV_BLOCK_TOKENS * sizeof(*positions));
    float *x = take(base, &at, dim * TKV_BLOCK_TOKENS * sizeof(float));
    struct tkv_block *fresh = take(base, &at, (n_moving + n_warm) * sizeof(*fresh));

    if (h)
        *h = (struct head_work){
            .sources = sources, .encoded = encoded, .positions = positions, .x = x, .fresh = fresh};
    *bytes = at;
    return h;
}

size_t tkv_rebuild_bytes(const struct tkv_session *s, const struct tkv_layer *l,
                         size_t n_candidates, uint32_t n_warm)
{
    size_t bytes;

    (void)head_layout(s, l, n_candidates, n_warm, NULL, &bytes);
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

/*
 * The survivors of the old blocks; returns how many. Leading blocks stay as they are if they are
 * kept whole, and full unless more blocks follow (one cut short because positions lie far apart).
 */
static uint32_t plan_cold(const struct rebuild *r, const struct tkv_head *head,
                          const struct tkv_keep *keep, struct head_work *w)
{
    uint32_t first = 0, i = 0;

    for (uint32_t b = 0; b < head->n_blocks; b++) {
        const struct tkv_block *block = &head->blocks[b];
        const uint64_t all = UINT64_MAX >> (TKV_BLOCK_TOKENS - block->n_tokens);
        const uint64_t lanes = kept_lanes(keep, first, block->n_tokens, &i);
        const bool last = b + 1 == head->n_blocks;

        if (w->n_whole == b && lanes == all && (block->n_tokens == TKV_BLOCK_TOKENS || !last))
            w->n_whole++;
        else if (lanes)
            w->sources[w->n_sources++] =
                (struct source){.run = {tkv_arena_at(r->s->arena, block->id), lanes},
                                .first_position = block->first_position};
        first += block->n_tokens;
    }
    return i;
}

/* x[n][dim] = the listed tokens of a head's share of the tail. */
static void load_warm(const struct tkv_kernels *kn, const uint16_t *halves, size_t dim,
                      const uint32_t *token, uint32_t n, float *x)
{
    for (uint32_t i = 0; i < n; i++)
        kn->f16_to_f32(x + i * dim, halves + token[i] * dim, dim);
}

/* Encode n warm tokens, whose places in the tail are given, into one block, with their own means
 * if they stay together. */
static void encode_warm(const struct rebuild *r, uint32_t kv_head, const uint32_t *token,
                        uint32_t n, float *x, uint8_t *block)
{
    const struct tkv_layer *l = r->l;
    const struct tkv_kernels *kn = r->s->kn;
    const size_t dk = l->config.shape.head_dim_k, dv = l->config.shape.head_dim_v;
    const size_t at = (size_t)kv_head * l->tail.cap;
    uint8_t mean[TKV_MAX_MEAN_BYTES] = {0};

    load_warm(kn, l->tail.k + at * dk, dk, token, n, x);
    if (!evicts(r->s))
        tkv_code_mean(l->layout.k, kn, TKV_KEYS, x, n, mean);
    tkv_encode_keys(l->layout.k, kn, mean, x, n, block);
    load_warm(kn, l->tail.v + at * dv, dv, token, n, x);
    if (!evicts(r->s))
        tkv_code_mean(l->layout.v, kn, TKV_VALUES, x, n, mean);
    tkv_encode_values(l->layout.v, kn, mean, x, n, tkv_block_values(&l->layout, block));
    for (uint32_t g = 0; g < l->layout.n_score_heads; g++) {
        const size_t q_head = (size_t)kv_head * l->layout.n_score_heads + g;
        uint16_t *norm_terms = tkv_block_scores(&l->layout, block, g);

        for (uint32_t i = 0; i < n; i++)
            norm_terms[i] = tkv_f32_to_f16(l->tail.scores[q_head * l->tail.cap + token[i]]);
    }
}

static void plan_warm(const struct rebuild *r, uint32_t kv_head, const struct tkv_keep *keep,
                      struct head_work *w, uint32_t i)
{
    const uint32_t n_cold = r->l->heads[kv_head].n_cold;
    uint8_t *block = w->encoded;
    int32_t *positions = w->positions;
    uint32_t token[TKV_BLOCK_TOKENS];

    while (i < keep->n) {
        uint32_t n = 0;

        for (; i < keep->n && n < TKV_BLOCK_TOKENS; i++, n++) {
            token[n] = kept_index(keep, i) - n_cold;
            positions[n] = r->l->tail.positions[token[n]];
        }
        encode_warm(r, kv_head, token, n, w->x, block);
        w->sources[w->n_sources++] = (struct source){
            .run = {block, UINT64_MAX >> (TKV_BLOCK_TOKENS - n)}, .positions = positions};
        block += r->l->layout.bytes;
        positions += TKV_BLOCK_TOKENS;
    }
}

static int32_t position_of(const struct rebuild *r, const struct source *source, unsigned lane)
{
    const uint16_t *distance;

    if (source->positions)
        return source->positions[lane];
    distance = (const uint16_t *)(const void *)((const uint8_t *)source->run.block +
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

/* New entries for n tokens from `first` of the tail on, which stay together. */
static void cut_warm(const struct rebuild *r, struct head_work *w)
{
    const int32_t *position = r->l->tail.positions;

    for (uint32_t i = 0; i < r->n_warm; i++) {
        struct tkv_block *last = w->n_fresh ? &w->fresh[w->n_fresh - 1] : NULL;

        if (!last || last->n_tokens == TKV_BLOCK_TOKENS ||
            position[i] - last->first_position > TKV_BLOCK_SPAN) {
            last = &w->fresh[w->n_fresh++];
            *last = (struct tkv_block){.first_position = position[i]};
        }
        last->n_tokens++;
    }
}

static struct head_work *head_at(const struct rebuild *r, size_t kv_head)
{
    return (struct head_work *)(void *)(r->memory + kv_head * r->head_bytes);
}

static void plan_head(void *arg, size_t kv_head)
{
    const struct rebuild *r = arg;
    const struct tkv_head *head = &r->l->heads[kv_head];
    const struct tkv_keep *keep = &r->keep[kv_head];
    struct place at = {0};
    struct head_work *w;
    struct batch b;
    size_t bytes;

    w = head_layout(r->s, r->l, (size_t)head->n_cold + r->n_warm, r->n_warm,
                    r->memory + kv_head * r->head_bytes, &bytes);
    if (!evicts(r->s)) {
        w->n_whole = head->n_blocks;
        cut_warm(r, w);
        return;
    }
    plan_warm(r, (uint32_t)kv_head, keep, w, plan_cold(r, head, keep, w));
    for (take_batch(r, w, &at, &b); b.n > 0; take_batch(r, w, &at, &b))
        w->fresh[w->n_fresh++] =
            (struct tkv_block){.first_position = b.first_position, .n_tokens = b.n};
}

/* ---- phases 2 to 4: blocks are allocated, filled, and take the place of the old ------------- */

/* Distances of gathered tokens from the first: those of their sources, moved. */
static void gather_positions(const struct rebuild *r, const struct head_work *w,
                             const struct batch *b, const struct tkv_gather *g, uint16_t *distance)
{
    const size_t at = r->l->layout.positions_offset;

    tkv_gather_halves(r->s->kn, distance, g, at);
    for (size_t i = 0; i < b->n_runs; i++) {
        const struct source *source = &w->sources[b->first + i];
        const int32_t from = source->first_position - b->first_position;

        for (size_t t = g->first[i]; t < g->first[i + 1]; t++)
            distance[t] =
                (uint16_t)(source->positions ? source->positions[g->lane[t]] - b->first_position
                                             : distance[t] + from);
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

/* Encode warm tokens from `first` on straight into a fresh block; returns the next. */
static uint32_t encode_block(const struct rebuild *r, size_t kv_head, const struct tkv_block *fresh,
                             uint8_t *bytes, uint32_t first, float *x)
{
    uint16_t *distance = tkv_block_positions(&r->l->layout, bytes);
    uint32_t token[TKV_BLOCK_TOKENS];

    for (uint32_t i = 0; i < fresh->n_tokens; i++) {
        token[i] = first + i;
        distance[i] = (uint16_t)(r->l->tail.positions[first + i] - fresh->first_position);
    }
    encode_warm(r, (uint32_t)kv_head, token, fresh->n_tokens, x, bytes);
    return first + fresh->n_tokens;
}

static void fill_head(void *arg, size_t kv_head)
{
    const struct rebuild *r = arg;
    const struct head_work *w = head_at(r, kv_head);
    struct place at = {0};
    struct batch survivors;
    uint32_t first = 0;

    for (uint32_t b = 0; b < w->n_fresh; b++) {
        void *bytes = tkv_arena_at(r->s->arena, w->fresh[b].id);

        if (evicts(r->s)) {
            take_batch(r, w, &at, &survivors);
            fetch_source(r, w, at.source + 1);
            fill_block(r, w, &survivors, bytes);
        } else {
            first = encode_block(r, kv_head, &w->fresh[b], bytes, first, w->x);
        }
    }
}

static void install_head(const struct rebuild *r, uint32_t kv_head)
{
    struct tkv_head *head = &r->l->heads[kv_head];
    const struct head_work *w = head_at(r, kv_head);
    const uint32_t n_candidates = head->n_cold + r->n_warm;

    for (uint32_t b = w->n_whole; b < head->n_blocks; b++)
        tkv_arena_unref(r->s->arena, head->blocks[b].id);
    memcpy(head->blocks + w->n_whole, w->fresh, w->n_fresh * sizeof(*w->fresh));
    head->n_blocks = w->n_whole + w->n_fresh;
    head->n_cold = r->keep[kv_head].n;
    r->s->n_evicted += n_candidates - head->n_cold;
}

void tkv_layer_rebuild(struct tkv_session *s, struct tkv_layer *l, const struct tkv_keep *keep,
                       void *memory, size_t head_bytes, const struct tkv_exec *exec)
{
    const uint32_t n_kv_heads = l->config.shape.n_kv_heads;
    struct rebuild r = {.s = s,
                        .l = l,
                        .keep = keep,
                        .memory = memory,
                        .head_bytes = head_bytes,
                        .n_warm = tkv_layer_warm(s, l)};

    tkv_exec_run(exec, n_kv_heads, plan_head, &r);
    for (uint32_t h = 0; h < n_kv_heads; h++)
        for (uint32_t b = 0; b < head_at(&r, h)->n_fresh; b++)
            head_at(&r, h)->fresh[b].id = evicts(s) ? tkv_arena_take(s->arena, l->layout.bytes)
                                                    : tkv_arena_alloc(s->arena, l->layout.bytes);
    tkv_exec_run(exec, n_kv_heads, fill_head, &r);
    for (uint32_t h = 0; h < n_kv_heads; h++)
        install_head(&r, h);
    tkv_tail_drop(&l->tail, &l->config.shape, r.n_warm);
    l->n_rounds++;
    s->generation++;
}
