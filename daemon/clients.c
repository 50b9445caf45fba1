/* Clients: a connection with what it holds. */
#include <stddef.h>
#include <unistd.h>

#include "daemon/dispatch.h"
#include "daemon/evict.h"
#include "daemon/server.h"
#include "proto/errors.h"

enum { MAX_LINES_PER_SECOND = 100 };

static struct tkv_client *client_of(struct tkv_conn *conn)
{
    return (struct tkv_client *)((char *)conn - offsetof(struct tkv_client, conn));
}

/* Peers can make connections and bad frames much faster than anyone reads a log. */
static bool may_log(struct tkv_server *s, enum tkv_log_level level)
{
    const uint64_t second = uv_now(&s->loop) / 1000;

    if (level > s->log.level)
        return false;
    if (second != s->log_second) {
        if (s->n_log_lines > MAX_LINES_PER_SECOND)
            tkv_log(&s->log, TKV_LOG_WARN, "msg=\"lines about connections left out\" n=%u",
                    s->n_log_lines - MAX_LINES_PER_SECOND);
        s->log_second = second;
        s->n_log_lines = 0;
    }
    return ++s->n_log_lines <= MAX_LINES_PER_SECOND;
}

static bool on_no_memory(struct tkv_conn *conn)
{
    return tkv_evict_now(client_of(conn)->server, client_of(conn)->quota);
}

static void on_request(struct tkv_conn *conn)
{
    struct tkv_client *const c = client_of(conn);

    if (!c->ring || tkv_ring_yields(c->ring))
        tkv_dispatch(&c->call);
}

static void on_served(struct tkv_conn *conn)
{
    struct tkv_client *const c = client_of(conn);

    if (c->ring)
        tkv_ring_resume(c->ring);
}

static bool on_idle(struct tkv_conn *conn)
{
    struct tkv_client *const c = client_of(conn);

    return c->ring && tkv_ring_was_used(c->ring);
}

static void on_bad_frame(struct tkv_conn *conn, const struct tkv_report *why)
{
    struct tkv_client *const c = client_of(conn);

    c->server->counters.n_bad_frames++;
    c->server->counters.n_errors++;
    tkv_metrics_error(&c->server->metrics, why->error);
    if (may_log(c->server, TKV_LOG_WARN))
        tkv_log(&c->server->log, TKV_LOG_WARN,
                "msg=\"bad frame\" client=%llu pid=%d uid=%u why=\"%s\"", (unsigned long long)c->id,
                (int)conn->peer_pid, (unsigned)conn->peer_uid, why->text);
}

static void on_refused(struct tkv_conn *conn, struct tkv_report *why)
{
    struct tkv_client *const c = client_of(conn);

    if (why->error == TRIKV_E_MEMORY_CAP)
        (void)tkv_quota_explain(c->quota, why);
    c->server->counters.n_requests++;
    c->server->counters.n_errors++;
    tkv_dispatch_count(conn);
    tkv_metrics_error(&c->server->metrics, why->error);
    tkv_log(&c->server->log, TKV_LOG_DEBUG, "msg=\"request refused\" client=%llu code=%d",
            (unsigned long long)c->id, why->error);
}

/* Sessions die with their connection. A job that still runs keeps the client's memory. */
static void on_closed(struct tkv_conn *conn)
{
    struct tkv_client *const c = client_of(conn);
    struct tkv_server *const s = c->server;

    if (may_log(s, TKV_LOG_INFO))
        tkv_log(&s->log, TKV_LOG_INFO,
                "msg=\"connection closed\" client=%llu sessions=%u why=\"%s\"",
                (unsigned long long)c->id, c->n_sessions, conn->close_reason);
    c->socket_closed = true;
    if (c->call.waiting)
        tkv_sessions_forget(&s->sessions, &c->call);
    if (c->ring)
        tkv_ring_close(c->ring, NULL);
    tkv_sessions_orphan(&s->sessions, c);
    *c->link = c->next;
    if (c->next)
        c->next->link = c->link;
    s->n_clients--;
    tkv_client_release(c);
}

void tkv_client_release(struct tkv_client *c)
{
    struct tkv_server *const s = c->server;

    if (!c->socket_closed || c->call.running || c->ring)
        return;
    tkv_staging_close(&c->staging, &c->quota->budget);
    tkv_buffer_free(&c->output, &s->budget);
    tkv_scratch_free(&c->scratch, &c->quota->budget);
    tkv_conn_deinit(&c->conn);
    tkv_quota_unref(&c->quota);
    tkv_budget_free(&s->budget, c, sizeof(*c));
    tkv_server_check_drained(s);
}

static const struct tkv_conn_ops conn_ops = {
    .admit = tkv_dispatch_admit,
    .reclaim = on_no_memory,
    .refused = on_refused,
    .request = on_request,
    .served = on_served,
    .active = on_idle,
    .bad_frame = on_bad_frame,
    .closed = on_closed,
};

static void link_client(struct tkv_server *s, struct tkv_client *c)
{
    c->next = s->clients;
    c->link = &s->clients;
    if (c->next)
        c->next->link = &c->next;
    s->clients = c;
    s->n_clients++;
}

/* NULL: no memory, no event slot, or the peer has no user. */
static struct tkv_client *create_client(struct tkv_server *s, int fd)
{
    const struct tkv_conn_shared shared = {&s->loop, &conn_ops, &s->limits, s->foreign};
    struct tkv_client *c = tkv_budget_alloc(&s->budget, sizeof(*c));
    struct ucred peer;
    socklen_t n = sizeof(peer);

    while (!c && tkv_evict_now(s, NULL))
        c = tkv_budget_alloc(&s->budget, sizeof(*c));
    if (c && getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &n) == 0)
        c->quota = tkv_quota_of_user(s, peer.uid);
    if (c && c->quota && tkv_conn_init(&c->conn, &shared, fd, &c->quota->budget) == 0)
        return c;
    if (c)
        tkv_quota_unref(&c->quota);
    tkv_budget_free(&s->budget, c, sizeof(*c));
    return NULL;
}

void tkv_client_accept(struct tkv_server *s, int fd)
{
    struct tkv_client *c = create_client(s, fd);

    if (!c) {
        tkv_log(&s->log, TKV_LOG_ERROR, "msg=\"connection refused: no memory or no event slot\"");
        tkv_foreign_hang_up(s->foreign, fd);
        return;
    }
    c->server = s;
    c->call.client = c;
    c->id = ++s->n_clients_ever;
    link_client(s, c);
    if (may_log(s, TKV_LOG_INFO))
        tkv_log(&s->log, TKV_LOG_INFO, "msg=\"connection opened\" client=%llu pid=%d uid=%u",
                (unsigned long long)c->id, (int)c->conn.peer_pid, (unsigned)c->conn.peer_uid);
    if (s->n_clients > s->config.max_connections) {
        struct tkv_report why;

        tkv_fail(&why, TRIKV_E_TOO_MANY, "%u connections are open, the limit is %u",
                 s->n_clients - 1, s->config.max_connections);
        s->counters.n_errors++;
        tkv_metrics_error(&s->metrics, why.error);
        c->conn.close_after_reply = true;
        c->conn.close_reason = "too many connections";
        c->conn.state = TKV_CONN_BUSY;
        tkv_conn_fail(&c->conn, &why);
    }
}
