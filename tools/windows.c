/* Making the windows of a text, and means and spreads over them. */
#include "tools/windows.h"

#include <math.h>
#include <stdlib.h>

const char *const tkv_measure_names[TKV_N_MEASURES] = {
    [TKV_PERPLEXITY] = "perplexity",
    [TKV_PERPLEXITY_CHANGE] = "perplexity_change",
    [TKV_KL] = "kl",
    [TKV_TOP1] = "top1",
    [TKV_RECALL] = "recall",
    [TKV_ANSWERS] = "answers",
    [TKV_RECALL_UNSEEN] = "recall_unseen",
    [TKV_RECALL_LIST] = "recall_list",
    [TKV_RECALL_NEEDLE] = "recall_needle",
    [TKV_REPEAT_NATS] = "repeat_nats",
    [TKV_RECALL_DEPTH] = "recall_depth1",
    [TKV_RECALL_DEPTH + 1] = "recall_depth2",
    [TKV_RECALL_DEPTH + 2] = "recall_depth3",
    [TKV_RECALL_DEPTH + 3] = "recall_depth4",
    [TKV_RECALL_DEPTH + 4] = "recall_depth5",
};

/* Windows lie side by side, or evenly over a text that is too short for that. */
static size_t window_start(const struct tkv_windows_options *o, size_t i)
{
    const size_t room = o->n_prose - o->n_tokens;

    if (o->n_windows * o->n_tokens <= o->n_prose)
        return i * o->n_tokens;
    return o->n_windows > 1 ? i * room / (o->n_windows - 1) : 0;
}

static int make_window(struct tkv_windows *w, size_t i, const struct tkv_windows_options *o,
                       struct tkv_reason *why)
{
    const struct tkv_tokenizer *t = w->engine->tokenizer;
    struct tkv_planted *texts = &w->texts[i * w->n_texts];
    struct tkv_planted_options p = {
        .prose = o->prose + window_start(o, i),
        .n_prose = o->n_tokens,
        .n_tokens = o->n_tokens,
        .seed = o->seed + i,
    };

    if (tkv_planted_prose(&texts[0], t, &p, why) || tkv_planted_facts(&texts[1], t, &p, why) ||
        tkv_planted_again(&texts[2], t, &p, why))
        return -1;
    if (!o->needles)
        return 0;
    p.seed += TKV_MAX_WINDOWS; /* another person, another number than in the facts */
    return tkv_planted_needle(&texts[3], t, &p, (unsigned)(i % TKV_N_DEPTHS), why);
}

int tkv_windows_init(struct tkv_windows *w, const struct tkv_engine *engine,
                     const struct tkv_windows_options *o, struct tkv_reason *why)
{
    *w = (struct tkv_windows){.engine = engine,
                              .n_windows = o->n_windows,
                              .n_tokens = o->n_tokens,
                              .n_texts = o->needles ? 4 : 3,
                              .overlap = o->n_windows * o->n_tokens > o->n_prose};
    if (o->n_prose < o->n_tokens)
        return tkv_reason_set(why, "the text has %zu tokens, a context of %zu needs as many",
                              o->n_prose, o->n_tokens);
    w->texts = calloc(o->n_windows * w->n_texts, sizeof(*w->texts));
    w->reference = calloc(o->n_windows, sizeof(*w->reference));
    w->reference_loss = calloc(o->n_windows, sizeof(*w->reference_loss));
    if (!w->texts || !w->reference || !w->reference_loss)
        return tkv_reason_set(why, "out of memory for %zu windows", o->n_windows);
    for (size_t i = 0; i < o->n_windows; i++)
        if (make_window(w, i, o, why))
            return -1;
    return 0;
}

void tkv_windows_deinit(struct tkv_windows *w)
{
    for (size_t i = 0; w->texts && i < w->n_windows * w->n_texts; i++)
        tkv_planted_deinit(&w->texts[i]);
    for (size_t i = 0; w->reference && i < w->n_windows; i++)
        free(w->reference[i]);
    free(w->texts);
    free(w->reference);
    free(w->reference_loss);
    *w = (struct tkv_windows){0};
}

static double geometric_mean(const double *value, size_t n)
{
    double sum = 0;

    for (size_t i = 0; i < n; i++)
        sum += log(value[i]);
    return exp(sum / (double)n);
}

struct tkv_spread tkv_outcome_spread(const struct tkv_outcome *o, unsigned measure)
{
    struct tkv_spread s = {.min = INFINITY, .max = -INFINITY};
    double squares = 0;

    for (size_t i = 0; i < o->n_windows; i++) {
        const double v = o->value[measure][i];

        if (isnan(v))
            continue;
        s.n++;
        s.mean += (v - s.mean) / (double)s.n;
        s.min = fmin(s.min, v);
        s.max = fmax(s.max, v);
    }
    for (size_t i = 0; i < o->n_windows; i++) {
        const double v = o->value[measure][i];

        squares += isnan(v) ? 0 : (v - s.mean) * (v - s.mean);
    }
    if (measure == TKV_PERPLEXITY && s.n)
        s.mean = geometric_mean(o->value[measure], o->n_windows); /* that of all tokens together */
    if (s.n == 0)
        return (struct tkv_spread){.mean = NAN, .min = NAN, .max = NAN};
    s.sd = s.n > 1 ? sqrt(squares / (double)(s.n - 1)) : 0;
    return s;
}
