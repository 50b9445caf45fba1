/*
 * Budgets that are shared: the formulas of PyramidKV and Ada-KV against their definitions, and sessions whose
 * layers and heads keep what they were given, with methods of their own.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "core/allocate.h"
#include "proto/errors.h"
#include "store/session_priv.h"
#include "tests/emulated.h"
#include "tests/session_aid.h"

enum { MAX_ROWS = 8, MAX_N = 200 };

/* beta 20: min = B / 20, max = 2 B - min, falling in equal steps. */
static void test_pyramid(void **state)
{
    /* PyramidKV's own numbers for 32 layers of 2048: 3994 down to 102. */
    uint32_t out[64];

    (void)state;
    tkv_allocate_pyramid(out, 32, 2048, UINT32_MAX);
    assert_int_equal(out[0], 2 * 2048 - 2048 / 20);
    assert_int_equal(out[31], 2048 / 20);
    for (uint32_t n = 1; n <= 64; n++)
        for (uint32_t mean = 1; mean < 3000; mean += 37) {
            const double max = 2.0 * mean - (double)(mean / 20);
            uint64_t sum = 0;

            tkv_allocate_pyramid(out, n, mean, UINT32_MAX);
            for (uint32_t l = 0; l < n; l++) {
                const double want = n == 1 ? mean : max - l * 2 * (max - mean) / (n - 1);

                assert_true(fabs(out[l] - want) <= 1);
                assert_true(l == 0 || out[l] <= out[l - 1]);
                sum += out[l];
            }
            assert_int_equal(sum, (uint64_t)n * mean);
        }
    tkv_allocate_pyramid(out, 5, 100, 120); /* no layer has more than there is */
    assert_int_equal(out[0], 120);
    assert_int_equal(out[2], 100);
    assert_int_equal(out[4], 80);
}

static void test_by_weight(void **state)
{
    const float weights[] = {1, 3, 0, 4}, none[] = {0, 0, 0};
    uint32_t out[4];
    struct rng rng = {3};

    (void)state;
    tkv_allocate_by_weight(out, weights, 4, 840, 10);
    assert_int_equal(out[0], 10 + 100);
    assert_int_equal(out[1], 10 + 300);
    assert_int_equal(out[2], 10);
    assert_int_equal(out[3], 10 + 400);
    tkv_allocate_by_weight(out, none, 3, 100, 0);
    for (uint32_t i = 0; i < 3; i++)
        assert_true(out[i] == 33 || out[i] == 34);
    for (uint32_t i = 0; i < 500; i++) {
        float w[4];
        const uint64_t total = rng_next(&rng) % 100000 + 40;
        uint64_t sum = 0;

        for (uint32_t k = 0; k < 4; k++)
            w[k] = rng_uniform(&rng);
        tkv_allocate_by_weight(out, w, 4, total, 10);
        for (uint32_t k = 0; k < 4; k++) {
            const double want =
                10 + (double)(total - 40) * (double)w[k] /
                         ((double)w[0] + (double)w[1] + (double)w[2] + (double)w[3]);

            assert_true(out[k] >= 10 && fabs(out[k] - want) <= 1.01);
            sum += out[k];
        }
        assert_int_equal(sum, total);
    }
}

static void test_spread(void **state)
{
    /* Two heads of two bands: |mean| 3, 5, 0, 1 of mean_abs 4, 5, 3, 2. */
    const float stats[] = {3, 3, 0, 4, 4, 5, 0, 1, 0, 0, 3, 2};

    (void)state;
    assert_true(fabsf(tkv_spread_of_queries(stats, 2, 2) - (1 - 9.0f / 14)) < 1e-6f);
    assert_true(fabsf(tkv_spread_of_queries(stats, 1, 2) - (1 - 8.0f / 9)) < 1e-6f);
}

/* One after the other: the best score that is left, once all have their floors. */
static void naive_adaptive(const struct tkv_score_row *rows, uint32_t n_rows, uint64_t total,
                           uint32_t least, uint32_t *out)
{
    bool taken[MAX_ROWS][MAX_N] = {{false}};
    uint64_t left = total;

    for (int pass = 0; pass < 2; pass++)
        while (left > 0) {
            uint32_t best_row = n_rows, best = 0;

            for (uint32_t r = 0; r < n_rows; r++)
                for (uint32_t i = 0; (pass || out[r] < least) && i < rows[r].n; i++)
                    if (!taken[r][i] &&
                        (best_row == n_rows || tkv_score_order(rows[r].scores[i]) >
                                                   tkv_score_order(rows[best_row].scores[best]))) {
                        best_row = r;
                        best = i;
                    }
            if (best_row == n_rows)
                break;
            taken[best_row][best] = true;
            out[best_row]++;
            left--;
        }
}

static void test_adaptive(void **state)
{
    static float scores[MAX_ROWS][MAX_N];
    struct rng rng = {9};

    (void)state;
    for (uint32_t i = 0; i < 300; i += emulated_step(6)) {
        const uint32_t n_rows = 1 + (uint32_t)(rng_next(&rng) % MAX_ROWS);
        const uint32_t least = (uint32_t)(rng_next(&rng) % 10);
        struct tkv_score_row rows[MAX_ROWS];
        uint32_t out[MAX_ROWS], want[MAX_ROWS] = {0};
        uint64_t total = 0;

        for (uint32_t r = 0; r < n_rows; r++) {
            const uint32_t n = least + (uint32_t)(rng_next(&rng) % (MAX_N - 10));
            const float shift = rng_gauss(&rng);

            rows[r] = (struct tkv_score_row){scores[r], n};
            for (uint32_t k = 0; k < n; k++) /* rounded: many tie */
                scores[r][k] = roundf(4 * (rng_gauss(&rng) + shift));
            if (n > 3)
                scores[r][3] = i % 3 ? NAN : -INFINITY;
            total += n;
        }
        total = total < n_rows * least ? total : n_rows * least + rng_next(&rng) % (total + 1);
        tkv_allocate_adaptive(out, rows, n_rows, total, least);
        naive_adaptive(rows, n_rows, total, least, want);
        for (uint32_t r = 0; r < n_rows; r++)
            assert_int_equal(out[r], want[r]);
    }
}

/* ---- sessions ----------------------------------------------------------------------------- */

enum { N = 1200, BUDGET = 300, PINNED = 4, RECENT = 32, OWN = BUDGET - PINNED - RECENT };

static void run(struct aid *a, struct aid_tokens *t)
{
    assert_int_equal(aid_open(a), 0);
    *t = aid_tokens(a, N, 17);
    for (uint32_t at = 0; at < N; at += 100)
        for (uint32_t l = 0; l < a->config.n_layers; l++)
            assert_int_equal(aid_step(a, l, t, at, 100), 0);
    assert_int_equal(tkv_session_round(a->session, NULL, &a->why), 0);
}

static uint32_t cold(const struct aid *a, uint32_t layer, uint32_t head)
{
    return a->session->layers[layer].heads[head].n_cold;
}

static void set_up(struct aid *a, enum tkv_method method, enum tkv_allocator allocator)
{
    aid_init(a, "tq4");
    a->config.n_layers = 3;
    aid_triattention(a, BUDGET, 5);
    a->config.method = method;
    a->config.allocator = allocator;
}

static void test_pyramid_session(void **state)
{
    struct aid_tokens t;
    uint32_t want[3];
    struct aid a;

    (void)state;
    tkv_allocate_pyramid(want, 3, OWN, UINT32_MAX);
    set_up(&a, TKV_METHOD_STREAMING, TKV_PYRAMID);
    run(&a, &t);
    for (uint32_t l = 0; l < 3; l++)
        for (uint32_t h = 0; h < 2; h++)
            assert_int_equal(cold(&a, l, h), want[l]);
    assert_int_equal(tkv_session_set_budget(a.session, 200, &a.why), 0);
    assert_int_equal(tkv_session_round(a.session, NULL, &a.why), 0);
    tkv_allocate_pyramid(want, 3, 200 - PINNED - RECENT, UINT32_MAX);
    for (uint32_t l = 0; l < 3; l++)
        assert_int_equal(cold(&a, l, 0), want[l]);
    free(t.k);
    aid_close(&a);
}

/* Heads whose queries spread keep more; all together what uniform budgets would. */
static void test_concentration_session(void **state)
{
    struct aid_tokens t;
    struct aid a;
    uint32_t sum = 0, at = 0;

    (void)state;
    set_up(&a, TKV_METHOD_TRIATTENTION, TKV_CONCENTRATION);
    for (size_t i = 0; i < 32; i++) { /* the first KV head asks for anything */
        a.stats[2 * 32 + i] *= 4;
        a.stats[(3 + 2) * 32 + i] *= 4;
    }
    run(&a, &t);
    for (uint32_t l = 0; l < 3; l++)
        for (uint32_t h = 0; h < 2; h++) {
            assert_true(cold(&a, l, h) >= OWN / 5);
            assert_true(at++ == 0 || cold(&a, l, h) < cold(&a, 0, 0));
            sum += cold(&a, l, h);
        }
    assert_int_equal(sum, 6 * OWN);
    free(t.k);
    aid_close(&a);
}

/* Observed attention of one head is all on a few tokens: the other gets what it does not want. */
static void test_adaptive_session(void **state)
{
    struct aid_tokens t;
    struct aid a;

    (void)state;
    for (int with_gate = 0; with_gate < 2; with_gate++) {
        set_up(&a, TKV_METHOD_KEYDIFF, TKV_ADAPTIVE);
        if (with_gate)
            a.config.gate =
                (struct tkv_gate_config){.limits = {0, 0, 0}, .surplus_tokens = 5, .n_probes = 4};
        run(&a, &t);
        for (uint32_t l = 0; l < 3; l++) {
            assert_int_equal(cold(&a, l, 0) + cold(&a, l, 1), 2 * OWN + (with_gate ? 10 : 0));
            assert_int_not_equal(cold(&a, l, 0), cold(&a, l, 1));
            assert_true(cold(&a, l, 0) >= OWN / 5 && cold(&a, l, 1) >= OWN / 5);
        }
        free(t.k);
        aid_close(&a);
    }
}

/* Each layer by its own method; a layer without one keeps all, as halves were coded with their means. */
static void test_methods_by_layer(void **state)
{
    static const enum tkv_method methods[] = {TKV_METHOD_NONE, TKV_METHOD_STREAMING, TKV_METHOD_H2O,
                                              TKV_METHOD_TRIATTENTION};
    struct tkv_session_config same;
    struct aid_tokens t;
    struct aid a;

    (void)state;
    for (size_t gated = 0; gated < 2; gated++) {
        set_up(&a, TKV_METHOD_SNAPKV, TKV_UNIFORM);
        a.config.n_layers = 4;
        a.config.rollback_tokens = 16;
        if (gated)
            a.config.gate =
                (struct tkv_gate_config){.limits = {INFINITY, INFINITY, INFINITY}, .n_probes = 8};
        for (uint32_t l = 0; l < 4; l++) {
            a.layers[l].has_method = true;
            a.layers[l].method = methods[l];
        }
        run(&a, &t);
        assert_int_equal(cold(&a, 0, 0), N - PINNED - RECENT);
        for (uint32_t l = 1; l < 4; l++)
            assert_int_equal(cold(&a, l, 1), OWN);
        assert_null(a.session->layers[1].mass);
        assert_non_null(a.session->layers[2].mass);
        assert_null(a.session->layers[0].probes);
        assert_int_equal(a.session->layers[1].probes != NULL, gated);
        same = a.config;
        assert_int_equal(tkv_session_compare(a.session, &same), TKV_ALIKE);
        a.layers[1].method = TKV_METHOD_KEYDIFF;
        assert_int_equal(tkv_session_compare(a.session, &same), TKV_OTHER_POLICY);
        free(t.k);
        aid_close(&a);
    }
}

static void refuse(struct aid *a, const char *part)
{
    assert_int_equal(aid_open(a), TRIKV_E_ARGUMENT);
    if (!strstr(a->why.text, part))
        fail_msg("want \"%s\", got \"%s\"", part, a->why.text);
    aid_close(a);
}

static void test_refused(void **state)
{
    struct aid a;

    (void)state;
    set_up(&a, TKV_METHOD_NONE, TKV_PYRAMID);
    refuse(&a, "allocator: method none");
    set_up(&a, TKV_METHOD_TRIATTENTION, TKV_ADAPTIVE);
    a.config.eviction_mode = TKV_UNION;
    refuse(&a, "allocator: eviction_mode is union");
    set_up(&a, TKV_METHOD_H2O, TKV_PYRAMID);
    a.layers[1].budget_tokens++;
    refuse(&a, "layer 1: budget is 301");
    set_up(&a, TKV_METHOD_H2O, TKV_CONCENTRATION);
    a.layers[2].stats = NULL;
    refuse(&a, "layer 2: allocator concentration");
    set_up(&a, TKV_METHOD_H2O, TKV_UNIFORM);
    a.layers[2].has_method = true;
    a.layers[2].method = TKV_METHOD_DEFAULT;
    refuse(&a, "layer 2: method default");
    set_up(&a, TKV_METHOD_TRIATTENTION, TKV_UNIFORM);
    a.config.eviction_mode = TKV_PER_HEAD;
    a.layers[0].has_method = true;
    refuse(&a, "layer 0: method none beside triattention");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pyramid),          cmocka_unit_test(test_by_weight),
        cmocka_unit_test(test_spread),           cmocka_unit_test(test_adaptive),
        cmocka_unit_test(test_pyramid_session),  cmocka_unit_test(test_concentration_session),
        cmocka_unit_test(test_adaptive_session), cmocka_unit_test(test_methods_by_layer),
        cmocka_unit_test(test_refused),
    };

    return cmocka_run_group_tests_name("allocate", tests, NULL, NULL);
}
