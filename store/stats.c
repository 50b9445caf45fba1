/* What a session says of itself: honest sizes, and the table that lets others find its blocks. */
#include <string.h>

#include "proto/shm_layout.h"
#include "store/session_priv.h"

static uint64_t layer_kept(const struct tkv_layer *l, uint64_t *n_cold, uint32_t *n_blocks)
{
    const uint32_t n_kv_heads = l->config.shape.n_kv_heads;

    *n_cold = 0;
    *n_blocks = 0;
    for (uint32_t h = 0; h < n_kv_heads; h++) {
        *n_cold += l->heads[h].n_cold;
        *n_blocks += l->heads[h].n_blocks;
    }
    return *n_cold + (uint64_t)(l->tail.n + l->pinned.n) * n_kv_heads;
}

static void add_blocks(const struct tkv_block_layout *layout, uint64_t n,
                       struct tkv_layer_stats *out)
{
    out->cold_bytes_k += n * tkv_block_k_bytes(layout);
    out->cold_bytes_v += n * tkv_block_v_bytes(layout);
    out->cold_bytes_meta +=
        n * (layout->bytes - tkv_block_k_bytes(layout) - tkv_block_v_bytes(layout));
}

void tkv_session_layer_stats(const struct tkv_session *s, uint32_t layer,
                             struct tkv_layer_stats *out)
{
    const struct tkv_layer *l = &s->layers[layer];

    *out = (struct tkv_layer_stats){.n_seen = l->n_seen};
    out->n_kept = layer_kept(l, &out->n_cold_tokens, &out->n_blocks);
    out->pinned_bytes = l->halves ? l->pinned.bytes : 0; /* they come with the first token */
    out->tail_bytes = l->halves ? l->tail.bytes : 0;
    if (!l->ladder)
        add_blocks(&l->layout, out->n_blocks, out);
    for (uint32_t h = 0; l->ladder && h < l->config.shape.n_kv_heads; h++)
        for (uint32_t b = 0; b < l->heads[h].n_blocks; b++)
            add_blocks(tkv_layer_layout(l, &l->heads[h].blocks[b]), 1, out);
    out->gate = l->gate;
    out->codec_k = l->ladder ? "by head" : l->config.codec_k->name;
    out->codec_v = l->ladder                      ? "by head"
                   : l->config.shape.rope_dim > 0 ? "view of K"
                                                  : l->config.codec_v->name;
}

/* Bytes that are plainly of keys or plainly of values, and the counts to divide by. */
struct split {
    uint64_t k_bytes, v_bytes;
    uint64_t k_values, v_values;
};

static void split_layer(const struct tkv_session *s, uint32_t layer, struct split *sum,
                        uint64_t *n_kept)
{
    const struct tkv_shape *shape = &s->layers[layer].config.shape;
    const uint64_t dim_v = tkv_stored_dim_v(shape);
    const uint64_t dims = shape->head_dim_k + dim_v;
    struct tkv_layer_stats l;
    uint64_t half_bytes;

    tkv_session_layer_stats(s, layer, &l);
    half_bytes = (uint64_t)(s->layers[layer].pinned.cap + s->layers[layer].tail.cap) *
                 shape->n_kv_heads * dims * 2;
    sum->k_bytes += l.cold_bytes_k + half_bytes * shape->head_dim_k / dims;
    sum->v_bytes += l.cold_bytes_v + half_bytes * dim_v / dims;
    sum->k_values += l.n_kept * shape->head_dim_k;
    sum->v_values += l.n_kept * dim_v;
    *n_kept += l.n_kept;
}

/* What belongs to no side (positions, norm terms, tables, slack) is split evenly per byte, so that
 * bits_k and bits_v add up to every byte there is. */
static void bits(const struct split *sum, uint64_t resident_bytes, double *bits_k, double *bits_v)
{
    const double own = (double)(sum->k_bytes + sum->v_bytes);
    const double factor = own > 0 ? (double)resident_bytes / own : 0;

    *bits_k = sum->k_values ? 8 * factor * (double)sum->k_bytes / (double)sum->k_values : 0;
    *bits_v = sum->v_values ? 8 * factor * (double)sum->v_bytes / (double)sum->v_values : 0;
}

static uint64_t fp16_bytes(const struct tkv_session *s)
{
    uint64_t n = 0;

    for (uint32_t i = 0; i < s->config.n_layers; i++) {
        const struct tkv_shape *shape = &s->layers[i].config.shape;
        const uint32_t window = s->layers[i].config.attn.window_tokens;
        const uint64_t n_seen = s->layers[i].n_seen;
        /* Uncompressed caches keep no more than the window either. */
        const uint64_t n_tokens = window > 0 && window < n_seen ? window : n_seen;

        n += n_tokens * shape->n_kv_heads * (shape->head_dim_k + tkv_stored_dim_v(shape)) * 2;
    }
    return n;
}

static uint32_t count_blocks(const struct tkv_layer *l)
{
    uint32_t n = 0;

    for (uint32_t h = 0; h < l->config.shape.n_kv_heads; h++)
        n += l->heads[h].n_blocks;
    return n;
}

static size_t count_shared_of(const struct tkv_session *s, const struct tkv_head *h, uint32_t first,
                              uint32_t n)
{
    if (tkv_is_shared(h->blocks))
        return n;
    return tkv_arena_count_shared(s->arena, &h->blocks[first].id, sizeof(*h->blocks), n);
}

/* Bytes of the blocks of a table, all or only those that others refer to as well. */
static uint64_t block_bytes(const struct tkv_session *s, const struct tkv_layer *l,
                            const struct tkv_head *h, bool only_shared)
{
    uint64_t bytes = 0;

    if (h->n_blocks == 0)
        return 0;
    if (!l->ladder)
        return (only_shared ? count_shared_of(s, h, 0, h->n_blocks) : h->n_blocks) *
               l->layout.bytes;
    for (uint32_t b = 0; b < h->n_blocks; b++)
        bytes += (only_shared ? count_shared_of(s, h, b, 1) : 1) *
                 tkv_layer_layout(l, &h->blocks[b])->bytes;
    return bytes;
}

/* Of blocks that only a checkpoint holds. */
static uint64_t kept_back_bytes(const struct tkv_session *s, const struct tkv_layer *l)
{
    uint64_t bytes = 0;

    for (uint32_t h = 0; l->checkpoint.is_live && h < l->config.shape.n_kv_heads; h++)
        if (l->checkpoint.heads[h].blocks)
            bytes += block_bytes(s, l, &l->checkpoint.heads[h], false) -
                     block_bytes(s, l, &l->checkpoint.heads[h], true);
    return bytes;
}

static uint64_t half_bytes(const struct tkv_layer *l)
{
    return l->halves ? l->pinned.bytes + l->tail.bytes : 0;
}

/* What of the arena a session refers to, and its part of the slack: all of it if it is alone. */
static void arena_bytes(const struct tkv_session *s, struct tkv_session_stats *out)
{
    const struct tkv_arena_sizes all = tkv_arena_sizes(s->arena);

    out->slack_bytes = (all.slab_bytes - all.live_bytes) / all.n_users;
    out->arena_bytes = all.slab_bytes;
    if (all.n_users > 1) {
        out->arena_bytes = out->slack_bytes;
        for (uint32_t i = 0; i < s->config.n_layers; i++) {
            const struct tkv_layer *l = &s->layers[i];

            out->arena_bytes += half_bytes(l) + kept_back_bytes(s, l);
            for (uint32_t h = 0; h < l->config.shape.n_kv_heads; h++)
                out->arena_bytes += block_bytes(s, l, &l->heads[h], false);
        }
    }
    out->resident_bytes = s->own_bytes + out->arena_bytes + all.table_bytes / all.n_users;
}

static uint64_t shared_memory_bytes(const void *p)
{
    return p && tkv_is_shared(p) ? tkv_shared_bytes(p) : 0;
}

/* Bytes of private memory, and with blocks also those in the arena, that others refer to. */
static uint64_t shared_bytes(const struct tkv_session *s, bool blocks)
{
    uint64_t n = shared_memory_bytes(s->coders) + shared_memory_bytes(s->fold);

    for (uint32_t i = 0; i < s->config.n_layers; i++) {
        const struct tkv_layer *l = &s->layers[i];

        n += shared_memory_bytes(l->halves) + shared_memory_bytes(l->sinks) +
             shared_memory_bytes(l->norm_weights);
        if (blocks && l->halves && tkv_is_shared(l->halves))
            n += half_bytes(l);
        for (uint32_t h = 0; h < l->config.shape.n_kv_heads; h++)
            n += shared_memory_bytes(l->heads[h].blocks) +
                 (blocks ? block_bytes(s, l, &l->heads[h], true) : 0);
    }
    return n;
}

uint64_t tkv_session_resident_bytes(const struct tkv_session *s)
{
    struct tkv_session_stats out = {0};

    arena_bytes(s, &out);
    return out.resident_bytes;
}

uint64_t tkv_session_shared_bytes(const struct tkv_session *s)
{
    return shared_bytes(s, true);
}

uint64_t tkv_session_private_bytes(const struct tkv_session *s)
{
    return s->own_bytes - shared_bytes(s, false);
}

void tkv_session_stats(const struct tkv_session *s, struct tkv_session_stats *out)
{
    struct split sum = {0};
    uint64_t n_kept = 0;
    uint64_t n_heads = 0;

    *out = (struct tkv_session_stats){.n_layers = s->config.n_layers, .n_evicted = s->n_evicted};
    for (uint32_t i = 0; i < s->config.n_layers; i++) {
        split_layer(s, i, &sum, &n_kept);
        n_heads += s->layers[i].config.shape.n_kv_heads;
        if (s->layers[i].n_seen > out->n_seen)
            out->n_seen = s->layers[i].n_seen;
    }
    out->n_kept = (double)n_kept / (double)n_heads;
    out->n_rounds = tkv_session_n_rounds(s);
    arena_bytes(s, out);
    out->fp16_bytes = fp16_bytes(s);
    bits(&sum, out->resident_bytes, &out->bits_k, &out->bits_v);
}

uint64_t tkv_session_n_seen(const struct tkv_session *s, uint32_t layer)
{
    return s->layers[layer].n_seen;
}

uint32_t tkv_session_n_kept(const struct tkv_session *s, uint32_t layer)
{
    const struct tkv_layer *l = &s->layers[layer];
    uint32_t most = 0;

    for (uint32_t h = 0; h < l->config.shape.n_kv_heads; h++)
        if (l->heads[h].n_cold > most)
            most = l->heads[h].n_cold;
    return most + l->tail.n + l->pinned.n;
}

uint32_t tkv_session_n_rounds(const struct tkv_session *s)
{
    uint32_t most = 0;

    for (uint32_t i = 0; i < s->config.n_layers; i++)
        if (s->layers[i].n_rounds > most)
            most = s->layers[i].n_rounds;
    return most;
}

uint64_t tkv_session_n_changes(const struct tkv_session *s)
{
    return s->n_changes + s->generation;
}

uint32_t tkv_session_n_layers(const struct tkv_session *s)
{
    return s->config.n_layers;
}

const struct tkv_shape *tkv_session_shape(const struct tkv_session *s, uint32_t layer)
{
    return &s->layers[layer].config.shape;
}

/* ---- the block table -------------------------------------------------------------------------- */

uint64_t tkv_session_arena_id(const struct tkv_session *s)
{
    return tkv_arena_id(s->arena);
}

int tkv_session_arena_own_fd(const struct tkv_session *s)
{
    return tkv_arena_fd(s->arena);
}

int tkv_session_arena_fd(const struct tkv_session *s)
{
    return tkv_arena_read_fd(s->arena);
}

uint64_t tkv_session_generation(const struct tkv_session *s)
{
    return s->generation;
}

static uint32_t count_all_blocks(const struct tkv_session *s)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < s->config.n_layers; i++)
        n += count_blocks(&s->layers[i]);
    return n;
}

size_t tkv_session_table_bytes(const struct tkv_session *s)
{
    return sizeof(struct trikv_table_header) +
           (size_t)count_all_blocks(s) * sizeof(struct trikv_table_entry);
}

static struct trikv_table_entry *fill_head(const struct tkv_session *s, uint32_t layer,
                                           uint32_t kv_head, struct trikv_table_entry *e)
{
    const struct tkv_layer *l = &s->layers[layer];
    const struct tkv_head *head = &l->heads[kv_head];

    for (uint32_t b = 0; b < head->n_blocks; b++) {
        const struct tkv_block_layout *layout = tkv_layer_layout(l, &head->blocks[b]);

        *e++ = (struct trikv_table_entry){
            .block_offset = tkv_block_offset(head->blocks[b].id),
            .block_bytes = (uint32_t)layout->bytes,
            .k_bytes = (uint32_t)layout->values_offset,
            .v_bytes = (uint32_t)(layout->positions_offset - layout->values_offset),
            .first_position = (uint32_t)head->blocks[b].first_position,
            .layer = (uint16_t)layer,
            .kv_head = (uint16_t)kv_head,
            .codec_k = (uint16_t)layout->k->codec->id,
            .codec_v = layout->raw_dim > 0 ? 0 : (uint16_t)layout->v->codec->id,
            .head_dim_k = (uint16_t)l->config.shape.head_dim_k,
            .head_dim_v = (uint16_t)l->config.shape.head_dim_v,
            .n_tokens = head->blocks[b].n_tokens,
            .n_score_heads = (uint16_t)layout->n_score_heads,
            .has_means = tkv_layer_has_means(l),
        };
    }
    return e;
}

void tkv_session_table(const struct tkv_session *s, void *table)
{
    struct trikv_table_header *h = table;
    struct trikv_table_entry *e = (struct trikv_table_entry *)(h + 1);

    *h = (struct trikv_table_header){
        .magic = TRIKV_SHM_MAGIC,
        .version = TRIKV_SHM_VERSION,
        .generation = s->generation,
        .arena_bytes = tkv_arena_capacity_bytes(s->arena),
        .n_entries = count_all_blocks(s),
        .entry_bytes = sizeof(struct trikv_table_entry),
        .rotation_seed = TKV_ROTATION_SEED,
    };
    for (uint32_t i = 0; i < s->config.n_layers; i++)
        for (uint32_t k = 0; k < s->layers[i].config.shape.n_kv_heads; k++)
            e = fill_head(s, i, k, e);
}
