/*
 * One session, eight processes: one appends, attends and goes back, seven map it and attend on what
 * they have mapped, and one of these is killed every 100 ms. Every key and value that a reader finds
 * follows from its position, to the bit, and every result is judged by attention in double: a block,
 * a position or a tier that was torn, stale or used again shows. At the end the daemon has every byte
 * and descriptor back. All layers have windows: blocks are dropped and their places used again
 * all the time.
 *
 *   TRIKV_STRESS_SECONDS   how long, default 2; from 30 on the writer's p99 must stay within twice
 *                          what it is alone (docs/reliability.md)
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
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "client/map.h"
#include "core/half.h"
#include "tests/daemon_aid.h"
#include "tests/naive.h"
#include "tests/rng.h"
#include "tests/wire.h"

enum {
    N_LAYERS = 3,
    N_READERS = 7,
    KILL_MS = 100,
    ALONE_EVERY = 4,
    ROLLBACK = 8,
    PERIOD = 1024,   /* tokens that differ: more than any window and what lies behind it */
    MAX_KEPT = 1100, /* of a layer, or remembered by the writer */
    MAX_ROW = 128,
    MAX_OUT = 8 * 64,
    MAX_SAMPLES = 1 << 22,
    PAUSE_US = 40000, /* between two maps of a reader, so that few cores can carry seven */
};

static const uint64_t seed = 90211;
static const float sinks[4] = {0.5f, -1, 2, 0};
static const struct trikv_layer layers[N_LAYERS] = {
    {.n_q_heads = 4, .n_kv_heads = 2, .head_dim_k = 64, .head_dim_v = 64, .window_tokens = 200},
    {.n_q_heads = 8, .n_kv_heads = 1, .head_dim_k = 32, .head_dim_v = 48, .window_tokens = 70},
    {.n_q_heads = 4,
     .n_kv_heads = 4,
     .head_dim_k = 16,
     .head_dim_v = 24,
     .window_tokens = 300,
     .sinks = sinks},
};

/* The token at position p of a layer is token p % PERIOD of these, which are halves to the bit. No
 * position comes twice, also when the writer has gone back. */
static struct stream {
    float *k, *v, *q;
    size_t k_row, v_row, q_row;
} streams[N_LAYERS];

static struct daemon_aid the_daemon;

static float *halves(struct rng *r, size_t n)
{
    float *x = malloc(n * sizeof(*x));

    assert_non_null(x);
    for (size_t i = 0; i < n; i++)
        x[i] = tkv_f16_to_f32(tkv_f32_to_f16(rng_gauss(r)));
    return x;
}

static int start(void **state)
{
    struct rng rng = {seed};

    for (uint32_t i = 0; i < N_LAYERS; i++) {
        struct stream *s = &streams[i];

        s->k_row = (size_t)layers[i].n_kv_heads * layers[i].head_dim_k;
        s->v_row = (size_t)layers[i].n_kv_heads * layers[i].head_dim_v;
        s->q_row = (size_t)layers[i].n_q_heads * layers[i].head_dim_k;
        s->k = halves(&rng, PERIOD * s->k_row);
        s->v = halves(&rng, PERIOD * s->v_row);
        s->q = halves(&rng, PERIOD * s->q_row);
    }
    daemon_start(&the_daemon, "memory:\n  cap: 64MiB\nlisten:\n  max_connections: 64\n"
                              "workers:\n  threads: 2\nlog:\n  level: error\n");
    *state = &the_daemon;
    return 0;
}

static int stop(void **state)
{
    for (uint32_t i = 0; i < N_LAYERS; i++) {
        free(streams[i].k);
        free(streams[i].v);
        free(streams[i].q);
    }
    return daemon_stop(*state, SIGTERM);
}

static struct trikv_client *connect_to(const char *path)
{
    const struct trikv_options o = {
        .size = sizeof(o), .socket = path, .timeout_ms = 60000, .name = "check_stress"};
    struct trikv_client *c = NULL;

    return trikv_connect(&c, &o) ? NULL : c;
}

static double now_us(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec * 1e-3;
}

/* ---- what a query must see -------------------------------------------------------------------- */

struct result {
    float out[MAX_OUT];
    float lse[8];
};

/* Is this what a query on the last of the tokens at positions[n_tokens] sees? */
static bool is_right(uint32_t layer, const int32_t *positions, uint32_t n_tokens,
                     const struct result *r)
{
    static float k[MAX_KEPT * MAX_ROW], v[MAX_KEPT * MAX_ROW];
    const struct trikv_layer *l = &layers[layer];
    const struct stream *s = &streams[layer];
    const int32_t last = positions[n_tokens - 1];
    const struct naive n = {
        .shape = {l->n_q_heads, l->n_kv_heads, l->head_dim_k, l->head_dim_v, 0},
        .scale = 1 / sqrt(l->head_dim_k),
        .sinks = l->sinks,
        .window_tokens = l->window_tokens,
        .n_keys = n_tokens,
        .key_positions = positions,
        .k = k,
        .v = v,
    };
    double want[64], worst = 0;

    for (uint32_t i = 0; i < n_tokens; i++) {
        const size_t at = (size_t)positions[i] % PERIOD;

        memcpy(k + i * s->k_row, s->k + at * s->k_row, s->k_row * sizeof(float));
        memcpy(v + i * s->v_row, s->v + at * s->v_row, s->v_row * sizeof(float));
    }
    for (uint32_t h = 0; h < l->n_q_heads; h++) {
        const float *q = s->q + (size_t)last % PERIOD * s->q_row + (size_t)h * l->head_dim_k;

        worst = naive_worse(worst, naive_attend(&n, h, last, q, want) - (double)r->lse[h]);
        for (uint32_t i = 0; i < l->head_dim_v; i++)
            worst = naive_worse(worst, want[i] - (double)r->out[(size_t)h * l->head_dim_v + i]);
    }
    return worst < 1e-4;
}

static struct trikv_step step_of(uint32_t layer, const int32_t *position, struct result *r)
{
    const struct stream *s = &streams[layer];
    const size_t token = (size_t)*position;

    return (struct trikv_step){.size = sizeof(struct trikv_step),
                               .layer = layer,
                               .n_tokens = 1,
                               .dtype = TRIKV_F32,
                               .positions = position,
                               .k = s->k + token % PERIOD * s->k_row,
                               .v = s->v + token % PERIOD * s->v_row,
                               .q = s->q + token % PERIOD * s->q_row,
                               .out = r->out,
                               .lse = r->lse};
}

/* ---- readers ------------------------------------------------------------------------------------ */

enum { NO_CONNECTION = 1, NO_MAP, NO_ATTENTION, NO_TOKEN, WRONG, CHANGED, NO_UNMAP };

/* Are the tokens that a KV head keeps those of their positions? Says which they are. */
static bool tokens_are_right(const struct tkv_cache *c, uint32_t layer, uint32_t kv_head,
                             int32_t *positions, uint32_t *n)
{
    static float k[MAX_KEPT * 64], v[MAX_KEPT * 64];
    const struct stream *s = &streams[layer];
    const size_t dk = c->shape.head_dim_k, dv = c->shape.head_dim_v;
    const struct tkv_cache_read r = {.kv_head = kv_head,
                                     .n_tokens = (uint32_t)tkv_cache_n_kept(c, kv_head),
                                     .dtype = TKV_F32,
                                     .positions = positions,
                                     .k = k,
                                     .v = v,
                                     .k_stride = dk,
                                     .v_stride = dv};

    *n = r.n_tokens;
    if (*n == 0 || *n > MAX_KEPT)
        return false;
    tkv_cache_read(c, &r);
    for (uint32_t i = 0; i < *n; i++) {
        const size_t at = (size_t)(uint32_t)positions[i] % PERIOD;

        if (positions[i] < 0 || (i > 0 && positions[i] <= positions[i - 1]) ||
            memcmp(k + i * dk, s->k + at * s->k_row + kv_head * dk, dk * sizeof(float)) != 0 ||
            memcmp(v + i * dv, s->v + at * s->v_row + kv_head * dv, dv * sizeof(float)) != 0)
            return false;
    }
    return true;
}

/* Everything of one map: it must be right, and it must not change. 0 or what went wrong. */
static int look_at(struct trikv_map *map)
{
    for (uint32_t layer = 0; layer < N_LAYERS; layer++) {
        struct result x = {0}, y = {0};
        int32_t positions[MAX_KEPT];
        struct trikv_step t;
        uint32_t n = 0;

        if (trikv_map_n_seen(map, layer) == 0)
            continue;
        for (uint32_t h = 0; h < layers[layer].n_kv_heads; h++)
            if (!tokens_are_right(&map->caches[layer], layer, h, positions, &n))
                return NO_TOKEN;
        t = step_of(layer, &positions[n - 1], &x);
        if (trikv_attend_local(map, &t))
            return NO_ATTENTION;
        if (!is_right(layer, positions, n, &x))
            return WRONG;
        for (int again = 0; again < 20; again++) {
            t.out = y.out;
            t.lse = y.lse;
            if (trikv_attend_local(map, &t))
                return NO_ATTENTION;
            if (memcmp(&x, &y, sizeof(x)) != 0)
                return CHANGED;
        }
    }
    return 0;
}

static void read_until_killed(uint64_t session, unsigned number)
{
    struct trikv_client *c = connect_to(the_daemon.socket);
    struct rng rng = {seed + number};

    /* The writer's wait is to be that for the daemon, not that for one of few cores. */
    (void)setpriority(PRIO_PROCESS, 0, 19);
    for (uint32_t i = 1; c; i++) {
        struct trikv_map *map;
        int e;

        if (trikv_map(c, session, &map))
            _exit(NO_MAP);
        e = look_at(map);
        if (e)
            _exit(e);
        if (i % 8 && trikv_unmap(&map)) /* some are left to the end of the connection */
            _exit(NO_UNMAP);
        if (i % 30 == 0) {
            trikv_disconnect(&c);
            c = connect_to(the_daemon.socket);
        }
        usleep(rng_below(&rng, 2 * PAUSE_US));
    }
    _exit(NO_CONNECTION);
}

static pid_t start_reader(uint64_t session, unsigned number)
{
    const pid_t pid = fork();

    assert_true(pid >= 0);
    if (pid == 0)
        read_until_killed(session, number);
    return pid;
}

static void kill_reader(pid_t pid)
{
    static const char *const names[] = {"",           "no connection", "no map",  "no attention",
                                        "torn token", "wrong result",  "changed", "no unmap"};
    int status;

    assert_int_equal(kill(pid, SIGKILL), 0);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    if (!WIFSIGNALED(status))
        fail_msg("a reader ended: %s", names[WEXITSTATUS(status) % 8]);
}

/* ---- the writer ----------------------------------------------------------------------------------- */

/* How long append_attend of one token took. */
struct samples {
    float *us; /* [MAX_SAMPLES] */
    size_t n;
};

struct writer {
    struct trikv_client *client;
    struct trikv_session *session;
    int32_t positions[PERIOD]; /* of the newest tokens, which are n, in every layer */
    uint32_t n;
    int32_t next; /* position */
    struct rng rng;
    struct samples alone, together, *now;
};

static void write_token(struct writer *w)
{
    struct result r = {0};

    if (w->n == PERIOD) {
        memmove(w->positions, w->positions + PERIOD / 2, PERIOD / 2 * sizeof(*w->positions));
        w->n = PERIOD / 2;
    }
    w->positions[w->n++] = w->next++;
    for (uint32_t layer = 0; layer < N_LAYERS; layer++) {
        const struct trikv_step t = step_of(layer, &w->positions[w->n - 1], &r);
        const double begin = now_us();

        if (trikv_append_attend(w->session, &t))
            fail_msg("%s", trikv_last_error(w->client));
        if (w->now->n < MAX_SAMPLES)
            w->now->us[w->now->n++] = (float)(now_us() - begin);
        if (w->next % 16 == (int32_t)layer && !is_right(layer, w->positions, w->n, &r))
            fail_msg("layer %u: the writer's position %d", layer, w->next - 1);
    }
}

static void write_until(struct writer *w, double end_us)
{
    while (now_us() < end_us) {
        const uint32_t back = 1 + rng_below(&w->rng, ROLLBACK);

        write_token(w);
        if (rng_below(&w->rng, 16) == 0 && w->n > back && !trikv_truncate(w->session, back))
            w->n -= back;
    }
}

static int compare(const void *a, const void *b)
{
    const float x = *(const float *)a, y = *(const float *)b;

    return (x > y) - (x < y);
}

static void samples_init(struct samples *s)
{
    s->us = malloc(MAX_SAMPLES * sizeof(*s->us));
    assert_non_null(s->us);
}

/* The p99 of what was measured, which goes. */
static double take_p99(struct samples *s, const char *when)
{
    double p99;

    assert_true(s->n > 100);
    qsort(s->us, s->n, sizeof(*s->us), compare);
    p99 = (double)s->us[s->n - s->n / 100 - 1];
    print_message("writer %s: %zu steps, p50 %.1f us, p99 %.1f us, longest %.1f us\n", when, s->n,
                  (double)s->us[s->n / 2], p99, (double)s->us[s->n - 1]);
    free(s->us);
    return p99;
}

static void writer_open(struct writer *w)
{
    struct trikv_session_options o = TRIKV_SESSION_OPTIONS_INIT;

    o.n_layers = N_LAYERS;
    o.layers = layers;
    o.codec_k = o.codec_v = "f16";
    o.method = "none";
    o.recent_tokens = 32;
    o.rollback_tokens = ROLLBACK;
    if (trikv_open(w->client, &o, &w->session))
        fail_msg("%s", trikv_last_error(w->client));
    w->n = 0;
    w->next = 0;
}

/* What the daemon holds once nobody but the writer and this watcher is there. */
static uint64_t settled_bytes(int fd, unsigned *n_fds)
{
    struct wire_daemon_stats s;

    for (int i = 0; i < 1000; i++) {
        wire_daemon_stats(fd, &s);
        if (s.n_connections == 2)
            break;
        sleep_ms(5);
    }
    assert_int_equal(s.n_connections, 2);
    *n_fds = daemon_fds(&the_daemon);
    return s.memory_used_bytes;
}

static double stress_seconds(void)
{
    const char *given = getenv("TRIKV_STRESS_SECONDS");

    return given ? strtod(given, NULL) : 2;
}

static void signal_all(const pid_t *reader, int signal)
{
    for (unsigned i = 0; i < N_READERS; i++)
        assert_int_equal(kill(reader[i], signal), 0);
}

/* For a while the readers stand still, with what they have mapped: so the machine is the same for both
 * measurements, whatever else it does. */
static void write_alone(struct writer *w, const pid_t *reader)
{
    signal_all(reader, SIGSTOP);
    w->now = &w->alone;
    write_until(w, now_us() + KILL_MS * 1e3);
    w->now = &w->together;
    signal_all(reader, SIGCONT);
}

static uint32_t run_readers(struct writer *w, double seconds)
{
    const uint64_t id = trikv_session_id(w->session);
    const double end = now_us() + seconds * 1e6;
    pid_t reader[N_READERS];
    uint32_t n_kills = 0;

    for (unsigned i = 0; i < N_READERS; i++)
        reader[i] = start_reader(id, i);
    for (; now_us() < end; n_kills++) {
        write_until(w, now_us() + KILL_MS * 1e3);
        if (n_kills % ALONE_EVERY == 0)
            write_alone(w, reader);
        kill_reader(reader[n_kills % N_READERS]);
        reader[n_kills % N_READERS] = start_reader(id, N_READERS + n_kills);
    }
    for (unsigned i = 0; i < N_READERS; i++)
        kill_reader(reader[i]);
    return n_kills;
}

static void nothing_is_torn_and_nothing_is_lost(void **state)
{
    const double seconds = stress_seconds();
    struct writer w = {.client = connect_to(the_daemon.socket), .rng = {seed}};
    const int fd = wire_connect_hello(the_daemon.socket);
    double alone, together;
    unsigned fds_before, fds_after;
    uint64_t before, after;
    uint32_t n_kills;

    (void)state;
    assert_non_null(w.client);
    samples_init(&w.alone);
    samples_init(&w.together);
    w.now = &w.alone;
    writer_open(&w); /* the connection keeps a buffer */
    write_until(&w, now_us() + 1e5);
    assert_int_equal(trikv_close(&w.session), 0);
    before = settled_bytes(fd, &fds_before);
    writer_open(&w);
    w.alone.n = 0;
    w.now = &w.together;
    n_kills = run_readers(&w, seconds);
    alone = take_p99(&w.alone, "alone");
    together = take_p99(&w.together, "with 7 readers");
    print_message("%u readers killed; p99 %.2f times that alone\n", n_kills, together / alone);
    assert_true(n_kills > seconds * 2);
    if (seconds >= 30 && together > 2 * alone)
        fail_msg("the writer's p99 is %.1f us with readers, %.1f us alone", together, alone);
    assert_int_equal(trikv_close(&w.session), 0);
    after = settled_bytes(fd, &fds_after);
    assert_int_equal(after, before);
    assert_int_equal(fds_after, fds_before);
    close(fd);
    trikv_disconnect(&w.client);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nothing_is_torn_and_nothing_is_lost),
    };

    return cmocka_run_group_tests(tests, start, stop);
}
