/*
 * Tokens that each KV head may keep: the sums of all layers are those of their budgets, and
 * core/allocate.h shares them. Only method adaptive knows no more than a layer's sum before its round.
 */
#include "core/allocate.h"

#include "proto/limits.h"
#include "store/budget.h"
#include "store/session_priv.h"

/* Of a head's mean part, what it gets whatever its weight or its scores are (Ada-KV's alpha). */
enum { LEAST_PART = 5 };

const char *const tkv_allocator_names[] = {"uniform", "pyramid", "concentration", "adaptive", NULL};

/* What is shared of a layer's budget, per head. */
static uint32_t own_part(const struct tkv_session *s, const struct tkv_layer *l)
{
    const uint32_t fixed = s->config.pinned_tokens + s->config.recent_tokens;

    return l->config.budget_tokens > fixed ? l->config.budget_tokens - fixed : 0;
}

static uint32_t least_of(uint32_t part)
{
    return part / LEAST_PART > 0 ? part / LEAST_PART : 1;
}

bool tkv_budgets_create(struct tkv_session *s, struct tkv_layer *l, const uint32_t *from)
{
    const uint32_t n = l->config.shape.n_kv_heads;

    l->budgets = NULL;
    if (s->config.allocator != TKV_PYRAMID && s->config.allocator != TKV_CONCENTRATION)
        return true;
    l->budgets = tkv_session_alloc(s, n * sizeof(*l->budgets));
    for (uint32_t h = 0; from && l->budgets && h < n; h++)
        l->budgets[h] = from[h];
    return l->budgets;
}

void tkv_budgets_destroy(struct tkv_session *s, struct tkv_layer *l)
{
    tkv_session_free(s, l->budgets, l->config.shape.n_kv_heads * sizeof(*l->budgets));
    l->budgets = NULL;
}

static uint32_t fixed_tokens(const struct tkv_session *s)
{
    return s->config.pinned_tokens + s->config.recent_tokens;
}

/* All layers that drop tokens have the same budget (checked). */
static void share_by_depth(struct tkv_session *s)
{
    uint32_t out[TRIKV_MAX_LAYERS], n = 0, at = 0, mean = 0;

    for (uint32_t i = 0; i < s->config.n_layers; i++)
        if (tkv_layer_evicts(&s->layers[i])) {
            mean = own_part(s, &s->layers[i]);
            n++;
        }
    tkv_allocate_pyramid(out, n, mean, UINT32_MAX);
    for (uint32_t i = 0; i < s->config.n_layers; i++) {
        struct tkv_layer *l = &s->layers[i];

        if (!tkv_layer_evicts(l))
            continue;
        for (uint32_t h = 0; h < l->config.shape.n_kv_heads; h++)
            l->budgets[h] = fixed_tokens(s) + (out[at] > 0 ? out[at] : 1);
        at++;
    }
}

/* The KV heads of all layers that drop tokens, one after the other. */
struct heads {
    uint32_t n;
    uint64_t total; /* of their own parts */
    float *weights; /* [n] */
    uint32_t *out;  /* [n] */
    size_t bytes;
};

static void count_heads(const struct tkv_session *s, struct heads *a)
{
    *a = (struct heads){0};
    for (uint32_t i = 0; i < s->config.n_layers; i++) {
        const struct tkv_layer *l = &s->layers[i];
        const uint32_t n = tkv_layer_evicts(l) ? l->config.shape.n_kv_heads : 0;

        a->n += n;
        a->total += (uint64_t)n * own_part(s, l);
    }
    a->bytes = a->n * (sizeof(*a->weights) + sizeof(*a->out));
}

static void weigh_layer(const struct tkv_session *s, const struct tkv_layer *l, float *weights)
{
    const uint32_t group = tkv_group(&l->config.shape), n_bands = s->rope.n_bands;

    for (uint32_t h = 0; h < l->config.shape.n_kv_heads; h++)
        weights[h] = tkv_spread_of_queries(l->config.stats + (size_t)h * group * 3 * n_bands, group,
                                           n_bands);
}

static bool share_by_spread(struct tkv_session *s)
{
    struct heads a;
    uint32_t at = 0;
    float *memory;

    count_heads(s, &a);
    memory = tkv_budget_alloc(s->budget, a.bytes);
    if (!memory)
        return a.n == 0;
    a.weights = memory;
    a.out = (uint32_t *)(void *)(memory + a.n);
    for (uint32_t i = 0; i < s->config.n_layers; i++)
        if (tkv_layer_evicts(&s->layers[i])) {
            weigh_layer(s, &s->layers[i], a.weights + at);
            at += s->layers[i].config.shape.n_kv_heads;
        }
    tkv_allocate_by_weight(a.out, a.weights, a.n, a.total, least_of((uint32_t)(a.total / a.n)));
    at = 0;
    for (uint32_t i = 0; i < s->config.n_layers; i++)
        for (uint32_t h = 0;
             tkv_layer_evicts(&s->layers[i]) && h < s->layers[i].config.shape.n_kv_heads; h++)
            s->layers[i].budgets[h] = fixed_tokens(s) + a.out[at++];
    tkv_budget_free(s->budget, memory, a.bytes);
    return true;
}

bool tkv_budgets_share(struct tkv_session *s)
{
    switch (s->config.allocator) {
    case TKV_UNIFORM:
    case TKV_ADAPTIVE: break;
    case TKV_PYRAMID: share_by_depth(s); break;
    case TKV_CONCENTRATION: return share_by_spread(s);
    }
    return true;
}

/* ---- what a round keeps ------------------------------------------------------------------- */

uint32_t tkv_budget_mean(const struct tkv_layer *l)
{
    uint64_t sum = 0;

    if (!l->budgets)
        return l->config.budget_tokens;
    for (uint32_t h = 0; h < l->config.shape.n_kv_heads; h++)
        sum += l->budgets[h];
    return (uint32_t)(sum / l->config.shape.n_kv_heads);
}

size_t tkv_budget_keeps(const struct tkv_session *s, const struct tkv_layer *l, uint32_t kv_head)
{
    const uint32_t n_hot =
        l->tail.n < s->config.recent_tokens ? l->tail.n : s->config.recent_tokens;
    const uint32_t fixed = l->pinned.n + n_hot;
    const uint32_t budget = l->budgets ? l->budgets[kv_head] : l->config.budget_tokens;

    return budget > fixed ? budget - fixed : 0;
}

size_t tkv_budget_most(const struct tkv_session *s, const struct tkv_layer *l)
{
    const size_t n_heads = l->config.shape.n_kv_heads;
    size_t most = 0;

    for (uint32_t h = 0; h < n_heads; h++) {
        const size_t n = tkv_budget_keeps(s, l, h);

        most = n > most ? n : most;
    }
    if (s->config.allocator == TKV_ADAPTIVE) /* one head has all but the least of the others */
        most = n_heads * most - (n_heads - 1) * (most > 0 ? least_of((uint32_t)most) : 0);
    return most + (l->probes ? s->config.gate.surplus_tokens : 0);
}

void tkv_budget_adapt(const struct tkv_session *s, const struct tkv_layer *l,
                      const float *const *scores, uint32_t *n_keep)
{
    const uint32_t n = l->config.shape.n_kv_heads;
    const size_t mean = tkv_budget_keeps(s, l, 0);
    struct tkv_score_row rows[TRIKV_MAX_HEADS];

    for (uint32_t h = 0; h < n; h++)
        rows[h] = (struct tkv_score_row){scores[h], l->heads[h].n_cold};
    tkv_allocate_adaptive(n_keep, rows, n, (uint64_t)n * mean,
                          mean > 0 ? least_of((uint32_t)mean) : 0);
}
