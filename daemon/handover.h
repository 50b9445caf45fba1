/*
 * An upgrade without a service manager: the new daemon connects to the handover socket of the old one, which
 * finishes what is in flight, sends its listening socket and the descriptors of its sessions' memory, and
 * exits. Nothing of this helps after a crash: then the descriptors are gone with the process.
 */
#ifndef TKV_DAEMON_HANDOVER_H
#define TKV_DAEMON_HANDOVER_H

#include "core/types.h" /* wants to come before uv.h */

#include <uv.h>

struct tkv_notify_sockets;
struct tkv_server;

struct tkv_handover {
    int listen_fd; /* -1: none */
    int peer_fd;   /* the successor, -1: none */
    uv_poll_t poll;
};

void tkv_handover_init(struct tkv_handover *h);

/*
 * At the start, before anything is opened: if a daemon answers at the configured socket, wait until it
 * has handed over and exited, and add what it sent to *passed. 0, or an exit code with the reason
 * logged. Then listen there.
 */
int tkv_handover_take(struct tkv_server *s, struct tkv_notify_sockets *passed);
void tkv_handover_start(struct tkv_server *s);

/* When the loop has ended: send everything to the successor, if there is one. */
void tkv_handover_give(struct tkv_server *s);
void tkv_handover_deinit(struct tkv_server *s);

#endif /* TKV_DAEMON_HANDOVER_H */
