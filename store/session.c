/*
 * Creating, checking and destroying sessions, and the requests on them: the order of things
 * (check, reserve, then change) is here; each tier's work is in a file of its own.
 */
#include "store/session.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/half.h"
#include "core/kernels.h"
#include "proto/errors.h"
#include "proto/limits.h"
#include "store/budget.h"
#include "store/journal.h"

static void *take_room(struct tkv_room *room, size_t bytes)
{
    const size_t need = tkv_align(bytes, 64);

    if (need > room->bytes - room->used_bytes)
        return NULL;
    room->used_bytes += need;
    return room->base + room->used_bytes - need;
}

static bool is_of_room(const struct tkv_room *room, const void *p)
{
    const uint8_t *const at = p;

    return room->base && at >= room->base && at < room->base + room->bytes;
}

void *tkv_session_alloc(struct tkv_session *s, size_t bytes)
{
    void *p = bytes ? take_room(&s->room, bytes) : NULL;

    if (p)
        return p;
    p = tkv_budget_alloc(s->budget, bytes);
    if (p)
        s->own_bytes += bytes;
    return p;
}

void tkv_session_free(struct tkv_session *s, void *p, size_t bytes)
{
    if (!p || is_of_room(&s->room, p))
        return;
    tkv_budget_free(s->budget, p, bytes);
    s->own_bytes -= bytes;
}

/* ---- the parts of a layer ----------------------------------------------------------------- */

const struct tkv_coder *tkv_session_coder(struct tkv_session *s, const struct tkv_codec *codec,
                                          uint32_t dim, bool means)
{
    struct tkv_coder *c = s->coders;

    for (uint32_t i = 0; i < s->n_coders; i++, c = tkv_coder_after(c))
        if (c->codec == codec && c->dim == dim &&
            (c->mean_bytes[TKV_KEYS] > 0) == (means && codec->best))
            return c;
    if (tkv_coder_init(c, codec, dim, TKV_ROTATION_SEED))
        return NULL; /* cannot be: the config was checked */
    if (!means)
        tkv_coder_drop_means(c);
    s->n_coders++;
    return c;
}

/* Latents have one codec, that of keys. */
static const struct tkv_codec *value_codec(const struct tkv_layer_config *l)
{
    return l->shape.rope_dim > 0 ? l->codec_k : l->codec_v;
}

static bool config_has_means(const struct tkv_session_config *c, const struct tkv_layer_config *l)
{
    const struct tkv_layer of = {.config.method = tkv_config_method(c, l),
                                 .slides = tkv_layer_config_slides(c, l)};

    return tkv_layer_has_means(&of);
}

static size_t coders_bytes(const struct tkv_session_config *c)
{
    size_t bytes = 0;

    for (uint32_t i = 0; i < c->n_layers; i++) {
        const struct tkv_layer_config *l = &c->layers[i];
        const struct tkv_codec *v = value_codec(l);
        const uint32_t dim_k = tkv_coded_dim_k(&l->shape), dim_v = l->shape.head_dim_v;
        bool k_known = false;
        bool v_known = l->codec_k == v && dim_k == dim_v;

        for (uint32_t j = 0; j < i; j++) {
            const struct tkv_layer_config *o = &c->layers[j];

            if (config_has_means(c, o) != config_has_means(c, l))
                continue;
            k_known |= (o->codec_k == l->codec_k && tkv_coded_dim_k(&o->shape) == dim_k) ||
                       (value_codec(o) == l->codec_k && o->shape.head_dim_v == dim_k);
            v_known |= (o->codec_k == v && tkv_coded_dim_k(&o->shape) == dim_v) ||
                       (value_codec(o) == v && o->shape.head_dim_v == dim_v);
        }
        bytes += k_known ? 0 : tkv_coder_bytes(l->codec_k, dim_k);
        bytes += v_known ? 0 : tkv_coder_bytes(v, dim_v);
    }
    return bytes;
}

static bool layer_make_weights(struct tkv_session *s, struct tkv_layer *l)
{
    const uint32_t n_bands = s->rope.n_bands;
    const uint32_t n_heads = l->config.shape.n_q_heads;

    l->norm_weights = tkv_shared_alloc(s, (size_t)n_heads * n_bands * sizeof(float));
    l->rulers = tkv_session_alloc(s, n_heads * sizeof(*l->rulers));
    if (!l->norm_weights || !l->rulers)
        return false;
    for (uint32_t h = 0; h < n_heads; h++) {
        const float *base = l->config.stats + (size_t)h * 3 * n_bands;
        const struct tkv_tri_stats stats = {base, base + n_bands, base + 2 * (size_t)n_bands};

        tkv_tri_norm_weights(s->fold, &s->rope, &stats, l->norm_weights + (size_t)h * n_bands);
    }
    return true;
}

static bool layer_create(struct tkv_session *s, struct tkv_layer *l,
                         const struct tkv_layer_config *c)
{
    const size_t sink_bytes = c->shape.n_q_heads * sizeof(float);
    bool scores, means;

    l->config = *c;
    l->config.method = tkv_config_method(&s->config, c);
    l->config.has_method = true;
    l->slides = tkv_layer_config_slides(&s->config, c);
    means = tkv_layer_has_means(l);
    scores = l->config.method == TKV_METHOD_TRIATTENTION && !l->slides;
    l->last_position = -1;
    if (c->sinks) {
        l->sinks = tkv_shared_alloc(s, sink_bytes);
        if (!l->sinks)
            return false;
        memcpy(l->sinks, c->sinks, sink_bytes);
    }
    l->config.sinks = l->sinks;
    if (c->shape.rope_dim > 0)
        tkv_block_layout_init_latents(&l->layout,
                                      tkv_session_coder(s, c->codec_k, c->shape.head_dim_v, means),
                                      c->shape.rope_dim);
    else if (!tkv_session_plans(s))
        tkv_block_layout_init(&l->layout,
                              tkv_session_coder(s, c->codec_k, c->shape.head_dim_k, means),
                              tkv_session_coder(s, c->codec_v, c->shape.head_dim_v, means),
                              scores ? tkv_group(&c->shape) : 0);
    l->heads = tkv_session_alloc(s, c->shape.n_kv_heads * sizeof(*l->heads));
    tkv_halves_init(s, l);
    return l->heads && tkv_checkpoint_create(s, l) && (!scores || layer_make_weights(s, l)) &&
           tkv_mass_create(s, l, NULL) && tkv_probes_create(s, l, NULL) &&
           tkv_budgets_create(s, l, NULL);
}

static void layer_destroy(struct tkv_session *s, struct tkv_layer *l)
{
    const uint32_t n_kv_heads = l->config.shape.n_kv_heads;

    for (uint32_t h = 0; l->heads && h < n_kv_heads; h++)
        tkv_head_release(s, &l->heads[h]);
    tkv_checkpoint_destroy(s, l);
    tkv_mass_destroy(s, l);
    tkv_probes_destroy(s, l);
    tkv_budgets_destroy(s, l);
    tkv_session_free(s, l->heads, n_kv_heads * sizeof(*l->heads));
    tkv_halves_release(s, l);
    tkv_shared_unref(s, l->ladder);
    tkv_shared_unref(s, l->sinks);
    tkv_shared_unref(s, l->norm_weights);
    tkv_session_free(s, l->rulers, l->config.shape.n_q_heads * sizeof(*l->rulers));
}

/* ---- a session's life --------------------------------------------------------------------- */

static bool make_fold(struct tkv_session *s, const struct tkv_session_config *c)
{
    if (!c->rope || !tkv_config_uses(c, TKV_METHOD_TRIATTENTION))
        return true;
    s->fold = tkv_shared_alloc(s, sizeof(*s->fold));
    if (s->fold)
        (void)tkv_tri_fold_init(s->fold, &s->rope, &c->tri); /* checked */
    return s->fold;
}

static bool session_fill(struct tkv_session *s, const struct tkv_session_config *c)
{
    if (!make_fold(s, c))
        return false;
    if (!tkv_session_plans(s)) /* else the plan says which */
        s->coders = tkv_shared_alloc(s, coders_bytes(c));
    s->layers = tkv_session_alloc(s, c->n_layers * sizeof(*s->layers));
    if (!s->layers || (!s->coders && !tkv_session_plans(s)))
        return false;
    for (uint32_t i = 0; i < c->n_layers; i++)
        if (!layer_create(s, &s->layers[i], &c->layers[i]))
            return false;
    return tkv_budgets_share(s);
}

static int session_begin(struct tkv_session *s, const struct tkv_session_config *c,
                         const struct tkv_base *base, struct tkv_report *why)
{
    int e = 0;

    if (base->arena)
        s->arena = tkv_arena_share(base->arena);
    else if (c->is_kept)
        e = tkv_arena_create_kept(&s->arena, c->owner, base->budget, why);
    else
        e = tkv_arena_create(&s->arena, base->budget, why);
    if (!e && (!s->arena || !session_fill(s, c)))
        e = tkv_fail(why, TRIKV_E_MEMORY_CAP,
                     "a session of %u layers does not fit: %zu bytes used of the cap of %zu",
                     c->n_layers, atomic_load(&base->budget->used_bytes), base->budget->cap_bytes);
    return e;
}

int tkv_session_build(struct tkv_session **session, const struct tkv_session_config *config,
                      const struct tkv_base *base, struct tkv_report *why)
{
    struct tkv_session *s = tkv_budget_alloc(base->budget, sizeof(*s));
    int e;

    *session = NULL;
    if (!s)
        return tkv_fail(why, TRIKV_E_MEMORY_CAP, "no room for a session");
    s->budget = base->budget;
    s->kn = base->kn;
    s->own_bytes = sizeof(*s);
    s->config = *config;
    if (config->rope)
        s->rope = *config->rope;
    s->config.rope = &s->rope;
    e = session_begin(s, config, base, why);
    s->config.layers = NULL; /* each layer has its own copy */
    if (e)
        tkv_session_destroy(&s);
    *session = s;
    return e;
}

int tkv_session_create(struct tkv_session **session, const struct tkv_session_config *config,
                       struct tkv_budget *budget, const struct tkv_kernels *kn,
                       struct tkv_report *why)
{
    const struct tkv_base base = {.budget = budget, .kn = kn};
    struct tkv_session_config own = *config;
    int e = tkv_session_check(config, why);

    *session = NULL;
    if (e)
        return e;
    own.beta_tokens = tkv_config_beta(config);
    if (config->method == TKV_METHOD_DEFAULT)
        tkv_ladder_size_tiers(&own, config->layers);
    e = tkv_session_build(session, &own, &base, why);
    if (!e && tkv_session_plans(*session))
        e = tkv_ladder_create(*session, config, why);
    if (e)
        tkv_session_destroy(session);
    return e;
}

int tkv_session_set_budget(struct tkv_session *s, uint32_t budget_tokens, struct tkv_report *why)
{
    bool evicts = false;
    int e = 0;

    for (uint32_t i = 0; i < s->config.n_layers; i++)
        evicts |= s->layers[i].config.method != TKV_METHOD_NONE;
    if (!evicts)
        return tkv_fail(why, TRIKV_E_STATE, "a session that evicts nothing has no budget");
    if (tkv_session_plans(s))
        return tkv_fail(
            why, TRIKV_E_STATE,
            "method default has a budget in bytes, planned when the session was opened");
    e = tkv_check_budget(&s->config, 0, budget_tokens, why);
    for (uint32_t i = 0; !e && i < s->config.n_layers; i++)
        s->layers[i].config.budget_tokens = budget_tokens;
    s->n_changes += !e;
    if (!e && !tkv_budgets_share(s))
        e = tkv_fail(why, TRIKV_E_MEMORY_CAP, "no room to share a budget of %u tokens",
                     budget_tokens);
    return e;
}

static struct tkv_half_run half_run(const struct tkv_half_tier *t)
{
    return (struct tkv_half_run){
        .k = t->k, .v = t->v, .positions = t->positions, .n = t->n, .cap = t->cap};
}

struct tkv_cache tkv_layer_cache(const struct tkv_session *s, const struct tkv_layer *l)
{
    return (struct tkv_cache){
        .kn = s->kn,
        .base = tkv_arena_at(s->arena, (struct tkv_block_id){0}),
        .shape = l->config.shape,
        .attn = l->config.attn,
        .sinks = l->config.sinks,
        .tiers = l->ladder ? l->ladder->tiers : &l->layout,
        .n_tiers = l->ladder ? l->ladder->n_tiers : 1,
        .pinned = half_run(&l->pinned),
        .tail = half_run(&l->tail),
        .heads = l->heads,
    };
}

const struct tkv_layer_config *tkv_session_layer(const struct tkv_session *s, uint32_t layer)
{
    return &s->layers[layer].config;
}

void tkv_session_leave(struct tkv_session **session)
{
    tkv_arena_freeze((*session)->arena);
    if ((*session)->journal)
        (*session)->journal->is_left = true;
    tkv_session_destroy(session);
}

void tkv_session_destroy(struct tkv_session **session)
{
    struct tkv_session *s = *session;

    if (!s)
        return;
    tkv_session_unpin(s);
    tkv_journal_end(s);
    for (uint32_t i = 0; s->layers && i < s->config.n_layers; i++)
        layer_destroy(s, &s->layers[i]);
    tkv_session_free(s, s->layers, s->config.n_layers * sizeof(*s->layers));
    tkv_shared_unref(s, s->coders);
    tkv_shared_unref(s, s->fold);
    tkv_arena_destroy(&s->arena);
    tkv_budget_free(s->budget, s->room.base, s->room.bytes);
    tkv_budget_free(s->budget, s, sizeof(*s));
    *session = NULL;
}
