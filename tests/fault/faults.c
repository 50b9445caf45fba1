/*
 * A trikvd in which the k-th call that can fail does, for every k: once, and from there on. Whatever
 * fails, each request is answered or its connection ends, the daemon lives and gives back all that it
 * held, and the session is as if the requests that failed had never come: a twin in this process,
 * given only those that succeeded, has the same bits. What is asked for less often is in wide.c.
 *
 *     faults PRELOAD [STRIDE [TEST]]      every STRIDE-th k (default 1); of one test alone
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
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "client/trikv.h"
#include "store/session.h"
#include "tests/daemon_aid.h"
#include "tests/fault/board.h"
#include "tests/fault/wide.h"
#include "tests/session_aid.h"
#include "tests/wire.h"

enum {
    N_LAYERS = 2,
    N_STEPS = 8,
    N_TOKENS = 40, /* of a step */
    BUDGET = 128,
    RECENT = 32,
    ROLLBACK = 16,
    CALL_MS = 2000,   /* a request that takes so long hangs */
    SETTLE_MS = 5000, /* until the daemon has given back what a dead connection had */
};

#define CONFIG "memory:\n  cap: 64MiB\nworkers:\n  threads: 2\nlog:\n  level: error\n"

static const char *preload;
static uint64_t stride = 1;
static struct fault_board *board;
static char board_path[] = "/tmp/trikv-faults-XXXXXX";
static const char *const kinds[FAULT_N_KINDS] = {"memory", "map", "descriptor", "socket", "file"};

/* ---- the script --------------------------------------------------------------------------- */

struct script {
    struct trikv_client *client;
    struct trikv_session *session;
    struct aid twin;
    struct aid_tokens tokens; /* of one layer after the other */
    float *out;               /* of one step */
    const char *at;           /* what is being done, for messages */
    bool lost;                /* the connection is */
};

/* Errors that a fault may have; others are wrong answers. True: it succeeded. */
static bool went_well(struct script *s, const char *at, int error)
{
    s->at = at;
    switch (error) {
    case 0: return true;
    case TRIKV_E_CONNECT:
    case TRIKV_E_DISCONNECTED: s->lost = true; return false;
    case TRIKV_E_DEADLINE: /* nobody can accept without descriptors */
        s->lost = atomic_load(&board->sticky) && !s->session;
        if (s->lost)
            return false;
        fail_msg("%s: no answer", at);
        return false;
    case TRIKV_E_MEMORY_CAP:
    case TRIKV_E_NO_MEMORY:
    case TRIKV_E_SYSTEM: return false;
    default: fail_msg("%s: error %d, %s", at, error, trikv_last_error(s->client));
    }
    return false;
}

static void twin_open(struct script *s)
{
    struct aid *a = &s->twin;

    aid_init(a, "tq4");
    a->config.method = TKV_METHOD_KEYDIFF;
    a->config.recent_tokens = RECENT;
    a->config.rollback_tokens = ROLLBACK;
    for (uint32_t i = 0; i < N_LAYERS; i++)
        a->layers[i].budget_tokens = BUDGET;
    assert_int_equal(aid_open(a), 0);
}

static void script_init(struct script *s)
{
    *s = (struct script){.at = "start"};
    twin_open(s);
    s->tokens = aid_tokens(&s->twin, N_LAYERS * N_STEPS * N_TOKENS, 7);
    s->out = malloc(N_TOKENS * 4 * 64 * sizeof(float));
    assert_non_null(s->out);
}

static void script_deinit(struct script *s)
{
    trikv_disconnect(&s->client);
    aid_close(&s->twin);
    free(s->tokens.k);
    free(s->out);
}

static bool open_session(struct script *s, const char *socket)
{
    const struct trikv_options o = {
        .size = sizeof(o), .socket = socket, .timeout_ms = CALL_MS, .staging_bytes = 1 << 18};
    const struct trikv_layer layer = {
        .n_q_heads = 4, .n_kv_heads = 2, .head_dim_k = 64, .head_dim_v = 64};
    const struct trikv_rope rope = {
        .theta = 10000, .rotary_dim = 64, .layout = "half", .scaling = "none"};
    struct trikv_session_options so = TRIKV_SESSION_OPTIONS_INIT;

    so.n_layers = N_LAYERS;
    so.layers = &layer;
    so.same_layers = 1;
    so.codec_k = so.codec_v = "tq4";
    so.method = "keydiff";
    so.budget_tokens = BUDGET;
    so.beta_tokens = 64;
    so.recent_tokens = RECENT;
    so.pinned_tokens = 4;
    so.rollback_tokens = ROLLBACK;
    so.rope = &rope;
    return went_well(s, "connect", trikv_connect(&s->client, &o)) &&
           went_well(s, "open", trikv_open(s->client, &so, &s->session));
}

static struct trikv_step step_of(const struct script *s, uint32_t layer, uint32_t first)
{
    const size_t at = first;

    return (struct trikv_step){.size = sizeof(struct trikv_step),
                               .layer = layer,
                               .n_tokens = N_TOKENS,
                               .dtype = TRIKV_F32,
                               .k = s->tokens.k + at * 2 * 64,
                               .v = s->tokens.v + at * 2 * 64,
                               .q = s->tokens.q + at * 4 * 64,
                               .out = s->out};
}

static void append(struct script *s, uint32_t layer, uint32_t first)
{
    const struct trikv_step step = step_of(s, layer, first);

    if (!went_well(s, "append_attend", trikv_append_attend(s->session, &step)))
        return;
    assert_int_equal(aid_step(&s->twin, layer, &s->tokens, first, N_TOKENS), 0);
    assert_memory_equal(s->out, s->tokens.out + (size_t)first * 4 * 64,
                        N_TOKENS * 4 * 64 * sizeof(float));
}

static void append_all(struct script *s)
{
    for (uint32_t i = 0; i < N_STEPS; i++)
        for (uint32_t l = 0; l < N_LAYERS && !s->lost; l++)
            append(s, l, (i * N_LAYERS + l) * N_TOKENS);
}

/* The daemon's answer, or a map's, to queries that change nothing. */
static void compare(struct script *s, struct trikv_map *map)
{
    int32_t positions[N_TOKENS];

    for (int32_t i = 0; i < N_TOKENS; i++)
        positions[i] = 100000 + i;
    for (uint32_t l = 0; l < N_LAYERS && !s->lost; l++) {
        struct trikv_step step = step_of(s, l, 0);
        struct tkv_step twins = {.layer = l, .n_tokens = N_TOKENS, .q = step.q};
        float *want = s->tokens.out;
        int e;

        step.positions = twins.positions = positions;
        twins.out = want;
        twins.lse = s->tokens.lse;
        e = map ? trikv_attend_local(map, &step) : trikv_attend(s->session, &step);
        if (!went_well(s, map ? "attend_local" : "attend", e))
            continue;
        assert_int_equal(tkv_session_attend(s->twin.session, &twins, NULL, &s->twin.why), 0);
        assert_memory_equal(s->out, want, N_TOKENS * 4 * 64 * sizeof(float));
    }
}

static bool has_tokens(const struct script *s)
{
    uint64_t least, most;

    tkv_session_seen(s->twin.session, &least, &most);
    return most > 0;
}

static void change(struct script *s)
{
    struct tkv_report why;

    if (!s->lost && has_tokens(s) && went_well(s, "truncate", trikv_truncate(s->session, 3)))
        assert_int_equal(tkv_session_truncate(s->twin.session, 3, &why), 0);
    if (!s->lost && went_well(s, "round", trikv_round(s->session)))
        assert_int_equal(tkv_session_round(s->twin.session, NULL, &why), 0);
}

static void fork_and_append(struct script *s)
{
    const struct trikv_step step = step_of(s, 1, 0);
    struct trikv_session *child = NULL;

    if (s->lost || !went_well(s, "fork", trikv_fork(s->session, NULL, &child)))
        return;
    if (went_well(s, "append to a fork", trikv_append(child, &step)) || !s->lost)
        went_well(s, "close a fork", trikv_close(&child));
}

static void map_and_attend(struct script *s)
{
    struct trikv_map *map = NULL;

    if (s->lost || !went_well(s, "map", trikv_map(s->client, trikv_session_id(s->session), &map)))
        return;
    compare(s, map);
    went_well(s, "unmap", trikv_unmap(&map));
}

static void look(struct script *s)
{
    struct trikv_handle handle;
    struct trikv_stats stats;
    struct trikv_read read = {.size = sizeof(read), .n_tokens = 8, .k = s->out};

    if (!s->lost && went_well(s, "handle", trikv_handle(s->session, &handle)))
        trikv_handle_release(&handle);
    if (!s->lost)
        went_well(s, "stats", trikv_stats(s->session, &stats));
    if (!s->lost && went_well(s, "stats", trikv_stats(s->session, &stats)) && stats.n_seen > 64)
        went_well(s, "read", trikv_read(s->session, &read, NULL));
}

static void calibrate(struct script *s)
{
    const struct trikv_calibration_options o = {.size = sizeof(o), .name = "faulty"};
    struct trikv_calibration c;
    bool seen = true;

    for (uint32_t l = 0; l < N_LAYERS && !s->lost; l++) {
        const struct trikv_queries q = {.size = sizeof(q),
                                        .layer = l,
                                        .n_tokens = N_TOKENS,
                                        .q = s->tokens.q,
                                        .before_rope = 1};

        seen = went_well(s, "observe", trikv_observe(s->session, &q)) && seen;
    }
    if (!s->lost && seen && went_well(s, "calibrate", trikv_calibrate(s->session, &o, &c)))
        trikv_calibration_release(&c);
}

/* What most clients ask for; how far it came. */
static const char *play(const char *socket, bool sticky)
{
    struct script script, *const s = &script;

    (void)sticky;
    script_init(s);
    if (open_session(s, socket)) {
        append_all(s);
        change(s);
        fork_and_append(s);
        compare(s, NULL);
        map_and_attend(s);
        look(s);
        calibrate(s);
        compare(s, NULL);
        if (!s->lost)
            went_well(s, "close", trikv_close(&s->session));
    }
    script_deinit(s);
    return s->at;
}

/* ---- one daemon, all its calls ------------------------------------------------------------ */

struct rest {
    struct daemon_rest held;
    int64_t n_live;
};

static struct rest rest_of(const struct daemon_aid *d, int control)
{
    return (struct rest){daemon_holds(d, control), atomic_load(&board->n_live)};
}

static bool same_rest(const struct rest *a, const struct rest *b)
{
    return a->n_live == b->n_live && daemon_rest_same(&a->held, &b->held);
}

/* Waits until everything has come back. */
static void assert_rest(const struct daemon_aid *d, int control, const struct rest *want,
                        const char *what, uint64_t k)
{
    struct rest now = rest_of(d, control);

    for (int i = 0; i < SETTLE_MS / 5 && !same_rest(&now, want); i++) {
        sleep_ms(5);
        now = rest_of(d, control);
    }
    if (!same_rest(&now, want))
        fail_msg("%s, call %llu: %lld bytes, %lld pieces, %d descriptors more than before", what,
                 (unsigned long long)k,
                 (long long)(now.held.memory_bytes - want->held.memory_bytes),
                 (long long)(now.n_live - want->n_live), (int)(now.held.n_fds - want->held.n_fds));
}

static void arm(unsigned kinds_armed, uint64_t k, bool sticky)
{
    atomic_store(&board->n_calls, 0);
    atomic_store(&board->n_failed, 0);
    atomic_store(&board->chosen, k);
    atomic_store(&board->sticky, sticky);
    atomic_store(&board->armed, kinds_armed);
}

static void start(struct daemon_aid *d, const char *config)
{
    setenv("LD_PRELOAD", preload, 1);
    setenv(FAULT_BOARD_VARIABLE, board_path, 1);
    daemon_start(d, config);
    unsetenv("LD_PRELOAD");
}

/* A script, and what fails in it. */
struct play {
    const char *(*script)(const char *socket, bool sticky);
    const char *config;
    void (*prepare)(const struct daemon_aid *d); /* or NULL */
    enum fault_kind kind;
};

/* What the daemon keeps for good comes with the first rounds: tables of its loop, buffers of this
 * connection, and what the C library needs for the text of an error. */
static struct rest warm_up(const struct daemon_aid *d, int control, const struct play *p)
{
    struct rest r = {0};

    for (uint64_t i = 0; i < 6; i++) {
        arm(1u << p->kind, i < 3 ? 0 : 7 * i - 20, true);
        p->script(d->socket, true);
        arm(0, 0, false);
        sleep_ms(50);
        r = rest_of(d, control);
    }
    assert_true(r.n_live > 0); /* the library is there */
    return r;
}

static void every_call_in(const struct play *p, bool sticky)
{
    struct daemon_aid d;
    struct rest rest;
    uint64_t k = 1, n_failed = 1;
    int control;

    arm(0, 0, false);
    start(&d, p->config);
    if (p->prepare)
        p->prepare(&d);
    control = wire_connect_hello(d.socket);
    rest = warm_up(&d, control, p);
    for (; n_failed; k += stride) {
        const char *at;

        arm(1u << p->kind, k, sticky);
        at = p->script(d.socket, sticky);
        n_failed = atomic_load(&board->n_failed);
        arm(0, 0, false);
        assert_true(daemon_alive(&d));
        assert_rest(&d, control, &rest, at, k);
    }
    assert_true(k > 1);
    print_message("# %s%s: %llu calls\n", kinds[p->kind], sticky ? ", from then on" : "",
                  (unsigned long long)(k - 1));
    wire_serve_well(d.socket);
    close(control);
    assert_int_equal(daemon_stop(&d, SIGTERM), 0);
}

static void every_call_of(enum fault_kind kind, bool sticky)
{
    const struct play p = {.script = play, .config = CONFIG, .kind = kind};

    every_call_in(&p, sticky);
}

/* The same for what is asked for less often, files included. */
static void wide_calls(void **state)
{
    char config[256];

    (void)state;
    wide_init(config, sizeof(config));
    for (unsigned kind = 0; kind < FAULT_N_KINDS; kind++) {
        const struct play p = {.script = wide_play,
                               .config = config,
                               .prepare = wide_add_profile,
                               .kind = (enum fault_kind)kind};

        every_call_in(&p, false);
        every_call_in(&p, true);
    }
    wide_deinit();
}

static void memory_once(void **state)
{
    (void)state;
    every_call_of(FAULT_MEMORY, false);
}

static void memory_for_good(void **state)
{
    (void)state;
    every_call_of(FAULT_MEMORY, true);
}

static void maps(void **state)
{
    (void)state;
    every_call_of(FAULT_MAP, false);
    every_call_of(FAULT_MAP, true);
}

static void descriptors(void **state)
{
    (void)state;
    every_call_of(FAULT_DESCRIPTOR, false);
    every_call_of(FAULT_DESCRIPTOR, true);
}

static void sockets(void **state)
{
    (void)state;
    every_call_of(FAULT_SOCKET, false);
    every_call_of(FAULT_SOCKET, true);
}

/* ---- the start ---------------------------------------------------------------------------- */

/* Runs until it serves or has ended; the exit status as waitpid gives it, or -1: it serves. */
static int spawn(struct daemon_aid *d)
{
    char program[600];
    int status, fd = -1;

    daemon_program(program, sizeof(program));
    d->pid = fork();
    assert_true(d->pid >= 0);
    if (d->pid == 0) {
        const int log = open(d->log, O_WRONLY | O_CREAT | O_TRUNC, 0600);

        setenv("LD_PRELOAD", preload, 1);
        dup2(log, STDERR_FILENO);
        execl(program, program, "--config", d->config, "--socket", d->socket, "--profiles",
              d->directory, (char *)NULL);
        _exit(127);
    }
    for (int i = 0; i < SETTLE_MS; i++) {
        if (waitpid(d->pid, &status, WNOHANG) == d->pid)
            return status;
        fd = wire_connect(d->socket);
        if (fd >= 0)
            break;
        sleep_ms(1);
    }
    assert_true(fd >= 0);
    close(fd);
    return -1;
}

static bool log_has(const struct daemon_aid *d, const char *text)
{
    char log[4096];
    FILE *f = fopen(d->log, "r");
    size_t n;

    assert_non_null(f);
    n = fread(log, 1, sizeof(log) - 1, f);
    fclose(f);
    log[n] = 0;
    return strstr(log, text) != NULL;
}

/* libuv calls abort() where it cannot set itself up; an assertion of ours would have said so. */
static bool is_libuvs(const struct daemon_aid *d, int status)
{
    return WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT && !log_has(d, "Assertion");
}

static void end(struct daemon_aid *d)
{
    int status;

    kill(d->pid, SIGTERM);
    assert_int_equal(waitpid(d->pid, &status, 0), d->pid);
    if (status) /* it did not serve yet when the signal came, and failed */
        assert_true(WIFEXITED(status) || is_libuvs(d, status));
}

static void assert_said_why(const struct daemon_aid *d, uint64_t k, int status)
{
    if (is_libuvs(d, status))
        return;
    if (!WIFEXITED(status))
        fail_msg("start, call %llu: killed by signal %d", (unsigned long long)k, WTERMSIG(status));
    assert_int_not_equal(WEXITSTATUS(status), 127);
    if (WEXITSTATUS(status) == 0)
        fail_msg("start, call %llu: ended with 0", (unsigned long long)k);
}

/* A start that cannot be ends with an exit code; one that can serves. */
static void starts(void **state)
{
    struct daemon_aid d;
    uint64_t n_failed = 1, k = 1, n_ended = 0;

    (void)state;
    arm(0, 0, false);
    start(&d, CONFIG);
    end(&d);
    for (; n_failed; k += stride) {
        int status;

        unlink(d.socket);
        arm((1u << FAULT_N_KINDS) - 1, k, false);
        status = spawn(&d);
        n_failed = atomic_load(&board->n_failed);
        arm(0, 0, false);
        n_ended += status != -1;
        if (status != -1)
            assert_said_why(&d, k, status);
        else
            end(&d);
    }
    print_message("# start: %llu calls, %llu starts ended\n", (unsigned long long)(k - 1),
                  (unsigned long long)n_ended);
    d.pid = 0;
    daemon_stop(&d, 0);
}

static int make_board(void **state)
{
    const int fd = mkstemp(board_path);

    (void)state;
    if (fd < 0 || ftruncate(fd, sizeof(*board)) < 0)
        return 1;
    board = mmap(NULL, sizeof(*board), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    setenv(FAULT_BOARD_VARIABLE, board_path, 1);
    return board == MAP_FAILED;
}

static int remove_board(void **state)
{
    (void)state;
    return unlink(board_path);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(starts),          cmocka_unit_test(maps),
        cmocka_unit_test(descriptors),     cmocka_unit_test(sockets),
        cmocka_unit_test(memory_for_good), cmocka_unit_test(memory_once),
        cmocka_unit_test(wide_calls),
    };

    if (argc < 2 || argc > 4 || (argc > 2 && (stride = strtoull(argv[2], NULL, 10)) == 0)) {
        fprintf(stderr, "usage: faults PRELOAD [STRIDE [TEST]]\n");
        return 64;
    }
    preload = argv[1];
    if (argc > 3)
        cmocka_set_test_filter(argv[3]);
    return cmocka_run_group_tests(tests, make_board, remove_board);
}
