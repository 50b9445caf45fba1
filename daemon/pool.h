/*
 * The worker threads. Two ways to use them: a job is queued and its end is reported to the
 * loop thread; and a piece of work inside a job is spread over whatever threads are idle
 * (struct tkv_exec).
 *
 * A spread never waits for a thread to become free: the caller does the work itself and
 * idle threads help. So spreads may nest, and no number of jobs can deadlock.
 */
#ifndef TKV_DAEMON_POOL_H
#define TKV_DAEMON_POOL_H

#include "core/types.h"

struct tkv_pool;

/* Queued by tkv_pool_submit, untouched by its owner until tkv_pool_take_done gives it back. */
struct tkv_job {
    void (*work)(struct tkv_job *job); /* on a worker */
    void (*done)(struct tkv_job *job); /* called by whoever takes it, on the loop thread */
    struct tkv_job *next;              /* the pool's */
};

/* notify(ctx) is called on a worker when a job has ended: it must only wake the loop. */
int tkv_pool_create(struct tkv_pool **pool, unsigned n_threads, void (*notify)(void *ctx),
                    void *ctx);

/* Waits for all queued jobs; those not taken yet are not reported any more. */
void tkv_pool_destroy(struct tkv_pool **pool);

/* Any thread. Jobs start in the order of their submission. */
void tkv_pool_submit(struct tkv_pool *pool, struct tkv_job *job);

/* The jobs that have ended since the last call, as a list in order of their end; or NULL. */
struct tkv_job *tkv_pool_take_done(struct tkv_pool *pool);

/* What the pool is at, for those who watch over it. */
struct tkv_pool_load {
    uint32_t n_queued;
    uint32_t n_running; /* jobs */
    uint64_t progress;  /* grows with every job and every piece of a spread that ends */
};

void tkv_pool_load(struct tkv_pool *pool, struct tkv_pool_load *out);

/* The executor of this pool; lives as long as it. Its run() may be called by any thread. */
const struct tkv_exec *tkv_pool_exec(const struct tkv_pool *pool);

#endif /* TKV_DAEMON_POOL_H */
