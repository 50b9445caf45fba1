/* Laying one policy over another. */
#include "daemon/policy.h"

void tkv_policy_merge(struct tkv_policy *p, const struct tkv_policy *over)
{
#define TAKE(bit, field)  \
    if (over->said & bit) \
    p->field = over->field
    TAKE(TKV_POLICY_CODEC_K, codec_k);
    TAKE(TKV_POLICY_CODEC_V, codec_v);
    TAKE(TKV_POLICY_METHOD, method);
    TAKE(TKV_POLICY_BUDGET, budget_tokens);
    TAKE(TKV_POLICY_BETA, beta_tokens);
    TAKE(TKV_POLICY_RECENT, recent_tokens);
    TAKE(TKV_POLICY_PINNED, pinned_tokens);
    TAKE(TKV_POLICY_ROLLBACK, rollback_tokens);
    TAKE(TKV_POLICY_BYTES, budget_bytes);
    TAKE(TKV_POLICY_MAX_TOKENS, max_tokens);
    TAKE(TKV_POLICY_RATIO, target_ratio);
    TAKE(TKV_POLICY_MODE, eviction_mode);
    TAKE(TKV_POLICY_NORMALIZE, normalize_scores);
    TAKE(TKV_POLICY_AGGREGATION, aggregation);
    TAKE(TKV_POLICY_OFFSET_MAX, offset_max);
    TAKE(TKV_POLICY_GATE, gate);
    TAKE(TKV_POLICY_ALLOCATOR, allocator);
#undef TAKE
    p->said |= over->said;
}
