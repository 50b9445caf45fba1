#include "tests/crash_load.h"

#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "client/trikv.h"
#include "tests/rng.h"

enum {
    N_OPENED = 3, /* the others are forks */
    N_SESSIONS = 5,
    N_LAYERS = 2,
    N_Q = 4,
    N_KV = 2,
    DIM = 32,
    MOST_TOKENS = 200, /* of a request */
    MOST_KEPT = 3000,
    LONGEST = 2500, /* then a session is closed */
    RECONNECT_MS = 20000,
};

enum kind { APPEND, TRUNCATE, ROUND, FORK, CLOSE };

struct request {
    enum kind kind;
    int session;
    uint32_t layer, n;
};

struct pair {
    struct trikv_session *s, *twin;
    uint64_t n_seen[N_LAYERS];
    bool rolls_back;
};

struct client {
    struct crash_load *load;
    struct trikv_client *c, *twin;
    struct pair pair[N_SESSIONS];
    struct rng rng;
    float k[MOST_TOKENS * N_KV * DIM], v[MOST_TOKENS * N_KV * DIM], q[MOST_TOKENS * N_Q * DIM];
    float out[2][MOST_TOKENS * N_Q * DIM];
};

static int complain(struct client *c, const char *what, int session)
{
    fprintf(stderr, "client: %s (session %d): %s / %s\n", what, session, trikv_last_error(c->c),
            trikv_last_error(c->twin));
    return -1;
}

static bool is_gone(int e)
{
    return e == TRIKV_E_DISCONNECTED || e == TRIKV_E_DRAINING || e == TRIKV_E_SYSTEM;
}

/* ---- requests ------------------------------------------------------------------------------- */

static int open_session(struct client *c, struct trikv_client *to, int i, struct trikv_session **s)
{
    static const char *const methods[N_OPENED] = {"none", "streaming", "h2o"};
    const struct trikv_layer layer = {
        .n_q_heads = N_Q, .n_kv_heads = N_KV, .head_dim_k = DIM, .head_dim_v = DIM};
    struct trikv_session_options o = TRIKV_SESSION_OPTIONS_INIT;

    o.layers = &layer;
    o.same_layers = 1;
    o.n_layers = N_LAYERS;
    o.method = methods[i];
    o.codec_k = o.codec_v = "tq4";
    o.recent_tokens = 32;
    o.budget_tokens = 160;
    o.rollback_tokens = i == 0 ? 12 : 0;
    c->pair[i].rolls_back = i == 0;
    return trikv_open(to, &o, s);
}

/* The same for both daemons: made from where they stand. */
static void make_tokens(struct client *c, const struct request *r, uint64_t first)
{
    for (uint32_t t = 0; t < r->n; t++) {
        struct rng rng = {(first + t) * 31 + (uint64_t)r->session * 7 + r->layer + 1};

        for (size_t i = 0; i < N_KV * DIM; i++) {
            c->k[t * N_KV * DIM + i] = rng_uniform(&rng) * 2 - 1;
            c->v[t * N_KV * DIM + i] = rng_uniform(&rng) * 2 - 1;
        }
        for (size_t i = 0; i < N_Q * DIM; i++)
            c->q[t * N_Q * DIM + i] = rng_uniform(&rng) * 2 - 1;
    }
}

static int append(struct client *c, struct trikv_session *s, const struct request *r, uint32_t skip,
                  float *out)
{
    const struct trikv_step step = {.size = sizeof(step),
                                    .layer = r->layer,
                                    .n_tokens = r->n - skip,
                                    .k = c->k + (size_t)skip * N_KV * DIM,
                                    .v = c->v + (size_t)skip * N_KV * DIM,
                                    .q = c->q + (size_t)skip * N_Q * DIM,
                                    .out = out + (size_t)skip * N_Q * DIM};

    return trikv_append_attend(s, &step);
}

static int send_one(struct client *c, struct trikv_session **s, struct trikv_session *parent,
                    const struct request *r, uint32_t skip, float *out)
{
    switch (r->kind) {
    case APPEND: return append(c, *s, r, skip, out);
    case TRUNCATE: return trikv_truncate(*s, r->n);
    case ROUND: return trikv_round(*s);
    case FORK: return trikv_fork(parent, NULL, s);
    case CLOSE: break;
    }
    return trikv_close(s);
}

static int free_place(const struct client *c)
{
    for (int i = 0; i < N_SESSIONS; i++)
        if (!c->pair[i].s)
            return i;
    return -1;
}

static uint64_t most_seen(const struct pair *p)
{
    return p->n_seen[0] > p->n_seen[1] ? p->n_seen[0] : p->n_seen[1];
}

/* ---- comparing ------------------------------------------------------------------------------ */

static int read_head(struct trikv_session *s, uint32_t layer, int head, float *x,
                     int32_t *positions, struct trikv_read_result *result)
{
    struct trikv_read r = {.size = sizeof(r), .layer = layer, .kv_head = head};
    int e = trikv_read(s, &r, result);

    r.n_tokens = result->n_kept < MOST_KEPT ? (uint32_t)result->n_kept : MOST_KEPT;
    r.positions = positions;
    r.k = x;
    r.v = x + (size_t)MOST_KEPT * DIM;
    return e || r.n_tokens == 0 ? e : trikv_read(s, &r, result);
}

static int compare_head(struct client *c, const struct pair *p, uint32_t layer, int head)
{
    static float x[2][2 * MOST_KEPT * DIM];
    static int32_t positions[2][MOST_KEPT];
    struct trikv_read_result result[2];
    int e;

    memset(x, 0, sizeof(x));
    memset(positions, 0, sizeof(positions));
    e = read_head(p->s, layer, head, x[0], positions[0], &result[0]);
    if (e)
        return e;
    if (read_head(p->twin, layer, head, x[1], positions[1], &result[1]))
        return complain(c, "twin", 0);
    if (result[0].n_seen != result[1].n_seen || result[0].n_kept != result[1].n_kept ||
        memcmp(x[0], x[1], sizeof(x[0])) != 0 ||
        memcmp(positions[0], positions[1], sizeof(positions[0])) != 0) {
        atomic_fetch_add(&c->load->n_wrong, 1);
        fprintf(stderr,
                "client: layer %u, KV head %d: %llu of %llu tokens, its twin %llu of %llu\n", layer,
                head, (unsigned long long)result[0].n_kept, (unsigned long long)result[0].n_seen,
                (unsigned long long)result[1].n_kept, (unsigned long long)result[1].n_seen);
        return -1;
    }
    atomic_fetch_add(&c->load->n_compared, result[0].n_kept);
    return 0;
}

static int compare_all(struct client *c)
{
    for (int i = 0; i < N_SESSIONS; i++)
        for (uint32_t l = 0; c->pair[i].s && l < N_LAYERS; l++)
            for (int h = 0; h < N_KV; h++) {
                const int e = compare_head(c, &c->pair[i], l, h);

                if (e)
                    return e;
            }
    return 0;
}

/* ---- after a crash -------------------------------------------------------------------------- */

static int reconnect(struct client *c)
{
    const struct timespec pause = {.tv_nsec = 2000000};
    int e = trikv_reconnect(c->c);

    for (int waited = 0; e && waited < RECONNECT_MS; waited += 2) {
        if (atomic_load(&c->load->stop))
            return e;
        nanosleep(&pause, NULL);
        e = trikv_reconnect(c->c);
    }
    return e;
}

/* What is left to be sent of the request that was not answered; n_seen is what the session has now. */
static int settle(struct client *c, struct request *r, const uint64_t *n_seen, uint32_t *skip)
{
    struct pair *p = &c->pair[r->session];
    const uint64_t before = r->kind == APPEND ? p->n_seen[r->layer] : most_seen(p);
    const uint64_t now = r->kind == APPEND       ? n_seen[r->layer]
                         : n_seen[0] > n_seen[1] ? n_seen[0]
                                                 : n_seen[1];

    *skip = 0;
    if (r->kind == APPEND && now >= before && now <= before + r->n)
        *skip = (uint32_t)(now - before);
    else if (r->kind == TRUNCATE && now == before - r->n)
        *skip = r->n;
    else if (now != before)
        return atomic_fetch_add(&c->load->n_lost, before > now ? before - now : 1), -1;
    if (*skip > 0)
        atomic_fetch_add(&c->load->n_in_flight, 1);
    return 0;
}

/* Every session again; skip: how much of the request in flight is done. */
static int reattach_all(struct client *c, struct request *r, uint32_t *skip)
{
    for (int i = 0; i < N_SESSIONS; i++) {
        struct pair *p = &c->pair[i];
        uint64_t n_seen[N_LAYERS] = {0};
        struct trikv_progress progress = {
            .size = sizeof(progress), .n_seen = n_seen, .n_seen_cap = N_LAYERS};
        int e;

        if (!p->s)
            continue;
        e = trikv_reattach(p->s, &progress);
        if (is_gone(e))
            return e;
        if (e == TRIKV_E_NO_SESSION && r->kind == CLOSE && r->session == i) {
            (void)trikv_close(&p->s);
            continue;
        }
        if (e) {
            atomic_fetch_add(&c->load->n_lost, most_seen(p) + 1);
            return complain(c, "reattach", i);
        }
        if (r->session == i && r->kind != FORK && settle(c, r, n_seen, skip))
            return complain(c, "tokens are lost", i);
        if (r->session != i && memcmp(n_seen, p->n_seen, sizeof(n_seen)) != 0) {
            atomic_fetch_add(&c->load->n_lost, 1);
            return complain(c, "tokens of an idle session are lost", i);
        }
    }
    return 0;
}

static int come_back(struct client *c, struct request *r, uint32_t *skip)
{
    int e;

    do {
        e = reconnect(c);
        if (e)
            return complain(c, "reconnect", 0);
        atomic_fetch_add(&c->load->n_recoveries, 1);
        e = reattach_all(c, r, skip);
    } while (is_gone(e));
    return e;
}

/* However often it is killed meanwhile. */
static int compare_well(struct client *c)
{
    int e = compare_all(c);

    while (is_gone(e) && !atomic_load(&c->load->stop)) {
        struct request none = {.kind = CLOSE, .session = -1};
        uint32_t skip;

        e = come_back(c, &none, &skip);
        e = e ? e : compare_all(c);
    }
    return is_gone(e) ? 0 : e;
}

/* ---- the loop ------------------------------------------------------------------------------- */

static struct request choose(struct client *c)
{
    const int any = (int)rng_below(&c->rng, N_SESSIONS);
    const int i = c->pair[any].s ? any : (int)rng_below(&c->rng, N_OPENED);
    const struct pair *p = &c->pair[i];
    const uint64_t dice = rng_next(&c->rng) % 100;
    struct request r = {.session = i, .layer = p->n_seen[1] < p->n_seen[0], .n = 1};

    if (most_seen(p) > LONGEST)
        r.kind = CLOSE;
    else if (dice < 2)
        r.kind = ROUND;
    else if (dice < 4 && p->n_seen[0] == p->n_seen[1] && p->rolls_back && most_seen(p) > 12)
        r.kind = TRUNCATE, r.n = 1;
    else if (dice < 5 && free_place(c) >= 0)
        r.kind = FORK;
    else if (dice < 6)
        r.kind = CLOSE;
    else if (p->n_seen[0] != p->n_seen[1])
        r.n = (uint32_t)(p->n_seen[0] - p->n_seen[1]);
    else if (dice < 20)
        r.n = 1 + (uint32_t)(rng_next(&c->rng) % MOST_TOKENS);
    return r;
}

/* Both have done it. */
static void count(struct client *c, const struct request *r, int child)
{
    struct pair *p = &c->pair[r->session];

    atomic_fetch_add(&c->load->n_requests, 1);
    if (r->kind == APPEND)
        p->n_seen[r->layer] += r->n;
    else if (r->kind == TRUNCATE)
        p->n_seen[0] = p->n_seen[1] = p->n_seen[0] - r->n;
    else if (r->kind == CLOSE)
        *p = (struct pair){0};
    if (r->kind == FORK) {
        struct pair both = c->pair[child];

        c->pair[child] = *p;
        c->pair[child].s = both.s;
        c->pair[child].twin = both.twin;
    }
}

static int do_request(struct client *c, struct request r)
{
    const int child = r.kind == FORK ? free_place(c) : r.session;
    struct pair *p = &c->pair[child];
    struct trikv_session *parent = c->pair[r.session].s, *s = p->s;
    uint32_t skip = 0;
    bool crashed = false;
    int e;

    if (r.kind == APPEND)
        make_tokens(c, &r, p->n_seen[r.layer]);
    memset(c->out, 0, sizeof(c->out));
    e = send_one(c, r.kind == CLOSE ? &p->s : &s, parent, &r, 0, c->out[0]);
    while (is_gone(e)) {
        crashed = true;
        if (atomic_load(&c->load->stop))
            return 0;
        if (r.kind ==
            CLOSE) { /* the handle is gone; the daemon may have it still, until its time is up */
            struct request none = {.kind = CLOSE, .session = -1};

            p->s = NULL;
            e = come_back(c, &none, &skip);
            break;
        }
        e = come_back(c, &r, &skip);
        if (!e && skip < r.n)
            e = send_one(c, &s, parent, &r, skip, c->out[0]);
    }
    if (e == TRIKV_E_STATE && r.kind == TRUNCATE) /* two folds so close together: both say no */
        return send_one(c, &p->twin, c->pair[r.session].twin, &r, 0, c->out[1]) == e
                   ? 0
                   : complain(c, "cannot go back, but its twin can", r.session);
    if (e)
        return complain(c, "request", r.session);
    if (r.kind == FORK)
        p->s = s;
    if (send_one(c, &p->twin, c->pair[r.session].twin, &r, 0, c->out[1]))
        return complain(c, "twin", r.session);
    if (r.kind == APPEND && skip == 0 && memcmp(c->out[0], c->out[1], sizeof(c->out[0])) != 0) {
        atomic_fetch_add(&c->load->n_wrong, 1);
        return complain(c, "attention is another one than that of its twin", r.session);
    }
    count(c, &r, child);
    return crashed ? compare_well(c) : 0;
}

static int ensure_open(struct client *c)
{
    for (int i = 0; i < N_OPENED; i++) {
        struct pair *p = &c->pair[i];
        int e;

        if (p->s)
            continue;
        e = open_session(c, c->c, i, &p->s);
        while (is_gone(e)) {
            struct request none = {.kind = CLOSE, .session = -1};
            uint32_t skip;

            p->s = NULL;
            if (atomic_load(&c->load->stop))
                return 0;
            e = come_back(c, &none, &skip);
            e = e ? e : open_session(c, c->c, i, &p->s);
        }
        if (e || open_session(c, c->twin, i, &p->twin))
            return complain(c, "open", i);
        memset(p->n_seen, 0, sizeof(p->n_seen));
    }
    return 0;
}

int crash_load_run(struct crash_load *load, uint64_t seed)
{
    struct trikv_options o = {.size = sizeof(o), .socket = load->socket, .timeout_ms = 60000};
    struct client *c = calloc(1, sizeof(*c));
    int e = 0;

    if (!c)
        return 1;
    c->load = load;
    c->rng.state = seed;
    e = trikv_connect(&c->c, &o);
    o.socket = load->twin_socket;
    e = e ? e : trikv_connect(&c->twin, &o);
    while (!e && !atomic_load(&load->stop)) {
        e = ensure_open(c);
        if (!e && !atomic_load(&load->stop))
            e = do_request(c, choose(c));
    }
    if (e)
        fprintf(stderr, "client with seed %llu: %d\n", (unsigned long long)seed, e);
    trikv_disconnect(&c->c);
    trikv_disconnect(&c->twin);
    free(c);
    return e ? 1 : 0;
}
