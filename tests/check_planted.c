/*
 * Texts with something to look back for: what is asked has been told, where it is said to have
 * been; what is marked is what is asked; and a seed gives one text.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "tools/planted.h"
#include "tools/windows.h"
#include "tools/wordlists.h"

#define MODEL "models/trikv-ref-6m.gguf"

enum { N_TOKENS = 1500, N_SEEDS = 20 };

struct state {
    struct tkv_gguf file;
    struct tkv_tokenizer *tokenizer;
    int32_t prose[N_TOKENS];
};

static int setup(void **state)
{
    struct state *s = calloc(1, sizeof(*s));
    struct tkv_reason why;

    *state = s;
    /* Prose of one token that no answer has: what is planted stands out. */
    for (size_t i = 0; s && i < N_TOKENS; i++)
        s->prose[i] = (int32_t)(3000 + i % 7);
    return s && !tkv_gguf_open(&s->file, MODEL, &why) &&
                   !tkv_tokenizer_create(&s->tokenizer, &s->file, &why)
               ? 0
               : -1;
}

static int teardown(void **state)
{
    struct state *s = *state;

    tkv_tokenizer_destroy(&s->tokenizer);
    tkv_gguf_close(&s->file);
    free(s);
    return 0;
}

static struct tkv_planted_options options(const struct state *s, uint64_t seed)
{
    return (struct tkv_planted_options){s->prose, N_TOKENS, N_TOKENS, seed};
}

/* One asked answer: tokens [from, to). */
struct asked {
    size_t from, to;
    struct tkv_mark mark;
};

static bool next_asked(const struct tkv_planted *p, struct asked *a)
{
    a->from = a->to;
    while (a->from < p->ids.n && !p->marks[a->from].question)
        a->from++;
    if (a->from == p->ids.n)
        return false;
    a->mark = p->marks[a->from];
    for (a->to = a->from; a->to < p->ids.n && p->marks[a->to].question == a->mark.question;)
        a->to++;
    return true;
}

/* The first place where the answer's tokens stand. */
static size_t told_at(const struct tkv_planted *p, const struct asked *a)
{
    size_t at = 0;

    while (memcmp(p->ids.ids + at, p->ids.ids + a->from, (a->to - a->from) * sizeof(int32_t)) != 0)
        at++;
    return at;
}

static void facts_are_told_at_their_depth_and_asked_after_all(void **state)
{
    struct state *s = *state;

    for (uint64_t seed = 1; seed <= N_SEEDS; seed++) {
        const struct tkv_planted_options o = options(s, seed);
        size_t n_of[TKV_N_TASKS][TKV_N_DEPTHS] = {{0}}, first = N_TOKENS;
        struct tkv_planted p;
        struct tkv_reason why = {""};
        struct asked a = {0};

        if (tkv_planted_facts(&p, s->tokenizer, &o, &why))
            fail_msg("seed %d: %s", (int)seed, why.text);
        assert_int_equal(p.ids.n, N_TOKENS + 1);
        while (next_asked(&p, &a)) {
            const size_t at = told_at(&p, &a);

            first = a.from < first ? a.from : first;
            n_of[a.mark.task][a.mark.depth]++;
            assert_true(at < first);
            /* numbers are told once; a word may be the answer of two */
            if (a.mark.task == TKV_TASK_NUMBER)
                assert_in_range(at, first * a.mark.depth / 5 * 4 / 5,
                                first * (a.mark.depth + 1u) / 5 + 60);
        }
        for (unsigned d = 0; d < TKV_N_DEPTHS; d++) {
            assert_int_equal(n_of[TKV_TASK_NUMBER][d], 1);
            assert_int_equal(n_of[TKV_TASK_WORD][d], 1);
            assert_int_equal(n_of[TKV_TASK_UNSEEN][d], 1);
        }
        tkv_planted_deinit(&p);
    }
}

static void again(const struct state *s, uint64_t seed, unsigned *depths)
{
    const struct tkv_planted_options o = options(s, seed);
    struct tkv_planted p;
    struct tkv_reason why = {""};
    struct asked a = {0};
    size_t n_pairs = 0, n_repeated = 0;

    if (tkv_planted_again(&p, s->tokenizer, &o, &why))
        fail_msg("seed %d: %s", (int)seed, why.text);
    while (next_asked(&p, &a)) {
        const size_t at = told_at(&p, &a);

        assert_true(at < a.from);
        n_pairs += a.mark.task == TKV_TASK_LIST;
        if (a.mark.task != TKV_TASK_REPEAT)
            continue;
        n_repeated += a.to - a.from;
        *depths |= 1u << a.mark.depth;
        assert_in_range(at, N_TOKENS * a.mark.depth * 3 / 4 / 5,
                        N_TOKENS * (a.mark.depth + 1u) / 5);
    }
    assert_int_equal(n_pairs, 6);
    assert_int_equal(n_repeated, N_TOKENS / 16 - 16);
    assert_int_equal(p.ids.n, N_TOKENS + 1);
    tkv_planted_deinit(&p);
}

/* At every depth: a policy that keeps the beginning must not have an easy life. */
static void lists_and_passages_come_again(void **state)
{
    struct state *s = *state;
    unsigned depths = 0;

    for (size_t i = 0; i < N_TOKENS; i++)
        s->prose[i] = (int32_t)(1000 + i); /* so that a passage has one place */
    for (uint64_t seed = 1; seed <= N_SEEDS; seed++)
        again(s, seed, &depths);
    assert_int_equal(depths, (1u << TKV_N_DEPTHS) - 1);
}

static void a_needle_is_alone(void **state)
{
    struct state *s = *state;

    for (unsigned depth = 0; depth < TKV_N_DEPTHS; depth++) {
        const struct tkv_planted_options o = options(s, 9);
        struct tkv_planted p;
        struct tkv_reason why = {""};
        struct asked a = {0};
        size_t at;

        if (tkv_planted_needle(&p, s->tokenizer, &o, depth, &why))
            fail_msg("%s", why.text);
        assert_true(next_asked(&p, &a));
        at = told_at(&p, &a);
        assert_in_range(at, N_TOKENS * depth / 5 - (depth ? 30 : 0),
                        N_TOKENS * (depth + 1) / 5 + 30);
        assert_int_equal(a.mark.task, TKV_TASK_NEEDLE);
        assert_false(next_asked(&p, &a));
        tkv_planted_deinit(&p);
    }
}

static void a_seed_is_a_text(void **state)
{
    struct state *s = *state;
    const struct tkv_planted_options one = options(s, 5), other = options(s, 6);
    struct tkv_planted a, b, c;
    struct tkv_reason why;

    assert_int_equal(tkv_planted_facts(&a, s->tokenizer, &one, &why), 0);
    assert_int_equal(tkv_planted_facts(&b, s->tokenizer, &one, &why), 0);
    assert_int_equal(tkv_planted_facts(&c, s->tokenizer, &other, &why), 0);
    assert_memory_equal(a.ids.ids, b.ids.ids, a.ids.n * sizeof(int32_t));
    assert_memory_equal(a.marks, b.marks, a.ids.n * sizeof(*a.marks));
    assert_memory_not_equal(a.ids.ids, c.ids.ids, a.ids.n * sizeof(int32_t));
    tkv_planted_deinit(&a);
    tkv_planted_deinit(&b);
    tkv_planted_deinit(&c);
}

static void what_does_not_fit_is_said(void **state)
{
    struct state *s = *state;
    struct tkv_planted_options o = options(s, 1);
    struct tkv_planted p;
    struct tkv_reason why;

    o.n_tokens = 500;
    assert_int_equal(tkv_planted_facts(&p, s->tokenizer, &o, &why), -1);
    assert_non_null(strstr(why.text, "a context of 500 tokens, expected at least"));
    tkv_planted_deinit(&p);
    o.n_tokens = N_TOKENS + 1;
    assert_int_equal(tkv_planted_prose(&p, s->tokenizer, &o, &why), -1);
    assert_non_null(strstr(why.text, "1500 tokens of prose, expected at least 1501"));
    tkv_planted_deinit(&p);
}

/* Not tuned to the training: no sentence of an unseen wording is one of the others'. */
static void unseen_wordings_are_unseen(void **state)
{
    (void)state;
    for (const struct tkv_wording *u = tkv_unseen_wordings; u->told; u++) {
        for (const struct tkv_wording *w = tkv_number_wordings; w->told; w++)
            assert_true(strcmp(u->told, w->told) != 0 && strcmp(u->asked, w->asked) != 0);
        for (const struct tkv_wording *w = tkv_word_wordings; w->told; w++)
            assert_true(strcmp(u->told, w->told) != 0 && strcmp(u->asked, w->asked) != 0);
        assert_non_null(strstr(u->told, "%s"));
    }
}

static void spreads_leave_out_what_is_not_measured(void **state)
{
    struct tkv_outcome o = {.n_windows = 4};
    const double values[] = {1, 3, 0, 5};
    struct tkv_spread s;

    (void)state;
    memcpy(o.value[TKV_KL], values, sizeof(values));
    o.value[TKV_KL][2] = (double)__builtin_nanf("");
    s = tkv_outcome_spread(&o, TKV_KL);
    assert_int_equal(s.n, 3);
    assert_true(s.mean == 3 && s.min == 1 && s.max == 5 && s.sd == 2);
    for (size_t i = 0; i < 4; i++)
        o.value[TKV_KL][i] = (double)__builtin_nanf("");
    s = tkv_outcome_spread(&o, TKV_KL);
    assert_true(s.n == 0 && s.mean != s.mean);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(facts_are_told_at_their_depth_and_asked_after_all),
        cmocka_unit_test(a_needle_is_alone),
        cmocka_unit_test(a_seed_is_a_text),
        cmocka_unit_test(what_does_not_fit_is_said),
        cmocka_unit_test(lists_and_passages_come_again),
        cmocka_unit_test(unseen_wordings_are_unseen),
        cmocka_unit_test(spreads_leave_out_what_is_not_measured),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
