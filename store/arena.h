/*
 * An arena: the shared memory in which a session's cold blocks live. One sparse memfd, mapped
 * once, sealed against shrinking and growing, mode 0600 so that a client that
 * gets it read-only cannot reopen it for writing (unless it runs as the daemon's own user).
 *
 * Blocks are cut from slabs, one block size per slab. A slab's memory is reserved from the
 * budget and allocated before it is used, and given back to the system (a hole is
 * punched) when it is empty and tkv_arena_trim is called. Blocks are counted: several tables
 * may refer to one.
 *
 * Not thread-safe: an arena belongs to the thread that works on its session. Bookkeeping is in
 * private memory; nothing is ever read back from the shared one.
 */
#ifndef TKV_STORE_ARENA_H
#define TKV_STORE_ARENA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/report.h"

struct tkv_arena;
struct tkv_budget;

/* A block's place. Valid while it is referred to. */
struct tkv_block_id {
    uint32_t slab;
    uint32_t index;
};

int tkv_arena_create(struct tkv_arena **arena, struct tkv_budget *budget, struct tkv_report *why);
/* Releases everything, blocks still referred to included. */
void tkv_arena_destroy(struct tkv_arena **arena);

/* Make sure that n blocks of this size can be allocated without failing. Blocks are multiples
 * of 64 bytes. Nothing that was reserved on the way is lost on failure: trim gives it back. */
int tkv_arena_reserve(struct tkv_arena *a, size_t block_bytes, size_t n, struct tkv_report *why);

/* A zeroed block with one reference; only after a sufficient reserve. */
struct tkv_block_id tkv_arena_alloc(struct tkv_arena *a, size_t block_bytes);
/* The same with whatever bytes were there before, for who writes all of them. */
struct tkv_block_id tkv_arena_take(struct tkv_arena *a, size_t block_bytes);
void tkv_arena_ref(struct tkv_arena *a, struct tkv_block_id id);
void tkv_arena_unref(struct tkv_arena *a, struct tkv_block_id id);

void *tkv_arena_at(const struct tkv_arena *a, struct tkv_block_id id);
uint64_t tkv_arena_offset(const struct tkv_arena *a, struct tkv_block_id id);

/*
 * Gather blocks that lie thinly spread: drain marks as many slabs as the others have room for and
 * returns how many; then whoever refers to blocks gives each id to move, which copies a
 * block out of a marked slab (if nobody else refers to it) and returns where it is now; then trim.
 */
uint32_t tkv_arena_drain(struct tkv_arena *a);
struct tkv_block_id tkv_arena_move(struct tkv_arena *a, struct tkv_block_id id);

/* Give empty slabs back to the system and the budget. */
void tkv_arena_trim(struct tkv_arena *a);

int tkv_arena_read_fd(const struct tkv_arena *a);           /* read-only; the arena keeps it */
size_t tkv_arena_capacity_bytes(const struct tkv_arena *a); /* of the mapping, sparse */
size_t tkv_arena_slab_bytes(const struct tkv_arena *a);     /* memory held by slabs */
size_t tkv_arena_live_bytes(const struct tkv_arena *a);     /* of it, in blocks referred to */
size_t tkv_arena_table_bytes(const struct tkv_arena *a);    /* private bookkeeping */

#endif /* TKV_STORE_ARENA_H */
