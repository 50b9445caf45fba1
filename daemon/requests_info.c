/* HELLO and the requests about the daemon itself. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/dispatch.h"
#include "daemon/requests.h"
#include "daemon/server.h"
#include "proto/errors.h"
#include "proto/trikv.pb-c.h"

void tkv_handle_hello(struct tkv_call *call, const ProtobufCMessage *message)
{
    const Trikv__HelloRequest *m = (const Trikv__HelloRequest *)message;
    struct tkv_client *const client = call->client;
    const struct tkv_server *s = client->server;
    char *features[] = {tkv_pb_text("staging"),  tkv_pb_text("handle"),   tkv_pb_text("observe"),
                        tkv_pb_text("fork"),     tkv_pb_text("truncate"), tkv_pb_text("map"),
                        tkv_pb_text("read"),     tkv_pb_text("prefix"),   tkv_pb_text("ring"),
                        tkv_pb_text("ring_ids"), tkv_pb_text("reattach")};
    Trikv__HelloReply reply = TRIKV__HELLO_REPLY__INIT;
    char name[2 * TRIKV_MAX_NAME_BYTES + 4] = "\"\"";

    if (client->said_hello) {
        tkv_fail(&call->why, TRIKV_E_STATE, "HELLO: was said before on this connection");
    } else if (m->protocol_min > TRIKV_PROTOCOL_MAX || m->protocol_max < TRIKV_PROTOCOL_MIN ||
               m->protocol_min > m->protocol_max) {
        tkv_fail(&call->why, TRIKV_E_VERSION, "protocol %u..%u asked for, %d..%d spoken",
                 m->protocol_min, m->protocol_max, TRIKV_PROTOCOL_MIN, TRIKV_PROTOCOL_MAX);
    } else if (m->client && strlen(m->client) > TRIKV_MAX_NAME_BYTES) {
        tkv_fail(&call->why, TRIKV_E_ARGUMENT, "client: %zu bytes, want at most %d",
                 strlen(m->client), TRIKV_MAX_NAME_BYTES);
    }
    if (call->why.error) {
        tkv_call_fail(call);
        return;
    }
    client->said_hello = true;
    if (m->client)
        tkv_log_quote(name, sizeof(name), m->client);
    tkv_log(&s->log, TKV_LOG_DEBUG, "msg=hello client=%llu name=%s", (unsigned long long)client->id,
            name);
    reply.protocol = TRIKV_PROTOCOL_MAX;
    reply.boot_id = s->boot_id;
    reply.version = tkv_pb_text(TRIKV_VERSION);
    reply.cpu = tkv_pb_text(s->cpu);
    reply.max_payload_bytes = s->limits.max_payload_bytes;
    reply.memory_cap_bytes = s->budget.cap_bytes;
    reply.page_bytes = (uint32_t)sysconf(_SC_PAGESIZE);
    reply.n_features = sizeof(features) / sizeof(features[0]);
    reply.features = features;
    tkv_call_reply(call, &reply.base);
}

static void fill_profile(Trikv__Profile *m, const struct tkv_profile *p)
{
    trikv__profile__init(m);
    m->name = tkv_pb_text(p->name);
    m->architecture = tkv_pb_text(p->architecture);
    m->n_layers = p->n_layers;
    m->n_q_heads = p->shape.n_q_heads;
    m->n_kv_heads = p->shape.n_kv_heads;
    m->head_dim_k = p->shape.head_dim_k;
    m->head_dim_v = p->shape.head_dim_v;
    m->fingerprint = tkv_pb_text(p->fingerprint);
    m->has_statistics = p->n_statistics > 0;
}

void tkv_handle_profile_list(struct tkv_call *call, const ProtobufCMessage *message)
{
    const struct tkv_profiles *list = &call->client->server->profiles;
    Trikv__Profile item[TKV_MAX_PROFILES];
    Trikv__Profile *items[TKV_MAX_PROFILES];
    Trikv__ProfileListReply reply = TRIKV__PROFILE_LIST_REPLY__INIT;

    (void)message;
    for (size_t i = 0; i < list->n; i++) {
        fill_profile(&item[i], list->item[i]);
        items[i] = &item[i];
    }
    reply.n_profiles = list->n;
    reply.profiles = items;
    tkv_call_reply(call, &reply.base);
}

static uint64_t count(const struct tkv_prefixes *p, enum tkv_prefix_outcome outcome)
{
    uint64_t n = 0;

    for (size_t i = 0; i < TKV_PREFIX_N_REASONS; i++)
        n += p->n_lookups[outcome][i];
    return n;
}

static void fill_prefixes(Trikv__DaemonStats *m, const struct tkv_prefixes *p)
{
    m->has_n_prefixes = m->has_n_prefix_hits = m->has_n_prefix_partial = m->has_n_prefix_misses =
        m->has_n_prefix_asked_tokens = m->has_n_prefix_found_tokens = m->has_n_prefixes_kept =
            m->has_n_prefixes_evicted = true;
    m->n_prefixes = p->n;
    m->n_prefix_hits = count(p, TKV_PREFIX_HIT);
    m->n_prefix_partial = count(p, TKV_PREFIX_PARTIAL);
    m->n_prefix_misses = count(p, TKV_PREFIX_MISS);
    m->n_prefix_asked_tokens = p->n_asked_tokens;
    m->n_prefix_found_tokens = p->n_found_tokens;
    m->n_prefixes_kept = p->n_kept;
    m->n_prefixes_evicted = p->n_evicted;
}

void tkv_handle_daemon_stats(struct tkv_call *call, const ProtobufCMessage *message)
{
    struct tkv_server *const s = call->client->server;
    Trikv__DaemonStats reply = TRIKV__DAEMON_STATS__INIT;

    (void)message;
    reply.version = tkv_pb_text(TRIKV_VERSION);
    reply.boot_id = s->boot_id;
    reply.uptime_s = (double)(uv_now(&s->loop) - s->started_ms) / 1000;
    reply.memory_cap_bytes = s->budget.cap_bytes;
    reply.memory_used_bytes = atomic_load(&s->budget.used_bytes);
    reply.memory_peak_bytes = atomic_load(&s->budget.peak_bytes);
    reply.n_sessions = s->sessions.n_of[TKV_ENTRY_SESSION];
    reply.n_connections = s->n_clients;
    reply.n_requests = s->counters.n_requests;
    reply.n_errors = s->counters.n_errors;
    fill_prefixes(&reply, &s->prefixes);
    reply.n_bad_frames = s->counters.n_bad_frames;
    reply.n_tokens_appended = s->counters.n_tokens_appended;
    reply.n_rows_attended = s->counters.n_rows_attended;
    reply.n_rounds = s->counters.n_rounds;
    reply.has_append_s = reply.has_attend_s = true;
    reply.append_s = s->metrics.append_s.sum_s;
    reply.attend_s = s->metrics.attend_s.sum_s;
    reply.n_threads = s->n_threads;
    reply.cpu = tkv_pb_text(s->cpu);
    tkv_call_reply(call, &reply.base);
}

void tkv_handle_config(struct tkv_call *call, const ProtobufCMessage *message)
{
    const struct tkv_server *s = call->client->server;
    Trikv__ConfigReply reply = TRIKV__CONFIG_REPLY__INIT;
    char *text = NULL;
    size_t n = 0;
    FILE *out = open_memstream(&text, &n);

    (void)message;
    if (out) {
        tkv_config_print(&s->config, out);
        fclose(out);
    }
    if (text) {
        reply.yaml = text;
        tkv_call_reply(call, &reply.base);
    } else {
        tkv_fail(&call->why, TRIKV_E_NO_MEMORY, "no memory for the text");
        tkv_call_fail(call);
    }
    free(text);
}
