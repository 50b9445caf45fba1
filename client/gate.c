/* What a round would drop, and what the gate of the session's profile says to it. */
#include "client/client.h"

#include "proto/trikv.pb-c.h"

static void read_gate(struct trikv_gate *to, const Trikv__GateStats *m)
{
    *to = (struct trikv_gate){
        .n_passed = m->n_passed,
        .n_kept_more = m->n_kept_more,
        .n_exceeded = m->n_exceeded,
        .n_surplus_tokens = m->n_surplus_tokens,
        .n_dropped = m->n_dropped,
        .n_probes = m->n_probes,
        .output_error = m->output_error,
        .lse_change = m->lse_change,
        .lost_mass = m->lost_mass,
    };
}

int trikv_gate(struct trikv_session *session, struct trikv_gate *layers)
{
    struct trikv_client *const c = session->client;
    struct tkv_request r = TKV_REQUEST_INIT;
    const Trikv__GateReply *m;
    int e;

    r.reply_type = &trikv__gate_reply__descriptor;
    e = tkv_session_request(c, session->id, TRIKV_GATE, &r);
    if (e)
        return e;
    m = (const Trikv__GateReply *)r.reply;
    if (m->n_layers == session->n_layers) {
        for (uint32_t i = 0; i < session->n_layers; i++)
            read_gate(&layers[i], m->layers[i]);
    } else {
        tkv_stream_close(&c->stream);
        e = tkv_fail(&c->report, TRIKV_E_PROTOCOL, "gate: %zu layers of the daemon, want %u",
                     m->n_layers, session->n_layers);
    }
    tkv_request_deinit(&r);
    return e;
}
