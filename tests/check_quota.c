/*
 * Who may hold how much, and who has to go when memory is short: shares of users and of sessions,
 * and the eviction of idle sessions.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "proto/errors.h"
#include "proto/trikv.pb-c.h"
#include "store/budget.h"
#include "tests/daemon_aid.h"
#include "tests/rng.h"
#include "tests/wire.h"

enum { N = 400, N_FLOATS = 2 * WIRE_K_FLOATS * N, OTHER_UID = 65534, MOST_APPENDS = 2000 };
enum { LARGE_HEADS = 8, LARGE_DIM = 128 };

struct scene {
    struct daemon_aid daemon;
    int fd;
    float *tokens; /* K and V of N */
    struct wire_reply last;
};

static void scene_init(struct scene *s, const char *config)
{
    struct rng rng = {11};
    size_t bytes;

    *s = (struct scene){.fd = -1, .last.fd = -1};
    daemon_start(&s->daemon, config);
    assert_int_equal(chmod(s->daemon.directory, 0755), 0);
    s->fd = wire_connect_hello(s->daemon.socket);
    s->tokens = wire_payload(&rng, N, &bytes);
}

static void scene_deinit(struct scene *s)
{
    int status;

    wire_reply_deinit(&s->last);
    close(s->fd);
    free(s->tokens);
    status = daemon_stop(&s->daemon, SIGTERM); /* asserts in the daemon that shares end empty */
    assert_int_equal(status, 0);
}

static uint64_t open_session(int fd, int never_evict)
{
    Trikv__Layer layer = wire_layer(1), *layers = &layer;
    Trikv__OpenRequest m = TRIKV__OPEN_REQUEST__INIT;
    uint64_t id;
    int code;

    m.n_layers = 1;
    m.layers = &layers;
    m.has_never_evict = true;
    m.never_evict = never_evict;
    id = wire_open_as(fd, &m, &code);
    assert_int_equal(code, 0);
    return id;
}

static int append(struct scene *s, int fd, uint64_t session)
{
    Trikv__TokensRequest m = TRIKV__TOKENS_REQUEST__INIT;

    m.session = session;
    m.n_tokens = N;
    wire_reply_deinit(&s->last);
    return wire_call(fd, TRIKV_APPEND, &m.base, s->tokens, N_FLOATS * sizeof(float), -1, &s->last);
}

static int append_until_refused(struct scene *s, int fd, uint64_t session)
{
    int code = 0;

    for (int i = 0; i < MOST_APPENDS && !code; i++)
        code = append(s, fd, session);
    assert_int_not_equal(code, 0);
    return code;
}

static int call(int fd, uint16_t type, uint64_t session)
{
    struct wire_reply r;
    const int code = wire_session_call(fd, type, session, &r);

    wire_reply_deinit(&r);
    return code;
}

static uint64_t fork_session(int fd, uint64_t parent)
{
    Trikv__ForkRequest m = TRIKV__FORK_REQUEST__INIT;
    Trikv__ForkReply *reply;
    struct wire_reply r;
    uint64_t id;

    m.session = parent;
    assert_int_equal(wire_call(fd, TRIKV_FORK, &m.base, NULL, 0, -1, &r), 0);
    reply = trikv__fork_reply__unpack(NULL, r.frame.header_bytes, r.message);
    assert_non_null(reply);
    id = reply->session;
    trikv__fork_reply__free_unpacked(reply, NULL);
    wire_reply_deinit(&r);
    return id;
}

static uint64_t used_bytes(int fd)
{
    struct wire_daemon_stats stats;

    wire_daemon_stats(fd, &stats);
    return stats.memory_used_bytes;
}

/* A connection of another user, made by this process. */
static int connect_as_other(const struct scene *s)
{
    int fd;

    assert_int_equal(seteuid(OTHER_UID), 0);
    fd = wire_connect_hello(s->daemon.socket);
    assert_int_equal(seteuid(0), 0);
    return fd;
}

static void a_part_counts_in_its_whole(void **state)
{
    struct tkv_budget whole, part, inner;

    (void)state;
    tkv_budget_init(&whole, 1000);
    tkv_budget_init_part(&part, 600, &whole);
    tkv_budget_init_part(&inner, 1000, &part);
    assert_true(tkv_budget_reserve(&inner, 500));
    assert_false(tkv_budget_reserve(&inner, 101)); /* the middle one is in the way */
    assert_int_equal(atomic_load(&inner.used_bytes), 500);
    assert_int_equal(atomic_load(&whole.used_bytes), 500);
    assert_true(atomic_load(&part.refused) && !atomic_load(&inner.refused));
    assert_true(tkv_budget_reserve(&whole, 500));
    assert_false(tkv_budget_reserve(&inner, 1));
    assert_true(atomic_load(&whole.refused));
    tkv_budget_release(&inner, 500);
    assert_int_equal(atomic_load(&part.used_bytes), 0);
    assert_int_equal(atomic_load(&whole.used_bytes), 500);
}

static void a_family_has_a_share(void **state)
{
    struct scene s;
    uint64_t before, a, b, child;

    (void)state;
    scene_init(&s, "memory: {cap: 64MiB}\nlimits: {session_memory: 4MiB}\n");
    a = open_session(s.fd, 0);
    assert_int_equal(append(&s, s.fd, a), 0);
    assert_int_equal(call(s.fd, TRIKV_CLOSE, a), 0);
    before = used_bytes(s.fd); /* with the buffer that the connection keeps */
    a = open_session(s.fd, 0);
    b = open_session(s.fd, 0);
    assert_int_equal(append_until_refused(&s, s.fd, a), TRIKV_E_QUOTA);
    assert_non_null(strstr(s.last.text, "limits.session_memory is 4194304"));
    child = fork_session(s.fd, a);
    assert_int_equal(append_until_refused(&s, s.fd, child), TRIKV_E_QUOTA);
    assert_int_equal(append(&s, s.fd, b), 0);
    assert_int_equal(call(s.fd, TRIKV_CLOSE, a), 0);
    assert_int_equal(call(s.fd, TRIKV_CLOSE, child), 0);
    assert_int_equal(append_until_refused(&s, s.fd, b), TRIKV_E_QUOTA);
    assert_int_equal(call(s.fd, TRIKV_CLOSE, b), 0);
    wire_reply_deinit(&s.last);
    assert_int_equal(used_bytes(s.fd), before);
    scene_deinit(&s);
}

/* One user's share is used up: another goes on, and only the first one's idle sessions go for it. */
static void a_user_has_a_share(void **state)
{
    struct scene s;
    uint64_t idle, mine, other;
    int fd;

    (void)state;
    if (geteuid() != 0)
        skip(); /* only root can be two users */
    scene_init(&s, "memory: {cap: 64MiB}\nlimits: {user_memory: 8MiB, evict_idle_after: 50ms}\n");
    fd = connect_as_other(&s);
    other = open_session(fd, 0);
    idle = open_session(s.fd, 0);
    mine = open_session(s.fd, 0);
    assert_int_equal(append(&s, fd, other), 0);
    assert_int_equal(append(&s, s.fd, idle), 0);
    sleep_ms(80);
    assert_int_equal(append_until_refused(&s, s.fd, mine), TRIKV_E_QUOTA);
    assert_non_null(strstr(s.last.text, "user 0 holds"));
    assert_non_null(strstr(s.last.text, "limits.user_memory is 8388608"));
    assert_int_equal(append(&s, s.fd, idle), TRIKV_E_EVICTED);
    assert_int_equal(append(&s, fd, other), 0);
    assert_int_equal(call(s.fd, TRIKV_CLOSE, mine), 0);
    mine = open_session(s.fd, 0);
    assert_int_equal(append(&s, s.fd, mine), 0);
    close(fd);
    scene_deinit(&s);
}

static void idle_sessions_go_before_a_request_fails(void **state)
{
    struct scene s;
    uint64_t idle, other_idle, stays, hungry;

    (void)state;
    scene_init(&s, "memory: {cap: 12MiB}\nlimits: {evict_idle_after: 100ms}\n");
    idle = open_session(s.fd, 0);
    other_idle = open_session(s.fd, 0);
    stays = open_session(s.fd, 1);
    hungry = open_session(s.fd, 0);
    assert_int_equal(append(&s, s.fd, other_idle), 0);
    assert_int_equal(append(&s, s.fd, idle), 0);
    assert_int_equal(append(&s, s.fd, stays), 0);
    sleep_ms(150);
    assert_int_equal(append_until_refused(&s, s.fd, hungry), TRIKV_E_MEMORY_CAP);
    assert_int_equal(append(&s, s.fd, idle), TRIKV_E_EVICTED);
    assert_non_null(strstr(s.last.text, "was idle when memory was needed"));
    assert_int_equal(call(s.fd, TRIKV_CLOSE, other_idle), TRIKV_E_EVICTED);
    assert_int_equal(call(s.fd, TRIKV_STATS, stays), 0);
    assert_int_equal(call(s.fd, TRIKV_CLOSE, 12345), TRIKV_E_NO_SESSION);
    assert_int_equal(call(s.fd, TRIKV_CLOSE, hungry), 0);
    assert_int_equal(append(&s, s.fd, stays), 0);
    scene_deinit(&s);
}

/* Those in use stay; with 0 all do. */
static void only_idle_sessions_go(void **state)
{
    static const char *const configs[] = {
        "memory: {cap: 12MiB}\nlimits: {evict_idle_after: 60min}\n",
        "memory: {cap: 12MiB}\nlimits: {evict_idle_after: 0}\n",
    };

    (void)state;
    for (size_t i = 0; i < 2; i++) {
        struct scene s;
        uint64_t a, b;

        scene_init(&s, configs[i]);
        a = open_session(s.fd, 0);
        b = open_session(s.fd, 0);
        assert_int_equal(append(&s, s.fd, a), 0);
        sleep_ms(5);
        assert_int_equal(append_until_refused(&s, s.fd, b), TRIKV_E_MEMORY_CAP);
        assert_int_equal(call(s.fd, TRIKV_STATS, a), 0);
        scene_deinit(&s);
    }
}

/* A session with large heads: attention of one query takes hundreds of KiB meanwhile. */
static uint64_t open_large(int fd)
{
    Trikv__Layer layer = wire_layer(1), *layers = &layer;
    Trikv__OpenRequest m = TRIKV__OPEN_REQUEST__INIT;
    uint64_t id;
    int code;

    layer.n_q_heads = 8 * LARGE_HEADS;
    layer.n_kv_heads = LARGE_HEADS;
    layer.head_dim_k = layer.head_dim_v = LARGE_DIM;
    m.n_layers = 1;
    m.layers = &layers;
    id = wire_open_as(fd, &m, &code);
    assert_int_equal(code, 0);
    return id;
}

/* A step's working memory stays with its connection only until another one wants it. */
static void kept_working_memory_goes_first(void **state)
{
    enum { KEPT_BYTES = 400000, VALUES = LARGE_HEADS * LARGE_DIM * (2 + 8) };
    static const float values[VALUES];
    Trikv__TokensRequest m = TRIKV__TOKENS_REQUEST__INIT;
    uint64_t before, after;
    struct wire_reply r;
    struct scene s;
    int fd;

    (void)state;
    scene_init(&s, "memory: {cap: 12MiB}\nlimits: {evict_idle_after: 0}\n");
    fd = wire_connect_hello(s.daemon.socket);
    before = used_bytes(s.fd);
    m.session = open_large(fd);
    m.n_tokens = 1;
    assert_int_equal(wire_call(fd, TRIKV_APPEND_ATTEND, &m.base, values, sizeof(values), -1, &r),
                     0);
    wire_reply_deinit(&r);
    assert_int_equal(call(fd, TRIKV_CLOSE, m.session), 0);
    assert_true(used_bytes(s.fd) > before + KEPT_BYTES);
    assert_int_equal(append_until_refused(&s, s.fd, open_session(s.fd, 0)), TRIKV_E_MEMORY_CAP);
    before = used_bytes(s.fd);
    close(fd);
    sleep_ms(50);
    after = used_bytes(s.fd);
    assert_true(before >= after && before - after < KEPT_BYTES);
    scene_deinit(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_part_counts_in_its_whole),
        cmocka_unit_test(a_family_has_a_share),
        cmocka_unit_test(a_user_has_a_share),
        cmocka_unit_test(idle_sessions_go_before_a_request_fails),
        cmocka_unit_test(only_idle_sessions_go),
        cmocka_unit_test(kept_working_memory_goes_first),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
