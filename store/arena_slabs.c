/* The slabs of an arena: where in the file they lie, and the memory that they hold. Called with the
 * arena's lock held. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "proto/errors.h"
#include "store/arena_priv.h"
#include "store/budget.h"

void *tkv_arena_table_alloc(struct tkv_arena_core *c, size_t bytes)
{
    void *p = tkv_budget_alloc(c->budget, bytes);

    if (p)
        c->table_bytes += bytes;
    return p;
}

void tkv_arena_table_free(struct tkv_arena_core *c, void *table, size_t bytes)
{
    if (!table)
        return;
    tkv_budget_free(c->budget, table, bytes);
    c->table_bytes -= bytes;
}

bool tkv_arena_table_grow(struct tkv_arena_core *c, void **table, size_t element_bytes, uint32_t n,
                          uint32_t *cap)
{
    uint32_t want = *cap ? *cap : 8;
    void *p;

    if (n < *cap)
        return true;
    while (want <= n)
        want *= 2;
    p = tkv_arena_table_alloc(c, want * element_bytes);
    if (!p)
        return false;
    if (*cap > 0)
        memcpy(p, *table, *cap * element_bytes);
    tkv_arena_table_free(c, *table, *cap * element_bytes);
    *table = p;
    *cap = want;
    return true;
}

uint32_t tkv_slab_class_of(struct tkv_arena_core *c, size_t block_bytes, enum tkv_slab_kind kind)
{
    for (uint32_t i = 0; i < c->n_classes; i++)
        if (c->classes[i].block_bytes == block_bytes && c->classes[i].kind == kind)
            return i;
    if (!tkv_arena_table_grow(c, (void **)&c->classes, sizeof(*c->classes), c->n_classes,
                              &c->cap_classes))
        return UINT32_MAX;
    c->classes[c->n_classes] = (struct tkv_slab_class){.block_bytes = block_bytes, .kind = kind};
    return c->n_classes++;
}

/*
 * Of the sizes allowed, the one that wastes the smallest part. A slab is large enough to waste little
 * at its end and small enough to waste little while it fills: up to a part of what the arena already
 * holds, between bounds. Buffers have slabs of their own, unless little is expected.
 */
size_t tkv_slab_size(const struct tkv_arena_core *c, size_t block_bytes, enum tkv_slab_kind kind)
{
    const size_t least = (block_bytes + c->page_bytes - 1) / c->page_bytes;
    size_t most = c->slab_bytes / TKV_SLAB_PART / c->page_bytes;
    size_t best = least * c->page_bytes;

    if (kind == TKV_SLAB_JOURNAL || kind == TKV_SLAB_PIN ||
        (kind == TKV_SLAB_BUFFER && c->least_slab_pages > TKV_SMALL_SLAB_PAGES))
        return best;
    if (kind == TKV_SLAB_BUFFER)
        most = TKV_SMALL_SLAB_PAGES;
    most = most < c->least_slab_pages ? c->least_slab_pages : most;
    most = most > TKV_MAX_SLAB_PAGES ? TKV_MAX_SLAB_PAGES : most;
    for (size_t pages = least + 1; pages <= most; pages++) {
        const size_t bytes = pages * c->page_bytes;

        if (bytes % block_bytes * best < best % block_bytes * bytes)
            best = bytes;
    }
    return best;
}

uint32_t tkv_slab_blocks(enum tkv_slab_kind kind, size_t slab_bytes, size_t block_bytes)
{
    return kind == TKV_SLAB_JOURNAL || kind == TKV_SLAB_PIN ? 1
                                                            : (uint32_t)(slab_bytes / block_bytes);
}

static bool take_extent(struct tkv_arena_core *c, size_t bytes, uint64_t *offset)
{
    for (uint32_t i = 0; i < c->n_gaps; i++) {
        struct tkv_extent *g = &c->gaps[i];

        if (g->bytes < bytes)
            continue;
        *offset = g->offset;
        g->offset += bytes;
        g->bytes -= bytes;
        if (g->bytes == 0) {
            memmove(g, g + 1, (c->n_gaps - i - 1) * sizeof(*g));
            c->n_gaps--;
        }
        return true;
    }
    return false;
}

/* There is room for one more gap: the slab's coming saw to it. */
static void give_extent(struct tkv_arena_core *c, uint64_t offset, size_t bytes)
{
    uint32_t i = 0;
    bool joins_left, joins_right;

    while (i < c->n_gaps && c->gaps[i].offset < offset)
        i++;
    joins_left = i > 0 && c->gaps[i - 1].offset + c->gaps[i - 1].bytes == offset;
    joins_right = i < c->n_gaps && offset + bytes == c->gaps[i].offset;
    if (joins_left && joins_right) {
        c->gaps[i - 1].bytes += bytes + c->gaps[i].bytes;
        memmove(&c->gaps[i], &c->gaps[i + 1], (c->n_gaps - i - 1) * sizeof(*c->gaps));
        c->n_gaps--;
    } else if (joins_left) {
        c->gaps[i - 1].bytes += bytes;
    } else if (joins_right) {
        c->gaps[i].offset = offset;
        c->gaps[i].bytes += bytes;
    } else {
        memmove(&c->gaps[i + 1], &c->gaps[i], (c->n_gaps - i) * sizeof(*c->gaps));
        c->gaps[i] = (struct tkv_extent){offset, bytes};
        c->n_gaps++;
    }
}

struct tkv_slab *tkv_slab_entry(struct tkv_arena_core *c)
{
    for (uint32_t i = 0; i < c->n_slabs; i++)
        if (c->slabs[i].n_blocks == 0)
            return &c->slabs[i];
    if (c->n_slabs == UINT32_C(1) << TKV_SLAB_BITS ||
        !tkv_arena_table_grow(c, (void **)&c->slabs, sizeof(*c->slabs), c->n_slabs, &c->cap_slabs))
        return NULL;
    return &c->slabs[c->n_slabs++];
}

static int fail_cap(const struct tkv_arena_core *c, size_t bytes, struct tkv_report *why)
{
    return tkv_fail(why, TRIKV_E_MEMORY_CAP, "%zu bytes more would pass the cap of %zu (used %zu)",
                    bytes, c->budget->cap_bytes, atomic_load(&c->budget->used_bytes));
}

/* Memory of its own for the slab at its place. */
static int back_slab(struct tkv_arena_core *c, const struct tkv_slab *s, struct tkv_report *why)
{
    int e;

    do
        e = fallocate(c->fd, 0, (off_t)s->offset, (off_t)s->bytes) ? errno : 0;
    while (e == EINTR);
    if (e)
        return tkv_fail(why, TRIKV_E_NO_MEMORY, "fallocate of %zu bytes: %s", s->bytes,
                        strerror(e));
    return 0;
}

void tkv_slab_index(struct tkv_arena_core *c, struct tkv_slab *s)
{
    s->n_free = 0;
    for (uint32_t i = s->n_blocks; i-- > 0;) {
        if (s->refs[i] > 0)
            continue;
        s->refs[i] = TKV_PLACE_FREE + s->first_free;
        s->first_free = i;
        s->n_free++;
    }
    c->classes[s->class].n_free += s->n_free;
}

static void drop_index(struct tkv_arena_core *c, struct tkv_slab *s)
{
    c->classes[s->class].n_free -= s->refs ? s->n_free : 0;
    tkv_arena_table_free(c, s->refs, s->n_blocks * sizeof(uint32_t));
}

/* Everything that a slab needs, for a budget that already counts it. */
static int make_slab(struct tkv_arena_core *c, struct tkv_slab *s, struct tkv_report *why)
{
    int e;

    s->refs = tkv_arena_table_alloc(c, s->n_blocks * sizeof(uint32_t));
    if (s->refs)
        tkv_slab_index(c, s);
    if (!s->refs || !take_extent(c, s->bytes, &s->offset)) {
        drop_index(c, s);
        return fail_cap(c, s->bytes, why);
    }
    e = back_slab(c, s, why);
    if (e) {
        give_extent(c, s->offset, s->bytes);
        drop_index(c, s);
    }
    return e;
}

int tkv_slab_add(struct tkv_arena_core *c, uint32_t class, struct tkv_report *why)
{
    struct tkv_slab new = {
        .class = class,
        .bytes = tkv_slab_size(c, c->classes[class].block_bytes, c->classes[class].kind)};
    struct tkv_slab *s;
    int e;

    new.n_blocks = new.n_free =
        tkv_slab_blocks(c->classes[class].kind, new.bytes, c->classes[class].block_bytes);
    /* Room for the gap that its return may make, now, so that a return never fails. */
    if (!tkv_arena_table_grow(c, (void **)&c->gaps, sizeof(*c->gaps), c->n_gaps + c->n_slabs + 1,
                              &c->cap_gaps))
        return fail_cap(c, new.bytes, why);
    s = tkv_slab_entry(c);
    if (!s || !tkv_kept_room(c, (uint32_t)(s - c->slabs)) ||
        !tkv_budget_reserve(c->budget, new.bytes))
        return fail_cap(c, new.bytes, why);
    e = make_slab(c, &new, why);
    if (e) {
        tkv_budget_release(c->budget, new.bytes);
        return e;
    }
    c->slab_bytes += new.bytes;
    *s = new;
    tkv_kept_record(c, (uint32_t)(s - c->slabs));
    return 0;
}

void tkv_slab_trim(struct tkv_arena_core *c, struct tkv_slab *s)
{
    struct tkv_slab_class *class = &c->classes[s->class];

    if (c->is_frozen || s->n_blocks == 0 || s->n_free < s->n_blocks ||
        class->n_free - s->n_blocks < class->n_reserved)
        return;
    tkv_kept_erase(c, (uint32_t)(s - c->slabs));
    if (fallocate(c->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)s->offset,
                  (off_t)s->bytes)) {
        tkv_kept_record(c, (uint32_t)(s - c->slabs));
        return; /* the memory is still held, so it stays counted */
    }
    give_extent(c, s->offset, s->bytes);
    tkv_budget_release(c->budget, s->bytes);
    c->slab_bytes -= s->bytes;
    class->n_free -= s->n_blocks;
    tkv_arena_table_free(c, s->refs, s->n_blocks * sizeof(uint32_t));
    *s = (struct tkv_slab){0};
}
