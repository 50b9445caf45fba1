/* The steps of online softmax that attention over tiles and over codes share. */
#ifndef TKV_CORE_ATTENTION_PRIV_H
#define TKV_CORE_ATTENTION_PRIV_H

#include "core/attention.h"

/* The lanes of a tile that a query sees. Positions ascend, so they are neighbours. */
struct tkv_span {
    uint32_t begin;
    uint32_t end;
};

struct tkv_span tkv_seen_lanes(const struct tkv_attn_params *a, const int32_t *key_positions,
                               size_t n, int64_t position);

/* Row r saw a logit that is not finite. */
void tkv_spoil_row(struct tkv_partial *p, size_t r);
bool tkv_span_is_finite(const float *x, struct tkv_span s);

/* x[64] = cap * tanh(x / cap). */
void tkv_cap_logits(const struct tkv_kernels *kn, float *x, float cap);

/* Lanes of x[64] outside the span become -INFINITY; returns the largest of the others. */
float tkv_mask_logits(float *x, struct tkv_span s);

/* Bring row r to a larger maximum. */
void tkv_raise_max(struct tkv_partial *p, size_t r, float max);

#endif /* TKV_CORE_ATTENTION_PRIV_H */
