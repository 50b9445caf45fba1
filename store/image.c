/* Writing images: every part is gone through by one function, which counts if it has no memory. */
#include "store/image.h"

#include <string.h>

#include "store/image_layout.h"
#include "store/session_priv.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "images are little-endian");

struct out {
    uint8_t *base; /* or NULL */
    size_t at;
    const struct tkv_image_names *names;
};

static void put(struct out *o, const void *p, size_t bytes)
{
    if (o->base && bytes > 0)
        memcpy(o->base + o->at, p, bytes);
    o->at += bytes;
}

/* Up to the next multiple of 8. */
static void pad(struct out *o)
{
    const uint64_t zero = 0;

    put(o, &zero, tkv_align(o->at, 8) - o->at);
}

static uint64_t block_name(const struct out *o, struct tkv_block_id id)
{
    if (!o->base) /* only counting */
        return 0;
    if (o->names && o->names->block)
        return o->names->block(o->names->ctx, id);
    return id.place + 1;
}

static uint64_t table_name(const struct out *o, const struct tkv_head *h)
{
    if (!h->blocks || !tkv_is_shared(h->blocks))
        return 0;
    if (o->names && o->names->table)
        return o->names->table(o->names->ctx, h->blocks);
    return (uintptr_t)h->blocks;
}

/* ---- of the session ----------------------------------------------------------------------- */

static void put_rope(struct out *o, const struct tkv_rope *r)
{
    const struct image_rope rope = {.head_dim = r->head_dim,
                                    .rotary_dim = r->rotary_dim,
                                    .layout = (uint32_t)r->layout,
                                    .attention_scaling = r->attention_scaling};

    put(o, &rope, sizeof(rope));
    put(o, r->inv_freq, r->n_bands * sizeof(r->inv_freq[0]));
    pad(o);
}

/* A budget with which the layer slides if it does: later ones do not change that, and STATE has them. */
static uint32_t config_budget(const struct tkv_layer *l)
{
    const uint32_t budget = l->config.budget_tokens, window = l->config.attn.window_tokens;

    if (window == 0 || l->config.method == TKV_METHOD_NONE ||
        l->config.method == TKV_METHOD_DEFAULT || l->slides == (window <= budget))
        return budget;
    return l->slides ? window : window - 1;
}

static void put_layer_config(struct out *o, const struct tkv_layer *l)
{
    const struct tkv_layer_config *c = &l->config;
    const struct image_layer layer = {.n_q_heads = c->shape.n_q_heads,
                                      .n_kv_heads = c->shape.n_kv_heads,
                                      .head_dim_k = c->shape.head_dim_k,
                                      .head_dim_v = c->shape.head_dim_v,
                                      .rope_dim = c->shape.rope_dim,
                                      .method = (uint32_t)c->method,
                                      .scale = c->attn.scale,
                                      .softcap = c->attn.softcap,
                                      .window_tokens = c->attn.window_tokens,
                                      .codec_k = (uint32_t)c->codec_k->id,
                                      .codec_v = (uint32_t)c->codec_v->id,
                                      .budget_tokens = config_budget(l),
                                      .n_sinks = l->sinks ? c->shape.n_q_heads : 0};

    put(o, &layer, sizeof(layer));
    put(o, l->sinks, layer.n_sinks * sizeof(float));
    pad(o);
    for (uint32_t h = 0; l->ladder && h < c->shape.n_kv_heads; h++) {
        const struct tkv_rung *from = &l->ladder->rungs[h];
        const struct image_rung rung = {from->tier, from->open_tier, from->reach_tokens};

        put(o, &rung, sizeof(rung));
    }
}

static uint32_t config_flags(const struct tkv_session *s)
{
    const struct tkv_session_config *c = &s->config;
    const struct tkv_layer_config *first = &s->layers[0].config;

    return (c->normalize_scores ? IMAGE_NORMALIZES : 0u) |
           (c->tri.disable_mlr ? IMAGE_NO_MLR : 0u) | (c->tri.disable_trig ? IMAGE_NO_TRIG : 0u) |
           (s->rope.n_bands > 0 ? IMAGE_HAS_ROPE : 0u) | (first->stats ? IMAGE_HAS_STATS : 0u) |
           (first->errors ? IMAGE_HAS_ERRORS : 0u);
}

static void put_config(struct out *o, const struct tkv_session *s)
{
    const struct tkv_session_config *c = &s->config;
    const struct tkv_ladder *ladder = s->layers[0].ladder; /* all list the same tiers */
    struct image_config config = {.n_layers = c->n_layers,
                                  .method = (uint32_t)c->method,
                                  .beta_tokens = c->beta_tokens,
                                  .recent_tokens = c->recent_tokens,
                                  .pinned_tokens = c->pinned_tokens,
                                  .rollback_tokens = c->rollback_tokens,
                                  .eviction_mode = (uint32_t)c->eviction_mode,
                                  .flags = config_flags(s),
                                  .budget_bytes = c->budget_bytes,
                                  .max_tokens = c->max_tokens,
                                  .horizon_tokens = s->horizon_tokens,
                                  .offset_max = c->tri.offset_max,
                                  .aggregation = (uint32_t)c->tri.aggregation,
                                  .allocator = (uint32_t)c->allocator,
                                  .n_probes = c->gate.n_probes,
                                  .surplus_tokens = c->gate.surplus_tokens,
                                  .output_error = c->gate.limits.output_error,
                                  .lse_change = c->gate.limits.lse_change,
                                  .lost_mass = c->gate.limits.lost_mass};

    if (ladder) {
        config.n_tiers = ladder->n_tiers;
        memcpy(config.plan_tiers, ladder->plan_tiers, ladder->n_tiers * sizeof(uint32_t));
    }
    put(o, &config, sizeof(config));
    if (config.flags & IMAGE_HAS_ROPE)
        put_rope(o, &s->rope);
    for (uint32_t i = 0; i < c->n_layers; i++)
        put_layer_config(o, &s->layers[i]);
}

static void put_counters(struct out *o, const struct tkv_session *s)
{
    const struct image_counters c = {.generation = s->generation, .n_evicted = s->n_evicted};

    put(o, &c, sizeof(c));
}

/* ---- of a layer --------------------------------------------------------------------------- */

static void put_state(struct out *o, const struct tkv_layer *l)
{
    const struct tkv_checkpoint *c = &l->checkpoint;
    struct image_state s = {.n_seen = l->n_seen,
                            .floor_seen = l->floor.n_seen,
                            .generation = l->generation,
                            .last_position = l->last_position,
                            .floor_position = l->floor.position,
                            .n_rounds = l->n_rounds,
                            .tail_first = l->tail.first,
                            .tail_n = l->tail.n,
                            .pinned_n = l->pinned.n,
                            .budget_tokens = l->config.budget_tokens,
                            .first_query = l->first_query,
                            .moves = l->moves,
                            .n_gate_probes = l->gate.n_probes,
                            .n_passed = l->gate.n_passed,
                            .n_kept_more = l->gate.n_kept_more,
                            .n_exceeded = l->gate.n_exceeded,
                            .n_surplus_tokens = l->gate.n_surplus_tokens,
                            .n_dropped = l->gate.n_dropped,
                            .output_error = l->gate.measure.output_error,
                            .lse_change = l->gate.measure.lse_change,
                            .lost_mass = l->gate.measure.lost_mass,
                            .n_budgets = l->budgets ? l->config.shape.n_kv_heads : 0};

    if (l->halves)
        s.halves = block_name(o, l->halves->id);
    if (c->is_live) {
        s.has_checkpoint = 1;
        s.checkpoint_seen = c->n_seen;
        s.checkpoint_floor_seen = c->floor.n_seen;
        s.checkpoint_floor_position = c->floor.position;
        s.checkpoint_rounds = c->n_rounds;
        s.checkpoint_first = c->first;
        s.checkpoint_n = c->n;
        s.checkpoint_first_query = c->first_query;
    }
    put(o, &s, sizeof(s));
    put(o, l->budgets, s.n_budgets * sizeof(*l->budgets));
    pad(o);
}

static void put_table(struct out *o, const struct tkv_head *h)
{
    const uint64_t name = table_name(o, h);
    /* What others see of a table is theirs, unless they will have the same one again. */
    const uint32_t own = h->blocks ? h->n_blocks : 0;
    const struct image_table t = {.name = name,
                                  .n_listed = name ? tkv_head_n_listed(h) : own,
                                  .n_blocks = h->n_blocks,
                                  .n_cold = h->n_cold};

    put(o, &t, sizeof(t));
    if (!o->base)
        o->at += t.n_listed * sizeof(struct image_block);
    for (uint32_t b = 0; o->base && b < t.n_listed; b++) {
        const struct tkv_block *from = &h->blocks[b];
        const struct image_block block = {block_name(o, from->id), from->first_position,
                                          from->n_tokens, from->tier};

        put(o, &block, sizeof(block));
    }
}

static void put_tables(struct out *o, const struct tkv_layer *l)
{
    if (l->rulers)
        put(o, l->rulers, l->config.shape.n_q_heads * sizeof(*l->rulers));
    for (uint32_t h = 0; h < l->config.shape.n_kv_heads; h++)
        put_table(o, &l->heads[h]);
    for (uint32_t h = 0; l->checkpoint.is_live && h < l->config.shape.n_kv_heads; h++)
        put_table(o, &l->checkpoint.heads[h]);
}

static void put_mass(struct out *o, const struct tkv_layer *l)
{
    for (uint32_t h = 0; l->mass && h < l->config.shape.n_kv_heads; h++) {
        const uint64_t cap = l->mass[h].cap;

        put(o, &cap, sizeof(cap));
        put(o, l->mass[h].x, l->mass[h].cap * sizeof(float));
        pad(o);
    }
}

static void put_probes(struct out *o, const struct tkv_session *s, const struct tkv_layer *l)
{
    const uint32_t cap = s->config.gate.n_probes;
    const size_t n_values = (size_t)l->config.shape.n_q_heads * l->config.shape.head_dim_k;
    const struct tkv_probes *p = l->probes;
    const uint32_t n = p ? p->n : 0;

    if (!p)
        return;
    put(o, &p->first, sizeof(p->first)); /* sums go over the ring as it lies */
    put(o, &n, sizeof(n));
    for (uint32_t i = 0; i < n; i++)
        put(o, &p->positions[(p->first + i) % cap], sizeof(p->positions[0]));
    pad(o);
    for (uint32_t i = 0; i < n; i++)
        put(o, p->q + (p->first + i) % cap * n_values, n_values * sizeof(*p->q));
    pad(o);
}

/* ---- parts -------------------------------------------------------------------------------- */

static void put_part(struct out *o, const struct tkv_session *s, enum tkv_image_part part,
                     uint32_t layer)
{
    o->at = sizeof(struct image_header);
    switch (part) {
    case TKV_IMAGE_CONFIG: put_config(o, s); break;
    case TKV_IMAGE_COUNTERS: put_counters(o, s); break;
    case TKV_IMAGE_STATE: put_state(o, &s->layers[layer]); break;
    case TKV_IMAGE_TABLES: put_tables(o, &s->layers[layer]); break;
    case TKV_IMAGE_MASS: put_mass(o, &s->layers[layer]); break;
    case TKV_IMAGE_PROBES: put_probes(o, s, &s->layers[layer]); break;
    case TKV_IMAGE_N_PARTS: break;
    }
}

size_t tkv_image_bytes(const struct tkv_session *s, enum tkv_image_part part, uint32_t layer,
                       const struct tkv_image_names *names)
{
    struct out o = {.names = names};

    put_part(&o, s, part, layer);
    return o.at;
}

void tkv_image_write(const struct tkv_session *s, enum tkv_image_part part, uint32_t layer,
                     const struct tkv_image_names *names, void *out)
{
    struct out o = {.base = out, .names = names};
    struct image_header h = {.magic = TKV_IMAGE_MAGIC,
                             .version = TKV_IMAGE_VERSION,
                             .part = (uint16_t)part,
                             .layer = layer};

    put_part(&o, s, part, layer);
    h.bytes = o.at;
    memcpy(out, &h, sizeof(h));
}
