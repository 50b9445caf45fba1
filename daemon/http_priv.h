/* A connection of http.c and what its listeners (http_listen.c) call. */
#ifndef TKV_DAEMON_HTTP_PRIV_H
#define TKV_DAEMON_HTTP_PRIV_H

#include "daemon/http.h"
#include "daemon/text.h"

struct tkv_http_conn {
    struct tkv_server *server;
    enum {
        TKV_HTTP_FREE = 0,
        TKV_HTTP_READING,
        TKV_HTTP_WRITING,
        TKV_HTTP_LINGERING, /* the reply is out, the peer may close */
        TKV_HTTP_CLOSING,
    } state;
    int fd;
    bool is_tcp;
    unsigned n_handles;
    uv_poll_t poll;
    uv_timer_t timer;
    char in[TKV_HTTP_REQUEST_BYTES];
    size_t n_in;
    char head[640];
    size_t head_bytes;
    char *body;
    size_t body_bytes;
    size_t n_sent;
};

/* Serve fd, or close it if there is no room. */
void tkv_http_accept(struct tkv_http_listener *l, int fd);

#endif /* TKV_DAEMON_HTTP_PRIV_H */
