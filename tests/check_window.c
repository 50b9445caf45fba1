/*
 * Layers with a sliding window: every query sees its window and nothing else, whatever is dropped
 * behind it; memory stays bounded; queries that would miss something are refused. Judged by
 * attention in double over all tokens there ever were.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "core/half.h"
#include "proto/errors.h"
#include "store/session_priv.h"
#include "tests/emulated.h"
#include "tests/naive.h"
#include "tests/session_aid.h"

enum { N_TOKENS = 1500, RECENT = 32, MAX_ROW = 256 };

static const float sinks[4] = {0.5f, -1, 2, 0};

/* Layer 0 sees everything, layer 1 its window. */
struct scene {
    struct aid a;
    struct aid_tokens t;
    int32_t positions[N_TOKENS];
};

static void to_halves(float *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        x[i] = tkv_f16_to_f32(tkv_f32_to_f16(x[i]));
}

static void scene_open(struct scene *s, const char *codec, uint32_t window, enum tkv_method method,
                       uint32_t budget)
{
    const struct tkv_shape *shape;

    aid_init(&s->a, codec);
    s->a.config.recent_tokens = RECENT;
    s->a.config.rollback_tokens = 20;
    s->a.layers[1].attn = (struct tkv_attn_params){0.2f, 30, window};
    s->a.layers[1].sinks = sinks;
    if (method == TKV_METHOD_TRIATTENTION)
        aid_triattention(&s->a, budget, 9);
    s->a.config.method = method;
    for (uint32_t i = 0; i < 2; i++)
        s->a.layers[i].budget_tokens = budget;
    if (aid_open(&s->a))
        fail_msg("%s", s->a.why.text);
    s->t = aid_tokens(&s->a, N_TOKENS, 77);
    shape = &s->a.shape;
    to_halves(s->t.k, (size_t)N_TOKENS * shape->n_kv_heads * shape->head_dim_k);
    to_halves(s->t.v, (size_t)N_TOKENS * shape->n_kv_heads * shape->head_dim_v);
    for (int32_t i = 0; i < N_TOKENS; i++)
        s->positions[i] = i;
}

static void scene_close(struct scene *s)
{
    free(s->t.k);
    aid_close(&s->a);
}

static struct naive judge(const struct scene *s, uint32_t layer)
{
    const struct tkv_layer_config *l = &s->a.layers[layer];

    return (struct naive){.shape = s->a.shape,
                          .scale = (double)l->attn.scale,
                          .softcap = (double)l->attn.softcap,
                          .window_tokens = l->attn.window_tokens,
                          .sinks = l->sinks,
                          .n_keys = N_TOKENS,
                          .key_positions = s->positions,
                          .k = s->t.k,
                          .v = s->t.v};
}

/* The largest error of a token's outputs and lse. */
static double token_error(const struct scene *s, uint32_t layer, uint32_t token)
{
    const struct tkv_shape *shape = &s->a.shape;
    const struct naive n = judge(s, layer);
    double worst = 0;

    for (uint32_t h = 0; h < shape->n_q_heads; h++) {
        const size_t row = (size_t)token * shape->n_q_heads + h;
        double want[MAX_ROW];
        const double lse =
            naive_attend(&n, h, s->positions[token], s->t.q + row * shape->head_dim_k, want);

        worst = naive_worse(worst, lse - (double)s->t.lse[row]);
        for (uint32_t i = 0; i < shape->head_dim_v; i++)
            worst = naive_worse(worst, want[i] - (double)s->t.out[row * shape->head_dim_v + i]);
    }
    return worst;
}

static void step(struct scene *s, uint32_t layer, uint32_t first, uint32_t n)
{
    const struct tkv_shape *shape = &s->a.shape;
    const size_t kv = (size_t)first * shape->n_kv_heads, q = (size_t)first * shape->n_q_heads;
    const struct tkv_step t = {.layer = layer,
                               .n_tokens = n,
                               .positions = s->positions + first,
                               .k = s->t.k + kv * shape->head_dim_k,
                               .v = s->t.v + kv * shape->head_dim_v,
                               .q = s->t.q + q * shape->head_dim_k,
                               .out = s->t.out + q * shape->head_dim_v,
                               .lse = s->t.lse + q};

    if (tkv_session_append_attend(s->a.session, &t, NULL, &s->a.why))
        fail_msg("layer %u, %u + %u: %s", layer, first, n, s->a.why.text);
}

/* Tokens that a sliding layer may keep: its window behind the oldest half, what folds bring. */
static uint32_t most_kept(uint32_t window)
{
    return window + (window < RECENT ? window : RECENT) + 2 * TKV_BLOCK_TOKENS;
}

static void check_layer(struct scene *s, uint32_t layer, uint64_t seed, const char *name)
{
    const uint32_t window = s->a.layers[layer].attn.window_tokens;
    struct rng rng = {seed};

    for (uint32_t at = 0; at < N_TOKENS;) {
        const uint32_t n = 1 + (uint32_t)rng_below(&rng, rng_below(&rng, 4) ? 5 : 400);
        const uint32_t m = n < N_TOKENS - at ? n : N_TOKENS - at;

        step(s, layer, at, m);
        if (window > 0 && tkv_session_n_kept(s->a.session, layer) > most_kept(window))
            fail_msg("%s: window %u, %u tokens kept", name, window,
                     tkv_session_n_kept(s->a.session, layer));
        at += m;
        if (rng_below(&rng, 8) == 0)
            assert_int_equal(tkv_session_round(s->a.session, NULL, &s->a.why), 0);
    }
    for (uint32_t token = 0; token<N_TOKENS; token += token> 700 && token < 760 ? 1 : 17)
        if (!(token_error(s, layer, token) < 1e-5))
            fail_msg("%s: window %u, token %u: error %g", name, window, token,
                     token_error(s, layer, token));
}

static void every_query_sees_its_window(void **state)
{
    static const uint32_t windows[] = {1, 20, 32, 64, 100, 128, 333, 4096};

    (void)state;
    for (size_t i = 0; i < sizeof(windows) / sizeof(windows[0]); i += emulated_step(3))
        for (int gaps = 0; gaps < 2; gaps++) {
            struct scene s;

            scene_open(&s, "f16", windows[i], TKV_METHOD_NONE, 0);
            for (int32_t t = 0; gaps && t < N_TOKENS; t++)
                s.positions[t] = t + t / 7 * 3 + (t > 720 ? 70000 : 0);
            check_layer(&s, 1, 40 + i, gaps ? "gaps" : "none");
            check_layer(&s, 0, 40 + i, "the layer beside it");
            assert_int_equal(tkv_session_n_kept(s.a.session, 0), N_TOKENS);
            scene_close(&s);
        }
}

/* Beside layers that choose their tokens a window within the budget is kept whole, without scores. */
static void a_window_is_its_own_budget(void **state)
{
    static const enum tkv_method methods[] = {TKV_METHOD_TRIATTENTION, TKV_METHOD_H2O,
                                              TKV_METHOD_SNAPKV, TKV_METHOD_STREAMING};

    (void)state;
    for (size_t i = 0; i < sizeof(methods) / sizeof(methods[0]); i++) {
        struct scene s;
        uint32_t n;

        scene_open(&s, "f16", 100, methods[i], 150);
        check_layer(&s, 1, 4, tkv_method_names[methods[i]]);
        step(&s, 0, 0, N_TOKENS);
        n = tkv_session_n_kept(s.a.session, 0);
        assert_true(n <= 150 + 64 && n > 64);
        assert_null(s.a.session->layers[1].mass);
        assert_null(s.a.session->layers[1].norm_weights);
        scene_close(&s);
    }
}

/* A larger one holds rounds; what no query can see goes first. */
static void a_round_keeps_what_can_be_seen(void **state)
{
    struct scene s;
    int32_t kept[N_TOKENS];
    uint32_t n, n_unseen = 0;

    (void)state;
    scene_open(&s, "tq4", 160, TKV_METHOD_KEYDIFF, 150);
    for (uint32_t at = 0; at < 1200; at += 8)
        step(&s, 1, at, 8);
    assert_int_equal(tkv_session_round(s.a.session, NULL, &s.a.why), 0);
    for (uint32_t h = 0; h < 2; h++) {
        n = aid_kept(&s.a, 1, h, kept, N_TOKENS);
        assert_int_equal(n, 150);
        for (uint32_t i = 4; i < n; i++) /* those before are pinned */
            n_unseen += kept[i] <= 1200 - RECENT - 160;
    }
    assert_int_equal(n_unseen, 0);
    scene_close(&s);
}

static void memory_is_bounded(void **state)
{
    struct tkv_session_stats early, late;
    struct tkv_layer_stats l;
    struct scene s;

    (void)state;
    scene_open(&s, "tq4", 128, TKV_METHOD_NONE, 0);
    for (uint32_t turn = 0; turn < 12; turn++) {
        for (uint32_t i = 0; i < N_TOKENS; i++)
            s.positions[i] = (int32_t)(turn * N_TOKENS + i);
        step(&s, 1, 0, N_TOKENS);
        tkv_session_stats(s.a.session, turn < 2 ? &early : &late);
    }
    assert_int_equal(late.resident_bytes, early.resident_bytes);
    assert_int_equal(late.n_seen, 12 * N_TOKENS);
    tkv_session_layer_stats(s.a.session, 1, &l);
    assert_int_equal(l.n_kept, 2 * tkv_session_n_kept(s.a.session, 1));
    assert_int_equal(late.n_evicted, 2 * 12 * N_TOKENS - l.n_kept);
    assert_int_equal(late.fp16_bytes, (uint64_t)128 * 2 * (64 + 64) * 2); /* nobody keeps more */
    scene_close(&s);
}

/* A request of any length needs no more memory than its window. */
static void a_long_request_needs_little(void **state)
{
    struct scene s;
    struct tkv_step t = {.layer = 1, .n_tokens = 1200};
    size_t used;

    (void)state;
    scene_open(&s, "f16", 64, TKV_METHOD_NONE, 0);
    step(&s, 1, 0, 300);
    t.k = s.t.k;
    t.v = s.t.v;
    used = atomic_load(&s.a.budget.used_bytes);
    /* The request's own tensors and some blocks; 1,200 tokens in blocks would take as much again. */
    s.a.budget.cap_bytes = used + 1200 * 2 * 128 * 2 + 300000;
    assert_int_equal(tkv_session_append(s.a.session, &t, NULL, &s.a.why), 0);
    scene_close(&s);
}

static int attend_at(struct scene *s, uint32_t token)
{
    const struct tkv_shape *shape = &s->a.shape;
    const size_t row = (size_t)token * shape->n_q_heads;
    const struct tkv_step t = {.layer = 1,
                               .n_tokens = 1,
                               .positions = s->positions + token,
                               .q = s->t.q + row * shape->head_dim_k,
                               .out = s->t.out + row * shape->head_dim_v,
                               .lse = s->t.lse + row};

    return tkv_session_attend(s->a.session, &t, NULL, &s->a.why);
}

/* Of queries that come apart from their keys. */
static void check_old_queries(uint32_t window)
{
    struct scene s;
    uint32_t n_refused = 0;

    scene_open(&s, "f16", window, TKV_METHOD_NONE, 0);
    step(&s, 1, 0, 700);
    for (uint32_t token = 0; token < 700; token++) {
        if (attend_at(&s, token)) {
            assert_non_null(strstr(s.a.why.text, "layer 1: a query at"));
            assert_int_equal(n_refused, token); /* only the oldest */
            n_refused++;
        } else if (!(token_error(&s, 1, token) < 1e-5)) {
            fail_msg("token %u: error %g", token, token_error(&s, 1, token));
        }
    }
    assert_true(n_refused > 400 && n_refused <= 700 - RECENT);
    assert_int_equal(tkv_session_truncate(s.a.session, 10, &s.a.why), 0);
    for (uint32_t token = n_refused; token < 690; token += emulated_step(7)) {
        assert_int_equal(attend_at(&s, token), 0);
        assert_true(token_error(&s, 1, token) < 1e-5);
    }
    scene_close(&s);
}

static void old_queries_are_exact_or_refused(void **state)
{
    (void)state;
    check_old_queries(100);
    check_old_queries(65); /* the oldest query there is sees one token, none or two of a block */
    check_old_queries(64);
    check_old_queries(66);
}

static void all_heads_are_read_together(void **state)
{
    struct scene s;
    struct tkv_read r = {.layer = 1, .n_heads = 2, .dtype = TKV_F32};
    struct tkv_read_bytes bytes;
    int32_t positions[N_TOKENS];

    (void)state;
    scene_open(&s, "f16", 100, TKV_METHOD_STREAMING, 150);
    step(&s, 0, 0, 900);
    step(&s, 1, 0, 900);
    r.n_tokens = tkv_session_n_kept(s.a.session, 1);
    assert_int_equal(tkv_session_read_check(s.a.session, &r, &bytes, &s.a.why), 0);
    r.positions = positions;
    r.k = malloc(bytes.k);
    r.v = malloc(bytes.v);
    tkv_session_read(s.a.session, &r);
    assert_int_equal(positions[r.n_tokens - 1], 899);
    assert_int_equal(positions[0], 900 - r.n_tokens);
    assert_memory_equal(r.k, s.t.k + (900 - r.n_tokens) * 128, bytes.k);
    assert_memory_equal(r.v, s.t.v + (900 - r.n_tokens) * 128, bytes.v);
    free(r.k);
    free(r.v);
    r.layer = 0;
    assert_int_equal(tkv_session_read_check(s.a.session, &r, &bytes, &s.a.why), TRIKV_E_ARGUMENT);
    scene_close(&s);
}

static void windows_apart_from_common_sets(void **state)
{
    struct aid a;

    (void)state;
    aid_init(&a, "tq4");
    aid_triattention(&a, 150, 9);
    a.layers[1].attn.window_tokens = 100;
    a.layers[1].stats = NULL; /* not needed */
    assert_int_equal(aid_open(&a), 0);
    tkv_session_destroy(&a.session);
    a.config.eviction_mode = TKV_UNION;
    assert_int_equal(aid_open(&a), TRIKV_E_ARGUMENT);
    assert_non_null(strstr(a.why.text, "layer 1: window_tokens is 100"));
    aid_close(&a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_query_sees_its_window),
        cmocka_unit_test(a_window_is_its_own_budget),
        cmocka_unit_test(a_round_keeps_what_can_be_seen),
        cmocka_unit_test(memory_is_bounded),
        cmocka_unit_test(a_long_request_needs_little),
        cmocka_unit_test(old_queries_are_exact_or_refused),
        cmocka_unit_test(all_heads_are_read_together),
        cmocka_unit_test(windows_apart_from_common_sets),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
