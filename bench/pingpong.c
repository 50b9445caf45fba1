#include "bench/pingpong.h"

#include <dirent.h>
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MAX_BYTES = 65536, STOP = 2 };

int tkv_pin(int cpu, struct tkv_reason *why)
{
    cpu_set_t set;

    CPU_ZERO(&set);
    CPU_SET((unsigned)cpu, &set);
    if (sched_setaffinity(0, sizeof(set), &set))
        return tkv_reason_set(why, "cannot stay on processor %d: %s", cpu, strerror(errno));
    return 0;
}

int tkv_pin_process(pid_t pid, const cpu_set_t *set, struct tkv_reason *why)
{
    char path[64];
    struct dirent *entry;
    DIR *folder;
    int e = 0;

    if (pid == 0)
        return sched_setaffinity(0, sizeof(*set), set)
                   ? tkv_reason_set(why, "cannot choose processors: %s", strerror(errno))
                   : 0;
    (void)snprintf(path, sizeof(path), "/proc/%d/task", (int)pid);
    folder = opendir(path);
    if (!folder)
        return tkv_reason_set(why, "cannot list %s", path);
    while ((entry = readdir(folder)) != NULL) {
        const pid_t thread = (pid_t)strtol(entry->d_name, NULL, 10);

        if (thread > 0 && sched_setaffinity(thread, sizeof(*set), set) &&
            errno != ESRCH) /* it ended */
            e = tkv_reason_set(why, "cannot choose processors for a thread of %d: %s", (int)pid,
                               strerror(errno));
    }
    (void)closedir(folder);
    return e;
}

/* The other process, which dies with this one. 0 in it, else its id, or -1 with a text. */
static pid_t start_other(const struct tkv_pingpong *p, struct tkv_reason *why)
{
    const pid_t pid = fork();

    if (pid < 0)
        return tkv_reason_set(why, "cannot fork: %s", strerror(errno));
    if (pid == 0) {
        (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (tkv_pin(p->there, why))
            _exit(1);
        return 0;
    }
    if (tkv_pin(p->here, why)) {
        (void)kill(pid, SIGKILL);
        (void)waitpid(pid, NULL, 0);
        return -1;
    }
    return pid;
}

static void wait_other(pid_t pid)
{
    while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
        ;
}

static bool read_all(int fd, char *bytes, size_t n)
{
    while (n > 0) {
        const ssize_t got = read(fd, bytes, n);

        if (got <= 0)
            return false;
        bytes += got;
        n -= (size_t)got;
    }
    return true;
}

static bool write_all(int fd, const char *bytes, size_t n)
{
    while (n > 0) {
        const ssize_t put = send(fd, bytes, n, MSG_NOSIGNAL);

        if (put <= 0)
            return false;
        bytes += put;
        n -= (size_t)put;
    }
    return true;
}

static void echo_socket(const struct tkv_pingpong *p, int fd)
{
    static char bytes[MAX_BYTES];

    while (read_all(fd, bytes, p->ping_bytes))
        if (!write_all(fd, bytes, p->pong_bytes))
            break;
}

int tkv_pingpong_socket(const struct tkv_pingpong *p, struct tkv_samples *us,
                        struct tkv_reason *why)
{
    static char bytes[MAX_BYTES];
    bool good = true;
    int fd[2];
    pid_t pid;

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fd))
        return tkv_reason_set(why, "socketpair: %s", strerror(errno));
    pid = start_other(p, why);
    if (pid == 0) {
        close(fd[0]);
        echo_socket(p, fd[1]);
        _exit(0);
    }
    close(fd[1]);
    for (size_t i = 0; pid > 0 && good && i < p->n; i++) {
        const uint64_t start = tkv_bench_now_ns();

        good = write_all(fd[0], bytes, p->ping_bytes) && read_all(fd[0], bytes, p->pong_bytes);
        tkv_samples_add(us, (double)(tkv_bench_now_ns() - start) * 1e-3);
    }
    close(fd[0]);
    if (pid < 0)
        return -1;
    wait_other(pid);
    return good ? 0 : tkv_reason_set(why, "the other end of the socket is gone");
}

static void echo_eventfd(int ping, int pong)
{
    uint64_t value;

    while (eventfd_read(ping, &value) == 0 && value < STOP)
        if (eventfd_write(pong, 1))
            break;
}

int tkv_pingpong_eventfd(const struct tkv_pingpong *p, struct tkv_samples *us,
                         struct tkv_reason *why)
{
    const int ping = eventfd(0, EFD_CLOEXEC);
    const int pong = eventfd(0, EFD_CLOEXEC);
    bool good = ping >= 0 && pong >= 0;
    pid_t pid = good ? start_other(p, why) : tkv_reason_set(why, "eventfd: %s", strerror(errno));
    uint64_t value;

    if (pid == 0) {
        echo_eventfd(ping, pong);
        _exit(0);
    }
    for (size_t i = 0; pid > 0 && good && i < p->n; i++) {
        const uint64_t start = tkv_bench_now_ns();

        good = eventfd_write(ping, 1) == 0 && eventfd_read(pong, &value) == 0;
        tkv_samples_add(us, (double)(tkv_bench_now_ns() - start) * 1e-3);
    }
    if (pid > 0) {
        (void)eventfd_write(ping, STOP);
        wait_other(pid);
    }
    if (ping >= 0)
        close(ping);
    if (pong >= 0)
        close(pong);
    return pid > 0 && !good ? tkv_reason_set(why, "eventfd: %s", strerror(errno))
           : pid < 0        ? -1
                            : 0;
}

/* A word each, on cache lines of their own. */
struct words {
    _Alignas(64) atomic_uint_fast64_t ping;
    _Alignas(64) atomic_uint_fast64_t pong;
};

static void echo_spin(struct words *w)
{
    for (uint64_t i = 1;; i++) {
        uint64_t now;

        while ((now = atomic_load_explicit(&w->ping, memory_order_acquire)) < i)
            ;
        if (now == UINT64_MAX)
            return;
        atomic_store_explicit(&w->pong, i, memory_order_release);
    }
}

int tkv_pingpong_spin(const struct tkv_pingpong *p, struct tkv_samples *us, struct tkv_reason *why)
{
    struct words *w =
        mmap(NULL, sizeof(*w), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pid_t pid;

    if (w == MAP_FAILED)
        return tkv_reason_set(why, "mmap: %s", strerror(errno));
    pid = start_other(p, why);
    if (pid == 0) {
        echo_spin(w);
        _exit(0);
    }
    for (uint64_t i = 1; pid > 0 && i <= p->n; i++) {
        const uint64_t start = tkv_bench_now_ns();

        atomic_store_explicit(&w->ping, i, memory_order_release);
        while (atomic_load_explicit(&w->pong, memory_order_acquire) < i)
            ;
        tkv_samples_add(us, (double)(tkv_bench_now_ns() - start) * 1e-3);
    }
    if (pid > 0) {
        atomic_store_explicit(&w->ping, UINT64_MAX, memory_order_release);
        wait_other(pid);
    }
    (void)munmap(w, sizeof(*w));
    return pid < 0 ? -1 : 0;
}
