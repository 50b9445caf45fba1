/*
 * TriAttention scores: against a brute-force scorer that evaluates a cosine for
 * every band and offset (paper equations 6-11), and the properties that any
 * correct scorer has. Golden vectors are in tests/check_vectors.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "core/kernels.h"
#include "core/rope.h"
#include "core/rotation.h"
#include "core/ruler.h"
#include "core/select.h"
#include "core/triattention.h"
#include "tests/cpu.h"
#include "tests/rng.h"
#include "tests/tri_queries.h"
#include "tests/tri_scene.h"
#include "tests/vectors.h"
#include "tests/z_scores.h"

static const uint64_t seed = 20261122;

static double std_of(const float *x)
{
    double mean = 0;
    double var = 0;

    for (size_t t = 0; t < TRI_N_KEYS; t++)
        mean += (double)x[t] / TRI_N_KEYS;
    for (size_t t = 0; t < TRI_N_KEYS; t++)
        var += ((double)x[t] - mean) * ((double)x[t] - mean) / TRI_N_KEYS;
    return sqrt(var);
}

static void assert_near(const float *got, const float *want, double tolerance)
{
    for (size_t t = 0; t < TRI_N_KEYS; t++) {
        if (!(fabs((double)got[t] - (double)want[t]) <= tolerance))
            fail_msg("key %zu: got %.9g, want %.9g, tolerance %.3g", t, (double)got[t],
                     (double)want[t], tolerance);
    }
}

static const struct tkv_rope_params ropes[] = {
    {.head_dim = 128, .rotary_dim = 128, .theta = 1e6},
    {.head_dim = 64, .rotary_dim = 64, .layout = TKV_ROPE_INTERLEAVED, .theta = 1e4},
    {.head_dim = 96, .rotary_dim = 24, .theta = 1e4},
    {.head_dim = 80, .rotary_dim = 32, .layout = TKV_ROPE_INTERLEAVED, .theta = 5e5},
    {.head_dim = 64, .rotary_dim = 0, .theta = 1e4},
    {.head_dim = 64,
     .rotary_dim = 64,
     .scaling = TKV_ROPE_YARN,
     .theta = 150000,
     .factor = 32,
     .original_context = 4096,
     .no_truncate = true},
    {.head_dim = 128,
     .rotary_dim = 64,
     .scaling = TKV_ROPE_YARN,
     .theta = 1e6,
     .factor = 4,
     .original_context = 32768},
    {.head_dim = 128,
     .rotary_dim = 128,
     .scaling = TKV_ROPE_LLAMA3,
     .theta = 5e5,
     .factor = 8,
     .low_freq_factor = 1,
     .high_freq_factor = 4,
     .original_context = 8192},
};

static const struct tkv_tri_params params[] = {
    {.offset_max = 65536},
    {.offset_max = 65536, .aggregation = TKV_AGGREGATE_MAX},
    {.offset_max = 1},
    {.offset_max = 1000},
    {.offset_max = 4096, .disable_mlr = true},
    {.offset_max = 128, .disable_trig = true},
    {.offset_max = 128, .aggregation = TKV_AGGREGATE_MAX, .disable_trig = true},
};

static void test_brute_force(void **state)
{
    static struct tri_scene s;
    struct rng r = {seed};

    (void)state;
    for (size_t i = 0; i < sizeof ropes / sizeof *ropes; i++) {
        for (size_t j = 0; j < sizeof params / sizeof *params; j++) {
            float got[TRI_N_KEYS];
            float want[TRI_N_KEYS];

            tri_scene_make(&s, &r, &ropes[i], &params[j]);
            tri_scene_score(&s, got);
            for (size_t t = 0; t < TRI_N_KEYS; t++)
                want[t] = (float)tri_brute_score(&s, t);
            assert_near(got, want, 1e-5 * std_of(want));
        }
    }
}

/* At 2^20 tokens a float phase would be off by 0.06 radians; the scores must not be. The brute
 * force sees only distances, which are small numbers. */
static void test_far_positions(void **state)
{
    static struct tri_scene s;
    struct rng r = {seed + 1};
    float near[TRI_N_KEYS];
    float far[TRI_N_KEYS];

    (void)state;
    for (size_t i = 0; i < sizeof ropes / sizeof *ropes; i++) {
        tri_scene_make(&s, &r, &ropes[i], &params[i % 2]);
        tri_scene_score(&s, near);
        tri_scene_turn(&s, 1 << 20);
        s.n_seen += 1 << 20;
        tri_scene_score(&s, far);
        assert_near(far, near, 1e-5 * std_of(near));
    }
}

static void test_single_parts(void **state)
{
    static struct tri_scene s;
    struct rng r = {seed + 2};
    float got[TRI_N_KEYS];
    float later[TRI_N_KEYS];
    float want[TRI_N_KEYS];
    float norms[TKV_MAX_BANDS];
    float u[TKV_MAX_BANDS];
    struct tkv_tri_stats stats;

    (void)state;
    tri_scene_make(&s, &r, &ropes[0], &params[0]);
    stats = tri_scene_stats(&s);
    /* Fully concentrated queries: no norm term. */
    for (uint32_t f = 0; f < s.rope.n_bands; f++)
        s.mean_abs[f] = hypotf(s.mean_re[f], s.mean_im[f]);
    tkv_tri_norm_weights(&s.fold, &s.rope, &stats, u);
    for (uint32_t f = 0; f < s.rope.n_bands; f++)
        assert_true(fabsf(u[f]) <= 0x1p-23f * s.mean_abs[f]);
    /* No mean: only the norm term, at any time. */
    memset(s.mean_re, 0, sizeof s.mean_re);
    memset(s.mean_im, 0, sizeof s.mean_im);
    tri_scene_score(&s, got);
    tri_scene_score_at(&s, &stats, s.n_seen + 12345, later);
    for (size_t t = 0; t < TRI_N_KEYS; t++) {
        tkv_band_norms(&s.rope, s.pre[t], norms);
        want[t] = tkv_tri_norm_term(s.mean_abs, norms, s.rope.n_bands);
    }
    assert_near(got, want, 1e-5);
    assert_memory_equal(got, later, sizeof got);
}

/* The first term is a dot product, so it may be taken between rotated vectors. */
static void test_rotation_invariance(void **state)
{
    static struct tri_scene s;
    static struct tkv_rotation rotation;
    float room[TKV_ROTATION_ROOM];
    struct rng r = {seed + 3};
    struct tkv_tri_stats stats;
    float w[TRI_MAX_DIM];

    (void)state;
    tri_scene_make(&s, &r, &ropes[2], &params[0]);
    stats = tri_scene_stats(&s);
    tkv_rotation_init(&rotation, s.rope.head_dim, 99, room);
    tri_queries(&s.fold, &s.rope, &stats, s.n_seen, w);
    for (size_t t = 0; t < TRI_N_KEYS; t++) {
        const float plain = s.kn.dot(w, s.keys[t], s.rope.head_dim);
        float turned[TRI_MAX_DIM];
        float key[TRI_MAX_DIM];

        memcpy(turned, w, sizeof turned);
        memcpy(key, s.keys[t], sizeof key);
        tkv_rotate(&rotation, &s.kn, turned, turned);
        tkv_rotate(&rotation, &s.kn, key, key);
        assert_float_equal(s.kn.dot(turned, key, s.rope.head_dim), plain, 1e-4);
    }
}

static void select_scored(const float *scores, size_t k, uint32_t *keep)
{
    uint32_t scratch[TRI_N_KEYS];
    float z[TRI_N_KEYS];

    memcpy(z, scores, sizeof z);
    z_scores(z, TRI_N_KEYS);
    assert_int_equal(tkv_select_top(cpu_kernels(), z, TRI_N_KEYS, k, keep, scratch), k);
}

/* Statistics times t > 0, or another order of the keys, change no decision. */
static void test_scale_and_order(void **state)
{
    static struct tri_scene s;
    static float moved[TRI_N_KEYS][TRI_MAX_DIM];
    struct rng r = {seed + 4};
    float scores[TRI_N_KEYS];
    float again[TRI_N_KEYS];
    uint32_t keep[TRI_N_KEYS];
    uint32_t keep_again[TRI_N_KEYS];

    (void)state;
    tri_scene_make(&s, &r, &ropes[0], &params[0]);
    tri_scene_score(&s, scores);
    select_scored(scores, 40, keep);
    for (uint32_t f = 0; f < s.rope.n_bands; f++) {
        s.mean_re[f] *= 8;
        s.mean_im[f] *= 8;
        s.mean_abs[f] *= 8;
    }
    tri_scene_score(&s, again);
    select_scored(again, 40, keep_again);
    assert_memory_equal(keep, keep_again, 40 * sizeof *keep);
    for (size_t t = 0; t < TRI_N_KEYS; t++)
        memcpy(moved[t], s.keys[(t * 29 + 5) % TRI_N_KEYS], sizeof moved[t]);
    memcpy(s.keys, moved, sizeof moved);
    tri_scene_score(&s, scores);
    for (size_t t = 0; t < TRI_N_KEYS; t++)
        assert_true(scores[t] == again[(t * 29 + 5) % TRI_N_KEYS]);
}

/* The reference's union (each head marks its best k, the best k of the marked stay) is the top k
 * of the maximum over heads. */
static void test_union(void **state)
{
    enum { N_HEADS = 6 };
    struct rng r = {seed + 5};

    (void)state;
    for (unsigned round = 0; round < 200; round++) {
        const size_t k = rng_below(&r, TRI_N_KEYS + 1);
        float rows[N_HEADS][TRI_N_KEYS];
        float max[TRI_N_KEYS];
        float marked[TRI_N_KEYS];
        uint32_t scratch[TRI_N_KEYS];
        uint32_t plain[TRI_N_KEYS];
        uint32_t keep[TRI_N_KEYS];

        for (size_t t = 0; t < TRI_N_KEYS; t++)
            marked[t] = max[t] = -INFINITY;
        for (size_t h = 0; h < N_HEADS; h++) {
            for (size_t t = 0; t < TRI_N_KEYS; t++)
                rows[h][t] = rng_gauss(&r);
            tkv_fold_max(max, rows[h], TRI_N_KEYS);
        }
        for (size_t h = 0; h < N_HEADS; h++) {
            tkv_select_top(cpu_kernels(), rows[h], TRI_N_KEYS, k, keep, scratch);
            for (size_t i = 0; i < k; i++)
                marked[keep[i]] = max[keep[i]];
        }
        assert_int_equal(tkv_select_top(cpu_kernels(), marked, TRI_N_KEYS, k, keep, scratch), k);
        assert_int_equal(tkv_select_top(cpu_kernels(), max, TRI_N_KEYS, k, plain, scratch), k);
        assert_memory_equal(keep, plain, k * sizeof *keep);
    }
}

static void test_normalize(void **state)
{
    struct rng r = {seed + 6};
    float flat[7] = {3, 3, 3, 3, 3, 3, 3};
    float x[TRI_N_KEYS];
    double mean = 0;

    (void)state;
    z_scores(x, 0);
    z_scores(flat, 7);
    for (size_t i = 0; i < 7; i++)
        assert_true(flat[i] == 0);
    /* A mean far above the deviation: one pass in float would lose every digit. */
    for (size_t t = 0; t < TRI_N_KEYS; t++)
        x[t] = 100000 + rng_gauss(&r);
    z_scores(x, TRI_N_KEYS);
    for (size_t t = 0; t < TRI_N_KEYS; t++)
        mean += (double)x[t] / TRI_N_KEYS;
    assert_true(fabs(mean) < 1e-6);
    assert_true(fabs(std_of(x) - 1) < 1e-6);
}

static void test_parameters(void **state)
{
    static const struct {
        uint32_t offset_max;
        uint32_t n;
    } counts[] = {{1, 1}, {2, 2}, {3, 2}, {128, 8}, {4096, 13}, {65536, 17}, {UINT32_MAX, 32}};
    static struct tkv_rope rope;
    static struct tkv_tri_fold fold;

    (void)state;
    assert_null(tkv_rope_init(&rope, &ropes[5]));
    assert_float_equal(rope.attention_scaling, 1.3465735902799727, 1e-7);
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        struct tkv_tri_params p = {.offset_max = counts[i].offset_max};

        assert_null(tkv_tri_fold_init(&fold, &rope, &p));
        assert_int_equal(fold.n_offsets, counts[i].n);
        assert_int_equal(fold.n_queries, 1);
        p.aggregation = TKV_AGGREGATE_MAX;
        assert_null(tkv_tri_fold_init(&fold, &rope, &p));
        assert_int_equal(fold.n_queries, counts[i].n);
    }
    assert_non_null(tkv_tri_fold_init(&fold, &rope, &(struct tkv_tri_params){.offset_max = 0}));
    assert_non_null(tkv_tri_fold_init(&fold, &rope, &(struct tkv_tri_params){.offset_max = 1, 7}));
}

/* The numbers that the specification prints (5.3) for the first keys of one golden case. */
static void test_fixed_numbers(void **state)
{
    static const float want[] = {44.316292f, 39.717557f, 49.075670f, 49.534990f, 44.361993f};
    static const int32_t at[] = {8, 24, 35, 53, 59};
    const char *shared = getenv("TRIKV_SHARED");
    struct vec_case c;
    struct vec_model m;
    struct tkv_tri_stats stats;
    const int32_t *positions;
    const float *keys;
    float scores[5];
    char dir[4096];

    (void)state;
    snprintf(dir, sizeof dir, "%s/vectors/triattention", shared ? shared : "../shared");
    if (access(dir, F_OK) != 0) {
        print_message("skipped: no golden vectors in %s\n", dir);
        skip();
    }
    assert_true(vec_init(&c, dir, "s08_hd64_th1e4"));
    assert_true(vec_model_init(&c, &m));
    positions = VEC_DATA(&c, "positions", VEC_I32, 256);
    keys = VEC_DATA(&c, "k_rot", VEC_F32, 256, 64);
    assert_non_null(positions);
    assert_non_null(keys);
    assert_memory_equal(positions, at, sizeof at);
    stats = vec_model_stats(&m, 0, 0);
    vec_model_score(&m, &stats, keys, 5, 2176, scores);
    for (size_t i = 0; i < 5; i++)
        assert_float_equal(scores[i], want[i], 2e-5);
    vec_deinit(&c);
}

static void a_ruler_measures_what_it_was_laid_for(void **state)
{
    float terms[64];
    struct tkv_ruler r;

    (void)state;
    for (int i = 0; i < 64; i++)
        terms[i] = 40 + (float)(i % 8);
    r = tkv_ruler_lay(terms, 64, 1);
    for (int i = 0; i < 64; i++)
        assert_true(fabsf(tkv_ruler_term(&r, tkv_ruler_code(&r, terms[i])) - terms[i]) <=
                    0.501f * r.step);
    assert_float_equal(r.step, 16 * sqrtf(5.25f) / 255, 1e-4);
    assert_int_equal(tkv_ruler_code(&r, 1e30f), 255);
    assert_int_equal(tkv_ruler_code(&r, 0), 0);
}

/* The first tokens may all be alike, or nothing. */
static void a_ruler_has_a_length(void **state)
{
    float terms[64];
    struct tkv_ruler r;

    (void)state;
    for (int i = 0; i < 64; i++)
        terms[i] = 32;
    r = tkv_ruler_lay(terms, 64, 1);
    assert_float_equal(r.base, 24, 1e-5);
    assert_float_equal(tkv_ruler_term(&r, 255), 40, 1e-5);
    memset(terms, 0, sizeof(terms));
    r = tkv_ruler_lay(terms, 64, 8);
    assert_float_equal(r.base, 6, 1e-5);
    assert_float_equal(tkv_ruler_term(&r, tkv_ruler_code(&r, 8.5f)), 8.5, 0.01);
    r = tkv_ruler_lay(terms, 64, 0); /* no weights: no terms */
    assert_float_equal(tkv_ruler_term(&r, tkv_ruler_code(&r, 0)), 0, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_brute_force),
        cmocka_unit_test(test_far_positions),
        cmocka_unit_test(test_single_parts),
        cmocka_unit_test(test_rotation_invariance),
        cmocka_unit_test(test_scale_and_order),
        cmocka_unit_test(test_union),
        cmocka_unit_test(test_normalize),
        cmocka_unit_test(test_parameters),
        cmocka_unit_test(test_fixed_numbers),
        cmocka_unit_test(a_ruler_measures_what_it_was_laid_for),
        cmocka_unit_test(a_ruler_has_a_length),
    };

    print_message("seed %llu\n", (unsigned long long)seed);
    return cmocka_run_group_tests_name("triattention", tests, NULL, NULL);
}
