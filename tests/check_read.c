/* READ: what comes back of a cache, bit by bit where nothing was coded, and which of it is said to be
 * exact; through the store, and through the daemon. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/half.h"
#include "proto/trikv.pb-c.h"
#include "tests/fake_talk.h"
#include "tests/service.h"
#include "tests/session_aid.h"

enum { N = 300, HEADS = 2, DIM64 = 64, ROW = HEADS * DIM64 };

/* Of all heads of layer 0, or of one. */
struct got {
    int32_t positions[N];
    uint16_t k[N * ROW];
    uint16_t v[N * ROW];
    float wide[2 * N * ROW];
};

static int read_into(struct aid *a, struct got *g, struct tkv_read r)
{
    struct tkv_read_bytes b;
    const int e = tkv_session_read_check(a->session, &r, &b, &a->why);

    if (e)
        return e;
    assert_int_equal(b.positions, r.n_tokens * 4);
    assert_int_equal(b.k, r.n_tokens * r.n_heads * DIM64 * tkv_dtype_bytes(r.dtype));
    r.positions = g->positions;
    r.k = r.dtype == TKV_F16 ? (void *)g->k : g->wide;
    r.v = r.dtype == TKV_F16 ? (void *)g->v : g->wide + N * ROW;
    tkv_session_read(a->session, &r);
    return 0;
}

static struct tkv_read all_heads(uint64_t first, uint32_t n)
{
    return (struct tkv_read){.n_heads = HEADS, .first = first, .n_tokens = n, .dtype = TKV_F16};
}

/* Halves of every kind that may be stored: the sign of zero, subnormals, the largest. */
static void special_halves(uint16_t *x, size_t n)
{
    struct rng rng = {.state = 5};

    for (size_t i = 0; i < n; i++) {
        const uint16_t bits = (uint16_t)rng_next(&rng);

        x[i] = (bits & 0x7c00) == 0x7c00 ? (uint16_t)(bits & 0x83ff) : bits;
    }
    x[0] = 0x8000;
    x[1] = 0xfbff;
    x[2] = 0x0001;
}

static void halves_come_back_as_they_were(void **state)
{
    uint16_t *k = malloc(N * ROW * sizeof(*k)), *v = malloc(N * ROW * sizeof(*v));
    struct got *g = malloc(sizeof(*g));
    struct aid a;

    (void)state;
    special_halves(k, N * ROW);
    special_halves(v, N * ROW);
    memmove(v, v + 7, (N * ROW - 7) * sizeof(*v));
    aid_init(&a, "f16");
    assert_int_equal(aid_open(&a), 0);
    assert_int_equal(
        tkv_session_append(a.session,
                           &(struct tkv_step){.n_tokens = N, .dtype = TKV_F16, .k = k, .v = v},
                           NULL, &a.why),
        0);
    for (uint32_t at = 0; at < N; at += 37) {
        const uint32_t n = at + 91 < N ? 91 : N - at;
        const struct tkv_read r = all_heads(at, n);

        assert_int_equal(read_into(&a, g, r), 0);
        assert_memory_equal(g->k, k + at * ROW, n * ROW * sizeof(*k));
        assert_memory_equal(g->v, v + at * ROW, n * ROW * sizeof(*v));
        for (uint32_t i = 0; i < n; i++)
            assert_int_equal(g->positions[i], at + i);
        assert_true(tkv_session_read_is_exact(a.session, &r));
    }
    aid_close(&a);
    free(g);
    free(k);
    free(v);
}

/* Blocks come back as the codec decodes them, whatever range is asked for; exact is said of the
 * half tiers only. */
static void codes_come_back_decoded(void **state)
{
    struct got *whole = malloc(sizeof(*whole)), *part = malloc(sizeof(*part));
    struct tkv_read r = all_heads(0, N);
    double error = 0, power = 0;
    struct aid_tokens t;
    struct aid a;

    (void)state;
    aid_init(&a, "tq4");
    assert_int_equal(aid_open(&a), 0);
    t = aid_tokens(&a, N, 3);
    assert_int_equal(aid_step(&a, 0, &t, 0, N), 0);
    r.dtype = TKV_F32;
    assert_int_equal(read_into(&a, whole, r), 0);
    for (size_t i = 0; i < N * ROW; i++) {
        error += pow(whole->wide[i] - t.k[i], 2) + pow(whole->wide[N * ROW + i] - t.v[i], 2);
        power += pow(t.k[i], 2) + pow(t.v[i], 2);
    }
    assert_true(error / power < 0.02);
    assert_true(error / power > 0.0005);
    for (uint32_t h = 0; h < HEADS; h++) {
        const struct tkv_read one = {
            .kv_head = h, .n_heads = 1, .first = 60, .n_tokens = 99, .dtype = TKV_F32};

        assert_int_equal(read_into(&a, part, one), 0);
        for (size_t i = 0; i < 99; i++) {
            assert_memory_equal(part->wide + i * DIM64, whole->wide + (60 + i) * ROW + h * DIM64,
                                DIM64 * sizeof(float));
            assert_int_equal(part->positions[i], 60 + i);
        }
    }
    free(t.k);
    free(whole);
    free(part);
    aid_close(&a);
}

static void exact_is_said_of_half_tiers_only(void **state)
{
    struct tkv_layer_stats stats;
    struct aid_tokens t;
    uint64_t cold_end;
    struct aid a;

    (void)state;
    aid_init(&a, "tq4");
    assert_int_equal(aid_open(&a), 0);
    t = aid_tokens(&a, N, 3);
    assert_int_equal(aid_step(&a, 0, &t, 0, N), 0);
    tkv_session_layer_stats(a.session, 0, &stats);
    cold_end = 4 + stats.n_cold_tokens / HEADS;
    for (uint64_t first = 0; first < N; first++) {
        const struct tkv_read one = all_heads(first, 1);
        const bool is_half = first < 4 || first >= cold_end;

        assert_int_equal(tkv_session_read_is_exact(a.session, &one), is_half);
    }
    assert_false(
        tkv_session_read_is_exact(a.session, &(struct tkv_read){.first = 3, .n_tokens = 2}));
    assert_false(tkv_session_read_is_exact(
        a.session, &(struct tkv_read){.first = cold_end - 1, .n_tokens = 9}));
    free(t.k);
    aid_close(&a);
}

static void evicted_heads_are_read_one_by_one(void **state)
{
    struct got *g = malloc(sizeof(*g));
    int32_t kept[N];
    struct aid_tokens t;
    struct aid a;

    (void)state;
    aid_init(&a, "tq3");
    aid_triattention(&a, 120, 11);
    assert_int_equal(aid_open(&a), 0);
    t = aid_tokens(&a, N, 4);
    assert_int_equal(aid_step(&a, 0, &t, 0, N), 0);
    for (uint32_t h = 0; h < HEADS; h++) {
        const uint32_t n = aid_kept(&a, 0, h, kept, N);
        const struct tkv_read r = {.kv_head = h, .n_heads = 1, .n_tokens = n, .dtype = TKV_F16};

        assert_int_equal(tkv_session_head_kept(a.session, 0, h), n);
        assert_int_equal(read_into(&a, g, r), 0);
        assert_memory_equal(g->positions, kept, n * sizeof(*kept));
        for (uint32_t i = n - 5; i < n; i++) /* the newest are halves */
            assert_int_equal(g->k[i * DIM64 + 3],
                             tkv_f32_to_f16(t.k[(size_t)kept[i] * ROW + h * DIM64 + 3]));
    }
    assert_int_equal(read_into(&a, g, all_heads(0, 1)), TRIKV_E_ARGUMENT);
    free(t.k);
    free(g);
    aid_close(&a);
}

static void what_is_not_there_is_refused(void **state)
{
    struct got *g = malloc(sizeof(*g));
    struct aid_tokens t;
    struct aid a;
    const struct {
        struct tkv_read r;
        int error;
    } cases[] = {
        {{.n_heads = 1, .first = 0, .n_tokens = 101}, TRIKV_E_POSITION},
        {{.n_heads = 1, .first = 100, .n_tokens = 1}, TRIKV_E_POSITION},
        {{.n_heads = 1, .first = UINT64_MAX, .n_tokens = 2}, TRIKV_E_POSITION},
        {{.n_heads = 1, .layer = 2, .n_tokens = 1}, TRIKV_E_ARGUMENT},
        {{.n_heads = 1, .kv_head = 2, .n_tokens = 1}, TRIKV_E_ARGUMENT},
        {{.n_heads = 2, .kv_head = 1, .n_tokens = 1}, TRIKV_E_ARGUMENT},
        {{.n_heads = 1, .n_tokens = 1, .dtype = TKV_BF16}, TRIKV_E_ARGUMENT},
        {{.n_heads = 1, .n_tokens = 1, .dtype = (enum tkv_dtype)9}, TRIKV_E_ARGUMENT},
        {{.n_heads = 1, .n_tokens = (1 << 20) + 1}, TRIKV_E_ARGUMENT},
        {{.n_heads = 1, .first = 99, .n_tokens = 1}, 0},
        {{.n_heads = 1, .first = 500, .n_tokens = 0}, 0},
    };

    (void)state;
    aid_init(&a, "tq4");
    assert_int_equal(aid_open(&a), 0);
    t = aid_tokens(&a, 100, 4);
    assert_int_equal(aid_step(&a, 0, &t, 0, 100), 0);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        memset(&a.why, 0, sizeof(a.why));
        assert_int_equal(read_into(&a, g, cases[i].r), cases[i].error);
        assert_int_equal(a.why.text[0] != '\0', cases[i].error != 0);
    }
    free(t.k);
    free(g);
    aid_close(&a);
}

/* ---- through the daemon ----------------------------------------------------------------------- */

static void the_client_gets_its_tokens(void **state)
{
    struct trikv_client *c = service_connect(0);
    struct trikv_session *s = service_open(c, "f16");
    struct service_data d;
    struct trikv_read_result result;
    float *k, *v;
    int32_t positions[SERVICE_TOKENS];
    struct trikv_read r = {.size = sizeof(r), .layer = 1, .kv_head = -1};

    (void)state;
    service_data_init(&d, 1);
    service_feed(c, s, &d, 1, 50);
    assert_int_equal(trikv_read(s, &r, &result), 0);
    assert_int_equal(result.n_kept, SERVICE_TOKENS);
    assert_int_equal(result.n_seen, SERVICE_TOKENS);
    r.n_tokens = SERVICE_TOKENS - 10;
    r.first = 10;
    r.positions = positions;
    r.k = k = calloc(SERVICE_TOKENS * 64, sizeof(*k));
    r.v = v = calloc(SERVICE_TOKENS * 48, sizeof(*v));
    assert_int_equal(trikv_read(s, &r, &result), 0);
    assert_int_equal(result.exact, 1);
    assert_memory_equal(positions, d.positions + 10, r.n_tokens * sizeof(*positions));
    for (size_t i = 0; i < r.n_tokens * 64u; i++)
        assert_true(k[i] == tkv_f16_to_f32(tkv_f32_to_f16(d.k[10 * 64 + i])));
    for (size_t i = 0; i < r.n_tokens * 48u; i++)
        assert_true(v[i] == tkv_f16_to_f32(tkv_f32_to_f16(d.v[10 * 48 + i])));
    r.k = r.positions = NULL;
    memset(v, 0, SERVICE_TOKENS * 48 * sizeof(*v));
    assert_int_equal(trikv_read(s, &r, NULL), 0);
    assert_true(v[17] == tkv_f16_to_f32(tkv_f32_to_f16(d.v[10 * 48 + 17])));
    free(k);
    free(v);
    service_data_deinit(&d);
    trikv_disconnect(&c);
}

static void the_client_is_told_what_is_wrong(void **state)
{
    struct trikv_client *c = service_connect(0);
    struct trikv_session *s = service_open(c, "tq4");
    struct trikv_read r = {.size = sizeof(r), .kv_head = -1, .n_tokens = 1};

    (void)state;
    assert_int_equal(trikv_read(s, &r, NULL), TRIKV_E_POSITION);
    assert_non_null(strstr(trikv_last_error(c), "keeps 0 tokens"));
    r.kv_head = 2;
    assert_int_equal(trikv_read(s, &r, NULL), TRIKV_E_ARGUMENT);
    r.layer = SERVICE_LAYERS;
    assert_int_equal(trikv_read(s, &r, NULL), TRIKV_E_ARGUMENT);
    r = (struct trikv_read){.size = sizeof(r), .kv_head = -1, .dtype = TRIKV_BF16};
    assert_int_equal(trikv_read(s, &r, NULL), TRIKV_E_ARGUMENT);
    r = (struct trikv_read){.size = sizeof(r), .kv_head = -1, .n_tokens = UINT32_MAX};
    assert_int_equal(trikv_read(s, &r, NULL), TRIKV_E_TOO_LARGE);
    r.size = sizeof(r) + 8;
    assert_int_equal(trikv_read(s, &r, NULL), TRIKV_E_ARGUMENT);
    trikv_disconnect(&c);
}

static void a_daemon_that_sends_too_little_is_left(void **state)
{
    Trikv__ReadReply m = TRIKV__READ_REPLY__INIT;
    uint8_t payload[192] = {0};
    int32_t position;
    struct trikv_client *c;
    struct trikv_session *s;

    (void)state;
    fake_setup(state);
    for (size_t n = 0; n <= 192;
         n += 32) { /* 64 + 64 + 32 are right: one token, half its K and V */
        struct fake_raw a = {
            .frame = fake_frame_of(TRIKV_READ | TRIKV_REPLY, 3, &m.base, n ? payload : NULL, n),
            .pass_fd = -1,
            .after_open = true};
        const struct trikv_read r = {
            .size = sizeof(r), .kv_head = -1, .n_tokens = 1, .positions = &position};

        a.n_bytes = a.frame.n_bytes;
        fake_start(&fake, fake_serve_raw, &a);
        fake_open_session(&c, &s, 2000, 0);
        assert_int_equal(trikv_read(s, &r, NULL), n == 160 ? 0 : TRIKV_E_PROTOCOL);
        if (n != 160)
            assert_int_equal(trikv_round(s), TRIKV_E_DISCONNECTED);
        trikv_disconnect(&c);
        fake_join(&fake);
        free(a.frame.bytes);
    }
    fake_teardown(state);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(halves_come_back_as_they_were),
        cmocka_unit_test(codes_come_back_decoded),
        cmocka_unit_test(exact_is_said_of_half_tiers_only),
        cmocka_unit_test(evicted_heads_are_read_one_by_one),
        cmocka_unit_test(what_is_not_there_is_refused),
        cmocka_unit_test(the_client_gets_its_tokens),
        cmocka_unit_test(the_client_is_told_what_is_wrong),
        cmocka_unit_test(a_daemon_that_sends_too_little_is_left),
    };

    return cmocka_run_group_tests_name("read", tests, service_start, service_stop);
}
