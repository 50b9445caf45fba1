/* The loop's side of rings: who has the floor, and how they end. */
#include "daemon/ring.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "daemon/dispatch.h"
#include "daemon/evict.h"
#include "daemon/ring_priv.h"
#include "daemon/server.h"
#include "proto/errors.h"
#include "store/budget.h"

/* ---- the floor ------------------------------------------------------------------------------ */

static void add_histogram(struct tkv_histogram *to, const struct tkv_histogram *from)
{
    for (size_t i = 0; i <= TKV_HISTOGRAM_BUCKETS; i++)
        to->n[i] += from->n[i];
    to->sum_s += from->sum_s;
}

/* Entries count as the requests that they stand for. */
static void add_counts(struct tkv_ring *r)
{
    static const uint16_t type[TRIKV_RING_N_OPS] = {
        [TRIKV_RING_APPEND] = TRIKV_APPEND,
        [TRIKV_RING_ATTEND] = TRIKV_ATTEND,
        [TRIKV_RING_APPEND_ATTEND] = TRIKV_APPEND_ATTEND,
    };
    struct tkv_server *const s = r->server;
    const struct tkv_ring_counts *const c = &r->counts;
    const uint64_t n_spins = atomic_load(&r->n_spins);
    const uint64_t n_sleeps = atomic_load(&r->n_sleeps);

    for (size_t i = 0; i < TRIKV_RING_N_OPS; i++) {
        s->rings.n_entries += c->n_entries[i];
        s->metrics.n_requests[type[i]] += i == TRIKV_RING_NOTHING ? 0 : c->n_entries[i];
        s->counters.n_requests += i == TRIKV_RING_NOTHING ? 0 : c->n_entries[i];
    }
    for (size_t i = 0; i < TKV_METRICS_ERRORS; i++) {
        s->metrics.n_errors[i] += c->n_errors[i];
        s->counters.n_errors += c->n_errors[i];
    }
    s->counters.n_tokens_appended += c->n_tokens;
    s->counters.n_rows_attended += c->n_rows;
    s->counters.n_rounds += c->n_rounds;
    add_histogram(&s->metrics.append_s, &c->append_s);
    add_histogram(&s->metrics.attend_s, &c->attend_s);
    s->rings.n_spins += n_spins - r->n_spins_told;
    s->rings.n_sleeps += n_sleeps - r->n_sleeps_told;
    r->n_spins_told = n_spins;
    r->n_sleeps_told = n_sleeps;
    r->counts = (struct tkv_ring_counts){.n_tokens = 0};
}

/* The sessions are the loop's again, and go to whoever waits for them. */
static void take_back(struct tkv_ring *r)
{
    struct tkv_session_entry *next;
    struct tkv_session_entry *e = r->lent;

    r->is_lent = false;
    r->lent = NULL;
    add_counts(r);
    for (; e; e = next) {
        next = e->next_lent;
        e->next_lent = NULL;
        e->is_lent = false;
        if (e->ring_used)
            e->used_ms = uv_now(&r->server->loop);
        e->ring_used = false;
        tkv_sessions_settle(e);
    }
}

/* True if the loop has the floor now; else it gets it, with news, after the entry in hand. */
static bool claim(struct tkv_ring *r)
{
    int floor = TKV_FLOOR_FREE;

    if (!atomic_compare_exchange_strong(&r->floor, &floor, TKV_FLOOR_LOOP)) {
        if (floor == TKV_FLOOR_RING)
            (void)atomic_compare_exchange_strong(&r->floor, &floor, TKV_FLOOR_WANTED);
        if (floor == TKV_FLOOR_FREE) /* it has finished between the two */
            return claim(r);
    }
    if (atomic_load(&r->floor) != TKV_FLOOR_LOOP)
        return false;
    if (r->is_lent)
        take_back(r);
    return true;
}

/* The floor may be lent: nothing of the client is in work. */
static bool may_lend(const struct tkv_ring *r)
{
    const struct tkv_client *const c = r->client;
    const struct tkv_sessions *const t = &r->server->sessions;

    if (r->is_over || atomic_load(&r->stopping) || c->socket_closed ||
        c->conn.state == TKV_CONN_BUSY || c->conn.state == TKV_CONN_CLOSING)
        return false;
    for (size_t b = 0; b < TKV_SESSION_BUCKETS; b++) {
        for (const struct tkv_session_entry *e = t->bucket[b]; e; e = e->next) {
            if (e->owner == c && e->busy && !e->doomed)
                return false;
        }
    }
    return true;
}

static void wake_thread(struct tkv_ring *r)
{
    (void)eventfd_write(r->own_fd, 1);
}

static void lend(struct tkv_ring *r)
{
    struct tkv_sessions *const t = &r->server->sessions;

    for (size_t b = 0; b < TKV_SESSION_BUCKETS; b++) {
        for (struct tkv_session_entry *e = t->bucket[b]; e; e = e->next) {
            /* Of one that is doomed a job has the rest. */
            if (e->owner != r->client || e->doomed || e->kind != TKV_ENTRY_SESSION || !e->session)
                continue;
            e->busy = true;
            e->is_lent = true;
            e->next_lent = r->lent;
            r->lent = e;
        }
    }
    r->is_lent = true;
    atomic_store(&r->floor, TKV_FLOOR_FREE);
    if (atomic_load(&r->wants_floor))
        wake_thread(r);
}

/* A thread waits: for memory, or to learn why a session is not its own. */
static void answer_question(struct tkv_ring *r)
{
    if (r->question.what == TKV_RING_ASKS_ROOM)
        r->question.is_granted =
            tkv_evict_for_ring(r->client, r->question.session, &r->question.why);
    else if (r->question.what == TKV_RING_ASKS_REASON)
        (void)tkv_sessions_find_own(r->client, r->question.session, &r->question.why);
    r->question.what = TKV_RING_ASKS_NOTHING;
}

/* ---- the end -------------------------------------------------------------------------------- */

static void close_fds(struct tkv_ring *r)
{
    close(r->doorbell_fd);
    close(r->answer_fd);
    close(r->own_fd);
    close(r->epoll_fd);
}

static void unlink_ring(struct tkv_ring *r)
{
    *r->link = r->next;
    if (r->next)
        r->next->link = r->link;
    r->server->rings.n--;
}

/* Of a ring whose thread is joined. */
static void destroy(struct tkv_ring *r)
{
    struct tkv_client *const c = r->client;

    unlink_ring(r);
    c->ring = NULL;
    tkv_budget_free(&c->server->budget, r, sizeof(*r));
}

static void answer_closer(struct tkv_ring *r)
{
    struct tkv_call *const call = r->closer;
    const struct tkv_report why = r->why;

    destroy(r);
    if (!tkv_call_ended(call))
        return;
    call->why = why;
    if (why.error)
        tkv_call_fail(call);
    else
        tkv_call_closed(call);
}

/* The thread is joined: nothing is left of the ring but why it ended. */
static void release(struct tkv_ring *r)
{
    r->is_over = true;
    atomic_store(&r->floor, TKV_FLOOR_LOOP);
    munmap(r->view.base, r->view.bytes);
    tkv_budget_release(&r->client->quota->budget, r->view.bytes);
    close_fds(r);
}

static void reap(struct tkv_ring *r)
{
    pthread_join(r->thread, NULL);
    release(r);
    if (r->why.error)
        tkv_log(&r->server->log, TKV_LOG_WARN, "msg=\"ring ended\" client=%llu why=\"%s\"",
                (unsigned long long)r->client->id, r->why.text);
    if (r->is_lent)
        take_back(r);
}

static void stop(struct tkv_ring *r)
{
    if (r->is_over)
        return;
    atomic_store(&r->stopping, true);
    wake_thread(r);
}

/* Whatever is next for this ring. It may be gone afterwards. */
static void tend(struct tkv_ring *r)
{
    struct tkv_client *const c = r->client;

    if (!r->is_over && atomic_load(&r->ended))
        reap(r);
    if (r->is_over && r->closer) {
        answer_closer(r);
        return;
    }
    if (r->is_over && c->socket_closed) {
        destroy(r);
        tkv_client_release(c);
        return;
    }
    if (r->is_recalled)
        (void)claim(r);
    r->is_recalled = false;
    if (atomic_load(&r->floor) != TKV_FLOOR_LOOP)
        return;
    if (r->is_lent)
        take_back(r);
    answer_question(r);
    if (r->request_waits && c->conn.state == TKV_CONN_BUSY) {
        r->request_waits = false;
        tkv_dispatch(&c->call);
    } else if ((!r->is_idle || atomic_load(&r->wants_floor)) && may_lend(r)) {
        lend(r);
    }
}

static void on_news(uv_async_t *async)
{
    struct tkv_server *const s = async->data;
    struct tkv_ring *next;

    for (struct tkv_ring *r = s->rings.first; r; r = next) {
        next = r->next;
        tend(r);
    }
}

void tkv_ring_close(struct tkv_ring *r, struct tkv_call *closer)
{
    if (closer) {
        closer->running = true;
        r->closer = closer;
    }
    stop(r);
    uv_async_send(&r->server->rings_news); /* it may have ended already */
}

bool tkv_ring_yields(struct tkv_ring *r)
{
    if (claim(r))
        return true;
    r->request_waits = true;
    return false;
}

void tkv_ring_recall(struct tkv_ring *r)
{
    r->is_recalled = true;
    uv_async_send(&r->server->rings_news);
}

void tkv_ring_resume(struct tkv_ring *r)
{
    uv_async_send(&r->server->rings_news);
}

void tkv_rings_beat(struct tkv_server *s)
{
    struct tkv_ring *next;

    for (struct tkv_ring *r = s->rings.first; r; r = next) {
        next = r->next;
        if (!r->is_over && atomic_load(&r->stopping))
            pthread_kill(r->thread, TKV_RING_SIGNAL); /* it may hang in a write */
        /* Of a ring that does nothing they stay here: they may have to go for memory. */
        r->is_idle = atomic_load(&r->n_completed) == r->n_completed_at_beat;
        r->n_completed_at_beat = atomic_load(&r->n_completed);
        if (claim(r))
            tend(r);
    }
}

bool tkv_ring_was_used(struct tkv_ring *r)
{
    const uint64_t n = atomic_load_explicit(&r->n_completed, memory_order_relaxed);
    const bool used = n != r->n_completed_told;

    r->n_completed_told = n;
    return used;
}

/* A thread that hangs in a write to its client is interrupted until it is out of it. */
static void join(struct tkv_ring *r)
{
    struct timespec until;

    do {
        pthread_kill(r->thread, TKV_RING_SIGNAL);
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_nsec += 10000000;
        if (until.tv_nsec >= 1000000000) {
            until.tv_nsec -= 1000000000;
            until.tv_sec++;
        }
    } while (pthread_timedjoin_np(r->thread, NULL, &until) == ETIMEDOUT);
}

void tkv_rings_deinit(struct tkv_server *s)
{
    struct tkv_ring *next;

    for (struct tkv_ring *r = s->rings.first; r; r = next) {
        next = r->next;
        stop(r);
        if (!r->is_over) {
            join(r);
            release(r);
        }
        destroy(r);
    }
}

static void on_signal(int signal)
{
    (void)signal; /* it interrupts, that is all */
}

void tkv_rings_init(struct tkv_server *s)
{
    const struct sigaction action = {.sa_handler = on_signal};

    sigaction(TKV_RING_SIGNAL, &action, NULL);
    uv_async_init(&s->loop, &s->rings_news, on_news);
    s->rings_news.data = s;
}
