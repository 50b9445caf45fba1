/* From the bytes of a map to caches that attention can work on. */
#include "client/map.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/codec.h"

enum { MAX_LAYOUTS = 16 }; /* of a layer: more than there are codecs to mix */

/* Where the parts of the payload are, in its own memory. */
struct parts {
    const struct trikv_map_header *header;
    const struct trikv_map_layer *layers;
    const struct trikv_map_head *heads;
    const struct trikv_map_block *blocks;
    const float *sinks;
    const struct trikv_map_layout *layouts;
    uint32_t heads_left; /* not given to a layer yet */
    uint64_t blocks_left;
    uint64_t sinks_left;
    uint64_t layouts_left;
};

static const char *check_header(const struct trikv_map *m, const struct trikv_map_header *h)
{
    if (h->magic != TRIKV_MAP_MAGIC || h->version != TRIKV_SHM_VERSION ||
        h->rotation_seed != TKV_ROTATION_SEED)
        return "it is of another layout";
    if (h->arena_bytes != m->arena_bytes)
        return "map and message differ";
    if (h->n_layers == 0 || h->n_layers > TRIKV_MAX_LAYERS ||
        h->n_heads > TRIKV_MAX_LAYERS * TRIKV_MAX_HEADS || h->n_blocks > h->arena_bytes / 64 ||
        h->n_sinks > TRIKV_MAX_LAYERS * TRIKV_MAX_HEADS ||
        h->n_layouts > TRIKV_MAX_LAYERS * MAX_LAYOUTS)
        return "it counts too much";
    if (h->pin_value == 0 || h->pin_offset % sizeof(uint64_t) != 0 ||
        h->pin_offset > h->arena_bytes - sizeof(uint64_t))
        return "its pin is nowhere";
    return NULL;
}

static const void *part(const uint8_t *payload, size_t *at, size_t bytes)
{
    const void *p = payload + *at;

    *at = tkv_align(*at + bytes, TRIKV_FRAME_ALIGN);
    return p;
}

static const char *find_parts(const struct trikv_map *m, const void *payload, size_t bytes,
                              struct parts *p)
{
    const struct trikv_map_header *h = payload;
    size_t at = sizeof(*h);
    const char *why;

    if (bytes < sizeof(*h))
        return "it is shorter than its header";
    why = check_header(m, h);
    if (why)
        return why;
    *p = (struct parts){.header = h,
                        .heads_left = h->n_heads,
                        .blocks_left = h->n_blocks,
                        .sinks_left = h->n_sinks,
                        .layouts_left = h->n_layouts};
    p->layers = part(payload, &at, h->n_layers * sizeof(*p->layers));
    p->heads = part(payload, &at, h->n_heads * sizeof(*p->heads));
    p->blocks = part(payload, &at, h->n_blocks * sizeof(*p->blocks));
    p->sinks = part(payload, &at, h->n_sinks * sizeof(*p->sinks));
    p->layouts = part(payload, &at, h->n_layouts * sizeof(*p->layouts));
    return at == bytes ? NULL : "its length does not fit its parts";
}

/* ---- layers ------------------------------------------------------------------------------- */

static bool shape_is_sound(const struct tkv_shape *s)
{
    return s->n_q_heads > 0 && s->n_q_heads <= TRIKV_MAX_HEADS && s->n_kv_heads > 0 &&
           s->n_q_heads % s->n_kv_heads == 0 && tkv_group(s) <= TKV_MAX_GROUP &&
           s->head_dim_k >= TKV_MIN_HEAD_DIM && s->head_dim_k <= TKV_MAX_HEAD_DIM &&
           s->head_dim_k % 2 == 0 && s->head_dim_v >= TKV_MIN_HEAD_DIM &&
           s->head_dim_v <= TKV_MAX_HEAD_DIM && s->head_dim_v % 2 == 0 &&
           (s->rope_dim == 0 || (s->n_kv_heads == 1 && s->rope_dim < s->head_dim_k &&
                                 s->head_dim_v == s->head_dim_k - s->rope_dim));
}

static const struct tkv_coder *coder_get(struct trikv_map *m, uint32_t codec_id, uint32_t dim,
                                         bool means)
{
    const struct tkv_codec *codec = tkv_codec_by_id(codec_id);
    struct tkv_coder *c;

    for (uint32_t i = 0; codec && i < m->n_coders; i++)
        if (m->coders[i]->codec == codec && m->coders[i]->dim == dim &&
            (m->coders[i]->mean_bytes[TKV_KEYS] > 0) == (means && codec->best))
            return m->coders[i];
    c = codec ? calloc(1, sizeof(*c)) : NULL;
    if (!c || tkv_coder_init(c, codec, dim, TKV_ROTATION_SEED)) {
        free(c);
        return NULL;
    }
    if (!means)
        tkv_coder_drop_means(c);
    m->coders[m->n_coders++] = c;
    return c;
}

/* n values of `bytes` bytes each lie in the arena. */
static bool lies_inside(const struct trikv_map *m, uint64_t offset, uint64_t n, uint64_t bytes)
{
    return offset % bytes == 0 && offset <= m->arena_bytes &&
           n <= (m->arena_bytes - offset) / bytes;
}

static bool take_tier(const struct trikv_map *m, const struct trikv_map_tier *t,
                      const struct tkv_shape *shape, struct tkv_half_run *run)
{
    const uint64_t cap = t->cap_tokens;
    const uint64_t rows = (shape->n_kv_heads - 1) * cap + t->n_tokens;

    *run = (struct tkv_half_run){0};
    if (t->n_tokens == 0)
        return true;
    if (t->n_tokens > cap || !lies_inside(m, t->k_offset, rows * shape->head_dim_k, 2) ||
        !lies_inside(m, t->v_offset, rows * tkv_stored_dim_v(shape), 2) ||
        !lies_inside(m, t->positions_offset, t->n_tokens, sizeof(int32_t)))
        return false;
    run->k = (const uint16_t *)(const void *)(m->base + t->k_offset);
    run->v = (const uint16_t *)(const void *)(m->base + t->v_offset);
    run->positions = (const int32_t *)(const void *)(m->base + t->positions_offset);
    run->n = t->n_tokens;
    run->cap = t->cap_tokens;
    return true;
}

static bool take_blocks(const struct trikv_map *m, struct parts *p, const struct tkv_cache *c,
                        struct tkv_head *head)
{
    const uint32_t n = p->heads->n_blocks;

    if (n > p->blocks_left)
        return false;
    for (uint32_t b = 0; b < n; b++) {
        const struct trikv_map_block *from = &p->blocks[b];

        if (from->layout >= c->n_tiers || from->block_offset % 64 != 0 ||
            from->block_offset > m->arena_bytes ||
            c->tiers[from->layout].bytes > m->arena_bytes - from->block_offset ||
            from->first_position < 0 || from->n_tokens == 0 || from->n_tokens > TKV_BLOCK_TOKENS)
            return false;
        head->blocks[b] = (struct tkv_block){.id = {from->block_offset / 64 << TKV_SLAB_BITS},
                                             .first_position = from->first_position,
                                             .n_tokens = from->n_tokens,
                                             .tier = from->layout};
    }
    head->n_blocks = head->cap_blocks = n;
    head->n_cold = p->heads->n_tokens;
    p->blocks += n;
    p->blocks_left -= n;
    p->heads++;
    return true;
}

static const char *take_heads(const struct trikv_map *m, struct parts *p, struct tkv_cache *c,
                              struct tkv_head *heads, struct tkv_block *blocks)
{
    const uint32_t n = c->shape.n_kv_heads;

    if (n > p->heads_left)
        return "a layer has heads that are not there";
    p->heads_left -= n;
    for (uint32_t h = 0; h < n; h++) {
        heads[h].blocks = blocks;
        if (!take_blocks(m, p, c, &heads[h]))
            return "a block lies outside the arena, or is not whole";
        blocks += heads[h].n_blocks;
    }
    c->heads = heads;
    return NULL;
}

static const char *take_layout(struct trikv_map *m, const struct tkv_shape *shape,
                               const struct trikv_map_layout *from, bool means,
                               struct tkv_block_layout *layout)
{
    const struct tkv_coder *k = coder_get(m, from->codec_k, tkv_coded_dim_k(shape), means);
    const struct tkv_coder *v = k ? coder_get(m, from->codec_v, shape->head_dim_v, means) : NULL;

    if (!k || !v || v->codec->qjl || (shape->rope_dim > 0 && k != v))
        return "a layer has a codec that is not known here";
    if (from->n_score_heads > tkv_group(shape))
        return "a layer's numbers are out of range";
    if (shape->rope_dim > 0)
        tkv_block_layout_init_latents(layout, k, shape->rope_dim);
    else
        tkv_block_layout_init(layout, k, v, from->n_score_heads);
    return layout->bytes == from->block_bytes ? NULL : "blocks have another size here";
}

/* Queries are turned once for all of a layer's layouts, and outputs turned back once. */
static bool mixes(const struct tkv_block_layout *a, const struct tkv_block_layout *b)
{
    return a->k->codec->rotated == b->k->codec->rotated &&
           a->v->codec->rotated == b->v->codec->rotated && !a->k->codec->qjl && !b->k->codec->qjl;
}

/* The layer's own layout, or those of the list that are next. */
static const char *take_layouts(struct trikv_map *m, struct parts *p,
                                const struct trikv_map_layer *l, struct tkv_block_layout *layouts,
                                struct tkv_cache *c)
{
    const struct trikv_map_layout own = {l->codec_k, l->codec_v, l->block_bytes, l->n_score_heads};
    const struct trikv_map_layout *from = l->n_layouts > 0 ? p->layouts : &own;
    const char *why = NULL;

    if (l->n_layouts > p->layouts_left || l->n_layouts > MAX_LAYOUTS)
        return "a layer has layouts that are not there";
    c->tiers = layouts;
    c->n_tiers = l->n_layouts > 0 ? l->n_layouts : 1;
    for (uint32_t i = 0; !why && i < c->n_tiers; i++) {
        why = take_layout(m, &c->shape, &from[i], l->has_means != 0, &layouts[i]);
        if (!why && !mixes(&layouts[0], &layouts[i]) && i > 0)
            why = "a layer mixes what cannot be mixed";
    }
    p->layouts += l->n_layouts;
    p->layouts_left -= l->n_layouts;
    return why;
}

static const char *take_layer(struct trikv_map *m, struct parts *p, const struct trikv_map_layer *l,
                              struct tkv_block_layout *layouts, struct tkv_cache *c)
{
    const char *why;

    *c = (struct tkv_cache){.kn = &m->kn, .base = m->base};
    c->shape =
        (struct tkv_shape){l->n_q_heads, l->n_kv_heads, l->head_dim_k, l->head_dim_v, l->rope_dim};
    c->attn = (struct tkv_attn_params){
        .scale = l->scale, .softcap = l->softcap, .window_tokens = l->window_tokens};
    if (!shape_is_sound(&c->shape) || !isfinite(l->scale) || !isfinite(l->softcap))
        return "a layer's numbers are out of range";
    why = take_layouts(m, p, l, layouts, c);
    if (why)
        return why;
    if ((l->n_sinks != 0 && l->n_sinks != l->n_q_heads) || l->n_sinks > p->sinks_left)
        return "a layer has sinks that are not there";
    p->sinks_left -= l->n_sinks;
    return take_tier(m, &l->pinned, &c->shape, &c->pinned) &&
                   take_tier(m, &l->tail, &c->shape, &c->tail)
               ? NULL
               : "a half tier lies outside the arena";
}

static bool make_tables(struct trikv_map *m, const struct trikv_map_header *h)
{
    m->n_layers = h->n_layers;
    m->n_seen = calloc(h->n_layers, sizeof(*m->n_seen));
    m->first_query = calloc(h->n_layers, sizeof(*m->first_query));
    m->caches = calloc(h->n_layers, sizeof(*m->caches));
    m->layouts = calloc(h->n_layers + h->n_layouts, sizeof(*m->layouts));
    m->heads = calloc((size_t)h->n_heads + 1, sizeof(*m->heads));
    m->blocks = calloc(h->n_blocks + 1, sizeof(*m->blocks));
    m->sinks = calloc(h->n_sinks + 1, sizeof(*m->sinks));
    m->coders = calloc(2 * (h->n_layers + h->n_layouts), sizeof(*m->coders));
    return m->n_seen && m->first_query && m->caches && m->layouts && m->heads && m->blocks &&
           m->sinks && m->coders;
}

const char *tkv_map_read(struct trikv_map *m, const void *payload, size_t bytes)
{
    struct parts p;
    const char *why = find_parts(m, payload, bytes, &p);
    struct tkv_head *heads;
    struct tkv_block *blocks;
    struct tkv_block_layout *layouts;
    const float *sinks;

    if (why)
        return why;
    if (!make_tables(m, p.header))
        return "there is no memory for it";
    m->pin_offset = p.header->pin_offset;
    m->pin_value = p.header->pin_value;
    memcpy(m->sinks, p.sinks, p.header->n_sinks * sizeof(*m->sinks));
    heads = m->heads;
    blocks = m->blocks;
    layouts = m->layouts;
    sinks = m->sinks;
    for (uint32_t i = 0; !why && i < m->n_layers; i++) {
        struct tkv_cache *c = &m->caches[i];

        m->n_seen[i] = p.layers[i].n_seen;
        m->first_query[i] = p.layers[i].first_query;
        why = take_layer(m, &p, &p.layers[i], layouts, c);
        if (!why)
            why = take_heads(m, &p, c, heads, blocks);
        c->sinks = p.layers[i].n_sinks ? sinks : NULL;
        sinks += p.layers[i].n_sinks;
        layouts += c->n_tiers;
        heads += c->shape.n_kv_heads;
        blocks = m->blocks + (p.header->n_blocks - p.blocks_left);
    }
    return why || (p.heads_left == 0 && p.blocks_left == 0 && p.sinks_left == 0 &&
                   p.layouts_left == 0)
               ? why
               : "it has more than its layers need";
}

void tkv_map_forget(struct trikv_map *m)
{
    for (uint32_t i = 0; i < m->n_coders; i++)
        free(m->coders[i]);
    free(m->coders);
    free(m->n_seen);
    free(m->first_query);
    free(m->caches);
    free(m->layouts);
    free(m->heads);
    free(m->blocks);
    free(m->sinks);
}
