/* What a codec does to recorded keys and values, and to the attention computed on them. */
#ifndef TKV_TOOLS_CODEC_QUALITY_H
#define TKV_TOOLS_CODEC_QUALITY_H

#include "core/codec.h"
#include "tools/recorded.h"

/* Means over KV heads, tokens and queries of one layer. */
struct tkv_codec_quality {
    double bits;      /* per value: codes and scales of a full block of keys */
    double k_rel_mse; /* |k - k'|^2 / |k|^2 */
    double v_rel_mse; /* 0 for a codec that is for keys only */
    double kl;        /* of attention weights, nats, keys coded */
    double top1;      /* percent of queries whose most attended key stays the same */
    double out_error; /* |o - o'| / |o|, values coded, weights exact */
};

/* Queries are taken evenly from the second half of the tokens, logits scaled by
 * 1 / sqrt(head_dim). exec may be NULL. 0, or -1 with a text. */
int tkv_codec_quality(const struct tkv_recorded *r, uint32_t layer, const struct tkv_coder *coder,
                      const struct tkv_kernels *kn, const struct tkv_exec *exec,
                      struct tkv_codec_quality *out, struct tkv_reason *why);

#endif /* TKV_TOOLS_CODEC_QUALITY_H */
