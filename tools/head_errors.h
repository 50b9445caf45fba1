/*
 * What each KV head of a model loses when its cache has few bits or only a window: the section
 * errors of a profile (docs/profiles.md), which method default plans by. A text is read once as it is
 * and once with passages of its first quarter again in its last, far away and at several distances;
 * the outputs of a head with a cache so reduced are compared with the exact ones, by what the
 * difference adds to the residual stream: |Wo (o - o')|^2 / |residual|^2, a mean over sampled tokens.
 * Nothing else in the model changes.
 */
#ifndef TKV_TOOLS_HEAD_ERRORS_H
#define TKV_TOOLS_HEAD_ERRORS_H

#include "core/plan.h"
#include "tools/engine.h"

enum { TKV_LEAST_ERROR_TOKENS = 256 };

/* errors[n_layers * n_kv_heads][TKV_PLAN_ERRORS], malloc. The model reads n_tokens >=
 * TKV_LEAST_ERROR_TOKENS of ids at once, twice. 0, or -1 with a text. */
int tkv_head_errors_measure(const char *model_path, unsigned n_threads, const int32_t *ids,
                            size_t n_tokens, float **errors, struct tkv_reason *why);

#endif /* TKV_TOOLS_HEAD_ERRORS_H */
