/* Lives of clients, for minutes on end; see soak_client.h. */
#include "tests/soak_client.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "client/trikv.h"
#include "tests/rng.h"

enum {
    N_LAYERS = 4,
    N_Q = 8,
    N_KV = 2,
    DIM = 64,
    K_ROW = N_KV * DIM,
    Q_ROW = N_Q * DIM,
    CHUNK = 64,
    POOL = 1 << 17, /* floats that tensors are cut from */
    MAX_IDS = 4096,
    N_WORK = 20000, /* floats added up as a measure of the machine */
};

static const struct trikv_layer the_layer = {.n_q_heads = N_Q,
                                             .n_kv_heads = N_KV,
                                             .head_dim_k = DIM,
                                             .head_dim_v = DIM};

static const struct kind {
    const char *codec_k, *codec_v, *method;
} kinds[] = {
    {"tq4", "tq4", "none"},     {"tq4", "tq3", "streaming"}, {"f16", "f16", "none"},
    {"int8", "tq4", "snapkv"},  {"tq2", "tq2", "keydiff"},   {"tq3.5", "tq3", "h2o"},
    {"tq4-qjl", "tq4", "none"},
};

struct life {
    const struct soak_client *who;
    struct trikv_client *client;
    struct trikv_session *session, *child;
    struct rng rng;
    uint32_t n_tokens; /* of the session */
    bool has_ids, is_glutton;
    float out[CHUNK * Q_ROW];
};

static float pool[POOL];
static uint32_t ids[MAX_IDS];

double soak_now_s(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void count_time(struct soak_times *t, double seconds)
{
    const double at = log2(seconds * 1e6 + 1) * 32;

    atomic_fetch_add(&t->n[at < SOAK_BUCKETS - 1 ? (size_t)at : SOAK_BUCKETS - 1], 1);
}

double soak_quantile(struct soak_times *t, double q)
{
    unsigned long long all = 0, n = 0;
    size_t i;

    for (i = 0; i < SOAK_BUCKETS; i++)
        all += t->n[i];
    for (i = 0; i < SOAK_BUCKETS - 1; i++) {
        n += t->n[i];
        if ((double)n >= q * (double)all)
            break;
    }
    return exp2((double)(i + 1) / 32) - 1;
}

/* ---- what may go wrong ------------------------------------------------------------------------ */

/* False if the life is over: there was no memory, or the session had to go for others. */
static bool goes_on(struct life *l, int error, const char *what)
{
    struct soak_counts *const n = l->who->counts;

    switch (error) {
    case 0: return true;
    case TRIKV_E_MEMORY_CAP:
    case TRIKV_E_QUOTA:
    case TRIKV_E_TOO_MANY: n->n_refused++; return false;
    case TRIKV_E_EVICTED: n->n_evicted++; return false;
    default: break;
    }
    fprintf(stderr, "client %u: %s: %s\n", l->who->number, what,
            l->client ? trikv_last_error(l->client) : "");
    _exit(1);
}

static bool chance(struct life *l, uint32_t one_in)
{
    return rng_below(&l->rng, one_in) == 0;
}

/* ---- the parts of a life ---------------------------------------------------------------------- */

static struct trikv_step step_of(struct life *l, uint32_t layer, uint32_t at, uint32_t n)
{
    return (struct trikv_step){.size = sizeof(struct trikv_step),
                               .layer = layer,
                               .n_tokens = n,
                               .dtype = TRIKV_F32,
                               .k = pool + rng_below(&l->rng, POOL - CHUNK * K_ROW),
                               .v = pool + rng_below(&l->rng, POOL - CHUNK * K_ROW),
                               .q = pool + rng_below(&l->rng, POOL - CHUNK * Q_ROW),
                               .out = l->out,
                               .token_ids = l->has_ids ? ids + at % (MAX_IDS - CHUNK) : NULL};
}

static bool say_hello(struct life *l)
{
    const unsigned number = l->who->number;
    const struct trikv_options o = {.size = sizeof(o),
                                    .socket = l->who->socket,
                                    .timeout_ms = 60000,
                                    .staging_bytes = number % 2 ? 1 << 18 : 0,
                                    .name = "check_soak"};
    const struct trikv_ring_options ring = {.size = sizeof(ring), .copy_bytes = 1 << 17};

    const int e = trikv_connect(&l->client, &o);

    if (l->is_glutton && e == TRIKV_E_DISCONNECTED) { /* no memory even for the connection */
        l->who->counts->n_refused++;
        return false;
    }
    if (!goes_on(l, e, "connect"))
        return false;
    return number % 3 || goes_on(l, trikv_ring_open(l->client, &ring), "ring");
}

static bool open_session(struct life *l)
{
    const struct kind *kind = &kinds[rng_below(&l->rng, sizeof(kinds) / sizeof(kinds[0]))];
    struct trikv_session_options o = TRIKV_SESSION_OPTIONS_INIT;
    const struct trikv_prefix prefix = {.size = sizeof(prefix),
                                        .token_ids = ids,
                                        .n_token_ids = CHUNK * (1 + rng_below(&l->rng, 4)),
                                        .keep = 1};
    struct trikv_prefix_result found;

    o.n_layers = N_LAYERS;
    o.layers = &the_layer;
    o.same_layers = 1;
    o.codec_k = kind->codec_k;
    o.codec_v = kind->codec_v;
    o.method = kind->method;
    o.budget_tokens = 256;
    o.beta_tokens = 64;
    o.recent_tokens = 64;
    o.pinned_tokens = 4;
    o.label = "soak";
    l->has_ids = chance(l, 3);
    if (l->has_ids) {
        o.prefix = &prefix;
        o.fingerprint = "soak:1";
    }
    if (!goes_on(l, trikv_open(l->client, &o, &l->session), "open"))
        return false;
    trikv_session_prefix(l->session, &found);
    l->n_tokens = found.n_tokens;
    l->who->counts->n_prefix_hits += found.n_tokens > 0;
    l->who->counts->n_sessions++;
    return true;
}

static bool prefill(struct life *l, uint32_t n_chunks)
{
    for (uint32_t i = 0; i < n_chunks; i++) {
        for (uint32_t layer = 0; layer < N_LAYERS; layer++) {
            const struct trikv_step t = step_of(l, layer, l->n_tokens, CHUNK);

            if (!goes_on(l, trikv_append(l->session, &t), "append"))
                return false;
        }
        l->n_tokens += CHUNK;
        l->who->counts->n_tokens += CHUNK;
    }
    return true;
}

/* The same work every time: when it takes longer it is the machine that is slower. */
static void measure_machine(struct soak_counts *n)
{
    const double begin = soak_now_s();
    volatile float sum = 0;
    float x = 0;

    for (size_t i = 0; i < N_WORK; i++)
        x += pool[i];
    sum = x;
    (void)sum;
    count_time(&n->machine, soak_now_s() - begin);
}

static bool decode(struct life *l, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        for (uint32_t layer = 0; layer < N_LAYERS; layer++) {
            const struct trikv_step t = step_of(l, layer, l->n_tokens, 1);
            const double begin = soak_now_s();

            if (!goes_on(l, trikv_append_attend(l->session, &t), "append_attend"))
                return false;
            count_time(&l->who->counts->step, soak_now_s() - begin);
            l->who->counts->n_steps++;
        }
        l->n_tokens++;
        if (i % 8 == 0)
            measure_machine(l->who->counts);
    }
    return true;
}

/* Back by a few tokens, which a round may have made impossible. */
static bool go_back(struct life *l)
{
    const uint32_t n = 1 + rng_below(&l->rng, 8);
    const int e = trikv_truncate(l->session, n);

    if (e == TRIKV_E_STATE)
        return true;
    l->n_tokens -= e ? 0 : n;
    return goes_on(l, e, "truncate");
}

static bool have_child(struct life *l)
{
    if (!goes_on(l, trikv_fork(l->session, NULL, &l->child), "fork"))
        return false;
    l->who->counts->n_forks++;
    for (uint32_t layer = 0; layer < N_LAYERS; layer++) {
        const struct trikv_step t = step_of(l, layer, l->n_tokens, 1);

        if (!goes_on(l, trikv_append_attend(l->child, &t), "child"))
            return false;
    }
    return chance(l, 2) || goes_on(l, trikv_close(&l->child), "close of the child");
}

static bool look_at_map(struct life *l)
{
    struct trikv_step t = step_of(l, rng_below(&l->rng, N_LAYERS), l->n_tokens, 1);
    struct trikv_map *map = NULL;

    if (!goes_on(l, trikv_map(l->client, trikv_session_id(l->session), &map), "map"))
        return false;
    t.token_ids = NULL;
    /* A layer may have nothing yet: what came before it was refused for memory. */
    if (trikv_map_n_seen(map, t.layer) > 0 &&
        !goes_on(l, trikv_attend_local(map, &t), "attend_local"))
        return false;
    return chance(l, 4) || goes_on(l, trikv_unmap(&map), "unmap");
}

static bool write_and_read(struct life *l)
{
    struct trikv_session *back = NULL;
    char name[32];
    bool good;

    (void)snprintf(name, sizeof(name), "soak-%u", l->who->number);
    if (!goes_on(l, trikv_snapshot(l->session, name, NULL), "snapshot"))
        return false;
    l->who->counts->n_files++;
    good = goes_on(l, trikv_restore(l->client, name, &back), "restore");
    (void)goes_on(l, trikv_snapshot_delete(l->client, name), "delete");
    return good && goes_on(l, trikv_close(&back), "close of what was restored");
}

static bool do_something(struct life *l)
{
    struct trikv_stats stats;

    switch (rng_below(&l->rng, 16)) {
    case 0: return go_back(l);
    case 1: return l->child || have_child(l);
    case 2: return goes_on(l, trikv_round(l->session), "round");
    case 3: return look_at_map(l);
    case 4: return !l->who->has_snapshots || write_and_read(l);
    case 5: return goes_on(l, trikv_stats(l->session, &stats), "stats");
    case 6: return prefill(l, 1);
    case 7: usleep(30000); return true; /* idle, in the way of others */
    default: return decode(l, 8);
    }
}

/* One connection and its sessions; how it ends is left to chance. */
static void live(struct life *l)
{
    l->who->counts->n_lives++;
    if (say_hello(l) && open_session(l) && prefill(l, 1 + rng_below(&l->rng, 8)))
        while (do_something(l) && !chance(l, 24) && soak_now_s() < l->who->end_s)
            continue;
    if (l->client && chance(l, 2)) {
        (void)trikv_close(&l->child);
        (void)trikv_close(&l->session);
    }
    trikv_disconnect(&l->client); /* and with it every session of it */
    l->session = l->child = NULL;
}

static void fill_pool(void)
{
    struct rng rng = {4711};

    for (size_t i = 0; i < POOL; i++)
        pool[i] = rng_gauss(&rng);
    for (uint32_t i = 0; i < MAX_IDS; i++)
        ids[i] = i * 7 % 32000;
}

_Noreturn void soak_client_run(const struct soak_client *c)
{
    struct life *l = calloc(1, sizeof(*l));

    if (!l)
        _exit(1);
    fill_pool();
    l->who = c;
    l->rng.state = c->seed + 1000 * c->number;
    while (soak_now_s() < c->end_s)
        live(l);
    free(l);
    _exit(0);
}

/* ---- more than there is ----------------------------------------------------------------------- */

static void eat(struct life *l, uint64_t want_bytes)
{
    struct trikv_stats stats = {0};
    uint32_t n_tries = 0;

    while (soak_now_s() < l->who->end_s && n_tries < 50 && stats.resident_bytes < want_bytes) {
        if (!prefill(l, 1)) {
            if (l->has_ids)
                return; /* its layers do not have the same tokens any more */
            n_tries++;
            usleep(1000 + rng_below(&l->rng, 4000));
        }
        if (chance(l, 8) && !goes_on(l, trikv_stats(l->session, &stats), "stats"))
            return; /* it had to go */
        if (chance(l, 64) && !l->child)
            (void)have_child(l);
        if (chance(l, 32))
            (void)look_at_map(l);
    }
}

_Noreturn void soak_glutton_run(const struct soak_client *c, uint64_t want_bytes)
{
    struct life *l = calloc(1, sizeof(*l));

    if (!l)
        _exit(1);
    fill_pool();
    l->who = c;
    l->rng.state = c->seed + 1000 * c->number;
    l->is_glutton = true;
    while (soak_now_s() < c->end_s) {
        c->counts->n_lives++;
        if (say_hello(l) && open_session(l))
            eat(l, want_bytes);
        else
            usleep(2000);
        trikv_disconnect(&l->client);
        l->session = l->child = NULL;
    }
    free(l);
    _exit(0);
}
