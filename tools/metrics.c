/*
 * Cross entropy, KL divergence and top-1 agreement. Each token is computed on its own
 * and the sums are taken in order, so that they do not depend on the threads.
 */
#include "tools/metrics.h"

#include <math.h>

enum { TOKENS_AT_ONCE = 64 };

int32_t tkv_metrics_top1(const float *logits, size_t n_vocab)
{
    size_t best = 0;

    for (size_t i = 1; i < n_vocab; i++) {
        if (logits[i] > logits[best])
            best = i;
    }
    return (int32_t)best;
}

/* log sum exp(logits) */
static double log_sum(const float *logits, size_t n_vocab)
{
    const size_t best = (size_t)tkv_metrics_top1(logits, n_vocab);
    const double max = (double)logits[best];
    double sum = 1; /* the largest itself */

    for (size_t i = 0; i < n_vocab; i++) {
        if (i != best)
            sum += exp((double)logits[i] - max);
    }
    return max + log(sum);
}

double tkv_metrics_loss(const float *logits, size_t n_vocab, int32_t target)
{
    return log_sum(logits, n_vocab) - (double)logits[target];
}

/* sum p (log p - log q), p = exp(logit - log sum) */
double tkv_metrics_kl(const float *p, const float *q, size_t n_vocab)
{
    const double log_p = log_sum(p, n_vocab), log_q = log_sum(q, n_vocab);
    double kl = 0;

    for (size_t i = 0; i < n_vocab; i++) {
        const double lp = (double)p[i] - log_p;

        kl += exp(lp) * (lp - ((double)q[i] - log_q));
    }
    return kl;
}

/* A stretch of a batch and its results. */
struct part {
    const struct tkv_metrics_batch *batch;
    size_t first;
    double loss[TOKENS_AT_ONCE];
    double kl[TOKENS_AT_ONCE];
    bool same[TOKENS_AT_ONCE];
};

static void measure(void *arg, size_t i)
{
    struct part *p = arg;
    const struct tkv_metrics_batch *b = p->batch;
    const float *logits = b->logits + (p->first + i) * b->n_vocab;

    p->loss[i] = tkv_metrics_loss(logits, b->n_vocab, b->targets[p->first + i]);
    if (b->other) {
        const float *other = b->other + (p->first + i) * b->n_vocab;

        p->kl[i] = tkv_metrics_kl(other, logits, b->n_vocab);
        p->same[i] = tkv_metrics_top1(other, b->n_vocab) == tkv_metrics_top1(logits, b->n_vocab);
    }
}

static void add_part(struct tkv_metrics *m, const struct part *p, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        m->n_tokens++;
        m->loss += p->loss[i];
        if (p->batch->losses)
            p->batch->losses[p->first + i] = p->loss[i];
        if (p->batch->other) {
            m->n_compared++;
            m->kl += p->kl[i];
            m->n_same_top1 += p->same[i];
        }
    }
}

void tkv_metrics_add(struct tkv_metrics *m, const struct tkv_metrics_batch *batch,
                     const struct tkv_exec *exec)
{
    struct part part = {.batch = batch};

    for (; part.first < batch->n; part.first += TOKENS_AT_ONCE) {
        const size_t left = batch->n - part.first;
        const size_t n = left < TOKENS_AT_ONCE ? left : TOKENS_AT_ONCE;

        tkv_exec_run(exec, n, measure, &part);
        add_part(m, &part, n);
    }
}
