/*
 * What a client finds in a mapped arena: blocks, and the table that says where they
 * are. The table is the payload of a HANDLE reply; the arena itself holds only block
 * bytes and is never trusted by the daemon for its own bookkeeping.
 *
 * A block is immutable once it is in a table. Its content, from block_offset on:
 *   keys (k_bytes), values (v_bytes) in the form of core/codec.h,
 *   uint16 positions[64], as distances from first_position,
 *   uint8 scores[n_score_heads][64], the norm terms of the group's query heads, as core/ruler.h codes
 *   them by rulers that the daemon keeps to itself.
 * Blocks of layers whose tokens are dropped one by one have no means.
 */
#ifndef TRIKV_PROTO_SHM_LAYOUT_H
#define TRIKV_PROTO_SHM_LAYOUT_H

#include <stddef.h>
#include <stdint.h>

enum { TRIKV_SHM_VERSION = 3 };
#define TRIKV_SHM_MAGIC UINT32_C(0x4c425254) /* "TRBL" */

struct trikv_table_header {
    uint32_t magic;
    uint32_t version;
    uint64_t generation; /* grows with every change of the table */
    uint64_t arena_bytes;
    uint32_t n_entries;
    uint32_t entry_bytes; /* sizeof(struct trikv_table_entry) */
    uint64_t rotation_seed;
    uint8_t reserved[24]; /* zero */
};
_Static_assert(sizeof(struct trikv_table_header) == 64, "table header is 64 bytes");
_Static_assert(offsetof(struct trikv_table_header, generation) == 8, "table header layout");
_Static_assert(offsetof(struct trikv_table_header, arena_bytes) == 16, "table header layout");
_Static_assert(offsetof(struct trikv_table_header, n_entries) == 24, "table header layout");
_Static_assert(offsetof(struct trikv_table_header, entry_bytes) == 28, "table header layout");
_Static_assert(offsetof(struct trikv_table_header, rotation_seed) == 32, "table header layout");
_Static_assert(offsetof(struct trikv_table_header, reserved) == 40, "table header layout");

/* Entries are ordered by layer, then KV head, then position. */
struct trikv_table_entry {
    uint64_t block_offset; /* bytes from the start of the arena, multiple of 64 */
    uint32_t block_bytes;
    uint32_t k_bytes;
    uint32_t v_bytes;
    uint32_t first_position;
    uint16_t layer;
    uint16_t kv_head;
    uint16_t codec_k; /* core/codec.h ids */
    uint16_t codec_v; /* 0: latents, whose v bytes are the rotary part, halves [rope_dim][64] */
    uint16_t head_dim_k;
    uint16_t head_dim_v;
    uint16_t n_tokens; /* 1..64 */
    uint16_t n_score_heads;
    uint16_t has_means;   /* 1, or 0: its codecs leave them out */
    uint8_t reserved[22]; /* zero */
};
_Static_assert(sizeof(struct trikv_table_entry) == 64, "table entry is 64 bytes");
_Static_assert(offsetof(struct trikv_table_entry, block_bytes) == 8, "table entry layout");
_Static_assert(offsetof(struct trikv_table_entry, k_bytes) == 12, "table entry layout");
_Static_assert(offsetof(struct trikv_table_entry, v_bytes) == 16, "table entry layout");
_Static_assert(offsetof(struct trikv_table_entry, first_position) == 20, "table entry layout");
_Static_assert(offsetof(struct trikv_table_entry, layer) == 24, "table entry layout");
_Static_assert(offsetof(struct trikv_table_entry, kv_head) == 26, "table entry layout");
_Static_assert(offsetof(struct trikv_table_entry, codec_k) == 28, "table entry layout");
_Static_assert(offsetof(struct trikv_table_entry, codec_v) == 30, "table entry layout");
_Static_assert(offsetof(struct trikv_table_entry, head_dim_k) == 32, "table entry layout");
_Static_assert(offsetof(struct trikv_table_entry, head_dim_v) == 34, "table entry layout");
_Static_assert(offsetof(struct trikv_table_entry, n_tokens) == 36, "table entry layout");
_Static_assert(offsetof(struct trikv_table_entry, n_score_heads) == 38, "table entry layout");
_Static_assert(offsetof(struct trikv_table_entry, has_means) == 40, "table entry layout");
_Static_assert(offsetof(struct trikv_table_entry, reserved) == 42, "table entry layout");

/*
 * The payload of a MAP reply: everything that attention needs of a session as it was then. After the
 * header, each part from a multiple of 64 on:
 *   struct trikv_map_layer [n_layers]
 *   struct trikv_map_head [n_heads], layer by layer
 *   struct trikv_map_block [n_blocks], head by head, ascending in position
 *   float sinks [n_sinks], of the layers that have any
 *   struct trikv_map_layout [n_layouts], of the layers that have several
 * Offsets are in bytes from the start of the arena. Nothing that they lead to changes while the
 * 8 bytes at pin_offset (read atomically) are pin_value.
 */
#define TRIKV_MAP_MAGIC UINT32_C(0x504d5254) /* "TRMP" */

struct trikv_map_header {
    uint32_t magic;
    uint32_t version; /* TRIKV_SHM_VERSION */
    uint64_t generation;
    uint64_t arena_bytes;
    uint64_t rotation_seed;
    uint64_t pin_offset;
    uint64_t pin_value; /* never 0 */
    uint32_t n_layers;
    uint32_t n_heads;
    uint64_t n_blocks;
    uint64_t n_sinks;
    uint64_t n_layouts;
    uint8_t reserved[48]; /* zero */
};
_Static_assert(sizeof(struct trikv_map_header) == 128, "map header is 128 bytes");
_Static_assert(offsetof(struct trikv_map_header, generation) == 8, "map header layout");
_Static_assert(offsetof(struct trikv_map_header, arena_bytes) == 16, "map header layout");
_Static_assert(offsetof(struct trikv_map_header, rotation_seed) == 24, "map header layout");
_Static_assert(offsetof(struct trikv_map_header, pin_offset) == 32, "map header layout");
_Static_assert(offsetof(struct trikv_map_header, pin_value) == 40, "map header layout");
_Static_assert(offsetof(struct trikv_map_header, n_layers) == 48, "map header layout");
_Static_assert(offsetof(struct trikv_map_header, n_heads) == 52, "map header layout");
_Static_assert(offsetof(struct trikv_map_header, n_blocks) == 56, "map header layout");
_Static_assert(offsetof(struct trikv_map_header, n_sinks) == 64, "map header layout");
_Static_assert(offsetof(struct trikv_map_header, n_layouts) == 72, "map header layout");
_Static_assert(offsetof(struct trikv_map_header, reserved) == 80, "map header layout");

/* Half tiers: K [n_kv_heads][cap][head_dim_k] from the first token held on, V likewise, halves. */
struct trikv_map_tier {
    uint64_t k_offset;
    uint64_t v_offset;
    uint64_t positions_offset; /* int32 */
    uint32_t n_tokens;
    uint32_t cap_tokens;
};
_Static_assert(sizeof(struct trikv_map_tier) == 32, "map tier is 32 bytes");

struct trikv_map_layer {
    uint32_t n_q_heads;
    uint32_t n_kv_heads;
    uint32_t head_dim_k;
    uint32_t head_dim_v;
    float scale;
    float softcap;
    uint32_t window_tokens;
    uint32_t n_sinks; /* n_q_heads or 0 */
    uint32_t codec_k; /* core/codec.h ids */
    uint32_t codec_v;
    uint32_t n_score_heads;
    uint32_t block_bytes;
    uint64_t n_seen;
    uint32_t n_rounds;
    uint32_t n_layouts;  /* 0: all blocks have the one above; else blocks say which of these */
    int32_t first_query; /* queries before this position miss keys that have left the window */
    uint16_t rope_dim;   /* of latents, else 0 */
    uint16_t has_means;  /* 1, or 0: its codecs leave them out */
    struct trikv_map_tier pinned;
    struct trikv_map_tier tail;
};
_Static_assert(sizeof(struct trikv_map_layer) == 136, "map layer is 136 bytes");
_Static_assert(offsetof(struct trikv_map_layer, scale) == 16, "map layer layout");
_Static_assert(offsetof(struct trikv_map_layer, codec_k) == 32, "map layer layout");
_Static_assert(offsetof(struct trikv_map_layer, n_seen) == 48, "map layer layout");
_Static_assert(offsetof(struct trikv_map_layer, pinned) == 72, "map layer layout");
_Static_assert(offsetof(struct trikv_map_layer, tail) == 104, "map layer layout");

struct trikv_map_head {
    uint32_t n_blocks;
    uint32_t n_tokens; /* in them */
};

struct trikv_map_block {
    uint64_t block_offset; /* multiple of 64 */
    int32_t first_position;
    uint16_t n_tokens; /* 1..64 */
    uint16_t layout;   /* of the layer's layouts; 0 if there is one */
};

/* How blocks are laid out; none of a layer's several has a sketch. */
struct trikv_map_layout {
    uint32_t codec_k; /* core/codec.h ids */
    uint32_t codec_v;
    uint32_t block_bytes;
    uint32_t n_score_heads;
};
_Static_assert(sizeof(struct trikv_map_head) == 8, "map head is 8 bytes");
_Static_assert(sizeof(struct trikv_map_block) == 16, "map block is 16 bytes");
_Static_assert(offsetof(struct trikv_map_block, n_tokens) == 12, "map block layout");
_Static_assert(offsetof(struct trikv_map_block, layout) == 14, "map block layout");
_Static_assert(sizeof(struct trikv_map_layout) == 16, "map layout is 16 bytes");

#endif /* TRIKV_PROTO_SHM_LAYOUT_H */
