/* READ: tokens of the cache, decoded by a worker. */
#include <string.h>

#include "daemon/dispatch.h"
#include "daemon/requests.h"
#include "daemon/server.h"
#include "proto/errors.h"
#include "proto/trikv.pb-c.h"

static void read_work(struct tkv_job *job)
{
    struct tkv_call *const call = tkv_call_of(job);

    if (call->read.n_tokens > 0)
        tkv_session_read(call->entry->session, &call->read);
}

static void read_done(struct tkv_job *job)
{
    struct tkv_call *const call = tkv_call_of(job);
    const struct tkv_session *s = call->entry->session;
    Trikv__ReadReply reply = TRIKV__READ_REPLY__INIT;

    reply.n_seen = tkv_session_n_seen(s, call->read.layer);
    reply.n_kept = tkv_session_head_kept(s, call->read.layer, call->read.kv_head);
    reply.exact = tkv_session_read_is_exact(s, &call->read);
    tkv_sessions_idle(call->entry);
    if (tkv_call_ended(call))
        tkv_conn_reply(&call->client->conn, &reply.base,
                       call->out_bytes ? call->client->output.data : NULL, call->out_bytes, -1);
}

static int plan(struct tkv_call *call, const Trikv__ReadRequest *m, struct tkv_read_bytes *bytes)
{
    struct tkv_session *s;

    call->session_id = m->session;
    call->entry = tkv_call_own_session(call);
    if (!call->entry)
        return call->why.error;
    s = call->entry->session;
    call->read = (struct tkv_read){.layer = m->layer,
                                   .kv_head = m->has_kv_head ? m->kv_head : 0,
                                   .n_heads = 1,
                                   .first = m->first,
                                   .n_tokens = m->n_tokens,
                                   .dtype = (enum tkv_dtype)m->dtype};
    if (!m->has_kv_head && m->layer < tkv_session_n_layers(s))
        call->read.n_heads = tkv_session_shape(s, m->layer)->n_kv_heads;
    return tkv_session_read_check(s, &call->read, bytes, &call->why);
}

/* Room for the payload, its padding zero, and where its parts are. */
static int take_room(struct tkv_call *call, const struct tkv_read_bytes *b)
{
    struct tkv_client *const client = call->client;
    const size_t k = tkv_align(b->positions, TRIKV_FRAME_ALIGN);
    const size_t v = k + tkv_align(b->k, TRIKV_FRAME_ALIGN);
    const size_t n = v + b->v;
    uint8_t *out;

    if (call->read.n_tokens == 0)
        return TRIKV_OK;
    if (n > client->server->limits.max_payload_bytes)
        return tkv_fail(&call->why, TRIKV_E_TOO_LARGE,
                        "READ: a reply of %zu bytes, the limit of a payload is %llu", n,
                        (unsigned long long)client->server->limits.max_payload_bytes);
    if (!tkv_buffer_need(&client->output, &client->server->budget, n))
        return tkv_fail(&call->why, TRIKV_E_MEMORY_CAP,
                        "memory cap reached: no %zu bytes for the reply", n);
    out = (uint8_t *)client->output.data;
    memset(out + b->positions, 0, k - b->positions);
    memset(out + k + b->k, 0, v - k - b->k);
    call->read.positions = (int32_t *)(void *)out;
    call->read.k = out + k;
    call->read.v = out + v;
    call->out_bytes = n;
    return TRIKV_OK;
}

void tkv_handle_read(struct tkv_call *call, const ProtobufCMessage *message)
{
    struct tkv_read_bytes bytes;

    if (plan(call, (const Trikv__ReadRequest *)message, &bytes) || take_room(call, &bytes)) {
        tkv_call_fail(call);
        return;
    }
    call->entry->busy = true;
    tkv_call_start(call, read_work, read_done);
}
