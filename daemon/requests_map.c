/*
 * MAP and UNMAP. What a client maps is a fork that nobody appends to: an entry of the session table that
 * only its owner's UNMAP finds, and that goes with its connection as sessions do.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "daemon/dispatch.h"
#include "daemon/requests.h"
#include "daemon/server.h"
#include "proto/errors.h"
#include "proto/shm_layout.h"
#include "proto/trikv.pb-c.h"

static void map_work(struct tkv_job *job)
{
    struct tkv_call *const call = tkv_call_of(job);

    tkv_session_map(call->entry->session, call->client->output.data);
}

static void reply_map(struct tkv_call *call)
{
    struct tkv_client *const client = call->client;
    const struct tkv_session_entry *e = call->entry;
    const int fd = fcntl(tkv_session_arena_fd(e->session), F_DUPFD_CLOEXEC, 0);
    Trikv__MapReply reply = TRIKV__MAP_REPLY__INIT;
    struct trikv_map_header header;

    if (fd < 0) {
        tkv_fail(&call->why, TRIKV_E_SYSTEM, "dup of the arena: %s", strerror(errno));
        tkv_sessions_doom(call->entry, NULL);
        tkv_call_fail(call);
        return;
    }
    tkv_session_mark(e->session, TKV_MARK_EXPORTED);
    memcpy(&header, client->output.data, sizeof(header));
    reply.map = e->id;
    reply.generation = header.generation;
    reply.arena_bytes = header.arena_bytes;
    tkv_conn_reply(&client->conn, &reply.base, client->output.data,
                   tkv_session_map_bytes(e->session), fd);
}

static void map_done(struct tkv_job *job)
{
    struct tkv_call *const call = tkv_call_of(job);

    tkv_sessions_idle(call->entry);
    if (tkv_call_ended(call))
        reply_map(call);
}

/* The value is not to be found by chance in what takes the pin's place one day. */
static uint64_t pin_value(const struct tkv_server *s, const struct tkv_session_entry *e)
{
    const uint64_t value = s->boot_id ^ (e->id * UINT64_C(0x9e3779b97f4a7c15));

    return value ? value : 1;
}

static int make_snapshot(struct tkv_call *call, struct tkv_session_entry *e,
                         const struct tkv_session_entry *of)
{
    struct tkv_server *const s = call->client->server;
    size_t n;
    int error = tkv_call_check_export(call, of->session);

    error = error ? error : tkv_session_fork(&e->session, of->session, &call->why);
    error = error ? error : tkv_session_pin(e->session, pin_value(s, e), &call->why);
    if (error)
        return error;
    n = tkv_session_map_bytes(e->session);
    if (n > s->limits.max_payload_bytes)
        return tkv_fail(&call->why, TRIKV_E_TOO_LARGE,
                        "a map of %zu bytes, the limit of a payload is %llu", n,
                        (unsigned long long)s->limits.max_payload_bytes);
    if (!tkv_buffer_need(&call->client->output, &s->budget, n))
        return tkv_fail(&call->why, TRIKV_E_MEMORY_CAP,
                        "memory cap reached: no %zu bytes for the map", n);
    return 0;
}

static void start_map(struct tkv_call *call, const struct tkv_session_entry *of)
{
    struct tkv_session_entry *e = tkv_sessions_add(call->client, of);

    if (!e) {
        tkv_fail(&call->why, TRIKV_E_MEMORY_CAP, "memory cap reached: no room for a map");
        tkv_call_fail(call);
        return;
    }
    tkv_sessions_turn(e, TKV_ENTRY_MAP);
    if (make_snapshot(call, e, of)) {
        e->doomed = true;
        tkv_sessions_idle(e);
        tkv_call_fail(call);
        return;
    }
    call->entry = e;
    tkv_call_start(call, map_work, map_done);
}

void tkv_handle_map(struct tkv_call *call, const ProtobufCMessage *message)
{
    struct tkv_session_entry *e = NULL;

    call->session_id = ((const Trikv__SessionRequest *)message)->session;
    if (!tkv_sessions_check_room(call->client, &call->why))
        e = tkv_call_users_session(call);
    if (!e)
        tkv_call_fail(call);
    else if (e->busy)
        tkv_call_wait(call, e);
    else
        start_map(call, e);
}

void tkv_handle_unmap(struct tkv_call *call, const ProtobufCMessage *message)
{
    const uint64_t id = ((const Trikv__SessionRequest *)message)->session;
    struct tkv_session_entry *e =
        tkv_sessions_find_kind(&call->client->server->sessions, id, TKV_ENTRY_MAP);

    if (e && e->owner == call->client) {
        tkv_sessions_doom(e, call);
    } else {
        tkv_fail(&call->why, TRIKV_E_NO_SESSION, "map %llu is not of this connection",
                 (unsigned long long)id);
        tkv_call_fail(call);
    }
}
