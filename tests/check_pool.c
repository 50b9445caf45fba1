/* The worker pool: every job ends once, spreads cover every index once, nest and never hang. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/pool.h"
#include "tests/daemon_aid.h"

enum { N_JOBS = 2000, N_OUTER = 24, N_INNER = 40 };

static void count_notice(void *ctx)
{
    atomic_fetch_add((atomic_uint *)ctx, 1);
}

struct job {
    struct tkv_job base;
    const struct tkv_exec *exec;
    atomic_uint hits[N_OUTER][N_INNER];
    unsigned n_works;
    unsigned n_dones;
};

struct inner {
    struct job *job;
    size_t outer;
};

static void hit(void *arg, size_t i)
{
    const struct inner *in = arg;

    atomic_fetch_add(&in->job->hits[in->outer][i], 1);
}

static void hit_row(void *arg, size_t i)
{
    struct job *job = arg;
    struct inner in = {job, i};

    tkv_exec_run(job->exec, N_INNER, hit, &in);
}

static void work_nested(struct tkv_job *base)
{
    struct job *job = (struct job *)(void *)base;

    job->n_works++;
    tkv_exec_run(job->exec, N_OUTER, hit_row, job);
}

static void work_little(struct tkv_job *base)
{
    ((struct job *)(void *)base)->n_works++;
}

static void done(struct tkv_job *base)
{
    ((struct job *)(void *)base)->n_dones++;
}

/* Take ended jobs until there are n. */
static void collect(struct tkv_pool *pool, size_t n)
{
    for (unsigned waited = 0; n && waited < 20000;) {
        struct tkv_job *list = tkv_pool_take_done(pool);

        if (!list) {
            sleep_ms(1);
            waited++;
        }
        while (list) {
            struct tkv_job *job = list;

            list = job->next;
            job->done(job);
            n--;
        }
    }
    assert_int_equal(n, 0);
}

static void run_jobs(unsigned n_threads, size_t n, void (*work)(struct tkv_job *))
{
    struct job *jobs = calloc(n, sizeof(*jobs));
    struct tkv_pool *pool;
    atomic_uint n_notices = 0;

    assert_non_null(jobs);
    assert_int_equal(tkv_pool_create(&pool, n_threads, count_notice, &n_notices), 0);
    for (size_t i = 0; i < n; i++) {
        jobs[i].base.work = work;
        jobs[i].base.done = done;
        jobs[i].exec = tkv_pool_exec(pool);
        tkv_pool_submit(pool, &jobs[i].base);
    }
    collect(pool, n);
    tkv_pool_destroy(&pool);
    assert_null(pool);
    assert_int_equal(atomic_load(&n_notices), n);
    for (size_t i = 0; i < n; i++) {
        assert_int_equal(jobs[i].n_works, 1);
        assert_int_equal(jobs[i].n_dones, 1);
        for (size_t h = 0; work == work_nested && h < N_OUTER * N_INNER; h++)
            assert_int_equal(atomic_load(&jobs[i].hits[h / N_INNER][h % N_INNER]), 1);
    }
    free(jobs);
}

static void check_many_jobs(void **state)
{
    (void)state;
    for (unsigned n_threads = 1; n_threads <= 8; n_threads *= 2)
        run_jobs(n_threads, N_JOBS, work_little);
}

/* More jobs that all spread, twice nested, than there are threads. */
static void check_nested_spreads(void **state)
{
    (void)state;
    for (unsigned n_threads = 1; n_threads <= 4; n_threads++)
        run_jobs(n_threads, 30, work_nested);
}

/* The executor also works from a thread that is not of the pool. */
static void check_spread_from_outside(void **state)
{
    struct tkv_pool *pool;
    atomic_uint n_notices = 0;
    struct job *job = calloc(1, sizeof(*job));

    (void)state;
    assert_non_null(job);
    assert_int_equal(tkv_pool_create(&pool, 3, count_notice, &n_notices), 0);
    job->exec = tkv_pool_exec(pool);
    for (int i = 0; i < 200; i++)
        tkv_exec_run(job->exec, N_OUTER, hit_row, job);
    tkv_pool_destroy(&pool);
    for (size_t h = 0; h < N_OUTER * N_INNER; h++)
        assert_int_equal(atomic_load(&job->hits[h / N_INNER][h % N_INNER]), 200);
    free(job);
}

struct slow {
    atomic_uint n_threads;
    pthread_t seen[64];
    pthread_mutex_t lock;
};

static void note_thread(void *arg, size_t i)
{
    struct slow *s = arg;
    unsigned n;

    (void)i;
    sleep_ms(5);
    pthread_mutex_lock(&s->lock);
    n = atomic_load(&s->n_threads);
    for (unsigned t = 0; t < n; t++) {
        if (pthread_equal(s->seen[t], pthread_self())) {
            pthread_mutex_unlock(&s->lock);
            return;
        }
    }
    s->seen[n] = pthread_self();
    atomic_store(&s->n_threads, n + 1);
    pthread_mutex_unlock(&s->lock);
}

/* It is really parallel: a spread of slow pieces is seen by the caller and by helpers. */
static void check_helpers_take_part(void **state)
{
    struct tkv_pool *pool;
    atomic_uint n_notices = 0;
    struct slow s = {.lock = PTHREAD_MUTEX_INITIALIZER};

    (void)state;
    assert_int_equal(tkv_pool_create(&pool, 3, count_notice, &n_notices), 0);
    sleep_ms(20); /* let the threads become idle */
    tkv_exec_run(tkv_pool_exec(pool), 40, note_thread, &s);
    tkv_pool_destroy(&pool);
    assert_true(atomic_load(&s.n_threads) >= 2);
    assert_true(atomic_load(&s.n_threads) <= 4);
}

/* Destroying waits for what is queued. */
static void check_destroy_finishes(void **state)
{
    struct tkv_pool *pool;
    atomic_uint n_notices = 0;
    struct job *jobs = calloc(50, sizeof(*jobs));

    (void)state;
    assert_non_null(jobs);
    assert_int_equal(tkv_pool_create(&pool, 2, count_notice, &n_notices), 0);
    for (int i = 0; i < 50; i++) {
        jobs[i].base.work = work_nested;
        jobs[i].exec = tkv_pool_exec(pool);
        tkv_pool_submit(pool, &jobs[i].base);
    }
    tkv_pool_destroy(&pool);
    for (int i = 0; i < 50; i++)
        assert_int_equal(jobs[i].n_works, 1);
    free(jobs);
    tkv_pool_destroy(&pool); /* NULL is allowed */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(check_many_jobs),           cmocka_unit_test(check_nested_spreads),
        cmocka_unit_test(check_spread_from_outside), cmocka_unit_test(check_helpers_take_part),
        cmocka_unit_test(check_destroy_finishes),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
