/*
 * An arena: the shared memory in which sessions' blocks and buffers live. One sparse memfd, mapped
 * once, sealed against shrinking and growing, mode 0600 so that a client that
 * gets it read-only cannot reopen it for writing (unless it runs as the daemon's own user).
 *
 * Blocks are cut from slabs, one block size per slab. A slab's memory is reserved from the
 * budget and allocated before it is used, and given back to the system (a hole is
 * punched) when it is empty and tkv_arena_trim is called. Blocks are counted: several tables
 * may refer to one.
 *
 * A session and its forks share one arena. Each has a struct tkv_arena of its own, which belongs to
 * the thread that works on the session and holds what that session has reserved; the bookkeeping
 * that they share is in private memory, under a lock that is never held while another is taken.
 * Nothing is ever read back from the shared memory.
 */
#ifndef TKV_STORE_ARENA_H
#define TKV_STORE_ARENA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/block.h"
#include "proto/report.h"
#include "store/arena_kept.h"

struct tkv_arena;
struct tkv_budget;

int tkv_arena_create(struct tkv_arena **arena, struct tkv_budget *budget, struct tkv_report *why);

/* The same with a file that another process can take over, for this user; and whose such a file is. */
int tkv_arena_create_kept(struct tkv_arena **arena, uint32_t owner, struct tkv_budget *budget,
                          struct tkv_report *why);
bool tkv_arena_owner(int fd, uint32_t *owner);

/*
 * Take over the file of a kept arena. fd stays the caller's. Nothing in it is referred to at first:
 * claim what is known to be in use, block by block; end gives all the rest back, and from then on
 * the arena is like any other. Kinds other than blocks are found with next. An error names what is
 * wrong with the file: TRIKV_E_VERSION if it is just another version's.
 */
int tkv_arena_adopt(struct tkv_arena **arena, int fd, struct tkv_budget *budget,
                    struct tkv_report *why);
bool tkv_arena_next(const struct tkv_arena *a, enum tkv_slab_kind kind, uint32_t *at,
                    struct tkv_block_id *id, size_t *bytes);
/* One reference more to the block or buffer at id: false if there is no such place. */
bool tkv_arena_claim(struct tkv_arena *a, struct tkv_block_id id, size_t block_bytes,
                     enum tkv_slab_kind kind);
void tkv_arena_adopt_end(struct tkv_arena *a);

uint64_t tkv_arena_id(const struct tkv_arena *a); /* 0: it is not kept */
int tkv_arena_fd(const struct tkv_arena *a);      /* the arena's own */

/* Slabs no larger than an arena of so many bytes can do with; before the first block. Small ones waste
 * more of each, but large ones would be half empty. */
void tkv_arena_expect(struct tkv_arena *a, size_t bytes);

/* What n blocks of this size, or buffers, will take while the arena is small, in whole slabs. */
size_t tkv_arena_slabs_bytes(const struct tkv_arena *a, size_t block_bytes, bool buffers, size_t n);

/* Another user of the memory of `of`; NULL over the cap. */
struct tkv_arena *tkv_arena_share(const struct tkv_arena *of);

/* The last user's end releases everything, blocks still referred to included. */
void tkv_arena_destroy(struct tkv_arena **arena);

/* Make sure that n blocks of this size can be allocated by this user without failing. Blocks are
 * multiples of 64 bytes. Nothing that was reserved on the way is lost on failure: trim gives it
 * back. */
int tkv_arena_reserve(struct tkv_arena *a, size_t block_bytes, size_t n, struct tkv_report *why);

/* A zeroed block with one reference; only after a sufficient reserve. */
struct tkv_block_id tkv_arena_alloc(struct tkv_arena *a, size_t block_bytes);

/* The same with whatever bytes were there before, for who writes all of them; and n of them. */
struct tkv_block_id tkv_arena_take(struct tkv_arena *a, size_t block_bytes);
void tkv_arena_take_each(struct tkv_arena *a, size_t block_bytes, struct tkv_block_id *ids,
                         size_t n);

/* A buffer with one reference: a block that never moves, its content undefined. */
int tkv_arena_buffer(struct tkv_arena *a, size_t bytes, struct tkv_block_id *id,
                     struct tkv_report *why);
int tkv_arena_buffer_of(struct tkv_arena *a, enum tkv_slab_kind kind, size_t bytes,
                        struct tkv_block_id *id, struct tkv_report *why);

void tkv_arena_ref(struct tkv_arena *a, struct tkv_block_id id);
void tkv_arena_unref(struct tkv_arena *a, struct tkv_block_id id);

/* The same for n ids that lie stride_bytes apart. */
void tkv_arena_ref_each(struct tkv_arena *a, const void *ids, size_t stride_bytes, size_t n);
void tkv_arena_unref_each(struct tkv_arena *a, const void *ids, size_t stride_bytes, size_t n);

/* How many of them somebody else refers to as well. */
size_t tkv_arena_count_shared(struct tkv_arena *a, const void *ids, size_t stride_bytes, size_t n);

/*
 * Between defer and settle the references that this user gives up stay: what the journal still refers
 * to must not change. There is room for n of them, or an error. Settle gives them up.
 */
int tkv_arena_defer(struct tkv_arena *a, size_t n, struct tkv_report *why);
void tkv_arena_settle(struct tkv_arena *a);
void tkv_arena_defer_end(struct tkv_arena *a); /* and no more from now on */
bool tkv_arena_has_deferred(const struct tkv_arena *a);
size_t tkv_arena_deferred_bytes(const struct tkv_arena *a); /* of the list itself */

void *tkv_arena_at(const struct tkv_arena *a, struct tkv_block_id id);

/*
 * Gather blocks that lie thinly spread: drain marks as many slabs as the others have room for and
 * returns how many; then whoever refers to blocks gives each id to move, which copies a
 * block out of a marked slab (if nobody else refers to it) and returns where it is now; then sweep.
 */
uint32_t tkv_arena_drain(struct tkv_arena *a);
struct tkv_block_id tkv_arena_move(struct tkv_arena *a, struct tkv_block_id id);

/* Give this user's reservations of a size back but for n; true if there were more. */
bool tkv_arena_unreserve(struct tkv_arena *a, size_t block_bytes, size_t n);

/* Give slabs that are empty and that nobody's reservations need to the system and the budget. */
void tkv_arena_sweep(struct tkv_arena *a);

/* Both, of all sizes. */
void tkv_arena_trim(struct tkv_arena *a);

/* From now on nothing in the file changes any more by whoever gives references up. */
void tkv_arena_freeze(struct tkv_arena *a);

/* Bits that all users see, and that stay; what they mean is the caller's matter. */
void tkv_arena_mark(struct tkv_arena *a, unsigned marks);
unsigned tkv_arena_marks(const struct tkv_arena *a);

int tkv_arena_read_fd(const struct tkv_arena *a);           /* read-only; the arena keeps it */
size_t tkv_arena_capacity_bytes(const struct tkv_arena *a); /* of the mapping, sparse */

/* What all users together hold. */
struct tkv_arena_sizes {
    size_t slab_bytes;  /* memory held by slabs */
    size_t live_bytes;  /* of it, in blocks referred to */
    size_t table_bytes; /* private bookkeeping */
    uint32_t n_users;
};
struct tkv_arena_sizes tkv_arena_sizes(const struct tkv_arena *a);

#endif /* TKV_STORE_ARENA_H */
