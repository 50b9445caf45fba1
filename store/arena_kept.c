/* The file of a kept arena: writing down its slabs, and taking such a file over. */
#include "store/arena_kept.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/types.h"
#include "proto/errors.h"
#include "store/arena_priv.h"
#include "store/budget.h"

enum { MAX_SLABS = 1 << 20, MAX_CLASSES = 4096 };

struct tkv_kept tkv_kept_layout(uint64_t capacity_bytes, uint64_t page_bytes)
{
    const uint64_t n_pages = capacity_bytes / page_bytes;
    struct tkv_kept k = {.cap_slabs = n_pages < MAX_SLABS ? n_pages : MAX_SLABS};

    k.directory_offset = page_bytes;
    k.slabs_offset =
        page_bytes + tkv_align(k.cap_slabs * sizeof(struct tkv_kept_slab), (size_t)page_bytes);
    return k;
}

static struct tkv_kept_super *super_of(const struct tkv_arena_core *c)
{
    return (struct tkv_kept_super *)(void *)c->base;
}

static struct tkv_kept_slab *record_of(const struct tkv_arena_core *c, uint32_t slab)
{
    return (struct tkv_kept_slab *)(void *)(c->base + c->kept.directory_offset) + slab;
}

/* ---- writing ---------------------------------------------------------------------------- */

/* Memory for a page of the front of the file, counted as table: nobody gives it back before the end. */
static bool back_page(struct tkv_arena_core *c, uint64_t offset)
{
    int e;

    if (!tkv_budget_reserve(c->budget, c->page_bytes))
        return false;
    do
        e = fallocate(c->fd, 0, (off_t)offset, (off_t)c->page_bytes) ? errno : 0;
    while (e == EINTR);
    if (e) {
        tkv_budget_release(c->budget, c->page_bytes);
        return false;
    }
    c->table_bytes += c->page_bytes;
    c->n_front_pages++;
    return true;
}

static uint32_t slabs_in_page(const struct tkv_arena_core *c)
{
    return (uint32_t)(c->page_bytes / sizeof(struct tkv_kept_slab));
}

/* Pages that the records of n slabs take, and the super block. */
static uint64_t front_pages(const struct tkv_arena_core *c, uint64_t n)
{
    return 1 + (n + slabs_in_page(c) - 1) / slabs_in_page(c);
}

bool tkv_kept_room(struct tkv_arena_core *c, uint32_t slab)
{
    if (c->id == 0)
        return true;
    if (slab >= c->kept.cap_slabs)
        return false;
    while (c->n_front_pages < front_pages(c, (uint64_t)slab + 1))
        if (!back_page(c, c->n_front_pages * c->page_bytes))
            return false;
    return true;
}

/* Its own store, after whatever the record says: a process that is killed in between leaves none. */
static void set_bytes(struct tkv_kept_slab *r, uint64_t bytes)
{
    __atomic_store_n(&r->bytes, bytes, __ATOMIC_RELEASE);
}

void tkv_kept_record(struct tkv_arena_core *c, uint32_t slab)
{
    const struct tkv_slab *s = &c->slabs[slab];
    struct tkv_kept_slab *r;

    if (c->id == 0)
        return;
    r = record_of(c, slab);
    r->offset = s->offset;
    r->block_bytes = (uint32_t)c->classes[s->class].block_bytes;
    r->kind = c->classes[s->class].kind;
    set_bytes(r, s->bytes);
}

void tkv_kept_erase(struct tkv_arena_core *c, uint32_t slab)
{
    if (c->id == 0)
        return;
    set_bytes(record_of(c, slab), 0);
    atomic_thread_fence(memory_order_seq_cst); /* before the memory changes */
}

void tkv_kept_mark(struct tkv_arena_core *c)
{
    if (c->id != 0)
        super_of(c)->marks = c->marks;
}

void tkv_kept_own(struct tkv_arena_core *c, uint32_t owner)
{
    super_of(c)->owner = owner;
}

bool tkv_arena_owner(int fd, uint32_t *owner)
{
    struct tkv_kept_super s;

    if (pread(fd, &s, sizeof(s), 0) != (ssize_t)sizeof(s) || s.magic != TKV_KEPT_MAGIC)
        return false;
    *owner = s.owner;
    return true;
}

int tkv_kept_format(struct tkv_arena_core *c, struct tkv_report *why)
{
    uint64_t id;

    if (getrandom(&id, sizeof(id), 0) != (ssize_t)sizeof(id))
        return tkv_fail(why, TRIKV_E_SYSTEM, "getrandom: %s", strerror(errno));
    c->kept = tkv_kept_layout(c->capacity_bytes, c->page_bytes);
    if (c->kept.slabs_offset >= c->capacity_bytes || !back_page(c, 0))
        return tkv_fail(why, TRIKV_E_MEMORY_CAP, "no room for an arena");
    c->id = id ? id : 1;
    *super_of(c) = (struct tkv_kept_super){
        .magic = TKV_KEPT_MAGIC,
        .version = TKV_KEPT_VERSION,
        .page_bytes = (uint32_t)c->page_bytes,
        .capacity_bytes = c->capacity_bytes,
        .id = c->id,
        .cap_slabs = c->kept.cap_slabs,
    };
    return 0;
}

/* ---- taking over ------------------------------------------------------------------------ */

static int check_file(struct tkv_arena_core *c, struct tkv_report *why)
{
    const int want = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
    const int seals = fcntl(c->fd, F_GET_SEALS);
    struct stat s;

    if (seals < 0 || fstat(c->fd, &s) < 0)
        return tkv_fail(why, TRIKV_E_ARGUMENT, "the descriptor is no memfd");
    if ((seals & want) != want || seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE))
        return tkv_fail(why, TRIKV_E_ARGUMENT, "the memfd has seals %#x, want %#x and writable",
                        (unsigned)seals, (unsigned)want);
    if (s.st_size < 2 * (off_t)c->page_bytes || s.st_size > (off_t)1 << 42 ||
        (uint64_t)s.st_size % c->page_bytes != 0)
        return tkv_fail(why, TRIKV_E_SIZE, "the memfd has %lld bytes", (long long)s.st_size);
    c->capacity_bytes = (size_t)s.st_size;
    return 0;
}

static int check_super(struct tkv_arena_core *c, struct tkv_report *why)
{
    const struct tkv_kept_super s = *super_of(c);

    if (s.magic != TKV_KEPT_MAGIC)
        return tkv_fail(why, TRIKV_E_ARGUMENT, "the memfd is no arena");
    if (s.version != TKV_KEPT_VERSION)
        return tkv_fail(why, TRIKV_E_VERSION, "the arena is of layout version %u, want %d",
                        s.version, TKV_KEPT_VERSION);
    if (s.page_bytes != c->page_bytes || s.capacity_bytes != c->capacity_bytes || s.id == 0)
        return tkv_fail(why, TRIKV_E_ARGUMENT,
                        "the arena is of %llu bytes in pages of %u, want %zu in pages of %zu",
                        (unsigned long long)s.capacity_bytes, s.page_bytes, c->capacity_bytes,
                        c->page_bytes);
    c->id = s.id;
    c->marks = s.marks;
    c->kept = tkv_kept_layout(c->capacity_bytes, c->page_bytes);
    if (s.cap_slabs != c->kept.cap_slabs || c->kept.slabs_offset >= c->capacity_bytes)
        return tkv_fail(why, TRIKV_E_ARGUMENT, "the arena has room for %llu slabs, want %llu",
                        (unsigned long long)s.cap_slabs, (unsigned long long)c->kept.cap_slabs);
    return 0;
}

static bool is_sound(const struct tkv_arena_core *c, const struct tkv_kept_slab *r)
{
    return r->offset >= c->kept.slabs_offset && r->offset % c->page_bytes == 0 &&
           r->bytes % c->page_bytes == 0 && r->bytes <= c->capacity_bytes &&
           r->offset <= c->capacity_bytes - r->bytes && r->kind < TKV_N_SLAB_KINDS &&
           r->block_bytes > 0 && r->block_bytes % 64 == 0 && r->block_bytes <= r->bytes &&
           r->reserved == 0;
}

/* Slab number i as its record has it, all its places free, its memory counted. */
static int take_slab(struct tkv_arena_core *c, uint32_t i, const struct tkv_kept_slab *r,
                     struct tkv_report *why)
{
    const enum tkv_slab_kind kind = (enum tkv_slab_kind)r->kind;
    struct tkv_slab s = {.offset = r->offset, .bytes = (size_t)r->bytes};

    if (!is_sound(c, r))
        return tkv_fail(why, TRIKV_E_ARGUMENT,
                        "slab %u of the arena is at %llu, %llu bytes of kind %u", i,
                        (unsigned long long)r->offset, (unsigned long long)r->bytes, r->kind);
    if (c->n_classes > MAX_CLASSES)
        return tkv_fail(why, TRIKV_E_ARGUMENT, "the arena has blocks of more than %d sizes",
                        MAX_CLASSES);
    s.class = tkv_slab_class_of(c, r->block_bytes, kind);
    s.n_blocks = tkv_slab_blocks(kind, s.bytes, r->block_bytes);
    if (s.class == UINT32_MAX ||
        !tkv_arena_table_grow(c, (void **)&c->slabs, sizeof(*c->slabs), i, &c->cap_slabs) ||
        !tkv_budget_reserve(c->budget, s.bytes))
        return tkv_fail(why, TRIKV_E_MEMORY_CAP,
                        "no room for slab %u of the arena, %zu bytes (used %zu of the cap of %zu)",
                        i, s.bytes, atomic_load(&c->budget->used_bytes), c->budget->cap_bytes);
    c->slab_bytes += s.bytes;
    s.refs = tkv_arena_table_alloc(c, s.n_blocks * sizeof(uint32_t));
    if (!s.refs)
        return tkv_fail(why, TRIKV_E_MEMORY_CAP, "no room for the tables of an arena");
    c->slabs[i] = s;
    c->n_slabs = i + 1;
    return 0;
}

/* The pages of the directory that there are, one after the other: the first that has none ends it. */
static int take_slabs(struct tkv_arena_core *c, struct tkv_report *why)
{
    const uint32_t n = slabs_in_page(c);
    const off_t end = (off_t)c->kept.slabs_offset;
    off_t hole = lseek(c->fd, 0, SEEK_HOLE);
    uint64_t n_pages;

    hole = hole < 0 || hole > end ? end : hole;
    n_pages = (uint64_t)hole / c->page_bytes;
    if (n_pages == 0 || !tkv_budget_reserve(c->budget, n_pages * c->page_bytes))
        return tkv_fail(why, TRIKV_E_MEMORY_CAP, "no room for an arena");
    c->n_front_pages = n_pages;
    c->table_bytes += n_pages * c->page_bytes;
    for (uint64_t i = 0; i < (n_pages - 1) * n && i < c->kept.cap_slabs; i++) {
        const struct tkv_kept_slab r = *record_of(c, (uint32_t)i); /* once: others may write */
        const int e = r.bytes ? take_slab(c, (uint32_t)i, &r, why) : 0;

        if (e)
            return e;
    }
    return 0;
}

static int by_offset(const void *a, const void *b)
{
    const struct tkv_extent *x = a, *y = b;

    return x->offset < y->offset ? -1 : x->offset > y->offset;
}

/* What lies between the slabs, without memory: some may be left of a slab that was never recorded. */
static int find_gaps(struct tkv_arena_core *c, struct tkv_report *why)
{
    struct tkv_extent *g;
    uint64_t at = c->kept.slabs_offset;
    uint32_t n = 0, n_used = 0;

    if (!tkv_arena_table_grow(c, (void **)&c->gaps, sizeof(*c->gaps), 2 * c->n_slabs + 1,
                              &c->cap_gaps))
        return tkv_fail(why, TRIKV_E_MEMORY_CAP, "no room for the tables of an arena");
    g = c->gaps + c->n_slabs + 1;
    for (uint32_t i = 0; i < c->n_slabs; i++)
        if (c->slabs[i].n_blocks)
            g[n_used++] = (struct tkv_extent){c->slabs[i].offset, c->slabs[i].bytes};
    qsort(g, n_used, sizeof(*g), by_offset);
    for (uint32_t i = 0; i <= n_used; i++) {
        const struct tkv_extent next =
            i < n_used ? g[i] : (struct tkv_extent){c->capacity_bytes, 0};

        if (next.offset < at)
            return tkv_fail(why, TRIKV_E_ARGUMENT, "slabs of the arena overlap at %llu",
                            (unsigned long long)next.offset);
        if (next.offset > at) {
            c->gaps[n++] = (struct tkv_extent){at, next.offset - at};
            (void)fallocate(c->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)at,
                            (off_t)(next.offset - at));
        }
        at = next.offset + next.bytes;
    }
    c->n_gaps = n;
    return 0;
}

static int adopt_core(struct tkv_arena_core *c, int fd, struct tkv_report *why)
{
    int e;

    c->is_frozen = true;
    c->fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (c->fd < 0)
        return tkv_fail(why, TRIKV_E_SYSTEM, "dup: %s", strerror(errno));
    e = check_file(c, why);
    if (!e && tkv_core_map(c))
        e = tkv_fail(why, TRIKV_E_SYSTEM, "arena of %zu bytes: %s", c->capacity_bytes,
                     strerror(errno));
    e = e ? e : check_super(c, why);
    e = e ? e : take_slabs(c, why);
    return e ? e : find_gaps(c, why);
}

int tkv_arena_adopt(struct tkv_arena **arena, int fd, struct tkv_budget *budget,
                    struct tkv_report *why)
{
    struct tkv_arena_core *c = tkv_core_alloc(budget);
    int e;

    *arena = NULL;
    if (!c)
        return tkv_fail(why, TRIKV_E_MEMORY_CAP, "no room for an arena");
    e = adopt_core(c, fd, why);
    if (!e) {
        *arena = tkv_core_add_user(c);
        if (*arena)
            return 0;
        e = tkv_fail(why, TRIKV_E_MEMORY_CAP, "no room for an arena");
    }
    tkv_core_destroy(c);
    return e;
}

bool tkv_arena_next(const struct tkv_arena *a, enum tkv_slab_kind kind, uint32_t *at,
                    struct tkv_block_id *id, size_t *bytes)
{
    const struct tkv_arena_core *c = tkv_arena_core(a);

    for (; *at < c->n_slabs; ++*at) {
        const struct tkv_slab *s = &c->slabs[*at];

        if (s->n_blocks == 0 || c->classes[s->class].kind != kind)
            continue;
        *id = (struct tkv_block_id){s->offset / 64 << TKV_SLAB_BITS | *at};
        *bytes = c->classes[s->class].block_bytes;
        ++*at;
        return true;
    }
    return false;
}

bool tkv_arena_claim(struct tkv_arena *a, struct tkv_block_id id, size_t block_bytes,
                     enum tkv_slab_kind kind)
{
    struct tkv_arena_core *c = tkv_arena_core(a);
    const uint64_t i = id.place & ((UINT64_C(1) << TKV_SLAB_BITS) - 1);
    const uint64_t offset = tkv_block_offset(id);
    const struct tkv_slab *s = &c->slabs[i < c->n_slabs ? i : 0];
    uint32_t *refs;

    if (i >= c->n_slabs || s->n_blocks == 0 || c->classes[s->class].kind != kind ||
        c->classes[s->class].block_bytes != block_bytes || offset < s->offset ||
        (offset - s->offset) % block_bytes != 0 ||
        (offset - s->offset) / block_bytes >= s->n_blocks)
        return false;
    refs = &s->refs[(offset - s->offset) / block_bytes];
    if (*refs >= TKV_PLACE_FREE - 1)
        return false;
    ++*refs;
    return true;
}

void tkv_arena_adopt_end(struct tkv_arena *a)
{
    struct tkv_arena_core *c = tkv_arena_core(a);

    c->is_frozen = false;
    for (uint32_t i = 0; i < c->n_slabs; i++) {
        struct tkv_slab *s = &c->slabs[i];

        if (s->n_blocks == 0)
            continue;
        tkv_slab_index(c, s);
        c->live_bytes += (s->n_blocks - s->n_free) * c->classes[s->class].block_bytes;
        tkv_slab_trim(c, s);
    }
}
