/* An arena's file, its users, what they have reserved, and what an arena is asked about itself; the
 * blocks are arena_blocks.c's, the slabs arena_slabs.c's. */
#include "store/arena.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "proto/errors.h"
#include "store/arena_priv.h"
#include "store/budget.h"

/* ---- the file --------------------------------------------------------------------------- */

static int open_read_only(int fd)
{
    char path[32];

    (void)snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    return open(path, O_RDONLY | O_CLOEXEC);
}

/* Mode 0600 and the seals: see the header. MFD_NOEXEC_SEAL is newer than Debian 12's headers. */
static int make_file(struct tkv_arena_core *c)
{
    const unsigned noexec_seal = 0x8u;

    c->fd = memfd_create("trikv-arena", MFD_CLOEXEC | MFD_ALLOW_SEALING | noexec_seal);
    if (c->fd < 0 && errno == EINVAL)
        c->fd = memfd_create("trikv-arena", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (c->fd < 0 || fchmod(c->fd, 0600) || ftruncate(c->fd, (off_t)c->capacity_bytes) ||
        fcntl(c->fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL))
        return -1;
    return tkv_core_map(c);
}

int tkv_core_map(struct tkv_arena_core *c)
{
    c->read_fd = open_read_only(c->fd);
    if (c->read_fd < 0)
        return -1;
    c->base =
        mmap(NULL, c->capacity_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, c->fd, 0);
    return c->base == MAP_FAILED ? -1 : 0;
}

/* The budget bounds what can be in use; twice that in addresses leaves room for gaps. A block's
 * offset / 64 has the 36 bits that its slab leaves in its id. */
static size_t arena_capacity(const struct tkv_budget *b, size_t page_bytes)
{
    const size_t most = (size_t)1 << 42;
    const size_t want = b->cap_bytes < most / 2 ? b->cap_bytes * 2 : most;

    return (want + page_bytes - 1) / page_bytes * page_bytes;
}

void tkv_core_destroy(struct tkv_arena_core *c)
{
    for (uint32_t i = 0; i < c->n_slabs; i++)
        tkv_arena_table_free(c, c->slabs[i].refs, c->slabs[i].n_blocks * sizeof(uint32_t));
    tkv_arena_table_free(c, c->slabs, c->cap_slabs * sizeof(*c->slabs));
    tkv_arena_table_free(c, c->classes, c->cap_classes * sizeof(*c->classes));
    tkv_arena_table_free(c, c->gaps, c->cap_gaps * sizeof(*c->gaps));
    if (c->base != MAP_FAILED)
        munmap(c->base, c->capacity_bytes);
    if (c->read_fd >= 0)
        close(c->read_fd);
    if (c->fd >= 0)
        close(c->fd);
    tkv_budget_release(c->budget, c->slab_bytes + c->n_front_pages * c->page_bytes);
    (void)pthread_mutex_destroy(&c->lock);
    tkv_budget_free(c->budget, c, sizeof(*c));
}

struct tkv_arena_core *tkv_core_alloc(struct tkv_budget *budget)
{
    struct tkv_arena_core *c = tkv_budget_alloc(budget, sizeof(*c));

    if (!c)
        return NULL;
    (void)pthread_mutex_init(&c->lock, NULL);
    c->budget = budget;
    c->fd = c->read_fd = -1;
    c->base = MAP_FAILED;
    c->table_bytes = sizeof(*c);
    c->page_bytes = (size_t)sysconf(_SC_PAGESIZE);
    c->least_slab_pages = TKV_MIN_SLAB_PAGES;
    if (tkv_arena_table_grow(c, (void **)&c->gaps, sizeof(*c->gaps), 0, &c->cap_gaps))
        return c;
    tkv_core_destroy(c);
    return NULL;
}

static int core_create(struct tkv_arena_core **core, struct tkv_budget *budget, bool keeps,
                       struct tkv_report *why)
{
    struct tkv_arena_core *c = tkv_core_alloc(budget);
    int e = 0;

    *core = NULL;
    if (!c)
        return tkv_fail(why, TRIKV_E_MEMORY_CAP, "no room for an arena");
    c->capacity_bytes = arena_capacity(budget, c->page_bytes);
    if (make_file(c))
        e = tkv_fail(why, TRIKV_E_SYSTEM, "arena of %zu bytes: %s", c->capacity_bytes,
                     strerror(errno));
    else if (keeps)
        e = tkv_kept_format(c, why);
    if (e) {
        tkv_core_destroy(c);
        return e;
    }
    c->gaps[c->n_gaps++] =
        (struct tkv_extent){c->kept.slabs_offset, c->capacity_bytes - c->kept.slabs_offset};
    *core = c;
    return 0;
}

/* ---- users ------------------------------------------------------------------------------ */

struct tkv_arena *tkv_core_add_user(struct tkv_arena_core *c)
{
    struct tkv_arena *a = tkv_budget_alloc(c->budget, sizeof(*a));

    if (!a)
        return NULL;
    a->core = c;
    tkv_arena_lock(a);
    c->table_bytes += sizeof(*a);
    c->n_users++;
    tkv_arena_unlock(a);
    return a;
}

static int create(struct tkv_arena **arena, struct tkv_budget *budget, bool keeps,
                  struct tkv_report *why)
{
    struct tkv_arena_core *c;
    int e = core_create(&c, budget, keeps, why);

    *arena = e ? NULL : tkv_core_add_user(c);
    if (!e && !*arena) {
        tkv_core_destroy(c);
        e = tkv_fail(why, TRIKV_E_MEMORY_CAP, "no room for an arena");
    }
    return e;
}

int tkv_arena_create(struct tkv_arena **arena, struct tkv_budget *budget, struct tkv_report *why)
{
    return create(arena, budget, false, why);
}

int tkv_arena_create_kept(struct tkv_arena **arena, uint32_t owner, struct tkv_budget *budget,
                          struct tkv_report *why)
{
    const int e = create(arena, budget, true, why);

    if (!e)
        tkv_kept_own((*arena)->core, owner);
    return e;
}

struct tkv_arena *tkv_arena_share(const struct tkv_arena *of)
{
    return tkv_core_add_user(of->core);
}

void tkv_arena_destroy(struct tkv_arena **arena)
{
    struct tkv_arena *a = *arena;
    struct tkv_arena_core *c;
    struct tkv_budget *budget;
    bool last;

    if (!a)
        return;
    c = a->core;
    budget = c->budget;
    tkv_arena_defer_end(a);
    tkv_arena_trim(a);
    tkv_arena_lock(a);
    tkv_arena_table_free(c, a->deferred, a->cap_deferred * sizeof(*a->deferred));
    tkv_arena_table_free(c, a->reserved, a->cap_reserved * sizeof(*a->reserved));
    c->table_bytes -= sizeof(*a);
    last = --c->n_users == 0;
    tkv_arena_unlock(a); /* from here on another user may be the last and free the core */
    tkv_budget_free(budget, a, sizeof(*a));
    if (last)
        tkv_core_destroy(c);
    *arena = NULL;
}

/* ---- reservations ----------------------------------------------------------------------- */

/* The class of a size, with a place for this user's count of it; UINT32_MAX over the cap. */
static uint32_t class_for(struct tkv_arena *a, size_t block_bytes, enum tkv_slab_kind kind)
{
    const uint32_t i = tkv_slab_class_of(a->core, block_bytes, kind);

    if (i == UINT32_MAX || !tkv_arena_table_grow(a->core, (void **)&a->reserved,
                                                 sizeof(*a->reserved), i, &a->cap_reserved))
        return UINT32_MAX;
    return i;
}

int tkv_arena_reserve_places(struct tkv_arena *a, size_t block_bytes, enum tkv_slab_kind kind,
                             size_t n, struct tkv_report *why)
{
    const uint32_t i = class_for(a, block_bytes, kind);
    struct tkv_arena_core *c = a->core;

    if (i == UINT32_MAX)
        return tkv_fail(why, TRIKV_E_MEMORY_CAP, "no room for an arena's tables");
    while (a->reserved[i] < n) {
        const size_t spare = c->classes[i].n_free - c->classes[i].n_reserved;
        const size_t more = n - a->reserved[i] < spare ? n - a->reserved[i] : spare;
        const int e = more ? 0 : tkv_slab_add(c, i, why);

        if (e)
            return e;
        a->reserved[i] += more;
        c->classes[i].n_reserved += more;
    }
    return 0;
}

void tkv_arena_expect(struct tkv_arena *a, size_t bytes)
{
    const size_t n_pages = bytes / a->core->page_bytes;
    size_t pages = n_pages / TKV_SLAB_PART;

    /* Of few bytes a slab that is half empty is a larger part than what is left at the ends of small
     * ones. */
    if (pages < TKV_SMALL_SLAB_PAGES)
        pages = n_pages / TKV_SMALL_SLAB_PART < TKV_SMALL_SLAB_PAGES ? n_pages / TKV_SMALL_SLAB_PART
                                                                     : TKV_SMALL_SLAB_PAGES;
    a->core->least_slab_pages = pages < 1                    ? 1
                                : pages > TKV_MIN_SLAB_PAGES ? TKV_MIN_SLAB_PAGES
                                                             : pages;
}

size_t tkv_arena_slabs_bytes(const struct tkv_arena *a, size_t block_bytes, bool buffers, size_t n)
{
    const size_t slab_bytes =
        tkv_slab_size(a->core, block_bytes, buffers ? TKV_SLAB_BUFFER : TKV_SLAB_BLOCKS);
    const size_t n_blocks = slab_bytes / block_bytes;

    return (n + n_blocks - 1) / n_blocks * slab_bytes;
}

int tkv_arena_reserve(struct tkv_arena *a, size_t block_bytes, size_t n, struct tkv_report *why)
{
    int e;

    assert(block_bytes > 0 && block_bytes % 64 == 0);
    tkv_arena_lock(a);
    e = tkv_arena_reserve_places(a, block_bytes, TKV_SLAB_BLOCKS, n, why);
    tkv_arena_unlock(a);
    return e;
}

/* ---- what it is ------------------------------------------------------------------------- */

void tkv_arena_mark(struct tkv_arena *a, unsigned marks)
{
    tkv_arena_lock(a);
    a->core->marks |= marks;
    tkv_kept_mark(a->core);
    tkv_arena_unlock(a);
}

void tkv_arena_freeze(struct tkv_arena *a)
{
    tkv_arena_lock(a);
    a->core->is_frozen = true;
    tkv_arena_unlock(a);
}

unsigned tkv_arena_marks(const struct tkv_arena *a)
{
    unsigned marks;

    tkv_arena_lock(a);
    marks = a->core->marks;
    tkv_arena_unlock(a);
    return marks;
}

struct tkv_arena_core *tkv_arena_core(const struct tkv_arena *a)
{
    return a->core;
}

uint64_t tkv_arena_id(const struct tkv_arena *a)
{
    return a->core->id;
}

int tkv_arena_fd(const struct tkv_arena *a)
{
    return a->core->fd;
}

int tkv_arena_read_fd(const struct tkv_arena *a)
{
    return a->core->read_fd;
}

size_t tkv_arena_capacity_bytes(const struct tkv_arena *a)
{
    return a->core->capacity_bytes;
}

struct tkv_arena_sizes tkv_arena_sizes(const struct tkv_arena *a)
{
    struct tkv_arena_sizes s;

    tkv_arena_lock(a);
    s = (struct tkv_arena_sizes){.slab_bytes = a->core->slab_bytes,
                                 .live_bytes = a->core->live_bytes,
                                 .table_bytes = a->core->table_bytes,
                                 .n_users = a->core->n_users};
    tkv_arena_unlock(a);
    return s;
}
