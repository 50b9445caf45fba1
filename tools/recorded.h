/* Recorded queries, keys and values of a model: <name>.json with the shapes beside raw halves
 * <name>.q.f16 [n_layers][n_q_heads][n_tokens][head_dim], .k.f16 and .v.f16 with n_kv_heads. */
#ifndef TKV_TOOLS_RECORDED_H
#define TKV_TOOLS_RECORDED_H

#include <stddef.h>
#include <stdint.h>

#include "core/types.h"
#include "tools/reason.h"

struct tkv_recorded {
    uint32_t n_layers;
    uint32_t n_q_heads, n_kv_heads, head_dim, n_tokens;
    float *q, *k, *v; /* after RoPE; one allocation, at q */
};

/* Read the recording whose .json is at path. 0, or -1 with a text; deinit in any case. */
int tkv_recorded_init(struct tkv_recorded *r, const char *path, struct tkv_reason *why);
void tkv_recorded_deinit(struct tkv_recorded *r);

/* One head's [n_tokens][head_dim]. */
static inline const float *tkv_recorded_head(const struct tkv_recorded *r, const float *x,
                                             uint32_t n_heads, uint32_t layer, uint32_t head)
{
    return x + ((size_t)layer * n_heads + head) * r->n_tokens * r->head_dim;
}

#endif /* TKV_TOOLS_RECORDED_H */
