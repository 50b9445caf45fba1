/*
 * Frames out, frames in. Nothing the daemon says is believed before it is checked:
 * not sizes, not the type, not that text is text. Once a byte of a request
 * is on its way, only a whole and well-formed reply keeps the connection open.
 */
#include "client/client.h"

#include <stdlib.h>
#include <string.h>

#include "proto/trikv.pb-c.h"

size_t tkv_tensors_bytes(const struct tkv_tensor *t, uint32_t n)
{
    size_t total = 0;

    for (uint32_t i = 0; i < n; i++) {
        if (total > SIZE_MAX - TRIKV_FRAME_ALIGN ||
            __builtin_add_overflow(tkv_align(total, TRIKV_FRAME_ALIGN), t[i].bytes, &total))
            return SIZE_MAX;
    }
    return total;
}

/* Pack into c->message, zeros after it for the padding. */
static int pack(struct trikv_client *c, const ProtobufCMessage *message, uint32_t *bytes)
{
    const size_t n = message ? protobuf_c_message_get_packed_size(message) : 0;

    if (n > TRIKV_MAX_HEADER_BYTES)
        return tkv_fail(&c->report, TRIKV_E_TOO_LARGE, "message of %zu bytes, at most %d", n,
                        TRIKV_MAX_HEADER_BYTES);
    if (message)
        protobuf_c_message_pack(message, c->message);
    memset(c->message + n, 0, TRIKV_FRAME_ALIGN);
    *bytes = (uint32_t)n;
    return 0;
}

/* Tensors one after the other, each from a multiple of 64 on, straight from where they are. */
static size_t list_tensors(struct iovec *iov, const struct tkv_tensor *t, uint32_t n)
{
    static const uint8_t zeros[TRIKV_FRAME_ALIGN];
    size_t used = 0;

    for (uint32_t i = 0; i < n; i++) {
        const size_t padding = tkv_align(t[i].bytes, TRIKV_FRAME_ALIGN) - t[i].bytes;

        iov[used++] = (struct iovec){.iov_base = t[i].data, .iov_len = t[i].bytes};
        if (i + 1 < n)
            iov[used++] = (struct iovec){.iov_base = (void *)(uintptr_t)zeros, .iov_len = padding};
    }
    return used;
}

static int send_frame(struct trikv_client *c, const struct tkv_request *r, uint32_t message_bytes)
{
    struct trikv_frame f = {
        .type = r->type,
        .header_bytes = message_bytes,
        .payload_bytes = tkv_tensors_bytes(r->tensors, r->n_tensors),
        .sequence = ++c->sequence,
        .n_fds = r->pass_fd >= 0,
    };
    struct iovec iov[2 + 2 * TKV_REQUEST_MAX_TENSORS];
    size_t n = 2;

    tkv_frame_seal(&f, c->message);
    iov[0] = (struct iovec){.iov_base = &f, .iov_len = sizeof(f)};
    iov[1] = (struct iovec){.iov_base = c->message,
                            .iov_len = message_bytes + tkv_frame_padding(message_bytes)};
    n += list_tensors(iov + n, r->tensors, r->n_tensors);
    return tkv_stream_send(&c->stream, iov, n, r->pass_fd, &c->report);
}

static int receive(struct trikv_client *c, void *data, size_t bytes)
{
    struct iovec iov = {.iov_base = data, .iov_len = bytes};

    return tkv_stream_receive(&c->stream, &iov, 1, &c->report);
}

static int bad_reply(struct trikv_client *c, const char *what)
{
    return tkv_fail(&c->report, TRIKV_E_PROTOCOL, "reply of the daemon: %s", what);
}

static int check_fds(struct trikv_client *c, const struct trikv_frame *f)
{
    if (c->stream.n_truncated > 0 || c->stream.n_passed != f->n_fds)
        return tkv_fail(&c->report, TRIKV_E_PROTOCOL,
                        "reply of the daemon: %u descriptors announced, %u%s received", f->n_fds,
                        c->stream.n_passed, c->stream.n_truncated ? " or more" : "");
    return 0;
}

/* A daemon that could not read our header may not know its sequence number: 0 then. */
static int check_kind(struct trikv_client *c, const struct tkv_request *r,
                      const struct trikv_frame *f)
{
    const bool error = f->type == TRIKV_REPLY_ERROR;

    if (!error && f->type != (TRIKV_REPLY | r->type))
        return tkv_fail(&c->report, TRIKV_E_PROTOCOL, "reply of the daemon: type 0x%x, want 0x%x",
                        f->type, TRIKV_REPLY | r->type);
    if (f->sequence != c->sequence && !(error && f->sequence == 0))
        return tkv_fail(&c->report, TRIKV_E_PROTOCOL,
                        "reply of the daemon: sequence %llu, want %llu",
                        (unsigned long long)f->sequence, (unsigned long long)c->sequence);
    return 0;
}

/* Header and message of the reply, the message left in c->message. */
static int receive_frame(struct trikv_client *c, const struct tkv_request *r, struct trikv_frame *f)
{
    const char *why = NULL;
    size_t padded;
    int e = receive(c, f, sizeof(*f));

    if (e)
        return e;
    if (tkv_frame_check(f, c->max_payload_bytes, &why))
        return bad_reply(c, why);
    padded = f->header_bytes + tkv_frame_padding(f->header_bytes);
    e = receive(c, c->message, padded);
    if (e)
        return e;
    if (tkv_frame_check_message(f, c->message, &why))
        return bad_reply(c, why);
    for (size_t i = f->header_bytes; i < padded; i++) {
        if (c->message[i] != 0)
            return bad_reply(c, "padding is not zero");
    }
    e = check_kind(c, r, f);
    return e ? e : check_fds(c, f);
}

void tkv_client_copy_text(char *to, size_t n, const char *from)
{
    size_t i = 0;

    for (; i + 1 < n && from[i]; i++)
        to[i] = (unsigned char)from[i] < 0x20 || from[i] == 0x7f ? '?' : from[i];
    to[i] = '\0';
}

/* What the daemon says went wrong: its error is returned, its text becomes ours. */
static int take_error(struct trikv_client *c, const struct trikv_frame *f)
{
    Trikv__Error *m;
    char text[sizeof(c->report.text)];
    int error;

    if (f->payload_bytes > 0 || f->n_fds > 0)
        return bad_reply(c, "an error with payload or descriptor");
    m = trikv__error__unpack(NULL, f->header_bytes, c->message);
    if (!m)
        return bad_reply(c, "error message does not decode");
    error = m->code;
    tkv_client_copy_text(text, sizeof(text), m->message);
    trikv__error__free_unpacked(m, NULL);
    if (error <= TRIKV_OK || error >= TRIKV_E_CONNECT)
        return tkv_fail(&c->report, TRIKV_E_PROTOCOL,
                        "reply of the daemon: error number %d is not one", error);
    return tkv_fail(&c->report, error, "%s", text);
}

/* Read and forget. */
static int skip(struct trikv_client *c, size_t bytes)
{
    uint8_t scratch[4096];

    while (bytes > 0) {
        const size_t n = bytes < sizeof(scratch) ? bytes : sizeof(scratch);
        const int e = receive(c, scratch, n);

        if (e)
            return e;
        bytes -= n;
    }
    return 0;
}

static int receive_outputs(struct trikv_client *c, const struct tkv_request *r,
                           const struct trikv_frame *f)
{
    const size_t want = tkv_tensors_bytes(r->outputs, r->n_outputs);

    if (f->payload_bytes != want)
        return tkv_fail(&c->report, TRIKV_E_PROTOCOL,
                        "reply of the daemon: want %zu bytes of payload, got %llu", want,
                        (unsigned long long)f->payload_bytes);
    for (uint32_t i = 0; i < r->n_outputs; i++) {
        const struct tkv_tensor *t = &r->outputs[i];
        const bool last = i + 1 == r->n_outputs;
        const size_t padding = last ? 0 : tkv_align(t->bytes, TRIKV_FRAME_ALIGN) - t->bytes;
        int e = t->data ? receive(c, t->data, t->bytes) : skip(c, t->bytes);

        if (!e)
            e = skip(c, padding);
        if (e)
            return e;
    }
    return 0;
}

/* Memory grows with what has come, not with what was announced. */
static int receive_payload(struct trikv_client *c, struct tkv_request *r, uint64_t bytes)
{
    enum { STEP_BYTES = 1 << 20 };

    while (r->payload_bytes < bytes) {
        const uint64_t left = bytes - r->payload_bytes;
        const size_t grown = r->payload_bytes > STEP_BYTES ? r->payload_bytes : STEP_BYTES;
        const size_t n = left < grown ? (size_t)left : grown;
        uint8_t *more = realloc(r->payload, r->payload_bytes + n);
        int e;

        if (!more)
            return tkv_fail(&c->report, TRIKV_E_DISCONNECTED, "no memory for a payload of %llu",
                            (unsigned long long)bytes);
        r->payload = more;
        e = receive(c, more + r->payload_bytes, n);
        if (e)
            return e;
        r->payload_bytes += n;
    }
    return 0;
}

static int receive_reply(struct trikv_client *c, struct tkv_request *r, bool *answered)
{
    struct trikv_frame f;
    int e = receive_frame(c, r, &f);

    if (e)
        return e;
    if (f.type == TRIKV_REPLY_ERROR) {
        e = take_error(c, &f);
        *answered = e != TRIKV_E_PROTOCOL && f.sequence != 0;
        return e;
    }
    if (f.n_fds != r->takes_fds)
        return bad_reply(c, "a descriptor too many or too few");
    r->reply = protobuf_c_message_unpack(r->reply_type, NULL, f.header_bytes, c->message);
    if (!r->reply)
        return bad_reply(c, "message does not decode");
    for (size_t i = 0; i < TRIKV_MAX_MESSAGE_FDS; i++) {
        r->fd[i] = c->stream.passed_fd[i];
        c->stream.passed_fd[i] = -1;
    }
    e = r->takes_payload ? receive_payload(c, r, f.payload_bytes) : receive_outputs(c, r, &f);
    if (!e)
        e = check_fds(c, &f); /* none may come with the payload either */
    *answered = !e;
    return e;
}

/* A daemon that refuses a request half-way says why and closes: its reply is worth more
 * than "broken pipe". */
static int explain_failed_send(struct trikv_client *c, struct tkv_request *r, int error)
{
    const struct tkv_report first = c->report;
    bool answered = false;
    int e = receive_reply(c, r, &answered);

    if (e == TRIKV_E_DISCONNECTED || e == TRIKV_E_DEADLINE || e == 0) {
        c->report = first;
        return error;
    }
    return e;
}

int tkv_request_run(struct trikv_client *c, struct tkv_request *r)
{
    uint32_t message_bytes = 0;
    bool answered = false;
    int e;

    if (c->stream.fd < 0)
        return tkv_fail(&c->report, TRIKV_E_DISCONNECTED, "the connection is closed");
    if (c->ring && tkv_ring_is_in_flight(c->ring))
        return tkv_fail(&c->report, TRIKV_E_STATE,
                        "steps are in flight: trikv_ring_wait for them first");
    e = pack(c, r->message, &message_bytes);
    if (e)
        return e;
    tkv_stream_start(&c->stream);
    e = send_frame(c, r, message_bytes);
    if (e == TRIKV_E_DISCONNECTED)
        e = explain_failed_send(c, r, e);
    else if (!e)
        e = receive_reply(c, r, &answered);
    if (!answered || e == TRIKV_E_VERSION || e == TRIKV_E_CHECKSUM)
        tkv_stream_close(&c->stream);
    if (e)
        tkv_request_deinit(r);
    return e;
}

void tkv_request_deinit(struct tkv_request *r)
{
    if (r->reply)
        protobuf_c_message_free_unpacked(r->reply, NULL);
    free(r->payload);
    for (size_t i = 0; i < TRIKV_MAX_MESSAGE_FDS; i++)
        tkv_fd_close(&r->fd[i]);
    r->reply = NULL;
    r->payload = NULL;
    r->payload_bytes = 0;
}
