/*
 * What sessions share: counted private memory, and block tables, which are shared whole until
 * someone changes one. A shared table holds one reference to each of its blocks for all
 * who refer to the table.
 */
#include <assert.h>
#include <string.h>

#include "proto/errors.h"
#include "store/budget.h"
#include "store/session_priv.h"

/* In front of the memory, and as much as keeps it aligned. */
struct header {
    atomic_uint refs;
    bool is_frozen;    /* a table that was shared: */
    uint32_t n_blocks; /* so many it refers to, whatever its users see of it */
    size_t bytes;
};

enum { HEADER_BYTES = 64 };
_Static_assert(sizeof(struct header) <= HEADER_BYTES, "header fits");

static struct header *header_of(const void *p)
{
    return (struct header *)((uintptr_t)p - HEADER_BYTES);
}

void *tkv_shared_alloc(struct tkv_session *s, size_t bytes)
{
    struct header *h = tkv_session_alloc(s, HEADER_BYTES + bytes);

    if (!h)
        return NULL;
    atomic_init(&h->refs, 1);
    h->bytes = HEADER_BYTES + bytes;
    return (uint8_t *)h + HEADER_BYTES;
}

void *tkv_shared_ref(struct tkv_session *s, void *p)
{
    if (!p)
        return NULL;
    atomic_fetch_add_explicit(&header_of(p)->refs, 1, memory_order_relaxed);
    s->own_bytes += header_of(p)->bytes;
    return p;
}

bool tkv_shared_drop(struct tkv_session *s, void *p)
{
    struct header *h = header_of(p);
    const size_t bytes = h->bytes; /* another's last reference may go right after ours */

    if (atomic_fetch_sub_explicit(&h->refs, 1, memory_order_acq_rel) == 1)
        return true;
    s->own_bytes -= bytes;
    return false;
}

void tkv_shared_free(struct tkv_session *s, void *p)
{
    tkv_session_free(s, header_of(p), header_of(p)->bytes);
}

void tkv_shared_unref(struct tkv_session *s, void *p)
{
    if (p && tkv_shared_drop(s, p))
        tkv_shared_free(s, p);
}

bool tkv_is_shared(const void *p)
{
    return atomic_load_explicit(&header_of(p)->refs, memory_order_acquire) > 1;
}

size_t tkv_shared_bytes(const void *p)
{
    return header_of(p)->bytes;
}

/* ---- block tables ------------------------------------------------------------------------- */

static uint32_t n_referred(const struct tkv_head *h)
{
    return header_of(h->blocks)->is_frozen ? header_of(h->blocks)->n_blocks : h->n_blocks;
}

uint32_t tkv_head_n_listed(const struct tkv_head *h)
{
    return h->blocks ? n_referred(h) : 0;
}

void tkv_head_freeze(struct tkv_head *h)
{
    header_of(h->blocks)->is_frozen = true;
    header_of(h->blocks)->n_blocks = h->n_blocks;
}

void tkv_head_release(struct tkv_session *s, struct tkv_head *h)
{
    if (h->blocks && tkv_shared_drop(s, h->blocks)) {
        tkv_arena_unref_each(s->arena, &h->blocks->id, sizeof(*h->blocks), n_referred(h));
        tkv_shared_free(s, h->blocks);
    }
    *h = (struct tkv_head){0};
}

void tkv_head_share(struct tkv_session *s, struct tkv_head *to, const struct tkv_head *from)
{
    *to = *from;
    if (!from->blocks)
        return;
    if (!header_of(from->blocks)->is_frozen) /* so far it has one user: this thread's */
        tkv_head_freeze(to);
    (void)tkv_shared_ref(s, to->blocks);
}

/* The others have gone: what only they saw goes, too. */
static void thaw(struct tkv_session *s, struct tkv_head *h)
{
    if (n_referred(h) > h->n_blocks)
        tkv_arena_unref_each(s->arena, &h->blocks[h->n_blocks].id, sizeof(*h->blocks),
                             n_referred(h) - h->n_blocks);
    header_of(h->blocks)->is_frozen = false;
}

void tkv_head_drop_front(struct tkv_session *s, struct tkv_head *h, uint32_t n, uint32_t n_tokens)
{
    assert(n <= h->n_blocks && !tkv_is_shared(h->blocks));
    tkv_arena_unref_each(s->arena, &h->blocks->id, sizeof(*h->blocks), n);
    h->n_blocks -= n;
    h->n_cold -= n_tokens;
    memmove(h->blocks, h->blocks + n, h->n_blocks * sizeof(*h->blocks));
}

void tkv_head_cut(struct tkv_session *s, struct tkv_head *h, uint32_t n)
{
    assert(n <= h->n_blocks);
    if (n < h->n_blocks && !tkv_is_shared(h->blocks)) {
        tkv_arena_unref_each(s->arena, &h->blocks[n].id, sizeof(*h->blocks), n_referred(h) - n);
        header_of(h->blocks)->is_frozen = false;
    }
    h->n_blocks = n;
}

/* The blocks of h in a table of another size; the old one is not looked at again. */
static void replace(struct tkv_session *s, struct tkv_head *h, struct tkv_block *blocks,
                    uint32_t cap_blocks, bool alone)
{
    struct tkv_head old = *h;

    if (h->n_blocks > 0)
        memcpy(blocks, h->blocks, h->n_blocks * sizeof(*blocks));
    h->blocks = blocks;
    h->cap_blocks = cap_blocks;
    if (alone && old.blocks) {
        tkv_shared_free(s, old.blocks); /* its references went over */
    } else if (old.blocks) {
        tkv_arena_ref_each(s->arena, &blocks->id, sizeof(*blocks), h->n_blocks);
        tkv_head_release(s, &old);
    }
}

int tkv_head_own(struct tkv_session *s, struct tkv_head *h, size_t n, struct tkv_report *why)
{
    const bool alone = !h->blocks || !tkv_is_shared(h->blocks);
    const size_t least = n > h->n_blocks ? n : h->n_blocks;
    const uint32_t cap = (uint32_t)(least + least / 16 + 1);
    struct tkv_block *blocks;

    if (alone && h->blocks)
        thaw(s, h);
    if (alone && n <= h->cap_blocks)
        return 0;
    blocks = tkv_shared_alloc(s, cap * sizeof(*blocks));
    if (!blocks)
        return tkv_fail(why, TRIKV_E_MEMORY_CAP, "no room for a table of %u blocks", cap);
    replace(s, h, blocks, cap, alone);
    return 0;
}
