/* The records of a snapshot. Only store/snapshot*.c include this. */
#ifndef TKV_STORE_SNAPSHOT_PRIV_H
#define TKV_STORE_SNAPSHOT_PRIV_H

#include "store/snapshot.h"

#include "core/block.h"

#define TKV_SNAPSHOT_MAGIC UINT64_C(0x4e53564b495254) /* "TRIKVSN" */

struct snapshot_header {
    uint64_t magic;
    uint32_t version; /* TKV_IMAGE_VERSION */
    uint32_t n_sessions;
    uint64_t meta_bytes;
    uint64_t n_blocks;
};
_Static_assert(sizeof(struct snapshot_header) == 32, "no padding");

/* How large a block is; in units of 64 bytes, the highest bit set for buffers. */
#define TKV_SNAPSHOT_FIXED UINT32_C(0x80000000)

/* A block that was read: its id, and its size as it stands in the file. */
struct tkv_snapshot_block {
    struct tkv_block_id id;
    uint32_t size;
    bool is_there;
};

#endif /* TKV_STORE_SNAPSHOT_PRIV_H */
