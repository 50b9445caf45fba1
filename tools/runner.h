/* A model reading a text or writing one, with any attention. */
#ifndef TKV_TOOLS_RUNNER_H
#define TKV_TOOLS_RUNNER_H

#include "tools/engine.h"
#include "tools/metrics.h"

/* One sequence. Zero it, then set what is needed. */
struct tkv_run {
    const struct tkv_engine *engine;
    struct tkv_attention attention;
    struct tkv_attention judge; /* step NULL: nothing to compare with */
    size_t chunk_tokens;        /* at most the engine's */
    int32_t position;           /* of the next token */
    struct tkv_metrics metrics;
    double seconds;         /* spent in the model with `attention`, logits included */
    double seconds_writing; /* of these, for tokens that were written */
    /* Told how far it is; may be NULL. */
    void (*progress)(void *ctx, size_t done, size_t total);
    void *progress_ctx;
};

/*
 * Feed ids[0 .. n - 2] and score the model's prediction of ids[1 .. n - 1] into r->metrics.
 * losses[n - 1] gets each token's loss, or is NULL. n >= 2. 0, or -1 with a text.
 */
int tkv_run_score(struct tkv_run *r, const int32_t *ids, size_t n, double *losses,
                  struct tkv_reason *why);

/* Feed ids[n] without looking at the predictions. */
int tkv_run_feed(struct tkv_run *r, const int32_t *ids, size_t n, struct tkv_reason *why);

/* How the next token is chosen: temperature 0 takes the likeliest. */
struct tkv_sampler {
    double temperature;
    uint64_t state; /* the seed, then where the generator is */
};

int32_t tkv_sampler_choose(struct tkv_sampler *s, const float *logits, size_t n_vocab);

/*
 * Feed `last` and up to n tokens that the sampler chooses after it, each given to `emit` as
 * soon as it is known, until the end token. *n_written tokens; 0, or -1 with a text.
 */
struct tkv_writing {
    int32_t last;
    size_t n;
    struct tkv_sampler sampler;
    void (*emit)(void *ctx, int32_t id);
    void *ctx;
};

int tkv_run_write(struct tkv_run *r, struct tkv_writing *w, size_t *n_written,
                  struct tkv_reason *why);

#endif /* TKV_TOOLS_RUNNER_H */
