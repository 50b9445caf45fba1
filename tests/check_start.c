/*
 * A daemon that cannot start says why and leaves with the code that fits; one that runs short of descriptors
 * or of memory for one more connection goes on. And its pages over TCP, where anybody of
 * the machine may ask.
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
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <sysexits.h>
#include <unistd.h>

#include "proto/errors.h"
#include "proto/trikv.pb-c.h"
#include "tests/bystander.h"
#include "tests/wire.h"

enum { LOG_BYTES = 1 << 16, PASSED_FD = 3, CAP_BYTES = 4 << 20 };

static char place[64]; /* a directory for all of them */

static int start(void **state)
{
    (void)state;
    strcpy(place, "/tmp/trikv-start-XXXXXX");
    return mkdtemp(place) ? 0 : -1;
}

static int stop(void **state)
{
    static const char *const names[] = {"config", "log", "file"};
    char path[128];

    (void)state;
    for (size_t i = 0; i < 3; i++) {
        snprintf(path, sizeof(path), "%s/%s", place, names[i]);
        (void)unlink(path);
    }
    return rmdir(place);
}

static void write_text(const char *name, const char *text)
{
    char path[128];
    FILE *f;

    snprintf(path, sizeof(path), "%s/%s", place, name);
    f = fopen(path, "w");
    assert_non_null(f);
    assert_true(fputs(text, f) >= 0);
    assert_int_equal(fclose(f), 0);
}

/* ---- starts that fail --------------------------------------------------------------------------- */

/* Descriptors as a service manager would pass them: n of one kind. */
static void pass(int kind, int n, const char *names)
{
    char text[16];

    for (int i = 0; i < n; i++) {
        const int fd = socket(AF_UNIX, kind, 0);
        const struct sockaddr_un a = {.sun_family = AF_UNIX};

        (void)bind(fd, (const struct sockaddr *)&a, sizeof(a.sun_family)); /* any abstract name */
        if (kind == SOCK_STREAM)
            (void)listen(fd, 1);
        (void)dup2(fd, 100 + i);
    }
    for (int i = 0; i < n; i++)
        (void)dup2(100 + i, PASSED_FD + i);
    (void)snprintf(text, sizeof(text), "%d", (int)getpid());
    setenv("LISTEN_PID", text, 1);
    (void)snprintf(text, sizeof(text), "%d", n);
    setenv("LISTEN_FDS", text, 1);
    if (names)
        setenv("LISTEN_FDNAMES", names, 1);
}

struct failure {
    const char *config; /* %s: the directory */
    int kind, n_passed; /* of sockets */
    const char *names;
    int code;
    const char *text;
};

static void run_trikvd(const struct failure *f)
{
    char program[600], config[128], log[128];
    int out;

    daemon_program(program, sizeof(program));
    snprintf(config, sizeof(config), "%s/config", place);
    snprintf(log, sizeof(log), "%s/log", place);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    out = open(log, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    (void)dup2(out, STDERR_FILENO);
    close(out);
    if (f->n_passed)
        pass(f->kind, f->n_passed, f->names);
    execl(program, program, "--config", config, (char *)NULL);
    _exit(127);
}

static void expect_failure(const struct failure *f)
{
    static char log[LOG_BYTES];
    char config[1024], path[128];
    int status = 0, fd;
    ssize_t n;
    pid_t pid;

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    snprintf(config, sizeof(config), f->config, place, place);
#pragma GCC diagnostic pop
    write_text("config", config);
    pid = fork();
    assert_true(pid >= 0);
    if (pid == 0)
        run_trikvd(f);
    for (int i = 0; i < 2000 && waitpid(pid, &status, WNOHANG) == 0; i++) {
        sleep_ms(5);
        if (i == 1999)
            kill(pid, SIGKILL);
    }
    snprintf(path, sizeof(path), "%s/log", place);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    n = read(fd, log, sizeof(log) - 1);
    close(fd);
    log[n > 0 ? n : 0] = 0;
    if (!WIFEXITED(status) || WEXITSTATUS(status) != f->code || !strstr(log, f->text))
        fail_msg("%s: status %x, log: %s", config, (unsigned)status, log);
}

static void starts_that_fail(void **state)
{
    static const struct failure table[] = {
        {"listen: {socket: %s/file}\n", 0, 0, NULL, EX_UNAVAILABLE, "no socket"},
        {"listen: {socket: %s/none/socket}\n", 0, 0, NULL, EX_UNAVAILABLE, "No such file"},
        {"listen: {socket: %s/s}\nmetrics: {socket: %s/file}\n", 0, 0, NULL, EX_UNAVAILABLE,
         "cannot serve metrics"},
        {"listen: {socket: %s/s}\nmetrics: {socket: %s/s}\n", 0, 0, NULL, EX_CONFIG,
         "is listen.socket"},
        {"listen: {socket: %s/s}\nmetrics: {socket: %s/m}\nmemory: {cap: 1MiB}\n", 0, 0, NULL,
         EX_CONFIG, "too small for metrics"},
        {"memory: {cap: 64MiB}\n", SOCK_DGRAM, 1, NULL, EX_CONFIG, "listening stream"},
        {"memory: {cap: 64MiB}\n", SOCK_STREAM, 2, NULL, EX_CONFIG, "not named metrics"},
        {"memory: {cap: 64MiB}\n", SOCK_STREAM, 6,
         "metrics:metrics:metrics:metrics:metrics:metrics", EX_CONFIG,
         "more sockets named metrics"},
    };

    (void)state;
    write_text("file", "not a socket\n");
    for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++)
        expect_failure(&table[i]);
}

static void ports_that_are_taken(void **state)
{
    struct failure f = {.code = EX_UNAVAILABLE, .text = "Address already in use"};
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    socklen_t n = sizeof(a);
    char config[256];

    (void)state;
    assert_int_equal(bind(fd, (struct sockaddr *)&a, sizeof(a)), 0);
    assert_int_equal(listen(fd, 1), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&a, &n), 0);
    snprintf(config, sizeof(config),
             "listen: {socket: %%s/s}\nmetrics: {listen: \"127.0.0.1:%u\"}\n", ntohs(a.sin_port));
    f.config = config;
    expect_failure(&f);
    close(fd);
}

/* ---- short of something ----------------------------------------------------------------------- */

/* Without a descriptor for one more it waits, and those who are there are served. */
static void no_descriptors(void **state)
{
    struct bystander b;
    struct daemon_aid d;
    struct rlimit before, now;
    int fd;

    (void)state;
    daemon_start(&d, "memory: {cap: 64MiB}\n");
    bystander_init(&b, &d);
    assert_int_equal(prlimit(d.pid, RLIMIT_NOFILE, NULL, &before), 0);
    now = (struct rlimit){3, before.rlim_max}; /* what it has it keeps */
    assert_int_equal(prlimit(d.pid, RLIMIT_NOFILE, &now, NULL), 0);
    fd = wire_connect(d.socket);
    assert_true(fd >= 0);
    assert_true(daemon_logged(&d, "accept failed"));
    bystander_check(&b);
    assert_int_equal(prlimit(d.pid, RLIMIT_NOFILE, &before, NULL), 0);
    wire_hello(fd); /* it was there all the time */
    close(fd);
    bystander_check_alone(&b);
    bystander_deinit(&b);
    assert_int_equal(daemon_stop(&d, SIGTERM), 0);
}

static int take_area(int fd, uint64_t bytes)
{
    const int area = memfd_create("area", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    Trikv__StagingRequest m = TRIKV__STAGING_REQUEST__INIT;
    struct wire_reply r;
    int code;

    assert_int_equal(ftruncate(area, (off_t)bytes), 0);
    assert_int_equal(fcntl(area, F_ADD_SEALS, F_SEAL_SHRINK), 0);
    m.staging_bytes = bytes;
    code = wire_call(fd, TRIKV_STAGING, &m.base, NULL, 0, area, &r);
    wire_reply_deinit(&r);
    close(area);
    return code;
}

/* Nor without memory; somebody has all of it. */
static void no_memory(void **state)
{
    struct wire_daemon_stats stats;
    struct bystander b;
    struct daemon_aid d;
    uint64_t bytes;
    char byte;
    int greedy, fd;

    (void)state;
    daemon_start(&d, "memory: {cap: 4MiB}\n");
    bystander_init(&b, &d);
    greedy = wire_connect_hello(d.socket);
    assert_int_not_equal(take_area(greedy, CAP_BYTES), 0); /* what may go is gone */
    wire_daemon_stats(greedy, &stats);
    bytes = CAP_BYTES - stats.memory_used_bytes;
    while (take_area(greedy, bytes))
        bytes -= 64;
    fd = wire_connect(d.socket);
    assert_int_equal(read(fd, &byte, 1), 0);
    close(fd);
    assert_true(daemon_logged(&d, "connection refused"));
    close(greedy);
    do { /* until it has given it back */
        sleep_ms(1);
        wire_daemon_stats(b.fd, &stats);
    } while (stats.n_connections > 1);
    bystander_check_alone(&b);
    bystander_deinit(&b);
    assert_int_equal(daemon_stop(&d, SIGTERM), 0);
}

/* ---- over TCP --------------------------------------------------------------------------------- */

static uint16_t port_of(const struct daemon_aid *d)
{
    static const char key[] = "metrics on loopback\" port=";
    static char log[LOG_BYTES];
    const int fd = open(d->log, O_RDONLY | O_CLOEXEC);
    const ssize_t n = read(fd, log, sizeof(log) - 1);
    const char *at;

    close(fd);
    log[n > 0 ? n : 0] = 0;
    at = strstr(log, key);
    assert_non_null(at);
    return (uint16_t)strtoul(at + sizeof(key) - 1, NULL, 10);
}

static int ask(uint16_t port, const char *request)
{
    const struct sockaddr_in a = {
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr = {htonl(INADDR_LOOPBACK)}};
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    char head[64] = "", rest[4096];
    int status = 0;

    assert_int_equal(connect(fd, (const struct sockaddr *)&a, sizeof(a)), 0);
    assert_int_equal(send(fd, request, strlen(request), MSG_NOSIGNAL), strlen(request));
    if (recv(fd, head, sizeof(head) - 1, MSG_WAITALL) <= 0 ||
        sscanf(head, "HTTP/1.1 %d ", &status) != 1)
        status = 0;
    while (recv(fd, rest, sizeof(rest), 0) > 0)
        continue;
    close(fd);
    return status;
}

static void pages_over_tcp(void **state)
{
    static const struct {
        const char *request;
        int status;
    } table[] = {
        {"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", 200},
        {"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", 200},
        {"HEAD /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", 200},
        {"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n", 421},
        {"GET /none HTTP/1.1\r\nHost: localhost\r\n\r\n", 404},
        {"POST / HTTP/1.1\r\nHost: localhost\r\n\r\n", 405},
        {"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\nabc", 413},
        {"GET / HTTP/3.0\r\nHost: localhost\r\n\r\n", 505},
        {"nonsense\r\nHost: localhost\r\n\r\n", 400},
    };
    struct bystander b;
    struct daemon_aid d;
    uint16_t port;

    (void)state;
    daemon_start(&d, "memory: {cap: 64MiB}\nmetrics: {listen: \"127.0.0.1:0\"}\n");
    bystander_init(&b, &d);
    port = port_of(&d);
    for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
        const int status = ask(port, table[i].request);

        if (status != table[i].status)
            fail_msg("%s: status %d, want %d", table[i].request, status, table[i].status);
    }
    bystander_check_alone(&b);
    bystander_deinit(&b);
    assert_int_equal(daemon_stop(&d, SIGTERM), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(starts_that_fail), cmocka_unit_test(ports_that_are_taken),
        cmocka_unit_test(no_descriptors),   cmocka_unit_test(no_memory),
        cmocka_unit_test(pages_over_tcp),
    };

    return cmocka_run_group_tests(tests, start, stop);
}
