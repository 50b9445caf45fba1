/*
 * Down the ladder: after a plan that gives heads less, what a layer has is brought to it, before its next
 * round. Blocks behind a head's reach go; blocks of more bits than it has now are decoded and coded
 * in fewer, with the mean of their own tokens. Few at a time, so that new ones hardly need room beside
 * the old ones. Nothing goes up: what codes have lost stays lost.
 */
#include <string.h>

#include "core/kernels.h"
#include "proto/errors.h"
#include "store/budget.h"
#include "store/session_priv.h"

enum { BLOCKS_AT_ONCE = 16 };

/* A layer on its way, with memory for one block's tokens. */
struct move {
    struct tkv_session *s;
    struct tkv_layer *l;
    float *k; /* [64][head_dim_k] */
    float *v; /* [64][head_dim_v] */
    size_t bytes;
};

static void drop_all(struct tkv_session *s, struct tkv_head *h)
{
    s->n_evicted += h->n_cold;
    tkv_head_release(s, h);
}

/* The table is this session's own. */
static void drop_behind(struct tkv_session *s, struct tkv_head *h, uint32_t reach_tokens)
{
    uint32_t n = 0;

    while (n < h->n_blocks && h->n_cold - h->blocks[n].n_tokens >= reach_tokens) {
        h->n_cold -= h->blocks[n].n_tokens;
        s->n_evicted += h->blocks[n].n_tokens;
        tkv_arena_unref(s->arena, h->blocks[n].id);
        n++;
    }
    h->n_blocks -= n;
    memmove(h->blocks, h->blocks + n, h->n_blocks * sizeof(*h->blocks));
}

/* The tier that a block should have: its own, unless that is of more bits than the head's. A block that
 * is not full may still be extended, which takes the tier of open blocks exactly. */
static uint16_t wanted_tier(const struct tkv_layer *l, const struct tkv_rung *rung,
                            const struct tkv_block *block)
{
    const uint32_t *plan_tiers = l->ladder->plan_tiers;

    if (block->n_tokens < TKV_BLOCK_TOKENS)
        return rung->open_tier;
    return plan_tiers[block->tier] > plan_tiers[rung->tier] ? rung->tier : block->tier;
}

static void decode(const struct move *m, const struct tkv_block *block)
{
    const struct tkv_shape *shape = &m->l->config.shape;
    const struct tkv_block_layout *layout = tkv_layer_layout(m->l, block);
    uint8_t *bytes = tkv_arena_at(m->s->arena, block->id);

    for (uint32_t t = 0; t < block->n_tokens; t++) {
        tkv_decode_key(layout->k, m->s->kn, bytes, t, m->k + (size_t)t * shape->head_dim_k);
        tkv_decode_value(layout->v, m->s->kn, tkv_block_values(layout, bytes), t,
                         m->v + (size_t)t * shape->head_dim_v);
    }
}

static void encode(const struct move *m, const struct tkv_block_layout *layout, uint32_t n,
                   uint8_t *bytes)
{
    const struct tkv_kernels *kn = m->s->kn;
    uint8_t mean[TKV_MAX_MEAN_BYTES] = {0};

    tkv_code_mean(layout->k, kn, TKV_KEYS, tkv_floats(m->k, layout->k->dim), n, mean);
    tkv_encode_keys(layout->k, kn, mean, tkv_floats(m->k, layout->k->dim), n, bytes);
    tkv_code_mean(layout->v, kn, TKV_VALUES, tkv_floats(m->v, layout->v->dim), n, mean);
    tkv_encode_values(layout->v, kn, mean, tkv_floats(m->v, layout->v->dim), n,
                      tkv_block_values(layout, bytes));
}

/* The block in another tier; its place was reserved. */
static void recode(const struct move *m, struct tkv_block *block, uint16_t tier)
{
    const struct tkv_block_layout *from = tkv_layer_layout(m->l, block);
    const struct tkv_block_layout *to = &m->l->ladder->tiers[tier];
    const struct tkv_block_id id = tkv_arena_alloc(m->s->arena, to->bytes);
    uint8_t *bytes = tkv_arena_at(m->s->arena, id);

    decode(m, block);
    encode(m, to, block->n_tokens, bytes);
    memcpy(tkv_block_positions(to, bytes),
           tkv_block_positions(from, tkv_arena_at(m->s->arena, block->id)),
           TKV_BLOCK_TOKENS * sizeof(uint16_t));
    tkv_arena_unref(m->s->arena, block->id);
    block->id = id;
    block->tier = tier;
}

/* Blocks [first, first + n) of a head. */
static int recode_some(const struct move *m, struct tkv_head *h, const struct tkv_rung *rung,
                       uint32_t first, uint32_t n, struct tkv_report *why)
{
    uint32_t need[TKV_PLAN_TIERS] = {0};
    int e = 0;

    for (uint32_t b = first; b < first + n; b++) {
        const uint16_t tier = wanted_tier(m->l, rung, &h->blocks[b]);

        need[tier] += tier != h->blocks[b].tier;
    }
    for (uint32_t t = 0; !e && t < m->l->ladder->n_tiers; t++)
        if (need[t] > 0)
            e = tkv_arena_reserve(m->s->arena, m->l->ladder->tiers[t].bytes, need[t], why);
    for (uint32_t b = first; !e && b < first + n; b++) {
        const uint16_t tier = wanted_tier(m->l, rung, &h->blocks[b]);

        if (tier != h->blocks[b].tier)
            recode(m, &h->blocks[b], tier);
    }
    return e;
}

static int move_head(const struct move *m, uint32_t kv_head, struct tkv_report *why)
{
    const struct tkv_rung *rung = &m->l->ladder->rungs[kv_head];
    struct tkv_head *h = &m->l->heads[kv_head];
    int e = 0;

    if (rung->reach_tokens == 0) {
        drop_all(m->s, h);
        return 0;
    }
    if (h->n_blocks == 0)
        return 0;
    e = tkv_head_own(m->s, h, h->n_blocks, why);
    if (e)
        return e;
    drop_behind(m->s, h, rung->reach_tokens);
    for (uint32_t first = 0; !e && first < h->n_blocks; first += BLOCKS_AT_ONCE) {
        const uint32_t left = h->n_blocks - first;

        e = recode_some(m, h, rung, first, left < BLOCKS_AT_ONCE ? left : BLOCKS_AT_ONCE, why);
    }
    return e;
}

/* What was reserved and not used goes back; slabs that others have left nearly empty, too. */
static void tidy(struct move *m)
{
    for (uint32_t t = 0; t < m->l->ladder->n_tiers; t++)
        (void)tkv_arena_unreserve(m->s->arena, m->l->ladder->tiers[t].bytes, 0);
    tkv_arena_sweep(m->s->arena);
    tkv_round_gather(m->s);
    tkv_budget_free(m->s->budget, m->k, m->bytes);
    tkv_layer_changed(m->s, m->l);
}

int tkv_ladder_move(struct tkv_session *s, struct tkv_layer *l, struct tkv_report *why)
{
    const size_t dk = l->config.shape.head_dim_k, dv = l->config.shape.head_dim_v;
    struct move m = {.s = s, .l = l, .bytes = (dk + dv) * TKV_BLOCK_TOKENS * sizeof(float)};
    int e = 0;

    m.k = tkv_budget_alloc(s->budget, m.bytes);
    if (!m.k)
        return tkv_fail(why, TRIKV_E_MEMORY_CAP, "no room for %zu bytes to code a block again",
                        m.bytes);
    m.v = m.k + dk * TKV_BLOCK_TOKENS;
    for (uint32_t h = 0; !e && h < l->config.shape.n_kv_heads; h++)
        e = move_head(&m, h, why);
    tidy(&m);
    l->moves = e != 0;
    return e;
}
