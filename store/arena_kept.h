/*
 * What stands in the file of a kept arena beside blocks and buffers: enough for another process that gets the
 * descriptor to find its slabs again. What lies in them is told by the sessions' journals
 * (store/journal.h), which are slabs of a kind of their own.
 *
 *   struct tkv_kept_super      one page
 *   struct tkv_kept_slab []    by index of the slab, in pages that come as they are needed
 *   slabs
 *
 * The file is sealed and 0600, but what it says is checked like anything from a peer.
 */
#ifndef TKV_STORE_ARENA_KEPT_H
#define TKV_STORE_ARENA_KEPT_H

#include <stddef.h>
#include <stdint.h>

/* To be raised with every change of these structs, of the journal, of images and of packed bytes: a daemon
 * adopts only what it would have written itself. */
enum { TKV_KEPT_VERSION = 1 };
#define TKV_KEPT_MAGIC UINT64_C(0x4e455241564b5254) /* "TRKVAREN" */

enum tkv_slab_kind {
    TKV_SLAB_BLOCKS = 0,
    TKV_SLAB_BUFFER,  /* they never move; nor do the next ones, of which a slab has one */
    TKV_SLAB_JOURNAL, /* of a session */
    TKV_SLAB_PIN,     /* of a map, whose readers must see that it has gone */
    TKV_N_SLAB_KINDS,
};

struct tkv_kept_super {
    uint64_t magic;
    uint32_t version;
    uint32_t page_bytes;
    uint64_t capacity_bytes; /* of the file */
    uint64_t id;             /* random, not 0 */
    uint64_t cap_slabs;
    uint32_t marks; /* tkv_arena_mark */
    uint32_t owner; /* as tkv_arena_create_kept was told */
};
_Static_assert(sizeof(struct tkv_kept_super) == 48, "kept layout");

/* bytes = 0: none. It is written last and erased first. */
struct tkv_kept_slab {
    uint64_t offset;
    uint64_t bytes;
    uint32_t block_bytes;
    uint32_t kind;
    uint64_t reserved; /* 0 */
};
_Static_assert(sizeof(struct tkv_kept_slab) == 32, "kept layout");
_Static_assert(offsetof(struct tkv_kept_slab, bytes) == 8, "kept layout");
_Static_assert(offsetof(struct tkv_kept_slab, block_bytes) == 16, "kept layout");

/* cap_slabs 0: the arena is not kept. */
struct tkv_kept {
    uint64_t cap_slabs;
    uint64_t directory_offset;
    uint64_t slabs_offset;
};

/* Where things are in a file of this size. */
struct tkv_kept tkv_kept_layout(uint64_t capacity_bytes, uint64_t page_bytes);

#endif /* TKV_STORE_ARENA_KEPT_H */
