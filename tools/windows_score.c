/*
 * Scoring one session configuration over all windows. Logits are made for marked tokens alone,
 * since a text of facts asks for few of its tokens.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "tools/metrics.h"
#include "tools/windows.h"

enum { TOKENS_AT_ONCE = 64 };

/* Sums of a task in a window, of facts told in one fifth of it. */
struct tally {
    size_t n_tokens, n_hits, n_questions, n_whole;
    double loss, kl;
    size_t n_same_top1;
};

struct scoring {
    struct tkv_windows *w;
    const struct tkv_remote_options *options;
    double limit_bytes;
    bool over;
    float *states;         /* [n_tokens][d_model] of the text that is read */
    float *logits, *other; /* [TOKENS_AT_ONCE][n_vocab] */
    struct tally tally[TKV_N_TASKS][TKV_N_DEPTHS]; /* of the window that is read */
    unsigned question; /* the last one that was scored in this text, 0: none */
    bool whole;        /* all of its tokens so far were right */
    struct tkv_outcome *out;
    size_t n_read;
};

static double now_seconds(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- one run of tokens that count for the same -------------------------------------------------------- */

static void add_answer(struct scoring *s, struct tally *t, const struct tkv_mark *mark, bool hit)
{
    if (mark->question != s->question) {
        s->question = mark->question;
        s->whole = true;
        t->n_questions++;
        t->n_whole++;
    }
    t->n_hits += hit;
    if (!hit && s->whole) {
        s->whole = false;
        t->n_whole--;
    }
}

static void add_run(struct scoring *s, const struct tkv_planted *text, size_t first, size_t n,
                    const float *reference)
{
    const struct tkv_model *m = s->w->engine->model;
    const size_t n_vocab = m->config.n_vocab, d = m->config.d_model;
    const struct tkv_mark *mark = &text->marks[first + 1];
    struct tally *t = &s->tally[mark->task][mark->depth];
    struct tkv_metrics sums = {0};
    const struct tkv_metrics_batch batch = {
        .logits = s->logits,
        .other = reference ? s->other : NULL,
        .targets = text->ids.ids + first + 1,
        .n = n,
        .n_vocab = n_vocab,
    };

    tkv_model_logits(m, s->states + first * d, n, s->logits);
    if (reference)
        tkv_model_logits(m, reference + first * d, n, s->other);
    tkv_metrics_add(&sums, &batch, m->exec);
    t->n_tokens += n;
    t->loss += sums.loss;
    t->kl += sums.kl;
    t->n_same_top1 += sums.n_same_top1;
    for (size_t i = 0; mark->question && i < n; i++)
        add_answer(s, t, mark,
                   tkv_metrics_top1(s->logits + i * n_vocab, n_vocab) == batch.targets[i]);
}

static bool same_mark(const struct tkv_mark *a, const struct tkv_mark *b)
{
    return a->task == b->task && a->depth == b->depth && a->question == b->question;
}

static void score_text(struct scoring *s, const struct tkv_planted *text, const float *reference)
{
    const struct tkv_mark *marks = text->marks + 1; /* of what is predicted */
    const size_t n = text->ids.n - 1;
    size_t run;

    s->question = 0;
    for (size_t at = 0; at < n; at += run) {
        for (run = 1;
             at + run < n && run < TOKENS_AT_ONCE && same_mark(&marks[at], &marks[at + run]);)
            run++;
        if (marks[at].task != TKV_TASK_NOTHING)
            add_run(s, text, at, run, reference);
    }
}

/* ---- one text --------------------------------------------------------------------------------------- */

static int read_text(struct scoring *s, const struct tkv_planted *text,
                     const struct tkv_attention *attention, struct tkv_reason *why)
{
    struct tkv_model *m = s->w->engine->model;
    const size_t n = text->ids.n - 1, chunk = s->options->chunk_tokens;

    for (size_t at = 0; at < n; at += chunk) {
        const size_t now = n - at < chunk ? n - at : chunk;

        if (tkv_model_forward(m, text->ids.ids + at, now, (int32_t)at, attention, why))
            return -1;
        memcpy(s->states + at * m->config.d_model, tkv_model_states(m),
               now * m->config.d_model * sizeof(float));
    }
    s->n_read += n;
    return 0;
}

static int take_sizes(struct scoring *s, struct tkv_remote *remote, struct tkv_reason *why)
{
    const double n_texts = (double)(s->w->n_windows * s->w->n_texts);
    struct trikv_stats stats;

    if (tkv_remote_stats(remote, &stats, why))
        return -1;
    s->out->resident_bytes = fmax(s->out->resident_bytes, (double)stats.resident_bytes);
    s->out->fp16_bytes = fmax(s->out->fp16_bytes, (double)stats.fp16_bytes);
    s->out->tokens_kept += stats.n_kept / n_texts;
    s->out->rounds += stats.n_rounds / n_texts;
    s->over = s->limit_bytes > 0 && s->out->resident_bytes > s->limit_bytes;
    return 0;
}

static int run_text(struct scoring *s, const struct tkv_planted *text, struct tkv_reason *why)
{
    struct tkv_remote *remote = NULL;
    struct tkv_attention attention;
    const double start = now_seconds();
    int error = tkv_remote_create(&remote, &s->w->engine->model->config, s->options, why);

    if (error)
        return error;
    attention = tkv_remote_attention(remote);
    error = read_text(s, text, &attention, why);
    s->out->seconds += now_seconds() - start;
    error = error ? error : take_sizes(s, remote, why);
    tkv_remote_destroy(&remote);
    return error;
}

/* ---- one window --------------------------------------------------------------------------------------- */

static struct tally sum_depths(const struct tally *of)
{
    struct tally sum = {0};

    for (size_t i = 0; i < TKV_N_DEPTHS; i++) {
        sum.n_tokens += of[i].n_tokens;
        sum.n_hits += of[i].n_hits;
        sum.n_questions += of[i].n_questions;
        sum.n_whole += of[i].n_whole;
        sum.loss += of[i].loss;
        sum.kl += of[i].kl;
        sum.n_same_top1 += of[i].n_same_top1;
    }
    return sum;
}

static double percent(size_t part, size_t whole)
{
    return whole ? 100.0 * (double)part / (double)whole : NAN;
}

static double mean(double sum, size_t n)
{
    return n ? sum / (double)n : NAN;
}

static void take_recall(const struct scoring *s, size_t i)
{
    double(*value)[TKV_MAX_WINDOWS] = s->out->value;
    const struct tally numbers = sum_depths(s->tally[TKV_TASK_NUMBER]);
    const struct tally words = sum_depths(s->tally[TKV_TASK_WORD]);
    const struct tally unseen = sum_depths(s->tally[TKV_TASK_UNSEEN]);
    const struct tally list = sum_depths(s->tally[TKV_TASK_LIST]);
    const struct tally needle = sum_depths(s->tally[TKV_TASK_NEEDLE]);

    value[TKV_RECALL][i] =
        percent(numbers.n_hits + words.n_hits, numbers.n_tokens + words.n_tokens);
    value[TKV_ANSWERS][i] =
        percent(numbers.n_whole + words.n_whole, numbers.n_questions + words.n_questions);
    value[TKV_RECALL_UNSEEN][i] = percent(unseen.n_hits, unseen.n_tokens);
    value[TKV_RECALL_LIST][i] = percent(list.n_hits, list.n_tokens);
    value[TKV_RECALL_NEEDLE][i] = percent(needle.n_hits, needle.n_tokens);
    for (size_t d = 0; d < TKV_N_DEPTHS; d++) {
        const struct tally *a = &s->tally[TKV_TASK_NUMBER][d], *b = &s->tally[TKV_TASK_WORD][d];

        value[TKV_RECALL_DEPTH + d][i] = percent(a->n_hits + b->n_hits, a->n_tokens + b->n_tokens);
    }
}

static void take_window(const struct scoring *s, size_t i)
{
    double(*value)[TKV_MAX_WINDOWS] = s->out->value;
    const struct tally prose = sum_depths(s->tally[TKV_TASK_PROSE]);
    const struct tally repeat = sum_depths(s->tally[TKV_TASK_REPEAT]);
    const double loss = mean(prose.loss, prose.n_tokens);

    if (!s->w->has_reference)
        s->w->reference_loss[i] = loss;
    value[TKV_PERPLEXITY][i] = exp(loss);
    value[TKV_PERPLEXITY_CHANGE][i] = 100 * expm1(loss - s->w->reference_loss[i]);
    value[TKV_KL][i] = mean(prose.kl, prose.n_tokens);
    value[TKV_TOP1][i] = s->w->has_reference ? percent(prose.n_same_top1, prose.n_tokens) : 100;
    value[TKV_REPEAT_NATS][i] = mean(repeat.loss, repeat.n_tokens);
    take_recall(s, i);
}

/* The first text of a window is its prose, whose states are kept as the reference's. */
static int run_window(struct scoring *s, size_t i, struct tkv_reason *why)
{
    struct tkv_windows *w = s->w;

    memset(s->tally, 0, sizeof(s->tally));
    for (size_t j = 0; j < w->n_texts && !s->over; j++) {
        const struct tkv_planted *text = &w->texts[i * w->n_texts + j];

        if (run_text(s, text, why))
            return -1;
        if (s->over)
            return 0;
        score_text(s, text, j == 0 && w->has_reference ? w->reference[i] : NULL);
        if (j > 0 || w->has_reference)
            continue;
        w->reference[i] = s->states;
        s->states = malloc(w->n_tokens * w->engine->model->config.d_model * sizeof(float));
        if (!s->states)
            return tkv_reason_set(why, "out of memory for %zu states", w->n_tokens);
    }
    take_window(s, i);
    return 0;
}

int tkv_windows_score(struct tkv_windows *w, const struct tkv_remote_options *options,
                      double limit_bytes, struct tkv_outcome *out, bool *over,
                      struct tkv_reason *why)
{
    const struct tkv_model_config *c = &w->engine->model->config;
    const size_t n_logits = TOKENS_AT_ONCE * (size_t)c->n_vocab;
    struct scoring s = {.w = w, .options = options, .limit_bytes = limit_bytes, .out = out};
    int error = 0;

    *out = (struct tkv_outcome){.n_windows = w->n_windows};
    s.states = malloc(w->n_tokens * c->d_model * sizeof(float));
    s.logits = malloc(2 * n_logits * sizeof(float));
    if (!s.states || !s.logits)
        error = tkv_reason_set(why, "out of memory for logits of %u tokens", c->n_vocab);
    s.other = s.logits ? s.logits + n_logits : NULL;
    for (size_t i = 0; !error && !s.over && i < w->n_windows; i++)
        error = run_window(&s, i, why);
    out->tokens_per_s = (double)s.n_read / out->seconds;
    w->has_reference = w->has_reference || (!error && !s.over);
    *over = s.over;
    free(s.states);
    free(s.logits);
    return error;
}
