/* Building, sending and reading frames; see wire.h. */
#include "tests/wire.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "proto/errors.h"
#include "proto/limits.h"
#include "proto/trikv.pb-c.h"
#include "tests/rng.h"

int wire_connect(const char *path)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    snprintf(a.sun_path, sizeof(a.sun_path), "%s", path);
    if (fd >= 0 && connect(fd, (const struct sockaddr *)&a, sizeof(a)) == 0)
        return fd;
    if (fd >= 0)
        close(fd);
    return -1;
}

uint8_t *wire_frame(uint16_t type, uint64_t sequence, const ProtobufCMessage *message,
                    const void *payload, size_t payload_bytes, unsigned n_fds, size_t *n)
{
    const size_t m = message ? protobuf_c_message_get_packed_size(message) : 0;
    const size_t padding = tkv_frame_padding((uint32_t)m);
    struct trikv_frame f = {.type = type,
                            .header_bytes = (uint32_t)m,
                            .payload_bytes = payload_bytes,
                            .sequence = sequence,
                            .n_fds = n_fds};
    uint8_t *frame;

    *n = sizeof(f) + m + padding + payload_bytes;
    frame = calloc(1, *n);
    assert_non_null(frame);
    if (message)
        protobuf_c_message_pack(message, frame + sizeof(f));
    tkv_frame_seal(&f, frame + sizeof(f));
    memcpy(frame, &f, sizeof(f));
    if (payload_bytes)
        memcpy(frame + sizeof(f) + m + padding, payload, payload_bytes);
    return frame;
}

void wire_reseal(uint8_t *frame)
{
    struct trikv_frame f;

    memcpy(&f, frame, sizeof(f));
    f.crc32c = 0;
    f.crc32c = tkv_crc32c(tkv_crc32c(0, &f, sizeof(f)), frame + sizeof(f), f.header_bytes);
    memcpy(frame, &f, sizeof(f));
}

bool wire_write(int fd, const void *data, size_t n, int passed)
{
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control = {{0}};
    char *const copy = malloc(n ? n : 1);
    size_t at = 0;

    assert_non_null(copy);
    memcpy(copy, data, n);
    while (at < n) {
        struct iovec iov = {copy + at, n - at};
        struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
        ssize_t sent;

        if (at == 0 && passed >= 0) {
            msg.msg_control = &control;
            msg.msg_controllen = sizeof(control.bytes);
            CMSG_FIRSTHDR(&msg)->cmsg_level = SOL_SOCKET;
            CMSG_FIRSTHDR(&msg)->cmsg_type = SCM_RIGHTS;
            CMSG_FIRSTHDR(&msg)->cmsg_len = CMSG_LEN(sizeof(int));
            memcpy(CMSG_DATA(CMSG_FIRSTHDR(&msg)), &passed, sizeof(int));
        }
        sent = sendmsg(fd, &msg, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent < 0)
            break;
        at += (size_t)sent;
    }
    free(copy);
    return at == n;
}

bool wire_taken(int fd)
{
    int n_left = 1;

    for (int i = 0; i < WIRE_TIMEOUT_MS && n_left > 0; i++) {
        if (ioctl(fd, TIOCOUTQ, &n_left) < 0)
            return false;
        if (n_left > 0)
            usleep(1000);
    }
    return n_left == 0;
}

/* n bytes: 1; 0: end of the stream before them; -1: time is up. passed[2], or NULL. */
static int read_exactly(int fd, void *data, size_t n, int timeout_ms, int *passed)
{
    size_t at = 0;

    while (at < n) {
        union {
            char bytes[CMSG_SPACE(2 * sizeof(int))];
            struct cmsghdr align;
        } control;
        struct iovec iov = {(char *)data + at, n - at};
        struct msghdr msg = {.msg_iov = &iov,
                             .msg_iovlen = 1,
                             .msg_control = &control,
                             .msg_controllen = sizeof(control)};
        struct pollfd p = {.fd = fd, .events = POLLIN};
        ssize_t got;

        if (poll(&p, 1, timeout_ms) <= 0)
            return -1;
        got = recvmsg(fd, &msg, MSG_CMSG_CLOEXEC);
        if (got <= 0)
            return 0;
        if (CMSG_FIRSTHDR(&msg) && passed)
            memcpy(passed, CMSG_DATA(CMSG_FIRSTHDR(&msg)),
                   CMSG_FIRSTHDR(&msg)->cmsg_len - CMSG_LEN(0));
        at += (size_t)got;
    }
    return 1;
}

static void read_error(struct wire_reply *r)
{
    Trikv__Error *e = trikv__error__unpack(NULL, r->frame.header_bytes, r->message);

    assert_non_null(e);
    r->code = e->code;
    snprintf(r->text, sizeof(r->text), "%s", e->message);
    trikv__error__free_unpacked(e, NULL);
}

int wire_read(int fd, struct wire_reply *r, int timeout_ms)
{
    const char *why = NULL;
    uint8_t padding[TRIKV_FRAME_ALIGN];
    int passed[2] = {-1, -1};
    int e;

    memset(r, 0, sizeof(*r));
    e = read_exactly(fd, &r->frame, sizeof(r->frame), timeout_ms, passed);
    r->fd = passed[0];
    r->fd2 = passed[1];
    if (e <= 0)
        return e;
    if (tkv_frame_check(&r->frame, UINT64_C(1) << 40, &why))
        return -1;
    r->message = malloc(r->frame.header_bytes + 1);
    r->payload = malloc(r->frame.payload_bytes + 1);
    assert_non_null(r->message);
    assert_non_null(r->payload);
    e = read_exactly(fd, r->message, r->frame.header_bytes, timeout_ms, NULL);
    if (e > 0)
        e = read_exactly(fd, padding, tkv_frame_padding(r->frame.header_bytes), timeout_ms, NULL);
    if (e > 0)
        e = read_exactly(fd, r->payload, r->frame.payload_bytes, timeout_ms, NULL);
    if (e > 0 && tkv_frame_check_message(&r->frame, r->message, &why))
        e = -1;
    if (e > 0 && r->frame.type == TRIKV_REPLY_ERROR)
        read_error(r);
    if (e <= 0)
        wire_reply_deinit(r);
    return e;
}

void wire_reply_deinit(struct wire_reply *r)
{
    free(r->message);
    free(r->payload);
    if (r->fd >= 0)
        close(r->fd);
    if (r->fd2 > 0)
        close(r->fd2);
    r->message = r->payload = NULL;
    r->fd = r->fd2 = -1;
}

int wire_call(int fd, uint16_t type, const ProtobufCMessage *message, const void *payload,
              size_t payload_bytes, int passed, struct wire_reply *r)
{
    size_t n;
    uint8_t *frame =
        wire_frame(type, type * 1000u + 7, message, payload, payload_bytes, passed >= 0, &n);

    assert_true(wire_write(fd, frame, n, passed));
    free(frame);
    assert_int_equal(wire_read(fd, r, WIRE_TIMEOUT_MS), 1);
    assert_int_equal(r->frame.sequence, type * 1000u + 7);
    if (r->code == 0)
        assert_int_equal(r->frame.type, type | TRIKV_REPLY);
    return r->code;
}

void wire_hello(int fd)
{
    Trikv__HelloRequest m = TRIKV__HELLO_REQUEST__INIT;
    struct wire_reply r;

    m.protocol_min = TRIKV_PROTOCOL_MIN;
    m.protocol_max = TRIKV_PROTOCOL_MAX;
    assert_int_equal(wire_call(fd, TRIKV_HELLO, &m.base, NULL, 0, -1, &r), 0);
    wire_reply_deinit(&r);
}

Trikv__Layer wire_layer(uint32_t n_layers)
{
    Trikv__Layer layer = TRIKV__LAYER__INIT;

    layer.n_q_heads = WIRE_N_Q;
    layer.n_kv_heads = 2;
    layer.head_dim_k = layer.head_dim_v = WIRE_DIM;
    layer.has_repeat = 1;
    layer.repeat = n_layers;
    return layer;
}

uint64_t wire_open_as(int fd, const Trikv__OpenRequest *m, int *code)
{
    Trikv__OpenReply *reply;
    struct wire_reply r;
    uint64_t id = 0;

    *code = wire_call(fd, TRIKV_OPEN, &m->base, NULL, 0, -1, &r);
    if (*code == 0) {
        reply = trikv__open_reply__unpack(NULL, r.frame.header_bytes, r.message);
        assert_non_null(reply);
        id = reply->session;
        trikv__open_reply__free_unpacked(reply, NULL);
    }
    wire_reply_deinit(&r);
    return id;
}

uint64_t wire_open(int fd, uint32_t n_layers, int *code)
{
    Trikv__Layer layer = wire_layer(n_layers), *layers = &layer;
    Trikv__Policy policy = TRIKV__POLICY__INIT;
    Trikv__OpenRequest m = TRIKV__OPEN_REQUEST__INIT;
    char tq4[] = "tq4", none[] = "none";

    policy.codec_k = policy.codec_v = tq4;
    policy.method = none;
    m.n_layers = 1;
    m.layers = &layers;
    m.policy = &policy;
    return wire_open_as(fd, &m, code);
}

void wire_daemon_stats(int fd, struct wire_daemon_stats *s)
{
    struct wire_reply r;
    Trikv__DaemonStats *m;

    assert_int_equal(wire_call(fd, TRIKV_DAEMON_STATS, NULL, NULL, 0, -1, &r), 0);
    m = trikv__daemon_stats__unpack(NULL, r.frame.header_bytes, r.message);
    assert_non_null(m);
    *s = (struct wire_daemon_stats){m->memory_used_bytes, m->n_sessions, m->n_connections,
                                    m->n_bad_frames, m->n_requests};
    trikv__daemon_stats__free_unpacked(m, NULL);
    wire_reply_deinit(&r);
}

int wire_connect_hello(const char *path)
{
    const int fd = wire_connect(path);

    assert_true(fd >= 0);
    wire_hello(fd);
    return fd;
}

/* K, V, Q of n tokens, each a multiple of 64 bytes long. */
float *wire_payload(struct rng *rng, size_t n, size_t *bytes)
{
    const size_t n_floats = n * (2 * WIRE_K_FLOATS + WIRE_Q_FLOATS);
    float *p = malloc(n_floats * sizeof(*p));

    assert_non_null(p);
    for (size_t i = 0; i < n_floats; i++)
        p[i] = rng_gauss(rng);
    *bytes = n_floats * sizeof(*p);
    return p;
}

int wire_append_attend(int fd, uint64_t session, uint32_t layer, const void *payload, size_t bytes,
                       uint32_t n, struct wire_reply *r)
{
    Trikv__TokensRequest m = TRIKV__TOKENS_REQUEST__INIT;

    m.session = session;
    m.layer = layer;
    m.n_tokens = n;
    return wire_call(fd, TRIKV_APPEND_ATTEND, &m.base, payload, bytes, -1, r);
}

int wire_session_call(int fd, uint16_t type, uint64_t session, struct wire_reply *r)
{
    Trikv__SessionRequest m = TRIKV__SESSION_REQUEST__INIT;

    m.session = session;
    return wire_call(fd, type, &m.base, NULL, 0, -1, r);
}

void wire_close_session(int fd, uint64_t session)
{
    struct wire_reply r;

    assert_int_equal(wire_session_call(fd, TRIKV_CLOSE, session, &r), 0);
    wire_reply_deinit(&r);
}

/* A client that does what clients do. */
void wire_serve_well(const char *path)
{
    const int fd = wire_connect_hello(path);
    struct rng rng = {7};
    struct wire_reply r;
    size_t bytes;
    float *p = wire_payload(&rng, 3, &bytes);
    int code;
    const uint64_t id = wire_open(fd, 2, &code);

    assert_int_equal(code, 0);
    assert_int_equal(wire_append_attend(fd, id, 1, p, bytes, 3, &r), 0);
    assert_int_equal(r.frame.payload_bytes, 3 * WIRE_Q_FLOATS * 4 + 3 * WIRE_N_Q * 4);
    wire_reply_deinit(&r);
    wire_close_session(fd, id);
    free(p);
    close(fd);
}

int wire_plain_call(int fd, uint16_t type, const ProtobufCMessage *m, char *text)
{
    struct wire_reply r;
    const int code = wire_call(fd, type, m, NULL, 0, -1, &r);

    if (text)
        snprintf(text, sizeof(r.text), "%s", r.text);
    wire_reply_deinit(&r);
    return code;
}
