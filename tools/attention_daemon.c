/*
 * The model's attention as a session of a daemon. Geometry, RoPE and fingerprint are
 * told when the session is opened, so that a profile made for another model is
 * refused there.
 */
#include "tools/attention_daemon.h"

#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>

#include "tools/profile_write.h"

struct tkv_remote {
    struct trikv_client *client;
    struct trikv_session *session;
    bool observe;
};

enum { SLACK_BYTES = 1 << 16 }; /* alignment of the tensors in shared memory */

/* Bytes of q, k, v and out of a chunk, in floats, and of its positions. */
static size_t chunk_bytes(const struct tkv_shape *s, size_t n_tokens)
{
    const size_t floats = (size_t)s->n_q_heads * (s->head_dim_k + s->head_dim_v) +
                          (size_t)s->n_kv_heads * (s->head_dim_k + s->head_dim_v);

    return n_tokens * (floats * sizeof(float) + sizeof(int32_t)) + SLACK_BYTES;
}

static int connect_client(struct tkv_remote *r, const struct tkv_model_config *model,
                          const struct tkv_remote_options *o, struct tkv_reason *why)
{
    const size_t bytes = chunk_bytes(&model->shape, o->chunk_tokens);
    const bool staging = o->no_ring && !o->inline_tensors;
    const struct trikv_options options = {
        .size = sizeof(options),
        .socket = o->socket,
        .timeout_ms = o->timeout_ms,
        .staging_bytes = staging ? bytes : 0,
        .name = o->label,
    };
    const struct trikv_ring_options ring = {.size = sizeof(ring), .copy_bytes = bytes};
    int error = trikv_connect(&r->client, &options);

    if (!error && !staging && !o->inline_tensors)
        error = trikv_ring_open(r->client, &ring);
    if (!error || error == TRIKV_E_UNKNOWN_REQUEST) /* a daemon that is older */
        return 0;
    return tkv_reason_set(why, "%s: %s", trikv_error_text(error),
                          r->client ? trikv_last_error(r->client) : "out of memory");
}

static const char *scaling_name(enum tkv_rope_scaling scaling)
{
    static const char *const names[] = {"none", "linear", "llama3", "yarn"};

    return names[scaling];
}

static int open_session(struct tkv_remote *r, const struct tkv_model_config *model,
                        const struct tkv_remote_options *o, struct tkv_reason *why)
{
    const struct tkv_rope_params *p = &model->rope_params;
    const struct trikv_layer layer = {
        .n_q_heads = model->shape.n_q_heads,
        .n_kv_heads = model->shape.n_kv_heads,
        .head_dim_k = model->shape.head_dim_k,
        .head_dim_v = model->shape.head_dim_v,
    };
    const struct trikv_rope rope = {
        .theta = p->theta,
        .rotary_dim = p->rotary_dim,
        .layout = p->layout == TKV_ROPE_HALF ? "half" : "interleaved",
        .scaling = scaling_name(p->scaling),
        .factor = p->scaling == TKV_ROPE_DEFAULT ? 0 : p->factor,
        .low_freq_factor = p->low_freq_factor,
        .high_freq_factor = p->high_freq_factor,
        .original_context = p->original_context,
        .beta_fast = p->beta_fast,
        .beta_slow = p->beta_slow,
        .attention_factor = p->attention_factor,
        .no_truncate = p->no_truncate,
    };
    struct trikv_session_options s = TRIKV_SESSION_OPTIONS_INIT;
    char fingerprint[32];
    int error;

    snprintf(fingerprint, sizeof(fingerprint), "xxh3:%016" PRIx64, model->fingerprint);
    s.n_layers = model->n_layers;
    s.layers = &layer;
    s.same_layers = 1;
    s.profile = o->profile;
    s.fingerprint = fingerprint;
    s.rope = model->rope_has_rule ? &rope : NULL;
    s.label = o->label;
    s.codec_k = o->codec_k;
    s.codec_v = o->codec_v;
    s.method = o->method;
    s.allocator = o->allocator;
    s.budget_tokens = o->budget_tokens;
    s.beta_tokens = o->beta_tokens;
    s.budget_bytes = o->budget_bytes;
    s.max_tokens = o->max_tokens;
    s.recent_tokens = o->recent_tokens;
    s.pinned_tokens = o->pinned_tokens;
    s.eviction_mode = o->eviction_mode;
    s.aggregation = o->aggregation;
    s.normalize_scores = o->normalize_scores;
    error = trikv_open(r->client, &s, &r->session);
    if (!error)
        return 0;
    return tkv_reason_set(why, "cannot open a session: %s: %s", trikv_error_text(error),
                          trikv_last_error(r->client));
}

int tkv_remote_create(struct tkv_remote **remote, const struct tkv_model_config *model,
                      const struct tkv_remote_options *options, struct tkv_reason *why)
{
    struct tkv_remote *r = calloc(1, sizeof(*r));

    *remote = NULL;
    if (!r)
        return tkv_reason_set(why, "out of memory for a connection");
    r->observe = options->observe;
    if (connect_client(r, model, options, why) || open_session(r, model, options, why)) {
        tkv_remote_destroy(&r);
        return -1;
    }
    *remote = r;
    return 0;
}

void tkv_remote_destroy(struct tkv_remote **remote)
{
    struct tkv_remote *r = *remote;

    if (!r)
        return;
    if (r->session)
        trikv_close(&r->session);
    trikv_disconnect(&r->client);
    free(r);
    *remote = NULL;
}

static int step_remote(void *ctx, const struct tkv_attention_step *step, struct tkv_reason *why)
{
    const struct tkv_remote *r = ctx;
    const struct trikv_step t = {
        .size = sizeof(t),
        .layer = step->layer,
        .n_tokens = (uint32_t)step->n_tokens,
        .dtype = TRIKV_F32,
        .positions = step->positions,
        .k = step->k,
        .v = step->v,
        .q = step->q,
        .out = step->out,
    };
    const struct trikv_queries q = {
        .size = sizeof(q),
        .layer = step->layer,
        .n_tokens = (uint32_t)step->n_tokens,
        .dtype = TRIKV_F32,
        .positions = step->positions,
        .q = step->q,
    };
    int error = trikv_append_attend(r->session, &t);

    if (!error && r->observe)
        error = trikv_observe(r->session, &q);
    if (!error)
        return 0;
    return tkv_reason_set(why, "layer %u, position %" PRId32 ": %s: %s", step->layer,
                          step->positions[0], trikv_error_text(error), trikv_last_error(r->client));
}

struct tkv_attention tkv_remote_attention(struct tkv_remote *r)
{
    return (struct tkv_attention){step_remote, r};
}

int tkv_remote_stats(struct tkv_remote *r, struct trikv_stats *stats, struct tkv_reason *why)
{
    const int error = trikv_stats(r->session, stats);

    if (!error)
        return 0;
    return tkv_reason_set(why, "cannot get statistics: %s: %s", trikv_error_text(error),
                          trikv_last_error(r->client));
}

static void print_yaml(const void *arg, FILE *out)
{
    const struct trikv_calibration *c = arg;

    fwrite(c->yaml, 1, c->yaml_bytes, out);
}

int tkv_remote_calibrate(struct tkv_remote *r, const struct tkv_model_config *model,
                         const char *path, uint64_t *n_tokens, struct tkv_reason *why)
{
    struct trikv_calibration_options o = {.size = sizeof(o), .architecture = model->architecture};
    struct trikv_calibration c;
    char fingerprint[32], name[NAME_MAX + 1];
    int error;

    snprintf(fingerprint, sizeof(fingerprint), "xxh3:%016" PRIx64, model->fingerprint);
    if (tkv_profile_name_of(path, name, sizeof(name), why))
        return -1;
    o.name = name;
    o.fingerprint = fingerprint;
    error = trikv_calibrate(r->session, &o, &c);
    if (error)
        return tkv_reason_set(why, "cannot calibrate: %s: %s", trikv_error_text(error),
                              trikv_last_error(r->client));
    *n_tokens = c.n_tokens;
    error = tkv_write_file(path, print_yaml, &c, why);
    trikv_calibration_release(&c);
    return error;
}

struct trikv_session *tkv_remote_session(const struct tkv_remote *r)
{
    return r->session;
}
