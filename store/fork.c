/*
 * Forks: a new session that refers to everything an old one has. Nothing is copied but the tables of
 * layers and heads; blocks, block tables and half tiers are counted, and whoever writes first makes
 * its own (share.c, tail.c).
 */
#include <string.h>

#include "proto/errors.h"
#include "store/budget.h"
#include "store/session_priv.h"

/* A fork may be made before the first fold, and then has rulers of its own. */
static bool fork_rulers(struct tkv_session *s, struct tkv_layer *to, const struct tkv_layer *from)
{
    const size_t bytes = to->config.shape.n_q_heads * sizeof(*to->rulers);

    to->rulers = from->rulers ? tkv_session_alloc(s, bytes) : NULL;
    if (to->rulers)
        memcpy(to->rulers, from->rulers, bytes);
    return to->rulers || !from->rulers;
}

static bool fork_layer(struct tkv_session *s, struct tkv_layer *to, const struct tkv_layer *from)
{
    const uint32_t n_kv_heads = from->config.shape.n_kv_heads;

    *to = *from;
    to->halves = NULL;
    to->checkpoint.is_live = false;
    to->checkpoint.heads = NULL;
    to->mass = NULL;
    to->probes = NULL;
    to->budgets = NULL;
    to->ladder = tkv_shared_ref(s, from->ladder);
    to->sinks = tkv_shared_ref(s, from->sinks);
    to->norm_weights = tkv_shared_ref(s, from->norm_weights);
    if (!fork_rulers(s, to, from))
        return false;
    to->heads = tkv_session_alloc(s, n_kv_heads * sizeof(*to->heads));
    if (!to->heads || !tkv_checkpoint_create(s, to) || !tkv_mass_create(s, to, from->mass) ||
        !tkv_probes_create(s, to, from->probes) || !tkv_budgets_create(s, to, from->budgets))
        return false;
    tkv_halves_share(s, to, from);
    for (uint32_t h = 0; h < n_kv_heads; h++)
        tkv_head_share(s, &to->heads[h], &from->heads[h]);
    if (from->checkpoint.heads)
        tkv_checkpoint_share(s, to, from);
    return true;
}

/* What every fork has of its own; the little that some have besides is allocated piece by piece. */
static size_t room_bytes(const struct tkv_session *from)
{
    size_t n = tkv_align(from->config.n_layers * sizeof(*from->layers), 64);

    for (uint32_t i = 0; i < from->config.n_layers; i++) {
        const struct tkv_layer *l = &from->layers[i];
        const size_t heads = l->config.shape.n_kv_heads * sizeof(*l->heads);

        n += tkv_align(heads, 64) + (l->checkpoint.heads ? tkv_align(2 * heads, 64) : 0);
        n += l->rulers ? tkv_align(l->config.shape.n_q_heads * sizeof(*l->rulers), 64) : 0;
    }
    return n;
}

static bool fork_session(struct tkv_session *s, const struct tkv_session *from)
{
    const size_t bytes = room_bytes(from);

    s->room.base = tkv_budget_alloc(s->budget, bytes);
    if (!s->room.base)
        return false;
    s->room.bytes = bytes;
    s->own_bytes += bytes;
    s->arena = tkv_arena_share(from->arena);
    s->layers = tkv_session_alloc(s, s->config.n_layers * sizeof(*s->layers));
    if (!s->arena || !s->layers)
        return false;
    s->coders = tkv_shared_ref(s, from->coders);
    s->fold = tkv_shared_ref(s, from->fold);
    for (uint32_t i = 0; i < s->config.n_layers; i++)
        if (!fork_layer(s, &s->layers[i], &from->layers[i]))
            return false;
    return true;
}

int tkv_session_fork(struct tkv_session **child, struct tkv_session *parent, struct tkv_report *why)
{
    struct tkv_session *s = tkv_budget_alloc(parent->budget, sizeof(*s));

    *child = NULL;
    if (s) {
        *s = *parent;
        s->own_bytes = sizeof(*s);
        s->config.rope = &s->rope;
        s->arena = NULL;
        s->layers = NULL;
        s->coders = NULL;
        s->fold = NULL;
        s->pin_value = 0;
        s->journal = NULL;
        s->room = (struct tkv_room){0};
        if (fork_session(s, parent)) {
            *child = s;
            return 0;
        }
        tkv_session_destroy(&s);
    }
    return tkv_fail(why, TRIKV_E_MEMORY_CAP, "no room for a fork: %zu bytes used of the cap of %zu",
                    atomic_load(&parent->budget->used_bytes), parent->budget->cap_bytes);
}
