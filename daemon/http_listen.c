/* The sockets that scrapers and browsers connect to. */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sysexits.h>
#include <unistd.h>

#include "daemon/http_priv.h"
#include "daemon/loopback.h"
#include "daemon/server.h"

enum { BACKLOG = 16, ACCEPTS_PER_TURN = 8 };

static bool add_listener(struct tkv_server *s, int fd)
{
    struct tkv_http *const h = &s->http;
    struct sockaddr_storage a = {.ss_family = AF_UNSPEC};
    socklen_t n = sizeof(a);

    if (h->n_listeners == TKV_HTTP_LISTENERS || getsockname(fd, (struct sockaddr *)&a, &n) < 0)
        return false;
    h->listener[h->n_listeners++] =
        (struct tkv_http_listener){.server = s, .fd = fd, .is_tcp = a.ss_family != AF_UNIX};
    return true;
}

static const char *open_unix(struct tkv_server *s)
{
    const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    const char *wrong = fd < 0 ? strerror(errno)
                               : tkv_listen_unix(fd, s->config.metrics_socket,
                                                 s->config.metrics_mode, &s->http.owns_socket);

    if (!wrong && !add_listener(s, fd))
        wrong = strerror(errno);
    if (wrong && fd >= 0)
        close(fd);
    return wrong;
}

/* The port that the kernel chose, if it was to choose. */
static void log_port(const struct tkv_server *s, int fd)
{
    struct sockaddr_storage a;
    socklen_t n = sizeof(a);
    const struct sockaddr_in *four = (const struct sockaddr_in *)&a;

    if (getsockname(fd, (struct sockaddr *)&a, &n) ==
        0) /* the port is at one place in both kinds */
        tkv_log(&s->log, TKV_LOG_INFO, "msg=\"metrics on loopback\" port=%u",
                ntohs(four->sin_port));
}

static const char *open_loopback(struct tkv_server *s)
{
    struct sockaddr_storage a;
    socklen_t n;
    const int one = 1;
    int fd;

    if (!tkv_loopback_parse(s->config.metrics_listen, &a, &n))
        return "not a loopback address"; /* tkv_config_check has said so before */
    fd = socket(a.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return strerror(errno);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    if (bind(fd, (const struct sockaddr *)&a, n) < 0 || listen(fd, BACKLOG) < 0 ||
        !add_listener(s, fd)) {
        const char *const wrong = strerror(errno);

        close(fd);
        return wrong;
    }
    log_port(s, fd);
    return NULL;
}

/* All that connections can hold, whatever they do. */
static int reserve(struct tkv_server *s)
{
    const size_t n = TKV_HTTP_CONNS * (sizeof(struct tkv_http_conn) + TKV_HTTP_REPLY_BYTES);

    if (!tkv_budget_reserve(&s->budget, n)) {
        tkv_log(&s->log, TKV_LOG_ERROR,
                "msg=\"memory.cap is too small for metrics\" needed_bytes=%zu", n);
        return EX_CONFIG;
    }
    s->http.reserved_bytes = n;
    s->http.conn = calloc(TKV_HTTP_CONNS, sizeof(*s->http.conn));
    return s->http.conn ? EX_OK : EX_OSERR;
}

static int refuse(const struct tkv_server *s, const char *what, const char *where,
                  const char *wrong)
{
    tkv_log(&s->log, TKV_LOG_ERROR, "msg=\"cannot serve metrics\" %s=\"%s\" why=\"%s\"", what,
            where, wrong);
    return EX_UNAVAILABLE;
}

int tkv_http_open(struct tkv_server *s, const struct tkv_notify_sockets *passed)
{
    const char *wrong;

    for (size_t i = 0; i < passed->n_metrics; i++) {
        if (!add_listener(s, passed->metrics_fd[i]))
            return refuse(s, "passed", "LISTEN_FDS", "too many sockets named metrics");
    }
    /* A manager that passes sockets knows better than the file, as for listen.socket. */
    if (!passed->n_metrics && s->config.metrics_socket[0]) {
        wrong = open_unix(s);
        if (wrong)
            return refuse(s, "socket", s->config.metrics_socket, wrong);
    }
    if (!passed->n_metrics && s->config.metrics_listen[0]) {
        wrong = open_loopback(s);
        if (wrong)
            return refuse(s, "listen", s->config.metrics_listen, wrong);
    }
    return s->http.n_listeners ? reserve(s) : EX_OK;
}

static void on_connection(uv_poll_t *poll, int status, int events)
{
    struct tkv_http_listener *const l = poll->data;

    (void)events;
    for (int i = 0; status == 0 && i < ACCEPTS_PER_TURN; i++) {
        const int fd = accept4(l->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

        if (fd >= 0)
            tkv_http_accept(l, fd);
        else if (errno != ECONNABORTED && errno != EINTR)
            return; /* nobody there; or no descriptors, and the main listener says so */
    }
}

void tkv_http_start(struct tkv_server *s)
{
    for (size_t i = 0; i < s->http.n_listeners; i++) {
        struct tkv_http_listener *const l = &s->http.listener[i];

        uv_poll_init(&s->loop, &l->poll, l->fd);
        l->poll.data = l;
        uv_poll_start(&l->poll, UV_READABLE, on_connection);
    }
}

void tkv_http_deinit(struct tkv_server *s)
{
    struct tkv_http *const h = &s->http;

    for (size_t i = 0; i < h->n_listeners; i++)
        close(h->listener[i].fd);
    for (size_t i = 0; h->conn && i < TKV_HTTP_CONNS; i++) {
        if (h->conn[i].state == TKV_HTTP_FREE)
            continue;
        free(h->conn[i].body);
        if (h->conn[i].fd >= 0)
            close(h->conn[i].fd);
    }
    free(h->conn);
    if (h->owns_socket)
        unlink(s->config.metrics_socket);
    if (h->reserved_bytes)
        tkv_budget_release(&s->budget, h->reserved_bytes);
    *h = (struct tkv_http){.n_listeners = 0};
}
