/*
 * Clients that are killed with -9 at a random point of the protocol: before a frame, in the middle
 * of one, with the answer under way or a job at work, holding sessions, forks of another's
 * session, maps and a staging area. The daemon must notice at once, and at the end hold
 * what it held at the start: bytes, blocks, descriptors.
 *
 *   TRIKV_KILL_CYCLES   how many, default 200
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "proto/limits.h"
#include "proto/trikv.pb-c.h"
#include "tests/daemon_aid.h"
#include "tests/rng.h"
#include "tests/wire.h"

enum {
    BATCH = 4, /* that die at the same time */
    N_WARM = 20,
    N_TOKENS = 130,
    N_FRAMES = 12, /* of a life that nobody ends */
    AREA_BYTES = 1 << 16,
    NOTICE_MS = 100, /* a peer's death must be noticed in so long, ... */
    MANY = 1000,     /* ... asserted of the 99th percentile from so many deaths on */
};

static const uint64_t seed = 5577;
static struct daemon_aid the_daemon;

static int start(void **state)
{
    daemon_start(&the_daemon, "memory:\n  cap: 64MiB\nlisten:\n  max_connections: 64\n"
                              "workers:\n  threads: 2\nlog:\n  level: error\n");
    *state = &the_daemon;
    wire_serve_well(the_daemon.socket);
    return 0;
}

static int stop(void **state)
{
    return daemon_stop(*state, SIGTERM);
}

static double now_ms(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

/* ---- a life -------------------------------------------------------------------------------------- */

enum way { BEFORE, MIDWAY, AFTER, AT_WORK, N_WAYS };

/* Of a client, and where in it death comes. */
struct life {
    int fd;
    uint32_t frame, last_frame;
    enum way way;
    struct rng rng;
};

static void die(void)
{
    kill(getpid(), SIGKILL);
    for (;;)
        pause();
}

static void give_up(void)
{
    _exit(9);
}

/* Send a request, and die if its time has come; else the reply. */
static void tell(struct life *l, uint16_t type, const ProtobufCMessage *message,
                 const void *payload, size_t payload_bytes, int passed, struct wire_reply *r)
{
    const bool last = l->frame++ == l->last_frame;
    size_t n;
    uint8_t *frame = wire_frame(type, l->frame, message, payload, payload_bytes, passed >= 0, &n);

    if (last && l->way == BEFORE)
        die();
    if (last && l->way == MIDWAY)
        n = rng_below(&l->rng, (uint32_t)n);
    if (!wire_write(l->fd, frame, n, passed))
        give_up();
    if (last && l->way == AT_WORK)
        usleep(rng_below(&l->rng, 1500));
    if (last)
        die();
    free(frame);
    if (wire_read(l->fd, r, WIRE_TIMEOUT_MS) != 1 || r->code)
        give_up();
}

static void tell_plainly(struct life *l, uint16_t type, const ProtobufCMessage *message)
{
    struct wire_reply r;

    tell(l, type, message, NULL, 0, -1, &r);
    wire_reply_deinit(&r);
}

static void say_hello(struct life *l)
{
    Trikv__HelloRequest m = TRIKV__HELLO_REQUEST__INIT;

    m.protocol_min = TRIKV_PROTOCOL_MIN;
    m.protocol_max = TRIKV_PROTOCOL_MAX;
    tell_plainly(l, TRIKV_HELLO, &m.base);
}

static void stage(struct life *l)
{
    Trikv__StagingRequest m = TRIKV__STAGING_REQUEST__INIT;
    const int area = memfd_create("area", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    struct wire_reply r;

    if (area < 0 || ftruncate(area, AREA_BYTES) || fcntl(area, F_ADD_SEALS, F_SEAL_SHRINK))
        give_up();
    m.staging_bytes = AREA_BYTES;
    tell(l, TRIKV_STAGING, &m.base, NULL, 0, area, &r);
    wire_reply_deinit(&r);
}

static uint64_t open_session(struct life *l)
{
    Trikv__Layer layer = TRIKV__LAYER__INIT;
    Trikv__Layer *layers[] = {&layer};
    Trikv__Policy policy = TRIKV__POLICY__INIT;
    Trikv__OpenRequest m = TRIKV__OPEN_REQUEST__INIT;
    char tq4[] = "tq4", none[] = "none";
    Trikv__OpenReply *reply;
    struct wire_reply r;
    uint64_t id;

    layer.n_q_heads = WIRE_N_Q;
    layer.n_kv_heads = 2;
    layer.head_dim_k = layer.head_dim_v = WIRE_DIM;
    layer.has_window_tokens = true;
    layer.window_tokens = 64 * rng_below(&l->rng, 2);
    policy.codec_k = policy.codec_v = tq4;
    policy.method = none;
    m.n_layers = 1;
    m.layers = layers;
    m.policy = &policy;
    tell(l, TRIKV_OPEN, &m.base, NULL, 0, -1, &r);
    reply = trikv__open_reply__unpack(NULL, r.frame.header_bytes, r.message);
    id = reply ? reply->session : 0;
    trikv__open_reply__free_unpacked(reply, NULL);
    wire_reply_deinit(&r);
    return id;
}

static uint64_t fork_session(struct life *l, uint64_t parent)
{
    Trikv__ForkRequest m = TRIKV__FORK_REQUEST__INIT;
    Trikv__ForkReply *reply;
    struct wire_reply r;
    uint64_t id;

    m.session = parent;
    tell(l, TRIKV_FORK, &m.base, NULL, 0, -1, &r);
    reply = trikv__fork_reply__unpack(NULL, r.frame.header_bytes, r.message);
    id = reply ? reply->session : 0;
    trikv__fork_reply__free_unpacked(reply, NULL);
    wire_reply_deinit(&r);
    return id;
}

static void append(struct life *l, uint64_t session)
{
    Trikv__TokensRequest m = TRIKV__TOKENS_REQUEST__INIT;
    struct wire_reply r;
    size_t bytes;
    float *p = wire_payload(&l->rng, N_TOKENS, &bytes);

    m.session = session;
    m.n_tokens = N_TOKENS;
    tell(l, TRIKV_APPEND_ATTEND, &m.base, p, bytes, -1, &r);
    wire_reply_deinit(&r);
    free(p);
}

static void ask(struct life *l, uint16_t type, uint64_t session)
{
    Trikv__SessionRequest m = TRIKV__SESSION_REQUEST__INIT;

    m.session = session;
    tell_plainly(l, type, &m.base);
}

static void forget(struct life *l, uint64_t session)
{
    Trikv__TruncateRequest m = TRIKV__TRUNCATE_REQUEST__INIT;

    m.session = session;
    m.n_tokens = 1;
    tell_plainly(l, TRIKV_TRUNCATE, &m.base);
}

/* N_FRAMES requests, of which one is the last; or all, and then death. */
static void live(uint64_t others, uint64_t number)
{
    struct life l = {.fd = wire_connect(the_daemon.socket), .rng = {seed + 1000 * number}};
    uint64_t own, forked;

    if (l.fd < 0)
        give_up();
    l.last_frame = rng_below(&l.rng, N_FRAMES + 1);
    l.way = (enum way)rng_below(&l.rng, N_WAYS);
    say_hello(&l);
    stage(&l);
    own = open_session(&l);
    append(&l, own);
    forked = fork_session(&l, own);
    append(&l, own);
    ask(&l, TRIKV_MAP, own);
    forget(&l, own);
    forked = rng_below(&l.rng, 2) ? fork_session(&l, others) : fork_session(&l, forked);
    append(&l, forked);
    ask(&l, TRIKV_MAP, others);
    ask(&l, TRIKV_CLOSE, own);
    die();
}

/* ---- what is left of them ------------------------------------------------------------------------ */

struct held {
    struct wire_daemon_stats stats;
    unsigned n_fds;
    unsigned long n_mappings, resident_kib; /* as the kernel counts */
};

/* Lines of a file of the daemon in /proc, and the sum of the numbers of those that begin so. */
static unsigned long proc_sum(const char *name, const char *line_begins, unsigned long *n_lines)
{
    char path[64], line[4096];
    unsigned long sum = 0;
    FILE *f;

    (void)snprintf(path, sizeof(path), "/proc/%d/%s", (int)the_daemon.pid, name);
    f = fopen(path, "r");
    assert_non_null(f);
    for (*n_lines = 0; fgets(line, sizeof(line), f); ++*n_lines)
        if (strncmp(line, line_begins, strlen(line_begins)) == 0)
            sum += strtoul(strchr(line, ':') + 1, NULL, 10);
    (void)fclose(f);
    return sum;
}

static void look_at_process(struct held *h)
{
    unsigned long n;

    h->n_fds = daemon_fds(&the_daemon);
    h->resident_kib = proc_sum("status", "RssAnon:", &n) + proc_sum("status", "RssShmem:", &n);
    (void)proc_sum("maps", "no line", &h->n_mappings);
}

/* Wait until only this connection is left with its sessions; how long that took. */
static double wait_for_end(int fd, uint32_t n_sessions, struct held *h)
{
    const double begin = now_ms();

    do {
        wire_daemon_stats(fd, &h->stats);
        if (h->stats.n_connections == 1 && h->stats.n_sessions == n_sessions)
            return now_ms() - begin;
        usleep(100);
    } while (now_ms() < begin + WIRE_TIMEOUT_MS);
    fail_msg("%u connections and %u sessions are left", h->stats.n_connections,
             h->stats.n_sessions);
    return 0;
}

static double kill_batch(int fd, uint64_t others, uint64_t number)
{
    pid_t pid[BATCH];
    struct held h;

    for (uint64_t i = 0; i < BATCH; i++) {
        pid[i] = fork();
        assert_true(pid[i] >= 0);
        if (pid[i] == 0)
            live(others, number * BATCH + i);
    }
    for (int i = 0; i < BATCH; i++) {
        int status;

        assert_int_equal(waitpid(pid[i], &status, 0), pid[i]);
        if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL)
            fail_msg("client %llu was not served: status %x",
                     (unsigned long long)(number * BATCH + (uint64_t)i), (unsigned)status);
    }
    return wait_for_end(fd, 1, &h);
}

static void check_process(const struct held *before, const struct held *after)
{
    print_message("descriptors %u and %u, mappings %lu and %lu, resident %lu and %lu KiB\n",
                  before->n_fds, after->n_fds, before->n_mappings, after->n_mappings,
                  before->resident_kib, after->resident_kib);
    assert_int_equal(after->n_fds, before->n_fds);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__) && !defined(__clang__)
    /* What allocators keep; sanitizers keep everything, and an emulator what it has translated. */
    if (getenv("TRIKV_RUNNER"))
        return;
    assert_true(after->n_mappings <= before->n_mappings + 40);
    assert_true(after->resident_kib <= before->resident_kib + 8192);
#endif
}

static int compare(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static void check_notice(double *ms, size_t n)
{
    qsort(ms, n, sizeof(*ms), compare);
    print_message("%zu batches of %d: death noticed after p50 %.2f ms, p99 %.2f ms, at most %.2f "
                  "ms\n",
                  n, BATCH, ms[n / 2], ms[n - n / 100 - 1], ms[n - 1]);
    if (n >= MANY / BATCH && ms[n - n / 100 - 1] > NOTICE_MS)
        fail_msg("want the 99th percentile within %d ms", NOTICE_MS);
}

static void the_killed_leave_nothing(void **state)
{
    const char *given = getenv("TRIKV_KILL_CYCLES");
    const size_t n = ((given ? strtoul(given, NULL, 10) : 200) + BATCH - 1) / BATCH;
    const int fd = wire_connect_hello(the_daemon.socket);
    struct rng rng = {seed};
    struct held before, after;
    struct wire_reply r;
    double *ms = calloc(n, sizeof(*ms));
    uint64_t others;
    size_t bytes;
    float *p = wire_payload(&rng, N_TOKENS, &bytes);
    int code;

    (void)state;
    assert_true(ms && n > 0);
    others = wire_open(fd, 1, &code); /* once before, for what connections and allocators keep */
    assert_int_equal(wire_append_attend(fd, others, 0, p, bytes, N_TOKENS, &r), 0);
    wire_reply_deinit(&r);
    for (size_t i = 0; i < N_WARM; i++)
        (void)kill_batch(fd, others, i);
    wire_close_session(fd, others);
    wait_for_end(fd, 0, &before);
    look_at_process(&before);
    others = wire_open(fd, 1, &code);
    assert_int_equal(wire_append_attend(fd, others, 0, p, bytes, N_TOKENS, &r), 0);
    wire_reply_deinit(&r);
    for (size_t i = 0; i < n; i++)
        ms[i] = kill_batch(fd, others, N_WARM + i);
    assert_int_equal(wire_append_attend(fd, others, 0, p, bytes, N_TOKENS, &r), 0);
    wire_reply_deinit(&r);
    wire_close_session(fd, others);
    wait_for_end(fd, 0, &after);
    look_at_process(&after);
    assert_int_equal(after.stats.memory_used_bytes, before.stats.memory_used_bytes);
    check_process(&before, &after);
    check_notice(ms, n);
    free(ms);
    free(p);
    close(fd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_killed_leave_nothing),
    };

    return cmocka_run_group_tests(tests, start, stop);
}
