/*
 * Steps through a ring: tensors are left where they are if they lie in it, else copied; then the
 * daemon is woken if it sleeps, and its answer waited for, spinning a little while and then asleep.
 */
#include "client/client.h"

#include <limits.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <time.h>

enum { SPINS_A_LOOK = 16 /* at the clock */ };

static uint64_t now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * UINT64_C(1000000000) + (uint64_t)t.tv_nsec;
}

bool tkv_ring_is_in_flight(const struct tkv_client_ring *ring)
{
    return ring->n_taken < ring->n_written;
}

/* ---- where tensors are ---------------------------------------------------------------------- */

static bool lies_inside(const struct tkv_client_ring *r, const void *data, size_t bytes)
{
    const uintptr_t from = (uintptr_t)r->base + r->tensors_at;
    const uintptr_t at = (uintptr_t)data;

    return at >= from && at - from <= r->tensors_bytes && bytes <= r->tensors_bytes - (at - from) &&
           at % TRIKV_RING_ALIGN == 0;
}

/* Bytes for copies that a tensor needs. */
static size_t copy_bytes(const struct tkv_client_ring *r, const struct tkv_tensor *t)
{
    return !t->data || lies_inside(r, t->data, t->bytes) ? 0
                                                         : tkv_align(t->bytes, TRIKV_RING_ALIGN);
}

static size_t copies_bytes(const struct tkv_client_ring *r, const struct tkv_request *q)
{
    size_t n = 0;

    for (uint32_t i = 0; i < q->n_tensors; i++)
        n += copy_bytes(r, &q->tensors[i]);
    for (uint32_t i = 0; i < q->n_outputs; i++)
        n += copy_bytes(r, &q->outputs[i]);
    return n;
}

static uint32_t place(struct tkv_client_ring *r, const struct tkv_tensor *t)
{
    size_t at;

    if (lies_inside(r, t->data, t->bytes))
        return (uint32_t)((size_t)((const uint8_t *)t->data - r->base) / TRIKV_RING_ALIGN);
    at = r->copies_at + r->copies_used;
    r->copies_used += copy_bytes(r, t);
    return (uint32_t)(at / TRIKV_RING_ALIGN);
}

static uint32_t place_input(struct tkv_client_ring *r, const struct tkv_tensor *t)
{
    const uint32_t at = place(r, t);

    if (r->base + (size_t)at * TRIKV_RING_ALIGN != t->data)
        memcpy(r->base + (size_t)at * TRIKV_RING_ALIGN, t->data, t->bytes);
    return at;
}

static uint32_t place_output(struct tkv_client_ring *r, const struct tkv_tensor *t,
                             struct tkv_ring_copy *copy)
{
    uint32_t at;

    *copy = (struct tkv_ring_copy){0};
    if (!t->data)
        return 0;
    at = place(r, t);
    if (r->base + (size_t)at * TRIKV_RING_ALIGN != t->data)
        *copy = (struct tkv_ring_copy){t->data, r->base + (size_t)at * TRIKV_RING_ALIGN, t->bytes};
    return at;
}

/* ---- entries -------------------------------------------------------------------------------- */

static void write_entry(struct tkv_client_ring *r, const struct trikv_session *s,
                        const struct trikv_step *t, enum trikv_ring_op op,
                        const struct tkv_request *q, uint8_t flags)
{
    struct trikv_ring_entry *const entries = (struct trikv_ring_entry *)(void *)(r->shared + 1);
    struct tkv_ring_pending *const p = &r->pending[r->n_written & (r->n_entries - 1)];
    const struct tkv_tensor *in = q->tensors;
    struct trikv_ring_entry e = {.tag = r->n_written,
                                 .session = s->id,
                                 .op = (uint16_t)op,
                                 .dtype = (uint8_t)t->dtype,
                                 .flags = flags,
                                 .layer = t->layer,
                                 .n_tokens = t->n_tokens};

    *p = (struct tkv_ring_pending){.out = {.bytes = 0}};
    if (t->positions)
        e.positions = place_input(r, in++);
    if (t->token_ids)
        e.token_ids = place_input(r, in++);
    if (op != TRIKV_RING_ATTEND) {
        e.k = place_input(r, in++);
        if (t->v) /* latents have none */
            e.v = place_input(r, in++);
    }
    if (op != TRIKV_RING_APPEND) {
        e.q = place_input(r, in);
        e.out = place_output(r, &q->outputs[0], &p->out);
        e.lse = place_output(r, &q->outputs[1], &p->lse);
    }
    entries[r->n_written & (r->n_entries - 1)] = e;
    r->n_written++;
}

bool tkv_ring_put(struct trikv_session *s, const struct trikv_step *t, enum trikv_ring_op op,
                  const struct tkv_request *q, uint8_t flags, int *e)
{
    struct trikv_client *const c = s->client;
    struct tkv_client_ring *r = c->ring;
    const size_t n = copies_bytes(r, q);

    *e = 0;
    if (n > r->copies_bytes - r->copies_used || r->n_written - r->n_taken == r->n_entries) {
        tkv_ring_submit(r);
        *e = tkv_ring_wait(c);
        r = c->ring;
        if (*e || !r || n > r->copies_bytes)
            return false;
    }
    write_entry(r, s, t, op, q, flags);
    return true;
}

/* The chain of what is submitted together ends with it. */
static void end_chain(struct tkv_client_ring *r)
{
    struct trikv_ring_entry *const entries = (struct trikv_ring_entry *)(void *)(r->shared + 1);

    entries[(r->n_written - 1) & (r->n_entries - 1)].flags = 0;
}

void tkv_ring_submit(struct tkv_client_ring *ring)
{
    if (ring->n_submitted == ring->n_written)
        return;
    end_chain(ring);
    ring->n_submitted = ring->n_written;
    if (tkv_ring_publish(&ring->shared->submitted, ring->n_written,
                         &ring->shared->daemon_waits_for))
        (void)eventfd_write(ring->doorbell_fd, 1);
}

/* ---- waiting -------------------------------------------------------------------------------- */

static uint64_t look(const struct tkv_client_ring *r)
{
    return atomic_load_explicit(&r->shared->completed, memory_order_acquire);
}

static bool has_ended(const struct tkv_client_ring *r)
{
    return atomic_load_explicit(&r->shared->ended, memory_order_acquire) != 0;
}

static bool came_soon(const struct tkv_client_ring *r, uint64_t want)
{
    for (int i = 0; i < SPINS_A_LOOK; i++) {
        if (look(r) >= want)
            return true;
        tkv_spin_pause();
    }
    return false;
}

static bool spin(const struct tkv_client_ring *r, uint64_t want)
{
    uint64_t start_ns;

    if (came_soon(r, want))
        return true;
    start_ns = now_ns();
    while (!came_soon(r, want)) {
        if (now_ns() - start_ns > r->spin_ns)
            return false;
    }
    return true;
}

static int sleep_until_told(struct trikv_client *c)
{
    struct epoll_event event[2];
    int64_t left_ms;
    const int e = tkv_stream_left(&c->stream, &left_ms, &c->report);
    int n;

    if (e)
        return e;
    n = epoll_wait(c->ring->epoll_fd, event, 2, left_ms > INT_MAX ? INT_MAX : (int)left_ms);
    for (int i = 0; i < n; i++) {
        if (event[i].events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR))
            return tkv_fail(&c->report, TRIKV_E_DISCONNECTED, "the daemon closed the connection");
    }
    return 0;
}

/* Until so many are completed, or the ring has ended, or the daemon or the deadline has. */
static int wait_for(struct trikv_client *c, uint64_t want)
{
    struct tkv_client_ring *const r = c->ring;
    int e = 0;

    if (look(r) >= want)
        return 0;
    if (r->spin_ns > 0 && tkv_spin_pays(&r->spin))
        tkv_spin_learn(&r->spin, spin(r, want));
    if (look(r) >= want)
        return 0;
    tkv_stream_start(&c->stream);
    while (!e && look(r) < want && !has_ended(r)) {
        if (tkv_ring_may_sleep(&r->shared->client_waits_for, &r->shared->completed, want) &&
            !has_ended(r))
            e = sleep_until_told(c);
        tkv_ring_awake(&r->shared->client_waits_for);
    }
    return look(r) >= want ? 0 : e;
}

static void copy_out(const struct tkv_ring_copy *c)
{
    if (c->bytes > 0)
        memcpy(c->to, c->from, c->bytes);
}

/* The oldest completion that is not taken: its error, or one of the protocol. */
static int take(struct trikv_client *c, bool tells)
{
    struct tkv_client_ring *const r = c->ring;
    const uint64_t slot = r->n_taken & (r->n_entries - 1);
    const struct trikv_completion *const done =
        (const struct trikv_completion *)(const void *)(r->base +
                                                        tkv_ring_completions_at(r->n_entries)) +
        slot;
    char text[sizeof(done->text)];

    if (done->tag != r->n_taken)
        return tkv_fail(&c->report, TRIKV_E_PROTOCOL, "ring: completion %llu of the daemon is %llu",
                        (unsigned long long)r->n_taken, (unsigned long long)done->tag);
    r->n_taken++;
    if (done->error == 0) {
        copy_out(&r->pending[slot].out);
        copy_out(&r->pending[slot].lse);
        return 0;
    }
    if (done->error < 0 || done->error >= TRIKV_E_CONNECT || done->error == TRIKV_E_PROTOCOL)
        return tkv_fail(&c->report, TRIKV_E_PROTOCOL, "ring: error number %d is not one",
                        (int)done->error);
    if (!tells)
        return done->error;
    memcpy(text, done->text, sizeof(text));
    text[sizeof(text) - 1] = '\0';
    tkv_client_copy_text(c->report.text, sizeof(c->report.text), text);
    c->report.error = done->error;
    return done->error;
}

static int take_all(struct trikv_client *c, uint64_t end)
{
    struct tkv_client_ring *const r = c->ring;
    int first = 0;

    while (r->n_taken < end) {
        const int e = take(c, !first);

        first = first ? first : e;
        if (e == TRIKV_E_PROTOCOL)
            return e;
    }
    return first;
}

int tkv_ring_wait(struct trikv_client *c)
{
    struct tkv_client_ring *const r = c->ring;
    int error;
    int e;

    tkv_ring_submit(r);
    error = wait_for(c, r->n_submitted);
    if (error) {
        tkv_stream_close(&c->stream);
        r->n_taken = r->n_written; /* nothing more will come */
        return error;
    }
    e = look(r) < r->n_submitted ? 0 : take_all(c, r->n_submitted);
    if (e == TRIKV_E_PROTOCOL)
        tkv_stream_close(&c->stream);
    r->copies_used = 0;
    return e || look(r) >= r->n_submitted ? e : tkv_ring_end(c);
}
