/*
 * A long life at full rate: clients open, append, attend, go back, fork, map, write files, read them and
 * leave, in shifts; meanwhile metrics are scraped and the configuration is read again. After each shift,
 * when nobody is there and no prefix is stored, the daemon must hold to the byte what it held
 * after the first ones, with as many descriptors; what is resident then, and how long a step
 * takes, must be the same in the last third as in the first.
 *
 *   TRIKV_SOAK_SECONDS   how long, default 5; from 60 on times and resident bytes are judged, too
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/daemon_aid.h"
#include "tests/footprint.h"
#include "tests/http_aid.h"
#include "tests/soak_client.h"
#include "tests/wire.h"

enum {
    N_CLIENTS = 5,
    MAX_SHIFTS = 96,
    LONGEST_SHIFT_S = 20,
    N_THIRDS = 3,
    LOOK_MS = 200,
    LONG_S = 60, /* from so many seconds on averages mean something */
};

static const uint64_t seed = 60311;
static const double most_drift = 0.01, most_slower = 1.5;

/* What was seen in one shift: the mean at work, and what was left at rest. */
struct shift {
    double work_bytes, work_used_bytes;
    struct footprint rest;
    uint64_t rest_used_bytes;
};

static struct world {
    struct daemon_aid daemon;
    char metrics[128], files[64];
    struct soak_counts
        *thirds; /* [N_THIRDS + 1], shared with the clients; the last while warming up */
    char *page;
    struct shift shifts[MAX_SHIFTS];
} world;

/* ---- the daemon ------------------------------------------------------------------------------- */

static void configure(char *text, size_t n, unsigned n_prefixes)
{
    (void)snprintf(text, n,
                   "memory:\n  cap: 24MiB\nlisten:\n  max_connections: 64\n"
                   "limits:\n  evict_idle_after: 20ms\nprefix:\n  entries: %u\n"
                   "workers:\n  threads: 2\nlog:\n  level: error\n"
                   "metrics:\n  socket: %s\nsnapshot:\n  directory: %s\n",
                   n_prefixes, world.metrics, world.files);
}

static void reload(unsigned n_prefixes)
{
    static const char done[] = "trikv_reloads_total";
    char text[1024];
    double before;

    assert_int_equal(http_get(world.metrics, "/metrics", true, world.page), 200);
    before = http_sample(world.page, done);
    configure(text, sizeof(text), n_prefixes);
    daemon_write_config(&world.daemon, text);
    assert_int_equal(kill(world.daemon.pid, SIGHUP), 0);
    for (int i = 0; i < 2000 && http_sample(world.page, done) <= before; i++) {
        sleep_ms(5);
        assert_int_equal(http_get(world.metrics, "/metrics", true, world.page), 200);
    }
    assert_true(http_sample(world.page, done) > before);
}

static int start(void **state)
{
    char text[1024];
    void *shared = mmap(NULL, (N_THIRDS + 1) * sizeof(struct soak_counts), PROT_READ | PROT_WRITE,
                        MAP_SHARED | MAP_ANONYMOUS, -1, 0);

    (void)state;
    assert_true(shared != MAP_FAILED);
    world.thirds = shared;
    world.page = malloc(HTTP_REPLY_BYTES);
    assert_non_null(world.page);
    strcpy(world.files, "/tmp/trikv-soak-XXXXXX");
    assert_non_null(mkdtemp(world.files));
    (void)snprintf(world.metrics, sizeof(world.metrics), "%s.metrics", world.files);
    configure(text, sizeof(text), 16);
    daemon_start(&world.daemon, text);
    return 0;
}

static int stop(void **state)
{
    const int status = daemon_stop(&world.daemon, SIGTERM);
    char path[128];

    (void)state;
    free(world.page);
    (void)snprintf(path, sizeof(path), "%s/%u", world.files, (unsigned)getuid());
    /* Every file was deleted by its client, or else these fail. Slow clients may have written none. */
    return status || (rmdir(path) && errno != ENOENT) || rmdir(world.files);
}

/* ---- a shift ---------------------------------------------------------------------------------- */

static pid_t start_client(unsigned number, uint64_t shift, double end_s, struct soak_counts *counts)
{
    const struct soak_client c = {.socket = world.daemon.socket,
                                  .seed = seed + (shift << 32),
                                  .number = number,
                                  .end_s = end_s,
                                  .has_snapshots = true,
                                  .counts = counts};
    const pid_t pid = fork();

    assert_true(pid >= 0);
    if (pid == 0)
        soak_client_run(&c);
    return pid;
}

static void work(struct shift *s, double end_s)
{
    unsigned n = 0;

    do {
        const struct footprint f = footprint_of(world.daemon.pid);

        assert_int_equal(http_get(world.metrics, n % 2 ? "/" : "/metrics", n % 4 == 0, world.page),
                         200);
        if (n % 2 == 0)
            s->work_used_bytes += 2 * http_sample(world.page, "trikv_memory_used_bytes");
        s->work_bytes += (double)footprint_bytes(&f);
        n++;
        sleep_ms(LOOK_MS);
    } while (soak_now_s() < end_s || n % 2);
    s->work_bytes /= n;
    s->work_used_bytes /= n;
}

/* Nobody is there, nothing is stored: what does the daemon still hold? */
static void rest(struct shift *s)
{
    const int fd = wire_connect_hello(world.daemon.socket);
    struct wire_daemon_stats stats;

    for (int i = 0; i < 2000; i++) {
        wire_daemon_stats(fd, &stats);
        if (stats.n_connections == 1 && stats.n_sessions == 0)
            break;
        sleep_ms(5);
    }
    assert_int_equal(stats.n_connections, 1);
    assert_int_equal(stats.n_sessions, 0);
    reload(0);
    sleep_ms(50); /* the last scrape's descriptor */
    wire_daemon_stats(fd, &stats);
    s->rest_used_bytes = stats.memory_used_bytes;
    s->rest = footprint_of(world.daemon.pid);
    close(fd);
    reload(16);
}

static void run_shift(struct shift *s, uint64_t number, double seconds, struct soak_counts *counts)
{
    const double end_s = soak_now_s() + seconds;
    pid_t pid[N_CLIENTS];

    for (unsigned i = 0; i < N_CLIENTS; i++)
        pid[i] = start_client(i, number, end_s, counts);
    work(s, end_s);
    for (unsigned i = 0; i < N_CLIENTS; i++) {
        int status;

        assert_int_equal(waitpid(pid[i], &status, 0), pid[i]);
        if (status)
            fail_msg("client %u of shift %llu (seed %llu): status %x", i,
                     (unsigned long long)number, (unsigned long long)seed, (unsigned)status);
    }
    rest(s);
}

/* ---- judgement -------------------------------------------------------------------------------- */

/* Means over a third. */
struct third {
    double work_bytes, work_used_bytes, rest_bytes;
    double p50_us, p99_us, machine_p99_us;
};

static struct third mean_of(const struct shift *s, size_t n, struct soak_counts *c)
{
    struct third t = {.p50_us = soak_quantile(&c->step, 0.5),
                      .p99_us = soak_quantile(&c->step, 0.99),
                      .machine_p99_us = soak_quantile(&c->machine, 0.99)};

    for (size_t i = 0; i < n; i++) {
        t.work_bytes += s[i].work_bytes / (double)n;
        t.work_used_bytes += s[i].work_used_bytes / (double)n;
        t.rest_bytes += (double)footprint_bytes(&s[i].rest) / (double)n;
    }
    return t;
}

static void tell(const struct third *t, const struct soak_counts *c)
{
    print_message(
        "  at work %.2f MiB (reserved %.2f), at rest %.2f MiB; step p50 %.0f us, p99 %.0f "
        "us, machine p99 %.0f us\n",
        t->work_bytes / 0x1p20, t->work_used_bytes / 0x1p20, t->rest_bytes / 0x1p20, t->p50_us,
        t->p99_us, t->machine_p99_us);
    print_message(
        "  %llu clients, %llu sessions (%llu with a prefix), %llu tokens, %llu steps, %llu "
        "forks, %llu files, %llu refused, %llu evicted\n",
        c->n_lives, c->n_sessions, c->n_prefix_hits, c->n_tokens, c->n_steps, c->n_forks,
        c->n_files, c->n_refused, c->n_evicted);
}

/* What is held at work follows the sessions that are open, which chance and the machine decide: it is told,
 * and judged by what is left when they are gone. */
static void judge(const struct third *first, const struct third *last)
{
    const double at_work = last->work_bytes / first->work_bytes - 1;
    const double reserved = last->work_used_bytes / first->work_used_bytes - 1;
    const double at_rest = last->rest_bytes / first->rest_bytes - 1;
    const double slower = last->p99_us / first->p99_us;
    const double machine = last->machine_p99_us / first->machine_p99_us;

    print_message("drift at rest %+.2f %% (at work %+.2f %%, reserved for sessions %+.2f %%); "
                  "p99 %.2f times, the machine's %.2f\n",
                  at_rest * 100, at_work * 100, reserved * 100, slower, machine);
    if (at_rest >= most_drift)
        fail_msg("resident and shared bytes grow: want less than %.0f %%", most_drift * 100);
    if (slower > most_slower * (machine > 1 ? machine : 1))
        fail_msg("the p99 of steps grew to %.2f times, want at most %.1f", slower, most_slower);
}

static void nothing_wears_out(void **state)
{
    const char *given = getenv("TRIKV_SOAK_SECONDS");
    const double seconds = given ? strtod(given, NULL) : 5;
    const bool is_long = seconds >= LONG_S && footprint_is_telling();
    const size_t per_third = is_long ? MAX_SHIFTS / 4 : 2;
    const size_t n_warm = per_third / 2, n = n_warm + N_THIRDS * per_third;
    const double shift_s = seconds / (double)n;
    struct third thirds[N_THIRDS];
    const struct shift *s = world.shifts;

    (void)state;
    for (size_t i = 0; i < n; i++)
        run_shift(&world.shifts[i], i, shift_s < LONGEST_SHIFT_S ? shift_s : LONGEST_SHIFT_S,
                  &world.thirds[i < n_warm ? N_THIRDS : (i - n_warm) / per_third]);
    for (size_t i = 0; i < N_THIRDS; i++) {
        thirds[i] = mean_of(s + n_warm + i * per_third, per_third, &world.thirds[i]);
        tell(&thirds[i], &world.thirds[i]);
    }
    for (size_t i = n_warm + 1; i < n; i++) {
        assert_int_equal(s[i].rest_used_bytes, s[n_warm].rest_used_bytes);
        assert_int_equal(s[i].rest.n_fds, s[n_warm].rest.n_fds);
    }
    print_message(
        "at rest after each of %zu shifts: %llu bytes reserved, %u descriptors; mappings %u "
        "and %u\n",
        n - n_warm, (unsigned long long)s[n_warm].rest_used_bytes, s[n_warm].rest.n_fds,
        s[n_warm].rest.n_mappings, s[n - 1].rest.n_mappings);
    if (is_long)
        judge(&thirds[0], &thirds[N_THIRDS - 1]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nothing_wears_out),
    };

    return cmocka_run_group_tests(tests, start, stop);
}
