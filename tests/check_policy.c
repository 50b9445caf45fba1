/* Scores that need no statistics, each against a plain evaluation in double. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

#include "core/attention.h"
#include "core/cpu.h"
#include "core/kernels.h"
#include "core/policy.h"
#include "tests/rng.h"

enum { DIM = 24, N_TILES = 3, N_LAST = 17, N_KEYS = (N_TILES - 1) * TKV_BLOCK_TOKENS + N_LAST };

static void recency_grows(void **state)
{
    float scores[5];

    (void)state;
    tkv_score_recency(scores, 5);
    for (size_t i = 0; i < 5; i++)
        assert_float_equal(scores[i], (float)i, 0);
}

static void masses_of_a_row_add_up_to_one(void **state)
{
    const struct tkv_attn_params cases[] = {{0.25f, 0, 0}, {0.25f, 3, 0}, {0.5f, 0, 6}};
    struct rng rng = {11};
    struct tkv_kernels kn;

    (void)state;
    tkv_kernels_init(&kn, tkv_cpu_flags(getenv("TRIKV_CPU_DISABLE")));
    for (size_t c = 0; c < 3; c++) {
        const struct tkv_attn_params *a = &cases[c];
        float dots[TKV_BLOCK_TOKENS] = {0}, mass[20] = {0};
        int32_t positions[20];
        double sum = 0, total = 0;

        for (int32_t t = 0; t < 20; t++) {
            double logit;

            dots[t] = 4 * rng_gauss(&rng);
            positions[t] = 3 * t;
            logit = (double)(a->scale * dots[t]);
            if (a->softcap > 0)
                logit = (double)a->softcap * tanh(logit / (double)a->softcap);
            if (positions[t] <= 40 && (!a->window_tokens || 40 - positions[t] < 6))
                sum += exp(logit);
        }
        tkv_add_mass(&kn, a, dots, (float)log(sum), 40, positions, 20, mass);
        for (size_t t = 0; t < 20; t++)
            total += (double)mass[t];
        assert_float_equal(total, 1, 1e-5);
        assert_float_equal(mass[14], 0, 0); /* at 42, not seen from 40 */
        assert_true(mass[13] > 0);
        assert_true(a->window_tokens ? mass[11] <= 0 : mass[11] > 0); /* 7 back */
    }
}

static void mass_is_added(void **state)
{
    const struct tkv_attn_params a = {.scale = 1};
    const int32_t position = 0;
    float dots[TKV_BLOCK_TOKENS] = {2}, mass = 0.25f;
    struct tkv_kernels kn;

    (void)state;
    tkv_kernels_init(&kn, tkv_cpu_flags(getenv("TRIKV_CPU_DISABLE")));
    tkv_add_mass(&kn, &a, dots, 2, 0, &position, 1, &mass);
    assert_float_equal(mass, 1.25f, 1e-6);
}

static void pooling_is_the_mean_of_neighbours(void **state)
{
    const float in[6] = {6, 0, 3, 9, -3, 12};
    const float want[6] = {3, 4.5f, 3, 4.2f, 5.25f, 6};
    float out[6];

    (void)state;
    tkv_pool_scores(out, in, 6, 5);
    assert_float_equal(out[0], want[0], 1e-6);
    assert_float_equal(out[1], want[1], 1e-6);
    assert_float_equal(out[2], want[2], 1e-6);
    assert_float_equal(out[3], want[3], 1e-6);
    assert_float_equal(out[4], want[4], 1e-6);
    assert_float_equal(out[5], want[5], 1e-6);
    tkv_pool_scores(out, in, 6, 1);
    assert_memory_equal(out, in, sizeof(in));
    tkv_pool_scores(out, in, 2, 5); /* fewer than the neighbours */
    assert_float_equal(out[0], 3, 1e-6);
    assert_float_equal(out[1], 3, 1e-6);
}

/* Tiles of keys around a common direction; key 70 points away, key 5 is zero. */
static void make_keys(float (*keys)[DIM], float (*tiles)[DIM][TKV_BLOCK_TOKENS])
{
    struct rng rng = {5};

    for (size_t t = 0; t < N_KEYS; t++)
        for (size_t i = 0; i < DIM; i++) {
            const float x = rng_gauss(&rng) + (i == 3 ? 4.0f : 0.0f);

            keys[t][i] = t == 5 ? 0 : (t == 70 && i == 3) ? -x : x;
            tiles[t / TKV_BLOCK_TOKENS][i][t % TKV_BLOCK_TOKENS] = keys[t][i];
        }
    for (size_t i = 0; i < DIM; i++) /* lanes after the last key hold anything */
        for (size_t t = N_LAST; t < TKV_BLOCK_TOKENS; t++)
            tiles[N_TILES - 1][i][t] = 1e6f;
}

static double norm(const double *x)
{
    double sum = 0;

    for (size_t i = 0; i < DIM; i++)
        sum += x[i] * x[i];
    return sqrt(sum);
}

static void novelty_is_minus_the_cosine_with_the_mean(void **state)
{
    static float keys[N_KEYS][DIM], tiles[N_TILES][DIM][TKV_BLOCK_TOKENS];
    float sum[DIM] = {0}, scores[N_KEYS];
    double mean[DIM] = {0};
    size_t best = 0;

    (void)state;
    make_keys(keys, tiles);
    for (size_t b = 0; b < N_TILES; b++)
        tkv_add_directions(sum, tiles[b][0], DIM, b + 1 < N_TILES ? TKV_BLOCK_TOKENS : N_LAST);
    for (size_t b = 0; b < N_TILES; b++)
        tkv_score_novelty(scores + b * TKV_BLOCK_TOKENS, sum, tiles[b][0], DIM,
                          b + 1 < N_TILES ? TKV_BLOCK_TOKENS : N_LAST);
    for (int pass = 0; pass < 2; pass++)
        for (size_t t = 0; t < N_KEYS; t++) {
            double key[DIM], length, dot = 0;

            for (size_t i = 0; i < DIM; i++)
                key[i] = (double)keys[t][i];
            length = norm(key);
            for (size_t i = 0; i < DIM && length > 0; i++) {
                mean[i] += pass == 0 ? key[i] / length : 0;
                dot += mean[i] * key[i] / length;
            }
            if (pass == 1)
                assert_float_equal(scores[t], -dot, 1e-3);
            if (pass == 1 && scores[t] > scores[best])
                best = t;
        }
    assert_int_equal(best, 70);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(recency_grows),
        cmocka_unit_test(masses_of_a_row_add_up_to_one),
        cmocka_unit_test(mass_is_added),
        cmocka_unit_test(pooling_is_the_mean_of_neighbours),
        cmocka_unit_test(novelty_is_minus_the_cosine_with_the_mean),
    };

    return cmocka_run_group_tests_name("policy", tests, NULL, NULL);
}
