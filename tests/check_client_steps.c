/*
 * libtrikv's steps against a fake daemon: the bytes that leave, inline and through the staging
 * area, the outputs that come back, whole or not, and what a refusal leaves behind.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "tests/fake_talk.h"

#include "proto/limits.h"
#include "proto/trikv.pb-c.h"

enum { N_TOKENS = 3, OUT_BYTES = N_TOKENS * N_Q * DIM * 4 };
enum { LSE_BYTES = N_TOKENS * N_Q * 4, OUTPUT_BYTES = OUT_BYTES + LSE_BYTES };
_Static_assert(OUT_BYTES % 64 == 0, "LSE follows without padding");

struct tensors {
    int32_t positions[N_TOKENS];
    float k[N_TOKENS * N_KV * DIM];
    float v[N_TOKENS * N_KV * DIM];
    float q[N_TOKENS * N_Q * DIM];
    float out[N_TOKENS * N_Q * DIM];
    float lse[N_TOKENS * N_Q];
};

static void fill(float *x, size_t n, float first)
{
    for (size_t i = 0; i < n; i++)
        x[i] = first + (float)i;
}

static struct trikv_step step_of(struct tensors *t)
{
    memset(t, 0, sizeof(*t));
    fill(t->k, N_TOKENS * N_KV * DIM, 1000);
    fill(t->v, N_TOKENS * N_KV * DIM, 2000);
    fill(t->q, N_TOKENS * N_Q * DIM, 3000);
    for (int i = 0; i < N_TOKENS; i++)
        t->positions[i] = 10 + i;
    return (struct trikv_step){.size = sizeof(struct trikv_step),
                               .layer = 1,
                               .n_tokens = N_TOKENS,
                               .dtype = TRIKV_F32,
                               .positions = t->positions,
                               .k = t->k,
                               .v = t->v,
                               .q = t->q,
                               .out = t->out,
                               .lse = t->lse};
}

/* What the fake must have got: positions, K, V, Q, each from a multiple of 64 on. */
static bool input_is_right(const uint8_t *in)
{
    struct tensors t;

    step_of(&t);
    return memcmp(in, t.positions, sizeof(t.positions)) == 0 &&
           memcmp(in + 64, t.k, sizeof(t.k)) == 0 && memcmp(in + 64 + 128, t.v, sizeof(t.v)) == 0 &&
           memcmp(in + 64 + 256, t.q, sizeof(t.q)) == 0;
}
enum { INPUT_BYTES = 64 + 128 + 128 + N_TOKENS * N_Q * DIM * 4 };

static void fill_output(uint8_t *out)
{
    float x[OUTPUT_BYTES / 4];

    fill(x, OUTPUT_BYTES / 4, 5000);
    memcpy(out, x, sizeof(x));
}

static void assert_output(const struct tensors *t)
{
    for (int i = 0; i < N_TOKENS * N_Q * DIM; i++)
        assert_true(t->out[i] == 5000.f + (float)i);
    for (int i = 0; i < N_TOKENS * N_Q; i++)
        assert_true(t->lse[i] == 5000.f + (float)(OUT_BYTES / 4 + i));
}

static Trikv__TokensReply tokens_reply(void)
{
    Trikv__TokensReply m = TRIKV__TOKENS_REPLY__INIT;

    m.n_seen = N_TOKENS;
    m.n_kept = N_TOKENS;
    m.output_bytes = OUTPUT_BYTES;
    return m;
}

struct step_service {
    size_t chunk_bytes; /* of sending */
    size_t cut_bytes;   /* send only this much */
    bool input_was_right;
};

static struct fake_frame step_reply_frame(uint64_t sequence)
{
    Trikv__TokensReply m = tokens_reply();
    uint8_t out[OUTPUT_BYTES];

    fill_output(out);
    return fake_frame_of(TRIKV_APPEND_ATTEND | TRIKV_REPLY, sequence, &m.base, out, sizeof(out));
}

static void serve_step(int fd, void *arg)
{
    struct step_service *s = arg;
    struct fake_request q;
    struct fake_frame f = step_reply_frame(3);
    size_t left;

    if (fake_prepare(fd) && fake_read(fd, &q)) {
        s->input_was_right = q.frame.payload_bytes == INPUT_BYTES && input_is_right(q.payload);
        left = f.n_bytes < s->cut_bytes ? f.n_bytes : s->cut_bytes;
        for (size_t at = 0; at < left; at += s->chunk_bytes)
            fake_send(fd, f.bytes + at, left - at < s->chunk_bytes ? left - at : s->chunk_bytes, -1,
                      0);
        fake_request_deinit(&q);
    }
    free(f.bytes);
}

static void inline_steps_work_in_pieces(void **state)
{
    const size_t chunks[] = {1, 7, 64, 100000};

    (void)state;
    for (size_t i = 0; i < 4; i++) {
        struct step_service service = {.chunk_bytes = chunks[i], .cut_bytes = SIZE_MAX};
        struct trikv_client *c = NULL;
        struct trikv_session *s = NULL;
        struct tensors t;
        struct trikv_step step = step_of(&t);

        fake_start(&fake, serve_step, &service);
        fake_open_session(&c, &s, 2000, 0);
        assert_int_equal(trikv_append_attend(s, &step), 0);
        assert_output(&t);
        trikv_disconnect(&c);
        fake_join(&fake);
        assert_true(service.input_was_right);
    }
}

static void lse_may_be_unwanted(void **state)
{
    struct step_service service = {.chunk_bytes = 100000, .cut_bytes = SIZE_MAX};
    struct trikv_client *c = NULL;
    struct trikv_session *s = NULL;
    struct tensors t;
    struct trikv_step step = step_of(&t);

    (void)state;
    step.lse = NULL;
    fake_start(&fake, serve_step, &service);
    fake_open_session(&c, &s, 2000, 0);
    assert_int_equal(trikv_append_attend(s, &step), 0);
    assert_true(t.out[5] == 5005 && t.lse[0] == 0);
    assert_int_equal(trikv_close(&s), TRIKV_E_DISCONNECTED); /* the fake has gone */
    assert_null(s);
    trikv_disconnect(&c);
    fake_join(&fake);
}

static void cut_step_replies_are_noticed(void **state)
{
    struct fake_frame f = step_reply_frame(3);

    (void)state;
    for (size_t cut = 0; cut < f.n_bytes; cut++) {
        struct step_service service = {.chunk_bytes = 100000, .cut_bytes = cut};
        struct trikv_client *c = NULL;
        struct trikv_session *s = NULL;
        struct tensors t;
        struct trikv_step step = step_of(&t);

        fake_start(&fake, serve_step, &service);
        fake_open_session(&c, &s, 2000, 0);
        assert_int_equal(trikv_append_attend(s, &step), TRIKV_E_DISCONNECTED);
        assert_int_equal(trikv_append_attend(s, &step), TRIKV_E_DISCONNECTED);
        trikv_close(&s);
        trikv_disconnect(&c);
        fake_join(&fake);
    }
    free(f.bytes);
}

static int step_answered_with(struct fake_frame f, int pass_fd, unsigned n_fds)
{
    struct fake_raw a = {
        .frame = f, .n_bytes = f.n_bytes, .pass_fd = pass_fd, .n_fds = n_fds, .after_open = true};
    struct trikv_client *c = NULL;
    struct trikv_session *s = NULL;
    struct tensors t;
    struct trikv_step step = step_of(&t);
    int e;

    fake_start(&fake, fake_serve_raw, &a);
    fake_open_session(&c, &s, 2000, 0);
    e = trikv_append_attend(s, &step);
    trikv_close(&s);
    trikv_disconnect(&c);
    fake_join(&fake);
    free(f.bytes);
    return e;
}

static void wrong_outputs_are_refused(void **state)
{
    const uint16_t type = TRIKV_APPEND_ATTEND | TRIKV_REPLY;
    Trikv__TokensReply m = tokens_reply();
    uint8_t out[OUTPUT_BYTES + 64] = {0};

    (void)state;
    for (size_t n = 0; n < sizeof(out); n += 4) {
        const int e = step_answered_with(fake_frame_of(type, 3, &m.base, out, n), -1, 0);

        assert_int_equal(e, n == OUTPUT_BYTES ? 0 : TRIKV_E_PROTOCOL);
    }
    m.output_bytes = OUTPUT_BYTES - 4;
    assert_int_equal(step_answered_with(fake_frame_of(type, 3, &m.base, out, OUTPUT_BYTES), -1, 0),
                     TRIKV_E_PROTOCOL);
}

struct staging_service {
    bool sealed;
    bool input_was_right;
    uint64_t output_bytes; /* as announced */
};

static bool answer_staging(int fd, uint8_t **base, struct staging_service *s)
{
    struct fake_request q;
    Trikv__StagingRequest *m;
    bool ok;

    if (!fake_read(fd, &q) || q.frame.type != TRIKV_STAGING || q.fd < 0)
        return false;
    m = trikv__staging_request__unpack(NULL, q.frame.header_bytes, q.message);
    s->sealed = (fcntl(q.fd, F_GET_SEALS) & F_SEAL_SHRINK) && m->staging_bytes == 8192;
    *base = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, q.fd, 0);
    ok = *base != MAP_FAILED && fake_reply(fd, TRIKV_STAGING | TRIKV_REPLY, q.frame.sequence, NULL);
    trikv__staging_request__free_unpacked(m, NULL);
    fake_request_deinit(&q);
    return ok;
}

static void serve_staging(int fd, void *arg)
{
    struct staging_service *s = arg;
    Trikv__TokensReply reply = tokens_reply();
    Trikv__TokensRequest *m;
    uint8_t *base = NULL;
    struct fake_request q;

    if (!fake_answer_hello(fd) || !answer_staging(fd, &base, s))
        return;
    if (fake_answer_open(fd, &q)) {
        fake_request_deinit(&q);
        if (fake_read(fd, &q)) {
            m = trikv__tokens_request__unpack(NULL, q.frame.header_bytes, q.message);
            s->input_was_right = q.frame.payload_bytes == 0 && m->input_bytes == INPUT_BYTES &&
                                 m->has_output_offset && m->output_offset % 64 == 0 &&
                                 input_is_right(base + m->input_offset);
            fill_output(base + m->output_offset);
            trikv__tokens_request__free_unpacked(m, NULL);
            reply.output_bytes = s->output_bytes;
            fake_reply(fd, TRIKV_APPEND_ATTEND | TRIKV_REPLY, q.frame.sequence, &reply.base);
        }
    }
    fake_request_deinit(&q);
    munmap(base, 8192);
}

static void staged_steps_work(void **state)
{
    const uint64_t announced[] = {OUTPUT_BYTES, OUTPUT_BYTES + 4, UINT64_MAX};

    (void)state;
    for (int i = 0; i < 3; i++) {
        struct staging_service service = {.output_bytes = announced[i]};
        struct trikv_client *c = NULL;
        struct trikv_session *s = NULL;
        struct tensors t;
        struct trikv_step step = step_of(&t);

        fake_start(&fake, serve_staging, &service);
        fake_open_session(&c, &s, 2000, 5000); /* rounded up to pages */
        assert_int_equal(trikv_append_attend(s, &step), i == 0 ? 0 : TRIKV_E_PROTOCOL);
        if (i == 0)
            assert_output(&t);
        trikv_close(&s);
        trikv_disconnect(&c);
        fake_join(&fake);
        assert_true(service.sealed);
        assert_true(service.input_was_right);
    }
}

static void serve_errors(int fd, void *arg)
{
    struct fake_request q;
    Trikv__Error m = TRIKV__ERROR__INIT;
    char text[] = "element 3 of K is\nNaN";

    m.message = text;
    if (!fake_prepare(fd))
        return;
    for (const int *code = arg; *code; code++) {
        const bool got = fake_read(fd, &q);

        m.code = *code;
        if (got)
            fake_reply(fd, TRIKV_REPLY_ERROR, q.frame.sequence, &m.base);
        fake_request_deinit(&q);
    }
    if (fake_read(fd, &q)) /* until the client closes */
        fake_reply(fd, TRIKV_REPLY_ERROR, q.frame.sequence, &m.base);
    fake_request_deinit(&q);
}

static void errors_leave_the_connection_usable(void **state)
{
    int codes[] = {TRIKV_E_VALUE, TRIKV_E_MEMORY_CAP, TRIKV_E_CHECKSUM, 0};
    struct trikv_client *c = NULL;
    struct trikv_session *s = NULL;
    struct tensors t;
    struct trikv_step step = step_of(&t);

    (void)state;
    fake_start(&fake, serve_errors, codes);
    fake_open_session(&c, &s, 2000, 0);
    assert_int_equal(trikv_append(s, &step), TRIKV_E_VALUE);
    assert_string_equal(trikv_last_error(c), "element 3 of K is?NaN");
    assert_int_equal(trikv_attend(s, &step), TRIKV_E_MEMORY_CAP);
    assert_int_equal(trikv_round(s), TRIKV_E_CHECKSUM); /* that one closes */
    assert_int_equal(trikv_round(s), TRIKV_E_DISCONNECTED);
    trikv_close(&s);
    trikv_disconnect(&c);
    fake_join(&fake);
}

static void serve_refusal(int fd, void *arg)
{
    struct trikv_frame h;
    Trikv__Error m = TRIKV__ERROR__INIT;
    char text[] = "not today";

    (void)arg;
    m.code = TRIKV_E_TOO_LARGE;
    m.message = text;
    if (fake_prepare(fd) && recv(fd, &h, sizeof(h), MSG_WAITALL) == sizeof(h))
        fake_reply(fd, TRIKV_REPLY_ERROR, h.sequence, &m.base);
}

/* The daemon says no after the header and hangs up while megabytes are still on their way:
 * its reason arrives, not a broken pipe. */
static void refusal_half_way_is_understood(void **state)
{
    enum { N = 8192 };
    struct trikv_client *c = NULL;
    struct trikv_session *s = NULL;
    float *x = calloc((size_t)N * N_Q * DIM, sizeof(*x));
    const struct trikv_step step = {
        .size = sizeof(step), .n_tokens = N, .k = x, .v = x, .q = x, .out = x};

    (void)state;
    fake_start(&fake, serve_refusal, NULL);
    fake_open_session(&c, &s, 2000, 0);
    assert_int_equal(trikv_append(s, &step), TRIKV_E_TOO_LARGE);
    assert_string_equal(trikv_last_error(c), "not today");
    assert_int_equal(trikv_append(s, &step), TRIKV_E_DISCONNECTED);
    trikv_close(&s);
    trikv_disconnect(&c);
    fake_join(&fake);
    free(x);
}

static void wait_for_end(int fd, void *arg)
{
    char byte;

    (void)arg;
    if (fake_prepare(fd))
        (void)!read(fd, &byte, 1);
}

static void bad_arguments_never_leave(void **state)
{
    struct trikv_client *c = NULL;
    struct trikv_session *s = NULL;
    struct trikv_session *other = NULL;
    struct trikv_session_options none = TRIKV_SESSION_OPTIONS_INIT;
    struct tensors t;
    const struct trikv_step good = step_of(&t);
    struct trikv_step bad[9];

    (void)state;
    for (int i = 0; i < 9; i++)
        bad[i] = good;
    bad[0].size = 0;
    bad[1].size = sizeof(size_t);
    bad[2].size = sizeof(good) + 1;
    bad[3].layer = 2;
    bad[4].n_tokens = 0;
    bad[5].n_tokens = TRIKV_MAX_REQUEST_TOKENS + 1;
    bad[6].dtype = (enum trikv_dtype)3;
    bad[7].q = NULL;
    bad[8].v = NULL;
    fake_start(&fake, wait_for_end, NULL);
    fake_open_session(&c, &s, 2000, 0);
    for (int i = 0; i < 9; i++)
        assert_int_equal(trikv_append_attend(s, &bad[i]), TRIKV_E_ARGUMENT);
    bad[0] = good;
    bad[0].n_tokens = TRIKV_MAX_REQUEST_TOKENS;
    assert_int_equal(trikv_append(s, &bad[0]), TRIKV_E_TOO_LARGE);
    assert_int_equal(trikv_open(c, &none, &other), TRIKV_E_ARGUMENT);
    assert_null(other);
    trikv_close(&other);
    /* The connection is still good: only now it is closed. */
    trikv_disconnect(&c);
    fake_join(&fake);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(inline_steps_work_in_pieces),
        cmocka_unit_test(lse_may_be_unwanted),
        cmocka_unit_test(cut_step_replies_are_noticed),
        cmocka_unit_test(wrong_outputs_are_refused),
        cmocka_unit_test(staged_steps_work),
        cmocka_unit_test(errors_leave_the_connection_usable),
        cmocka_unit_test(refusal_half_way_is_understood),
        cmocka_unit_test(bad_arguments_never_leave),
    };

    return cmocka_run_group_tests_name("client_steps", tests, fake_setup, fake_teardown);
}
