/* An arena's file, its users, and the blocks that they have; arena_slabs.c has the slabs. */
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

/* One user. */
struct tkv_arena {
    struct tkv_arena_core *core;
    size_t *reserved; /* of each class, by this user; changes under the lock as the core does */
    uint32_t cap_reserved;
    bool defers;
    struct tkv_block_id *deferred; /* references given up, but not yet */
    uint32_t n_deferred, cap_deferred;
};

static void lock(const struct tkv_arena *a)
{
    (void)pthread_mutex_lock(&a->core->lock);
}

static void unlock(const struct tkv_arena *a)
{
    (void)pthread_mutex_unlock(&a->core->lock);
}

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
    lock(a);
    c->table_bytes += sizeof(*a);
    c->n_users++;
    unlock(a);
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
    lock(a);
    tkv_arena_table_free(c, a->deferred, a->cap_deferred * sizeof(*a->deferred));
    tkv_arena_table_free(c, a->reserved, a->cap_reserved * sizeof(*a->reserved));
    c->table_bytes -= sizeof(*a);
    last = --c->n_users == 0;
    unlock(a); /* from here on another user may be the last and free the core */
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

/* Let this user have n places reserved, with the lock held. */
static int reserve(struct tkv_arena *a, size_t block_bytes, enum tkv_slab_kind kind, size_t n,
                   struct tkv_report *why)
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
    lock(a);
    e = reserve(a, block_bytes, TKV_SLAB_BLOCKS, n, why);
    unlock(a);
    return e;
}

/* ---- blocks ----------------------------------------------------------------------------- */

static struct tkv_slab *slab_of(const struct tkv_arena_core *c, struct tkv_block_id id)
{
    return &c->slabs[id.place & ((UINT64_C(1) << TKV_SLAB_BITS) - 1)];
}

static uint32_t *refs_of(const struct tkv_arena_core *c, struct tkv_block_id id)
{
    const struct tkv_slab *s = slab_of(c, id);

    return &s->refs[(tkv_block_offset(id) - s->offset) / c->classes[s->class].block_bytes];
}

static bool has_room(const struct tkv_arena_core *c, uint32_t i, uint32_t class)
{
    return i < c->n_slabs && c->slabs[i].n_blocks && c->slabs[i].class == class &&
           c->slabs[i].n_free > 0;
}

static void open_slab(struct tkv_arena_core *c, uint32_t i)
{
    if (c->n_open == TKV_MAX_OPEN_SLABS)
        memmove(c->open, c->open + 1, --c->n_open * sizeof(*c->open));
    c->open[c->n_open++] = i;
}

/* Open the fullest slabs that have room, the fullest last, so that the emptiest ones drain and can be
 * given back; of equally full ones the first is used first, so that what comes later lies behind. */
static void open_fullest(struct tkv_arena_core *c, uint32_t class)
{
    for (uint32_t i = 0; i < c->n_slabs; i++) {
        uint32_t at = c->n_open;

        if (!has_room(c, i, class) || c->slabs[i].drains)
            continue;
        while (at > 0 && c->slabs[c->open[at - 1]].n_free <= c->slabs[i].n_free)
            at--;
        if (c->n_open < TKV_MAX_OPEN_SLABS)
            memmove(c->open + at + 1, c->open + at, (c->n_open++ - at) * sizeof(*c->open));
        else if (at-- > 0)
            memmove(c->open, c->open + 1, at * sizeof(*c->open));
        else
            continue;
        c->open[at] = i;
    }
}

/* Others may have taken the room that was there for the blocks of slabs that drain. */
static void open_draining(struct tkv_arena_core *c, uint32_t class)
{
    uint32_t i = 0;

    while (!has_room(c, i, class)) {
        i++;
        assert(i < c->n_slabs);
    }
    open_slab(c, i);
}

/* The slab that had a block returned last: its memory is still near. */
static uint32_t slab_with_room(struct tkv_arena_core *c, uint32_t class)
{
    for (; c->n_open > 0; c->n_open--) {
        const uint32_t i = c->open[c->n_open - 1];

        if (has_room(c, i, class) && !c->slabs[i].drains)
            return i;
    }
    open_fullest(c, class);
    if (c->n_open == 0)
        open_draining(c, class);
    return c->open[c->n_open - 1];
}

/* A place that the class has, with the lock held. */
static struct tkv_block_id take_place(struct tkv_arena_core *c, uint32_t class)
{
    const uint32_t at = slab_with_room(c, class);
    struct tkv_slab *s = &c->slabs[at];
    const uint32_t index = s->first_free;

    s->first_free = s->refs[index] - TKV_PLACE_FREE;
    s->refs[index] = 1;
    s->n_free--;
    c->classes[class].n_free--;
    c->live_bytes += c->classes[class].block_bytes;
    return (struct tkv_block_id){
        (s->offset + index * c->classes[class].block_bytes) / 64 << TKV_SLAB_BITS | at};
}

static struct tkv_block_id take_reserved(struct tkv_arena *a, uint32_t class)
{
    assert(class < a->cap_reserved && a->reserved[class] > 0);
    a->reserved[class]--;
    a->core->classes[class].n_reserved--;
    return take_place(a->core, class);
}

void tkv_arena_take_each(struct tkv_arena *a, size_t block_bytes, struct tkv_block_id *ids,
                         size_t n)
{
    uint32_t class;

    lock(a);
    class = tkv_slab_class_of(a->core, block_bytes, TKV_SLAB_BLOCKS);
    for (size_t i = 0; i < n; i++)
        ids[i] = take_reserved(a, class);
    unlock(a);
}

struct tkv_block_id tkv_arena_take(struct tkv_arena *a, size_t block_bytes)
{
    struct tkv_block_id id;

    tkv_arena_take_each(a, block_bytes, &id, 1);
    return id;
}

struct tkv_block_id tkv_arena_alloc(struct tkv_arena *a, size_t block_bytes)
{
    const struct tkv_block_id id = tkv_arena_take(a, block_bytes);

    memset(tkv_arena_at(a, id), 0, block_bytes);
    return id;
}

int tkv_arena_buffer(struct tkv_arena *a, size_t bytes, struct tkv_block_id *id,
                     struct tkv_report *why)
{
    return tkv_arena_buffer_of(a, TKV_SLAB_BUFFER, bytes, id, why);
}

int tkv_arena_buffer_of(struct tkv_arena *a, enum tkv_slab_kind kind, size_t bytes,
                        struct tkv_block_id *id, struct tkv_report *why)
{
    int e;

    assert(bytes > 0 && bytes % 64 == 0);
    lock(a);
    e = reserve(a, bytes, kind, 1, why);
    if (!e)
        *id = take_reserved(a, tkv_slab_class_of(a->core, bytes, kind));
    unlock(a);
    return e;
}

static struct tkv_block_id id_at(const void *ids, size_t stride_bytes, size_t i)
{
    struct tkv_block_id id;

    memcpy(&id, (const uint8_t *)ids + i * stride_bytes, sizeof(id));
    return id;
}

void tkv_arena_ref_each(struct tkv_arena *a, const void *ids, size_t stride_bytes, size_t n)
{
    lock(a);
    for (size_t i = 0; i < n; i++) {
        uint32_t *refs = refs_of(a->core, id_at(ids, stride_bytes, i));

        assert(*refs > 0 && *refs < TKV_PLACE_FREE);
        ++*refs;
    }
    unlock(a);
}

/* A place that becomes free stays with whom freed it until the next trim: a round takes places for
 * new blocks, gives back those of the old, and takes them again. */
static void drop_ref(struct tkv_arena *a, struct tkv_block_id id)
{
    struct tkv_slab *s = slab_of(a->core, id);
    struct tkv_slab_class *class = &a->core->classes[s->class];
    uint32_t *refs = refs_of(a->core, id);

    assert(*refs > 0 && *refs < TKV_PLACE_FREE);
    if (--*refs > 0 || a->core->is_frozen)
        return;
    if (s->n_free++ == 0)
        open_slab(a->core, (uint32_t)(s - a->core->slabs));
    *refs = TKV_PLACE_FREE + s->first_free;
    s->first_free = (uint32_t)(refs - s->refs);
    class->n_free++;
    a->core->live_bytes -= class->block_bytes;
    if (class->kind == TKV_SLAB_BLOCKS && s->class < a->cap_reserved) {
        a->reserved[s->class]++;
        class->n_reserved++;
    }
}

static void give_up(struct tkv_arena *a, struct tkv_block_id id)
{
    if (!a->defers) {
        drop_ref(a, id);
        return;
    }
    assert(a->n_deferred < a->cap_deferred);
    a->deferred[a->n_deferred++] = id;
}

void tkv_arena_unref_each(struct tkv_arena *a, const void *ids, size_t stride_bytes, size_t n)
{
    lock(a);
    for (size_t i = 0; i < n; i++)
        give_up(a, id_at(ids, stride_bytes, i));
    unlock(a);
}

int tkv_arena_defer(struct tkv_arena *a, size_t n, struct tkv_report *why)
{
    bool has_room;

    n += a->n_deferred; /* of a request that failed after a plan was made anew */
    if (n >= UINT32_MAX / 2)
        return tkv_fail(why, TRIKV_E_TOO_LARGE, "%zu blocks in one request", n);
    lock(a);
    has_room = tkv_arena_table_grow(a->core, (void **)&a->deferred, sizeof(*a->deferred),
                                    (uint32_t)n, &a->cap_deferred);
    unlock(a);
    if (!has_room)
        return tkv_fail(why, TRIKV_E_MEMORY_CAP, "no room for a list of %zu blocks", n);
    a->defers = true;
    return 0;
}

void tkv_arena_settle(struct tkv_arena *a)
{
    if (a->n_deferred == 0)
        return;
    lock(a);
    for (uint32_t i = 0; i < a->n_deferred; i++)
        drop_ref(a, a->deferred[i]);
    unlock(a);
    a->n_deferred = 0;
}

void tkv_arena_defer_end(struct tkv_arena *a)
{
    tkv_arena_settle(a);
    a->defers = false;
}

bool tkv_arena_has_deferred(const struct tkv_arena *a)
{
    return a->n_deferred > 0;
}

size_t tkv_arena_deferred_bytes(const struct tkv_arena *a)
{
    return a->cap_deferred * sizeof(*a->deferred);
}

size_t tkv_arena_count_shared(struct tkv_arena *a, const void *ids, size_t stride_bytes, size_t n)
{
    size_t n_shared = 0;

    lock(a);
    for (size_t i = 0; i < n; i++)
        n_shared += *refs_of(a->core, id_at(ids, stride_bytes, i)) > 1;
    unlock(a);
    return n_shared;
}

void tkv_arena_ref(struct tkv_arena *a, struct tkv_block_id id)
{
    tkv_arena_ref_each(a, &id, sizeof(id), 1);
}

void tkv_arena_unref(struct tkv_arena *a, struct tkv_block_id id)
{
    tkv_arena_unref_each(a, &id, sizeof(id), 1);
}

void *tkv_arena_at(const struct tkv_arena *a, struct tkv_block_id id)
{
    return a->core->base + tkv_block_offset(id);
}

/* ---- gathering -------------------------------------------------------------------------- */

/* The emptiest slab of the class that does not drain yet, or n_slabs. */
static uint32_t emptiest_slab(const struct tkv_arena_core *c, uint32_t class)
{
    uint32_t best = c->n_slabs;

    for (uint32_t i = 0; i < c->n_slabs; i++) {
        const struct tkv_slab *s = &c->slabs[i];

        if (s->n_blocks && s->class == class && !s->drains &&
            (best == c->n_slabs ||
             s->n_free * c->slabs[best].n_blocks > c->slabs[best].n_free * s->n_blocks))
            best = i;
    }
    return best;
}

/* Drain slabs of a class, emptiest first, while the others have room for their blocks. */
static uint32_t drain_class(struct tkv_arena_core *c, uint32_t class)
{
    /* What is reserved, and what must move, cannot be given away. */
    size_t room = c->classes[class].n_free - c->classes[class].n_reserved;
    uint32_t n_drained = 0;

    if (c->classes[class].kind != TKV_SLAB_BLOCKS)
        return 0;
    for (;;) {
        const uint32_t i = emptiest_slab(c, class);

        /* Its free places no longer count, and its live blocks take others. */
        if (i == c->n_slabs || c->slabs[i].n_blocks > room)
            return n_drained;
        room -= c->slabs[i].n_blocks;
        c->slabs[i].drains = true;
        n_drained++;
    }
}

uint32_t tkv_arena_drain(struct tkv_arena *a)
{
    uint32_t n = 0;

    lock(a);
    for (uint32_t i = 0; i < a->core->n_classes; i++)
        n += drain_class(a->core, i);
    unlock(a);
    return n;
}

struct tkv_block_id tkv_arena_move(struct tkv_arena *a, struct tkv_block_id id)
{
    struct tkv_arena_core *c = a->core;
    struct tkv_block_id to = id;
    struct tkv_slab_class class;

    if (a->defers && a->n_deferred == a->cap_deferred)
        return id;
    lock(a);
    class = c->classes[slab_of(c, id)->class];
    if (slab_of(c, id)->drains && *refs_of(c, id) == 1 && class.n_free > class.n_reserved)
        to = take_place(c, slab_of(c, id)->class);
    unlock(a);
    if (to.place == id.place)
        return id;
    memcpy(tkv_arena_at(a, to), tkv_arena_at(a, id), class.block_bytes);
    tkv_arena_unref(a, id);
    return to;
}

static bool unreserve(struct tkv_arena *a, uint32_t class, size_t n)
{
    if (class >= a->cap_reserved || a->reserved[class] <= n)
        return false;
    a->core->classes[class].n_reserved -= a->reserved[class] - n;
    a->reserved[class] = n;
    return true;
}

bool tkv_arena_unreserve(struct tkv_arena *a, size_t block_bytes, size_t n)
{
    bool more;

    lock(a);
    more = unreserve(a, tkv_slab_class_of(a->core, block_bytes, TKV_SLAB_BLOCKS), n);
    unlock(a);
    return more;
}

static void sweep(struct tkv_arena_core *c)
{
    for (uint32_t i = 0; i < c->n_slabs; i++) {
        c->slabs[i].drains = false;
        tkv_slab_trim(c, &c->slabs[i]);
    }
}

void tkv_arena_sweep(struct tkv_arena *a)
{
    lock(a);
    sweep(a->core);
    unlock(a);
}

void tkv_arena_trim(struct tkv_arena *a)
{
    lock(a);
    for (uint32_t i = 0; i < a->core->n_classes; i++)
        (void)unreserve(a, i, 0);
    sweep(a->core);
    unlock(a);
}

/* ---- what it is ------------------------------------------------------------------------- */

void tkv_arena_mark(struct tkv_arena *a, unsigned marks)
{
    lock(a);
    a->core->marks |= marks;
    tkv_kept_mark(a->core);
    unlock(a);
}

void tkv_arena_freeze(struct tkv_arena *a)
{
    lock(a);
    a->core->is_frozen = true;
    unlock(a);
}

unsigned tkv_arena_marks(const struct tkv_arena *a)
{
    unsigned marks;

    lock(a);
    marks = a->core->marks;
    unlock(a);
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

    lock(a);
    s = (struct tkv_arena_sizes){.slab_bytes = a->core->slab_bytes,
                                 .live_bytes = a->core->live_bytes,
                                 .table_bytes = a->core->table_bytes,
                                 .n_users = a->core->n_users};
    unlock(a);
    return s;
}
