/* Reading one frame: header, then message, padding and payload, each into its place. */
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "daemon/conn_priv.h"
#include "proto/errors.h"
#include "proto/limits.h"

enum {
    SINK_BYTES = 16 * 1024,
    TURN_BYTES = 4 << 20, /* of one connection before the loop looks at the others */
};

static void refuse_frame(struct tkv_conn *c, int error, const char *what)
{
    struct tkv_report why;

    tkv_fail(&why, error, "%s", what);
    c->close_after_reply = true;
    c->state = TKV_CONN_BUSY;
    tkv_conn_set_timer(c, TKV_TIMER_OFF);
    c->ops->bad_frame(c, &why);
    tkv_conn_fail(c, &why);
}

static uint64_t message_bytes(const struct tkv_conn *c)
{
    return c->in.header_bytes + tkv_frame_padding(c->in.header_bytes);
}

static uint64_t frame_bytes(const struct tkv_conn *c)
{
    return sizeof(c->in) + message_bytes(c) + c->in.payload_bytes;
}

/* Where the next bytes go; returns how many iovecs. sink[SINK_BYTES] takes what is not kept. */
static unsigned place(struct tkv_conn *c, struct iovec *iov, void *sink)
{
    uint64_t at = c->n_got_bytes;
    unsigned n = 0;

    if (at < sizeof(c->in)) {
        iov[0] = (struct iovec){(char *)&c->in + at, sizeof(c->in) - at};
        return 1;
    }
    at -= sizeof(c->in);
    if (at < message_bytes(c) && !c->message_dropped) {
        iov[n++] = (struct iovec){(char *)c->message.data + at, message_bytes(c) - at};
        at = message_bytes(c);
    }
    if (c->refusal.error) {
        const uint64_t rest = message_bytes(c) + c->in.payload_bytes - at;

        if (rest)
            iov[n++] = (struct iovec){sink, rest < SINK_BYTES ? rest : SINK_BYTES};
    } else if (c->in.payload_bytes) {
        at -= message_bytes(c);
        iov[n++] = (struct iovec){(char *)c->payload.data + at, c->in.payload_bytes - at};
    }
    return n;
}

/* Take the descriptor that came with the first bytes of a frame; close every other.
 * Returns NULL, or what is wrong. */
static const char *take_fds(struct tkv_conn *c, struct msghdr *msg)
{
    const char *wrong = msg->msg_flags & MSG_CTRUNC ? "descriptors: more than 1" : NULL;

    for (struct cmsghdr *h = CMSG_FIRSTHDR(msg); h; h = CMSG_NXTHDR(msg, h)) {
        size_t n;

        if (h->cmsg_level != SOL_SOCKET || h->cmsg_type != SCM_RIGHTS)
            continue;
        n = (h->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < n; i++) {
            int fd;

            memcpy(&fd, CMSG_DATA(h) + i * sizeof(fd), sizeof(fd));
            if (c->n_got_bytes == 0 && c->in_fd < 0 && n == 1 && !wrong) {
                c->in_fd = fd;
                continue;
            }
            tkv_foreign_close(c->foreign, fd);
            if (!wrong)
                wrong = n > 1 ? "descriptors: more than 1"
                              : "descriptors: not with the first byte of a frame";
        }
    }
    return wrong;
}

static bool need(struct tkv_conn *c, struct tkv_buffer *b, uint64_t bytes)
{
    while (!tkv_buffer_need(b, c->budget, bytes))
        if (!c->ops->reclaim(c))
            return false;
    return true;
}

/* The payload may be refused without losing the connection: then it is read and dropped. */
static void make_room(struct tkv_conn *c)
{
    if (!need(c, &c->message, message_bytes(c))) {
        c->message_dropped = true;
        tkv_fail(&c->refusal, TRIKV_E_MEMORY_CAP, "memory cap reached: no %llu bytes for a message",
                 (unsigned long long)message_bytes(c));
        return;
    }
    if (c->in.payload_bytes == 0)
        return;
    if (c->ops->admit(c, &c->refusal))
        return;
    if (!need(c, &c->payload, c->in.payload_bytes))
        tkv_fail(&c->refusal, TRIKV_E_MEMORY_CAP,
                 "memory cap reached: no %llu bytes for this payload",
                 (unsigned long long)c->in.payload_bytes);
}

/* False: the frame is refused and the connection is on its way out. */
static bool header_arrived(struct tkv_conn *c)
{
    const char *wrong = NULL;
    const int e = tkv_frame_check(&c->in, c->limits->max_payload_bytes, &wrong);

    if (e) {
        refuse_frame(c, e, wrong);
        return false;
    }
    if (c->in.n_fds != (c->in_fd >= 0 ? 1u : 0u)) {
        refuse_frame(c, TRIKV_E_PROTOCOL, "n_fds: not the number of descriptors that came");
        return false;
    }
    make_room(c);
    return true;
}

static void frame_arrived(struct tkv_conn *c)
{
    const char *wrong = NULL;

    tkv_conn_set_timer(c, TKV_TIMER_OFF);
    c->state = TKV_CONN_BUSY;
    if (!c->message_dropped) {
        const char *const message = c->message.data;
        const int e = tkv_frame_check_message(&c->in, message, &wrong);

        if (e) {
            refuse_frame(c, e, wrong);
            return;
        }
        for (uint64_t i = c->in.header_bytes; i < message_bytes(c); i++) {
            if (message[i]) {
                refuse_frame(c, TRIKV_E_PROTOCOL, "padding: want zeros");
                return;
            }
        }
    }
    if (!c->refusal.error) {
        c->ops->request(c);
        return;
    }
    c->ops->refused(c, &c->refusal);
    tkv_conn_fail(c, &c->refusal);
}

/* Bytes read, 0 at the end of the stream, -1 with errno; *wrong: what came with them. */
static ssize_t receive(struct tkv_conn *c, const char **wrong)
{
    struct tkv_foreign_control control;
    char sink[SINK_BYTES];
    struct iovec iov[2];
    struct msghdr msg = {.msg_iov = iov, .msg_control = &control};
    ssize_t n;

    msg.msg_iovlen = place(c, iov, sink);
    msg.msg_controllen = sizeof(control);
    do {
        n = recvmsg(c->fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    } while (n < 0 && errno == EINTR);
    *wrong = n > 0 ? take_fds(c, &msg) : NULL;
    return n;
}

/* Account for n bytes; true if more of this frame is wanted. */
static bool advance(struct tkv_conn *c, size_t n)
{
    const bool had_header = c->n_got_bytes >= sizeof(c->in);

    c->n_got_bytes += n;
    if (c->n_got_bytes < sizeof(c->in))
        return true;
    if (!had_header && !header_arrived(c))
        return false;
    if (c->n_got_bytes < frame_bytes(c))
        return true;
    frame_arrived(c);
    return false;
}

void tkv_conn_read(struct tkv_conn *c)
{
    size_t n_turn = 0;

    while (n_turn < TURN_BYTES) {
        const char *wrong;
        const ssize_t n = receive(c, &wrong);

        if (n < 0 && errno != EAGAIN) {
            tkv_conn_close(c, "read error");
            return;
        }
        if (n == 0) {
            tkv_conn_close(c, c->n_got_bytes ? "peer left inside a frame" : "peer left");
            return;
        }
        if (n < 0)
            break;
        if (wrong) {
            refuse_frame(c, TRIKV_E_PROTOCOL, wrong);
            return;
        }
        if (!advance(c, (size_t)n))
            return;
        n_turn += (size_t)n;
    }
    if (c->n_got_bytes)
        tkv_conn_set_timer(c, TKV_TIMER_FRAME);
}
