/* An arena's blocks: taking them, counting the references to them, and gathering those of slabs that
 * are nearly empty in others, so that what is empty can go back. The arena itself and what its users
 * have reserved are arena.c's, the slabs arena_slabs.c's. */
#include "store/arena.h"

#include <assert.h>
#include <string.h>

#include "proto/errors.h"
#include "store/arena_priv.h"

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

    tkv_arena_lock(a);
    class = tkv_slab_class_of(a->core, block_bytes, TKV_SLAB_BLOCKS);
    for (size_t i = 0; i < n; i++)
        ids[i] = take_reserved(a, class);
    tkv_arena_unlock(a);
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
    tkv_arena_lock(a);
    e = tkv_arena_reserve_places(a, bytes, kind, 1, why);
    if (!e)
        *id = take_reserved(a, tkv_slab_class_of(a->core, bytes, kind));
    tkv_arena_unlock(a);
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
    tkv_arena_lock(a);
    for (size_t i = 0; i < n; i++) {
        uint32_t *refs = refs_of(a->core, id_at(ids, stride_bytes, i));

        assert(*refs > 0 && *refs < TKV_PLACE_FREE);
        ++*refs;
    }
    tkv_arena_unlock(a);
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
    tkv_arena_lock(a);
    for (size_t i = 0; i < n; i++)
        give_up(a, id_at(ids, stride_bytes, i));
    tkv_arena_unlock(a);
}

int tkv_arena_defer(struct tkv_arena *a, size_t n, struct tkv_report *why)
{
    bool has_room;

    n += a->n_deferred; /* of a request that failed after a plan was made anew */
    if (n >= UINT32_MAX / 2)
        return tkv_fail(why, TRIKV_E_TOO_LARGE, "%zu blocks in one request", n);
    tkv_arena_lock(a);
    has_room = tkv_arena_table_grow(a->core, (void **)&a->deferred, sizeof(*a->deferred),
                                    (uint32_t)n, &a->cap_deferred);
    tkv_arena_unlock(a);
    if (!has_room)
        return tkv_fail(why, TRIKV_E_MEMORY_CAP, "no room for a list of %zu blocks", n);
    a->defers = true;
    return 0;
}

void tkv_arena_settle(struct tkv_arena *a)
{
    if (a->n_deferred == 0)
        return;
    tkv_arena_lock(a);
    for (uint32_t i = 0; i < a->n_deferred; i++)
        drop_ref(a, a->deferred[i]);
    tkv_arena_unlock(a);
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

    tkv_arena_lock(a);
    for (size_t i = 0; i < n; i++)
        n_shared += *refs_of(a->core, id_at(ids, stride_bytes, i)) > 1;
    tkv_arena_unlock(a);
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

    tkv_arena_lock(a);
    for (uint32_t i = 0; i < a->core->n_classes; i++)
        n += drain_class(a->core, i);
    tkv_arena_unlock(a);
    return n;
}

struct tkv_block_id tkv_arena_move(struct tkv_arena *a, struct tkv_block_id id)
{
    struct tkv_arena_core *c = a->core;
    struct tkv_block_id to = id;
    struct tkv_slab_class class;

    if (a->defers && a->n_deferred == a->cap_deferred)
        return id;
    tkv_arena_lock(a);
    class = c->classes[slab_of(c, id)->class];
    if (slab_of(c, id)->drains && *refs_of(c, id) == 1 && class.n_free > class.n_reserved)
        to = take_place(c, slab_of(c, id)->class);
    tkv_arena_unlock(a);
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

    tkv_arena_lock(a);
    more = unreserve(a, tkv_slab_class_of(a->core, block_bytes, TKV_SLAB_BLOCKS), n);
    tkv_arena_unlock(a);
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
    tkv_arena_lock(a);
    sweep(a->core);
    tkv_arena_unlock(a);
}

void tkv_arena_trim(struct tkv_arena *a)
{
    tkv_arena_lock(a);
    for (uint32_t i = 0; i < a->core->n_classes; i++)
        (void)unreserve(a, i, 0);
    sweep(a->core);
    tkv_arena_unlock(a);
}
