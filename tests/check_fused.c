/*
 * Attention from codes against exact attention on what the codes decode to, in double: all group
 * sizes, codecs, head dimensions and kernel sets, windows, sinks of softcap, partly filled blocks.
 * And what it promises beside: skipped blocks do not matter, instruction sets agree.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "core/fused.h"
#include "core/kernels.h"
#include "tests/codec_aid.h"
#include "tests/cpu.h"
#include "tests/emulated.h"

enum { LANES = TKV_BLOCK_TOKENS, MAX_DIM = 512, MAX_TOKENS = 1200, MAX_ROWS = 32 };

static const uint64_t seed = 31;

/* One KV head: blocks of codes, what they decode to, and queries. */
struct scene {
    struct tkv_kernels kn;
    struct tkv_coder k, v;
    struct tkv_attn_params a;
    struct tkv_attn_rows rows;
    size_t n, n_rows;
    int32_t q_positions[MAX_ROWS];
    int32_t positions[MAX_TOKENS];
    float q[MAX_ROWS * MAX_DIM], coded[MAX_ROWS * MAX_DIM];
    float decoded_k[MAX_TOKENS * MAX_DIM], decoded_v[MAX_TOKENS * MAX_DIM];
    uint8_t k_blocks[MAX_TOKENS / LANES + 1][LANES * (MAX_DIM + 2)];
    uint8_t v_blocks[MAX_TOKENS / LANES + 1][LANES * (MAX_DIM + 2)];
};

static void encode_all(struct scene *s, struct rng *rng)
{
    static float x[LANES * MAX_DIM];
    uint8_t mean[TKV_MAX_MEAN_BYTES];

    for (size_t t = 0; t < s->n; t += LANES) {
        const size_t n = s->n - t < LANES ? s->n - t : LANES;
        uint8_t *k = s->k_blocks[t / LANES], *v = s->v_blocks[t / LANES];

        for (size_t i = 0; i < n * s->k.dim; i++)
            x[i] = rng_gauss(rng) + (i % s->k.dim < 4 ? 2 : 0.2f);
        tkv_code_mean(&s->k, &s->kn, TKV_KEYS, tkv_floats(x, s->k.dim), n, mean);
        tkv_encode_keys(&s->k, &s->kn, mean, tkv_floats(x, s->k.dim), n, k);
        for (size_t i = 0; i < n * s->v.dim; i++)
            x[i] = rng_gauss(rng) + (i % s->v.dim < 4 ? 1 : 0);
        tkv_code_mean(&s->v, &s->kn, TKV_VALUES, tkv_floats(x, s->v.dim), n, mean);
        tkv_encode_values(&s->v, &s->kn, mean, tkv_floats(x, s->v.dim), n, v);
        for (size_t i = 0; i < n; i++) {
            tkv_decode_key(&s->k, &s->kn, k, i, s->decoded_k + (t + i) * s->k.dim);
            tkv_decode_value(&s->v, &s->kn, v, i, s->decoded_v + (t + i) * s->v.dim);
        }
    }
}

static const char *some_codec(unsigned turn, unsigned rare)
{
    static const char *const codecs[] = {"tq4", "tq3", "tq2", "tq3.5", "tq2.5", "tq4-paper"};

    return rare == 5 ? "tq1" : rare == 3 || rare == 8 ? "int8" : codecs[turn % 6];
}

static void make_scene(struct scene *s, struct rng *rng, unsigned turn, unsigned cpu)
{
    static const uint32_t dims[] = {128, 64, 80, 96, 192, 256, 48, 18, 8, 16, 512};
    static const uint32_t groups[] = {1, 2, 4, 5, 7, 8, 16};

    tkv_kernels_init(&s->kn, cpu);
    codec_aid_coder(&s->k, tkv_codec_by_name(some_codec(turn, turn % 10)), dims[turn % 11]);
    codec_aid_coder(&s->v, tkv_codec_by_name(some_codec(turn / 2, turn % 13)), dims[turn / 3 % 11]);
    s->rows.group = groups[turn % 7];
    s->rows.n_tokens = s->rows.group <= 8 ? 1 + turn % 3 : 1;
    s->n_rows = s->rows.n_tokens * s->rows.group;
    s->n = 1 + rng_below(rng, turn % 4 ? MAX_TOKENS : 70);
    s->a = (struct tkv_attn_params){.scale = 2 / sqrtf((float)s->k.dim)};
    s->a.softcap = turn % 5 == 0 ? 3 : 0;
    s->a.window_tokens = turn % 4 == 1 ? 100 : 0;
    for (size_t t = 0; t < s->n; t++)
        s->positions[t] = (int32_t)(2 * t);
    for (size_t t = 0; t < s->rows.n_tokens; t++)
        s->q_positions[t] = (int32_t)(turn % 3 ? 2 * s->n + t : s->n + 9 * t);
    s->rows.positions = s->q_positions;
    encode_all(s, rng);
    for (size_t i = 0; i < s->n_rows * s->k.dim; i++)
        s->q[i] = rng_gauss(rng);
    for (size_t r = 0; r < s->n_rows; r++)
        tkv_code_query(&s->k, &s->kn, s->q + r * s->k.dim, s->coded + r * s->k.dim);
}

/* n blocks of a scene, its own again and again, in runs of 1 to TKV_RUN_BLOCKS blocks. */
static void attend_blocks(const struct scene *s, struct tkv_fused *f, size_t n,
                          struct tkv_partial *p)
{
    const size_t n_own = (s->n + LANES - 1) / LANES;
    struct tkv_fused_block blocks[TKV_RUN_BLOCKS];
    size_t n_run = 0, n_wanted = 1;

    for (size_t b = 0; b < n; b++) {
        const size_t own = b % n_own, t = own * LANES;

        blocks[n_run++] = (struct tkv_fused_block){.keys = s->k_blocks[own],
                                                   .values = s->v_blocks[own],
                                                   .next_keys = b % 2 ? s->k_blocks[0] : NULL,
                                                   .next_values = b % 3 ? s->v_blocks[0] : NULL,
                                                   .positions = s->positions + t,
                                                   .n = s->n - t < LANES ? s->n - t : LANES};
        if (n_run < n_wanted && b + 1 < n)
            continue;
        tkv_fused_attend(f, &s->v, &s->a, &s->rows, blocks, n_run, p);
        n_run = 0;
        n_wanted = n_wanted % TKV_RUN_BLOCKS + 1;
    }
}

/* out[n_rows][dim], lse[n_rows]: the fused way, for a scene's blocks so many times over. */
static void attend_times(const struct scene *s, size_t times, float *out, float *lse)
{
    void *memory = aligned_alloc(64, tkv_align(tkv_fused_bytes(&s->k, s->n_rows), 64));
    void *partial = aligned_alloc(64, tkv_align(tkv_partial_bytes(s->n_rows, s->v.dim), 64));
    struct tkv_partial p;
    struct tkv_fused f;

    assert_non_null(memory);
    assert_non_null(partial);
    memset(memory, 0xff, tkv_fused_bytes(&s->k, s->n_rows));
    tkv_partial_init(&p, partial, s->n_rows, s->v.dim);
    tkv_fused_init(&f, &s->kn, &s->k, s->n_rows, s->coded, memory);
    attend_blocks(s, &f, times * ((s->n + LANES - 1) / LANES), &p);
    for (size_t r = 0; r < s->n_rows; r++)
        tkv_uncode_value(&s->v, &s->kn, p.out + r * s->v.dim);
    tkv_partial_finish(&p, out, lse);
    free(memory);
    free(partial);
}

static void attend(const struct scene *s, float *out, float *lse)
{
    attend_times(s, 1, out, lse);
}

static void attend_by_hand(const struct scene *s, size_t r, double *out, double *lse)
{
    static double x[MAX_TOKENS];
    const int32_t at = s->q_positions[r / s->rows.group];
    double max = -INFINITY, sum = 0;

    memset(out, 0, s->v.dim * sizeof(*out));
    for (size_t t = 0; t < s->n; t++) {
        const int32_t distance = at - s->positions[t];

        x[t] = 0;
        for (size_t i = 0; i < s->k.dim; i++)
            x[t] += (double)s->q[r * s->k.dim + i] * (double)s->decoded_k[t * s->k.dim + i];
        x[t] *= (double)s->a.scale;
        if (s->a.softcap > 0)
            x[t] = (double)s->a.softcap * tanh(x[t] / (double)s->a.softcap);
        if (distance < 0 || (s->a.window_tokens && distance >= (int32_t)s->a.window_tokens))
            x[t] = -INFINITY;
        max = fmax(max, x[t]);
    }
    *lse = -INFINITY;
    if (max == -INFINITY)
        return;
    for (size_t t = 0; t < s->n; t++) {
        const double w = exp(x[t] - max);

        sum += w;
        for (size_t i = 0; i < s->v.dim; i++)
            out[i] += w * (double)s->decoded_v[t * s->v.dim + i];
    }
    for (size_t i = 0; i < s->v.dim; i++)
        out[i] /= sum;
    *lse = max + log(sum);
}

/* Relative L2 error over all rows that see something; checks lse. */
static double error_of(const struct scene *s, const float *out, const float *lse)
{
    /* The lower halves of int8 meet queries rounded as much as those of the upper ones. */
    const double most = s->k.codec->id == TKV_CODEC_INT8 ? 1e-3 : 5e-4;
    double want[MAX_DIM], want_lse, error = 0, size = 1e-30;

    for (size_t r = 0; r < s->n_rows; r++) {
        attend_by_hand(s, r, want, &want_lse);
        if (want_lse == -INFINITY)
            assert_true(lse[r] == -INFINITY);
        else
            assert_true(fabs(want_lse - (double)lse[r]) <= most);
        for (size_t i = 0; i < s->v.dim; i++) {
            const double e = want[i] - (double)out[r * s->v.dim + i];

            error += e * e;
            size += want[i] * want[i];
        }
    }
    return sqrt(error / size);
}

static void fused_is_exact_enough(void **state)
{
    static float out[MAX_ROWS * MAX_DIM], lse[MAX_ROWS];
    struct scene *s = malloc(sizeof(*s));
    struct rng rng = {seed};
    double worst = 0;

    (void)state;
    assert_non_null(s);
    for (unsigned turn = 0; turn < 63; turn += emulated_step(5)) {
        double error;

        make_scene(s, &rng, turn, turn % 8 ? cpu_flags() : 0);
        attend(s, out, lse);
        error = error_of(s, out, lse);
        worst = fmax(worst, error);
        if (!(error <= 5e-4))
            fail_msg("turn %u, seed %llu: %s dim %u, group %u, %zu tokens: error %g", turn,
                     (unsigned long long)seed, s->k.codec->name, s->k.dim, s->rows.group, s->n,
                     error);
    }
    print_message("worst relative L2 error %.2g\n", worst);
    free(s);
}

/* The integer sums are the same everywhere; only exp and the order of a mean's sums differ. */
static void instruction_sets_agree(void **state)
{
    static const char *const disabled[] = {"avx512vnni,dotprod", "avx512", "avx512,avxvnni",
                                           "avx512,avx2,neon"};
    static float want[MAX_ROWS * MAX_DIM], out[MAX_ROWS * MAX_DIM], lse[MAX_ROWS];
    struct scene *s = malloc(sizeof(*s));

    (void)state;
    assert_non_null(s);
    for (unsigned turn = 0; turn < 12; turn++) {
        struct rng rng = {seed + turn};

        make_scene(s, &rng, turn, cpu_flags());
        attend(s, want, lse);
        for (size_t i = 0; i < 4; i++) {
            tkv_kernels_init(&s->kn, cpu_flags() & tkv_cpu_flags(disabled[i]));
            attend(s, out, lse);
            for (size_t j = 0; j < s->n_rows * s->v.dim; j++)
                assert_true(fabs((double)out[j] - (double)want[j]) <= 3e-4);
        }
    }
    free(s);
}

/* 128 k tokens, most far below a few: skipping must not show. Equal blocks make the answer known. */
static void long_contexts_and_skipping(void **state)
{
    enum { N_BLOCKS = 2048 };
    static float out[MAX_ROWS * MAX_DIM], lse[MAX_ROWS], again[MAX_ROWS * MAX_DIM];
    struct scene *s = malloc(sizeof(*s));
    void *partial = aligned_alloc(64, 1 << 16), *memory = aligned_alloc(64, 1 << 16);
    struct rng rng = {seed};
    struct tkv_partial p;
    struct tkv_fused f;

    (void)state;
    assert_non_null(s);
    make_scene(s, &rng, 1452, cpu_flags()); /* tq4 and 128 dimensions */
    s->a = (struct tkv_attn_params){.scale = 8 / sqrtf((float)s->k.dim)};
    s->n = 1024;
    encode_all(s, &rng);
    for (size_t r = 0; r < s->rows.n_tokens; r++)
        s->q_positions[r] = 1 << 20;
    attend(s, out, lse);
    assert_true(error_of(s, out, lse) <= 5e-4);
    /* The same 16 blocks 128 times: the same output, lse larger by log 128. */
    tkv_partial_init(&p, partial, s->n_rows, s->v.dim);
    tkv_fused_init(&f, &s->kn, &s->k, s->n_rows, s->coded, memory);
    attend_blocks(s, &f, N_BLOCKS, &p);
    for (size_t r = 0; r < s->n_rows; r++) {
        tkv_uncode_value(&s->v, &s->kn, p.out + r * s->v.dim);
        assert_true(fabsf(p.max[r] + logf(p.sum[r]) - lse[r] - logf(128)) < 1e-3f);
    }
    tkv_partial_finish(&p, again, lse);
    for (size_t j = 0; j < s->n_rows * s->v.dim; j++)
        assert_true(fabsf(out[j] - again[j]) <= 1e-3f);
    free(s);
    free(partial);
    free(memory);
}

/* The bar of all group sizes: on 512 tokens again and again, up to 128 k, whose exact attention is that
 * of the 512. `trikv-bench accuracy` has lengths of tokens that all differ. */
static void all_groups_at_all_lengths(void **state)
{
    static const uint32_t groups[] = {1, 2, 4, 5, 7, 8, 16};
    static const size_t lengths[] = {512, 4096, 32768, 131072};
    static float out[MAX_ROWS * MAX_DIM], lse[MAX_ROWS];
    struct scene *s = malloc(sizeof(*s));
    struct rng rng = {seed};
    double worst = 0;

    (void)state;
    assert_non_null(s);
    make_scene(s, &rng, 108, cpu_flags()); /* tq4 and 128 dimensions */
    s->n = 512;
    s->a = (struct tkv_attn_params){.scale = 3 / sqrtf((float)s->k.dim)};
    s->rows.n_tokens = 1;
    s->q_positions[0] = 1 << 20;
    encode_all(s, &rng);
    for (size_t i = 0; i < 7 * 4; i++) {
        s->rows.group = groups[i / 4];
        s->n_rows = groups[i / 4];
        for (size_t r = 0; r < s->n_rows; r++) {
            codec_aid_fill(&rng, s->q + r * s->k.dim, s->k.dim);
            tkv_code_query(&s->k, &s->kn, s->q + r * s->k.dim, s->coded + r * s->k.dim);
        }
        attend_times(s, lengths[i % 4] / 512, out, lse);
        for (size_t r = 0; r < s->n_rows; r++)
            lse[r] -= logf((float)lengths[i % 4] / 512);
        worst = fmax(worst, error_of(s, out, lse));
    }
    print_message("worst relative L2 error %.2g\n", worst);
    assert_true(worst <= 5e-4);
    free(s);
}

/* Logits that are not finite spoil their row and no other. */
static void overflow_spoils_its_row(void **state)
{
    static float out[MAX_ROWS * MAX_DIM], lse[MAX_ROWS];
    struct scene *s = malloc(sizeof(*s));
    struct rng rng = {seed};

    (void)state;
    assert_non_null(s);
    make_scene(s, &rng, 2, cpu_flags());
    assert_true(s->n_rows > 2);
    for (uint32_t i = 0; i < s->k.dim; i++) {
        s->coded[i] = NAN;
        s->coded[s->k.dim + i] *= 1e-38f;
    }
    attend(s, out, lse);
    assert_true(isnan(lse[0]));
    for (size_t r = 1; r < s->n_rows; r++)
        assert_true(isfinite(lse[r]));
    free(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fused_is_exact_enough),      cmocka_unit_test(instruction_sets_agree),
        cmocka_unit_test(long_contexts_and_skipping), cmocka_unit_test(all_groups_at_all_lengths),
        cmocka_unit_test(overflow_spoils_its_row),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
