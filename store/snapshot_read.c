/* Reading snapshots, whose bytes may be anybody's. */
#include <string.h>

#include "proto/errors.h"
#include "store/budget.h"
#include "store/image_layout.h"
#include "store/session_priv.h"
#include "store/snapshot_priv.h"

/* Of one part, which no session of a daemon comes near. */
enum { MAX_PART_BYTES = 1 << 30, MAX_BLOCKS = 1 << 28 };

static int take(struct tkv_snapshot *s, void *bytes, size_t n, struct tkv_report *why)
{
    return n > 0 ? s->source.read(s->source.ctx, bytes, n, why) : 0;
}

static int no_room(size_t bytes, struct tkv_report *why)
{
    return tkv_fail(why, TRIKV_E_MEMORY_CAP, "memory cap reached: no %zu bytes to read a snapshot",
                    bytes);
}

/* The next part, with what its header says, in s->part. */
static int take_part(struct tkv_snapshot *s, size_t *bytes, struct tkv_report *why)
{
    struct image_header h;
    int e = take(s, &h, sizeof(h), why);

    if (e)
        return e;
    if (h.magic != TKV_IMAGE_MAGIC || h.bytes < sizeof(h) || h.bytes > MAX_PART_BYTES)
        return tkv_fail(why, TRIKV_E_VALUE, "snapshot: a part of %llu bytes",
                        (unsigned long long)h.bytes);
    if (h.bytes > s->part_bytes) {
        tkv_budget_free(s->budget, s->part, s->part_bytes);
        s->part = tkv_budget_alloc(s->budget, (size_t)h.bytes);
        s->part_bytes = s->part ? (size_t)h.bytes : 0;
        if (!s->part)
            return no_room((size_t)h.bytes, why);
    }
    *bytes = (size_t)h.bytes;
    memcpy(s->part, &h, sizeof(h));
    return take(s, (uint8_t *)s->part + sizeof(h), *bytes - sizeof(h), why);
}

/* ---- the first step ----------------------------------------------------------------------- */

static int take_header(struct tkv_snapshot *s, struct tkv_report *why)
{
    struct snapshot_header h;
    int e = take(s, &h, sizeof(h), why);

    if (e)
        return e;
    if (h.magic != TKV_SNAPSHOT_MAGIC)
        return tkv_fail(why, TRIKV_E_VALUE, "not a snapshot");
    if (h.version != TKV_IMAGE_VERSION)
        return tkv_fail(why, TRIKV_E_VERSION, "snapshot is of version %u, want %d", h.version,
                        TKV_IMAGE_VERSION);
    if (h.n_sessions == 0 || h.n_sessions > TKV_SNAPSHOT_MAX_SESSIONS ||
        h.meta_bytes > TKV_SNAPSHOT_MAX_META_BYTES || h.n_blocks > MAX_BLOCKS)
        return tkv_fail(why, TRIKV_E_VALUE,
                        "snapshot of %u sessions, %llu blocks, %llu bytes of meta", h.n_sessions,
                        (unsigned long long)h.n_blocks, (unsigned long long)h.meta_bytes);
    s->configs = tkv_budget_alloc(s->budget, h.n_sessions * sizeof(struct tkv_image_config *));
    if (!s->configs)
        return no_room(h.n_sessions * sizeof(struct tkv_image_config *), why);
    s->n_sessions = h.n_sessions;
    s->n_blocks = h.n_blocks;
    if (h.meta_bytes > 0) {
        s->meta = tkv_budget_alloc(s->budget, (size_t)h.meta_bytes);
        if (!s->meta)
            return no_room((size_t)h.meta_bytes, why);
    }
    s->meta_bytes = (size_t)h.meta_bytes;
    return take(s, s->meta, s->meta_bytes, why);
}

int tkv_snapshot_open(struct tkv_snapshot **snapshot, const struct tkv_snapshot_source *source,
                      struct tkv_budget *budget, struct tkv_report *why)
{
    struct tkv_snapshot *s = tkv_budget_alloc(budget, sizeof(*s));
    size_t bytes;
    int e;

    *snapshot = NULL;
    if (!s)
        return no_room(sizeof(*s), why);
    s->source = *source;
    s->budget = budget;
    e = take_header(s, why);
    for (uint32_t i = 0; !e && i < s->n_sessions; i++) {
        e = take_part(s, &bytes, why);
        e = e ? e : tkv_image_read_config(&s->configs[i], s->part, bytes, budget, why);
    }
    if (e)
        tkv_snapshot_close(&s);
    *snapshot = s;
    return e;
}

void tkv_snapshot_close(struct tkv_snapshot **snapshot)
{
    struct tkv_snapshot *s = *snapshot;

    if (!s)
        return;
    for (uint64_t i = 0; s->blocks && i < s->n_blocks; i++)
        if (s->blocks[i].is_there)
            tkv_arena_unref(s->arena, s->blocks[i].id);
    tkv_arena_destroy(&s->arena);
    for (uint32_t i = 0; s->configs && i < s->n_sessions; i++)
        tkv_image_config_destroy(&s->configs[i]);
    tkv_budget_free(s->budget, s->configs, s->n_sessions * sizeof(struct tkv_image_config *));
    tkv_budget_free(s->budget, s->meta, s->meta_bytes);
    if (s->blocks)
        tkv_budget_free(s->budget, s->blocks, (size_t)s->n_blocks * sizeof(*s->blocks));
    tkv_budget_free(s->budget, s->part, s->part_bytes);
    tkv_budget_free(s->budget, s, sizeof(*s));
    *snapshot = NULL;
}

/* ---- the second --------------------------------------------------------------------------- */

static int find_block(void *ctx, struct tkv_arena *arena, uint64_t name, size_t bytes, bool fixed,
                      struct tkv_block_id *id, struct tkv_report *why)
{
    const struct tkv_snapshot *s = ctx;
    const struct tkv_snapshot_block *b;

    if (name == 0 || name > s->n_blocks)
        return tkv_fail(why, TRIKV_E_VALUE, "snapshot: block %llu of %llu",
                        (unsigned long long)name, (unsigned long long)s->n_blocks);
    b = &s->blocks[name - 1];
    if (bytes / 64 != (b->size & ~TKV_SNAPSHOT_FIXED) || fixed != (b->size >= TKV_SNAPSHOT_FIXED))
        return tkv_fail(why, TRIKV_E_VALUE, "snapshot: block %llu has size %#x, want %zu bytes",
                        (unsigned long long)name, b->size, bytes);
    tkv_arena_ref(arena, b->id);
    *id = b->id;
    return 0;
}

static int take_block(struct tkv_snapshot *s, struct tkv_snapshot_block *b, struct tkv_report *why)
{
    const size_t bytes = (size_t)(b->size & ~TKV_SNAPSHOT_FIXED) * 64;
    int e;

    if (b->size & TKV_SNAPSHOT_FIXED) {
        e = tkv_arena_buffer(s->arena, bytes, &b->id, why);
    } else {
        e = tkv_arena_reserve(s->arena, bytes, 1, why);
        if (!e)
            b->id = tkv_arena_take(s->arena, bytes);
    }
    if (e)
        return e;
    b->is_there = true;
    return take(s, tkv_arena_at(s->arena, b->id), bytes, why);
}

static int take_blocks(struct tkv_snapshot *s, struct tkv_report *why)
{
    int e = 0;

    if (s->n_blocks == 0)
        return 0;
    s->blocks = tkv_budget_alloc(s->budget, (size_t)s->n_blocks * sizeof(*s->blocks));
    if (!s->blocks)
        return no_room((size_t)s->n_blocks * sizeof(*s->blocks), why);
    for (uint64_t i = 0; !e && i < s->n_blocks; i++) {
        e = take(s, &s->blocks[i].size, sizeof(s->blocks[i].size), why);
        if (!e && (s->blocks[i].size & ~TKV_SNAPSHOT_FIXED) == 0)
            e = tkv_fail(why, TRIKV_E_VALUE, "snapshot: block %llu has no size",
                         (unsigned long long)i + 1);
    }
    for (uint64_t i = 0; !e && i < s->n_blocks; i++)
        e = take_block(s, &s->blocks[i], why);
    return e;
}

static int take_session(struct tkv_snapshot *s, struct tkv_session *to,
                        struct tkv_image_source *source, struct tkv_report *why)
{
    size_t bytes;
    int e = take_part(s, &bytes, why);

    e = e ? e : tkv_image_read(to, TKV_IMAGE_COUNTERS, 0, s->part, bytes, source, why);
    for (uint32_t i = 0; i < to->config.n_layers; i++)
        for (int part = TKV_IMAGE_STATE; !e && part < TKV_IMAGE_N_PARTS; part++) {
            e = take_part(s, &bytes, why);
            e = e ? e
                  : tkv_image_read(to, (enum tkv_image_part)part, i, s->part, bytes, source, why);
        }
    return e ? e : tkv_image_finish(to, true, why);
}

/* Sessions of one kind share what follows from it, as forks do. */
static int open_sessions(struct tkv_snapshot *s, const struct tkv_kernels *kn,
                         struct tkv_session **sessions, struct tkv_report *why)
{
    int e = 0;

    for (uint32_t i = 0; !e && i < s->n_sessions; i++) {
        const struct tkv_image_config *c = s->configs[i];

        if (i > 0 && c->digest == s->configs[0]->digest)
            e = tkv_session_fork(&sessions[i], sessions[0], why);
        else
            e = tkv_image_open(&sessions[i], c, s->arena, s->budget, kn, why);
        if (!e && !s->arena) {
            s->arena = tkv_arena_share(sessions[0]->arena);
            e = s->arena ? 0 : no_room(0, why);
        }
    }
    return e;
}

int tkv_snapshot_read(struct tkv_snapshot *s, const struct tkv_kernels *kn,
                      struct tkv_session **sessions, struct tkv_report *why)
{
    struct tkv_image_source source = {.block = find_block, .ctx = s};
    int e;

    memset(sessions, 0, s->n_sessions * sizeof(struct tkv_session *));
    e = open_sessions(s, kn, sessions, why);
    e = e ? e : take_blocks(s, why);
    for (uint32_t i = 0; !e && i < s->n_sessions; i++)
        e = take_session(s, sessions[i], &source, why);
    tkv_image_source_release(&source);
    for (uint32_t i = 0; e && i < s->n_sessions; i++)
        tkv_session_destroy(&sessions[i]);
    return e;
}
