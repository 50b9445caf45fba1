/*
 * Every kernel variant this CPU can run against the C reference: for each
 * instruction set in turn the table is filled with one more flag, and each slot
 * whose pointer changed is checked. Then wrong kernels, one for each slot, which
 * the same checks must notice.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "core/cpu.h"
#include "core/half.h"
#include "tests/kernel_cases.h"

static const uint64_t seed = 20261122;

static bool slot_differs(const struct kernel_case *c, const struct tkv_kernels *a,
                         const struct tkv_kernels *b)
{
    return memcmp((const char *)a + c->offset, (const char *)b + c->offset, sizeof(void *)) != 0;
}

/* Checks the slots that differ between two tables; returns how many. */
static unsigned check_changed(const struct tkv_kernels *before, const struct tkv_kernels *now,
                              const char *isa)
{
    unsigned n = 0;

    for (size_t i = 0; i < N_KERNEL_CASES; i++) {
        const struct kernel_case *c = &kernel_cases[i];
        struct kernel_run run;

        if (!slot_differs(c, before, now))
            continue;
        kernel_run_init(&run, now, seed);
        c->check(&run);
        n++;
        if (run.n_failures)
            print_error("%s %s, seed %llu: %u of %u differ, first: %s\n", isa, c->name,
                        (unsigned long long)seed, run.n_failures, run.n_compared,
                        run.first_failure);
        assert_int_equal(run.n_failures, 0);
        assert_true(run.n_compared > 0);
    }
    return n;
}

/* What an instruction set brings: a variant of every kernel, or the three of a dot product
 * instruction. A lesser number is a silent fallback. */
static void test_variants(void **state)
{
    static const unsigned flags[] = {TKV_CPU_AVX2, TKV_CPU_AVXVNNI, TKV_CPU_AVX512,
                                     TKV_CPU_VNNI, TKV_CPU_NEON,    TKV_CPU_DOTPROD};
    const unsigned cpu = tkv_cpu_flags(getenv("TRIKV_CPU_DISABLE"));
    struct tkv_kernels before, now;
    unsigned mask = 0;

    (void)state;
    tkv_kernels_init(&before, 0);
    for (size_t i = 0; i < sizeof(flags) / sizeof(flags[0]); i++) {
        const bool partial = flags[i] & (TKV_CPU_VNNI | TKV_CPU_AVXVNNI | TKV_CPU_DOTPROD);
        const unsigned expected = partial ? 4 : N_KERNEL_CASES;
        char isa[32];

        if (!(cpu & flags[i]))
            continue;
        mask |= flags[i];
        tkv_cpu_names(flags[i], isa, sizeof(isa));
        tkv_kernels_init(&now, mask);
        assert_int_equal(check_changed(&before, &now, isa), expected);
        print_message("%s: %u variants\n", isa, expected);
        before = now;
    }
    if (!mask)
        print_message("no instruction set beside the reference on this CPU\n");
}

static struct tkv_kernels reference;

/* Takes what is not a float for a half. */
static void wrong_fwht(float *y, const void *x, enum tkv_dtype type, const float *factor, size_t n)
{
    reference.fwht(y, x, type == TKV_BF16 ? TKV_F16 : type, factor, n);
}

/* From the last to the first. */
static void wrong_sum_vectors(float *sum, const struct tkv_vectors *x, size_t n, size_t dim,
                              float factor)
{
    for (size_t i = 0; i < dim; i++) {
        sum[i] = 0;
        for (size_t t = n; t-- > 0;)
            sum[i] += tkv_element(tkv_vectors_from(*x, t).x, x->type, i) * factor;
    }
}

/* The right sum in another order. */
static float wrong_norm2(const float *x, size_t n)
{
    float sum = 0;

    for (size_t i = 0; i < n; i++)
        sum += x[i] * x[i];
    return sum;
}

static float wrong_dot(const float *a, const float *b, size_t n)
{
    return reference.dot(a, b, n > 16 ? n - 1 : n);
}

/* Flushes what is subnormal. */
static void wrong_f16_to_f32(float *dst, const uint16_t *src, size_t n)
{
    reference.f16_to_f32(dst, src, n);
    for (size_t i = 0; i < n; i++)
        dst[i] = fabsf(dst[i]) < 0x1p-14f ? 0 : dst[i];
}

/* Rounds ties away from zero. */
static void wrong_f32_to_f16(uint16_t *dst, const float *src, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        const float up = nextafterf(src[i], src[i] < 0 ? -INFINITY : INFINITY);

        reference.f32_to_f16(dst + i, isfinite(src[i]) ? &up : src + i, 1);
    }
}

/* An edge belongs to the cell below. */
static void wrong_quantise(uint8_t *codes, const float *x, size_t n, const struct tkv_cells *cells,
                           unsigned w, float scale)
{
    for (size_t i = 0; i < n; i++) {
        const float below = nextafterf(x[i] * scale, -INFINITY);

        reference.quantise(codes + i, &below, 1, cells, w, 1);
    }
}

/* The right sums in another order. */
static void wrong_fit(uint8_t *codes, const float *x, size_t n, const struct tkv_cells *cells,
                      unsigned w, float scale, const float *level, float *fit)
{
    reference.fit(codes, x, n, cells, w, scale, level, fit);
    fit[0] = 0;
    for (size_t i = 0; i < n; i++)
        fit[0] += x[i] * level[codes[i]];
}

/* Counts the zeros that fill the last vector. */
static void wrong_try_scales(int32_t (*sums)[TKV_N_TRIALS], const float *x, size_t n, float scale,
                             const uint8_t (*level)[64])
{
    reference.try_scales(sums, x, n, scale, level);
    for (size_t t = 0; t < TKV_N_TRIALS; t++)
        sums[1][t] += (int32_t)(-n % 64) * level[t][0] * level[t][0];
}

/* Rounds where it should cut off. */
static float wrong_split_bytes(uint8_t *high, uint8_t *low, const float *x, size_t n)
{
    const float largest = reference.split_bytes(high, low, x, n);

    for (size_t i = 0; i < n && largest > 0; i++) {
        const unsigned code = (unsigned)(x[i] * (127.5f / largest) + 128.5f);

        high[i] = (uint8_t)(code >> 4);
        low[i] = code & 15;
    }
    return largest;
}

/* Writes one element too many. */
static void wrong_lookup(float *dst, const uint8_t *codes, size_t n, const float *lut, float scale)
{
    reference.lookup(dst, codes, n, lut, scale);
    if (n % 1024 != 0 && (uintptr_t)dst % 4096 == 0)
        dst[n] = 0;
}

/* One scale for all lanes. */
static void wrong_key_tile(float *tile, const struct tkv_codes *codes, const float *lut,
                           const float *scale, const float *mean)
{
    float same[TKV_BLOCK_TOKENS];

    for (size_t t = 0; t < TKV_BLOCK_TOKENS; t++)
        same[t] = scale[0];
    reference.key_tile(tile, codes, lut, same, mean);
}

/* Loses the third bit. */
static void wrong_value_rows(float *rows, size_t stride, const struct tkv_codes *codes,
                             size_t n_tokens, const float *lut, const float *scale,
                             const float *mean)
{
    float low[16];

    for (size_t i = 0; i < 16; i++)
        low[i] = lut[codes->w == 3 ? i & 3 : i];
    reference.value_rows(rows, stride, codes, n_tokens, low, scale, mean);
}

/* Loses the low part of the queries. */
static void wrong_code_dots(int32_t (*dots)[TKV_BLOCK_TOKENS], const struct tkv_codes *keys,
                            const struct tkv_code_queries *q)
{
    int8_t high[2 * 16 * (TKV_MAX_HEAD_DIM + 16)] = {0};
    struct tkv_code_queries rough = *q;

    for (size_t i = 0; i < (keys->n + 3) / 4 * q->n; i++)
        memcpy(high + 8 * i, q->bytes + 8 * i, 4);
    rough.bytes = high;
    reference.code_dots(dots, keys, &rough);
}

/* Leaves out the last coordinate. */
static void wrong_level_dots(int32_t *dots, const uint8_t *codes, size_t n, const int8_t *level,
                             const struct tkv_code_queries *q)
{
    reference.level_dots(dots, codes, n, level, q);
    for (size_t r = 0; r < q->n; r++)
        dots[r] -= (128 * q->bytes[r * 2 * n + n - 1] + q->bytes[r * 2 * n + 2 * n - 1]) *
                   level[codes[n - 1]];
}

/* Takes the last of the maximum, not of all. */
static float wrong_scale_dots(float *x, const int32_t *dots, size_t stride, size_t n_blocks,
                              const float *scale, float factor, const float *offset)
{
    reference.scale_dots(x, dots, stride, n_blocks, scale, factor, offset);
    return x[(n_blocks - 1) * stride + TKV_BLOCK_TOKENS - 1];
}

/* Weights of seven bits. */
static float wrong_weigh(uint8_t *high, uint8_t *low, const float *x, size_t stride,
                         size_t n_blocks, float max, const float *scale, float *sum)
{
    const float unit = reference.weigh(high, low, x, stride, n_blocks, max, scale, sum);

    memset(low, 0, n_blocks * TKV_BLOCK_TOKENS);
    return unit;
}

/* Takes the weights of the first block for all. */
static void wrong_code_sums(float *acc, size_t stride, const struct tkv_codes *values,
                            size_t n_blocks, const uint8_t (*weights)[2][TKV_RUN_TOKENS],
                            const float *unit, size_t n_rows)
{
    for (size_t b = 0; b < n_blocks; b++)
        reference.code_sums(acc, stride, values + b, 1, weights, unit, n_rows);
}

/* The second moment by the first: a sum of squares that cancels. */
static void wrong_moments(double *sums, const float *x, size_t n, double from)
{
    reference.moments(sums, x, n, 0);
    sums[1] -= 2 * from * sums[0] - (double)n * from * from;
    sums[0] -= (double)n * from;
}

/* Lets what is not a number through. */
static void wrong_fold_scores(float *dst, const float *x, size_t n, double mean, double scale)
{
    for (size_t i = 0; i < n; i++) {
        const float z = (float)(((double)x[i] - mean) * scale);

        dst[i] = dst[i] > z ? dst[i] : z;
    }
}

/* As if keys were signed. */
static size_t wrong_count_from(const uint32_t *keys, size_t n, uint32_t least)
{
    size_t count = 0;

    for (size_t i = 0; i < n; i++)
        count += (int32_t)keys[i] >= (int32_t)least;
    return count;
}

/* Takes the first of the tokens that come from one tile for all of them. */
static void wrong_pick_keys(uint8_t *dst, const struct tkv_codes_at *at,
                            const struct tkv_pick *picks, size_t n_picks)
{
    struct tkv_pick wrong[TKV_BLOCK_TOKENS];

    memcpy(wrong, picks, n_picks * sizeof(*picks));
    for (size_t i = 0; i < n_picks; i++)
        for (size_t t = 1; t < 16; t++)
            if (wrong[i].from[t] < 16 && wrong[i].from[t - 1] < 16)
                wrong[i].from[t] = wrong[i].from[t - 1];
    reference.pick_keys(dst, at, wrong, n_picks);
}

/* Forgets what comes from the second of several tiles. */
static void wrong_pick_values(uint8_t *dst, const struct tkv_codes_at *at,
                              const struct tkv_pick *picks, size_t n_picks)
{
    reference.pick_values(dst, at, picks, n_picks > 1 ? n_picks - 1 : n_picks);
}

/* In another order. */
static void wrong_add_steps(float *dst, const float *x, const uint8_t *codes, size_t n, float base,
                            float step)
{
    for (size_t i = 0; i < n; i++)
        dst[i] = x[i] + base + step * (float)codes[i];
}

/* Looks into one half only. */
static void wrong_pick_bytes(uint8_t *dst, const uint8_t *src, const uint8_t *lane, size_t n)
{
    for (size_t i = 0; i < n; i++)
        dst[i] = src[lane[i] % 32];
}

/* Forgets the last of an odd number. */
static void wrong_pick_halves(void *dst, const void *src, const uint8_t *lane, size_t n)
{
    reference.pick_halves(dst, src, lane, n & ~(size_t)1);
}

/* Drops the last row when their number is odd. */
static void wrong_logits(float *out, const float *q, size_t n_rows, const float *tile, size_t dim)
{
    reference.logits(out, q, n_rows & ~(size_t)1, tile, dim);
}

/* Overwrites what it should add to. */
static void wrong_accumulate(float *acc, const float *w, size_t n_rows, const float *rows,
                             size_t n_tokens, size_t dim)
{
    memset(acc, 0, n_rows * dim * sizeof(*acc));
    reference.accumulate(acc, w, n_rows, rows, n_tokens, dim);
}

/* The classic: exp(x) = 2^(x log2 e) in floats, without a second part of ln 2. */
static float wrong_exp_sum(float *x, size_t n, float max)
{
    float sum = 0;

    for (size_t i = 0; i < n; i++) {
        x[i] = exp2f((x[i] - max) * 1.44269504f);
        sum += x[i];
    }
    return sum;
}

static void test_wrong_kernels_are_noticed(void **state)
{
    const struct tkv_kernels wrong = {
        .fwht = wrong_fwht,
        .sum_vectors = wrong_sum_vectors,
        .norm2 = wrong_norm2,
        .dot = wrong_dot,
        .f16_to_f32 = wrong_f16_to_f32,
        .f32_to_f16 = wrong_f32_to_f16,
        .quantise = wrong_quantise,
        .lookup = wrong_lookup,
        .fit = wrong_fit,
        .try_scales = wrong_try_scales,
        .split_bytes = wrong_split_bytes,
        .key_tile = wrong_key_tile,
        .value_rows = wrong_value_rows,
        .code_dots = wrong_code_dots,
        .level_dots = wrong_level_dots,
        .scale_dots = wrong_scale_dots,
        .weigh = wrong_weigh,
        .code_sums = wrong_code_sums,
        .moments = wrong_moments,
        .fold_scores = wrong_fold_scores,
        .count_from = wrong_count_from,
        .pick_keys = wrong_pick_keys,
        .pick_values = wrong_pick_values,
        .pick_halves = wrong_pick_halves,
        .pick_bytes = wrong_pick_bytes,
        .add_steps = wrong_add_steps,
        .logits = wrong_logits,
        .accumulate = wrong_accumulate,
        .exp_sum = wrong_exp_sum,
    };

    (void)state;
    tkv_kernels_init(&reference, 0);
    for (size_t i = 0; i < N_KERNEL_CASES; i++) {
        struct kernel_run run;

        kernel_run_init(&run, &wrong, seed);
        kernel_cases[i].check(&run);
        if (!run.n_failures)
            print_error("a wrong %s passes\n", kernel_cases[i].name);
        assert_true(run.n_failures > 0);
    }
}

static void test_reference_agrees_with_itself(void **state)
{
    (void)state;
    tkv_kernels_init(&reference, 0);
    for (size_t i = 0; i < N_KERNEL_CASES; i++) {
        struct kernel_run run;

        kernel_run_init(&run, &reference, seed);
        kernel_cases[i].check(&run);
        assert_int_equal(run.n_failures, 0);
    }
}

static void test_flags(void **state)
{
    const unsigned all = tkv_cpu_flags(NULL);
    char names[32], tight[4];

    (void)state;
    assert_int_equal(tkv_cpu_flags(""), all);
    assert_int_equal(tkv_cpu_flags("avx,avx2x,avx51,avx5120,neon2"), all);
    assert_int_equal(tkv_cpu_flags("avx2"), all & ~(unsigned)(TKV_CPU_AVX2 | TKV_CPU_AVXVNNI));
    assert_int_equal(tkv_cpu_flags("x,avx512"), all & ~(unsigned)(TKV_CPU_AVX512 | TKV_CPU_VNNI));
    assert_int_equal(tkv_cpu_flags("neon,avx512,avx2,avxvnni,avx512vnni,dotprod"), 0);
    assert_string_equal(tkv_cpu_names(0, names, sizeof(names)), "scalar");
    assert_string_equal(tkv_cpu_names(TKV_CPU_AVX2 | TKV_CPU_AVX512, names, sizeof(names)),
                        "avx2,avx512");
    assert_string_equal(tkv_cpu_names(TKV_CPU_NEON, tight, sizeof(tight)), "neo");
    assert_string_equal(tkv_cpu_names(TKV_CPU_NEON, tight, 0), "");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_flags),
        cmocka_unit_test(test_reference_agrees_with_itself),
        cmocka_unit_test(test_variants),
        cmocka_unit_test(test_wrong_kernels_are_noticed),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
