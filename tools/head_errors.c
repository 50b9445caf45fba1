/* The exact attention of the model is the judge's; the reduced ones are computed here in floats. */
#include "tools/head_errors.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/block.h"
#include "tools/attention_local.h"

enum {
    N_SAMPLES = 256, /* of a text */
    N_TEXTS = 2,
    N_PASSAGES = 4,
    N_PINNED = 4, /* tokens that a session keeps as they are: the first ... */
    N_NEAR = 8,   /* ... and the newest */
};

/* The model's attention while errors are measured. */
struct judge {
    const struct tkv_model *model;
    struct tkv_attention exact;
    size_t *sample; /* [N_SAMPLES] tokens, ascending */
    size_t n_samples;
    double *sums; /* [layer][kv_head][TKV_PLAN_ERRORS] */
};

/* One layer: the differences of all heads and options, and what they are made with. */
struct layer {
    const struct judge *j;
    const struct tkv_attention_step *step;
    float *difference; /* [kv_head][option][sample][group][head_dim_v] */
    uint8_t *memory;
    size_t head_bytes;
};

/* Working memory of a KV head. */
struct work {
    float *k, *v;             /* [n_tokens][dim], through a codec and back */
    float *p;                 /* [n_tokens] */
    struct tkv_coder *coders; /* of keys and of values */
    uint8_t *block;
    size_t bytes;
};

static void *take(uint8_t *base, size_t *at, size_t bytes)
{
    void *p = base ? base + *at : NULL;

    *at += tkv_align(bytes, 64);
    return p;
}

static struct work work_layout(const struct tkv_shape *s, size_t n_tokens, uint8_t *base)
{
    struct work w = {0};
    size_t at = 0;

    w.k = take(base, &at, n_tokens * s->head_dim_k * sizeof(float));
    w.v = take(base, &at, n_tokens * s->head_dim_v * sizeof(float));
    w.p = take(base, &at, n_tokens * sizeof(float));
    w.coders = take(base, &at, 2 * sizeof(*w.coders));
    w.block = take(base, &at, (size_t)(TKV_MAX_HEAD_DIM + 16) * TKV_BLOCK_TOKENS);
    w.bytes = at;
    return w;
}

/* ---- one head ---------------------------------------------------------------------------- */

static float *difference_of(const struct layer *l, size_t kv_head, size_t option, size_t sample,
                            size_t g)
{
    const struct tkv_shape *s = &l->j->model->config.shape;

    return l->difference +
           (((kv_head * TKV_PLAN_ERRORS + option) * l->j->n_samples + sample) * tkv_group(s) + g) *
               s->head_dim_v;
}

/* Vector t of a side of the step. */
static const float *key_at(const struct layer *l, size_t kv_head, size_t t)
{
    const struct tkv_shape *s = &l->j->model->config.shape;

    return l->step->k + (t * s->n_kv_heads + kv_head) * s->head_dim_k;
}

static const float *value_at(const struct layer *l, size_t kv_head, size_t t)
{
    const struct tkv_shape *s = &l->j->model->config.shape;

    return l->step->v + (t * s->n_kv_heads + kv_head) * s->head_dim_v;
}

/* All tokens through a codec, block by block as a session cuts them. */
static void pass_through(const struct layer *l, size_t kv_head, size_t tier, const struct work *w)
{
    const struct tkv_shape *s = &l->j->model->config.shape;
    const struct tkv_kernels *kn = &l->j->model->math.kn;
    const struct tkv_codec *codec = tkv_codec_by_name(tkv_plan_codecs[tier]);
    const struct tkv_coder *k = &w->coders[0], *v = &w->coders[1];
    uint8_t mean[TKV_MAX_MEAN_BYTES];

    (void)tkv_coder_init(&w->coders[0], codec, s->head_dim_k, TKV_ROTATION_SEED);
    (void)tkv_coder_init(&w->coders[1], codec, s->head_dim_v, TKV_ROTATION_SEED);
    for (size_t t = 0; t < l->step->n_tokens; t++) {
        memcpy(w->k + t * k->dim, key_at(l, kv_head, t), k->dim * sizeof(float));
        memcpy(w->v + t * v->dim, value_at(l, kv_head, t), v->dim * sizeof(float));
    }
    for (size_t t = 0; t < l->step->n_tokens; t += TKV_BLOCK_TOKENS) {
        const size_t left = l->step->n_tokens - t;
        const size_t n = left < TKV_BLOCK_TOKENS ? left : TKV_BLOCK_TOKENS;

        tkv_code_mean(k, kn, TKV_KEYS, tkv_floats(w->k + t * k->dim, k->dim), n, mean);
        tkv_encode_keys(k, kn, mean, tkv_floats(w->k + t * k->dim, k->dim), n, w->block);
        for (size_t i = 0; i < n; i++)
            tkv_decode_key(k, kn, w->block, i, w->k + (t + i) * k->dim);
        tkv_code_mean(v, kn, TKV_VALUES, tkv_floats(w->v + t * v->dim, v->dim), n, mean);
        tkv_encode_values(v, kn, mean, tkv_floats(w->v + t * v->dim, v->dim), n, w->block);
        for (size_t i = 0; i < n; i++)
            tkv_decode_value(v, kn, w->block, i, w->v + (t + i) * v->dim);
    }
}

static bool is_kept_as_it_is(size_t t, size_t token)
{
    return t < N_PINNED || token - t < N_NEAR;
}

/* Weights of tokens 0 .. token, unnormalised; with w->k for all that a session would have coded if
 * `coded`. */
static void weigh(const struct layer *l, size_t kv_head, const float *q, size_t token, bool coded,
                  const struct work *w)
{
    const struct tkv_shape *s = &l->j->model->config.shape;
    const float scale = 1 / sqrtf((float)s->head_dim_k);
    float max = -INFINITY;

    for (size_t t = 0; t <= token; t++) {
        const float *k =
            coded && !is_kept_as_it_is(t, token) ? w->k + t * s->head_dim_k : key_at(l, kv_head, t);

        w->p[t] = l->j->model->math.kn.dot(q, k, s->head_dim_k) * scale;
        max = w->p[t] > max ? w->p[t] : max;
    }
    for (size_t t = 0; t <= token; t++)
        w->p[t] = expf(w->p[t] - max);
}

static void add_scaled(float *out, const float *x, float factor, size_t n)
{
    for (size_t i = 0; i < n; i++)
        out[i] += factor * x[i];
}

/* to[dim] = exact - sum / weight */
static void store_difference(float *to, const float *exact, const float *sum, float weight,
                             size_t dim)
{
    for (size_t i = 0; i < dim; i++)
        to[i] = exact[i] - sum[i] / weight;
}

static void measure_tier(const struct layer *l, size_t kv_head, size_t tier, size_t sample,
                         size_t g, const float *q, const float *exact, const struct work *w)
{
    const size_t dim = l->j->model->config.shape.head_dim_v, token = l->j->sample[sample];
    float sum[TKV_MAX_HEAD_DIM] = {0}, weight = 0;

    weigh(l, kv_head, q, token, true, w);
    for (size_t t = 0; t <= token; t++) {
        add_scaled(sum, is_kept_as_it_is(t, token) ? value_at(l, kv_head, t) : w->v + t * dim,
                   w->p[t], dim);
        weight += w->p[t];
    }
    store_difference(difference_of(l, kv_head, tier, sample, g), exact, sum, weight, dim);
}

/* From the newest token back: each window is what there is when its last token has been added. */
static void measure_windows(const struct layer *l, size_t kv_head, size_t sample, size_t g,
                            const float *q, const float *exact, const struct work *w)
{
    const size_t dim = l->j->model->config.shape.head_dim_v, token = l->j->sample[sample];
    float sum[TKV_MAX_HEAD_DIM] = {0}, weight = 0;
    size_t t = token + 1;

    weigh(l, kv_head, q, token, false, w);
    for (size_t i = 0; i < N_PINNED; i++, weight += w->p[i - 1])
        add_scaled(sum, value_at(l, kv_head, i), w->p[i], dim);
    for (size_t i = 0; i < TKV_PLAN_REACHES; i++) {
        for (; t > N_PINNED && token + 1 - t < tkv_plan_reaches[i]; t--) {
            add_scaled(sum, value_at(l, kv_head, t - 1), w->p[t - 1], dim);
            weight += w->p[t - 1];
        }
        store_difference(difference_of(l, kv_head, TKV_PLAN_TIERS + i, sample, g), exact, sum,
                         weight, dim);
    }
}

static void measure_head(void *arg, size_t kv_head)
{
    const struct layer *l = arg;
    const struct tkv_shape *s = &l->j->model->config.shape;
    const size_t group = tkv_group(s);
    const struct work w = work_layout(s, l->step->n_tokens, l->memory + kv_head * l->head_bytes);

    for (size_t option = 0; option <= TKV_PLAN_TIERS; option++) {
        if (option < TKV_PLAN_TIERS)
            pass_through(l, kv_head, option, &w);
        for (size_t i = 0; i < l->j->n_samples * group; i++) {
            const size_t at = l->j->sample[i / group] * s->n_q_heads + kv_head * group + i % group;
            const float *q = l->step->q + at * s->head_dim_k;
            const float *exact = l->step->out + at * s->head_dim_v;

            if (option < TKV_PLAN_TIERS)
                measure_tier(l, kv_head, option, i / group, i % group, q, exact, &w);
            else
                measure_windows(l, kv_head, i / group, i % group, q, exact, &w);
        }
    }
}

/* ---- a layer ----------------------------------------------------------------------------- */

static double square(const float *x, size_t n)
{
    double sum = 0;

    for (size_t i = 0; i < n; i++)
        sum += (double)x[i] * (double)x[i];
    return sum;
}

/* Mean |residual + Wo out|^2 of the sampled tokens. in and out are room for them. */
static double residual_square(const struct layer *l, float *in, float *out)
{
    const struct tkv_model *m = l->j->model;
    const size_t d = m->config.d_model, n = l->j->n_samples;
    const size_t width = (size_t)m->config.shape.n_q_heads * m->config.shape.head_dim_v;

    for (size_t i = 0; i < n; i++)
        memcpy(in + i * width, l->step->out + l->j->sample[i] * width, width * sizeof(*in));
    tkv_linear(&m->math, m->exec, &m->layers[l->step->layer].o, in, n, out);
    for (size_t i = 0; i < n * d; i++)
        out[i] += m->act.x[l->j->sample[i / d] * d + i % d];
    return square(out, n * d) / (double)n;
}

/* Mean |Wo (o - o')|^2 of a head with an option. */
static double error_square(const struct layer *l, size_t kv_head, size_t option, float *in,
                           float *out)
{
    const struct tkv_model *m = l->j->model;
    const size_t n = l->j->n_samples, dim = m->config.shape.head_dim_v;
    const size_t width = (size_t)m->config.shape.n_q_heads * dim;
    const size_t part = tkv_group(&m->config.shape) * dim;

    memset(in, 0, n * width * sizeof(*in));
    for (size_t i = 0; i < n; i++)
        memcpy(in + i * width + kv_head * part, difference_of(l, kv_head, option, i, 0),
               part * sizeof(*in));
    tkv_linear(&m->math, m->exec, &m->layers[l->step->layer].o, in, n, out);
    return square(out, n * m->config.d_model) / (double)n;
}

static void add_errors(const struct layer *l, float *in, float *out)
{
    const uint32_t n_heads = l->j->model->config.shape.n_kv_heads;
    const double whole = residual_square(l, in, out);
    double *sums = l->j->sums + (size_t)l->step->layer * n_heads * TKV_PLAN_ERRORS;

    for (size_t h = 0; h < n_heads; h++)
        for (size_t i = 0; i < TKV_PLAN_ERRORS; i++)
            *sums++ += error_square(l, h, i, in, out) / (whole > 0 ? whole : 1);
}

static int step(void *ctx, const struct tkv_attention_step *s, struct tkv_reason *why)
{
    const struct judge *j = ctx;
    const struct tkv_model_config *c = &j->model->config;
    const uint32_t n_heads = c->shape.n_kv_heads;
    const size_t rows = j->n_samples * c->shape.n_q_heads * c->shape.head_dim_v;
    struct layer l = {.j = j, .step = s};
    float *in, *out;

    if (j->exact.step(j->exact.ctx, s, why))
        return -1;
    l.head_bytes = work_layout(&c->shape, s->n_tokens, NULL).bytes;
    l.memory = aligned_alloc(64, n_heads * l.head_bytes);
    l.difference = malloc(rows * TKV_PLAN_ERRORS * sizeof(float));
    in = malloc(rows * sizeof(float));
    out = malloc(j->n_samples * c->d_model * sizeof(float));
    if (l.memory && l.difference && in && out) {
        tkv_exec_run(j->model->exec, n_heads, measure_head, &l);
        add_errors(&l, in, out);
    }
    free(l.memory);
    free(l.difference);
    free(in);
    free(out);
    return l.memory && l.difference && in && out
               ? 0
               : tkv_reason_set(why, "out of memory for the errors of layer %u", s->layer);
}

/* ---- texts ------------------------------------------------------------------------------- */

/* Tokens of the passages that are shown again, and where. */
struct passages {
    size_t n_tokens;
    size_t from[N_PASSAGES], to[N_PASSAGES];
};

static struct passages plan_passages(size_t n)
{
    static const size_t order[N_PASSAGES] = {2, 0, 3, 1};
    struct passages p = {.n_tokens = n / (4 * N_PASSAGES)};

    for (size_t i = 0; i < N_PASSAGES; i++) {
        p.from[i] = order[i] * p.n_tokens;
        p.to[i] = n - (N_PASSAGES - i) * p.n_tokens;
    }
    return p;
}

/* Tokens after the first quarter, evenly; or of the passages' second showings, but for their
 * beginnings, which nothing announces. */
static void choose_samples(struct judge *j, size_t n, const struct passages *p)
{
    const size_t skip = p ? p->n_tokens / 8 : n / 4;
    const size_t from = p ? p->n_tokens - skip : n - skip;
    const size_t all = p ? from * N_PASSAGES : from;

    j->n_samples = all < N_SAMPLES ? all : N_SAMPLES;
    for (size_t i = 0; i < j->n_samples; i++) {
        const size_t at = i * all / j->n_samples;

        j->sample[i] = p ? p->to[at / from] + skip + at % from : skip + at;
    }
}

static int read_texts(struct judge *j, struct tkv_model *model, struct tkv_local *local,
                      int32_t *ids, size_t n, struct tkv_reason *why)
{
    const struct tkv_attention attention = {step, j};
    const struct passages p = plan_passages(n);

    choose_samples(j, n, NULL);
    if (tkv_model_forward(model, ids, n, 0, &attention, why))
        return -1;
    for (size_t i = 0; i < N_PASSAGES; i++)
        memcpy(ids + p.to[i], ids + p.from[i], p.n_tokens * sizeof(*ids));
    choose_samples(j, n, &p);
    tkv_local_reset(local);
    return tkv_model_forward(model, ids, n, 0, &attention, why);
}

static float *means_of(const struct judge *j, size_t n)
{
    float *errors = malloc(n * sizeof(*errors));

    for (size_t i = 0; errors && i < n; i++)
        errors[i] = (float)(j->sums[i] / N_TEXTS);
    return errors;
}

static int measure(const struct tkv_engine *e, const int32_t *ids, size_t n, float **errors,
                   struct tkv_reason *why)
{
    const struct tkv_model_config *c = &e->model->config;
    const size_t n_errors = (size_t)c->n_layers * c->shape.n_kv_heads * TKV_PLAN_ERRORS;
    struct judge j = {.model = e->model};
    int32_t *own = malloc(n * sizeof(*own));
    struct tkv_local *local = NULL;
    int error =
        tkv_local_create(&local, c->n_layers, &c->shape, &e->model->math, e->model->exec, why);

    j.sums = calloc(n_errors, sizeof(*j.sums));
    j.sample = calloc(N_SAMPLES, sizeof(*j.sample));
    if (!error && own && j.sums && j.sample) {
        j.exact = tkv_local_attention(local);
        memcpy(own, ids, n * sizeof(*own));
        error = read_texts(&j, e->model, local, own, n, why);
        *errors = error ? NULL : means_of(&j, n_errors);
    }
    if (!error && !*errors)
        error = tkv_reason_set(why, "out of memory for %zu errors", n_errors);
    tkv_local_destroy(&local);
    free(own);
    free(j.sums);
    free(j.sample);
    return error;
}

int tkv_head_errors_measure(const char *model_path, unsigned n_threads, const int32_t *ids,
                            size_t n_tokens, float **errors, struct tkv_reason *why)
{
    struct tkv_engine e;
    int error = tkv_engine_init(&e, model_path, n_threads, n_tokens, why);

    *errors = NULL;
    if (error)
        return error;
    error = measure(&e, ids, n_tokens, errors, why);
    tkv_engine_deinit(&e);
    return error;
}
