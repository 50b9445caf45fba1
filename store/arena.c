#include "store/arena.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "proto/errors.h"
#include "store/budget.h"

/* A slab is large enough to waste little at its end and small enough to waste little while it fills:
 * up to a part of what the arena already holds, between these bounds. */
enum { MIN_SLAB_PAGES = 24, MAX_SLAB_PAGES = 512, SLAB_PART = 64, MAX_OPEN = 64 };

/* n_blocks = 0 marks an entry that is not in use. */
struct slab {
    uint64_t offset;
    size_t bytes;
    size_t block_bytes;
    uint32_t n_blocks;
    uint32_t n_free;
    uint32_t first_free; /* no block before it is free */
    bool drains;         /* nothing is allocated here any more */
    uint32_t *refs;      /* [n_blocks] */
};

/* A run of the file that no slab uses. */
struct extent {
    uint64_t offset;
    uint64_t bytes;
};

struct tkv_arena {
    struct tkv_budget *budget;
    int fd;
    int read_fd;
    uint8_t *base;
    size_t capacity_bytes;
    size_t page_bytes;
    size_t slab_bytes;
    size_t live_bytes;
    size_t table_bytes;
    struct slab *slabs;
    uint32_t n_slabs, cap_slabs;
    uint32_t open[MAX_OPEN]; /* slabs that came to have room, the last first to be used */
    uint32_t n_open;
    struct extent *gaps; /* ascending, never adjacent */
    uint32_t n_gaps, cap_gaps;
};

/* ---- private tables, counted in the budget ------------------------------------------------ */

static void *table_alloc(struct tkv_arena *a, size_t bytes)
{
    void *p = tkv_budget_alloc(a->budget, bytes);

    if (p)
        a->table_bytes += bytes;
    return p;
}

static void table_free(struct tkv_arena *a, void *p, size_t bytes)
{
    if (!p)
        return;
    tkv_budget_free(a->budget, p, bytes);
    a->table_bytes -= bytes;
}

/* Room for element number n in *table, which has room for *cap. */
static bool table_grow(struct tkv_arena *a, void **table, size_t element_bytes, uint32_t n,
                       uint32_t *cap)
{
    uint32_t want = *cap ? *cap : 8;
    void *p;

    if (n < *cap)
        return true;
    while (want <= n)
        want *= 2;
    p = table_alloc(a, want * element_bytes);
    if (!p)
        return false;
    if (*cap > 0)
        memcpy(p, *table, *cap * element_bytes);
    table_free(a, *table, *cap * element_bytes);
    *table = p;
    *cap = want;
    return true;
}

/* ---- the file --------------------------------------------------------------------------- */

static int open_read_only(int fd)
{
    char path[32];

    (void)snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    return open(path, O_RDONLY | O_CLOEXEC);
}

/* Mode 0600 and the seals: see the header. MFD_NOEXEC_SEAL is newer than Debian 12's headers. */
static int make_file(struct tkv_arena *a)
{
    const unsigned noexec_seal = 0x8u;

    a->fd = memfd_create("trikv-arena", MFD_CLOEXEC | MFD_ALLOW_SEALING | noexec_seal);
    if (a->fd < 0 && errno == EINVAL)
        a->fd = memfd_create("trikv-arena", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (a->fd < 0 || fchmod(a->fd, 0600) || ftruncate(a->fd, (off_t)a->capacity_bytes) ||
        fcntl(a->fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL))
        return -1;
    a->read_fd = open_read_only(a->fd);
    if (a->read_fd < 0)
        return -1;
    a->base =
        mmap(NULL, a->capacity_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, a->fd, 0);
    return a->base == MAP_FAILED ? -1 : 0;
}

/* The budget bounds what can be in use; twice that in addresses leaves room for gaps. */
static size_t arena_capacity(const struct tkv_budget *b, size_t page_bytes)
{
    const size_t most = (size_t)1 << 42;
    const size_t want = b->cap_bytes < most / 2 ? b->cap_bytes * 2 : most;

    return (want + page_bytes - 1) / page_bytes * page_bytes;
}

int tkv_arena_create(struct tkv_arena **arena, struct tkv_budget *budget, struct tkv_report *why)
{
    struct tkv_arena *a = tkv_budget_alloc(budget, sizeof(*a));

    *arena = NULL;
    if (!a)
        return tkv_fail(why, TRIKV_E_MEMORY_CAP, "no room for an arena");
    a->budget = budget;
    a->fd = a->read_fd = -1;
    a->base = MAP_FAILED;
    a->table_bytes = sizeof(*a);
    a->page_bytes = (size_t)sysconf(_SC_PAGESIZE);
    a->capacity_bytes = arena_capacity(budget, a->page_bytes);
    if (make_file(a)) {
        const int e = tkv_fail(why, TRIKV_E_SYSTEM, "arena of %zu bytes: %s", a->capacity_bytes,
                               strerror(errno));

        tkv_arena_destroy(&a);
        return e;
    }
    if (!table_grow(a, (void **)&a->gaps, sizeof(*a->gaps), 0, &a->cap_gaps)) {
        tkv_arena_destroy(&a);
        return tkv_fail(why, TRIKV_E_MEMORY_CAP, "no room for an arena's tables");
    }
    a->gaps[a->n_gaps++] = (struct extent){0, a->capacity_bytes};
    *arena = a;
    return 0;
}

void tkv_arena_destroy(struct tkv_arena **arena)
{
    struct tkv_arena *a = *arena;

    if (!a)
        return;
    for (uint32_t i = 0; i < a->n_slabs; i++)
        table_free(a, a->slabs[i].refs, a->slabs[i].n_blocks * sizeof(uint32_t));
    table_free(a, a->slabs, a->cap_slabs * sizeof(*a->slabs));
    table_free(a, a->gaps, a->cap_gaps * sizeof(*a->gaps));
    if (a->base != MAP_FAILED)
        munmap(a->base, a->capacity_bytes);
    if (a->read_fd >= 0)
        close(a->read_fd);
    if (a->fd >= 0)
        close(a->fd);
    tkv_budget_release(a->budget, a->slab_bytes);
    tkv_budget_free(a->budget, a, sizeof(*a));
    *arena = NULL;
}

/* ---- slabs ------------------------------------------------------------------------------ */

/* Of the sizes allowed, the one that wastes the smallest part. */
static size_t slab_size(const struct tkv_arena *a, size_t block_bytes)
{
    const size_t least = (block_bytes + a->page_bytes - 1) / a->page_bytes;
    size_t most = a->slab_bytes / SLAB_PART / a->page_bytes;
    size_t best = least * a->page_bytes;

    most = most < MIN_SLAB_PAGES ? MIN_SLAB_PAGES : most;
    most = most > MAX_SLAB_PAGES ? MAX_SLAB_PAGES : most;
    for (size_t pages = least + 1; pages <= most; pages++) {
        const size_t bytes = pages * a->page_bytes;

        if (bytes % block_bytes * best < best % block_bytes * bytes)
            best = bytes;
    }
    return best;
}

static bool take_extent(struct tkv_arena *a, size_t bytes, uint64_t *offset)
{
    for (uint32_t i = 0; i < a->n_gaps; i++) {
        struct extent *g = &a->gaps[i];

        if (g->bytes < bytes)
            continue;
        *offset = g->offset;
        g->offset += bytes;
        g->bytes -= bytes;
        if (g->bytes == 0) {
            memmove(g, g + 1, (a->n_gaps - i - 1) * sizeof(*g));
            a->n_gaps--;
        }
        return true;
    }
    return false;
}

/* The caller made room for one more gap. */
static void give_extent(struct tkv_arena *a, uint64_t offset, size_t bytes)
{
    uint32_t i = 0;
    bool joins_left, joins_right;

    while (i < a->n_gaps && a->gaps[i].offset < offset)
        i++;
    joins_left = i > 0 && a->gaps[i - 1].offset + a->gaps[i - 1].bytes == offset;
    joins_right = i < a->n_gaps && offset + bytes == a->gaps[i].offset;
    if (joins_left && joins_right) {
        a->gaps[i - 1].bytes += bytes + a->gaps[i].bytes;
        memmove(&a->gaps[i], &a->gaps[i + 1], (a->n_gaps - i - 1) * sizeof(*a->gaps));
        a->n_gaps--;
    } else if (joins_left) {
        a->gaps[i - 1].bytes += bytes;
    } else if (joins_right) {
        a->gaps[i].offset = offset;
        a->gaps[i].bytes += bytes;
    } else {
        memmove(&a->gaps[i + 1], &a->gaps[i], (a->n_gaps - i) * sizeof(*a->gaps));
        a->gaps[i] = (struct extent){offset, bytes};
        a->n_gaps++;
    }
}

static struct slab *free_entry(struct tkv_arena *a)
{
    for (uint32_t i = 0; i < a->n_slabs; i++)
        if (a->slabs[i].n_blocks == 0)
            return &a->slabs[i];
    if (!table_grow(a, (void **)&a->slabs, sizeof(*a->slabs), a->n_slabs, &a->cap_slabs))
        return NULL;
    return &a->slabs[a->n_slabs++];
}

static int slab_fail(struct tkv_arena *a, size_t bytes, struct tkv_report *why)
{
    return tkv_fail(why, TRIKV_E_MEMORY_CAP, "%zu bytes more would pass the cap of %zu (used %zu)",
                    bytes, a->budget->cap_bytes, atomic_load(&a->budget->used_bytes));
}

/* Allocate the memory of a slab that already has its place. */
static int back_slab(struct tkv_arena *a, struct slab *s, struct tkv_report *why)
{
    int e;

    do
        e = fallocate(a->fd, 0, (off_t)s->offset, (off_t)s->bytes) ? errno : 0;
    while (e == EINTR);
    if (e)
        return tkv_fail(why, TRIKV_E_NO_MEMORY, "fallocate of %zu bytes: %s", s->bytes,
                        strerror(e));
    a->slab_bytes += s->bytes;
    return 0;
}

static int add_slab(struct tkv_arena *a, size_t block_bytes, size_t *n_blocks,
                    struct tkv_report *why)
{
    struct slab new = {.block_bytes = block_bytes, .bytes = slab_size(a, block_bytes)};
    struct slab *s;
    int e;

    new.n_blocks = new.n_free = (uint32_t)(new.bytes / block_bytes);
    /* Room for the gap that its return may make, now, so that a return never fails. */
    if (!table_grow(a, (void **)&a->gaps, sizeof(*a->gaps), a->n_gaps + a->n_slabs + 1,
                    &a->cap_gaps))
        return slab_fail(a, new.bytes, why);
    s = free_entry(a);
    if (!s || !tkv_budget_reserve(a->budget, new.bytes))
        return slab_fail(a, new.bytes, why);
    new.refs = table_alloc(a, new.n_blocks * sizeof(uint32_t));
    if (!new.refs || !take_extent(a, new.bytes, &new.offset)) {
        table_free(a, new.refs, new.n_blocks * sizeof(uint32_t));
        tkv_budget_release(a->budget, new.bytes);
        return slab_fail(a, new.bytes, why);
    }
    e = back_slab(a, &new, why);
    if (e) {
        give_extent(a, new.offset, new.bytes);
        table_free(a, new.refs, new.n_blocks * sizeof(uint32_t));
        tkv_budget_release(a->budget, new.bytes);
        return e;
    }
    *s = new;
    *n_blocks = new.n_blocks;
    return 0;
}

int tkv_arena_reserve(struct tkv_arena *a, size_t block_bytes, size_t n, struct tkv_report *why)
{
    size_t n_free = 0;

    assert(block_bytes > 0 && block_bytes % 64 == 0);
    for (uint32_t i = 0; i < a->n_slabs; i++)
        if (a->slabs[i].n_blocks && a->slabs[i].block_bytes == block_bytes)
            n_free += a->slabs[i].n_free;
    while (n_free < n) {
        size_t n_blocks = 0;
        const int e = add_slab(a, block_bytes, &n_blocks, why);

        if (e)
            return e;
        n_free += n_blocks;
    }
    return 0;
}

/* ---- blocks ----------------------------------------------------------------------------- */

static bool has_room(const struct tkv_arena *a, uint32_t i, size_t block_bytes)
{
    return i < a->n_slabs && a->slabs[i].n_blocks && a->slabs[i].block_bytes == block_bytes &&
           a->slabs[i].n_free > 0 && !a->slabs[i].drains;
}

static void open_slab(struct tkv_arena *a, uint32_t i)
{
    if (a->n_open == MAX_OPEN)
        memmove(a->open, a->open + 1, --a->n_open * sizeof(*a->open));
    a->open[a->n_open++] = i;
}

/*
 * The slab that had a block returned last: its memory is still near. If none is known, the fullest
 * that has room, so that the emptiest ones drain and can be given back.
 */
static uint32_t slab_with_room(struct tkv_arena *a, size_t block_bytes)
{
    uint32_t best = a->n_slabs;

    for (; a->n_open > 0; a->n_open--)
        if (has_room(a, a->open[a->n_open - 1], block_bytes))
            return a->open[a->n_open - 1];
    for (uint32_t i = 0; i < a->n_slabs; i++)
        if (has_room(a, i, block_bytes) &&
            (best == a->n_slabs || a->slabs[i].n_free < a->slabs[best].n_free))
            best = i;
    assert(best < a->n_slabs);
    open_slab(a, best);
    return best;
}

struct tkv_block_id tkv_arena_take(struct tkv_arena *a, size_t block_bytes)
{
    struct tkv_block_id id = {.slab = slab_with_room(a, block_bytes)};
    struct slab *s = &a->slabs[id.slab];

    for (id.index = s->first_free; s->refs[id.index] != 0;)
        id.index++;
    s->first_free = id.index + 1;
    s->refs[id.index] = 1;
    s->n_free--;
    a->live_bytes += block_bytes;
    return id;
}

struct tkv_block_id tkv_arena_alloc(struct tkv_arena *a, size_t block_bytes)
{
    const struct tkv_block_id id = tkv_arena_take(a, block_bytes);

    memset(tkv_arena_at(a, id), 0, block_bytes);
    return id;
}

void tkv_arena_ref(struct tkv_arena *a, struct tkv_block_id id)
{
    assert(a->slabs[id.slab].refs[id.index] > 0);
    a->slabs[id.slab].refs[id.index]++;
}

void tkv_arena_unref(struct tkv_arena *a, struct tkv_block_id id)
{
    struct slab *s = &a->slabs[id.slab];

    assert(s->refs[id.index] > 0);
    if (--s->refs[id.index] > 0)
        return;
    if (s->n_free++ == 0)
        open_slab(a, id.slab);
    s->first_free = id.index < s->first_free ? id.index : s->first_free;
    a->live_bytes -= s->block_bytes;
}

uint64_t tkv_arena_offset(const struct tkv_arena *a, struct tkv_block_id id)
{
    return a->slabs[id.slab].offset + id.index * a->slabs[id.slab].block_bytes;
}

void *tkv_arena_at(const struct tkv_arena *a, struct tkv_block_id id)
{
    return a->base + tkv_arena_offset(a, id);
}

/* The emptiest slab of a's size that does not drain yet, or n_slabs. */
static uint32_t emptiest_slab(const struct tkv_arena *a, size_t block_bytes)
{
    uint32_t best = a->n_slabs;

    for (uint32_t i = 0; i < a->n_slabs; i++) {
        const struct slab *s = &a->slabs[i];

        if (s->n_blocks && s->block_bytes == block_bytes && !s->drains &&
            (best == a->n_slabs ||
             s->n_free * a->slabs[best].n_blocks > a->slabs[best].n_free * s->n_blocks))
            best = i;
    }
    return best;
}

/* Drain slabs of one block size, emptiest first, while the others have room for their blocks. */
static uint32_t drain_size(struct tkv_arena *a, size_t block_bytes)
{
    uint32_t n_drained = 0;
    size_t room = 0; /* in slabs that do not drain, less what must move there */

    for (uint32_t i = 0; i < a->n_slabs; i++)
        if (a->slabs[i].n_blocks && a->slabs[i].block_bytes == block_bytes)
            room += a->slabs[i].n_free;
    for (;;) {
        const uint32_t i = emptiest_slab(a, block_bytes);

        /* Its free places no longer count, and its live blocks take others. */
        if (i == a->n_slabs || a->slabs[i].n_blocks > room)
            return n_drained;
        room -= a->slabs[i].n_blocks;
        a->slabs[i].drains = true;
        n_drained++;
    }
}

uint32_t tkv_arena_drain(struct tkv_arena *a)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < a->n_slabs; i++) {
        bool seen = a->slabs[i].n_blocks == 0;

        for (uint32_t j = 0; !seen && j < i; j++)
            seen = a->slabs[j].n_blocks && a->slabs[j].block_bytes == a->slabs[i].block_bytes;
        if (!seen)
            n += drain_size(a, a->slabs[i].block_bytes);
    }
    return n;
}

struct tkv_block_id tkv_arena_move(struct tkv_arena *a, struct tkv_block_id id)
{
    const struct slab *s = &a->slabs[id.slab];
    struct tkv_block_id to;

    if (!s->drains || s->refs[id.index] > 1)
        return id;
    to = tkv_arena_take(a, s->block_bytes);
    memcpy(tkv_arena_at(a, to), tkv_arena_at(a, id), s->block_bytes);
    tkv_arena_unref(a, id);
    return to;
}

void tkv_arena_trim(struct tkv_arena *a)
{
    for (uint32_t i = 0; i < a->n_slabs; i++) {
        struct slab *s = &a->slabs[i];

        s->drains = false;
        if (s->n_blocks == 0 || s->n_free < s->n_blocks)
            continue;
        if (fallocate(a->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)s->offset,
                      (off_t)s->bytes))
            continue; /* the memory is still held, so it stays counted */
        give_extent(a, s->offset, s->bytes);
        tkv_budget_release(a->budget, s->bytes);
        a->slab_bytes -= s->bytes;
        table_free(a, s->refs, s->n_blocks * sizeof(uint32_t));
        *s = (struct slab){0};
    }
}

int tkv_arena_read_fd(const struct tkv_arena *a)
{
    return a->read_fd;
}

size_t tkv_arena_capacity_bytes(const struct tkv_arena *a)
{
    return a->capacity_bytes;
}

size_t tkv_arena_slab_bytes(const struct tkv_arena *a)
{
    return a->slab_bytes;
}

size_t tkv_arena_live_bytes(const struct tkv_arena *a)
{
    return a->live_bytes;
}

size_t tkv_arena_table_bytes(const struct tkv_arena *a)
{
    return a->table_bytes;
}
