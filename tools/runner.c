/*
 * The loops over a sequence. A chunk goes through the model once with the attention
 * under test and, if there is a judge, once more with the judge's; logits are then
 * made for a few tokens at a time, since a vocabulary can be large.
 */
#include "tools/runner.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { TOKENS_SCORED_AT_ONCE = 64 };

static double now_seconds(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Buffers of a scoring run. */
struct scoring {
    struct tkv_run *r;
    float *states; /* of a chunk, with the attention under test */
    float *logits; /* [TOKENS_SCORED_AT_ONCE][n_vocab] */
    float *judged;
};

static int forward(struct tkv_run *r, const struct tkv_attention *attention, const int32_t *ids,
                   size_t n, struct tkv_reason *why)
{
    return tkv_model_forward(r->engine->model, ids, n, r->position, attention, why);
}

static void score_states(struct scoring *s, const int32_t *targets, size_t n, double *losses)
{
    struct tkv_model *m = s->r->engine->model;
    const size_t d = m->config.d_model, n_vocab = m->config.n_vocab;

    for (size_t at = 0; at < n; at += TOKENS_SCORED_AT_ONCE) {
        const size_t left = n - at;
        struct tkv_metrics_batch batch = {
            .logits = s->logits,
            .other = s->judged,
            .targets = targets + at,
            .n = left < TOKENS_SCORED_AT_ONCE ? left : TOKENS_SCORED_AT_ONCE,
            .n_vocab = n_vocab,
            .losses = losses ? losses + at : NULL,
        };
        const double start = now_seconds();

        tkv_model_logits(m, s->states + at * d, batch.n, s->logits);
        s->r->seconds += now_seconds() - start;
        if (s->judged)
            tkv_model_logits(m, tkv_model_states(m) + at * d, batch.n, s->judged);
        tkv_metrics_add(&s->r->metrics, &batch, m->exec);
    }
}

static int score_chunk(struct scoring *s, const int32_t *ids, size_t n, double *losses,
                       struct tkv_reason *why)
{
    struct tkv_run *r = s->r;
    const struct tkv_model *m = r->engine->model;
    const double start = now_seconds();

    if (forward(r, &r->attention, ids, n, why))
        return -1;
    r->seconds += now_seconds() - start;
    memcpy(s->states, tkv_model_states(m), n * m->config.d_model * sizeof(*s->states));
    if (r->judge.step && forward(r, &r->judge, ids, n, why))
        return -1;
    r->position += (int32_t)n;
    score_states(s, ids + 1, n, losses);
    return 0;
}

static int score_all(struct scoring *s, const int32_t *ids, size_t n, double *losses,
                     struct tkv_reason *why)
{
    struct tkv_run *r = s->r;

    for (size_t at = 0; at < n; at += r->chunk_tokens) {
        const size_t left = n - at;
        const size_t now = left < r->chunk_tokens ? left : r->chunk_tokens;

        if (score_chunk(s, ids + at, now, losses ? losses + at : NULL, why))
            return -1;
        if (r->progress)
            r->progress(r->progress_ctx, at + now, n);
    }
    return 0;
}

int tkv_run_score(struct tkv_run *r, const int32_t *ids, size_t n, double *losses,
                  struct tkv_reason *why)
{
    const struct tkv_model_config *c = &r->engine->model->config;
    const size_t n_logits = TOKENS_SCORED_AT_ONCE * (size_t)c->n_vocab;
    struct scoring s = {.r = r};
    int error;

    if (n < 2)
        return tkv_reason_set(why, "a text of %zu tokens, expected at least 2", n);
    s.states = malloc(r->chunk_tokens * c->d_model * sizeof(*s.states));
    s.logits = malloc(n_logits * sizeof(*s.logits));
    s.judged = r->judge.step ? malloc(n_logits * sizeof(*s.judged)) : NULL;
    if (!s.states || !s.logits || (r->judge.step && !s.judged))
        error = tkv_reason_set(why, "out of memory for logits of %u tokens", c->n_vocab);
    else
        error = score_all(&s, ids, n - 1, losses, why);
    free(s.states);
    free(s.logits);
    free(s.judged);
    return error;
}

int tkv_run_feed(struct tkv_run *r, const int32_t *ids, size_t n, struct tkv_reason *why)
{
    for (size_t at = 0; at < n; at += r->chunk_tokens) {
        const size_t left = n - at;
        const size_t now = left < r->chunk_tokens ? left : r->chunk_tokens;
        const double start = now_seconds();

        if (forward(r, &r->attention, ids + at, now, why))
            return -1;
        r->seconds += now_seconds() - start;
        r->position += (int32_t)now;
        if (r->progress)
            r->progress(r->progress_ctx, at + now, n);
    }
    return 0;
}

/* splitmix64 (Steele, Lea, Flood 2014), to a number in [0, 1). */
static double uniform(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;

    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return (double)((z ^ z >> 31) >> 11) * 0x1p-53;
}

int32_t tkv_sampler_choose(struct tkv_sampler *s, const float *logits, size_t n_vocab)
{
    const int32_t best = tkv_metrics_top1(logits, n_vocab);
    double sum = 0, target;

    if (s->temperature <= 0)
        return best;
    for (size_t i = 0; i < n_vocab; i++)
        sum += exp(((double)logits[i] - (double)logits[best]) / s->temperature);
    target = uniform(&s->state) * sum;
    for (size_t i = 0; i < n_vocab; i++) {
        target -= exp(((double)logits[i] - (double)logits[best]) / s->temperature);
        if (target < 0)
            return (int32_t)i;
    }
    return best; /* only rounding leads here */
}

int tkv_run_write(struct tkv_run *r, struct tkv_writing *w, size_t *n_written,
                  struct tkv_reason *why)
{
    struct tkv_model *m = r->engine->model;
    const int32_t end = tkv_tokenizer_eos(r->engine->tokenizer);
    float *logits = malloc(m->config.n_vocab * sizeof(*logits));
    int error = logits ? 0 : tkv_reason_set(why, "out of memory for logits");

    *n_written = 0;
    while (!error && *n_written < w->n) {
        const double start = now_seconds();

        error = forward(r, &r->attention, &w->last, 1, why);
        if (error)
            break;
        r->position++;
        tkv_model_logits(m, tkv_model_states(m), 1, logits);
        r->seconds += now_seconds() - start;
        r->seconds_writing += now_seconds() - start;
        w->last = tkv_sampler_choose(&w->sampler, logits, m->config.n_vocab);
        if (w->last == end)
            break;
        w->emit(w->ctx, w->last);
        ++*n_written;
    }
    free(logits);
    return error;
}
