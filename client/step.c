/*
 * The requests that carry tensors. They go through the staging area if input and
 * output fit there together, else inline, straight from and to the caller's memory.
 */
#include "client/client.h"

#include <string.h>

#include "proto/trikv.pb-c.h"

_Static_assert((int)TRIKV_F32 == (int)TKV_F32, "client/trikv.h differs: dtype");
_Static_assert((int)TRIKV_F16 == (int)TKV_F16, "client/trikv.h differs: dtype");
_Static_assert((int)TRIKV_BF16 == (int)TKV_BF16, "client/trikv.h differs: dtype");

/* What a request has beside positions. */
enum { KV = 1, Q = 2, OUT = 4 };

/* Latents come without values. */
static bool wants_values(const struct trikv_session *s, uint32_t layer)
{
    return tkv_stored_dim_v(&s->shapes[s->n_shapes == 1 ? 0 : layer]) > 0;
}

static int check_step(struct trikv_session *s, const struct trikv_step *t, unsigned parts)
{
    struct tkv_report *why = &s->client->report;

    if (t->layer >= s->n_layers)
        return tkv_fail(why, TRIKV_E_ARGUMENT, "layer %u, the session has %u", t->layer,
                        s->n_layers);
    if (t->n_tokens == 0 || t->n_tokens > TRIKV_MAX_REQUEST_TOKENS)
        return tkv_fail(why, TRIKV_E_ARGUMENT, "n_tokens is %u, want 1 to %d", t->n_tokens,
                        TRIKV_MAX_REQUEST_TOKENS);
    if ((int)t->dtype < TRIKV_F32 || t->dtype > TRIKV_BF16)
        return tkv_fail(why, TRIKV_E_ARGUMENT, "dtype %d is not one", (int)t->dtype);
    if (parts & KV && (!t->k || (!t->v && wants_values(s, t->layer))))
        return tkv_fail(why, TRIKV_E_ARGUMENT, "%s is NULL", t->k ? "v" : "k");
    if (parts & KV && t->v && !wants_values(s, t->layer))
        return tkv_fail(why, TRIKV_E_ARGUMENT,
                        "layer %u has latents, whose values are in k: v must be NULL", t->layer);
    if (parts & Q && !t->q)
        return tkv_fail(why, TRIKV_E_ARGUMENT, "q is NULL");
    if (t->token_ids && !(parts & KV))
        return tkv_fail(why, TRIKV_E_ARGUMENT, "token_ids are for tokens that are appended");
    if (parts & OUT && !t->out)
        return tkv_fail(why, TRIKV_E_ARGUMENT, "out is NULL");
    return 0;
}

/* The daemon's limits keep each factor small, but a daemon's answer to OPEN is not ours to
 * trust: an overflow becomes SIZE_MAX, which is over every limit. */
static size_t tensor_bytes(size_t n_tokens, size_t n_heads, size_t dim, size_t element_bytes)
{
    size_t n;

    if (!tkv_mul(n_tokens, n_heads, &n) || !tkv_mul(n, dim, &n) || !tkv_mul(n, element_bytes, &n))
        return SIZE_MAX;
    return n;
}

static void add_tensor(struct tkv_tensor *list, uint32_t *n, const void *data, size_t bytes)
{
    list[(*n)++] = (struct tkv_tensor){.data = (void *)(uintptr_t)data, .bytes = bytes};
}

static int list_tensors(struct trikv_session *s, const struct trikv_step *t, unsigned parts,
                        struct tkv_request *r)
{
    const struct tkv_shape *shape = &s->shapes[s->n_shapes == 1 ? 0 : t->layer];
    const size_t element = tkv_dtype_bytes((enum tkv_dtype)t->dtype);
    const size_t n = t->n_tokens;
    const uint64_t limit = s->client->max_payload_bytes;
    size_t in;
    size_t out;

    if (t->positions)
        add_tensor(r->tensors, &r->n_tensors, t->positions, n * sizeof(int32_t));
    if (t->token_ids)
        add_tensor(r->tensors, &r->n_tensors, t->token_ids, n * sizeof(uint32_t));
    if (parts & KV) {
        add_tensor(r->tensors, &r->n_tensors, t->k,
                   tensor_bytes(n, shape->n_kv_heads, shape->head_dim_k, element));
        if (wants_values(s, t->layer))
            add_tensor(r->tensors, &r->n_tensors, t->v,
                       tensor_bytes(n, shape->n_kv_heads, shape->head_dim_v, element));
    }
    if (parts & Q)
        add_tensor(r->tensors, &r->n_tensors, t->q,
                   tensor_bytes(n, shape->n_q_heads, shape->head_dim_k, element));
    if (parts & OUT) {
        add_tensor(r->outputs, &r->n_outputs, t->out,
                   tensor_bytes(n, shape->n_q_heads, shape->head_dim_v, sizeof(float)));
        add_tensor(r->outputs, &r->n_outputs, t->lse, n * shape->n_q_heads * sizeof(float));
    }
    in = tkv_tensors_bytes(r->tensors, r->n_tensors);
    out = tkv_tensors_bytes(r->outputs, r->n_outputs);
    if (in > limit || out > limit)
        return tkv_fail(&s->client->report, TRIKV_E_TOO_LARGE,
                        "a step of %zu bytes in and %zu out, the daemon takes %llu", in, out,
                        (unsigned long long)limit);
    return 0;
}

static void copy_in(uint8_t *to, const struct tkv_tensor *t, uint32_t n)
{
    size_t at = 0;

    for (uint32_t i = 0; i < n; i++) {
        at = tkv_align(at, TRIKV_FRAME_ALIGN);
        memcpy(to + at, t[i].data, t[i].bytes);
        at += t[i].bytes;
    }
}

static void copy_out(const struct tkv_tensor *t, uint32_t n, const uint8_t *from)
{
    size_t at = 0;

    for (uint32_t i = 0; i < n; i++) {
        at = tkv_align(at, TRIKV_FRAME_ALIGN);
        if (t[i].data)
            memcpy(t[i].data, from + at, t[i].bytes);
        at += t[i].bytes;
    }
}

static int run_inline(struct trikv_client *c, Trikv__TokensRequest *m, struct tkv_request *r)
{
    r->message = &m->base;
    return tkv_request_run(c, r);
}

/* Input from the start of the area, output after it. */
static int run_staged(struct trikv_client *c, Trikv__TokensRequest *m, struct tkv_request *r,
                      size_t in_bytes, size_t output_offset)
{
    const struct tkv_request inline_form = *r;
    int e;

    copy_in(c->staging.base, r->tensors, r->n_tensors);
    r->n_tensors = 0;
    r->n_outputs = 0;
    m->has_input_offset = 1;
    m->input_offset = 0;
    m->has_input_bytes = 1;
    m->input_bytes = in_bytes;
    m->has_output_offset = inline_form.n_outputs > 0;
    m->output_offset = output_offset;
    r->message = &m->base;
    e = tkv_request_run(c, r);
    if (!e)
        copy_out(inline_form.outputs, inline_form.n_outputs, c->staging.base + output_offset);
    return e;
}

/* The sizes of both sides must agree, or what came is not what was asked for. */
static int check_reply(struct trikv_client *c, const struct tkv_request *r, size_t out_bytes)
{
    const Trikv__TokensReply *m = (const Trikv__TokensReply *)r->reply;

    if (m->output_bytes == out_bytes)
        return 0;
    tkv_stream_close(&c->stream);
    return tkv_fail(&c->report, TRIKV_E_PROTOCOL,
                    "reply of the daemon: %llu bytes of output, want %zu",
                    (unsigned long long)m->output_bytes, out_bytes);
}

static int run_step(struct trikv_session *s, const struct trikv_step *t, bool before_rope,
                    struct tkv_request *r)
{
    struct trikv_client *c = s->client;
    Trikv__TokensRequest m = TRIKV__TOKENS_REQUEST__INIT;
    const size_t in = tkv_tensors_bytes(r->tensors, r->n_tensors);
    const size_t out = tkv_tensors_bytes(r->outputs, r->n_outputs);
    const size_t output_offset = tkv_align(in, TRIKV_FRAME_ALIGN);
    int e;

    m.session = s->id;
    m.layer = t->layer;
    m.n_tokens = t->n_tokens;
    m.has_dtype = 1;
    m.dtype = (uint32_t)t->dtype;
    m.has_has_positions = 1;
    m.has_positions = t->positions != NULL;
    m.has_has_token_ids = t->token_ids != NULL;
    m.has_token_ids = t->token_ids != NULL;
    m.has_before_rope = before_rope;
    m.before_rope = before_rope;
    r->reply_type = &trikv__tokens_reply__descriptor;
    if (c->staging.base && output_offset + out <= c->staging.bytes)
        e = run_staged(c, &m, r, in, output_offset);
    else
        e = run_inline(c, &m, r);
    return e ? e : check_reply(c, r, out);
}

/* A step that was read from the caller's struct. */
static int run(struct trikv_session *s, const struct trikv_step *t, uint16_t type, unsigned parts,
               bool before_rope)
{
    struct tkv_request r = TKV_REQUEST_INIT;
    int e = check_step(s, t, parts);

    if (!e)
        e = list_tensors(s, t, parts, &r);
    if (e)
        return e;
    r.type = type;
    e = run_step(s, t, before_rope, &r);
    tkv_request_deinit(&r);
    return e;
}

/* What the three kinds of steps are, here and there. */
struct kind {
    uint16_t type;
    enum trikv_ring_op op;
    unsigned parts;
};

static const struct kind kinds[] = {
    [TRIKV_STEP_APPEND] = {TRIKV_APPEND, TRIKV_RING_APPEND, KV},
    [TRIKV_STEP_ATTEND] = {TRIKV_ATTEND, TRIKV_RING_ATTEND, Q | OUT},
    [TRIKV_STEP_APPEND_ATTEND] = {TRIKV_APPEND_ATTEND, TRIKV_RING_APPEND_ATTEND, KV | Q | OUT},
};

/* A daemon may take token ids by the socket alone. */
static bool may_ring(const struct trikv_session *s, const struct trikv_step *t)
{
    return s->client->ring && s->client->stream.fd >= 0 &&
           (!t->token_ids || s->client->ring_takes_ids);
}

/* Into the ring, if there is one and there is room; else over the socket, which waits for its end. */
static int start(struct trikv_session *s, const struct trikv_step *t, const struct kind *k,
                 uint8_t flags)
{
    struct tkv_request r = TKV_REQUEST_INIT;
    int e;

    if (!may_ring(s, t)) {
        e = s->client->ring && s->client->stream.fd >= 0 ? tkv_ring_wait(s->client) : 0;
        return e ? e : run(s, t, k->type, k->parts, false);
    }
    e = check_step(s, t, k->parts);
    if (!e)
        e = list_tensors(s, t, k->parts, &r);
    if (e || tkv_ring_put(s, t, k->op, &r, flags, &e) || e)
        return e;
    return run(s, t, k->type, k->parts, false);
}

static int read_step(struct trikv_session *s, struct trikv_step *t, const struct trikv_step *from)
{
    *t = (struct trikv_step){0};
    return tkv_client_read_struct(s->client, t, from, sizeof(*t), "trikv_step");
}

static int step(struct trikv_session *s, const struct trikv_step *from, enum trikv_step_kind kind)
{
    struct trikv_step t;
    int e = read_step(s, &t, from);

    if (!e && s->client->ring && tkv_ring_is_in_flight(s->client->ring))
        e = tkv_fail(&s->client->report, TRIKV_E_STATE,
                     "steps are in flight: trikv_ring_wait for them first");
    e = e ? e : start(s, &t, &kinds[kind], 0);
    return e || !s->client->ring ? e : tkv_ring_wait(s->client);
}

int trikv_append(struct trikv_session *session, const struct trikv_step *step_of_caller)
{
    return step(session, step_of_caller, TRIKV_STEP_APPEND);
}

int trikv_attend(struct trikv_session *session, const struct trikv_step *step_of_caller)
{
    return step(session, step_of_caller, TRIKV_STEP_ATTEND);
}

int trikv_append_attend(struct trikv_session *session, const struct trikv_step *step_of_caller)
{
    return step(session, step_of_caller, TRIKV_STEP_APPEND_ATTEND);
}

int trikv_ring_submit(struct trikv_session *session, enum trikv_step_kind kind,
                      const struct trikv_step *steps, uint32_t n_steps)
{
    struct trikv_client *const c = session->client;
    const uint8_t *at = (const uint8_t *)steps;
    int e = 0;

    if ((int)kind < TRIKV_STEP_APPEND || kind > TRIKV_STEP_APPEND_ATTEND)
        return tkv_fail(&c->report, TRIKV_E_ARGUMENT, "kind of step %d is not one", (int)kind);
    for (uint32_t i = 0; !e && i < n_steps; i++, at += steps->size) {
        struct trikv_step t;

        e = read_step(session, &t, (const struct trikv_step *)(const void *)at);
        e = e ? e : start(session, &t, &kinds[kind], TRIKV_RING_CHAIN);
    }
    if (c->ring)
        tkv_ring_submit(c->ring);
    return e;
}

int trikv_ring_wait(struct trikv_client *client)
{
    if (!client->ring)
        return 0;
    if (client->stream.fd < 0)
        return tkv_fail(&client->report, TRIKV_E_DISCONNECTED, "the connection is closed");
    return tkv_ring_wait(client);
}

int trikv_observe(struct trikv_session *session, const struct trikv_queries *queries)
{
    struct trikv_queries from = {0};
    struct trikv_step t = {.size = sizeof(t)};
    const int e =
        tkv_client_read_struct(session->client, &from, queries, sizeof(from), "trikv_queries");

    if (e)
        return e;
    t.layer = from.layer;
    t.n_tokens = from.n_tokens;
    t.dtype = from.dtype;
    t.positions = from.positions;
    t.q = from.q;
    return run(session, &t, TRIKV_OBSERVE, Q, from.before_rope != 0);
}
