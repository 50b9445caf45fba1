/*
 * Choosing the tokens that stay: elementwise folds of score rows, and the k
 * largest of a row by halving the range of the k-th largest value. The search is
 * linear in n whatever the scores are, and needs no sort: one last pass in index
 * order gives both the ascending output and the rule that ties go to the lower
 * index. Which rows to fold into which is left to the caller.
 */
#include "core/select.h"

#include "core/kernels.h"

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

typedef float floats4 __attribute__((vector_size(16)));
typedef int32_t ints4 __attribute__((vector_size(16)));

/* tkv_score_order of all. */
static void order_keys(uint32_t *keys, const float *scores, size_t n)
{
    size_t i = 0;

    for (; i + 4 <= n; i += 4) {
        floats4 score;
        ints4 key;

        memcpy(&score, scores + i, sizeof(score));
        score += 0.0f;
        key = (ints4)score;
        key = (key ^ ((key < 0) | INT32_MIN)) & (score == score);
        memcpy(keys + i, &key, sizeof(key));
    }
    for (; i < n; i++)
        keys[i] = tkv_score_order(scores[i]);
}

/*
 * A key that k keys are not below, by halving the range in which it must lie: 32 counts at most, and
 * about half of them until one gives k. *n_ties = how many keys equal to it belong to the k.
 */
static uint32_t kth_largest(const struct tkv_kernels *kn, const uint32_t *keys, size_t n, size_t k,
                            size_t *n_ties)
{
    uint32_t low = 0, high = UINT32_MAX;
    size_t n_above = 0; /* keys over high */

    while (low < high) {
        const uint32_t middle = high - (high - low) / 2;
        const size_t count = kn->count_from(keys, n, middle);

        if (count == k) {
            *n_ties = k;
            return middle;
        }
        if (count > k) {
            low = middle;
        } else {
            high = middle - 1;
            n_above = count;
        }
    }
    *n_ties = k - n_above;
    return low;
}

size_t tkv_select_top(const struct tkv_kernels *kn, const float *scores, size_t n, size_t k,
                      uint32_t *keep, uint32_t *scratch)
{
    size_t n_kept = 0;
    size_t n_ties = 0;
    uint32_t least;

    if (k > n)
        k = n;
    if (k == 0)
        return 0;
    order_keys(scratch, scores, n);
    least = kth_largest(kn, scratch, n, k, &n_ties);
    for (size_t i = 0; n_ties == k && n_kept < k; i++) { /* the first that are not below it */
        keep[n_kept] = (uint32_t)i;
        n_kept += scratch[i] >= least;
    }
    for (size_t i = 0; n_kept < k; i++) { /* no branch to guess: which stay is as good as random */
        const size_t tie = (scratch[i] == least) & (n_ties > 0);

        keep[n_kept] = (uint32_t)i;
        n_kept += (scratch[i] > least) | tie;
        n_ties -= tie;
    }
    return n_kept;
}
