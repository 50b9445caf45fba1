/* Telling the service manager about our state (sd_notify(3)), and taking over a listening
 * socket from it (sd_listen_fds(3)). Both protocols are small and documented as stable. */
#ifndef TKV_DAEMON_NOTIFY_H
#define TKV_DAEMON_NOTIFY_H

#include <sys/socket.h>
#include <sys/un.h>

struct tkv_notify {
    int fd; /* -1: nobody listens */
    struct sockaddr_un address;
    socklen_t address_bytes;
};

/* Reads $NOTIFY_SOCKET. Never fails: without a manager everything is silent. */
void tkv_notify_init(struct tkv_notify *n);
void tkv_notify_deinit(struct tkv_notify *n);

/* Send "READY=1" and the like; lines are separated by newlines. */
void tkv_notify_send(const struct tkv_notify *n, const char *state);

/* RELOADING=1 with the time stamp that Type=notify-reload wants. */
void tkv_notify_reloading(const struct tkv_notify *n);

/* The listening Unix stream socket that the manager passed, made close-on-exec; -1: none; -2: what
 * it passed is something else. */
int tkv_notify_listen_fd(void);

#endif /* TKV_DAEMON_NOTIFY_H */
