/*
 * The real trikvd over its socket: good requests and wrong ones. Shared memory and sharing are in
 * check_sharing, peers that break the protocol in check_hostile, the process in check_service.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/types.h"
#include "proto/errors.h"
#include "proto/limits.h"
#include "proto/shm_layout.h"
#include "proto/trikv.pb-c.h"
#include "tests/daemon_aid.h"
#include "tests/rng.h"
#include "tests/wire.h"

static void check_good_client(void **state)
{
    const int fd = daemon_hello(state);
    struct rng rng = {1};
    struct wire_reply r;
    size_t bytes;
    float *p = wire_payload(&rng, 5, &bytes);
    Trikv__TokensReply *reply;
    Trikv__SessionStats *stats;
    int code;
    const uint64_t id = wire_open(fd, 3, &code);

    assert_int_equal(code, 0);
    assert_int_not_equal(id, 0);
    assert_int_equal(wire_append_attend(fd, id, 2, p, bytes, 5, &r), 0);
    reply = trikv__tokens_reply__unpack(NULL, r.frame.header_bytes, r.message);
    assert_int_equal(reply->n_seen, 5);
    assert_int_equal(reply->n_kept, 5);
    assert_int_equal(reply->output_bytes, r.frame.payload_bytes);
    trikv__tokens_reply__free_unpacked(reply, NULL);
    /* The first query sees one token only: its output is that token's value. */
    for (size_t i = 0; i < WIRE_DIM; i++)
        assert_float_equal(((const float *)(const void *)r.payload)[i], p[5 * WIRE_K_FLOATS + i],
                           2e-3);
    wire_reply_deinit(&r);
    assert_int_equal(wire_session_call(fd, TRIKV_STATS, id, &r), 0);
    stats = trikv__session_stats__unpack(NULL, r.frame.header_bytes, r.message);
    assert_int_equal(stats->n_seen, 5);
    assert_int_equal(stats->n_layer_stats, 3);
    assert_int_equal(stats->layer_stats[2]->n_seen, 5);
    assert_int_equal(stats->uid, getuid());
    trikv__session_stats__free_unpacked(stats, NULL);
    wire_reply_deinit(&r);
    wire_close_session(fd, id);
    assert_int_equal(wire_session_call(fd, TRIKV_STATS, id, &r), TRIKV_E_NO_SESSION);
    wire_reply_deinit(&r);
    free(p);
    close(fd);
}

static void check_hello(void **state)
{
    const int fd = wire_connect(((const struct daemon_aid *)*state)->socket);
    Trikv__HelloRequest m = TRIKV__HELLO_REQUEST__INIT;
    Trikv__HelloReply *reply;
    struct wire_reply r;
    char name[80];

    memset(name, 'x', sizeof(name));
    name[79] = 0;
    assert_int_equal(wire_plain_call(fd, TRIKV_DAEMON_STATS, NULL, NULL), TRIKV_E_STATE);
    assert_int_equal(wire_plain_call(fd, 999, NULL, NULL), TRIKV_E_UNKNOWN_REQUEST);
    m.protocol_min = 2;
    m.protocol_max = 9;
    assert_int_equal(wire_plain_call(fd, TRIKV_HELLO, &m.base, NULL), TRIKV_E_VERSION);
    m.protocol_min = m.protocol_max = 0;
    assert_int_equal(wire_plain_call(fd, TRIKV_HELLO, &m.base, NULL), TRIKV_E_VERSION);
    m.protocol_max = 5;
    m.client = name;
    assert_int_equal(wire_plain_call(fd, TRIKV_HELLO, &m.base, NULL), TRIKV_E_ARGUMENT);
    name[64] = 0;
    assert_int_equal(wire_call(fd, TRIKV_HELLO, &m.base, NULL, 0, -1, &r), 0);
    reply = trikv__hello_reply__unpack(NULL, r.frame.header_bytes, r.message);
    assert_int_equal(reply->protocol, 1);
    assert_int_equal(reply->max_payload_bytes, 32 << 20);
    assert_int_equal(reply->memory_cap_bytes, 64 << 20);
    assert_int_equal(reply->page_bytes, sysconf(_SC_PAGESIZE));
    trikv__hello_reply__free_unpacked(reply, NULL);
    wire_reply_deinit(&r);
    assert_int_equal(wire_plain_call(fd, TRIKV_HELLO, &m.base, NULL), TRIKV_E_STATE);
    close(fd);
}

struct open_case {
    const char *name;
    int code;
    const char *text; /* part of the answer */
    const char *profile, *codec_k, *codec_v, *method, *mode, *aggregation, *label;
    uint32_t n_q, n_kv, dim, repeat, n_sinks, budget;
    float scale;
};

static const struct open_case open_cases[] = {
    {.name = "repeat 0", .code = TRIKV_E_ARGUMENT, .text = "layers", .repeat = UINT32_MAX},
    {.name = "too many layers", .code = TRIKV_E_ARGUMENT, .text = "512", .repeat = 513},
    {.name = "no heads", .code = TRIKV_E_ARGUMENT, .text = "n_q_heads", .n_q = UINT32_MAX},
    {.name = "group", .code = TRIKV_E_ARGUMENT, .text = "n_kv_heads", .n_kv = 3},
    {.name = "odd dim", .code = TRIKV_E_ARGUMENT, .text = "head_dim", .dim = 33},
    {.name = "large dim", .code = TRIKV_E_ARGUMENT, .text = "head_dim", .dim = 4096},
    {.name = "scale NaN", .code = TRIKV_E_ARGUMENT, .text = "scale", .scale = NAN},
    {.name = "sinks", .code = TRIKV_E_ARGUMENT, .text = "sinks", .n_sinks = 3},
    {.name = "codec k", .code = TRIKV_E_ARGUMENT, .text = "tq9", .codec_k = "tq9"},
    {.name = "codec v", .code = TRIKV_E_ARGUMENT, .text = "codec", .codec_v = ""},
    {.name = "qjl values", .code = TRIKV_E_ARGUMENT, .text = "keys only", .codec_v = "tq4-qjl"},
    {.name = "method", .code = TRIKV_E_ARGUMENT, .text = "h3o", .method = "h3o"},
    {.name = "mode", .code = TRIKV_E_ARGUMENT, .text = "eviction_mode", .mode = "perhead"},
    {.name = "aggregation", .code = TRIKV_E_ARGUMENT, .text = "aggregation", .aggregation = "sum"},
    {.name = "budget", .code = TRIKV_E_ARGUMENT, .text = "budget_tokens", .budget = 1u << 30},
    {.name = "no profile", .code = TRIKV_E_ARGUMENT, .text = "profile", .method = "triattention"},
    {.name = "profile", .code = TRIKV_E_NO_PROFILE, .text = "\"nil\"", .profile = "nil"},
    {.name = "label",
     .code = TRIKV_E_ARGUMENT,
     .text = "label",
     .label = "01234567890123456789012345678901234567890123456789012345678901234"},
    {.name = "fine", .code = 0, .text = "", .label = "caf\xc3\xa9"},
};

/* Messages are packed only: nothing is written through these. */
static char *loose(const char *s)
{
    const union {
        const char *in;
        char *out;
    } u = {s};

    return u.out;
}

static uint32_t or_default(uint32_t value, uint32_t fallback)
{
    return value == UINT32_MAX ? 0 : value ? value : fallback;
}

static int open_case(int fd, const struct open_case *c, char *text)
{
    Trikv__Layer layer = TRIKV__LAYER__INIT;
    Trikv__Layer *layers[] = {&layer};
    Trikv__Policy policy = TRIKV__POLICY__INIT;
    Trikv__OpenRequest m = TRIKV__OPEN_REQUEST__INIT;
    float sinks[3] = {0};

    layer.n_q_heads = or_default(c->n_q, 4);
    layer.n_kv_heads = or_default(c->n_kv, 2);
    layer.head_dim_k = layer.head_dim_v = or_default(c->dim, 32);
    layer.has_repeat = 1;
    layer.repeat = or_default(c->repeat, 1);
    layer.n_sinks = c->n_sinks;
    layer.sinks = sinks;
    layer.has_scale = isnan(c->scale);
    layer.scale = c->scale;
    policy.codec_k = loose(c->codec_k);
    policy.codec_v = loose(c->codec_v);
    policy.method = loose(c->method);
    policy.eviction_mode = loose(c->mode);
    policy.aggregation = loose(c->aggregation);
    policy.has_budget_tokens = c->budget > 0;
    policy.budget_tokens = c->budget;
    m.n_layers = 1;
    m.layers = layers;
    m.policy = &policy;
    m.profile = loose(c->profile);
    m.label = loose(c->label);
    return wire_plain_call(fd, TRIKV_OPEN, &m.base, text);
}

static void check_open_refused(void **state)
{
    const int fd = daemon_hello(state);
    const Trikv__OpenRequest empty = TRIKV__OPEN_REQUEST__INIT;
    char text[256];

    for (size_t i = 0; i < sizeof(open_cases) / sizeof(open_cases[0]); i++) {
        const int code = open_case(fd, &open_cases[i], text);

        if (code != open_cases[i].code || !strstr(text, open_cases[i].text))
            fail_msg("%s: got %d \"%s\"", open_cases[i].name, code, text);
    }
    assert_int_equal(wire_plain_call(fd, TRIKV_OPEN, &empty.base, NULL), TRIKV_E_ARGUMENT);
    close(fd);
}

static void check_session_limits(void **state)
{
    const int a = daemon_hello(state), b = daemon_hello(state);
    struct wire_daemon_stats s;
    int code;

    for (int i = 0; i < 500; i++) { /* those of the tests before go in their own time */
        wire_daemon_stats(a, &s);
        if (s.n_sessions == 0)
            break;
        sleep_ms(10);
    }
    for (int i = 0; i < 4; i++)
        assert_int_not_equal(wire_open(a, 1, &code), 0);
    wire_open(a, 1, &code);
    assert_int_equal(code, TRIKV_E_TOO_MANY);
    for (int i = 0; i < 2; i++)
        assert_int_not_equal(wire_open(b, 1, &code), 0);
    wire_open(b, 1, &code);
    assert_int_equal(code, TRIKV_E_TOO_MANY);
    close(a);
    close(b);
}

static void check_connection_limit(void **state)
{
    int fd[8];
    int last;
    struct wire_daemon_stats s = {0};
    struct wire_reply r;

    for (int i = 0; i < 8; i++)
        fd[i] = daemon_hello(state);
    last = wire_connect(((const struct daemon_aid *)*state)->socket);
    assert_int_equal(wire_read(last, &r, WIRE_TIMEOUT_MS), 1);
    assert_int_equal(r.code, TRIKV_E_TOO_MANY);
    wire_reply_deinit(&r);
    assert_int_equal(wire_read(last, &r, WIRE_TIMEOUT_MS), 0);
    close(last);
    for (int i = 1; i < 8; i++)
        close(fd[i]);
    for (int i = 0; i < 500 && s.n_connections != 1; i++) {
        wire_daemon_stats(fd[0], &s);
        sleep_ms(2);
    }
    assert_int_equal(s.n_connections, 1);
    close(fd[0]);
}

struct tokens_case {
    const char *name;
    uint16_t type;
    uint32_t layer, n_tokens, dtype;
    size_t bytes; /* of payload sent */
    int session;  /* 1: the right one */
    int staging;  /* input_offset, though there is no area */
    int positions;
    int32_t position[2];
    int code;
    const char *text;
};

enum { STEP_BYTES = (2 * WIRE_K_FLOATS + WIRE_Q_FLOATS) * 4 };

static const struct tokens_case tokens_cases[] = {
    {"short", TRIKV_APPEND_ATTEND, 0, 1, 0, STEP_BYTES - 4, 1, 0, 0, {0}, TRIKV_E_SIZE, "2044"},
    {"long", TRIKV_APPEND_ATTEND, 0, 1, 0, STEP_BYTES + 4, 1, 0, 0, {0}, TRIKV_E_SIZE, "2048"},
    {"none", TRIKV_APPEND, 0, 1, 0, 0, 1, 0, 0, {0}, TRIKV_E_SIZE, "K 512"},
    {"halves", TRIKV_APPEND, 0, 1, 1, 1024, 1, 0, 0, {0}, TRIKV_E_SIZE, "K 256"},
    {"dtype", TRIKV_ATTEND, 0, 1, 7, 1024, 1, 0, 0, {0}, TRIKV_E_ARGUMENT, "dtype"},
    {"layer", TRIKV_ATTEND, 9, 1, 0, 1024, 1, 0, 0, {0}, TRIKV_E_ARGUMENT, "layer"},
    {"no tokens", TRIKV_APPEND, 0, 0, 0, 0, 1, 0, 0, {0}, TRIKV_E_ARGUMENT, "n_tokens"},
    {"many", TRIKV_APPEND, 0, UINT32_MAX, 0, 64, 1, 0, 0, {0}, TRIKV_E_ARGUMENT, "n_tokens"},
    {"session", TRIKV_APPEND, 0, 1, 0, 1024, 0, 0, 0, {0}, TRIKV_E_NO_SESSION, "not open"},
    {"no area", TRIKV_ATTEND, 0, 1, 0, 0, 1, 1, 0, {0}, TRIKV_E_STATE, "staging"},
    {"both", TRIKV_ATTEND, 0, 1, 0, 1024, 1, 1, 0, {0}, TRIKV_E_ARGUMENT, "payload"},
    {"falling", TRIKV_APPEND, 0, 2, 0, 64 + 2048, 1, 0, 1, {5, 4}, TRIKV_E_POSITION, "position"},
    {"negative", TRIKV_APPEND, 0, 2, 0, 64 + 2048, 1, 0, 1, {-1, 4}, TRIKV_E_POSITION, "position"},
    {"fine", TRIKV_APPEND, 0, 2, 0, 64 + 2048, 1, 0, 1, {4, 9}, 0, ""},
    {"before", TRIKV_APPEND, 0, 2, 0, 64 + 2048, 1, 0, 1, {9, 12}, TRIKV_E_POSITION, "position"},
};

static int tokens_case(int fd, const struct tokens_case *c, uint64_t session, char *text)
{
    Trikv__TokensRequest m = TRIKV__TOKENS_REQUEST__INIT;
    char *payload = calloc(1, c->bytes + 8);
    struct wire_reply r;
    int code;

    assert_non_null(payload);
    memcpy(payload, c->position, c->bytes >= 8 ? sizeof(c->position) : 0);
    m.session = c->session ? session : session + 1000;
    m.layer = c->layer;
    m.n_tokens = c->n_tokens;
    m.has_dtype = 1;
    m.dtype = c->dtype;
    m.has_has_positions = m.has_positions = c->positions;
    m.has_input_offset = m.has_input_bytes = c->staging;
    m.input_bytes = 1024;
    code = wire_call(fd, c->type, &m.base, payload, c->bytes, -1, &r);
    snprintf(text, sizeof(r.text), "%s", r.text);
    wire_reply_deinit(&r);
    free(payload);
    return code;
}

static void check_tokens_refused(void **state)
{
    const int fd = daemon_hello(state);
    char text[256];
    struct wire_reply r;
    struct rng rng = {2};
    size_t bytes;
    float *p;
    int code;
    const uint64_t id = wire_open(fd, 2, &code);

    for (size_t i = 0; i < sizeof(tokens_cases) / sizeof(tokens_cases[0]); i++) {
        code = tokens_case(fd, &tokens_cases[i], id, text);
        if (code != tokens_cases[i].code || !strstr(text, tokens_cases[i].text))
            fail_msg("%s: got %d \"%s\"", tokens_cases[i].name, code, text);
    }
    p = wire_payload(&rng, 2, &bytes);
    p[70] = NAN;
    assert_int_equal(wire_append_attend(fd, id, 1, p, bytes, 2, &r), TRIKV_E_VALUE);
    wire_reply_deinit(&r);
    p[70] = 0; /* an error left the session as it was */
    assert_int_equal(wire_append_attend(fd, id, 1, p, bytes, 2, &r), 0);
    wire_reply_deinit(&r);
    free(p);
    close(fd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(check_good_client),      cmocka_unit_test(check_hello),
        cmocka_unit_test(check_open_refused),     cmocka_unit_test(check_session_limits),
        cmocka_unit_test(check_connection_limit), cmocka_unit_test(check_tokens_refused),
    };

    return cmocka_run_group_tests(tests, daemon_set_up, daemon_tear_down);
}
