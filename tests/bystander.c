/* Noticing what one should not notice; see bystander.h. */
#include "tests/bystander.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "proto/trikv.pb-c.h"
#include "tests/rng.h"
#include "tests/wire.h"

static long now_ms(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* The last query again: it changes nothing. */
static void attend(const struct bystander *b, struct wire_reply *r)
{
    Trikv__TokensRequest m = TRIKV__TOKENS_REQUEST__INIT;
    const float *const q = b->tokens + (size_t)BYSTANDER_TOKENS * 2 * WIRE_K_FLOATS +
                           (size_t)(BYSTANDER_TOKENS - 1) * WIRE_Q_FLOATS;

    m.session = b->session;
    m.n_tokens = 1;
    assert_int_equal(
        wire_call(b->fd, TRIKV_ATTEND, &m.base, q, WIRE_Q_FLOATS * sizeof(float), -1, r), 0);
}

void bystander_init(struct bystander *b, const struct daemon_aid *d)
{
    struct rng rng = {20261123};
    struct wire_reply r;
    size_t bytes;
    int code;

    memset(b, 0, sizeof(*b));
    b->daemon = d;
    b->fd = wire_connect_hello(d->socket);
    b->session = wire_open(b->fd, 1, &code);
    assert_int_equal(code, 0);
    b->tokens = wire_payload(&rng, BYSTANDER_TOKENS, &bytes);
    assert_int_equal(
        wire_append_attend(b->fd, b->session, 0, b->tokens, bytes, BYSTANDER_TOKENS, &r), 0);
    wire_reply_deinit(&r);
    attend(b, &r);
    b->n_want_bytes = r.frame.payload_bytes;
    b->want = r.payload;
    r.payload = NULL;
    wire_reply_deinit(&r);
    wire_serve_well(d->socket); /* what a daemon keeps comes with its first clients */
    b->rest = daemon_rest_of(d);
}

void bystander_deinit(struct bystander *b)
{
    free(b->tokens);
    free(b->want);
    close(b->fd);
}

void bystander_check(struct bystander *b)
{
    const long begin_ms = now_ms();
    struct wire_reply r;
    long took_ms;

    attend(b, &r);
    took_ms = now_ms() - begin_ms;
    assert_int_equal(r.frame.payload_bytes, b->n_want_bytes);
    assert_memory_equal(r.payload, b->want, b->n_want_bytes);
    wire_reply_deinit(&r);
    if (took_ms > BYSTANDER_MS)
        fail_msg("the bystander waited %ld ms", took_ms);
}

void bystander_check_alone(struct bystander *b)
{
    bystander_check(b);
    daemon_check_well(b->daemon, &b->rest);
    bystander_check(b);
}
