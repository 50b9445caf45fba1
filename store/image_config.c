/* Reading an image's first part, from which an empty session is made; and what reading all parts
 * has in common. */
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <xxhash.h>

#include "proto/errors.h"
#include "proto/limits.h"
#include "store/budget.h"
#include "store/image_priv.h"
#include "store/session_priv.h"

static const char *const part_names[TKV_IMAGE_N_PARTS] = {"config", "counters", "state",
                                                          "tables", "mass",     "probes"};

int tkv_image_fail(const struct image_in *in, const char *format, ...)
{
    char text[160];
    va_list args;

    va_start(args, format);
    (void)vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    if (in->layer == UINT32_MAX)
        return tkv_fail(in->why, TRIKV_E_VALUE, "image, %s: %s", in->name, text);
    return tkv_fail(in->why, TRIKV_E_VALUE, "image of layer %u, %s: %s", in->layer, in->name, text);
}

int tkv_image_begin(struct image_in *in, enum tkv_image_part part, uint32_t layer,
                    const void *image, size_t bytes, struct tkv_report *why)
{
    struct image_header h;

    *in = (struct image_in){image, bytes, part_names[part],
                            part < TKV_IMAGE_STATE ? UINT32_MAX : layer, why};
    if (tkv_image_take(in, &h, sizeof(h)))
        return why ? why->error : TRIKV_E_VALUE;
    if (h.magic != TKV_IMAGE_MAGIC || h.part != (uint16_t)part || h.zero != 0)
        return tkv_image_fail(in, "the header is not that of this part");
    if (h.version != TKV_IMAGE_VERSION)
        return tkv_fail(why, TRIKV_E_VERSION, "image: version is %u, want %d", h.version,
                        TKV_IMAGE_VERSION);
    if (h.layer != layer)
        return tkv_image_fail(in, "it is that of layer %u", h.layer);
    if (h.bytes != bytes)
        return tkv_image_fail(in, "want %llu bytes, got %zu", (unsigned long long)h.bytes, bytes);
    return 0;
}

int tkv_image_take(struct image_in *in, void *out, size_t bytes)
{
    if (in->left < bytes)
        return tkv_image_fail(in, "want %zu bytes more, got %zu", bytes, in->left);
    if (bytes > 0)
        memcpy(out, in->at, bytes);
    in->at += bytes;
    in->left -= bytes;
    return 0;
}

int tkv_image_skip_pad(struct image_in *in, size_t bytes)
{
    uint64_t zero;

    return tkv_image_take(in, &zero, tkv_align(bytes, 8) - bytes);
}

int tkv_image_end(struct image_in *in)
{
    return in->left ? tkv_image_fail(in, "%zu bytes too many", in->left) : 0;
}

/* ---- the session -------------------------------------------------------------------------- */

static int read_rope(struct image_in *in, struct tkv_rope *r)
{
    struct image_rope rope;
    int e = tkv_image_take(in, &rope, sizeof(rope));

    if (e)
        return e;
    if (rope.head_dim < TKV_MIN_HEAD_DIM || rope.head_dim > TKV_MAX_HEAD_DIM ||
        rope.head_dim % 2 != 0 || rope.rotary_dim > rope.head_dim || rope.rotary_dim % 2 != 0 ||
        rope.layout > TKV_ROPE_INTERLEAVED || !isfinite(rope.attention_scaling))
        return tkv_image_fail(in, "rope of head_dim %u, rotary_dim %u, layout %u is none",
                              rope.head_dim, rope.rotary_dim, rope.layout);
    r->head_dim = rope.head_dim;
    r->rotary_dim = rope.rotary_dim;
    r->n_bands = rope.head_dim / 2;
    r->layout = (enum tkv_rope_layout)rope.layout;
    r->attention_scaling = rope.attention_scaling;
    e = tkv_image_take(in, r->inv_freq, r->n_bands * sizeof(r->inv_freq[0]));
    for (uint32_t f = 0; !e && f < r->n_bands; f++)
        if (!isfinite(r->inv_freq[f]))
            e = tkv_image_fail(in, "rope frequency %u is not finite", f);
    return e ? e : tkv_image_skip_pad(in, r->n_bands * sizeof(r->inv_freq[0]));
}

/* Sinks and rungs follow each other in memory that is as long as the image. */
struct places {
    float *sinks;
    struct tkv_rung *rungs;
    uint32_t n_tiers;
};

static int read_rungs(struct image_in *in, const struct tkv_shape *shape, struct places *p)
{
    for (uint32_t h = 0; p->n_tiers > 0 && h < shape->n_kv_heads; h++) {
        struct image_rung rung;
        const int e = tkv_image_take(in, &rung, sizeof(rung));

        if (e)
            return e;
        if (rung.tier >= p->n_tiers || rung.open_tier >= p->n_tiers)
            return tkv_image_fail(in, "tiers %u and %u of %u", rung.tier, rung.open_tier,
                                  p->n_tiers);
        *p->rungs++ = (struct tkv_rung){rung.tier, rung.open_tier, rung.reach_tokens};
    }
    return 0;
}

static int read_layer(struct image_in *in, struct tkv_layer_config *l, struct places *p)
{
    struct image_layer layer;
    int e = tkv_image_take(in, &layer, sizeof(layer));

    if (e)
        return e;
    l->shape = (struct tkv_shape){layer.n_q_heads, layer.n_kv_heads, layer.head_dim_k,
                                  layer.head_dim_v, layer.rope_dim};
    l->has_method = true;
    l->method = (enum tkv_method)layer.method;
    l->attn = (struct tkv_attn_params){
        .scale = layer.scale, .softcap = layer.softcap, .window_tokens = layer.window_tokens};
    l->codec_k = tkv_codec_by_id(layer.codec_k);
    l->codec_v = tkv_codec_by_id(layer.codec_v);
    l->budget_tokens = layer.budget_tokens;
    if (!l->codec_k || !l->codec_v)
        return tkv_image_fail(in, "codec %u is none", l->codec_k ? layer.codec_v : layer.codec_k);
    if (layer.zero != 0 || (layer.n_sinks != 0 && layer.n_sinks != layer.n_q_heads))
        return tkv_image_fail(in, "%u sinks for %u query heads", layer.n_sinks, layer.n_q_heads);
    e = tkv_image_take(in, p->sinks, layer.n_sinks * sizeof(float));
    e = e ? e : tkv_image_skip_pad(in, layer.n_sinks * sizeof(float));
    if (e)
        return e;
    l->sinks = layer.n_sinks ? p->sinks : NULL;
    p->sinks += layer.n_sinks;
    return read_rungs(in, &l->shape, p);
}

static int read_session(struct image_in *in, const struct image_config *c,
                        struct tkv_session_config *to)
{
    const bool plans = c->method == TKV_METHOD_DEFAULT;
    const struct tkv_session_config rounds = {
        .method = (enum tkv_method)c->method,
        .eviction_mode = (enum tkv_eviction_mode)c->eviction_mode,
        .beta_tokens = c->beta_tokens,
        .rollback_tokens = c->rollback_tokens,
    };

    if (c->method > TKV_METHOD_DEFAULT || c->eviction_mode > TKV_UNION ||
        c->aggregation > TKV_AGGREGATE_MAX || c->flags & ~(uint32_t)IMAGE_CONFIG_FLAGS)
        return tkv_image_fail(in, "method %u, eviction_mode %u, aggregation %u, flags %#x",
                              c->method, c->eviction_mode, c->aggregation, c->flags);
    if (plans != (c->n_tiers > 0) || c->n_tiers > TKV_PLAN_TIERS || c->zero != 0)
        return tkv_image_fail(in, "method %u with %u tiers", c->method, c->n_tiers);
    for (uint32_t t = 0, seen = 0; t < c->n_tiers; t++) {
        if (c->plan_tiers[t] >= TKV_PLAN_TIERS || seen >> c->plan_tiers[t] & 1)
            return tkv_image_fail(in, "tier %u is %u", t, c->plan_tiers[t]);
        seen |= 1u << c->plan_tiers[t];
    }
    if (plans ? c->beta_tokens <= c->rollback_tokens : c->beta_tokens != tkv_config_beta(&rounds))
        return tkv_image_fail(in, "beta is %u tokens", c->beta_tokens);
    *to = (struct tkv_session_config){
        .n_layers = c->n_layers,
        .method = (enum tkv_method)c->method,
        .beta_tokens = c->beta_tokens,
        .recent_tokens = c->recent_tokens,
        .pinned_tokens = c->pinned_tokens,
        .rollback_tokens = c->rollback_tokens,
        .eviction_mode = (enum tkv_eviction_mode)c->eviction_mode,
        .normalize_scores = c->flags & IMAGE_NORMALIZES,
        .budget_bytes = c->budget_bytes,
        .max_tokens = c->max_tokens,
        .allocator = (enum tkv_allocator)c->allocator,
        .gate = {.limits = {c->output_error, c->lse_change, c->lost_mass},
                 .surplus_tokens = c->surplus_tokens,
                 .n_probes = c->n_probes},
        .tri = {.offset_max = c->offset_max,
                .aggregation = (enum tkv_aggregation)c->aggregation,
                .disable_mlr = c->flags & IMAGE_NO_MLR,
                .disable_trig = c->flags & IMAGE_NO_TRIG},
    };
    return 0;
}

static int read_all(struct image_in *in, const struct image_config *c, struct tkv_image_config *to,
                    struct places *p)
{
    int e = read_session(in, c, &to->config);

    to->has_stats = c->flags & IMAGE_HAS_STATS;
    to->has_errors = c->flags & IMAGE_HAS_ERRORS;
    to->horizon_tokens = c->horizon_tokens;
    to->n_tiers = c->n_tiers;
    memcpy(to->plan_tiers, c->plan_tiers, sizeof(to->plan_tiers));
    to->rungs = c->n_tiers ? p->rungs : NULL;
    to->config.layers = to->layers;
    if (!e && c->flags & IMAGE_HAS_ROPE) {
        to->config.rope = to->rope;
        e = read_rope(in, to->rope);
    }
    for (uint32_t i = 0; !e && i < c->n_layers; i++)
        e = read_layer(in, &to->layers[i], p);
    return e ? e : tkv_image_end(in);
}

int tkv_image_read_config(struct tkv_image_config **out, const void *image, size_t bytes,
                          struct tkv_budget *budget, struct tkv_report *why)
{
    struct image_in in;
    struct image_config c;
    struct tkv_image_config *to;
    struct places p;
    size_t need;
    int e = tkv_image_begin(&in, TKV_IMAGE_CONFIG, 0, image, bytes, why);

    *out = NULL;
    e = e ? e : tkv_image_take(&in, &c, sizeof(c));
    if (e)
        return e;
    if (c.n_layers == 0 || c.n_layers > TRIKV_MAX_LAYERS)
        return tkv_image_fail(&in, "n_layers is %u, want 1..%d", c.n_layers, TRIKV_MAX_LAYERS);
    need = sizeof(*to) + sizeof(*to->rope) + c.n_layers * sizeof(*to->layers) + 2 * bytes;
    to = tkv_budget_alloc(budget, need);
    if (!to)
        return tkv_fail(why, TRIKV_E_MEMORY_CAP, "no room to read an image of %zu bytes", bytes);
    to->budget = budget;
    to->bytes = need;
    to->digest = XXH3_64bits(image, bytes);
    to->layers = (struct tkv_layer_config *)(to + 1);
    to->rope = (struct tkv_rope *)(to->layers + c.n_layers);
    p = (struct places){.rungs = (struct tkv_rung *)(to->rope + 1), .n_tiers = c.n_tiers};
    p.sinks = (float *)(void *)((uint8_t *)p.rungs + bytes);
    e = read_all(&in, &c, to, &p);
    if (e)
        tkv_image_config_destroy(&to);
    *out = to;
    return e;
}

void tkv_image_config_destroy(struct tkv_image_config **config)
{
    if (*config)
        tkv_budget_free((*config)->budget, *config, (*config)->bytes);
    *config = NULL;
}

int tkv_image_open(struct tkv_session **session, const struct tkv_image_config *config,
                   const struct tkv_arena *of, struct tkv_budget *budget,
                   const struct tkv_kernels *kn, struct tkv_report *why)
{
    const struct tkv_base base = {.budget = budget, .kn = kn, .arena = of};
    int e = tkv_session_check(&config->config, why);

    *session = NULL;
    e = e ? e : tkv_session_build(session, &config->config, &base, why);
    if (!e && tkv_session_plans(*session)) {
        struct tkv_tier_list tiers = {.n = config->n_tiers};

        memcpy(tiers.plan_tiers, config->plan_tiers, sizeof(tiers.plan_tiers));
        e = tkv_ladder_restore(*session, &config->config, config->horizon_tokens, &tiers,
                               config->rungs, why);
    }
    if (e)
        tkv_session_destroy(session);
    return e;
}
