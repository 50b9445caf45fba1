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

int tkv_notify_listen_fd(void)
{
    const char *pid = getenv("LISTEN_PID");
    const char *count = getenv("LISTEN_FDS");
    const int fd = FIRST_PASSED_FD;

    if (!pid || !count || strtol(pid, NULL, 10) != (long)getpid())
        return -1;
    if (strtol(count, NULL, 10) != 1 || option(fd, SO_DOMAIN) != AF_UNIX ||
        option(fd, SO_TYPE) != SOCK_STREAM || option(fd, SO_ACCEPTCONN) != 1)
        return -2;
    if (fcntl(fd, F_SETFD, FD_CLOEXEC) < 0 ||
        fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK) < 0)
        return -2;
    return fd;
}
