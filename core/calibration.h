/*
 * Statistics of queries, for TriAttention (arXiv 2604.04921): of every band the mean complex
 * query and the mean magnitude, before RoPE, after q_norm, without attention scaling. Sums are
 * double, so that a million tokens lose nothing; they are the caller's memory, one head being
 * [re, im, abs][n_bands].
 */
#ifndef TKV_CORE_CALIBRATION_H
#define TKV_CORE_CALIBRATION_H

#include "core/rope.h"

/* sums[3][n_bands] += the bands of a head's n_tokens queries before RoPE, each head_dim floats,
 * `stride` floats apart. */
void tkv_calibration_add(const struct tkv_rope *rope, const float *q, size_t stride,
                         size_t n_tokens, double *sums);

/*
 * means[n_heads][3][n_bands] = sums / n_tokens. The mean magnitude is rounded such that it is
 * not below the magnitude of the mean as written, which holds exactly and is checked by readers.
 * n_tokens >= 1.
 */
void tkv_calibration_mean(const double *sums, size_t n_heads, uint32_t n_bands, uint64_t n_tokens,
                          float *means);

/* Concentration R = |mean| / mean_abs of a band, 1 for queries that are all alike; 0 for a band
 * without queries. */
double tkv_concentration(double re, double im, double abs);

/* Of a head's means [3][n_bands]: the mean over its bands, weighted by mean_abs, since a band
 * counts in a score by its magnitude. */
double tkv_head_concentration(const float *means, uint32_t n_bands);

#endif /* TKV_CORE_CALIBRATION_H */
