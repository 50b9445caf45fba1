/* Maps: attention in the client on the daemon's bytes gives the daemon's bits, whatever the session does
 * meanwhile, and whoever is killed meanwhile. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "client/map.h"
#include "tests/rng.h"
#include "tests/service.h"
#include "tests/wire.h"

enum { MAX_ROWS = 60, MAX_OUT = MAX_ROWS * 4 * 48, MAX_LSE = MAX_ROWS * 4, N_READERS = 7 };

static struct service_data data[SERVICE_LAYERS];

static int start(void **state)
{
    for (uint32_t i = 0; i < SERVICE_LAYERS; i++)
        service_data_init(&data[i], i);
    return service_start(state);
}

static int stop(void **state)
{
    for (uint32_t i = 0; i < SERVICE_LAYERS; i++)
        service_data_deinit(&data[i]);
    return service_stop(state);
}

static void feed(struct trikv_client *c, struct trikv_session *s, size_t at, size_t n)
{
    for (uint32_t i = 0; i < SERVICE_LAYERS; i++) {
        struct trikv_step t = service_step(&data[i], i, at, n);

        t.positions = NULL;
        if (trikv_append(s, &t))
            fail_msg("layer %u: %s", i, trikv_last_error(c));
    }
}

struct result {
    float out[MAX_OUT];
    float lse[MAX_LSE];
};

/* n queries of a layer from `at` on; far: behind everything, else on the newest tokens. */
static struct trikv_step query(uint32_t layer, size_t at, size_t n, bool far, struct result *r)
{
    static int32_t positions[MAX_ROWS];
    struct trikv_step t = service_step(&data[layer], layer, at, n);

    for (int32_t i = 0; i < MAX_ROWS; i++)
        positions[i] = 50000 + 2 * i;
    memset(r, 0, sizeof(*r));
    t.positions = far ? positions : NULL;
    t.out = r->out;
    t.lse = r->lse;
    return t;
}

static void local_bits_are_the_daemons(void **state)
{
    static const char *const codecs[] = {"tq4", "f16", "tq3.5", "tq3-paper", "tq2"};
    static const size_t rows[] = {1, 2, 7, 33, 60};
    static struct result x, y;

    (void)state;
    for (size_t i = 0; i < sizeof(codecs) / sizeof(codecs[0]); i++) {
        struct trikv_client *c = service_connect(0), *reader = service_connect(0);
        struct trikv_session *s = service_open(c, codecs[i]);
        struct trikv_map *map;

        feed(c, s, 0, 330);
        if (trikv_map(reader, trikv_session_id(s), &map))
            fail_msg("%s", trikv_last_error(reader));
        assert_int_equal(trikv_map_n_seen(map, 1), 330);
        for (uint32_t k = 0; k < SERVICE_LAYERS * 10; k++) {
            const uint32_t layer = k % SERVICE_LAYERS;
            const size_t n = rows[k / SERVICE_LAYERS % 5];
            struct trikv_step t = query(layer, 40 + k, n, k % 2, &x);

            assert_int_equal(trikv_attend(s, &t), 0);
            t = query(layer, 40 + k, n, k % 2, &y);
            if (trikv_attend_local(map, &t))
                fail_msg("%s", trikv_last_error(reader));
            assert_memory_equal(&x, &y, sizeof(x));
        }
        assert_int_equal(trikv_unmap(&map), 0);
        assert_null(map);
        trikv_disconnect(&reader);
        trikv_disconnect(&c);
    }
}

/* Appends, rounds, going back, even the end of the session: a map stays what it was. */
static void a_map_does_not_change(void **state)
{
    static struct result before, after;
    struct trikv_client *c = service_connect(0), *reader = service_connect(0);
    struct trikv_session_options o = service_options("tq4");
    struct trikv_session *s = NULL, *other;
    struct trikv_map *map, *second;
    struct rng rng = {.state = 4};
    struct trikv_step t;

    (void)state;
    o.rollback_tokens = 20;
    assert_int_equal(trikv_open(c, &o, &s), 0);
    feed(c, s, 0, 170);
    assert_int_equal(trikv_map(reader, trikv_session_id(s), &map), 0);
    for (int i = 0; i < 150; i++) {
        const uint32_t layer = (uint32_t)i % SERVICE_LAYERS;

        t = query(layer, 300, 3, true, &before);
        assert_int_equal(trikv_attend_local(map, &t), 0);
        feed(c, s, rng_next(&rng) % 300, 1 + rng_next(&rng) % 40);
        if (i % 3 == 0)
            (void)trikv_truncate(s, 1 + rng_next(&rng) % 10);
        if (i % 10 == 0)
            assert_int_equal(trikv_round(s), 0);
        if (i == 140)
            assert_int_equal(trikv_close(&s), 0);
        if (i == 140)
            s = service_open(c, "tq3");
        t = query(layer, 300, 3, true, &after);
        assert_int_equal(trikv_attend_local(map, &t), 0);
        assert_memory_equal(&before, &after, sizeof(before));
    }
    assert_int_equal(trikv_map(reader, trikv_session_id(s), &second), 0);
    assert_int_equal(trikv_map(reader, 999999, &second), TRIKV_E_NO_SESSION);
    assert_int_equal(trikv_fork_id(reader, map->id, NULL, &other), TRIKV_E_NO_SESSION);
    assert_int_equal(trikv_unmap(&map), 0);
    trikv_disconnect(&reader); /* with the second one still mapped */
    trikv_disconnect(&c);
}

static void bad_requests_are_named(void **state)
{
    static struct result r;
    struct trikv_client *c = service_connect(0);
    struct trikv_session *s = service_open(c, "tq4");
    struct trikv_map *map;
    struct trikv_step t;
    float *q = &data[0].q[5];
    const float good = *q;

    (void)state;
    feed(c, s, 0, 10);
    assert_int_equal(trikv_map(c, trikv_session_id(s), &map), 0);
    t = query(0, 0, 1, true, &r);
    t.layer = 3;
    assert_int_equal(trikv_attend_local(map, &t), TRIKV_E_ARGUMENT);
    t = query(0, 0, 7, false, &r); /* 4 of 10 are pinned */
    assert_int_equal(trikv_attend_local(map, &t), TRIKV_E_POSITION);
    t = query(0, 0, 1, true, &r);
    *q = NAN;
    assert_int_equal(trikv_attend_local(map, &t), TRIKV_E_VALUE);
    *q = good;
    t.out = NULL;
    assert_int_equal(trikv_attend_local(map, &t), TRIKV_E_ARGUMENT);
    t = query(0, 0, 1, true, &r);
    assert_int_equal(trikv_attend_local(map, &t), 0);
    assert_int_equal(trikv_unmap(&map), 0);
    trikv_disconnect(&c);
}

/* Layer 2 has a window: of what has left it neither the daemon nor a map gives half an answer. */
static void old_queries_are_refused_alike(void **state)
{
    static const int32_t old = 150, late = 320;
    static struct result x, y;
    struct trikv_client *c = service_connect(0);
    struct trikv_session *s = service_open(c, "tq4");
    struct trikv_map *map;
    struct trikv_step t;

    (void)state;
    feed(c, s, 0, 330);
    assert_int_equal(trikv_map(c, trikv_session_id(s), &map), 0);
    t = query(2, 0, 1, true, &x);
    t.positions = &old;
    assert_int_equal(trikv_attend(s, &t), TRIKV_E_POSITION);
    assert_int_equal(trikv_attend_local(map, &t), TRIKV_E_POSITION);
    assert_non_null(strstr(trikv_last_error(c), "layer 2: a query at 150 looks back 100 tokens"));
    t.positions = &late;
    assert_int_equal(trikv_attend(s, &t), 0);
    t = query(2, 0, 1, true, &y);
    t.positions = &late;
    assert_int_equal(trikv_attend_local(map, &t), 0);
    assert_memory_equal(&x, &y, sizeof(x));
    assert_int_equal(trikv_unmap(&map), 0);
    trikv_disconnect(&c);
}

/* The connection ends, the daemon lets go of what was mapped: noticed, also when the memory has been
 * used again. */
static void a_stale_map_is_not_followed(void **state)
{
    static struct result r;
    struct trikv_client *c = service_connect(0), *reader = service_connect(0);
    struct trikv_session *s = service_open(c, "tq4");
    struct trikv_map *map;
    struct trikv_step t = query(0, 0, 1, true, &r);
    int e = 0;

    (void)state;
    feed(c, s, 0, 300);
    assert_int_equal(trikv_map(reader, trikv_session_id(s), &map), 0);
    assert_int_equal(trikv_attend_local(map, &t), 0);
    assert_int_equal(shutdown(reader->stream.fd, SHUT_RDWR), 0);
    for (int i = 0; i < 1000 && !e; i++) {
        usleep(1000);
        e = trikv_attend_local(map, &t);
    }
    assert_int_equal(e, TRIKV_E_STALE);
    feed(c, s, 0, 300);
    assert_int_equal(trikv_attend_local(map, &t), TRIKV_E_STALE);
    (void)trikv_unmap(&map);
    trikv_disconnect(&reader);
    trikv_disconnect(&c);
}

/* ---- one writer, many readers, some of them killed ---------------------------------------- */

/* All values are one: so is any attention over them, if no block and no tier is half-written. */
static void read_until_killed(uint64_t session)
{
    static struct result x, y;
    struct trikv_client *c = service_connect(0);

    for (uint32_t i = 0;; i++) {
        const uint32_t layer = i % SERVICE_LAYERS;
        const size_t n_out = service_layers[layer].n_q_heads * service_layers[layer].head_dim_v;
        struct trikv_map *map;
        struct trikv_step t;

        if (trikv_map(c, session, &map))
            _exit(1);
        t = query(layer, i % 300, 1, true, &x);
        t.positions = (const int32_t[]){(int32_t)trikv_map_n_seen(map, layer)};
        if (trikv_attend_local(map, &t))
            _exit(2);
        for (size_t k = 0; k < n_out && service_layers[layer].sinks == NULL; k++)
            if (!(fabsf(x.out[k] - 1) < 0.01f))
                _exit(3);
        for (int again = 0; again < 20; again++) {
            t.out = y.out;
            t.lse = y.lse;
            if (trikv_attend_local(map, &t) ||
                memcmp(x.lse, y.lse, service_layers[layer].n_q_heads * sizeof(float)) != 0 ||
                memcmp(x.out, y.out, n_out * sizeof(float)) != 0)
                _exit(4);
        }
        if (i % 8 && trikv_unmap(&map)) /* some are left to the end of the connection */
            _exit(5);
        if (i % 30 == 29) {
            trikv_disconnect(&c);
            c = service_connect(0);
        }
    }
}

static pid_t start_reader(uint64_t session)
{
    const pid_t pid = fork();

    assert_true(pid >= 0);
    if (pid == 0)
        read_until_killed(session);
    return pid;
}

static double now_ms(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

static void kill_reader(pid_t pid)
{
    int status;

    assert_int_equal(kill(pid, SIGKILL), 0);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    if (!WIFSIGNALED(status))
        fail_msg("a reader ended with status %d", WEXITSTATUS(status));
}

static void ones_for_values(void)
{
    for (uint32_t i = 0; i < SERVICE_LAYERS; i++)
        for (size_t k = 0; k < (size_t)SERVICE_TOKENS * service_layers[i].n_kv_heads *
                                   service_layers[i].head_dim_v;
             k++)
            data[i].v[k] = 1;
}

/* Small steps, and back again by one. */
static void write_for(struct trikv_client *c, struct trikv_session *s, double ms)
{
    const double end = now_ms() + ms;
    struct rng rng = {.state = 8};

    while (now_ms() < end) {
        feed(c, s, rng_next(&rng) % 300, 1 + rng_next(&rng) % 8);
        if (rng_next(&rng) % 4 == 0)
            (void)trikv_truncate(s, 1);
    }
}

static void readers_never_see_half_of_anything(void **state)
{
    const char *given = getenv("TRIKV_STRESS_SECONDS");
    const double seconds = given ? strtod(given, NULL) : 2;
    struct wire_daemon_stats before, after;
    struct trikv_client *c = service_connect(0);
    struct trikv_session *s = service_open(c, "f16");
    const int fd = wire_connect_hello(service_socket());
    pid_t reader[N_READERS];
    uint32_t n_kills = 0;

    (void)state;
    ones_for_values();
    feed(c, s, 0, 200); /* the connection keeps a buffer */
    assert_int_equal(trikv_close(&s), 0);
    s = service_open(c, "f16");
    wire_daemon_stats(fd, &before);
    feed(c, s, 0, 200);
    for (size_t i = 0; i < N_READERS; i++)
        reader[i] = start_reader(trikv_session_id(s));
    for (double end = now_ms() + seconds * 1e3; now_ms() < end; n_kills++) {
        write_for(c, s, 100);
        kill_reader(reader[n_kills % N_READERS]);
        reader[n_kills % N_READERS] = start_reader(trikv_session_id(s));
    }
    for (size_t i = 0; i < N_READERS; i++)
        kill_reader(reader[i]);
    assert_true(n_kills > 3);
    assert_int_equal(trikv_close(&s), 0);
    s = service_open(c, "f16");
    for (int i = 0; i < 400; i++) {
        wire_daemon_stats(fd, &after);
        if (after.memory_used_bytes == before.memory_used_bytes && after.n_connections == 2)
            break;
        usleep(5000);
    }
    assert_int_equal(after.n_connections, 2);
    assert_int_equal(after.memory_used_bytes, before.memory_used_bytes);
    close(fd);
    trikv_disconnect(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(local_bits_are_the_daemons),
        cmocka_unit_test(a_map_does_not_change),
        cmocka_unit_test(bad_requests_are_named),
        cmocka_unit_test(old_queries_are_refused_alike),
        cmocka_unit_test(a_stale_map_is_not_followed),
        cmocka_unit_test(readers_never_see_half_of_anything),
    };

    return cmocka_run_group_tests(tests, start, stop);
}
