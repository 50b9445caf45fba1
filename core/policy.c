/* Scores from positions, from observed attention and from the keys themselves. */
#include "core/policy.h"

#include <math.h>

#include "core/attention_priv.h"
#include "core/kernels.h"

void tkv_score_recency(float *scores, size_t n)
{
    for (size_t i = 0; i < n; i++)
        scores[i] = (float)i;
}

void tkv_add_mass(const struct tkv_kernels *kn, const struct tkv_attn_params *a, float *dots,
                  float lse, int32_t position, const int32_t *key_positions, size_t n, float *mass)
{
    const struct tkv_span s = tkv_seen_lanes(a, key_positions, n, position);

    if (s.begin >= s.end)
        return;
    for (size_t t = 0; t < TKV_BLOCK_TOKENS; t++)
        dots[t] *= a->scale;
    if (a->softcap > 0)
        tkv_cap_logits(kn, dots, a->softcap);
    kn->exp_sum(dots + s.begin, s.end - s.begin, lse);
    for (size_t t = s.begin; t < s.end; t++)
        mass[t] += dots[t];
}

void tkv_pool_scores(float *out, const float *in, size_t n, size_t width)
{
    const size_t reach = width / 2;

    for (size_t i = 0; i < n; i++) {
        const size_t first = i < reach ? 0 : i - reach;
        const size_t end = i + reach + 1 < n ? i + reach + 1 : n;
        float sum = 0;

        for (size_t j = first; j < end; j++)
            sum += in[j];
        out[i] = sum / (float)(end - first);
    }
}

/* inverse[64] = 1 / |key| of the first n lanes, 0 of a zero key and of the other lanes. */
static void inverse_norms(float *inverse, const float *tile, size_t dim, size_t n)
{
    float square[TKV_BLOCK_TOKENS] = {0};

    for (size_t i = 0; i < dim; i++)
        for (size_t t = 0; t < TKV_BLOCK_TOKENS; t++)
            square[t] += tile[i * TKV_BLOCK_TOKENS + t] * tile[i * TKV_BLOCK_TOKENS + t];
    for (size_t t = 0; t < TKV_BLOCK_TOKENS; t++)
        inverse[t] = t < n && square[t] > 0 ? 1 / sqrtf(square[t]) : 0;
}

void tkv_add_directions(float *sum, const float *tile, size_t dim, size_t n)
{
    float inverse[TKV_BLOCK_TOKENS];

    inverse_norms(inverse, tile, dim, n);
    for (size_t i = 0; i < dim; i++) {
        float own = 0;

        for (size_t t = 0; t < n; t++)
            own += tile[i * TKV_BLOCK_TOKENS + t] * inverse[t];
        sum[i] += own;
    }
}

void tkv_score_novelty(float *scores, const float *sum, const float *tile, size_t dim, size_t n)
{
    float inverse[TKV_BLOCK_TOKENS], dots[TKV_BLOCK_TOKENS] = {0};

    inverse_norms(inverse, tile, dim, n);
    for (size_t i = 0; i < dim; i++)
        for (size_t t = 0; t < TKV_BLOCK_TOKENS; t++)
            dots[t] += sum[i] * tile[i * TKV_BLOCK_TOKENS + t];
    for (size_t t = 0; t < n; t++)
        scores[t] = -dots[t] * inverse[t];
}
