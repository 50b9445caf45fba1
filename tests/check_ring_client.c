/*
 * Rings through libtrikv: whatever goes through one is to the bit what the socket gives, for random
 * steps of all kinds, copied or in place, one by one or many at once.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/daemon_aid.h"
#include "tests/rng.h"
#include "tests/service.h"

enum { SEED = 99, N_STEPS = 10000, MAX_TOKENS = 5, MOST_FLOATS = 4 * 64 * MAX_TOKENS };

static struct trikv_client *connect_ring(const struct trikv_ring_options *o)
{
    struct trikv_client *c = service_connect(0);

    if (trikv_ring_open(c, o))
        fail_msg("ring: %s", trikv_last_error(c));
    return c;
}

/* A step's tensors, as the socket's client and the ring's have them. */
struct tensors {
    float k[MOST_FLOATS], v[MOST_FLOATS], q[MOST_FLOATS], out[MOST_FLOATS], lse[64];
};

static void fill(float *x, struct rng *rng)
{
    for (size_t i = 0; i < MOST_FLOATS; i++)
        x[i] = rng_gauss(rng);
}

static struct trikv_step make_step(struct tensors *t, uint32_t layer, uint32_t n)
{
    return (struct trikv_step){.size = sizeof(struct trikv_step),
                               .layer = layer,
                               .n_tokens = n,
                               .dtype = TRIKV_F32,
                               .k = t->k,
                               .v = t->v,
                               .q = t->q,
                               .out = t->out,
                               .lse = t->lse};
}

/* One step by each way. */
static void compare(struct trikv_session *by_socket, struct trikv_session *by_ring,
                    struct tensors *a, struct tensors *b, struct rng *rng, bool copied)
{
    const uint32_t layer = rng_below(rng, SERVICE_LAYERS);
    const struct trikv_layer *l = &service_layers[layer];
    const uint32_t n = 1 + rng_below(rng, MAX_TOKENS);
    const uint32_t kind = rng_below(rng, 3);
    struct trikv_step s, r;
    int e[2];

    fill(a->k, rng);
    fill(a->v, rng);
    fill(a->q, rng);
    memcpy(b->k, a->k, 3 * sizeof(a->k));
    memset(a->out, 0, sizeof(a->out));
    memset(b->out, 0, sizeof(b->out));
    s = make_step(a, layer, n);
    r = make_step(b, layer, n);
    if (copied && rng_below(rng, 2))
        s.lse = r.lse = NULL;
    if (rng_below(rng, 50) == 0) { /* a step that fails */
        s.layer = r.layer = SERVICE_LAYERS + layer;
    }
    e[0] = kind == 0   ? trikv_append(by_socket, &s)
           : kind == 1 ? trikv_attend(by_socket, &s)
                       : trikv_append_attend(by_socket, &s);
    e[1] = kind == 0   ? trikv_append(by_ring, &r)
           : kind == 1 ? trikv_attend(by_ring, &r)
                       : trikv_append_attend(by_ring, &r);
    assert_int_equal(e[0], e[1]);
    if (e[0] || kind == 0)
        return;
    assert_memory_equal(a->out, b->out, n * l->n_q_heads * l->head_dim_v * sizeof(float));
    if (s.lse)
        assert_memory_equal(a->lse, b->lse, n * l->n_q_heads * sizeof(float));
}

static void check_random(void **state)
{
    const struct trikv_ring_options o = {
        .size = sizeof(o), .n_entries = 4, .tensor_bytes = sizeof(struct tensors)};
    struct trikv_client *c = service_connect(0), *ringed = connect_ring(&o);
    struct trikv_session *s = NULL, *r = NULL;
    struct tensors *a = malloc(sizeof(*a)), *copied = malloc(sizeof(*a));
    struct tensors *placed = trikv_ring_tensors(ringed);
    struct rng rng = {SEED};
    struct trikv_stats stats[2];

    (void)state;
    assert_true(a && copied && placed);
    for (int i = 0; i < N_STEPS; i++) {
        const bool copies = rng_below(&rng, 2) == 0;

        if (i % 2500 == 0) {
            trikv_close(&s);
            trikv_close(&r);
            s = service_open(c, i % 5000 ? "tq3" : "tq4");
            r = service_open(ringed, i % 5000 ? "tq3" : "tq4");
        }
        compare(s, r, a, copies ? copied : placed, &rng, copies);
        if (i % 500 == 3) {
            assert_int_equal(trikv_truncate(s, 1), trikv_truncate(r, 1));
            assert_int_equal(trikv_stats(s, &stats[0]), 0);
            assert_int_equal(trikv_stats(r, &stats[1]), 0);
            assert_int_equal(stats[0].n_seen, stats[1].n_seen);
            assert_int_equal(stats[0].resident_bytes, stats[1].resident_bytes);
        }
    }
    trikv_close(&s);
    trikv_close(&r);
    assert_int_equal(trikv_ring_close(ringed), 0);
    assert_null(trikv_ring_tensors(ringed));
    trikv_disconnect(&c);
    trikv_disconnect(&ringed);
    free(a);
    free(copied);
}

/* All layers at one doorbell, several tokens before anybody waits; more than the ring holds. */
static void check_batches(void **state)
{
    const struct trikv_ring_options o = {.size = sizeof(o), .n_entries = 8};
    struct trikv_client *c = service_connect(0), *ringed = connect_ring(&o);
    struct trikv_session *s = service_open(c, "tq4"), *r = service_open(ringed, "tq4");
    enum { N = 7 * SERVICE_LAYERS };
    struct tensors *a = calloc(N, sizeof(*a)), *b = calloc(N, sizeof(*b));
    struct rng rng = {SEED};

    (void)state;
    assert_true(a && b);
    for (int round = 0; round < 40; round++) {
        struct trikv_step steps[N];

        for (uint32_t i = 0; i < N; i++) {
            fill(a[i].k, &rng);
            fill(a[i].v, &rng);
            fill(a[i].q, &rng);
            memcpy(b[i].k, a[i].k, 3 * sizeof(a[i].k));
            steps[i] = make_step(&a[i], i % SERVICE_LAYERS, 1);
            assert_int_equal(trikv_append_attend(s, &steps[i]), 0);
            steps[i] = make_step(&b[i], i % SERVICE_LAYERS, 1);
        }
        for (uint32_t i = 0; i < N; i += SERVICE_LAYERS)
            assert_int_equal(
                trikv_ring_submit(r, TRIKV_STEP_APPEND_ATTEND, steps + i, SERVICE_LAYERS), 0);
        assert_int_equal(trikv_ring_wait(ringed), 0);
        for (uint32_t i = 0; i < N; i++)
            assert_memory_equal(a[i].out, b[i].out, 64 * sizeof(float));
    }
    free(a);
    free(b);
    trikv_disconnect(&c);
    trikv_disconnect(&ringed);
}

/* After a step that fails those of the same call are not done, those of the next are. */
static void check_failures(void **state)
{
    struct trikv_client *c = connect_ring(NULL);
    struct trikv_session *s = service_open(c, "tq4");
    struct tensors *t = calloc(1, sizeof(*t));
    struct trikv_step steps[3];
    struct trikv_stats stats;
    struct trikv_session *other = NULL;

    (void)state;
    assert_non_null(t);
    for (uint32_t i = 0; i < 3; i++)
        steps[i] = make_step(t, 0, 1);
    steps[1].n_tokens = MAX_TOKENS;
    t->k[40 * 2] = __builtin_nanf(""); /* of the second token on */
    assert_int_equal(trikv_ring_submit(s, TRIKV_STEP_APPEND, steps, 3), 0);
    assert_int_equal(trikv_ring_submit(s, TRIKV_STEP_APPEND, steps, 1), 0);
    assert_int_equal(trikv_stats(s, &stats), TRIKV_E_STATE);
    assert_int_equal(trikv_append(s, steps), TRIKV_E_STATE);
    assert_int_equal(trikv_fork(s, NULL, &other), TRIKV_E_STATE);
    assert_int_equal(trikv_ring_wait(c), TRIKV_E_VALUE);
    assert_non_null(strstr(trikv_last_error(c), "K[token 1]"));
    assert_int_equal(trikv_ring_wait(c), 0);
    assert_int_equal(trikv_stats(s, &stats), 0);
    assert_int_equal(stats.n_seen, 2);
    steps[1].layer = 77; /* seen by the library itself */
    assert_int_equal(trikv_ring_submit(s, TRIKV_STEP_APPEND, steps, 3), TRIKV_E_ARGUMENT);
    assert_int_equal(trikv_ring_wait(c), 0);
    assert_int_equal(trikv_ring_submit(s, (enum trikv_step_kind)9, steps, 3), TRIKV_E_ARGUMENT);
    assert_int_equal(trikv_ring_open(c, NULL), TRIKV_E_EXISTS);
    assert_int_equal(trikv_ring_close(c), 0);
    assert_int_equal(trikv_ring_close(c), 0);
    assert_int_equal(trikv_ring_submit(s, TRIKV_STEP_APPEND, steps, 1), 0); /* by the socket */
    assert_int_equal(trikv_ring_wait(c), 0);
    assert_int_equal(trikv_stats(s, &stats), 0);
    assert_int_equal(stats.n_seen, 4);
    free(t);
    trikv_disconnect(&c);
}

static void check_options(void **state)
{
    const struct trikv_ring_options bad[] = {
        {.size = sizeof(bad[0]), .n_entries = 3},
        {.size = sizeof(bad[0]), .n_entries = 8192},
        {.size = 1},
    };
    const struct trikv_ring_options huge = {.size = sizeof(huge), .copy_bytes = SIZE_MAX / 2};
    struct trikv_client *c = service_connect(0);

    (void)state;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        assert_int_equal(trikv_ring_open(c, &bad[i]), TRIKV_E_ARGUMENT);
    assert_int_equal(trikv_ring_open(c, &huge), TRIKV_E_TOO_LARGE);
    assert_int_equal(trikv_ring_open(c, NULL), 0);
    trikv_disconnect(&c);
}

/* What does not fit goes by the socket; all of a long prefill, in one step. */
static void check_large(void **state)
{
    const struct trikv_ring_options o = {.size = sizeof(o), .copy_bytes = 4096};
    struct trikv_client *c = service_connect(0), *ringed = connect_ring(&o);
    struct trikv_session *s = service_open(c, "tq4"), *r = service_open(ringed, "tq4");
    struct service_data a, b;

    (void)state;
    service_data_init(&a, 0);
    service_data_init(&b, 0);
    service_feed(c, s, &a, 0, SERVICE_TOKENS);
    service_feed(ringed, r, &b, 0, SERVICE_TOKENS);
    assert_memory_equal(a.out, b.out, (size_t)SERVICE_TOKENS * 4 * 32 * sizeof(float));
    service_data_deinit(&a);
    service_data_deinit(&b);
    trikv_disconnect(&c);
    trikv_disconnect(&ringed);
}

/* Layers of latents have no V. */
static void check_latents(void **state)
{
    const struct trikv_layer layer = {.n_q_heads = 4,
                                      .n_kv_heads = 1,
                                      .head_dim_k = 48,
                                      .head_dim_v = 32,
                                      .scale = 0.2f,
                                      .rope_dim = 16};
    struct trikv_session_options o = service_options("tq4");
    struct trikv_client *c[2] = {service_connect(0), connect_ring(NULL)};
    struct trikv_session *s[2] = {NULL, NULL};
    struct tensors *t = calloc(2, sizeof(*t));
    struct rng rng = {SEED};

    (void)state;
    assert_non_null(t);
    o.n_layers = 1;
    o.layers = &layer;
    for (int i = 0; i < 2; i++)
        if (trikv_open(c[i], &o, &s[i]))
            fail_msg("open: %s", trikv_last_error(c[i]));
    for (int n = 0; n < 100; n++) {
        fill(t[0].k, &rng);
        fill(t[0].q, &rng);
        for (int i = 0; i < 2; i++) {
            struct trikv_step step = make_step(&t[0], 0, 2);

            step.v = NULL;
            step.out = t[i].out;
            if (trikv_append_attend(s[i], &step))
                fail_msg("%s", trikv_last_error(c[i]));
        }
        assert_memory_equal(t[0].out, t[1].out, 2 * 4 * 32 * sizeof(float));
    }
    free(t);
    trikv_disconnect(&c[0]);
    trikv_disconnect(&c[1]);
}

/* Two rings at once, in threads of their own, and forks of what they work on. */
static void *decode(void *arg)
{
    struct trikv_client *c = connect_ring(NULL);
    struct trikv_session *s = service_open(c, "tq4");
    struct tensors *t = calloc(1, sizeof(*t));
    struct rng rng = {SEED};

    *(uint64_t *)arg = trikv_session_id(s);
    for (int i = 0; i < 1500; i++) {
        const struct trikv_step step = make_step(t, (uint32_t)i % SERVICE_LAYERS, 1);

        fill(t->q, &rng);
        if (trikv_append_attend(s, &step))
            fail_msg("%s", trikv_last_error(c));
    }
    free(t);
    trikv_disconnect(&c);
    return NULL;
}

static void check_two(void **state)
{
    pthread_t thread[2];
    uint64_t id[2] = {0};

    (void)state;
    for (int i = 0; i < 2; i++)
        assert_int_equal(pthread_create(&thread[i], NULL, decode, &id[i]), 0);
    for (int i = 0; i < 2; i++)
        pthread_join(thread[i], NULL);
    assert_int_not_equal(id[0], id[1]);
}

/* Stop every thread of it. */
static void halt(pid_t pid)
{
    int status;

    assert_int_equal(kill(pid, SIGSTOP), 0);
    assert_int_equal(waitpid(pid, &status, WUNTRACED), pid);
    assert_true(WIFSTOPPED(status));
}

/* The daemon dies: before a step, and while the client waits for one. */
static void check_daemon_dies(void **state)
{
    struct daemon_aid d;
    struct tensors *t = calloc(1, sizeof(*t));
    struct trikv_step step;

    (void)state;
    assert_non_null(t);
    for (int i = 0; i < 2; i++) {
        struct trikv_options o = {.size = sizeof(o), .timeout_ms = 20000};
        struct trikv_client *c = NULL;
        struct trikv_session *s;

        daemon_start(&d, "log:\n  level: error\n");
        o.socket = d.socket;
        assert_int_equal(trikv_connect(&c, &o), 0);
        assert_int_equal(trikv_ring_open(c, NULL), 0);
        s = service_open(c, "tq4");
        step = make_step(t, 0, 1);
        assert_int_equal(trikv_append_attend(s, &step), 0);
        if (i == 0) {
            daemon_stop(&d, SIGKILL);
        } else {
            halt(d.pid);
            if (fork() == 0) {
                sleep_ms(100);
                kill(d.pid, SIGKILL);
                _exit(0);
            }
        }
        assert_int_equal(trikv_append_attend(s, &step), TRIKV_E_DISCONNECTED);
        assert_int_equal(trikv_append_attend(s, &step), TRIKV_E_DISCONNECTED);
        assert_int_equal(trikv_ring_wait(c), TRIKV_E_DISCONNECTED);
        trikv_disconnect(&c);
        if (i == 1) {
            daemon_stop(&d, SIGKILL);
            wait(NULL);
        }
    }
    free(t);
}

/* A daemon that is stopped answers nothing: the deadline ends the wait. */
static void check_deadline(void **state)
{
    struct daemon_aid d;
    struct tensors *t = calloc(1, sizeof(*t));
    const struct trikv_step step = make_step(t, 0, 1);
    struct trikv_options o = {.size = sizeof(o), .timeout_ms = 1000};
    struct trikv_client *c = NULL;
    struct trikv_session *s;

    (void)state;
    daemon_start(&d, "log:\n  level: error\n");
    o.socket = d.socket;
    assert_int_equal(trikv_connect(&c, &o), 0);
    assert_int_equal(trikv_ring_open(c, NULL), 0);
    s = service_open(c, "tq4");
    halt(d.pid);
    assert_int_equal(trikv_append_attend(s, &step), TRIKV_E_DEADLINE);
    assert_int_equal(trikv_append_attend(s, &step), TRIKV_E_DISCONNECTED);
    trikv_disconnect(&c);
    kill(d.pid, SIGCONT);
    assert_int_equal(daemon_stop(&d, SIGTERM), 0);
    free(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(check_random),   cmocka_unit_test(check_batches),
        cmocka_unit_test(check_failures), cmocka_unit_test(check_options),
        cmocka_unit_test(check_large),    cmocka_unit_test(check_latents),
        cmocka_unit_test(check_two),      cmocka_unit_test(check_daemon_dies),
        cmocka_unit_test(check_deadline),
    };

    return cmocka_run_group_tests(tests, service_start, service_stop);
}
