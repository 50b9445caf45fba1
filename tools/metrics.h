/* What a model's logits say about a text, and how two models' logits differ. In double. */
#ifndef TKV_TOOLS_METRICS_H
#define TKV_TOOLS_METRICS_H

#include <stddef.h>
#include <stdint.h>

#include "core/types.h"

/* -log softmax(logits)[target], nats. */
double tkv_metrics_loss(const float *logits, size_t n_vocab, int32_t target);

/* KL(P || Q) of the two softmax distributions, nats. */
double tkv_metrics_kl(const float *p, const float *q, size_t n_vocab);

/* The index of the largest logit, the lowest of equals. */
int32_t tkv_metrics_top1(const float *logits, size_t n_vocab);

/* Sums over tokens; start from zero. */
struct tkv_metrics {
    size_t n_tokens;
    double loss;
    size_t n_compared;
    double kl;
    size_t n_same_top1;
};

/*
 * Add n tokens: logits[n][n_vocab], targets[n]; other[n][n_vocab] is the judge that KL and
 * top-1 agreement compare with, or NULL. losses[n], if not NULL, receives each token's loss.
 */
struct tkv_metrics_batch {
    const float *logits;
    const float *other;
    const int32_t *targets;
    size_t n;
    size_t n_vocab;
    double *losses;
};

void tkv_metrics_add(struct tkv_metrics *m, const struct tkv_metrics_batch *batch,
                     const struct tkv_exec *exec);

#endif /* TKV_TOOLS_METRICS_H */
