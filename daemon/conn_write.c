/* Building a reply and writing it, as far as the socket takes it. */
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "daemon/conn_priv.h"
#include "daemon/message.h"
#include "proto/errors.h"
#include "proto/limits.h"
#include "proto/trikv.pb-c.h"

enum { N_PARTS = 4 };

/* The parts of the frame that are not sent yet; returns how many. */
static unsigned remaining(const struct tkv_conn *c, struct iovec *iov)
{
    static const char zeros[TRIKV_FRAME_ALIGN];
    /* sendmsg only reads, but iovec has no const form */
    const union {
        const void *in;
        void *out;
    } part[N_PARTS] = {{&c->out}, {c->out_message.data}, {zeros}, {c->out_payload}};
    const uint64_t size[N_PARTS] = {sizeof(c->out), c->out.header_bytes,
                                    tkv_frame_padding(c->out.header_bytes), c->out.payload_bytes};
    uint64_t skip = c->n_sent_bytes;
    unsigned n = 0;

    for (unsigned i = 0; i < N_PARTS; i++) {
        const uint64_t done = skip < size[i] ? skip : size[i];

        skip -= done;
        if (done < size[i])
            iov[n++] = (struct iovec){(char *)part[i].out + done, size[i] - done};
    }
    return n;
}

static ssize_t send_some(struct tkv_conn *c, struct iovec *iov, unsigned n_iov)
{
    union {
        char bytes[CMSG_SPACE(TRIKV_MAX_MESSAGE_FDS * sizeof(int))];
        struct cmsghdr align;
    } control = {{0}};
    struct msghdr msg = {.msg_iov = iov, .msg_iovlen = n_iov};
    ssize_t n;

    if (c->n_sent_bytes == 0 && c->n_out_fds > 0) {
        const size_t bytes = c->n_out_fds * sizeof(int);
        struct cmsghdr *h;

        msg.msg_control = &control;
        msg.msg_controllen = CMSG_SPACE(bytes);
        h = CMSG_FIRSTHDR(&msg);
        h->cmsg_level = SOL_SOCKET;
        h->cmsg_type = SCM_RIGHTS;
        h->cmsg_len = CMSG_LEN(bytes);
        memcpy(CMSG_DATA(h), c->out_fd, bytes);
    }
    do {
        n = sendmsg(c->fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL);
    } while (n < 0 && errno == EINTR);
    return n;
}

void tkv_conn_close_out_fds(struct tkv_conn *c)
{
    for (unsigned i = 0; i < c->n_out_fds; i++)
        close(c->out_fd[i]);
    c->n_out_fds = 0;
}

void tkv_conn_write(struct tkv_conn *c)
{
    struct iovec iov[N_PARTS];
    unsigned n_iov;

    while ((n_iov = remaining(c, iov)) > 0) {
        const ssize_t n = send_some(c, iov, n_iov);

        if (n < 0 && errno != EAGAIN) {
            tkv_conn_close(c, "write error");
            return;
        }
        if (n < 0) {
            tkv_conn_set_timer(c, TKV_TIMER_REPLY);
            tkv_conn_arm(c, UV_WRITABLE | UV_DISCONNECT);
            return;
        }
        c->n_sent_bytes += (uint64_t)n;
    }
    tkv_conn_close_out_fds(c);
    tkv_conn_set_timer(c, TKV_TIMER_OFF);
    tkv_conn_next_frame(c);
}

static void start_writing(struct tkv_conn *c, uint16_t type, size_t message_bytes)
{
    c->out.type = type;
    c->out.header_bytes = (uint32_t)message_bytes;
    c->out.sequence = c->in.sequence;
    c->out.n_fds = c->n_out_fds;
    tkv_frame_seal(&c->out, c->out_message.data);
    c->n_sent_bytes = 0;
    c->state = TKV_CONN_WRITING;
    tkv_conn_write(c);
}

/* Pack the message; the descriptors are taken in any case. */
static void reply(struct tkv_conn *c, const ProtobufCMessage *message)
{
    const size_t n = protobuf_c_message_get_packed_size(message);
    struct tkv_report why;

    if (c->state == TKV_CONN_CLOSING) {
        tkv_conn_close_out_fds(c);
        return;
    }
    if (n > TRIKV_MAX_HEADER_BYTES || !tkv_buffer_need(&c->out_message, c->budget, n)) {
        tkv_fail(
            &why, n > TRIKV_MAX_HEADER_BYTES ? TRIKV_E_TOO_LARGE : TRIKV_E_MEMORY_CAP,
            "the reply needs a message of %zu bytes, which is over the limit or the memory cap", n);
        tkv_conn_fail(c, &why);
        return;
    }
    protobuf_c_message_pack(message, c->out_message.data);
    start_writing(c, c->in.type | TRIKV_REPLY, n);
}

void tkv_conn_reply(struct tkv_conn *c, const ProtobufCMessage *message, const void *payload,
                    uint64_t payload_bytes, int fd)
{
    c->out.payload_bytes = payload_bytes;
    c->out_payload = payload;
    c->out_fd[0] = fd;
    c->n_out_fds = fd >= 0;
    reply(c, message);
}

void tkv_conn_reply_fds(struct tkv_conn *c, const ProtobufCMessage *message, const int *fd,
                        unsigned n_fds)
{
    c->out.payload_bytes = 0;
    c->out_payload = NULL;
    memcpy(c->out_fd, fd, n_fds * sizeof(*fd));
    c->n_out_fds = n_fds;
    reply(c, message);
}

void tkv_conn_fail(struct tkv_conn *c, const struct tkv_report *why)
{
    Trikv__Error message = TRIKV__ERROR__INIT;
    char text[sizeof(why->text)];
    size_t n_text;
    size_t n;

    if (c->state == TKV_CONN_CLOSING)
        return;
    memcpy(text, why->text, sizeof(text));
    n_text = strlen(text);
    while (!tkv_utf8_check(text, n_text)) /* a long name may have been cut inside a letter */
        text[--n_text] = 0;
    message.code = why->error;
    message.message = text;
    n = trikv__error__get_packed_size(&message);
    if (!tkv_buffer_need(&c->out_message, c->budget, n)) {
        tkv_conn_close(c, "no memory for an error reply");
        return;
    }
    trikv__error__pack(&message, c->out_message.data);
    c->out.payload_bytes = 0;
    c->out_payload = NULL;
    tkv_conn_close_out_fds(c);
    start_writing(c, TRIKV_REPLY_ERROR, n);
}
