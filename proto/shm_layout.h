/*
 * What a client finds in a mapped arena: blocks, and the table that says where they
 * are. The table is the payload of a HANDLE reply; the arena itself holds only block
 * bytes and is never trusted by the daemon for its own bookkeeping.
 *
 * A block is immutable once it is in a table. Its content, from block_offset on:
 *   keys (k_bytes), values (v_bytes) in the form of core/codec.h,
 *   uint16 positions[64], as distances from first_position,
 *   half scores[n_score_heads][64], the norm terms of the group's query heads.
 */
#ifndef TRIKV_PROTO_SHM_LAYOUT_H
#define TRIKV_PROTO_SHM_LAYOUT_H

#include <stddef.h>
#include <stdint.h>

enum { TRIKV_SHM_VERSION = 2 };
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
    uint16_t codec_v;
    uint16_t head_dim_k;
    uint16_t head_dim_v;
    uint16_t n_tokens; /* 1..64 */
    uint16_t n_score_heads;
    uint8_t reserved[24]; /* zero */
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
_Static_assert(offsetof(struct trikv_table_entry, reserved) == 40, "table entry layout");

#endif /* TRIKV_PROTO_SHM_LAYOUT_H */
