/*
 * Does what was read fit together? Whatever the rest of store/ takes for granted of a session is looked
 * at here, so that no image, however it came about, can make it fail later.
 */
#include <math.h>
#include <string.h>

#include "proto/errors.h"
#include "proto/limits.h"
#include "store/image.h"
#include "store/session_priv.h"

/* A layer as it is, or as its checkpoint would make it. */
struct view {
    const struct tkv_session *s;
    const struct tkv_layer *l;
    const char *name;
    const struct tkv_head *heads;
    struct tkv_floor floor;
    uint64_t n_seen;
    uint32_t n;         /* in the tail */
    uint64_t most_cold; /* of a head before the next round */
    bool moves;
    struct tkv_report *why;
};

static int fail(const struct view *v, const char *what, uint64_t a, uint64_t b)
{
    return tkv_fail(v->why, TRIKV_E_VALUE, "image of layer %u%s: %s: %llu and %llu",
                    (unsigned)(v->l - v->s->layers), v->name, what, (unsigned long long)a,
                    (unsigned long long)b);
}

static uint64_t count_tokens(const struct tkv_block *blocks, uint32_t n)
{
    uint64_t sum = 0;

    for (uint32_t b = 0; b < n; b++)
        sum += blocks[b].n_tokens;
    return sum;
}

/* Not full are only the last that a round left and those that positions cut short (fold.c). */
static uint64_t most_blocks(const struct view *v, uint64_t n_cold)
{
    return n_cold / TKV_BLOCK_TOKENS + 1 + (uint64_t)v->l->last_position / TKV_BLOCK_SPAN;
}

/* Full blocks have no more bits than their head has by its plan, those that fill have just its other
 * tier; unless the layer has yet to come down to that. */
static int check_rung(const struct view *v, uint32_t kv_head)
{
    const struct tkv_ladder *ladder = v->l->ladder;
    const struct tkv_rung *rung = &ladder->rungs[kv_head];
    const struct tkv_head *h = &v->heads[kv_head];

    if (v->moves)
        return 0;
    if (rung->reach_tokens == 0 && h->n_blocks > 0)
        return fail(v, "blocks of a head that keeps none", h->n_blocks, kv_head);
    for (uint32_t b = 0; b < h->n_blocks; b++) {
        const struct tkv_block *block = &h->blocks[b];

        if (block->n_tokens < TKV_BLOCK_TOKENS
                ? block->tier != rung->open_tier
                : ladder->plan_tiers[block->tier] > ladder->plan_tiers[rung->tier])
            return fail(v, "tier of a block, and of its head", block->tier, rung->tier);
    }
    return 0;
}

/* All heads of a layer that slides cut their blocks alike. */
static int check_sliding(const struct view *v, uint32_t kv_head)
{
    const struct tkv_head *first = &v->heads[0], *h = &v->heads[kv_head];

    if (h->n_blocks != first->n_blocks)
        return fail(v, "blocks of two heads", h->n_blocks, first->n_blocks);
    for (uint32_t b = 0; b < h->n_blocks; b++)
        if (h->blocks[b].n_tokens != first->blocks[b].n_tokens)
            return fail(v, "tokens in the blocks of two heads", h->blocks[b].n_tokens,
                        first->blocks[b].n_tokens);
    return 0;
}

/* Of a layer that holds rounds: may its heads have come to different numbers? */
static bool may_differ(const struct tkv_session *s)
{
    return s->config.allocator == TKV_CONCENTRATION || s->config.allocator == TKV_ADAPTIVE ||
           tkv_session_gates(s);
}

static int check_rounds(const struct view *v, uint32_t kv_head)
{
    const struct tkv_layer *l = v->l;
    const struct tkv_head *h = &v->heads[kv_head];

    if (!may_differ(v->s) && h->n_cold != v->heads[0].n_cold)
        return fail(v, "heads that keep different numbers", h->n_cold, v->heads[0].n_cold);
    if (h->n_blocks > most_blocks(v, h->n_cold))
        return fail(v, "blocks for tokens", h->n_blocks, h->n_cold);
    /* Before the next round is due no head has come to more than rounds are prepared for. */
    if (v->heads == l->heads && h->n_cold > v->most_cold)
        return fail(v, "cold tokens of a head, where there can be", h->n_cold, v->most_cold);
    return 0;
}

static int check_head(const struct view *v, uint32_t kv_head)
{
    const struct tkv_layer *l = v->l;
    const struct tkv_head *h = &v->heads[kv_head];
    /* Without eviction a checkpoint has no tables: it is what the layer's began with. */
    const bool is_prefix = v->heads != l->heads && !tkv_layer_drops(l);
    const struct tkv_head *table = is_prefix ? &l->heads[kv_head] : h;
    const uint64_t kept = (uint64_t)h->n_cold + v->n + l->pinned.n;

    if (h->n_blocks > 0 && (!table->blocks || h->n_blocks > table->n_blocks))
        return fail(v, "blocks in a table of", h->n_blocks, table->n_blocks);
    if (is_prefix && h->blocks)
        return fail(v, "a table nobody needs", h->n_blocks, 0);
    if (count_tokens(table->blocks, h->n_blocks) != h->n_cold)
        return fail(v, "tokens in its blocks, said to be", count_tokens(table->blocks, h->n_blocks),
                    h->n_cold);
    if (tkv_layer_drops(l) ? kept > v->n_seen : kept != v->n_seen)
        return fail(v, "tokens kept of those seen", kept, v->n_seen);
    if (l->mass && l->mass[kv_head].cap < (uint64_t)h->n_cold + l->tail.most)
        return fail(v, "observed of tokens", l->mass[kv_head].cap, h->n_cold);
    if (l->ladder)
        return check_rung(v, kv_head);
    if (l->slides)
        return check_sliding(v, kv_head);
    if (tkv_layer_evicts(l))
        return check_rounds(v, kv_head);
    return h->n_cold != v->heads[0].n_cold
               ? fail(v, "heads that keep different numbers", h->n_cold, v->heads[0].n_cold)
               : 0;
}

/* The block that is open, of a head with a ladder. */
static const struct tkv_block *open_of(const struct tkv_head *h)
{
    const struct tkv_block *last = h->n_blocks > 0 ? &h->blocks[h->n_blocks - 1] : NULL;

    return last && last->n_tokens < TKV_BLOCK_TOKENS ? last : NULL;
}

/* All heads of a layer that keep anything cut their blocks at the same tokens. */
static int check_open(const struct view *v)
{
    const struct tkv_ladder *ladder = v->l->ladder;
    const struct tkv_block *first = NULL;
    bool any = false;

    for (uint32_t h = 0; ladder && h < v->l->config.shape.n_kv_heads; h++) {
        const struct tkv_block *open = open_of(&v->heads[h]);

        if (ladder->rungs[h].reach_tokens == 0)
            continue;
        if (any && (!open != !first || (open && (open->n_tokens != first->n_tokens ||
                                                 open->first_position != first->first_position))))
            return fail(v, "tokens in the open blocks of two heads", open ? open->n_tokens : 0,
                        first ? first->n_tokens : 0);
        first = open;
        any = true;
    }
    return 0;
}

static int check_view(const struct view *v)
{
    const struct tkv_layer *l = v->l;
    const bool began = v->floor.n_seen > 0; /* something was folded */
    int e = 0;

    if (v->n > 0 && l->pinned.n < l->pinned.most)
        return fail(v, "tokens behind pinned ones that are missing", v->n, l->pinned.n);
    if (began ? v->floor.n_seen > v->n_seen || v->n_seen - v->floor.n_seen > v->n
              : v->n_seen != (uint64_t)l->pinned.n + v->n)
        return fail(v, "tokens seen, and the floor", v->n_seen, v->floor.n_seen);
    if (v->floor.position < 0 || v->floor.position > (began ? l->last_position : 0))
        return fail(v, "the floor's position, and the last", (uint64_t)v->floor.position,
                    (uint64_t)l->last_position);
    for (uint32_t h = 0; !e && h < l->config.shape.n_kv_heads; h++) {
        e = check_head(v, h);
        if (!e && !began && v->heads[h].n_cold > 0)
            e = fail(v, "cold tokens, but no fold", v->heads[h].n_cold, v->n_seen);
    }
    return e ? e : check_open(v);
}

/* What truncate would say of the newest token that is left. */
static int32_t last_position(const struct tkv_layer *l)
{
    if (l->tail.n > 0)
        return l->tail.positions[l->tail.n - 1];
    if (l->n_seen == l->pinned.n)
        return l->n_seen ? l->pinned.positions[l->pinned.n - 1] : -1;
    return l->floor.position;
}

static int check_checkpoint(const struct view *now)
{
    const struct tkv_layer *l = now->l;
    const struct tkv_checkpoint *c = &l->checkpoint;
    const uint32_t recent = tkv_layer_recent(now->s, l);
    const uint32_t n_folded = c->n > recent ? c->n - recent : 0;
    struct view v = *now;

    if (l->floor.n_seen < c->n_seen || l->floor.n_seen > c->n_seen + 1)
        return fail(now, "tokens before the last fold, and the floor", c->n_seen, l->floor.n_seen);
    if (l->tail.first - c->first != n_folded)
        return fail(now, "tokens that were folded, and left the tail", n_folded,
                    l->tail.first - c->first);
    /* As many tokens came since as the tail has got longer: how long it is kept depends on that. */
    if (l->n_seen - c->n_seen != (uint64_t)l->tail.first + l->tail.n - c->first - c->n)
        return fail(now, "tokens seen since then", l->n_seen, c->n_seen);
    v.name = ", checkpoint";
    v.moves = true; /* restoring makes it so */
    v.heads = c->heads;
    v.floor = c->floor;
    v.n_seen = c->n_seen;
    v.n = c->n;
    return check_view(&v);
}

/* Queries that were asked for a position before the window's first are refused: any number does. */
static bool is_first_query(const struct tkv_layer *l, int32_t position)
{
    return position >= 0 && position <= (l->last_position > 0 ? l->last_position : 0);
}

/* A round is due at the latest when the mean of the heads has come to budget + beta: so far none of them
 * may go beyond what that round is prepared for (round_prepare.c, layer_bound). */
static uint64_t most_cold(const struct tkv_session *s, const struct tkv_layer *l)
{
    const uint32_t hot = l->tail.n < s->config.recent_tokens ? l->tail.n : s->config.recent_tokens;
    const uint32_t room = l->pinned.most - l->pinned.n + l->tail.most - l->tail.n;
    const uint64_t folded = tkv_layer_evicts(l) ? tkv_round_distance(s, l) - room : 0;
    const uint64_t most = tkv_budget_most(s, l) + s->config.beta_tokens;
    const uint64_t less = folded + (s->config.recent_tokens - hot);

    if (folded == 0)
        return UINT64_MAX;
    return most > less ? most - less : 0;
}

static int check_layer(const struct tkv_session *s, const struct tkv_layer *l,
                       struct tkv_report *why)
{
    const struct view v = {.s = s,
                           .l = l,
                           .name = "",
                           .heads = l->heads,
                           .floor = l->floor,
                           .n_seen = l->n_seen,
                           .n = l->tail.n,
                           .most_cold = l->ladder ? 0 : most_cold(s, l),
                           .moves = l->moves,
                           .why = why};
    int e;

    if (l->last_position < -1 || l->last_position > TRIKV_MAX_POSITION ||
        l->n_seen > (uint64_t)l->last_position + 1)
        return fail(&v, "tokens seen up to position", l->n_seen, (uint64_t)l->last_position);
    if (last_position(l) != l->last_position)
        return fail(&v, "the last position, and the one found", (uint64_t)l->last_position,
                    (uint64_t)last_position(l));
    if (!is_first_query(l, l->first_query) ||
        (l->checkpoint.is_live && !is_first_query(l, l->checkpoint.first_query)))
        return fail(&v, "the first query, and the last position", (uint64_t)l->first_query,
                    (uint64_t)l->last_position);
    e = check_view(&v);
    if (!e && l->checkpoint.is_live)
        e = check_checkpoint(&v);
    if (!e && tkv_session_couples_layers(s) && !tkv_layers_agree(l, &s->layers[0]))
        e = fail(&v, "cold tokens, not those of layer 0", l->heads[0].n_cold,
                 s->layers[0].heads[0].n_cold);
    return e;
}

/* ---- contents ----------------------------------------------------------------------------- */

/* Positions of one head's blocks, after `from` and before those of the tail. */
static int check_blocks(const struct view *v, const struct tkv_head *h, int64_t from,
                        int64_t before)
{
    for (uint32_t b = 0; h->blocks && b < h->n_blocks; b++) {
        const struct tkv_block *block = &h->blocks[b];
        const uint16_t *distance = tkv_block_positions(tkv_layer_layout(v->l, block),
                                                       tkv_arena_at(v->s->arena, block->id));

        for (uint32_t t = 0; t < block->n_tokens; t++) {
            const int64_t position = (int64_t)block->first_position + distance[t];

            if (position <= from || position >= before)
                return fail(v, "a position out of order, after", (uint64_t)position,
                            (uint64_t)from);
            from = position;
        }
    }
    return 0;
}

static bool is_finite(const uint16_t *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if ((x[i] & 0x7c00) == 0x7c00)
            return false;
    return true;
}

static int check_tier(const struct view *v, const struct tkv_half_tier *t, int64_t from)
{
    const struct tkv_shape *shape = &v->l->config.shape;
    const size_t dk = shape->head_dim_k, dv = tkv_stored_dim_v(shape);

    for (uint32_t i = 0; i < t->n; i++) {
        if (t->positions[i] <= from)
            return fail(v, "a position out of order, after", (uint64_t)t->positions[i],
                        (uint64_t)from);
        from = t->positions[i];
    }
    for (size_t h = 0; h < shape->n_kv_heads; h++)
        if (!is_finite(t->k + h * t->cap * dk, t->n * dk) ||
            !is_finite(t->v + h * t->cap * dv, t->n * dv))
            return fail(v, "a half that is not finite, of KV head and tokens", h, t->n);
    for (size_t h = 0; t->scores && h < shape->n_q_heads; h++)
        for (size_t i = 0; i < t->n; i++)
            if (!isfinite(t->scores[h * t->cap + i]))
                return fail(v, "a norm term that is not finite, of head and token", h, i);
    return 0;
}

static int check_contents(const struct tkv_session *s, const struct tkv_layer *l,
                          struct tkv_report *why)
{
    const struct tkv_checkpoint *c = &l->checkpoint;
    const int32_t *next = l->tail.positions; /* of the first token behind the blocks */
    struct view v = {.s = s, .l = l, .name = "", .why = why};
    struct tkv_half_tier tail = l->tail;
    int64_t from = -1;
    int e;

    if (!l->halves)
        return 0;
    if (c->is_live)
        tkv_tier_rewind(&tail, &l->config.shape, c->first, l->tail.first - c->first + l->tail.n);
    e = check_tier(&v, &l->pinned, from);
    from = l->pinned.n > 0 ? l->pinned.positions[l->pinned.n - 1] : -1;
    e = e ? e : check_tier(&v, &tail, from);
    for (uint32_t h = 0; !e && h < l->config.shape.n_kv_heads; h++)
        e = check_blocks(&v, &l->heads[h], from,
                         l->tail.n > 0 ? *next : (int64_t)l->floor.position + 1);
    v.name = ", checkpoint";
    next = tail.positions;
    for (uint32_t h = 0; !e && c->is_live && h < l->config.shape.n_kv_heads; h++)
        e = check_blocks(&v, &c->heads[h], from,
                         tail.n > 0 ? *next : (int64_t)c->floor.position + 1);
    return e;
}

int tkv_image_finish(const struct tkv_session *s, bool contents, struct tkv_report *why)
{
    int e = 0;

    for (uint32_t i = 0; !e && i < s->config.n_layers; i++) {
        e = check_layer(s, &s->layers[i], why);
        if (!e && contents)
            e = check_contents(s, &s->layers[i], why);
    }
    return e;
}
