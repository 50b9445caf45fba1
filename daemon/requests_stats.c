/* STATS and SESSION_LIST. */
#include <stdlib.h>

#include "daemon/dispatch.h"
#include "daemon/observation.h"
#include "daemon/requests.h"
#include "daemon/server.h"
#include "proto/errors.h"
#include "proto/trikv.pb-c.h"

static void fill_session(Trikv__SessionStats *m, struct tkv_session_entry *e)
{
    const struct tkv_session_stats *s = tkv_sessions_stats(e);
    const uint64_t now_ms = uv_now(&e->server->loop);

    trikv__session_stats__init(m);
    m->session = e->id;
    m->label = e->label;
    m->profile = tkv_pb_text(e->profile ? e->profile->name : "");
    m->method = tkv_pb_text(tkv_method_names[e->method]);
    m->n_seen = s->n_seen;
    m->n_kept = s->n_kept;
    m->resident_bytes = s->resident_bytes;
    m->fp16_bytes = s->fp16_bytes;
    m->bits_k = s->bits_k;
    m->bits_v = s->bits_v;
    m->n_rounds = s->n_rounds;
    m->n_evicted = s->n_evicted;
    m->uid = e->uid;
    m->n_layers = s->n_layers;
    m->arena_bytes = s->arena_bytes;
    m->slack_bytes = s->slack_bytes;
    m->has_observed_bytes = e->observation != NULL;
    m->observed_bytes = tkv_observation_bytes(e->observation);
    m->has_n_token_ids = e->prefix.is_named;
    m->n_token_ids = e->n_token_ids;
    m->has_n_prefix_hits = e->kind == TKV_ENTRY_PREFIX;
    m->n_prefix_hits = e->prefix.n_hits;
    m->age_s = (double)(now_ms - e->opened_ms) / 1000;
    m->idle_s = tkv_session_is_at_work(e) ? 0 : (double)(now_ms - e->used_ms) / 1000;
}

/* With gate, where it goes if the session has one. */
static void fill_layer(Trikv__LayerStats *m, Trikv__GateStats *gate,
                       const struct tkv_session *session, uint32_t layer)
{
    struct tkv_layer_stats s;

    tkv_session_layer_stats(session, layer, &s);
    trikv__layer_stats__init(m);
    m->n_seen = s.n_seen;
    m->n_kept = s.n_kept;
    m->pinned_bytes = s.pinned_bytes;
    m->tail_bytes = s.tail_bytes;
    m->cold_bytes_k = s.cold_bytes_k;
    m->cold_bytes_v = s.cold_bytes_v;
    m->cold_bytes_meta = s.cold_bytes_meta;
    m->n_cold_tokens = s.n_cold_tokens;
    m->n_blocks = s.n_blocks;
    m->codec_k = tkv_pb_text(s.codec_k);
    m->codec_v = tkv_pb_text(s.codec_v);
    if (tkv_session_gates(session)) {
        tkv_fill_gate(gate, &s.gate);
        m->gate = gate;
    }
}

static void reply_stats(struct tkv_call *call, struct tkv_session_entry *e)
{
    Trikv__SessionStats reply;
    Trikv__LayerStats layer[TRIKV_MAX_LAYERS];
    Trikv__LayerStats *layers[TRIKV_MAX_LAYERS];
    Trikv__GateStats gate[TRIKV_MAX_LAYERS];

    fill_session(&reply, e);
    for (uint32_t i = 0; i < reply.n_layers; i++) {
        fill_layer(&layer[i], &gate[i], e->session, i);
        layers[i] = &layer[i];
    }
    reply.has_shared_bytes = true;
    reply.shared_bytes = tkv_session_shared_bytes(e->session);
    reply.n_layer_stats = reply.n_layers;
    reply.layer_stats = layers;
    tkv_call_reply(call, &reply.base);
}

void tkv_handle_stats(struct tkv_call *call, const ProtobufCMessage *message)
{
    struct tkv_session_entry *e;

    call->session_id = ((const Trikv__SessionRequest *)message)->session;
    e = tkv_call_any_session(call);
    if (!e)
        tkv_call_fail(call);
    else if (e->busy)
        tkv_call_wait(call, e);
    else
        reply_stats(call, e);
}

static bool visible(const struct tkv_session_entry *e, uid_t uid, enum tkv_entry_kind kind)
{
    return e->session && !e->doomed && e->kind == kind && (uid == 0 || uid == e->uid);
}

static int by_id(const void *a, const void *b)
{
    const Trikv__SessionStats *const *x = a, *const *y = b;

    return ((*x)->session > (*y)->session) - ((*x)->session < (*y)->session);
}

/* The sessions of a kind that uid may see, at most max of them, in order of their ids. */
static size_t list_sessions(struct tkv_sessions *t, uid_t uid, enum tkv_entry_kind kind,
                            Trikv__SessionStats *item, Trikv__SessionStats **items, size_t max)
{
    size_t n = 0;

    for (size_t b = 0; b < TKV_SESSION_BUCKETS; b++) {
        for (struct tkv_session_entry *e = t->bucket[b]; e && n < max; e = e->next) {
            if (!visible(e, uid, kind))
                continue;
            fill_session(&item[n], e);
            items[n] = &item[n];
            n++;
        }
    }
    qsort(items, n, sizeof(items[0]), by_id);
    return n;
}

static void reply_list(struct tkv_call *call, enum tkv_entry_kind kind)
{
    struct tkv_server *const s = call->client->server;
    const size_t max = s->sessions.n;
    Trikv__SessionStats *item = calloc(max + 1, sizeof(*item));
    Trikv__SessionStats **items = calloc(max + 1, sizeof(*items));
    Trikv__SessionListReply reply = TRIKV__SESSION_LIST_REPLY__INIT;

    if (item && items) {
        reply.n_sessions =
            list_sessions(&s->sessions, call->client->conn.peer_uid, kind, item, items, max);
        reply.sessions = items;
        reply.sessions_total = (uint32_t)reply.n_sessions;
        while (trikv__session_list_reply__get_packed_size(&reply) > TRIKV_MAX_HEADER_BYTES)
            reply.n_sessions--;
        tkv_call_reply(call, &reply.base);
    } else {
        tkv_fail(&call->why, TRIKV_E_NO_MEMORY, "no memory for the list");
        tkv_call_fail(call);
    }
    free(item);
    free(items);
}

void tkv_handle_session_list(struct tkv_call *call, const ProtobufCMessage *message)
{
    (void)message;
    reply_list(call, TKV_ENTRY_SESSION);
}

void tkv_handle_prefix_list(struct tkv_call *call, const ProtobufCMessage *message)
{
    (void)message;
    reply_list(call, TKV_ENTRY_PREFIX);
}
