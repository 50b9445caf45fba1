/* FORK and TRUNCATE through the daemon: speculation, forks from other connections, what is left when
 * processes are killed. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/emulated.h"
#include "tests/rng.h"
#include "tests/service.h"
#include "tests/wire.h"

struct scene {
    struct trikv_client *client;
    struct service_data data[SERVICE_LAYERS];
};

static void scene_init(struct scene *s)
{
    s->client = service_connect(0);
    for (uint32_t i = 0; i < SERVICE_LAYERS; i++)
        service_data_init(&s->data[i], i);
}

static void scene_deinit(struct scene *s)
{
    for (uint32_t i = 0; i < SERVICE_LAYERS; i++)
        service_data_deinit(&s->data[i]);
    trikv_disconnect(&s->client);
}

static struct trikv_session *open_with_rollback(struct scene *s, int32_t rollback)
{
    struct trikv_session_options o = service_options("tq4");
    struct trikv_session *session = NULL;

    o.rollback_tokens = rollback;
    if (trikv_open(s->client, &o, &session))
        fail_msg("open: %s", trikv_last_error(s->client));
    return session;
}

/* n tokens from `at` on in every layer; positions go on by themselves. */
static void feed(struct scene *s, struct trikv_session *session, size_t at, size_t n)
{
    for (uint32_t i = 0; i < SERVICE_LAYERS; i++) {
        struct trikv_step t = service_step(&s->data[i], i, at, n);

        t.positions = NULL;
        if (trikv_append_attend(session, &t))
            fail_msg("layer %u: %s", i, trikv_last_error(s->client));
    }
}

/* Both give the same bits for the same query. */
static void assert_same(struct scene *s, struct trikv_session *x, struct trikv_session *y)
{
    static const int32_t far = 100000;

    for (uint32_t i = 0; i < SERVICE_LAYERS; i++) {
        const size_t n = service_layers[i].n_q_heads * service_layers[i].head_dim_v;
        float out[2][256], lse[2][4];
        struct trikv_step t = service_step(&s->data[i], i, 0, 1);

        assert_true(n <= 256);
        t.positions = &far;
        t.out = out[0];
        t.lse = lse[0];
        assert_int_equal(trikv_attend(x, &t), 0);
        t.out = out[1];
        t.lse = lse[1];
        assert_int_equal(trikv_attend(y, &t), 0);
        assert_memory_equal(out[0], out[1], n * sizeof(float));
        assert_memory_equal(lse[0], lse[1], service_layers[i].n_q_heads * sizeof(float));
    }
}

static void speculation_leaves_no_trace(void **state)
{
    struct rng rng = {.state = 3};
    struct scene s;
    struct trikv_session *guesses, *plain;

    (void)state;
    scene_init(&s);
    guesses = open_with_rollback(&s, 8);
    plain = open_with_rollback(&s, 0);
    for (size_t at = 0; at + 20 < SERVICE_TOKENS;) {
        const size_t right = 1 + rng_next(&rng) % 8, wrong = rng_next(&rng) % 9;

        feed(&s, guesses, at, right);
        if (wrong > 0)
            feed(&s, guesses, SERVICE_TOKENS - 10, wrong);
        assert_int_equal(trikv_truncate(guesses, wrong), 0);
        feed(&s, plain, at, right);
        at += right;
        assert_same(&s, guesses, plain);
    }
    assert_int_equal(trikv_truncate(plain, 60), TRIKV_E_STATE);
    assert_non_null(strstr(trikv_last_error(s.client), "rollback_tokens 0"));
    assert_same(&s, guesses, plain);
    scene_deinit(&s);
}

static void a_prompt_is_shared(void **state)
{
    const struct trikv_fork_options named = {.size = sizeof(named), .label = "child"};
    const struct trikv_fork_options budget = {.size = sizeof(budget), .budget_tokens = 1000};
    struct scene s, other;
    struct trikv_session *parent, *child, *far_child, *alone;
    struct trikv_stats stats;

    (void)state;
    scene_init(&s);
    scene_init(&other);
    parent = open_with_rollback(&s, 0);
    feed(&s, parent, 0, 300);
    assert_int_equal(trikv_fork(parent, &named, &child), 0);
    assert_int_equal(trikv_fork_id(other.client, trikv_session_id(parent), NULL, &far_child), 0);
    assert_true(trikv_session_reserved_bytes(child) < 32 << 10);
    feed(&s, parent, 300, 50);
    feed(&s, child, 320, 80);
    feed(&other, far_child, 310, 90);
    assert_int_equal(trikv_stats(far_child, &stats), 0);
    assert_true(stats.shared_bytes > 0 && stats.shared_bytes < stats.resident_bytes);

    alone = open_with_rollback(&s, 0);
    feed(&s, alone, 0, 300);
    feed(&s, alone, 320, 80);
    assert_same(&s, child, alone);
    assert_int_equal(trikv_close(&parent), 0);
    assert_int_equal(trikv_close(&child), 0);
    assert_int_equal(trikv_close(&alone), 0);
    alone = open_with_rollback(&other, 0);
    feed(&other, alone, 0, 300);
    feed(&other, alone, 310, 90);
    trikv_disconnect(&s.client);
    assert_same(&other, far_child, alone);
    assert_int_equal(trikv_fork(far_child, &budget, &child), TRIKV_E_STATE);
    assert_non_null(strstr(trikv_last_error(other.client), "no budget"));
    assert_int_equal(trikv_fork_id(other.client, 12345678, NULL, &child), TRIKV_E_NO_SESSION);
    assert_null(child);
    assert_int_equal(trikv_truncate(far_child, 1000), TRIKV_E_ARGUMENT);
    scene_deinit(&s);
    scene_deinit(&other);
}

/* ---- forks of a session at work ----------------------------------------------------------- */

struct writer {
    struct scene scene;
    struct trikv_session *session;
    int stop;
};

static void *write_all_the_time(void *arg)
{
    struct writer *w = arg;

    for (size_t i = 0; !__atomic_load_n(&w->stop, __ATOMIC_RELAXED); i++)
        feed(&w->scene, w->session, i * 3 % 300, 1 + i % 40);
    return NULL;
}

static void a_session_at_work_can_be_forked(void **state)
{
    struct writer w = {.stop = 0};
    struct scene s;
    pthread_t thread;

    (void)state;
    scene_init(&w.scene);
    scene_init(&s);
    w.session = open_with_rollback(&w.scene, 8);
    assert_int_equal(pthread_create(&thread, NULL, write_all_the_time, &w), 0);
    for (uint32_t i = 0; i < 100; i += emulated_step(12)) {
        struct trikv_session *child;
        struct trikv_stats before, after;

        if (trikv_fork_id(s.client, trikv_session_id(w.session), NULL, &child))
            fail_msg("fork: %s", trikv_last_error(s.client));
        assert_int_equal(trikv_stats(child, &before), 0);
        feed(&s, child, 0, 70);
        assert_int_equal(trikv_stats(child, &after), 0);
        assert_true(after.n_seen >= before.n_seen + 70 && after.n_seen <= before.n_seen + 110);
        assert_int_equal(trikv_close(&child), 0);
    }
    __atomic_store_n(&w.stop, 1, __ATOMIC_RELAXED);
    assert_int_equal(pthread_join(thread, NULL), 0);
    scene_deinit(&w.scene);
    scene_deinit(&s);
}

/* ---- killed processes --------------------------------------------------------------------- */

/* Connect, open, append, fork, truncate, until somebody kills it. */
static void live_until_killed(uint64_t parent)
{
    struct scene s;

    scene_init(&s);
    for (;;) {
        struct trikv_session *session = open_with_rollback(&s, 8), *child, *far_child;

        feed(&s, session, 0, 150);
        if (trikv_fork(session, NULL, &child) || trikv_fork_id(s.client, parent, NULL, &far_child))
            _exit(1);
        feed(&s, child, 150, 60);
        feed(&s, far_child, 150, 60);
        (void)trikv_truncate(child, 3);
        (void)trikv_close(&session);
        (void)trikv_close(&child);
        (void)trikv_close(&far_child);
    }
}

static uint32_t count_fds(pid_t pid)
{
    char command[64], text[16] = "";
    FILE *f;

    (void)snprintf(command, sizeof(command), "ls /proc/%d/fd | wc -l", (int)pid);
    f = popen(command, "r");
    assert_non_null(f);
    assert_non_null(fgets(text, sizeof(text), f));
    (void)pclose(f);
    return (uint32_t)strtoul(text, NULL, 10);
}

struct held {
    struct wire_daemon_stats stats;
    uint32_t n_fds;
};

/* Once everything that ends has ended. */
static struct held held_now(int fd, uint32_t n_sessions)
{
    struct held h;

    for (int i = 0; i < 2000; i++) {
        wire_daemon_stats(fd, &h.stats);
        h.n_fds = count_fds(service_pid());
        if (h.stats.n_sessions == n_sessions && h.stats.n_connections == 2)
            return h;
        usleep(5000);
    }
    fail_msg("sessions %u, connections %u", h.stats.n_sessions, h.stats.n_connections);
    return h;
}

static void the_killed_leave_nothing(void **state)
{
    const char *given = getenv("TRIKV_KILL_CYCLES");
    const unsigned long n_cycles = given ? strtoul(given, NULL, 10) : 40 / emulated_step(4);
    struct rng rng = {.state = 9};
    struct held before, after;
    struct scene s;
    struct trikv_session *parent;
    int fd;

    (void)state;
    scene_init(&s);
    parent = open_with_rollback(&s, 0);
    feed(&s, parent, 0, 300);
    fd = wire_connect_hello(service_socket());
    before = held_now(fd, 1);
    for (unsigned long i = 0; i < n_cycles; i++) {
        const pid_t child = fork();
        int status;

        assert_true(child >= 0);
        if (child == 0)
            live_until_killed(trikv_session_id(parent));
        usleep((unsigned)(rng_next(&rng) % 15000));
        assert_int_equal(kill(child, SIGKILL), 0);
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_true(WIFSIGNALED(status));
    }
    after = held_now(fd, 1);
    assert_int_equal(after.n_fds, before.n_fds);
    /* The tables of the parent's arena keep the largest size that they had: a few hundred bytes,
     * however many cycles. Everything else is back. */
    if (after.stats.memory_used_bytes > before.stats.memory_used_bytes + 2048)
        fail_msg("after %lu kills: %llu bytes held, before %llu", n_cycles,
                 (unsigned long long)after.stats.memory_used_bytes,
                 (unsigned long long)before.stats.memory_used_bytes);
    close(fd);
    scene_deinit(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(speculation_leaves_no_trace),
        cmocka_unit_test(a_prompt_is_shared),
        cmocka_unit_test(a_session_at_work_can_be_forked),
        cmocka_unit_test(the_killed_leave_nothing),
    };

    return cmocka_run_group_tests(tests, service_start, service_stop);
}
