/*
 * Looking at the daemon over HTTP: /metrics for Prometheus, / for people, /healthz for machines. On
 * a Unix socket or a loopback port, ours or one that the service manager made. Says, never does.
 *
 * Memory is fixed: so many connections, each with one request of 4 KiB and one reply of 512 KiB, all
 * of it reserved under the cap when the daemon starts, so that a full cache can still be looked
 * at. A peer that is slow is cut off; one connection too many is closed. Loop thread only.
 */
#ifndef TKV_DAEMON_HTTP_H
#define TKV_DAEMON_HTTP_H

#include "core/types.h" /* wants to come before uv.h */

#include <uv.h>

#include "daemon/http_parse.h"

struct tkv_http_conn;
struct tkv_notify_sockets;
struct tkv_server;

enum {
    TKV_HTTP_LISTENERS = 4,
    TKV_HTTP_CONNS = 8,
    TKV_HTTP_REPLY_BYTES = 512 << 10,
};

struct tkv_http_listener {
    struct tkv_server *server;
    int fd;
    bool is_tcp;
    uv_poll_t poll;
};

struct tkv_http {
    struct tkv_http_listener listener[TKV_HTTP_LISTENERS];
    size_t n_listeners;
    struct tkv_http_conn *conn; /* [TKV_HTTP_CONNS], NULL without listeners */
    size_t reserved_bytes;
    bool owns_socket; /* we made the file of metrics.socket: we remove it */
};

/* Open what the configuration names and take over what the manager passed; an exit code of
 * sysexits.h, with the reason logged. */
int tkv_http_open(struct tkv_server *s, const struct tkv_notify_sockets *passed);

/* Accept from now on; the loop is there. */
void tkv_http_start(struct tkv_server *s);

/* The loop has ended and every handle is closed. */
void tkv_http_deinit(struct tkv_server *s);

#endif /* TKV_DAEMON_HTTP_H */
