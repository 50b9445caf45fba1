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

/* Shrink to the end: each step leaves fewer halves, a shorter tail or fewer blocks, and no more of
 * the others. */
static unsigned shrink_all(struct tkv_remote_options *o, double excess_bytes)
{
    struct tkv_remote_options was = *o;
    unsigned n_steps = 0;

    for (; tkv_contender_shrink(o, &replayed, excess_bytes); was = *o, n_steps++) {
        assert_true(o->recent_tokens >= 1 && o->beta_tokens >= 1);
        assert_true(o->recent_tokens <= was.recent_tokens && o->beta_tokens <= was.beta_tokens);
        assert_true(blocks_of(o) <= blocks_of(&was));
        assert_true(o->recent_tokens < was.recent_tokens || o->beta_tokens < was.beta_tokens ||
                    blocks_of(o) < blocks_of(&was));
    }
    assert_int_equal(o->recent_tokens, 1);
    assert_int_equal(o->beta_tokens, 1);
    assert_int_equal(blocks_of(o), 1);
    return n_steps;
}

/* A few of the newest tokens, as many as the excess holds; a block where they do not do. */
static void test_newest_or_a_block(void **state)
{
    struct tkv_remote_options o = settings(40, 100, 64);

    (void)state;
    assert_true(tkv_contender_shrink(&o, &replayed, 60 * 3072 - 1));
    assert_int_equal(o.recent_tokens, 40);
    assert_int_equal(blocks_of(&o), 40);
    assert_true(tkv_contender_shrink(&o, &replayed, 10 * 3072));
    assert_int_equal(o.recent_tokens, 40);
    assert_int_equal(blocks_of(&o), 39);
}

static void test_every_step_takes(void **state)
{
    struct tkv_remote_options o = settings(40, 100, 64);

    (void)state;
    assert_int_equal(shrink_all(&o, 1e6), 39 + 1 + 11);
    o = settings(40, 100, 64);
    assert_int_equal(shrink_all(&o, 1), 39 + 99 + 6);
}

/* 46x and 4x of docs/quality.md: one block with a few halves too many, and many blocks with too few. */
static void test_of_the_page(void **state)
{
    struct tkv_remote_options o = settings(1, 5, 1);

    (void)state;
    assert_int_equal(shrink_all(&o, 10653), 1);
    o = settings(46, 35, 64);
    for (unsigned i = 0; i < 2; i++)
        assert_true(tkv_contender_shrink(&o, &replayed, 82572));
    assert_int_equal(blocks_of(&o), 44);
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
        cmocka_unit_test(test_newest_or_a_block),
        cmocka_unit_test(test_every_step_takes),
        cmocka_unit_test(test_of_the_page),
        cmocka_unit_test(test_bytes),
    };

    return cmocka_run_group_tests_name("contender", tests, NULL, NULL);
}
