/* Connections of scrapers and browsers: one request, one reply, then closed. */
#include "daemon/http.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "daemon/http_priv.h"
#include "daemon/openmetrics.h"
#include "daemon/server.h"
#include "daemon/status_page.h"

enum {
    EXCHANGE_MS = 5000, /* for a peer to send its request and take the reply, at most */
    LINGER_MS = 1000,   /* for it to close after that */
};

static const char type_html[] = "text/html; charset=utf-8";
static const char type_plain[] = "text/plain; charset=utf-8";
static const char type_metrics[] = "text/plain; version=0.0.4; charset=utf-8";
static const char type_openmetrics[] = "application/openmetrics-text; version=1.0.0; charset=utf-8";

static void on_handle_closed(uv_handle_t *handle)
{
    struct tkv_http_conn *c = handle->data;

    if (--c->n_handles == 0) {
        free(c->body);
        *c = (struct tkv_http_conn){.server = c->server};
    }
}

static void end(struct tkv_http_conn *c)
{
    if (c->state == TKV_HTTP_CLOSING)
        return;
    c->state = TKV_HTTP_CLOSING;
    uv_close((uv_handle_t *)&c->poll, on_handle_closed);
    uv_close((uv_handle_t *)&c->timer, on_handle_closed);
    if (c->is_tcp)
        close(c->fd);
    else
        tkv_foreign_hang_up(c->server->foreign, c->fd);
    c->fd = -1;
}

static void on_timer(uv_timer_t *timer)
{
    end(timer->data);
}

static const char *status_text(int status)
{
    switch (status) {
    case 200: return "OK";
    case 400: return "Bad Request";
    case 404: return "Not Found";
    case 405: return "Method Not Allowed";
    case 413: return "Content Too Large";
    case 421: return "Misdirected Request";
    case 431: return "Request Header Fields Too Large";
    case 503: return "Service Unavailable";
    case 505: return "HTTP Version Not Supported";
    default: return "Error";
    }
}

/* The page names no other place, so nothing else may be loaded, and nothing may frame it. */
static void write_head(struct tkv_http_conn *c, int status, const char *type, size_t body_bytes)
{
    struct tkv_text t;

    tkv_text_init(&t, c->head, sizeof(c->head));
    tkv_text_add(&t, "HTTP/1.1 %d %s\r\nContent-Type: %s\r\nContent-Length: %zu\r\n%s", status,
                 status_text(status), type, body_bytes,
                 status == 405 ? "Allow: GET, HEAD\r\n" : "");
    tkv_text_add(&t, "Connection: close\r\nCache-Control: no-store\r\n"
                     "X-Content-Type-Options: nosniff\r\n"
                     "Content-Security-Policy: default-src 'none'; style-src 'unsafe-inline'; "
                     "img-src data:; "
                     "frame-ancestors 'none'\r\n\r\n");
    c->head_bytes = t.n_bytes;
}

/* The status, 200 or 503; *type is that of the text. */
static int write_page(struct tkv_server *s, const struct tkv_http_request *r, struct tkv_text *t,
                      const char **type)
{
    switch (r->page) {
    case TKV_HTTP_METRICS:
        s->metrics.n_scrapes++;
        tkv_openmetrics_write(s, r, t);
        *type = r->openmetrics ? type_openmetrics : type_metrics;
        break;
    case TKV_HTTP_STATUS_PAGE:
        tkv_status_page_write(s, t);
        *type = type_html;
        break;
    case TKV_HTTP_HEALTH:
        tkv_text_add(t, s->draining ? "draining\n" : "ok\n");
        return s->draining ? 503 : 200;
    }
    return 200;
}

static void answer(struct tkv_http_conn *c, int status, const struct tkv_http_request *r)
{
    const char *type = type_plain;
    struct tkv_text t;

    c->body = malloc(TKV_HTTP_REPLY_BYTES);
    if (!c->body) {
        end(c);
        return;
    }
    tkv_text_init(&t, c->body, TKV_HTTP_REPLY_BYTES);
    if (status == 200)
        status = write_page(c->server, r, &t, &type);
    else
        tkv_text_add(&t, "%d %s\n", status, status_text(status));
    write_head(c, status, type, t.n_bytes);
    c->body_bytes = r->head ? 0 : t.n_bytes;
    c->state = TKV_HTTP_WRITING;
}

static void on_event(uv_poll_t *poll, int status, int events);

static void send_reply(struct tkv_http_conn *c)
{
    const size_t total = c->head_bytes + c->body_bytes;

    while (c->n_sent < total) {
        const bool in_head = c->n_sent < c->head_bytes;
        const char *p = in_head ? c->head + c->n_sent : c->body + (c->n_sent - c->head_bytes);
        const size_t n = (in_head ? c->head_bytes : total) - c->n_sent;
        const ssize_t sent = send(c->fd, p, n, MSG_NOSIGNAL | (in_head ? MSG_MORE : 0));

        if (sent < 0 && errno == EAGAIN) {
            uv_poll_start(&c->poll, UV_WRITABLE, on_event);
            return;
        }
        if (sent < 0 && errno != EINTR) {
            end(c);
            return;
        }
        c->n_sent += sent > 0 ? (size_t)sent : 0;
    }
    /* Closing with unread input would reset the connection under a reply on its way. */
    shutdown(c->fd, SHUT_WR);
    c->state = TKV_HTTP_LINGERING;
    uv_timer_start(&c->timer, on_timer, LINGER_MS, 0);
    uv_poll_start(&c->poll, UV_READABLE, on_event);
}

static void read_request(struct tkv_http_conn *c)
{
    struct tkv_http_request r;
    const ssize_t n =
        tkv_foreign_recv(c->server->foreign, c->fd, c->in + c->n_in, sizeof(c->in) - c->n_in);
    int status;

    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n <= 0) {
        end(c);
        return;
    }
    c->n_in += (size_t)n;
    status = tkv_http_parse(c->in, c->n_in, c->is_tcp, &r);
    if (status)
        answer(c, status, &r);
    if (c->state == TKV_HTTP_WRITING)
        send_reply(c);
}

static void linger(struct tkv_http_conn *c)
{
    const ssize_t n = tkv_foreign_recv(c->server->foreign, c->fd, c->in, sizeof(c->in));

    if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
        end(c);
}

static void on_event(uv_poll_t *poll, int status, int events)
{
    struct tkv_http_conn *c = poll->data;

    (void)events;
    if (status < 0) {
        end(c);
        return;
    }
    switch (c->state) {
    case TKV_HTTP_READING: read_request(c); break;
    case TKV_HTTP_WRITING: send_reply(c); break;
    case TKV_HTTP_LINGERING: linger(c); break;
    case TKV_HTTP_FREE:
    case TKV_HTTP_CLOSING: break;
    }
}

static struct tkv_http_conn *free_conn(struct tkv_http *h)
{
    for (size_t i = 0; i < TKV_HTTP_CONNS; i++) {
        if (h->conn[i].state == TKV_HTTP_FREE)
            return &h->conn[i];
    }
    return NULL;
}

void tkv_http_accept(struct tkv_http_listener *l, int fd)
{
    struct tkv_server *const s = l->server;
    struct tkv_http_conn *c = free_conn(&s->http);

    if (!c || uv_poll_init(&s->loop, &c->poll, fd) < 0) {
        s->metrics.n_scrapes_refused++;
        if (l->is_tcp)
            close(fd);
        else
            tkv_foreign_hang_up(s->foreign, fd);
        return;
    }
    c->server = s;
    c->fd = fd;
    c->is_tcp = l->is_tcp;
    c->state = TKV_HTTP_READING;
    uv_timer_init(&s->loop, &c->timer);
    c->poll.data = c->timer.data = c;
    c->n_handles = 2;
    uv_timer_start(
        &c->timer, on_timer,
        s->limits.frame_timeout_ms < EXCHANGE_MS ? s->limits.frame_timeout_ms : EXCHANGE_MS, 0);
    uv_poll_start(&c->poll, UV_READABLE, on_event);
}
