/*
 * Descriptors that a daemon is sent and does not want: files of any kind, those whose closing waits for
 * somebody, more than it asked for, before it asks and where it never reads. It must neither wait nor keep
 * any, and a bystander must not notice.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <arpa/inet.h>
#include <cmocka.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "proto/errors.h"
#include "proto/trikv.pb-c.h"
#include "tests/bystander.h"
#include "tests/fuse_aid.h"
#include "tests/rng.h"
#include "tests/wire.h"

enum { LINGER_SECONDS = 60, MOST_FDS = 200 };

static struct daemon_aid the_daemon;
static char metrics_socket[128];
static struct bystander bystander;

static int start(void **state)
{
    char config[512];

    (void)state;
    snprintf(metrics_socket, sizeof(metrics_socket), "/tmp/trikv-metrics-%d", (int)getpid());
    snprintf(config, sizeof(config),
             "memory:\n  cap: 64MiB\nlimits:\n  payload: 1MiB\n  request_timeout: 1s\n"
             "listen:\n  max_connections: 20\nworkers:\n  threads: 2\nlog:\n  level: error\n"
             "metrics:\n  socket: %s\n",
             metrics_socket);
    daemon_start(&the_daemon, config);
    bystander_init(&bystander, &the_daemon);
    return 0;
}

static int stop(void **state)
{
    (void)state;
    bystander_deinit(&bystander);
    return daemon_stop(&the_daemon, SIGTERM);
}

/* n bytes and n_fds descriptors, of which this is the last; false if the kernel does not take them. */
static bool send_many(int fd, const void *bytes, size_t n, int passed, unsigned n_fds)
{
    union {
        char bytes[CMSG_SPACE(MOST_FDS * sizeof(int))];
        struct cmsghdr align;
    } control = {{0}};
    int fds[MOST_FDS];
    char copy[4096];
    struct iovec iov = {copy, n};
    struct msghdr msg = {.msg_iov = &iov,
                         .msg_iovlen = 1,
                         .msg_control = &control,
                         .msg_controllen = CMSG_SPACE(n_fds * sizeof(int))};

    assert_true(n <= sizeof(copy) && n_fds <= MOST_FDS);
    memcpy(copy, bytes, n);
    CMSG_FIRSTHDR(&msg)->cmsg_level = SOL_SOCKET;
    CMSG_FIRSTHDR(&msg)->cmsg_type = SCM_RIGHTS;
    CMSG_FIRSTHDR(&msg)->cmsg_len = CMSG_LEN(n_fds * sizeof(int));
    for (unsigned i = 0; i < n_fds; i++)
        fds[i] = i + 1 < n_fds ? STDERR_FILENO : passed;
    memcpy(CMSG_DATA(CMSG_FIRSTHDR(&msg)), fds, n_fds * sizeof(int));
    return sendmsg(fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT) == (ssize_t)n;
}

/* ---- closing that waits ------------------------------------------------------------------------ */

/* A TCP socket whose last close waits LINGER_SECONDS, for its peer[2] takes nothing. */
static int lingering(int *peer)
{
    const struct linger wait = {1, LINGER_SECONDS};
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t n = sizeof(a);
    static char zeros[1 << 16];
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    peer[1] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(peer[1], (struct sockaddr *)&a, sizeof(a)), 0);
    assert_int_equal(listen(peer[1], 1), 0);
    assert_int_equal(getsockname(peer[1], (struct sockaddr *)&a, &n), 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&a, sizeof(a)), 0);
    peer[0] = accept4(peer[1], NULL, NULL, SOCK_CLOEXEC);
    assert_true(peer[0] >= 0);
    for (int i = 0; i < 20; i++) { /* until nothing is on its way any more */
        while (send(fd, zeros, sizeof(zeros), MSG_DONTWAIT | MSG_NOSIGNAL) > 0)
            continue;
        sleep_ms(2);
    }
    assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_LINGER, &wait, sizeof(wait)), 0);
    return fd;
}

static void let_go(const int *peer)
{
    close(peer[0]);
    close(peer[1]);
}

static uint8_t *hello_frame(size_t *n, unsigned n_fds)
{
    Trikv__HelloRequest m = TRIKV__HELLO_REQUEST__INIT;

    m.protocol_min = m.protocol_max = 1;
    return wire_frame(TRIKV_HELLO, 1, &m.base, NULL, 0, n_fds, n);
}

/* Send it by this connection, keep none here, and see that nobody waits for it. */
static void give(int fd, int given, const uint8_t *frame, size_t n, unsigned n_fds)
{
    assert_true(send_many(fd, frame, n, given, n_fds));
    close(given);
    bystander_check(&bystander);
    close(fd);
    bystander_check(&bystander);
}

static void sockets_that_linger(void **state)
{
    static const unsigned counts[] = {1, 2, 5, MOST_FDS};
    int peer[2];
    size_t n;
    uint8_t *frame;

    (void)state;
    for (size_t i = 0; i < 4; i++) {
        frame = hello_frame(&n, counts[i]);
        give(wire_connect(the_daemon.socket), lingering(peer), frame, n, counts[i]);
        let_go(peer);
        free(frame);
    }
    bystander_check_alone(&bystander);
}

/* Behind a frame after which the daemon reads no more. */
static void sockets_that_are_never_read(void **state)
{
    static const char nonsense[64] = "nonsense";

    (void)state;
    for (int i = 0; i < 3; i++) {
        const int fd = wire_connect(the_daemon.socket);
        int peer[2];
        const int given = lingering(peer);

        kill(the_daemon.pid, SIGSTOP);
        assert_true(wire_write(fd, nonsense, sizeof(nonsense), -1));
        assert_true(send_many(fd, "x", 1, given, 3));
        close(given);
        if (i == 2)
            close(fd);
        kill(the_daemon.pid, SIGCONT);
        bystander_check(&bystander);
        if (i < 2)
            close(fd);
        let_go(peer);
    }
    bystander_check_alone(&bystander);
}

/* In a socket in a socket; then the daemon has the last one of all three. */
static void sockets_in_sockets(void **state)
{
    int peer[2], outer[2];
    size_t n;
    uint8_t *frame = hello_frame(&n, 1);

    (void)state;
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, outer), 0);
    for (int depth = 0; depth < 2; depth++) {
        const int given = lingering(peer);

        assert_true(send_many(outer[0], "x", 1, given, 1));
        close(given);
        close(outer[0]);
        if (depth == 0) {
            give(wire_connect(the_daemon.socket), outer[1], frame, n, 1);
            let_go(peer);
            assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, outer), 0);
        }
    }
    {
        int more[2];

        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, more), 0);
        assert_true(send_many(more[0], "x", 1, outer[1], 1));
        close(outer[1]);
        close(more[0]);
        give(wire_connect(the_daemon.socket), more[1], frame, n, 1);
        let_go(peer);
    }
    free(frame);
    bystander_check_alone(&bystander);
}

/* Connections that are refused, cut off in the middle, or killed with descriptors unread. */
static void connections_that_are_closed(void **state)
{
    enum { CROWD = 24 }; /* more than there may be */
    int peer[CROWD][2], fd[CROWD];

    (void)state;
    for (int i = 0; i < CROWD; i++) {
        const int given = lingering(peer[i]);

        fd[i] = wire_connect(the_daemon.socket);
        assert_true(fd[i] >= 0);
        (void)wire_write(fd[i], "TRKV", 4, -1); /* and never the rest: too slow */
        (void)send_many(fd[i], "x", 1, given, 1);
        close(given);
    }
    bystander_check(&bystander);
    sleep_ms(1500);
    bystander_check(&bystander);
    for (int i = 0; i < CROWD; i++) {
        close(fd[i]);
        let_go(peer[i]);
    }
    bystander_check_alone(&bystander);
}

static void metrics_take_none(void **state)
{
    static const char *const texts[] = {"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "GET /metr",
                                        "nonsense\r\n\r\n"};
    int peer[2];

    (void)state;
    for (size_t i = 0; i < 3; i++) {
        give(wire_connect(metrics_socket), lingering(peer), (const uint8_t *)texts[i],
             strlen(texts[i]), 1);
        let_go(peer);
    }
    bystander_check_alone(&bystander);
}

static int offer(uint16_t type, int fd, int given)
{
    Trikv__StagingRequest staging = TRIKV__STAGING_REQUEST__INIT;
    Trikv__RingRequest ring = TRIKV__RING_REQUEST__INIT;
    struct wire_reply r;
    int code;

    staging.staging_bytes = ring.ring_bytes = 8192;
    code = wire_call(fd, type, type == TRIKV_RING ? &ring.base : &staging.base, NULL, 0, given, &r);
    if (code == TRIKV_E_ARGUMENT && !strstr(r.text, "memfd"))
        fail_msg("\"%s\" does not say what is wrong", r.text);
    wire_reply_deinit(&r);
    return code;
}

/* To ask such a file for its size, and to close it, is to ask its server. */
static void files_that_never_answer(void **state)
{
    struct fuse_aid f;
    int fd;

    (void)state;
    if (getenv("TRIKV_RUNNER"))
        return; /* Valgrind lets all threads wait for one that waits in close */
    if (!fuse_aid_open(&f)) {
        fuse_aid_close(&f);
        print_message("not tried: a FUSE file system cannot be mounted here\n");
        return;
    }
    fd = wire_connect_hello(the_daemon.socket);
    for (int i = 0; i < 12; i++) { /* more than there are threads that could wait */
        assert_int_equal(offer(TRIKV_STAGING, fd, f.fd), TRIKV_E_ARGUMENT);
        assert_int_equal(offer(TRIKV_RING, fd, f.fd), TRIKV_E_ARGUMENT);
        bystander_check(&bystander);
    }
    close(fd);
    fuse_aid_close(&f);
    bystander_check_alone(&bystander);
}

/* ---- of any kind ----------------------------------------------------------------------------- */

static int sealed_huge_pages(void)
{
    const int fd = memfd_create("huge", MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_HUGETLB);

    if (fd >= 0 && fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK) == 0)
        return fd;
    return open("/dev/null", O_RDWR | O_CLOEXEC);
}

static int unsealed(void)
{
    const int fd = memfd_create("memory", MFD_CLOEXEC | MFD_ALLOW_SEALING);

    assert_int_equal(ftruncate(fd, 8192), 0);
    return fd;
}

static void files_of_any_kind(void **state)
{
    const int fd = wire_connect_hello(the_daemon.socket);
    int pipes[2], pair[2], files[12];

    (void)state;
    assert_int_equal(pipe2(pipes, O_CLOEXEC), 0);
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
    files[0] = pipes[0];
    files[1] = pipes[1];
    files[2] = eventfd(0, EFD_CLOEXEC);
    files[3] = epoll_create1(EPOLL_CLOEXEC);
    files[4] = open("/dev/zero", O_RDWR | O_CLOEXEC);
    files[5] = open("/tmp", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    files[6] = open("/proc/self/exe", O_PATH | O_CLOEXEC);
    files[7] = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
    files[8] = unsealed();
    files[9] = sealed_huge_pages();
    files[10] = pair[0];
    files[11] = pair[1];
    for (size_t i = 0; i < sizeof(files) / sizeof(files[0]); i++) {
        assert_true(files[i] >= 0);
        assert_int_equal(offer(TRIKV_STAGING, fd, files[i]), TRIKV_E_ARGUMENT);
        assert_int_equal(offer(TRIKV_RING, fd, files[i]), TRIKV_E_ARGUMENT);
        close(files[i]);
    }
    close(fd);
    bystander_check_alone(&bystander);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sockets_that_linger), cmocka_unit_test(sockets_that_are_never_read),
        cmocka_unit_test(sockets_in_sockets),  cmocka_unit_test(connections_that_are_closed),
        cmocka_unit_test(metrics_take_none),   cmocka_unit_test(files_that_never_answer),
        cmocka_unit_test(files_of_any_kind),
    };

    return cmocka_run_group_tests(tests, start, stop);
}
