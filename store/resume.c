/*
 * What must be known of a session before another one may begin as a fork of it: whether both are of one
 * kind, how far back its state can be had, and who may have seen its memory.
 */
#include <string.h>

#include "store/session_priv.h"

static bool same_sinks(const struct tkv_layer_config *a, const struct tkv_layer_config *b)
{
    if (!a->sinks || !b->sinks)
        return !a->sinks && !b->sinks;
    return memcmp(a->sinks, b->sinks, a->shape.n_q_heads * sizeof(float)) == 0;
}

static bool same_geometry(const struct tkv_layer_config *a, const struct tkv_layer_config *b)
{
    return a->shape.n_q_heads == b->shape.n_q_heads && a->shape.n_kv_heads == b->shape.n_kv_heads &&
           a->shape.head_dim_k == b->shape.head_dim_k &&
           a->shape.head_dim_v == b->shape.head_dim_v && a->shape.rope_dim == b->shape.rope_dim &&
           a->attn.scale == b->attn.scale && a->attn.softcap == b->attn.softcap &&
           a->attn.window_tokens == b->attn.window_tokens && same_sinks(a, b);
}

static bool same_gate(const struct tkv_gate_config *a, const struct tkv_gate_config *b)
{
    return a->n_probes == b->n_probes && a->surplus_tokens == b->surplus_tokens &&
           a->limits.output_error == b->limits.output_error &&
           a->limits.lse_change == b->limits.lse_change &&
           a->limits.lost_mass == b->limits.lost_mass;
}

static bool evicts(const struct tkv_session *s)
{
    for (uint32_t i = 0; i < s->config.n_layers; i++)
        if (tkv_layer_evicts(&s->layers[i]))
            return true;
    return false;
}

/* Everything that decides what is kept and how, budgets only where something is evicted. */
static bool same_policy(const struct tkv_session *s, const struct tkv_session_config *c)
{
    const struct tkv_session_config *o = &s->config;

    if (o->method != c->method || o->recent_tokens != c->recent_tokens ||
        o->pinned_tokens != c->pinned_tokens || o->rollback_tokens != c->rollback_tokens)
        return false;
    if (o->method == TKV_METHOD_DEFAULT) /* the rest of it follows from these */
        return o->budget_bytes == c->budget_bytes && o->max_tokens == c->max_tokens;
    if (!evicts(s))
        return true;
    return o->beta_tokens == tkv_config_beta(c) && same_gate(&o->gate, &c->gate) &&
           o->eviction_mode == c->eviction_mode && o->allocator == c->allocator &&
           o->normalize_scores == c->normalize_scores && o->tri.offset_max == c->tri.offset_max &&
           o->tri.aggregation == c->tri.aggregation;
}

/* method: of the configuration that b is from. */
static bool same_layer_policy(const struct tkv_layer_config *a, const struct tkv_layer_config *b,
                              enum tkv_method method)
{
    return a->method == (b->has_method ? b->method : method) && a->codec_k == b->codec_k &&
           (a->shape.rope_dim > 0 || a->codec_v == b->codec_v) && a->stats == b->stats &&
           a->errors == b->errors &&
           (a->method == TKV_METHOD_NONE || a->budget_tokens == b->budget_tokens);
}

/* A configuration whose layers are its own, or those of a session. */
struct other {
    const struct tkv_session_config *config;
    const struct tkv_layer *layers; /* NULL: config has them */
};

static const struct tkv_layer_config *layer_of(const struct other *o, uint32_t i)
{
    return o->layers ? &o->layers[i].config : &o->config->layers[i];
}

static enum tkv_likeness compare(const struct tkv_session *s, const struct other *o)
{
    if (s->config.n_layers != o->config->n_layers)
        return TKV_OTHER_GEOMETRY;
    for (uint32_t i = 0; i < s->config.n_layers; i++)
        if (!same_geometry(&s->layers[i].config, layer_of(o, i)))
            return TKV_OTHER_GEOMETRY;
    if (!same_policy(s, o->config))
        return TKV_OTHER_POLICY;
    for (uint32_t i = 0; i < s->config.n_layers; i++)
        if (!same_layer_policy(&s->layers[i].config, layer_of(o, i), o->config->method))
            return TKV_OTHER_POLICY;
    return TKV_ALIKE;
}

enum tkv_likeness tkv_session_compare(const struct tkv_session *s,
                                      const struct tkv_session_config *c)
{
    struct tkv_session_config own = *c;
    const struct other o = {.config = &own};

    if (c->method == TKV_METHOD_DEFAULT) /* as the session chose when it was made */
        tkv_ladder_size_tiers(&own, c->layers);
    return compare(s, &o);
}

bool tkv_session_is_like(const struct tkv_session *a, const struct tkv_session *b)
{
    const struct other o = {.config = &b->config, .layers = b->layers};

    return compare(a, &o) == TKV_ALIKE;
}

uint64_t tkv_session_reach(const struct tkv_session *s)
{
    uint64_t reach = 0;

    for (uint32_t i = 0; i < s->config.n_layers; i++) {
        const struct tkv_layer *l = &s->layers[i];
        const uint64_t own = l->checkpoint.is_live ? l->checkpoint.floor.n_seen : l->floor.n_seen;

        reach = own > reach ? own : reach;
    }
    return reach;
}

bool tkv_session_is_contiguous(const struct tkv_session *s)
{
    const uint64_t n = s->layers[0].n_seen;

    /* n positions that increase from 0 on or later and end at n - 1 leave none out. */
    for (uint32_t i = 0; i < s->config.n_layers; i++)
        if (s->layers[i].n_seen != n || (int64_t)s->layers[i].last_position != (int64_t)n - 1)
            return false;
    return true;
}

void tkv_session_seen(const struct tkv_session *s, uint64_t *least, uint64_t *most)
{
    *least = UINT64_MAX;
    *most = 0;
    for (uint32_t i = 0; i < s->config.n_layers; i++) {
        const uint64_t n = s->layers[i].n_seen;

        *least = n < *least ? n : *least;
        *most = n > *most ? n : *most;
    }
}

void tkv_session_mark(struct tkv_session *s, unsigned marks)
{
    tkv_arena_mark(s->arena, marks);
}

unsigned tkv_session_marks(const struct tkv_session *s)
{
    return tkv_arena_marks(s->arena);
}
