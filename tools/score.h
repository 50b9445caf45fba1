/*
 * How well a model does with its cache in a daemon, over sequences of facts hidden in prose
 * (tools/recall.h): one configuration at a time, each compared with the first one.
 */
#ifndef TKV_TOOLS_SCORE_H
#define TKV_TOOLS_SCORE_H

#include "tools/attention_daemon.h"
#include "tools/engine.h"
#include "tools/recall.h"

/* Means over the sequences; sizes are those at the end of a sequence. */
struct tkv_score {
    double bits_k, bits_v; /* per kept value, every byte counted */
    double tokens_seen, tokens_kept;
    double resident_bytes;
    double ratio;      /* what the seen tokens take as halves, over resident_bytes */
    double perplexity; /* of all tokens but the answers */
    double kl;         /* nats per token, from the reference configuration */
    double top1;       /* percent of tokens with the same likeliest successor as the reference */
    double recall;     /* percent of answer tokens that are the model's first choice */
    double tokens_per_s;
};

struct tkv_scorer {
    const struct tkv_engine *engine;
    const struct tkv_recall *texts; /* [n_texts] */
    size_t n_texts;
    size_t chunk_tokens;
    float **reference; /* [n_texts]: final states of the reference, once it has run */
    /* Told after every chunk; may be NULL. */
    void (*progress)(void *ctx, size_t done, size_t total);
    void *progress_ctx;
};

/* texts are views. 0, or -1 with a text. */
int tkv_scorer_init(struct tkv_scorer *s, const struct tkv_engine *engine,
                    const struct tkv_recall *texts, size_t n_texts, struct tkv_reason *why);
void tkv_scorer_deinit(struct tkv_scorer *s);

/* Run one configuration over all texts. The first one that is run becomes the reference. */
int tkv_scorer_run(struct tkv_scorer *s, const struct tkv_remote_options *options,
                   struct tkv_score *out, struct tkv_reason *why);

#endif /* TKV_TOOLS_SCORE_H */
