/* trikvd under a service manager that passes several sockets and wants to hear that it lives. */
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
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/daemon_aid.h"
#include "tests/http_aid.h"
#include "tests/wire.h"

enum { WATCHDOG_MS = 200 };

struct manager {
    char directory[64];
    char main_path[96];
    char metrics_path[96];
    char notify_path[96];
    int main_fd, metrics_fd, notify_fd;
    pid_t pid;
};

static int bind_unix(const char *path, int type)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    const int fd = socket(AF_UNIX, type | SOCK_CLOEXEC, 0);

    snprintf(a.sun_path, sizeof(a.sun_path), "%s", path);
    assert_int_equal(bind(fd, (const struct sockaddr *)&a, sizeof(a)), 0);
    if (type == SOCK_STREAM)
        assert_int_equal(listen(fd, 16), 0);
    return fd;
}

static int setup(void **state)
{
    struct manager *m = calloc(1, sizeof(*m));

    assert_non_null(m);
    *state = m;
    snprintf(m->directory, sizeof(m->directory), "/tmp/trikv-test-XXXXXX");
    assert_non_null(mkdtemp(m->directory));
    snprintf(m->main_path, sizeof(m->main_path), "%s/main", m->directory);
    snprintf(m->metrics_path, sizeof(m->metrics_path), "%s/metrics", m->directory);
    snprintf(m->notify_path, sizeof(m->notify_path), "%s/notify", m->directory);
    m->main_fd = bind_unix(m->main_path, SOCK_STREAM);
    m->metrics_fd = bind_unix(m->metrics_path, SOCK_STREAM);
    m->notify_fd = bind_unix(m->notify_path, SOCK_DGRAM);
    return 0;
}

static int teardown(void **state)
{
    struct manager *m = *state;

    if (m->pid > 0) {
        kill(m->pid, SIGKILL);
        waitpid(m->pid, NULL, 0);
    }
    close(m->main_fd);
    close(m->metrics_fd);
    close(m->notify_fd);
    unlink(m->main_path);
    unlink(m->metrics_path);
    unlink(m->notify_path);
    assert_int_equal(rmdir(m->directory), 0);
    free(m);
    return 0;
}

static void become_trikvd(const struct manager *m, const char *names, bool own_watchdog)
{
    char path[600], pid[32], watchdog[32];
    const int null = open("/dev/null", O_WRONLY);

    daemon_program(path, sizeof(path));
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    snprintf(pid, sizeof(pid), "%d", (int)getpid());
    snprintf(watchdog, sizeof(watchdog), "%d", WATCHDOG_MS * 1000);
    setenv("LISTEN_PID", pid, 1);
    setenv("LISTEN_FDS", "2", 1);
    setenv("LISTEN_FDNAMES", names, 1);
    setenv("NOTIFY_SOCKET", m->notify_path, 1);
    setenv("WATCHDOG_USEC", watchdog, 1);
    setenv("WATCHDOG_PID", own_watchdog ? pid : "1", 1);
    dup2(null, STDERR_FILENO);
    /* Above the places they go to, whatever numbers they have. */
    dup2(fcntl(m->main_fd, F_DUPFD, 10), 3);
    dup2(fcntl(m->metrics_fd, F_DUPFD, 10), 4);
    execl(path, path, "--profiles", m->directory, "--memory-cap", "64MiB", (char *)NULL);
    _exit(127);
}

static void start(struct manager *m, const char *names, bool own_watchdog)
{
    m->pid = fork();
    assert_true(m->pid >= 0);
    if (m->pid == 0)
        become_trikvd(m, names, own_watchdog);
}

/* The next thing the daemon says, "" if it says nothing for so long. */
static const char *hear(const struct manager *m, int timeout_ms, char *text, size_t n)
{
    struct pollfd p = {.fd = m->notify_fd, .events = POLLIN};
    ssize_t got = 0;

    if (poll(&p, 1, timeout_ms) == 1)
        got = recv(m->notify_fd, text, n - 1, 0);
    text[got > 0 ? got : 0] = 0;
    return text;
}

static void check_passed_sockets(void **state)
{
    struct manager *m = *state;
    char *text = malloc(HTTP_REPLY_BYTES);
    int status;

    start(m, "trikvd.socket:metrics", true);
    assert_string_equal(hear(m, 10000, text, 64), "READY=1");
    wire_serve_well(m->main_path);
    assert_int_equal(http_get(m->metrics_path, "/metrics", true, text), 200);
    assert_non_null(strstr(text, "trikv_requests_total"));
    free(text);
    kill(m->pid, SIGTERM);
    assert_int_equal(waitpid(m->pid, &status, 0), m->pid);
    m->pid = 0;
    assert_int_equal(status, 0);
}

static void check_watchdog(void **state)
{
    struct manager *m = *state;
    char text[64];

    start(m, "trikvd.socket:metrics", true);
    assert_string_equal(hear(m, 10000, text, sizeof(text)), "READY=1");
    for (int i = 0; i < 4; i++)
        assert_string_equal(hear(m, 2000, text, sizeof(text)), "WATCHDOG=1");
    kill(m->pid, SIGSTOP); /* a loop that hangs feeds nobody */
    while (hear(m, 2 * WATCHDOG_MS, text, sizeof(text))[0])
        ;
    assert_string_equal(hear(m, 2 * WATCHDOG_MS, text, sizeof(text)), "");
    kill(m->pid, SIGCONT);
    assert_string_equal(hear(m, 2000, text, sizeof(text)), "WATCHDOG=1");
}

static void check_unwatched(void **state)
{
    struct manager *m = *state;
    char text[64];

    start(m, "trikvd.socket:metrics", false);
    assert_string_equal(hear(m, 10000, text, sizeof(text)), "READY=1");
    assert_string_equal(hear(m, 4 * WATCHDOG_MS, text, sizeof(text)), "");
}

/* Two sockets and no word about which is which. */
static void check_unnamed(void **state)
{
    struct manager *m = *state;
    int status;

    start(m, "", true);
    assert_int_equal(waitpid(m->pid, &status, 0), m->pid);
    m->pid = 0;
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 78);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(check_passed_sockets, setup, teardown),
        cmocka_unit_test_setup_teardown(check_watchdog, setup, teardown),
        cmocka_unit_test_setup_teardown(check_unwatched, setup, teardown),
        cmocka_unit_test_setup_teardown(check_unnamed, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
