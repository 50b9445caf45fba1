/*
 * Restarts of trikvd under a stand-in for the service manager: what survives a kill, a stop and an
 * upgrade, and what does not. CRASHES=N in the environment: so many kills at random moments under load
 * (make check-crash). RECOVERY_MIB=N: how much a successor must have within 200 ms.
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
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "store/arena_kept.h"
#include "tests/crash_load.h"
#include "tests/manager.h"
#include "tests/rng.h"
#include "tests/service.h"

enum { N_CLIENTS = 3, DEFAULT_CRASHES = 12 };

static const char *const CONFIG =
    "memory:\n  cap: 256MiB\nworkers:\n  threads: 2\nlog:\n  level: info\n"
    "restart:\n  grace: 5s\n";

static struct trikv_client *connect_to(const char *socket)
{
    const struct trikv_options o = {.size = sizeof(o), .socket = socket, .timeout_ms = 30000};
    struct trikv_client *c = NULL;

    if (trikv_connect(&c, &o))
        fail_msg("connect: %s", trikv_last_error(c));
    return c;
}

static void feed(struct trikv_session *s, struct service_data *d, uint32_t first, uint32_t n)
{
    for (uint32_t layer = 0; layer < SERVICE_LAYERS; layer++) {
        const struct trikv_step step = service_step(&d[layer], layer, first, n);

        assert_int_equal(trikv_append_attend(s, &step), 0);
    }
}

struct scene {
    struct manager m;
    struct trikv_client *c;
    struct trikv_session *s;
    struct service_data d[SERVICE_LAYERS];
};

static void begin_with(struct scene *x, const char *config, bool deaf)
{
    manager_init(&x->m, config);
    x->m.is_deaf = deaf;
    (void)manager_start(&x->m);
    x->c = connect_to(x->m.socket);
    x->s = service_open(x->c, "tq4");
    for (uint32_t i = 0; i < SERVICE_LAYERS; i++)
        service_data_init(&x->d[i], i);
    feed(x->s, x->d, 0, 300);
}

static void begin(struct scene *x)
{
    begin_with(x, CONFIG, false);
}

static void end(struct scene *x)
{
    for (uint32_t i = 0; i < SERVICE_LAYERS; i++)
        service_data_deinit(&x->d[i]);
    trikv_disconnect(&x->c);
    if (x->m.pid)
        assert_int_equal(manager_stop(&x->m, SIGTERM), 0);
    manager_deinit(&x->m);
}

/* What attention gives now: the same bits before and after. */
static void look(struct scene *x, float *out)
{
    const struct trikv_step step = {
        .size = sizeof(step), .layer = 0, .n_tokens = 1, .q = x->d[0].q, .out = out};

    assert_int_equal(trikv_attend(x->s, &step), 0);
}

static void survives(struct scene *x, int signal)
{
    float before[512] = {0}, after[512] = {0};
    uint64_t n_seen[SERVICE_LAYERS];
    struct trikv_progress p = {.size = sizeof(p), .n_seen = n_seen, .n_seen_cap = SERVICE_LAYERS};
    const uint64_t id = trikv_session_id(x->s);

    look(x, before);
    (void)manager_stop(&x->m, signal);
    assert_int_equal(x->m.n_kept, 1);
    (void)manager_start(&x->m);
    assert_int_equal(trikv_attend(x->s, &(struct trikv_step){.size = sizeof(struct trikv_step),
                                                             .n_tokens = 1,
                                                             .q = x->d[0].q,
                                                             .out = after}),
                     TRIKV_E_DISCONNECTED);
    assert_int_equal(trikv_reconnect(x->c), 0);
    if (trikv_reattach(x->s, &p))
        fail_msg("reattach: %s", trikv_last_error(x->c));
    assert_true(trikv_session_id(x->s) == id);
    assert_int_equal(p.n_layers, SERVICE_LAYERS);
    for (uint32_t i = 0; i < SERVICE_LAYERS; i++)
        assert_int_equal(n_seen[i], 300);
    look(x, after);
    assert_memory_equal(before, after, sizeof(before));
}

static void a_session_survives_a_kill(void **state)
{
    struct scene x;

    (void)state;
    begin(&x);
    survives(&x, SIGKILL);
    survives(&x, SIGKILL);
    feed(x.s, x.d, 300, 100);
    assert_int_equal(trikv_reattach(x.s, NULL), TRIKV_E_STATE); /* it has a connection */
    end(&x);
}

static void a_session_survives_a_stop(void **state)
{
    struct scene x;

    (void)state;
    begin(&x);
    survives(&x, SIGTERM);
    feed(x.s, x.d, 300, 100);
    end(&x);
}

/* Another process of the user may go on with it, if it knows which daemon opened it. */
static void a_session_is_found_by_its_name(void **state)
{
    struct scene x;
    struct trikv_session *s = NULL;
    uint64_t id, boot_id;

    (void)state;
    begin(&x);
    id = trikv_session_id(x.s);
    boot_id = trikv_session_boot_id(x.s);
    assert_true(boot_id == trikv_info(x.c)->boot_id);
    (void)manager_stop(&x.m, SIGKILL);
    (void)manager_start(&x.m);
    trikv_disconnect(&x.c);
    x.c = connect_to(x.m.socket);
    assert_int_equal(trikv_reattach_id(x.c, id, boot_id + 1, NULL, &s), TRIKV_E_NO_SESSION);
    assert_null(s);
    assert_int_equal(trikv_reattach_id(x.c, id + 1, boot_id, NULL, &s), TRIKV_E_NO_SESSION);
    if (trikv_reattach_id(x.c, id, boot_id, NULL, &s))
        fail_msg("%s", trikv_last_error(x.c));
    assert_int_equal(trikv_session_n_layers(s), SERVICE_LAYERS);
    feed(s, x.d, 300, 50);
    end(&x);
}

/* The manager forgets what is closed, and what nobody comes back for goes. */
static void what_is_closed_is_not_kept(void **state)
{
    struct scene x;
    struct trikv_session *fork = NULL;

    (void)state;
    begin(&x);
    assert_int_equal(trikv_fork(x.s, NULL, &fork), 0);
    manager_listen(&x.m, 20);
    assert_int_equal(x.m.n_kept, 1); /* one arena */
    assert_int_equal(trikv_close(&x.s), 0);
    manager_listen(&x.m, 20);
    assert_int_equal(x.m.n_kept, 1);
    assert_int_equal(trikv_close(&fork), 0);
    manager_listen(&x.m, 50);
    assert_int_equal(x.m.n_kept, 0);
    x.s = service_open(x.c, "tq4");
    manager_listen(&x.m, 20);
    assert_int_equal(x.m.n_kept, 1);
    trikv_disconnect(&x.c);
    manager_listen(&x.m, 100);
    assert_int_equal(x.m.n_kept, 0); /* a session dies with its connection */
    end(&x);
}

static void nobody_comes_back(void **state)
{
    struct scene x;

    (void)state;
    begin(&x);
    (void)manager_stop(&x.m, SIGKILL);
    (void)manager_start(&x.m);
    assert_int_equal(x.m.n_kept, 1);
    for (int i = 0; i < 100 && x.m.n_kept > 0; i++)
        manager_listen(&x.m, 100);
    assert_int_equal(x.m.n_kept, 0);
    assert_int_equal(trikv_reconnect(x.c), 0);
    assert_int_equal(trikv_reattach(x.s, NULL), TRIKV_E_NO_SESSION);
    end(&x);
}

/* The time to come back is not begun anew by a daemon that dies again and again. */
static void nobody_comes_back_to_any(void **state)
{
    struct scene x;
    int i;

    (void)state;
    begin(&x);
    for (i = 0; i < 14 && x.m.n_kept > 0; i++) {
        (void)manager_stop(&x.m, SIGKILL);
        (void)manager_start(&x.m);
        manager_listen(&x.m, 500);
        assert_true(i < 4 ? x.m.n_kept == 1 : true);
    }
    assert_int_equal(x.m.n_kept, 0);
    assert_int_equal(trikv_reconnect(x.c), 0);
    assert_int_equal(trikv_reattach(x.s, NULL), TRIKV_E_NO_SESSION);
    end(&x);
}

/* An upgrade to a daemon that lays memory out in another way: it says so, and starts cold. */
static void another_version_starts_cold(void **state)
{
    struct scene x;
    const uint32_t version = TKV_KEPT_VERSION + 1;

    (void)state;
    begin(&x);
    (void)manager_stop(&x.m, SIGKILL);
    assert_int_equal(x.m.n_kept, 1);
    assert_int_equal(
        pwrite(x.m.kept[0].fd, &version, sizeof(version), offsetof(struct tkv_kept_super, version)),
        sizeof(version));
    (void)manager_start(&x.m);
    manager_listen(&x.m, 50);
    assert_int_equal(x.m.n_kept, 0);
    assert_true(manager_logged(&x.m, "reason=version"));
    assert_int_equal(trikv_reconnect(x.c), 0);
    assert_int_equal(trikv_reattach(x.s, NULL), TRIKV_E_NO_SESSION);
    x.s = service_open(x.c, "tq4");
    feed(x.s, x.d, 0, 10);
    end(&x);
}

/* A stored prefix with its ids, and a session with its own. */
static void prefixes_survive(void **state)
{
    struct scene x;
    uint32_t ids[300], n = 0;
    struct trikv_prefix prefix = {.size = sizeof(prefix), .token_ids = ids};
    struct trikv_session_options o = service_options("tq4");
    struct trikv_prefix_result result = {0};
    struct trikv_progress p = {.size = sizeof(p)};
    struct trikv_session *s = NULL;

    (void)state;
    begin(&x);
    for (uint32_t i = 0; i < 300; i++)
        ids[i] = i * 7 + 1;
    o.fingerprint = "xxh3:0123456789abcdef";
    o.prefix = &prefix;
    assert_int_equal(trikv_open(x.c, &o, &s), 0);
    for (uint32_t layer = 0; layer < SERVICE_LAYERS; layer++) {
        struct trikv_step step = service_step(&x.d[layer], layer, 0, 300);

        step.positions = NULL;
        step.token_ids = ids;
        assert_int_equal(trikv_append(s, &step), 0);
    }
    if (trikv_keep(s, &n))
        fail_msg("%s", trikv_last_error(x.c));
    assert_int_equal(n, 300);
    (void)manager_stop(&x.m, SIGKILL);
    (void)manager_start(&x.m);
    assert_int_equal(trikv_reconnect(x.c), 0);
    assert_int_equal(trikv_reattach(s, &p), 0);
    assert_int_equal(p.n_token_ids, 300);
    prefix.n_token_ids = 300;
    assert_int_equal(trikv_open(x.c, &o, &s), 0);
    trikv_session_prefix(s, &result);
    assert_int_equal(result.n_tokens, 300);
    end(&x);
}

/* An upgrade without a manager that keeps anything: the new daemon asks the old one. */
static void a_session_is_handed_over(void **state)
{
    struct scene x;
    struct manager next;
    float before[512] = {0}, after[512] = {0};
    char config[512];
    int status;

    (void)state;
    (void)snprintf(config, sizeof(config), "%s  handover: /tmp/trikv-handover-%d\n", CONFIG,
                   (int)getpid());
    begin_with(&x, config, true);
    look(&x, before);
    manager_init(&next, config);
    next.is_deaf = true;
    (void)manager_start(&next);
    assert_int_equal(waitpid(x.m.pid, &status, 0), x.m.pid);
    assert_int_equal(status, 0);
    x.m.pid = 0;
    assert_int_equal(trikv_reconnect(x.c), 0); /* at the same socket */
    if (trikv_reattach(x.s, NULL))
        fail_msg("reattach: %s", trikv_last_error(x.c));
    look(&x, after);
    assert_memory_equal(before, after, sizeof(before));
    feed(x.s, x.d, 300, 50);
    end(&x);
    assert_int_equal(manager_stop(&next, SIGTERM), 0);
    manager_deinit(&next);
}

/* ---- much memory ---------------------------------------------------------------------------- */

enum { BIG_LAYERS = 4, BIG_HEADS = 8, BIG_DIM = 128, BIG_CHUNK = 4096, SLOWEST_MS = 200 };

/* Sessions of 4-bit codes until so much is resident, then a kill. */
static void fill(struct trikv_client *c, uint64_t bytes, struct trikv_session **s, uint64_t *n_seen)
{
    const struct trikv_layer layer = {.n_q_heads = BIG_HEADS,
                                      .n_kv_heads = BIG_HEADS,
                                      .head_dim_k = BIG_DIM,
                                      .head_dim_v = BIG_DIM};
    struct trikv_session_options o = TRIKV_SESSION_OPTIONS_INIT;
    const size_t n = (size_t)BIG_CHUNK * BIG_HEADS * BIG_DIM;
    float *x = malloc(n * sizeof(float));
    struct trikv_stats stats = {0};
    struct rng rng = {3};

    assert_non_null(x);
    for (size_t i = 0; i < n; i++)
        x[i] = rng_uniform(&rng) - 0.5f;
    o.layers = &layer;
    o.same_layers = 1;
    o.n_layers = BIG_LAYERS;
    o.codec_k = o.codec_v = "tq4";
    o.method = "none";
    assert_int_equal(trikv_open(c, &o, s), 0);
    for (*n_seen = 0; stats.resident_bytes < bytes; *n_seen += BIG_CHUNK) {
        for (uint32_t i = 0; i < BIG_LAYERS; i++) {
            const struct trikv_step step = {
                .size = sizeof(step), .layer = i, .n_tokens = BIG_CHUNK, .k = x, .v = x};

            if (trikv_append(*s, &step))
                fail_msg("append: %s", trikv_last_error(c));
        }
        assert_int_equal(trikv_stats(*s, &stats), 0);
    }
    free(x);
}

static void much_memory_comes_back_fast(void **state)
{
    const char *given = getenv("RECOVERY_MIB");
    const uint64_t mib = given ? strtoull(given, NULL, 10) : 64;
    char config[256];
    uint64_t n_seen[BIG_LAYERS] = {0}, n_before, us;
    struct trikv_progress p = {.size = sizeof(p), .n_seen = n_seen, .n_seen_cap = BIG_LAYERS};
    struct trikv_session *s = NULL;
    struct trikv_client *c;
    struct manager m;

    (void)state;
    (void)snprintf(config, sizeof(config), "memory:\n  cap: %lluMiB\nworkers:\n  threads: 2\n",
                   (unsigned long long)mib + mib / 8 + 192);
    manager_init(&m, config);
    (void)manager_start(&m);
    c = connect_to(m.socket);
    fill(c, mib << 20, &s, &n_before);
    (void)manager_stop(&m, SIGKILL);
    us = manager_start(&m);
    print_message("%llu MiB of codes: ready %.1f ms after the start of the process\n",
                  (unsigned long long)mib, (double)us / 1000);
    assert_int_equal(trikv_reconnect(c), 0);
    assert_int_equal(trikv_reattach(s, &p), 0);
    for (uint32_t i = 0; i < BIG_LAYERS; i++)
        assert_true(n_seen[i] == n_before);
    if (given && us > SLOWEST_MS * 1000)
        fail_msg("that is more than %d ms", SLOWEST_MS);
    trikv_disconnect(&c);
    assert_int_equal(manager_stop(&m, SIGTERM), 0);
    manager_deinit(&m);
}

/* ---- killed at random ----------------------------------------------------------------------- */

static uint32_t n_crashes(void)
{
    const char *given = getenv("CRASHES");

    return given ? (uint32_t)strtoul(given, NULL, 10) : DEFAULT_CRASHES;
}

static void start_clients(struct crash_load *load, pid_t *pid)
{
    for (int i = 0; i < N_CLIENTS; i++) {
        pid[i] = fork();
        assert_true(pid[i] >= 0);
        if (pid[i] == 0 && signal(SIGSEGV, SIG_DFL) != SIG_ERR) /* not cmocka's */
            _exit(crash_load_run(load, (uint64_t)i + 1));
    }
}

/* True if all are content. */
static bool end_clients(struct crash_load *load, struct manager *m, const pid_t *pid)
{
    bool good = true;

    atomic_store(&load->stop, 1);
    for (int i = 0; i < N_CLIENTS; i++) {
        int status;

        pid_t ended;

        /* The daemon waits for who does not hear it, and clients for the daemon. */
        while ((ended = waitpid(pid[i], &status, WNOHANG)) == 0)
            manager_listen(m, 1);
        assert_int_equal(ended, pid[i]);
        good &= status == 0;
    }
    print_message(
        "recovered %llu times, compared %llu tokens; of unanswered requests %llu were done, "
        "wholly or in part\n",
        (unsigned long long)atomic_load(&load->n_recoveries),
        (unsigned long long)atomic_load(&load->n_compared),
        (unsigned long long)atomic_load(&load->n_in_flight));
    return good;
}

/* What was lost, for the last line of all. */
static char summary[256];

static void killed_at_random(void **state)
{
    struct crash_load *load =
        mmap(NULL, sizeof(*load), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    struct manager m;
    struct rng rng = {getenv("SEED") ? strtoull(getenv("SEED"), NULL, 10) : 99};
    pid_t pid[N_CLIENTS];
    uint64_t slowest_us = 0;
    const uint32_t n = n_crashes();
    bool good;

    (void)state;
    assert_true(load != MAP_FAILED);
    manager_init(&m, CONFIG);
    (void)manager_start(&m);
    load->socket = m.socket;
    load->twin_socket = service_socket();
    start_clients(load, pid);
    for (uint32_t i = 0; i < n; i++) {
        uint64_t us;

        manager_listen(&m, (int)rng_below(&rng, 60));
        (void)manager_stop(&m, SIGKILL);
        us = manager_start(&m);
        slowest_us = us > slowest_us ? us : slowest_us;
    }
    manager_listen(&m, 500);
    good = end_clients(load, &m, pid);
    snprintf(summary, sizeof(summary),
             "%u kills, %llu requests answered, %llu recoveries, slowest start %.1f ms: %llu "
             "committed tokens lost, %llu wrong",
             n, (unsigned long long)atomic_load(&load->n_requests),
             (unsigned long long)atomic_load(&load->n_recoveries), (double)slowest_us / 1000,
             (unsigned long long)atomic_load(&load->n_lost),
             (unsigned long long)atomic_load(&load->n_wrong));
    assert_true(good);
    assert_true(atomic_load(&load->n_recoveries) > 0);
    assert_int_equal(manager_stop(&m, SIGTERM), 0);
    assert_false(manager_logged(&m, "starts cold"));
    manager_deinit(&m);
    assert_int_equal(atomic_load(&load->n_lost) + atomic_load(&load->n_wrong), 0);
    munmap(load, sizeof(*load));
}

int main(void)
{
    int n_failed;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_session_survives_a_kill),
        cmocka_unit_test(a_session_survives_a_stop),
        cmocka_unit_test(a_session_is_found_by_its_name),
        cmocka_unit_test(what_is_closed_is_not_kept),
        cmocka_unit_test(nobody_comes_back),
        cmocka_unit_test(nobody_comes_back_to_any),
        cmocka_unit_test(another_version_starts_cold),
        cmocka_unit_test(prefixes_survive),
        cmocka_unit_test(a_session_is_handed_over),
        cmocka_unit_test(much_memory_comes_back_fast),
        cmocka_unit_test(killed_at_random),
    };

    n_failed = cmocka_run_group_tests(tests, service_start, service_stop);
    fflush(stdout);
    fprintf(stderr, "%s\n", summary);
    return n_failed;
}
