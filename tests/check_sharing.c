/*
 * What trikvd shares and with whom: memory under its cap, staging areas, handles, sessions seen from
 * other connections and by other users.
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
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/types.h"
#include "proto/errors.h"
#include "proto/limits.h"
#include "proto/shm_layout.h"
#include "proto/trikv.pb-c.h"
#include "tests/daemon_aid.h"
#include "tests/rng.h"
#include "tests/wire.h"

static int make_area(size_t bytes, int seals)
{
    const int fd = memfd_create("area", MFD_CLOEXEC | MFD_ALLOW_SEALING);

    assert_true(fd >= 0);
    assert_int_equal(ftruncate(fd, (off_t)bytes), 0);
    assert_int_equal(fcntl(fd, F_ADD_SEALS, seals), 0);
    return fd;
}

static int staging_call(int fd, int area, uint64_t bytes, char *text)
{
    Trikv__StagingRequest m = TRIKV__STAGING_REQUEST__INIT;
    struct wire_reply r;
    int code;

    m.staging_bytes = bytes;
    code = wire_call(fd, TRIKV_STAGING, &m.base, NULL, 0, area, &r);
    snprintf(text, sizeof(r.text), "%s", r.text);
    wire_reply_deinit(&r);
    return code;
}

static int append_zeros(int fd, uint64_t session, const void *payload, size_t bytes)
{
    Trikv__TokensRequest m = TRIKV__TOKENS_REQUEST__INIT;
    struct wire_reply r;
    int code;

    m.session = session;
    m.n_tokens = 1;
    code = wire_call(fd, TRIKV_APPEND, &m.base, payload, bytes, -1, &r);
    wire_reply_deinit(&r);
    return code;
}

/* Over the cap: refused, and the connection goes on. */
static void check_memory_cap(void **state)
{
    const int a = daemon_hello(state), b = daemon_hello(state), c = daemon_hello(state);
    const int area = make_area(32 << 20, F_SEAL_SHRINK), small = make_area(24 << 20, F_SEAL_SHRINK);
    const size_t bytes = 31 << 20;
    char *payload = calloc(1, bytes);
    char text[256];
    int code;
    const uint64_t id = wire_open(c, 1, &code);

    assert_non_null(payload);
    assert_int_equal(code, 0);
    assert_int_equal(staging_call(a, area, 32 << 20, text), 0);
    assert_int_equal(staging_call(b, area, 32 << 20, text), TRIKV_E_MEMORY_CAP);
    assert_int_equal(staging_call(b, small, 24 << 20, text), 0);
    assert_int_equal(append_zeros(c, id, payload, bytes), TRIKV_E_MEMORY_CAP);
    assert_int_equal(append_zeros(c, id, payload, 1024), 0);
    wire_serve_well(((const struct daemon_aid *)*state)->socket);
    close(a);
    for (int i = 0; i < 500; i++) { /* until a's area is given back */
        code = append_zeros(c, id, payload, bytes);
        if (code != TRIKV_E_MEMORY_CAP)
            break;
        sleep_ms(2);
    }
    assert_int_equal(code, TRIKV_E_SIZE);
    free(payload);
    close(area);
    close(small);
    close(b);
    close(c);
}

/* Over the limit of one payload: refused and closed, without reading it. */
static void check_too_large(void **state)
{
    const int fd = daemon_hello(state);
    struct trikv_frame f = {.type = TRIKV_APPEND, .payload_bytes = (32 << 20) + 1};
    struct wire_reply r;

    tkv_frame_seal(&f, NULL);
    assert_true(wire_write(fd, &f, sizeof(f), -1));
    assert_int_equal(wire_read(fd, &r, WIRE_TIMEOUT_MS), 1);
    assert_int_equal(r.code, TRIKV_E_TOO_LARGE);
    wire_reply_deinit(&r);
    assert_int_equal(wire_read(fd, &r, WIRE_TIMEOUT_MS), 0);
    close(fd);
}

static void check_staging_refused(void **state)
{
    const int fd = daemon_hello(state);
    const int open_area = make_area(1 << 20, 0), area = make_area(1 << 20, F_SEAL_SHRINK);
    const int file = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    const int readonly = make_area(1 << 20, F_SEAL_SHRINK | F_SEAL_WRITE);
    Trikv__StagingRequest m = TRIKV__STAGING_REQUEST__INIT;
    char text[256];

    m.staging_bytes = 64;
    assert_int_equal(wire_plain_call(fd, TRIKV_STAGING, &m.base, text), TRIKV_E_ARGUMENT);
    assert_non_null(strstr(text, "one descriptor"));
    assert_int_equal(staging_call(fd, open_area, 1 << 20, text), TRIKV_E_ARGUMENT);
    assert_non_null(strstr(text, "F_SEAL_SHRINK"));
    assert_int_equal(staging_call(fd, file, 1 << 20, text), TRIKV_E_ARGUMENT);
    assert_int_equal(staging_call(fd, area, 4096, text), TRIKV_E_SIZE);
    assert_int_equal(staging_call(fd, area, 0, text), TRIKV_E_ARGUMENT);
    assert_int_equal(staging_call(fd, area, UINT64_MAX, text), TRIKV_E_TOO_LARGE);
    assert_int_equal(staging_call(fd, readonly, 1 << 20, text), TRIKV_E_SYSTEM);
    assert_int_equal(staging_call(fd, area, 1 << 20, text), 0);
    assert_int_equal(staging_call(fd, area, 1 << 20, text), TRIKV_E_EXISTS);
    close(open_area);
    close(area);
    close(file);
    close(readonly);
    close(fd);
}

static int staged_step(int fd, uint64_t session, uint64_t in, uint64_t in_bytes, uint64_t out)
{
    Trikv__TokensRequest m = TRIKV__TOKENS_REQUEST__INIT;
    struct wire_reply r;
    int code;

    m.session = session;
    m.n_tokens = 3;
    m.has_input_offset = m.has_input_bytes = m.has_output_offset = 1;
    m.input_offset = in;
    m.input_bytes = in_bytes;
    m.output_offset = out;
    code = wire_call(fd, TRIKV_APPEND_ATTEND, &m.base, NULL, 0, -1, &r);
    if (code == 0)
        assert_int_equal(r.frame.payload_bytes, 0);
    wire_reply_deinit(&r);
    return code;
}

/* The same step through the area and inline gives the same bits; wrong ranges are refused. */
static void check_staging(void **state)
{
    const int fd = daemon_hello(state);
    const int area = make_area(1 << 20, F_SEAL_SHRINK);
    char *base = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_SHARED, area, 0);
    struct rng rng = {5};
    struct wire_reply r;
    size_t bytes;
    float *p = wire_payload(&rng, 3, &bytes);
    char text[256];
    int code;
    const uint64_t staged = wire_open(fd, 1, &code), inlined = wire_open(fd, 1, &code);

    assert_ptr_not_equal(base, MAP_FAILED);
    assert_int_equal(staging_call(fd, area, 1 << 20, text), 0);
    memcpy(base + 128, p, bytes);
    assert_int_equal(staged_step(fd, staged, 100, bytes, 65536), TRIKV_E_ARGUMENT);
    assert_int_equal(staged_step(fd, staged, 128, bytes - 64, 65536), TRIKV_E_SIZE);
    assert_int_equal(staged_step(fd, staged, 1 << 20, bytes, 65536), TRIKV_E_ARGUMENT);
    assert_int_equal(staged_step(fd, staged, UINT64_MAX - 63, bytes, 65536), TRIKV_E_ARGUMENT);
    assert_int_equal(staged_step(fd, staged, 128, bytes, 1 << 20), TRIKV_E_ARGUMENT);
    assert_int_equal(staged_step(fd, staged, 128, bytes, UINT64_MAX - 63), TRIKV_E_ARGUMENT);
    assert_int_equal(staged_step(fd, staged, 128, bytes, 192), TRIKV_E_ARGUMENT);
    assert_int_equal(staged_step(fd, staged, 128, bytes, 65536), 0);
    assert_int_equal(wire_append_attend(fd, inlined, 0, p, bytes, 3, &r), 0);
    assert_memory_equal(base + 65536, r.payload, r.frame.payload_bytes);
    wire_reply_deinit(&r);
    munmap(base, 1 << 20);
    free(p);
    close(area);
    close(fd);
}

static void check_handle(void **state)
{
    const int fd = daemon_hello(state);
    struct trikv_table_header table;
    struct wire_reply r;
    struct rng rng = {6};
    size_t bytes;
    float *p = wire_payload(&rng, 400, &bytes);
    int code;
    const uint64_t id = wire_open(fd, 1, &code);

    assert_int_equal(wire_append_attend(fd, id, 0, p, bytes, 400, &r), 0);
    wire_reply_deinit(&r);
    assert_int_equal(wire_session_call(fd, TRIKV_ROUND, id, &r), 0);
    wire_reply_deinit(&r);
    assert_int_equal(wire_session_call(fd, TRIKV_HANDLE, id, &r), 0);
    assert_true(r.fd >= 0);
    memcpy(&table, r.payload, sizeof(table));
    assert_int_equal(table.magic, TRIKV_SHM_MAGIC);
    assert_true(table.n_entries > 0);
    assert_int_equal(r.frame.payload_bytes,
                     sizeof(table) + table.n_entries * sizeof(struct trikv_table_entry));
    assert_ptr_equal(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, r.fd, 0), MAP_FAILED);
    assert_ptr_not_equal(mmap(NULL, 4096, PROT_READ, MAP_SHARED, r.fd, 0), MAP_FAILED);
    wire_reply_deinit(&r);
    free(p);
    close(fd);
}

static void check_other_connection(void **state)
{
    const int owner = daemon_hello(state), other = daemon_hello(state);
    Trikv__SessionListReply *list;
    struct wire_reply r;
    int code;
    const uint64_t id = wire_open(owner, 1, &code);

    assert_int_equal(wire_session_call(other, TRIKV_STATS, id, &r), 0);
    wire_reply_deinit(&r);
    assert_int_equal(wire_session_call(other, TRIKV_ROUND, id, &r), TRIKV_E_DENIED);
    wire_reply_deinit(&r);
    assert_int_equal(wire_session_call(other, TRIKV_HANDLE, id, &r), TRIKV_E_DENIED);
    wire_reply_deinit(&r);
    assert_int_equal(wire_session_call(other, TRIKV_CLOSE, id, &r), TRIKV_E_DENIED);
    wire_reply_deinit(&r);
    assert_int_equal(wire_call(other, TRIKV_SESSION_LIST, NULL, NULL, 0, -1, &r), 0);
    list = trikv__session_list_reply__unpack(NULL, r.frame.header_bytes, r.message);
    assert_int_equal(list->sessions[list->n_sessions - 1]->session, id);
    trikv__session_list_reply__free_unpacked(list, NULL);
    wire_reply_deinit(&r);
    assert_int_equal(wire_session_call(other, TRIKV_DROP, id, &r), 0);
    wire_reply_deinit(&r);
    assert_int_equal(wire_session_call(owner, TRIKV_STATS, id, &r), TRIKV_E_NO_SESSION);
    wire_reply_deinit(&r);
    close(owner);
    close(other);
}

/* As another user; the exit code is what went wrong, 0 for nothing. */
static int stranger(const char *socket, uint64_t id)
{
    struct wire_reply r;
    int fd;

    if (setgid(65534) || setuid(65534))
        return 1;
    fd = wire_connect(socket);
    if (fd < 0)
        return 2;
    wire_hello(fd);
    if (wire_session_call(fd, TRIKV_STATS, id, &r) != TRIKV_E_DENIED)
        return 3;
    if (wire_session_call(fd, TRIKV_DROP, id, &r) != TRIKV_E_DENIED)
        return 4;
    if (wire_call(fd, TRIKV_SESSION_LIST, NULL, NULL, 0, -1, &r) || r.frame.header_bytes > 2)
        return 5; /* sessions_total = 0 takes two bytes, a session many */
    return 0;
}

static void check_other_user(void **state)
{
    const char *socket = ((const struct daemon_aid *)*state)->socket;
    const int fd = daemon_hello(state);
    int code, status;
    const uint64_t id = wire_open(fd, 1, &code);
    pid_t pid;

    if (getuid() != 0) {
        close(fd);
        print_message("skipped: needs root to be another user\n");
        skip();
    }
    pid = fork();
    assert_true(pid >= 0);
    if (pid == 0)
        _exit(stranger(socket, id));
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
    close(fd);
}

/* A request of another connection waits for the job under way, then is answered. */
static void check_waiting(void **state)
{
    const int owner = daemon_hello(state), other = daemon_hello(state);
    Trikv__TokensRequest m = TRIKV__TOKENS_REQUEST__INIT;
    struct wire_reply r;
    struct rng rng = {8};
    size_t bytes, n;
    float *p = wire_payload(&rng, 1200, &bytes);
    uint8_t *frame;
    int code;

    m.session = wire_open(owner, 1, &code);
    m.n_tokens = 1200;
    frame = wire_frame(TRIKV_APPEND_ATTEND, 4, &m.base, p, bytes, 0, &n);
    assert_true(wire_write(owner, frame, n, -1));
    code = wire_session_call(other, TRIKV_STATS, m.session, &r); /* before, during or after */
    assert_int_equal(code, 0);
    wire_reply_deinit(&r);
    assert_int_equal(wire_session_call(other, TRIKV_DROP, m.session, &r), 0);
    wire_reply_deinit(&r);
    assert_int_equal(wire_read(owner, &r, WIRE_TIMEOUT_MS), 1);
    assert_true(r.code == 0 || r.code == TRIKV_E_NO_SESSION);
    wire_reply_deinit(&r);
    free(frame);
    free(p);
    close(owner);
    close(other);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(check_memory_cap),      cmocka_unit_test(check_too_large),
        cmocka_unit_test(check_staging_refused), cmocka_unit_test(check_staging),
        cmocka_unit_test(check_handle),          cmocka_unit_test(check_other_connection),
        cmocka_unit_test(check_other_user),      cmocka_unit_test(check_waiting),
    };

    return cmocka_run_group_tests(tests, daemon_set_up, daemon_tear_down);
}
