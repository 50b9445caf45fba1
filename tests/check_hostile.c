/*
 * trikvd against peers that are broken or mean: frames that are none, requests cut at any byte,
 * peers that stall, floods of descriptors and fields. After each batch the daemon must be
 * alive, serve a good client, and hold neither memory nor descriptors of those that are gone.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "proto/errors.h"
#include "proto/limits.h"
#include "proto/trikv.pb-c.h"
#include "tests/daemon_aid.h"
#include "tests/rng.h"
#include "tests/wire.h"

enum { SEED = 20261122, N_CYCLES = 1000, N_RANDOM = 600, N_MUTATIONS = 1200 };

static struct daemon_aid the_daemon;
static struct daemon_rest base;

static int start_daemon(void **state)
{
    daemon_start(&the_daemon, "memory:\n  cap: 64MiB\nlimits:\n  payload: 1MiB\n"
                              "  request_timeout: 300ms\nlisten:\n  max_connections: 400\n"
                              "workers:\n  threads: 2\nlog:\n  level: error\n");
    *state = &the_daemon;
    wire_serve_well(the_daemon.socket);
    base = daemon_rest_of(&the_daemon);
    return 0;
}

static int stop_daemon(void **state)
{
    return daemon_stop(*state, SIGTERM);
}

/*
 * Send bytes to a fresh connection that has said HELLO, and see how it ends: the code of an error
 * reply, 0 if a request was served, -1 if the connection was closed without a word, -2 if the daemon
 * still waits for more.
 */
static int provoke(const struct daemon_aid *d, const uint8_t *bytes, size_t n, char *text)
{
    const int fd = wire_connect_hello(d->socket);
    struct wire_reply r;
    int e;

    wire_write(fd, bytes, n, -1); /* the daemon may close before it has it all */
    shutdown(fd, SHUT_WR);
    e = wire_read(fd, &r, WIRE_TIMEOUT_MS);
    if (text)
        snprintf(text, 256, "%s", e == 1 ? r.text : "");
    if (e == 1)
        wire_reply_deinit(&r);
    close(fd);
    return e == 1 ? r.code : e == 0 ? -1 : -2;
}

static uint8_t *stats_frame(size_t *n)
{
    Trikv__SessionRequest m = TRIKV__SESSION_REQUEST__INIT;

    m.session = 99;
    return wire_frame(TRIKV_STATS, 5, &m.base, NULL, 0, 0, n);
}

struct corruption {
    const char *field;
    size_t offset;
    size_t bytes;
    uint64_t value;
    int code;
};

static void check_header_fields(void **state)
{
    static const struct corruption table[] = {
        {"magic", 0, 4, 0x12345678, TRIKV_E_PROTOCOL},
        {"magic", 0, 4, 0, TRIKV_E_PROTOCOL},
        {"version", 4, 2, 0, TRIKV_E_VERSION},
        {"version", 4, 2, 2, TRIKV_E_VERSION},
        {"version", 4, 2, 65535, TRIKV_E_VERSION},
        {"flags", 8, 4, 1, TRIKV_E_PROTOCOL},
        {"header_bytes", 12, 4, 65537, TRIKV_E_TOO_LARGE},
        {"header_bytes", 12, 4, UINT32_MAX, TRIKV_E_TOO_LARGE},
        {"payload_bytes", 16, 8, (1 << 20) + 1, TRIKV_E_TOO_LARGE},
        {"payload_bytes", 16, 8, UINT64_MAX, TRIKV_E_TOO_LARGE},
        {"n_fds", 36, 4, 1, TRIKV_E_PROTOCOL},
        {"n_fds", 36, 4, 2, TRIKV_E_PROTOCOL},
        {"n_fds", 36, 4, UINT32_MAX, TRIKV_E_PROTOCOL},
        {"reserved", 40, 1, 1, TRIKV_E_PROTOCOL},
        {"reserved", 63, 1, 255, TRIKV_E_PROTOCOL},
    };

    for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
        char text[256];
        size_t n;
        uint8_t *frame = stats_frame(&n);

        memcpy(frame + table[i].offset, &table[i].value, table[i].bytes);
        assert_int_equal(provoke(*state, frame, n, text), table[i].code);
        if (!strstr(text, table[i].field))
            fail_msg("%s: \"%s\" does not name the field", table[i].field, text);
        free(frame);
    }
    daemon_check_well(*state, &base);
}

/* Every byte of header, message and padding flipped: the checksum or a field's own check finds it. */
static void check_every_byte_flipped(void **state)
{
    size_t n;
    uint8_t *frame = stats_frame(&n);

    for (size_t i = 0; i < n; i++) {
        int code;

        frame[i] ^= 0x41;
        code = provoke(*state, frame, n, NULL);
        frame[i] ^= 0x41;
        /* A longer message or payload than there is: the end of the stream comes first. */
        if (code != TRIKV_E_PROTOCOL && code != TRIKV_E_CHECKSUM && code != TRIKV_E_TOO_LARGE &&
            code != TRIKV_E_VERSION && code != -1)
            fail_msg("byte %zu flipped: code %d", i, code);
    }
    free(frame);
    daemon_check_well(*state, &base);
}

static void check_random_bytes(void **state)
{
    struct rng rng = {SEED};
    uint8_t bytes[512];

    for (int i = 0; i < N_RANDOM; i++) {
        const size_t n = 1 + rng_below(&rng, sizeof(bytes));
        int code;

        for (size_t j = 0; j < n; j++)
            bytes[j] = (uint8_t)rng_next(&rng);
        code = provoke(*state, bytes, n, NULL);
        if (n < 64 ? code != -1 : code != TRIKV_E_PROTOCOL)
            fail_msg("seed %d, case %d, %zu bytes: code %d", SEED, i, n, code);
    }
    daemon_check_well(*state, &base);
}

/* A valid request of a random type, its message mutated, its checksum made right again: what is
 * wrong is inside, and each answer is a specific error (or the mutation was harmless). */
static void check_mutated_messages(void **state)
{
    static const uint16_t types[] = {TRIKV_HELLO,  TRIKV_OPEN,   TRIKV_CLOSE,         TRIKV_STATS,
                                     TRIKV_APPEND, TRIKV_ATTEND, TRIKV_HANDLE,        TRIKV_DROP,
                                     TRIKV_ROUND,  TRIKV_CONFIG, TRIKV_APPEND_ATTEND, 77};
    struct rng rng = {SEED + 1};
    unsigned n_errors = 0, n_served = 0;

    for (int i = 0; i < N_MUTATIONS; i++) {
        uint8_t message[128] = {0};
        struct trikv_frame f = {.type = types[rng_below(&rng, 12)], .sequence = (uint64_t)i};
        int code;

        f.header_bytes = rng_below(&rng, 48);
        for (uint32_t j = 0; j < f.header_bytes; j++) /* small numbers make likely tags */
            message[64 + j] = (uint8_t)(rng_below(&rng, 2) ? rng_below(&rng, 64) : rng_next(&rng));
        tkv_frame_seal(&f, message + 64);
        memcpy(message, &f, sizeof(f));
        code =
            provoke(*state, message, 64 + f.header_bytes + tkv_frame_padding(f.header_bytes), NULL);
        n_served += code == 0;
        n_errors += code > 0;
        if (code < -1)
            fail_msg("seed %d, case %d: code %d", SEED + 1, i, code);
    }
    assert_true(n_errors > N_MUTATIONS / 2);
    assert_true(n_served > 0);
    daemon_check_well(*state, &base);
}

static void check_padding(void **state)
{
    char text[256];
    size_t n;
    uint8_t *frame = stats_frame(&n);

    frame[n - 1] = 1;
    assert_int_equal(provoke(*state, frame, n, text), TRIKV_E_PROTOCOL);
    assert_non_null(strstr(text, "padding"));
    free(frame);
}

/* 32,000 unknown fields of two bytes would cost protobuf-c as many allocations. */
static void check_unknown_fields(void **state)
{
    static const struct {
        const char *name;
        uint8_t unit[8];
        size_t n_unit;
        size_t n_units;
        int code;
        const char *text;
    } table[] = {
        {"few unknown", {0xf8, 0x7f, 0x01}, 3, 10, TRIKV_E_NO_SESSION, "not open"},
        {"many unknown", {0xf8, 0x7f, 0x01}, 3, 20000, TRIKV_E_PROTOCOL, "unknown fields"},
        {"broken tag",
         {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff},
         8,
         2,
         TRIKV_E_PROTOCOL,
         "broken field"},
        {"group", {0x1b}, 1, 1, TRIKV_E_PROTOCOL, "broken field"},
        {"field number 0", {0x00, 0x01}, 2, 1, TRIKV_E_PROTOCOL, "broken field"},
        {"length over the end", {0x12, 0x7f}, 2, 1, TRIKV_E_PROTOCOL, "broken field"},
    };

    for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
        static uint8_t frame[64 + TRIKV_MAX_HEADER_BYTES];
        struct trikv_frame f = {.type = TRIKV_STATS};
        char text[256];
        uint8_t *at = frame + 64;

        memset(frame, 0, sizeof(frame));
        *at++ = 0x09; /* session, fixed64 */
        *at = 99;
        at += 8;
        for (size_t k = 0; k < table[i].n_units; k++, at += table[i].n_unit)
            memcpy(at, table[i].unit, table[i].n_unit);
        f.header_bytes = (uint32_t)(at - frame - 64);
        tkv_frame_seal(&f, frame + 64);
        memcpy(frame, &f, sizeof(f));
        assert_int_equal(
            provoke(*state, frame, 64 + f.header_bytes + tkv_frame_padding(f.header_bytes), text),
            table[i].code);
        if (!strstr(text, table[i].text))
            fail_msg("%s: got \"%s\"", table[i].name, text);
    }
    daemon_check_well(*state, &base);
}

/* HELLO, OPEN and APPEND_ATTEND as one stream of bytes. */
static uint8_t *whole_session(size_t *n, size_t *n_frames)
{
    Trikv__HelloRequest hello = TRIKV__HELLO_REQUEST__INIT;
    Trikv__Layer layer = TRIKV__LAYER__INIT;
    Trikv__Layer *layers[] = {&layer};
    Trikv__OpenRequest open = TRIKV__OPEN_REQUEST__INIT;
    Trikv__SessionRequest stats = TRIKV__SESSION_REQUEST__INIT;
    uint8_t *part[3], *all;
    size_t size[3], at = 0;

    hello.protocol_min = hello.protocol_max = 1;
    layer.n_q_heads = layer.n_kv_heads = 1;
    layer.head_dim_k = layer.head_dim_v = 16;
    open.n_layers = 1;
    open.layers = layers;
    stats.session = 1;
    part[0] = wire_frame(TRIKV_HELLO, 1, &hello.base, NULL, 0, 0, &size[0]);
    part[1] = wire_frame(TRIKV_OPEN, 2, &open.base, NULL, 0, 0, &size[1]);
    part[2] = wire_frame(TRIKV_STATS, 3, &stats.base, NULL, 0, 0, &size[2]);
    *n = size[0] + size[1] + size[2];
    *n_frames = 3;
    all = malloc(*n);
    assert_non_null(all);
    for (int i = 0; i < 3; i++) {
        memcpy(all + at, part[i], size[i]);
        at += size[i];
        free(part[i]);
    }
    return all;
}

static void check_death_at_every_byte(void **state)
{
    const struct daemon_aid *d = *state;
    size_t n, n_frames;
    uint8_t *bytes = whole_session(&n, &n_frames);

    for (size_t cut = 0; cut <= n; cut++) {
        const int fd = wire_connect(d->socket);

        assert_true(fd >= 0);
        assert_true(wire_write(fd, bytes, cut, -1));
        close(fd);
    }
    free(bytes);
    daemon_check_well(d, &base);
}

/* The same stream in two pieces, cut at every byte: every request is answered. */
static void check_pieces(void **state)
{
    const struct daemon_aid *d = *state;
    size_t n, n_frames;
    uint8_t *bytes = whole_session(&n, &n_frames);

    for (size_t cut = 1; cut < n; cut++) {
        const int fd = wire_connect(d->socket);

        assert_true(fd >= 0);
        assert_true(wire_write(fd, bytes, cut, -1));
        if (cut % 16 == 0)
            sleep_ms(1); /* let the daemon see the first piece alone now and then */
        assert_true(wire_write(fd, bytes + cut, n - cut, -1));
        for (size_t i = 0; i < n_frames; i++) {
            struct wire_reply r;

            assert_int_equal(wire_read(fd, &r, WIRE_TIMEOUT_MS), 1);
            assert_int_equal(r.frame.sequence, i + 1);
            wire_reply_deinit(&r);
        }
        close(fd);
    }
    free(bytes);
    daemon_check_well(d, &base);
}

/* One byte at a time, but too slowly: the time for a frame is not pushed back by progress. */
static void check_slow_sender(void **state)
{
    const struct daemon_aid *d = *state;
    size_t n;
    uint8_t *frame = stats_frame(&n);
    const int fd = wire_connect_hello(d->socket);
    size_t sent = 0;

    while (sent < n && wire_write(fd, frame + sent, 1, -1)) {
        sleep_ms(20);
        sent++;
    }
    assert_true(sent > 5 && sent < 40); /* 300 ms at 20 ms a byte */
    close(fd);
    free(frame);
    daemon_check_well(d, &base);
}

/* A peer that never says HELLO, and one that never takes its reply. */
static void check_stallers(void **state)
{
    const struct daemon_aid *d = *state;
    const int quiet = wire_connect(d->socket);
    const int deaf = wire_connect_hello(d->socket);
    struct pollfd p = {.fd = quiet, .events = POLLIN};
    struct rng rng = {3};
    size_t bytes, n;
    float *payload = wire_payload(&rng, 400, &bytes);
    Trikv__TokensRequest m = TRIKV__TOKENS_REQUEST__INIT;
    uint8_t *frame;
    int code;

    m.session = wire_open(deaf, 1, &code);
    m.n_tokens = 400;
    frame = wire_frame(TRIKV_APPEND_ATTEND, 1, &m.base, payload, bytes, 0, &n);
    assert_true(wire_write(deaf, frame, n, -1)); /* the reply is larger than a socket buffer */
    assert_int_equal(poll(&p, 1, 3000), 1);
    assert_int_equal(read(quiet, &p, 1), 0);
    for (int i = 0; i < 300; i++) {
        struct wire_daemon_stats s;
        const int fd = wire_connect_hello(d->socket);

        wire_daemon_stats(fd, &s);
        close(fd);
        if (s.n_sessions == 0)
            break;
        sleep_ms(10);
    }
    close(quiet);
    close(deaf);
    free(frame);
    free(payload);
    daemon_check_well(d, &base);
}

static void send_fds(int fd, const uint8_t *frame, size_t n, unsigned n_fds)
{
    union {
        char bytes[CMSG_SPACE(64 * sizeof(int))];
        struct cmsghdr align;
    } control = {{0}};
    uint8_t copy[256];
    struct iovec iov = {copy, n};
    struct msghdr msg = {.msg_iov = &iov,
                         .msg_iovlen = 1,
                         .msg_control = &control,
                         .msg_controllen = CMSG_SPACE(n_fds * sizeof(int))};

    memcpy(copy, frame, n);
    CMSG_FIRSTHDR(&msg)->cmsg_level = SOL_SOCKET;
    CMSG_FIRSTHDR(&msg)->cmsg_type = SCM_RIGHTS;
    CMSG_FIRSTHDR(&msg)->cmsg_len = CMSG_LEN(n_fds * sizeof(int));
    for (unsigned i = 0; i < n_fds; i++) {
        const int passed = STDERR_FILENO;

        memcpy(CMSG_DATA(CMSG_FIRSTHDR(&msg)) + i * sizeof(int), &passed, sizeof(int));
    }
    assert_int_equal(sendmsg(fd, &msg, MSG_NOSIGNAL), n);
}

static void check_descriptor_flood(void **state)
{
    const struct daemon_aid *d = *state;
    static const unsigned counts[] = {1, 2, 3, 4, 5, 40, 64};
    size_t n;
    uint8_t *frame = stats_frame(&n);

    for (int round = 0; round < 60; round++) {
        const int fd = wire_connect_hello(d->socket);
        struct wire_reply r;

        send_fds(fd, frame, n, counts[round % 7]);
        assert_int_equal(wire_read(fd, &r, WIRE_TIMEOUT_MS), 1);
        assert_int_equal(r.code, TRIKV_E_PROTOCOL);
        wire_reply_deinit(&r);
        close(fd);
    }
    for (int round = 0; round < 20; round++) { /* in the middle of a frame */
        const int fd = wire_connect_hello(d->socket);
        struct wire_reply r;

        assert_true(wire_write(fd, frame, 70, -1));
        sleep_ms(2);
        send_fds(fd, frame + 70, n - 70, 1);
        assert_int_equal(wire_read(fd, &r, WIRE_TIMEOUT_MS), 1);
        assert_int_equal(r.code, TRIKV_E_PROTOCOL);
        wire_reply_deinit(&r);
        close(fd);
    }
    /* The emulator itself loses those that it receives and the program has no room for. */
    if (getenv("TRIKV_RUNNER"))
        base = daemon_rest_of(d);
    free(frame);
    daemon_check_well(d, &base);
}

/* Clients that open sessions and vanish, some with a request under way. */
static void check_connect_kill(void **state)
{
    const struct daemon_aid *d = *state;
    struct rng rng = {SEED + 2};
    size_t bytes, n;
    float *payload = wire_payload(&rng, 40, &bytes);

    for (int i = 0; i < N_CYCLES; i++) {
        const int fd = wire_connect_hello(d->socket);
        Trikv__TokensRequest m = TRIKV__TOKENS_REQUEST__INIT;
        uint8_t *frame;
        int code;

        m.session = wire_open(fd, 2, &code);
        assert_int_equal(code, 0);
        m.n_tokens = 40;
        frame = wire_frame(TRIKV_APPEND_ATTEND, 1, &m.base, payload, bytes, 0, &n);
        assert_true(wire_write(fd, frame, rng_below(&rng, (uint32_t)n) + 1, -1));
        free(frame);
        close(fd);
    }
    free(payload);
    daemon_check_well(d, &base);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(check_header_fields),
        cmocka_unit_test(check_every_byte_flipped),
        cmocka_unit_test(check_random_bytes),
        cmocka_unit_test(check_mutated_messages),
        cmocka_unit_test(check_padding),
        cmocka_unit_test(check_unknown_fields),
        cmocka_unit_test(check_death_at_every_byte),
        cmocka_unit_test(check_pieces),
        cmocka_unit_test(check_slow_sender),
        cmocka_unit_test(check_stallers),
        cmocka_unit_test(check_descriptor_flood),
        cmocka_unit_test(check_connect_kill),
    };

    return cmocka_run_group_tests(tests, start_daemon, stop_daemon);
}
