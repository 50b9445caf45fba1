/*
 * Going back: truncate within a tail, and across the last round by what was kept of the state before
 * it. That costs little: blocks are immutable, so the old tables suffice (without eviction the new
 * ones hold the old), and warm tokens stay in front of the tail until their place is needed.
 */
#include <string.h>

#include "proto/errors.h"
#include "store/journal.h"

bool tkv_checkpoint_create(struct tkv_session *s, struct tkv_layer *l)
{
    const uint32_t n_kv_heads = l->config.shape.n_kv_heads;

    if (s->config.rollback_tokens == 0)
        return true;
    l->checkpoint.heads = tkv_session_alloc(s, 2 * n_kv_heads * sizeof(struct tkv_head));
    l->checkpoint.next = l->checkpoint.heads ? l->checkpoint.heads + n_kv_heads : NULL;
    return l->checkpoint.heads;
}

void tkv_checkpoint_share(struct tkv_session *s, struct tkv_layer *to, const struct tkv_layer *from)
{
    struct tkv_head *heads = to->checkpoint.heads;
    struct tkv_head *next = to->checkpoint.next;

    to->checkpoint = from->checkpoint;
    to->checkpoint.heads = heads;
    to->checkpoint.next = next;
    for (uint32_t h = 0; from->checkpoint.is_live && h < from->config.shape.n_kv_heads; h++)
        tkv_head_share(s, &heads[h], &from->checkpoint.heads[h]);
}

void tkv_checkpoint_destroy(struct tkv_session *s, struct tkv_layer *l)
{
    const uint32_t n_kv_heads = l->config.shape.n_kv_heads;

    if (!l->checkpoint.heads)
        return;
    tkv_checkpoint_drop(s, l);
    for (uint32_t h = 0; h < n_kv_heads; h++)
        tkv_head_release(s, &l->checkpoint.next[h]);
    tkv_session_free(s, l->checkpoint.heads, 2 * n_kv_heads * sizeof(struct tkv_head));
    l->checkpoint.heads = NULL;
}

bool tkv_layer_drops(const struct tkv_layer *l)
{
    return l->config.method != TKV_METHOD_NONE || l->slides;
}

int tkv_checkpoint_prepare(struct tkv_session *s, struct tkv_layer *l, struct tkv_report *why)
{
    int e = 0;

    if (s->config.rollback_tokens == 0 || !tkv_layer_drops(l))
        return 0;
    for (uint32_t h = 0; !e && h < l->config.shape.n_kv_heads; h++)
        e = tkv_head_own(s, &l->checkpoint.next[h], l->heads[h].cap_blocks, why);
    return e;
}

void tkv_checkpoint_take(struct tkv_session *s, struct tkv_layer *l)
{
    struct tkv_checkpoint *c = &l->checkpoint;

    tkv_checkpoint_drop(s, l);
    for (uint32_t h = 0; h < l->config.shape.n_kv_heads; h++) {
        const struct tkv_head *from = &l->heads[h];
        struct tkv_head *to = &c->heads[h];

        *to = c->next[h];
        c->next[h] = (struct tkv_head){0};
        to->n_blocks = from->n_blocks;
        to->n_cold = from->n_cold;
        if (to->blocks && to->n_blocks > 0) {
            memcpy(to->blocks, from->blocks, to->n_blocks * sizeof(*to->blocks));
            tkv_arena_ref_each(s->arena, &to->blocks->id, sizeof(*to->blocks), to->n_blocks);
        }
    }
    c->is_live = true;
    c->n_seen = l->n_seen;
    c->floor = l->floor;
    c->first = l->tail.first;
    c->n = l->tail.n;
    c->n_rounds = l->n_rounds;
    c->first_query = l->first_query;
}

void tkv_checkpoint_drop(struct tkv_session *s, struct tkv_layer *l)
{
    for (uint32_t h = 0; l->checkpoint.is_live && h < l->config.shape.n_kv_heads; h++)
        tkv_head_release(s, &l->checkpoint.heads[h]);
    l->checkpoint.is_live = false;
}

void tkv_checkpoint_restore(struct tkv_session *s, struct tkv_layer *l)
{
    struct tkv_checkpoint *c = &l->checkpoint;
    const uint32_t recent = tkv_layer_recent(s, l);
    const uint32_t n_warm = c->n > recent ? c->n - recent : 0;

    for (uint32_t h = 0; h < l->config.shape.n_kv_heads; h++) {
        struct tkv_head *head = &l->heads[h];

        s->n_evicted -= c->heads[h].n_cold + n_warm - head->n_cold;
        if (tkv_layer_drops(l)) {
            tkv_head_release(s, head);
            *head = c->heads[h];
        } else {
            tkv_head_cut(s, head, c->heads[h].n_blocks);
            head->n_cold = c->heads[h].n_cold;
        }
        c->heads[h] = (struct tkv_head){0};
    }
    tkv_tier_rewind(&l->tail, &l->config.shape, c->first, c->n);
    l->n_seen = c->n_seen;
    l->n_rounds = c->n_rounds;
    l->first_query = c->first_query;
    l->floor = c->floor;
    l->moves = l->ladder; /* these blocks may be from before another plan */
    c->is_live = false;
    tkv_layer_changed(s, l);
}

/* ---- truncate --------------------------------------------------------------------------------- */

static uint64_t most_seen(const struct tkv_session *s)
{
    uint64_t n = 0;

    for (uint32_t i = 0; i < s->config.n_layers; i++)
        n = s->layers[i].n_seen > n ? s->layers[i].n_seen : n;
    return n;
}

static int check_reach(const struct tkv_session *s, uint32_t layer, uint64_t to,
                       struct tkv_report *why)
{
    const struct tkv_layer *l = &s->layers[layer];
    const uint64_t reach = l->checkpoint.is_live ? l->checkpoint.floor.n_seen : l->floor.n_seen;

    if (to >= reach)
        return 0;
    return tkv_fail(why, TRIKV_E_STATE,
                    "layer %u: cannot go back to %llu tokens, a round has compressed what came "
                    "before %llu; with rollback_tokens %u a round can be undone for so many "
                    "tokens",
                    layer, (unsigned long long)to, (unsigned long long)reach,
                    s->config.rollback_tokens);
}

static void cut_layer(struct tkv_session *s, struct tkv_layer *l, uint64_t to)
{
    struct tkv_half_tier *tail = &l->tail;
    uint32_t n;

    if (to < l->floor.n_seen)
        tkv_checkpoint_restore(s, l);
    n = l->n_seen > to ? (uint32_t)(l->n_seen - to) : 0;
    l->n_seen -= n;
    if (n <= tail->n) {
        tail->n -= n;
    } else {
        l->pinned.n -= n - tail->n;
        tail->n = 0;
    }
    if (tail->n > 0)
        l->last_position = tail->positions[tail->n - 1];
    else if (l->n_seen == l->pinned.n)
        l->last_position = l->n_seen ? l->pinned.positions[l->pinned.n - 1] : -1;
    else
        l->last_position = l->floor.position;
}

int tkv_session_truncate(struct tkv_session *s, uint64_t n_tokens, struct tkv_report *why)
{
    const uint64_t seen = most_seen(s);
    int e;

    if (n_tokens > seen)
        return tkv_fail(why, TRIKV_E_ARGUMENT, "cannot forget %llu tokens of %llu",
                        (unsigned long long)n_tokens, (unsigned long long)seen);
    for (uint32_t i = 0; i < s->config.n_layers; i++) {
        e = check_reach(s, i, seen - n_tokens, why);
        if (e)
            return e;
    }
    e = tkv_journal_prepare(s, 0, s->config.n_layers, why);
    for (uint32_t i = 0; !e && i < s->config.n_layers; i++)
        cut_layer(s, &s->layers[i], seen - n_tokens);
    if (e)
        return e;
    tkv_journal_commit(s, 0, s->config.n_layers);
    s->n_changes += n_tokens > 0;
    return 0;
}
