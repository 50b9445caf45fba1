/* The recording is what a model with an uncompressed cache would send: errors of one layer do not
 * reach the next, so that settings can be compared by what they do to attention alone. */
#include "tools/replay.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Floats of a token in each tensor of a layer. */
struct widths {
    size_t q, k, v, out, lse;
};

static struct widths widths_of(const struct tkv_shape *s)
{
    return (struct widths){
        .q = (size_t)s->n_q_heads * s->head_dim_k,
        .k = (size_t)s->n_kv_heads * s->head_dim_k,
        .v = (size_t)s->n_kv_heads * s->head_dim_v,
        .out = (size_t)s->n_q_heads * s->head_dim_v,
        .lse = s->n_q_heads,
    };
}

static struct widths recording_widths(const struct tkv_recording *r)
{
    return widths_of(&r->engine->model->config.shape);
}

/* A view of n tokens from `at` on; outputs go where they are told to. */
static struct trikv_step step_of(const struct tkv_recording *r, uint32_t layer, size_t at, size_t n)
{
    const struct widths w = recording_widths(r);
    const struct tkv_recorded_layer *l = &r->layers[layer];

    return (struct trikv_step){
        .size = sizeof(struct trikv_step),
        .layer = layer,
        .n_tokens = (uint32_t)n,
        .dtype = TRIKV_F32,
        .k = l->k + at * w.k,
        .v = l->v + at * w.v,
        .q = l->q + at * w.q,
    };
}

/* ---- recording ---------------------------------------------------------------------------------- */

struct recorder {
    struct tkv_recording *r;
    struct trikv_session *session;
};

static void copy(float *to, const float *from, size_t n)
{
    memcpy(to, from, n * sizeof(*to));
}

/* The model's attention while it is recorded. */
static int record_step(void *ctx, const struct tkv_attention_step *step, struct tkv_reason *why)
{
    const struct recorder *rec = ctx;
    const struct widths w = recording_widths(rec->r);
    struct tkv_recorded_layer *l = &rec->r->layers[step->layer];
    const size_t at = (size_t)step->positions[0], n = step->n_tokens;
    struct trikv_step t;
    int error;

    copy(l->q + at * w.q, step->q, n * w.q);
    copy(l->k + at * w.k, step->k, n * w.k);
    copy(l->v + at * w.v, step->v, n * w.v);
    t = step_of(rec->r, step->layer, at, n);
    t.out = l->out + at * w.out;
    t.lse = l->lse + at * w.lse;
    error = trikv_append_attend(rec->session, &t);
    copy(step->out, t.out, n * w.out);
    return error ? tkv_reason_set(why, "layer %u: %s", step->layer, trikv_error_text(error)) : 0;
}

static int read_text(struct tkv_recording *r, const int32_t *ids, struct recorder *rec,
                     struct tkv_reason *why)
{
    const struct tkv_attention attention = {record_step, rec};

    for (size_t at = 0; at < r->n_tokens; at += r->chunk_tokens) {
        const size_t left = r->n_tokens - at;

        if (tkv_model_forward(r->engine->model, ids + at,
                              left < r->chunk_tokens ? left : r->chunk_tokens, (int32_t)at,
                              &attention, why))
            return -1;
    }
    return 0;
}

static int allocate(struct tkv_recording *r, struct tkv_reason *why)
{
    const uint32_t n_layers = r->engine->model->config.n_layers;
    const struct widths w = recording_widths(r);
    const size_t n = r->n_tokens;

    r->layers = calloc(n_layers, sizeof(*r->layers));
    for (uint32_t i = 0; r->layers && i < n_layers; i++) {
        struct tkv_recorded_layer *l = &r->layers[i];

        /* one piece of memory, which begins with the queries */
        l->q = malloc(n * (w.q + w.k + w.v + w.out + w.lse) * sizeof(float));
        if (!l->q)
            return tkv_reason_set(why, "out of memory for a recording of %zu tokens", n);
        l->k = l->q + n * w.q;
        l->v = l->k + n * w.k;
        l->out = l->v + n * w.v;
        l->lse = l->out + n * w.out;
    }
    return r->layers ? 0 : tkv_reason_set(why, "out of memory for %u layers", n_layers);
}

int tkv_recording_init(struct tkv_recording *r, const struct tkv_engine *engine, const int32_t *ids,
                       size_t n_tokens, const struct tkv_remote_options *exact,
                       struct tkv_reason *why)
{
    struct recorder rec = {.r = r};
    struct tkv_remote *remote = NULL;
    int error;

    *r = (struct tkv_recording){
        .engine = engine, .n_tokens = n_tokens, .chunk_tokens = exact->chunk_tokens};
    if (allocate(r, why) || tkv_remote_create(&remote, &engine->model->config, exact, why))
        return -1;
    rec.session = tkv_remote_session(remote);
    error = read_text(r, ids, &rec, why);
    tkv_remote_destroy(&remote);
    return error;
}

void tkv_recording_deinit(struct tkv_recording *r)
{
    for (uint32_t i = 0; r->layers && i < r->engine->model->config.n_layers; i++)
        free(r->layers[i].q);
    free(r->layers);
    *r = (struct tkv_recording){0};
}

/* ---- replaying ---------------------------------------------------------------------------------- */

struct replay {
    const struct tkv_recording *r;
    struct tkv_remote *remote;
    float *out, *lse; /* of a chunk; NULL: nobody attends */
    double out_error, mass;
    size_t n_outputs;
};

static void compare(struct replay *p, uint32_t layer, size_t at, size_t n)
{
    const struct tkv_shape *s = &p->r->engine->model->config.shape;
    const struct tkv_recorded_layer *l = &p->r->layers[layer];

    for (size_t i = 0; i < n * s->n_q_heads; i++) {
        const float *is = p->out + i * s->head_dim_v;
        const float *was = l->out + (at * s->n_q_heads + i) * s->head_dim_v;
        const double lost = (double)p->lse[i] - (double)l->lse[at * s->n_q_heads + i];
        double error = 0, norm = 0;

        for (uint32_t d = 0; d < s->head_dim_v; d++) {
            error += ((double)is[d] - (double)was[d]) * ((double)is[d] - (double)was[d]);
            norm += (double)was[d] * (double)was[d];
        }
        p->out_error += norm > 0 ? sqrt(error / norm) : 0;
        p->mass += lost < 0 ? exp(lost) : 1; /* codes err both ways: more than all is all */
    }
    p->n_outputs += n * s->n_q_heads;
}

static int replay_chunk(struct replay *p, uint32_t layer, size_t at, size_t n,
                        struct tkv_reason *why)
{
    struct trikv_session *session = tkv_remote_session(p->remote);
    struct trikv_step t = step_of(p->r, layer, at, n);
    int error;

    t.out = p->out;
    t.lse = p->lse;
    error = p->out ? trikv_append_attend(session, &t) : trikv_append(session, &t);
    if (error)
        return tkv_reason_set(why, "layer %u, token %zu: %s", layer, at, trikv_error_text(error));
    if (p->out)
        compare(p, layer, at, n);
    return 0;
}

static int replay_all(struct replay *p, struct tkv_reason *why)
{
    const struct tkv_recording *r = p->r;

    for (size_t at = 0; at < r->n_tokens; at += r->chunk_tokens) {
        const size_t left = r->n_tokens - at;
        const size_t n = left < r->chunk_tokens ? left : r->chunk_tokens;

        for (uint32_t i = 0; i < r->engine->model->config.n_layers; i++)
            if (replay_chunk(p, i, at, n, why))
                return -1;
    }
    return 0;
}

int tkv_recording_replay(const struct tkv_recording *r, const struct tkv_remote_options *options,
                         bool attend, struct tkv_replayed *out, struct tkv_reason *why)
{
    const struct widths w = recording_widths(r);
    struct replay p = {.r = r};
    int error;

    *out = (struct tkv_replayed){0};
    if (attend) {
        p.out = malloc(r->chunk_tokens * (w.out + w.lse) * sizeof(float));
        if (!p.out)
            return tkv_reason_set(why, "out of memory for %zu outputs", r->chunk_tokens);
        p.lse = p.out + r->chunk_tokens * w.out;
    }
    error = tkv_remote_create(&p.remote, &r->engine->model->config, options, why);
    error = error ? error : replay_all(&p, why);
    error = error ? error : tkv_remote_stats(p.remote, &out->stats, why);
    if (p.n_outputs) {
        out->out_error = p.out_error / (double)p.n_outputs;
        out->mass = p.mass / (double)p.n_outputs;
    }
    tkv_remote_destroy(&p.remote);
    free(p.out);
    return error;
}
