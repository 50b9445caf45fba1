#include "tests/manager.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#include <errno.h>
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
#include <time.h>
#include <unistd.h>

#include "tests/daemon_aid.h"

enum { FIRST_PASSED_FD = 3, HIGH_FD = 400, READY_MS = 20000 };

static uint64_t now_us(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

static int bind_socket(const char *path, int type)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    const int fd = socket(AF_UNIX, type | SOCK_CLOEXEC, 0);

    snprintf(a.sun_path, sizeof(a.sun_path), "%s", path);
    assert_true(fd >= 0);
    assert_int_equal(bind(fd, (const struct sockaddr *)&a, sizeof(a)), 0);
    return fd;
}

void manager_init(struct manager *m, const char *config_text)
{
    char path[96];
    FILE *f;

    memset(m, 0, sizeof(*m));
    snprintf(m->folder, sizeof(m->folder), "/tmp/trikv-test-XXXXXX");
    assert_non_null(mkdtemp(m->folder));
    snprintf(m->socket, sizeof(m->socket), "%s/socket", m->folder);
    snprintf(m->config, sizeof(m->config), "%s/config", m->folder);
    snprintf(m->log, sizeof(m->log), "%s/log", m->folder);
    snprintf(path, sizeof(path), "%s/notify", m->folder);
    m->listener = bind_socket(m->socket, SOCK_STREAM);
    assert_int_equal(listen(m->listener, 64), 0);
    m->notify = bind_socket(path, SOCK_DGRAM);
    f = fopen(m->config, "w");
    assert_non_null(f);
    fputs(config_text, f);
    fclose(f);
}

static void drop(struct manager *m, const char *name)
{
    for (size_t i = m->n_kept; i-- > 0;) {
        if (strcmp(m->kept[i].name, name) != 0)
            continue;
        close(m->kept[i].fd);
        m->kept[i] = m->kept[--m->n_kept];
    }
}

void manager_deinit(struct manager *m)
{
    static const char *const files[] = {"socket", "config", "log", "notify"};
    char path[96];

    if (m->pid)
        (void)manager_stop(m, SIGKILL);
    while (m->n_kept > 0)
        close(m->kept[--m->n_kept].fd);
    close(m->listener);
    close(m->notify);
    for (size_t i = 0; i < 4; i++) {
        snprintf(path, sizeof(path), "%s/%s", m->folder, files[i]);
        unlink(path);
    }
    rmdir(m->folder);
}

/* ---- what the daemon says ------------------------------------------------------------------- */

static void take(struct manager *m, char *text, int fd)
{
    char *name = strstr(text, "FDNAME=");

    if (strncmp(text, "READY=1", 7) == 0)
        m->is_ready = true;
    if (name) {
        name += 7;
        name[strcspn(name, "\n")] = 0;
    }
    if (strncmp(text, "FDSTOREREMOVE=1", 15) == 0) {
        assert_non_null(name);
        drop(m, name);
    } else if (strncmp(text, "FDSTORE=1", 9) == 0 && !m->is_deaf) {
        assert_true(name && fd >= 0 && m->n_kept < MANAGER_MAX_FDS);
        snprintf(m->kept[m->n_kept].name, sizeof(m->kept[0].name), "%s", name);
        m->kept[m->n_kept++].fd = fd;
        return;
    }
    if (fd >= 0)
        close(fd);
}

static bool hear(struct manager *m)
{
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control;
    char text[512];
    struct iovec iov = {text, sizeof(text) - 1};
    struct msghdr h = {.msg_iov = &iov,
                       .msg_iovlen = 1,
                       .msg_control = control.bytes,
                       .msg_controllen = sizeof(control.bytes)};
    const ssize_t n = recvmsg(m->notify, &h, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    int fd = -1;

    if (n < 0)
        return false;
    text[n] = 0;
    if (CMSG_FIRSTHDR(&h) && CMSG_FIRSTHDR(&h)->cmsg_type == SCM_RIGHTS)
        memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&h)), sizeof(fd));
    take(m, text, fd);
    return true;
}

void manager_listen(struct manager *m, int ms)
{
    const uint64_t end = now_us() + (uint64_t)ms * 1000;

    for (;;) {
        struct pollfd p = {.fd = m->notify, .events = POLLIN};
        const uint64_t now = now_us();

        while (hear(m))
            ;
        if (now >= end)
            return;
        (void)poll(&p, 1, (int)((end - now) / 1000) + 1);
    }
}

/* ---- the daemon ----------------------------------------------------------------------------- */

static void run_program(const struct manager *m)
{
    char path[600], text[32], names[MANAGER_MAX_FDS * 32] = "trikvd.socket";
    const int log = open(m->log, O_WRONLY | O_CREAT | O_APPEND, 0600);
    int high[MANAGER_MAX_FDS + 1];
    size_t at = strlen(names);

    (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
    dup2(log, STDERR_FILENO);
    high[0] = fcntl(m->listener, F_DUPFD, HIGH_FD);
    for (size_t i = 0; i < m->n_kept; i++) {
        high[i + 1] = fcntl(m->kept[i].fd, F_DUPFD, HIGH_FD);
        at += (size_t)snprintf(names + at, sizeof(names) - at, ":%s", m->kept[i].name);
    }
    for (size_t i = 0; i <= m->n_kept; i++)
        dup2(high[i], FIRST_PASSED_FD + (int)i);
    for (size_t i = 0; i <= m->n_kept; i++)
        close(high[i]);
    snprintf(text, sizeof(text), "%d", (int)getpid());
    setenv("LISTEN_PID", text, 1);
    snprintf(text, sizeof(text), "%zu", m->n_kept + 1);
    setenv("LISTEN_FDS", text, 1);
    setenv("LISTEN_FDNAMES", names, 1);
    snprintf(names, sizeof(names), "%s/notify", m->folder);
    setenv("NOTIFY_SOCKET", names, 1);
    daemon_program(path, sizeof(path));
    execl(path, path, "--config", m->config, "--profiles", m->folder, (char *)NULL);
    _exit(127);
}

uint64_t manager_start(struct manager *m)
{
    const uint64_t began = now_us();

    m->is_ready = false;
    m->pid = fork();
    assert_true(m->pid >= 0);
    if (m->pid == 0)
        run_program(m);
    while (!m->is_ready) {
        int status;

        manager_listen(m, 1);
        if (waitpid(m->pid, &status, WNOHANG) == m->pid || now_us() - began > READY_MS * 1000) {
            m->pid = 0;
            fail_msg("trikvd does not get ready: see %s", m->log);
        }
    }
    return now_us() - began;
}

int manager_stop(struct manager *m, int signal)
{
    int status = 0;

    kill(m->pid, signal);
    while (waitpid(m->pid, &status, WNOHANG) == 0)
        manager_listen(m, 1); /* it may wait for us to hear it */
    m->pid = 0;
    manager_listen(m, 0);
    return status;
}

bool manager_logged(const struct manager *m, const char *text)
{
    char line[1024];
    bool found = false;
    FILE *f = fopen(m->log, "r");

    while (f && !found && fgets(line, sizeof(line), f))
        found = strstr(line, text) != NULL;
    if (f)
        fclose(f);
    return found;
}
