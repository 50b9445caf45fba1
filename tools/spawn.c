#include "tools/spawn.h"

#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { MAX_ARGUMENTS = 16, WAIT_MS = 10000, POLL_MS = 5 };

static int listens(const char *path)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int yes;

    (void)snprintf(a.sun_path, sizeof(a.sun_path), "%s", path);
    yes = fd >= 0 && connect(fd, (const struct sockaddr *)&a, sizeof(a)) == 0;
    if (fd >= 0)
        close(fd);
    return yes;
}

static int wait_until_it_listens(struct tkv_spawn *s, const char *program, struct tkv_reason *why)
{
    const struct timespec pause = {.tv_nsec = POLL_MS * 1000000L};
    int status;

    for (int waited = 0; waited < WAIT_MS; waited += POLL_MS) {
        if (listens(s->socket))
            return 0;
        if (waitpid(s->pid, &status, WNOHANG) == s->pid) {
            s->pid = 0;
            return tkv_reason_set(why, "%s stopped at once (its reason stands above)", program);
        }
        nanosleep(&pause, NULL);
    }
    return tkv_reason_set(why, "%s does not listen on %s after %d s", program, s->socket,
                          WAIT_MS / 1000);
}

static void run_child(const char *program, const char *socket, const char *const *arguments)
{
    const char *argv[MAX_ARGUMENTS + 4] = {program, "--socket", socket};

    for (int i = 0; i < MAX_ARGUMENTS && arguments[i]; i++)
        argv[3 + i] = arguments[i];
    (void)prctl(PR_SET_PDEATHSIG, SIGTERM); /* no daemon is left if this process is killed */
    execv(program, (char *const *)(uintptr_t)argv);
    (void)fprintf(stderr, "cannot start %s: %s\n", program, strerror(errno));
    _exit(127);
}

void tkv_spawn_daemon_path(char *path, size_t n)
{
    char program[PATH_MAX];
    const ssize_t length = readlink("/proc/self/exe", program, sizeof(program) - 1);
    char *slash = NULL;

    if (length > 0) {
        program[length] = '\0';
        slash = strrchr(program, '/');
    }
    if (slash)
        *slash = '\0';
    (void)snprintf(path, n, "%s%strikvd", slash ? program : "", slash ? "/" : "");
}

int tkv_spawn_start(struct tkv_spawn *s, const char *program, const char *const *arguments,
                    struct tkv_reason *why)
{
    *s = (struct tkv_spawn){0};
    (void)snprintf(s->folder, sizeof(s->folder), "/tmp/trikv-XXXXXX");
    if (!mkdtemp(s->folder)) {
        s->folder[0] = '\0';
        return tkv_reason_set(why, "cannot make a folder in /tmp: %s", strerror(errno));
    }
    (void)snprintf(s->socket, sizeof(s->socket), "%s/trikvd.sock", s->folder);
    s->pid = fork();
    if (s->pid == 0)
        run_child(program, s->socket, arguments);
    if (s->pid < 0) {
        s->pid = 0;
        (void)tkv_spawn_stop(s);
        return tkv_reason_set(why, "cannot fork: %s", strerror(errno));
    }
    if (wait_until_it_listens(s, program, why)) {
        (void)tkv_spawn_stop(s);
        return -1;
    }
    return 0;
}

int tkv_spawn_stop(struct tkv_spawn *s)
{
    int status = 0;

    if (s->pid > 0) {
        (void)kill(s->pid, SIGTERM);
        while (waitpid(s->pid, &status, 0) < 0 && errno == EINTR)
            ;
    }
    if (s->folder[0]) {
        (void)unlink(s->socket);
        (void)rmdir(s->folder);
    }
    *s = (struct tkv_spawn){0};
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}
