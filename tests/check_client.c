/*
 * libtrikv's connection against a daemon that answers well and badly: every cut, every flipped
 * bit, frames that lie, silence, signals. The real daemon is check_roundtrip's.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "tests/fake_talk.h"

#include "proto/errors.h"
#include "proto/limits.h"
#include "proto/trikv.pb-c.h"
#include "tests/rng.h"

static int64_t now_ms(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static int hello_with(struct fake_raw *a)
{
    struct trikv_client *c = NULL;
    int e;

    fake_start(&fake, fake_serve_raw, a);
    e = fake_connect(&c, 2000, 0);
    assert_non_null(c);
    if (e)
        assert_true(trikv_last_error(c)[0] != '\0');
    trikv_disconnect(&c);
    assert_null(c);
    fake_join(&fake);
    return e;
}

static void hello_is_read(void **state)
{
    struct fake_raw a = {.frame = fake_hello_frame(), .pass_fd = -1};
    struct trikv_client *c = NULL;

    (void)state;
    a.n_bytes = a.frame.n_bytes;
    fake_start(&fake, fake_serve_raw, &a);
    assert_int_equal(fake_connect(&c, 2000, 0), 0);
    assert_int_equal(trikv_info(c)->boot_id, 42);
    assert_int_equal(trikv_info(c)->max_payload_bytes, 32 << 20);
    assert_string_equal(trikv_info(c)->version, "9.8.7");
    assert_string_equal(trikv_info(c)->cpu, "avx?[31m"); /* nothing a terminal would obey */
    assert_string_equal(trikv_last_error(c), "");
    trikv_disconnect(&c);
    fake_join(&fake);
    free(a.frame.bytes);
    trikv_disconnect(&c);
}

static void every_cut_is_noticed(void **state)
{
    struct fake_raw a = {.frame = fake_hello_frame(), .pass_fd = -1};

    (void)state;
    for (a.n_bytes = 0; a.n_bytes < a.frame.n_bytes; a.n_bytes++)
        assert_int_equal(hello_with(&a), TRIKV_E_DISCONNECTED);
    assert_int_equal(hello_with(&a), 0);
    free(a.frame.bytes);
}

/* Header and message are under the checksum, the padding must be zero: no bit is free. */
static void every_flipped_bit_is_noticed(void **state)
{
    struct fake_raw a = {.frame = fake_hello_frame(), .pass_fd = -1};

    (void)state;
    a.n_bytes = a.frame.n_bytes;
    for (size_t bit = 0; bit < a.frame.n_bytes * 8; bit++) {
        int e;

        a.frame.bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
        e = hello_with(&a);
        if (e != TRIKV_E_PROTOCOL && e != TRIKV_E_DISCONNECTED)
            fail_msg("bit %zu flipped: %d (%s)", bit, e, trikv_error_text(e));
        a.frame.bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
    free(a.frame.bytes);
}

/* Frames that are sealed well and lie all the same. */
static void sealed_lies_are_refused(void **state)
{
    const struct {
        size_t at;
        int width;
        uint64_t value;
        const char *what;
    } lies[] = {
        {6, 2, TRIKV_OPEN | TRIKV_REPLY, "another type"},
        {6, 2, TRIKV_HELLO, "a request, not a reply"},
        {12, 4, 0xffffffff, "huge message"},
        {12, 4, TRIKV_MAX_HEADER_BYTES + 1, "message over the limit"},
        {16, 8, 64, "payload where there is none"},
        {16, 8, UINT64_MAX, "huge payload"},
        {24, 8, 2, "sequence of the future"},
        {24, 8, 0, "no sequence"},
        {36, 4, 1, "descriptor announced, none sent"},
        {36, 4, 1000, "1000 descriptors announced"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(lies) / sizeof(lies[0]); i++) {
        struct fake_raw a = {.frame = fake_hello_frame(), .pass_fd = -1};
        int e;

        a.n_bytes = a.frame.n_bytes;
        if (lies[i].width == 2)
            fake_set_u16(&a.frame, lies[i].at, (uint16_t)lies[i].value);
        else if (lies[i].width == 4)
            fake_set_u32(&a.frame, lies[i].at, (uint32_t)lies[i].value);
        else
            fake_set_u64(&a.frame, lies[i].at, lies[i].value);
        fake_frame_reseal(&a.frame);
        e = hello_with(&a);
        if (e != TRIKV_E_PROTOCOL)
            fail_msg("%s: %d (%s)", lies[i].what, e, trikv_error_text(e));
        free(a.frame.bytes);
    }
}

static void garbage_messages_are_refused(void **state)
{
    struct rng r = {.state = 20251};
    unsigned n_refused = 0;

    (void)state;
    for (int i = 0; i < 500; i++) {
        struct fake_raw a = {.frame = fake_hello_frame(), .pass_fd = -1};
        struct trikv_frame h;

        memcpy(&h, a.frame.bytes, sizeof(h));
        a.n_bytes = a.frame.n_bytes;
        for (uint32_t n = 1 + rng_below(&r, 4); n > 0; n--)
            a.frame.bytes[sizeof(h) + rng_below(&r, h.header_bytes)] = (uint8_t)rng_next(&r);
        fake_frame_reseal(&a.frame);
        n_refused += hello_with(&a) != 0;
        free(a.frame.bytes);
    }
    /* Some changes only alter a number or a letter; most break the message. */
    assert_in_range(n_refused, 100, 500);
}

static void descriptors_must_be_announced(void **state)
{
    const unsigned n_before = fake_count_fds();

    (void)state;
    for (unsigned n = 1; n <= 3; n++) {
        for (uint32_t announced = 0; announced <= 1; announced++) {
            struct fake_raw a = {
                .frame = fake_hello_frame(), .pass_fd = fake.listen_fd, .n_fds = n};

            a.n_bytes = a.frame.n_bytes;
            fake_set_u32(&a.frame, 36, announced);
            fake_frame_reseal(&a.frame);
            assert_int_equal(hello_with(&a), TRIKV_E_PROTOCOL);
            free(a.frame.bytes);
        }
    }
    /* The emulator itself loses those that it receives and the program has no room for. */
    if (!getenv("TRIKV_RUNNER"))
        assert_int_equal(fake_count_fds(), n_before);
}

static int hello_error(int code, uint64_t sequence, char *text)
{
    Trikv__Error m = TRIKV__ERROR__INIT;
    struct fake_raw a = {.pass_fd = -1};
    int e;

    m.code = code;
    m.message = text;
    a.frame = fake_frame_of(TRIKV_REPLY_ERROR, sequence, &m.base, NULL, 0);
    a.n_bytes = a.frame.n_bytes;
    e = hello_with(&a);
    free(a.frame.bytes);
    return e;
}

static void error_replies_are_taken(void **state)
{
    char text[] = "too many connections";
    char longest[4096];

    (void)state;
    memset(longest, 'x', sizeof(longest) - 1);
    longest[sizeof(longest) - 1] = '\0';
    assert_int_equal(hello_error(TRIKV_E_TOO_MANY, 1, text), TRIKV_E_TOO_MANY);
    assert_int_equal(hello_error(TRIKV_E_TOO_MANY, 0, text), TRIKV_E_TOO_MANY);
    assert_int_equal(hello_error(TRIKV_E_TOO_MANY, 2, text), TRIKV_E_PROTOCOL);
    assert_int_equal(hello_error(TRIKV_E_DRAINING, 1, longest), TRIKV_E_DRAINING);
    assert_int_equal(hello_error(0, 1, text), TRIKV_E_PROTOCOL);
    assert_int_equal(hello_error(-5, 1, text), TRIKV_E_PROTOCOL);
    assert_int_equal(hello_error(TRIKV_E_DEADLINE, 1, text), TRIKV_E_PROTOCOL);
}

static void serve_late(int fd, void *arg)
{
    struct fake_request q;
    struct fake_frame f = fake_hello_frame();
    const unsigned step_ms = *(const unsigned *)arg;

    if (fake_read(fd, &q)) {
        for (size_t i = 0; i < f.n_bytes; i++) {
            usleep(step_ms * 1000);
            if (!fake_send(fd, f.bytes + i, 1, -1, 0))
                break;
        }
    }
    fake_request_deinit(&q);
    free(f.bytes);
}

/* Silence and a trickle that would last 2 seconds: both end at the deadline. */
static void deadlines_hold(void **state)
{
    const unsigned steps_ms[] = {500, 16};

    (void)state;
    for (int i = 0; i < 2; i++) {
        const int64_t start = now_ms();
        struct trikv_client *c = NULL;
        unsigned step = steps_ms[i];
        struct trikv_session *s = NULL;

        fake_start(&fake, serve_late, &step);
        assert_int_equal(fake_connect(&c, 150, 0), TRIKV_E_DEADLINE);
        assert_in_range(now_ms() - start, 149, 450);
        assert_int_equal(fake_open_on(c, &s), TRIKV_E_DISCONNECTED);
        assert_null(s);
        trikv_disconnect(&c);
        fake_join(&fake);
    }
}

static int connect_path(const char *path)
{
    const struct trikv_options o = {.size = sizeof(o), .socket = path, .timeout_ms = 200};
    struct trikv_client *c = NULL;
    const int e = trikv_connect(&c, &o);

    assert_true(trikv_last_error(c)[0] != '\0');
    trikv_disconnect(&c);
    return e;
}

static void no_daemon_is_said(void **state)
{
    char path[200];

    (void)state;
    assert_int_equal(connect_path("/nonexistent/trikv.sock"), TRIKV_E_CONNECT);
    assert_int_equal(connect_path("/"), TRIKV_E_CONNECT);
    memset(path, 'a', sizeof(path) - 1);
    path[sizeof(path) - 1] = '\0';
    assert_int_equal(connect_path(path), TRIKV_E_CONNECT);
    assert_int_equal(setenv("TRIKV_SOCKET", "/nonexistent/from-environment", 1), 0);
    assert_int_equal(connect_path(NULL), TRIKV_E_CONNECT);
    unsetenv("TRIKV_SOCKET");
}

/* Nobody accepts: the backlog fills up, and connecting still ends in time. */
static void full_backlog_ends_at_the_deadline(void **state)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    int fds[8];
    int64_t start;

    (void)state;
    memcpy(a.sun_path, fake.path, strlen(fake.path) + 1);
    for (int i = 0; i < 8; i++) {
        fds[i] = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        (void)connect(fds[i], (const struct sockaddr *)&a, sizeof(a));
    }
    start = now_ms();
    assert_int_equal(connect_path(fake.path), TRIKV_E_CONNECT);
    assert_in_range(now_ms() - start, 190, 1000);
    for (int i = 0; i < 8; i++)
        close(fds[i]);
    fcntl(fake.listen_fd, F_SETFL, O_NONBLOCK);
    for (int fd; (fd = accept(fake.listen_fd, NULL, NULL)) >= 0;)
        close(fd);
    fcntl(fake.listen_fd, F_SETFL, 0);
}

static void on_alarm(int signal)
{
    (void)signal;
}

/* A signal every millisecond, without SA_RESTART, while bytes come one at a time. */
static void signals_do_not_disturb(void **state)
{
    const struct sigaction act = {.sa_handler = on_alarm};
    const struct itimerval every = {.it_interval = {.tv_usec = 1000},
                                    .it_value = {.tv_usec = 1000}};
    const struct itimerval never = {0};
    struct trikv_client *c = NULL;
    unsigned step_ms = 2;
    sigset_t alarm_set;
    int e;

    (void)state;
    sigemptyset(&alarm_set);
    sigaddset(&alarm_set, SIGALRM);
    sigaction(SIGALRM, &act, NULL);
    pthread_sigmask(SIG_BLOCK, &alarm_set, NULL); /* for the fake's thread */
    fake_start(&fake, serve_late, &step_ms);
    pthread_sigmask(SIG_UNBLOCK, &alarm_set, NULL);
    setitimer(ITIMER_REAL, &every, NULL);
    e = fake_connect(&c, 5000, 0);
    setitimer(ITIMER_REAL, &never, NULL);
    assert_int_equal(e, 0);
    trikv_disconnect(&c);
    fake_join(&fake);
}

static void error_texts_exist(void **state)
{
    (void)state;
#define X(number, name, text) assert_string_equal(trikv_error_text(number), text);
    TRIKV_ERRORS(X)
#undef X
    assert_true(trikv_error_text(12345)[0] != '\0');
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(hello_is_read),
        cmocka_unit_test(every_cut_is_noticed),
        cmocka_unit_test(every_flipped_bit_is_noticed),
        cmocka_unit_test(sealed_lies_are_refused),
        cmocka_unit_test(garbage_messages_are_refused),
        cmocka_unit_test(descriptors_must_be_announced),
        cmocka_unit_test(error_replies_are_taken),
        cmocka_unit_test(deadlines_hold),
        cmocka_unit_test(no_daemon_is_said),
        cmocka_unit_test(full_backlog_ends_at_the_deadline),
        cmocka_unit_test(signals_do_not_disturb),
        cmocka_unit_test(error_texts_exist),
    };

    return cmocka_run_group_tests_name("client", tests, fake_setup, fake_teardown);
}
