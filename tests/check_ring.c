/*
 * Rings from the other side: what a client may do wrong with the file, the counters and the entries,
 * while the daemon works and when it dies. Each time the daemon must live, answer on the socket,
 * and hold nothing of what is gone.
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
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "proto/errors.h"
#include "proto/trikv.pb-c.h"
#include "tests/daemon_aid.h"
#include "tests/ring_aid.h"
#include "tests/rng.h"
#include "tests/wire.h"

enum { SEED = 4711, TENSOR_BYTES = 64 << 10, N_KILLS = 60, N_STORMS = 30 };

static struct daemon_rest base;

static int start(void **state)
{
    static struct daemon_aid d;

    daemon_start(&d, "memory:\n  cap: 64MiB\nlimits:\n  payload: 1MiB\nworkers:\n  threads: 2\n"
                     "log:\n  level: error\n");
    *state = &d;
    wire_serve_well(d.socket);
    base = daemon_rest_of(&d);
    return 0;
}

static int stop(void **state)
{
    return daemon_stop(*state, SIGTERM);
}

/* A connection with a session and a ring. */
static uint64_t set_up(const struct daemon_aid *d, struct ring_aid *r, uint32_t n_entries)
{
    const int fd = wire_connect_hello(d->socket);
    int code;
    const uint64_t id = wire_open(fd, 2, &code);

    assert_int_equal(code, 0);
    ring_aid_open(r, fd, n_entries, TENSOR_BYTES);
    return id;
}

static void tear_down(struct ring_aid *r)
{
    assert_int_equal(ring_aid_close(r, NULL), 0);
    close(r->fd);
}

/* ---- what works ----------------------------------------------------------------------------- */

/* Round and round in four entries; a twin by the socket gets the same bits. */
static void check_steps(void **state)
{
    const struct daemon_aid *d = *state;
    struct rng rng = {SEED};
    struct wire_reply reply;
    struct ring_aid r;
    const uint64_t id = set_up(d, &r, 4);
    const int twin = wire_connect_hello(d->socket);
    int code;
    const uint64_t twin_id = wire_open(twin, 2, &code);

    for (uint32_t i = 0; i < 300; i++) {
        const uint32_t n = 1 + i % 3;
        struct trikv_ring_entry e = ring_aid_step(&r, id, n);
        const size_t in = (2 * WIRE_K_FLOATS + WIRE_Q_FLOATS) * n * sizeof(float);
        const size_t out = WIRE_Q_FLOATS * n * sizeof(float);

        e.layer = i % 2;
        ring_aid_fill(&r, n, &rng);
        assert_int_equal(ring_aid_do(&r, &e), 0);
        assert_int_equal(ring_aid_last(&r)->tag, e.tag);
        assert_int_equal(
            wire_append_attend(twin, twin_id, e.layer, ring_aid_tensor(&r, 0), in, n, &reply), 0);
        assert_memory_equal(reply.payload, ring_aid_tensor(&r, in), out);
        wire_reply_deinit(&reply);
    }
    assert_int_equal(ring_aid_last(&r)->n_seen, 300);
    assert_int_equal(ring_aid_last(&r)->n_kept, 300);
    close(twin);
    tear_down(&r);
    daemon_check_well(d, &base);
}

/* Many entries at one doorbell are done in order; a failure undoes what is chained to it. */
static void check_chain(void **state)
{
    struct rng rng = {SEED};
    struct ring_aid r;
    const uint64_t id = set_up(*state, &r, 8);
    struct trikv_ring_entry e = ring_aid_step(&r, id, 1);
    const struct trikv_completion *done;

    ring_aid_fill(&r, 1, &rng);
    for (int i = 0; i < 8; i++) {
        e.tag = (uint64_t)i;
        e.layer = i == 2 ? 99 : 0;
        e.flags = i == 1 || i == 2 || i == 3 || i == 5 ? TRIKV_RING_CHAIN : 0;
        ring_aid_put(&r, &e);
    }
    ring_aid_submit(&r);
    assert_true(ring_aid_wait(&r));
    done = ring_aid_last(&r) - 7;
    for (int i = 0; i < 8; i++) {
        assert_int_equal(done[i].tag, i);
        assert_int_equal(done[i].error, i == 2               ? TRIKV_E_ARGUMENT
                                        : (i == 3 || i == 4) ? TRIKV_E_STATE
                                                             : 0);
    }
    assert_int_equal(done[7].n_seen, 5);
    assert_non_null(strstr(done[3].text, "chain"));
    tear_down(&r);
}

/* Steps that cannot be done: the ring lives, and so does the session. */
static void check_bad_steps(void **state)
{
    struct rng rng = {SEED};
    struct ring_aid r;
    const uint64_t id = set_up(*state, &r, 2);
    const struct trikv_ring_entry good = ring_aid_step(&r, id, 1);
    struct trikv_ring_entry e;
    float *k = ring_aid_tensor(&r, 0);
    int32_t *positions = ring_aid_tensor(&r, 32768);

#define EXPECT(change, code)                          \
    do {                                              \
        e = good;                                     \
        change;                                       \
        assert_int_equal(ring_aid_do(&r, &e), code);  \
        assert_true(ring_aid_last(&r)->text[0] != 0); \
    } while (0)
    ring_aid_fill(&r, 1, &rng);
    EXPECT(e.session++, TRIKV_E_NO_SESSION);
    EXPECT(e.session = 0, TRIKV_E_NO_SESSION);
    EXPECT(e.layer = 2, TRIKV_E_ARGUMENT);
    EXPECT(e.layer = UINT32_MAX, TRIKV_E_ARGUMENT);
    EXPECT(e.n_tokens = 0, TRIKV_E_ARGUMENT);
    EXPECT(e.n_tokens = UINT32_MAX, TRIKV_E_ARGUMENT);
    EXPECT(e.k = 0, TRIKV_E_ARGUMENT);
    EXPECT(e.v = 0, TRIKV_E_ARGUMENT);
    EXPECT(e.q = 0, TRIKV_E_ARGUMENT);
    EXPECT(e.out = 0, TRIKV_E_ARGUMENT);
    EXPECT(e.op = TRIKV_RING_APPEND, TRIKV_E_ARGUMENT);
    EXPECT(e.op = TRIKV_RING_ATTEND, TRIKV_E_ARGUMENT);
    EXPECT(e.op = TRIKV_RING_ATTEND; e.k = e.v = 0; e.token_ids = e.q, TRIKV_E_ARGUMENT);
    EXPECT(e.token_ids = e.q, TRIKV_E_STATE); /* not opened with a prefix */
    positions[0] = -1;
    EXPECT(e.positions = ring_aid_place(&r, 32768), TRIKV_E_POSITION);
    k[3] = NAN;
    EXPECT((void)0, TRIKV_E_VALUE);
#undef EXPECT
    k[3] = 1;
    assert_int_equal(ring_aid_do(&r, &good), 0);
    assert_int_equal(ring_aid_last(&r)->n_seen, 1);
    tear_down(&r);
}

/* What the socket says of a session that is not there, or another's, the ring says too. */
static void check_not_ours(void **state)
{
    const struct daemon_aid *d = *state;
    struct rng rng = {SEED};
    struct ring_aid r, other;
    const uint64_t id = set_up(d, &r, 4), others = set_up(d, &other, 4);
    const uint64_t ids[] = {others, 0, UINT64_MAX};
    struct wire_reply reply;
    struct trikv_ring_entry e;
    float *payload;
    size_t bytes;

    payload = wire_payload(&rng, 1, &bytes);
    ring_aid_fill(&r, 1, &rng);
    for (size_t i = 0; i < sizeof(ids) / sizeof(ids[0]); i++) {
        const int code = wire_append_attend(r.fd, ids[i], 0, payload, bytes, 1, &reply);

        assert_int_equal(code, i == 0 ? TRIKV_E_DENIED : TRIKV_E_NO_SESSION);
        e = ring_aid_step(&r, ids[i], 1);
        assert_int_equal(ring_aid_do(&r, &e), code);
        assert_string_equal(ring_aid_last(&r)->text, reply.text);
        wire_reply_deinit(&reply);
    }
    e = ring_aid_step(&r, id, 1);
    assert_int_equal(ring_aid_do(&r, &e), 0);
    free(payload);
    tear_down(&r);
    tear_down(&other);
    daemon_check_well(d, &base);
}

/* ---- files ---------------------------------------------------------------------------------- */

static void check_files(void **state)
{
    const struct daemon_aid *d = *state;
    const size_t bytes = tkv_ring_tensors_at(4) + 4096;
    const int fd = wire_connect_hello(d->socket);
    struct ring_aid r;
    char text[256];
    int file;

#define EXPECT(make, announced, code, part)                                  \
    do {                                                                     \
        file = make;                                                         \
        assert_int_equal(ring_aid_ask(&r, fd, file, announced, text), code); \
        assert_non_null(strstr(text, part));                                 \
        close(file);                                                         \
    } while (0)
    EXPECT(ring_aid_file(4, bytes, 0), bytes, TRIKV_E_ARGUMENT, "F_SEAL_SHRINK");
    EXPECT(ring_aid_file(4, bytes, F_SEAL_GROW), bytes, TRIKV_E_ARGUMENT, "F_SEAL_SHRINK");
    EXPECT(ring_aid_file(4, bytes, F_SEAL_SHRINK), bytes + 64, TRIKV_E_SIZE, "memfd of");
    EXPECT(ring_aid_file(4, bytes, F_SEAL_SHRINK), bytes - 64, TRIKV_E_SIZE, "memfd of");
    EXPECT(ring_aid_file(4, bytes, F_SEAL_SHRINK), 0, TRIKV_E_ARGUMENT, "ring_bytes");
    EXPECT(ring_aid_file(4, bytes, F_SEAL_SHRINK), UINT64_MAX, TRIKV_E_ARGUMENT, "ring_bytes");
    EXPECT(ring_aid_file(0, bytes, F_SEAL_SHRINK), bytes, TRIKV_E_ARGUMENT, "n_entries");
    EXPECT(ring_aid_file(3, bytes, F_SEAL_SHRINK), bytes, TRIKV_E_ARGUMENT, "n_entries");
    EXPECT(ring_aid_file(8192, bytes, F_SEAL_SHRINK), bytes, TRIKV_E_ARGUMENT, "n_entries");
    EXPECT(ring_aid_file(UINT32_MAX, bytes, F_SEAL_SHRINK), bytes, TRIKV_E_ARGUMENT, "n_entries");
    EXPECT(ring_aid_file(32, bytes, F_SEAL_SHRINK), bytes, TRIKV_E_SIZE, "32 entries need");
    EXPECT(open("/proc/self/exe", O_RDONLY | O_CLOEXEC), bytes, TRIKV_E_ARGUMENT, "memfd");
    EXPECT(eventfd(0, EFD_CLOEXEC), bytes, TRIKV_E_ARGUMENT, "memfd");
#undef EXPECT
    assert_int_equal(ring_aid_ask(&r, fd, -1, bytes, text), TRIKV_E_ARGUMENT);
    assert_int_equal(wire_plain_call(fd, TRIKV_RING_CLOSE, NULL, NULL), TRIKV_E_STATE);
    ring_aid_open(&r, fd, 4, 4096);
    file = ring_aid_file(4, bytes, F_SEAL_SHRINK);
    assert_int_equal(ring_aid_ask(&r, fd, file, bytes, text), TRIKV_E_EXISTS);
    close(file);
    ring_aid_drop(&r);
    close(fd);
    daemon_check_well(d, &base);
}

/* ---- entries and counters that end a ring ----------------------------------------------------- */

/* The ring ends with this text; the connection and its session live, and a new ring can be had. */
static void expect_end(struct ring_aid *r, uint64_t id, const char *part)
{
    struct rng rng = {SEED};
    struct trikv_ring_entry e;
    struct wire_reply reply;
    char text[256];

    assert_int_equal(ring_aid_ended(r), TRIKV_E_PROTOCOL);
    assert_int_equal(wire_session_call(r->fd, TRIKV_STATS, id, &reply), 0);
    wire_reply_deinit(&reply);
    assert_int_equal(ring_aid_close(r, text), TRIKV_E_PROTOCOL);
    if (!strstr(text, part))
        fail_msg("\"%s\" has no \"%s\"", text, part);
    ring_aid_open(r, r->fd, 4, TENSOR_BYTES);
    e = ring_aid_step(r, id, 1);
    ring_aid_fill(r, 1, &rng);
    assert_int_equal(ring_aid_do(r, &e), 0);
}

static void check_hostile_entries(void **state)
{
    struct ring_aid r;
    const uint64_t id = set_up(*state, &r, 4);
    struct trikv_ring_entry e;

#define EXPECT(change, part)          \
    do {                              \
        e = ring_aid_step(&r, id, 1); \
        change;                       \
        ring_aid_put(&r, &e);         \
        ring_aid_submit(&r);          \
        expect_end(&r, id, part);     \
    } while (0)
    EXPECT(e.op = TRIKV_RING_N_OPS, "op");
    EXPECT(e.op = UINT16_MAX, "op");
    EXPECT(e.flags = 2, "flags");
    EXPECT(e.flags = 0xff, "flags");
    EXPECT(e.dtype = 3, "dtype");
    EXPECT(e.reserved[0] = 1, "reserved");
    EXPECT(e.reserved[7] = 1, "reserved");
    EXPECT(e.k = 1, "K:");
    EXPECT(e.k = UINT32_MAX, "K:");
    EXPECT(e.v = ring_aid_place(&r, 0) - 1, "V:");
    EXPECT(e.q = (uint32_t)(r.bytes / 64) - 1, "Q:");
    EXPECT(e.q = (uint32_t)(r.bytes / 64), "Q:");
    EXPECT(e.out = 8, "O:");
    EXPECT(e.out = UINT32_MAX - 1, "O:");
    EXPECT(e.lse = 1, "LSE:");
    EXPECT(e.positions = 3, "positions:");
    EXPECT(e.token_ids = 7, "token ids:");
    EXPECT(e.token_ids = (uint32_t)(r.bytes / 64), "token ids:");
    EXPECT(e.n_tokens = 1 << 20, "K:");
#undef EXPECT
    tear_down(&r);
    daemon_check_well(*state, &base);
}

static void check_counters(void **state)
{
    static const uint64_t values[] = {5, 6, UINT64_MAX, UINT64_MAX / 2, UINT64_C(1) << 32};
    struct ring_aid r;
    const uint64_t id = set_up(*state, &r, 4);

    for (size_t i = 0; i < sizeof(values) / sizeof(values[0]); i++) {
        r.n_written += values[i];
        ring_aid_submit(&r);
        eventfd_write(r.doorbell_fd, 1); /* nobody waits for a count that is lower */
        expect_end(&r, id, "submitted");
    }
    r.n_written--; /* backwards */
    ring_aid_submit(&r);
    eventfd_write(r.doorbell_fd, 1);
    expect_end(&r, id, "submitted");
    /* What is the daemon's in the file is not believed either. */
    atomic_store(&r.shared->completed, UINT64_MAX);
    atomic_store(&r.shared->daemon_waits_for, 1);
    r.shared->header.n_entries = UINT32_MAX;
    r.shared->header.magic = 0;
    {
        const struct trikv_ring_entry e = ring_aid_step(&r, id, 1);

        ring_aid_put(&r, &e);
        ring_aid_submit(&r);
        for (int i = 0; i < 1000 && atomic_load(&r.shared->completed) != 2; i++)
            sleep_ms(2);
        assert_int_equal(atomic_load(&r.shared->completed), 2);
    }
    tear_down(&r);
    daemon_check_well(*state, &base);
}

/* ---- while it works --------------------------------------------------------------------------- */

/* Everything that a client could write changes all the time, in the entries and in the tensors; by
 * another process, until it is killed. */
static pid_t scribble(const struct ring_aid *r, uint64_t seed)
{
    const size_t from = sizeof(struct trikv_ring_shared);
    volatile uint8_t *const file = r->base;
    struct rng rng = {seed};
    const pid_t pid = fork();

    assert_true(pid >= 0);
    while (pid == 0) {
        file[from + rng_next(&rng) % (r->bytes - from)] = (uint8_t)rng_next(&rng);
        file[from + rng_below(&rng, 4 * 64)] = (uint8_t)rng_next(&rng);
    }
    return pid;
}

static void check_storm(void **state)
{
    struct ring_aid r;
    uint64_t id = set_up(*state, &r, 4);
    unsigned n_ends = 0;

    for (unsigned i = 0; i < N_STORMS; i++) {
        const pid_t pid = scribble(&r, SEED + i);

        for (unsigned j = 0; j < 100 && !atomic_load(&r.shared->ended); j++) {
            const struct trikv_ring_entry e = ring_aid_step(&r, id, 1);

            ring_aid_put(&r, &e);
            ring_aid_submit(&r);
            while (atomic_load(&r.shared->completed) < r.n_written &&
                   !atomic_load(&r.shared->ended))
                usleep(10);
        }
        kill(pid, SIGKILL);
        assert_int_equal(waitpid(pid, NULL, 0), pid);
        n_ends += atomic_load(&r.shared->ended) != 0;
        (void)ring_aid_close(&r, NULL);
        ring_aid_open(&r, r.fd, 4, TENSOR_BYTES);
    }
    assert_true(n_ends > 0); /* else it was no storm */
    tear_down(&r);
    daemon_check_well(*state, &base);
}

/* A client that makes the daemon's write block, and never reads. */
static void check_stuck_writer(void **state)
{
    const struct daemon_aid *d = *state;
    struct ring_aid r;
    const uint64_t id = set_up(d, &r, 4);
    const struct trikv_ring_entry e = ring_aid_step(&r, id, 1);
    const int fd = wire_connect_hello(d->socket);
    struct wire_reply reply;

    assert_int_equal(fcntl(r.answer_fd, F_SETFL, 0), 0);
    assert_int_equal(eventfd_write(r.answer_fd, UINT64_MAX - 1), 0);
    atomic_store(&r.shared->client_waits_for, 1);
    ring_aid_put(&r, &e);
    ring_aid_submit(&r);
    while (atomic_load(&r.shared->completed) < 1)
        sleep_ms(1);
    /* Others get at its sessions, and it can be got rid of. */
    assert_int_equal(wire_session_call(fd, TRIKV_STATS, id, &reply), 0);
    wire_reply_deinit(&reply);
    close(fd);
    close(r.fd);
    daemon_check_well(d, &base);
    ring_aid_drop(&r);
}

/* ---- others ------------------------------------------------------------------------------------ */

/* Requests on the socket of the ring's own connection, and another's: they come in between. */
static void check_socket_beside(void **state)
{
    const struct daemon_aid *d = *state;
    const int fd = wire_connect_hello(d->socket);
    struct rng rng = {SEED};
    struct wire_reply reply;
    struct ring_aid r;
    const uint64_t id = set_up(d, &r, 4);
    Trikv__ForkRequest fork_of = TRIKV__FORK_REQUEST__INIT;

    fork_of.session = id;
    for (uint32_t i = 0; i < 200; i++) {
        struct trikv_ring_entry e = ring_aid_step(&r, id, 1);
        Trikv__SessionStats *m;

        ring_aid_fill(&r, 1, &rng);
        ring_aid_put(&r, &e);
        ring_aid_put(&r, &e);
        ring_aid_submit(&r);
        assert_int_equal(wire_session_call(i % 2 ? fd : r.fd, TRIKV_STATS, id, &reply), 0);
        m = trikv__session_stats__unpack(NULL, reply.frame.header_bytes, reply.message);
        assert_non_null(m);
        assert_true(m->n_seen >= 2 * i && m->n_seen <= 2 * i + 2);
        trikv__session_stats__free_unpacked(m, NULL);
        wire_reply_deinit(&reply);
        assert_true(ring_aid_wait(&r));
        assert_int_equal(ring_aid_last(&r)->error, 0);
        if (i % 50 == 7)
            assert_int_equal(wire_plain_call(fd, TRIKV_FORK, &fork_of.base, NULL), 0);
    }
    /* Another of the same user drops it under the ring. */
    assert_int_equal(wire_session_call(fd, TRIKV_DROP, id, &reply), 0);
    wire_reply_deinit(&reply);
    {
        const struct trikv_ring_entry e = ring_aid_step(&r, id, 1);

        assert_int_equal(ring_aid_do(&r, &e), TRIKV_E_NO_SESSION);
    }
    close(fd);
    tear_down(&r);
    daemon_check_well(d, &base);
}

/* A child that lives on rings until it is killed. */
static void live(const struct daemon_aid *d)
{
    struct rng rng = {SEED};

    for (;;) {
        struct ring_aid r;
        const uint64_t id = set_up(d, &r, 4);

        ring_aid_fill(&r, 3, &rng);
        for (int i = 0; i < 20; i++) {
            const struct trikv_ring_entry e = ring_aid_step(&r, id, 3);

            (void)ring_aid_do(&r, &e);
        }
        tear_down(&r);
    }
}

static void check_kills(void **state)
{
    const struct daemon_aid *d = *state;
    struct rng rng = {SEED};

    for (int i = 0; i < N_KILLS; i++) {
        const pid_t pid = fork();

        assert_true(pid >= 0);
        if (pid == 0) {
            live(d);
            _exit(0);
        }
        usleep(rng_below(&rng, 20000));
        kill(pid, SIGKILL);
        assert_int_equal(waitpid(pid, NULL, 0), pid);
    }
    daemon_check_well(d, &base);
}

/* Append until it is refused. */
static int append_all(struct ring_aid *r, uint64_t id)
{
    struct trikv_ring_entry e = ring_aid_step(r, id, 16);
    int code = 0;

    e.op = TRIKV_RING_APPEND;
    e.q = e.out = 0;
    for (int i = 0; i < 20000 && !code; i++)
        code = ring_aid_do(r, &e);
    return code;
}

/* A step that fails for memory is tried again as a request is, and says whose limit it was. */
static void check_memory(void **state)
{
    struct daemon_aid d;
    struct rng rng = {SEED};
    struct wire_reply reply;
    struct ring_aid idle, r;
    struct trikv_ring_entry step;
    uint64_t idle_id, id;

    (void)state;
    daemon_start(&d, "memory: {cap: 64MiB}\nlimits: {session_memory: 2MiB}\n");
    id = set_up(&d, &r, 4);
    ring_aid_fill(&r, 16, &rng);
    assert_int_equal(append_all(&r, id), TRIKV_E_QUOTA);
    assert_non_null(strstr(ring_aid_last(&r)->text, "limits.session_memory"));
    tear_down(&r);
    assert_int_equal(daemon_stop(&d, SIGTERM), 0);

    daemon_start(&d, "memory: {cap: 8MiB}\nlimits: {evict_idle_after: 100ms}\n");
    idle_id = set_up(&d, &idle, 4);
    ring_aid_fill(&idle, 16, &rng);
    step = ring_aid_step(&idle, idle_id, 16);
    assert_int_equal(ring_aid_do(&idle, &step), 0);
    sleep_ms(2500); /* until a ring that does nothing is seen as such */
    id = set_up(&d, &r, 4);
    ring_aid_fill(&r, 16, &rng);
    assert_int_equal(append_all(&r, id), TRIKV_E_MEMORY_CAP);
    assert_int_equal(wire_session_call(idle.fd, TRIKV_STATS, idle_id, &reply), TRIKV_E_EVICTED);
    wire_reply_deinit(&reply);
    assert_int_equal(ring_aid_do(&idle, &step), TRIKV_E_EVICTED);
    assert_non_null(strstr(ring_aid_last(&idle)->text, "was idle"));
    tear_down(&r);
    tear_down(&idle);
    assert_int_equal(daemon_stop(&d, SIGTERM), 0);
}

/* The daemon is told to stop while rings are in use: it does. */
static void check_drain(void **state)
{
    struct daemon_aid d;
    struct rng rng = {SEED};
    struct ring_aid r;

    (void)state;
    for (int i = 0; i < 2; i++) {
        uint64_t id;
        struct trikv_ring_entry e;

        daemon_start(&d, "workers:\n  ring_spin_us: 0\nlog:\n  level: error\n");
        id = set_up(&d, &r, 4);
        e = ring_aid_step(&r, id, 1);
        ring_aid_fill(&r, 1, &rng);
        assert_int_equal(ring_aid_do(&r, &e), 0);
        ring_aid_put(&r, &e);
        ring_aid_submit(&r);
        assert_int_equal(daemon_stop(&d, i ? SIGKILL : SIGTERM), i ? SIGKILL : 0);
        close(r.fd);
        ring_aid_drop(&r);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(check_steps),        cmocka_unit_test(check_chain),
        cmocka_unit_test(check_not_ours),     cmocka_unit_test(check_bad_steps),
        cmocka_unit_test(check_files),        cmocka_unit_test(check_hostile_entries),
        cmocka_unit_test(check_counters),     cmocka_unit_test(check_storm),
        cmocka_unit_test(check_stuck_writer), cmocka_unit_test(check_socket_beside),
        cmocka_unit_test(check_kills),        cmocka_unit_test(check_memory),
        cmocka_unit_test(check_drain),
    };

    return cmocka_run_group_tests(tests, start, stop);
}
