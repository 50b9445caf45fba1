/*
 * Exact causal attention in this process, the judge of the daemon's: keys and values
 * stay floats, softmax sums are double, nothing is dropped. Shares no code with the
 * daemon's attention.
 */
#ifndef TKV_TOOLS_ATTENTION_LOCAL_H
#define TKV_TOOLS_ATTENTION_LOCAL_H

#include "tools/model.h"

struct tkv_local;

/* n_layers layers of one shape. math and exec (NULL: one thread) outlive it. */
int tkv_local_create(struct tkv_local **l, uint32_t n_layers, const struct tkv_shape *shape,
                     const struct tkv_math *math, const struct tkv_exec *exec,
                     struct tkv_reason *why);
void tkv_local_destroy(struct tkv_local **l);

/* The interface the model calls; valid as long as l. */
struct tkv_attention tkv_local_attention(struct tkv_local *l);

/* Forget all tokens, keep the memory for the next sequence. */
void tkv_local_reset(struct tkv_local *l);

#endif /* TKV_TOOLS_ATTENTION_LOCAL_H */
