/* Two passes: the largest logit, then sums. */
#include "tests/naive.h"

#include <math.h>
#include <stdbool.h>

static bool is_seen(const struct naive *n, size_t key, int32_t position)
{
    const int64_t distance = (int64_t)position - n->key_positions[key];

    return distance >= 0 && (n->window_tokens == 0 || distance < n->window_tokens);
}

static double logit(const struct naive *n, uint32_t kv_head, size_t key, const float *q)
{
    const uint32_t dim = n->shape.head_dim_k;
    const float *k = n->k + (key * n->shape.n_kv_heads + kv_head) * dim;
    double sum = 0;

    for (uint32_t i = 0; i < dim; i++)
        sum += (double)q[i] * k[i];
    sum *= n->scale;
    return n->softcap > 0 ? n->softcap * tanh(sum / n->softcap) : sum;
}

double naive_attend(const struct naive *n, uint32_t head, int32_t position, const float *q,
                    double *out)
{
    const uint32_t kv_head = head / tkv_group(&n->shape);
    const uint32_t dim = n->shape.head_dim_v;
    double max = n->sinks ? n->sinks[head] : -INFINITY;
    double sum = 0;

    for (size_t t = 0; t < n->n_keys; t++) {
        if (is_seen(n, t, position))
            max = fmax(max, logit(n, kv_head, t, q));
    }
    for (uint32_t i = 0; i < dim; i++)
        out[i] = 0;
    if (n->sinks)
        sum += exp(n->sinks[head] - max);
    for (size_t t = 0; t < n->n_keys; t++) {
        const float *v = n->v + (t * n->shape.n_kv_heads + kv_head) * dim;
        double w;

        if (!is_seen(n, t, position))
            continue;
        w = exp(logit(n, kv_head, t, q) - max);
        sum += w;
        for (uint32_t i = 0; i < dim; i++)
            out[i] += w * v[i];
    }
    for (uint32_t i = 0; i < dim; i++)
        out[i] /= sum;
    return max + log(sum);
}
