/*
 * The thread of a ring. It spins a little while for the next entry and then sleeps; it does entries one
 * by one, each with the floor. The client can write to all that it reads and to the descriptors, so every
 * word is read once, and the count of what is done is kept here.
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

#include "daemon/pool.h"
#include "daemon/ring_priv.h"
#include "daemon/server.h"
#include "proto/errors.h"
#include "store/budget.h"

enum {
    MAX_SCRATCH_BYTES = 8 << 20, /* kept between entries */
    SPINS_A_LOOK = 16,           /* at the clock */
};

static uint64_t now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * UINT64_C(1000000000) + (uint64_t)t.tv_nsec;
}

static void wake_loop(struct tkv_ring *r)
{
    uv_async_send(&r->server->rings_news);
}

/* Until somebody writes to one of the two descriptors; or for nothing. */
static void sleep_until_told(struct tkv_ring *r)
{
    struct epoll_event event[2];

    atomic_fetch_add_explicit(&r->n_sleeps, 1, memory_order_relaxed);
    (void)epoll_wait(r->epoll_fd, event, 2, -1);
}

/* ---- the floor ---------------------------------------------------------------------------- */

static bool grab_floor(struct tkv_ring *r)
{
    int floor = TKV_FLOOR_FREE;

    return atomic_compare_exchange_strong(&r->floor, &floor, TKV_FLOOR_RING);
}

/* False: the ring is to end. */
static bool take_floor(struct tkv_ring *r)
{
    while (!grab_floor(r)) {
        if (atomic_load(&r->stopping))
            return false;
        atomic_store(&r->wants_floor, true);
        if (atomic_load(&r->floor) != TKV_FLOOR_FREE && !atomic_load(&r->stopping)) {
            wake_loop(r);
            sleep_until_told(r);
        }
        atomic_store(&r->wants_floor, false);
    }
    return true;
}

static void hand_over(struct tkv_ring *r)
{
    atomic_store(&r->floor, TKV_FLOOR_LOOP);
    wake_loop(r);
}

static void leave_floor(struct tkv_ring *r)
{
    int floor = TKV_FLOOR_RING;

    if (!atomic_compare_exchange_strong(&r->floor, &floor, TKV_FLOOR_FREE))
        hand_over(r);
}

/* ---- one entry ---------------------------------------------------------------------------- */

/* It counts as used. */
static struct tkv_session_entry *find_session(const struct tkv_ring *r, uint64_t id)
{
    for (struct tkv_session_entry *e = r->lent; e; e = e->next_lent) {
        if (e->id == id) {
            e->ring_used = true;
            return e;
        }
    }
    return NULL;
}

static int work(struct tkv_session *s, const struct tkv_step *step, uint16_t op,
                const struct tkv_exec *exec, struct tkv_report *why)
{
    switch (op) {
    case TRIKV_RING_APPEND: return tkv_session_append(s, step, exec, why);
    case TRIKV_RING_ATTEND: return tkv_session_attend(s, step, exec, why);
    default: return tkv_session_append_attend(s, step, exec, why);
    }
}

static void count(struct tkv_ring *r, const struct trikv_ring_entry *e, int error,
                  uint32_t n_rounds, uint64_t ns)
{
    struct tkv_ring_counts *const c = &r->counts;
    const bool attends = e->op != TRIKV_RING_APPEND;

    c->n_rounds += n_rounds;
    tkv_histogram_add(attends ? &c->attend_s : &c->append_s, (double)ns * 1e-9);
    if (error)
        return;
    if (e->op != TRIKV_RING_ATTEND)
        c->n_tokens += e->n_tokens;
    if (attends)
        c->n_rows += e->n_tokens;
}

/* Do what the entry says, on sessions that are lent; what came of it goes into *done. */
static int do_step(struct tkv_ring *r, const struct trikv_ring_entry *e,
                   struct trikv_completion *done, struct tkv_report *why)
{
    struct tkv_session_entry *const entry = find_session(r, e->session);
    const uint32_t *token_ids = NULL;
    struct tkv_session *s;
    struct tkv_step step;
    uint32_t n_rounds;
    uint64_t start_ns;
    int error;

    if (!entry)
        return tkv_fail(why, TRIKV_E_NO_SESSION, "session %llu is not open on this connection",
                        (unsigned long long)e->session);
    s = entry->session;
    error = tkv_ring_step(&r->view, e, s, &step, &token_ids, why);
    if (!error && token_ids)
        error = tkv_sessions_write_ids(entry, &step, token_ids, why);
    if (error)
        return error;
    step.scratch = &r->scratch;
    n_rounds = tkv_session_n_rounds(s);
    start_ns = now_ns();
    error = work(s, &step, e->op, tkv_pool_exec(r->server->pool), why);
    done->n_seen = tkv_session_n_seen(s, e->layer);
    done->n_kept = tkv_session_n_kept(s, e->layer);
    done->n_rounds = tkv_session_n_rounds(s);
    if (token_ids)
        tkv_sessions_commit_ids(entry, error ? NULL : &step);
    count(r, e, error, done->n_rounds - n_rounds, now_ns() - start_ns);
    tkv_scratch_grow(&r->scratch, &r->client->quota->budget, MAX_SCRATCH_BYTES);
    return error;
}

/*
 * The entry failed, and the loop knows more: stored prefixes lend their memory, so before a step fails for want
 * of it the loop frees what it can, one after the other; and a session that is not here may have had to
 * go, or be somebody else's. True: do it again. Begins and ends with the floor, unless the ring is to end: then
 * false.
 */
static bool may_try_again(struct tkv_ring *r, const struct trikv_ring_entry *e,
                          struct tkv_report *why)
{
    if (why->error == TRIKV_E_MEMORY_CAP)
        r->question.what = TKV_RING_ASKS_ROOM;
    else if (why->error == TRIKV_E_NO_SESSION)
        r->question.what = TKV_RING_ASKS_REASON;
    else
        return false;
    r->question.session = e->session;
    r->question.is_granted = false;
    r->question.why = *why;
    hand_over(r);
    if (!take_floor(r))
        return false;
    *why = r->question.why;
    return r->question.is_granted;
}

static int do_entry(struct tkv_ring *r, const struct trikv_ring_entry *e,
                    struct trikv_completion *done, struct tkv_report *why)
{
    int error = tkv_ring_check_entry(e, why);

    if (error)
        return error;
    if (r->chain_broken)
        return tkv_fail(why, TRIKV_E_STATE, "not done: an entry before it in its chain failed");
    if (e->op == TRIKV_RING_NOTHING)
        return TRIKV_OK;
    return do_step(r, e, done, why);
}

static bool is_chained(const struct trikv_ring_entry *e)
{
    return (e->flags & TRIKV_RING_CHAIN) != 0;
}

/* ---- many ----------------------------------------------------------------------------------- */

static void wake_client(struct tkv_ring *r)
{
    const uint64_t one = 1;

    while (write(r->answer_fd, &one, sizeof(one)) < 0 && errno == EINTR &&
           !atomic_load(&r->stopping))
        ;
}

static void publish(struct tkv_ring *r, const struct trikv_completion *done, const char *text)
{
    struct trikv_completion *const to =
        (struct trikv_completion *)(void *)(r->view.base +
                                            tkv_ring_completions_at(r->view.n_entries)) +
        (r->n_done & (r->view.n_entries - 1));

    memcpy(to, done, offsetof(struct trikv_completion, text));
    if (done->error) {
        const size_t n = strnlen(text, sizeof(to->text) - 1);

        memcpy(to->text, text, n);
        to->text[n] = '\0';
    }
    r->n_done++;
    atomic_store_explicit(&r->n_completed, r->n_done, memory_order_relaxed);
    if (tkv_ring_publish(&r->shared->completed, r->n_done, &r->shared->client_waits_for))
        wake_client(r);
}

/* The oldest entry that is submitted and not done. False: the ring is to end. */
static bool serve_one(struct tkv_ring *r)
{
    const uint8_t *const entries = r->view.base + sizeof(struct trikv_ring_shared);
    const uint64_t slot = r->n_done & (r->view.n_entries - 1);
    struct trikv_completion done = {0};
    struct trikv_ring_entry e;
    struct tkv_report why;

    tkv_ring_copy_entry(&e, entries + slot * sizeof(e));
    if (!take_floor(r))
        return false;
    do
        done.error = do_entry(r, &e, &done, &why);
    while (done.error && may_try_again(r, &e, &why));
    done.error = done.error ? why.error : TRIKV_OK; /* it may be a quota's, or better known */
    if (atomic_load(&r->floor) < TKV_FLOOR_RING)
        return false; /* stopped while it waited */
    r->counts.n_entries[e.op < TRIKV_RING_N_OPS ? e.op : 0]++;
    if (done.error)
        r->counts.n_errors[done.error < TKV_METRICS_ERRORS ? done.error : 0]++;
    leave_floor(r);
    if (done.error == TRIKV_E_PROTOCOL) {
        r->why = why;
        return false;
    }
    r->chain_broken = done.error && is_chained(&e);
    done.tag = e.tag;
    publish(r, &done, why.text);
    return true;
}

static bool serve(struct tkv_ring *r, uint64_t submitted)
{
    const uint64_t n = submitted - r->n_done;

    if (n > r->view.n_entries) {
        tkv_fail(&r->why, TRIKV_E_PROTOCOL,
                 "ring: submitted is %llu, want %llu to %llu: that many are done, and there are %u "
                 "entries",
                 (unsigned long long)submitted, (unsigned long long)r->n_done,
                 (unsigned long long)r->n_done + r->view.n_entries, r->view.n_entries);
        return false;
    }
    for (uint64_t i = 0; i < n; i++) {
        if (atomic_load_explicit(&r->stopping, memory_order_relaxed) || !serve_one(r))
            return false;
    }
    return true;
}

/* ---- waiting -------------------------------------------------------------------------------- */

static uint64_t look(const struct tkv_ring *r)
{
    return atomic_load_explicit(&r->shared->submitted, memory_order_acquire);
}

static bool came_soon(const struct tkv_ring *r)
{
    for (int i = 0; i < SPINS_A_LOOK; i++) {
        if (look(r) != r->n_done)
            return true;
        tkv_spin_pause();
    }
    return false;
}

static bool spin(const struct tkv_ring *r)
{
    uint64_t start_ns;

    if (came_soon(r))
        return true;
    start_ns = now_ns();
    while (!came_soon(r)) {
        if (now_ns() - start_ns > r->spin_ns || atomic_load(&r->stopping))
            return false;
    }
    return true;
}

/* False: the ring is to end. */
static bool wait_for_more(struct tkv_ring *r)
{
    if (r->spin_ns > 0 && look(r) == r->n_done && tkv_spin_pays(&r->spin)) {
        const bool came = spin(r);

        tkv_spin_learn(&r->spin, came);
        if (came)
            atomic_fetch_add_explicit(&r->n_spins, 1, memory_order_relaxed);
    }
    while (!atomic_load(&r->stopping) && look(r) == r->n_done) {
        if (tkv_ring_may_sleep(&r->shared->daemon_waits_for, &r->shared->submitted, r->n_done + 1))
            sleep_until_told(r);
        tkv_ring_awake(&r->shared->daemon_waits_for);
    }
    return !atomic_load(&r->stopping);
}

/* Only this one signal comes through. */
static void unblock_signal(void)
{
    sigset_t set;

    sigemptyset(&set);
    sigaddset(&set, TKV_RING_SIGNAL);
    pthread_sigmask(SIG_UNBLOCK, &set, NULL);
}

void *tkv_ring_main(void *ring)
{
    struct tkv_ring *const r = ring;

    unblock_signal();
    while (wait_for_more(r) && serve(r, look(r)))
        ;
    if (r->why.error) {
        atomic_store(&r->shared->ended, (uint32_t)r->why.error);
        wake_client(r);
    }
    tkv_scratch_free(&r->scratch, &r->client->quota->budget);
    atomic_store(&r->ended, true);
    wake_loop(r);
    return NULL;
}
