/*
 * Long heads are attended to in ranges of tokens: the sum is that of attention over all at once, and
 * the same bits whoever works on which range, in whatever order.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "core/half.h"
#include "daemon/pool.h"
#include "tests/emulated.h"
#include "tests/session_aid.h"

enum { DIM = 16, MAX_QUERIES = 9, PERIOD = 500 };

struct scene {
    struct aid a;
    struct aid_tokens t; /* PERIOD of them, which come again and again */
    uint32_t n;          /* that are appended */
};

/* Runs the last index first, and keeps the largest number of them. */
static void run_backwards(void *ctx, size_t n, void (*fn)(void *arg, size_t i), void *arg)
{
    size_t *most = ctx;

    *most = n > *most ? n : *most;
    while (n-- > 0)
        fn(arg, n);
}

static void begin(struct scene *s, const char *codec, uint32_t n_kv_heads, uint32_t n)
{
    aid_init(&s->a, codec);
    s->a.shape = (struct tkv_shape){4 * n_kv_heads, n_kv_heads, DIM, DIM + 2, 0};
    s->a.config.n_layers = 1;
    s->a.config.beta_tokens = 512;
    assert_int_equal(aid_open(&s->a), 0);
    s->n = n;
    s->t = aid_tokens(&s->a, PERIOD, n);
    for (uint32_t at = 0; at < n; at += PERIOD) {
        const struct tkv_step step = {
            .n_tokens = n - at < PERIOD ? n - at : PERIOD, .k = s->t.k, .v = s->t.v};

        assert_int_equal(tkv_session_append(s->a.session, &step, NULL, &s->a.why), 0);
    }
}

static void end(struct scene *s)
{
    free(s->t.k);
    aid_close(&s->a);
}

/* out, then lse, of n queries at the end of the cache. */
static void attend(struct scene *s, uint32_t n, const struct tkv_exec *exec, float *out)
{
    const struct tkv_shape *shape = &s->a.shape;
    int32_t positions[MAX_QUERIES];
    const struct tkv_step step = {.n_tokens = n,
                                  .positions = positions,
                                  .q = s->t.q,
                                  .out = out,
                                  .lse = out + (size_t)n * shape->n_q_heads * shape->head_dim_v};

    for (uint32_t i = 0; i < n; i++)
        positions[i] = (int32_t)(s->n - n + i);
    assert_int_equal(tkv_session_attend(s->a.session, &step, exec, &s->a.why), 0);
}

static size_t result_floats(const struct scene *s, uint32_t n)
{
    return (size_t)n * s->a.shape.n_q_heads * (s->a.shape.head_dim_v + 1);
}

static double half_of(float x)
{
    return (double)tkv_f16_to_f32(tkv_f32_to_f16(x));
}

/* Attention over the exact halves, in double. */
static void attend_by_hand(const struct scene *s, uint32_t query, uint32_t head, uint32_t n_seen,
                           double *out, double *lse)
{
    const struct tkv_shape *shape = &s->a.shape;
    const uint32_t kv_head = head / 4, dv = shape->head_dim_v;
    const float *q = s->t.q + ((size_t)query * shape->n_q_heads + head) * DIM;
    double sum = 0;

    memset(out, 0, dv * sizeof(*out));
    for (uint32_t t = 0; t < n_seen; t++) {
        const size_t at = (size_t)(t % PERIOD) * shape->n_kv_heads + kv_head;
        double x = 0;

        for (size_t d = 0; d < DIM; d++)
            x += (double)q[d] * half_of(s->t.k[at * DIM + d]);
        x = exp(x * (double)s->a.layers[0].attn.scale);
        sum += x;
        for (size_t d = 0; d < dv; d++)
            out[d] += x * half_of(s->t.v[at * dv + d]);
    }
    for (size_t d = 0; d < dv; d++)
        out[d] /= sum;
    *lse = log(sum);
}

/* Relative L2 error of the first and the last query's heads. */
static double error_of(const struct scene *s, uint32_t n, const float *got)
{
    const uint32_t heads = s->a.shape.n_q_heads, dv = s->a.shape.head_dim_v;
    double want[DIM + 2], lse, error = 0, size = 0;

    for (uint32_t i = 0; i<n; i += n> 1 ? n - 1 : 1)
        for (uint32_t h = 0; h < heads; h++) {
            attend_by_hand(s, i, h, s->n - n + i + 1, want, &lse);
            assert_true(fabs(lse - (double)got[(size_t)n * heads * dv + i * heads + h]) < 0.1);
            for (size_t d = 0; d < dv; d++) {
                const double e = want[d] - (double)got[((size_t)i * heads + h) * dv + d];

                error += e * e;
                size += want[d] * want[d];
            }
        }
    return sqrt(error / size);
}

static void count_nothing(void *ctx)
{
    (void)ctx;
}

/* n queries with no threads, one, two, three, and backwards: right, and all the same. */
static void check_scene(struct scene *s, uint32_t n, double bound, size_t n_pieces)
{
    const size_t bytes = result_floats(s, n) * sizeof(float);
    float *want = malloc(bytes), *got = malloc(bytes);
    size_t most = 1;
    const struct tkv_exec backwards = {run_backwards, &most};

    assert_non_null(want);
    assert_non_null(got);
    attend(s, n, NULL, want);
    if (!(error_of(s, n, want) <= bound))
        fail_msg("%u queries: error %g, bound %g", n, error_of(s, n, want), bound);
    attend(s, n, &backwards, got);
    assert_memory_equal(got, want, bytes);
    assert_int_equal(most, n_pieces);
    for (unsigned n_threads = 1; n_threads <= 3; n_threads++) {
        struct tkv_pool *pool;

        assert_int_equal(tkv_pool_create(&pool, n_threads, count_nothing, NULL), 0);
        for (unsigned turn = 0; turn < 3; turn += emulated_step(2)) {
            memset(got, 0, bytes);
            attend(s, n, tkv_pool_exec(pool), got);
            assert_memory_equal(got, want, bytes);
        }
        tkv_pool_destroy(&pool);
    }
    free(want);
    free(got);
}

static void ranges_add_up(void **state)
{
    struct scene s;

    (void)state;
    begin(&s, "f16", 1, 26000);
    check_scene(&s, 1, 5e-6, 3);
    check_scene(&s, MAX_QUERIES, 5e-6, 3);
    end(&s);
    begin(&s, "tq4", 1, 26000);
    check_scene(&s, 1, 0.3, 3);           /* in the codes */
    check_scene(&s, MAX_QUERIES, 0.3, 3); /* as tiles */
    end(&s);
    begin(&s, "int8", 3, 25500);
    check_scene(&s, 1, 0.03, 6);
    check_scene(&s, MAX_QUERIES, 0.03, 6);
    end(&s);
}

/* A head has ranges by its length alone, and heads by their number. */
static void short_heads_are_whole(void **state)
{
    struct scene s;

    (void)state;
    begin(&s, "tq4", 1, 16000);
    check_scene(&s, 1, 0.3, 1);
    end(&s);
    begin(&s, "tq4", 3, 24000);
    check_scene(&s, 1, 0.3, 3);
    end(&s);
}

/* Appended and attended to at once, while ranges become more: memory was made for that, and the
 * results are those of tokens that come one by one. */
static void ranges_grow_within_a_request(void **state)
{
    const size_t row = (size_t)4 * (DIM + 2);
    struct scene s, one;

    (void)state;
    begin(&s, "tq4", 1, 16300);
    begin(&one, "tq4", 1, 16300);
    assert_int_equal(aid_step(&s.a, 0, &s.t, 0, 400), 0);
    for (uint32_t i = 0; i < 400; i++)
        assert_int_equal(aid_step(&one.a, 0, &one.t, i, 1), 0);
    for (uint32_t i = 0; i < 400; i++)
        for (size_t j = 0; j < row; j++) {
            const size_t at = i * row + j;

            assert_true(fabsf(s.t.out[at] - one.t.out[at]) < 2e-3f);
        }
    end(&s);
    end(&one);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ranges_add_up),
        cmocka_unit_test(short_heads_are_whole),
        cmocka_unit_test(ranges_grow_within_a_request),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
