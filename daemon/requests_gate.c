/* GATE: what a round would drop now, and what the gate says to it. A fork holds that round. */
#include "daemon/dispatch.h"
#include "daemon/requests.h"
#include "daemon/server.h"
#include "proto/errors.h"
#include "proto/trikv.pb-c.h"

static struct tkv_gate_stats *stats_of(const struct tkv_call *call)
{
    return (struct tkv_gate_stats *)(void *)call->client->output.data;
}

void tkv_fill_gate(Trikv__GateStats *m, const struct tkv_gate_stats *s)
{
    trikv__gate_stats__init(m);
    m->n_passed = s->n_passed;
    m->n_kept_more = s->n_kept_more;
    m->n_exceeded = s->n_exceeded;
    m->n_surplus_tokens = s->n_surplus_tokens;
    m->n_dropped = s->n_dropped;
    m->n_probes = s->n_probes;
    m->output_error = s->measure.output_error;
    m->lse_change = s->measure.lse_change;
    m->lost_mass = s->measure.lost_mass;
}

static void gate_work(struct tkv_job *job)
{
    struct tkv_call *const call = tkv_call_of(job);

    tkv_session_gate(call->entry->session, tkv_pool_exec(call->client->server->pool),
                     stats_of(call), &call->why);
}

static void reply_gate(struct tkv_call *call, uint32_t n_layers)
{
    Trikv__GateReply reply = TRIKV__GATE_REPLY__INIT;
    Trikv__GateStats layer[TRIKV_MAX_LAYERS];
    Trikv__GateStats *layers[TRIKV_MAX_LAYERS];

    for (uint32_t i = 0; i < n_layers; i++) {
        tkv_fill_gate(&layer[i], &stats_of(call)[i]);
        layers[i] = &layer[i];
    }
    reply.n_layers = n_layers;
    reply.layers = layers;
    tkv_call_reply(call, &reply.base);
}

static void gate_done(struct tkv_job *job)
{
    struct tkv_call *const call = tkv_call_of(job);
    const uint32_t n_layers = tkv_session_n_layers(call->entry->session);

    tkv_sessions_idle(call->entry);
    if (!tkv_call_ended(call))
        return;
    if (call->why.error)
        tkv_call_fail(call);
    else
        reply_gate(call, n_layers);
}

void tkv_handle_gate(struct tkv_call *call, const ProtobufCMessage *message)
{
    struct tkv_client *const client = call->client;
    struct tkv_session_entry *e;
    size_t bytes;

    call->session_id = ((const Trikv__SessionRequest *)message)->session;
    e = tkv_call_any_session(call);
    if (e && e->busy) {
        tkv_call_wait(call, e);
        return;
    }
    bytes = e ? tkv_session_n_layers(e->session) * sizeof(struct tkv_gate_stats) : 0;
    if (e && !tkv_buffer_need(&client->output, &client->server->budget, bytes))
        tkv_fail(&call->why, TRIKV_E_MEMORY_CAP, "memory cap reached: no %zu bytes", bytes);
    if (call->why.error) {
        tkv_call_fail(call);
        return;
    }
    call->entry = e;
    e->busy = true;
    tkv_call_start(call, gate_work, gate_done);
}
