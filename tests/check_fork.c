/* Truncate and fork: whatever is forgotten or shared, a session is to the bit what it would be if it
 * had been alone and had only ever seen the tokens that it has now. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "proto/errors.h"
#include "store/session_priv.h"
#include "tests/emulated.h"
#include "tests/session_aid.h"

enum { N_TOKENS = 700, ROLLBACK = 16, MAX_CHUNKS = 64, N_SESSIONS = 6 };

/* ---- a session and its history ------------------------------------------------------------ */

struct chunk {
    uint32_t first, n; /* of the common tokens; n 0: a round */
};

struct history {
    struct tkv_session *session;
    struct chunk chunk[MAX_CHUNKS];
    uint32_t n_chunks;
};

static const struct {
    const char *name;
    const char *codec;
    uint32_t budget; /* 0: no eviction */
    uint32_t beta;
    enum tkv_eviction_mode mode;
    uint32_t window; /* of layer 1; 0: none */
} kinds[] = {
    {"none", "tq4", 0, 64, TKV_PER_LAYER_PERHEAD, 0},
    {"none f16", "f16", 0, 64, TKV_PER_LAYER_PERHEAD, 0},
    {"triattention", "tq3", 150, 64, TKV_PER_LAYER_PERHEAD, 0},
    {"union", "tq4", 150, 64, TKV_UNION, 0},
    {"triattention, folds between rounds", "tq4", 150, 130, TKV_PER_LAYER_PERHEAD, 0},
    {"union, folds between rounds", "tq3", 150, 192, TKV_UNION, 0},
    {"triattention, small folds", "tq4", 150, 32, TKV_PER_LAYER_PERHEAD, 0},
    {"window", "tq4", 0, 64, TKV_PER_LAYER_PERHEAD, 40},
    {"triattention, window over the budget", "tq4", 150, 64, TKV_PER_LAYER_PERHEAD, 190},
};
enum { N_KINDS = sizeof(kinds) / sizeof(kinds[0]) };

static void make_small(struct aid *a)
{
    a->shape.head_dim_k /= emulated_step(4);
    a->shape.head_dim_v /= emulated_step(4);
}

static void open_kind(struct aid *a, size_t kind, uint32_t rollback)
{
    aid_init(a, kinds[kind].codec);
    make_small(a);
    if (kinds[kind].budget > 0)
        aid_triattention(a, kinds[kind].budget, 3);
    a->config.beta_tokens = kinds[kind].beta;
    a->config.eviction_mode = kinds[kind].mode;
    a->config.rollback_tokens = rollback;
    a->layers[1].attn.window_tokens = kinds[kind].window;
    assert_int_equal(aid_open(a), 0);
}

/* In every layer; layers that hold their rounds together go token by token. */
static int feed(struct aid *a, struct tkv_session *s, const struct aid_tokens *t, struct chunk c)
{
    const uint32_t step = a->config.eviction_mode == TKV_UNION ? 1 : c.n;
    int e = 0;

    a->session = s;
    if (c.n == 0)
        return tkv_session_round(s, NULL, &a->why);
    for (uint32_t i = 0; !e && i < c.n; i += step)
        for (uint32_t layer = 0; !e && layer < a->config.n_layers; layer++)
            e = aid_step(a, layer, t, c.first + i, step);
    return e;
}

static void feed_well(struct aid *a, struct tkv_session *s, const struct aid_tokens *t,
                      struct chunk c)
{
    if (feed(a, s, t, c))
        fail_msg("tokens %u + %u: %s", c.first, c.n, a->why.text);
}

/* A lone session that has seen this history. */
static struct tkv_session *replay(struct aid *a, const struct history *h,
                                  const struct aid_tokens *t)
{
    struct tkv_session *s = NULL;

    assert_int_equal(tkv_session_create(&s, &a->config, &a->budget, &a->kn, &a->why), 0);
    for (uint32_t i = 0; i < h->n_chunks; i++)
        feed_well(a, s, t, h->chunk[i]);
    return s;
}

/* The same query on both gives the same bits in every layer, and so do the counts. */
static void assert_same(struct aid *a, const struct tkv_session *x, const struct tkv_session *y,
                        const struct aid_tokens *t)
{
    const size_t row = (size_t)a->shape.n_q_heads * a->shape.head_dim_v;
    float *out = calloc(2, (row + a->shape.n_q_heads) * sizeof(float));
    float *other = out + row + a->shape.n_q_heads;
    struct tkv_session_stats sx, sy;

    assert_non_null(out);
    for (uint32_t layer = 0; layer < a->config.n_layers; layer++) {
        /* Far off, or where a window is, on the next token. */
        const int32_t at =
            a->layers[layer].attn.window_tokens ? x->layers[layer].last_position + 1 : 100000;
        struct tkv_step step = {.layer = layer, .n_tokens = 1, .positions = &at, .q = t->q};

        assert_int_equal(tkv_session_n_seen(x, layer), tkv_session_n_seen(y, layer));
        assert_int_equal(tkv_session_n_kept(x, layer), tkv_session_n_kept(y, layer));
        assert_int_equal(x->layers[layer].last_position, y->layers[layer].last_position);
        assert_int_equal(x->layers[layer].first_query, y->layers[layer].first_query);
        step.out = out;
        step.lse = out + row;
        assert_int_equal(tkv_session_attend((struct tkv_session *)(uintptr_t)x, &step, NULL, NULL),
                         0);
        step.out = other;
        step.lse = other + row;
        assert_int_equal(tkv_session_attend((struct tkv_session *)(uintptr_t)y, &step, NULL, NULL),
                         0);
        assert_memory_equal(out, other, (row + a->shape.n_q_heads) * sizeof(float));
    }
    tkv_session_stats(x, &sx);
    tkv_session_stats(y, &sy);
    assert_int_equal(sx.n_rounds, sy.n_rounds);
    assert_int_equal(sx.n_evicted, sy.n_evicted);
    free(out);
}

static void check_history(struct aid *a, const struct history *h, const struct aid_tokens *t)
{
    struct tkv_session *alone = replay(a, h, t);

    assert_same(a, h->session, alone, t);
    tkv_session_destroy(&alone);
}

/* ---- truncate --------------------------------------------------------------------------------- */

/* Speculation after every accepted chunk, of any length the window allows, right or wrong. */
static void what_is_forgotten_was_never_there(void **state)
{
    struct rng rng = {5};

    (void)state;
    for (size_t kind = 0; kind < N_KINDS; kind += emulated_step(5)) {
        struct aid a;
        struct aid_tokens t;
        struct tkv_session *guesses, *plain = NULL;

        open_kind(&a, kind, ROLLBACK);
        t = aid_tokens(&a, N_TOKENS, 11);
        guesses = a.session;
        assert_int_equal(tkv_session_create(&plain, &a.config, &a.budget, &a.kn, &a.why), 0);
        for (uint32_t at = 0; at + 40 < N_TOKENS;) {
            const uint32_t n = 1 + (uint32_t)rng_next(&rng) % 9;
            const uint32_t wrong = 1 + (uint32_t)rng_next(&rng) % ROLLBACK;
            const uint64_t generation = tkv_session_generation(guesses);

            feed_well(&a, guesses, &t, (struct chunk){N_TOKENS - 20, wrong});
            /* A round that is undone, or a fold; only one can be. */
            if (wrong < ROLLBACK && generation == tkv_session_generation(guesses)) {
                feed_well(&a, guesses, &t, (struct chunk){0, 0});
                feed_well(&a, guesses, &t, (struct chunk){N_TOKENS - 20, ROLLBACK - wrong});
                assert_int_equal(tkv_session_truncate(guesses, ROLLBACK - wrong, &a.why), 0);
            }
            assert_int_equal(tkv_session_truncate(guesses, wrong, &a.why), 0);
            feed_well(&a, guesses, &t, (struct chunk){at, n + wrong % 8}); /* the first n right */
            assert_int_equal(tkv_session_truncate(guesses, wrong % 8, &a.why), 0);
            feed_well(&a, plain, &t, (struct chunk){at, n});
            at += n;
            if (rng_next(&rng) % 16 == 0) {
                feed_well(&a, guesses, &t, (struct chunk){0, 0});
                feed_well(&a, plain, &t, (struct chunk){0, 0});
            }
            assert_same(&a, guesses, plain, &t);
        }
        tkv_session_destroy(&plain);
        a.session = guesses;
        free(t.k);
        aid_close(&a);
    }
}

/* Without a window, or beyond it: refused with the reason, and nothing changes. */
static void a_lost_state_is_refused(void **state)
{
    (void)state;
    for (size_t kind = 0; kind < N_KINDS; kind += emulated_step(5)) {
        for (uint32_t rollback = 0; rollback <= ROLLBACK; rollback += ROLLBACK) {
            struct aid a;
            struct aid_tokens t;
            struct history h = {.chunk = {{0, 101 + 20}}, .n_chunks = 1};

            open_kind(&a, kind, rollback);
            h.session = a.session;
            t = aid_tokens(&a, N_TOKENS, 11);
            for (uint32_t i = 0; i < h.n_chunks; i++)
                feed_well(&a, h.session, &t, h.chunk[i]);
            assert_int_equal(tkv_session_truncate(h.session, 21, &a.why), TRIKV_E_STATE);
            assert_non_null(strstr(a.why.text, "before 101"));
            assert_int_equal(tkv_session_truncate(h.session, 122, &a.why), TRIKV_E_ARGUMENT);
            check_history(&a, &h, &t);
            assert_int_equal(tkv_session_truncate(h.session, 20, &a.why), 0);
            assert_int_equal(tkv_session_truncate(h.session, 1, &a.why), TRIKV_E_STATE);
            a.session = h.session;
            free(t.k);
            aid_close(&a);
        }
    }
}

/* Back to the start, through the pinned tokens. */
static void everything_can_be_forgotten(void **state)
{
    struct aid a;
    struct aid_tokens t;
    struct history h = {.n_chunks = 1, .chunk = {{0, 2}}};

    (void)state;
    open_kind(&a, 0, 0);
    h.session = a.session;
    t = aid_tokens(&a, N_TOKENS, 11);
    feed_well(&a, h.session, &t, (struct chunk){50, 90});
    assert_int_equal(tkv_session_truncate(h.session, 90, &a.why), 0);
    feed_well(&a, h.session, &t, (struct chunk){0, 60});
    assert_int_equal(tkv_session_truncate(h.session, 58, &a.why), 0);
    check_history(&a, &h, &t);
    h.chunk[h.n_chunks++] = (struct chunk){2, 300};
    feed_well(&a, h.session, &t, h.chunk[1]);
    check_history(&a, &h, &t);
    a.session = h.session;
    free(t.k);
    aid_close(&a);
}

/* A layer that is behind, as after an error in the middle of a step, is left where it is. */
static void layers_behind_stay(void **state)
{
    struct aid a;
    struct aid_tokens t;

    (void)state;
    open_kind(&a, 2, ROLLBACK);
    t = aid_tokens(&a, N_TOKENS, 11);
    assert_int_equal(feed(&a, a.session, &t, (struct chunk){0, 100}), 0);
    assert_int_equal(aid_step(&a, 0, &t, 100, 3), 0); /* layer 0 is folded */
    assert_int_equal(a.session->layers[0].heads[0].n_cold, 64);
    assert_int_equal(tkv_session_truncate(a.session, 1, &a.why), 0);
    assert_int_equal(tkv_session_n_seen(a.session, 0), 102);
    assert_int_equal(tkv_session_n_seen(a.session, 1), 100);
    assert_int_equal(tkv_session_truncate(a.session, 2, &a.why), 0);
    assert_int_equal(tkv_session_n_seen(a.session, 0), 100);
    assert_int_equal(a.session->layers[0].heads[0].n_cold, 0);
    free(t.k);
    aid_close(&a);
}

/* ---- fork ------------------------------------------------------------------------------------- */

static struct tkv_session *fork_of(struct aid *a, struct tkv_session *parent)
{
    struct tkv_session *child = NULL;

    if (tkv_session_fork(&child, parent, &a->why))
        fail_msg("fork: %s", a->why.text);
    return child;
}

/* Forks of forks at any time, each going its own way, closed in any order. */
static void forks_go_their_own_ways(void **state)
{
    struct rng rng = {77};

    (void)state;
    for (size_t kind = 0; kind < N_KINDS; kind += emulated_step(5)) {
        struct aid a;
        struct aid_tokens t;
        struct history h[N_SESSIONS] = {{0}};

        open_kind(&a, kind, kind % 2 ? ROLLBACK : 0);
        t = aid_tokens(&a, N_TOKENS, 11);
        h[0].session = a.session;
        for (int step = 0; step < 80; step++) {
            struct history *x = &h[rng_next(&rng) % N_SESSIONS];
            struct history *from = &h[rng_next(&rng) % N_SESSIONS];

            if (!x->session && from->session) {
                *x = *from;
                x->session = fork_of(&a, from->session);
            } else if (x->session && (x->n_chunks == MAX_CHUNKS || rng_next(&rng) % 16 == 0)) {
                check_history(&a, x, &t);
                tkv_session_destroy(&x->session);
            } else if (x->session) {
                const struct chunk c = {(uint32_t)rng_next(&rng) % 600,
                                        (uint32_t)rng_next(&rng) % 33};

                x->chunk[x->n_chunks++] = c;
                feed_well(&a, x->session, &t, c);
            }
            a.session = NULL;
            for (size_t i = 0; i < N_SESSIONS && !a.session; i++)
                a.session = h[i].session;
            if (!a.session) { /* all closed: begin again */
                assert_int_equal(atomic_load(&a.budget.used_bytes), 0);
                assert_int_equal(
                    tkv_session_create(&h[0].session, &a.config, &a.budget, &a.kn, &a.why), 0);
                h[0].n_chunks = 0;
            }
        }
        for (size_t i = 0; i < N_SESSIONS; i++) {
            if (h[i].session)
                check_history(&a, &h[i], &t);
            tkv_session_destroy(&h[i].session);
        }
        a.session = NULL;
        free(t.k);
        aid_close(&a);
    }
}

/* Several rounds in one request, none of whose old blocks become free. */
static void a_long_request_finds_its_places(void **state)
{
    struct aid a;
    struct aid_tokens t;
    struct history h[2] = {{.chunk = {{0, N_TOKENS}}, .n_chunks = 1}};

    (void)state;
    aid_init(&a, "f16");
    make_small(&a);
    aid_triattention(&a, 640, 3);
    a.config.rollback_tokens = ROLLBACK;
    assert_int_equal(aid_open(&a), 0);
    t = aid_tokens(&a, N_TOKENS, 11);
    h[0].session = a.session;
    feed_well(&a, a.session, &t, h[0].chunk[0]);
    h[1] = h[0];
    h[1].session = fork_of(&a, h[0].session);
    for (size_t i = 0; i < 2; i++) {
        h[i].chunk[h[i].n_chunks++] = (struct chunk){(uint32_t)i * 50, 650};
        feed_well(&a, h[i].session, &t, h[i].chunk[1]);
    }
    for (size_t i = 0; i < 2; i++) {
        check_history(&a, &h[i], &t);
        tkv_session_destroy(&h[i].session);
    }
    a.session = NULL;
    free(t.k);
    aid_close(&a);
}

/* A thousand children cost a few KiB each, nothing of the cold tier; a sum of all is what is used. */
static void forks_share_their_bytes(void **state)
{
    enum { N = 1000 };
    struct tkv_session *child[N], *parent;
    struct tkv_session_stats one;
    struct aid a;
    struct aid_tokens t;
    size_t before, own;

    (void)state;
    open_kind(&a, 0, 0);
    t = aid_tokens(&a, N_TOKENS, 11);
    parent = a.session;
    feed_well(&a, parent, &t, (struct chunk){0, N_TOKENS});
    before = atomic_load(&a.budget.used_bytes);
    assert_int_equal(tkv_session_shared_bytes(a.session), 0);
    for (int i = 0; i < N; i++)
        child[i] = fork_of(&a, parent);
    own = (atomic_load(&a.budget.used_bytes) - before) / N;
    if (own > 16 << 10)
        fail_msg("a fork takes %zu bytes", own);
    tkv_session_stats(child[7], &one);
    if (one.resident_bytes - tkv_session_shared_bytes(child[7]) > own + 1024)
        fail_msg("resident %llu, shared %llu, own %zu", (unsigned long long)one.resident_bytes,
                 (unsigned long long)tkv_session_shared_bytes(child[7]), own);
    feed_well(&a, child[0], &t, (struct chunk){0, 200}); /* its own tail, tables and blocks */
    assert_true(tkv_session_shared_bytes(child[0]) < tkv_session_shared_bytes(child[1]));
    tkv_session_destroy(&child[0]);
    for (int i = N - 1; i > 0; i--)
        tkv_session_destroy(&child[i]);
    a.session = parent;
    assert_int_equal(tkv_session_shared_bytes(a.session), 0);
    tkv_session_stats(a.session, &one);
    assert_int_equal(one.resident_bytes, atomic_load(&a.budget.used_bytes));
    free(t.k);
    aid_close(&a);
}

/* Whoever is first writes behind the common tokens in place, the other has to copy. */
static void the_first_writer_copies_nothing(void **state)
{
    struct aid a;
    struct aid_tokens t;
    struct tkv_session *child, *parent;
    size_t before;

    (void)state;
    open_kind(&a, 0, 0);
    parent = a.session;
    t = aid_tokens(&a, N_TOKENS, 11);
    feed_well(&a, parent, &t, (struct chunk){0, 40});
    child = fork_of(&a, parent);
    before = atomic_load(&a.budget.used_bytes);
    feed_well(&a, parent, &t, (struct chunk){40, 10});
    assert_int_equal(atomic_load(&a.budget.used_bytes), before);
    feed_well(&a, child, &t, (struct chunk){60, 10});
    assert_true(atomic_load(&a.budget.used_bytes) > before);
    tkv_session_destroy(&child);
    a.session = parent;
    free(t.k);
    aid_close(&a);
}

/* Whatever the cap: a request of a fork is done wholly or not at all, and hurts nobody else. */
static void the_cap_holds_for_forks(void **state)
{
    uint32_t n_refused = 0;

    (void)state;
    for (size_t extra = 0; extra < (size_t)600 << 10; extra += 61 * emulated_step(3) << 10) {
        struct aid a;
        struct aid_tokens t;
        struct history h[2] = {{.chunk = {{0, 300}}, .n_chunks = 1}};

        open_kind(&a, extra % 2 ? 2 : 0, ROLLBACK);
        t = aid_tokens(&a, N_TOKENS, 11);
        h[0].session = a.session;
        feed_well(&a, a.session, &t, h[0].chunk[0]);
        h[1] = h[0];
        a.budget.cap_bytes = atomic_load(&a.budget.used_bytes) + extra;
        if (tkv_session_fork(&h[1].session, h[0].session, &a.why)) {
            assert_int_equal(a.why.error, TRIKV_E_MEMORY_CAP);
            assert_null(h[1].session);
        }
        for (uint32_t i = 0; h[1].session && i < 20; i++) {
            const struct chunk c = {300 + 15 * i, 15};
            struct history *x = &h[i % 2];
            uint64_t seen = tkv_session_n_seen(x->session, 1);

            if (feed(&a, x->session, &t, c)) {
                assert_int_equal(a.why.error, TRIKV_E_MEMORY_CAP);
                n_refused++;
                seen = tkv_session_n_seen(x->session, 0) - seen; /* layer 0 may have got it */
                assert_int_equal(tkv_session_truncate(x->session, seen, &a.why), 0);
            } else {
                x->chunk[x->n_chunks++] = c;
            }
        }
        a.budget.cap_bytes = (size_t)256 << 20;
        for (size_t i = 0; i < 2; i++)
            if (h[i].session)
                check_history(&a, &h[i], &t);
        tkv_session_destroy(&h[1].session);
        a.session = h[0].session;
        free(t.k);
        aid_close(&a);
    }
    assert_true(n_refused > 5);
}

/* ---- threads ---------------------------------------------------------------------------------- */

struct worker {
    pthread_t thread;
    struct aid aid; /* of its own: where steps put their outputs' session and report */
    struct aid_tokens tokens;
    struct history history;
};

/* Append, and fork and drop children, as fast as it goes. */
static void *work(void *arg)
{
    static char failed[][16] = {"fork", "append", "child's append"};
    struct worker *w = arg;

    while (w->history.n_chunks < MAX_CHUNKS) {
        const uint32_t i = w->history.n_chunks;
        const struct chunk c = {i * 10, 9 + i % 3};
        struct tkv_session *child = NULL;

        if (i % 4 == 0 && tkv_session_fork(&child, w->history.session, NULL))
            return failed[0];
        if (feed(&w->aid, w->history.session, &w->tokens, c))
            return failed[1];
        w->history.chunk[w->history.n_chunks++] = c;
        if (child && feed(&w->aid, child, &w->tokens, c))
            return failed[2];
        tkv_session_destroy(&child);
    }
    return NULL;
}

static void families_work_on_many_threads(void **state)
{
    (void)state;
    for (size_t kind = 0; kind < N_KINDS; kind += 3 * emulated_step(2)) {
        struct aid a;
        struct worker w[4];

        open_kind(&a, kind, ROLLBACK);
        for (size_t i = 0; i < 4; i++) {
            struct aid_tokens t = aid_tokens(&a, N_TOKENS, 11);

            if (i == 0)
                feed_well(&a, a.session, &t, (struct chunk){0, 600});
            w[i] = (struct worker){.aid = a, .tokens = t};
            w[i].history = (struct history){.chunk = {{0, 600}}, .n_chunks = 1};
            w[i].history.session = i ? fork_of(&a, w[0].history.session) : a.session;
        }
        for (size_t i = 0; i < 4; i++)
            assert_int_equal(pthread_create(&w[i].thread, NULL, work, &w[i]), 0);
        for (size_t i = 0; i < 4; i++) {
            void *failed;

            assert_int_equal(pthread_join(w[i].thread, &failed), 0);
            if (failed)
                fail_msg("thread %zu: %s", i, (const char *)failed);
        }
        for (size_t i = 0; i < 4; i++) {
            check_history(&a, &w[i].history, &w[i].tokens);
            tkv_session_destroy(&w[i].history.session);
            free(w[i].tokens.k);
        }
        a.session = NULL;
        aid_close(&a);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_forgotten_was_never_there),
        cmocka_unit_test(a_lost_state_is_refused),
        cmocka_unit_test(everything_can_be_forgotten),
        cmocka_unit_test(layers_behind_stay),
        cmocka_unit_test(forks_go_their_own_ways),
        cmocka_unit_test(a_long_request_finds_its_places),
        cmocka_unit_test(forks_share_their_bytes),
        cmocka_unit_test(the_first_writer_copies_nothing),
        cmocka_unit_test(the_cap_holds_for_forks),
        cmocka_unit_test(families_work_on_many_threads),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
