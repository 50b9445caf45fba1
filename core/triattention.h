/*
 * TriAttention (arXiv 2604.04921): how much a cached key is likely to be wanted by
 * queries yet to come, from calibrated query statistics.
 *
 * In its folded form the score of a cached, already rotated key k for query head h
 * at round position N is
 *
 *     S_h(k) = <w_h(N), k> + sum over bands f of u_{h,f} |k_f|
 *
 * w_h(N) is the mean query turned to the offsets N + delta and averaged: a virtual
 * query, so that scoring is the same dot product as attention. u is constant: the
 * second term is computed once, when the key is written, from the exact key.
 * With aggregation `max` there is one virtual query per offset, and the first term is the
 * largest of their dot products (not an average, hence not folded).
 *
 * Paper equations 6-13. Positions never enter: the key carries its own rotation.
 * Tables are made in double and rounded to float once.
 */
#ifndef TKV_CORE_TRIATTENTION_H
#define TKV_CORE_TRIATTENTION_H

#include "core/rope.h"
#include "core/types.h"

struct tkv_kernels;

enum tkv_aggregation { TKV_AGGREGATE_MEAN = 0, TKV_AGGREGATE_MAX = 1 };

enum { TKV_MAX_OFFSETS = 32 };

struct tkv_tri_params {
    uint32_t offset_max; /* largest offset, >= 1; offsets are the powers of two up to it */
    enum tkv_aggregation aggregation;
    bool disable_mlr;  /* ablation: weigh band norms by E|q| instead of E|q| - |E q| */
    bool disable_trig; /* ablation: only the norm term */
};

/* Calibrated statistics of one query head: mean complex query and mean magnitude per band,
 * pre-RoPE, after q_norm, without attention scaling. Views; [n_bands] each. */
struct tkv_tri_stats {
    const float *mean_re;
    const float *mean_im;
    const float *mean_abs;
};

/* What depends on the model's RoPE and the parameters only. */
struct tkv_tri_fold {
    struct tkv_tri_params params;
    uint32_t n_offsets;
    uint32_t n_queries; /* virtual queries per head: 1, or n_offsets with `max`; 0 w/o trig */
    double offset[TKV_MAX_OFFSETS];
    double mean_re[TKV_MAX_BANDS]; /* G_f = mean over offsets of exp(i delta inv_freq) */
    double mean_im[TKV_MAX_BANDS];
};

/* NULL, or what is wrong with the parameters. */
const char *tkv_tri_fold_init(struct tkv_tri_fold *fold, const struct tkv_rope *rope,
                              const struct tkv_tri_params *params);

/* What mean queries are turned by, common to all heads, at round position n_seen (tokens seen so far =
 * position of the next query): turns[n_queries][2][n_bands]. Then w[n_queries][head_dim], the virtual
 * queries of one head. */
void tkv_tri_turns(const struct tkv_tri_fold *fold, const struct tkv_rope *rope, int64_t n_seen,
                   double *turns);
void tkv_tri_turn_queries(const struct tkv_tri_fold *fold, const struct tkv_rope *rope,
                          const struct tkv_tri_stats *stats, const double *turns, float *w);

/* u[n_bands]: weights of the band norms of cached (scaled) keys. */
void tkv_tri_norm_weights(const struct tkv_tri_fold *fold, const struct tkv_rope *rope,
                          const struct tkv_tri_stats *stats, float *u);

/* norms[n_bands] = |k_f| of a cached key; and sum u_f norms_f, accumulated in double. */
void tkv_band_norms(const struct tkv_rope *rope, const float *key, float *norms);
float tkv_tri_norm_term(const float *u, const float *norms, uint32_t n_bands);

/* The score from the dot products of the virtual queries with the key and the norm term. */
float tkv_tri_score(const struct tkv_tri_fold *fold, const float *dots, float norm_term);

/* dst[n] = the larger of itself and the scores row[n]; as z-scores if so wanted: (s - mean) /
 * max(std, 1e-6), population std, in double, two passes. n = 0 is allowed. */
void tkv_tri_fold_row(const struct tkv_kernels *kn, float *dst, const float *row, size_t n,
                      bool normalize);

#endif /* TKV_CORE_TRIATTENTION_H */
