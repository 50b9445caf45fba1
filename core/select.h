/*
 * From scores to the tokens that stay: the three modes of TriAttention (paper
 * equations 12-13; names as in TensorRT-LLM). Deterministic: ties go to the lower
 * index, output is ascending, NaN counts as lowest.
 */
#ifndef TKV_CORE_SELECT_H
#define TKV_CORE_SELECT_H

#include <string.h>

#include "core/types.h"

struct tkv_kernels;

enum tkv_eviction_mode {
    TKV_PER_LAYER_PERHEAD = 0, /* each (layer, KV head) keeps its own best */
    TKV_PER_HEAD = 1,          /* KV head j keeps the same set in all layers: mean over layers */
    TKV_UNION = 2,             /* one set for all: max over layers and KV heads */
};

/*
 * An unsigned number in the order of the scores:
 *
 *   NaN 0 < -inf 0x007fffff < ... < -tiny < 0 0x80000000 < tiny < ... < +inf 0xff800000
 *
 * Floats compare as sign and magnitude, so a negative one has all its bits turned
 * over and another its sign bit only. Adding +0 turns -0 into +0: they tie.
 */
static inline uint32_t tkv_score_order(float score)
{
    uint32_t bits;

    if (score != score)
        return 0;
    score += 0.0f;
    memcpy(&bits, &score, sizeof bits);
    return bits & UINT32_C(0x80000000) ? ~bits : bits | UINT32_C(0x80000000);
}

/* dst[n] = max(dst, src) and dst += src * weight: the folds over a group, heads and layers. */
void tkv_fold_max(float *dst, const float *src, size_t n);
void tkv_fold_sum(float *dst, const float *src, float weight, size_t n);

/*
 * keep[k] = the indices of the k largest of scores[n], ascending; k > n keeps all.
 * Returns how many were written. scratch[n] is the caller's.
 */
size_t tkv_select_top(const struct tkv_kernels *kn, const float *scores, size_t n, size_t k,
                      uint32_t *keep, uint32_t *scratch);

#endif /* TKV_CORE_SELECT_H */
