/* The records of an image, as they lie in it one after the other. Only store/image*.c include this. */
#ifndef TKV_STORE_IMAGE_LAYOUT_H
#define TKV_STORE_IMAGE_LAYOUT_H

#include <stddef.h>
#include <stdint.h>

#define TKV_IMAGE_MAGIC UINT32_C(0x494b5654) /* "TVKI" */

/* In front of every part. */
struct image_header {
    uint32_t magic;
    uint16_t version;
    uint16_t part;
    uint32_t layer;
    uint32_t zero;
    uint64_t bytes; /* of the part, this included */
};
_Static_assert(sizeof(struct image_header) == 24, "no padding");

enum {
    IMAGE_NORMALIZES = 1,
    IMAGE_NO_MLR = 2,
    IMAGE_NO_TRIG = 4,
    IMAGE_HAS_ROPE = 8,
    IMAGE_HAS_STATS = 16,
    IMAGE_HAS_ERRORS = 32,
    IMAGE_CONFIG_FLAGS = 63
};

/* CONFIG: this, the rope if there is one, then the layers. */
struct image_config {
    uint32_t n_layers;
    uint32_t method;
    uint32_t beta_tokens;
    uint32_t recent_tokens;
    uint32_t pinned_tokens;
    uint32_t rollback_tokens;
    uint32_t eviction_mode;
    uint32_t flags;
    uint64_t budget_bytes;
    uint32_t max_tokens;
    uint32_t horizon_tokens;
    uint32_t n_tiers; /* of the plan, or 0; which follows */
    uint32_t plan_tiers[4];
    uint32_t offset_max;
    uint32_t aggregation;
    uint32_t allocator;
    uint32_t n_probes; /* of the gate, or 0 */
    uint32_t surplus_tokens;
    float output_error, lse_change, lost_mass;
    uint32_t zero;
};
_Static_assert(sizeof(struct image_config) == 104, "no padding");

/* Then inv_freq[head_dim / 2], padded to 8 bytes. */
struct image_rope {
    uint32_t head_dim;
    uint32_t rotary_dim;
    uint32_t layout;
    float attention_scaling;
};
_Static_assert(sizeof(struct image_rope) == 16, "no padding");

/* Then n_sinks floats, padded, and with tiers a rung for each KV head. */
struct image_layer {
    uint32_t n_q_heads, n_kv_heads, head_dim_k, head_dim_v, rope_dim;
    uint32_t method;
    float scale, softcap;
    uint32_t window_tokens;
    uint32_t codec_k, codec_v;
    uint32_t budget_tokens;
    uint32_t n_sinks; /* 0 or n_q_heads */
    uint32_t zero;
};
_Static_assert(sizeof(struct image_layer) == 56, "no padding");

struct image_rung {
    uint16_t tier, open_tier;
    uint32_t reach_tokens;
};
_Static_assert(sizeof(struct image_rung) == 8, "no padding");

/* COUNTERS. */
struct image_counters {
    uint64_t generation;
    uint64_t n_evicted;
};
_Static_assert(sizeof(struct image_counters) == 16, "no padding");

/* STATE. Checkpoint fields are 0 if none is live. Then, if heads have budgets of their own, these, padded. */
struct image_state {
    uint64_t n_seen;
    uint64_t floor_seen;
    uint64_t checkpoint_seen;
    uint64_t checkpoint_floor_seen;
    uint64_t halves; /* name of the buffer of the half tiers; 0: none yet */
    uint64_t generation;
    int32_t last_position;
    int32_t floor_position;
    int32_t checkpoint_floor_position;
    uint32_t has_checkpoint;
    uint32_t n_rounds;
    uint32_t checkpoint_rounds;
    uint32_t checkpoint_first, checkpoint_n;
    uint32_t tail_first, tail_n;
    uint32_t pinned_n;
    uint32_t budget_tokens;
    int32_t first_query, checkpoint_first_query;
    uint32_t moves;
    uint32_t n_gate_probes; /* of the last round, as the rest: what the gate said */
    uint64_t n_passed, n_kept_more, n_exceeded, n_surplus_tokens, n_dropped;
    float output_error, lse_change, lost_mass;
    uint32_t n_budgets; /* 0 or n_kv_heads */
};
_Static_assert(sizeof(struct image_state) == 168, "no padding");

/* TABLES: with norm terms a struct tkv_ruler for each query head; then this for each KV head, and again for each of the checkpoint if there is one (which only counts
 * when STATE says so, too); each with its blocks. */
struct image_table {
    uint64_t name;     /* that forks have in common, or 0 */
    uint32_t n_listed; /* blocks that follow; 0 for a checkpoint without tables of its own */
    uint32_t n_blocks; /* of them, or of the layer's own table, that this head has */
    uint32_t n_cold;
    uint32_t zero;
};
_Static_assert(sizeof(struct image_table) == 24, "no padding");

struct image_block {
    uint64_t name;
    int32_t first_position;
    uint16_t n_tokens;
    uint16_t tier;
};
_Static_assert(sizeof(struct image_block) == 16, "no padding");

/* MASS: for each KV head a uint64_t of how many floats follow, an even number. */

/* PROBES: uint32_t of the ring's first place and of how many there are, their positions, oldest first, padded, then their queries
 * in the same order, halves [n][n_q_heads][head_dim_k], padded. Nothing without a gate. */

#endif /* TKV_STORE_IMAGE_LAYOUT_H */
