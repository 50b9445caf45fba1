/*
 * OBSERVE and CALIBRATE: statistics of a live engine's queries, and a profile of them. The
 * profile goes back to the client as text. The daemon writes no file: profiles are shared by
 * all its users, so putting one into its directory is for whoever may write there.
 */
#include "daemon/dispatch.h"
#include "daemon/observation.h"
#include "daemon/requests.h"
#include "daemon/server.h"
#include "proto/errors.h"
#include "proto/trikv.pb-c.h"

/* The sums are made at a session's first OBSERVE: most sessions never send one. */
static int need_observation(struct tkv_call *call)
{
    struct tkv_session_entry *const e = call->entry;

    if (e->observation)
        return TRIKV_OK;
    if (!e->has_rope)
        return tkv_fail(&call->why, TRIKV_E_STATE,
                        "OBSERVE: the session has no rope: say it in OPEN, or name a profile");
    return tkv_observation_create(&e->observation, e->session, &e->rope, &e->quota->budget,
                                  &call->why);
}

static void observe_work(struct tkv_job *job)
{
    struct tkv_call *const call = tkv_call_of(job);
    const struct tkv_server *s = call->client->server;

    tkv_observation_add(call->entry->observation, &call->step, call->before_rope, &s->kernels,
                        tkv_pool_exec(s->pool), &call->why);
}

static void observe_done(struct tkv_job *job)
{
    struct tkv_call *const call = tkv_call_of(job);
    const uint64_t n = tkv_observation_n_tokens(call->entry->observation, call->step.layer);
    Trikv__TokensReply reply = TRIKV__TOKENS_REPLY__INIT;

    tkv_sessions_idle(call->entry);
    if (!tkv_call_ended(call))
        return;
    if (call->why.error) {
        tkv_call_fail(call);
        return;
    }
    reply.n_seen = n;
    tkv_call_reply(call, &reply.base);
}

void tkv_handle_observe(struct tkv_call *call, const ProtobufCMessage *message)
{
    const Trikv__TokensRequest *m = (const Trikv__TokensRequest *)message;

    call->before_rope = m->before_rope;
    if (!tkv_call_take_step(call, message, TKV_STEP_Q) || need_observation(call)) {
        tkv_call_fail(call);
        return;
    }
    call->entry->busy = true;
    tkv_call_start(call, observe_work, observe_done);
}

static void calibrate_work(struct tkv_job *job)
{
    struct tkv_call *const call = tkv_call_of(job);

    tkv_observation_print(call->entry->observation, call->client->output.data, &call->yaml_bytes,
                          &call->why);
}

static void calibrate_done(struct tkv_job *job)
{
    struct tkv_call *const call = tkv_call_of(job);
    Trikv__CalibrateReply reply = TRIKV__CALIBRATE_REPLY__INIT;
    uint32_t layer;

    reply.n_tokens = tkv_observation_fewest(call->entry->observation, &layer);
    tkv_sessions_idle(call->entry);
    if (!tkv_call_ended(call))
        return;
    if (call->why.error) {
        tkv_call_fail(call);
        return;
    }
    reply.yaml_bytes = call->yaml_bytes;
    tkv_conn_reply(&call->client->conn, &reply.base, call->client->output.data, call->yaml_bytes,
                   -1);
}

/* What the request does not say is the profile's, whose model the session has. */
static int take_names(struct tkv_call *call, const Trikv__CalibrateRequest *m)
{
    struct tkv_session_entry *const e = call->entry;
    const char *architecture = e->profile ? e->profile->architecture : "unknown";
    const char *fingerprint = e->profile ? e->profile->fingerprint : "none";

    if (!e->observation)
        return tkv_fail(&call->why, TRIKV_E_STATE, "CALIBRATE: nothing was observed");
    return tkv_observation_name(e->observation, m->name,
                                m->architecture ? m->architecture : architecture,
                                m->fingerprint ? m->fingerprint : fingerprint, &call->why);
}

static int start_calibrate(struct tkv_call *call, const Trikv__CalibrateRequest *m)
{
    struct tkv_client *const client = call->client;
    size_t room;

    call->session_id = m->session;
    call->entry = tkv_call_own_session(call);
    if (!call->entry || take_names(call, m))
        return call->why.error;
    room = tkv_observation_room(call->entry->observation);
    if (room > client->server->limits.max_payload_bytes)
        return tkv_fail(&call->why, TRIKV_E_TOO_LARGE,
                        "CALIBRATE: a profile of up to %zu bytes, the limit of a payload is %llu",
                        room, (unsigned long long)client->server->limits.max_payload_bytes);
    if (!tkv_buffer_need(&client->output, &client->server->budget, room))
        return tkv_fail(&call->why, TRIKV_E_MEMORY_CAP,
                        "memory cap reached: no %zu bytes for the profile", room);
    call->entry->busy = true;
    tkv_call_start(call, calibrate_work, calibrate_done);
    return TRIKV_OK;
}

void tkv_handle_calibrate(struct tkv_call *call, const ProtobufCMessage *message)
{
    if (start_calibrate(call, (const Trikv__CalibrateRequest *)message))
        tkv_call_fail(call);
}
