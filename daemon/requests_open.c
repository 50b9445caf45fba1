/*
 * OPEN: from a request, a profile and the daemon's defaults to one session configuration. What
 * the numbers may be is the store's to check; here it is who says what, and whether the
 * profile is the right one.
 */
#include <math.h>
#include <string.h>

#include "daemon/dispatch.h"
#include "daemon/keep.h"
#include "daemon/requests.h"
#include "daemon/server.h"
#include "proto/errors.h"
#include "proto/trikv.pb-c.h"

/* What the job needs, in one piece of budgeted memory; layers and sinks follow the struct. */
struct tkv_open {
    size_t bytes;
    struct tkv_session_config config;
};

struct sizes {
    uint32_t n_layers;
    size_t n_sinks; /* floats, of all layer messages */
};

static int count_layers(const Trikv__OpenRequest *m, struct sizes *n, struct tkv_report *why)
{
    *n = (struct sizes){0};
    for (size_t i = 0; i < m->n_layers; i++) {
        const Trikv__Layer *l = m->layers[i];

        if (l->repeat < 1 || l->repeat > TRIKV_MAX_LAYERS - n->n_layers)
            return tkv_fail(why, TRIKV_E_ARGUMENT,
                            "layers: %u more after %u, want at least one and %d in all", l->repeat,
                            n->n_layers, TRIKV_MAX_LAYERS);
        if (l->rope_dim > 0 && !l->has_scale)
            return tkv_fail(why, TRIKV_E_ARGUMENT,
                            "layer %u: scale is not said, and that of latents does not follow from "
                            "head_dim_k",
                            n->n_layers);
        if (l->n_sinks && l->n_sinks != l->n_q_heads)
            return tkv_fail(why, TRIKV_E_ARGUMENT, "layer %u: %zu sinks, want n_q_heads %u or none",
                            n->n_layers, l->n_sinks, l->n_q_heads);
        n->n_layers += l->repeat;
        n->n_sinks += l->n_sinks;
    }
    if (n->n_layers == 0)
        return tkv_fail(why, TRIKV_E_ARGUMENT, "layers: none, want 1..%d", TRIKV_MAX_LAYERS);
    return TRIKV_OK;
}

struct named_field {
    const char *value;
    const char *const *names;
    uint32_t *out;
    uint32_t bit;
    const char *field;
};

static int take_names(const Trikv__Policy *m, struct tkv_policy *p, struct tkv_report *why)
{
    const struct named_field f[] = {
        {m->method, tkv_method_names, &p->method, TKV_POLICY_METHOD, "method"},
        {m->eviction_mode, tkv_eviction_mode_names, &p->eviction_mode, TKV_POLICY_MODE,
         "eviction_mode"},
        {m->aggregation, tkv_aggregation_names, &p->aggregation, TKV_POLICY_AGGREGATION,
         "aggregation"},
        {m->allocator, tkv_allocator_names, &p->allocator, TKV_POLICY_ALLOCATOR, "allocator"},
    };

    for (size_t i = 0; i < sizeof(f) / sizeof(f[0]); i++) {
        int index;

        if (!f[i].value)
            continue;
        index = tkv_name_index(f[i].names, f[i].value);
        if (index < 0)
            return tkv_fail(why, TRIKV_E_ARGUMENT, "policy.%s: \"%.64s\" is unknown", f[i].field,
                            f[i].value);
        *f[i].out = (uint32_t)index;
        p->said |= f[i].bit;
    }
    return TRIKV_OK;
}

static int take_codec(const char *name, const char *field, uint32_t bit, uint32_t *out,
                      struct tkv_policy *p, struct tkv_report *why)
{
    const struct tkv_codec *codec;

    if (!name)
        return TRIKV_OK;
    codec = tkv_codec_by_name(name);
    if (!codec)
        return tkv_fail(why, TRIKV_E_ARGUMENT, "policy.%s: \"%.64s\" is no codec", field, name);
    *out = codec->id;
    p->said |= bit;
    return TRIKV_OK;
}

static int take_number(bool has, uint32_t value, uint32_t max, const char *field, uint32_t bit,
                       uint32_t *out, struct tkv_policy *p, struct tkv_report *why)
{
    if (!has)
        return TRIKV_OK;
    if (value > max)
        return tkv_fail(why, TRIKV_E_ARGUMENT, "policy.%s: %u, want at most %u", field, value, max);
    *out = value;
    p->said |= bit;
    return TRIKV_OK;
}

static int take_ratio(const Trikv__Policy *m, struct tkv_policy *p, struct tkv_report *why)
{
    if (m->has_budget_bytes)
        return tkv_fail(why, TRIKV_E_ARGUMENT,
                        "policy.target_ratio: budget_bytes is there, too; want one of them");
    if (!(m->target_ratio >= 1 && m->target_ratio <= TKV_MAX_RATIO))
        return tkv_fail(why, TRIKV_E_ARGUMENT, "policy.target_ratio: %g, want 1 to %d",
                        (double)m->target_ratio, TKV_MAX_RATIO);
    p->target_ratio = m->target_ratio;
    p->said |= TKV_POLICY_RATIO;
    return TRIKV_OK;
}

/* The request's own policy; what it does not say stays unsaid. */
static int take_policy(const Trikv__Policy *m, struct tkv_policy *p, struct tkv_report *why)
{
    const uint32_t max = TKV_MAX_POLICY_TOKENS;
    int e;

    *p = (struct tkv_policy){0};
    if (!m)
        return TRIKV_OK;
    e = take_names(m, p, why);
    if (!e)
        e = take_codec(m->codec_k, "codec_k", TKV_POLICY_CODEC_K, &p->codec_k, p, why);
    if (!e)
        e = take_codec(m->codec_v, "codec_v", TKV_POLICY_CODEC_V, &p->codec_v, p, why);
    if (!e)
        e = take_number(m->has_budget_tokens, m->budget_tokens, max, "budget_tokens",
                        TKV_POLICY_BUDGET, &p->budget_tokens, p, why);
    if (!e)
        e = take_number(m->has_beta_tokens, m->beta_tokens, max, "beta_tokens", TKV_POLICY_BETA,
                        &p->beta_tokens, p, why);
    if (!e)
        e = take_number(m->has_recent_tokens, m->recent_tokens, max, "recent_tokens",
                        TKV_POLICY_RECENT, &p->recent_tokens, p, why);
    if (!e)
        e = take_number(m->has_pinned_tokens, m->pinned_tokens, max, "pinned_tokens",
                        TKV_POLICY_PINNED, &p->pinned_tokens, p, why);
    if (!e)
        e = take_number(m->has_rollback_tokens, m->rollback_tokens, max, "rollback_tokens",
                        TKV_POLICY_ROLLBACK, &p->rollback_tokens, p, why);
    if (!e)
        e = take_number(m->has_offset_max, m->offset_max, TKV_MAX_OFFSET, "offset_max",
                        TKV_POLICY_OFFSET_MAX, &p->offset_max, p, why);
    if (!e)
        e = take_number(m->has_max_tokens, m->max_tokens, max, "max_tokens", TKV_POLICY_MAX_TOKENS,
                        &p->max_tokens, p, why);
    if (!e && m->has_target_ratio)
        e = take_ratio(m, p, why);
    if (!e && m->has_budget_bytes) {
        p->budget_bytes = m->budget_bytes;
        p->said |= TKV_POLICY_BYTES;
    }
    if (!e && m->has_normalize_scores) {
        p->normalize_scores = m->normalize_scores;
        p->said |= TKV_POLICY_NORMALIZE;
    }
    return e;
}

static int differ(struct tkv_report *why, const struct tkv_profile *p, const char *field,
                  unsigned long long want, unsigned long long got)
{
    return tkv_fail(why, TRIKV_E_GEOMETRY, "profile %s: %s is %llu, the session has %llu", p->name,
                    field, want, got);
}

static int fit_layer(const struct tkv_profile *p, const Trikv__Layer *l, uint32_t layer,
                     struct tkv_report *why)
{
    if (l->n_q_heads != p->shape.n_q_heads)
        return differ(why, p, "n_q_heads", p->shape.n_q_heads, l->n_q_heads);
    if (l->n_kv_heads != p->shape.n_kv_heads)
        return differ(why, p, "n_kv_heads", p->shape.n_kv_heads, l->n_kv_heads);
    if (l->head_dim_k != p->shape.head_dim_k)
        return differ(why, p, "head_dim_k", p->shape.head_dim_k, l->head_dim_k);
    if (l->head_dim_v != p->shape.head_dim_v)
        return differ(why, p, "head_dim_v", p->shape.head_dim_v, l->head_dim_v);
    if (l->rope_dim != p->shape.rope_dim)
        return differ(why, p, "rope_dim", p->shape.rope_dim, l->rope_dim);
    for (uint32_t i = layer; l->has_window_tokens && i < layer + l->repeat; i++)
        if (p->layers[i].window_tokens && p->layers[i].window_tokens != l->window_tokens)
            return tkv_fail(why, TRIKV_E_GEOMETRY,
                            "profile %s: layer %u has a window of %u tokens, the session has %u",
                            p->name, i, p->layers[i].window_tokens, l->window_tokens);
    return TRIKV_OK;
}

/* Does the profile belong to the model that the request describes? */
static int fit_profile(const struct tkv_profile *p, const Trikv__OpenRequest *m, uint32_t n_layers,
                       struct tkv_report *why)
{
    uint32_t layer = 0;

    if (n_layers != p->n_layers)
        return differ(why, p, "n_layers", p->n_layers, n_layers);
    for (size_t i = 0; i < m->n_layers; layer += m->layers[i++]->repeat) {
        const int e = fit_layer(p, m->layers[i], layer, why);

        if (e)
            return e;
    }
    if (m->fingerprint && strcmp(p->fingerprint, "none") != 0 &&
        strcmp(p->fingerprint, m->fingerprint) != 0)
        return tkv_fail(why, TRIKV_E_GEOMETRY,
                        "profile %s: made for the model %s, the session has %.64s", p->name,
                        p->fingerprint, m->fingerprint);
    return m->rope ? tkv_rope_fits_profile(p, m->rope, why) : TRIKV_OK;
}

static void fill_layer(struct tkv_layer_config *c, const Trikv__Layer *l, const float *sinks)
{
    c->shape =
        (struct tkv_shape){l->n_q_heads, l->n_kv_heads, l->head_dim_k, l->head_dim_v, l->rope_dim};
    c->attn.scale = l->has_scale ? l->scale : 1 / sqrtf((float)l->head_dim_k);
    c->attn.softcap = l->has_softcap ? l->softcap : 0;
    c->attn.window_tokens = l->has_window_tokens ? l->window_tokens : 0;
    c->sinks = sinks;
}

/* A layer's say: the daemon's defaults, the profile, the profile for this layer, the request. */
static void fill_layer_policy(struct tkv_layer_config *c, const struct tkv_policy *base,
                              const struct tkv_profile *p, uint32_t layer,
                              const struct tkv_policy *asked)
{
    struct tkv_policy all = *base;

    if (p) {
        const struct tkv_profile_layer *own = &p->layers[layer];
        const struct tkv_policy over = {.said = own->said,
                                        .method = own->method,
                                        .budget_tokens = own->budget_tokens,
                                        .codec_k = own->codec_k,
                                        .codec_v = own->codec_v};

        tkv_policy_merge(&all, &over);
        if (own->window_tokens) /* the request says the same or nothing */
            c->attn.window_tokens = own->window_tokens;
        c->stats = tkv_profile_layer_statistics(p, layer);
        c->errors = tkv_profile_layer_errors(p, layer);
    }
    c->has_method = p && (p->layers[layer].said & ~asked->said & TKV_POLICY_METHOD);
    tkv_policy_merge(&all, asked);
    c->method = (enum tkv_method)all.method;
    c->codec_k = tkv_codec_by_id(all.codec_k);
    c->codec_v = tkv_codec_by_id(all.codec_v);
    c->budget_tokens = all.budget_tokens;
}

static struct tkv_open *new_open(struct tkv_budget *budget, const struct sizes *n)
{
    const size_t bytes = sizeof(struct tkv_open) + n->n_layers * sizeof(struct tkv_layer_config) +
                         n->n_sinks * sizeof(float);
    struct tkv_open *o = tkv_budget_alloc(budget, bytes);

    if (o)
        o->bytes = bytes;
    return o;
}

/* What is said in bytes, else what the tokens planned for take as halves over the ratio. */
static uint64_t budget_bytes(const struct tkv_policy *p, const struct tkv_layer_config *layers,
                             uint32_t n_layers)
{
    double halves = 0;

    if ((p->said & TKV_POLICY_BYTES) || !(p->said & TKV_POLICY_RATIO))
        return p->budget_bytes;
    for (uint32_t i = 0; i < n_layers; i++)
        halves += (double)layers[i].shape.n_kv_heads *
                  (layers[i].shape.head_dim_k + layers[i].shape.head_dim_v);
    return (uint64_t)(2 * halves * p->max_tokens / (double)p->target_ratio);
}

/* Gate and allocator of a profile are for the methods that drop tokens in rounds: a request may ask
 * for another. */
static void drop_if_useless(struct tkv_session_config *c, const struct tkv_policy *asked)
{
    for (uint32_t i = 0; c->method != TKV_METHOD_DEFAULT && i < c->n_layers; i++) {
        const struct tkv_layer_config *l = &c->layers[i];

        if ((l->has_method ? l->method : c->method) != TKV_METHOD_NONE)
            return;
    }
    c->gate = (struct tkv_gate_config){.n_probes = 0};
    if (!(asked->said & TKV_POLICY_ALLOCATOR)) /* what is asked for in vain is refused */
        c->allocator = TKV_UNIFORM;
}

/* base: defaults and profile; asked: the request's own policy. */
static void fill_open(struct tkv_open *o, const Trikv__OpenRequest *m, const struct sizes *n,
                      const struct tkv_policy *base, const struct tkv_policy *asked,
                      const struct tkv_profile *p, bool is_kept, uint32_t owner)
{
    struct tkv_layer_config *const layers = (struct tkv_layer_config *)(void *)(o + 1);
    float *sinks = (float *)(void *)(layers + n->n_layers);
    struct tkv_policy all = *base;
    uint32_t layer = 0;

    tkv_policy_merge(&all, asked);
    for (size_t i = 0; i < m->n_layers; i++) {
        const Trikv__Layer *l = m->layers[i];

        if (l->n_sinks)
            memcpy(sinks, l->sinks, l->n_sinks * sizeof(float));
        for (uint32_t r = 0; r < l->repeat; r++, layer++) {
            fill_layer(&layers[layer], l, l->n_sinks ? sinks : NULL);
            fill_layer_policy(&layers[layer], base, p, layer, asked);
        }
        sinks += l->n_sinks;
    }
    o->config = (struct tkv_session_config){
        .n_layers = n->n_layers,
        .layers = layers,
        .method = (enum tkv_method)all.method,
        .beta_tokens = all.beta_tokens,
        .recent_tokens = all.recent_tokens,
        .pinned_tokens = all.pinned_tokens,
        .rollback_tokens = all.rollback_tokens,
        .budget_bytes = budget_bytes(&all, layers, n->n_layers),
        .max_tokens = all.max_tokens,
        .eviction_mode = (enum tkv_eviction_mode)all.eviction_mode,
        .normalize_scores = all.normalize_scores,
        .gate = all.gate,
        .allocator = (enum tkv_allocator)all.allocator,
        .tri = {.offset_max = all.offset_max, .aggregation = (enum tkv_aggregation)all.aggregation},
        .rope = p && p->has_rope ? &p->rope : NULL,
        .is_kept = is_kept,
        .owner = owner,
    };
    drop_if_useless(&o->config, asked);
}

static void open_work(struct tkv_job *job)
{
    struct tkv_call *const call = tkv_call_of(job);
    struct tkv_server *const s = call->client->server;

    tkv_session_create(&call->entry->made, &call->open->config, &call->entry->quota->budget,
                       &s->kernels, &call->why);
    if (!call->why.error && tkv_keep_session(call->entry, NULL, &call->why))
        tkv_session_destroy(&call->entry->made);
}

static void reply_open(struct tkv_call *call, struct tkv_session_entry *e, uint64_t reserved_bytes)
{
    struct tkv_server *const s = call->client->server;
    const struct tkv_prefix_match *match = &call->match;
    Trikv__OpenReply reply = TRIKV__OPEN_REPLY__INIT;

    tkv_log(&s->log, TKV_LOG_INFO,
            "msg=\"session opened\" session=%llu client=%llu layers=%u prefix_tokens=%u",
            (unsigned long long)e->id, (unsigned long long)call->client->id, e->stats.n_layers,
            match->n);
    reply.session = e->id;
    reply.reserved_bytes = reserved_bytes;
    if (match->outcome != TKV_PREFIX_NOT_ASKED) {
        reply.has_n_prefix_tokens = true;
        reply.n_prefix_tokens = match->n;
        reply.prefix_outcome = tkv_pb_text(tkv_prefix_outcomes[match->outcome]);
        reply.prefix_reason = tkv_pb_text(tkv_prefix_reasons[match->reason]);
        tkv_prefixes_count(&s->prefixes, match);
    }
    tkv_call_reply(call, &reply.base);
}

static void free_open(struct tkv_call *call)
{
    tkv_budget_free(&call->client->server->budget, call->open, call->open->bytes);
    call->open = NULL;
}

static void open_done(struct tkv_job *job)
{
    struct tkv_call *const call = tkv_call_of(job);
    struct tkv_session_entry *const e = call->entry;

    free_open(call);
    tkv_keep_arena(e);
    tkv_sessions_idle(e);
    if (!tkv_call_ended(call))
        return;
    if (call->why.error)
        tkv_call_fail(call);
    else
        reply_open(call, e, tkv_sessions_stats(e)->resident_bytes);
}

/* Begin as a fork of what is stored: that takes microseconds, no job is needed. */
static void open_from_prefix(struct tkv_call *call)
{
    struct tkv_session_entry *const e = call->entry;
    const int error = tkv_prefix_fork(call, &call->match, e);

    free_open(call);
    tkv_sessions_idle(e);
    if (error)
        tkv_call_fail(call);
    else
        reply_open(call, e, sizeof(*e) + tkv_session_private_bytes(e->session));
}

static void find_prefix(struct tkv_call *call, const struct tkv_profile *p)
{
    const struct tkv_conn *conn = &call->client->conn;
    const struct tkv_prefix_query q = {.uid = conn->peer_uid,
                                       .key = &call->entry->prefix.key,
                                       .ids = conn->payload.data,
                                       .n = (uint32_t)(conn->in.payload_bytes / sizeof(uint32_t)),
                                       .profile = p,
                                       .config = &call->open->config};

    if (call->entry->prefix.is_named)
        call->match = tkv_prefixes_find(call->client->server, &q);
}

static int find_profile(const struct tkv_server *s, const Trikv__OpenRequest *m, uint32_t n_layers,
                        struct tkv_profile **p, struct tkv_report *why)
{
    *p = NULL;
    if (!m->profile || !*m->profile)
        return TRIKV_OK;
    *p = tkv_profiles_find(&s->profiles, m->profile);
    if (!*p)
        return tkv_fail(why, TRIKV_E_NO_PROFILE, "profile \"%.64s\" is not loaded", m->profile);
    return fit_profile(*p, m, n_layers, why);
}

static int check_method(const struct tkv_policy *base, const struct tkv_policy *asked,
                        const struct tkv_profile *p, struct tkv_report *why)
{
    struct tkv_policy all = *base;

    tkv_policy_merge(&all, asked);
    if (all.method != TKV_METHOD_TRIATTENTION && all.method != TKV_METHOD_DEFAULT)
        return TRIKV_OK; /* the others look at nothing but the cache */
    if (!p)
        return tkv_fail(why, TRIKV_E_ARGUMENT, "policy.method: %s needs a profile",
                        tkv_method_names[all.method]);
    if (all.method == TKV_METHOD_DEFAULT && !p->errors)
        return tkv_fail(why, TRIKV_E_ARGUMENT,
                        "policy.method: %s, but profile %s has no section errors: what its heads "
                        "lose is not known (trikv-calibrate measures it)",
                        tkv_method_names[all.method], p->name);
    if (all.method == TKV_METHOD_TRIATTENTION && !p->n_statistics)
        return tkv_fail(why, TRIKV_E_ARGUMENT,
                        "policy.method: %s, but profile %s has no statistics",
                        tkv_method_names[all.method], p->name);
    return TRIKV_OK;
}

static int start_open(struct tkv_call *call, const Trikv__OpenRequest *m)
{
    struct tkv_server *const s = call->client->server;
    struct tkv_policy base = s->config.defaults, asked;
    struct tkv_rope_params rope = {0};
    struct tkv_prefix prefix;
    struct tkv_profile *p;
    struct sizes n;
    int e = tkv_sessions_check_room(call->client, &call->why);

    if (!e)
        e = tkv_sessions_check_label(m->label, &call->why);
    if (!e)
        e = tkv_prefix_of_open(call, m, &prefix);
    if (!e)
        e = count_layers(m, &n, &call->why);
    if (!e)
        e = take_policy(m->policy, &asked, &call->why);
    if (!e)
        e = find_profile(s, m, n.n_layers, &p, &call->why);
    if (e)
        return e;
    if (p)
        tkv_policy_merge(&base, &p->policy);
    e = check_method(&base, &asked, p, &call->why);
    if (!e && m->rope && !(p && p->has_rope))
        e = tkv_rope_from_request(m->rope, m->layers[0]->head_dim_k, &rope, &call->why);
    if (e)
        return e;
    call->open = new_open(&s->budget, &n);
    if (!call->open)
        return tkv_fail(&call->why, TRIKV_E_MEMORY_CAP,
                        "memory cap reached: no room for a session");
    fill_open(call->open, m, &n, &base, &asked, p, s->keep.is_on, call->client->conn.peer_uid);
    call->entry = tkv_sessions_add(call->client, NULL);
    if (!call->entry) {
        tkv_budget_free(&s->budget, call->open, call->open->bytes);
        return tkv_fail(&call->why, TRIKV_E_MEMORY_CAP,
                        "memory cap reached: no room for a session");
    }
    call->entry->method = call->open->config.method;
    call->entry->profile = p ? tkv_profile_ref(p) : NULL;
    call->entry->has_rope = m->rope || (p && p->has_rope);
    call->entry->rope = p && p->has_rope ? p->rope_params : rope;
    if (m->label)
        memcpy(call->entry->label, m->label, strlen(m->label) + 1);
    call->entry->prefix = prefix;
    call->entry->never_evict = m->never_evict;
    find_prefix(call, p);
    if (call->match.entry)
        open_from_prefix(call);
    else
        tkv_call_start(call, open_work, open_done);
    return TRIKV_OK;
}

void tkv_handle_open(struct tkv_call *call, const ProtobufCMessage *message)
{
    if (start_open(call, (const Trikv__OpenRequest *)message))
        tkv_call_fail(call);
}
