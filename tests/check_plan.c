/* Bits and reach from a budget: against every possibility of small cases, and by hand. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "core/plan.h"
#include "tests/rng.h"

enum { N_HEADS = 3, MAX_OPTIONS = 80 };

static const uint64_t seed = 20261122;

struct scene {
    struct tkv_plan plan;
    struct tkv_plan_head heads[N_HEADS];
    float errors[N_HEADS][TKV_PLAN_ERRORS];
};

/* Errors that fall with bits and with reach, by factors that differ a lot from head to head. */
static void make_scene(struct scene *s, struct rng *rng)
{
    for (uint32_t h = 0; h < N_HEADS; h++) {
        float size = 1 + (float)rng_below(rng, 1000);

        for (uint32_t i = 0; i < TKV_PLAN_TIERS; i++, size /= 2 + (float)rng_below(rng, 4))
            s->errors[h][i] = size;
        size = 1 + (float)rng_below(rng, 100000);
        for (uint32_t i = 0; i < TKV_PLAN_REACHES; i++, size /= 1 + (float)rng_below(rng, 3))
            s->errors[h][TKV_PLAN_TIERS + i] = size;
        s->heads[h] =
            (struct tkv_plan_head){.errors = s->errors[h], .block_bytes = {1500, 2500, 3500, 4500}};
    }
    s->plan = (struct tkv_plan){.heads = s->heads,
                                .n_heads = N_HEADS,
                                .n_hot_tokens = 8u << rng_below(rng, 4),
                                .n_cold_tokens = 100 + rng_below(rng, 6000),
                                .open_tier = rng_below(rng, 4),
                                .tiers = 15};
}

/* Everything a head may get, found without the code under test. */
static uint32_t list_options(const struct tkv_plan *p, struct tkv_plan_choice *out)
{
    uint32_t n = 0;

    out[n++] = (struct tkv_plan_choice){0, 0};
    for (uint32_t tier = 0; tier < TKV_PLAN_TIERS; tier++) {
        out[n++] = (struct tkv_plan_choice){tier, TKV_PLAN_ALL};
        for (uint32_t blocks = 1; blocks <= 32; blocks += blocks < 8 ? 1 : blocks < 16 ? 2 : 4)
            if (blocks * 64 < p->n_cold_tokens)
                out[n++] = (struct tkv_plan_choice){tier, blocks * 64};
    }
    return n;
}

/* The least error that so many bytes can have, over all combinations. */
static double best_error(const struct tkv_plan *p, double budget)
{
    struct tkv_plan_choice c[MAX_OPTIONS];
    double error[N_HEADS][MAX_OPTIONS], bytes[N_HEADS][MAX_OPTIONS], best = 1e300;
    const uint32_t n = list_options(p, c);

    for (uint32_t h = 0; h < N_HEADS; h++)
        for (uint32_t i = 0; i < n; i++) {
            error[h][i] = tkv_plan_error(p, h, c[i]);
            bytes[h][i] = (double)tkv_plan_bytes(p, h, c[i]);
        }
    for (uint32_t i = 0; i < n * n * n; i++) {
        const uint32_t a = i % n, b = i / n % n, d = i / n / n;
        const double e = error[0][a] + error[1][b] + error[2][d];

        if (bytes[0][a] + bytes[1][b] + bytes[2][d] <= budget && e < best)
            best = e;
    }
    return best;
}

/* Never over the budget; never worse than the best of a budget that is smaller by one head's most;
 * and equal to the best of its own bytes in most cases. */
static void small_cases_against_all_possibilities(void **state)
{
    enum { N_CASES = 300 };
    uint32_t n_best = 0;

    (void)state;
    for (unsigned i = 0; i < N_CASES; i++) {
        struct rng rng = {seed + i};
        struct tkv_plan_choice got[N_HEADS], again[N_HEADS];
        struct scene s;
        uint64_t budget, bytes, most = 0;
        double error = 0;

        make_scene(&s, &rng);
        for (uint32_t h = 0; h < N_HEADS; h++)
            most = tkv_plan_bytes(&s.plan, h, (struct tkv_plan_choice){3, TKV_PLAN_ALL});
        budget = rng_below(&rng, (uint32_t)(3 * most + 10000));
        bytes = tkv_plan_solve(&s.plan, budget, got);
        assert_int_equal(tkv_plan_solve(&s.plan, budget, again), bytes);
        assert_memory_equal(got, again, sizeof(got));
        for (uint32_t h = 0; h < N_HEADS; h++) {
            error += tkv_plan_error(&s.plan, h, got[h]);
            bytes -= tkv_plan_bytes(&s.plan, h, got[h]);
        }
        assert_int_equal(bytes, 0);
        assert_true(tkv_plan_solve(&s.plan, budget, got) <= budget);
        if (budget > most && error > best_error(&s.plan, (double)(budget - most)) * (1 + 1e-12))
            fail_msg("seed %llu: error %g, less is possible with less",
                     (unsigned long long)seed + i, error);
        n_best += error <= best_error(&s.plan, (double)budget) * (1 + 1e-12);
    }
    print_message("the best of all in %u of %d cases\n", n_best, N_CASES);
    assert_true(n_best > N_CASES * 3 / 4);
}

/* Heads that are bound get no more than that, whatever bytes there are. */
static void bounds_hold(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 300; i++) {
        struct rng rng = {seed + i};
        struct tkv_plan_choice first[N_HEADS], then[N_HEADS];
        struct scene s;

        make_scene(&s, &rng);
        (void)tkv_plan_solve(&s.plan, rng_below(&rng, 500000), first);
        for (uint32_t h = 0; h < N_HEADS; h++) {
            s.heads[h].is_bound = true;
            s.heads[h].most_tier = first[h].tier;
            s.heads[h].most_reach = first[h].reach_tokens;
        }
        s.plan.n_cold_tokens += 1000;
        (void)tkv_plan_solve(&s.plan, rng_below(&rng, 1000000), then);
        for (uint32_t h = 0; h < N_HEADS; h++)
            assert_true(then[h].tier <= first[h].tier &&
                        then[h].reach_tokens <= first[h].reach_tokens);
    }
}

static void make_plain(struct scene *s)
{
    struct rng rng = {seed};

    make_scene(s, &rng);
    for (uint32_t h = 0; h < N_HEADS; h++)
        for (uint32_t i = 0; i < TKV_PLAN_ERRORS; i++)
            s->errors[h][i] = (i < TKV_PLAN_TIERS ? 1.0f : 1024.0f) / (float)(1 << i);
    s->plan.n_hot_tokens = 16;
    s->plan.n_cold_tokens = 1024;
    s->plan.open_tier = 0;
}

/* A head that needs every token gets them, one that lives on its window keeps nothing else. */
static void heads_get_what_they_need(void **state)
{
    struct tkv_plan_choice got[N_HEADS];
    struct scene s;

    (void)state;
    make_plain(&s);
    for (uint32_t i = 0; i < TKV_PLAN_ERRORS; i++) {
        s.errors[0][i] *= i < TKV_PLAN_TIERS ? 1 : 1e4f;
        s.errors[1][i] *= 1e-4f;
        s.errors[2][i] *= 1e-4f;
    }
    /* 16 closed blocks and an open one. */
    assert_int_equal(tkv_plan_solve(&s.plan, 17 * 4500, got), 17 * 4500);
    assert_int_equal(got[0].tier, 3);
    assert_int_equal(got[0].reach_tokens, TKV_PLAN_ALL);
    assert_int_equal(got[1].reach_tokens, 0);
    assert_int_equal(got[2].reach_tokens, 0);
    assert_true(tkv_plan_solve(&s.plan, 17 * 1500 - 1, got) < 17 * 1500);
    assert_true(got[0].reach_tokens < 1024);
    assert_int_equal(tkv_plan_solve(&s.plan, 0, got), 0);
    assert_int_equal(got[0].reach_tokens, 0);
    assert_true(tkv_plan_solve(&s.plan, UINT64_MAX, got) == 3 * 17 * 4500);
    assert_int_equal(tkv_plan_used(&s.plan, got), 8);
    s.plan.tiers = 3; /* of one and two bits */
    assert_true(tkv_plan_solve(&s.plan, 17 * 4500, got) <= 17 * 4500);
    assert_int_equal(got[0].tier, 1);
    assert_int_equal(got[0].reach_tokens, TKV_PLAN_ALL);
    assert_int_equal(tkv_plan_used(&s.plan, got) & ~3u, 0);
}

/* More bytes are never worse. */
static void more_is_better(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 50; i++) {
        struct rng rng = {seed + 1000 + i};
        struct tkv_plan_choice got[N_HEADS];
        struct scene s;
        double last = 1e300;

        make_scene(&s, &rng);
        for (uint64_t budget = 0; budget < 3000000; budget = budget * 3 / 2 + 9000) {
            double error = 0;

            tkv_plan_solve(&s.plan, budget, got);
            for (uint32_t h = 0; h < N_HEADS; h++)
                error += tkv_plan_error(&s.plan, h, got[h]);
            if (error > last * 1.2)
                fail_msg("seed %llu: %llu bytes are worse than fewer",
                         (unsigned long long)seed + 1000 + i, (unsigned long long)budget);
            last = error;
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(small_cases_against_all_possibilities),
        cmocka_unit_test(bounds_hold),
        cmocka_unit_test(heads_get_what_they_need),
        cmocka_unit_test(more_is_better),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
