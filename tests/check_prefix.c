/* Stored prefixes through the daemon: what begins as a fork of one is to the bit what it would be without,
 * nobody finds what is not for him, and memory comes back. Rows of the test's tensors are tokens: the
 * id of a token is the number of its row. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "client/client.h"
#include "proto/trikv.pb-c.h"
#include "tests/daemon_aid.h"
#include "tests/rng.h"
#include "tests/service.h"
#include "tests/wire.h"

#define CONFIG                                                                                  \
    "listen:\n  mode: \"0666\"\nmemory:\n  cap: 64MiB\nworkers:\n  threads: 2\nlog:\n  level: " \
    "error\n"

enum { OTHER_UID = 65534, BASE = 1000 };

struct scene {
    struct daemon_aid daemon;
    struct trikv_client *client;
    struct service_data data[SERVICE_LAYERS];
    uint32_t ids[2 * SERVICE_TOKENS];
};

static struct trikv_client *connect_to(const struct scene *s)
{
    const struct trikv_options o = {
        .size = sizeof(o), .socket = s->daemon.socket, .timeout_ms = 60000};
    struct trikv_client *c = NULL;

    if (trikv_connect(&c, &o))
        fail_msg("connect: %s", trikv_last_error(c));
    return c;
}

static void scene_init(struct scene *s, const char *config)
{
    daemon_start(&s->daemon, config);
    assert_int_equal(chmod(s->daemon.directory, 0755), 0);
    s->client = connect_to(s);
    for (uint32_t i = 0; i < SERVICE_LAYERS; i++)
        service_data_init(&s->data[i], i);
    for (uint32_t i = 0; i < 2 * SERVICE_TOKENS; i++)
        s->ids[i] = BASE + i;
}

static void scene_deinit(struct scene *s)
{
    for (uint32_t i = 0; i < SERVICE_LAYERS; i++)
        service_data_deinit(&s->data[i]);
    trikv_disconnect(&s->client);
    assert_int_equal(daemon_stop(&s->daemon, SIGTERM), 0);
}

/* What a session may differ in. */
struct wish {
    const char *method;
    const char *salt;
    const char *fingerprint;
    const char *codec;
    uint32_t budget;
    uint32_t n_layers;
    int32_t rollback;
    int keep;
};

static int try_open(const struct scene *s, struct trikv_client *c, const struct wish *w,
                    const uint32_t *ids, uint32_t n, struct trikv_session **session)
{
    struct trikv_session_options o = service_options(w->codec ? w->codec : "tq4");
    const struct trikv_prefix p = {.size = sizeof(p),
                                   .token_ids = ids,
                                   .n_token_ids = n,
                                   .keep = w->keep,
                                   .salt = w->salt,
                                   .salt_bytes = w->salt ? strlen(w->salt) : 0};

    (void)s;
    o.method = w->method ? w->method : "none";
    o.fingerprint = w->fingerprint ? w->fingerprint : "model";
    o.budget_tokens = w->budget ? w->budget : 160;
    o.n_layers = w->n_layers ? w->n_layers : SERVICE_LAYERS;
    o.rollback_tokens = w->rollback;
    o.prefix = &p;
    return trikv_open(c, &o, session);
}

static struct trikv_session *open_with(const struct scene *s, const struct wish *w,
                                       const uint32_t *ids, uint32_t n)
{
    struct trikv_session *session;

    if (try_open(s, s->client, w, ids, n, &session))
        fail_msg("open: %s", trikv_last_error(s->client));
    return session;
}

static void assert_found(const struct trikv_session *session, enum trikv_prefix_outcome outcome,
                         uint32_t n, const char *reason)
{
    struct trikv_prefix_result r;

    trikv_session_prefix(session, &r);
    assert_string_equal(r.reason, reason);
    assert_int_equal(r.outcome, outcome);
    assert_int_equal(r.n_tokens, n);
}

static int append(struct scene *s, struct trikv_session *session, uint32_t layer, size_t row,
                  size_t n, const uint32_t *ids)
{
    struct trikv_step t = service_step(&s->data[layer], layer, row, n);

    t.positions = NULL;
    t.token_ids = ids;
    return trikv_append_attend(session, &t);
}

/* Tokens of the first layer, without attention, until the daemon has no room for more. */
static int append_until_refused(struct scene *s, struct trikv_session *session)
{
    struct trikv_step t = service_step(&s->data[0], 0, 0, 300);
    int e = 0;

    t.positions = NULL;
    for (uint32_t i = 0; !e && i < 1000; i++)
        e = trikv_append(session, &t);
    return e;
}

/* The rows as tokens, in every layer; which layer tells the ids changes. */
static void feed(struct scene *s, struct trikv_session *session, size_t row, size_t n)
{
    for (uint32_t i = 0; i < SERVICE_LAYERS; i++)
        if (append(s, session, i, row, n, i == 0 || row % 2 ? &s->ids[row] : NULL))
            fail_msg("layer %u: %s", i, trikv_last_error(s->client));
}

static void assert_same(struct scene *s, struct trikv_session *x, struct trikv_session *y)
{
    static const int32_t far = 100000;

    for (uint32_t i = 0; i < SERVICE_LAYERS; i++) {
        const size_t n = service_layers[i].n_q_heads * service_layers[i].head_dim_v;
        float out[2][256], lse[2][4];
        struct trikv_step t = service_step(&s->data[i], i, 0, 1);

        assert_true(n <= 256);
        t.positions = i == 2 ? NULL : &far; /* the layer with a window looks at its newest */
        t.out = out[0];
        t.lse = lse[0];
        assert_int_equal(trikv_attend(x, &t), 0);
        t.out = out[1];
        t.lse = lse[1];
        assert_int_equal(trikv_attend(y, &t), 0);
        assert_memory_equal(out[0], out[1], n * sizeof(float));
        assert_memory_equal(lse[0], lse[1], service_layers[i].n_q_heads * sizeof(float));
    }
}

/* A session of these rows that ends and is stored. */
static void store(struct scene *s, const struct wish *w, size_t n)
{
    struct wish keeping = *w;
    struct trikv_session *session;

    keeping.keep = 1;
    session = open_with(s, &keeping, NULL, 0);
    assert_found(session, TRIKV_PREFIX_NOT_ASKED, 0, "");
    feed(s, session, 0, n);
    assert_int_equal(trikv_close(&session), 0);
}

static Trikv__DaemonStats *daemon_stats(const struct scene *s)
{
    const int fd = wire_connect_hello(s->daemon.socket);
    Trikv__DaemonStats *m;
    struct wire_reply r;

    assert_int_equal(wire_call(fd, TRIKV_DAEMON_STATS, NULL, NULL, 0, -1, &r), 0);
    m = trikv__daemon_stats__unpack(NULL, r.frame.header_bytes, r.message);
    assert_non_null(m);
    wire_reply_deinit(&r);
    close(fd);
    return m;
}

/* ---- what is found ------------------------------------------------------------------------ */

static void go_on_like(struct scene *s, const struct wish *w, struct trikv_session *found,
                       uint32_t n_found, uint32_t n)
{
    struct trikv_session *plain = open_with(s, w, NULL, 0);
    struct rng rng = {.state = n};

    for (uint32_t at = 0; at < n_found;) {
        const uint32_t most = 1 + (uint32_t)(rng_next(&rng) % 90);
        const uint32_t step = n_found - at < most ? n_found - at : most;

        feed(s, plain, at, step);
        at += step;
    }
    assert_same(s, found, plain);
    for (uint32_t at = n_found; at < n; at += 7) {
        feed(s, found, at, 7);
        feed(s, plain, at, 7);
        assert_same(s, found, plain);
    }
    assert_int_equal(trikv_close(&plain), 0);
}

static void a_hit_is_as_good_as_appending(void **state)
{
    static const struct wish wishes[] = {
        {.method = "none"},
        {.method = "none", .codec = "f16", .rollback = 16},
        {.method = "streaming", .rollback = 8},
        {.method = "keydiff", .budget = 200},
    };
    struct scene s;

    (void)state;
    scene_init(&s, CONFIG);
    for (size_t i = 0; i < sizeof(wishes) / sizeof(wishes[0]); i++) {
        for (uint32_t n = 60; n <= 300; n += 80) {
            struct trikv_session *session;

            store(&s, &wishes[i], n);
            session = open_with(&s, &wishes[i], s.ids, n);
            assert_found(session, TRIKV_PREFIX_HIT, n, "none");
            go_on_like(&s, &wishes[i], session, n, n + 91);
            assert_int_equal(trikv_close(&session), 0);
        }
    }
    scene_deinit(&s);
}

/* All layers of a token at one doorbell, the first with its id. */
static int put_tokens(struct scene *s, struct trikv_session *session, uint32_t row, uint32_t n,
                      const uint32_t *ids)
{
    int e = 0;

    for (uint32_t at = row; !e && at < row + n; at++) {
        struct trikv_step t[SERVICE_LAYERS];

        for (uint32_t i = 0; i < SERVICE_LAYERS; i++) {
            t[i] = service_step(&s->data[i], i, at, 1);
            t[i].positions = NULL;
        }
        t[0].token_ids = &ids[at];
        e = trikv_ring_submit(session, TRIKV_STEP_APPEND, t, SERVICE_LAYERS);
        e = e ? e : trikv_ring_wait(session->client);
    }
    return e;
}

static void ids_go_through_a_ring(void **state)
{
    const struct wish keep = {.keep = 1, .rollback = 8}, look = {.rollback = 8};
    struct trikv_session *session;
    struct scene s;
    uint32_t n;

    (void)state;
    scene_init(&s, CONFIG);
    assert_int_equal(trikv_ring_open(s.client, NULL), 0);
    session = open_with(&s, &keep, NULL, 0);
    assert_int_equal(put_tokens(&s, session, 0, 150, s.ids), 0);
    assert_int_equal(s.client->ring->n_written, 150 * SERVICE_LAYERS);
    assert_int_equal(put_tokens(&s, session, 150, 1, &s.ids[3]), 0);
    assert_int_equal(trikv_truncate(session, 1), 0);
    assert_int_equal(trikv_keep(session, &n), 0);
    assert_int_equal(n, 150);
    /* Another layer tells the same, or is refused: then nothing is appended. */
    assert_int_equal(append(&s, session, 0, 150, 1, &s.ids[150]), 0);
    assert_int_equal(append(&s, session, 1, 150, 1, &s.ids[151]), TRIKV_E_ARGUMENT);
    assert_int_equal(append(&s, session, 1, 150, 1, &s.ids[150]), 0);
    assert_int_equal(append(&s, session, 2, 150, 1, NULL), 0);
    assert_int_equal(trikv_close(&session), 0);

    assert_int_equal(trikv_ring_close(s.client), 0);
    session = open_with(&s, &look, s.ids, 151);
    assert_found(session, TRIKV_PREFIX_HIT, 151, "none");
    go_on_like(&s, &look, session, 151, 200);
    assert_int_equal(trikv_close(&session), 0);
    scene_deinit(&s);
}

struct branch {
    struct scene *s;
    uint64_t parent;
    uint32_t ids[SERVICE_TOKENS];
    pthread_t thread;
    bool good;
};

/* A fork of the parent, in a ring of its own, that goes on with other ids and is stored. */
static void *grow(void *arg)
{
    struct branch *b = arg;
    struct trikv_client *c = connect_to(b->s);
    struct trikv_session *session = NULL;

    b->good = !trikv_ring_open(c, NULL) && !trikv_fork_id(c, b->parent, NULL, &session) &&
              !put_tokens(b->s, session, 100, 60, b->ids) && !trikv_keep(session, NULL);
    trikv_disconnect(&c);
    return NULL;
}

/* Forks have one list of ids, to whose end several threads write. */
static void branches_grow_at_once(void **state)
{
    const struct wish w = {.keep = 0};
    struct trikv_session *session;
    struct branch branch[4];
    struct scene s;

    (void)state;
    scene_init(&s, CONFIG);
    session = open_with(&s, &w, NULL, 0);
    feed(&s, session, 0, 100);
    for (uint32_t i = 0; i < 4; i++) {
        branch[i] = (struct branch){.s = &s, .parent = trikv_session_id(session)};
        for (uint32_t at = 0; at < SERVICE_TOKENS; at++)
            branch[i].ids[at] = at < 100 ? s.ids[at] : 10000 * (i + 1) + at;
        assert_int_equal(pthread_create(&branch[i].thread, NULL, grow, &branch[i]), 0);
    }
    for (uint32_t i = 0; i < 4; i++)
        pthread_join(branch[i].thread, NULL);
    assert_int_equal(trikv_close(&session), 0);
    for (uint32_t i = 0; i < 4; i++) {
        assert_true(branch[i].good);
        session = open_with(&s, &w, branch[i].ids, 160);
        assert_found(session, TRIKV_PREFIX_HIT, 160, "none");
        assert_int_equal(trikv_close(&session), 0);
    }
    scene_deinit(&s);
}

static void the_longest_state_that_is_there_is_found(void **state)
{
    const struct wish w = {.method = "streaming"};
    uint32_t ids[300];
    struct scene s;
    struct trikv_session *session;
    uint32_t n_kept;

    (void)state;
    scene_init(&s, CONFIG);
    session = open_with(&s, &w, NULL, 0);
    feed(&s, session, 0, 100);
    assert_int_equal(trikv_keep(session, &n_kept), 0);
    assert_int_equal(n_kept, 100);
    assert_int_equal(trikv_keep(session, &n_kept), 0); /* once is enough */
    feed(&s, session, 100, 200);
    assert_int_equal(trikv_keep(session, &n_kept), 0);
    assert_int_equal(n_kept, 300);
    assert_int_equal(trikv_close(&session), 0);

    /* In the tail of the long one. */
    memcpy(ids, s.ids, sizeof(ids));
    ids[290] = 7;
    session = open_with(&s, &w, ids, 300);
    assert_found(session, TRIKV_PREFIX_PARTIAL, 290, "token_ids");
    go_on_like(&s, &w, session, 290, 381);
    assert_int_equal(trikv_close(&session), 0);
    /* Before it: a round has eaten the state, the shorter one serves. */
    session = open_with(&s, &w, ids, 200);
    assert_found(session, TRIKV_PREFIX_PARTIAL, 100, "point");
    go_on_like(&s, &w, session, 100, 233);
    assert_int_equal(trikv_close(&session), 0);
    /* One id in the midst of the first ones. */
    ids[2] = 7;
    session = open_with(&s, &w, ids, 300);
    assert_found(session, TRIKV_PREFIX_PARTIAL, 2, "token_ids");
    assert_int_equal(trikv_close(&session), 0);
    ids[0] = 7;
    session = open_with(&s, &w, ids, 300);
    assert_found(session, TRIKV_PREFIX_MISS, 0, "token_ids");
    assert_int_equal(trikv_close(&session), 0);
    scene_deinit(&s);
}

/* Two that begin alike, of which neither may stand for the other. */
static void ids_are_compared_to_the_last(void **state)
{
    const struct wish w = {.keep = 1};
    struct scene s;
    struct trikv_session *session;

    (void)state;
    scene_init(&s, CONFIG);
    store(&s, &w, 150);
    session = open_with(&s, &w, s.ids, 150);
    feed(&s, session, 200, 10);
    assert_int_equal(trikv_close(&session), 0);
    session = open_with(&s, &w, s.ids, 150);
    feed(&s, session, 300, 10);
    assert_int_equal(trikv_close(&session), 0);
    for (uint32_t row = 200; row <= 300; row += 100) {
        const struct wish plain = {.keep = 0};
        struct trikv_session *other = open_with(&s, &plain, NULL, 0);
        uint32_t ids[160];

        memcpy(ids, s.ids, 150 * sizeof(ids[0]));
        memcpy(ids + 150, s.ids + row, 10 * sizeof(ids[0]));
        session = open_with(&s, &plain, ids, 160);
        assert_found(session, TRIKV_PREFIX_HIT, 160, "none");
        feed(&s, other, 0, 150);
        feed(&s, other, row, 10);
        assert_same(&s, session, other);
        assert_int_equal(trikv_close(&session), 0);
        assert_int_equal(trikv_close(&other), 0);
    }
    scene_deinit(&s);
}

static void what_differs_is_named(void **state)
{
    static const struct {
        struct wish wish;
        const char *reason;
    } cases[] = {
        {{.salt = "b"}, "nothing_stored"},
        {{.salt = NULL}, "nothing_stored"},
        {{.salt = "a", .fingerprint = "another"}, "fingerprint"},
        {{.salt = "a", .n_layers = 2}, "geometry"},
        {{.salt = "a", .codec = "tq3"}, "policy"},
        {{.salt = "a", .method = "streaming"}, "policy"},
        {{.salt = "a", .rollback = 4}, "policy"},
        {{.salt = "a", .method = "h2o"}, "method"},
    };
    const struct wish w = {.salt = "a"};
    Trikv__DaemonStats *stats;
    struct scene s;
    struct trikv_session *session;

    (void)state;
    scene_init(&s, CONFIG);
    store(&s, &w, 100);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        session = open_with(&s, &cases[i].wish, s.ids, 100);
        assert_found(session, TRIKV_PREFIX_MISS, 0, cases[i].reason);
        assert_int_equal(trikv_close(&session), 0);
    }
    session = open_with(&s, &w, s.ids, 100);
    assert_found(session, TRIKV_PREFIX_HIT, 100, "none");
    stats = daemon_stats(&s);
    assert_int_equal(stats->n_prefix_hits, 1);
    assert_int_equal(stats->n_prefix_misses, sizeof(cases) / sizeof(cases[0]));
    assert_int_equal(stats->n_prefix_found_tokens, 100);
    assert_int_equal(stats->n_prefix_asked_tokens, 900);
    assert_int_equal(stats->n_prefixes, 1);
    assert_int_equal(stats->n_sessions, 1);
    trikv__daemon_stats__free_unpacked(stats, NULL);
    scene_deinit(&s);
}

/* ---- what is refused ---------------------------------------------------------------------- */

static void what_is_not_sure_is_not_stored(void **state)
{
    const struct wish plain = {.keep = 0}, observing = {.method = "snapkv"};
    struct scene s;
    struct trikv_session *session, *child;
    uint32_t n;

    (void)state;
    scene_init(&s, CONFIG);
    session = open_with(&s, &plain, NULL, 0);
    assert_int_equal(trikv_keep(session, &n), TRIKV_E_STATE); /* nothing is there */
    feed(&s, session, 0, 90);
    /* A gap, another layer's word against this one's, ids where nothing is appended. */
    assert_int_equal(append(&s, session, 0, 0, 5, NULL), 0);
    assert_int_equal(append(&s, session, 0, 0, 5, s.ids), TRIKV_E_STATE);
    assert_int_equal(append(&s, session, 1, 0, 5, s.ids), 0);
    assert_int_equal(append(&s, session, 2, 0, 5, s.ids + 1), TRIKV_E_ARGUMENT);
    assert_non_null(strstr(trikv_last_error(s.client), "another layer"));
    assert_int_equal(append(&s, session, 2, 0, 5, s.ids), 0);
    assert_int_equal(trikv_keep(session, &n), 0);
    assert_int_equal(n, 95);
    assert_int_equal(trikv_fork(session, NULL, &child), 0);
    assert_int_equal(trikv_round(session), 0);
    assert_int_equal(trikv_keep(session, &n), TRIKV_E_STATE);
    assert_non_null(strstr(trikv_last_error(s.client), "ROUND"));
    assert_int_equal(trikv_keep(child, &n), 0);
    session = open_with(&s, &observing, NULL, 0);
    feed(&s, session, 0, 20);
    assert_int_equal(trikv_keep(session, &n), TRIKV_E_STATE);
    assert_non_null(strstr(trikv_last_error(s.client), "snapkv"));
    scene_deinit(&s);
}

static void positions_with_gaps_are_not_stored(void **state)
{
    const struct wish plain = {.keep = 0};
    struct scene s;
    struct trikv_session *session;
    uint32_t n;

    (void)state;
    scene_init(&s, CONFIG);
    session = open_with(&s, &plain, NULL, 0);
    for (uint32_t i = 0; i < SERVICE_LAYERS; i++) {
        struct trikv_step t = service_step(&s.data[i], i, 0, 30);

        t.token_ids = s.ids;
        assert_int_equal(trikv_append_attend(session, &t), 0);
    }
    assert_int_equal(trikv_keep(session, &n), TRIKV_E_STATE);
    assert_non_null(strstr(trikv_last_error(s.client), "positions"));
    scene_deinit(&s);
}

static void wrong_requests_are_answered(void **state)
{
    const struct wish nameless = {.fingerprint = ""}, plain = {.keep = 0};
    Trikv__OpenRequest m = TRIKV__OPEN_REQUEST__INIT;
    Trikv__Prefix prefix = TRIKV__PREFIX__INIT;
    Trikv__Layer layer = TRIKV__LAYER__INIT;
    Trikv__Layer *layers[] = {&layer};
    struct trikv_session *session;
    struct wire_reply r;
    struct scene s;
    uint8_t salt[65] = {0};
    uint32_t n;
    int fd;

    (void)state;
    scene_init(&s, "prefix:\n  entries: 0\n" CONFIG);
    assert_int_equal(try_open(&s, s.client, &nameless, s.ids, 10, &session), TRIKV_E_ARGUMENT);
    assert_non_null(strstr(trikv_last_error(s.client), "fingerprint"));
    session = open_with(&s, &plain, s.ids, 10);
    assert_found(session, TRIKV_PREFIX_MISS, 0, "off");
    feed(&s, session, 0, 20);
    assert_int_equal(trikv_keep(session, &n), TRIKV_E_STATE);

    layer.n_q_heads = layer.n_kv_heads = 1;
    layer.head_dim_k = layer.head_dim_v = 64;
    m.layers = layers;
    m.n_layers = 1;
    m.fingerprint = (char[]){"m"};
    fd = wire_connect_hello(s.daemon.socket);
    assert_int_equal(wire_call(fd, TRIKV_OPEN, &m.base, s.ids, 40, -1, &r), TRIKV_E_SIZE);
    wire_reply_deinit(&r);
    m.prefix = &prefix;
    prefix.n_token_ids = 0xffffffff;
    assert_int_equal(wire_call(fd, TRIKV_OPEN, &m.base, s.ids, 40, -1, &r), TRIKV_E_SIZE);
    wire_reply_deinit(&r);
    prefix.n_token_ids = 10;
    prefix.has_salt = 1;
    prefix.salt = (ProtobufCBinaryData){sizeof(salt), salt};
    assert_int_equal(wire_call(fd, TRIKV_OPEN, &m.base, s.ids, 40, -1, &r), TRIKV_E_ARGUMENT);
    wire_reply_deinit(&r);
    close(fd);
    scene_deinit(&s);
}

/* ---- users -------------------------------------------------------------------------------- */

/* As another user: 0 if the outcome of looking for the first 100 rows is as expected. */
static int look_as_other(struct scene *s, const struct wish *w, enum trikv_prefix_outcome want,
                         bool maps)
{
    struct trikv_client *c = NULL;
    const struct trikv_options o = {.size = sizeof(o), .socket = s->daemon.socket};
    struct trikv_session *session;
    struct trikv_prefix_result r;
    struct trikv_handle handle;
    struct trikv_map *map;

    if (setgid(OTHER_UID) || setuid(OTHER_UID) || trikv_connect(&c, &o))
        return 1;
    if (try_open(s, c, w, s->ids, 100, &session))
        return 2;
    trikv_session_prefix(session, &r);
    if (r.outcome != want)
        return 3;
    if (want == TRIKV_PREFIX_MISS && strcmp(r.reason, "nothing_stored") != 0)
        return 4;
    if (trikv_map(c, trikv_session_id(session), &map) != (maps ? 0 : TRIKV_E_DENIED))
        return 5;
    if (trikv_handle(session, &handle) != (maps ? 0 : TRIKV_E_DENIED))
        return 6;
    return 0;
}

static void assert_other_sees(struct scene *s, const struct wish *w, enum trikv_prefix_outcome want,
                              bool maps)
{
    const pid_t pid = fork();
    int status;

    assert_true(pid >= 0);
    if (pid == 0)
        _exit(look_as_other(s, w, want, maps));
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
}

static void other_users_see_nothing(void **state)
{
    const struct wish w = {.salt = "x"}, mapped = {.salt = "y"};
    struct trikv_handle handle;
    struct trikv_session *session;
    struct trikv_map *map = NULL;
    struct scene s;

    (void)state;
    if (getuid() != 0) {
        print_message("skipped: needs root to be another user\n");
        skip();
    }
    scene_init(&s, CONFIG);
    store(&s, &w, 100);
    assert_other_sees(&s, &w, TRIKV_PREFIX_MISS, true);
    scene_deinit(&s);

    scene_init(&s, "prefix:\n  across_users: true\n" CONFIG);
    store(&s, &w, 100);
    assert_other_sees(&s, &w, TRIKV_PREFIX_HIT, false);
    /* From now on there is no descriptor of that memory for anybody. */
    session = open_with(&s, &w, s.ids, 100);
    assert_found(session, TRIKV_PREFIX_HIT, 100, "none");
    assert_int_equal(trikv_handle(session, &handle), TRIKV_E_DENIED);
    assert_int_equal(trikv_map(s.client, trikv_session_id(session), &map), TRIKV_E_DENIED);
    assert_non_null(strstr(trikv_last_error(s.client), "another user"));
    /* And what somebody has mapped is his alone. */
    store(&s, &mapped, 100);
    session = open_with(&s, &mapped, s.ids, 100);
    assert_int_equal(trikv_map(s.client, trikv_session_id(session), &map), 0);
    assert_other_sees(&s, &mapped, TRIKV_PREFIX_MISS, true);
    session = open_with(&s, &mapped, s.ids, 100);
    assert_found(session, TRIKV_PREFIX_HIT, 100, "none");
    scene_deinit(&s);
}

/* ---- memory ------------------------------------------------------------------------------- */

static void stored_ones_go_before_a_request_fails(void **state)
{
    const struct wish w = {.keep = 0};
    Trikv__DaemonStats *stats;
    struct trikv_session *session;
    struct scene s;

    (void)state;
    scene_init(&s, "memory:\n  cap: 6MiB\nworkers:\n  threads: 2\n");
    for (uint32_t i = 0; i < 6; i++) { /* of no common memory */
        const char salt[] = {(char)('a' + i), 0};
        const struct wish salted = {.salt = salt};

        store(&s, &salted, 250);
    }
    stats = daemon_stats(&s);
    assert_true(stats->n_prefixes > 2);
    assert_int_equal(stats->n_prefixes_kept, 6);
    trikv__daemon_stats__free_unpacked(stats, NULL);

    session = open_with(&s, &w, NULL, 0);
    assert_int_equal(append_until_refused(&s, session), TRIKV_E_MEMORY_CAP);
    stats = daemon_stats(&s);
    assert_int_equal(stats->n_prefixes, 0);
    assert_int_equal(stats->n_prefixes_evicted, 6);
    assert_int_equal(stats->n_errors, 1);
    trikv__daemon_stats__free_unpacked(stats, NULL);
    assert_int_equal(trikv_close(&session), 0);
    store(&s, &w, 250);
    session = open_with(&s, &w, s.ids, 250);
    assert_found(session, TRIKV_PREFIX_HIT, 250, "none");
    scene_deinit(&s);
}

static uint32_t count_stored(struct scene *s)
{
    Trikv__DaemonStats *stats = daemon_stats(s);
    const uint32_t n = stats->n_prefixes;

    trikv__daemon_stats__free_unpacked(stats, NULL);
    return n;
}

/* The kernel says that processes wait for memory: one goes at each beat. */
static void they_go_when_the_machine_is_short(void **state)
{
    const struct wish a = {.salt = "a"}, b = {.salt = "b"};
    char path[] = "/tmp/trikv-pressure-XXXXXX";
    const int fd = mkstemp(path);
    struct scene s;

    (void)state;
    assert_true(fd >= 0);
    assert_int_equal(dprintf(fd, "some avg10=0.00 avg60=0 avg300=0 total=0\n"), 41);
    setenv("MEMORY_PRESSURE_WATCH", path, 1);
    scene_init(&s, CONFIG);
    unsetenv("MEMORY_PRESSURE_WATCH");
    store(&s, &a, 40);
    store(&s, &b, 40);
    assert_int_equal(count_stored(&s), 2);
    assert_int_equal(pwrite(fd, "some avg10=50.0", 15, 0), 15);
    for (int i = 0; i < 1000 && count_stored(&s) > 0; i++)
        sleep_ms(10);
    assert_int_equal(count_stored(&s), 0);
    scene_deinit(&s);
    close(fd);
    unlink(path);
}

static void the_oldest_goes_first(void **state)
{
    static const char *const salts[] = {"a", "b", "c", "d"};
    struct scene s;

    (void)state;
    scene_init(&s, "prefix:\n  entries: 3\n" CONFIG);
    for (size_t i = 0; i < 4; i++) {
        const struct wish w = {.salt = salts[i]}, first = {.salt = "a"};

        store(&s, &w, 40);
        if (i == 2) { /* "a" is used, so "b" is the oldest */
            struct trikv_session *session = open_with(&s, &first, s.ids, 40);

            assert_found(session, TRIKV_PREFIX_HIT, 40, "none");
            assert_int_equal(trikv_close(&session), 0);
        }
    }
    for (size_t i = 0; i < 4; i++) {
        const struct wish w = {.salt = salts[i]};
        struct trikv_session *session = open_with(&s, &w, s.ids, 40);

        assert_found(session, i == 1 ? TRIKV_PREFIX_MISS : TRIKV_PREFIX_HIT, i == 1 ? 0 : 40,
                     i == 1 ? "nothing_stored" : "none");
    }
    scene_deinit(&s);
}

static uint64_t used_when_quiet(const struct scene *s, uint32_t n_sessions, uint32_t n_prefixes)
{
    for (int i = 0; i < 2000; i++) {
        Trikv__DaemonStats *stats = daemon_stats(s);
        const uint64_t used = stats->memory_used_bytes;
        const bool quiet = stats->n_sessions == n_sessions && stats->n_prefixes == n_prefixes &&
                           stats->n_connections == 2;

        trikv__daemon_stats__free_unpacked(stats, NULL);
        if (quiet)
            return used;
        sleep_ms(2);
    }
    fail_msg("sessions or connections stay");
    return 0;
}

/* What the killed left is stored as far as all layers had it, and forgotten when somebody says so. */
static void the_killed_leave_what_they_wanted_to(void **state)
{
    const struct wish w = {.keep = 1, .rollback = 16};
    struct trikv_session *session, *plain;
    struct wire_reply r;
    struct scene s;
    int ready[2], status, fd;
    char c;
    pid_t pid;

    (void)state;
    scene_init(&s, CONFIG);
    assert_int_equal(pipe(ready), 0);
    pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        s.client = connect_to(&s);
        session = open_with(&s, &w, NULL, 0);
        feed(&s, session, 0, 200);
        if (append(&s, session, 0, 200, 5, s.ids + 200)) /* the other layers never come to it */
            _exit(1);
        (void)!write(ready[1], "x", 1);
        pause();
    }
    assert_int_equal(read(ready[0], &c, 1), 1);
    assert_int_equal(kill(pid, SIGKILL), 0);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    (void)used_when_quiet(&s, 0, 1);
    session = open_with(&s, &w, s.ids, 205);
    assert_found(session, TRIKV_PREFIX_PARTIAL, 200, "token_ids");
    plain = open_with(&s, &w, NULL, 0);
    feed(&s, plain, 0, 200);
    assert_same(&s, session, plain);
    assert_int_equal(trikv_close(&session), 0); /* stored already */
    assert_int_equal(trikv_close(&plain), 0);
    (void)used_when_quiet(&s, 0, 1);

    fd = wire_connect_hello(s.daemon.socket);
    assert_int_equal(wire_call(fd, TRIKV_PREFIX_LIST, NULL, NULL, 0, -1, &r), 0);
    {
        Trikv__SessionListReply *list =
            trikv__session_list_reply__unpack(NULL, r.frame.header_bytes, r.message);
        const uint64_t id = list->n_sessions == 1 ? list->sessions[0]->session : 0;

        assert_int_equal(list->n_sessions, 1);
        assert_int_equal(list->sessions[0]->n_token_ids, 200);
        assert_int_equal(list->sessions[0]->n_prefix_hits, 1);
        trikv__session_list_reply__free_unpacked(list, NULL);
        wire_reply_deinit(&r);
        assert_int_equal(wire_session_call(fd, TRIKV_STATS, id, &r), TRIKV_E_NO_SESSION);
        wire_reply_deinit(&r);
        assert_int_equal(wire_session_call(fd, TRIKV_DROP, id, &r), 0);
        wire_reply_deinit(&r);
    }
    close(fd);
    (void)used_when_quiet(&s, 0, 0);
    close(ready[0]);
    close(ready[1]);
    scene_deinit(&s);
}

static void everything_comes_back(void **state)
{
    const struct wish w = {.keep = 1};
    struct trikv_session *session;
    struct wire_reply r;
    struct scene s;
    uint64_t before = 0;

    (void)state;
    scene_init(&s, CONFIG);
    for (uint32_t cycle = 0; cycle < 30; cycle++) {
        const int fd = wire_connect_hello(s.daemon.socket);
        Trikv__SessionListReply *list;

        store(&s, &w, 180 - cycle);
        session = open_with(&s, &w, s.ids, 180 - cycle);
        feed(&s, session, 200, 40);
        assert_int_equal(trikv_keep(session, NULL), 0);
        feed(&s, session, 240, 1);
        assert_int_equal(trikv_close(&session), 0);
        assert_int_equal(wire_call(fd, TRIKV_PREFIX_LIST, NULL, NULL, 0, -1, &r), 0);
        list = trikv__session_list_reply__unpack(NULL, r.frame.header_bytes, r.message);
        assert_int_equal(list->n_sessions, 3);
        wire_reply_deinit(&r);
        for (size_t i = 0; i < list->n_sessions; i++) {
            assert_int_equal(wire_session_call(fd, TRIKV_DROP, list->sessions[i]->session, &r), 0);
            wire_reply_deinit(&r);
        }
        trikv__session_list_reply__free_unpacked(list, NULL);
        close(fd);
        if (cycle == 0)
            before = used_when_quiet(&s, 0, 0);
    }
    assert_int_equal(used_when_quiet(&s, 0, 0), before);
    scene_deinit(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_hit_is_as_good_as_appending),
        cmocka_unit_test(ids_go_through_a_ring),
        cmocka_unit_test(branches_grow_at_once),
        cmocka_unit_test(the_longest_state_that_is_there_is_found),
        cmocka_unit_test(ids_are_compared_to_the_last),
        cmocka_unit_test(what_differs_is_named),
        cmocka_unit_test(what_is_not_sure_is_not_stored),
        cmocka_unit_test(positions_with_gaps_are_not_stored),
        cmocka_unit_test(wrong_requests_are_answered),
        cmocka_unit_test(other_users_see_nothing),
        cmocka_unit_test(stored_ones_go_before_a_request_fails),
        cmocka_unit_test(they_go_when_the_machine_is_short),
        cmocka_unit_test(the_oldest_goes_first),
        cmocka_unit_test(the_killed_leave_what_they_wanted_to),
        cmocka_unit_test(everything_comes_back),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
