/*
 * Worker threads with one lock. Jobs are a queue; a spread (fork and join) is a struct on
 * its caller's stack, listed while it has indices left to hand out.
 */
#include "daemon/pool.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>

/* One fork-join call. It leaves the list before its caller returns, and the caller waits
 * until no helper is inside: so it may live on a stack. */
struct spread {
    void (*fn)(void *arg, size_t i);
    void *arg;
    size_t n;
    atomic_size_t next_index;
    size_t n_helpers; /* under the pool's lock */
    pthread_cond_t idle;
    struct spread *next;
};

struct tkv_pool {
    pthread_mutex_t lock;
    pthread_cond_t wake;
    struct tkv_job *first, **last;
    struct tkv_job *done_first, **done_last;
    struct spread *spreads;
    struct tkv_exec exec;
    void (*notify)(void *ctx);
    void *notify_ctx;
    bool stopping;
    unsigned n_idle;
    uint32_t n_queued;
    uint32_t n_running;
    atomic_uint_fast64_t progress;
    unsigned n_threads; /* started */
    pthread_t threads[];
};

static void work_on(struct tkv_pool *p, struct spread *s)
{
    size_t i;

    while ((i = atomic_fetch_add_explicit(&s->next_index, 1, memory_order_relaxed)) < s->n) {
        s->fn(s->arg, i);
        atomic_fetch_add_explicit(&p->progress, 1, memory_order_relaxed);
    }
}

static struct spread *open_spread(struct tkv_pool *p)
{
    for (struct spread *s = p->spreads; s; s = s->next) {
        if (atomic_load_explicit(&s->next_index, memory_order_relaxed) < s->n)
            return s;
    }
    return NULL;
}

/* Called and left with the lock held. */
static void help(struct tkv_pool *p, struct spread *s)
{
    s->n_helpers++;
    pthread_mutex_unlock(&p->lock);
    work_on(p, s);
    pthread_mutex_lock(&p->lock);
    if (--s->n_helpers == 0)
        pthread_cond_signal(&s->idle);
}

/* Called and left with the lock held. */
static void work_job(struct tkv_pool *p)
{
    struct tkv_job *job = p->first;

    p->first = job->next;
    if (!p->first)
        p->last = &p->first;
    p->n_queued--;
    p->n_running++;
    pthread_mutex_unlock(&p->lock);
    job->work(job);
    atomic_fetch_add_explicit(&p->progress, 1, memory_order_relaxed);
    pthread_mutex_lock(&p->lock);
    p->n_running--;
    job->next = NULL;
    *p->done_last = job;
    p->done_last = &job->next;
    p->notify(p->notify_ctx);
}

static void *worker(void *arg)
{
    struct tkv_pool *p = arg;
    struct spread *s;

    pthread_mutex_lock(&p->lock);
    for (;;) {
        if ((s = open_spread(p))) {
            help(p, s);
        } else if (p->first) {
            work_job(p);
        } else if (p->stopping) {
            break;
        } else {
            p->n_idle++;
            pthread_cond_wait(&p->wake, &p->lock);
            p->n_idle--;
        }
    }
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

static void announce(struct tkv_pool *p, struct spread *s)
{
    size_t wanted = s->n - 1;

    pthread_mutex_lock(&p->lock);
    s->next = p->spreads;
    p->spreads = s;
    for (unsigned i = 0; i < p->n_idle && i < wanted; i++)
        pthread_cond_signal(&p->wake);
    pthread_mutex_unlock(&p->lock);
}

static void withdraw(struct tkv_pool *p, struct spread *s)
{
    struct spread **at = &p->spreads;

    pthread_mutex_lock(&p->lock);
    while (*at != s)
        at = &(*at)->next;
    *at = s->next;
    while (s->n_helpers)
        pthread_cond_wait(&s->idle, &p->lock);
    pthread_mutex_unlock(&p->lock);
}

static void run_spread(void *ctx, size_t n, void (*fn)(void *arg, size_t i), void *arg)
{
    struct tkv_pool *p = ctx;
    struct spread s = {.fn = fn, .arg = arg, .n = n};

    if (n == 0)
        return;
    atomic_init(&s.next_index, 0);
    pthread_cond_init(&s.idle, NULL);
    announce(p, &s);
    work_on(p, &s);
    withdraw(p, &s);
    pthread_cond_destroy(&s.idle);
}

/* Signals belong to the loop thread: workers start with all of them blocked. */
static int start_threads(struct tkv_pool *p, unsigned n_threads)
{
    sigset_t all, old;
    int e = 0;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    while (!e && p->n_threads < n_threads) {
        e = pthread_create(&p->threads[p->n_threads], NULL, worker, p);
        if (!e)
            p->n_threads++;
    }
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return e;
}

int tkv_pool_create(struct tkv_pool **pool, unsigned n_threads, void (*notify)(void *ctx),
                    void *ctx)
{
    struct tkv_pool *p = calloc(1, sizeof(*p) + n_threads * sizeof(p->threads[0]));
    int e;

    assert(n_threads > 0 && notify);
    *pool = NULL;
    if (!p)
        return ENOMEM;
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->wake, NULL);
    p->last = &p->first;
    p->done_last = &p->done_first;
    p->notify = notify;
    p->notify_ctx = ctx;
    p->exec = (struct tkv_exec){.run = run_spread, .ctx = p};
    e = start_threads(p, n_threads);
    if (e)
        tkv_pool_destroy(&p);
    *pool = p;
    return e;
}

void tkv_pool_destroy(struct tkv_pool **pool)
{
    struct tkv_pool *p = *pool;

    *pool = NULL;
    if (!p)
        return;
    pthread_mutex_lock(&p->lock);
    p->stopping = true;
    pthread_cond_broadcast(&p->wake);
    pthread_mutex_unlock(&p->lock);
    for (unsigned i = 0; i < p->n_threads; i++)
        pthread_join(p->threads[i], NULL);
    pthread_cond_destroy(&p->wake);
    pthread_mutex_destroy(&p->lock);
    free(p);
}

void tkv_pool_submit(struct tkv_pool *p, struct tkv_job *job)
{
    job->next = NULL;
    pthread_mutex_lock(&p->lock);
    *p->last = job;
    p->last = &job->next;
    p->n_queued++;
    pthread_cond_signal(&p->wake);
    pthread_mutex_unlock(&p->lock);
}

struct tkv_job *tkv_pool_take_done(struct tkv_pool *p)
{
    struct tkv_job *list;

    pthread_mutex_lock(&p->lock);
    list = p->done_first;
    p->done_first = NULL;
    p->done_last = &p->done_first;
    pthread_mutex_unlock(&p->lock);
    return list;
}

const struct tkv_exec *tkv_pool_exec(const struct tkv_pool *pool)
{
    return &pool->exec;
}

void tkv_pool_load(struct tkv_pool *p, struct tkv_pool_load *out)
{
    pthread_mutex_lock(&p->lock);
    out->n_queued = p->n_queued;
    out->n_running = p->n_running;
    pthread_mutex_unlock(&p->lock);
    out->progress = atomic_load_explicit(&p->progress, memory_order_relaxed);
}
