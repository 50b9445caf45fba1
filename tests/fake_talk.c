/* What a well-behaved fake says, and clients that talk to it. */
#include "tests/fake_talk.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "proto/trikv.pb-c.h"

struct fake fake;

struct fake_frame fake_hello_frame(void)
{
    Trikv__HelloReply m = TRIKV__HELLO_REPLY__INIT;
    char version[] = "9.8.7";
    char cpu[] = "avx\033[31m";

    m.protocol = 1;
    m.boot_id = 42;
    m.version = version;
    m.cpu = cpu;
    m.max_payload_bytes = 32 << 20;
    m.memory_cap_bytes = 1 << 30;
    m.page_bytes = 4096;
    return fake_frame_of(TRIKV_HELLO | TRIKV_REPLY, 1, &m.base, NULL, 0);
}

bool fake_answer_hello(int fd)
{
    struct fake_request q;
    struct fake_frame f = fake_hello_frame();
    bool ok = fake_read(fd, &q);

    ok = ok && q.frame.type == TRIKV_HELLO && fake_send(fd, f.bytes, f.n_bytes, -1, 0);
    fake_request_deinit(&q);
    free(f.bytes);
    return ok;
}

bool fake_answer_open(int fd, struct fake_request *q)
{
    Trikv__OpenReply m = TRIKV__OPEN_REPLY__INIT;

    m.session = 77;
    m.reserved_bytes = 1;
    return fake_read(fd, q) && q->frame.type == TRIKV_OPEN &&
           fake_reply(fd, TRIKV_OPEN | TRIKV_REPLY, q->frame.sequence, &m.base);
}

bool fake_prepare(int fd)
{
    struct fake_request q;
    const bool ok = fake_answer_hello(fd) && fake_answer_open(fd, &q);

    fake_request_deinit(&q);
    return ok;
}

void fake_serve_raw(int fd, void *arg)
{
    const struct fake_raw *a = arg;
    struct fake_request q;

    if (a->after_open && !fake_prepare(fd))
        return;
    if (fake_read(fd, &q))
        fake_send(fd, a->frame.bytes, a->n_bytes, a->pass_fd, a->n_fds);
    fake_request_deinit(&q);
}

int fake_connect(struct trikv_client **c, uint32_t timeout_ms, size_t staging_bytes)
{
    const struct trikv_options o = {.size = sizeof(o),
                                    .socket = fake.path,
                                    .timeout_ms = timeout_ms,
                                    .staging_bytes = staging_bytes,
                                    .name = "check_client"};

    return trikv_connect(c, &o);
}

int fake_open_on(struct trikv_client *c, struct trikv_session **s)
{
    const struct trikv_layer layer = {
        .n_q_heads = N_Q, .n_kv_heads = N_KV, .head_dim_k = DIM, .head_dim_v = DIM};
    struct trikv_session_options o = TRIKV_SESSION_OPTIONS_INIT;

    o.n_layers = 2;
    o.layers = &layer;
    o.same_layers = 1;
    return trikv_open(c, &o, s);
}

void fake_open_session(struct trikv_client **c, struct trikv_session **s, uint32_t timeout_ms,
                       size_t staging_bytes)
{
    assert_int_equal(fake_connect(c, timeout_ms, staging_bytes), 0);
    assert_int_equal(fake_open_on(*c, s), 0);
    assert_int_equal(trikv_session_id(*s), 77);
}

void fake_set_u16(struct fake_frame *f, size_t at, uint16_t x)
{
    memcpy(f->bytes + at, &x, sizeof(x));
}

void fake_set_u32(struct fake_frame *f, size_t at, uint32_t x)
{
    memcpy(f->bytes + at, &x, sizeof(x));
}

void fake_set_u64(struct fake_frame *f, size_t at, uint64_t x)
{
    memcpy(f->bytes + at, &x, sizeof(x));
}

int fake_setup(void **state)
{
    (void)state;
    fake_init(&fake);
    return 0;
}

int fake_teardown(void **state)
{
    (void)state;
    fake_deinit(&fake);
    return 0;
}
