/*
 * How well a model does with its cache in a daemon, window by window: a window is one stretch of a
 * text as plain prose, and prose of as many tokens with facts, lists and passages that are asked for
 * again (tools/planted.h). The first settings that are scored are what others are compared with.
 */
#ifndef TKV_TOOLS_WINDOWS_H
#define TKV_TOOLS_WINDOWS_H

#include "tools/attention_daemon.h"
#include "tools/engine.h"
#include "tools/planted.h"

enum tkv_measure {
    TKV_PERPLEXITY,
    TKV_PERPLEXITY_CHANGE, /* percent, against the reference in the same window */
    TKV_KL,                /* nats per token, from the reference */
    TKV_TOP1,              /* percent of tokens with the same likeliest successor */
    TKV_RECALL,            /* percent of the answer tokens of facts that are the first choice */
    TKV_ANSWERS,           /* percent of those facts answered wholly right */
    TKV_RECALL_UNSEEN,     /* in unseen wordings */
    TKV_RECALL_LIST,
    TKV_RECALL_NEEDLE, /* not a number if windows have no needles */
    TKV_REPEAT_NATS,   /* per token of a passage's second showing */
    TKV_RECALL_DEPTH,  /* of facts told in the first fifth of the text, ... */
    TKV_N_MEASURES = TKV_RECALL_DEPTH + TKV_N_DEPTHS,
};

extern const char *const tkv_measure_names[TKV_N_MEASURES]; /* as in JSON */

enum { TKV_MAX_WINDOWS = 64, TKV_TEXTS_A_WINDOW = 4 };

struct tkv_windows {
    const struct tkv_engine *engine;
    size_t n_windows;
    size_t n_tokens;           /* of each text */
    size_t n_texts;            /* of a window: 3, or 4 with a needle */
    bool overlap;              /* the text is too short for windows side by side */
    struct tkv_planted *texts; /* [n_windows][n_texts] */
    float **reference;         /* [n_windows]: final states of the reference over the prose */
    double *reference_loss;    /* [n_windows] */
    bool has_reference;
};

struct tkv_windows_options {
    const int32_t *prose;
    size_t n_prose;
    size_t n_tokens, n_windows;
    bool needles; /* a fourth text in each window */
    uint64_t seed;
};

/* Fill *w, to be given to tkv_windows_deinit in any case. 0, or -1 with a text. */
int tkv_windows_init(struct tkv_windows *w, const struct tkv_engine *engine,
                     const struct tkv_windows_options *o, struct tkv_reason *why);
void tkv_windows_deinit(struct tkv_windows *w);

/* Values of every window; NaN where a window says nothing of a measure. */
struct tkv_outcome {
    double value[TKV_N_MEASURES][TKV_MAX_WINDOWS];
    size_t n_windows;
    double resident_bytes, fp16_bytes; /* the largest at the end of a text */
    double tokens_kept, rounds;        /* means */
    double seconds;                    /* in the model and the daemon */
    double tokens_per_s;
};

/*
 * Read all texts with these settings, each in a session of its own. Stops, with `over` set and
 * nothing else to be relied on, as soon as a session is larger than limit_bytes (0: no limit).
 * 0, or -1 with a text.
 */
int tkv_windows_score(struct tkv_windows *w, const struct tkv_remote_options *options,
                      double limit_bytes, struct tkv_outcome *out, bool *over,
                      struct tkv_reason *why);

/* Over the windows that have a value. */
struct tkv_spread {
    double mean, sd, min, max; /* sd with n - 1; 0 if n < 2 */
    size_t n;
};

struct tkv_spread tkv_outcome_spread(const struct tkv_outcome *o, unsigned measure);

#endif /* TKV_TOOLS_WINDOWS_H */
