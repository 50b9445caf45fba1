/*
 * Scores of cached tokens by what is seen of them, without calibrated statistics: position
 * (StreamingLLM, arXiv 2309.17453), observed attention (H2O, arXiv 2306.14048; SnapKV,
 * arXiv 2404.14469) and novelty of the key (KeyDiff, arXiv 2504.15364). Higher stays.
 * Which tokens are candidates, and where their keys lie, is left to the caller; so is the
 * selection (core/select.h). TriAttention is in core/triattention.h.
 */
#ifndef TKV_CORE_POLICY_H
#define TKV_CORE_POLICY_H

#include "core/types.h"

struct tkv_attn_params;
struct tkv_kernels;

/* scores[n] = 0, 1, 2, ...: the newest are the best. Exact up to 2^24 tokens. */
void tkv_score_recency(float *scores, size_t n);

/*
 * What a query gives to the keys it sees: mass[t] += exp(logit(dots[t]) - lse) for those of the
 * n <= 64 keys that the query at `position` sees, with the rules of core/attention.h. dots[64] are
 * plain dot products, spoiled here; lse is that of the whole row, so that the masses of all tokens
 * add up to one.
 */
void tkv_add_mass(const struct tkv_kernels *kn, const struct tkv_attn_params *a, float *dots,
                  float lse, int32_t position, const int32_t *key_positions, size_t n, float *mass);

/* out[i] = mean of the at most `width` (odd) neighbours of in[i], itself in their middle. */
void tkv_pool_scores(float *out, const float *in, size_t n, size_t width);

/*
 * Novelty is minus the cosine of a key and the mean direction of all keys. Keys come as tiles
 * [dim][64] of n <= 64 keys, in any orthogonal domain that is the same for all: first every
 * tile adds its unit keys to sum[dim], then every tile's scores[n] are made from the whole sum.
 */
void tkv_add_directions(float *sum, const float *tile, size_t dim, size_t n);
void tkv_score_novelty(float *scores, const float *sum, const float *tile, size_t dim, size_t n);

#endif /* TKV_CORE_POLICY_H */
