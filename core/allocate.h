/*
 * Who gets how much of a budget of tokens: layers and KV heads share a sum, by depth, by what is known of
 * them, or by what their scores say. What is shared is beside the tokens that all of them keep
 * (pinned and recent ones); which tokens are kept in the end is left to core/select.h.
 */
#ifndef TKV_CORE_ALLOCATE_H
#define TKV_CORE_ALLOCATE_H

#include "core/types.h"

enum tkv_allocator {
    TKV_UNIFORM = 0,       /* the same for all */
    TKV_PYRAMID = 1,       /* less with depth: PyramidKV, arXiv 2406.02069 */
    TKV_CONCENTRATION = 2, /* more for heads whose queries are spread */
    TKV_ADAPTIVE = 3,      /* by the scores of a layer's heads together: Ada-KV, arXiv 2407.11550 */
};

/*
 * PyramidKV with its beta of 20: a mean of B tokens becomes
 *
 *   min = B / 20, max = 2 B - min; if max > most: max = most, min = 2 B - max
 *   out[l] = max - l (max - min) / (n_layers - 1)
 *
 * rounded so that the sum is n_layers * B. most >= mean.
 */
void tkv_allocate_pyramid(uint32_t *out, uint32_t n_layers, uint32_t mean, uint32_t most);

/* out[n] = least + a part of what is left of total that is as large as the weight (>= 0, finite); the sum
 * is total >= n * least. With no weight at all, equal parts. */
void tkv_allocate_by_weight(uint32_t *out, const float *weights, uint32_t n, uint64_t total,
                            uint32_t least);

/*
 * One minus the mean resultant length of a KV head's queries: stats [group][3][n_bands] as profiles have
 * them (mean_re, mean_im, mean_abs), R = sum |mean| / sum mean_abs over the bands and the group.
 */
float tkv_spread_of_queries(const float *stats, uint32_t group, uint32_t n_bands);

/* Scores of the heads of a layer, higher stays. */
struct tkv_score_row {
    const float *scores;
    uint32_t n;
};

/*
 * out[n_rows] = how many each keeps of a total: its own among the best of all rows, and at least `least`
 * (or all it has), as Ada-KV guards a floor for each head. The sum is total, or all there are if
 * these are fewer; total >= n_rows * least. Ties go to the lower row; NaN is lowest.
 */
void tkv_allocate_adaptive(uint32_t *out, const struct tkv_score_row *rows, uint32_t n_rows,
                           uint64_t total, uint32_t least);

#endif /* TKV_CORE_ALLOCATE_H */
