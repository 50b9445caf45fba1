/* Requests of trikvctl and the records their answers become. */
#include "tools/ctl_commands.h"

#include <stdlib.h>

#include "client/request.h"
#include "client/trikv.h"
#include "proto/errors.h"
#include "proto/frame.h"
#include "proto/trikv.pb-c.h"
#include "tools/ctl_text.h"

/* Room for n records, at least one so that NULL is always an error. */
static struct ctl_record *alloc_records(size_t n)
{
    return calloc(n > 0 ? n : 1, sizeof(struct ctl_record));
}

int ctl_ping(const struct ctl_context *x)
{
    const struct trikv_info *i = trikv_info(x->client);
    struct ctl_record r = {.n_fields = 0};

    if (!x->json) {
        printf("trikvd %s answers, %.2f ms to connect\n", i->version, x->connect_s * 1e3);
        return 0;
    }
    ctl_add_text(&r, "version", NULL, i->version);
    ctl_add_count(&r, "boot_id", NULL, CTL_ID, i->boot_id);
    ctl_add_number(&r, "connect_s", NULL, CTL_SECONDS, x->connect_s);
    ctl_print_one(x->json, &r);
    return 0;
}

int ctl_info(const struct ctl_context *x)
{
    const struct trikv_info *i = trikv_info(x->client);
    struct ctl_record r = {.n_fields = 0};

    if (x->socket)
        ctl_add_text(&r, "socket", "socket", x->socket);
    ctl_add_text(&r, "version", "version", i->version);
    ctl_add_count(&r, "protocol", "protocol", CTL_COUNT, i->protocol);
    ctl_add_count(&r, "boot_id", "boot id", CTL_ID, i->boot_id);
    ctl_add_text(&r, "cpu", "kernels", i->cpu);
    ctl_add_count(&r, "memory_cap_bytes", "memory cap", CTL_BYTES, i->memory_cap_bytes);
    ctl_add_count(&r, "max_payload_bytes", "largest payload", CTL_BYTES, i->max_payload_bytes);
    ctl_print_one(x->json, &r);
    return 0;
}

/* Run a request without fields, or one with just a session, and hand over the reply. */
static int ask(const struct ctl_context *x, struct tkv_request *r, uint16_t type,
               const ProtobufCMessageDescriptor *reply_type)
{
    Trikv__SessionRequest m = TRIKV__SESSION_REQUEST__INIT;
    const bool names_session = type == TRIKV_STATS || type == TRIKV_DROP || type == TRIKV_GATE;
    int e;

    m.session = x->session;
    r->type = type;
    r->message = names_session ? &m.base : NULL;
    r->reply_type = reply_type;
    e = tkv_request_run(x->client, r);
    r->message = NULL;
    return e;
}

static void describe_session(struct ctl_record *r, const Trikv__SessionStats *s)
{
    ctl_add_count(r, "id", "session", CTL_ID, s->session);
    ctl_add_text(r, "label", "label", s->label);
    ctl_add_count(r, "uid", "uid", CTL_COUNT, s->uid);
    ctl_add_text(r, "profile", "profile", s->profile);
    ctl_add_text(r, "method", "method", s->method);
    ctl_add_count(r, "n_layers", "layers", CTL_COUNT, s->n_layers);
    ctl_add_count(r, "n_seen", "seen", CTL_COUNT, s->n_seen);
    ctl_add_number(r, "n_kept", "kept", CTL_NUMBER, s->n_kept);
    ctl_add_number(r, "bits_k", "bits K", CTL_NUMBER, s->bits_k);
    ctl_add_number(r, "bits_v", "bits V", CTL_NUMBER, s->bits_v);
    ctl_add_count(r, "resident_bytes", "resident", CTL_BYTES, s->resident_bytes);
    ctl_add_count(r, "fp16_bytes", "as fp16", CTL_BYTES, s->fp16_bytes);
    ctl_add_count(r, "n_rounds", "rounds", CTL_COUNT, s->n_rounds);
    ctl_add_number(r, "age_s", "age", CTL_SECONDS, s->age_s);
    ctl_add_number(r, "idle_s", "idle", CTL_SECONDS, s->idle_s);
}

static void print_sessions(const struct ctl_context *x, const Trikv__SessionListReply *m,
                           const struct ctl_record *records, const char *what)
{
    if (x->json) {
        printf("{\"total\": %u, \"%s\":\n", m->sessions_total, what);
        ctl_json_array(stdout, records, m->n_sessions);
        puts("}");
        return;
    }
    ctl_print_table(stdout, records, m->n_sessions);
    if (m->n_sessions == 0)
        printf("no %s\n", what);
    if (m->sessions_total > m->n_sessions)
        printf("... and %zu more\n", (size_t)m->sessions_total - m->n_sessions);
}

/* What else there is to say of a stored prefix. */
static void describe_prefix(struct ctl_record *r, const Trikv__SessionStats *s)
{
    describe_session(r, s);
    ctl_add_count(r, "n_prefix_hits", "hits", CTL_COUNT, s->n_prefix_hits);
}

static int list(const struct ctl_context *x, uint16_t type, const char *what,
                void (*describe)(struct ctl_record *r, const Trikv__SessionStats *s))
{
    struct tkv_request r = TKV_REQUEST_INIT;
    struct ctl_record *records;
    int e = ask(x, &r, type, &trikv__session_list_reply__descriptor);

    if (!e) {
        const Trikv__SessionListReply *m = (const Trikv__SessionListReply *)r.reply;

        records = alloc_records(m->n_sessions);
        for (size_t i = 0; records && i < m->n_sessions; i++)
            describe(&records[i], m->sessions[i]);
        if (records)
            print_sessions(x, m, records, what);
        else
            e = TRIKV_E_NO_MEMORY;
        free(records);
    }
    tkv_request_deinit(&r);
    return e;
}

int ctl_sessions(const struct ctl_context *x)
{
    return list(x, TRIKV_SESSION_LIST, "sessions", describe_session);
}

int ctl_prefixes(const struct ctl_context *x)
{
    return list(x, TRIKV_PREFIX_LIST, "prefixes", describe_prefix);
}

static void describe_layer(struct ctl_record *r, size_t layer, const Trikv__LayerStats *l)
{
    ctl_add_count(r, "layer", "layer", CTL_COUNT, layer);
    ctl_add_text(r, "codec_k", "codec K", l->codec_k);
    ctl_add_text(r, "codec_v", "codec V", l->codec_v);
    ctl_add_count(r, "n_seen", "seen", CTL_COUNT, l->n_seen);
    ctl_add_count(r, "n_kept", "kept", CTL_COUNT, l->n_kept);
    ctl_add_count(r, "n_cold_tokens", "cold", CTL_COUNT, l->n_cold_tokens);
    ctl_add_count(r, "n_blocks", "blocks", CTL_COUNT, l->n_blocks);
    ctl_add_count(r, "pinned_bytes", "pinned", CTL_BYTES, l->pinned_bytes);
    ctl_add_count(r, "tail_bytes", "tail", CTL_BYTES, l->tail_bytes);
    ctl_add_count(r, "cold_bytes_k", "cold K", CTL_BYTES, l->cold_bytes_k);
    ctl_add_count(r, "cold_bytes_v", "cold V", CTL_BYTES, l->cold_bytes_v);
    ctl_add_count(r, "cold_bytes_meta", "cold meta", CTL_BYTES, l->cold_bytes_meta);
}

static void print_session(const struct ctl_context *x, const Trikv__SessionStats *s,
                          const struct ctl_record *layers)
{
    struct ctl_record r = {.n_fields = 0};

    describe_session(&r, s);
    ctl_add_count(&r, "n_evicted", "evicted", CTL_COUNT, s->n_evicted);
    ctl_add_count(&r, "arena_bytes", "arena", CTL_BYTES, s->arena_bytes);
    ctl_add_count(&r, "slack_bytes", "arena slack", CTL_BYTES, s->slack_bytes);
    ctl_add_count(&r, "observed_bytes", "query sums", CTL_BYTES, s->observed_bytes);
    if (s->has_shared_bytes)
        ctl_add_count(&r, "shared_bytes", "shared with forks", CTL_BYTES, s->shared_bytes);
    if (x->json) {
        putchar('{');
        ctl_json_members(stdout, &r);
        fputs(", \"layers\":\n", stdout);
        ctl_json_array(stdout, layers, s->n_layer_stats);
        puts("}");
        return;
    }
    ctl_print_record(stdout, &r);
    putchar('\n');
    ctl_print_table(stdout, layers, s->n_layer_stats);
}

static void describe_gate(struct ctl_record *r, size_t layer, const Trikv__GateStats *g)
{
    ctl_add_count(r, "layer", "layer", CTL_COUNT, layer);
    ctl_add_count(r, "n_probes", "probes", CTL_COUNT, g->n_probes);
    ctl_add_count(r, "n_dropped", "dropped", CTL_COUNT, g->n_dropped);
    ctl_add_number(r, "output_error", "output error", CTL_NUMBER, (double)g->output_error);
    ctl_add_number(r, "lse_change", "LSE change", CTL_NUMBER, (double)g->lse_change);
    ctl_add_number(r, "lost_mass", "lost mass", CTL_NUMBER, (double)g->lost_mass);
    ctl_add_count(r, "n_passed", "heads passed", CTL_COUNT, g->n_passed);
    ctl_add_count(r, "n_kept_more", "kept more", CTL_COUNT, g->n_kept_more);
    ctl_add_count(r, "n_exceeded", "exceeded", CTL_COUNT, g->n_exceeded);
    ctl_add_count(r, "n_surplus_tokens", "surplus", CTL_COUNT, g->n_surplus_tokens);
}

static void print_gate(const struct ctl_context *x, const struct ctl_record *layers, size_t n)
{
    if (!x->json) {
        ctl_print_table(stdout, layers, n);
        return;
    }
    fputs("{\"gate\":\n", stdout);
    ctl_json_array(stdout, layers, n);
    puts("}");
}

static int show_gate(const struct ctl_context *x)
{
    struct tkv_request r = TKV_REQUEST_INIT;
    struct ctl_record *layers;
    int e = ask(x, &r, TRIKV_GATE, &trikv__gate_reply__descriptor);

    if (!e) {
        const Trikv__GateReply *m = (const Trikv__GateReply *)r.reply;

        layers = alloc_records(m->n_layers);
        for (size_t i = 0; layers && i < m->n_layers; i++)
            describe_gate(&layers[i], i, m->layers[i]);
        if (layers)
            print_gate(x, layers, m->n_layers);
        else
            e = TRIKV_E_NO_MEMORY;
        free(layers);
    }
    tkv_request_deinit(&r);
    return e;
}

static int show_session(const struct ctl_context *x)
{
    struct tkv_request r = TKV_REQUEST_INIT;
    struct ctl_record *layers;
    int e = ask(x, &r, TRIKV_STATS, &trikv__session_stats__descriptor);

    if (!e) {
        const Trikv__SessionStats *s = (const Trikv__SessionStats *)r.reply;

        layers = alloc_records(s->n_layer_stats);
        for (size_t i = 0; layers && i < s->n_layer_stats; i++)
            describe_layer(&layers[i], i, s->layer_stats[i]);
        if (layers)
            print_session(x, s, layers);
        else
            e = TRIKV_E_NO_MEMORY;
        free(layers);
    }
    tkv_request_deinit(&r);
    return e;
}

int ctl_session_show(const struct ctl_context *x)
{
    return x->gate ? show_gate(x) : show_session(x);
}

static void describe_daemon(struct ctl_record *r, const Trikv__DaemonStats *s)
{
    ctl_add_text(r, "version", "version", s->version);
    ctl_add_count(r, "boot_id", "boot id", CTL_ID, s->boot_id);
    ctl_add_number(r, "uptime_s", "uptime", CTL_SECONDS, s->uptime_s);
    ctl_add_text(r, "cpu", "kernels", s->cpu);
    ctl_add_count(r, "n_threads", "threads", CTL_COUNT, s->n_threads);
    ctl_add_count(r, "memory_used_bytes", "memory used", CTL_BYTES, s->memory_used_bytes);
    ctl_add_count(r, "memory_peak_bytes", "memory peak", CTL_BYTES, s->memory_peak_bytes);
    ctl_add_count(r, "memory_cap_bytes", "memory cap", CTL_BYTES, s->memory_cap_bytes);
    ctl_add_count(r, "n_sessions", "sessions", CTL_COUNT, s->n_sessions);
    ctl_add_count(r, "n_connections", "connections", CTL_COUNT, s->n_connections);
    ctl_add_count(r, "n_requests", "requests", CTL_COUNT, s->n_requests);
    ctl_add_count(r, "n_errors", "errors", CTL_COUNT, s->n_errors);
    ctl_add_count(r, "n_bad_frames", "bad frames", CTL_COUNT, s->n_bad_frames);
    ctl_add_count(r, "n_tokens_appended", "tokens appended", CTL_COUNT, s->n_tokens_appended);
    ctl_add_count(r, "n_rows_attended", "rows attended", CTL_COUNT, s->n_rows_attended);
    ctl_add_count(r, "n_rounds", "rounds", CTL_COUNT, s->n_rounds);
    ctl_add_count(r, "n_prefixes", "prefixes stored", CTL_COUNT, s->n_prefixes);
    ctl_add_count(r, "n_prefix_hits", "prefix hits", CTL_COUNT, s->n_prefix_hits);
    ctl_add_count(r, "n_prefix_partial", "partial hits", CTL_COUNT, s->n_prefix_partial);
    ctl_add_count(r, "n_prefix_misses", "misses", CTL_COUNT, s->n_prefix_misses);
    ctl_add_count(r, "n_prefix_asked_tokens", "tokens asked for", CTL_COUNT,
                  s->n_prefix_asked_tokens);
    ctl_add_count(r, "n_prefix_found_tokens", "tokens found", CTL_COUNT, s->n_prefix_found_tokens);
    ctl_add_count(r, "n_prefixes_evicted", "prefixes evicted", CTL_COUNT, s->n_prefixes_evicted);
}

int ctl_stats(const struct ctl_context *x)
{
    struct tkv_request r = TKV_REQUEST_INIT;
    struct ctl_record record = {.n_fields = 0};
    int e = ask(x, &r, TRIKV_DAEMON_STATS, &trikv__daemon_stats__descriptor);

    if (!e) {
        describe_daemon(&record, (const Trikv__DaemonStats *)r.reply);
        ctl_print_one(x->json, &record);
    }
    tkv_request_deinit(&r);
    return e;
}

int ctl_drop(const struct ctl_context *x)
{
    struct tkv_request r = TKV_REQUEST_INIT;
    struct ctl_record record = {.n_fields = 0};
    int e = ask(x, &r, TRIKV_DROP, &trikv__empty__descriptor);

    tkv_request_deinit(&r);
    if (e)
        return e;
    ctl_add_count(&record, "dropped", "dropped", CTL_ID, x->session);
    ctl_print_one(x->json, &record);
    return 0;
}

int ctl_config(const struct ctl_context *x)
{
    struct tkv_request r = TKV_REQUEST_INIT;
    int e = ask(x, &r, TRIKV_CONFIG, &trikv__config_reply__descriptor);

    if (!e) {
        const char *yaml = ((const Trikv__ConfigReply *)r.reply)->yaml;

        if (x->json) {
            fputs("{\"yaml\": ", stdout);
            ctl_json_string(stdout, yaml);
            puts("}");
        } else {
            fputs(yaml, stdout);
        }
    }
    tkv_request_deinit(&r);
    return e;
}

static void describe_profile(struct ctl_record *r, const Trikv__Profile *p)
{
    ctl_add_text(r, "name", "profile", p->name);
    ctl_add_text(r, "architecture", "architecture", p->architecture);
    ctl_add_count(r, "n_layers", "layers", CTL_COUNT, p->n_layers);
    ctl_add_count(r, "n_q_heads", "q heads", CTL_COUNT, p->n_q_heads);
    ctl_add_count(r, "n_kv_heads", "kv heads", CTL_COUNT, p->n_kv_heads);
    ctl_add_count(r, "head_dim_k", "dim K", CTL_COUNT, p->head_dim_k);
    ctl_add_count(r, "head_dim_v", "dim V", CTL_COUNT, p->head_dim_v);
    ctl_add_count(r, "has_statistics", "statistics", CTL_BOOL, p->has_statistics != 0);
    ctl_add_text(r, "fingerprint", "fingerprint", p->fingerprint);
}

static void print_profiles(const struct ctl_context *x, const struct ctl_record *records, size_t n)
{
    if (x->json) {
        fputs("{\"profiles\":\n", stdout);
        ctl_json_array(stdout, records, n);
        puts("}");
        return;
    }
    ctl_print_table(stdout, records, n);
    if (n == 0)
        puts("no profiles");
}

int ctl_profiles(const struct ctl_context *x)
{
    struct tkv_request r = TKV_REQUEST_INIT;
    struct ctl_record *records;
    int e = ask(x, &r, TRIKV_PROFILE_LIST, &trikv__profile_list_reply__descriptor);

    if (!e) {
        const Trikv__ProfileListReply *m = (const Trikv__ProfileListReply *)r.reply;

        records = alloc_records(m->n_profiles);
        for (size_t i = 0; records && i < m->n_profiles; i++)
            describe_profile(&records[i], m->profiles[i]);
        if (records)
            print_profiles(x, records, m->n_profiles);
        else
            e = TRIKV_E_NO_MEMORY;
        free(records);
    }
    tkv_request_deinit(&r);
    return e;
}
