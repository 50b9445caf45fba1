/* Keeping a session's journal: see journal.h. */
#include "store/journal.h"

#include <assert.h>
#include <stdatomic.h>
#include <string.h>
#include <xxhash.h>

#include "proto/errors.h"
#include "store/budget.h"
#include "store/image.h"

static struct tkv_journal_header *header_of(const struct tkv_session *s)
{
    return tkv_arena_at(s->arena, s->journal->root);
}

static struct tkv_journal_slot *slot_of(const struct tkv_session *s, uint32_t cell, uint32_t slot)
{
    return (struct tkv_journal_slot *)(void *)(header_of(s) + 1) + 2 * (size_t)cell + slot;
}

static void step(const struct tkv_journal *j)
{
    atomic_signal_fence(memory_order_seq_cst);
    if (j->on_step)
        j->on_step(j->on_step_arg);
}

uint32_t tkv_journal_hash(const void *data, size_t n)
{
    return (uint32_t)XXH3_64bits(data, n);
}

void tkv_journal_seal(struct tkv_journal_slot *slot)
{
    slot->hash = 0;
    slot->hash = tkv_journal_hash(slot, sizeof(*slot));
}

size_t tkv_journal_root_bytes(uint32_t n_layers)
{
    return sizeof(struct tkv_journal_header) +
           2 * ((size_t)n_layers + 1) * sizeof(struct tkv_journal_slot);
}

const enum tkv_image_part tkv_journal_layer_parts[TKV_JOURNAL_LAYER_PARTS] = {
    TKV_IMAGE_TABLES, TKV_IMAGE_MASS, TKV_IMAGE_PROBES};

/* ---- a commit --------------------------------------------------------------------------- */

/* Every table is a session's own when it is read again: names would have to outlive tables. */
static uint64_t no_name(void *ctx, const void *table)
{
    (void)ctx;
    (void)table;
    return 0;
}

static const struct tkv_image_names names = {.table = no_name};

static size_t part_bytes(const struct tkv_session *s, enum tkv_image_part part, uint32_t layer)
{
    return tkv_image_bytes(s, part, layer, &names);
}

/* Cell 0 is the session's. */
static size_t image_bytes(const struct tkv_session *s, uint32_t cell)
{
    size_t n = 0;

    if (cell == 0)
        return sizeof(struct tkv_journal_front) + tkv_align(s->journal->note_bytes, 8) +
               part_bytes(s, TKV_IMAGE_CONFIG, 0);
    for (int i = 0; i < TKV_JOURNAL_LAYER_PARTS; i++)
        n += sizeof(uint64_t) + part_bytes(s, tkv_journal_layer_parts[i], cell - 1);
    return n;
}

static void fill_session(const struct tkv_session *s, uint8_t *p)
{
    const struct tkv_journal *j = s->journal;
    const struct tkv_journal_front front = {
        .ids_place = j->ids.place, .ids_cap = j->cap_ids, .note_bytes = (uint32_t)j->note_bytes};

    memcpy(p, &front, sizeof(front));
    p += sizeof(front);
    memcpy(p, j->note, j->note_bytes);
    p += tkv_align(j->note_bytes, 8);
    tkv_image_write(s, TKV_IMAGE_CONFIG, 0, &names, p);
}

static void fill_layer(const struct tkv_session *s, uint32_t layer, uint8_t *p)
{
    for (int i = 0; i < TKV_JOURNAL_LAYER_PARTS; i++) {
        const uint64_t n = part_bytes(s, tkv_journal_layer_parts[i], layer);

        memcpy(p, &n, sizeof(n));
        tkv_image_write(s, tkv_journal_layer_parts[i], layer, &names, p + sizeof(n));
        p += sizeof(n) + n;
    }
}

static void write_image(struct tkv_session *s, uint32_t cell, struct tkv_journal_slot *to)
{
    struct tkv_journal *j = s->journal;
    struct tkv_journal_cell *c = &j->cells[cell];
    const struct tkv_block_id buffer = cell == 0 ? j->front : j->areas;
    const size_t n = image_bytes(s, cell);
    uint8_t *p;

    assert(n <= c->cap_bytes);
    c->area = !c->area;
    to->image_place = buffer.place;
    to->areas_bytes = (uint32_t)(cell == 0 ? j->front_bytes : j->areas_bytes);
    to->image_offset = c->offset + c->area * c->cap_bytes;
    to->image_bytes = (uint32_t)n;
    p = (uint8_t *)tkv_arena_at(s->arena, buffer) + to->image_offset;
    if (cell == 0)
        fill_session(s, p);
    else
        fill_layer(s, cell - 1, p);
    to->image_hash = tkv_journal_hash(p, n);
    step(j);
}

/* Into the slot that is not in force, unless it would say the same. */
static bool write_slot(struct tkv_session *s, uint32_t cell, struct tkv_journal_slot *next,
                       uint64_t number)
{
    struct tkv_journal_cell *c = &s->journal->cells[cell];
    const enum tkv_image_part part = cell == 0 ? TKV_IMAGE_COUNTERS : TKV_IMAGE_STATE;
    const uint32_t layer = cell == 0 ? 0 : cell - 1;

    next->state_bytes = (uint32_t)part_bytes(s, part, layer);
    assert(next->state_bytes <= sizeof(next->state));
    tkv_image_write(s, part, layer, &names, next->state);
    if (memcmp(next, &c->now, sizeof(*next)) == 0)
        return false;
    next->number = number;
    tkv_journal_seal(next);
    c->slot = !c->slot;
    c->now = *next;
    memcpy(slot_of(s, cell, c->slot), next, sizeof(*next));
    step(s->journal);
    return true;
}

static bool commit_layer(struct tkv_session *s, uint32_t layer, uint64_t number)
{
    struct tkv_layer *l = &s->layers[layer];
    struct tkv_journal_cell *c = &s->journal->cells[layer + 1];
    struct tkv_journal_slot next = c->now;

    if (l->generation != c->generation || tkv_layer_watches(l) ||
        next.image_place != s->journal->areas.place)
        write_image(s, layer + 1, &next);
    c->generation = l->generation;
    l->halves_fresh = false;
    return write_slot(s, layer + 1, &next, number);
}

static bool commit_session(struct tkv_session *s, uint64_t number)
{
    struct tkv_journal *j = s->journal;
    struct tkv_journal_slot next = j->cells[0].now;

    next.n_ids = j->n_ids;
    if (j->is_changed || next.image_place != j->front.place)
        write_image(s, 0, &next);
    j->is_changed = false;
    return write_slot(s, 0, &next, number);
}

void tkv_journal_commit(struct tkv_session *s, uint32_t first, uint32_t n)
{
    struct tkv_journal *j = s->journal;
    bool any;

    if (!j)
        return;
    any = commit_session(s, j->number + 1);
    for (uint32_t i = first; i < first + n; i++)
        any |= commit_layer(s, i, j->number + 1);
    if (any) {
        __atomic_store_n(&header_of(s)->committed, ++j->number, __ATOMIC_RELEASE);
        atomic_thread_fence(memory_order_seq_cst); /* before anything old is written over */
        step(j);
    }
    tkv_arena_settle(s->arena);
}

/* ---- room ------------------------------------------------------------------------------- */

/* What a layer may give up in one request between commits: blocks that it has, those that it makes
 * meanwhile, those of its checkpoints, and its half buffer. */
static size_t count_given_up(const struct tkv_layer *l)
{
    size_t n = 2;

    for (uint32_t h = 0; h < l->config.shape.n_kv_heads; h++) {
        n += tkv_head_n_listed(&l->heads[h]) + 2 * (size_t)l->heads[h].cap_blocks + 2;
        if (l->checkpoint.heads)
            n += 2 * (size_t)(l->checkpoint.heads[h].n_blocks +
                              tkv_head_n_listed(&l->checkpoint.heads[h]) +
                              tkv_head_n_listed(&l->checkpoint.next[h]));
    }
    return n;
}

/* As long as a cell's image may become before tables grow. */
static size_t bound_of(const struct tkv_session *s, uint32_t cell)
{
    const bool keeps_tables = s->config.rollback_tokens > 0;
    const struct tkv_layer *l = cell == 0 ? NULL : &s->layers[cell - 1];
    size_t n = image_bytes(s, cell) + 64;

    if (l && l->probes)
        n += s->config.gate.n_probes *
             ((size_t)l->config.shape.n_q_heads * l->config.shape.head_dim_k * 2 + 16);
    for (uint32_t h = 0; l && h < l->config.shape.n_kv_heads; h++) {
        const size_t cap = l->heads[h].cap_blocks;

        n +=
            (cap - l->heads[h].n_blocks + (keeps_tables ? cap : 0)) * sizeof(struct tkv_block) + 64;
        if (l->mass)
            n += l->mass[h].cap * sizeof(float) + 16;
    }
    return n;
}

/* Two places for a cell's image with room to grow, from here on; returns where they end. */
static size_t lay_out_cell(const struct tkv_session *s, uint32_t cell, size_t at, bool commits)
{
    const size_t bound = bound_of(s, cell);
    const size_t cap = tkv_align(bound + bound / 4 + 256, 64);

    if (commits) {
        s->journal->cells[cell].offset = (uint32_t)at;
        s->journal->cells[cell].cap_bytes = (uint32_t)cap;
    }
    return at + 2 * cap;
}

static size_t lay_out_layers(const struct tkv_session *s, bool commits)
{
    size_t at = 0;

    for (uint32_t i = 1; i <= s->config.n_layers; i++)
        at = lay_out_cell(s, i, at, commits);
    return at;
}

static int new_front(struct tkv_session *s, struct tkv_report *why)
{
    struct tkv_journal *j = s->journal;
    const size_t bytes = lay_out_cell(s, 0, 0, false);
    int e = tkv_arena_buffer(s->arena, bytes, &j->front, why);

    if (e)
        return e;
    j->front_bytes = bytes;
    (void)lay_out_cell(s, 0, 0, true);
    return 0;
}

static int new_areas(struct tkv_session *s, struct tkv_report *why)
{
    struct tkv_journal *j = s->journal;
    const size_t bytes = lay_out_layers(s, false);
    struct tkv_block_id areas;
    int e;

    if (bytes > UINT32_MAX / 2)
        return tkv_fail(why, TRIKV_E_TOO_LARGE, "a journal of %zu bytes", bytes);
    e = tkv_arena_buffer(s->arena, bytes, &areas, why);
    if (e)
        return e;
    j->areas = areas;
    j->areas_bytes = bytes;
    (void)lay_out_layers(s, true);
    return 0;
}

/* What is in force is written once more, into the new buffer, before the old one goes. */
static void replace(struct tkv_session *s, struct tkv_block_id old, uint32_t n_layers)
{
    tkv_journal_commit(s, 0, n_layers);
    tkv_arena_unref(s->arena, old);
    tkv_arena_settle(s->arena);
}

static int grow_front(struct tkv_session *s, struct tkv_report *why)
{
    const struct tkv_block_id old = s->journal->front;
    const int e = new_front(s, why);

    if (!e)
        replace(s, old, 0);
    return e;
}

static int grow_areas(struct tkv_session *s, struct tkv_report *why)
{
    const struct tkv_block_id old = s->journal->areas;
    const int e = new_areas(s, why);

    if (!e)
        replace(s, old, s->config.n_layers);
    return e;
}

/* Images of a fork are in them, too: none may be written over. */
static bool is_lent(const struct tkv_session *s)
{
    return tkv_arena_count_shared(s->arena, &s->journal->areas, sizeof(s->journal->areas), 1) > 0;
}

int tkv_journal_prepare(struct tkv_session *s, uint32_t first, uint32_t n, struct tkv_report *why)
{
    const struct tkv_journal *j = s->journal;
    size_t n_given_up = 8; /* half buffers, and those of the journal */
    bool fits = true;
    int e;

    if (!j)
        return 0;
    for (uint32_t i = first; i < first + n; i++) {
        n_given_up += count_given_up(&s->layers[i]);
        fits &= bound_of(s, i + 1) <= j->cells[i + 1].cap_bytes;
    }
    e = tkv_arena_defer(s->arena, n_given_up, why);
    if (!e && bound_of(s, 0) > j->cells[0].cap_bytes)
        e = grow_front(s, why);
    if (!e && n > 0 && (!fits || is_lent(s)))
        e = grow_areas(s, why);
    return e;
}

/* A commit would write the layer's image anew, or the layer gives up what only tables refer to. */
static bool changes_tables(const struct tkv_session *s, uint32_t layer)
{
    const struct tkv_layer *l = &s->layers[layer];

    return l->generation != s->journal->cells[layer + 1].generation || tkv_layer_watches(l) ||
           l->checkpoint.is_live;
}

int tkv_journal_prepare_push(struct tkv_session *s, uint32_t first, uint32_t n,
                             struct tkv_report *why)
{
    bool any = false;

    for (uint32_t i = first; s->journal && i < first + n; i++)
        any |= changes_tables(s, i);
    return tkv_journal_prepare(s, first, any ? n : 0, why);
}

static size_t journal_bytes(const struct tkv_session *s)
{
    return sizeof(struct tkv_journal) +
           ((size_t)s->config.n_layers + 1) * sizeof(struct tkv_journal_cell);
}

static uint64_t slab_bytes(const struct tkv_session *s, size_t bytes)
{
    return bytes > 0 ? tkv_arena_slabs_bytes(s->arena, bytes, true, 1) : 0;
}

uint64_t tkv_journal_bytes(const struct tkv_session *s)
{
    const struct tkv_journal *j = s->journal;
    uint64_t n = 0;

    if (!j)
        return 0;
    n = slab_bytes(s, j->root_bytes) + slab_bytes(s, j->front_bytes) +
        slab_bytes(s, j->areas_bytes) + slab_bytes(s, j->cap_ids * sizeof(*j->id)) +
        slab_bytes(s, j->spare ? j->spare_bytes : 0);
    return n + journal_bytes(s) + j->note_bytes + tkv_arena_deferred_bytes(s->arena);
}

bool tkv_journal_fits(const struct tkv_session *s)
{
    for (uint32_t i = 0; s->journal && i < s->config.n_layers; i++)
        if (image_bytes(s, i + 1) > s->journal->cells[i + 1].cap_bytes)
            return false;
    return !s->journal || !is_lent(s);
}

static void drop_spare(struct tkv_session *s)
{
    struct tkv_journal *j = s->journal;

    if (!j->spare)
        return;
    tkv_arena_unref(s->arena, j->spare->id);
    tkv_shared_unref(s, j->spare);
    j->spare = NULL;
}

int tkv_journal_spare(struct tkv_session *s, const struct tkv_layer *l, struct tkv_report *why)
{
    struct tkv_journal *j = s->journal;
    int e;

    if (!j || (j->spare && j->spare_bytes == tkv_halves_bytes(l)))
        return 0;
    drop_spare(s);
    e = tkv_halves_new(s, l, &j->spare, why);
    j->spare_bytes = tkv_halves_bytes(l);
    return e;
}

/* ---- its life --------------------------------------------------------------------------- */

static int take_note(struct tkv_session *s, const void *note, size_t bytes, struct tkv_report *why)
{
    struct tkv_journal *j = s->journal;
    void *own = tkv_session_alloc(s, bytes);

    if (!own)
        return tkv_fail(why, TRIKV_E_MEMORY_CAP, "no room for a journal");
    memcpy(own, note, bytes);
    j->note = own;
    j->note_bytes = bytes;
    j->is_changed = true;
    return 0;
}

struct tkv_journal *tkv_journal_alloc(struct tkv_session *s)
{
    return tkv_session_alloc(s, journal_bytes(s));
}

/* Are the images that the parent has in force those of its fork, to the byte? */
static bool has_same_images(const struct tkv_session *s, const struct tkv_session *parent)
{
    for (uint32_t i = 0; i < s->config.n_layers; i++) {
        const struct tkv_layer *l = &s->layers[i];
        const struct tkv_journal_cell *c = &parent->journal->cells[i + 1];

        if (l->generation != c->generation || tkv_layer_watches(l) ||
            image_bytes(s, i + 1) != c->now.image_bytes)
            return false;
    }
    return true;
}

/* Its slots tell of images in the parent's areas. */
static void borrow_areas(struct tkv_session *s, const struct tkv_session *parent)
{
    struct tkv_journal *j = s->journal;

    tkv_arena_ref(s->arena, parent->journal->areas);
    j->areas = parent->journal->areas;
    j->areas_bytes = parent->journal->areas_bytes;
    for (uint32_t i = 1; i <= s->config.n_layers; i++) {
        struct tkv_journal_slot *now = &j->cells[i].now;

        *now = parent->journal->cells[i].now;
        now->state_bytes = 0; /* no slot of its own says that yet */
        j->cells[i].generation = s->layers[i - 1].generation;
    }
}

static int start(struct tkv_session *s, const struct tkv_session *parent, struct tkv_report *why)
{
    struct tkv_journal *j = s->journal;
    int e;

    j->root_bytes = tkv_journal_root_bytes(s->config.n_layers); /* a multiple of 64 */
    e = tkv_arena_buffer_of(s->arena, TKV_SLAB_JOURNAL, j->root_bytes, &j->root, why);
    if (e)
        return e;
    memset(header_of(s), 0, j->root_bytes);
    *header_of(s) =
        (struct tkv_journal_header){.magic = TKV_JOURNAL_MAGIC, .n_layers = s->config.n_layers};
    if (parent && parent->journal && has_same_images(s, parent))
        borrow_areas(s, parent);
    else
        e = new_areas(s, why);
    e = e ? e : new_front(s, why);
    e = e ? e : tkv_arena_defer(s->arena, 4, why);
    if (e)
        return e;
    tkv_journal_commit(s, 0, s->config.n_layers);
    __atomic_store_n(&header_of(s)->is_live, 1, __ATOMIC_RELEASE);
    step(j);
    return 0;
}

int tkv_session_keep(struct tkv_session *s, const struct tkv_session *parent, const void *note,
                     size_t bytes, struct tkv_report *why)
{
    int e;

    assert(!s->journal && tkv_arena_id(s->arena) != 0 && bytes > 0);
    s->journal = tkv_journal_alloc(s);
    if (!s->journal)
        return tkv_fail(why, TRIKV_E_MEMORY_CAP, "no room for a journal");
    e = take_note(s, note, bytes, why);
    e = e ? e : start(s, parent, why);
    if (e)
        tkv_journal_end(s);
    return e;
}

bool tkv_session_is_kept(const struct tkv_session *s)
{
    return s->journal;
}

int tkv_session_note(struct tkv_session *s, const void *note, size_t bytes, struct tkv_report *why)
{
    struct tkv_journal *j = s->journal;
    void *const before = j ? j->note : NULL;
    const size_t before_bytes = j ? j->note_bytes : 0;
    const bool was_changed = j && j->is_changed;
    int e;

    if (!j)
        return 0;
    e = take_note(s, note, bytes, why);
    if (e)
        return e;
    e = tkv_journal_prepare(s, 0, 0, why);
    if (e) { /* a later commit must not bring it into force */
        tkv_session_free(s, j->note, j->note_bytes);
        j->note = before;
        j->note_bytes = before_bytes;
        j->is_changed = was_changed;
        return e;
    }
    tkv_session_free(s, before, before_bytes);
    tkv_journal_commit(s, 0, 0);
    return 0;
}

void tkv_journal_end(struct tkv_session *s)
{
    struct tkv_journal *j = s->journal;

    if (!j)
        return;
    if (j->root.place && !j->is_left) {
        __atomic_store_n(&header_of(s)->is_live, 0, __ATOMIC_RELEASE);
        atomic_thread_fence(memory_order_seq_cst);
        step(j);
    }
    tkv_arena_defer_end(s->arena);
    drop_spare(s);
    if (j->ids.place)
        tkv_arena_unref(s->arena, j->ids);
    if (j->front.place)
        tkv_arena_unref(s->arena, j->front);
    if (j->areas.place)
        tkv_arena_unref(s->arena, j->areas);
    if (j->root.place)
        tkv_arena_unref(s->arena, j->root);
    tkv_session_free(s, j->note, j->note_bytes);
    s->journal = NULL;
    tkv_session_free(s, j, journal_bytes(s));
}

/* ---- token ids -------------------------------------------------------------------------- */

int tkv_session_write_ids(struct tkv_session *s, uint32_t at, const uint32_t *ids, uint32_t n,
                          struct tkv_report *why)
{
    struct tkv_journal *j = s->journal;
    const uint64_t end = (uint64_t)at + n;
    const size_t bytes = tkv_align((size_t)(end + end / 2) * sizeof(uint32_t) + 1024, 64);
    const struct tkv_block_id old = j ? j->ids : (struct tkv_block_id){0};
    struct tkv_block_id fresh;
    int e;

    if (!j)
        return 0;
    assert(at <= j->n_ids);
    if (end > j->cap_ids) {
        e = tkv_journal_prepare(s, 0, 0, why);
        e = e ? e : tkv_arena_buffer(s->arena, bytes, &fresh, why);
        if (e)
            return e;
        if (at > 0)
            memcpy(tkv_arena_at(s->arena, fresh), j->id, at * sizeof(uint32_t));
        j->ids = fresh;
        j->id = tkv_arena_at(s->arena, fresh);
        j->cap_ids = (uint32_t)(bytes / sizeof(uint32_t));
        j->n_ids = at;
        j->is_changed = true;
        tkv_journal_commit(s, 0, 0);
        if (old.place)
            tkv_arena_unref(s->arena, old);
        tkv_arena_settle(s->arena);
    }
    memcpy(j->id + at, ids, n * sizeof(uint32_t));
    j->n_ids = (uint32_t)end; /* with the step's own commit */
    return 0;
}

void tkv_session_commit_ids(struct tkv_session *s, uint32_t n)
{
    struct tkv_journal *j = s->journal;

    if (!j)
        return;
    assert(n <= j->cap_ids);
    j->n_ids = n;
    if (j->cells[0].now.n_ids != n)
        tkv_journal_commit(s, 0, 0);
}
