/*
 * Memory that client and daemon share, and that the client changes in ways which memory of one's own cannot
 * have: holes under a staging area and under a ring, descriptors kept longer than the session. With a
 * bystander who must not notice, and a daemon that in the end holds what it held before.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "proto/errors.h"
#include "proto/trikv.pb-c.h"
#include "tests/bystander.h"
#include "tests/emulated.h"
#include "tests/ring_aid.h"
#include "tests/rng.h"
#include "tests/wire.h"

enum { AREA_BYTES = 1 << 20 };

static struct daemon_aid the_daemon;
static struct bystander bystander;

static int start(void **state)
{
    (void)state;
    daemon_start(&the_daemon, "memory:\n  cap: 64MiB\nlimits:\n  payload: 2MiB\n"
                              "workers:\n  threads: 2\nlog:\n  level: error\n");
    bystander_init(&bystander, &the_daemon);
    return 0;
}

static int stop(void **state)
{
    (void)state;
    bystander_deinit(&bystander);
    return daemon_stop(&the_daemon, SIGTERM);
}

/* A descriptor that a client keeps keeps no memory of a session that is gone. */
static void kept_handles_keep_no_memory(void **state)
{
    enum { N = 8, N_TOKENS = 300 };
    const int fd = wire_connect_hello(the_daemon.socket);
    struct rng rng = {3};
    int kept[N];
    size_t bytes;
    float *p = wire_payload(&rng, N_TOKENS, &bytes);

    (void)state;
    for (int i = 0; i < N; i++) {
        struct wire_reply r;
        struct stat s;
        int code;
        const uint64_t id = wire_open(fd, 1, &code);

        assert_int_equal(wire_append_attend(fd, id, 0, p, bytes, N_TOKENS, &r), 0);
        wire_reply_deinit(&r);
        assert_int_equal(wire_session_call(fd, TRIKV_HANDLE, id, &r), 0);
        kept[i] = r.fd;
        r.fd = -1;
        wire_reply_deinit(&r);
        assert_int_equal(fstat(kept[i], &s), 0);
        assert_true(s.st_blocks > 0);
        wire_close_session(fd, id);
        assert_int_equal(fstat(kept[i], &s), 0);
        if (s.st_blocks)
            fail_msg("%lld KiB are kept", (long long)s.st_blocks / 2);
    }
    for (int i = 0; i < N; i++)
        close(kept[i]);
    free(p);
    close(fd);
    bystander_check_alone(&bystander);
}

/* A process that punches holes into a file, and tries to cut it, until it is killed. */
static pid_t punch(int area)
{
    const pid_t pid = fork();
    struct rng rng = {17};

    assert_true(pid >= 0);
    while (pid == 0) {
        const off_t at = (off_t)rng_below(&rng, AREA_BYTES / 4096) * 4096;

        if (ftruncate(area, at) == 0)
            _exit(1); /* it must not work */
        (void)fallocate(area, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at, 1 << 16);
        (void)fallocate(area, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, AREA_BYTES);
        usleep(50); /* others want the processor, too */
    }
    return pid;
}

/* What comes of a hole is zeros; what the daemon writes may be gone. */
static void holes_are_zeros(void **state)
{
    const int fd = wire_connect_hello(the_daemon.socket);
    const int area = memfd_create("area", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    Trikv__StagingRequest staging = TRIKV__STAGING_REQUEST__INIT;
    Trikv__TokensRequest t = TRIKV__TOKENS_REQUEST__INIT;
    struct wire_reply r;
    int code, status;
    pid_t pid;

    (void)state;
    assert_int_equal(ftruncate(area, AREA_BYTES), 0);
    assert_int_equal(fcntl(area, F_ADD_SEALS, F_SEAL_SHRINK), 0);
    staging.staging_bytes = AREA_BYTES;
    assert_int_equal(wire_call(fd, TRIKV_STAGING, &staging.base, NULL, 0, area, &r), 0);
    wire_reply_deinit(&r);
    assert_int_equal(fcntl(area, F_ADD_SEALS, F_SEAL_WRITE), -1); /* the daemon writes */
    t.session = wire_open(fd, 1, &code);
    t.n_tokens = 60;
    t.has_input_offset = t.has_input_bytes = t.has_output_offset = 1;
    t.input_bytes = t.n_tokens * sizeof(float) * (2 * WIRE_K_FLOATS + WIRE_Q_FLOATS);
    t.output_offset = AREA_BYTES / 2;
    pid = punch(area);
    for (uint32_t i = 0; i < 100; i += emulated_step(10)) {
        assert_int_equal(wire_plain_call(fd, TRIKV_APPEND_ATTEND, &t.base, NULL), 0);
        if (i % 10 == 0)
            bystander_check(&bystander);
    }
    kill(pid, SIGKILL);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFSIGNALED(status));
    close(area);
    close(fd);
    bystander_check_alone(&bystander);
}

/* The same under a ring, whose head and counters become zeros, too. */
static void holes_in_rings(void **state)
{
    const size_t bytes = AREA_BYTES;
    int file, fd, code;
    struct ring_aid r;
    uint64_t id;

    (void)state;
    for (uint32_t i = 0; i < 20; i += emulated_step(5)) {
        pid_t pid;

        fd = wire_connect_hello(the_daemon.socket);
        id = wire_open(fd, 1, &code);
        file = ring_aid_file(4, bytes, F_SEAL_SHRINK);
        assert_int_equal(ring_aid_ask(&r, fd, file, bytes, NULL), 0);
        pid = punch(file);
        for (int k = 0; k < 50 && !atomic_load(&r.shared->ended); k++) {
            const struct trikv_ring_entry e = ring_aid_step(&r, id, 1);

            ring_aid_put(&r, &e);
            ring_aid_submit(&r);
            usleep(20);
        }
        bystander_check(&bystander);
        kill(pid, SIGKILL);
        assert_int_equal(waitpid(pid, NULL, 0), pid);
        close(file);
        close(fd);
        ring_aid_drop(&r);
    }
    bystander_check_alone(&bystander);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(kept_handles_keep_no_memory),
        cmocka_unit_test(holes_are_zeros),
        cmocka_unit_test(holes_in_rings),
    };

    return cmocka_run_group_tests(tests, start, stop);
}
