/*
 * What to keep of a session and in how many bits, as the configuration, a profile and a
 * request can say it. Later sayings win field by field.
 */
#ifndef TKV_DAEMON_POLICY_H
#define TKV_DAEMON_POLICY_H

#include <stdbool.h>
#include <stdint.h>

#include "core/codec.h"
#include "proto/report.h"
#include "store/session.h"

/* Which fields a policy says. */
enum tkv_policy_field {
    TKV_POLICY_CODEC_K = 1 << 0,
    TKV_POLICY_CODEC_V = 1 << 1,
    TKV_POLICY_METHOD = 1 << 2,
    TKV_POLICY_BUDGET = 1 << 3,
    TKV_POLICY_BETA = 1 << 4,
    TKV_POLICY_RECENT = 1 << 5,
    TKV_POLICY_PINNED = 1 << 6,
    TKV_POLICY_MODE = 1 << 7,
    TKV_POLICY_NORMALIZE = 1 << 8,
    TKV_POLICY_AGGREGATION = 1 << 9,
    TKV_POLICY_OFFSET_MAX = 1 << 10,
    TKV_POLICY_ROLLBACK = 1 << 16,
    TKV_POLICY_BYTES = 1 << 17,      /* of a request alone */
    TKV_POLICY_MAX_TOKENS = 1 << 18, /* of a profile too, as the next */
    TKV_POLICY_RATIO = 1 << 26,
    TKV_POLICY_GATE = 1 << 24, /* of a profile alone */
    TKV_POLICY_ALLOCATOR = 1 << 25,
    TKV_POLICY_ALL = ((1 << 11) - 1) | TKV_POLICY_ROLLBACK,
};

struct tkv_policy {
    uint32_t said;    /* of enum tkv_policy_field */
    uint32_t codec_k; /* enum tkv_codec_id */
    uint32_t codec_v;
    uint32_t method;
    uint32_t budget_tokens;
    uint32_t beta_tokens;
    uint32_t recent_tokens;
    uint32_t pinned_tokens;
    uint32_t rollback_tokens;
    uint64_t budget_bytes;
    uint32_t max_tokens;
    float target_ratio; /* instead of budget_bytes */
    uint32_t eviction_mode;
    bool normalize_scores;
    uint32_t aggregation;
    uint32_t offset_max;
    struct tkv_gate_config gate;
    uint32_t allocator;
};

enum {
    TKV_MAX_POLICY_TOKENS = 1 << 24,
    TKV_MAX_OFFSET = 1 << 30,
    TKV_MAX_RATIO = 1000,
};

/* Every field that `over` says replaces that of *p. */
void tkv_policy_merge(struct tkv_policy *p, const struct tkv_policy *over);

#endif /* TKV_DAEMON_POLICY_H */
