/* Metrics of each session and, where asked, each of its layers. */
#include "daemon/openmetrics_priv.h"
#include "daemon/profile.h"
#include "daemon/server.h"

/* One value of a session. */
struct column {
    const char *name;
    enum tkv_om_type type;
    const char *unit;
    const char *help;
    double (*value)(const struct tkv_session_entry *e);
};

static double n_seen(const struct tkv_session_entry *e)
{
    return (double)e->stats.n_seen;
}

static double n_kept(const struct tkv_session_entry *e)
{
    return e->stats.n_kept;
}

static double resident(const struct tkv_session_entry *e)
{
    return (double)e->stats.resident_bytes;
}

static double fp16(const struct tkv_session_entry *e)
{
    return (double)e->stats.fp16_bytes;
}

static double ratio(const struct tkv_session_entry *e)
{
    return tkv_compression_ratio(e->stats.fp16_bytes, e->stats.resident_bytes);
}

static double bits_k(const struct tkv_session_entry *e)
{
    return e->stats.bits_k;
}

static double bits_v(const struct tkv_session_entry *e)
{
    return e->stats.bits_v;
}

static double n_rounds(const struct tkv_session_entry *e)
{
    return e->stats.n_rounds;
}

static double n_evicted(const struct tkv_session_entry *e)
{
    return (double)e->stats.n_evicted;
}

static double age(const struct tkv_session_entry *e)
{
    return (double)(uv_now(&e->server->loop) - e->opened_ms) / 1000;
}

static double idle(const struct tkv_session_entry *e)
{
    return tkv_session_is_at_work(e) ? 0 : (double)(uv_now(&e->server->loop) - e->used_ms) / 1000;
}

static const struct column columns[] = {
    {"trikv_session_seen_tokens", TKV_OM_GAUGE, "tokens", "Tokens appended, most over layers.",
     n_seen},
    {"trikv_session_kept_tokens", TKV_OM_GAUGE, "tokens",
     "Tokens kept, mean over layers and KV heads.", n_kept},
    {"trikv_session_resident_bytes", TKV_OM_GAUGE, "bytes", "Every byte it holds.", resident},
    {"trikv_session_fp16_bytes", TKV_OM_GAUGE, "bytes", "What its tokens would take as halves.",
     fp16},
    {"trikv_session_compression_ratio", TKV_OM_GAUGE, "ratio", "fp16 over resident bytes.", ratio},
    {"trikv_session_key_density", TKV_OM_GAUGE, NULL, "Bits for each number of a kept key.",
     bits_k},
    {"trikv_session_value_density", TKV_OM_GAUGE, NULL, "Bits for each number of a kept value.",
     bits_v},
    {"trikv_session_rounds", TKV_OM_COUNTER, NULL, "Rounds held, most over layers.", n_rounds},
    {"trikv_session_evicted_tokens", TKV_OM_COUNTER, NULL, "Tokens dropped, per layer and KV head.",
     n_evicted},
    {"trikv_session_age_seconds", TKV_OM_GAUGE, "seconds", "Since it was opened.", age},
    {"trikv_session_idle_seconds", TKV_OM_GAUGE, "seconds", "Since its last request.", idle},
};

static void write_info(struct tkv_om *w, const struct tkv_survey *v, size_t n_shown)
{
    tkv_om_family(w, "trikv_session", TKV_OM_INFO, NULL, "What is known of a session.");
    for (size_t i = 0; i < n_shown; i++) {
        const struct tkv_session_entry *e = v->entry[i];

        tkv_om_begin(w);
        tkv_om_label_id(w, "session", e->id);
        tkv_om_label(w, "label", e->label);
        tkv_om_label(w, "profile", e->profile ? e->profile->name : "");
        tkv_om_label(w, "method", tkv_method_names[e->method]);
        tkv_om_label_index(w, "uid", e->uid);
        tkv_om_count(w, 1);
    }
}

static void write_tiers(struct tkv_om *w, const struct tkv_survey *v, size_t n_shown)
{
    tkv_om_family(w, "trikv_session_tier_bytes", TKV_OM_GAUGE, "bytes", "Its bytes by tier.");
    for (size_t i = 0; i < n_shown; i++) {
        for (size_t t = 0; t < TKV_N_TIERS; t++) {
            tkv_om_begin(w);
            tkv_om_label_id(w, "session", v->entry[i]->id);
            tkv_om_label(w, "tier", tkv_tier_names[t]);
            tkv_om_count(w, v->entry[i]->tiers.bytes[t]);
        }
    }
}

void tkv_om_write_sessions(struct tkv_om *w, const struct tkv_survey *v, size_t n_shown)
{
    write_info(w, v, n_shown);
    for (size_t c = 0; c < sizeof(columns) / sizeof(columns[0]); c++) {
        tkv_om_family(w, columns[c].name, columns[c].type, columns[c].unit, columns[c].help);
        for (size_t i = 0; i < n_shown; i++) {
            tkv_om_begin(w);
            tkv_om_label_id(w, "session", v->entry[i]->id);
            tkv_om_number(w, columns[c].value(v->entry[i]));
        }
    }
    write_tiers(w, v, n_shown);
}

/* Calls write for every layer of the sessions whose layers are known. */
static void each_layer(struct tkv_om *w, const struct tkv_survey *v, size_t n_shown,
                       void (*write)(struct tkv_om *w, const struct tkv_session_entry *e,
                                     uint32_t layer))
{
    for (size_t i = 0; i < n_shown; i++) {
        for (uint32_t l = 0; tkv_sessions_layers(v->entry[i]) && l < v->entry[i]->stats.n_layers;
             l++)
            write(w, v->entry[i], l);
    }
}

static void begin_layer(struct tkv_om *w, const struct tkv_session_entry *e, uint32_t layer)
{
    tkv_om_begin(w);
    tkv_om_label_id(w, "session", e->id);
    tkv_om_label_index(w, "layer", layer);
}

static void write_layer_seen(struct tkv_om *w, const struct tkv_session_entry *e, uint32_t layer)
{
    begin_layer(w, e, layer);
    tkv_om_count(w, e->layers[layer].n_seen);
}

static void write_layer_kept(struct tkv_om *w, const struct tkv_session_entry *e, uint32_t layer)
{
    begin_layer(w, e, layer);
    tkv_om_count(w, e->layers[layer].n_kept);
}

static void write_layer_blocks(struct tkv_om *w, const struct tkv_session_entry *e, uint32_t layer)
{
    begin_layer(w, e, layer);
    tkv_om_count(w, e->layers[layer].n_blocks);
}

static void write_layer_tiers(struct tkv_om *w, const struct tkv_session_entry *e, uint32_t layer)
{
    struct tkv_tiers tiers;

    tkv_tiers_of_layer(&e->layers[layer], &tiers);
    for (size_t t = 0; t < TKV_TIER_OTHER; t++) {
        begin_layer(w, e, layer);
        tkv_om_label(w, "tier", tkv_tier_names[t]);
        tkv_om_count(w, tiers.bytes[t]);
    }
}

static void write_layer_info(struct tkv_om *w, const struct tkv_session_entry *e, uint32_t layer)
{
    begin_layer(w, e, layer);
    tkv_om_label(w, "codec_k", e->layers[layer].codec_k);
    tkv_om_label(w, "codec_v", e->layers[layer].codec_v);
    tkv_om_count(w, 1);
}

static void write_gate_heads(struct tkv_om *w, const struct tkv_session_entry *e, uint32_t layer)
{
    const struct tkv_gate_stats *g = &e->layers[layer].gate;
    const struct {
        const char *decision;
        uint64_t n;
    } rows[] = {
        {"passed", g->n_passed}, {"kept_more", g->n_kept_more}, {"exceeded", g->n_exceeded}};

    for (size_t i = 0; tkv_session_gates(e->session) && i < sizeof(rows) / sizeof(rows[0]); i++) {
        begin_layer(w, e, layer);
        tkv_om_label(w, "decision", rows[i].decision);
        tkv_om_count(w, rows[i].n);
    }
}

static void write_gate_tokens(struct tkv_om *w, const struct tkv_session_entry *e, uint32_t layer)
{
    if (!tkv_session_gates(e->session))
        return;
    begin_layer(w, e, layer);
    tkv_om_count(w, e->layers[layer].gate.n_surplus_tokens);
}

static void write_gate_error(struct tkv_om *w, const struct tkv_session_entry *e, uint32_t layer)
{
    if (!tkv_session_gates(e->session))
        return;
    begin_layer(w, e, layer);
    tkv_om_number(w, (double)e->layers[layer].gate.measure.output_error);
}

static void write_layer_gates(struct tkv_om *w, const struct tkv_survey *v, size_t n_shown)
{
    tkv_om_family(w, "trikv_layer_gate_heads", TKV_OM_COUNTER, NULL,
                  "Decisions of the coherence gate, one for each KV head in each round.");
    each_layer(w, v, n_shown, write_gate_heads);
    tkv_om_family(w, "trikv_layer_gate_surplus_tokens", TKV_OM_COUNTER, "tokens",
                  "Tokens that the gate made rounds keep.");
    each_layer(w, v, n_shown, write_gate_tokens);
    tkv_om_family(
        w, "trikv_layer_gate_error_ratio", TKV_OM_GAUGE, "ratio",
        "Output error of the worst KV head in the last round, had the gate kept nothing.");
    each_layer(w, v, n_shown, write_gate_error);
}

void tkv_om_write_layers(struct tkv_om *w, const struct tkv_survey *v, size_t n_shown)
{
    tkv_om_family(w, "trikv_layer", TKV_OM_INFO, NULL, "Codecs of a layer.");
    each_layer(w, v, n_shown, write_layer_info);
    tkv_om_family(w, "trikv_layer_seen_tokens", TKV_OM_GAUGE, "tokens", "Tokens appended.");
    each_layer(w, v, n_shown, write_layer_seen);
    tkv_om_family(w, "trikv_layer_kept_tokens", TKV_OM_GAUGE, "tokens",
                  "Tokens kept, sum over KV heads.");
    each_layer(w, v, n_shown, write_layer_kept);
    tkv_om_family(w, "trikv_layer_blocks", TKV_OM_GAUGE, NULL, "Cold blocks.");
    each_layer(w, v, n_shown, write_layer_blocks);
    tkv_om_family(w, "trikv_layer_tier_bytes", TKV_OM_GAUGE, "bytes", "Bytes by tier.");
    each_layer(w, v, n_shown, write_layer_tiers);
    write_layer_gates(w, v, n_shown);
}
