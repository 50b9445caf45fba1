/* The table of requests and what all of them share. */
#include "daemon/dispatch.h"

#include <assert.h>
#include <stddef.h>

#include "daemon/evict.h"
#include "daemon/requests.h"
#include "daemon/server.h"
#include "proto/errors.h"
#include "proto/trikv.pb-c.h"

struct request {
    uint16_t type;
    const char *name;
    const ProtobufCMessageDescriptor *message;
    void (*handle)(struct tkv_call *call, const ProtobufCMessage *message);
    bool has_payload;
    bool has_fd;
};

static const struct request requests[] = {
    {TRIKV_HELLO, "HELLO", &trikv__hello_request__descriptor, tkv_handle_hello, false, false},
    {TRIKV_PROFILE_LIST, "PROFILE_LIST", &trikv__empty__descriptor, tkv_handle_profile_list, false,
     false},
    {TRIKV_SESSION_LIST, "SESSION_LIST", &trikv__empty__descriptor, tkv_handle_session_list, false,
     false},
    {TRIKV_DAEMON_STATS, "DAEMON_STATS", &trikv__empty__descriptor, tkv_handle_daemon_stats, false,
     false},
    {TRIKV_CONFIG, "CONFIG", &trikv__empty__descriptor, tkv_handle_config, false, false},
    {TRIKV_OPEN, "OPEN", &trikv__open_request__descriptor, tkv_handle_open, true, false},
    {TRIKV_CLOSE, "CLOSE", &trikv__session_request__descriptor, tkv_handle_close, false, false},
    {TRIKV_STATS, "STATS", &trikv__session_request__descriptor, tkv_handle_stats, false, false},
    {TRIKV_DROP, "DROP", &trikv__session_request__descriptor, tkv_handle_drop, false, false},
    {TRIKV_FORK, "FORK", &trikv__fork_request__descriptor, tkv_handle_fork, false, false},
    {TRIKV_REATTACH, "REATTACH", &trikv__reattach_request__descriptor, tkv_handle_reattach, false,
     false},
    {TRIKV_TRUNCATE, "TRUNCATE", &trikv__truncate_request__descriptor, tkv_handle_truncate, false,
     false},
    {TRIKV_KEEP, "KEEP", &trikv__session_request__descriptor, tkv_handle_keep, false, false},
    {TRIKV_PREFIX_LIST, "PREFIX_LIST", &trikv__empty__descriptor, tkv_handle_prefix_list, false,
     false},
    {TRIKV_SNAPSHOT, "SNAPSHOT", &trikv__snapshot_request__descriptor, tkv_handle_snapshot, false,
     false},
    {TRIKV_RESTORE, "RESTORE", &trikv__restore_request__descriptor, tkv_handle_restore, false,
     false},
    {TRIKV_SNAPSHOT_LIST, "SNAPSHOT_LIST", &trikv__empty__descriptor, tkv_handle_snapshot_list,
     false, false},
    {TRIKV_SNAPSHOT_DELETE, "SNAPSHOT_DELETE", &trikv__snapshot_name_request__descriptor,
     tkv_handle_snapshot_delete, false, false},
    {TRIKV_APPEND, "APPEND", &trikv__tokens_request__descriptor, tkv_handle_append, true, false},
    {TRIKV_ATTEND, "ATTEND", &trikv__tokens_request__descriptor, tkv_handle_attend, true, false},
    {TRIKV_APPEND_ATTEND, "APPEND_ATTEND", &trikv__tokens_request__descriptor,
     tkv_handle_append_attend, true, false},
    {TRIKV_ROUND, "ROUND", &trikv__session_request__descriptor, tkv_handle_round, false, false},
    {TRIKV_OBSERVE, "OBSERVE", &trikv__tokens_request__descriptor, tkv_handle_observe, true, false},
    {TRIKV_CALIBRATE, "CALIBRATE", &trikv__calibrate_request__descriptor, tkv_handle_calibrate,
     false, false},
    {TRIKV_READ, "READ", &trikv__read_request__descriptor, tkv_handle_read, false, false},
    {TRIKV_GATE, "GATE", &trikv__session_request__descriptor, tkv_handle_gate, false, false},
    {TRIKV_HANDLE, "HANDLE", &trikv__session_request__descriptor, tkv_handle_handle, false, false},
    {TRIKV_MAP, "MAP", &trikv__session_request__descriptor, tkv_handle_map, false, false},
    {TRIKV_UNMAP, "UNMAP", &trikv__session_request__descriptor, tkv_handle_unmap, false, false},
    {TRIKV_STAGING, "STAGING", &trikv__staging_request__descriptor, tkv_handle_staging, false,
     true},
    {TRIKV_RING, "RING", &trikv__ring_request__descriptor, tkv_handle_ring, false, true},
    {TRIKV_RING_CLOSE, "RING_CLOSE", &trikv__empty__descriptor, tkv_handle_ring_close, false,
     false},
};

static const struct request *find_request(uint16_t type)
{
    for (size_t i = 0; i < sizeof(requests) / sizeof(requests[0]); i++) {
        if (requests[i].type == type)
            return &requests[i];
    }
    return NULL;
}

const char *tkv_dispatch_kind(size_t i, uint16_t *type)
{
    if (i >= sizeof(requests) / sizeof(requests[0]))
        return NULL;
    *type = requests[i].type;
    return requests[i].name;
}

static struct tkv_client *client_of(struct tkv_conn *conn)
{
    return (struct tkv_client *)((char *)conn - offsetof(struct tkv_client, conn));
}

struct tkv_call *tkv_call_of(struct tkv_job *job)
{
    return (struct tkv_call *)((char *)job - offsetof(struct tkv_call, job));
}

/* What can be refused before the message is even looked at. */
static int check_state(const struct tkv_client *client, const struct request *r,
                       struct tkv_report *why)
{
    const struct trikv_frame *f = &client->conn.in;

    if (client->server->draining)
        return tkv_fail(why, TRIKV_E_DRAINING, "the daemon is shutting down");
    if (!r)
        return tkv_fail(why, TRIKV_E_UNKNOWN_REQUEST, "request type %u is unknown", f->type);
    if (!client->said_hello && f->type != TRIKV_HELLO)
        return tkv_fail(why, TRIKV_E_STATE, "%s: the first request must be HELLO", r->name);
    if (f->payload_bytes && !r->has_payload)
        return tkv_fail(why, TRIKV_E_SIZE, "%s takes no payload, got %llu bytes", r->name,
                        (unsigned long long)f->payload_bytes);
    if ((client->conn.in_fd >= 0) != r->has_fd)
        return tkv_fail(why, TRIKV_E_ARGUMENT, "%s wants %s descriptor", r->name,
                        r->has_fd ? "one" : "no");
    return TRIKV_OK;
}

int tkv_dispatch_admit(struct tkv_conn *conn, struct tkv_report *why)
{
    return check_state(client_of(conn), find_request(conn->in.type), why);
}

static void serve(struct tkv_call *call, const struct request *r)
{
    const struct tkv_conn *const conn = &call->client->conn;
    const ProtobufCMessage *message =
        tkv_message_unpack(&call->client->server->arena, r->message, conn->message.data,
                           conn->in.header_bytes, &call->why);

    if (message)
        r->handle(call, message);
    else
        tkv_call_fail(call);
}

void tkv_dispatch_count(struct tkv_conn *conn)
{
    const struct request *r = find_request(conn->in.type);

    tkv_metrics_request(&client_of(conn)->server->metrics, r ? r->type : 0);
}

void tkv_dispatch(struct tkv_call *call)
{
    struct tkv_client *const client = call->client;
    const struct request *r = find_request(client->conn.in.type);

    *call = (struct tkv_call){.client = client};
    client->server->counters.n_requests++;
    tkv_dispatch_count(&client->conn);
    if (check_state(client, r, &call->why))
        tkv_call_fail(call);
    else
        serve(call, r);
}

void tkv_call_again(struct tkv_call *call)
{
    serve(call, find_request(call->client->conn.in.type));
}

void tkv_call_reply(struct tkv_call *call, const ProtobufCMessage *message)
{
    tkv_conn_reply(&call->client->conn, message, NULL, 0, -1);
}

void tkv_call_fail(struct tkv_call *call)
{
    struct tkv_client *const client = call->client;

    assert(call->why.error);
    if (call->why.error == TRIKV_E_MEMORY_CAP && tkv_evict_for(call))
        return;
    client->server->counters.n_errors++;
    tkv_metrics_error(&client->server->metrics, call->why.error);
    tkv_log(&client->server->log, TKV_LOG_DEBUG, "msg=\"request failed\" client=%llu code=%d",
            (unsigned long long)client->id, call->why.error);
    tkv_conn_fail(&client->conn, &call->why);
}

void tkv_call_closed(struct tkv_call *call)
{
    const Trikv__Empty reply = TRIKV__EMPTY__INIT;

    if (tkv_call_ended(call))
        tkv_call_reply(call, &reply.base);
}

struct tkv_session_entry *tkv_call_own_session(struct tkv_call *call)
{
    return tkv_sessions_find_own(call->client, call->session_id, &call->why);
}

static void start_on(struct tkv_pool *pool, struct tkv_call *call,
                     void (*work)(struct tkv_job *job), void (*done)(struct tkv_job *job))
{
    call->running = true;
    call->submitted_ns = uv_hrtime();
    call->job.work = work;
    call->job.done = done;
    tkv_pool_submit(pool, &call->job);
}

void tkv_call_start(struct tkv_call *call, void (*work)(struct tkv_job *job),
                    void (*done)(struct tkv_job *job))
{
    start_on(call->client->server->pool, call, work, done);
}

void tkv_call_start_file(struct tkv_call *call, void (*work)(struct tkv_job *job),
                         void (*done)(struct tkv_job *job))
{
    start_on(call->client->server->autosave.pool, call, work, done);
}

bool tkv_call_ended(struct tkv_call *call)
{
    struct tkv_client *const client = call->client;

    call->running = false;
    if (!client->socket_closed && client->conn.state != TKV_CONN_CLOSING)
        return true;
    tkv_client_release(client);
    return false;
}
