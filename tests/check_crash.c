/*
 * A process that dies after any store of a journal: at every one of them the arena is copied as it stands, which
 * is what a successor of a killed process would get, and adopted. Every session must be as a lone twin that
 * was given the requests that had returned, or those and the one in flight; and go on like it.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/plan.h"
#include "proto/errors.h"
#include "store/adopt.h"
#include "store/journal.h"
#include "tests/emulated.h"
#include "tests/session_aid.h"

enum { MAX_SESSIONS = 4, N_TOKENS = 512, CAP = 48 << 20, GO_ON = 70, OUT_FLOATS = 1024, SLOW = 29 };

enum kind { APPEND, ATTEND, ROUND, TRUNCATE, FORK, CLOSE };

/* A request: n tokens, or for FORK the parent. */
struct op {
    enum kind kind;
    uint32_t session, layer, n;
};

struct world {
    struct tkv_session *s[MAX_SESSIONS];
    bool is_kept;
};

struct crash {
    struct aid aid; /* of all sessions but adopted ones */
    struct aid_tokens t;
    struct world real, before,
        after; /* the last two: twins, and those with the request in flight */
    bool has_after;
    struct op op; /* in flight */
    uint32_t n_steps, n_requests;
    uint32_t n_whole, n_cut; /* crashes that left the request in flight done, or a part of it */
    float *errors;
};

/* ---- requests ------------------------------------------------------------------------------- */

static uint32_t first_token(const struct tkv_session *s, const struct op *op)
{
    return (uint32_t)(tkv_session_n_seen(s, op->layer) * 3 + op->session * 37) % (N_TOKENS - op->n);
}

static void on_step(void *arg);

static int fork_session(struct crash *c, struct world *w, const struct op *op)
{
    const uint8_t note = (uint8_t)op->session;
    int e = tkv_session_fork(&w->s[op->session], w->s[op->n], &c->aid.why);

    if (e || !w->is_kept)
        return e;
    e = tkv_session_keep(w->s[op->session], w->s[op->n], &note, sizeof(note), &c->aid.why);
    w->s[op->session]->journal->on_step = on_step;
    w->s[op->session]->journal->on_step_arg = c;
    return e;
}

static int attend(struct aid *a, struct tkv_session *s, const struct aid_tokens *t, uint32_t layer,
                  float *out)
{
    const int32_t far = 100000;
    const struct tkv_step step = {.layer = layer,
                                  .n_tokens = 1,
                                  .positions = &far,
                                  .q = t->q,
                                  .out = out,
                                  .lse = out + OUT_FLOATS - 64};

    return tkv_session_attend(s, &step, NULL, &a->why);
}

static int append(struct crash *c, struct tkv_session *s, const struct op *op, uint32_t skip)
{
    struct aid *a = &c->aid;

    a->session = s;
    return aid_step(a, op->layer, &c->t, first_token(s, op) + skip, op->n - skip);
}

static void apply(struct crash *c, struct world *w, const struct op *op)
{
    struct tkv_session *s = w->s[op->session];
    float out[OUT_FLOATS];
    int e = 0;

    switch (op->kind) {
    case APPEND: e = append(c, s, op, 0); break;
    case ATTEND: e = attend(&c->aid, s, &c->t, op->layer, out); break;
    case ROUND: e = tkv_session_round(s, NULL, &c->aid.why); break;
    case TRUNCATE: e = tkv_session_truncate(s, op->n, &c->aid.why); break;
    case FORK: e = fork_session(c, w, op); break;
    case CLOSE: tkv_session_destroy(&w->s[op->session]); break;
    }
    if (e)
        fail_msg("request %d of session %u, layer %u, %u tokens: %s", (int)op->kind, op->session,
                 op->layer, op->n, c->aid.why.text);
}

/* ---- comparing ------------------------------------------------------------------------------ */

static bool same_counts(const struct tkv_session *x, const struct tkv_session *y)
{
    bool same = tkv_session_n_rounds(x) == tkv_session_n_rounds(y) &&
                tkv_session_reach(x) == tkv_session_reach(y) && x->n_evicted == y->n_evicted;

    for (uint32_t i = 0; i < x->config.n_layers; i++)
        same &= tkv_session_n_seen(x, i) == tkv_session_n_seen(y, i) &&
                tkv_session_n_kept(x, i) == tkv_session_n_kept(y, i) &&
                x->layers[i].last_position == y->layers[i].last_position &&
                x->layers[i].tail.n == y->layers[i].tail.n;
    return same;
}

/* Everything that a KV head keeps, decoded, and what was observed of it. */
static bool same_head(const struct tkv_session *x, const struct tkv_session *y, uint32_t layer,
                      uint32_t head)
{
    const uint64_t n = tkv_session_head_kept(x, layer, head);
    const size_t floats = (size_t)n * x->layers[layer].config.shape.head_dim_k;
    float *k = calloc(4 * floats + 1, sizeof(float));
    int32_t *positions = calloc(2 * n + 1, sizeof(int32_t));
    struct tkv_read r = {.layer = layer,
                         .kv_head = head,
                         .n_heads = 1,
                         .n_tokens = (uint32_t)n,
                         .positions = positions,
                         .k = k,
                         .v = k + floats};
    bool same = tkv_session_head_kept(y, layer, head) == n;

    assert_non_null(k);
    assert_non_null(positions);
    if (same) {
        tkv_session_read(x, &r);
        r.positions = positions + n;
        r.k = k + 2 * floats;
        r.v = k + 3 * floats;
        tkv_session_read(y, &r);
        same = memcmp(positions, positions + n, n * sizeof(int32_t)) == 0 &&
               memcmp(k, k + 2 * floats, 2 * floats * sizeof(float)) == 0;
    }
    if (same && x->layers[layer].mass)
        same = memcmp(x->layers[layer].mass[head].x, y->layers[layer].mass[head].x,
                      (n - x->layers[layer].pinned.n) * sizeof(float)) == 0;
    free(positions);
    free(k);
    return same;
}

static bool same(const struct tkv_session *x, const struct tkv_session *y)
{
    if (!same_counts(x, y))
        return false;
    for (uint32_t i = 0; i < x->config.n_layers; i++)
        for (uint32_t h = 0; h < x->layers[i].config.shape.n_kv_heads; h++)
            if (!same_head(x, y, i, h))
                return false;
    return true;
}

/* ---- a crash -------------------------------------------------------------------------------- */

static void adopt(struct crash *c, int fd, struct tkv_budget *b, struct world *w)
{
    struct tkv_adoption *a;
    struct tkv_adopted x;
    struct tkv_report why = {0};
    bool found = true;

    if (tkv_adoption_begin(&a, fd, b, &c->aid.kn, &why))
        fail_msg("step %u: %s", c->n_steps, why.text);
    while (found) {
        uint8_t i;

        if (tkv_adoption_next(a, &found, &x, &why))
            fail_msg("step %u: %s", c->n_steps, why.text);
        if (!found)
            break;
        memcpy(&i, x.note, 1);
        assert_true(i < MAX_SESSIONS && !w->s[i]);
        for (uint32_t l = 0; l < x.config->config.n_layers; l++) {
            x.config->layers[l].stats = c->aid.layers[l].stats;
            x.config->layers[l].errors = c->aid.layers[l].errors;
        }
        if (tkv_adoption_take(a, &w->s[i], &why))
            fail_msg("step %u, session %u: %s", c->n_steps, i, why.text);
    }
    tkv_adoption_end(&a);
}

/* The twins with the request in flight. */
static void make_after(struct crash *c)
{
    if (c->has_after)
        return;
    for (int i = 0; i < MAX_SESSIONS; i++)
        if (c->before.s[i])
            assert_int_equal(tkv_session_fork(&c->after.s[i], c->before.s[i], &c->aid.why), 0);
    apply(c, &c->after, &c->op);
    c->has_after = true;
}

/* The rest of a request of many tokens, that a client would send again. */
static void complete(struct crash *c, struct tkv_session *s, uint64_t n_before)
{
    const struct tkv_session *twin = c->before.s[c->op.session];
    const uint64_t n = tkv_session_n_seen(s, c->op.layer);
    struct op op = c->op;

    if (op.kind != APPEND || n <= n_before || n >= n_before + op.n)
        return;
    c->n_cut++;
    c->aid.session = s;
    if (aid_step(&c->aid, op.layer, &c->t, first_token(twin, &op) + (uint32_t)(n - n_before),
                 op.n - (uint32_t)(n - n_before)))
        fail_msg("step %u: %s", c->n_steps, c->aid.why.text);
}

/* Both have the same future. */
static void go_on(struct crash *c, struct tkv_session *s, struct tkv_session *twin)
{
    struct tkv_session *fork;
    float x[OUT_FLOATS] = {0}, y[OUT_FLOATS] = {0};

    assert_int_equal(tkv_session_fork(&fork, twin, &c->aid.why), 0);
    for (uint32_t i = 0; i < GO_ON; i++)
        for (uint32_t l = 0; l < s->config.n_layers; l++) {
            const struct op op = {APPEND, 0, l, 1};
            uint64_t least, most;

            tkv_session_seen(s, &least, &most); /* the layers that a crash left behind go first */
            if (tkv_session_n_seen(s, l) > least)
                continue;
            if (append(c, s, &op, 0) || append(c, fork, &op, 0))
                fail_msg("step %u: going on: %s", c->n_steps, c->aid.why.text);
        }
    for (uint32_t l = 0; l < s->config.n_layers; l++) {
        assert_int_equal(attend(&c->aid, s, &c->t, l, x), 0);
        assert_int_equal(attend(&c->aid, fork, &c->t, l, y), 0);
        assert_memory_equal(x, y, sizeof(x));
    }
    if (!same(s, fork))
        fail_msg("step %u: a session goes on in another way than its twin", c->n_steps);
    tkv_session_destroy(&fork);
}

static bool may_be_missing(const struct crash *c, int i)
{
    return (int)c->op.session == i && (c->op.kind == CLOSE || c->op.kind == FORK);
}

static void check_session(struct crash *c, int i, struct tkv_session *s)
{
    struct tkv_session *twin = c->before.s[i];

    if (!s) {
        if (twin && !may_be_missing(c, i))
            fail_msg("step %u: session %d is lost (request %d of session %u in flight)", c->n_steps,
                     i, (int)c->op.kind, c->op.session);
        return;
    }
    if (twin && (int)c->op.session == i)
        complete(c, s, tkv_session_n_seen(twin, c->op.layer));
    if (!twin || !same(s, twin)) {
        make_after(c);
        twin = c->after.s[i];
        c->n_whole++;
        if (!twin || !same(s, twin))
            fail_msg(
                "step %u: session %d is not as its requests left it (request %d of session %u, "
                "layer %u, %u tokens in flight)",
                c->n_steps, i, (int)c->op.kind, c->op.session, c->op.layer, c->op.n);
    }
    if (c->n_steps / slow_step(SLOW) % 31 == 0)
        go_on(c, s, twin);
}

static int arena_fd(const struct world *w)
{
    for (int i = 0; i < MAX_SESSIONS; i++)
        if (w->s[i])
            return tkv_session_arena_own_fd(w->s[i]);
    return -1;
}

static void crash(struct crash *c)
{
    struct aid keep = c->aid;
    struct world found = {.is_kept = true};
    struct tkv_budget b;
    const int fd = aid_copy_arena(arena_fd(&c->real));

    tkv_budget_init(&b, CAP);
    adopt(c, fd, &b, &found);
    for (int i = 0; i < MAX_SESSIONS; i++)
        check_session(c, i, found.s[i]);
    for (int i = 0; i < MAX_SESSIONS; i++)
        tkv_session_destroy(&found.s[i]);
    assert_int_equal(atomic_load(&b.used_bytes), 0);
    close(fd);
    c->aid.session = keep.session;
}

static void on_step(void *arg)
{
    struct crash *c = arg;

    if (++c->n_steps % slow_step(SLOW) == 0)
        crash(c);
}

/* ---- scripts -------------------------------------------------------------------------------- */

static void request(struct crash *c, struct op op)
{
    c->op = op;
    c->has_after = false;
    apply(c, &c->real, &op);
    if (++c->n_requests % slow_step(SLOW) == 0 && arena_fd(&c->real) >= 0)
        crash(c); /* answered: from here on it must be there whole */
    for (int i = 0; i < MAX_SESSIONS; i++)
        tkv_session_destroy(&c->after.s[i]);
    apply(c, &c->before, &op);
}

static void append_all(struct crash *c, uint32_t session, uint32_t n)
{
    for (uint32_t l = 0; l < c->aid.config.n_layers; l++)
        request(c, (struct op){APPEND, session, l, n});
}

static void begin(struct crash *c)
{
    const uint8_t note = 0;

    c->aid.config.n_layers = 2;
    c->aid.config.is_kept = true;
    if (aid_open(&c->aid))
        fail_msg("%s", c->aid.why.text);
    c->real.s[0] = c->aid.session;
    c->real.is_kept = true;
    if (tkv_session_keep(c->real.s[0], NULL, &note, 1, &c->aid.why))
        fail_msg("%s", c->aid.why.text);
    c->real.s[0]->journal->on_step = on_step;
    c->real.s[0]->journal->on_step_arg = c;
    c->aid.config.is_kept = false;
    if (aid_open(&c->aid))
        fail_msg("%s", c->aid.why.text);
    c->before.s[0] = c->aid.session;
    c->t = aid_tokens(&c->aid, N_TOKENS, 11);
}

static void end(struct crash *c)
{
    for (int i = 0; i < MAX_SESSIONS; i++) {
        if (c->real.s[i])
            c->real.s[i]->journal->on_step = NULL;
        tkv_session_destroy(&c->real.s[i]);
        tkv_session_destroy(&c->before.s[i]);
    }
    free(c->t.k);
    free(c->errors);
    c->aid.session = NULL;
    aid_close(&c->aid);
    print_message("%u stores, %u left the request in flight whole, %u a part of it\n", c->n_steps,
                  c->n_whole, c->n_cut);
    assert_true(c->n_steps > 50 && c->n_whole > 10 / slow_step(SLOW));
}

/* Decoding with folds and rounds, prefill, forks that go apart, and going back. */
static void run_script(struct crash *c)
{
    const bool whole = c->aid.config.eviction_mode == TKV_PER_LAYER_PERHEAD;
    const uint32_t back = c->aid.config.rollback_tokens ? 5 : 1;

    begin(c);
    append_all(c, 0, whole ? 290 : 3);
    for (int i = 0; i < 70; i++)
        append_all(c, 0, i % 9 == 0 && whole ? 4 : 1);
    request(c, (struct op){FORK, 1, 0, 0});
    for (int i = 0; i < 4; i++) {
        append_all(c, 1, 1);
        append_all(c, 0, 2);
    }
    request(c, (struct op){ATTEND, 0, 1, 0});
    request(c, (struct op){ROUND, 1, 0, 0});
    append_all(c, 1, whole ? 300 : 2);
    request(c, (struct op){TRUNCATE, 1, 0, back});
    append_all(c, 1, 1);
    request(c, (struct op){FORK, 2, 0, 1});
    request(c, (struct op){FORK, 3, 0, 0}); /* whose images are its parent's, which writes others */
    for (int i = 0; i < (whole ? 20 : 70); i++)
        append_all(c, 0, 1);
    append_all(c, 0, whole ? 200 : 1);
    append_all(c, 3, 1);
    request(c, (struct op){CLOSE, 3, 0, 0});
    request(c, (struct op){CLOSE, 1, 0, 0});
    append_all(c, 2, whole ? 260 : 2);
    request(c, (struct op){CLOSE, 0, 0, 0});
    append_all(c, 2, 1);
    end(c);
}

static struct crash *new_crash(const char *codec)
{
    struct crash *c = calloc(1, sizeof(*c));

    assert_non_null(c);
    aid_init(&c->aid, codec);
    return c;
}

static void without_eviction(void **state)
{
    struct crash *c = new_crash("tq4");

    (void)state;
    run_script(c);
    free(c);
}

static void with_rollback(void **state)
{
    struct crash *c = new_crash("tq2");

    (void)state;
    c->aid.config.rollback_tokens = 12;
    run_script(c);
    free(c);
}

static void triattention(uint32_t rollback_tokens, enum tkv_eviction_mode mode)
{
    struct crash *c = new_crash("tq3");

    aid_triattention(&c->aid, 110, 5);
    c->aid.config.rollback_tokens = rollback_tokens;
    c->aid.config.eviction_mode = mode;
    run_script(c);
    free(c);
}

static void triattention_by_layer(void **state)
{
    (void)state;
    triattention(0, TKV_PER_LAYER_PERHEAD);
}

static void triattention_with_rollback(void **state)
{
    (void)state;
    triattention(12, TKV_PER_LAYER_PERHEAD);
}

static void triattention_of_all_layers(void **state)
{
    (void)state;
    triattention(0, TKV_UNION);
}

static void observing(enum tkv_method method)
{
    struct crash *c = new_crash("tq4");

    c->aid.config.method = method;
    for (int i = 0; i < AID_MAX_LAYERS; i++)
        c->aid.layers[i].budget_tokens = 110;
    run_script(c);
    free(c);
}

static void h2o(void **state)
{
    (void)state;
    observing(TKV_METHOD_H2O);
}

static void snapkv(void **state)
{
    (void)state;
    observing(TKV_METHOD_SNAPKV);
}

/* Bits and reach by head: one that keeps all, one with a window. */
static void method_default(void **state)
{
    struct crash *c = new_crash("tq4");
    const size_t n = (size_t)AID_MAX_LAYERS * 2 * TKV_PLAN_ERRORS;

    (void)state;
    c->errors = calloc(n, sizeof(float));
    assert_non_null(c->errors);
    for (size_t i = 0; i < n; i++)
        c->errors[i] = i / TKV_PLAN_ERRORS % 2 ? 1e-6f : 1.0f / (float)(1 + i % TKV_PLAN_ERRORS);
    for (int i = 0; i < AID_MAX_LAYERS; i++)
        c->aid.layers[i].errors = c->errors + (size_t)i * 2 * TKV_PLAN_ERRORS;
    c->aid.config.method = TKV_METHOD_DEFAULT;
    c->aid.config.budget_bytes = 900 << 10;
    c->aid.config.max_tokens = 600;
    run_script(c);
    free(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(without_eviction),
        cmocka_unit_test(with_rollback),
        cmocka_unit_test(triattention_by_layer),
        cmocka_unit_test(triattention_with_rollback),
        cmocka_unit_test(triattention_of_all_layers),
        cmocka_unit_test(h2o),
        cmocka_unit_test(snapkv),
        cmocka_unit_test(method_default),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
