/*
 * Statistics of a model's queries, for TriAttention: mean complex query and mean
 * magnitude of every band, before RoPE, after q_norm, without attention scaling
 * (arXiv 2604.04921). Sums are double.
 */
#ifndef TKV_TOOLS_CALIBRATION_H
#define TKV_TOOLS_CALIBRATION_H

#include "tools/model.h"

struct tkv_calibration {
    struct tkv_rope rope;
    uint32_t n_layers;
    uint32_t n_q_heads;
    uint32_t n_bands;
    uint64_t n_tokens; /* seen by the first layer */
    double *sums;      /* [layer][q_head][re, im, abs][band] */
    const struct tkv_exec *exec;
};

/* 0, or -1 with a text. exec (NULL: one thread) outlives it. */
int tkv_calibration_init(struct tkv_calibration *c, const struct tkv_model_config *model,
                         const struct tkv_exec *exec, struct tkv_reason *why);
void tkv_calibration_deinit(struct tkv_calibration *c);

/* The hook to put into the model; valid as long as c. */
struct tkv_query_hook tkv_calibration_hook(struct tkv_calibration *c);

/* Floats of the statistics, and the statistics: [layer][q_head][mean_re, mean_im, mean_abs][band].
 * mean_abs is rounded such that it is not below the magnitude of the mean as written. */
size_t tkv_calibration_n_floats(const struct tkv_calibration *c);
void tkv_calibration_means(const struct tkv_calibration *c, float *means);

/* Concentration R = |mean| / mean_abs over all bands: 1 for queries that are all alike. */
struct tkv_concentration {
    double median;
    double share_above_095;
};

/* -1 with a text if memory is short. */
int tkv_calibration_concentration(const struct tkv_calibration *c, struct tkv_concentration *out,
                                  struct tkv_reason *why);

#endif /* TKV_TOOLS_CALIBRATION_H */
