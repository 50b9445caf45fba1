/*
 * Calibration through the real daemon: OBSERVE and CALIBRATE against the definition, before and
 * after RoPE, in every element type; what is refused; and that memory is counted and given back.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/half.h"
#include "core/rope.h"
#include "daemon/diag.h"
#include "daemon/profile.h"
#include "tests/daemon_aid.h"
#include "tests/rng.h"
#include "tests/service.h"
#include "tests/wire.h"
#include "tools/attention_daemon.h"
#include "tools/calibration.h"
#include "tools/runner.h"

enum { LAYERS = 2, HEADS = 4, DIM = 32, ROTARY = 24, BANDS = DIM / 2, TOKENS = 150, SEED = 61 };
enum { ROW = HEADS * DIM, N_STATISTICS = LAYERS * HEADS * 3 * BANDS };

static const struct trikv_layer layer = {.n_q_heads = HEADS,
                                         .n_kv_heads = 2,
                                         .head_dim_k = DIM,
                                         .head_dim_v = DIM};

/* YaRN, so that attention scaling must be taken out; partly rotary. */
static const struct trikv_rope rope = {.theta = 1e5,
                                       .rotary_dim = ROTARY,
                                       .layout = "half",
                                       .scaling = "yarn",
                                       .factor = 4,
                                       .original_context = 4096};

static struct trikv_session *open_session(struct trikv_client *c, const struct trikv_rope *r)
{
    struct trikv_session_options o = TRIKV_SESSION_OPTIONS_INIT;
    struct trikv_session *s;

    o.n_layers = LAYERS;
    o.layers = &layer;
    o.same_layers = 1;
    o.rope = r;
    o.method = "none";
    if (trikv_open(c, &o, &s))
        fail_msg("open: %s", trikv_last_error(c));
    return s;
}

/* Queries of a layer before and after RoPE, and their positions. */
struct queries {
    float before[TOKENS * ROW];
    float after[TOKENS * ROW];
    int32_t positions[TOKENS];
};

static void draw(struct queries *q, uint32_t l)
{
    const struct tkv_rope_params p = {.head_dim = DIM,
                                      .rotary_dim = ROTARY,
                                      .scaling = TKV_ROPE_YARN,
                                      .theta = 1e5,
                                      .factor = 4,
                                      .original_context = 4096};
    struct rng rng = {SEED + l};
    struct tkv_rope r;
    float cs[DIM];

    assert_null(tkv_rope_init(&r, &p));
    for (size_t t = 0; t < TOKENS; t++) {
        q->positions[t] = (int32_t)(t * 37 + 5); /* with gaps: only the position counts */
        tkv_rope_angles(&r, q->positions[t], cs);
        for (size_t h = 0; h < HEADS; h++) {
            float *x = q->before + (t * HEADS + h) * DIM;

            for (size_t i = 0; i < DIM; i++)
                x[i] = rng_gauss(&rng) + (float)(h + l);
            tkv_rope_turn(&r, cs, x, q->after + (t * HEADS + h) * DIM);
        }
    }
}

/* The definition, in double, from queries before RoPE. */
static void define(double *means)
{
    static struct queries q;

    for (uint32_t l = 0; l < LAYERS; l++) {
        draw(&q, l);
        for (size_t h = 0; h < HEADS; h++) {
            double *m = means + (l * HEADS + h) * 3 * BANDS;

            for (size_t f = 0; f < BANDS; f++) {
                const size_t re = f < ROTARY / 2 ? f : 2 * f;
                const size_t im = f < ROTARY / 2 ? f + ROTARY / 2 : 2 * f + 1;

                m[f] = m[BANDS + f] = m[2 * BANDS + f] = 0;
                for (size_t t = 0; t < TOKENS; t++) {
                    const float *x = q.before + (t * HEADS + h) * DIM;

                    m[f] += (double)x[re] / TOKENS;
                    m[BANDS + f] += (double)x[im] / TOKENS;
                    m[2 * BANDS + f] += hypot((double)x[re], (double)x[im]) / TOKENS;
                }
            }
        }
    }
}

/* Feed one layer in requests of uneven length. */
static void observe(struct trikv_client *c, struct trikv_session *s, uint32_t l,
                    enum trikv_dtype type, bool before)
{
    static struct queries q;
    static uint16_t halves[TOKENS * ROW];
    const float *x;

    draw(&q, l);
    x = before ? q.before : q.after;
    for (size_t i = 0; i < TOKENS * ROW; i++)
        halves[i] = type == TRIKV_F16 ? tkv_f32_to_f16(x[i]) : tkv_f32_to_bf16(x[i]);
    for (size_t at = 0, n = 1; at<TOKENS; at += n, n = at + 97> TOKENS ? TOKENS - at : 97) {
        const struct trikv_queries request = {
            .size = sizeof(request),
            .layer = l,
            .n_tokens = (uint32_t)n,
            .dtype = type,
            .positions = before ? NULL : q.positions + at,
            .q = type == TRIKV_F32 ? (const void *)(x + at * ROW) : halves + at * ROW,
            .before_rope = before,
        };

        if (trikv_observe(s, &request))
            fail_msg("observe: %s", trikv_last_error(c));
    }
}

static struct tkv_profile *calibrate(struct trikv_client *c, struct trikv_session *s)
{
    const struct trikv_calibration_options o = {
        .size = sizeof(o), .name = "live", .fingerprint = "xxh3:0123456789abcdef"};
    struct trikv_calibration got;
    struct tkv_diag diag = {0};
    struct tkv_profile *p;

    if (trikv_calibrate(s, &o, &got))
        fail_msg("calibrate: %s", trikv_last_error(c));
    assert_int_equal(got.n_tokens, TOKENS);
    p = tkv_profile_parse("live.yaml", "/nonexistent", got.yaml, got.yaml_bytes, &diag);
    for (size_t i = 0; i < diag.n; i++)
        print_error("%s\n", diag.line[i]);
    assert_non_null(p);
    trikv_calibration_release(&got);
    assert_null(got.yaml);
    return p;
}

static void test_definition(void **state)
{
    static const struct {
        enum trikv_dtype type;
        bool before;
        size_t staging_bytes;
        double close; /* what rounding to the type leaves */
    } cases[] = {
        {TRIKV_F32, true, 0, 1e-6},        {TRIKV_F32, false, 0, 1e-5},
        {TRIKV_F32, false, 1 << 20, 1e-5}, {TRIKV_F16, false, 0, 1e-3},
        {TRIKV_BF16, true, 1 << 20, 1e-2},
    };
    static double want[N_STATISTICS];

    (void)state;
    define(want);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct trikv_client *c = service_connect(cases[i].staging_bytes);
        struct trikv_session *s = open_session(c, &rope);
        struct tkv_profile *p;
        double worst = 0;

        for (uint32_t l = 0; l < LAYERS; l++)
            observe(c, s, l, cases[i].type, cases[i].before);
        p = calibrate(c, s);
        assert_int_equal(p->n_statistics, N_STATISTICS);
        assert_string_equal(p->architecture, "unknown");
        assert_int_equal(p->rope_params.scaling, TKV_ROPE_YARN);
        for (size_t k = 0; k < N_STATISTICS; k++) {
            const double off = fabs((double)p->statistics[k] - want[k]);

            if (!(off <=
                  worst)) /* also if it is not a number; gcc 12 for arm64 dies of fmax here */
                worst = off;
        }
        if (!(worst <= cases[i].close))
            fail_msg("case %zu: off by %g", i, worst);
        tkv_profile_unref(&p);
        trikv_disconnect(&c);
    }
}

static void refused(struct trikv_client *c, int e, int want, const char *text)
{
    if (e != want || !strstr(trikv_last_error(c), text))
        fail_msg("want error %d with \"%s\", got %d: %s", want, text, e, trikv_last_error(c));
}

static void test_observe_refused(void **state)
{
    static struct queries q;
    struct trikv_client *c = service_connect(0);
    struct trikv_session *s = open_session(c, NULL);
    struct trikv_queries r = {
        .size = sizeof(r), .n_tokens = 2, .positions = q.positions, .q = q.after};
    float saved;

    (void)state;
    draw(&q, 0);
    refused(c, trikv_observe(s, &r), TRIKV_E_STATE, "rope");
    trikv_close(&s);
    s = open_session(c, &rope);
    r.positions = NULL;
    refused(c, trikv_observe(s, &r), TRIKV_E_ARGUMENT, "positions");
    r.positions = q.positions;
    q.positions[1] = -1;
    refused(c, trikv_observe(s, &r), TRIKV_E_POSITION, "positions[1] is -1");
    q.positions[1] = 42;
    saved = q.after[ROW + DIM + 3];
    q.after[ROW + DIM + 3] = NAN;
    refused(c, trikv_observe(s, &r), TRIKV_E_VALUE, "Q[token 1][head 1]");
    q.after[ROW + DIM + 3] = saved;
    r.layer = LAYERS;
    refused(c, trikv_observe(s, &r), TRIKV_E_ARGUMENT, "layer 2");
    r.layer = 0;
    r.q = NULL;
    refused(c, trikv_observe(s, &r), TRIKV_E_ARGUMENT, "q is NULL");
    trikv_disconnect(&c);
}

/* What was refused has left nothing: the statistics are those of what was taken. */
static void test_calibrate_refused(void **state)
{
    static const struct {
        struct trikv_calibration_options o;
        const char *text;
    } wrong[] = {
        {{.name = "../live"}, "name"},
        {{.name = ""}, "name"},
        {{.name = "Live"}, "name"},
        {{.name = "a\nb: c"}, "name"},
        {{.name = "live", .architecture = "x\ny"}, "architecture"},
        {{.name = "live", .architecture = "a\"b"}, "architecture"},
        {{.name = "live", .fingerprint = "xxh3:12"}, "fingerprint"},
    };
    static float infinite[2 * ROW];
    struct trikv_client *c = service_connect(0);
    struct trikv_session *s = open_session(c, &rope);
    struct trikv_calibration_options o = {.size = sizeof(o), .name = "live"};
    const struct trikv_queries bad = {
        .size = sizeof(bad), .n_tokens = 2, .q = infinite, .before_rope = 1};
    struct trikv_calibration got;
    struct tkv_profile *p;
    static double want[N_STATISTICS];

    (void)state;
    infinite[2 * ROW - 1] = INFINITY;
    infinite[0] = 1000;
    refused(c, trikv_calibrate(s, &o, &got), TRIKV_E_STATE, "nothing was observed");
    observe(c, s, 0, TRIKV_F32, true);
    refused(c, trikv_calibrate(s, &o, &got), TRIKV_E_STATE, "layer 1");
    refused(c, trikv_observe(s, &bad), TRIKV_E_VALUE, "finite");
    observe(c, s, 1, TRIKV_F32, true);
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        o = wrong[i].o;
        o.size = sizeof(o);
        refused(c, trikv_calibrate(s, &o, &got), TRIKV_E_ARGUMENT, wrong[i].text);
        assert_null(got.yaml);
    }
    p = calibrate(c, s);
    define(want);
    for (size_t k = 0; k < N_STATISTICS; k++)
        assert_true(fabs((double)p->statistics[k] - want[k]) < 1e-6);
    tkv_profile_unref(&p);
    trikv_disconnect(&c);
}

/* A fork knows the rope of its parent, and begins without sums. */
static void test_fork(void **state)
{
    const struct trikv_calibration_options o = {.size = sizeof(o), .name = "live"};
    struct trikv_client *c = service_connect(0);
    struct trikv_session *s = open_session(c, &rope), *child;
    struct trikv_calibration got;
    struct tkv_profile *p;

    (void)state;
    observe(c, s, 0, TRIKV_F32, false);
    if (trikv_fork(s, NULL, &child))
        fail_msg("fork: %s", trikv_last_error(c));
    refused(c, trikv_calibrate(child, &o, &got), TRIKV_E_STATE, "nothing was observed");
    for (uint32_t l = 0; l < LAYERS; l++)
        observe(c, child, l, TRIKV_F32, false);
    p = calibrate(c, child);
    tkv_profile_unref(&p);
    trikv_disconnect(&c);
}

/* Layers that differ have no common profile. */
static void test_unlike_layers(void **state)
{
    static float q[4 * 32];
    const struct trikv_queries r = {.size = sizeof(r), .n_tokens = 1, .q = q, .before_rope = 1};
    struct trikv_session_options o = service_options("tq4");
    struct trikv_client *c = service_connect(0);
    struct trikv_session *s;

    (void)state;
    o.rope = &rope;
    assert_int_equal(trikv_open(c, &o, &s), 0);
    refused(c, trikv_observe(s, &r), TRIKV_E_GEOMETRY, "layer 1");
    trikv_disconnect(&c);
}

static void test_rope_refused(void **state)
{
    struct trikv_client *c = service_connect(0);
    struct trikv_session_options o = TRIKV_SESSION_OPTIONS_INIT;
    struct trikv_rope r = rope;
    struct trikv_session *s;

    (void)state;
    o.n_layers = 1;
    o.layers = &layer;
    o.method = "none";
    o.rope = &r;
    r.theta = 0;
    refused(c, trikv_open(c, &o, &s), TRIKV_E_ARGUMENT, "theta");
    r = rope;
    r.rotary_dim = DIM + 2;
    refused(c, trikv_open(c, &o, &s), TRIKV_E_ARGUMENT, "rotary_dim");
    r = rope;
    r.scaling = "dynamic";
    refused(c, trikv_open(c, &o, &s), TRIKV_E_ARGUMENT, "rope.scaling");
    r = rope;
    r.original_context = 0;
    refused(c, trikv_open(c, &o, &s), TRIKV_E_ARGUMENT, "original_context");
    trikv_disconnect(&c);
}

/*
 * A model runs once, its cache in the daemon: the hook that trikv-calibrate uses sees its
 * queries before RoPE, the daemon sees them after. Both must make the same profile.
 */
static void test_live_equals_tool(void **state)
{
    char folder[] = "/tmp/trikv-live-XXXXXX", path[64], model[512];
    struct tkv_remote_options o = {.socket = service_socket(),
                                   .chunk_tokens = 64,
                                   .label = "live",
                                   .observe = true,
                                   .recent_tokens = -1,
                                   .pinned_tokens = -1,
                                   .normalize_scores = -1};
    struct tkv_reason why = {""};
    struct tkv_engine e = {0};
    struct tkv_run run = {.engine = &e, .chunk_tokens = 64};
    struct tkv_remote *remote = NULL;
    struct tkv_calibration c;
    struct tkv_profile *p;
    struct tkv_diag diag = {0};
    struct rng rng = {SEED};
    int32_t ids[200];
    uint64_t n_tokens = 0;
    double worst = 0;
    float *means;

    (void)state;
    assert_non_null(mkdtemp(folder));
    snprintf(path, sizeof(path), "%s/live.yaml", folder);
    if (tkv_engine_default_path(model, sizeof(model), &why) ||
        tkv_engine_init(&e, model, 2, 64, &why) ||
        tkv_calibration_init(&c, &e.model->config, NULL, &why) ||
        tkv_remote_create(&remote, &e.model->config, &o, &why))
        fail_msg("%s", why.text);
    for (size_t i = 0; i < 200; i++)
        ids[i] = (int32_t)rng_below(&rng, e.model->config.n_vocab);
    e.model->hook = tkv_calibration_hook(&c);
    run.attention = tkv_remote_attention(remote);
    if (tkv_run_feed(&run, ids, 200, &why) ||
        tkv_remote_calibrate(remote, &e.model->config, path, &n_tokens, &why))
        fail_msg("%s", why.text);
    assert_int_equal(n_tokens, 200);
    p = tkv_profile_load(path, &diag);
    assert_non_null(p);
    assert_int_equal(p->n_statistics, tkv_calibration_n_floats(&c));
    assert_string_equal(p->architecture, e.model->config.architecture);
    means = calloc(p->n_statistics, sizeof(*means));
    assert_non_null(means);
    tkv_calibration_means(&c, means);
    for (size_t i = 0; i < p->n_statistics; i++)
        worst = fmax(worst, fabs((double)p->statistics[i] - (double)means[i]));
    print_message("live against tool: %zu numbers, at most %.1e apart\n", p->n_statistics, worst);
    assert_true(worst < 1e-5);
    free(means);
    tkv_profile_unref(&p);
    tkv_calibration_deinit(&c);
    tkv_remote_destroy(&remote);
    tkv_engine_deinit(&e);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(rmdir(folder), 0);
}

/* Sums are counted in the memory cap and given back with the session. */
static void test_memory(void **state)
{
    const size_t sums_bytes = N_STATISTICS * sizeof(double);
    const int fd = wire_connect_hello(service_socket());
    struct trikv_client *c = service_connect(0);
    struct trikv_session *s = open_session(c, &rope);
    struct wire_daemon_stats before, with, after;

    (void)state;
    wire_daemon_stats(fd, &before);
    observe(c, s, 0, TRIKV_F32, true);
    wire_daemon_stats(fd, &with);
    assert_true(with.memory_used_bytes >= before.memory_used_bytes + sums_bytes);
    trikv_disconnect(&c);
    for (int i = 0; i < 100; i++) {
        wire_daemon_stats(fd, &after);
        if (after.n_sessions == 0)
            break;
        sleep_ms(20);
    }
    assert_int_equal(after.n_sessions, 0);
    assert_true(after.memory_used_bytes < before.memory_used_bytes);
    close(fd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_definition),
        cmocka_unit_test(test_observe_refused),
        cmocka_unit_test(test_calibrate_refused),
        cmocka_unit_test(test_unlike_layers),
        cmocka_unit_test(test_rope_refused),
        cmocka_unit_test(test_live_equals_tool),
        cmocka_unit_test(test_memory),
        cmocka_unit_test(test_fork),
    };

    return cmocka_run_group_tests(tests, service_start, service_stop);
}
