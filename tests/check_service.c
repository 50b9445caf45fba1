/* trikvd as a process: signals, reload, its socket file, the service manager, exit codes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "proto/errors.h"
#include "proto/trikv.pb-c.h"
#include "tests/daemon_aid.h"
#include "tests/rng.h"
#include "tests/wire.h"

static const char *const CONFIG = "memory:\n  cap: 64MiB\nworkers:\n  threads: 2\n"
                                  "log:\n  level: info\nlimits:\n  idle_timeout: 400ms\n";

/* Run trikvd with these arguments, its output to a file; returns the exit code. */
static int run(char *const *argv, char *output, size_t n)
{
    char path[600], file[] = "/tmp/trikv-test-XXXXXX";
    const int fd = mkstemp(file);
    ssize_t got;
    int status;
    pid_t pid;

    assert_true(fd >= 0);
    unlink(file);
    daemon_program(path, sizeof(path));
    pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        dup2(fd, STDOUT_FILENO);
        dup2(fd, STDERR_FILENO);
        execv(path, argv);
        _exit(127);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    got = pread(fd, output, n - 1, 0);
    assert_true(got >= 0);
    output[got] = 0;
    close(fd);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

struct command {
    const char *args[6];
    int code;
    const char *text; /* part of the output */
};

static char *loose(const char *s)
{
    const union {
        const char *in;
        char *out;
    } u = {s};

    return u.out;
}

static void check_command_line(void **state)
{
    static const struct command commands[] = {
        {{"--help"}, 0, "--check-config"},
        {{"--version"}, 0, "trikvd 0."},
        {{"--bogus"}, 64, "--bogus"},
        {{"--config"}, 64, "wants a value"},
        {{"argument"}, 64, "argument"},
        {{"--dump-config", "--memory-cap", "3MiB"}, 0, "cap: 3MiB"},
        {{"--dump-config", "--memory-cap", "3MiB"}, 0, "command line"},
        {{"--dump-config", "--memory-cap", "lots"}, 78, "memory.cap"},
        {{"--check-config", "--log-level", "chatty"}, 78, "command line: log.level"},
        {{"--check-config", "--config", "/nonexistent.yaml"}, 78, "cannot read"},
        {{"--threads", "-1"}, 78, "workers.threads"},
        {{"--check-config", "--socket", ""}, 78, "listen.socket"},
    };
    char output[8192];

    (void)state;
    for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++) {
        char *argv[8] = {loose("trikvd")};
        int code;

        for (int a = 0; a < 6 && commands[i].args[a]; a++)
            argv[a + 1] = loose(commands[i].args[a]);
        code = run(argv, output, sizeof(output));
        if (code != commands[i].code || !strstr(output, commands[i].text))
            fail_msg("%s %s: code %d, output \"%s\"", argv[1], argv[2] ? argv[2] : "", code,
                     output);
    }
}

static void check_term_drains(void **state)
{
    struct daemon_aid d;
    struct rng rng = {4};
    struct wire_reply r;
    Trikv__TokensRequest m = TRIKV__TOKENS_REQUEST__INIT;
    size_t bytes, n;
    float *p = wire_payload(&rng, 2000, &bytes);
    uint8_t *frame;
    struct stat s;
    int busy, idle, code;

    (void)state;
    daemon_start(&d, CONFIG);
    busy = wire_connect_hello(d.socket);
    idle = wire_connect_hello(d.socket);
    m.session = wire_open(busy, 1, &code);
    m.n_tokens = 2000;
    frame = wire_frame(TRIKV_APPEND_ATTEND, 9, &m.base, p, bytes, 0, &n);
    assert_true(wire_write(busy, frame, n / 2, -1));
    assert_true(wire_taken(busy));
    kill(d.pid, SIGTERM);
    assert_int_equal(wire_read(idle, &r, WIRE_TIMEOUT_MS), 0);
    assert_true(wire_write(busy, frame + n / 2, n - n / 2, -1));
    assert_int_equal(wire_read(busy, &r, WIRE_TIMEOUT_MS), 1);
    assert_int_equal(r.code, TRIKV_E_DRAINING); /* it was not in flight when the signal came */
    wire_reply_deinit(&r);
    assert_int_equal(waitpid(d.pid, &code, 0), d.pid);
    assert_int_equal(code, 0);
    d.pid = 0;
    assert_int_not_equal(stat(d.socket, &s), 0);
    daemon_stop(&d, 0);
    close(busy);
    close(idle);
    free(frame);
    free(p);
}

/* What is in flight at the signal is answered. */
static void check_term_finishes(void **state)
{
    struct daemon_aid d;
    struct rng rng = {4};
    struct wire_reply r;
    Trikv__TokensRequest m = TRIKV__TOKENS_REQUEST__INIT;
    size_t bytes, n;
    float *p = wire_payload(&rng, 1200, &bytes);
    uint8_t *frame;
    int fd, code;

    (void)state;
    daemon_start(&d, CONFIG);
    fd = wire_connect_hello(d.socket);
    m.session = wire_open(fd, 1, &code);
    m.n_tokens = 1200;
    frame = wire_frame(TRIKV_APPEND_ATTEND, 9, &m.base, p, bytes, 0, &n);
    assert_true(wire_write(fd, frame, n, -1));
    sleep_ms(5);
    kill(d.pid, SIGTERM);
    assert_int_equal(wire_read(fd, &r, WIRE_TIMEOUT_MS), 1);
    assert_true(r.code == 0 || r.code == TRIKV_E_DRAINING);
    wire_reply_deinit(&r);
    close(fd);
    assert_int_equal(waitpid(d.pid, &code, 0), d.pid);
    assert_int_equal(code, 0);
    d.pid = 0;
    daemon_stop(&d, 0);
    free(frame);
    free(p);
}

static void check_second_signal(void **state)
{
    struct daemon_aid d;
    int fd, status;
    const char byte = 'T';

    (void)state;
    daemon_start(&d, CONFIG);
    fd = wire_connect(d.socket);
    assert_true(wire_write(fd, &byte, 1, -1)); /* inside a frame: the drain waits */
    assert_true(wire_taken(fd));
    kill(d.pid, SIGTERM);
    assert_true(daemon_logged(&d, "msg=draining"));
    assert_true(daemon_alive(&d));
    status = daemon_stop(&d, SIGINT);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 1);
    close(fd);
}

static void check_reload(void **state)
{
    struct daemon_aid d;
    int fd;

    (void)state;
    daemon_start(&d, CONFIG);
    daemon_write_config(&d, "memory:\n  cap: 64MiB\nlimits:\n  sessions: x\n  seconds: 3\n");
    kill(d.pid, SIGHUP);
    assert_true(daemon_logged(&d, "limits.sessions: want a whole number"));
    assert_true(daemon_logged(&d, "unknown key \\\"seconds\\\""));
    assert_true(daemon_logged(&d, "the old configuration stays"));
    daemon_write_config(&d, "memory:\n  cap: 65MiB\nworkers:\n  threads: 2\n");
    kill(d.pid, SIGHUP);
    assert_true(daemon_logged(&d, "memory.cap cannot be changed"));
    wire_serve_well(d.socket);
    daemon_write_config(&d, "memory:\n  cap: 64MiB\nworkers:\n  threads: 2\nlog:\n  level: debug\n"
                            "limits:\n  sessions_per_connection: 1\n");
    kill(d.pid, SIGHUP);
    assert_true(daemon_logged(&d, "msg=reloaded"));
    fd = wire_connect_hello(d.socket);
    assert_true(daemon_logged(&d, "msg=hello")); /* a debug line */
    for (int i = 0; i < 2; i++) {
        int code;

        wire_open(fd, 1, &code);
        assert_int_equal(code, i == 0 ? 0 : TRIKV_E_TOO_MANY);
    }
    close(fd);
    assert_int_equal(daemon_stop(&d, SIGTERM), 0);
}

static void check_idle_timeout(void **state)
{
    struct daemon_aid d;
    struct pollfd p = {.events = POLLIN};
    char byte;

    (void)state;
    daemon_start(&d, CONFIG);
    p.fd = wire_connect_hello(d.socket);
    assert_int_equal(poll(&p, 1, 200), 0);
    assert_int_equal(poll(&p, 1, 3000), 1);
    assert_int_equal(read(p.fd, &byte, 1), 0);
    assert_true(daemon_logged(&d, "idle too long"));
    close(p.fd);
    assert_int_equal(daemon_stop(&d, SIGTERM), 0);
}

/* One daemon a socket; what a killed one left is replaced, what is no socket is not. */
static void check_socket_file(void **state)
{
    struct daemon_aid d;
    char *second[] = {loose("trikvd"),     loose("--socket"), d.socket,
                      loose("--profiles"), d.directory,       NULL};
    char output[4096];
    struct stat s;
    FILE *f;

    (void)state;
    daemon_start(&d, CONFIG);
    assert_int_equal(stat(d.socket, &s), 0);
    assert_int_equal(s.st_mode & 0777, 0660);
    assert_int_equal(run(second, output, sizeof(output)), 69);
    assert_non_null(strstr(output, "another daemon listens there"));
    wire_serve_well(d.socket);
    kill(d.pid, SIGKILL);
    assert_int_equal(waitpid(d.pid, NULL, 0), d.pid);
    d.pid = 0;
    assert_int_equal(stat(d.socket, &s), 0); /* left behind */
    unlink(d.socket);
    f = fopen(d.socket, "w");
    assert_non_null(f);
    fclose(f);
    assert_int_equal(run(second, output, sizeof(output)), 69);
    assert_non_null(strstr(output, "is no socket"));
    daemon_stop(&d, 0);
}

static void check_stale_socket(void **state)
{
    struct daemon_aid d;
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    const int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    char directory[] = "/tmp/trikv-test-XXXXXX";
    char *args[] = {loose("trikvd"),     loose("--socket"), a.sun_path,
                    loose("--profiles"), directory,         NULL};
    char path[600];
    pid_t pid;
    int status, client = -1;

    (void)state;
    (void)d;
    assert_non_null(mkdtemp(directory));
    snprintf(a.sun_path, sizeof(a.sun_path), "%s/socket", directory);
    assert_int_equal(bind(fd, (const struct sockaddr *)&a, sizeof(a)), 0);
    close(fd); /* the file stays */
    daemon_program(path, sizeof(path));
    pid = fork();
    if (pid == 0) {
        status = open("/dev/null", O_WRONLY);
        dup2(status, STDERR_FILENO);
        execv(path, args);
        _exit(127);
    }
    for (int i = 0; i < 300 && client < 0; i++, sleep_ms(10))
        client = wire_connect(a.sun_path);
    assert_true(client >= 0);
    close(client);
    kill(pid, SIGTERM);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
    rmdir(directory);
}

/* The next thing it says about itself, and not about what it wants to have kept. */
static void hear(int notify, char *message, size_t n)
{
    do {
        memset(message, 0, n);
        assert_true(recv(notify, message, n - 1, 0) > 0);
    } while (strncmp(message, "FDSTORE", 7) == 0);
}

/* A stand-in for the service manager: passes a listening socket, hears READY and STOPPING. */
static void check_service_manager(void **state)
{
    char directory[] = "/tmp/trikv-test-XXXXXX", path[600], message[64] = "", pid_text[32];
    struct sockaddr_un listen_at = {.sun_family = AF_UNIX}, notify_at = {.sun_family = AF_UNIX};
    const int listener = socket(AF_UNIX, SOCK_STREAM, 0), notify = socket(AF_UNIX, SOCK_DGRAM, 0);
    char *args[] = {loose("trikvd"), loose("--profiles"), directory, NULL};
    int status;
    pid_t pid;

    (void)state;
    assert_non_null(mkdtemp(directory));
    snprintf(listen_at.sun_path, sizeof(listen_at.sun_path), "%s/l", directory);
    snprintf(notify_at.sun_path, sizeof(notify_at.sun_path), "%s/n", directory);
    assert_int_equal(bind(listener, (const struct sockaddr *)&listen_at, sizeof(listen_at)), 0);
    assert_int_equal(listen(listener, 8), 0);
    assert_int_equal(bind(notify, (const struct sockaddr *)&notify_at, sizeof(notify_at)), 0);
    daemon_program(path, sizeof(path));
    pid = fork();
    if (pid == 0) {
        status = open("/dev/null", O_WRONLY);
        dup2(status, STDERR_FILENO);
        dup2(listener, 3);
        snprintf(pid_text, sizeof(pid_text), "%d", (int)getpid());
        setenv("LISTEN_PID", pid_text, 1);
        setenv("LISTEN_FDS", "1", 1);
        setenv("NOTIFY_SOCKET", notify_at.sun_path, 1);
        execv(path, args);
        _exit(127);
    }
    hear(notify, message, sizeof(message));
    assert_string_equal(message, "READY=1");
    wire_serve_well(listen_at.sun_path);
    kill(pid, SIGHUP);
    hear(notify, message, sizeof(message));
    assert_memory_equal(message, "RELOADING=1\nMONOTONIC_USEC=", 27);
    hear(notify, message, sizeof(message));
    assert_string_equal(message, "READY=1");
    kill(pid, SIGTERM);
    hear(notify, message, sizeof(message));
    assert_string_equal(message, "STOPPING=1");
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
    assert_int_equal(unlink(listen_at.sun_path), 0); /* not ours to remove, so still there */
    unlink(notify_at.sun_path);
    rmdir(directory);
    close(listener);
    close(notify);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(check_command_line),    cmocka_unit_test(check_term_drains),
        cmocka_unit_test(check_term_finishes),   cmocka_unit_test(check_second_signal),
        cmocka_unit_test(check_reload),          cmocka_unit_test(check_idle_timeout),
        cmocka_unit_test(check_socket_file),     cmocka_unit_test(check_stale_socket),
        cmocka_unit_test(check_service_manager),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
