/*
 * What is left of the matrix of docs/security.md: strangers, what was and is no more, crowds, slow
 * ones, files that are none. Each time with a bystander who must not
 * notice, and a daemon that in the end holds what it held before.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "proto/errors.h"
#include "proto/trikv.pb-c.h"
#include "tests/bystander.h"
#include "tests/ring_aid.h"
#include "tests/rng.h"
#include "tests/wire.h"

enum { STRANGER = 65534, MAX_CONNECTIONS = 40, FRAME_MS = 500 };

static struct daemon_aid the_daemon;
static char snapshots[64];
static struct bystander bystander;

static int start(void **state)
{
    char config[512];

    (void)state;
    strcpy(snapshots, "/tmp/trikv-snapshots-XXXXXX");
    assert_non_null(mkdtemp(snapshots));
    snprintf(config, sizeof(config),
             "memory:\n  cap: 64MiB\nlimits:\n  payload: 2MiB\n  request_timeout: %dms\n"
             "listen:\n  mode: \"0666\"\n  max_connections: %d\nworkers:\n  threads: 2\n"
             "log:\n  level: error\nsnapshot:\n  directory: %s\n",
             FRAME_MS, MAX_CONNECTIONS, snapshots);
    daemon_start(&the_daemon, config);
    assert_int_equal(chmod(the_daemon.directory, 0755), 0);
    bystander_init(&bystander, &the_daemon);
    return 0;
}

static int stop(void **state)
{
    char path[128];

    (void)state;
    bystander_deinit(&bystander);
    snprintf(path, sizeof(path), "%s/%u", snapshots, (unsigned)getuid());
    (void)rmdir(path);
    assert_int_equal(rmdir(snapshots), 0);
    return daemon_stop(&the_daemon, SIGTERM);
}

/* ---- strangers and old ids ---------------------------------------------------------------------- */

static int call_code(int fd, uint16_t type, const ProtobufCMessage *m, const void *payload,
                     size_t n)
{
    struct wire_reply r;
    const int code = wire_call(fd, type, m, payload, n, -1, &r);

    wire_reply_deinit(&r);
    return code;
}

/* Every request that names a session, for this one: the code that all of them have, or -type. */
static int every_request(int fd, uint64_t session)
{
    static const uint16_t plain[] = {TRIKV_CLOSE, TRIKV_STATS,  TRIKV_DROP, TRIKV_KEEP,
                                     TRIKV_ROUND, TRIKV_HANDLE, TRIKV_MAP,  TRIKV_GATE};
    static const uint16_t tokens[] = {TRIKV_APPEND, TRIKV_ATTEND, TRIKV_APPEND_ATTEND,
                                      TRIKV_OBSERVE};
    Trikv__SessionRequest s = TRIKV__SESSION_REQUEST__INIT;
    Trikv__TokensRequest t = TRIKV__TOKENS_REQUEST__INIT;
    Trikv__ForkRequest f = TRIKV__FORK_REQUEST__INIT;
    Trikv__TruncateRequest back = TRIKV__TRUNCATE_REQUEST__INIT;
    Trikv__ReadRequest read_it = TRIKV__READ_REQUEST__INIT;
    Trikv__SnapshotRequest snapshot = TRIKV__SNAPSHOT_REQUEST__INIT;
    static float payload[2 * WIRE_K_FLOATS + WIRE_Q_FLOATS];
    char name[] = "stolen";
    int code;

    s.session = t.session = f.session = back.session = read_it.session = snapshot.session = session;
    t.n_tokens = read_it.n_tokens = 1;
    snapshot.name = name;
    code = call_code(fd, TRIKV_FORK, &f.base, NULL, 0);
    for (size_t i = 0; i < sizeof(plain) / sizeof(plain[0]); i++)
        if (call_code(fd, plain[i], &s.base, NULL, 0) != code)
            return -plain[i];
    for (size_t i = 0; i < sizeof(tokens) / sizeof(tokens[0]); i++) {
        const size_t n_floats = tokens[i] == TRIKV_APPEND ? 2 * WIRE_K_FLOATS
                                : tokens[i] == TRIKV_APPEND_ATTEND
                                    ? 2 * WIRE_K_FLOATS + WIRE_Q_FLOATS
                                    : WIRE_Q_FLOATS;

        if (call_code(fd, tokens[i], &t.base, payload, n_floats * sizeof(float)) != code)
            return -tokens[i];
    }
    if (call_code(fd, TRIKV_TRUNCATE, &back.base, NULL, 0) != code)
        return -TRIKV_TRUNCATE;
    if (call_code(fd, TRIKV_READ, &read_it.base, NULL, 0) != code)
        return -TRIKV_READ;
    return call_code(fd, TRIKV_SNAPSHOT, &snapshot.base, NULL, 0) == code ? code : -TRIKV_SNAPSHOT;
}

/* A step in a ring, too. */
static int step_by_ring(int fd, uint64_t session)
{
    struct trikv_ring_entry e;
    struct ring_aid r;
    int code;

    ring_aid_open(&r, fd, 2, 8192);
    e = ring_aid_step(&r, session, 1);
    code = ring_aid_do(&r, &e);
    (void)ring_aid_close(&r, NULL);
    return code;
}

/* What a reader's descriptor of an arena is good for, in the hands of somebody else: 0, or what worked. */
static int misuse(int fd)
{
    char path[64];
    void *p;

    (void)snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    if (ftruncate(fd, 0) == 0 || ftruncate(fd, 1 << 30) == 0)
        return 1;
    if (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096) == 0)
        return 2;
    if (mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) != MAP_FAILED)
        return 3;
    p = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0);
    if (p == MAP_FAILED || mprotect(p, 4096, PROT_READ | PROT_WRITE) == 0 ||
        madvise(p, 4096, MADV_REMOVE) == 0)
        return 4;
    if (pwrite(fd, "x", 1, 0) > 0 || fchmod(fd, 0666) == 0)
        return 5;
    return open(path, O_RDWR) >= 0 ? 6 : 0;
}

static int be_stranger(uint64_t session, int arena_fd)
{
    int fd, code;

    if (setgid(STRANGER) || setuid(STRANGER))
        return 1;
    fd = wire_connect_hello(the_daemon.socket);
    code = every_request(fd, session);
    if (code != TRIKV_E_DENIED)
        return code < 0 ? -code : 2;
    if (step_by_ring(fd, session) != TRIKV_E_DENIED)
        return 3;
    return misuse(arena_fd) ? 100 + misuse(arena_fd) : 0;
}

static int as_stranger(int (*what)(uint64_t session, int fd), uint64_t session, int fd)
{
    const pid_t pid = fork();
    int status;

    assert_true(pid >= 0);
    if (pid == 0)
        _exit(what(session, fd));
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

static void skip_unless_root(void)
{
    if (getuid() == 0)
        return;
    print_message("skipped: needs root to be another user\n");
    skip();
}

static void strangers_get_nothing(void **state)
{
    const int fd = wire_connect_hello(the_daemon.socket);
    struct wire_reply r;
    uint64_t session;
    int code;

    (void)state;
    skip_unless_root();
    session = wire_open(fd, 1, &code);
    assert_int_equal(wire_session_call(fd, TRIKV_HANDLE, session, &r), 0);
    assert_int_equal(as_stranger(be_stranger, session, r.fd), 0);
    wire_reply_deinit(&r);
    close(fd);
    bystander_check_alone(&bystander);
}

static int try_to_connect(uint64_t session, int fd)
{
    (void)session;
    (void)fd;
    if (setgid(STRANGER) || setuid(STRANGER))
        return 1;
    return wire_connect(the_daemon.socket) < 0 && errno == EACCES ? 0 : 2;
}

/* The mode of the socket is who may connect. */
static void strangers_stay_outside(void **state)
{
    (void)state;
    skip_unless_root();
    assert_int_equal(chmod(the_daemon.socket, 0660), 0);
    assert_int_equal(as_stranger(try_to_connect, 0, -1), 0);
    assert_int_equal(chmod(the_daemon.socket, 0666), 0);
}

/* Ids of sessions that ended lead nowhere, and are not given again. */
static void old_ids_lead_nowhere(void **state)
{
    enum { N = 100 };
    const int fd = wire_connect_hello(the_daemon.socket);
    uint64_t id[N];

    (void)state;
    for (int i = 0; i < N; i++) {
        int code;

        id[i] = wire_open(fd, 1, &code);
        assert_int_equal(code, 0);
        for (int k = 0; k < i; k++)
            assert_true(id[k] != id[i]);
        wire_close_session(fd, id[i]);
    }
    for (int i = 0; i < N; i += 33) {
        assert_int_equal(every_request(fd, id[i]), TRIKV_E_NO_SESSION);
        assert_int_equal(step_by_ring(fd, id[i]), TRIKV_E_NO_SESSION);
    }
    close(fd);
    bystander_check_alone(&bystander);
}

/* ---- crowds ---------------------------------------------------------------------------------- */

/* As many as there may be, each sending a byte now and then: all are cut off in time. */
static void slow_ones_are_cut_off(void **state)
{
    enum { N = MAX_CONNECTIONS - 4, BYTE_MS = 25 };
    int fd[N], n_open = N;

    (void)state;
    for (int i = 0; i < N; i++)
        fd[i] = i % 2 ? wire_connect(the_daemon.socket) : wire_connect_hello(the_daemon.socket);
    for (int k = 0; k < 4 * FRAME_MS / BYTE_MS && n_open > 0; k++) {
        n_open = 0;
        for (int i = 0; i < N; i++)
            n_open += wire_write(fd[i], "T", 1, -1);
        bystander_check(&bystander);
        sleep_ms(BYTE_MS);
    }
    assert_int_equal(n_open, 0);
    for (int i = 0; i < N; i++)
        close(fd[i]);
    bystander_check_alone(&bystander);
}

/* More than there may be: those are told so, and who was there is served. */
static void crowds_are_told(void **state)
{
    enum { N = 3 * MAX_CONNECTIONS };
    unsigned n_told = 0;
    int fd[N];

    (void)state;
    for (int round = 0; round < 5; round++) {
        for (int i = 0; i < N; i++)
            assert_true((fd[i] = wire_connect(the_daemon.socket)) >= 0);
        bystander_check(&bystander);
        for (int i = MAX_CONNECTIONS; i < N; i++) {
            struct wire_reply r;

            assert_int_equal(wire_read(fd[i], &r, WIRE_TIMEOUT_MS), 1);
            n_told += r.code == TRIKV_E_TOO_MANY;
            wire_reply_deinit(&r);
        }
        for (int i = 0; i < N; i++)
            close(fd[i]);
        bystander_check_alone(&bystander);
    }
    assert_int_equal(n_told, 5 * (N - MAX_CONNECTIONS));
}

/* ---- files ----------------------------------------------------------------------------------- */

static int restore(int fd, const char *name)
{
    Trikv__RestoreRequest m = TRIKV__RESTORE_REQUEST__INIT;
    char copy[80];

    (void)snprintf(copy, sizeof(copy), "%s", name);
    m.name = copy;
    return call_code(fd, TRIKV_RESTORE, &m.base, NULL, 0);
}

static void write_file(int directory, const char *name, const uint8_t *bytes, size_t n)
{
    const int fd = openat(directory, name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

    assert_true(fd >= 0);
    assert_int_equal(write(fd, bytes, n), n);
    close(fd);
}

/* Who can write to the daemon's directory can give it any file; it opens none that is none, and takes
 * nothing from one that is changed. */
static void check_changes(int fd, int directory, uint8_t *bytes, size_t n)
{
    struct rng rng = {5};

    for (int i = 0; i < 60; i++) {
        const size_t at = i < 20 ? (size_t)i * 4 : rng_below(&rng, (uint32_t)n);
        const size_t cut = i % 2 ? n : at;
        int code;

        bytes[at] ^= 0x20;
        write_file(directory, "changed", bytes, cut);
        bytes[at] ^= 0x20;
        code = restore(fd, "changed");
        if (code != TRIKV_E_VALUE && code != TRIKV_E_CHECKSUM && code != TRIKV_E_VERSION)
            fail_msg("%s at byte %zu: code %d", i % 2 ? "changed" : "cut", at, code);
    }
    (void)unlinkat(directory, "changed", 0);
}

static void files_that_are_none(void **state)
{
    static const char *const names[] = {"fifo", "link", "folder", "device", "empty"};
    const int fd = wire_connect_hello(the_daemon.socket);
    Trikv__SnapshotRequest m = TRIKV__SNAPSHOT_REQUEST__INIT;
    static uint8_t bytes[1 << 20];
    char path[128], good[] = "good";
    int directory, file;
    ssize_t n;

    (void)state;
    m.session = bystander.session;
    m.name = good;
    assert_int_equal(call_code(bystander.fd, TRIKV_SNAPSHOT, &m.base, NULL, 0), 0);
    snprintf(path, sizeof(path), "%s/%u", snapshots, (unsigned)getuid());
    directory = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    file = openat(directory, "good", O_RDONLY | O_CLOEXEC);
    n = read(file, bytes, sizeof(bytes));
    close(file);
    assert_true(n > 64 && n < (ssize_t)sizeof(bytes));
    assert_int_equal(mkfifoat(directory, "fifo", 0600), 0);
    assert_int_equal(symlinkat("good", directory, "link"), 0);
    assert_int_equal(mkdirat(directory, "folder", 0700), 0);
    assert_int_equal(symlinkat("/dev/zero", directory, "device"), 0);
    write_file(directory, "empty", bytes, 0);
    for (size_t i = 0; i < 5; i++) {
        const int code = restore(fd, names[i]);

        if (code == 0)
            fail_msg("%s was restored", names[i]);
        bystander_check(&bystander);
        (void)unlinkat(directory, names[i], i == 2 ? AT_REMOVEDIR : 0);
    }
    check_changes(fd, directory, bytes, (size_t)n);
    assert_int_equal(restore(fd, "good"), 0);
    (void)unlinkat(directory, "good", 0);
    close(directory);
    close(fd);
    bystander_check_alone(&bystander);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(strangers_get_nothing), cmocka_unit_test(strangers_stay_outside),
        cmocka_unit_test(old_ids_lead_nowhere),  cmocka_unit_test(slow_ones_are_cut_off),
        cmocka_unit_test(crowds_are_told),       cmocka_unit_test(files_that_are_none),
    };

    return cmocka_run_group_tests(tests, start, stop);
}
