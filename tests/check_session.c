/* Sessions: tiers, rounds and their promises, against attention done by hand. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/half.h"
#include "proto/errors.h"
#include "store/session_priv.h"
#include "tests/cpu.h"
#include "tests/session_aid.h"
#include "tests/tri_queries.h"

static double as_half(float x)
{
    return (double)tkv_f16_to_f32(tkv_f32_to_f16(x));
}

/* Exact attention of query `row` (token, head) over the given kept positions up to its own. */
static void attend_by_hand(const struct aid *a, const struct aid_tokens *t, uint32_t token,
                           uint32_t q_head, const int32_t *kept, uint32_t n_kept, double *out)
{
    const struct tkv_shape *s = &a->shape;
    const size_t kv_head = q_head / tkv_group(s);
    const float *q = t->q + ((size_t)token * s->n_q_heads + q_head) * s->head_dim_k;
    double sum = 0;

    memset(out, 0, s->head_dim_v * sizeof(*out));
    for (uint32_t i = 0; i < n_kept; i++) {
        const size_t at = (size_t)kept[i] * s->n_kv_heads + kv_head;
        double logit = 0;

        if (kept[i] > (int32_t)token)
            continue;
        for (size_t d = 0; d < s->head_dim_k; d++)
            logit += (double)q[d] * as_half(t->k[at * s->head_dim_k + d]);
        logit = exp(logit * (double)a->layers[0].attn.scale);
        sum += logit;
        for (size_t d = 0; d < s->head_dim_v; d++)
            out[d] += logit * as_half(t->v[at * s->head_dim_v + d]);
    }
    for (size_t d = 0; d < s->head_dim_v; d++)
        out[d] /= sum;
}

/* Relative L2 error of the outputs of a token against attention by hand over what is kept now. */
static double output_error(const struct aid *a, const struct aid_tokens *t, uint32_t layer,
                           uint32_t token)
{
    const struct tkv_shape *s = &a->shape;
    int32_t *kept = malloc(t->n * sizeof(*kept));
    double want[TKV_MAX_HEAD_DIM];
    double error = 0;
    double norm = 0;

    assert_non_null(kept);
    for (uint32_t h = 0; h < s->n_q_heads; h++) {
        const uint32_t n = aid_kept(a, layer, h / tkv_group(s), kept, t->n);
        const float *got = t->out + ((size_t)token * s->n_q_heads + h) * s->head_dim_v;

        attend_by_hand(a, t, token, h, kept, n, want);
        for (size_t d = 0; d < s->head_dim_v; d++) {
            error += (want[d] - (double)got[d]) * (want[d] - (double)got[d]);
            norm += want[d] * want[d];
        }
    }
    free(kept);
    return sqrt(error / norm);
}

/* fmax would pass over a NaN. (And gcc 12 for arm64 cannot compile this loop with it.) */
static double worse(double worst, double difference)
{
    return fabs(difference) <= worst ? worst : isnan(difference) ? INFINITY : fabs(difference);
}

static double worst_difference(const float *x, const float *y, size_t n)
{
    double worst = 0;

    for (size_t i = 0; i < n; i++)
        worst = worse(worst, (double)x[i] - (double)y[i]);
    return worst;
}

static void halves_are_attended_exactly(void **state)
{
    struct aid a;
    struct aid_tokens t;

    (void)state;
    aid_init(&a, "f16");
    assert_int_equal(aid_open(&a), 0);
    t = aid_tokens(&a, 300, 7);
    assert_int_equal(aid_step(&a, 0, &t, 0, 300), 0);
    for (uint32_t token = 0; token < 300; token += 13)
        if (output_error(&a, &t, 0, token) > 2e-6)
            fail_msg("token %u: error %g", token, output_error(&a, &t, 0, token));
    assert_int_equal(tkv_session_n_seen(a.session, 0), 300);
    assert_int_equal(tkv_session_n_kept(a.session, 0), 300);
    assert_int_equal(tkv_session_n_seen(a.session, 1), 0);
    free(t.k);
    aid_close(&a);
}

/* Any even head_dim, keys and values of different ones, prefill and decoding. */
static void every_head_dim_works(void **state)
{
    static const uint32_t dims[] = {16, 48, 64, 80, 96, 128, 192, 256, 512, 18, 130};
    enum { N = sizeof(dims) / sizeof(dims[0]) };

    (void)state;
    for (size_t i = 0; i < N; i++) {
        struct aid a;
        struct aid_tokens t;

        aid_init(&a, "int8");
        a.shape.head_dim_k = dims[i];
        a.shape.head_dim_v = dims[i * 5 % N];
        assert_int_equal(aid_open(&a), 0);
        t = aid_tokens(&a, 300, i);
        assert_int_equal(aid_step(&a, 0, &t, 0, 290), 0);
        for (uint32_t token = 290; token < 300; token++)
            assert_int_equal(aid_step(&a, 0, &t, token, 1), 0);
        for (uint32_t token = 250; token < 300; token += 7)
            if (output_error(&a, &t, 0, token) > 0.03)
                fail_msg("head_dim %u and %u, token %u: error %g", a.shape.head_dim_k,
                         a.shape.head_dim_v, token, output_error(&a, &t, 0, token));
        free(t.k);
        aid_close(&a);
    }
}

/* Coded caches: close to exact, and closer with more bits. */
static void codes_are_close(void **state)
{
    static const struct {
        const char *codec;
        double bound;
    } cases[] = {{"int8", 0.016}, {"tq4", 0.16},   {"tq3.5", 0.23},
                 {"tq3", 0.29},   {"tq2.5", 0.42}, {"tq2", 0.55}};

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct aid a;
        struct aid_tokens t;
        double sum = 0;

        aid_init(&a, cases[i].codec);
        assert_int_equal(aid_open(&a), 0);
        t = aid_tokens(&a, 600, 7);
        assert_int_equal(aid_step(&a, 0, &t, 0, 600), 0);
        for (uint32_t token = 599; token >= 590; token--)
            sum += output_error(&a, &t, 0, token) / 10;
        if (!(sum < cases[i].bound && sum > cases[i].bound / 2))
            fail_msg("%s: error %g, bound %g", cases[i].codec, sum, cases[i].bound);
        free(t.k);
        aid_close(&a);
    }
}

/* The same tokens cut into requests in any way give the same cache and the same attention, but for
 * the rounding of queries and weights where few rows are attended to in codes. */
static void check_cuts(uint32_t beta)
{
    static const uint32_t cuts[] = {1, 7, 32, 64, 100, 600};
    struct aid_tokens whole = {0};
    int32_t kept_whole[600], kept[600];

    for (size_t i = 0; i < sizeof(cuts) / sizeof(cuts[0]); i++) {
        struct aid a;
        struct aid_tokens t;

        aid_init(&a, "tq4");
        aid_triattention(&a, 200, 3);
        a.config.beta_tokens = beta;
        assert_int_equal(aid_open(&a), 0);
        t = aid_tokens(&a, 600, 11);
        for (uint32_t at = 0; at < 600; at += cuts[i])
            assert_int_equal(aid_step(&a, 0, &t, at, at + cuts[i] <= 600 ? cuts[i] : 600 - at), 0);
        assert_int_equal(aid_kept(&a, 0, 1, kept, 600), tkv_session_n_kept(a.session, 0));
        if (i == 0) {
            whole = t;
            memcpy(kept_whole, kept, sizeof(kept));
        } else {
            assert_memory_equal(kept_whole, kept,
                                tkv_session_n_kept(a.session, 0) * sizeof(int32_t));
            if (worst_difference(whole.out, t.out, 600 * 4 * 64) > 5e-4)
                fail_msg("cut %u: outputs differ by %g", cuts[i],
                         worst_difference(whole.out, t.out, 600 * 4 * 64));
            assert_true(worst_difference(whole.lse, t.lse, 600 * 4) < 2e-4);
            free(t.k);
        }
        aid_close(&a);
    }
    free(whole.k);
}

static void cutting_requests_changes_nothing(void **state)
{
    (void)state;
    check_cuts(64);
    check_cuts(130);
    check_cuts(16);
}

static bool contains(const int32_t *kept, uint32_t n, int32_t position)
{
    for (uint32_t i = 0; i < n; i++)
        if (kept[i] == position)
            return true;
    return false;
}

static void check_budget(uint32_t beta)
{
    int32_t kept[1000];
    struct aid a;
    struct aid_tokens t;
    uint32_t most = 0;

    aid_init(&a, "tq4");
    aid_triattention(&a, 200, 5);
    a.config.beta_tokens = beta;
    assert_int_equal(aid_open(&a), 0);
    t = aid_tokens(&a, 1000, 13);
    for (uint32_t at = 0; at < 1000; at++) {
        assert_int_equal(aid_step(&a, 0, &t, at, 1), 0);
        if (tkv_session_n_kept(a.session, 0) > most)
            most = tkv_session_n_kept(a.session, 0);
        if (at % 50 == 0) /* the newest tokens are seen by the attention of their own step */
            assert_true(output_error(&a, &t, 0, at) < 0.3);
    }
    for (uint32_t h = 0; h < 2; h++) {
        const uint32_t n = aid_kept(&a, 0, h, kept, 1000);

        for (int32_t p = 0; p < 4; p++)
            assert_true(contains(kept, n, p));
        for (int32_t p = 1000 - 32; p < 1000; p++)
            assert_true(contains(kept, n, p));
        for (uint32_t i = 1; i < n; i++)
            assert_true(kept[i] > kept[i - 1]);
    }
    /* exactly: none is held too early */
    assert_int_equal(most, 200 + (beta < 64 ? beta : tkv_align(beta, 64)));
    assert_int_equal(tkv_session_round(a.session, NULL, &a.why), 0);
    assert_int_equal(tkv_session_n_kept(a.session, 0), 200);
    free(t.k);
    aid_close(&a);
}

static void a_budget_is_kept(void **state)
{
    (void)state;
    check_budget(64);
    check_budget(130);
    check_budget(20);
    check_budget(1);
}

/* The known trap, where new tokens vanish: refused when the session is opened and later. */
static void a_budget_has_room_for_new_tokens(void **state)
{
    static const uint32_t too_few[] = {1, 4, 35, 36};
    int32_t kept[300];
    struct aid_tokens t;
    struct aid a;

    (void)state;
    for (size_t i = 0; i < sizeof(too_few) / sizeof(too_few[0]); i++) {
        aid_init(&a, "tq4");
        aid_triattention(&a, too_few[i], 5);
        assert_int_equal(aid_open(&a), TRIKV_E_ARGUMENT);
        assert_non_null(strstr(a.why.text, "want at least 37: pinned 4 + recent 32 + 1"));
        aid_close(&a);
    }
    aid_init(&a, "tq4");
    aid_triattention(&a, 37, 5);
    assert_int_equal(aid_open(&a), 0);
    t = aid_tokens(&a, 300, 13);
    assert_int_equal(aid_step(&a, 0, &t, 0, 300), 0);
    for (size_t i = 0; i < sizeof(too_few) / sizeof(too_few[0]); i++) {
        assert_int_equal(tkv_session_set_budget(a.session, too_few[i], &a.why), TRIKV_E_ARGUMENT);
        assert_non_null(strstr(a.why.text, "budget is"));
    }
    assert_int_equal(tkv_session_round(a.session, NULL, &a.why), 0);
    assert_int_equal(aid_kept(&a, 0, 1, kept, 300), 37); /* the newest are there */
    for (int32_t i = 0; i < 32; i++)
        assert_int_equal(kept[5 + i], 268 + i);
    free(t.k);
    aid_close(&a);
}

/* Modes that couple layers: the same set in all layers, and for union in all KV heads. */
static void coupled_layers_keep_the_same(void **state)
{
    static const enum tkv_eviction_mode modes[] = {TKV_PER_LAYER_PERHEAD, TKV_PER_HEAD, TKV_UNION};
    int32_t kept[4][600];

    (void)state;
    for (size_t m = 0; m < 3; m++) {
        struct aid a;
        struct aid_tokens t[2];
        bool same_layers, same_heads;
        size_t bytes;

        aid_init(&a, "f16");
        aid_triattention(&a, 150, 9);
        a.config.eviction_mode = modes[m];
        assert_int_equal(aid_open(&a), 0);
        t[0] = aid_tokens(&a, 600, 17);
        t[1] = aid_tokens(&a, 600, 19);
        for (uint32_t at = 0; at < 600; at += 4)
            for (uint32_t layer = 0; layer < 2; layer++)
                assert_int_equal(aid_step(&a, layer, &t[layer], at, 4), 0);
        for (uint32_t i = 0; i < 4; i++)
            bytes = aid_kept(&a, i / 2, i % 2, kept[i], 600) * sizeof(int32_t);
        same_layers = memcmp(kept[0], kept[2], bytes) == 0 && memcmp(kept[1], kept[3], bytes) == 0;
        same_heads = memcmp(kept[0], kept[1], bytes) == 0;
        assert_int_equal(same_layers, modes[m] != TKV_PER_LAYER_PERHEAD);
        assert_int_equal(same_heads, modes[m] == TKV_UNION);
        free(t[0].k);
        free(t[1].k);
        aid_close(&a);
    }
}

static void layers_out_of_step_are_refused(void **state)
{
    struct aid a;
    struct aid_tokens t;

    (void)state;
    aid_init(&a, "tq4");
    aid_triattention(&a, 150, 9);
    a.config.eviction_mode = TKV_UNION;
    assert_int_equal(aid_open(&a), 0);
    t = aid_tokens(&a, 200, 17);
    assert_int_equal(aid_step(&a, 0, &t, 0, 165), TRIKV_E_STATE);
    assert_int_equal(aid_step(&a, 0, &t, 0, 164),
                     0); /* the tail is full, a fold more would be too much */
    assert_int_equal(aid_step(&a, 0, &t, 164, 1), TRIKV_E_STATE);
    assert_non_null(strstr(a.why.text, "layer 1"));
    assert_int_equal(tkv_session_n_seen(a.session, 0), 164);
    assert_int_equal(aid_step(&a, 1, &t, 0, 164), 0);
    assert_int_equal(aid_step(&a, 0, &t, 164, 65), TRIKV_E_STATE);
    assert_int_equal(aid_step(&a, 0, &t, 164, 36), 0);
    free(t.k);
    aid_close(&a);
}

/* Plain triattention on exact keys must keep what its scores say, norm terms as they are kept. */
static void rounds_follow_the_scores(void **state)
{
    enum { N = 165 }; /* 4 pinned, 96 in the tail, one round at 100, one at 164 */
    int32_t kept[N];
    struct aid a;
    struct aid_tokens t;
    float scores[64], terms[64];
    struct tkv_ruler ruler;
    uint32_t want[64], scratch[64];

    (void)state;
    aid_init(&a, "f16");
    a.shape = (struct tkv_shape){1, 1, 64, 64, 0};
    aid_triattention(&a, 4 + 32 + 20, 21);
    assert_int_equal(aid_open(&a), 0);
    t = aid_tokens(&a, N, 23);
    assert_int_equal(aid_step(&a, 0, &t, 0, 101), 0);
    for (uint32_t i = 0; i < 64; i++) { /* positions 4..67 were the candidates, at n_seen 100 */
        const struct tkv_tri_stats stats = {a.stats, a.stats + 32, a.stats + 64};
        float w[64], u[32], norms[32], key[64];

        for (size_t d = 0; d < 64; d++)
            key[d] = (float)as_half(t.k[(i + 4) * 64 + d]);
        tri_queries(a.session->fold, &a.rope, &stats, 100, w);
        tkv_tri_norm_weights(a.session->fold, &a.rope, &stats, u);
        tkv_band_norms(&a.rope, t.k + (i + 4) * 64, norms);
        scores[i] = a.kn.dot(w, key, 64);
        terms[i] = tkv_tri_norm_term(u, norms, 32);
    }
    ruler = tkv_ruler_lay(terms, 64, 1);
    for (uint32_t i = 0; i < 64; i++) {
        const float term = tkv_ruler_term(&ruler, tkv_ruler_code(&ruler, terms[i]));

        assert_true(fabsf(term - terms[i]) <= ruler.step * 0.501f);
        scores[i] = tkv_tri_score(a.session->fold, &scores[i], term);
    }
    assert_int_equal(tkv_select_top(cpu_kernels(), scores, 64, 20, want, scratch), 20);
    assert_int_equal(aid_kept(&a, 0, 0, kept, N), 4 + 20 + 33);
    for (uint32_t i = 0; i < 20; i++)
        assert_int_equal(kept[4 + i], want[i] + 4);
    free(t.k);
    aid_close(&a);
}

/* Rounds that are asked for after every few tokens leave no short blocks behind but the last. */
static void short_blocks_are_filled(void **state)
{
    struct aid a;
    struct aid_tokens t;

    (void)state;
    aid_init(&a, "tq3");
    aid_triattention(&a, 500, 5);
    assert_int_equal(aid_open(&a), 0);
    t = aid_tokens(&a, 400, 13);
    assert_int_equal(aid_step(&a, 0, &t, 0, 60), 0);
    for (uint32_t at = 60; at < 400; at += 5) {
        assert_int_equal(aid_step(&a, 0, &t, at, 5), 0);
        if (at % 3 == 0)
            assert_int_equal(tkv_session_round(a.session, NULL, &a.why), 0);
        assert_true(a.session->layers[0].heads[1].n_blocks <=
                    (a.session->layers[0].heads[1].n_cold + 63) / 64 + 1);
    }
    assert_int_equal(tkv_session_n_kept(a.session, 0), 400);
    assert_true(output_error(&a, &t, 0, 399) < 0.4);
    free(t.k);
    aid_close(&a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(short_blocks_are_filled),
        cmocka_unit_test(halves_are_attended_exactly),
        cmocka_unit_test(every_head_dim_works),
        cmocka_unit_test(codes_are_close),
        cmocka_unit_test(cutting_requests_changes_nothing),
        cmocka_unit_test(a_budget_is_kept),
        cmocka_unit_test(a_budget_has_room_for_new_tokens),
        cmocka_unit_test(coupled_layers_keep_the_same),
        cmocka_unit_test(layers_out_of_step_are_refused),
        cmocka_unit_test(rounds_follow_the_scores),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
