/*
 * Sockets as they are: partial reads and writes, signals, peers that vanish or trickle.
 * Everything that can happen to a byte stream ends here in one of two errors,
 * disconnected or deadline.
 */
#include "client/stream.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdbool.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "proto/errors.h"

static int64_t now_ms(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* The connection is made blocking, because a full backlog cannot be polled for on a Unix
 * socket; the send timeout bounds that wait. */
static int connect_within(int fd, const struct sockaddr_un *address, uint32_t timeout_ms)
{
    const struct timeval t = {.tv_sec = (time_t)(timeout_ms / 1000),
                              .tv_usec = (suseconds_t)(timeout_ms % 1000 * 1000)};
    int r;

    if (setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &t, sizeof(t)) < 0)
        return -1;
    do
        r = connect(fd, (const struct sockaddr *)address, sizeof(*address));
    while (r < 0 && errno == EINTR);
    return r < 0 ? -1 : fcntl(fd, F_SETFL, O_NONBLOCK);
}

int tkv_stream_open(struct tkv_stream *s, const char *path, uint32_t timeout_ms,
                    struct tkv_report *why)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd;

    *s = (struct tkv_stream){.fd = -1, .passed_fd = {-1, -1}, .timeout_ms = timeout_ms};
    if (strlen(path) >= sizeof(address.sun_path))
        return tkv_fail(why, TRIKV_E_CONNECT, "socket path has %zu bytes, at most %zu are possible",
                        strlen(path), sizeof(address.sun_path) - 1);
    memcpy(address.sun_path, path, strlen(path) + 1);
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return tkv_fail(why, TRIKV_E_CONNECT, "socket: %s", strerror(errno));
    if (connect_within(fd, &address, timeout_ms) < 0) {
        const int error = errno;

        close(fd);
        return tkv_fail(why, TRIKV_E_CONNECT, "connect %s: %s", path,
                        error == EAGAIN ? "the daemon does not accept" : strerror(error));
    }
    s->fd = fd;
    return 0;
}

void tkv_fd_close(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

static void close_passed(struct tkv_stream *s)
{
    for (size_t i = 0; i < TRIKV_MAX_MESSAGE_FDS; i++)
        tkv_fd_close(&s->passed_fd[i]);
}

void tkv_stream_close(struct tkv_stream *s)
{
    close_passed(s);
    tkv_fd_close(&s->fd);
}

void tkv_stream_start(struct tkv_stream *s)
{
    close_passed(s);
    s->n_passed = 0;
    s->n_truncated = 0;
    s->deadline_ms = now_ms() + s->timeout_ms;
}

int tkv_stream_left(const struct tkv_stream *s, int64_t *left_ms, struct tkv_report *why)
{
    *left_ms = s->deadline_ms - now_ms();
    if (*left_ms <= 0)
        return tkv_fail(why, TRIKV_E_DEADLINE, "no answer within %u ms", s->timeout_ms);
    return 0;
}

/* Errors and hang-ups count as ready: the call that follows says which it is. */
static int wait_ready(const struct tkv_stream *s, short events, struct tkv_report *why)
{
    struct pollfd p = {.fd = s->fd, .events = events};
    int64_t left_ms;
    int n;

    do {
        int e = tkv_stream_left(s, &left_ms, why);

        if (e)
            return e;
        n = poll(&p, 1, left_ms > INT_MAX ? INT_MAX : (int)left_ms);
        if (n < 0 && errno != EINTR)
            return tkv_fail(why, TRIKV_E_DISCONNECTED, "poll: %s", strerror(errno));
    } while (n <= 0);
    return 0;
}

/* Drop the first `done` bytes of an iovec list. */
static void advance(struct iovec **iov, size_t *n, size_t done)
{
    while (*n > 0 && done >= (*iov)->iov_len) {
        done -= (*iov)->iov_len;
        (*iov)++;
        (*n)--;
    }
    if (*n > 0) {
        (*iov)->iov_base = (char *)(*iov)->iov_base + done;
        (*iov)->iov_len -= done;
    }
}

union control {
    struct cmsghdr align;
    char bytes[CMSG_SPACE((TRIKV_MAX_MESSAGE_FDS + 1) *
                          sizeof(int))]; /* one more than allowed, to see it */
};

static void attach_fd(struct msghdr *m, union control *control, int fd)
{
    struct cmsghdr *c;

    memset(control, 0, sizeof(*control));
    m->msg_control = control->bytes;
    m->msg_controllen = CMSG_SPACE(sizeof(int));
    c = CMSG_FIRSTHDR(m);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(c), &fd, sizeof(int));
}

int tkv_stream_send(struct tkv_stream *s, struct iovec *iov, size_t n, int pass_fd,
                    struct tkv_report *why)
{
    union control control;

    advance(&iov, &n, 0);
    while (n > 0) {
        struct msghdr m = {.msg_iov = iov, .msg_iovlen = n};
        ssize_t done;
        int e = 0;

        if (pass_fd >= 0)
            attach_fd(&m, &control, pass_fd);
        done = sendmsg(s->fd, &m, MSG_NOSIGNAL);
        if (done > 0) {
            pass_fd = -1;
            advance(&iov, &n, (size_t)done);
        } else if (done < 0 && errno == EAGAIN) {
            e = wait_ready(s, POLLOUT, why);
        } else if (done < 0 && errno != EINTR) {
            e = tkv_fail(why, TRIKV_E_DISCONNECTED, "send: %s", strerror(errno));
        }
        if (e)
            return e;
    }
    return 0;
}

/* Keep as many as a frame may have, close the others: whoever reads the frame compares the count. */
static void take_fds(struct tkv_stream *s, struct msghdr *m)
{
    for (struct cmsghdr *c = CMSG_FIRSTHDR(m); c; c = CMSG_NXTHDR(m, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
            continue;
        for (size_t at = 0; at + sizeof(int) <= c->cmsg_len - CMSG_LEN(0); at += sizeof(int)) {
            int fd;

            memcpy(&fd, CMSG_DATA(c) + at, sizeof(int));
            if (s->n_passed < TRIKV_MAX_MESSAGE_FDS)
                s->passed_fd[s->n_passed] = fd;
            else
                close(fd);
            s->n_passed++;
        }
    }
    if (m->msg_flags & MSG_CTRUNC)
        s->n_truncated++;
}

/* From what was received ahead, as much as iov wants of it. */
static size_t take_ahead(struct tkv_stream *s, const struct iovec *iov)
{
    const size_t n = iov->iov_len < s->n_ahead ? iov->iov_len : s->n_ahead;

    memcpy(iov->iov_base, s->ahead + s->ahead_at, n);
    s->ahead_at += (uint32_t)n;
    s->n_ahead -= (uint32_t)n;
    return n;
}

/* One recvmsg, when there is something, into iov and what follows into the empty s->ahead. *done is 0 if there
 * was nothing after all. */
static int receive_some(struct tkv_stream *s, const struct iovec *iov, size_t *done,
                        struct tkv_report *why)
{
    union control control;
    struct iovec places[] = {*iov, {s->ahead, sizeof(s->ahead)}};
    struct msghdr m = {.msg_iov = places,
                       .msg_iovlen = sizeof(places) / sizeof(places[0]),
                       .msg_control = control.bytes,
                       .msg_controllen = sizeof(control.bytes)};
    const int e = wait_ready(s, POLLIN, why);
    ssize_t got;

    *done = 0;
    if (e)
        return e;
    got = recvmsg(s->fd, &m, MSG_CMSG_CLOEXEC);
    if (got > 0) {
        take_fds(s, &m);
        *done = (size_t)got < iov->iov_len ? (size_t)got : iov->iov_len;
        s->ahead_at = 0;
        s->n_ahead = (uint32_t)((size_t)got - *done);
        return 0;
    }
    if (got == 0)
        return tkv_fail(why, TRIKV_E_DISCONNECTED, "the daemon closed the connection");
    if (errno == EAGAIN || errno == EINTR)
        return 0;
    return tkv_fail(why, TRIKV_E_DISCONNECTED, "receive: %s", strerror(errno));
}

int tkv_stream_receive(struct tkv_stream *s, struct iovec *iov, size_t n, struct tkv_report *why)
{
    advance(&iov, &n, 0);
    while (n > 0) {
        size_t done;

        if (s->n_ahead > 0) {
            done = take_ahead(s, iov);
        } else {
            /* Each waits until the deadline at most, though a peer always has a little more. */
            const int e = receive_some(s, iov, &done, why);

            if (e)
                return e;
        }
        advance(&iov, &n, done);
    }
    return 0;
}
