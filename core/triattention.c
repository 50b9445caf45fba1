/*
 * TriAttention scores in folded form (arXiv 2604.04921, equations 6-11). What is
 * constant for a model, for a round and for a key is computed where it becomes
 * constant, so that scoring a key is a dot product and an addition. Selection
 * (equations 12-13) is in core/select.h; dot products are kernels.
 */
#include "core/triattention.h"

#include <math.h>

#include "core/kernels.h"

const char *tkv_tri_fold_init(struct tkv_tri_fold *fold, const struct tkv_rope *rope,
                              const struct tkv_tri_params *params)
{
    if (params->offset_max < 1)
        return "offset_max must be at least 1";
    if (params->aggregation != TKV_AGGREGATE_MEAN && params->aggregation != TKV_AGGREGATE_MAX)
        return "aggregation must be mean or max";
    *fold = (struct tkv_tri_fold){.params = *params};
    /* 64 bits: the power after the largest of 32 bits must compare, not wrap. */
    for (uint64_t delta = 1; delta <= params->offset_max; delta *= 2)
        fold->offset[fold->n_offsets++] = (double)delta;
    if (!params->disable_trig)
        fold->n_queries = params->aggregation == TKV_AGGREGATE_MAX ? fold->n_offsets : 1;

    for (uint32_t f = 0; f < rope->n_bands; f++) {
        double re = 0;
        double im = 0;

        for (uint32_t i = 0; i < fold->n_offsets; i++) {
            const double phase = fold->offset[i] * (double)rope->inv_freq[f];

            re += cos(phase);
            im += sin(phase);
        }
        fold->mean_re[f] = re / fold->n_offsets;
        fold->mean_im[f] = im / fold->n_offsets;
    }
    return NULL;
}

/*
 * A score is a logit, and a logit carries the attention scaling s twice: once from
 * the query, once from the key. A cached key already has its own, so weights that
 * meet cached keys need one s more; bands that are not turned have none.
 */
static double band_scaling(const struct tkv_rope *rope, uint32_t f)
{
    return f < rope->rotary_dim / 2 ? (double)rope->attention_scaling : 1.0;
}

/*
 * What one virtual query is turned by: for each band the angle of `position`, times (re, im):
 *
 *     (re_f + i im_f) exp(i position inv_freq_f)
 *
 * A missing re/im means 1. The phase is exact as long as position * inv_freq fits
 * the 53 bits of a double (a position below 2^29), and cos and sin reduce it in
 * full precision; in float it would be off by radians at long contexts.
 */
static void make_turn(const struct tkv_rope *rope, double position, const double *re,
                      const double *im, double *turn)
{
    for (uint32_t f = 0; f < rope->n_bands; f++) {
        const double phase = position * (double)rope->inv_freq[f];
        const double turn_re = cos(phase);
        const double turn_im = sin(phase);

        turn[f] = re ? re[f] * turn_re - im[f] * turn_im : turn_re;
        turn[rope->n_bands + f] = re ? re[f] * turn_im + im[f] * turn_re : turn_im;
    }
}

/* The mean query c of each band, turned and scaled: v_f = s c_f turn_f. */
static void turn_mean_query(const struct tkv_rope *rope, const struct tkv_tri_stats *stats,
                            const double *turn, float *w)
{
    for (uint32_t f = 0; f < rope->n_bands; f++) {
        const double re = turn[f], im = turn[rope->n_bands + f];
        const double c_re = (double)stats->mean_re[f];
        const double c_im = (double)stats->mean_im[f];
        const double s = band_scaling(rope, f);
        uint32_t at_re;
        uint32_t at_im;

        tkv_rope_band(rope, f, &at_re, &at_im);
        w[at_re] = (float)(s * (c_re * re - c_im * im));
        w[at_im] = (float)(s * (c_re * im + c_im * re));
    }
}

/* Of virtual query i. */
static void make_turn_of(const struct tkv_tri_fold *fold, const struct tkv_rope *rope,
                         int64_t n_seen, uint32_t i, double *turn)
{
    const double position = (double)n_seen;

    if (fold->params.aggregation == TKV_AGGREGATE_MEAN)
        make_turn(rope, position, fold->mean_re, fold->mean_im, turn);
    else
        make_turn(rope, position + fold->offset[i], NULL, NULL, turn);
}

void tkv_tri_turns(const struct tkv_tri_fold *fold, const struct tkv_rope *rope, int64_t n_seen,
                   double *turns)
{
    for (uint32_t i = 0; i < fold->n_queries; i++)
        make_turn_of(fold, rope, n_seen, i, turns + (size_t)i * 2 * rope->n_bands);
}

void tkv_tri_turn_queries(const struct tkv_tri_fold *fold, const struct tkv_rope *rope,
                          const struct tkv_tri_stats *stats, const double *turns, float *w)
{
    for (uint32_t i = 0; i < fold->n_queries; i++)
        turn_mean_query(rope, stats, turns + (size_t)i * 2 * rope->n_bands,
                        w + (size_t)i * rope->head_dim);
}

/*
 * u_f = s (E|q_f| - |E q_f|), equations 7-9: what the queries have beyond their
 * mean. Never negative but for the rounding of the statistics, and then by so
 * little that it is left as it is.
 */
void tkv_tri_norm_weights(const struct tkv_tri_fold *fold, const struct tkv_rope *rope,
                          const struct tkv_tri_stats *stats, float *u)
{
    for (uint32_t f = 0; f < rope->n_bands; f++) {
        const double c_re = (double)stats->mean_re[f];
        const double c_im = (double)stats->mean_im[f];
        double weight = (double)stats->mean_abs[f];

        if (!fold->params.disable_mlr)
            weight -= sqrt(c_re * c_re + c_im * c_im);
        u[f] = (float)(band_scaling(rope, f) * weight);
    }
}

void tkv_band_norms(const struct tkv_rope *rope, const float *key, float *norms)
{
    for (uint32_t f = 0; f < rope->n_bands; f++) {
        uint32_t re;
        uint32_t im;

        tkv_rope_band(rope, f, &re, &im);
        norms[f] = sqrtf(key[re] * key[re] + key[im] * key[im]);
    }
}

float tkv_tri_norm_term(const float *u, const float *norms, uint32_t n_bands)
{
    double sum = 0;

    for (uint32_t f = 0; f < n_bands; f++)
        sum += (double)u[f] * (double)norms[f];
    return (float)sum;
}

float tkv_tri_score(const struct tkv_tri_fold *fold, const float *dots, float norm_term)
{
    float trig;

    if (fold->n_queries == 0)
        return norm_term;
    trig = dots[0];
    for (uint32_t i = 1; i < fold->n_queries; i++)
        trig = dots[i] > trig ? dots[i] : trig;
    return trig + norm_term;
}

/* Two passes: the norm term makes the mean several times the deviation, and a
 * one-pass sum of squares would cancel. */
void tkv_tri_fold_row(const struct tkv_kernels *kn, float *dst, const float *row, size_t n,
                      bool normalize)
{
    double sums[2], mean = 0, std = 1;

    if (normalize && n > 0) {
        kn->moments(sums, row, n, 0);
        mean = sums[0] / (double)n;
        kn->moments(sums, row, n, mean);
        std = sqrt(sums[1] / (double)n);
    }
    kn->fold_scores(dst, row, n, mean, 1 / (std < 1e-6 ? 1e-6 : std));
}
