/*
 * Rounds of method default. No token is scored and none moves: a head's warm tokens join its last
 * block, which is open until it is full, in a tier that costs little to code again; then the block
 * is coded in the head's own tier, with the mean of its 64 tokens. Blocks that are wholly behind a
 * head's reach are dropped. All heads of a layer that keep anything cold cut their blocks at the same
 * tokens.
 */
#include <string.h>

#include "core/half.h"
#include "core/kernels.h"
#include "proto/errors.h"
#include "proto/limits.h"
#include "store/budget.h"
#include "store/journal.h"

/* Working memory of one head. */
struct work {
    float *k; /* [64][head_dim_k] */
    float *v; /* [64][head_dim_v] */
    uint8_t *block;
    size_t bytes;
};

/* Warm tokens [first, first + n) of the tail on their way into one block. */
struct piece {
    struct tkv_session *s;
    struct tkv_layer *l;
    uint8_t *memory;
    size_t work_bytes;
    uint32_t first, n;
    uint32_t n_open; /* tokens of the open block that they join; 0: a new one */
};

static void *take(uint8_t *base, size_t *at, size_t bytes)
{
    void *p = base ? base + *at : NULL;

    *at += tkv_align(bytes, 64);
    return p;
}

static struct work work_layout(const struct tkv_layer *l, uint8_t *base)
{
    const struct tkv_shape *shape = &l->config.shape;
    size_t at = 0, most = 0;
    struct work w = {0};

    for (uint32_t i = 0; i < l->ladder->n_tiers; i++)
        most = l->ladder->tiers[i].bytes > most ? l->ladder->tiers[i].bytes : most;
    w.k = take(base, &at, (size_t)shape->head_dim_k * TKV_BLOCK_TOKENS * sizeof(float));
    w.v = take(base, &at, (size_t)shape->head_dim_v * TKV_BLOCK_TOKENS * sizeof(float));
    w.block = take(base, &at, most);
    w.bytes = at;
    return w;
}

/* ---- preparation ------------------------------------------------------------------------- */

/* Blocks more than there are, by tier. */
struct need {
    size_t n[TKV_PLAN_TIERS];
};

static const struct tkv_block *last_block(const struct tkv_head *h)
{
    return h->n_blocks > 0 ? &h->blocks[h->n_blocks - 1] : NULL;
}

/* Blocks that stay when they are dropped, because forks or a checkpoint refer to them, too. */
static size_t count_held(const struct tkv_session *s, const struct tkv_head *h)
{
    return h->n_blocks == 0
               ? 0
               : tkv_arena_count_shared(s->arena, &h->blocks->id, sizeof(*h->blocks), h->n_blocks);
}

/* Blocks that can end early because positions lie too far apart. */
static size_t count_spans(const struct tkv_layer *l, const struct tkv_head *h, int32_t last)
{
    const struct tkv_block *block = last_block(h);
    const int32_t from = block           ? block->first_position
                         : l->tail.n > 0 ? l->tail.positions[0]
                                         : l->last_position + 1;

    return last > from ? (size_t)(last - from) / TKV_BLOCK_SPAN : 0;
}

/* A journal has what goes until the fold is committed. */
static size_t fold_blocks(const struct tkv_session *s)
{
    return s->journal ? s->config.beta_tokens / TKV_BLOCK_TOKENS + 2 : 0;
}

/* Full blocks that n tokens more make; with a reach one goes for each that comes, from some on. */
static size_t count_full(const struct tkv_session *s, const struct tkv_head *h,
                         const struct tkv_rung *rung, size_t n)
{
    const size_t most = ((size_t)rung->reach_tokens + TKV_BLOCK_TOKENS - 1) / TKV_BLOCK_TOKENS;
    const bool open = h->n_blocks > 0 && h->blocks[h->n_blocks - 1].n_tokens < TKV_BLOCK_TOKENS;
    const size_t full = h->n_blocks - open;
    const size_t there = full < most ? full : most;
    const size_t more = most - there + 1 + count_held(s, h) + fold_blocks(s);
    const size_t n_full = n / TKV_BLOCK_TOKENS;

    return rung->reach_tokens == TKV_PLAN_ALL || n_full < more ? n_full : more;
}

/* Tokens that leave the tail for n_new that come, or in a round that was asked for. */
static size_t count_folded(const struct tkv_session *s, const struct tkv_layer *l, uint32_t n_new)
{
    const size_t room = l->pinned.most - l->pinned.n + l->tail.most - l->tail.n;
    const size_t n = tkv_layer_fold_tokens(s, l);

    if (n_new == 0)
        return tkv_layer_warm(s, l);
    return n_new > room ? (n_new - room + n - 1) / n * n : 0;
}

static int prepare_head(struct tkv_session *s, struct tkv_layer *l, uint32_t kv_head,
                        uint32_t n_new, int32_t last_position, struct need *need,
                        struct tkv_report *why)
{
    struct tkv_head *h = &l->heads[kv_head];
    const struct tkv_rung *rung = &l->ladder->rungs[kv_head];
    const size_t spans = count_spans(l, h, last_position);
    const struct tkv_block *open;
    size_t n_open = 0, n_full;
    int e;

    if (rung->reach_tokens == 0)
        return 0;
    if (h->n_blocks > 0)
        n_open = last_block(h)->n_tokens % TKV_BLOCK_TOKENS;
    n_full = count_full(s, h, rung, n_open + count_folded(s, l, n_new));
    e = tkv_head_own(s, h, h->n_blocks + n_full + spans + 2, why);
    if (e)
        return e;
    open = last_block(h); /* counted when the table is this session's own, as the others */
    n_full = count_full(s, h, rung, n_open + count_folded(s, l, n_new));
    need->n[rung->tier] += n_full;
    /* The open block and the one that takes its place. */
    need->n[rung->open_tier] +=
        spans + 1 + (s->journal != NULL) +
        (n_open > 0 ? tkv_arena_count_shared(s->arena, &open->id, sizeof(*open), 1) : 1);
    return 0;
}

/* Blocks of one size, in whatever layer and tier. */
static size_t sum_needs(const struct tkv_session *s, const struct need *needs, uint32_t first,
                        uint32_t n, size_t bytes)
{
    size_t sum = 0;

    for (uint32_t i = first; i < first + n; i++)
        for (uint32_t t = 0; t < s->layers[i].ladder->n_tiers; t++)
            if (s->layers[i].ladder->tiers[t].bytes == bytes)
                sum += needs[i].n[t];
    return sum;
}

static int reserve(struct tkv_session *s, const struct need *needs, uint32_t first, uint32_t n,
                   struct tkv_report *why)
{
    int e = 0;

    /* To reserve a number twice is to reserve it once. */
    for (uint32_t i = first; i < first + n; i++)
        for (uint32_t t = 0; !e && t < s->layers[i].ladder->n_tiers; t++)
            if (needs[i].n[t] > 0) {
                const size_t bytes = s->layers[i].ladder->tiers[t].bytes;

                e = tkv_arena_reserve(s->arena, bytes, sum_needs(s, needs, first, n, bytes), why);
            }
    return e;
}

/* Slabs for what a journal has until folds of all layers are committed. */
static uint64_t fold_bytes(const struct tkv_session *s)
{
    uint64_t bytes = 0;

    for (uint32_t i = 0; s->journal && i < s->config.n_layers; i++) {
        const struct tkv_ladder *ladder = s->layers[i].ladder;

        for (uint32_t t = 0; t < ladder->n_tiers; t++) {
            size_t n = 0;

            for (uint32_t h = 0; h < s->layers[i].config.shape.n_kv_heads; h++)
                n += (ladder->rungs[h].tier == t ? fold_blocks(s) : 0) +
                     (ladder->rungs[h].open_tier == t);
            bytes += tkv_arena_slabs_bytes(s->arena, ladder->tiers[t].bytes, false, n);
        }
    }
    return bytes;
}

/* The budget is the same with a journal and without, so that both keep the same: its memory comes on top. */
static int check_budget(const struct tkv_session *s, struct tkv_report *why)
{
    const uint64_t bytes = tkv_session_resident_bytes(s);

    if (bytes <= s->config.budget_bytes + tkv_journal_bytes(s) + fold_bytes(s))
        return 0;
    return tkv_fail(why, TRIKV_E_QUOTA,
                    "the session would take %llu bytes, its budget_bytes are %llu, planned for %u "
                    "tokens",
                    (unsigned long long)bytes, (unsigned long long)s->config.budget_bytes,
                    s->horizon_tokens);
}

/* A plan that the layers outgrow is made anew, and what it takes from them goes first. */
static int come_down(struct tkv_session *s, uint32_t first, uint32_t n, uint32_t n_new,
                     struct tkv_report *why)
{
    int e = 0;

    for (uint32_t i = first; !e && n_new > 0 && i < first + n; i++)
        if (s->layers[i].n_seen + n_new > s->horizon_tokens)
            e = tkv_ladder_plan_again(s, s->layers[i].n_seen + n_new, why);
    for (uint32_t i = first; !e && i < first + n; i++)
        if (s->layers[i].moves)
            e = tkv_ladder_move(s, &s->layers[i], why);
    tkv_journal_commit(s, first, n); /* also if it stopped half-way: what went makes room then */
    return e;
}

int tkv_ladder_prepare(struct tkv_session *s, struct tkv_layer *l, uint32_t n_new,
                       int32_t last_position, struct tkv_round_memory *m, struct tkv_report *why)
{
    const uint32_t first = l ? (uint32_t)(l - s->layers) : 0;
    const uint32_t n = l ? 1 : s->config.n_layers;
    struct need needs[TRIKV_MAX_LAYERS] = {{{0}}};
    size_t bytes = 0;
    int e = 0;

    *m = (struct tkv_round_memory){.has_rounds = true};
    e = come_down(s, first, n, n_new, why);
    for (uint32_t i = first; !e && i < first + n; i++) {
        const uint32_t n_heads = s->layers[i].config.shape.n_kv_heads;
        const size_t layer_bytes = n_heads * work_layout(&s->layers[i], NULL).bytes;

        for (uint32_t h = 0; !e && h < n_heads; h++)
            e = prepare_head(s, &s->layers[i], h, n_new, last_position, &needs[i], why);
        bytes = layer_bytes > bytes ? layer_bytes : bytes;
    }
    e = e ? e : reserve(s, needs, first, n, why);
    e = e ? e : check_budget(s, why);
    e = e ? e : tkv_round_take_scratch(s, m, bytes, why);
    if (e)
        tkv_round_release(s, m);
    return e;
}

/* ---- one piece --------------------------------------------------------------------------- */

static bool keeps(const struct tkv_layer *l, uint32_t kv_head)
{
    return l->ladder->rungs[kv_head].reach_tokens > 0;
}

static bool is_full(const struct piece *p)
{
    return p->n_open + p->n == TKV_BLOCK_TOKENS;
}

static uint16_t tier_of(const struct piece *p, size_t kv_head)
{
    const struct tkv_rung *rung = &p->l->ladder->rungs[kv_head];

    return is_full(p) ? rung->tier : rung->open_tier;
}

/* The open block of a head, and its bytes; NULL if the piece begins a block. */
static const struct tkv_block *open_block(const struct piece *p, size_t kv_head)
{
    return p->n_open > 0 ? last_block(&p->l->heads[kv_head]) : NULL;
}

/* The piece's tokens as floats, to the end of those that are there. */
static void load_warm(const struct piece *p, size_t kv_head, const struct work *w, uint32_t at)
{
    const struct tkv_shape *shape = &p->l->config.shape;
    const struct tkv_half_tier *tail = &p->l->tail;
    const size_t from = kv_head * tail->cap + p->first;
    const size_t dk = shape->head_dim_k, dv = shape->head_dim_v;

    p->s->kn->f16_to_f32(w->k + at * dk, tail->k + from * dk, p->n * dk);
    p->s->kn->f16_to_f32(w->v + at * dv, tail->v + from * dv, p->n * dv);
}

/* n tokens into a block, with the means of `like`, a block of the same layout, or their own. */
static void encode(const struct piece *p, const struct tkv_block_layout *layout,
                   const struct work *w, uint32_t n, const void *like, void *block)
{
    const struct tkv_kernels *kn = p->s->kn;
    uint8_t mean[TKV_MAX_MEAN_BYTES] = {0};
    const void *m = mean;

    if (like)
        m = tkv_key_mean(layout->k, like);
    else
        tkv_code_mean(layout->k, kn, TKV_KEYS, tkv_floats(w->k, layout->k->dim), n, mean);
    tkv_encode_keys(layout->k, kn, m, tkv_floats(w->k, layout->k->dim), n, block);
    if (like)
        m = tkv_value_mean(layout->v, (const uint8_t *)like + layout->values_offset);
    else
        tkv_code_mean(layout->v, kn, TKV_VALUES, tkv_floats(w->v, layout->v->dim), n, mean);
    tkv_encode_values(layout->v, kn, m, tkv_floats(w->v, layout->v->dim), n,
                      tkv_block_values(layout, block));
}

/* A full block is coded anew in the head's tier: its open part from its codes, the rest from halves. */
static void close_block(const struct piece *p, size_t kv_head, const struct tkv_block *open,
                        const struct work *w, void *block)
{
    const struct tkv_shape *shape = &p->l->config.shape;
    const struct tkv_block_layout *from = tkv_layer_layout(p->l, open);
    uint8_t *bytes = tkv_arena_at(p->s->arena, open->id);

    for (uint32_t t = 0; t < p->n_open; t++) {
        tkv_decode_key(from->k, p->s->kn, bytes, t, w->k + (size_t)t * shape->head_dim_k);
        tkv_decode_value(from->v, p->s->kn, tkv_block_values(from, bytes), t,
                         w->v + (size_t)t * shape->head_dim_v);
    }
    load_warm(p, kv_head, w, p->n_open);
    encode(p, &p->l->ladder->tiers[tier_of(p, kv_head)], w, TKV_BLOCK_TOKENS, NULL, block);
}

/* The tokens join those of an open block, whose codes and means stay as they are. */
static void extend_block(const struct piece *p, size_t kv_head, const struct tkv_block *open,
                         const struct work *w, void *block)
{
    const struct tkv_block_layout *layout = tkv_layer_layout(p->l, open);
    const void *bytes = tkv_arena_at(p->s->arena, open->id);
    const struct tkv_lane_run runs[] = {
        {bytes, UINT64_MAX >> (TKV_BLOCK_TOKENS - p->n_open)},
        {w->block, UINT64_MAX >> (TKV_BLOCK_TOKENS - p->n)},
    };
    struct tkv_gather g;

    load_warm(p, kv_head, w, 0);
    memset(w->block, 0, layout->bytes);
    encode(p, layout, w, p->n, bytes, w->block);
    tkv_gather_init(&g, runs, 2);
    tkv_block_gather(layout, p->s->kn, block, &g);
}

static void fill_positions(const struct piece *p, const struct tkv_block *open,
                           const struct tkv_block *fresh)
{
    const struct tkv_layer *l = p->l;
    uint16_t *to =
        tkv_block_positions(tkv_layer_layout(l, fresh), tkv_arena_at(p->s->arena, fresh->id));

    memset(to, 0, TKV_BLOCK_TOKENS * sizeof(*to));
    if (open)
        memcpy(to,
               tkv_block_positions(tkv_layer_layout(l, open), tkv_arena_at(p->s->arena, open->id)),
               p->n_open * sizeof(*to));
    for (uint32_t i = 0; i < p->n; i++)
        to[p->n_open + i] = (uint16_t)(l->tail.positions[p->first + i] - fresh->first_position);
}

/* The fresh block of a head lies behind its others, not yet counted. */
static struct tkv_block *fresh_block(const struct piece *p, size_t kv_head)
{
    struct tkv_head *h = &p->l->heads[kv_head];

    return &h->blocks[h->n_blocks];
}

static void fill_head(void *arg, size_t kv_head)
{
    const struct piece *p = arg;
    struct tkv_block *fresh;
    const struct tkv_block *open;
    struct work w;
    void *bytes;

    if (!keeps(p->l, (uint32_t)kv_head))
        return;
    w = work_layout(p->l, p->memory + kv_head * p->work_bytes);
    open = open_block(p, kv_head);
    fresh = fresh_block(p, kv_head);
    bytes = tkv_arena_at(p->s->arena, fresh->id);
    if (!open) {
        load_warm(p, kv_head, &w, 0);
        encode(p, tkv_layer_layout(p->l, fresh), &w, p->n, NULL, bytes);
    } else if (open->tier == fresh->tier) {
        extend_block(p, kv_head, open, &w, bytes);
    } else {
        close_block(p, kv_head, open, &w, bytes);
    }
    fill_positions(p, open, fresh);
}

static void make_fresh(const struct piece *p)
{
    for (uint32_t h = 0; h < p->l->config.shape.n_kv_heads; h++) {
        const struct tkv_block *open = open_block(p, h);
        const uint16_t tier = tier_of(p, h);

        if (!keeps(p->l, h))
            continue;
        *fresh_block(p, h) = (struct tkv_block){
            .id = tkv_arena_alloc(p->s->arena, p->l->ladder->tiers[tier].bytes),
            .first_position = open ? open->first_position : p->l->tail.positions[p->first],
            .n_tokens = (uint16_t)(p->n_open + p->n),
            .tier = tier,
        };
    }
}

/* Blocks that are wholly behind the reach go. */
static void drop_blocks(const struct piece *p, struct tkv_head *h, uint32_t reach_tokens)
{
    uint32_t n = 0;

    while (n < h->n_blocks && h->n_cold - h->blocks[n].n_tokens >= reach_tokens) {
        h->n_cold -= h->blocks[n].n_tokens;
        p->s->n_evicted += h->blocks[n].n_tokens;
        tkv_arena_unref(p->s->arena, h->blocks[n].id);
        n++;
    }
    h->n_blocks -= n;
    memmove(h->blocks, h->blocks + n, h->n_blocks * sizeof(*h->blocks));
}

static void install(const struct piece *p)
{
    for (uint32_t i = 0; i < p->l->config.shape.n_kv_heads; i++) {
        struct tkv_head *h = &p->l->heads[i];

        if (!keeps(p->l, i)) {
            p->s->n_evicted += p->n;
            continue;
        }
        if (p->n_open > 0) {
            tkv_arena_unref(p->s->arena, h->blocks[h->n_blocks - 1].id);
            h->blocks[h->n_blocks - 1] = h->blocks[h->n_blocks];
        } else {
            h->n_blocks++;
        }
        h->n_cold += p->n;
        drop_blocks(p, h, p->l->ladder->rungs[i].reach_tokens);
    }
}

/* ---- a round of one layer ---------------------------------------------------------------- */

/* The open block of a layer's heads that keep anything, or NULL. */
static const struct tkv_block *layer_open(const struct tkv_layer *l)
{
    for (uint32_t h = 0; h < l->config.shape.n_kv_heads; h++)
        if (keeps(l, h)) {
            const struct tkv_block *last = last_block(&l->heads[h]);

            return last && last->n_tokens < TKV_BLOCK_TOKENS ? last : NULL;
        }
    return NULL;
}

/* As many of the tokens from `first` on as one block takes. */
static void cut_piece(struct piece *p, uint32_t n_warm)
{
    const int32_t *positions = p->l->tail.positions + p->first;
    const struct tkv_block *open = layer_open(p->l);
    int32_t from = positions[0];

    p->n = 0;
    p->n_open = 0;
    if (open && positions[0] - open->first_position <= TKV_BLOCK_SPAN) {
        p->n_open = open->n_tokens;
        from = open->first_position;
    }
    while (p->n < n_warm - p->first && p->n_open + p->n < TKV_BLOCK_TOKENS &&
           positions[p->n] - from <= TKV_BLOCK_SPAN)
        p->n++;
}

static void round_of_layer(struct tkv_session *s, struct tkv_layer *l, uint8_t *memory,
                           const struct tkv_exec *exec)
{
    const uint32_t n_warm = tkv_layer_warm(s, l);
    struct piece p = {.s = s, .l = l, .memory = memory};

    p.work_bytes = work_layout(l, NULL).bytes;
    if (n_warm == 0)
        return;
    for (; p.first < n_warm; p.first += p.n) {
        cut_piece(&p, n_warm);
        make_fresh(&p);
        tkv_exec_run(exec, l->config.shape.n_kv_heads, fill_head, &p);
        install(&p);
    }
    tkv_tail_drop(&l->tail, &l->config.shape, n_warm);
    l->n_rounds++;
    tkv_layer_changed(s, l);
}

void tkv_ladder_run(struct tkv_session *s, struct tkv_layer *l, const struct tkv_round_memory *m,
                    const struct tkv_exec *exec)
{
    for (uint32_t i = 0; i < s->config.n_layers; i++)
        if (!l || l == &s->layers[i])
            round_of_layer(s, &s->layers[i], m->base, exec);
}
