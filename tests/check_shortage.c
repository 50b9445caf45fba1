/*
 * Sessions of every method for which there is not enough memory, at whatever point it runs out: the request is
 * refused for that reason, nothing of it stays, and asked again with room it does what it would have
 * done in the first place, to the bit.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "proto/errors.h"
#include "tests/emulated.h"
#include "tests/scenes.h"

enum {
    BASE = 230,  /* tokens that are there */
    N_MORE = 74, /* of a request: folds, and rounds */
    N_AFTER = 40,
    N_TOKENS = BASE + N_MORE + N_AFTER,
    N_CAPS = 14,
    AMPLE = 256 << 20,
};

enum request { APPEND, ROUND, BACK, FORK, GATE, PIN, N_REQUESTS };

static const char *const request_names[N_REQUESTS] = {"append", "round", "truncate",
                                                      "fork",   "gate",  "pin"};

struct short_of {
    struct aid a;
    struct aid_tokens t;
    struct tkv_session *parent;
    size_t scene;
    uint32_t n_refused;
    size_t need_bytes; /* of the last request that had ample room */
};

/* From the call on that was refused; all layers get each step. */
static int append(struct short_of *x, struct tkv_session *s, uint32_t *n_done)
{
    const uint32_t step = scene_step(&x->a), n_layers = x->a.config.n_layers;
    const uint32_t n_calls = N_MORE / step * n_layers;
    int e = 0;

    x->a.session = s;
    while (*n_done < n_calls) {
        const uint32_t layer = *n_done % n_layers, at = BASE + *n_done / n_layers * step;
        const uint64_t n_seen = tkv_session_n_seen(s, layer);

        e = aid_step(&x->a, layer, &x->t, at, step);
        if (e) {
            assert_int_equal(tkv_session_n_seen(s, layer), n_seen);
            break;
        }
        ++*n_done;
    }
    return e;
}

static int use_fork(struct short_of *x, struct tkv_session *s)
{
    struct tkv_session *child;
    int e = tkv_session_fork(&child, s, &x->a.why);

    x->a.session = child;
    for (uint32_t l = 0; !e && l < x->a.config.n_layers; l++)
        e = aid_step(&x->a, l, &x->t, BASE, 1);
    tkv_session_destroy(&child);
    return e;
}

static int pin_fork(struct short_of *x, struct tkv_session *s)
{
    struct tkv_session *child;
    int e = tkv_session_fork(&child, s, &x->a.why);

    if (!e)
        e = tkv_session_pin(child, 7, &x->a.why);
    tkv_session_destroy(&child);
    return e;
}

static int ask(struct short_of *x, struct tkv_session *s, enum request r, uint32_t *n_done)
{
    struct tkv_gate_stats stats[AID_MAX_LAYERS];

    x->a.why = (struct tkv_report){0};
    switch (r) {
    case APPEND: return append(x, s, n_done);
    case ROUND: return tkv_session_round(s, NULL, &x->a.why);
    case BACK: return tkv_session_truncate(s, 5, &x->a.why);
    case FORK: return use_fork(x, s);
    case GATE: return tkv_session_gates(s) ? tkv_session_gate(s, NULL, stats, &x->a.why) : 0;
    default: return pin_fork(x, s);
    }
}

/* The request with so many bytes left, again with room if it was refused, and tokens after it, whose
 * attention is in out. Returns the error that is not for want of memory. */
static int play(struct short_of *x, enum request r, size_t left_bytes, float *out)
{
    struct tkv_budget *b = &x->a.budget;
    struct tkv_session *s;
    uint32_t n_done = 0;
    size_t used;
    int e;

    assert_int_equal(tkv_session_fork(&s, x->parent, &x->a.why), 0);
    used = atomic_load(&b->used_bytes);
    atomic_store(&b->peak_bytes, used);
    b->cap_bytes = left_bytes < AMPLE ? used + left_bytes : AMPLE;
    e = ask(x, s, r, &n_done);
    b->cap_bytes = AMPLE;
    x->need_bytes = atomic_load(&b->peak_bytes) - used;
    if (e == TRIKV_E_MEMORY_CAP) {
        assert_true(x->a.why.error == e && x->a.why.text[0]);
        x->n_refused++;
        e = ask(x, s, r, &n_done);
    }
    scene_feed(&x->a, s, &x->t, BASE + N_MORE, N_AFTER);
    memcpy(out, x->t.out + (size_t)(BASE + N_MORE) * 4 * 64, (size_t)N_AFTER * 4 * 64 * 4);
    tkv_session_destroy(&s);
    return e; /* that every byte comes back is seen when the last of them closes */
}

static void every_shortage(struct short_of *x, enum request r)
{
    const size_t n = (size_t)N_AFTER * 4 * 64;
    float *want = calloc(2 * n, sizeof(float)), *got = want + n;
    const int e = play(x, r, AMPLE, want);
    const size_t need = x->need_bytes;

    assert_non_null(want);
    assert_int_not_equal(e, TRIKV_E_MEMORY_CAP);
    for (size_t i = 0; i < N_CAPS; i += emulated_step(3)) {
        const int again = play(x, r, need * i / N_CAPS, got);

        if (again != e || memcmp(want, got, n * sizeof(float)) != 0)
            fail_msg("%s, %s with %zu of %zu bytes: error %d, want %d, %s", scene_name(x->scene),
                     request_names[r], need * i / N_CAPS, need, again, e,
                     again == e ? "but another attention after it" : x->a.why.text);
    }
    free(want);
}

static void requests_are_as_if_never_refused(void **state)
{
    struct short_of x = {0};

    (void)state;
    for (x.scene = 0; x.scene < N_SCENES; x.scene += emulated_step(2)) {
        scene_open(&x.a, x.scene);
        x.t = aid_tokens(&x.a, N_TOKENS, 17);
        x.parent = x.a.session;
        scene_feed(&x.a, x.parent, &x.t, 0, BASE);
        for (enum request r = APPEND; r < N_REQUESTS; r++)
            every_shortage(&x, r);
        x.a.session = x.parent;
        free(x.t.k);
        scene_close(&x.a);
    }
    assert_true(x.n_refused > 100);
}

static void sessions_that_find_no_room_leave_nothing(void **state)
{
    (void)state;
    for (size_t scene = 0; scene < N_SCENES; scene++) {
        struct aid a;
        size_t most;

        scene_open(&a, scene);
        most = atomic_load(&a.budget.peak_bytes);
        tkv_session_destroy(&a.session);
        for (size_t i = 0; i < N_CAPS; i++) {
            a.budget.cap_bytes = most * i / N_CAPS;
            if (aid_open(&a) != TRIKV_E_MEMORY_CAP)
                fail_msg("%s with %zu of %zu bytes: %s", scene_name(scene), most * i / N_CAPS, most,
                         a.why.text);
            assert_null(a.session);
            assert_int_equal(atomic_load(&a.budget.used_bytes), 0);
        }
        a.budget.cap_bytes = AMPLE;
        assert_int_equal(aid_open(&a), 0);
        scene_close(&a);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(requests_are_as_if_never_refused),
        cmocka_unit_test(sessions_that_find_no_room_leave_nothing),
    };

    return cmocka_run_group_tests_name("shortage", tests, NULL, NULL);
}
