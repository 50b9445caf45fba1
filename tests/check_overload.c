/*
 * Clients that want four times the memory cap, all the time. Whatever they do, the daemon's own pages
 * and all shared memory it has (its arenas, areas and rings of clients) are at no moment more than 1 MiB
 * over the cap and what it held before the first client came (its code's data, stacks, libraries).
 *
 *   TRIKV_OVERLOAD_SECONDS   how long, default 5
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/daemon_aid.h"
#include "tests/footprint.h"
#include "tests/soak_client.h"
#include "tests/wire.h"

enum { N_CLIENTS = 8, CAP_MIB = 48, OVER = 4, LOOK_MS = 10 };

static const uint64_t seed = 80203;
static struct daemon_aid the_daemon;

static int start(void **state)
{
    daemon_start(&the_daemon, "memory:\n  cap: 48MiB\nlisten:\n  max_connections: 64\n"
                              "limits:\n  evict_idle_after: 50ms\nprefix:\n  entries: 8\n"
                              "workers:\n  threads: 2\nlog:\n  level: error\n");
    *state = &the_daemon;
    wire_serve_well(the_daemon.socket); /* so that what workers keep is there */
    return 0;
}

static int stop(void **state)
{
    return daemon_stop(*state, SIGTERM);
}

static pid_t start_client(unsigned number, double end_s, struct soak_counts *counts)
{
    const struct soak_client c = {.socket = the_daemon.socket,
                                  .seed = seed,
                                  .number = number,
                                  .end_s = end_s,
                                  .counts = counts};
    const pid_t pid = fork();

    assert_true(pid >= 0);
    if (pid == 0)
        soak_glutton_run(&c, ((uint64_t)CAP_MIB << 20) * OVER / N_CLIENTS);
    return pid;
}

struct most {
    uint64_t bytes, own_bytes, shared_bytes, used_bytes;
    unsigned n_looks;
};

static void look(int fd, struct most *m)
{
    const struct footprint f = footprint_of(the_daemon.pid);
    struct wire_daemon_stats stats;

    wire_daemon_stats(fd, &stats);
    if (footprint_bytes(&f) > m->bytes) {
        m->bytes = footprint_bytes(&f);
        m->own_bytes = f.own_bytes;
        m->shared_bytes = f.shared_bytes;
    }
    if (stats.memory_used_bytes > m->used_bytes)
        m->used_bytes = stats.memory_used_bytes;
    m->n_looks++;
}

static void the_cap_holds(void **state)
{
    const char *given = getenv("TRIKV_OVERLOAD_SECONDS");
    const double end_s = soak_now_s() + (given ? strtod(given, NULL) : 5);
    const int fd = wire_connect_hello(the_daemon.socket);
    const struct footprint before = footprint_of(the_daemon.pid);
    const uint64_t cap = (uint64_t)CAP_MIB << 20;
    struct soak_counts *counts =
        mmap(NULL, sizeof(*counts), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    struct most most = {0};
    pid_t pid[N_CLIENTS];

    (void)state;
    assert_true(counts != MAP_FAILED);
    for (unsigned i = 0; i < N_CLIENTS; i++)
        pid[i] = start_client(i, end_s, counts);
    while (soak_now_s() < end_s) {
        look(fd, &most);
        sleep_ms(LOOK_MS);
    }
    for (unsigned i = 0; i < N_CLIENTS; i++) {
        int status;

        assert_int_equal(waitpid(pid[i], &status, 0), pid[i]);
        assert_int_equal(status, 0);
    }
    print_message(
        "cap %d MiB, before the first client %.2f MiB; at most %.2f MiB (own %.2f, shared "
        "%.2f), reserved %.2f MiB; over the cap and that: %+.2f MiB, of %u looks\n",
        CAP_MIB, (double)footprint_bytes(&before) / 0x1p20, (double)most.bytes / 0x1p20,
        (double)most.own_bytes / 0x1p20, (double)most.shared_bytes / 0x1p20,
        (double)most.used_bytes / 0x1p20,
        ((double)most.bytes - (double)cap - (double)footprint_bytes(&before)) / 0x1p20,
        most.n_looks);
    print_message("%llu clients, %llu sessions, %llu tokens, %llu refused, %llu evicted\n",
                  counts->n_lives, counts->n_sessions, counts->n_tokens, counts->n_refused,
                  counts->n_evicted);
    assert_true(most.used_bytes <= cap);
    if (footprint_is_telling()) {
        assert_true(counts->n_refused > 0 && most.used_bytes > cap / 10 * 9);
        assert_true(most.bytes <= footprint_bytes(&before) + cap + (1 << 20));
    }
    close(fd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_cap_holds),
    };

    return cmocka_run_group_tests(tests, start, stop);
}
