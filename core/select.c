/*
 * Choosing the tokens that stay: elementwise folds of score rows, and the k
 * largest of a row by a radix search for the k-th largest value. The search is
 * linear in n whatever the scores are, and needs no sort: one last pass in index
 * order gives both the ascending output and the rule that ties go to the lower
 * index. Which rows to fold into which is left to the caller.
 */
#include "core/select.h"

#include <string.h>

void tkv_fold_max(float *dst, const float *src, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        /* dst != dst: a NaN counts as lowest, so anything replaces it. */
        if (src[i] > dst[i] || dst[i] != dst[i])
            dst[i] = src[i];
    }
}

void tkv_fold_sum(float *dst, const float *src, float weight, size_t n)
{
    for (size_t i = 0; i < n; i++)
        dst[i] += src[i] * weight;
}

/*
 * An unsigned number in the order of the scores:
 *
 *   NaN 0 < -inf 0x007fffff < ... < -tiny < 0 0x80000000 < tiny < ... < +inf 0xff800000
 *
 * Floats compare as sign and magnitude, so a negative one has all its bits turned
 * over and another its sign bit only. Adding +0 turns -0 into +0: they tie.
 */
static uint32_t order_key(float score)
{
    uint32_t bits;

    if (score != score)
        return 0;
    score += 0.0f;
    memcpy(&bits, &score, sizeof bits);
    return bits & UINT32_C(0x80000000) ? ~bits : bits | UINT32_C(0x80000000);
}

/*
 * The k-th largest key, 1 <= k <= n, one byte at a time from the top: count the
 * bytes of the keys that share the prefix found so far, and walk down from 255
 * until the count reaches k. *n_ties = how many keys equal to it belong to the k.
 */
static uint32_t kth_largest(const uint32_t *keys, size_t n, size_t k, size_t *n_ties)
{
    uint32_t prefix = 0;
    uint32_t mask = 0;

    for (unsigned shift = 32; shift > 0;) {
        size_t counts[256] = {0};
        unsigned byte = 255;

        shift -= 8;
        for (size_t i = 0; i < n; i++) {
            if ((keys[i] & mask) == prefix)
                counts[keys[i] >> shift & 255]++;
        }
        while (counts[byte] < k)
            k -= counts[byte--];
        prefix |= (uint32_t)byte << shift;
        mask |= UINT32_C(255) << shift;
    }
    *n_ties = k;
    return prefix;
}

size_t tkv_select_top(const float *scores, size_t n, size_t k, uint32_t *keep, uint32_t *scratch)
{
    size_t n_kept = 0;
    size_t n_ties = 0;
    uint32_t least;

    if (k > n)
        k = n;
    if (k == 0)
        return 0;
    for (size_t i = 0; i < n; i++)
        scratch[i] = order_key(scores[i]);
    least = kth_largest(scratch, n, k, &n_ties);
    for (size_t i = 0; i < n; i++) {
        if (scratch[i] > least) {
            keep[n_kept++] = (uint32_t)i;
        } else if (scratch[i] == least && n_ties > 0) {
            keep[n_kept++] = (uint32_t)i;
            n_ties--;
        }
    }
    return n_kept;
}
