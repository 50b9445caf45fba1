/* How an arena looks inside: what its users share. Only store/arena*.c include this. */
#ifndef TKV_STORE_ARENA_PRIV_H
#define TKV_STORE_ARENA_PRIV_H

#include <pthread.h>

#include "store/arena.h"

enum { TKV_MAX_OPEN_SLABS = 64 };

/* n_blocks = 0 marks an entry that is not in use. */
struct tkv_slab {
    uint64_t offset;
    size_t bytes;
    uint32_t class;
    uint32_t n_blocks;
    uint32_t n_free;
    uint32_t first_free; /* the place freed last */
    bool drains;         /* nothing is allocated here if there is room elsewhere */
    uint32_t *refs; /* [n_blocks] of a block in use; of a free place, TKV_PLACE_FREE + the next */
};

#define TKV_PLACE_FREE UINT32_C(0x80000000)

/* Slabs for blocks of one size. */
struct tkv_slab_class {
    size_t block_bytes;
    enum tkv_slab_kind kind;
    size_t n_free;
    size_t n_reserved; /* by all users together, at most n_free */
};

/* A run of the file that no slab uses. */
struct tkv_extent {
    uint64_t offset;
    uint64_t bytes;
};

struct tkv_arena_core {
    pthread_mutex_t lock; /* of everything below */
    uint32_t n_users;
    size_t least_slab_pages; /* a slab may be so large, however small the arena is */
    unsigned marks;
    bool is_frozen; /* references are only counted: nothing becomes free */
    size_t slab_bytes;
    size_t live_bytes;
    size_t table_bytes;
    struct tkv_slab *slabs;
    uint32_t n_slabs, cap_slabs;
    uint32_t open[TKV_MAX_OPEN_SLABS]; /* those that came to have room, the last first to be used */
    uint32_t n_open;
    struct tkv_slab_class *classes;
    uint32_t n_classes, cap_classes;
    struct tkv_extent *gaps; /* ascending, never adjacent */
    uint32_t n_gaps, cap_gaps;

    /* constant */
    struct tkv_budget *budget;
    int fd;
    int read_fd;
    uint8_t *base;
    size_t capacity_bytes;
    size_t page_bytes;
    uint64_t id;          /* of a kept arena, else 0 */
    struct tkv_kept kept; /* of a kept arena: where things are in the file */
    size_t n_front_pages; /* of it: before the slabs, that have memory; under the lock */
};

/* One user. */
struct tkv_arena {
    struct tkv_arena_core *core;
    size_t *reserved; /* of each class, by this user; changes under the lock as the core does */
    uint32_t cap_reserved;
    bool defers;
    struct tkv_block_id *deferred; /* references given up, but not yet */
    uint32_t n_deferred, cap_deferred;
};

static inline void tkv_arena_lock(const struct tkv_arena *a)
{
    (void)pthread_mutex_lock(&a->core->lock);
}

static inline void tkv_arena_unlock(const struct tkv_arena *a)
{
    (void)pthread_mutex_unlock(&a->core->lock);
}

/* Private tables, counted in the budget: room for element number n in *table, which has room
 * for *cap. */
bool tkv_arena_table_grow(struct tkv_arena_core *c, void **table, size_t element_bytes, uint32_t n,
                          uint32_t *cap);
void *tkv_arena_table_alloc(struct tkv_arena_core *c, size_t bytes);
void tkv_arena_table_free(struct tkv_arena_core *c, void *table, size_t bytes);

/* The class of this size, made if need be; UINT32_MAX over the cap. */
uint32_t tkv_slab_class_of(struct tkv_arena_core *c, size_t block_bytes, enum tkv_slab_kind kind);

/* The least and the most that it may be, in pages. */
enum {
    TKV_SMALL_SLAB_PAGES = 5,
    TKV_MIN_SLAB_PAGES = 24,
    TKV_MAX_SLAB_PAGES = 512,
    TKV_SLAB_PART = 64,
    TKV_SMALL_SLAB_PART = 16, /* of what is expected, up to TKV_SMALL_SLAB_PAGES */
};

/* How large a slab of blocks of this size is. */
size_t tkv_slab_size(const struct tkv_arena_core *c, size_t block_bytes, enum tkv_slab_kind kind);

/* And how many it has. */
uint32_t tkv_slab_blocks(enum tkv_slab_kind kind, size_t slab_bytes, size_t block_bytes);

/* A place for one more slab in the table; NULL over the cap. */
struct tkv_slab *tkv_slab_entry(struct tkv_arena_core *c);

/* The lists of a slab whose blocks are counted: those without a reference are free. */
void tkv_slab_index(struct tkv_arena_core *c, struct tkv_slab *s);

/* One more slab of the class, or an error. */
int tkv_slab_add(struct tkv_arena_core *c, uint32_t class, struct tkv_report *why);

/* Back to the system and the budget, if it is empty and its places are not reserved. */
void tkv_slab_trim(struct tkv_arena_core *c, struct tkv_slab *s);

/* arena.c: a core without a file, and its end; a user of one. */
struct tkv_arena_core *tkv_core_alloc(struct tkv_budget *budget);
void tkv_core_destroy(struct tkv_arena_core *c);
struct tkv_arena *tkv_core_add_user(struct tkv_arena_core *c);
struct tkv_arena_core *tkv_arena_core(const struct tkv_arena *a);
int tkv_core_map(struct tkv_arena_core *c);

/* Let this user have n places reserved, with the lock held. */
int tkv_arena_reserve_places(struct tkv_arena *a, size_t block_bytes, enum tkv_slab_kind kind,
                             size_t n, struct tkv_report *why);

/*
 * arena_kept.c: what a kept arena's file says of itself, so that another process can take it over. The
 * record of a slab stands in it while the slab may hold anything that is referred to. Of an arena
 * that is not kept these do nothing.
 */
int tkv_kept_format(struct tkv_arena_core *c, struct tkv_report *why);
bool tkv_kept_room(struct tkv_arena_core *c, uint32_t slab); /* false over the cap */
void tkv_kept_record(struct tkv_arena_core *c, uint32_t slab);
void tkv_kept_mark(struct tkv_arena_core *c);
void tkv_kept_own(struct tkv_arena_core *c, uint32_t owner);
void tkv_kept_erase(struct tkv_arena_core *c, uint32_t slab);

#endif /* TKV_STORE_ARENA_PRIV_H */
