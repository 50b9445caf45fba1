/* Attention written down as plainly as possible, in double: the judge of everything faster. */
#ifndef TKV_TESTS_NAIVE_H
#define TKV_TESTS_NAIVE_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>

#include "core/types.h"

/* The larger of worst and |difference|; infinite from a NaN on, which fmax would pass over. */
static inline double naive_worse(double worst, double difference)
{
    return isnan(difference) ? INFINITY : fmax(worst, fabs(difference));
}

/* The keys and values that there are, all tokens of them, and how to look at them. */
struct naive {
    struct tkv_shape shape;
    double scale;
    double softcap;         /* 0: none */
    uint32_t window_tokens; /* 0: none */
    const float *sinks;     /* [n_q_heads] or NULL */
    size_t n_keys;
    const int32_t *key_positions; /* [n_keys] */
    const float *k;               /* [n_keys][n_kv_heads][head_dim_k] */
    const float *v;               /* [n_keys][n_kv_heads][head_dim_v] */
};

/* out[head_dim_v] and the log of the sum of exponentials of query head `head` at `position`. */
double naive_attend(const struct naive *n, uint32_t head, int32_t position, const float *q,
                    double *out);

#endif /* TKV_TESTS_NAIVE_H */
