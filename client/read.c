/* Getting tokens back: what a session keeps, decoded by the daemon. */
#include "client/client.h"

#include "proto/trikv.pb-c.h"

static int check_read(struct trikv_session *s, const struct trikv_read *from)
{
    struct tkv_report *why = &s->client->report;

    if (from->layer >= s->n_layers)
        return tkv_fail(why, TRIKV_E_ARGUMENT, "layer is %u, the session has %u", from->layer,
                        s->n_layers);
    if (from->dtype != TRIKV_F32 && from->dtype != TRIKV_F16)
        return tkv_fail(why, TRIKV_E_ARGUMENT, "dtype is %d, want TRIKV_F32 or TRIKV_F16",
                        (int)from->dtype);
    return 0;
}

/* Sizes follow from what the daemon said of a fork, too: too large is caught, not overflowed. */
static int list_outputs(struct trikv_session *s, const struct trikv_read *from,
                        struct tkv_request *r)
{
    const struct tkv_shape *shape = &s->shapes[s->n_shapes == 1 ? 0 : from->layer];
    const size_t element = tkv_dtype_bytes((enum tkv_dtype)from->dtype);
    const size_t n_heads = from->kv_head < 0 ? shape->n_kv_heads : 1;
    size_t rows, k_bytes, v_bytes;

    if (from->n_tokens == 0)
        return 0;
    if (!tkv_mul(from->n_tokens, n_heads, &rows) || !tkv_mul(rows, element, &rows) ||
        !tkv_mul(rows, shape->head_dim_k, &k_bytes) || !tkv_mul(rows, shape->head_dim_v, &v_bytes))
        k_bytes = v_bytes = SIZE_MAX;
    r->outputs[0] = (struct tkv_tensor){from->positions, from->n_tokens * sizeof(int32_t)};
    r->outputs[1] = (struct tkv_tensor){from->k, k_bytes};
    r->outputs[2] = (struct tkv_tensor){from->v, v_bytes};
    r->n_outputs = 3;
    if (tkv_tensors_bytes(r->outputs, r->n_outputs) > s->client->max_payload_bytes)
        return tkv_fail(&s->client->report, TRIKV_E_TOO_LARGE,
                        "%u tokens at a time are too many: the daemon sends %llu bytes",
                        from->n_tokens, (unsigned long long)s->client->max_payload_bytes);
    return 0;
}

static int run_read(struct trikv_session *s, const struct trikv_read *from,
                    const struct tkv_request *outputs, struct trikv_read_result *result)
{
    struct tkv_request r = *outputs;
    Trikv__ReadRequest m = TRIKV__READ_REQUEST__INIT;
    int e;

    m.session = s->id;
    m.layer = from->layer;
    m.has_kv_head = from->kv_head >= 0;
    m.kv_head = m.has_kv_head ? (uint32_t)from->kv_head : 0;
    m.first = from->first;
    m.n_tokens = from->n_tokens;
    m.has_dtype = 1;
    m.dtype = (uint32_t)from->dtype;
    r.type = TRIKV_READ;
    r.message = &m.base;
    r.reply_type = &trikv__read_reply__descriptor;
    e = tkv_request_run(s->client, &r);
    if (!e && result) {
        const Trikv__ReadReply *reply = (const Trikv__ReadReply *)r.reply;

        *result = (struct trikv_read_result){reply->n_seen, reply->n_kept, reply->exact};
    }
    tkv_request_deinit(&r);
    return e;
}

int trikv_read(struct trikv_session *session, const struct trikv_read *read,
               struct trikv_read_result *result)
{
    struct trikv_read from = {0};
    struct tkv_request r = TKV_REQUEST_INIT;
    int e = tkv_client_read_struct(session->client, &from, read, sizeof(from), "trikv_read");

    if (result)
        *result = (struct trikv_read_result){0};
    if (!e)
        e = check_read(session, &from);
    if (!e)
        e = list_outputs(session, &from, &r);
    return e ? e : run_read(session, &from, &r, result);
}
