/* CLOSE, DROP, HANDLE and STAGING, and who may use which session. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "daemon/dispatch.h"
#include "daemon/requests.h"
#include "daemon/server.h"
#include "proto/errors.h"
#include "proto/shm_layout.h"
#include "proto/trikv.pb-c.h"

static struct tkv_session_entry *find_any(struct tkv_call *call, struct tkv_session_entry *e)
{
    const uid_t uid = call->client->conn.peer_uid;

    if (!e)
        tkv_sessions_missing(&call->client->server->sessions, call->session_id, &call->why);
    else if (uid != 0 && uid != e->uid)
        tkv_fail(&call->why, TRIKV_E_DENIED, "session %llu belongs to another user",
                 (unsigned long long)call->session_id);
    return call->why.error ? NULL : e;
}

struct tkv_session_entry *tkv_call_any_session(struct tkv_call *call)
{
    return find_any(call, tkv_sessions_find(&call->client->server->sessions, call->session_id));
}

/* A descriptor leads to everything in the arena: it is for those whose alone that is. */
int tkv_call_check_export(struct tkv_call *call, const struct tkv_session *s)
{
    if (tkv_session_marks(s) & TKV_MARK_MIXED)
        return tkv_fail(&call->why, TRIKV_E_DENIED,
                        "the session shares memory with another user's: there is no descriptor");
    return TRIKV_OK;
}

struct tkv_session_entry *tkv_call_users_session(struct tkv_call *call)
{
    struct tkv_session_entry *e = tkv_call_any_session(call);

    /* Not even root's: memory that is shared is shared within one user. */
    if (!e || e->uid == call->client->conn.peer_uid)
        return e;
    tkv_fail(&call->why, TRIKV_E_DENIED, "session %llu belongs to another user",
             (unsigned long long)call->session_id);
    return NULL;
}

void tkv_call_wait(struct tkv_call *call, struct tkv_session_entry *e)
{
    struct tkv_call **at = &e->waiting;

    while (*at)
        at = &(*at)->next_waiting;
    call->next_waiting = NULL;
    call->waiting = true;
    *at = call;
    if (e->is_lent && e->owner)
        tkv_ring_recall(e->owner->ring);
}

/* Nobody wants it any more, not even as a file that nobody asked for. */
static void end_for_good(struct tkv_call *call, struct tkv_session_entry *e)
{
    tkv_autosave_forget(e);
    tkv_sessions_doom(e, call);
}

void tkv_handle_close(struct tkv_call *call, const ProtobufCMessage *message)
{
    const Trikv__Empty reply = TRIKV__EMPTY__INIT;
    struct tkv_session_entry *e;
    struct tkv_report why; /* a session that cannot be stored is just closed */

    call->session_id = ((const Trikv__SessionRequest *)message)->session;
    e = tkv_call_own_session(call);
    if (!e)
        tkv_call_fail(call);
    else if (e->prefix.keep && !tkv_prefixes_take(e, &why))
        tkv_call_reply(call, &reply.base);
    else
        end_for_good(call, e);
}

void tkv_handle_drop(struct tkv_call *call, const ProtobufCMessage *message)
{
    const struct tkv_sessions *t = &call->client->server->sessions;
    struct tkv_session_entry *e;

    call->session_id = ((const Trikv__SessionRequest *)message)->session;
    e = tkv_sessions_find_kind(t, call->session_id, TKV_ENTRY_PREFIX);
    e = find_any(call, e ? e : tkv_sessions_find(t, call->session_id));
    if (!e)
        tkv_call_fail(call);
    else if (e->busy)
        tkv_call_wait(call, e);
    else
        end_for_good(call, e);
}

static void reply_handle(struct tkv_call *call, struct tkv_session *session)
{
    struct tkv_client *const client = call->client;
    const size_t n = tkv_session_table_bytes(session);
    Trikv__HandleReply reply = TRIKV__HANDLE_REPLY__INIT;
    struct trikv_table_header header;
    int fd;

    if (!tkv_buffer_need(&client->output, &client->server->budget, n)) {
        tkv_fail(&call->why, TRIKV_E_MEMORY_CAP, "memory cap reached: no %zu bytes for the table",
                 n);
        tkv_call_fail(call);
        return;
    }
    fd = fcntl(tkv_session_arena_fd(session), F_DUPFD_CLOEXEC, 0);
    if (fd < 0) {
        tkv_fail(&call->why, TRIKV_E_SYSTEM, "dup of the arena: %s", strerror(errno));
        tkv_call_fail(call);
        return;
    }
    tkv_session_mark(session, TKV_MARK_EXPORTED);
    tkv_session_table(session, client->output.data);
    memcpy(&header, client->output.data, sizeof(header));
    reply.generation = header.generation;
    reply.arena_bytes = header.arena_bytes;
    reply.n_blocks = header.n_entries;
    tkv_conn_reply(&client->conn, &reply.base, client->output.data, n, fd);
}

void tkv_handle_handle(struct tkv_call *call, const ProtobufCMessage *message)
{
    const struct tkv_session_entry *e;

    call->session_id = ((const Trikv__SessionRequest *)message)->session;
    e = tkv_call_own_session(call);
    if (e && !tkv_call_check_export(call, e->session))
        reply_handle(call, e->session);
    else
        tkv_call_fail(call);
}

void tkv_handle_staging(struct tkv_call *call, const ProtobufCMessage *message)
{
    const Trikv__StagingRequest *m = (const Trikv__StagingRequest *)message;
    struct tkv_client *const client = call->client;
    const Trikv__Empty reply = TRIKV__EMPTY__INIT;

    /* The connection closes its descriptor after the reply: the mapping is enough. */
    if (tkv_staging_open(&client->staging, &client->quota->budget, client->conn.in_fd,
                         m->staging_bytes, client->server->limits.max_payload_bytes, &call->why))
        tkv_call_fail(call);
    else
        tkv_call_reply(call, &reply.base);
}
