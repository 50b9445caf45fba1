/* REATTACH: a client of an earlier daemon comes back for its session. */
#include "daemon/dispatch.h"
#include "daemon/requests.h"
#include "daemon/server.h"
#include "proto/errors.h"

static struct tkv_session_entry *find(struct tkv_call *call, const Trikv__ReattachRequest *m)
{
    struct tkv_session_entry *e = tkv_call_users_session(call);

    if (!e)
        return NULL;
    if (e->boot_id != m->boot_id)
        tkv_fail(&call->why, TRIKV_E_NO_SESSION,
                 "session %llu is not the one that daemon %016llx opened",
                 (unsigned long long)e->id, (unsigned long long)m->boot_id);
    else if (e->owner)
        tkv_fail(&call->why, TRIKV_E_STATE, "session %llu has a connection",
                 (unsigned long long)e->id);
    return call->why.error ? NULL : e;
}

static void reply_reattach(struct tkv_call *call, const struct tkv_session_entry *e)
{
    const uint32_t n_layers = tkv_session_n_layers(e->session);
    Trikv__ReattachReply reply = TRIKV__REATTACH_REPLY__INIT;
    Trikv__Layer item[TRIKV_MAX_LAYERS];
    Trikv__Layer *items[TRIKV_MAX_LAYERS];
    uint64_t n_seen[TRIKV_MAX_LAYERS];

    for (uint32_t i = 0; i < n_layers; i++)
        n_seen[i] = tkv_session_n_seen(e->session, i);
    reply.n_layers = tkv_fill_layers(e->session, n_layers, item, items);
    reply.layers = items;
    reply.n_n_seen = n_layers;
    reply.n_seen = n_seen;
    reply.n_rounds = tkv_session_n_rounds(e->session);
    reply.n_token_ids = e->prefix.ids.n;
    tkv_call_reply(call, &reply.base);
}

/* It is an orphan no more, for this daemon and the next. */
static int claim(struct tkv_session_entry *e, struct tkv_report *why)
{
    const uint64_t since_ms = e->orphaned_ms;
    int error;

    e->orphaned_ms = 0;
    error = tkv_keep_note(e, false, why);
    if (error)
        e->orphaned_ms = since_ms;
    return error;
}

void tkv_handle_reattach(struct tkv_call *call, const ProtobufCMessage *message)
{
    const Trikv__ReattachRequest *m = (const Trikv__ReattachRequest *)message;
    struct tkv_session_entry *e = NULL;

    call->session_id = m->session;
    if (!tkv_sessions_check_room(call->client, &call->why))
        e = find(call, m);
    if (e && e->busy) {
        tkv_call_wait(call, e);
        return;
    }
    if (!e || claim(e, &call->why)) {
        tkv_call_fail(call);
        return;
    }
    tkv_sessions_own(e, call->client);
    e->used_ms = uv_now(&call->client->server->loop);
    tkv_log(&call->client->server->log, TKV_LOG_INFO, "msg=\"session reattached\" session=%llu",
            (unsigned long long)e->id);
    reply_reattach(call, e);
}
