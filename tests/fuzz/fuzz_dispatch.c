/*
 * A whole daemon, short of its main: an input is what one client sends, frame after frame, to the
 * loop, the dispatch, the sessions and the workers. Afterwards the daemon holds nothing of it.
 *
 * A frame of an input: type, flags, two bytes how long the message is, the message. The checksum is made
 * right here, for no fuzzer would find it; so is a session's number if it is small: n means the n-th
 * session since the input began.
 */
#include "core/types.h" /* wants to come before uv.h */

#include "tests/fuzz/fuzz.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "daemon/options.h"
#include "daemon/server.h"
#include "proto/ring.h"

enum {
    MAX_FRAMES = 12,
    SMALL_ID = 8,
    AREA_BYTES = 64 << 10,
    PAYLOAD_UNIT_BYTES = 512, /* K, V and Q of a token of a layer of the seeds */
    MAX_FRAME_BYTES = (1 << 17) + 16 * PAYLOAD_UNIT_BYTES,
    PATIENCE_S = 8,
    HEAD_BYTES = 4, /* of a frame of the input */
};

enum flag {
    FLAG_PAYLOAD = 15, /* so many units */
    FLAG_FD = 16,
    FLAG_RAW = 32, /* the message is the frame, as it is */
    FLAG_NAN = 64,
};

static struct tkv_server server;
static uint64_t first_id; /* the last one before this input */

static void start(void)
{
    static const struct tkv_options options;
    static struct tkv_config c;

    tkv_config_init(&c);
    (void)snprintf(c.socket, sizeof(c.socket), "/tmp/trikv-fuzz-%d", (int)getpid());
    strcpy(c.profiles_directory, "/nonexistent");
    c.memory_cap_bytes = 64 << 20;
    c.max_payload_bytes = 1 << 20;
    c.n_threads = 1;
    c.log_level = TKV_LOG_ERROR;
    if (tkv_server_init(&server, &c, &options))
        abort();
}

/* What a client writes and reads without ever waiting. */
static void swallow(int fd)
{
    struct tkv_foreign_control control;
    static char bytes[1 << 16];
    struct iovec iov = {bytes, sizeof(bytes)};
    ssize_t n;

    do {
        struct msghdr msg = {.msg_iov = &iov,
                             .msg_iovlen = 1,
                             .msg_control = &control,
                             .msg_controllen = sizeof(control)};

        n = recvmsg(fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
        if (n <= 0)
            return;
        for (struct cmsghdr *h = CMSG_FIRSTHDR(&msg); h; h = CMSG_NXTHDR(&msg, h))
            for (size_t i = 0; i < (h->cmsg_len - CMSG_LEN(0)) / sizeof(int); i++) {
                int passed;

                memcpy(&passed, CMSG_DATA(h) + i * sizeof(int), sizeof(int));
                close(passed);
            }
    } while (n > 0);
}

static void turn(int fd)
{
    const struct timespec moment = {0, 20000};

    swallow(fd);
    if (uv_run(&server.loop, UV_RUN_NOWAIT) < 0)
        abort();
    swallow(fd);
    if (server.n_clients == 0 || server.clients->conn.state == TKV_CONN_BUSY)
        (void)nanosleep(&moment, NULL); /* a worker has it */
}

static bool send_some(int fd, const uint8_t *bytes, size_t n, int passed)
{
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control = {{0}};
    const time_t end = time(NULL) + PATIENCE_S;
    static uint8_t copy[MAX_FRAME_BYTES];
    size_t at = 0;

    memcpy(copy, bytes, n);
    while (at < n) {
        struct iovec iov = {copy + at, n - at};
        struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
        ssize_t sent;

        if (at == 0 && passed >= 0) {
            msg.msg_control = &control;
            msg.msg_controllen = sizeof(control.bytes);
            CMSG_FIRSTHDR(&msg)->cmsg_level = SOL_SOCKET;
            CMSG_FIRSTHDR(&msg)->cmsg_type = SCM_RIGHTS;
            CMSG_FIRSTHDR(&msg)->cmsg_len = CMSG_LEN(sizeof(int));
            memcpy(CMSG_DATA(CMSG_FIRSTHDR(&msg)), &passed, sizeof(int));
        }
        sent = sendmsg(fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < 0 && errno != EAGAIN)
            return false;
        at += sent > 0 ? (size_t)sent : 0;
        turn(fd);
        if (time(NULL) > end)
            abort(); /* it neither takes it nor hangs up */
    }
    return true;
}

/* A file that can be a staging area or, of the same size, a ring. */
static int make_area(void)
{
    const struct trikv_ring_header h = {
        .magic = TRIKV_RING_MAGIC, .version = TRIKV_RING_VERSION, .n_entries = 2};
    const int fd = memfd_create("fuzz", MFD_CLOEXEC | MFD_ALLOW_SEALING);

    if (fd < 0 || ftruncate(fd, AREA_BYTES) || pwrite(fd, &h, sizeof(h), 0) != sizeof(h) ||
        fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK))
        abort();
    return fd;
}

static void fill_payload(float *p, size_t n, bool nan)
{
    for (size_t i = 0; i < n; i++)
        p[i] = (float)(i % 13) - 6;
    if (nan && n)
        memset(p + n / 2, 0xff, sizeof(*p));
}

/* Message and padding of a sealed frame lie behind its head; then the payload. */
static bool send_frame(int fd, uint16_t type, unsigned flags, const uint8_t *message, size_t n)
{
    static _Alignas(64) uint8_t frame[MAX_FRAME_BYTES];
    struct trikv_frame f = {.type = type, .sequence = 1, .header_bytes = (uint32_t)n};
    const int area = flags & FLAG_FD ? make_area() : -1;
    size_t at = sizeof(f) + n + tkv_frame_padding((uint32_t)n);
    uint64_t id;
    bool sent;

    memset(frame, 0, at);
    memcpy(frame + sizeof(f), message, n);
    if (n >= 9 && message[0] == 9) { /* a session */
        memcpy(&id, message + 1, sizeof(id));
        if (id > 0 && id <= SMALL_ID)
            id += first_id;
        memcpy(frame + sizeof(f) + 1, &id, sizeof(id));
    }
    f.n_fds = area >= 0;
    f.payload_bytes = (flags & FLAG_PAYLOAD) * PAYLOAD_UNIT_BYTES;
    fill_payload((float *)(void *)(frame + at), f.payload_bytes / sizeof(float), flags & FLAG_NAN);
    tkv_frame_seal(&f, frame + sizeof(f));
    memcpy(frame, &f, sizeof(f));
    at += f.payload_bytes;
    sent = flags & FLAG_RAW ? send_some(fd, message, n, area) : send_some(fd, frame, at, area);
    if (area >= 0)
        close(area);
    return sent;
}

static void play(int fd, const uint8_t *data, size_t n)
{
    static const uint8_t hello[] = {8, 1, 16, 1}; /* both versions are 1 */

    if (!send_frame(fd, TRIKV_HELLO, 0, hello, sizeof(hello)))
        return;
    for (int i = 0; i < MAX_FRAMES && n >= HEAD_BYTES; i++) {
        const size_t announced = data[2] + 256u * data[3];
        const size_t length = announced < n - HEAD_BYTES ? announced : n - HEAD_BYTES;

        if (!send_frame(fd, data[0], data[1], data + HEAD_BYTES, length))
            return;
        data += HEAD_BYTES + length;
        n -= HEAD_BYTES + length;
    }
}

/* Until the daemon has nothing more to do; what it stored for others to find goes, too. */
static void finish(int fd)
{
    const time_t end = time(NULL) + PATIENCE_S;

    (void)shutdown(fd, SHUT_WR);
    while (server.n_clients || server.sessions.n || server.rings.n) {
        turn(fd);
        tkv_prefixes_trim(&server, 0);
        if (time(NULL) > end)
            abort(); /* somebody hangs */
    }
    close(fd);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    static size_t rest_bytes;
    const uint64_t n_tokens = server.counters.n_tokens_appended;
    size_t used_bytes;
    int pair[2];

    if (!server.has_loop)
        start();
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair))
        abort();
    first_id = server.sessions.last_id;
    tkv_client_accept(&server, pair[0]);
    play(pair[1], data, n);
    finish(pair[1]);
    if (server.counters.n_tokens_appended > n_tokens)
        fuzz_reached();
    used_bytes = atomic_load(&server.budget.used_bytes);
    if (rest_bytes == 0)
        rest_bytes = used_bytes;
    if (used_bytes != rest_bytes)
        abort(); /* something stays */
    return 0;
}
