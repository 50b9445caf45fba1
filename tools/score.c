#include "tools/score.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "tools/metrics.h"

enum { TOKENS_AT_ONCE = 64, DEFAULT_CHUNK_TOKENS = 128 };

/* Sums over the texts of one configuration. */
struct sums {
    struct tkv_metrics prose, answers;
    struct trikv_stats stats;
    double n_kept, resident_bytes, fp16_bytes, bits_k, bits_v, n_seen;
    double seconds;
    size_t n_tokens;
    size_t n_recalled;
};

struct pass {
    struct tkv_scorer *s;
    const struct tkv_recall *text;
    const float *reference; /* [ids.n][d_model], NULL while the reference itself runs */
    float *states;          /* [ids.n][d_model] of this pass */
    float *logits, *other;  /* [TOKENS_AT_ONCE][n_vocab] */
    struct sums *sums;
};

static double now_seconds(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

int tkv_scorer_init(struct tkv_scorer *s, const struct tkv_engine *engine,
                    const struct tkv_recall *texts, size_t n_texts, struct tkv_reason *why)
{
    *s = (struct tkv_scorer){
        .engine = engine, .texts = texts, .n_texts = n_texts, .chunk_tokens = DEFAULT_CHUNK_TOKENS};
    s->reference = calloc(n_texts, sizeof(*s->reference));
    return s->reference ? 0 : tkv_reason_set(why, "out of memory for %zu texts", n_texts);
}

void tkv_scorer_deinit(struct tkv_scorer *s)
{
    for (size_t i = 0; s->reference && i < s->n_texts; i++)
        free(s->reference[i]);
    free(s->reference);
    *s = (struct tkv_scorer){0};
}

/* One run of tokens that are all answers or all not: metrics are kept apart. */
static void add_run(struct pass *p, size_t first, size_t n, size_t at)
{
    const size_t n_vocab = p->s->engine->model->config.n_vocab;
    const struct tkv_metrics_batch batch = {
        .logits = p->logits + at * n_vocab,
        .other = p->reference ? p->other + at * n_vocab : NULL,
        .targets = p->text->ids.ids + first + 1,
        .n = n,
        .n_vocab = n_vocab,
    };
    const bool answers = p->text->is_answer[first + 1];

    tkv_metrics_add(answers ? &p->sums->answers : &p->sums->prose, &batch,
                    p->s->engine->model->exec);
    for (size_t i = 0; answers && i < n; i++)
        p->sums->n_recalled +=
            tkv_metrics_top1(batch.logits + i * n_vocab, n_vocab) == batch.targets[i];
}

static void score_batch(struct pass *p, size_t first, size_t n)
{
    const struct tkv_model *m = p->s->engine->model;
    const double start = now_seconds();
    size_t at = 0;

    tkv_model_logits(m, p->states + first * m->config.d_model, n, p->logits);
    p->sums->seconds += now_seconds() - start;
    if (p->reference)
        tkv_model_logits(m, p->reference + first * m->config.d_model, n, p->other);
    while (at < n) {
        size_t run = 1;

        while (at + run < n &&
               p->text->is_answer[first + at + run + 1] == p->text->is_answer[first + at + 1])
            run++;
        add_run(p, first + at, run, at);
        at += run;
    }
}

static int read_text(struct pass *p, const struct tkv_attention *attention, struct tkv_reason *why)
{
    struct tkv_model *m = p->s->engine->model;
    const size_t n = p->text->ids.n - 1; /* nothing follows the last token */

    for (size_t at = 0; at < n; at += p->s->chunk_tokens) {
        const size_t now = n - at < p->s->chunk_tokens ? n - at : p->s->chunk_tokens;
        const double start = now_seconds();

        if (tkv_model_forward(m, p->text->ids.ids + at, now, (int32_t)at, attention, why))
            return -1;
        p->sums->seconds += now_seconds() - start;
        memcpy(p->states + at * m->config.d_model, tkv_model_states(m),
               now * m->config.d_model * sizeof(float));
        for (size_t i = 0; i < now; i += TOKENS_AT_ONCE)
            score_batch(p, at + i, now - i < TOKENS_AT_ONCE ? now - i : TOKENS_AT_ONCE);
        if (p->s->progress)
            p->s->progress(p->s->progress_ctx, (size_t)(p->text - p->s->texts) * (n + 1) + at + now,
                           p->s->n_texts * (n + 1));
    }
    p->sums->n_tokens += n;
    return 0;
}

static int read_sizes(struct tkv_remote *r, struct sums *sums, struct tkv_reason *why)
{
    struct trikv_stats *stats = &sums->stats;

    if (tkv_remote_stats(r, stats, why))
        return -1;
    sums->n_seen += (double)stats->n_seen;
    sums->n_kept += stats->n_kept;
    sums->resident_bytes += (double)stats->resident_bytes;
    sums->fp16_bytes += (double)stats->fp16_bytes;
    sums->bits_k += stats->bits_k;
    sums->bits_v += stats->bits_v;
    return 0;
}

static int run_text(struct pass *p, const struct tkv_remote_options *options,
                    struct tkv_reason *why)
{
    struct tkv_remote *remote = NULL;
    struct tkv_attention attention;
    int error = tkv_remote_create(&remote, &p->s->engine->model->config, options, why);

    if (error)
        return error;
    attention = tkv_remote_attention(remote);
    error = read_text(p, &attention, why);
    if (!error)
        error = read_sizes(remote, p->sums, why);
    tkv_remote_destroy(&remote);
    return error;
}

static int run_texts(struct tkv_scorer *s, const struct tkv_remote_options *options,
                     struct sums *sums, struct tkv_reason *why)
{
    const struct tkv_model_config *c = &s->engine->model->config;
    const size_t n_logits = TOKENS_AT_ONCE * (size_t)c->n_vocab;
    struct pass p = {.s = s, .sums = sums};
    int error = 0;

    p.logits = malloc(2 * n_logits * sizeof(float));
    if (!p.logits)
        return tkv_reason_set(why, "out of memory for logits of %u tokens", c->n_vocab);
    p.other = p.logits + n_logits;
    for (size_t i = 0; !error && i < s->n_texts; i++) {
        p.text = &s->texts[i];
        p.reference = s->reference[i];
        p.states = malloc(p.text->ids.n * c->d_model * sizeof(float));
        error = p.states ? run_text(&p, options, why)
                         : tkv_reason_set(why, "out of memory for %zu states", p.text->ids.n);
        if (!error && !s->reference[i])
            s->reference[i] = p.states;
        else
            free(p.states);
    }
    free(p.logits);
    return error;
}

int tkv_scorer_run(struct tkv_scorer *s, const struct tkv_remote_options *options,
                   struct tkv_score *out, struct tkv_reason *why)
{
    const double n = (double)s->n_texts;
    struct sums sums = {0};
    const struct tkv_metrics *m[] = {&sums.prose, &sums.answers};
    const bool is_reference = !s->reference[0];
    size_t n_compared;

    if (run_texts(s, options, &sums, why))
        return -1;
    n_compared = m[0]->n_compared + m[1]->n_compared;
    *out = (struct tkv_score){
        .bits_k = sums.bits_k / n,
        .bits_v = sums.bits_v / n,
        .tokens_seen = sums.n_seen / n,
        .tokens_kept = sums.n_kept / n,
        .resident_bytes = sums.resident_bytes / n,
        .ratio = sums.fp16_bytes / sums.resident_bytes,
        .perplexity = exp(sums.prose.loss / (double)sums.prose.n_tokens),
        .kl = is_reference ? 0 : (m[0]->kl + m[1]->kl) / (double)n_compared,
        .top1 = is_reference
                    ? 100
                    : 100.0 * (double)(m[0]->n_same_top1 + m[1]->n_same_top1) / (double)n_compared,
        .recall = 100.0 * (double)sums.n_recalled / (double)sums.answers.n_tokens,
        .tokens_per_s = (double)sums.n_tokens / sums.seconds,
    };
    return 0;
}
