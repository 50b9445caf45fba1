/* Telling the service manager about our state (sd_notify(3)), and taking over
 * listening sockets from it (sd_listen_fds(3)). Both protocols are small and documented as stable. */
#ifndef TKV_DAEMON_NOTIFY_H
#define TKV_DAEMON_NOTIFY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
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

/* The same with a descriptor, as for FDSTORE=1. */
void tkv_notify_send_fd(const struct tkv_notify *n, const char *state, int fd);

/* RELOADING=1 with the time stamp that Type=notify-reload wants. */
void tkv_notify_reloading(const struct tkv_notify *n);

enum { TKV_NOTIFY_MAX_METRICS = 4, TKV_NOTIFY_MAX_ARENAS = 1024 };

/* Listening stream sockets that the manager passed, made close-on-exec and non-blocking; and what a
 * process before this one has left with it. */
struct tkv_notify_sockets {
    int main_fd;                            /* a Unix socket for clients, -1: none */
    int metrics_fd[TKV_NOTIFY_MAX_METRICS]; /* FileDescriptorName=metrics, of any family */
    size_t n_metrics;
    struct {
        int fd;
        uint64_t id; /* as the descriptor's name has it */
    } arena[TKV_NOTIFY_MAX_ARENAS];
    size_t n_arenas;
};

/* False if what the manager passed is not what we want: *wrong says what. */
bool tkv_notify_take_sockets(struct tkv_notify_sockets *passed, const char **wrong);

/* How often the manager wants to hear WATCHDOG=1, in ms; 0: it does not watch us. */
uint64_t tkv_notify_watchdog_ms(void);

#endif /* TKV_DAEMON_NOTIFY_H */
