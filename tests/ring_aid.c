/* A client's side of a ring in a few lines, asleep whenever it waits. */
#include "tests/ring_aid.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "proto/trikv.pb-c.h"
#include "tests/daemon_aid.h"
#include "tests/rng.h"
#include "tests/wire.h"

int ring_aid_file(uint32_t n_entries, size_t bytes, unsigned seals)
{
    const struct trikv_ring_header h = {
        .magic = TRIKV_RING_MAGIC, .version = TRIKV_RING_VERSION, .n_entries = n_entries};
    const int fd = memfd_create("ring", MFD_CLOEXEC | MFD_ALLOW_SEALING);

    assert_true(fd >= 0);
    assert_int_equal(ftruncate(fd, (off_t)bytes), 0);
    assert_int_equal(pwrite(fd, &h, sizeof(h), 0), sizeof(h));
    if (seals)
        assert_int_equal(fcntl(fd, F_ADD_SEALS, seals), 0);
    return fd;
}

int ring_aid_ask(struct ring_aid *r, int fd, int file, uint64_t bytes, char *text)
{
    Trikv__RingRequest m = TRIKV__RING_REQUEST__INIT;
    struct wire_reply reply;
    int code;

    m.ring_bytes = bytes;
    code = wire_call(fd, TRIKV_RING, &m.base, NULL, 0, file, &reply);
    if (text)
        memcpy(text, reply.text, sizeof(reply.text));
    if (!code) {
        struct trikv_ring_header h;

        *r = (struct ring_aid){
            .fd = fd, .bytes = bytes, .doorbell_fd = reply.fd, .answer_fd = reply.fd2};
        assert_true(reply.fd >= 0 && reply.fd2 >= 0);
        reply.fd = reply.fd2 = -1;
        r->base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
        assert_true(r->base != MAP_FAILED);
        r->shared = (struct trikv_ring_shared *)(void *)r->base;
        memcpy(&h, r->base, sizeof(h));
        r->n_entries = h.n_entries;
    }
    wire_reply_deinit(&reply);
    return code;
}

void ring_aid_open(struct ring_aid *r, int fd, uint32_t n_entries, size_t tensor_bytes)
{
    const size_t bytes = tkv_ring_tensors_at(n_entries) + tensor_bytes;
    const int file = ring_aid_file(n_entries, bytes, F_SEAL_SHRINK);
    char text[256];
    const int code = ring_aid_ask(r, fd, file, bytes, text);

    close(file);
    if (code)
        fail_msg("ring: %d %s", code, text);
}

void ring_aid_drop(struct ring_aid *r)
{
    munmap(r->base, r->bytes);
    close(r->doorbell_fd);
    close(r->answer_fd);
}

int ring_aid_close(struct ring_aid *r, char *text)
{
    struct wire_reply reply;
    const int code = wire_call(r->fd, TRIKV_RING_CLOSE, NULL, NULL, 0, -1, &reply);

    if (text)
        memcpy(text, reply.text, sizeof(reply.text));
    wire_reply_deinit(&reply);
    ring_aid_drop(r);
    return code;
}

void *ring_aid_tensor(const struct ring_aid *r, size_t at)
{
    return r->base + tkv_ring_tensors_at(r->n_entries) + at;
}

uint32_t ring_aid_place(const struct ring_aid *r, size_t at)
{
    return (uint32_t)((tkv_ring_tensors_at(r->n_entries) + at) / TRIKV_RING_ALIGN);
}

void ring_aid_put(struct ring_aid *r, const struct trikv_ring_entry *e)
{
    struct trikv_ring_entry *const entries = (struct trikv_ring_entry *)(void *)(r->shared + 1);

    entries[r->n_written++ & (r->n_entries - 1)] = *e;
}

void ring_aid_submit(struct ring_aid *r)
{
    if (tkv_ring_publish(&r->shared->submitted, r->n_written, &r->shared->daemon_waits_for))
        assert_int_equal(eventfd_write(r->doorbell_fd, 1), 0);
}

static bool wait_answer(const struct ring_aid *r)
{
    struct pollfd p = {.fd = r->answer_fd, .events = POLLIN};
    eventfd_t n;

    return poll(&p, 1, WIRE_TIMEOUT_MS) == 1 && eventfd_read(r->answer_fd, &n) == 0;
}

bool ring_aid_wait(struct ring_aid *r)
{
    bool told = true;

    while (told && atomic_load(&r->shared->completed) < r->n_written) {
        if (tkv_ring_may_sleep(&r->shared->client_waits_for, &r->shared->completed, r->n_written))
            told = !atomic_load(&r->shared->ended) && wait_answer(r);
        tkv_ring_awake(&r->shared->client_waits_for);
    }
    return told;
}

uint32_t ring_aid_ended(struct ring_aid *r)
{
    for (int i = 0; i < 1000 && !atomic_load(&r->shared->ended); i++)
        sleep_ms(2);
    return atomic_load(&r->shared->ended);
}

const struct trikv_completion *ring_aid_last(const struct ring_aid *r)
{
    const struct trikv_completion *const done =
        (const struct trikv_completion *)(const void *)(r->base +
                                                        tkv_ring_completions_at(r->n_entries));

    return &done[(r->n_written - 1) & (r->n_entries - 1)];
}

int ring_aid_do(struct ring_aid *r, const struct trikv_ring_entry *e)
{
    ring_aid_put(r, e);
    ring_aid_submit(r);
    return ring_aid_wait(r) ? ring_aid_last(r)->error : -1;
}

static size_t k_bytes(uint32_t n)
{
    return (size_t)n * WIRE_K_FLOATS * sizeof(float);
}

static size_t q_bytes(uint32_t n)
{
    return (size_t)n * WIRE_Q_FLOATS * sizeof(float);
}

struct trikv_ring_entry ring_aid_step(const struct ring_aid *r, uint64_t session, uint32_t n)
{
    return (struct trikv_ring_entry){
        .tag = 7000 + r->n_written,
        .session = session,
        .op = TRIKV_RING_APPEND_ATTEND,
        .n_tokens = n,
        .k = ring_aid_place(r, 0),
        .v = ring_aid_place(r, k_bytes(n)),
        .q = ring_aid_place(r, 2 * k_bytes(n)),
        .out = ring_aid_place(r, 2 * k_bytes(n) + q_bytes(n)),
    };
}

void ring_aid_fill(const struct ring_aid *r, uint32_t n, struct rng *rng)
{
    float *x = ring_aid_tensor(r, 0);

    for (size_t i = 0; i < (2 * k_bytes(n) + q_bytes(n)) / sizeof(float); i++)
        x[i] = rng_gauss(rng);
}
