/*
 * What the methods without statistics keep: a session of halves against a plain model of it,
 * token by token in double, for every KV head, over several rounds.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "core/half.h"
#include "proto/errors.h"
#include "store/session_priv.h"
#include "tests/session_aid.h"

enum { N = 560, PINNED = 4, RECENT = 32, BUDGET = 150, DIM = 64 };

/* One KV head: the tokens it has beside the pinned ones, cold first, and what they were given. */
struct model {
    int32_t position[N];
    double mass[N];
    double score[N];
    uint32_t n, n_tail;
};

static double as_half(float x)
{
    return (double)tkv_f16_to_f32(tkv_f32_to_f16(x));
}

static double dot(const float *a, const float *b)
{
    double sum = 0;

    for (size_t i = 0; i < DIM; i++)
        sum += (double)a[i] * as_half(b[i]);
    return sum;
}

static const float *key_of(const struct aid *a, const struct aid_tokens *t, int32_t position,
                           uint32_t head)
{
    return t->k + ((size_t)position * a->shape.n_kv_heads + head) * DIM;
}

/* The newest token's queries look at all that is kept. */
static void look(const struct aid *a, const struct aid_tokens *t, struct model *m, uint32_t head,
                 int32_t now)
{
    const uint32_t group = tkv_group(&a->shape);
    double weight[N], sum;

    for (uint32_t g = 0; g < group; g++) {
        const float *q = t->q + ((size_t)now * a->shape.n_q_heads + head * group + g) * DIM;

        sum = 0;
        for (int32_t p = 0; p < PINNED; p++)
            sum += exp(0.125 * dot(q, key_of(a, t, p, head)));
        for (uint32_t i = 0; i < m->n; i++) {
            weight[i] = exp(0.125 * dot(q, key_of(a, t, m->position[i], head)));
            sum += weight[i];
        }
        for (uint32_t i = 0; i < m->n; i++)
            m->mass[i] += weight[i] / sum;
    }
}

static void score_novelty(const struct aid *a, const struct aid_tokens *t, struct model *m,
                          uint32_t head, uint32_t n)
{
    double mean[DIM] = {0};

    for (int pass = 0; pass < 2; pass++)
        for (uint32_t i = 0; i < n; i++) {
            const float *key = key_of(a, t, m->position[i], head);
            double length = 0, cosine = 0;

            for (size_t d = 0; d < DIM; d++)
                length += as_half(key[d]) * as_half(key[d]);
            for (size_t d = 0; d < DIM; d++) {
                const double x = as_half(key[d]) / sqrt(length);

                mean[d] += pass == 0 ? x : 0;
                cosine += mean[d] * x;
            }
            m->score[i] = -cosine;
        }
}

static void score_all(const struct aid *a, const struct aid_tokens *t, struct model *m,
                      uint32_t head, uint32_t n)
{
    if (a->config.method == TKV_METHOD_KEYDIFF)
        score_novelty(a, t, m, head, n);
    for (uint32_t i = 0; i < n; i++) {
        if (a->config.method == TKV_METHOD_STREAMING)
            m->score[i] = m->position[i];
        if (a->config.method == TKV_METHOD_H2O)
            m->score[i] = m->mass[i];
        if (a->config.method == TKV_METHOD_SNAPKV) {
            double sum = 0, count = 0;

            for (uint32_t j = i < 2 ? 0 : i - 2; j <= i + 2 && j < n; j++, count++)
                sum += m->mass[j];
            m->score[i] = sum / count;
        }
    }
}

static uint32_t fold_of(const struct aid *a)
{
    return a->config.beta_tokens < 64 ? a->config.beta_tokens : 64;
}

/* Will the next fold bring a round? Small ones always do. */
static bool is_near(const struct aid *a, const struct model *m)
{
    return fold_of(a) < 64 ||
           m->n - m->n_tail + 64 + PINNED + RECENT + 64 > BUDGET + a->config.beta_tokens;
}

/* The worst candidates go, one after the other. */
static void hold_round(const struct aid *a, const struct aid_tokens *t, struct model *m,
                       uint32_t head)
{
    const uint32_t n = m->n - RECENT;
    uint32_t kept = 0;
    bool gone[N] = {false};

    score_all(a, t, m, head, n);
    for (uint32_t left = n; left > BUDGET - PINNED - RECENT; left--) {
        uint32_t worst = 0;

        while (gone[worst])
            worst++;
        for (uint32_t i = worst + 1; i < n; i++)
            if (!gone[i] && m->score[i] <= m->score[worst])
                worst = i;
        gone[worst] = true;
    }
    for (uint32_t i = 0; i < m->n; i++) {
        if (gone[i])
            continue;
        m->position[kept] = m->position[i];
        m->mass[kept++] = a->config.method == TKV_METHOD_SNAPKV ? 0 : m->mass[i];
    }
    m->n = kept;
}

static void run_model(const struct aid *a, const struct aid_tokens *t, struct model *m,
                      uint32_t head)
{
    const uint32_t most = RECENT + fold_of(a);

    memset(m, 0, sizeof(*m));
    for (int32_t now = PINNED; now < N; now++) {
        if (m->n_tail == most) {
            if (is_near(a, m))
                hold_round(a, t, m, head);
            m->n_tail = RECENT;
        }
        m->position[m->n] = now;
        m->mass[m->n++] = 0;
        m->n_tail++;
        if (a->config.method == TKV_METHOD_H2O ||
            (a->config.method == TKV_METHOD_SNAPKV && m->n_tail > most - 32 && is_near(a, m)))
            look(a, t, m, head, now);
    }
}

static void open_method(struct aid *a, enum tkv_method method, uint32_t beta)
{
    aid_init(a, "f16");
    a->config.method = method;
    a->config.beta_tokens = beta;
    for (uint32_t i = 0; i < AID_MAX_LAYERS; i++)
        a->layers[i].budget_tokens = BUDGET;
    assert_int_equal(aid_open(a), 0);
}

static void check_rounds(enum tkv_method method, uint32_t beta, uint32_t chunk)
{
    int32_t kept[N];
    struct model m;
    struct aid_tokens t;
    struct aid a;

    open_method(&a, method, beta);
    t = aid_tokens(&a, N, 31);
    for (uint32_t at = 0; at < N; at += chunk)
        assert_int_equal(aid_step(&a, 1, &t, at, N - at < chunk ? N - at : chunk), 0);
    for (uint32_t h = 0; h < a.shape.n_kv_heads; h++) {
        run_model(&a, &t, &m, h);
        assert_int_equal(aid_kept(&a, 1, h, kept, N), PINNED + m.n);
        for (uint32_t i = 0; i < m.n; i++)
            assert_int_equal(kept[PINNED + i], m.position[i]);
    }
    free(t.k);
    aid_close(&a);
}

/* A round with every fold, with every third, and with folds of fewer tokens. */
static void check_method(enum tkv_method method, uint32_t chunk)
{
    check_rounds(method, 64, chunk);
    check_rounds(method, 192, chunk);
    check_rounds(method, 40, chunk);
    check_rounds(method, 8, chunk);
}

static void streaming_keeps_a_window(void **state)
{
    (void)state;
    check_method(TKV_METHOD_STREAMING, 1);
    check_method(TKV_METHOD_STREAMING, 150);
}

static void h2o_keeps_what_was_looked_at(void **state)
{
    (void)state;
    check_method(TKV_METHOD_H2O, 1);
    check_method(TKV_METHOD_H2O, 37);
    check_method(TKV_METHOD_H2O, N);
}

static void snapkv_keeps_what_was_looked_at_last(void **state)
{
    (void)state;
    check_method(TKV_METHOD_SNAPKV, 1);
    check_method(TKV_METHOD_SNAPKV, 37);
    check_method(TKV_METHOD_SNAPKV, N);
}

static void keydiff_keeps_what_is_new(void **state)
{
    (void)state;
    check_method(TKV_METHOD_KEYDIFF, 1);
    check_method(TKV_METHOD_KEYDIFF, 64);
}

/* A fork goes on with its own copy of what was seen, and both keep what one session would. */
static void forks_remember_what_was_looked_at(void **state)
{
    struct tkv_session *sessions[2];
    int32_t kept[N];
    struct model m;
    struct aid_tokens t;
    struct aid a;

    (void)state;
    open_method(&a, TKV_METHOD_H2O, 128);
    t = aid_tokens(&a, N, 31);
    assert_int_equal(aid_step(&a, 0, &t, 0, 250), 0);
    sessions[0] = a.session;
    assert_int_equal(tkv_session_fork(&sessions[1], a.session, &a.why), 0);
    run_model(&a, &t, &m, 1);
    for (size_t i = 0; i < 2; i++) {
        a.session = sessions[i];
        assert_int_equal(aid_step(&a, 0, &t, 250, N - 250), 0);
        assert_int_equal(aid_kept(&a, 0, 1, kept, N), PINNED + m.n);
        for (uint32_t j = 0; j < m.n; j++)
            assert_int_equal(kept[PINNED + j], m.position[j]);
    }
    tkv_session_destroy(&sessions[0]);
    free(t.k);
    aid_close(&a);
}

static void a_common_set_is_refused(void **state)
{
    struct aid a;

    (void)state;
    aid_init(&a, "tq4");
    a.config.method = TKV_METHOD_H2O;
    a.config.eviction_mode = TKV_UNION;
    a.layers[0].budget_tokens = a.layers[1].budget_tokens = BUDGET;
    assert_int_equal(aid_open(&a), TRIKV_E_ARGUMENT);
    assert_non_null(strstr(a.why.text, "eviction_mode is union"));
    a.config.eviction_mode = TKV_PER_LAYER_PERHEAD;
    a.layers[1].budget_tokens = PINNED + RECENT;
    assert_int_equal(aid_open(&a), TRIKV_E_ARGUMENT);
    assert_non_null(strstr(a.why.text, "layer 1: budget is 36"));
    aid_close(&a);
}

/* With codes instead of halves most of the choice is the same. */
static void codes_choose_nearly_the_same(void **state)
{
    static const enum tkv_method methods[] = {TKV_METHOD_H2O, TKV_METHOD_SNAPKV,
                                              TKV_METHOD_KEYDIFF};

    (void)state;
    for (size_t i = 0; i < 3; i++) {
        int32_t kept[N];
        uint32_t n, both = 0;
        struct model m;
        struct aid_tokens t;
        struct aid a;

        aid_init(&a, "tq4");
        a.config.method = methods[i];
        a.layers[0].budget_tokens = a.layers[1].budget_tokens = BUDGET;
        assert_int_equal(aid_open(&a), 0);
        t = aid_tokens(&a, N, 31);
        assert_int_equal(aid_step(&a, 0, &t, 0, N), 0);
        run_model(&a, &t, &m, 0);
        n = aid_kept(&a, 0, 0, kept, N);
        for (uint32_t j = 0; j < m.n; j++)
            for (uint32_t k = 0; k < n; k++)
                both += kept[k] == m.position[j];
        assert_in_range(both, m.n * 9 / 10, m.n);
        free(t.k);
        aid_close(&a);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(streaming_keeps_a_window),
        cmocka_unit_test(h2o_keeps_what_was_looked_at),
        cmocka_unit_test(snapkv_keeps_what_was_looked_at_last),
        cmocka_unit_test(keydiff_keeps_what_is_new),
        cmocka_unit_test(forks_remember_what_was_looked_at),
        cmocka_unit_test(a_common_set_is_refused),
        cmocka_unit_test(codes_choose_nearly_the_same),
    };

    return cmocka_run_group_tests_name("session methods", tests, NULL, NULL);
}
