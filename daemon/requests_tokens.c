/* APPEND, ATTEND, APPEND_ATTEND and ROUND: finding the tensors, running the job, answering. */
#include <stddef.h>
#include <string.h>

#include "daemon/dispatch.h"
#include "daemon/keep.h"
#include "daemon/requests.h"
#include "daemon/server.h"
#include "proto/errors.h"
#include "proto/trikv.pb-c.h"

/* For a decode step of every known model; a prefill chunk takes its own. */
enum { KEPT_SCRATCH_BYTES = 2 << 20 };

/* Sizes of what a request holds, in the order of the payload. */
enum part { POSITIONS, TOKEN_IDS, KEYS, VALUES, QUERIES, N_PARTS };

struct layout {
    size_t bytes[N_PARTS]; /* 0: not there */
    size_t offset[N_PARTS];
    size_t total_bytes;
    size_t o_bytes;
    size_t lse_offset;
    size_t out_bytes; /* O, padding, LSE */
};

static const char *const part_names[N_PARTS] = {"positions", "token ids", "K", "V", "Q"};

static int plan_layout(struct tkv_call *call, const Trikv__TokensRequest *m, unsigned parts,
                       struct layout *l)
{
    struct tkv_step_bytes b;
    int e;

    if (m->has_token_ids && !(parts & TKV_STEP_KV))
        return tkv_fail(&call->why, TRIKV_E_STATE, "token_ids: only with K and V");
    if (m->dtype > TKV_BF16)
        return tkv_fail(&call->why, TRIKV_E_ARGUMENT, "dtype: %u, want 0 f32, 1 f16 or 2 bf16",
                        m->dtype);
    e = tkv_session_step_bytes(call->entry->session, m->layer, m->n_tokens,
                               (enum tkv_dtype)m->dtype, &b, &call->why);
    if (e)
        return e;
    *l = (struct layout){0};
    l->bytes[POSITIONS] = m->has_positions ? m->n_tokens * sizeof(int32_t) : 0;
    l->bytes[TOKEN_IDS] = m->has_token_ids ? m->n_tokens * sizeof(uint32_t) : 0;
    l->bytes[KEYS] = parts & TKV_STEP_KV ? b.k : 0;
    l->bytes[VALUES] = parts & TKV_STEP_KV ? b.v : 0;
    l->bytes[QUERIES] = parts & TKV_STEP_Q ? b.q : 0;
    for (int i = 0; i < N_PARTS; i++) {
        if (!l->bytes[i])
            continue;
        l->offset[i] = tkv_align(l->total_bytes, TRIKV_FRAME_ALIGN);
        l->total_bytes = l->offset[i] + l->bytes[i];
    }
    if (parts & TKV_STEP_OUT) {
        l->o_bytes = b.out;
        l->lse_offset = tkv_align(b.out, TRIKV_FRAME_ALIGN);
        l->out_bytes = l->lse_offset + b.lse;
    }
    return TRIKV_OK;
}

static int fail_size(struct tkv_call *call, const struct layout *l, uint64_t got)
{
    char parts[128] = "";
    size_t n = 0;

    for (int i = 0; i < N_PARTS; i++) {
        if (l->bytes[i])
            n += (size_t)snprintf(parts + n, sizeof(parts) - n, "%s%s %zu", n ? ", " : "",
                                  part_names[i], l->bytes[i]);
    }
    return tkv_fail(&call->why, TRIKV_E_SIZE,
                    "want %zu bytes (%s, each at a multiple of 64), got %llu", l->total_bytes,
                    parts, (unsigned long long)got);
}

static int find_input(struct tkv_call *call, const Trikv__TokensRequest *m, const struct layout *l,
                      const char **base)
{
    const struct tkv_conn *conn = &call->client->conn;
    char *p;
    int e;

    if (!m->has_input_offset) {
        *base = conn->payload.data;
        return conn->in.payload_bytes == l->total_bytes
                   ? TRIKV_OK
                   : fail_size(call, l, conn->in.payload_bytes);
    }
    if (conn->in.payload_bytes)
        return tkv_fail(&call->why, TRIKV_E_ARGUMENT,
                        "input_offset: the request also has a payload of %llu bytes",
                        (unsigned long long)conn->in.payload_bytes);
    if (!m->has_input_bytes || m->input_bytes != l->total_bytes)
        return fail_size(call, l, m->has_input_bytes ? m->input_bytes : 0);
    e = tkv_staging_range(&call->client->staging, m->input_offset, l->total_bytes, "input_offset",
                          &p, &call->why);
    *base = p;
    return e;
}

static int find_output(struct tkv_call *call, const Trikv__TokensRequest *m, const struct layout *l,
                       char **base)
{
    struct tkv_client *const client = call->client;

    *base = NULL;
    if (!l->out_bytes)
        return TRIKV_OK;
    if (!m->has_output_offset) {
        if (!tkv_buffer_need(&client->output, &client->server->budget, l->out_bytes))
            return tkv_fail(&call->why, TRIKV_E_MEMORY_CAP,
                            "memory cap reached: no %zu bytes for the reply", l->out_bytes);
        *base = client->output.data;
        return TRIKV_OK;
    }
    call->out_in_staging = true;
    if (m->has_input_offset && m->output_offset < m->input_offset + l->total_bytes &&
        m->input_offset < m->output_offset + l->out_bytes)
        return tkv_fail(&call->why, TRIKV_E_ARGUMENT, "output_offset: output and input overlap");
    return tkv_staging_range(&client->staging, m->output_offset, l->out_bytes, "output_offset",
                             base, &call->why);
}

static int fill_step(struct tkv_call *call, const Trikv__TokensRequest *m, const struct layout *l)
{
    struct tkv_step *const step = &call->step;
    const char *in = NULL;
    char *out;
    int e = find_input(call, m, l, &in);

    if (!e)
        e = find_output(call, m, l, &out);
    if (e)
        return e;
    step->layer = m->layer;
    step->n_tokens = m->n_tokens;
    step->dtype = (enum tkv_dtype)m->dtype;
    if (l->bytes[POSITIONS]) /* the session copies them before it looks at them */
        step->positions = (const int32_t *)(const void *)(in + l->offset[POSITIONS]);
    if (l->bytes[TOKEN_IDS])
        call->token_ids = (const uint32_t *)(const void *)(in + l->offset[TOKEN_IDS]);
    if (l->bytes[KEYS])
        step->k = in + l->offset[KEYS];
    if (l->bytes[VALUES])
        step->v = in + l->offset[VALUES];
    if (l->bytes[QUERIES])
        step->q = in + l->offset[QUERIES];
    if (l->out_bytes) {
        memset(out + l->o_bytes, 0, l->lse_offset - l->o_bytes);
        step->out = (float *)(void *)out;
        step->lse = (float *)(void *)(out + l->lse_offset);
        call->out_bytes = l->out_bytes;
    }
    return TRIKV_OK;
}

static void step_work(struct tkv_job *job)
{
    struct tkv_call *const call = tkv_call_of(job);

    call->step.scratch = &call->client->scratch;
    call->started_ns = uv_hrtime();
    call->work(call->entry->session, &call->step, tkv_pool_exec(call->client->server->pool),
               &call->why);
    call->ended_ns = uv_hrtime();
}

static void time_step(struct tkv_call *call)
{
    struct tkv_metrics *const m = &call->client->server->metrics;
    struct tkv_histogram *const h = call->step.q   ? &m->attend_s
                                    : call->step.k ? &m->append_s
                                                   : &m->round_s;

    tkv_histogram_add(h, (double)(call->ended_ns - call->started_ns) * 1e-9);
    tkv_histogram_add(&m->queue_s, (double)(call->started_ns - call->submitted_ns) * 1e-9);
}

static void count_step(struct tkv_call *call)
{
    struct tkv_counters *const n = &call->client->server->counters;

    time_step(call);
    n->n_rounds += tkv_session_n_rounds(call->entry->session) - call->n_rounds_before;
    if (call->why.error)
        return;
    if (call->step.k)
        n->n_tokens_appended += call->step.n_tokens;
    if (call->step.q)
        n->n_rows_attended += call->step.n_tokens;
}

static void step_reply(struct tkv_call *call, uint64_t n_seen, uint32_t n_kept, uint32_t n_rounds)
{
    Trikv__TokensReply reply = TRIKV__TOKENS_REPLY__INIT;
    const bool inline_output = call->out_bytes && !call->out_in_staging;

    reply.n_seen = n_seen;
    reply.n_kept = n_kept;
    reply.output_bytes = call->out_bytes;
    reply.has_n_rounds = true;
    reply.n_rounds = n_rounds;
    tkv_conn_reply(&call->client->conn, &reply.base, inline_output ? call->step.out : NULL,
                   inline_output ? call->out_bytes : 0, -1);
}

static void step_done(struct tkv_job *job)
{
    struct tkv_call *const call = tkv_call_of(job);
    struct tkv_session_entry *const e = call->entry;
    const uint64_t n_seen = tkv_session_n_seen(e->session, call->step.layer);
    const uint32_t n_kept = tkv_session_n_kept(e->session, call->step.layer);
    const uint32_t n_rounds = tkv_session_n_rounds(e->session);

    count_step(call);
    if (!call->why.error)
        tkv_scratch_grow(&call->client->scratch, &call->client->quota->budget, KEPT_SCRATCH_BYTES);
    if (call->token_ids)
        tkv_sessions_commit_ids(e, call->why.error ? NULL : &call->step);
    tkv_sessions_idle(e);
    if (!tkv_call_ended(call))
        return;
    if (call->why.error)
        tkv_call_fail(call);
    else
        step_reply(call, n_seen, n_kept, n_rounds);
}

/* What takes no time is done here and now: two changes of thread would take more. */
static void run_step_here(struct tkv_call *call)
{
    call->running = true;
    call->submitted_ns = uv_hrtime();
    step_work(&call->job);
    step_done(&call->job);
}

static void start_step(struct tkv_call *call, bool here,
                       int (*work)(struct tkv_session *s, const struct tkv_step *step,
                                   const struct tkv_exec *exec, struct tkv_report *why))
{
    call->work = work;
    call->n_rounds_before = tkv_session_n_rounds(call->entry->session);
    call->entry->busy = true;
    if (here)
        run_step_here(call);
    else
        tkv_call_start(call, step_work, step_done);
}

bool tkv_call_take_step(struct tkv_call *call, const ProtobufCMessage *message, unsigned parts)
{
    const Trikv__TokensRequest *m = (const Trikv__TokensRequest *)message;
    struct layout l;

    call->session_id = m->session;
    call->entry = tkv_call_own_session(call);
    return call->entry && !plan_layout(call, m, parts, &l) && !fill_step(call, m, &l);
}

static int write_token_ids(struct tkv_call *call)
{
    if (!call->token_ids)
        return TRIKV_OK;
    return tkv_sessions_write_ids(call->entry, &call->step, call->token_ids, &call->why);
}

static void handle_tokens(struct tkv_call *call, const ProtobufCMessage *message, unsigned parts,
                          int (*work)(struct tkv_session *s, const struct tkv_step *step,
                                      const struct tkv_exec *exec, struct tkv_report *why))
{
    if (tkv_call_take_step(call, message, parts) && !write_token_ids(call))
        start_step(call, tkv_session_is_brief(call->entry->session, &call->step), work);
    else
        tkv_call_fail(call);
}

void tkv_handle_append(struct tkv_call *call, const ProtobufCMessage *message)
{
    handle_tokens(call, message, TKV_STEP_KV, tkv_session_append);
}

void tkv_handle_attend(struct tkv_call *call, const ProtobufCMessage *message)
{
    handle_tokens(call, message, TKV_STEP_Q | TKV_STEP_OUT, tkv_session_attend);
}

void tkv_handle_append_attend(struct tkv_call *call, const ProtobufCMessage *message)
{
    handle_tokens(call, message, TKV_STEP_KV | TKV_STEP_Q | TKV_STEP_OUT,
                  tkv_session_append_attend);
}

/* In the shape of the other three, so that one job serves all. */
static int round_step(struct tkv_session *s, const struct tkv_step *step,
                      const struct tkv_exec *exec, struct tkv_report *why)
{
    (void)step;
    return tkv_session_round(s, exec, why);
}

/* What it comes to does not follow from its tokens any more. */
static int force(struct tkv_session_entry *e, struct tkv_report *why)
{
    if (e->prefix.is_forced)
        return 0;
    e->prefix.is_forced = true;
    return tkv_keep_note(e, false, why);
}

void tkv_handle_round(struct tkv_call *call, const ProtobufCMessage *message)
{
    call->session_id = ((const Trikv__SessionRequest *)message)->session;
    call->entry = tkv_call_own_session(call);
    if (call->entry && !force(call->entry, &call->why))
        start_step(call, false, round_step);
    else
        tkv_call_fail(call);
}
