/* FORK and TRUNCATE. Both take microseconds, so the loop thread does them itself. */
#include <string.h>

#include "daemon/dispatch.h"
#include "daemon/keep.h"
#include "daemon/requests.h"
#include "daemon/server.h"
#include "proto/errors.h"
#include "proto/trikv.pb-c.h"

/* ---- what a session looks like ------------------------------------------------------------ */

static bool same_sinks(const struct tkv_layer_config *a, const struct tkv_layer_config *b)
{
    if (!a->sinks || !b->sinks)
        return a->sinks == b->sinks;
    return memcmp(a->sinks, b->sinks, a->shape.n_q_heads * sizeof(float)) == 0;
}

static bool same_layer(const struct tkv_layer_config *a, const struct tkv_layer_config *b)
{
    return memcmp(&a->shape, &b->shape, sizeof(a->shape)) == 0 &&
           memcmp(&a->attn, &b->attn, sizeof(a->attn)) == 0 && same_sinks(a, b);
}

static void fill_layer(Trikv__Layer *m, const struct tkv_layer_config *c)
{
    trikv__layer__init(m);
    m->n_q_heads = c->shape.n_q_heads;
    m->n_kv_heads = c->shape.n_kv_heads;
    m->head_dim_k = c->shape.head_dim_k;
    m->head_dim_v = c->shape.head_dim_v;
    m->has_scale = m->has_softcap = m->has_window_tokens = m->has_repeat = true;
    m->scale = c->attn.scale;
    m->softcap = c->attn.softcap;
    m->window_tokens = c->attn.window_tokens;
    m->repeat = 1;
    m->has_rope_dim = c->shape.rope_dim > 0;
    m->rope_dim = c->shape.rope_dim;
    if (c->sinks) {
        m->n_sinks = c->shape.n_q_heads;
        m->sinks = (float *)(uintptr_t)c->sinks;
    }
}

size_t tkv_fill_layers(const struct tkv_session *s, uint32_t n_layers, Trikv__Layer *item,
                       Trikv__Layer **items)
{
    size_t n = 0;

    for (uint32_t i = 0; i < n_layers; i++) {
        if (i > 0 && same_layer(tkv_session_layer(s, i), tkv_session_layer(s, i - 1))) {
            item[n - 1].repeat++;
            continue;
        }
        fill_layer(&item[n], tkv_session_layer(s, i));
        items[n] = &item[n];
        n++;
    }
    return n;
}

/* ---- FORK --------------------------------------------------------------------------------- */

static int make_child(struct tkv_call *call, const struct tkv_session_entry *parent,
                      struct tkv_session_entry *child, const Trikv__ForkRequest *m)
{
    int e = tkv_session_fork(&child->session, parent->session, &call->why);

    if (!e && m->has_budget_tokens)
        e = tkv_session_set_budget(child->session, m->budget_tokens, &call->why);
    if (e) {
        child->doomed = true;
        return e;
    }
    child->method = parent->method;
    child->profile = parent->profile ? tkv_profile_ref(parent->profile) : NULL;
    child->has_rope = parent->has_rope;
    child->rope = parent->rope;
    child->never_evict = parent->never_evict;
    child->prefix.is_named = parent->prefix.is_named;
    child->prefix.is_forced = parent->prefix.is_forced || m->has_budget_tokens;
    child->prefix.key = parent->prefix.key;
    tkv_token_ids_share(&child->prefix.ids, &parent->prefix.ids);
    if (m->label)
        memcpy(child->label, m->label, strlen(m->label) + 1);
    e = tkv_keep_session(child, parent->session, &call->why);
    child->doomed = e != 0;
    tkv_keep_arena(child);
    return e;
}

void tkv_call_reply_session(struct tkv_call *call, struct tkv_session_entry *e,
                            uint64_t reserved_bytes)
{
    const struct tkv_session_stats *stats = tkv_sessions_stats(e);
    Trikv__Layer item[TRIKV_MAX_LAYERS];
    Trikv__Layer *items[TRIKV_MAX_LAYERS];
    Trikv__ForkReply reply = TRIKV__FORK_REPLY__INIT;

    reply.session = e->id;
    reply.reserved_bytes = reserved_bytes;
    reply.n_layers = tkv_fill_layers(e->session, stats->n_layers, item, items);
    reply.layers = items;
    tkv_call_reply(call, &reply.base);
}

static void fork_session(struct tkv_call *call, const struct tkv_session_entry *parent,
                         const Trikv__ForkRequest *m)
{
    struct tkv_session_entry *child = tkv_sessions_add(call->client, parent);

    if (!child) {
        tkv_fail(&call->why, TRIKV_E_MEMORY_CAP, "memory cap reached: no room for a session");
        tkv_call_fail(call);
        return;
    }
    (void)make_child(call, parent, child, m);
    tkv_sessions_idle(child);
    if (call->why.error)
        tkv_call_fail(call);
    else
        tkv_call_reply_session(call, child,
                               sizeof(*child) + tkv_session_private_bytes(child->session));
}

void tkv_handle_fork(struct tkv_call *call, const ProtobufCMessage *message)
{
    const Trikv__ForkRequest *m = (const Trikv__ForkRequest *)message;
    struct tkv_session_entry *parent = NULL;

    call->session_id = m->session;
    if (!tkv_sessions_check_room(call->client, &call->why) &&
        !tkv_sessions_check_label(m->label, &call->why))
        parent = tkv_call_users_session(call);
    if (!parent)
        tkv_call_fail(call);
    else if (parent->busy)
        tkv_call_wait(call, parent);
    else
        fork_session(call, parent, m);
}

/* ---- TRUNCATE ----------------------------------------------------------------------------- */

void tkv_handle_truncate(struct tkv_call *call, const ProtobufCMessage *message)
{
    const Trikv__TruncateRequest *m = (const Trikv__TruncateRequest *)message;
    Trikv__TruncateReply reply = TRIKV__TRUNCATE_REPLY__INIT;
    struct tkv_session_entry *e;

    call->session_id = m->session;
    e = tkv_call_own_session(call);
    if (!e || tkv_session_truncate(e->session, m->n_tokens, &call->why)) {
        tkv_call_fail(call);
        return;
    }
    e->used_ms = uv_now(&call->client->server->loop);
    reply.n_seen = tkv_sessions_stats(e)->n_seen;
    tkv_token_ids_cut(&e->prefix.ids, reply.n_seen);
    tkv_session_commit_ids(e->session, e->prefix.ids.n);
    reply.n_rounds = e->stats.n_rounds;
    tkv_call_reply(call, &reply.base);
}
