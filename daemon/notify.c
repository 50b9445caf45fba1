/* A datagram to the manager's socket a state; see notify.h. */
#include "daemon/notify.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "daemon/keep.h"

enum { FIRST_PASSED_FD = 3 };

void tkv_notify_init(struct tkv_notify *n)
{
    const char *path = getenv("NOTIFY_SOCKET");
    const size_t length = path ? strlen(path) : 0;

    *n = (struct tkv_notify){.fd = -1};
    if (length < 2 || length >= sizeof(n->address.sun_path) || (path[0] != '/' && path[0] != '@'))
        return;
    n->address.sun_family = AF_UNIX;
    memcpy(n->address.sun_path, path, length);
    if (path[0] == '@') /* the abstract name space */
        n->address.sun_path[0] = 0;
    n->address_bytes = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + length);
    n->fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
}

void tkv_notify_deinit(struct tkv_notify *n)
{
    if (n->fd >= 0)
        close(n->fd);
    n->fd = -1;
}

void tkv_notify_send(const struct tkv_notify *n, const char *state)
{
    ssize_t sent;

    if (n->fd < 0)
        return;
    do {
        sent = sendto(n->fd, state, strlen(state), MSG_NOSIGNAL,
                      (const struct sockaddr *)&n->address, n->address_bytes);
    } while (sent < 0 && errno == EINTR);
}

void tkv_notify_send_fd(const struct tkv_notify *n, const char *state, int fd)
{
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control = {.bytes = {0}};
    struct iovec text = {.iov_base = (char *)(uintptr_t)state, .iov_len = strlen(state)};
    struct sockaddr_un address = n->address;
    struct msghdr m = {.msg_name = &address,
                       .msg_namelen = n->address_bytes,
                       .msg_iov = &text,
                       .msg_iovlen = 1,
                       .msg_control = control.bytes,
                       .msg_controllen = sizeof(control.bytes)};
    ssize_t sent;

    if (n->fd < 0)
        return;
    control.header = (struct cmsghdr){
        .cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
    memcpy(CMSG_DATA(&control.header), &fd, sizeof(fd));
    do {
        sent = sendmsg(n->fd, &m, MSG_NOSIGNAL);
    } while (sent < 0 && errno == EINTR);
}

void tkv_notify_reloading(const struct tkv_notify *n)
{
    char state[64];
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    snprintf(state, sizeof(state), "RELOADING=1\nMONOTONIC_USEC=%lld",
             (long long)t.tv_sec * 1000000 + t.tv_nsec / 1000);
    tkv_notify_send(n, state);
}

static int option(int fd, int name)
{
    int value = -1;
    socklen_t n = sizeof(value);

    return getsockopt(fd, SOL_SOCKET, name, &value, &n) < 0 ? -1 : value;
}

/* The variable is meant for this process, not for a parent that did not clean up. */
static bool is_for_us(const char *pid)
{
    return pid && strtol(pid, NULL, 10) == (long)getpid();
}

static bool take_socket(struct tkv_notify_sockets *passed, int fd, bool is_metrics,
                        const char **wrong)
{
    *wrong = "want listening stream sockets";
    if (option(fd, SO_TYPE) != SOCK_STREAM || option(fd, SO_ACCEPTCONN) != 1 ||
        fcntl(fd, F_SETFD, FD_CLOEXEC) < 0 ||
        fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK) < 0)
        return false;
    if (is_metrics) {
        *wrong = "more sockets named metrics than can be served";
        if (passed->n_metrics == TKV_NOTIFY_MAX_METRICS)
            return false;
        passed->metrics_fd[passed->n_metrics++] = fd;
        return true;
    }
    *wrong = "want one listening Unix stream socket that is not named metrics";
    if (passed->main_fd >= 0 || option(fd, SO_DOMAIN) != AF_UNIX)
        return false;
    passed->main_fd = fd;
    return true;
}

/* One of our own descriptors come back, by its name; false if it is none. */
static bool take_arena(struct tkv_notify_sockets *passed, int fd, const char *name, size_t length)
{
    const size_t n = sizeof(TKV_KEEP_PREFIX) - 1;

    if (length <= n || memcmp(name, TKV_KEEP_PREFIX, n) != 0)
        return false;
    if (passed->n_arenas == TKV_NOTIFY_MAX_ARENAS) {
        close(fd);
        return true;
    }
    (void)fcntl(fd, F_SETFD, FD_CLOEXEC);
    passed->arena[passed->n_arenas].fd = fd;
    passed->arena[passed->n_arenas++].id = strtoull(name + n, NULL, 16);
    return true;
}

bool tkv_notify_take_sockets(struct tkv_notify_sockets *passed, const char **wrong)
{
    const char *count = getenv("LISTEN_FDS");
    const char *names = getenv("LISTEN_FDNAMES"); /* "trikvd.socket:metrics" */
    const long n = count && is_for_us(getenv("LISTEN_PID")) ? strtol(count, NULL, 10) : 0;

    *passed = (struct tkv_notify_sockets){.main_fd = -1};
    for (int i = 0; i < n; i++) {
        const size_t length = names ? strcspn(names, ":") : 0;
        const bool is_metrics = length == 7 && memcmp(names, "metrics", 7) == 0;

        if (!(names && take_arena(passed, FIRST_PASSED_FD + i, names, length)) &&
            !take_socket(passed, FIRST_PASSED_FD + i, is_metrics, wrong))
            return false;
        if (names)
            names += length + (names[length] == ':');
    }
    return true;
}

uint64_t tkv_notify_watchdog_ms(void)
{
    const char *us = getenv("WATCHDOG_USEC");
    const char *pid = getenv("WATCHDOG_PID");

    if (!us || (pid && !is_for_us(pid)))
        return 0;
    return strtoull(us, NULL, 10) / 1000;
}
