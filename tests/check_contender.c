/*
 * Settings that are too large are made smaller until nothing is left to take: every step takes
 * something that occupies bytes, so that a size in reach is reached.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "core/block.h"
#include "tools/contender.h"

/* A model of the reference model's size: 3,072 bytes a token as halves. */
static const struct tkv_replayed replayed = {.stats = {.fp16_bytes = 2048 * 3072, .n_seen = 2048}};

static struct tkv_remote_options settings(uint32_t n_blocks, int32_t recent, uint32_t beta)
{
    return (struct tkv_remote_options){
        .pinned_tokens = 4,
        .recent_tokens = recent,
        .beta_tokens = beta,
        .budget_tokens = 4 + (uint32_t)recent + n_blocks * TKV_BLOCK_TOKENS,
    };
}

static uint32_t blocks_of(const struct tkv_remote_options *o)
{
    const uint32_t n_half = (uint32_t)(o->pinned_tokens + o->recent_tokens);

    assert_true(o->budget_tokens > n_half);
    assert_int_equal((o->budget_tokens - n_half) % TKV_BLOCK_TOKENS, 0);
    return (o->budget_tokens - n_half) / TKV_BLOCK_TOKENS;
}

/* Shrink to the end: each step leaves fewer halves or fewer blocks, and no more of the other. */
static unsigned shrink_all(struct tkv_remote_options *o, double excess_bytes)
{
    struct tkv_remote_options was = *o;
    unsigned n_steps = 0;

    for (; tkv_contender_shrink(o, &replayed, excess_bytes); was = *o, n_steps++) {
        assert_true(o->recent_tokens >= 1 && o->beta_tokens >= 1);
        assert_true(o->recent_tokens >= (int32_t)o->beta_tokens);
        assert_true(o->recent_tokens <= was.recent_tokens && blocks_of(o) <= blocks_of(&was));
        assert_true(o->recent_tokens < was.recent_tokens || blocks_of(o) < blocks_of(&was));
    }
    assert_int_equal(o->recent_tokens, 1);
    assert_int_equal(o->beta_tokens, 1);
    assert_int_equal(blocks_of(o), 1);
    return n_steps;
}

/* Half tokens that were a gift go as one, as many as the excess holds. */
static void test_gift_first(void **state)
{
    struct tkv_remote_options o = settings(40, 100, 64);

    (void)state;
    assert_true(tkv_contender_shrink(&o, &replayed, 10 * 3072 - 1));
    assert_int_equal(o.recent_tokens, 90);
    assert_int_equal(blocks_of(&o), 40);
    assert_true(tkv_contender_shrink(&o, &replayed, 1e6));
    assert_int_equal(o.recent_tokens, 64);
    assert_true(tkv_contender_shrink(&o, &replayed, 1));
    assert_int_equal(o.recent_tokens, 64);
    assert_int_equal(blocks_of(&o), 39);
}

static void test_every_step_takes(void **state)
{
    struct tkv_remote_options o = settings(40, 100, 64);

    (void)state;
    assert_int_equal(shrink_all(&o, 1e6), 1 + 39 + 6);
}

/* One block, and a few halves too many: 46x of 2,048 tokens. */
static void test_least_settings(void **state)
{
    struct tkv_remote_options o = settings(1, 5, 1);

    (void)state;
    assert_int_equal(shrink_all(&o, 10653), 1);
}

static void test_bytes(void **state)
{
    struct tkv_remote_options o = {.budget_bytes = 1000};

    (void)state;
    assert_true(tkv_contender_shrink(&o, &replayed, 99));
    assert_int_equal(o.budget_bytes, 900);
    assert_false(tkv_contender_shrink(&o, &replayed, 899));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gift_first),
        cmocka_unit_test(test_every_step_takes),
        cmocka_unit_test(test_least_settings),
        cmocka_unit_test(test_bytes),
    };

    return cmocka_run_group_tests_name("contender", tests, NULL, NULL);
}
