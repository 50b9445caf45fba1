/* From a kept arena to its sessions. */
#include "store/adopt.h"

#include <stdatomic.h>
#include <string.h>

#include "proto/errors.h"
#include "proto/limits.h"
#include "store/budget.h"
#include "store/journal.h"

/* A root, and of each cell what is in force: copies, since the file may be another's to write. */
struct found {
    struct tkv_block_id root;
    uint64_t committed;
    uint32_t n_layers;
    uint32_t slot[TRIKV_MAX_LAYERS + 1];
    struct tkv_journal_slot now[TRIKV_MAX_LAYERS + 1];
};

struct tkv_adoption {
    struct tkv_arena *arena;
    struct tkv_budget *budget;
    const struct tkv_kernels *kn;
    struct tkv_image_source source;
    uint32_t next; /* slab */
    struct found found;
    struct tkv_journal_front front;
    struct tkv_session *failed; /* others may share what they have claimed: they go last */
    struct tkv_image_config *config;
    void *image; /* of the session: a copy */
    size_t image_bytes;
};

static int broken(struct tkv_report *why, const char *what)
{
    return tkv_fail(why, TRIKV_E_ARGUMENT, "journal: %s", what);
}

/* ---- arenas ----------------------------------------------------------------------------- */

/* Who has mapped a session of the old process sees that it has gone. */
static void clear_pins(struct tkv_arena *a)
{
    struct tkv_block_id id;
    uint32_t at = 0;
    size_t bytes;

    while (tkv_arena_next(a, TKV_SLAB_PIN, &at, &id, &bytes))
        __atomic_store_n((uint64_t *)tkv_arena_at(a, id), 0, __ATOMIC_SEQ_CST);
    atomic_thread_fence(memory_order_seq_cst);
}

static int claim_block(void *ctx, struct tkv_arena *arena, uint64_t name, size_t bytes, bool fixed,
                       struct tkv_block_id *id, struct tkv_report *why)
{
    (void)ctx;
    *id = (struct tkv_block_id){name - 1}; /* as images call what has no other name */
    if (tkv_arena_claim(arena, *id, bytes, fixed ? TKV_SLAB_BUFFER : TKV_SLAB_BLOCKS))
        return 0;
    return tkv_fail(why, TRIKV_E_ARGUMENT, "there is no %s of %zu bytes at %#llx",
                    fixed ? "buffer" : "block", bytes, (unsigned long long)name);
}

int tkv_adoption_begin(struct tkv_adoption **adoption, int fd, struct tkv_budget *budget,
                       const struct tkv_kernels *kn, struct tkv_report *why)
{
    struct tkv_adoption *a = tkv_budget_alloc(budget, sizeof(*a));
    int e;

    *adoption = NULL;
    if (!a)
        return tkv_fail(why, TRIKV_E_MEMORY_CAP, "no room to adopt an arena");
    a->budget = budget;
    a->kn = kn;
    a->source.block = claim_block;
    e = tkv_arena_adopt(&a->arena, fd, budget, why);
    if (e) {
        tkv_budget_free(budget, a, sizeof(*a));
        return e;
    }
    clear_pins(a->arena);
    *adoption = a;
    return 0;
}

uint64_t tkv_adoption_arena_id(const struct tkv_adoption *a)
{
    return tkv_arena_id(a->arena);
}

static void forget(struct tkv_adoption *a)
{
    tkv_image_config_destroy(&a->config);
    tkv_budget_free(a->budget, a->image, a->image_bytes);
    a->image = NULL;
}

void tkv_adoption_end(struct tkv_adoption **adoption)
{
    struct tkv_adoption *a = *adoption;

    if (!a)
        return;
    forget(a);
    while (a->failed) {
        struct tkv_session *s = a->failed;

        a->failed = s->next_failed;
        tkv_session_destroy(&s);
    }
    tkv_image_source_release(&a->source);
    tkv_arena_adopt_end(a->arena);
    tkv_arena_destroy(&a->arena);
    tkv_budget_free(a->budget, a, sizeof(*a));
    *adoption = NULL;
}

/* ---- roots ------------------------------------------------------------------------------ */

static struct tkv_journal_slot *slots_of(const struct tkv_adoption *a)
{
    uint8_t *root = tkv_arena_at(a->arena, a->found.root);

    return (struct tkv_journal_slot *)(void *)(root + sizeof(struct tkv_journal_header));
}

/* What was written and never came into force must not come into force by a later commit's number. */
static void scrub(struct tkv_journal_slot *slot)
{
    memset(slot, 0, sizeof(*slot));
}

static int take_cell(struct tkv_adoption *a, uint32_t cell, struct tkv_report *why)
{
    struct found *f = &a->found;
    struct tkv_journal_slot *best = &f->now[cell];

    best->number = 0;
    for (uint32_t i = 0; i < 2; i++) {
        struct tkv_journal_slot *at = slots_of(a) + 2 * (size_t)cell + i;
        struct tkv_journal_slot slot = *at, sealed = slot;

        tkv_journal_seal(&sealed);
        if (slot.number == 0 || slot.number > f->committed || sealed.hash != slot.hash) {
            scrub(at);
        } else if (slot.number > best->number) {
            *best = slot;
            f->slot[cell] = i;
        }
    }
    if (best->number == 0 || best->state_bytes > sizeof(best->state))
        return broken(why, "a cell has no slot in force");
    return 0;
}

static int take_root(struct tkv_adoption *a, struct tkv_block_id root, size_t bytes, bool *is_live,
                     struct tkv_report *why)
{
    const struct tkv_journal_header h = *(struct tkv_journal_header *)tkv_arena_at(a->arena, root);
    struct found *f = &a->found;
    int e = 0;

    f->root = root;
    *is_live = bytes >= sizeof(h) && h.is_live != 0;
    if (!*is_live)
        return 0;
    if (h.magic != TKV_JOURNAL_MAGIC || h.n_layers == 0 || h.n_layers > TRIKV_MAX_LAYERS ||
        bytes != tkv_align(tkv_journal_root_bytes(h.n_layers), 64))
        return broken(why, "the header is broken");
    f->committed = h.committed;
    f->n_layers = h.n_layers;
    for (uint32_t i = 0; !e && i <= f->n_layers; i++)
        e = take_cell(a, i, why);
    return e;
}

/* The image of a cell, checked by its hash; a view of the arena. */
static int find_image(const struct tkv_adoption *a, const struct tkv_journal_slot *slot,
                      const void **image, struct tkv_report *why)
{
    const struct tkv_block_id areas = {slot->image_place};
    const size_t bytes = slot->areas_bytes;

    if (!tkv_arena_claim(a->arena, areas, bytes, TKV_SLAB_BUFFER))
        return broken(why, "an image is nowhere");
    tkv_arena_unref(a->arena, areas);
    if (slot->image_offset % 8 != 0 || slot->image_offset > bytes ||
        slot->image_bytes > bytes - slot->image_offset)
        return broken(why, "an image is not within its buffer");
    *image = (const uint8_t *)tkv_arena_at(a->arena, areas) + slot->image_offset;
    return tkv_journal_hash(*image, slot->image_bytes) == slot->image_hash
               ? 0
               : broken(why, "an image is not what was written");
}

/* A copy of the session's image, since its parts stay in use. */
static int copy_image(struct tkv_adoption *a, struct tkv_report *why)
{
    const struct tkv_journal_slot *slot = &a->found.now[0];
    const void *image;
    int e = find_image(a, slot, &image, why);

    if (!e && slot->image_bytes < sizeof(a->front))
        e = broken(why, "the session's image is short");
    if (e)
        return e;
    a->image_bytes = slot->image_bytes;
    a->image = tkv_budget_take(a->budget, a->image_bytes);
    if (!a->image)
        return tkv_fail(why, TRIKV_E_MEMORY_CAP, "no room for an image of %zu bytes",
                        a->image_bytes);
    memcpy(a->image, image, a->image_bytes);
    return 0;
}

static int find_ids(struct tkv_adoption *a, struct tkv_adopted *out, struct tkv_report *why)
{
    const uint64_t n = a->found.now[0].n_ids;
    const struct tkv_block_id ids = {a->front.ids_place};

    if (n == 0)
        return 0;
    if (n > a->front.ids_cap ||
        !tkv_arena_claim(a->arena, ids, (size_t)a->front.ids_cap * 4, TKV_SLAB_BUFFER))
        return broken(why, "token ids are nowhere");
    tkv_arena_unref(a->arena, ids);
    out->ids = tkv_arena_at(a->arena, ids);
    out->n_ids = (uint32_t)n;
    return 0;
}

static int read_session(struct tkv_adoption *a, struct tkv_adopted *out, struct tkv_report *why)
{
    const uint8_t *p;
    size_t note_bytes, left;
    int e = copy_image(a, why);

    if (e)
        return e;
    memcpy(&a->front, a->image, sizeof(a->front));
    left = a->image_bytes - sizeof(a->front);
    note_bytes = tkv_align(a->front.note_bytes, 8);
    if (a->front.note_bytes == 0 || note_bytes > left)
        return broken(why, "the note is longer than the image");
    p = (const uint8_t *)a->image + sizeof(a->front);
    out->note = p;
    out->note_bytes = a->front.note_bytes;
    e = tkv_image_read_config(&a->config, p + note_bytes, left - note_bytes, a->budget, why);
    if (!e && a->config->config.n_layers != a->found.n_layers)
        e = broken(why, "the number of layers is another one");
    out->config = a->config;
    return e ? e : find_ids(a, out, why);
}

int tkv_adoption_next(struct tkv_adoption *a, bool *found, struct tkv_adopted *out,
                      struct tkv_report *why)
{
    struct tkv_block_id root;
    size_t bytes;

    forget(a);
    *out = (struct tkv_adopted){0};
    *found = false;
    while (!*found && tkv_arena_next(a->arena, TKV_SLAB_JOURNAL, &a->next, &root, &bytes)) {
        const int e = take_root(a, root, bytes, found, why);

        if (e)
            return e;
    }
    return *found ? read_session(a, out, why) : 0;
}

/* ---- sessions --------------------------------------------------------------------------- */

static int read_layer(struct tkv_adoption *a, struct tkv_session *s, uint32_t layer,
                      struct tkv_report *why)
{
    const struct tkv_journal_slot *slot = &a->found.now[layer + 1];
    const void *view;
    const uint8_t *image;
    size_t left = slot->image_bytes;
    int e = find_image(a, slot, &view, why);

    if (!e)
        e = tkv_image_read(s, TKV_IMAGE_STATE, layer, slot->state, slot->state_bytes, &a->source,
                           why);
    image = e ? NULL : view;
    for (int i = 0; !e && i < TKV_JOURNAL_LAYER_PARTS; i++) {
        uint64_t n;

        if (left < sizeof(n))
            return broken(why, "a layer's image is short");
        memcpy(&n, image, sizeof(n));
        image += sizeof(n);
        left -= sizeof(n);
        if (n > left)
            return broken(why, "a part of a layer is longer than its image");
        e = tkv_image_read(s, tkv_journal_layer_parts[i], layer, image, (size_t)n, &a->source, why);
        image += n;
        left -= (size_t)n;
    }
    return e;
}

/* Positions of the half tiers are computed with. Codes, and the positions in blocks, are not looked at: that
 * would touch all of the memory. */
static bool ascends(const struct tkv_half_tier *t)
{
    int64_t last = -1;

    for (uint32_t i = 0; i < t->n; i++) {
        if (t->positions[i] <= last || t->positions[i] > TRIKV_MAX_POSITION)
            return false;
        last = t->positions[i];
    }
    return true;
}

static int check_tiers(const struct tkv_layer *l, struct tkv_report *why)
{
    struct tkv_half_tier all = l->tail;

    if (!l->halves)
        return 0;
    if (l->checkpoint.is_live) /* with the tokens that it has before them */
        tkv_tier_rewind(&all, &l->config.shape, l->checkpoint.first,
                        l->tail.first - l->checkpoint.first + l->tail.n);
    return ascends(&l->pinned) && ascends(&all) ? 0 : broken(why, "positions do not ascend");
}

static int read_layers(struct tkv_adoption *a, struct tkv_session *s, struct tkv_report *why)
{
    const struct tkv_journal_slot *slot = &a->found.now[0];
    int e =
        tkv_image_read(s, TKV_IMAGE_COUNTERS, 0, slot->state, slot->state_bytes, &a->source, why);

    for (uint32_t i = 0; !e && i < a->found.n_layers; i++)
        e = read_layer(a, s, i, why);
    for (uint32_t i = 0; !e && i < a->found.n_layers; i++)
        e = check_tiers(&s->layers[i], why);
    return e ? e : tkv_image_finish(s, false, why);
}

static bool claim_buffer(struct tkv_adoption *a, const struct tkv_journal_slot *slot,
                         struct tkv_block_id *id)
{
    const struct tkv_block_id areas = {slot->image_place};

    if (!tkv_arena_claim(a->arena, areas, slot->areas_bytes, TKV_SLAB_BUFFER))
        return false;
    *id = areas;
    return true;
}

/* The buffers that images are in: the session's, and one for all layers, which a fork may share. */
static int claim_areas(struct tkv_adoption *a, struct tkv_journal *j, struct tkv_report *why)
{
    const struct tkv_journal_slot *now = a->found.now;

    for (uint32_t i = 2; i <= a->found.n_layers; i++)
        if (now[i].image_place != now[1].image_place)
            return broken(why, "images of layers are in two buffers");
    if (!claim_buffer(a, &now[0], &j->front) || !claim_buffer(a, &now[1], &j->areas))
        return broken(why, "images are nowhere");
    j->front_bytes = now[0].areas_bytes;
    j->areas_bytes = now[1].areas_bytes;
    return 0;
}

static int claim_ids(struct tkv_adoption *a, struct tkv_journal *j, struct tkv_report *why)
{
    if (a->front.ids_place == 0)
        return 0;
    if (!tkv_arena_claim(a->arena, (struct tkv_block_id){a->front.ids_place},
                         (size_t)a->front.ids_cap * 4, TKV_SLAB_BUFFER))
        return broken(why, "token ids are nowhere");
    j->ids = (struct tkv_block_id){a->front.ids_place};
    j->id = tkv_arena_at(a->arena, j->ids);
    j->cap_ids = a->front.ids_cap;
    j->n_ids = (uint32_t)a->found.now[0].n_ids;
    return 0;
}

/* The session goes on in the journal it was found in; with its next change in new areas. */
static int resume_journal(struct tkv_adoption *a, struct tkv_session *s, struct tkv_report *why)
{
    const struct found *f = &a->found;
    struct tkv_journal *j = tkv_journal_alloc(s);
    int e;

    if (!j)
        return tkv_fail(why, TRIKV_E_MEMORY_CAP, "no room for a journal");
    s->journal = j;
    j->number = f->committed;
    for (uint32_t i = 0; i <= f->n_layers; i++) {
        j->cells[i].now = f->now[i];
        j->cells[i].slot = f->slot[i];
        if (i > 0)
            j->cells[i].generation = s->layers[i - 1].generation;
    }
    j->note = tkv_session_alloc(s, a->front.note_bytes);
    if (!j->note)
        return tkv_fail(why, TRIKV_E_MEMORY_CAP, "no room for a journal");
    j->note_bytes = a->front.note_bytes;
    memcpy(j->note, (const uint8_t *)a->image + sizeof(a->front), j->note_bytes);
    e = claim_areas(a, j, why);
    e = e ? e : claim_ids(a, j, why);
    if (!e &&
        !tkv_arena_claim(a->arena, f->root, tkv_align(tkv_journal_root_bytes(f->n_layers), 64),
                         TKV_SLAB_JOURNAL))
        e = broken(why, "two sessions in one root");
    if (e)
        return e;
    j->root = f->root;
    j->root_bytes = tkv_journal_root_bytes(f->n_layers);
    return tkv_arena_defer(s->arena, 4, why);
}

void tkv_adoption_refuse(struct tkv_adoption *a)
{
    struct tkv_journal_header *h = tkv_arena_at(a->arena, a->found.root);

    __atomic_store_n(&h->is_live, 0, __ATOMIC_RELEASE);
}

int tkv_adoption_take(struct tkv_adoption *a, struct tkv_session **session, struct tkv_report *why)
{
    struct tkv_session *s;
    int e = tkv_image_open(&s, a->config, a->arena, a->budget, a->kn, why);

    *session = NULL;
    if (e) {
        tkv_adoption_refuse(a);
        return e;
    }
    e = read_layers(a, s, why);
    e = e ? e : resume_journal(a, s, why);
    if (e) {
        tkv_adoption_refuse(a);
        s->next_failed = a->failed;
        a->failed = s;
        return e;
    }
    *session = s;
    return 0;
}
