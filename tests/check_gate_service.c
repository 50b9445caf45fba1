/*
 * The gate as clients and operators see it: a profile sets it, GATE is a dry run, STATS and the metrics of a
 * layer say what was decided, and a session without one has none.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client/trikv.h"
#include "proto/errors.h"
#include "proto/trikv.pb-c.h"
#include "tests/daemon_aid.h"
#include "tests/http_aid.h"
#include "tests/rng.h"
#include "tests/wire.h"

enum { TOKENS = 500, LAYERS = 2 };

static const char profile_text[] = "format: trikv-profile/1\n"
                                   "name: gated\n"
                                   "model:\n"
                                   "  architecture: test\n"
                                   "  fingerprint: none\n"
                                   "  n_layers: 2\n"
                                   "  n_q_heads: 4\n"
                                   "  n_kv_heads: 2\n"
                                   "  head_dim: 64\n"
                                   "policy:\n"
                                   "  tokens:\n"
                                   "    method: streaming\n"
                                   "    budget: 200\n"
                                   "    beta: 64\n"
                                   "    recent: 32\n"
                                   "    pinned: 4\n"
                                   "    allocator: adaptive\n"
                                   "  bits:\n"
                                   "    k: tq4\n"
                                   "    v: tq4\n"
                                   "  layers:\n"
                                   "    - layers: [1]\n"
                                   "      method: snapkv\n"
                                   "  gate:\n"
                                   "    lost_mass: 0.05\n"
                                   "    surplus: 16\n"
                                   "    probes: 12\n";

/* The daemon, with the profile above; metrics on a socket of their own. */
struct watched {
    struct daemon_aid d;
    char directory[64];
    char metrics[96];
    char *text; /* [HTTP_REPLY_BYTES] */
};

static int start(void **state)
{
    struct watched *w = calloc(1, sizeof(*w));
    char path[256], config[512];
    FILE *f;

    assert_non_null(w);
    w->text = malloc(HTTP_REPLY_BYTES);
    snprintf(w->directory, sizeof(w->directory), "/tmp/trikv-test-XXXXXX");
    assert_non_null(mkdtemp(w->directory));
    snprintf(w->metrics, sizeof(w->metrics), "%s/metrics", w->directory);
    snprintf(config, sizeof(config), "workers:\n  threads: 2\nmetrics:\n  socket: %s\n",
             w->metrics);
    daemon_start(&w->d, config);
    snprintf(path, sizeof(path), "%s/gated.yaml", w->d.directory);
    f = fopen(path, "w");
    assert_non_null(f);
    assert_true(fputs(profile_text, f) >= 0);
    assert_int_equal(fclose(f), 0);
    kill(w->d.pid, SIGHUP);
    assert_true(daemon_logged(&w->d, "msg=\"profiles loaded\" n=1 "));
    *state = w;
    return 0;
}

static int stop(void **state)
{
    struct watched *w = *state;
    const int status = daemon_stop(&w->d, SIGTERM);

    assert_int_equal(rmdir(w->directory), 0);
    free(w->text);
    free(w);
    return status;
}

static uint64_t open_gated(int fd, const char *method)
{
    char profile[] = "gated", name[32];
    Trikv__Layer layer = wire_layer(LAYERS), *layers = &layer;
    Trikv__Policy policy = TRIKV__POLICY__INIT;
    Trikv__OpenRequest m = TRIKV__OPEN_REQUEST__INIT;
    uint64_t id;
    int code;

    m.n_layers = 1;
    m.layers = &layers;
    m.profile = profile;
    if (method) {
        snprintf(name, sizeof(name), "%s", method);
        policy.method = name;
        m.policy = &policy;
    }
    id = wire_open_as(fd, &m, &code);
    assert_int_equal(code, 0);
    return id;
}

static void feed(int fd, uint64_t session)
{
    struct rng rng = {5};

    for (uint32_t layer = 0; layer < LAYERS; layer++) {
        struct wire_reply r;
        size_t bytes;
        float *p = wire_payload(&rng, TOKENS, &bytes);

        assert_int_equal(wire_append_attend(fd, session, layer, p, bytes, TOKENS, &r), 0);
        wire_reply_deinit(&r);
        free(p);
    }
}

static Trikv__GateReply *ask_gate(int fd, uint64_t session)
{
    Trikv__GateReply *reply;
    struct wire_reply r;

    assert_int_equal(wire_session_call(fd, TRIKV_GATE, session, &r), 0);
    reply = trikv__gate_reply__unpack(NULL, r.frame.header_bytes, r.message);
    assert_non_null(reply);
    wire_reply_deinit(&r);
    return reply;
}

static Trikv__SessionStats *ask_stats(int fd, uint64_t session)
{
    Trikv__SessionStats *reply;
    struct wire_reply r;

    assert_int_equal(wire_session_call(fd, TRIKV_STATS, session, &r), 0);
    reply = trikv__session_stats__unpack(NULL, r.frame.header_bytes, r.message);
    assert_non_null(reply);
    wire_reply_deinit(&r);
    return reply;
}

/* A dry run, from another connection too, says what the round then does. */
static void test_dry_run(void **state)
{
    struct watched *w = *state;
    const int fd = wire_connect_hello(w->d.socket), other = wire_connect_hello(w->d.socket);
    const uint64_t session = open_gated(fd, NULL);
    Trikv__SessionStats *before, *after;
    Trikv__GateReply *dry;
    struct wire_reply r;
    uint64_t dropped = 0;

    feed(fd, session);
    before = ask_stats(fd, session);
    dry = ask_gate(other, session);
    after = ask_stats(fd, session);
    assert_int_equal(dry->n_layers, LAYERS);
    assert_int_equal(after->n_evicted, before->n_evicted);
    assert_int_equal(after->n_rounds, before->n_rounds);
    assert_non_null(after->layer_stats[0]->gate);
    assert_true(after->layer_stats[0]->gate->n_passed + after->layer_stats[0]->gate->n_kept_more +
                    after->layer_stats[0]->gate->n_exceeded >
                0);
    trikv__session_stats__free_unpacked(after, NULL);
    assert_int_equal(wire_session_call(fd, TRIKV_ROUND, session, &r), 0);
    wire_reply_deinit(&r);
    after = ask_stats(fd, session);
    for (size_t i = 0; i < LAYERS; i++) {
        dropped += dry->layers[i]->n_dropped;
        assert_int_equal(dry->layers[i]->n_probes, 12);
        assert_true(dry->layers[i]->lost_mass > 0 && dry->layers[i]->lost_mass < 1);
        assert_int_equal(after->layer_stats[i]->gate->n_dropped, dry->layers[i]->n_dropped);
    }
    assert_true(dropped > 0);
    assert_int_equal(after->n_evicted - before->n_evicted, dropped);
    trikv__gate_reply__free_unpacked(dry, NULL);
    trikv__session_stats__free_unpacked(before, NULL);
    trikv__session_stats__free_unpacked(after, NULL);
    close(fd);
    close(other);
}

/* The same through libtrikv. */
static void test_library(void **state)
{
    const struct watched *w = *state;
    const struct trikv_options o = {.size = sizeof(o), .socket = w->d.socket};
    const struct trikv_layer layer = {
        .n_q_heads = WIRE_N_Q, .n_kv_heads = 2, .head_dim_k = WIRE_DIM, .head_dim_v = WIRE_DIM};
    struct trikv_session_options options = TRIKV_SESSION_OPTIONS_INIT;
    struct trikv_session *session;
    struct trikv_client *c;
    struct trikv_gate gate[LAYERS];
    struct trikv_stats before, after;
    struct rng rng = {5};
    size_t bytes;
    float *p = wire_payload(&rng, TOKENS, &bytes);
    struct trikv_step step = {.size = sizeof(step), .n_tokens = TOKENS, .k = p, .v = p};
    float *out = malloc(TOKENS * WIRE_Q_FLOATS * sizeof(*out));

    step.q = p;
    step.out = out;
    options.n_layers = LAYERS;
    options.layers = &layer;
    options.same_layers = 1;
    options.profile = "gated";
    assert_int_equal(trikv_connect(&c, &o), 0);
    assert_int_equal(trikv_open(c, &options, &session), 0);
    for (step.layer = 0; step.layer < LAYERS; step.layer++)
        assert_int_equal(trikv_append_attend(session, &step), 0);
    assert_int_equal(trikv_stats(session, &before), 0);
    assert_int_equal(trikv_gate(session, gate), 0);
    assert_int_equal(trikv_round(session), 0);
    assert_int_equal(trikv_stats(session, &after), 0);
    assert_int_equal(gate[0].n_probes, 12);
    assert_true(gate[1].lost_mass > 0 && gate[1].lost_mass < 1);
    assert_true(gate[0].n_dropped + gate[1].n_dropped > 0);
    assert_int_equal(after.n_evicted - before.n_evicted, gate[0].n_dropped + gate[1].n_dropped);
    options.method = "none";
    assert_int_equal(trikv_close(&session), 0);
    assert_int_equal(trikv_open(c, &options, &session), 0);
    assert_int_equal(trikv_gate(session, gate), TRIKV_E_STATE);
    trikv_disconnect(&c);
    free(out);
    free(p);
}

static void test_metrics(void **state)
{
    static const char *const decisions[] = {"passed", "kept_more", "exceeded"};
    struct watched *w = *state;
    const int fd = wire_connect_hello(w->d.socket);
    const uint64_t session = open_gated(fd, NULL);
    Trikv__SessionStats *stats;
    char name[160];
    double sum = 0;

    feed(fd, session);
    stats = ask_stats(fd, session);
    assert_int_equal(http_get(w->metrics, "/metrics?layers=1", false, w->text), 200);
    for (size_t i = 0; i < 3; i++) {
        snprintf(name, sizeof(name),
                 "trikv_layer_gate_heads_total{session=\"%016llx\",layer=\"1\",decision=\"%s\"}",
                 (unsigned long long)session, decisions[i]);
        assert_true(http_sample(w->text, name) >= 0);
        sum += http_sample(w->text, name);
    }
    assert_true(sum > 0);
    snprintf(name, sizeof(name),
             "trikv_layer_gate_surplus_tokens_total{session=\"%016llx\",layer=\"1\"}",
             (unsigned long long)session);
    assert_int_equal((int)http_sample(w->text, name),
                     stats->layer_stats[1]->gate->n_surplus_tokens);
    trikv__session_stats__free_unpacked(stats, NULL);
    close(fd);
}

/* A request may ask for a method that has no rounds to gate; then there is none. */
static void test_without(void **state)
{
    struct watched *w = *state;
    const int fd = wire_connect_hello(w->d.socket);
    const uint64_t session = open_gated(fd, "none");
    Trikv__SessionStats *stats;
    struct wire_reply r;

    feed(fd, session);
    assert_int_equal(wire_session_call(fd, TRIKV_GATE, session, &r), TRIKV_E_STATE);
    assert_non_null(strstr(r.text, "no gate"));
    wire_reply_deinit(&r);
    assert_int_equal(wire_session_call(fd, TRIKV_GATE, 999, &r), TRIKV_E_NO_SESSION);
    wire_reply_deinit(&r);
    stats = ask_stats(fd, session);
    assert_null(stats->layer_stats[0]->gate);
    trikv__session_stats__free_unpacked(stats, NULL);
    assert_int_equal(http_get(w->metrics, "/metrics?layers=1", false, w->text), 200);
    assert_null(strstr(w->text, "trikv_layer_gate_heads_total{"));
    close(fd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_dry_run),
        cmocka_unit_test(test_library),
        cmocka_unit_test(test_metrics),
        cmocka_unit_test(test_without),
    };

    return cmocka_run_group_tests_name("gate_service", tests, start, stop);
}
