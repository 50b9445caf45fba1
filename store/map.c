/*
 * What other processes get to see: a pinned session, and the map that says where everything in it is.
 * Sessions that work are not mapped themselves but forked first, so that a reader never sees one of
 * them in the middle of anything.
 */
#include <stdatomic.h>
#include <string.h>

#include "proto/errors.h"
#include "proto/shm_layout.h"
#include "store/session_priv.h"

enum { PIN_BYTES = 64, PART_ALIGN = 64 };

static _Atomic uint64_t *pin_of(const struct tkv_session *s)
{
    return tkv_arena_at(s->arena, s->pin);
}

int tkv_session_pin(struct tkv_session *s, uint64_t value, struct tkv_report *why)
{
    int e;

    e = tkv_arena_buffer_of(s->arena, TKV_SLAB_PIN, PIN_BYTES, &s->pin, why);
    if (e)
        return e;
    s->pin_value = value;
    atomic_store(pin_of(s), value);
    return 0;
}

/* A reader that has seen any byte of what comes after this sees that the value has gone. */
void tkv_session_unpin(struct tkv_session *s)
{
    if (s->pin_value == 0)
        return;
    atomic_store(pin_of(s), 0);
    atomic_thread_fence(memory_order_seq_cst);
    tkv_arena_unref(s->arena, s->pin);
    s->pin_value = 0;
}

/* ---- the map ------------------------------------------------------------------------------ */

struct counts {
    uint32_t n_heads;
    uint64_t n_blocks;
    uint64_t n_sinks;
    uint64_t n_layouts;
};

static uint32_t count_layouts(const struct tkv_layer *l)
{
    return l->ladder ? l->ladder->n_tiers : 0;
}

static struct counts count_parts(const struct tkv_session *s)
{
    struct counts n = {0};

    for (uint32_t i = 0; i < s->config.n_layers; i++) {
        const struct tkv_layer *l = &s->layers[i];

        n.n_heads += l->config.shape.n_kv_heads;
        n.n_sinks += l->sinks ? l->config.shape.n_q_heads : 0;
        n.n_layouts += count_layouts(l);
        for (uint32_t h = 0; h < l->config.shape.n_kv_heads; h++)
            n.n_blocks += l->heads[h].n_blocks;
    }
    return n;
}

/* Where the parts of the map begin; with map NULL only how long it is. */
struct parts {
    struct trikv_map_layer *layers;
    struct trikv_map_head *heads;
    struct trikv_map_block *blocks;
    float *sinks;
    struct trikv_map_layout *layouts;
    size_t bytes;
};

static void *part(uint8_t *map, size_t *at, size_t bytes)
{
    void *p = map ? map + *at : NULL;

    *at = tkv_align(*at + bytes, PART_ALIGN);
    return p;
}

static struct parts lay_out(const struct tkv_session *s, const struct counts *n, uint8_t *map)
{
    struct parts p;

    p.bytes = sizeof(struct trikv_map_header);
    p.layers = part(map, &p.bytes, s->config.n_layers * sizeof(*p.layers));
    p.heads = part(map, &p.bytes, n->n_heads * sizeof(*p.heads));
    p.blocks = part(map, &p.bytes, n->n_blocks * sizeof(*p.blocks));
    p.sinks = part(map, &p.bytes, n->n_sinks * sizeof(*p.sinks));
    p.layouts = part(map, &p.bytes, n->n_layouts * sizeof(*p.layouts));
    return p;
}

static struct trikv_map_tier map_tier(const struct tkv_session *s, const struct tkv_layer *l,
                                      const struct tkv_half_tier *t)
{
    const uint8_t *base = tkv_arena_at(s->arena, (struct tkv_block_id){0});

    if (!l->halves)
        return (struct trikv_map_tier){0};
    return (struct trikv_map_tier){.k_offset = (uint64_t)((const uint8_t *)t->k - base),
                                   .v_offset = (uint64_t)((const uint8_t *)t->v - base),
                                   .positions_offset =
                                       (uint64_t)((const uint8_t *)t->positions - base),
                                   .n_tokens = t->n,
                                   .cap_tokens = t->cap};
}

static struct trikv_map_layer map_layer(const struct tkv_session *s, const struct tkv_layer *l)
{
    const struct tkv_layer_config *c = &l->config;

    return (struct trikv_map_layer){
        .n_q_heads = c->shape.n_q_heads,
        .n_kv_heads = c->shape.n_kv_heads,
        .head_dim_k = c->shape.head_dim_k,
        .head_dim_v = c->shape.head_dim_v,
        .scale = c->attn.scale,
        .softcap = c->attn.softcap,
        .window_tokens = c->attn.window_tokens,
        .n_sinks = l->sinks ? c->shape.n_q_heads : 0,
        .codec_k = (uint32_t)l->layout.k->codec->id,
        .codec_v = (uint32_t)l->layout.v->codec->id,
        .n_score_heads = l->layout.n_score_heads,
        .block_bytes = (uint32_t)l->layout.bytes,
        .n_seen = l->n_seen,
        .n_rounds = l->n_rounds,
        .n_layouts = count_layouts(l),
        .first_query = l->first_query,
        .rope_dim = (uint16_t)c->shape.rope_dim,
        .has_means = tkv_layer_has_means(l),
        .pinned = map_tier(s, l, &l->pinned),
        .tail = map_tier(s, l, &l->tail),
    };
}

static void map_heads(const struct tkv_layer *l, struct parts *p)
{
    for (uint32_t h = 0; h < l->config.shape.n_kv_heads; h++) {
        const struct tkv_head *head = &l->heads[h];

        *p->heads++ = (struct trikv_map_head){head->n_blocks, head->n_cold};
        for (uint32_t b = 0; b < head->n_blocks; b++)
            *p->blocks++ =
                (struct trikv_map_block){.block_offset = tkv_block_offset(head->blocks[b].id),
                                         .first_position = head->blocks[b].first_position,
                                         .n_tokens = head->blocks[b].n_tokens,
                                         .layout = head->blocks[b].tier};
    }
}

static void map_layouts(const struct tkv_layer *l, struct parts *p)
{
    for (uint32_t t = 0; t < count_layouts(l); t++) {
        const struct tkv_block_layout *layout = &l->ladder->tiers[t];

        *p->layouts++ = (struct trikv_map_layout){.codec_k = (uint32_t)layout->k->codec->id,
                                                  .codec_v = (uint32_t)layout->v->codec->id,
                                                  .block_bytes = (uint32_t)layout->bytes,
                                                  .n_score_heads = layout->n_score_heads};
    }
}

size_t tkv_session_map_bytes(const struct tkv_session *s)
{
    const struct counts n = count_parts(s);

    return lay_out(s, &n, NULL).bytes;
}

void tkv_session_map(const struct tkv_session *s, void *map)
{
    const struct counts n = count_parts(s);
    struct parts p = lay_out(s, &n, map);
    struct trikv_map_header *header = map;

    memset(map, 0, p.bytes);
    *header = (struct trikv_map_header){
        .magic = TRIKV_MAP_MAGIC,
        .version = TRIKV_SHM_VERSION,
        .generation = s->generation,
        .arena_bytes = tkv_arena_capacity_bytes(s->arena),
        .rotation_seed = TKV_ROTATION_SEED,
        .pin_offset = tkv_block_offset(s->pin),
        .pin_value = s->pin_value,
        .n_layers = s->config.n_layers,
        .n_heads = n.n_heads,
        .n_blocks = n.n_blocks,
        .n_sinks = n.n_sinks,
        .n_layouts = n.n_layouts,
    };
    for (uint32_t i = 0; i < s->config.n_layers; i++) {
        const struct tkv_layer *l = &s->layers[i];

        p.layers[i] = map_layer(s, l);
        map_heads(l, &p);
        map_layouts(l, &p);
        if (l->sinks)
            memcpy(p.sinks, l->sinks, p.layers[i].n_sinks * sizeof(float));
        p.sinks += p.layers[i].n_sinks;
    }
}
