/* One datagram of a name, and a descriptor with it, for each thing that is handed over. */
#include "daemon/handover.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sysexits.h>
#include <unistd.h>

#include "daemon/server.h"

enum { NAME_BYTES = 64, WAIT_MS = 15000 };

/* The listening socket, and whether its file is the daemon's own. */
static const char *const SOCKET_OURS = "socket-ours", *const SOCKET = "socket";

void tkv_handover_init(struct tkv_handover *h)
{
    *h = (struct tkv_handover){.listen_fd = -1, .peer_fd = -1};
}

/* ---- the successor -------------------------------------------------------------------------- */

static int connect_to(const char *path)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    const int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

    memcpy(a.sun_path, path, strlen(path) + 1);
    if (fd >= 0 && connect(fd, (const struct sockaddr *)&a, sizeof(a)) == 0)
        return fd;
    if (fd >= 0)
        close(fd);
    return -1;
}

/* -1: nothing more; else 0 and a descriptor, or -1 in *fd. */
static int receive(int from, char *name, int *fd)
{
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control;
    struct iovec iov = {name, NAME_BYTES - 1};
    struct msghdr m = {.msg_iov = &iov,
                       .msg_iovlen = 1,
                       .msg_control = control.bytes,
                       .msg_controllen = sizeof(control.bytes)};
    struct pollfd p = {.fd = from, .events = POLLIN};
    const struct cmsghdr *c;
    ssize_t n;

    *fd = -1;
    if (poll(&p, 1, WAIT_MS) <= 0)
        return -1;
    n = recvmsg(from, &m, MSG_CMSG_CLOEXEC);
    if (n <= 0)
        return -1;
    name[n] = 0;
    c = CMSG_FIRSTHDR(&m);
    if (c && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS)
        memcpy(fd, CMSG_DATA(c), sizeof(*fd));
    return 0;
}

static void take_one(struct tkv_server *s, struct tkv_notify_sockets *passed, const char *name,
                     int fd)
{
    const size_t n = sizeof(TKV_KEEP_PREFIX) - 1;

    if (strcmp(name, SOCKET_OURS) == 0 || strcmp(name, SOCKET) == 0) {
        if (passed->main_fd >= 0)
            close(passed->main_fd);
        passed->main_fd = fd;
        s->owns_socket = strcmp(name, SOCKET_OURS) == 0;
    } else if (strncmp(name, TKV_KEEP_PREFIX, n) == 0 && passed->n_arenas < TKV_NOTIFY_MAX_ARENAS) {
        passed->arena[passed->n_arenas].fd = fd;
        passed->arena[passed->n_arenas++].id = strtoull(name + n, NULL, 16);
    } else {
        close(fd);
    }
}

int tkv_handover_take(struct tkv_server *s, struct tkv_notify_sockets *passed)
{
    const char *path = s->config.handover;
    char name[NAME_BYTES];
    const char *wrong;
    bool made_file = false;
    int from, fd;

    if (!path[0])
        return EX_OK;
    from = connect_to(path);
    while (from >= 0 && receive(from, name, &fd) == 0)
        if (fd >= 0)
            take_one(s, passed, name, fd);
    if (from >= 0) {
        tkv_log(&s->log, TKV_LOG_INFO, "msg=\"taken over from the daemon before\" arenas=%zu",
                passed->n_arenas);
        close(from);
    }
    s->handover.listen_fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    wrong = s->handover.listen_fd < 0
                ? strerror(errno)
                : tkv_listen_unix(s->handover.listen_fd, path, 0600, &made_file);
    if (!wrong)
        return EX_OK;
    tkv_log(&s->log, TKV_LOG_ERROR,
            "msg=\"cannot listen for a successor\" socket=\"%s\" why=\"%s\"", path, wrong);
    return EX_UNAVAILABLE;
}

/* ---- the old one ---------------------------------------------------------------------------- */

static void on_successor(uv_poll_t *poll, int status, int events)
{
    struct tkv_server *const s = poll->data;
    struct ucred peer = {.uid = (uid_t)-1};
    socklen_t n = sizeof(peer);
    const int fd = accept4(s->handover.listen_fd, NULL, NULL, SOCK_CLOEXEC);

    (void)status;
    (void)events;
    if (fd < 0)
        return;
    if (s->draining || getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &n) < 0 ||
        peer.uid != geteuid()) {
        close(fd);
        return;
    }
    tkv_log(&s->log, TKV_LOG_INFO, "msg=\"handing over\" pid=%d", (int)peer.pid);
    s->handover.peer_fd = fd;
    unlink(s->config.handover); /* the successor makes its own */
    tkv_server_drain(s);
}

void tkv_handover_start(struct tkv_server *s)
{
    if (s->handover.listen_fd < 0)
        return;
    uv_poll_init(&s->loop, &s->handover.poll, s->handover.listen_fd);
    s->handover.poll.data = s;
    uv_poll_start(&s->handover.poll, UV_READABLE, on_successor);
}

static void send_one(int to, const char *name, int fd)
{
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control = {.bytes = {0}};
    struct iovec iov = {(char *)(uintptr_t)name, strlen(name)};
    struct msghdr m = {.msg_iov = &iov,
                       .msg_iovlen = 1,
                       .msg_control = control.bytes,
                       .msg_controllen = sizeof(control.bytes)};
    ssize_t sent;

    control.header = (struct cmsghdr){
        .cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
    memcpy(CMSG_DATA(&control.header), &fd, sizeof(fd));
    do {
        sent = sendmsg(to, &m, MSG_NOSIGNAL);
    } while (sent < 0 && errno == EINTR);
}

static bool is_first(const struct tkv_server *s, const struct tkv_session_entry *e)
{
    for (size_t b = 0; b < TKV_SESSION_BUCKETS; b++)
        for (const struct tkv_session_entry *o = s->sessions.bucket[b]; o; o = o->next) {
            if (o == e)
                return true;
            if (o->arena_id == e->arena_id)
                return false;
        }
    return true;
}

void tkv_handover_give(struct tkv_server *s)
{
    const int to = s->handover.peer_fd;
    char name[NAME_BYTES];

    if (to < 0)
        return;
    if (s->listen_fd >= 0)
        send_one(to, s->owns_socket ? SOCKET_OURS : SOCKET, s->listen_fd);
    s->owns_socket = false; /* its file stays */
    for (size_t b = 0; b < TKV_SESSION_BUCKETS; b++)
        for (const struct tkv_session_entry *e = s->sessions.bucket[b]; e; e = e->next) {
            if (e->arena_id == 0 || !is_first(s, e))
                continue;
            (void)snprintf(name, sizeof(name), TKV_KEEP_PREFIX "%016llx",
                           (unsigned long long)e->arena_id);
            send_one(to, name, tkv_session_arena_own_fd(e->session));
        }
}

void tkv_handover_deinit(struct tkv_server *s)
{
    struct tkv_handover *h = &s->handover;

    if (h->listen_fd >= 0) {
        close(h->listen_fd);
        if (h->peer_fd < 0)
            unlink(s->config.handover);
    }
    if (h->peer_fd >= 0)
        close(h->peer_fd); /* last: now the successor goes on */
    tkv_handover_init(h);
}
