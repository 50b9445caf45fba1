/*
 * Opening and closing sessions, and the requests that carry no tensors. What a caller
 * leaves unsaid is left out of the message: the daemon knows the defaults.
 */
#include "client/client.h"

#include <stdlib.h>
#include <string.h>

#include "proto/trikv.pb-c.h"

/* protobuf-c wants writable pointers to what it only reads. */
static char *text_of(const char *s)
{
    return (char *)(uintptr_t)s;
}

static void fill_layer(Trikv__Layer *m, const struct trikv_layer *l)
{
    m->n_q_heads = l->n_q_heads;
    m->n_kv_heads = l->n_kv_heads;
    m->head_dim_k = l->head_dim_k;
    m->head_dim_v = l->head_dim_v;
    m->has_scale = l->scale != 0;
    m->scale = l->scale;
    m->has_softcap = l->softcap != 0;
    m->softcap = l->softcap;
    m->has_window_tokens = l->window_tokens != 0;
    m->window_tokens = l->window_tokens;
    m->has_rope_dim = l->rope_dim != 0;
    m->rope_dim = l->rope_dim;
    m->n_sinks = l->sinks ? l->n_q_heads : 0;
    m->sinks = (float *)(uintptr_t)l->sinks;
}

/* True if anything in it is said at all. */
static bool fill_policy(Trikv__Policy *m, const struct trikv_session_options *o)
{
    m->codec_k = text_of(o->codec_k);
    m->codec_v = text_of(o->codec_v);
    m->method = text_of(o->method);
    m->eviction_mode = text_of(o->eviction_mode);
    m->aggregation = text_of(o->aggregation);
    m->allocator = text_of(o->allocator);
    m->has_budget_tokens = o->budget_tokens != 0;
    m->budget_tokens = o->budget_tokens;
    m->has_beta_tokens = o->beta_tokens != 0;
    m->beta_tokens = o->beta_tokens;
    m->has_recent_tokens = o->recent_tokens >= 0;
    m->recent_tokens = m->has_recent_tokens ? (uint32_t)o->recent_tokens : 0;
    m->has_pinned_tokens = o->pinned_tokens >= 0;
    m->pinned_tokens = m->has_pinned_tokens ? (uint32_t)o->pinned_tokens : 0;
    m->has_rollback_tokens = o->rollback_tokens >= 0;
    m->rollback_tokens = m->has_rollback_tokens ? (uint32_t)o->rollback_tokens : 0;
    m->has_budget_bytes = o->budget_bytes != 0;
    m->budget_bytes = o->budget_bytes;
    m->has_max_tokens = o->max_tokens != 0;
    m->max_tokens = o->max_tokens;
    m->has_target_ratio = o->target_ratio != 0;
    m->target_ratio = o->target_ratio;
    m->has_normalize_scores = o->normalize_scores >= 0;
    m->normalize_scores = o->normalize_scores > 0;
    m->has_offset_max = o->offset_max != 0;
    m->offset_max = o->offset_max;
    return protobuf_c_message_get_packed_size(&m->base) > 0;
}

static void fill_rope(Trikv__Rope *m, const struct trikv_rope *r)
{
    m->theta = r->theta;
    m->rotary_dim = r->rotary_dim;
    m->layout = text_of(r->layout ? r->layout : "");
    m->scaling = text_of(r->scaling ? r->scaling : "");
    m->has_factor = r->factor != 0;
    m->factor = r->factor;
    m->has_low_freq_factor = r->low_freq_factor != 0;
    m->low_freq_factor = r->low_freq_factor;
    m->has_high_freq_factor = r->high_freq_factor != 0;
    m->high_freq_factor = r->high_freq_factor;
    m->has_original_context = r->original_context != 0;
    m->original_context = r->original_context;
    m->has_beta_fast = r->beta_fast != 0;
    m->beta_fast = r->beta_fast;
    m->has_beta_slow = r->beta_slow != 0;
    m->beta_slow = r->beta_slow;
    m->has_attention_factor = r->attention_factor != 0;
    m->attention_factor = r->attention_factor;
    m->has_truncate = r->no_truncate != 0;
    m->truncate = !r->no_truncate;
}

static uint32_t n_shapes_of(const struct trikv_session_options *o)
{
    return o->same_layers ? 1 : o->n_layers;
}

/* What the library itself relies on: the daemon checks everything else. */
static int check_options(struct trikv_client *c, const struct trikv_session_options *o)
{
    if (!o->layers || o->n_layers == 0 || o->n_layers > TRIKV_MAX_LAYERS)
        return tkv_fail(&c->report, TRIKV_E_ARGUMENT, "n_layers is %u, want 1 to %d, and layers",
                        o->layers ? o->n_layers : 0, TRIKV_MAX_LAYERS);
    for (uint32_t i = 0; i < n_shapes_of(o); i++) {
        if (o->layers[i].n_q_heads == 0 || o->layers[i].n_q_heads > TRIKV_MAX_HEADS)
            return tkv_fail(&c->report, TRIKV_E_ARGUMENT, "layer %u: n_q_heads is %u, want 1 to %d",
                            i, o->layers[i].n_q_heads, TRIKV_MAX_HEADS);
    }
    return 0;
}

static int send_open(struct trikv_client *c, const struct trikv_session_options *o,
                     Trikv__OpenRequest *m, struct trikv_session *s)
{
    struct tkv_request r = TKV_REQUEST_INIT;
    int e = o->prefix ? tkv_prefix_fill(c, o->prefix, m->prefix, &r) : 0;

    if (e)
        return e;
    r.type = TRIKV_OPEN;
    r.message = &m->base;
    r.reply_type = &trikv__open_reply__descriptor;
    e = tkv_request_run(c, &r);
    if (!e)
        e = tkv_prefix_take(s, (uint32_t)(r.tensors[0].bytes / sizeof(uint32_t)),
                            (const Trikv__OpenReply *)r.reply);
    if (!e) {
        s->id = ((const Trikv__OpenReply *)r.reply)->session;
        s->reserved_bytes = ((const Trikv__OpenReply *)r.reply)->reserved_bytes;
    }
    tkv_request_deinit(&r);
    return e;
}

/* The layers of the message, allocated by the caller so that any number fits. */
static int open_with_layers(struct trikv_client *c, const struct trikv_session_options *o,
                            Trikv__Layer *layers, Trikv__Layer **list, struct trikv_session *s)
{
    Trikv__OpenRequest m = TRIKV__OPEN_REQUEST__INIT;
    Trikv__Policy policy = TRIKV__POLICY__INIT;
    Trikv__Rope rope = TRIKV__ROPE__INIT;
    Trikv__Prefix prefix = TRIKV__PREFIX__INIT;

    for (uint32_t i = 0; i < n_shapes_of(o); i++) {
        trikv__layer__init(&layers[i]);
        fill_layer(&layers[i], &o->layers[i]);
        list[i] = &layers[i];
    }
    layers[0].has_repeat = o->same_layers != 0;
    layers[0].repeat = o->same_layers ? o->n_layers : 1;
    m.n_layers = n_shapes_of(o);
    m.layers = list;
    m.prefix = o->prefix ? &prefix : NULL;
    m.has_never_evict = o->never_evict != 0;
    m.never_evict = m.has_never_evict;
    m.profile = text_of(o->profile);
    m.label = text_of(o->label);
    m.fingerprint = text_of(o->fingerprint);
    if (fill_policy(&policy, o))
        m.policy = &policy;
    if (o->rope) {
        fill_rope(&rope, o->rope);
        m.rope = &rope;
    }
    return send_open(c, o, &m, s);
}

static int open_session(struct trikv_client *c, const struct trikv_session_options *o,
                        struct trikv_session *s)
{
    Trikv__Layer *layers = calloc(n_shapes_of(o), sizeof(*layers));
    Trikv__Layer **list = calloc(n_shapes_of(o), sizeof(*list));
    int e;

    if (layers && list)
        e = open_with_layers(c, o, layers, list, s);
    else
        e = tkv_fail(&c->report, TRIKV_E_NO_MEMORY, "open: %u layers", o->n_layers);
    free(list);
    free(layers);
    return e;
}

static struct trikv_session *create_session(struct trikv_client *c,
                                            const struct trikv_session_options *o)
{
    const uint32_t n = n_shapes_of(o);
    struct trikv_session *s = calloc(1, sizeof(*s) + n * sizeof(s->shapes[0]));

    if (!s)
        return NULL;
    s->client = c;
    s->boot_id = c->info.boot_id;
    s->n_layers = o->n_layers;
    s->n_shapes = n;
    for (uint32_t i = 0; i < n; i++)
        s->shapes[i] = (struct tkv_shape){.n_q_heads = o->layers[i].n_q_heads,
                                          .n_kv_heads = o->layers[i].n_kv_heads,
                                          .head_dim_k = o->layers[i].head_dim_k,
                                          .head_dim_v = o->layers[i].head_dim_v,
                                          .rope_dim = o->layers[i].rope_dim};
    return s;
}

int trikv_open(struct trikv_client *client, const struct trikv_session_options *options,
               struct trikv_session **session)
{
    struct trikv_session_options o = TRIKV_SESSION_OPTIONS_INIT;
    struct trikv_session *s;
    int e = tkv_client_read_struct(client, &o, options, sizeof(o), "trikv_session_options");

    *session = NULL;
    if (!e)
        e = check_options(client, &o);
    if (e)
        return e;
    s = create_session(client, &o);
    if (!s)
        return tkv_fail(&client->report, TRIKV_E_NO_MEMORY, "open: %u layers", o.n_layers);
    e = open_session(client, &o, s);
    if (e) {
        free(s);
        return e;
    }
    tkv_session_add(s);
    *session = s;
    return 0;
}

void tkv_session_add(struct trikv_session *s)
{
    s->next = s->client->sessions;
    s->client->sessions = s;
}

static void free_session(struct trikv_session *s)
{
    struct trikv_session **at = &s->client->sessions;

    while (*at != s)
        at = &(*at)->next;
    *at = s->next;
    free(s);
}

void tkv_session_free_all(struct trikv_client *c)
{
    while (c->sessions)
        free_session(c->sessions);
}

int tkv_session_request(struct trikv_client *c, uint64_t id, uint16_t type, struct tkv_request *r)
{
    Trikv__SessionRequest m = TRIKV__SESSION_REQUEST__INIT;
    int e;

    m.session = id;
    r->type = type;
    r->message = &m.base;
    e = tkv_request_run(c, r);
    r->message = NULL;
    return e;
}

static int request_without_answer(struct trikv_session *s, uint16_t type)
{
    struct tkv_request r = TKV_REQUEST_INIT;
    int e;

    r.reply_type = &trikv__empty__descriptor;
    e = tkv_session_request(s->client, s->id, type, &r);
    tkv_request_deinit(&r);
    return e;
}

int trikv_close(struct trikv_session **session)
{
    struct trikv_session *s = *session;
    int e;

    *session = NULL;
    if (!s)
        return 0;
    e = request_without_answer(s, TRIKV_CLOSE);
    free_session(s);
    return e;
}

uint64_t trikv_session_id(const struct trikv_session *session)
{
    return session->id;
}

uint64_t trikv_session_reserved_bytes(const struct trikv_session *session)
{
    return session->reserved_bytes;
}

uint32_t trikv_session_n_layers(const struct trikv_session *session)
{
    return session->n_layers;
}

int trikv_session_geometry(const struct trikv_session *session, uint32_t layer,
                           struct trikv_geometry *geometry)
{
    const struct tkv_shape *shape;

    *geometry = (struct trikv_geometry){0};
    if (layer >= session->n_layers)
        return tkv_fail(&session->client->report, TRIKV_E_ARGUMENT,
                        "layer is %u, the session has %u", layer, session->n_layers);
    shape = &session->shapes[session->n_shapes == 1 ? 0 : layer];
    *geometry = (struct trikv_geometry){.n_q_heads = shape->n_q_heads,
                                        .n_kv_heads = shape->n_kv_heads,
                                        .head_dim_k = shape->head_dim_k,
                                        .head_dim_v = shape->head_dim_v};
    return 0;
}

int trikv_round(struct trikv_session *session)
{
    return request_without_answer(session, TRIKV_ROUND);
}

int trikv_stats(struct trikv_session *session, struct trikv_stats *stats)
{
    struct tkv_request r = TKV_REQUEST_INIT;
    int e;

    r.reply_type = &trikv__session_stats__descriptor;
    e = tkv_session_request(session->client, session->id, TRIKV_STATS, &r);
    if (!e) {
        const Trikv__SessionStats *m = (const Trikv__SessionStats *)r.reply;

        *stats = (struct trikv_stats){.session = m->session,
                                      .n_seen = m->n_seen,
                                      .n_kept = m->n_kept,
                                      .resident_bytes = m->resident_bytes,
                                      .fp16_bytes = m->fp16_bytes,
                                      .bits_k = m->bits_k,
                                      .bits_v = m->bits_v,
                                      .n_rounds = m->n_rounds,
                                      .n_evicted = m->n_evicted,
                                      .arena_bytes = m->arena_bytes,
                                      .slack_bytes = m->slack_bytes,
                                      .shared_bytes = m->shared_bytes};
    }
    tkv_request_deinit(&r);
    return e;
}
