/*
 * The coherence gate: its arithmetic against attention in double with and without tokens, and in a
 * session what it saves, what it counts and what it leaves alone.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "core/cpu.h"
#include "core/gate.h"
#include "core/kernels.h"
#include "proto/errors.h"
#include "store/session_priv.h"
#include "tests/session_aid.h"

/* ---- arithmetic --------------------------------------------------------------------------- */

enum { KEYS = 64, PROBES = 3, GROUP = 2, ROWS = PROBES * GROUP, DIM_K = 16, DIM_V = 24 };

/* 64 keys, of which the first n are dropped; probes that see different numbers of them. */
struct scene {
    struct tkv_kernels kn;
    struct tkv_attn_params attn;
    int32_t key_positions[KEYS], positions[PROBES];
    float keys[KEYS][DIM_K], values[KEYS][DIM_V], q[ROWS][DIM_K];
    float tile[DIM_K * KEYS], weights[ROWS * KEYS];
    float out[ROWS][DIM_V], lse[ROWS], mass[ROWS], lost[ROWS][DIM_V];
};

static double naive_logit(const struct scene *s, size_t row, size_t key)
{
    const int32_t distance = s->positions[row / GROUP] - s->key_positions[key];
    const double cap = (double)s->attn.softcap;
    double x = 0;

    if (distance < 0 || (s->attn.window_tokens && distance >= (int32_t)s->attn.window_tokens))
        return -INFINITY;
    for (size_t i = 0; i < DIM_K; i++)
        x += (double)s->q[row][i] * (double)s->keys[key][i];
    x *= (double)s->attn.scale;
    return cap > 0 ? cap * tanh(x / cap) : x;
}

/* out[DIM_V] of a row over the keys that are not dropped; its log-sum-exp is returned. */
static double naive_row(const struct scene *s, size_t row, const bool *dropped, double *out)
{
    double sum = 0;

    memset(out, 0, DIM_V * sizeof(*out));
    for (size_t t = 0; t < KEYS; t++) {
        const double e = dropped[t] ? 0 : exp(naive_logit(s, row, t));

        sum += e;
        for (size_t i = 0; i < DIM_V; i++)
            out[i] += e * (double)s->values[t][i];
    }
    for (size_t i = 0; i < DIM_V; i++)
        out[i] /= sum;
    return log(sum);
}

static void make_scene(struct scene *s, uint64_t seed, float softcap, uint32_t window)
{
    static const bool none[KEYS];
    struct rng rng = {seed};

    memset(s, 0, sizeof(*s));
    tkv_kernels_init(&s->kn, tkv_cpu_flags(getenv("TRIKV_CPU_DISABLE")));
    s->attn = (struct tkv_attn_params){0.3f, softcap, window};
    for (size_t t = 0; t < KEYS; t++) {
        s->key_positions[t] = (int32_t)(2 * t);
        for (size_t i = 0; i < DIM_K; i++)
            s->tile[i * KEYS + t] = s->keys[t][i] = rng_gauss(&rng);
        for (size_t i = 0; i < DIM_V; i++)
            s->values[t][i] = rng_gauss(&rng);
    }
    for (size_t i = 0; i < PROBES; i++)
        s->positions[i] = (int32_t)(100 + 20 * i);
    for (size_t r = 0; r < ROWS; r++) {
        double out[DIM_V];

        for (size_t i = 0; i < DIM_K; i++)
            s->q[r][i] = 2 * rng_gauss(&rng);
        s->lse[r] = (float)naive_row(s, r, none, out);
        for (size_t i = 0; i < DIM_V; i++)
            s->out[r][i] = (float)out[i];
    }
}

static struct tkv_gate_rows rows_of(struct scene *s)
{
    return (struct tkv_gate_rows){.attn = s->attn,
                                  .n_rows = ROWS,
                                  .group = GROUP,
                                  .dim_k = DIM_K,
                                  .dim_v = DIM_V,
                                  .positions = s->positions,
                                  .q = s->q[0],
                                  .out = s->out[0],
                                  .lse = s->lse,
                                  .mass = s->mass,
                                  .lost = s->lost[0]};
}

/* The definition: attention again without the tokens. */
static struct tkv_gate_measure naive_measure(const struct scene *s, const bool *dropped)
{
    static const bool none[KEYS];
    double error = 0, norm = 0, mass = 0, change = 0;

    for (size_t r = 0; r < ROWS; r++) {
        double before[DIM_V], after[DIM_V];
        const double lse = naive_row(s, r, none, before);
        const double less = lse - naive_row(s, r, dropped, after);

        for (size_t i = 0; i < DIM_V; i++) {
            error += (after[i] - before[i]) * (after[i] - before[i]);
            norm += before[i] * before[i];
        }
        change = fmax(change, less);
        mass += 1 - exp(-less);
    }
    return (struct tkv_gate_measure){(float)sqrt(error / norm), (float)change,
                                     (float)(mass / ROWS)};
}

static void assert_near(float got, float want)
{
    if (!(fabsf(got - want) <= 2e-4f * fabsf(want) + 1e-6f))
        fail_msg("%.7g, want %.7g", (double)got, (double)want);
}

static void assert_measures(struct tkv_gate_measure got, struct tkv_gate_measure want)
{
    assert_near(got.output_error, want.output_error);
    assert_near(got.lse_change, want.lse_change);
    assert_near(got.lost_mass, want.lost_mass);
}

static void test_measure(void **state)
{
    static const struct {
        float softcap;
        uint32_t window;
    } cases[] = {{0, 0}, {5, 0}, {0, 90}};

    (void)state;
    for (size_t c = 0; c < sizeof(cases) / sizeof(cases[0]); c++) {
        static struct scene s;
        bool dropped[KEYS] = {false};
        struct tkv_gate_rows rows;
        float token_mass[20];
        double sum = 0, rows_sum = 0;

        make_scene(&s, 11 + c, cases[c].softcap, cases[c].window);
        rows = rows_of(&s);
        for (size_t t = 0; t < 20; t++)
            dropped[t] = true;
        tkv_gate_add(&rows, &s.kn, 1, s.tile, s.values[0], s.key_positions, 20, s.weights,
                     token_mass);
        assert_measures(tkv_gate_measure(&rows), naive_measure(&s, dropped));
        for (size_t t = 0; t < 20; t++)
            sum += (double)token_mass[t];
        for (size_t r = 0; r < ROWS; r++)
            rows_sum += (double)s.mass[r];
        assert_true(fabs(sum - rows_sum) < 1e-5);
    }
}

/* What is given back is as if it had never been lost. */
static void test_give_back(void **state)
{
    static struct scene s;
    bool dropped[KEYS] = {false};
    struct tkv_gate_rows rows;

    (void)state;
    make_scene(&s, 21, 0, 0);
    rows = rows_of(&s);
    tkv_gate_add(&rows, &s.kn, 1, s.tile, s.values[0], s.key_positions, 30, s.weights, NULL);
    tkv_gate_add(&rows, &s.kn, -1, s.tile, s.values[0], s.key_positions, 10, s.weights, NULL);
    for (size_t t = 10; t < 30; t++)
        dropped[t] = true;
    assert_measures(tkv_gate_measure(&rows), naive_measure(&s, dropped));
}

static void test_limits(void **state)
{
    const struct tkv_gate_measure none = {INFINITY, INFINITY, INFINITY}, m = {0.1f, 0.2f, 0.3f};
    struct tkv_gate_measure limits = m;
    struct tkv_gate_measure bad = m;
    struct tkv_gate_rows empty = {.group = 1};

    (void)state;
    assert_false(tkv_gate_is_over(&m, &none));
    assert_false(tkv_gate_is_over(&m, &limits)); /* at a limit is within it */
    limits.lse_change = 0.19f;
    assert_true(tkv_gate_is_over(&m, &limits));
    bad.output_error = NAN;
    assert_true(tkv_gate_is_over(&bad, &none));
    assert_measures(tkv_gate_measure(&empty), (struct tkv_gate_measure){0});
}

/* ---- sessions ----------------------------------------------------------------------------- */

enum { N = 400, BUDGET = 164, NEEDLE = 40, SURPLUS = 8 };

/* A window of tokens, whose gate has these limits. */
static void open_window(struct aid *a, const char *codec, float lost_mass)
{
    aid_init(a, codec);
    a->config.method = TKV_METHOD_STREAMING;
    a->config.gate = (struct tkv_gate_config){
        .limits = {INFINITY, INFINITY, lost_mass}, .surplus_tokens = SURPLUS, .n_probes = 8};
    for (uint32_t i = 0; i < AID_MAX_LAYERS; i++)
        a->layers[i].budget_tokens = BUDGET;
    assert_int_equal(aid_open(a), 0);
}

/* Every query of KV head 0 looks for one key. */
static struct aid_tokens with_needle(const struct aid *a)
{
    struct aid_tokens t = aid_tokens(a, N, 31);
    const size_t k_row = (size_t)a->shape.n_kv_heads * a->shape.head_dim_k;
    const size_t q_row = (size_t)a->shape.n_q_heads * a->shape.head_dim_k;

    t.k[NEEDLE * k_row + 7] = 12;
    for (size_t i = 0; i < N; i++)
        for (size_t g = 0; g < tkv_group(&a->shape); g++)
            t.q[i * q_row + g * a->shape.head_dim_k + 7] = 8;
    return t;
}

static bool has_position(const struct aid *a, uint32_t layer, uint32_t kv_head, int32_t position)
{
    int32_t kept[N];
    const uint32_t n = aid_kept(a, layer, kv_head, kept, N);

    for (uint32_t i = 0; i < n; i++) {
        assert_true(i == 0 || kept[i] > kept[i - 1]);
        if (kept[i] == position)
            return true;
    }
    return false;
}

static void append_all(struct aid *a, const struct aid_tokens *t, uint32_t part)
{
    for (uint32_t at = 0; at < N; at += part)
        for (uint32_t l = 0; l < 2; l++)
            assert_int_equal(aid_step(a, l, t, at, at + part < N ? part : N - at), 0);
}

static void gate_stats(const struct aid *a, uint32_t layer, struct tkv_gate_stats *out)
{
    struct tkv_layer_stats stats;

    tkv_session_layer_stats(a->session, layer, &stats);
    *out = stats.gate;
}

/* The window alone loses the needle; the gate keeps it, and little else. */
static void test_saves_what_probes_see(void **state)
{
    struct tkv_gate_stats stats;
    struct aid_tokens t;
    struct aid a;

    (void)state;
    open_window(&a, "tq4", INFINITY);
    t = with_needle(&a);
    append_all(&a, &t, 50);
    assert_false(has_position(&a, 0, 0, NEEDLE));
    gate_stats(&a, 0, &stats);
    assert_true(stats.n_passed > 0 && stats.n_kept_more == 0 && stats.n_surplus_tokens == 0);
    aid_close(&a);

    open_window(&a, "tq4", 0.4f);
    append_all(&a, &t, 50);
    assert_true(has_position(&a, 0, 0, NEEDLE));
    assert_false(has_position(&a, 0, 1, NEEDLE)); /* its queries do not ask for it */
    gate_stats(&a, 0, &stats);
    assert_true(stats.n_kept_more > 0 && stats.n_passed > 0);
    assert_int_equal(stats.n_exceeded, 0);
    assert_int_equal(stats.n_probes, 8);
    assert_true(stats.n_surplus_tokens <= stats.n_kept_more * SURPLUS);
    assert_true(stats.measure.lost_mass > 0.4f);
    aid_close(&a);
    free(t.k);
}

static void test_surplus_is_bounded(void **state)
{
    struct tkv_gate_stats stats;
    struct aid_tokens t;
    struct aid a;

    (void)state;
    open_window(&a, "tq2", 0); /* nothing may be lost */
    t = with_needle(&a);
    append_all(&a, &t, 7);
    gate_stats(&a, 1, &stats);
    assert_true(stats.n_exceeded > 0);
    assert_int_equal(stats.n_passed + stats.n_kept_more, 0);
    assert_int_equal(stats.n_surplus_tokens, stats.n_exceeded * SURPLUS);
    for (uint32_t h = 0; h < 2; h++)
        assert_true(tkv_session_head_kept(a.session, 0, h) <= BUDGET + 64 + SURPLUS);
    aid_close(&a);
    free(t.k);
}

/* Limits that nothing passes change no bit. */
static void test_changes_nothing_else(void **state)
{
    struct aid_tokens plain, gated;
    struct aid a;

    (void)state;
    open_window(&a, "tq4", INFINITY);
    gated = with_needle(&a);
    append_all(&a, &gated, 50);
    aid_close(&a);

    aid_init(&a, "tq4");
    a.config.method = TKV_METHOD_STREAMING;
    for (uint32_t i = 0; i < AID_MAX_LAYERS; i++)
        a.layers[i].budget_tokens = BUDGET;
    assert_int_equal(aid_open(&a), 0);
    plain = with_needle(&a);
    append_all(&a, &plain, 50);
    aid_close(&a);
    assert_memory_equal(plain.out, gated.out, N * 4 * 64 * sizeof(float));

    open_window(&a, "tq4", 0.02f);
    append_all(&a, &gated, 50);
    aid_close(&a);
    assert_memory_not_equal(plain.out, gated.out, N * 4 * 64 * sizeof(float));
    free(plain.k);
    free(gated.k);
}

/* It does not matter how tokens are cut into requests. */
static void test_any_cut(void **state)
{
    int32_t whole[2][N], cut[2][N];
    uint32_t n[2];
    struct aid_tokens t;
    struct aid a;

    (void)state;
    open_window(&a, "tq4", 0.3f);
    t = with_needle(&a);
    append_all(&a, &t, 1);
    for (uint32_t h = 0; h < 2; h++)
        n[h] = aid_kept(&a, 1, h, whole[h], N);
    aid_close(&a);
    open_window(&a, "tq4", 0.3f);
    append_all(&a, &t, 133);
    for (uint32_t h = 0; h < 2; h++) {
        assert_int_equal(aid_kept(&a, 1, h, cut[h], N), n[h]);
        assert_memory_equal(cut[h], whole[h], n[h] * sizeof(int32_t));
    }
    aid_close(&a);
    free(t.k);
}

/* A dry run says what a round does, which does it then; and the session is as it was. */
static void test_dry_run(void **state)
{
    struct tkv_gate_stats dry[2], before, after;
    struct tkv_session_stats then, now;
    struct aid_tokens t;
    struct aid a;

    (void)state;
    open_window(&a, "tq4", 0.4f);
    t = with_needle(&a);
    append_all(&a, &t, 50);
    tkv_session_stats(a.session, &then);
    gate_stats(&a, 0, &before);
    assert_int_equal(tkv_session_gate(a.session, NULL, dry, &a.why), 0);
    tkv_session_stats(a.session, &now);
    gate_stats(&a, 0, &after);
    assert_int_equal(now.n_evicted, then.n_evicted);
    assert_int_equal(now.n_rounds, then.n_rounds);
    assert_memory_equal(&before, &after, sizeof(before));
    assert_true(dry[0].n_dropped > 0);
    assert_int_equal(dry[0].n_kept_more, 1);

    assert_int_equal(tkv_session_round(a.session, NULL, &a.why), 0);
    gate_stats(&a, 0, &after);
    assert_int_equal(after.n_dropped, dry[0].n_dropped);
    assert_int_equal(after.n_surplus_tokens - before.n_surplus_tokens, dry[0].n_surplus_tokens);
    assert_memory_equal(&after.measure, &dry[0].measure, sizeof(after.measure));
    tkv_session_stats(a.session, &now);
    assert_int_equal(now.n_evicted - then.n_evicted, dry[0].n_dropped + dry[1].n_dropped);
    aid_close(&a);
    free(t.k);
}

/* With triattention, codecs with a sketch, a fork and truncate: rounds hold, memory comes back. */
static void test_with_others(void **state)
{
    static const char *const codecs[] = {"f16", "tq3-qjl", "tq4"};

    (void)state;
    for (size_t i = 0; i < sizeof(codecs) / sizeof(codecs[0]); i++) {
        struct tkv_session *child;
        struct aid_tokens t;
        struct aid a;

        aid_init(&a, codecs[i]);
        for (uint32_t l = 0; l < AID_MAX_LAYERS; l++)
            a.layers[l].codec_v = tkv_codec_by_name("tq4");
        aid_triattention(&a, BUDGET, 3);
        a.config.rollback_tokens = 16;
        a.config.gate = (struct tkv_gate_config){
            .limits = {0.05f, 0.1f, INFINITY}, .surplus_tokens = 100, .n_probes = 5};
        assert_int_equal(aid_open(&a), 0);
        t = with_needle(&a);
        append_all(&a, &t, 80);
        assert_int_equal(tkv_session_fork(&child, a.session, &a.why), 0);
        assert_int_equal(tkv_session_round(child, NULL, &a.why), 0);
        assert_int_equal(tkv_session_truncate(a.session, 10, &a.why), 0);
        for (uint32_t l = 0; l < 2; l++)
            assert_int_equal(aid_step(&a, l, &t, N - 10, 10), 0);
        assert_int_equal(tkv_session_round(a.session, NULL, &a.why), 0);
        tkv_session_destroy(&child);
        aid_close(&a);
        free(t.k);
    }
}

/* One request goes from nearly nothing to a cache that is attended to in ranges, and over its budget:
 * what its rounds need was taken before (a sanitizer sees what is not). */
static void test_long_request(void **state)
{
    enum { FIRST = 100, LONG = 17600, LONG_BUDGET = 17000 };
    struct tkv_gate_stats stats;
    struct tkv_step rest = {.n_tokens = LONG - FIRST};
    struct aid_tokens t;
    struct aid a;

    (void)state;
    aid_init(&a, "tq4");
    a.shape =
        (struct tkv_shape){.n_q_heads = 2, .n_kv_heads = 1, .head_dim_k = 64, .head_dim_v = 64};
    a.config.n_layers = 1;
    a.config.method = TKV_METHOD_STREAMING;
    a.config.gate = (struct tkv_gate_config){
        .limits = {0.01f, 0.01f, 0.01f}, .surplus_tokens = SURPLUS, .n_probes = 8};
    a.layers[0].budget_tokens = LONG_BUDGET;
    assert_int_equal(aid_open(&a), 0);
    t = aid_tokens(&a, LONG, 3);
    assert_int_equal(aid_step(&a, 0, &t, 0, FIRST), 0);
    rest.k = t.k + (size_t)FIRST * 64;
    rest.v = t.v + (size_t)FIRST * 64;
    assert_int_equal(tkv_session_append(a.session, &rest, NULL, &a.why), 0);
    gate_stats(&a, 0, &stats);
    assert_true(stats.n_passed + stats.n_kept_more + stats.n_exceeded > 3);
    assert_true(stats.n_probes > 0);
    free(t.k);
    aid_close(&a);
}

static void test_refused(void **state)
{
    struct aid a;

    (void)state;
    aid_init(&a, "tq4");
    a.config.gate.n_probes = 8;
    assert_int_equal(aid_open(&a), TRIKV_E_ARGUMENT); /* method none */
    assert_non_null(strstr(a.why.text, "gate"));
    a.config.method = TKV_METHOD_STREAMING;
    for (uint32_t i = 0; i < AID_MAX_LAYERS; i++)
        a.layers[i].budget_tokens = BUDGET;
    a.config.gate.limits.lost_mass = NAN;
    assert_int_equal(aid_open(&a), TRIKV_E_ARGUMENT);
    a.config.gate.limits.lost_mass = 0;
    a.config.gate.n_probes = TKV_MAX_PROBES + 1;
    assert_int_equal(aid_open(&a), TRIKV_E_ARGUMENT);
    a.config.gate.n_probes = 0;
    assert_int_equal(aid_open(&a), 0);
    assert_int_equal(tkv_session_gate(a.session, NULL, NULL, &a.why), TRIKV_E_STATE);
    aid_close(&a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_measure),
        cmocka_unit_test(test_give_back),
        cmocka_unit_test(test_limits),
        cmocka_unit_test(test_saves_what_probes_see),
        cmocka_unit_test(test_surplus_is_bounded),
        cmocka_unit_test(test_changes_nothing_else),
        cmocka_unit_test(test_any_cut),
        cmocka_unit_test(test_dry_run),
        cmocka_unit_test(test_with_others),
        cmocka_unit_test(test_long_request),
        cmocka_unit_test(test_refused),
    };

    return cmocka_run_group_tests_name("gate", tests, NULL, NULL);
}
