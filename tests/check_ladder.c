/* Method default in the store: every KV head keeps what its plan says, within the bytes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "proto/errors.h"
#include "proto/shm_layout.h"
#include "store/session_priv.h"
#include "tests/emulated.h"
#include "tests/session_aid.h"

enum { N_TOKENS = 1500, N_LAYERS = 3, N_HEADS = 2 };

static const uint64_t seed = 4242;

/* Layer by layer a head that needs everything and one that lives on its window, by more or less. */
static void open_planned(struct aid *a, float *errors, uint64_t budget_bytes)
{
    aid_init(a, "tq4");
    a->config.n_layers = N_LAYERS;
    a->config.method = TKV_METHOD_DEFAULT;
    a->config.budget_bytes = budget_bytes;
    a->config.max_tokens = N_TOKENS;
    for (uint32_t i = 0; i < N_LAYERS; i++) {
        a->layers[i].errors = errors + (size_t)i * N_HEADS * TKV_PLAN_ERRORS;
        for (uint32_t h = 0; h < N_HEADS; h++) {
            float *e = errors + ((size_t)i * N_HEADS + h) * TKV_PLAN_ERRORS;

            for (uint32_t t = 0; t < TKV_PLAN_TIERS; t++)
                e[t] = (h ? 1e-4f : 1.0f) / (float)(1u << 2 * t);
            for (uint32_t r = 0; r < TKV_PLAN_REACHES; r++)
                e[TKV_PLAN_TIERS + r] = (h ? 1e-2f * (float)i : 50.0f) / (float)(1u << 2 * r);
        }
    }
    assert_int_equal(aid_open(a), 0);
}

static uint64_t fp16_bytes(uint32_t n)
{
    return (uint64_t)n * N_LAYERS * N_HEADS * 128 * 2;
}

/* What is cold of a head: the newest tokens that its reach holds in whole blocks, none missing. */
static void check_kept(const struct aid *a, uint32_t layer, uint32_t kv_head, uint32_t n)
{
    const struct tkv_layer *l = &a->session->layers[layer];
    const struct tkv_head *head = &l->heads[kv_head];
    const struct tkv_rung *rung = &l->ladder->rungs[kv_head];
    const uint32_t end = n - l->tail.n, all = end - l->pinned.n;
    uint32_t at = end - head->n_cold, sum = 0;

    if (rung->reach_tokens == 0)
        assert_int_equal(head->n_cold, 0);
    else if (rung->reach_tokens >= all)
        assert_int_equal(head->n_cold, all);
    else
        assert_true(head->n_cold >= rung->reach_tokens &&
                    head->n_cold < rung->reach_tokens + TKV_BLOCK_TOKENS);
    for (uint32_t b = 0; b < head->n_blocks; b++) {
        const struct tkv_block *block = &head->blocks[b];
        const uint16_t *distance = tkv_block_positions(tkv_layer_layout(l, block),
                                                       tkv_arena_at(a->session->arena, block->id));

        assert_int_equal(block->tier,
                         block->n_tokens < TKV_BLOCK_TOKENS ? rung->open_tier : rung->tier);
        for (uint32_t t = 0; t < block->n_tokens; t++, at++)
            assert_int_equal(block->first_position + distance[t], at);
        sum += block->n_tokens;
    }
    assert_int_equal(sum, head->n_cold);
}

/* Mean relative square error of a head's cold keys and values. */
static void check_codes(const struct aid *a, const struct aid_tokens *t, uint32_t layer,
                        uint32_t kv_head)
{
    static const double bounds[] = {.5, .16, .05, .015}; /* with a mean of their own */
    const struct tkv_layer *l = &a->session->layers[layer];
    const struct tkv_head *head = &l->heads[kv_head];
    float x[64];

    for (uint32_t b = 0; b < head->n_blocks; b++) {
        const struct tkv_block_layout *layout = tkv_layer_layout(l, &head->blocks[b]);
        uint8_t *bytes = tkv_arena_at(a->session->arena, head->blocks[b].id);
        double error = 0, size = 0;

        for (uint32_t i = 0; i < head->blocks[b].n_tokens; i++) {
            const int32_t position =
                head->blocks[b].first_position + tkv_block_positions(layout, bytes)[i];
            const size_t from = ((size_t)position * N_HEADS + kv_head) * 64;

            for (int side = 0; side < 2; side++) {
                const float *want = (side ? t->v : t->k) + from;

                if (side)
                    tkv_decode_value(layout->v, &a->kn, tkv_block_values(layout, bytes), i, x);
                else
                    tkv_decode_key(layout->k, &a->kn, bytes, i, x);
                for (uint32_t j = 0; j < 64; j++) {
                    error += (double)(x[j] - want[j]) * (double)(x[j] - want[j]);
                    size += (double)want[j] * (double)want[j];
                }
            }
        }
        if (error > bounds[layout->k->codec->bits_first - 1] * size)
            fail_msg("layer %u, KV head %u, block %u of %u tokens in %s: error %g", layer, kv_head,
                     b, head->blocks[b].n_tokens, layout->k->codec->name, error / size);
    }
}

/* At several sizes and in requests of every length: what is kept, how well, in how many bytes. */
static void heads_keep_what_is_planned(void **state)
{
    static const uint32_t ratios[] = {3, 6, 12, 24};
    static const uint32_t steps[] = {1, 7, 64, 200, N_TOKENS};

    (void)state;
    for (uint32_t i = 0; i < 20; i += emulated_step(3)) {
        const uint64_t budget = fp16_bytes(N_TOKENS) / ratios[i % 4];
        float errors[N_LAYERS * N_HEADS * TKV_PLAN_ERRORS];
        struct aid a;
        struct aid_tokens t;

        open_planned(&a, errors, budget);
        t = aid_tokens(&a, N_TOKENS, seed);
        for (uint32_t at = 0, n; at < N_TOKENS; at += n) {
            n = steps[i / 4] < N_TOKENS - at ? steps[i / 4] : N_TOKENS - at;
            for (uint32_t l = 0; l < N_LAYERS; l++)
                if (aid_step(&a, l, &t, at, n))
                    fail_msg("1/%u, token %u: %s", ratios[i % 4], at, a.why.text);
            assert_true(tkv_session_resident_bytes(a.session) <= budget);
        }
        for (uint32_t l = 0; l < N_LAYERS; l++)
            for (uint32_t h = 0; h < N_HEADS; h++) {
                check_kept(&a, l, h, N_TOKENS);
                check_codes(&a, &t, l, h);
            }
        if (i < 4)
            print_message("1/%u: %llu of %llu bytes, %.0f tokens kept\n", ratios[i],
                          (unsigned long long)tkv_session_resident_bytes(a.session),
                          (unsigned long long)budget, (double)tkv_session_n_kept(a.session, 0));
        free(t.k);
        aid_close(&a);
    }
}

/* However tokens are cut into requests, the same blocks, to the bit. */
static void cutting_requests_changes_nothing(void **state)
{
    static const uint32_t steps[] = {N_TOKENS, 1, 13, 130};
    const size_t most = fp16_bytes(N_TOKENS) / 8;
    uint8_t *want = malloc(most);
    size_t n_want = 0;

    (void)state;
    assert_non_null(want);
    for (size_t i = 0; i < 4; i += emulated_step(3)) {
        float errors[N_LAYERS * N_HEADS * TKV_PLAN_ERRORS];
        struct aid a;
        struct aid_tokens t;
        size_t n = 0;

        open_planned(&a, errors, fp16_bytes(N_TOKENS) / 8);
        t = aid_tokens(&a, N_TOKENS, seed);
        for (uint32_t at = 0; at < N_TOKENS; at += steps[i])
            assert_int_equal(
                aid_step(&a, 1, &t, at, steps[i] < N_TOKENS - at ? steps[i] : N_TOKENS - at), 0);
        for (uint32_t h = 0; h < N_HEADS; h++)
            for (uint32_t b = 0; b < a.session->layers[1].heads[h].n_blocks; b++) {
                const struct tkv_block *block = &a.session->layers[1].heads[h].blocks[b];
                const size_t bytes = tkv_layer_layout(&a.session->layers[1], block)->bytes;

                assert_true(n + bytes <= most);
                if (i == 0)
                    memcpy(want + n_want, tkv_arena_at(a.session->arena, block->id), bytes);
                else
                    assert_memory_equal(want + n, tkv_arena_at(a.session->arena, block->id), bytes);
                n += bytes;
                n_want = i == 0 ? n : n_want;
            }
        assert_int_equal(n, n_want);
        free(t.k);
        aid_close(&a);
    }
    free(want);
}

/* Behind a plan that was made again: no block has more bits than its head, nor are tokens missing. */
static uint64_t check_moved(const struct aid *a, uint32_t layer, uint32_t kv_head, uint32_t n)
{
    const struct tkv_layer *l = &a->session->layers[layer];
    const struct tkv_head *head = &l->heads[kv_head];
    const struct tkv_rung *rung = &l->ladder->rungs[kv_head];
    uint32_t at = n - l->tail.n - head->n_cold, sum = 0;

    assert_false(l->moves);
    for (uint32_t b = 0; b < head->n_blocks; b++) {
        const struct tkv_block *block = &head->blocks[b];
        const uint16_t *distance = tkv_block_positions(tkv_layer_layout(l, block),
                                                       tkv_arena_at(a->session->arena, block->id));

        if (block->n_tokens < TKV_BLOCK_TOKENS)
            assert_int_equal(block->tier, rung->open_tier);
        else
            assert_true(l->ladder->plan_tiers[block->tier] <= l->ladder->plan_tiers[rung->tier]);
        for (uint32_t t = 0; t < block->n_tokens; t++, at++)
            assert_int_equal(block->first_position + distance[t], at);
        sum += block->n_tokens;
    }
    assert_int_equal(sum, head->n_cold);
    assert_true(head->n_cold < (uint64_t)rung->reach_tokens + TKV_BLOCK_TOKENS);
    return head->n_cold + l->tail.n + l->pinned.n;
}

/* From now on the session has a journal, which must not be short of anything either. */
static void keep_journal(struct aid *a)
{
    tkv_session_destroy(&a->session);
    a->config.is_kept = true;
    assert_int_equal(aid_open(a), 0);
    assert_int_equal(tkv_session_keep(a->session, NULL, "note", 5, &a->why), 0);
}

/* A session that outgrows its plan is planned again, and never takes more than its bytes; a journal comes
 * on top of them. */
static void plans_are_made_again(void **state)
{
    enum { MANY = 4 * N_TOKENS };
    static const uint64_t parts[] = {3, 6, 12, 3, 6, 12};
    float errors[N_LAYERS * N_HEADS * TKV_PLAN_ERRORS];

    (void)state;
    for (size_t p = 0; p < sizeof(parts) / sizeof(parts[0]); p += emulated_step(5)) {
        const bool journal = p > 2;
        struct tkv_session_stats stats;
        struct aid_tokens t;
        struct aid a;
        uint64_t kept = 0;

        open_planned(&a, errors, fp16_bytes(N_TOKENS) / parts[p]);
        if (journal)
            keep_journal(&a);
        t = aid_tokens(&a, MANY, seed);
        for (uint32_t at = 0; at < MANY; at += 50)
            for (uint32_t l = 0; l < N_LAYERS; l++) {
                if (aid_step(&a, l, &t, at, 50))
                    fail_msg("1/%u%s, layer %u at %u: %s", (unsigned)parts[p],
                             journal ? " with a journal" : "", l, at, a.why.text);
                assert_true(journal ||
                            tkv_session_resident_bytes(a.session) <= a.config.budget_bytes);
            }
        assert_int_equal(tkv_session_round(a.session, NULL, &a.why), 0);
        assert_true(a.session->horizon_tokens >= MANY);
        for (uint32_t l = 0; l < N_LAYERS; l++)
            for (uint32_t h = 0; h < N_HEADS; h++)
                kept += check_moved(&a, l, h, MANY);
        tkv_session_stats(a.session, &stats);
        assert_int_equal(stats.n_evicted, (uint64_t)MANY * N_LAYERS * N_HEADS - kept);
        print_message("1/%u: %llu of %llu bytes after %u tokens, %.0f kept\n", (unsigned)parts[p],
                      (unsigned long long)stats.resident_bytes,
                      (unsigned long long)a.config.budget_bytes, MANY, stats.n_kept);
        free(t.k);
        aid_close(&a);
    }
}

/* What one session gives up others keep: a fork, and what truncate goes back to. */
static void others_keep_what_a_plan_takes(void **state)
{
    enum { MANY = 2 * N_TOKENS };
    float errors[N_LAYERS * N_HEADS * TKV_PLAN_ERRORS];
    float want[4 * 64], got[4 * 64];
    struct tkv_session *child;
    struct aid_tokens t;
    struct aid a;
    const int32_t position = N_TOKENS + 5;
    struct tkv_step step = {.layer = 0, .n_tokens = 1, .positions = &position, .out = want};
    uint32_t at = 1000;

    (void)state;
    open_planned(&a, errors, fp16_bytes(N_TOKENS) / 3);
    tkv_session_destroy(&a.session);
    a.config.rollback_tokens = 16;
    assert_int_equal(aid_open(&a), 0);
    t = aid_tokens(&a, MANY, seed);
    step.q = t.q;
    for (uint32_t l = 0; l < N_LAYERS; l++)
        assert_int_equal(aid_step(&a, l, &t, 0, 1000), 0);
    assert_int_equal(tkv_session_fork(&child, a.session, &a.why), 0);
    assert_int_equal(tkv_session_attend(child, &step, NULL, &a.why), 0);
    while (a.session->horizon_tokens == N_TOKENS) /* a token at a time up to a new plan */
        for (uint32_t l = 0; l < N_LAYERS; l++)
            if (aid_step(&a, l, &t, at++ / N_LAYERS + 667, 1))
                fail_msg("at %u: %s", at, a.why.text);
    step.out = got;
    assert_int_equal(tkv_session_attend(child, &step, NULL, &a.why), 0);
    assert_memory_equal(want, got, sizeof(want));
    tkv_session_destroy(&child);

    at = (uint32_t)a.session->layers[0].n_seen;
    for (uint32_t n = 0; n < 3; n++) { /* over the round that the plan came with, and on */
        if (tkv_session_truncate(a.session, 3, &a.why))
            fail_msg("%s", a.why.text);
        for (uint32_t l = 0; l < N_LAYERS; l++) {
            const uint32_t seen = (uint32_t)a.session->layers[l].n_seen;

            assert_int_equal(aid_step(&a, l, &t, seen, at - seen), 0);
        }
    }
    for (uint32_t l = 0; l < N_LAYERS; l++)
        assert_int_equal(aid_step(&a, l, &t, at, 200), 0);
    for (uint32_t l = 0; l < N_LAYERS; l++)
        for (uint32_t h = 0; h < N_HEADS; h++)
            (void)check_moved(&a, l, h, at + 200);
    free(t.k);
    aid_close(&a);
}

/* What cannot be planned is refused. */
static void bad_budgets_are_refused(void **state)
{
    float errors[N_LAYERS * N_HEADS * TKV_PLAN_ERRORS];
    struct tkv_session_config config;
    struct aid a;

    (void)state;
    open_planned(&a, errors, fp16_bytes(N_TOKENS) / 3);
    config = a.config;
    aid_close(&a);

    aid_init(&a, "tq4");
    a.config = config;
    a.config.layers = a.layers;
    for (uint32_t i = 0; i < N_LAYERS; i++)
        a.layers[i].errors = errors;
    a.config.budget_bytes = 20000;
    assert_int_equal(aid_open(&a), TRIKV_E_ARGUMENT);
    assert_non_null(strstr(a.why.text, "are needed before any token"));
    a.config.budget_bytes = 0;
    assert_int_equal(aid_open(&a), TRIKV_E_ARGUMENT);
    assert_non_null(strstr(a.why.text, "budget_bytes and max_tokens"));
    a.config.budget_bytes = 1 << 20;
    a.layers[2].errors = NULL;
    assert_int_equal(aid_open(&a), TRIKV_E_ARGUMENT);
    assert_non_null(strstr(a.why.text, "layer 2: method default needs measured errors"));
    aid_close(&a);
}

/* A fork goes its own way, a truncate goes back: the same outputs as a session that never knew. */
static void forks_and_truncates(void **state)
{
    float errors[N_LAYERS * N_HEADS * TKV_PLAN_ERRORS];
    struct tkv_session *child, *parent;
    struct aid_tokens t, other;
    struct aid a;
    float want[4 * 64];

    (void)state;
    open_planned(&a, errors, fp16_bytes(N_TOKENS) / 4);
    t = aid_tokens(&a, N_TOKENS, seed);
    other = aid_tokens(&a, N_TOKENS, seed + 1);
    assert_int_equal(aid_step(&a, 0, &t, 0, 700), 0);
    assert_int_equal(aid_step(&a, 0, &t, 700, 60), 0);
    memcpy(want, t.out + 759 * 4 * 64, sizeof(want));
    aid_close(&a);

    open_planned(&a, errors, fp16_bytes(N_TOKENS) / 4);
    assert_int_equal(aid_step(&a, 0, &t, 0, 700), 0);
    assert_int_equal(tkv_session_fork(&child, a.session, &a.why), 0);
    assert_int_equal(aid_step(&a, 0, &other, 700, 60), 0);
    parent = a.session;
    a.session = child;
    assert_int_equal(aid_step(&a, 0, &t, 700, 60), 0);
    assert_memory_equal(want, t.out + 759 * 4 * 64, sizeof(want));
    tkv_session_destroy(&child);
    a.session = parent;
    aid_close(&a);

    for (uint32_t n = 1; n <= 16; n += 3) {
        aid_init(&a, "tq4");
        a.config.rollback_tokens = 16;
        a.config.n_layers = N_LAYERS;
        a.config.method = TKV_METHOD_DEFAULT;
        a.config.budget_bytes = fp16_bytes(N_TOKENS) / 3;
        a.config.max_tokens = N_TOKENS;
        for (uint32_t i = 0; i < N_LAYERS; i++)
            a.layers[i].errors = errors + (size_t)i * N_HEADS * TKV_PLAN_ERRORS;
        assert_int_equal(aid_open(&a), 0);
        assert_int_equal(aid_step(&a, 0, &t, 0, 760), 0);
        memcpy(want, t.out + 759 * 4 * 64, sizeof(want));
        assert_int_equal(aid_step(&a, 0, &other, 760, n), 0);
        assert_int_equal(tkv_session_truncate(a.session, n, &a.why), 0);
        assert_int_equal(tkv_session_truncate(a.session, 1, &a.why), 0);
        assert_int_equal(aid_step(&a, 0, &t, 759, 1), 0);
        assert_memory_equal(want, t.out + 759 * 4 * 64, sizeof(want));
        aid_close(&a);
    }
    free(t.k);
    free(other.k);
}

/* Clients find each block's own codec in the table. */
static void the_table_says_the_codecs(void **state)
{
    float errors[N_LAYERS * N_HEADS * TKV_PLAN_ERRORS];
    struct aid_tokens t;
    struct aid a;
    struct trikv_table_header *h;
    const struct trikv_table_entry *e;
    uint32_t n_codecs[32] = {0}, n = 0;

    (void)state;
    open_planned(&a, errors, fp16_bytes(N_TOKENS) / 5);
    t = aid_tokens(&a, N_TOKENS, seed);
    for (uint32_t l = 0; l < N_LAYERS; l++)
        assert_int_equal(aid_step(&a, l, &t, 0, N_TOKENS), 0);
    h = malloc(tkv_session_table_bytes(a.session));
    assert_non_null(h);
    tkv_session_table(a.session, h);
    e = (const struct trikv_table_entry *)(h + 1);
    for (uint32_t i = 0; i < h->n_entries; i++, e++) {
        const struct tkv_codec *codec = tkv_codec_by_id(e->codec_k);

        assert_non_null(codec);
        assert_int_equal(e->codec_v, e->codec_k);
        assert_true(e->block_bytes == 448u + 1024u * codec->bits_first);
        n_codecs[codec->bits_first]++;
    }
    for (uint32_t i = 1; i <= 4; i++)
        n += n_codecs[i] > 0;
    assert_true(n >= 2);
    free(h);
    free(t.k);
    aid_close(&a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(heads_keep_what_is_planned),
        cmocka_unit_test(cutting_requests_changes_nothing),
        cmocka_unit_test(plans_are_made_again),
        cmocka_unit_test(others_keep_what_a_plan_takes),
        cmocka_unit_test(bad_budgets_are_refused),
        cmocka_unit_test(forks_and_truncates),
        cmocka_unit_test(the_table_says_the_codecs),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
