/*
 * Bits and reach for every KV head out of one number of bytes. Heads differ by factors of 1e5 in
 * what it costs a model to have their cache compressed: a few need every token of a text, most live
 * on a window. So each gets a codec (a tier of the ladder) and a reach, such that the sum of errors
 * that were measured for them (docs/profiles.md, section errors) is small and the bytes are enough.
 *
 * The error of few bits within a reach is not measured but put together: what lies beyond the reach
 * costs what a window of that size costs, and what lies within it most of what the bits cost.
 */
#ifndef TKV_CORE_PLAN_H
#define TKV_CORE_PLAN_H

#include "core/types.h"

enum {
    TKV_PLAN_TIERS = 4,   /* of 1 to 4 bits */
    TKV_PLAN_REACHES = 8, /* tkv_plan_reaches */
    TKV_PLAN_ERRORS = TKV_PLAN_TIERS + TKV_PLAN_REACHES,
    TKV_PLAN_ALL = UINT32_MAX, /* reach: every token */
};

/* The codecs of the tiers, ascending, and the windows whose errors are measured, in tokens. */
extern const char *const tkv_plan_codecs[TKV_PLAN_TIERS];
extern const uint32_t tkv_plan_reaches[TKV_PLAN_REACHES];

struct tkv_plan_head {
    const float
        *errors; /* [TKV_PLAN_ERRORS]: all tokens in a tier's bits, then windows of halves */
    uint32_t block_bytes[TKV_PLAN_TIERS]; /* of 64 tokens, with what a table needs for them */
    bool is_bound;                        /* what it has now is the most that it can get: */
    uint32_t most_tier, most_reach;
};

struct tkv_plan {
    const struct tkv_plan_head *heads;
    uint32_t n_heads;
    uint32_t n_hot_tokens;  /* newest ones, kept as halves whatever is planned */
    uint32_t n_cold_tokens; /* all others, at the end of what is planned for */
    uint32_t open_tier;     /* the least that a block has while it fills */
    uint32_t tiers;         /* that may be used: a bit for each */
};

struct tkv_plan_choice {
    uint32_t tier;
    uint32_t reach_tokens; /* cold tokens that stay: 0, whole blocks, or TKV_PLAN_ALL */
};

/* The tier of a head's last block while it fills. */
static inline uint32_t tkv_plan_open_tier(const struct tkv_plan *p, struct tkv_plan_choice c)
{
    return c.tier > p->open_tier ? c.tier : p->open_tier;
}

/* The most that a choice makes a head occupy between rounds. */
uint64_t tkv_plan_bytes(const struct tkv_plan *p, uint32_t head, struct tkv_plan_choice c);

/* out[n_heads] = choices of at most budget_bytes in all; their bytes are returned. With too few
 * bytes for anything all reaches are 0. */
uint64_t tkv_plan_solve(const struct tkv_plan *p, uint64_t budget_bytes,
                        struct tkv_plan_choice *out);

/* Bits of the tiers that choices use, open ones included. */
uint32_t tkv_plan_used(const struct tkv_plan *p, const struct tkv_plan_choice *c);

/* The error that a head has with a choice. */
double tkv_plan_error(const struct tkv_plan *p, uint32_t head, struct tkv_plan_choice c);

#endif /* TKV_CORE_PLAN_H */
