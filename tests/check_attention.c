/*
 * Attention: against a plain double implementation, over every way a cache can be
 * cut into tiers and partials.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "core/attention.h"
#include "core/codec.h"
#include "core/cpu.h"
#include "core/half.h"
#include "core/kernels.h"
#include "tests/attend_scene.h"
#include "tests/emulated.h"
#include "tests/rng.h"

static const uint64_t seed = 20261122;

struct result {
    float out[ATTEND_MAX_TOKENS * 16 * ATTEND_MAX_V_DIM];
    float lse[ATTEND_MAX_TOKENS * 16];
};

static void check_row(const struct attend_scene *s, size_t row, const float *got, float got_lse)
{
    double out[ATTEND_MAX_V_DIM];
    double lse;

    attend_naive_row(s, row, out, &lse);
    if (lse == -INFINITY)
        assert_true(got_lse == -INFINITY);
    else if (!(fabs((double)got_lse - lse) <= 1e-5 * (1 + fabs(lse))))
        fail_msg("row %zu: lse %.9g, want %.9g", row, (double)got_lse, lse);
    for (uint32_t i = 0; i < s->v_dim; i++) {
        if (!(fabs((double)got[i] - out[i]) <= 2e-5))
            fail_msg("row %zu: out[%u] %.9g, want %.9g (k_dim %u, v_dim %u, n %zu, group %u)", row,
                     i, (double)got[i], out[i], s->k_dim, s->v_dim, s->n, s->rows.group);
    }
}

static void check_partial(const struct attend_scene *s, const struct tkv_partial *p)
{
    static struct result got;

    tkv_partial_finish(p, got.out, got.lse);
    for (size_t row = 0; row < s->n_rows; row++)
        check_row(s, row, got.out + row * s->v_dim, got.lse[row]);
}

static struct tkv_partial first_partial(const struct attend_scene *s)
{
    struct tkv_partial p = attend_new_partial(s);

    if (s->with_sinks)
        tkv_partial_add_sinks(&p, s->sinks, s->rows.group);
    return p;
}

static void test_one_pass(void **state)
{
    static struct attend_scene s;
    struct rng r = {seed};

    (void)state;
    for (unsigned round = 0; round < 150; round += emulated_step(5)) {
        struct tkv_partial p;

        attend_scene_make(&s, &r, attend_cpu(round));
        p = first_partial(&s);
        attend_scene_halves(&s, 0, s.n, &p);
        check_partial(&s, &p);
        free(p.max);
    }
}

/* Cut the keys anywhere, treat each piece as a tile or as halves, into the running partial or one
 * of its own that is merged: always the same attention. */
static void test_pieces(void **state)
{
    static struct attend_scene s;
    struct rng r = {seed + 1};

    (void)state;
    for (unsigned round = 0; round < 150; round += emulated_step(5)) {
        struct tkv_partial p;

        attend_scene_make(&s, &r, attend_cpu(round));
        p = first_partial(&s);
        for (size_t from = 0; from < s.n;) {
            const size_t left = s.n - from;
            const size_t to = from + 1 + rng_below(&r, (uint32_t)(left < 64 ? left : 64));
            const bool own = rng_below(&r, 2);
            struct tkv_partial piece = own ? attend_new_partial(&s) : p;

            (rng_below(&r, 2) ? attend_scene_tile : attend_scene_halves)(&s, from, to, &piece);
            if (own) {
                tkv_partial_merge(&p, &piece);
                free(piece.max);
            }
            from = to;
        }
        check_partial(&s, &p);
        free(p.max);
    }
}

/* A row alone gives the bits that it gives among others, whatever the group it is in. */
static void test_rows_are_independent(void **state)
{
    static struct attend_scene s;
    static struct attend_scene one;
    struct rng r = {seed + 2};

    (void)state;
    for (unsigned round = 0; round < 60; round += emulated_step(5)) {
        struct tkv_partial all;

        attend_scene_make(&s, &r, attend_cpu(round));
        all = attend_new_partial(&s);
        attend_scene_halves(&s, 0, s.n, &all);
        one = s;
        one.rows = (struct tkv_attn_rows){1, 1, one.q_positions};
        one.n_rows = 1;
        for (size_t row = 0; row < s.n_rows; row += 1 + row % 5) {
            struct tkv_partial p = attend_new_partial(&one);

            one.q_positions[0] = s.q_positions[row / s.rows.group];
            memcpy(one.q, s.q + row * s.k_dim, s.k_dim * sizeof *one.q);
            attend_scene_halves(&one, 0, s.n, &p);
            assert_memory_equal(p.max, all.max + row, sizeof(float));
            assert_memory_equal(p.sum, all.sum + row, sizeof(float));
            assert_memory_equal(p.out, all.out + row * s.v_dim, s.v_dim * sizeof(float));
            free(p.max);
        }
        free(all.max);
    }
}

/* Queries before all keys, or beyond the window of all, between queries that see some. */
static void test_blind_rows(void **state)
{
    static struct attend_scene s;
    struct rng r = {seed + 3};
    float before[16 * ATTEND_MAX_V_DIM];

    (void)state;
    for (unsigned round = 0; round < 50; round += emulated_step(5)) {
        const size_t span_bytes = sizeof(float);
        struct tkv_partial p;
        size_t blind;
        size_t n_values;

        do
            attend_scene_make(&s, &r, attend_cpu(round));
        while (s.rows.n_tokens < 3);
        blind = rng_below(&r, (uint32_t)s.rows.n_tokens);
        s.q_positions[blind] = rng_below(&r, 2) ? -5 : s.k_positions[s.n - 1] + 400;
        s.a.window_tokens = 300;
        p = attend_new_partial(&s);
        n_values = s.rows.group * (size_t)s.v_dim;
        for (size_t i = 0; i < n_values; i++)
            p.out[blind * n_values + i] = -0.0f;
        memcpy(before, p.out + blind * n_values, n_values * sizeof(float));
        attend_scene_halves(&s, 0, s.n, &p);
        assert_memory_equal(before, p.out + blind * n_values, n_values * sizeof(float));
        for (size_t h = 0; h < s.rows.group; h++) {
            const size_t row = blind * s.rows.group + h;

            assert_true(p.max[row] == -INFINITY);
            assert_memory_equal(&p.sum[row], &(float){0}, span_bytes);
        }
        s.with_sinks = false;
        check_partial(&s, &p);
        free(p.max);
    }
}

/* Logits of 1e4 and more, exact in float: nothing overflows, and neighbours still count. */
static void test_huge_logits(void **state)
{
    static struct attend_scene s;
    struct rng r = {seed + 4};

    (void)state;
    for (unsigned round = 0; round < 20; round++) {
        struct tkv_partial p;

        attend_scene_make(&s, &r, attend_cpu(round));
        s.a = (struct tkv_attn_params){.scale = 1};
        for (size_t i = 0; i < s.n_rows * s.k_dim; i++)
            s.q[i] = (float)rng_below(&r, 2001) - 1000;
        for (size_t i = 0; i < s.n * (s.k_dim + ATTEND_PAD); i++)
            s.k[i] = tkv_f32_to_f16((float)rng_below(&r, 41) - 20);
        /* Two equal keys share what they get. */
        if (s.n > 1)
            memcpy(s.k + s.k_dim + ATTEND_PAD, s.k, s.k_dim * sizeof *s.k);
        p = first_partial(&s);
        attend_scene_halves(&s, 0, s.n, &p);
        check_partial(&s, &p);
        free(p.max);
    }
}

static void run_spoiled(struct attend_scene *s, float q0, struct tkv_partial *p)
{
    s->q[s->k_dim] = q0;
    *p = attend_new_partial(s);
    attend_scene_halves(s, 0, s->n, p);
}

/* A row with a NaN or an overflowing logit is NaN for good; its neighbours keep every bit. */
static void test_spoiled_row(void **state)
{
    static const float bad[] = {NAN, INFINITY, -INFINITY, 3e38f};
    static struct attend_scene s;
    static struct result got;
    struct rng r = {seed + 5};
    struct tkv_partial sane;
    struct tkv_partial p;
    float before;

    (void)state;
    do
        attend_scene_make(&s, &r, tkv_cpu_flags(NULL));
    while (s.rows.group < 3 || s.rows.n_tokens > 1 || s.n < 100);
    s.a = (struct tkv_attn_params){.scale = 100};
    s.q_positions[0] = s.k_positions[s.n - 1];
    before = s.q[s.k_dim];
    run_spoiled(&s, before, &sane);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        run_spoiled(&s, bad[i], &p);
        attend_scene_halves(&s, 0, s.n, &p);
        tkv_partial_merge(&p, &sane);
        tkv_partial_finish(&p, got.out, got.lse);
        assert_true(isnan(got.lse[1]) && isnan(got.out[s.v_dim]));
        free(p.max);
        run_spoiled(&s, bad[i], &p);
        assert_memory_equal(p.out, sane.out, s.v_dim * sizeof(float));
        assert_memory_equal(p.out + 2 * s.v_dim, sane.out + 2 * s.v_dim,
                            (s.n_rows - 2) * s.v_dim * sizeof(float));
        tkv_partial_merge(&sane, &p);
        assert_true(isnan(sane.max[1]) && isfinite(sane.max[0]));
        free(p.max);
        free(sane.max);
        run_spoiled(&s, before, &sane);
    }
    free(sane.max);
}

static void test_empty(void **state)
{
    static struct attend_scene s;
    static struct result got;
    struct rng r = {seed + 6};
    struct tkv_partial p;
    struct tkv_partial other;
    const float no_sinks[16] = {[0] = -INFINITY, [1] = NAN};

    (void)state;
    do
        attend_scene_make(&s, &r, 0);
    while (s.rows.group < 2);
    p = attend_new_partial(&s);
    other = attend_new_partial(&s);
    attend_scene_halves(&s, 0, 0, &p);
    tkv_partial_merge(&p, &other);
    tkv_partial_finish(&p, got.out, got.lse);
    for (size_t row = 0; row < s.n_rows; row++)
        assert_true(got.lse[row] == -INFINITY && got.out[row * s.v_dim] == 0);
    /* A sink alone: no output, its logit is the whole sum. */
    tkv_partial_add_sinks(&p, s.sinks, s.rows.group);
    tkv_partial_merge(&other, &p);
    tkv_partial_finish(&other, got.out, got.lse);
    for (size_t row = 0; row < s.n_rows; row++)
        assert_true(got.lse[row] == s.sinks[row % s.rows.group] && got.out[row * s.v_dim] == 0);
    tkv_partial_init(&p, p.max, s.n_rows, s.v_dim);
    tkv_partial_add_sinks(&p, no_sinks, s.rows.group);
    assert_true(p.max[0] == -INFINITY && p.sum[0] == 0 && isnan(p.max[1]));
    free(p.max);
    free(other.max);
}

/* Replace the first 64 keys and values by what a coder makes of them, so that the naive row sees
 * decoded numbers, and attend to their blocks in the rotated domain. */
static void attend_coded(struct attend_scene *s, const struct tkv_coder *kc,
                         const struct tkv_coder *vc, struct tkv_partial *p)
{
    static float rows[TKV_BLOCK_TOKENS * ATTEND_MAX_V_DIM];
    static float tile[2 * ATTEND_MAX_K_DIM * TKV_BLOCK_TOKENS];
    static float x[TKV_BLOCK_TOKENS * ATTEND_MAX_K_DIM];
    static float q[ATTEND_MAX_TOKENS * 16 * ATTEND_MAX_K_DIM];
    uint8_t mean[TKV_MAX_MEAN_BYTES];
    void *k_block = calloc(1, kc->k_block_bytes);
    void *v_block = calloc(1, vc->v_block_bytes);
    void *scratch = malloc(tkv_attend_scratch_bytes(s->n_rows, kc->tile_dim, s->v_dim));

    for (size_t i = 0; i < (size_t)TKV_BLOCK_TOKENS * s->k_dim; i++)
        x[i] = (float)attend_half_at(s->k, i / s->k_dim, s->k_dim, i % s->k_dim);
    tkv_code_mean(kc, &s->kn, TKV_KEYS, tkv_floats(x, kc->dim), TKV_BLOCK_TOKENS, mean);
    tkv_encode_keys(kc, &s->kn, mean, tkv_floats(x, kc->dim), TKV_BLOCK_TOKENS, k_block);
    for (size_t i = 0; i < (size_t)TKV_BLOCK_TOKENS * s->v_dim; i++)
        x[i] = (float)attend_half_at(s->v, i / s->v_dim, s->v_dim, i % s->v_dim);
    tkv_code_mean(vc, &s->kn, TKV_VALUES, tkv_floats(x, vc->dim), TKV_BLOCK_TOKENS, mean);
    tkv_encode_values(vc, &s->kn, mean, tkv_floats(x, vc->dim), TKV_BLOCK_TOKENS, v_block);
    tkv_key_tile(kc, &s->kn, k_block, tile);
    tkv_value_rows(vc, &s->kn, v_block, TKV_BLOCK_TOKENS, rows);
    for (size_t row = 0; row < s->n_rows; row++)
        tkv_code_query(kc, &s->kn, s->q + row * s->k_dim, q + row * kc->tile_dim);
    tkv_attend_tile(&s->kn, &s->a, &s->rows, q, kc->tile_dim, tile, rows, s->k_positions,
                    TKV_BLOCK_TOKENS, p, scratch);
    for (size_t row = 0; row < s->n_rows; row++)
        tkv_uncode_value(vc, &s->kn, p->out + row * s->v_dim);
    for (size_t t = 0; t < TKV_BLOCK_TOKENS; t++) {
        tkv_decode_key(kc, &s->kn, k_block, t, x);
        for (uint32_t i = 0; i < s->k_dim; i++)
            s->k[t * (s->k_dim + ATTEND_PAD) + i] = tkv_f32_to_f16(x[i]);
        tkv_decode_value(vc, &s->kn, v_block, t, x);
        for (uint32_t i = 0; i < s->v_dim; i++)
            s->v[t * (s->v_dim + ATTEND_PAD) + i] = tkv_f32_to_f16(x[i]);
    }
    free(k_block);
    free(v_block);
    free(scratch);
}

/* A cold block and hot halves merged. Decoded numbers are rounded to halves for the naive rows,
 * 2^-11 of each: that, not the attention, sets the tolerance. */
static void test_coded_and_hot(void **state)
{
    static const char *const codecs[] = {"f16", "tq4", "tq3.5", "tq2"};
    static struct attend_scene s;
    static struct tkv_coder kc;
    static struct tkv_coder vc;
    static struct result got;
    struct rng r = {seed + 7};

    (void)state;
    for (size_t i = 0; i < sizeof codecs / sizeof *codecs; i++) {
        const struct tkv_codec *codec = tkv_codec_by_name(codecs[i]);
        struct tkv_partial cold;
        struct tkv_partial hot;

        do
            attend_scene_make(&s, &r, attend_cpu((unsigned)i));
        while (s.n <= TKV_BLOCK_TOKENS || s.a.softcap > 0);
        assert_null(tkv_coder_init(&kc, codec, s.k_dim, TKV_ROTATION_SEED));
        assert_null(tkv_coder_init(&vc, codec, s.v_dim, TKV_ROTATION_SEED));
        cold = first_partial(&s);
        hot = attend_new_partial(&s);
        attend_coded(&s, &kc, &vc, &cold);
        attend_scene_halves(&s, TKV_BLOCK_TOKENS, s.n, &hot);
        tkv_partial_merge(&cold, &hot);
        tkv_partial_finish(&cold, got.out, got.lse);
        for (size_t row = 0; row < s.n_rows; row++) {
            double out[ATTEND_MAX_V_DIM];
            double lse;

            attend_naive_row(&s, row, out, &lse);
            if (lse > -INFINITY)
                assert_float_equal(got.lse[row], lse, 4e-3);
            for (uint32_t j = 0; j < s.v_dim; j++)
                assert_float_equal(got.out[row * s.v_dim + j], out[j], 1e-2);
        }
        free(cold.max);
        free(hot.max);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one_pass),    cmocka_unit_test(test_pieces),
        cmocka_unit_test(test_blind_rows),  cmocka_unit_test(test_rows_are_independent),
        cmocka_unit_test(test_huge_logits), cmocka_unit_test(test_spoiled_row),
        cmocka_unit_test(test_empty),       cmocka_unit_test(test_coded_and_hot),
    };

    print_message("seed %llu\n", (unsigned long long)seed);
    return cmocka_run_group_tests_name("attention", tests, NULL, NULL);
}
