/* Selection: against a full sort, on rows full of ties, NaN and infinities. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "core/select.h"
#include "tests/cpu.h"
#include "tests/rng.h"

enum { MAX_N = 700 };

struct entry {
    float score;
    uint32_t index;
};

/* Best first: higher score, NaN after everything, then lower index. */
static int compare_entries(const void *a, const void *b)
{
    const struct entry *x = a;
    const struct entry *y = b;
    const bool x_nan = isnan(x->score);
    const bool y_nan = isnan(y->score);

    if (x_nan != y_nan)
        return x_nan ? 1 : -1;
    if (!x_nan && x->score != y->score)
        return x->score > y->score ? -1 : 1;
    return x->index < y->index ? -1 : 1;
}

static int compare_indices(const void *a, const void *b)
{
    const uint32_t x = *(const uint32_t *)a;
    const uint32_t y = *(const uint32_t *)b;

    return (x > y) - (x < y);
}

static size_t sorted_top(const float *scores, size_t n, size_t k, uint32_t *keep)
{
    static struct entry entries[MAX_N];

    for (size_t i = 0; i < n; i++)
        entries[i] = (struct entry){scores[i], (uint32_t)i};
    if (n > 0)
        qsort(entries, n, sizeof *entries, compare_entries);
    if (k > n)
        k = n;
    for (size_t i = 0; i < k; i++)
        keep[i] = entries[i].index;
    if (k > 0)
        qsort(keep, k, sizeof *keep, compare_indices);
    return k;
}

static void check_top(const float *scores, size_t n, size_t k)
{
    uint32_t want[MAX_N];
    uint32_t got[MAX_N + 1];
    uint32_t scratch[MAX_N + 1];
    const size_t n_want = sorted_top(scores, n, k, want);

    got[n_want] = 0xdeadbeef;
    scratch[n] = 0xfeedface;
    assert_int_equal(tkv_select_top(cpu_kernels(), scores, n, k, got, scratch), n_want);
    assert_memory_equal(got, want, n_want * sizeof *want);
    assert_int_equal(got[n_want], 0xdeadbeef);
    assert_int_equal(scratch[n], 0xfeedface);
}

/* One score of a kind: 0 normal, 1 few values, 2 with special values, 3 denormal
 * and huge mixed, 4 neighbours that differ in the lowest bits only. */
static float draw_score(struct rng *r, unsigned kind)
{
    static const float special[] = {NAN, -NAN, INFINITY, -INFINITY, 0.0f, -0.0f, 1, -1};

    switch (kind) {
    case 0: return rng_gauss(r);
    case 1: return (float)rng_below(r, 5) - 2;
    case 2: return rng_below(r, 2) ? special[rng_below(r, 8)] : rng_gauss(r);
    case 3: return rng_gauss(r) * (rng_below(r, 2) ? 1e-44f : 1e38f);
    default: return 1 + (float)rng_below(r, 100) * 0x1p-23f;
    }
}

static void test_against_sort(void **state)
{
    struct rng r = {20261122};
    float scores[MAX_N];

    (void)state;
    for (unsigned round = 0; round < 1500; round++) {
        const unsigned kind = round % 5;
        const size_t n = rng_below(&r, round % 10 < 5 ? 20 : MAX_N + 1);

        for (size_t i = 0; i < n; i++)
            scores[i] = draw_score(&r, kind);
        check_top(scores, n, rng_below(&r, (uint32_t)n + 3));
    }
}

static void test_limits(void **state)
{
    const float scores[] = {3, NAN, 1, 3, -INFINITY, 3};

    (void)state;
    for (size_t k = 0; k <= 8; k++)
        check_top(scores, 6, k);
    check_top(scores, 0, 0);
    check_top(scores, 0, 4);
    check_top(scores, 6, SIZE_MAX);
}

static void test_ties_and_nan(void **state)
{
    const float ties[] = {1, 2, 2, 2, 1};
    const float zeros[] = {-0.0f, 0.0f, -0.0f, 0.0f};
    const float nans[] = {NAN, -INFINITY, NAN, -1};
    uint32_t keep[5];
    uint32_t scratch[5];

    (void)state;
    assert_int_equal(tkv_select_top(cpu_kernels(), ties, 5, 2, keep, scratch), 2);
    assert_memory_equal(keep, ((uint32_t[]){1, 2}), 8);
    assert_int_equal(tkv_select_top(cpu_kernels(), ties, 5, 4, keep, scratch), 4);
    assert_memory_equal(keep, ((uint32_t[]){0, 1, 2, 3}), 16);
    assert_int_equal(tkv_select_top(cpu_kernels(), zeros, 4, 2, keep, scratch), 2);
    assert_memory_equal(keep, ((uint32_t[]){0, 1}), 8);
    assert_int_equal(tkv_select_top(cpu_kernels(), nans, 4, 3, keep, scratch), 3);
    assert_memory_equal(keep, ((uint32_t[]){0, 1, 3}), 12);
}

static void test_folds(void **state)
{
    float dst[] = {1, NAN, 3, -INFINITY, NAN, 2};
    const float src[] = {2, -5, NAN, -7, NAN, 1};
    const float want[] = {2, -5, 3, -7};
    float sum[] = {1, -2, 0.5f};

    (void)state;
    tkv_fold_max(dst, src, 6);
    assert_memory_equal(dst, want, sizeof want);
    assert_true(isnan(dst[4]));
    assert_true(dst[5] == 2);
    tkv_fold_sum(sum, (float[]){4, 4, -8}, 0.25f, 3);
    assert_memory_equal(sum, ((float[]){2, -1, -1.5f}), sizeof sum);
    tkv_fold_max(dst, src, 0);
    tkv_fold_sum(sum, src, 1, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_against_sort),
        cmocka_unit_test(test_limits),
        cmocka_unit_test(test_ties_and_nan),
        cmocka_unit_test(test_folds),
    };

    return cmocka_run_group_tests_name("select", tests, NULL, NULL);
}
