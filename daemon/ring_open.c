/* Making a ring: its file, its descriptors, its thread. */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "daemon/ring_priv.h"
#include "daemon/server.h"
#include "proto/errors.h"
#include "store/budget.h"

static int map(struct tkv_ring *r, int fd, uint64_t bytes, struct tkv_report *why)
{
    struct trikv_ring_entry copy; /* the header is as large, and as little to be trusted */
    struct trikv_ring_header h;
    void *const base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

    if (base == MAP_FAILED)
        return tkv_fail(why, TRIKV_E_SYSTEM, "ring: mmap: %s", strerror(errno));
    r->view = (struct tkv_ring_view){.base = base, .bytes = bytes};
    tkv_ring_copy_entry(&copy, base);
    memcpy(&h, &copy, sizeof(h));
    r->view.n_entries = h.n_entries;
    r->shared = base;
    return tkv_ring_check_header(&h, bytes, why);
}

static bool watch(int epoll_fd, int fd)
{
    struct epoll_event event = {.events = EPOLLIN | EPOLLET};

    return epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event) == 0;
}

static int make_fds(struct tkv_ring *r, struct tkv_report *why)
{
    r->doorbell_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    r->answer_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    r->own_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    r->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (r->doorbell_fd < 0 || r->answer_fd < 0 || r->own_fd < 0 || r->epoll_fd < 0 ||
        !watch(r->epoll_fd, r->doorbell_fd) || !watch(r->epoll_fd, r->own_fd))
        return tkv_fail(why, TRIKV_E_SYSTEM, "ring: eventfd or epoll: %s", strerror(errno));
    return TRIKV_OK;
}

/* With one processor, who spins keeps the other from running. */
static uint32_t spin_ns(const struct tkv_server *s)
{
    cpu_set_t set;

    CPU_ZERO(&set);
    if (sched_getaffinity(0, sizeof(set), &set) == 0 && CPU_COUNT(&set) < 2)
        return 0;
    return s->config.ring_spin_us * 1000;
}

/* The thread starts with every signal blocked: they belong to the loop. */
static int start_thread(struct tkv_ring *r, struct tkv_report *why)
{
    sigset_t all, old;
    int e;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    e = pthread_create(&r->thread, NULL, tkv_ring_main, r);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return e ? tkv_fail(why, TRIKV_E_SYSTEM, "ring: no thread: %s", strerror(e)) : TRIKV_OK;
}

static int duplicate(const struct tkv_ring *r, int *fds, struct tkv_report *why)
{
    fds[0] = fcntl(r->doorbell_fd, F_DUPFD_CLOEXEC, 0);
    fds[1] = fcntl(r->answer_fd, F_DUPFD_CLOEXEC, 0);
    if (fds[0] >= 0 && fds[1] >= 0)
        return TRIKV_OK;
    tkv_fail(why, TRIKV_E_SYSTEM, "ring: dup: %s", strerror(errno));
    for (size_t i = 0; i < 2; i++)
        if (fds[i] >= 0)
            close(fds[i]);
    return why->error;
}

static void undo(struct tkv_ring *r)
{
    const int fds[] = {r->doorbell_fd, r->answer_fd, r->own_fd, r->epoll_fd};

    if (r->view.base)
        munmap(r->view.base, r->view.bytes);
    for (size_t i = 0; i < sizeof(fds) / sizeof(fds[0]); i++) {
        if (fds[i] >= 0)
            close(fds[i]);
    }
}

static int set_up(struct tkv_ring *r, int fd, uint64_t bytes, int *fds, struct tkv_report *why)
{
    int e = map(r, fd, bytes, why);

    e = e ? e : make_fds(r, why);
    e = e ? e : duplicate(r, fds, why);
    if (e)
        return e;
    r->spin_ns = spin_ns(r->server);
    atomic_store(&r->shared->completed, 0);
    atomic_store(&r->shared->ended, 0);
    e = start_thread(r, why);
    if (e) {
        close(fds[0]);
        close(fds[1]);
    }
    return e;
}

static void link_ring(struct tkv_ring *r)
{
    struct tkv_rings *const all = &r->server->rings;

    r->next = all->first;
    r->link = &all->first;
    if (r->next)
        r->next->link = &r->next;
    all->first = r;
    all->n++;
    all->n_ever++;
    r->client->ring = r;
}

int tkv_ring_open(struct tkv_client *client, int fd, uint64_t bytes, int *fds,
                  struct tkv_report *why)
{
    struct tkv_server *const s = client->server;
    struct tkv_ring *r;

    assert(!client->ring);
    if (bytes < sizeof(struct trikv_ring_shared) || bytes > s->limits.max_payload_bytes)
        return tkv_fail(why, TRIKV_E_ARGUMENT, "ring_bytes: %llu, want %zu to %llu",
                        (unsigned long long)bytes, sizeof(struct trikv_ring_shared),
                        (unsigned long long)s->limits.max_payload_bytes);
    if (tkv_memfd_check(fd, bytes, "ring", why))
        return why->error;
    if (!tkv_budget_reserve(&client->quota->budget, bytes))
        return tkv_fail(why, TRIKV_E_MEMORY_CAP, "memory cap reached: no %llu bytes for a ring",
                        (unsigned long long)bytes);
    r = tkv_budget_alloc(&s->budget, sizeof(*r));
    if (!r) {
        tkv_budget_release(&client->quota->budget, bytes);
        return tkv_fail(why, TRIKV_E_MEMORY_CAP, "memory cap reached: no room for a ring");
    }
    r->client = client;
    r->server = s;
    r->doorbell_fd = r->answer_fd = r->own_fd = r->epoll_fd = -1;
    if (set_up(r, fd, bytes, fds, why)) {
        undo(r);
        tkv_budget_free(&s->budget, r, sizeof(*r));
        tkv_budget_release(&client->quota->budget, bytes);
        return why->error;
    }
    link_ring(r);
    return TRIKV_OK;
}
