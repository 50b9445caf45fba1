/* Starting and stopping trikvd; see daemon_aid.h. */
#include "tests/daemon_aid.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "tests/wire.h"

void sleep_ms(unsigned ms)
{
    const struct timespec t = {ms / 1000, (long)(ms % 1000) * 1000000};

    nanosleep(&t, NULL);
}

void daemon_program(char *path, size_t n)
{
    const char *given = getenv("TRIKV_BIN");
    char self[512] = "";
    const ssize_t got = readlink("/proc/self/exe", self, sizeof(self) - 1);
    char *slash;

    assert_true(got > 0);
    slash = strrchr(self, '/');
    *slash = 0;
    if (given)
        snprintf(path, n, "%s/trikvd", given);
    else
        snprintf(path, n, "%s/../bin/trikvd", self);
}

void daemon_write_config(const struct daemon_aid *d, const char *text)
{
    FILE *f = fopen(d->config, "w");

    assert_non_null(f);
    assert_true(fputs(text, f) >= 0);
    assert_int_equal(fclose(f), 0);
}

static void run_program(const struct daemon_aid *d)
{
    char path[600];
    const int fd = open(d->log, O_WRONLY | O_CREAT | O_TRUNC, 0600);

    daemon_program(path, sizeof(path));
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* a test that dies takes its daemon along */
    dup2(fd, STDERR_FILENO);
    dup2(fd, STDOUT_FILENO);
    execl(path, path, "--config", d->config, "--socket", d->socket, "--profiles", d->directory,
          (char *)NULL);
    perror(path);
    _exit(127);
}

void daemon_start(struct daemon_aid *d, const char *config_text)
{
    int fd = -1;

    memset(d, 0, sizeof(*d));
    snprintf(d->directory, sizeof(d->directory), "/tmp/trikv-test-XXXXXX");
    assert_non_null(mkdtemp(d->directory));
    snprintf(d->socket, sizeof(d->socket), "%s/socket", d->directory);
    snprintf(d->config, sizeof(d->config), "%s/trikvd.conf", d->directory);
    snprintf(d->log, sizeof(d->log), "%s/log", d->directory);
    daemon_write_config(d, config_text);
    d->pid = fork();
    assert_true(d->pid >= 0);
    if (d->pid == 0)
        run_program(d);
    for (int i = 0; i < 500 && fd < 0; i++) {
        assert_true(daemon_alive(d));
        fd = wire_connect(d->socket);
        if (fd < 0)
            sleep_ms(10);
    }
    assert_true(fd >= 0);
    wire_hello(fd); /* the answer comes when all of it has started */
    close(fd);
}

bool daemon_alive(const struct daemon_aid *d)
{
    return waitpid(d->pid, NULL, WNOHANG) == 0;
}

static void remove_directory(const char *path)
{
    DIR *dir = opendir(path);
    struct dirent *e;

    while (dir && (e = readdir(dir))) {
        if (e->d_name[0] != '.')
            unlinkat(dirfd(dir), e->d_name, 0);
    }
    if (dir)
        closedir(dir);
    rmdir(path);
}

/* What the daemon said is worth seeing when a test fails. */
static void show_log(const struct daemon_aid *d)
{
    FILE *f = fopen(d->log, "r");
    char line[512];

    while (f && fgets(line, sizeof(line), f)) {
        if (strstr(line, "ERROR") || strstr(line, "runtime error") || strstr(line, "SUMMARY") ||
            strstr(line, "    #"))
            fputs(line, stderr);
    }
    if (f)
        fclose(f);
}

int daemon_stop(struct daemon_aid *d, int signal)
{
    int status = -1;

    if (d->pid > 0) {
        kill(d->pid, signal);
        assert_int_equal(waitpid(d->pid, &status, 0), d->pid);
    }
    if (status)
        show_log(d);
    d->pid = 0;
    remove_directory(d->directory);
    return status;
}

bool daemon_logged(const struct daemon_aid *d, const char *text)
{
    char *log = malloc(1 << 20);
    bool found = false;

    assert_non_null(log);
    for (int i = 0; i < 1000 && !found; i++) { /* ten seconds: emulators are slow */
        FILE *f = fopen(d->log, "r");
        const size_t n = f ? fread(log, 1, (1 << 20) - 1, f) : 0;

        if (f)
            fclose(f);
        log[n] = 0;
        found = strstr(log, text) != NULL;
        if (!found)
            sleep_ms(10);
    }
    free(log);
    return found;
}

unsigned daemon_fds(const struct daemon_aid *d)
{
    char path[64];
    unsigned n = 0;
    DIR *dir;

    snprintf(path, sizeof(path), "/proc/%d/fd", (int)d->pid);
    dir = opendir(path);
    assert_non_null(dir);
    while (readdir(dir))
        n++;
    closedir(dir);
    return n - 2;
}

/* ---- what it holds ------------------------------------------------------------------------------ */

enum { N_SAME = 5, N_LOOKS = 1000, LOOK_MS = 5 };

struct daemon_rest daemon_holds(const struct daemon_aid *d, int fd)
{
    struct wire_daemon_stats s;

    wire_daemon_stats(fd, &s);
    return (struct daemon_rest){.memory_bytes = s.memory_used_bytes,
                                .n_fds = daemon_fds(d),
                                .n_connections = s.n_connections,
                                .n_sessions = s.n_sessions};
}

bool daemon_rest_same(const struct daemon_rest *a, const struct daemon_rest *b)
{
    return a->memory_bytes == b->memory_bytes && a->n_fds == b->n_fds &&
           a->n_connections == b->n_connections && a->n_sessions == b->n_sessions;
}

/* A connection that was closed may still be on its way out, and a file be open that is just read. */
struct daemon_rest daemon_rest_of(const struct daemon_aid *d)
{
    const int fd = wire_connect_hello(d->socket);
    struct daemon_rest r = daemon_holds(d, fd);
    int n_same = 1;

    for (int i = 0; i < N_LOOKS && n_same < N_SAME; i++) {
        struct daemon_rest now;

        sleep_ms(LOOK_MS);
        now = daemon_holds(d, fd);
        n_same = daemon_rest_same(&now, &r) ? n_same + 1 : 1;
        r = now;
    }
    close(fd);
    return r;
}

/* Less it may: working memory that connections keep goes when memory is short. */
static bool holds_no_more(const struct daemon_rest *now, const struct daemon_rest *before)
{
    struct daemon_rest r = *now;

    if (r.memory_bytes < before->memory_bytes)
        r.memory_bytes = before->memory_bytes;
    return daemon_rest_same(&r, before);
}

void daemon_check_well(const struct daemon_aid *d, const struct daemon_rest *before)
{
    struct daemon_rest now;
    int fd;

    assert_true(daemon_alive(d));
    wire_serve_well(d->socket);
    fd = wire_connect_hello(d->socket);
    now = daemon_holds(d, fd);
    for (int i = 0; i < N_LOOKS && !holds_no_more(&now, before); i++) {
        sleep_ms(LOOK_MS);
        now = daemon_holds(d, fd);
    }
    close(fd);
    if (!holds_no_more(&now, before))
        fail_msg("%lld bytes, %d descriptors, %d connections, %d sessions more than before",
                 (long long)(now.memory_bytes - before->memory_bytes),
                 (int)(now.n_fds - before->n_fds), (int)(now.n_connections - before->n_connections),
                 (int)(now.n_sessions - before->n_sessions));
}

/* ---- a daemon for a group of tests ------------------------------------------------------------ */

static const char *const CONFIG = "listen:\n  mode: \"0666\"\n  max_connections: 8\n"
                                  "memory:\n  cap: 64MiB\nlimits:\n  payload: 32MiB\n"
                                  "  sessions: 6\n  sessions_per_connection: 4\n"
                                  "workers:\n  threads: 2\nlog:\n  level: warn\n";

static struct daemon_aid the_daemon;

int daemon_set_up(void **state)
{
    daemon_start(&the_daemon, CONFIG);
    *state = &the_daemon;
    return chmod(the_daemon.directory, 0755); /* for the test with another user */
}

int daemon_tear_down(void **state)
{
    return daemon_stop(*state, SIGTERM);
}

int daemon_hello(void **state)
{
    return wire_connect_hello(((const struct daemon_aid *)*state)->socket);
}
