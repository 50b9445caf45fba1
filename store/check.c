/* Is a session's configuration sound? Every number in it may come from a peer. */
#include <math.h>
#include <string.h>

#include "proto/errors.h"
#include "proto/limits.h"
#include "store/session_priv.h"

const char *const tkv_method_names[] = {"none",   "triattention", "streaming", "h2o",
                                        "snapkv", "keydiff",      "default",   NULL};
const char *const tkv_eviction_mode_names[] = {"per_layer_perhead", "per_head", "union", NULL};
const char *const tkv_aggregation_names[] = {"mean", "max", NULL};

int tkv_name_index(const char *const *names, const char *name)
{
    for (int i = 0; names[i]; i++)
        if (strcmp(names[i], name) == 0)
            return i;
    return -1;
}

static int check_dim(const char *name, uint32_t layer, uint32_t dim, struct tkv_report *why)
{
    if (dim < TKV_MIN_HEAD_DIM || dim > TKV_MAX_HEAD_DIM || dim % 2 != 0)
        return tkv_fail(why, TRIKV_E_ARGUMENT, "layer %u: %s is %u, want an even number %d..%d",
                        layer, name, dim, TKV_MIN_HEAD_DIM, TKV_MAX_HEAD_DIM);
    return 0;
}

static int check_shape(uint32_t layer, const struct tkv_shape *s, struct tkv_report *why)
{
    int e;

    if (s->n_q_heads == 0 || s->n_q_heads > TRIKV_MAX_HEADS)
        return tkv_fail(why, TRIKV_E_ARGUMENT, "layer %u: n_q_heads is %u, want 1..%d", layer,
                        s->n_q_heads, TRIKV_MAX_HEADS);
    if (s->n_kv_heads == 0 || s->n_q_heads % s->n_kv_heads != 0 || tkv_group(s) > TKV_MAX_GROUP)
        return tkv_fail(why, TRIKV_E_ARGUMENT,
                        "layer %u: n_kv_heads is %u, want a divisor of n_q_heads %u, groups of at "
                        "most %d",
                        layer, s->n_kv_heads, s->n_q_heads, TKV_MAX_GROUP);
    e = check_dim("head_dim_k", layer, s->head_dim_k, why);
    return e ? e : check_dim("head_dim_v", layer, s->head_dim_v, why);
}

/* Methods know what to do with latents if they look at whole keys, or at none. */
static bool takes_latents(const struct tkv_session_config *c, const struct tkv_layer_config *l)
{
    const enum tkv_method method = tkv_config_method(c, l);

    return method != TKV_METHOD_DEFAULT &&
           (method != TKV_METHOD_TRIATTENTION || tkv_layer_config_slides(c, l));
}

static int check_latents(const struct tkv_session_config *c, uint32_t layer, struct tkv_report *why)
{
    const struct tkv_layer_config *l = &c->layers[layer];
    const struct tkv_shape *s = &l->shape;

    if (s->rope_dim == 0)
        return 0;
    if (s->n_kv_heads != 1)
        return tkv_fail(why, TRIKV_E_ARGUMENT, "layer %u: latents have 1 KV head, n_kv_heads is %u",
                        layer, s->n_kv_heads);
    if (s->rope_dim % 2 != 0 || s->rope_dim >= s->head_dim_k ||
        s->head_dim_v != s->head_dim_k - s->rope_dim)
        return tkv_fail(why, TRIKV_E_ARGUMENT,
                        "layer %u: latents of head_dim_k %u and rope_dim %u (even) have values of "
                        "head_dim_k - rope_dim, head_dim_v is %u",
                        layer, s->head_dim_k, s->rope_dim, s->head_dim_v);
    if (l->codec_k && l->codec_k->qjl)
        return tkv_fail(why, TRIKV_E_ARGUMENT,
                        "layer %u: codec %s is for keys only, latents are values, too", layer,
                        l->codec_k->name);
    if (!takes_latents(c, l))
        return tkv_fail(why, TRIKV_E_ARGUMENT,
                        "layer %u: method %s has no measure for latents; none, streaming, h2o, "
                        "snapkv and keydiff have",
                        layer, tkv_method_names[tkv_config_method(c, l)]);
    return 0;
}

static int check_attention(uint32_t layer, const struct tkv_layer_config *l, struct tkv_report *why)
{
    if (!isfinite(l->attn.scale) || l->attn.scale == 0)
        return tkv_fail(why, TRIKV_E_ARGUMENT, "layer %u: scale is %g, want a finite number not 0",
                        layer, (double)l->attn.scale);
    if (!isfinite(l->attn.softcap) || l->attn.softcap < 0)
        return tkv_fail(why, TRIKV_E_ARGUMENT, "layer %u: softcap is %g, want 0 or more", layer,
                        (double)l->attn.softcap);
    for (uint32_t h = 0; l->sinks && h < l->shape.n_q_heads; h++)
        if (!isfinite(l->sinks[h]))
            return tkv_fail(why, TRIKV_E_ARGUMENT, "layer %u: sink of head %u is not finite", layer,
                            h);
    return 0;
}

static int check_codecs(uint32_t layer, const struct tkv_layer_config *l, struct tkv_report *why)
{
    if (!l->codec_k || !l->codec_v)
        return tkv_fail(why, TRIKV_E_ARGUMENT, "layer %u: no codec for %s", layer,
                        l->codec_k ? "values" : "keys");
    if (l->codec_v->qjl)
        return tkv_fail(why, TRIKV_E_ARGUMENT,
                        "layer %u: codec %s is for keys only, values need another", layer,
                        l->codec_v->name);
    return 0;
}

int tkv_check_budget(const struct tkv_session_config *c, uint32_t layer, uint32_t tokens,
                     struct tkv_report *why)
{
    const uint32_t least = c->pinned_tokens + c->recent_tokens + 1;

    if (tokens < least)
        return tkv_fail(why, TRIKV_E_ARGUMENT,
                        "layer %u: budget is %u tokens, want at least %u: pinned %u + recent %u "
                        "+ 1",
                        layer, tokens, least, c->pinned_tokens, c->recent_tokens);
    return 0;
}

static int check_budget(const struct tkv_session_config *c, uint32_t layer, struct tkv_report *why)
{
    const uint32_t tokens = c->layers[layer].budget_tokens;
    const int e = tkv_check_budget(c, layer, tokens, why);

    if (e)
        return e;
    if (c->eviction_mode != TKV_PER_LAYER_PERHEAD && tokens != c->layers[0].budget_tokens)
        return tkv_fail(why, TRIKV_E_ARGUMENT,
                        "layer %u: budget is %u tokens, layer 0 has %u; eviction_mode %s keeps "
                        "one set for all layers",
                        layer, tokens, c->layers[0].budget_tokens,
                        tkv_eviction_mode_names[c->eviction_mode]);
    return 0;
}

static int check_triattention_layer(const struct tkv_session_config *c, uint32_t layer,
                                    struct tkv_report *why)
{
    const struct tkv_layer_config *l = &c->layers[layer];

    if (tkv_layer_config_slides(c, l)) {
        if (c->eviction_mode != TKV_PER_LAYER_PERHEAD)
            return tkv_fail(
                why, TRIKV_E_ARGUMENT,
                "layer %u: window_tokens is %u, so it keeps other tokens than the rest; "
                "eviction_mode %s keeps one set for all layers",
                layer, l->attn.window_tokens, tkv_eviction_mode_names[c->eviction_mode]);
        return check_budget(c, layer, why);
    }
    if (!l->stats)
        return tkv_fail(why, TRIKV_E_ARGUMENT,
                        "layer %u: method triattention needs calibrated statistics", layer);
    if (l->shape.head_dim_k != c->rope->head_dim)
        return tkv_fail(why, TRIKV_E_GEOMETRY, "layer %u: head_dim_k is %u, rope has %u", layer,
                        l->shape.head_dim_k, c->rope->head_dim);
    if (c->eviction_mode != TKV_PER_LAYER_PERHEAD &&
        l->shape.n_kv_heads != c->layers[0].shape.n_kv_heads)
        return tkv_fail(why, TRIKV_E_ARGUMENT,
                        "layer %u: n_kv_heads is %u, layer 0 has %u; eviction_mode %s needs them "
                        "equal",
                        layer, l->shape.n_kv_heads, c->layers[0].shape.n_kv_heads,
                        tkv_eviction_mode_names[c->eviction_mode]);
    return check_budget(c, layer, why);
}

static int check_triattention(const struct tkv_session_config *c, struct tkv_report *why)
{
    static struct tkv_tri_fold const zero;
    struct tkv_tri_fold fold = zero;
    const char *text;

    if (!c->rope)
        return tkv_fail(why, TRIKV_E_ARGUMENT,
                        "method triattention needs a profile with the model's rope");
    text = tkv_tri_fold_init(&fold, c->rope, &c->tri);
    if (text)
        return tkv_fail(why, TRIKV_E_ARGUMENT, "triattention: %s", text);
    return 0;
}

/* Methods that need no statistics choose for each KV head alone. */
static int check_plain_layer(const struct tkv_session_config *c, uint32_t layer,
                             struct tkv_report *why)
{
    const enum tkv_method method = tkv_config_method(c, &c->layers[layer]);

    if (c->eviction_mode != TKV_PER_LAYER_PERHEAD)
        return tkv_fail(why, TRIKV_E_ARGUMENT,
                        "layer %u: eviction_mode is %s, want per_layer_perhead: %s "
                        "keeps no common set of tokens",
                        layer, tkv_eviction_mode_names[c->eviction_mode], tkv_method_names[method]);
    return tkv_check_budget(c, layer, c->layers[layer].budget_tokens, why);
}

static int check_planned(const struct tkv_session_config *c, struct tkv_report *why)
{
    if (c->eviction_mode != TKV_PER_LAYER_PERHEAD)
        return tkv_fail(why, TRIKV_E_ARGUMENT,
                        "eviction_mode is %s, want per_layer_perhead: default plans for each KV "
                        "head",
                        tkv_eviction_mode_names[c->eviction_mode]);
    if (c->budget_bytes == 0 || c->max_tokens == 0)
        return tkv_fail(why, TRIKV_E_ARGUMENT,
                        "method default plans what to keep: it needs budget_bytes and max_tokens, "
                        "they are %llu and %u",
                        (unsigned long long)c->budget_bytes, c->max_tokens);
    for (uint32_t i = 0; i < c->n_layers; i++)
        if (!c->layers[i].errors)
            return tkv_fail(why, TRIKV_E_ARGUMENT, "layer %u: method default needs measured errors",
                            i);
    return 0;
}

static bool is_limit(float x)
{
    return x >= 0; /* INFINITY is one, NaN is none */
}

static bool drops_tokens(const struct tkv_session_config *c)
{
    for (uint32_t i = 0; i < c->n_layers; i++)
        if (tkv_config_method(c, &c->layers[i]) != TKV_METHOD_NONE)
            return c->method != TKV_METHOD_DEFAULT;
    return false;
}

/* What makes KV heads keep different numbers of tokens is for methods that drop tokens in rounds, each
 * head its own. */
static int check_own_numbers(const struct tkv_session_config *c, const char *what,
                             struct tkv_report *why)
{
    if (!drops_tokens(c))
        return tkv_fail(why, TRIKV_E_ARGUMENT, "%s: method %s drops no tokens in rounds", what,
                        tkv_method_names[c->method]);
    if (c->eviction_mode != TKV_PER_LAYER_PERHEAD)
        return tkv_fail(why, TRIKV_E_ARGUMENT,
                        "%s: eviction_mode is %s, want per_layer_perhead: heads would keep "
                        "different numbers of tokens",
                        what, tkv_eviction_mode_names[c->eviction_mode]);
    return 0;
}

static int check_gate(const struct tkv_session_config *c, struct tkv_report *why)
{
    const struct tkv_gate_config *g = &c->gate;
    const int e = g->n_probes > 0 ? check_own_numbers(c, "gate", why) : 0;

    if (e || g->n_probes == 0)
        return e;
    if (g->n_probes > TKV_MAX_PROBES || g->surplus_tokens > TRIKV_MAX_REQUEST_TOKENS)
        return tkv_fail(why, TRIKV_E_ARGUMENT,
                        "gate: %u probes and a surplus of %u tokens, want at most %d and %d",
                        g->n_probes, g->surplus_tokens, TKV_MAX_PROBES, TRIKV_MAX_REQUEST_TOKENS);
    if (!is_limit(g->limits.output_error) || !is_limit(g->limits.lse_change) ||
        !is_limit(g->limits.lost_mass))
        return tkv_fail(why, TRIKV_E_ARGUMENT, "gate: limits are %g, %g and %g, want 0 or more",
                        (double)g->limits.output_error, (double)g->limits.lse_change,
                        (double)g->limits.lost_mass);
    return 0;
}

static int check_shared_layer(const struct tkv_session_config *c, uint32_t layer,
                              struct tkv_report *why)
{
    const struct tkv_layer_config *l = &c->layers[layer];

    if (c->allocator == TKV_PYRAMID && l->budget_tokens != c->layers[0].budget_tokens)
        return tkv_fail(
            why, TRIKV_E_ARGUMENT,
            "layer %u: budget is %u tokens, layer 0 has %u; allocator pyramid wants one "
            "for all layers",
            layer, l->budget_tokens, c->layers[0].budget_tokens);
    if (c->allocator != TKV_CONCENTRATION)
        return 0;
    if (!l->stats || !c->rope || c->rope->head_dim != l->shape.head_dim_k)
        return tkv_fail(why, TRIKV_E_ARGUMENT,
                        "layer %u: allocator concentration needs calibrated statistics and their "
                        "rope",
                        layer);
    return 0;
}

static int check_allocator(const struct tkv_session_config *c, struct tkv_report *why)
{
    int e;

    if (c->allocator == TKV_UNIFORM)
        return 0;
    if (c->allocator > TKV_ADAPTIVE)
        return tkv_fail(why, TRIKV_E_ARGUMENT, "allocator is %u, which is none",
                        (unsigned)c->allocator);
    e = check_own_numbers(c, "allocator", why);
    for (uint32_t i = 0; !e && i < c->n_layers; i++)
        if (tkv_config_method(c, &c->layers[i]) != TKV_METHOD_NONE &&
            !tkv_layer_config_slides(c, &c->layers[i]))
            e = check_shared_layer(c, i, why);
    return e;
}

static int check_layer_method(const struct tkv_session_config *c, uint32_t layer,
                              struct tkv_report *why)
{
    const enum tkv_method method = tkv_config_method(c, &c->layers[layer]);

    if ((uint32_t)method > TKV_METHOD_DEFAULT)
        return tkv_fail(why, TRIKV_E_ARGUMENT, "method is %u, which is none", (unsigned)method);
    if (method != c->method && (method == TKV_METHOD_DEFAULT || c->method == TKV_METHOD_DEFAULT))
        return tkv_fail(why, TRIKV_E_ARGUMENT,
                        "layer %u: method default plans all layers together, it cannot be mixed "
                        "with others",
                        layer);
    if (method != c->method && c->eviction_mode != TKV_PER_LAYER_PERHEAD)
        return tkv_fail(why, TRIKV_E_ARGUMENT,
                        "layer %u: method %s beside %s, but eviction_mode %s keeps one set for all "
                        "layers",
                        layer, tkv_method_names[method], tkv_method_names[c->method],
                        tkv_eviction_mode_names[c->eviction_mode]);
    switch (method) {
    case TKV_METHOD_NONE:
    case TKV_METHOD_DEFAULT: return 0;
    case TKV_METHOD_TRIATTENTION: return check_triattention_layer(c, layer, why);
    case TKV_METHOD_STREAMING:
    case TKV_METHOD_H2O:
    case TKV_METHOD_SNAPKV:
    case TKV_METHOD_KEYDIFF: break;
    }
    return check_plain_layer(c, layer, why);
}

static int check_methods(const struct tkv_session_config *c, struct tkv_report *why)
{
    int e = 0;

    if (c->method == TKV_METHOD_DEFAULT)
        e = check_planned(c, why);
    if (!e && tkv_config_uses(c, TKV_METHOD_TRIATTENTION))
        e = check_triattention(c, why);
    for (uint32_t i = 0; !e && i < c->n_layers; i++)
        e = check_layer_method(c, i, why);
    e = e ? e : check_gate(c, why);
    return e ? e : check_allocator(c, why);
}

static int check_tier(const char *name, uint32_t tokens, uint32_t least, struct tkv_report *why)
{
    if (tokens < least || tokens > TRIKV_MAX_REQUEST_TOKENS)
        return tkv_fail(why, TRIKV_E_ARGUMENT, "%s is %u tokens, want %u..%d", name, tokens, least,
                        TRIKV_MAX_REQUEST_TOKENS);
    return 0;
}

/* So that a layer never needs more than the last fold undone. */
static int check_rollback(const struct tkv_session_config *c, struct tkv_report *why)
{
    if (c->rollback_tokens >= TKV_BLOCK_TOKENS)
        return tkv_fail(why, TRIKV_E_ARGUMENT, "rollback is %u tokens, want less than %d",
                        c->rollback_tokens, TKV_BLOCK_TOKENS);
    return 0;
}

static int check_session_numbers(const struct tkv_session_config *c, struct tkv_report *why)
{
    int e;

    if (c->n_layers == 0 || c->n_layers > TRIKV_MAX_LAYERS)
        return tkv_fail(why, TRIKV_E_ARGUMENT, "n_layers is %u, want 1..%d", c->n_layers,
                        TRIKV_MAX_LAYERS);
    e = check_tier("beta", c->beta_tokens, 1, why);
    e = e ? e : check_tier("recent", c->recent_tokens, 0, why);
    e = e ? e : check_tier("pinned", c->pinned_tokens, 0, why);
    return e ? e : check_rollback(c, why);
}

int tkv_session_check(const struct tkv_session_config *c, struct tkv_report *why)
{
    int e = check_session_numbers(c, why);

    for (uint32_t i = 0; !e && i < c->n_layers; i++) {
        e = check_shape(i, &c->layers[i].shape, why);
        e = e ? e : check_latents(c, i, why);
        e = e ? e : check_attention(i, &c->layers[i], why);
        e = e ? e : check_codecs(i, &c->layers[i], why);
    }
    return e ? e : check_methods(c, why);
}
