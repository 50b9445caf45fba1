/* The policy of a profile: tokens, bits, and what single layers say for themselves. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "daemon/profile_priv.h"

enum { MAX_CODEC_NAMES = 64, MAX_LIMIT = 1000 };

static bool codec(struct tkv_profile_reader *r, const struct tkv_yaml_node *map, const char *what,
                  const char *key, bool needed, uint32_t *out)
{
    const char *names[MAX_CODEC_NAMES + 1];
    size_t n = 0;
    uint32_t index;

    for (; n < MAX_CODEC_NAMES && tkv_codecs[n].name; n++)
        names[n] = tkv_codecs[n].name;
    names[n] = NULL;
    if (!tkv_profile_choice(r, map, what, key, needed, names, &index))
        return false;
    if (strcmp(key, "v") == 0 && tkv_codecs[index].qjl) {
        tkv_yaml_error(r->y, tkv_yaml_find(map, key), "%s.v: %s is for keys only", what,
                       names[index]);
        r->good = false;
        return false;
    }
    *out = tkv_codecs[index].id;
    return true;
}

static void said(struct tkv_policy *p, bool is, uint32_t bit)
{
    if (is)
        p->said |= bit;
}

static void check_budget(struct tkv_profile_reader *r, const struct tkv_yaml_node *at,
                         uint32_t budget)
{
    const struct tkv_policy *p = &r->p->policy;
    const uint32_t floor = p->pinned_tokens + p->recent_tokens; /* 0 for what is not said */

    if (budget > floor)
        return;
    tkv_yaml_error(r->y, at, "budget: %u tokens, want more than pinned %u + recent %u", budget,
                   p->pinned_tokens, p->recent_tokens);
    r->good = false;
}

/* The whole numbers of policy.tokens: four needed by every method that drops tokens, one by
 * triattention alone. */
static void read_token_counts(struct tkv_profile_reader *r, const struct tkv_yaml_node *m)
{
    struct tkv_policy *p = &r->p->policy;
    const bool drops = p->method != TKV_METHOD_NONE && p->method != TKV_METHOD_DEFAULT;
    const bool scores = p->method == TKV_METHOD_TRIATTENTION;
    const struct {
        const char *key;
        bool needed;
        uint32_t min, max;
        uint32_t *out;
        uint32_t bit;
    } counts[] = {
        {"budget", drops, 1, TKV_MAX_POLICY_TOKENS, &p->budget_tokens, TKV_POLICY_BUDGET},
        {"beta", drops, 1, TKV_MAX_POLICY_TOKENS, &p->beta_tokens, TKV_POLICY_BETA},
        {"recent", drops, 0, TKV_MAX_POLICY_TOKENS, &p->recent_tokens, TKV_POLICY_RECENT},
        {"pinned", drops, 0, TKV_MAX_POLICY_TOKENS, &p->pinned_tokens, TKV_POLICY_PINNED},
        {"offset_max", scores, 1, TKV_MAX_OFFSET, &p->offset_max, TKV_POLICY_OFFSET_MAX},
    };

    for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]); i++) {
        if (tkv_profile_number(r, m, "tokens", counts[i].key, counts[i].needed, counts[i].min,
                               counts[i].max, counts[i].out))
            p->said |= counts[i].bit;
    }
    if (p->said & TKV_POLICY_BUDGET)
        check_budget(r, tkv_yaml_find(m, "budget"), p->budget_tokens);
}

static void read_normalize(struct tkv_profile_reader *r, const struct tkv_yaml_node *m, bool needed)
{
    const struct tkv_yaml_node *n = needed ? tkv_profile_need(r->y, m, "tokens", "normalize_scores")
                                           : tkv_yaml_find(m, "normalize_scores");
    struct tkv_policy *p = &r->p->policy;

    if (n && tkv_yaml_bool(r->y, n, "tokens.normalize_scores", &p->normalize_scores))
        p->said |= TKV_POLICY_NORMALIZE;
    else
        r->good &= !n && !needed;
}

static void read_ratio(struct tkv_profile_reader *r, const struct tkv_yaml_node *m)
{
    const struct tkv_yaml_node *n = tkv_yaml_find(m, "target_ratio");
    struct tkv_policy *p = &r->p->policy;
    double ratio;

    if (n && tkv_yaml_double(r->y, n, "tokens.target_ratio", 1, TKV_MAX_RATIO, &ratio)) {
        p->target_ratio = (float)ratio;
        p->said |= TKV_POLICY_RATIO;
    } else {
        r->good &= !n;
    }
    said(p,
         tkv_profile_number(r, m, "tokens", "max_tokens", false, 1, TKV_MAX_POLICY_TOKENS,
                            &p->max_tokens),
         TKV_POLICY_MAX_TOKENS);
}

static void read_tokens(struct tkv_profile_reader *r, const struct tkv_yaml_node *policy)
{
    static const char *const keys[] = {
        "method", "budget", "eviction_mode", "normalize_scores", "aggregation",  "offset_max",
        "beta",   "recent", "pinned",        "allocator",        "target_ratio", "max_tokens",
        NULL};
    const struct tkv_yaml_node *m = tkv_profile_part(r, policy, "policy", "tokens", keys, true);
    struct tkv_policy *p = &r->p->policy;
    bool needed;

    if (!m)
        return;
    said(p, tkv_profile_choice(r, m, "tokens", "method", true, tkv_method_names, &p->method),
         TKV_POLICY_METHOD);
    needed = p->method == TKV_METHOD_TRIATTENTION;
    read_token_counts(r, m);
    read_ratio(r, m);
    read_normalize(r, m, needed);
    said(p,
         tkv_profile_choice(r, m, "tokens", "eviction_mode", needed, tkv_eviction_mode_names,
                            &p->eviction_mode),
         TKV_POLICY_MODE);
    said(p,
         tkv_profile_choice(r, m, "tokens", "aggregation", needed, tkv_aggregation_names,
                            &p->aggregation),
         TKV_POLICY_AGGREGATION);
    said(p,
         tkv_profile_choice(r, m, "tokens", "allocator", false, tkv_allocator_names, &p->allocator),
         TKV_POLICY_ALLOCATOR);
}

/* A limit; without one INFINITY stays. */
static void read_limit(struct tkv_profile_reader *r, const struct tkv_yaml_node *m, const char *key,
                       float *out)
{
    const struct tkv_yaml_node *n = tkv_yaml_find(m, key);
    char name[64];
    double x;

    snprintf(name, sizeof(name), "gate.%s", key);
    *out = INFINITY;
    if (!n)
        return;
    if (tkv_yaml_double(r->y, n, name, 0, MAX_LIMIT, &x))
        *out = (float)x;
    else
        r->good = false;
}

static void read_gate(struct tkv_profile_reader *r, const struct tkv_yaml_node *policy)
{
    static const char *const keys[] = {"output_error", "lse_change", "lost_mass",
                                       "surplus",      "probes",     NULL};
    const struct tkv_yaml_node *m = tkv_profile_part(r, policy, "policy", "gate", keys, false);
    struct tkv_policy *p = &r->p->policy;

    if (!m)
        return;
    read_limit(r, m, "output_error", &p->gate.limits.output_error);
    read_limit(r, m, "lse_change", &p->gate.limits.lse_change);
    read_limit(r, m, "lost_mass", &p->gate.limits.lost_mass);
    said(p,
         tkv_profile_number(r, m, "gate", "surplus", true, 0, TKV_MAX_POLICY_TOKENS,
                            &p->gate.surplus_tokens) &&
             tkv_profile_number(r, m, "gate", "probes", true, 1, TKV_MAX_PROBES, &p->gate.n_probes),
         TKV_POLICY_GATE);
}

static void read_bits(struct tkv_profile_reader *r, const struct tkv_yaml_node *policy)
{
    static const char *const keys[] = {"k", "v", NULL};
    const struct tkv_yaml_node *m = tkv_profile_part(r, policy, "policy", "bits", keys, true);
    struct tkv_policy *p = &r->p->policy;

    if (!m)
        return;
    said(p, codec(r, m, "bits", "k", true, &p->codec_k), TKV_POLICY_CODEC_K);
    said(p, codec(r, m, "bits", "v", true, &p->codec_v), TKV_POLICY_CODEC_V);
}

/* Later entries win, field by field. */
static void override_layer(struct tkv_profile_layer *l, const struct tkv_policy *own,
                           uint32_t window_tokens)
{
    struct tkv_policy all = {.said = l->said,
                             .method = l->method,
                             .budget_tokens = l->budget_tokens,
                             .codec_k = l->codec_k,
                             .codec_v = l->codec_v};

    tkv_policy_merge(&all, own);
    l->said = all.said;
    l->method = all.method;
    l->budget_tokens = all.budget_tokens;
    l->codec_k = all.codec_k;
    l->codec_v = all.codec_v;
    l->window_tokens = window_tokens ? window_tokens : l->window_tokens;
}

static void read_layer_list(struct tkv_profile_reader *r, const struct tkv_yaml_node *entry,
                            const struct tkv_policy *own, uint32_t window_tokens)
{
    const struct tkv_yaml_node *list = tkv_profile_need(r->y, entry, "policy.layers", "layers");

    if (!list || list->kind != TKV_YAML_SEQUENCE || !list->n) {
        if (list)
            tkv_yaml_error(r->y, list, "policy.layers.layers: want a list of layer numbers");
        r->good = false;
        return;
    }
    for (const struct tkv_yaml_node *n = list->first; n; n = n->next) {
        uint32_t layer;

        if (tkv_yaml_u32(r->y, n, "policy.layers.layers", 0, r->p->n_layers - 1, &layer))
            override_layer(&r->p->layers[layer], own, window_tokens);
        else
            r->good = false;
    }
}

/* The modes that keep one set of tokens for all layers need one size for it. */
static void check_shared_budget(struct tkv_profile_reader *r, const struct tkv_yaml_node *at,
                                uint32_t budget)
{
    const struct tkv_policy *p = &r->p->policy;

    if (p->eviction_mode == TKV_PER_LAYER_PERHEAD || budget == p->budget_tokens)
        return;
    tkv_yaml_error(r->y, at, "budget: %s needs the same budget in all layers, %u here and %u there",
                   tkv_eviction_mode_names[p->eviction_mode], budget, p->budget_tokens);
    r->good = false;
}

static void check_layer_method(struct tkv_profile_reader *r, const struct tkv_yaml_node *at,
                               uint32_t method)
{
    const struct tkv_policy *p = &r->p->policy;

    if (method == p->method)
        return;
    if (method == TKV_METHOD_DEFAULT || p->method == TKV_METHOD_DEFAULT)
        tkv_yaml_error(r->y, at, "method: default plans all layers together");
    else if (p->eviction_mode != TKV_PER_LAYER_PERHEAD)
        tkv_yaml_error(r->y, at,
                       "method: %s keeps one set for all layers, which need the same method",
                       tkv_eviction_mode_names[p->eviction_mode]);
    else
        return;
    r->good = false;
}

/* One entry of policy.layers: what it says goes to each of the layers it names. */
static void read_override(struct tkv_profile_reader *r, const struct tkv_yaml_node *entry)
{
    static const char *const keys[] = {"layers", "method", "budget", "k", "v", "window", NULL};
    const char *const what = "policy.layers";
    struct tkv_policy own = {0};
    uint32_t window_tokens = 0;

    if (!tkv_yaml_check_keys(r->y, entry, what, keys)) {
        r->good = false;
        return;
    }
    if (tkv_profile_number(r, entry, what, "budget", false, 1, TKV_MAX_POLICY_TOKENS,
                           &own.budget_tokens)) {
        own.said |= TKV_POLICY_BUDGET;
        check_budget(r, tkv_yaml_find(entry, "budget"), own.budget_tokens);
        check_shared_budget(r, tkv_yaml_find(entry, "budget"), own.budget_tokens);
    }
    if (tkv_profile_choice(r, entry, what, "method", false, tkv_method_names, &own.method)) {
        own.said |= TKV_POLICY_METHOD;
        check_layer_method(r, tkv_yaml_find(entry, "method"), own.method);
    }
    said(&own, codec(r, entry, what, "k", false, &own.codec_k), TKV_POLICY_CODEC_K);
    said(&own, codec(r, entry, what, "v", false, &own.codec_v), TKV_POLICY_CODEC_V);
    tkv_profile_number(r, entry, what, "window", false, 1, TRIKV_MAX_POSITION, &window_tokens);
    read_layer_list(r, entry, &own, window_tokens);
}

void tkv_profile_read_policy(struct tkv_profile_reader *r)
{
    static const char *const keys[] = {"tokens", "bits", "layers", "gate", NULL};
    const struct tkv_yaml_node *m =
        tkv_profile_part(r, r->y->root, "profile", "policy", keys, true);
    const struct tkv_yaml_node *layers = tkv_yaml_find(m, "layers");

    if (!m)
        return;
    read_tokens(r, m);
    read_bits(r, m);
    read_gate(r, m);
    if (!layers || r->p->n_layers == 0)
        return;
    if (layers->kind != TKV_YAML_SEQUENCE) {
        tkv_yaml_error(r->y, layers, "policy.layers: want a list");
        r->good = false;
        return;
    }
    for (const struct tkv_yaml_node *n = layers->first; n; n = n->next)
        read_override(r, n);
}
