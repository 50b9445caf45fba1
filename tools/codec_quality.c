#include "tools/codec_quality.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/kernels.h"

enum { N_QUERIES = 64 }; /* per query head */

/* One KV head's share. */
struct head {
    double k_error, v_error, kl, top1, out_error;
    int failed;
};

struct work {
    const struct tkv_recorded *r;
    const struct tkv_coder *coder;
    const struct tkv_kernels *kn;
    uint32_t layer;
    struct head *heads;
};

/* Working memory of a head. */
struct buffers {
    float *k, *v;   /* [n_tokens][head_dim], coded and decoded */
    double *p, *p2; /* [n_tokens] */
    void *block;
    uint8_t mean[TKV_MAX_MEAN_BYTES];
};

static double relative_error(const float *x, const float *y, size_t n_vectors, size_t dim)
{
    double sum = 0;

    for (size_t i = 0; i < n_vectors; i++) {
        double error = 0, norm = 0;

        for (size_t d = i * dim; d < (i + 1) * dim; d++) {
            error += ((double)x[d] - (double)y[d]) * ((double)x[d] - (double)y[d]);
            norm += (double)x[d] * (double)x[d];
        }
        sum += norm > 0 ? error / norm : 0;
    }
    return sum / (double)n_vectors;
}

/* Through the codec and back, a block at a time. */
static void pass_through(const struct work *w, struct buffers *b, const float *k, const float *v)
{
    const size_t dim = w->r->head_dim;

    for (size_t first = 0; first < w->r->n_tokens; first += TKV_BLOCK_TOKENS) {
        const size_t left = w->r->n_tokens - first;
        const size_t n = left < TKV_BLOCK_TOKENS ? left : TKV_BLOCK_TOKENS;

        tkv_code_mean(w->coder, w->kn, TKV_KEYS, tkv_floats(k + first * dim, dim), n, b->mean);
        tkv_encode_keys(w->coder, w->kn, b->mean, tkv_floats(k + first * dim, dim), n, b->block);
        for (size_t t = 0; t < n; t++)
            tkv_decode_key(w->coder, w->kn, b->block, t, b->k + (first + t) * dim);
        if (w->coder->codec->qjl)
            continue;
        tkv_code_mean(w->coder, w->kn, TKV_VALUES, tkv_floats(v + first * dim, dim), n, b->mean);
        tkv_encode_values(w->coder, w->kn, b->mean, tkv_floats(v + first * dim, dim), n, b->block);
        for (size_t t = 0; t < n; t++)
            tkv_decode_value(w->coder, w->kn, b->block, t, b->v + (first + t) * dim);
    }
}

/* p[n] = softmax of the logits; returns the index of the largest. */
static size_t attention_weights(const struct work *w, const float *q, const float *k, size_t n,
                                double *p)
{
    const size_t dim = w->r->head_dim;
    size_t best = 0;
    double max, sum = 0;

    for (size_t t = 0; t < n; t++) {
        p[t] = (double)w->kn->dot(q, k + t * dim, dim) / sqrt((double)dim);
        best = p[t] > p[best] ? t : best;
    }
    max = p[best];
    for (size_t t = 0; t < n; t++)
        sum += p[t] = exp(p[t] - max);
    for (size_t t = 0; t < n; t++)
        p[t] /= sum;
    return best;
}

static double output_error(const struct work *w, const double *p, const float *v, const float *v2,
                           size_t n)
{
    const size_t dim = w->r->head_dim;
    double error = 0, norm = 0;

    for (size_t d = 0; d < dim; d++) {
        double o = 0, o2 = 0;

        for (size_t t = 0; t < n; t++) {
            o += p[t] * (double)v[t * dim + d];
            o2 += p[t] * (double)v2[t * dim + d];
        }
        error += (o - o2) * (o - o2);
        norm += o * o;
    }
    return norm > 0 ? sqrt(error / norm) : 0;
}

static void compare_query(const struct work *w, const struct buffers *b, struct head *h,
                          const float *q, const float *k, const float *v, size_t n)
{
    const size_t best = attention_weights(w, q, k, n, b->p);
    const size_t best2 = attention_weights(w, q, b->k, n, b->p2);

    for (size_t t = 0; t < n; t++)
        if (b->p[t] > 0)
            h->kl += b->p[t] * log(b->p[t] / fmax(b->p2[t], 1e-300));
    h->top1 += best == best2;
    if (!w->coder->codec->qjl)
        h->out_error += output_error(w, b->p, v, b->v, n);
}

static void compare_head(const struct work *w, uint32_t kv_head, struct buffers *b)
{
    const struct tkv_recorded *r = w->r;
    const uint32_t group = r->n_q_heads / r->n_kv_heads;
    const float *k = tkv_recorded_head(r, r->k, r->n_kv_heads, w->layer, kv_head);
    const float *v = tkv_recorded_head(r, r->v, r->n_kv_heads, w->layer, kv_head);
    struct head *h = &w->heads[kv_head];

    pass_through(w, b, k, v);
    h->k_error = relative_error(k, b->k, r->n_tokens, r->head_dim);
    h->v_error = w->coder->codec->qjl ? 0 : relative_error(v, b->v, r->n_tokens, r->head_dim);
    for (uint32_t g = 0; g < group; g++)
        for (uint32_t i = 0; i < N_QUERIES; i++) {
            const size_t at = r->n_tokens / 2 + (size_t)i * (r->n_tokens / 2 - 1) / N_QUERIES;
            const float *q =
                tkv_recorded_head(r, r->q, r->n_q_heads, w->layer, kv_head * group + g) +
                at * r->head_dim;

            compare_query(w, b, h, q, k, v, at + 1);
        }
}

static void run_head(void *arg, size_t kv_head)
{
    const struct work *w = arg;
    const size_t n = (size_t)w->r->n_tokens * w->r->head_dim;
    const size_t block_bytes = w->coder->k_block_bytes > w->coder->v_block_bytes
                                   ? w->coder->k_block_bytes
                                   : w->coder->v_block_bytes;
    struct buffers b = {.k = calloc(2 * n, sizeof(float)),
                        .p = calloc(2 * (size_t)w->r->n_tokens, sizeof(double)),
                        .block = calloc(1, block_bytes)};

    if (b.k && b.p && b.block) {
        b.v = b.k + n;
        b.p2 = b.p + w->r->n_tokens;
        compare_head(w, (uint32_t)kv_head, &b);
    } else {
        w->heads[kv_head].failed = 1;
    }
    free(b.k);
    free(b.p);
    free(b.block);
}

int tkv_codec_quality(const struct tkv_recorded *r, uint32_t layer, const struct tkv_coder *coder,
                      const struct tkv_kernels *kn, const struct tkv_exec *exec,
                      struct tkv_codec_quality *out, struct tkv_reason *why)
{
    const double n_queries = (double)r->n_q_heads * N_QUERIES;
    struct work w = {.r = r, .coder = coder, .kn = kn, .layer = layer};
    int failed = 0;

    w.heads = calloc(r->n_kv_heads, sizeof(*w.heads));
    if (!w.heads)
        return tkv_reason_set(why, "out of memory");
    tkv_exec_run(exec, r->n_kv_heads, run_head, &w);
    *out = (struct tkv_codec_quality){.bits = 8.0 * (double)coder->k_block_bytes /
                                              TKV_BLOCK_TOKENS / (double)r->head_dim};
    for (uint32_t h = 0; h < r->n_kv_heads; h++) {
        out->k_rel_mse += w.heads[h].k_error / r->n_kv_heads;
        out->v_rel_mse += w.heads[h].v_error / r->n_kv_heads;
        out->kl += w.heads[h].kl / n_queries;
        out->top1 += 100 * w.heads[h].top1 / n_queries;
        out->out_error += w.heads[h].out_error / n_queries;
        failed |= w.heads[h].failed;
    }
    free(w.heads);
    return failed ? tkv_reason_set(why, "out of memory") : 0;
}
