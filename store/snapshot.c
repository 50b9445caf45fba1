/* Writing snapshots: find every block that the sessions refer to, then all parts one after the other. */
#include <string.h>

#include "proto/errors.h"
#include "store/budget.h"
#include "store/session_priv.h"
#include "store/snapshot_priv.h"

enum kind { NOTHING = 0, BLOCK = 1, TABLE = 2 };

/* A block or a table, and the name that the file has for it. */
struct entry {
    uint64_t key;
    uint64_t name;
    enum kind kind;
};

struct item {
    struct tkv_block_id id;
    uint32_t size; /* as in the file */
    uint32_t positions_offset;
    uint32_t n_tokens; /* positions of others are not the sessions' */
};

struct gather {
    const struct tkv_session *const *sessions;
    uint32_t n_sessions;
    struct tkv_budget *budget;
    struct entry *entries; /* [cap], a power of two */
    size_t cap;
    struct item *items; /* [n_items], by name - 1 */
    size_t n_items, cap_items;
    uint64_t n_tables;
    uint8_t *scratch; /* of one block or one part */
    size_t scratch_bytes;
};

/* ---- names -------------------------------------------------------------------------------- */

static struct entry *find(const struct gather *g, enum kind kind, uint64_t key)
{
    size_t i = (size_t)((key ^ (uint64_t)kind << 60) * UINT64_C(0x9e3779b97f4a7c15) >> 30);

    for (;; i++) {
        struct entry *e = &g->entries[i & (g->cap - 1)];

        if (e->kind == NOTHING || (e->kind == kind && e->key == key))
            return e;
    }
}

static uint64_t name_block(void *ctx, struct tkv_block_id id)
{
    return find(ctx, BLOCK, id.place)->name;
}

/* One session alone shares with nobody that is in the file. */
static uint64_t name_table(void *ctx, const void *table)
{
    struct gather *g = ctx;

    return g->n_sessions > 1 ? find(g, TABLE, (uintptr_t)table)->name : 0;
}

/* ---- gathering ---------------------------------------------------------------------------- */

/* Blocks of a table that go into the file, as tkv_image_write has it. */
static uint32_t n_listed(const struct gather *g, const struct tkv_head *h)
{
    if (!h->blocks)
        return 0;
    return g->n_sessions > 1 && tkv_is_shared(h->blocks) ? tkv_head_n_listed(h) : h->n_blocks;
}

static void add_item(struct gather *g, struct tkv_block_id id, const struct item *item)
{
    struct entry *e = find(g, BLOCK, id.place);

    if (e->kind != NOTHING)
        return;
    g->items[g->n_items] = *item;
    *e = (struct entry){id.place, ++g->n_items, BLOCK};
}

static void add_table(struct gather *g, const struct tkv_layer *l, const struct tkv_head *h)
{
    struct entry *e;

    for (uint32_t b = 0; b < n_listed(g, h); b++) {
        const struct tkv_block *block = &h->blocks[b];
        const struct tkv_block_layout *layout = tkv_layer_layout(l, block);
        const struct item item = {.id = block->id,
                                  .size = (uint32_t)(layout->bytes / 64),
                                  .positions_offset = (uint32_t)layout->positions_offset,
                                  .n_tokens = block->n_tokens};

        add_item(g, block->id, &item);
    }
    if (!h->blocks || g->n_sessions == 1 || !tkv_is_shared(h->blocks))
        return;
    e = find(g, TABLE, (uintptr_t)h->blocks);
    if (e->kind == NOTHING)
        *e = (struct entry){(uintptr_t)h->blocks, ++g->n_tables, TABLE};
}

static void add_layer(struct gather *g, const struct tkv_layer *l)
{
    if (l->halves) {
        const struct item item = {
            .id = l->halves->id, .size = (uint32_t)(tkv_halves_bytes(l) / 64) | TKV_SNAPSHOT_FIXED};

        add_item(g, l->halves->id, &item);
    }
    for (uint32_t h = 0; h < l->config.shape.n_kv_heads; h++) {
        add_table(g, l, &l->heads[h]);
        if (l->checkpoint.is_live)
            add_table(g, l, &l->checkpoint.heads[h]);
    }
}

/* The most items and tables that there can be. */
static size_t count_layer(const struct gather *g, const struct tkv_layer *l)
{
    size_t n = 1;

    for (uint32_t h = 0; h < l->config.shape.n_kv_heads; h++) {
        n += n_listed(g, &l->heads[h]) + 2;
        if (l->checkpoint.is_live)
            n += n_listed(g, &l->checkpoint.heads[h]);
    }
    return n;
}

static int gather(struct gather *g, struct tkv_report *why)
{
    size_t n = 0;

    for (uint32_t i = 0; i < g->n_sessions; i++)
        for (uint32_t l = 0; l < g->sessions[i]->config.n_layers; l++)
            n += count_layer(g, &g->sessions[i]->layers[l]);
    g->cap_items = n;
    for (g->cap = 64; g->cap < 2 * n;)
        g->cap *= 2;
    g->items = tkv_budget_alloc(g->budget, n * sizeof(*g->items));
    g->entries = tkv_budget_alloc(g->budget, g->cap * sizeof(*g->entries));
    if (!g->items || !g->entries)
        return tkv_fail(why, TRIKV_E_MEMORY_CAP,
                        "memory cap reached: no room to find %zu blocks for a snapshot", n);
    for (uint32_t i = 0; i < g->n_sessions; i++)
        for (uint32_t l = 0; l < g->sessions[i]->config.n_layers; l++)
            add_layer(g, &g->sessions[i]->layers[l]);
    return 0;
}

static int need_scratch(struct gather *g, size_t bytes, struct tkv_report *why)
{
    if (bytes <= g->scratch_bytes)
        return 0;
    tkv_budget_free(g->budget, g->scratch, g->scratch_bytes);
    g->scratch = tkv_budget_alloc(g->budget, bytes);
    g->scratch_bytes = g->scratch ? bytes : 0;
    return g->scratch ? 0
                      : tkv_fail(why, TRIKV_E_MEMORY_CAP,
                                 "memory cap reached: no %zu bytes for a snapshot", bytes);
}

/* ---- writing ------------------------------------------------------------------------------ */

/* What any of the sessions has in a buffer. */
static void copy_halves(const struct gather *g, const struct item *item)
{
    for (uint32_t i = 0; i < g->n_sessions; i++)
        for (uint32_t l = 0; l < g->sessions[i]->config.n_layers; l++) {
            const struct tkv_layer *layer = &g->sessions[i]->layers[l];

            if (layer->halves && layer->halves->id.place == item->id.place)
                tkv_halves_copy(layer, g->scratch);
        }
}

static int write_item(struct gather *g, const struct tkv_snapshot_sink *sink,
                      const struct item *item, struct tkv_report *why)
{
    const size_t bytes = (size_t)(item->size & ~TKV_SNAPSHOT_FIXED) * 64;
    const int e = need_scratch(g, bytes, why);

    if (e)
        return e;
    if (item->size & TKV_SNAPSHOT_FIXED) {
        memset(g->scratch, 0, bytes);
        copy_halves(g, item);
    } else {
        uint16_t *positions = (uint16_t *)(void *)(g->scratch + item->positions_offset);

        memcpy(g->scratch, tkv_arena_at(g->sessions[0]->arena, item->id), bytes);
        memset(positions + item->n_tokens, 0,
               (TKV_BLOCK_TOKENS - item->n_tokens) * sizeof(*positions));
    }
    return sink->write(sink->ctx, g->scratch, bytes, why);
}

static int write_items(struct gather *g, const struct tkv_snapshot_sink *sink,
                       struct tkv_report *why)
{
    int e = 0;

    for (size_t i = 0; !e && i < g->n_items; i++)
        e = sink->write(sink->ctx, &g->items[i].size, sizeof(g->items[i].size), why);
    for (size_t i = 0; !e && i < g->n_items; i++)
        e = write_item(g, sink, &g->items[i], why);
    return e;
}

static int write_part(struct gather *g, const struct tkv_snapshot_sink *sink,
                      const struct tkv_session *s, enum tkv_image_part part, uint32_t layer,
                      struct tkv_report *why)
{
    const struct tkv_image_names names = {.block = name_block, .table = name_table, .ctx = g};
    const size_t bytes = tkv_image_bytes(s, part, layer, &names);
    const int e = need_scratch(g, bytes, why);

    if (e)
        return e;
    tkv_image_write(s, part, layer, &names, g->scratch);
    return sink->write(sink->ctx, g->scratch, bytes, why);
}

static int write_session(struct gather *g, const struct tkv_snapshot_sink *sink,
                         const struct tkv_session *s, struct tkv_report *why)
{
    int e = write_part(g, sink, s, TKV_IMAGE_COUNTERS, 0, why);

    for (uint32_t i = 0; i < s->config.n_layers; i++)
        for (int part = TKV_IMAGE_STATE; !e && part < TKV_IMAGE_N_PARTS; part++)
            e = write_part(g, sink, s, (enum tkv_image_part)part, i, why);
    return e;
}

static int write_all(struct gather *g, const struct tkv_snapshot_sink *sink, const void *meta,
                     size_t meta_bytes, struct tkv_report *why)
{
    const struct snapshot_header h = {.magic = TKV_SNAPSHOT_MAGIC,
                                      .version = TKV_IMAGE_VERSION,
                                      .n_sessions = g->n_sessions,
                                      .meta_bytes = meta_bytes,
                                      .n_blocks = g->n_items};
    int e = sink->write(sink->ctx, &h, sizeof(h), why);

    if (!e && meta_bytes > 0)
        e = sink->write(sink->ctx, meta, meta_bytes, why);
    for (uint32_t i = 0; !e && i < g->n_sessions; i++)
        e = write_part(g, sink, g->sessions[i], TKV_IMAGE_CONFIG, 0, why);
    e = e ? e : write_items(g, sink, why);
    for (uint32_t i = 0; !e && i < g->n_sessions; i++)
        e = write_session(g, sink, g->sessions[i], why);
    return e;
}

int tkv_snapshot_write(const struct tkv_snapshot_sink *sink,
                       const struct tkv_session *const *sessions, uint32_t n, const void *meta,
                       size_t meta_bytes, struct tkv_report *why)
{
    struct gather g = {.sessions = sessions, .n_sessions = n, .budget = sessions[0]->budget};
    int e = 0;

    if (n > TKV_SNAPSHOT_MAX_SESSIONS || meta_bytes > TKV_SNAPSHOT_MAX_META_BYTES)
        e = tkv_fail(why, TRIKV_E_TOO_LARGE, "a snapshot of %u sessions, %zu bytes of meta", n,
                     meta_bytes);
    e = e ? e : gather(&g, why);
    e = e ? e : write_all(&g, sink, meta, meta_bytes, why);
    tkv_budget_free(g.budget, g.items, g.cap_items * sizeof(*g.items));
    tkv_budget_free(g.budget, g.entries, g.cap * sizeof(*g.entries));
    tkv_budget_free(g.budget, g.scratch, g.scratch_bytes);
    return e;
}
