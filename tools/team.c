/*
 * The team. A loop is open from the moment the caller publishes it until somebody
 * finds no index left. Helpers may join while it is open, and the caller waits only
 * for those that have joined: on a busy machine a helper that does not get a processor
 * costs nothing. An idle helper spins briefly, since the layers of a model follow each other
 * within microseconds, and then sleeps, since the cores are shared with the daemon.
 */
#include "tools/team.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum { SPINS = 200 }; /* some ten microseconds: a pause takes 25 to 150 ns */

/* state: OPEN | helpers that have joined and not left */
#define OPEN   (1u << 31)
#define JOINED (OPEN - 1)

struct tkv_team {
    struct tkv_exec exec;
    pthread_t *threads;
    unsigned n_helpers;
    atomic_uint state;
    atomic_uint n_sleeping;
    atomic_bool stop;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    atomic_size_t next; /* index; this and what follows belongs to the open loop */
    size_t n;
    void (*fn)(void *arg, size_t i);
    void *arg;
};

static void relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void take_indices(struct tkv_team *t)
{
    for (;;) {
        const size_t i = atomic_fetch_add_explicit(&t->next, 1, memory_order_relaxed);

        if (i >= t->n)
            return;
        t->fn(t->arg, i);
    }
}

static bool join(struct tkv_team *t)
{
    unsigned state = atomic_load(&t->state);

    while (state & OPEN) {
        if (atomic_compare_exchange_weak(&t->state, &state, state + 1))
            return true;
    }
    return false;
}

/* Sleeps until a loop is open or the team stops. The caller publishes first and then looks for
 * sleepers, a helper counts itself first and then looks for a loop: one of them sees the other. */
static void sleep_until_open(struct tkv_team *t)
{
    pthread_mutex_lock(&t->lock);
    atomic_fetch_add(&t->n_sleeping, 1);
    while (!(atomic_load(&t->state) & OPEN) && !atomic_load(&t->stop))
        pthread_cond_wait(&t->wake, &t->lock);
    atomic_fetch_sub(&t->n_sleeping, 1);
    pthread_mutex_unlock(&t->lock);
}

static void *help(void *arg)
{
    struct tkv_team *t = arg;
    int spins = 0;

    while (!atomic_load(&t->stop)) {
        if (join(t)) {
            take_indices(t);
            /* Nothing is left for others to join for. The caller opens no loop before this one has left. */
            atomic_fetch_and(&t->state, ~OPEN);
            atomic_fetch_sub(&t->state, 1);
            spins = 0;
        } else if (++spins < SPINS) {
            relax();
        } else {
            sleep_until_open(t);
            spins = 0;
        }
    }
    return NULL;
}

static void wake_sleepers(struct tkv_team *t)
{
    if (!atomic_load(&t->n_sleeping))
        return;
    pthread_mutex_lock(&t->lock);
    pthread_cond_broadcast(&t->wake);
    pthread_mutex_unlock(&t->lock);
}

static void run(void *ctx, size_t n, void (*fn)(void *arg, size_t i), void *arg)
{
    struct tkv_team *t = ctx;

    t->n = n;
    t->fn = fn;
    t->arg = arg;
    atomic_store(&t->next, 0);
    atomic_fetch_or(&t->state, OPEN);
    wake_sleepers(t);
    take_indices(t);
    atomic_fetch_and(&t->state, ~OPEN);
    for (int spins = 0; atomic_load(&t->state) & JOINED;) {
        if (++spins < SPINS)
            relax();
        else
            sched_yield();
    }
}

static int start_helpers(struct tkv_team *t, unsigned n, struct tkv_reason *why)
{
    t->threads = calloc(n ? n : 1, sizeof(*t->threads));
    if (!t->threads)
        return tkv_reason_set(why, "out of memory for %u threads", n);
    for (; t->n_helpers < n; t->n_helpers++) {
        const int error = pthread_create(&t->threads[t->n_helpers], NULL, help, t);

        if (error)
            return tkv_reason_set(why, "thread %u of %u: %s", t->n_helpers + 2, n + 1,
                                  strerror(error));
    }
    return 0;
}

int tkv_team_create(struct tkv_team **team, unsigned n_threads, struct tkv_reason *why)
{
    struct tkv_team *t = calloc(1, sizeof(*t));

    *team = NULL;
    if (!t)
        return tkv_reason_set(why, "out of memory for a team of threads");
    t->exec = (struct tkv_exec){run, t};
    pthread_mutex_init(&t->lock, NULL);
    pthread_cond_init(&t->wake, NULL);
    if (start_helpers(t, n_threads - 1, why)) {
        tkv_team_destroy(&t);
        return -1;
    }
    *team = t;
    return 0;
}

void tkv_team_destroy(struct tkv_team **team)
{
    struct tkv_team *t = *team;

    if (!t)
        return;
    atomic_store(&t->stop, true);
    wake_sleepers(t);
    for (unsigned i = 0; i < t->n_helpers; i++)
        pthread_join(t->threads[i], NULL);
    pthread_cond_destroy(&t->wake);
    pthread_mutex_destroy(&t->lock);
    free(t->threads);
    free(t);
    *team = NULL;
}

const struct tkv_exec *tkv_team_exec(const struct tkv_team *team)
{
    return &team->exec;
}

unsigned tkv_team_default_threads(void)
{
    cpu_set_t set;

    if (sched_getaffinity(0, sizeof(set), &set) == 0 && CPU_COUNT(&set) > 0)
        return (unsigned)CPU_COUNT(&set);
    return 1;
}
