/*
 * From a budget in bytes to the ladders of all layers: everything that does not depend on the plan
 * comes off first, the rest is planned by core/plan.h and counted again in whole slabs. A coder
 * takes kilobytes, so those of tiers that a first plan does not use are not made.
 */
#include <string.h>

#include "proto/errors.h"
#include "proto/limits.h"
#include "store/budget.h"
#include "store/journal.h"

enum {
    /* The half tiers take an eighth of the budget, between these bounds. */
    MIN_TAIL_TOKENS = 8,
    MAX_TAIL_TOKENS = 128,
    TAIL_PART = 8,
    /* So many open blocks of a KV head may take at most this part of the budget. */
    OPEN_PART = 8,
    /* What a block takes beside the arena: its entry in a table that has room to grow, its count. */
    ENTRY_BYTES = 24,
    /* Tables of the arena that come with its slabs. */
    TABLE_BYTES = 4096,
    TABLE_PART = 48, /* and this part of the budget, which is also what slabs may gain by chance */
    /* Entries that a head's table has room for beyond the blocks of its plan. */
    SPARE_ENTRIES = 8,
    N_TURNS = 8,
};

static uint64_t half_token_bytes(const struct tkv_shape *shape)
{
    return (uint64_t)shape->n_kv_heads * (shape->head_dim_k + shape->head_dim_v) * 2;
}

void tkv_ladder_size_tiers(struct tkv_session_config *own, const struct tkv_layer_config *layers)
{
    uint64_t per_token = 0;
    uint32_t n = MAX_TAIL_TOKENS;

    for (uint32_t i = 0; i < own->n_layers; i++)
        per_token += half_token_bytes(&layers[i].shape);
    while (n > MIN_TAIL_TOKENS && n * per_token > own->budget_bytes / TAIL_PART)
        n /= 2;
    if (own->recent_tokens > n / 2)
        own->recent_tokens = n / 2;
    own->beta_tokens = n / 2;
    if (own->beta_tokens <= own->rollback_tokens)
        own->beta_tokens = own->rollback_tokens + 1;
}

/* ---- what is known before ---------------------------------------------------------------- */

/* Memory of the planning itself; given back at its end. */
struct planning {
    struct tkv_session *s;
    const struct tkv_session_config *c;
    struct tkv_plan plan;
    struct tkv_plan_head *heads;     /* [plan.n_heads] */
    struct tkv_plan_choice *choices; /* [plan.n_heads] */
    size_t heads_bytes, choices_bytes;
    uint32_t n_tokens; /* to plan for */
    uint32_t kept;     /* tiers that blocks have already: a bit for each */
};

/* The first layer whose vectors have these dimensions: later ones use its coders. */
static bool has_new_dims(const struct tkv_session_config *c, uint32_t layer, uint32_t dim, bool k)
{
    for (uint32_t i = 0; i < layer; i++)
        if (c->layers[i].shape.head_dim_k == dim || c->layers[i].shape.head_dim_v == dim)
            return false;
    return k || c->layers[layer].shape.head_dim_k != dim;
}

/* Coders of one tier; those of all tiers are alike in size. */
static size_t coders_bytes(const struct tkv_session_config *c)
{
    const struct tkv_codec *codec = tkv_codec_by_name(tkv_plan_codecs[0]);
    size_t bytes = 0;

    for (uint32_t i = 0; i < c->n_layers; i++) {
        const struct tkv_shape *shape = &c->layers[i].shape;

        if (has_new_dims(c, i, shape->head_dim_k, true))
            bytes += tkv_coder_bytes(codec, shape->head_dim_k);
        if (has_new_dims(c, i, shape->head_dim_v, false))
            bytes += tkv_coder_bytes(codec, shape->head_dim_v);
    }
    return bytes;
}

static uint32_t count_tiers(uint32_t tiers)
{
    return (uint32_t)__builtin_popcount(tiers);
}

/* Block sizes without coders: those depend on codec and dimensions alone. */
static int fill_sizes(struct planning *p, struct tkv_report *why)
{
    const size_t bytes = 2 * sizeof(struct tkv_coder);
    struct tkv_coder *coder = tkv_budget_alloc(p->s->budget, bytes);
    uint32_t at = 0;

    if (!coder)
        return tkv_fail(why, TRIKV_E_MEMORY_CAP, "no room to plan a session");
    for (uint32_t i = 0; i < p->c->n_layers; i++) {
        const struct tkv_layer_config *l = &p->c->layers[i];

        for (uint32_t t = 0; t < TKV_PLAN_TIERS; t++) {
            const struct tkv_codec *codec = tkv_codec_by_name(tkv_plan_codecs[t]);
            struct tkv_block_layout layout;

            (void)tkv_coder_init(&coder[0], codec, l->shape.head_dim_k, TKV_ROTATION_SEED);
            (void)tkv_coder_init(&coder[1], codec, l->shape.head_dim_v, TKV_ROTATION_SEED);
            tkv_block_layout_init(&layout, &coder[0], &coder[1], 0);
            for (uint32_t h = 0; h < l->shape.n_kv_heads; h++)
                p->heads[at + h].block_bytes[t] = (uint32_t)layout.bytes + ENTRY_BYTES;
        }
        for (uint32_t h = 0; h < l->shape.n_kv_heads; h++)
            p->heads[at + h].errors = l->errors + (size_t)h * TKV_PLAN_ERRORS;
        at += l->shape.n_kv_heads;
    }
    tkv_budget_free(p->s->budget, coder, bytes);
    return 0;
}

/* The highest tier whose open blocks, one of each head, take a small part of the budget. */
static uint32_t choose_open_tier(const struct planning *p)
{
    uint32_t tier = TKV_PLAN_TIERS - 1;

    for (; tier > 0; tier--) {
        uint64_t bytes = 0;

        for (uint32_t h = 0; h < p->plan.n_heads; h++)
            bytes += p->heads[h].block_bytes[tier];
        if (bytes <= p->c->budget_bytes / OPEN_PART)
            break;
    }
    return tier;
}

/* The half tiers of all layers, in whole slabs: those of one size lie together. */
static uint64_t halves_bytes(const struct tkv_session *s)
{
    uint64_t bytes = 0;

    for (uint32_t i = 0; i < s->config.n_layers; i++) {
        const size_t size = tkv_halves_bytes(&s->layers[i]);
        size_t n = 0, n_before = 0;

        for (uint32_t j = 0; j < s->config.n_layers; j++)
            if (tkv_halves_bytes(&s->layers[j]) == size)
                *(j < i ? &n_before : &n) += 1;
        bytes += n_before > 0 ? 0 : tkv_arena_slabs_bytes(s->arena, size, true, n);
    }
    return bytes;
}

/* What an earlier plan has taken: in a new one it is counted anew. */
static uint64_t planned_bytes(const struct tkv_session *s)
{
    uint64_t bytes = s->coders ? tkv_shared_bytes(s->coders) : 0;

    for (uint32_t i = 0; i < s->config.n_layers; i++) {
        const struct tkv_layer *l = &s->layers[i];

        bytes += l->ladder ? tkv_shared_bytes(l->ladder) : 0;
        bytes += l->halves ? tkv_shared_bytes(l->halves) : 0;
        for (uint32_t h = 0; h < l->config.shape.n_kv_heads; h++)
            bytes += l->heads[h].blocks ? tkv_shared_bytes(l->heads[h].blocks) : 0;
    }
    return bytes;
}

/* All that does not depend on what is planned, with coders of these tiers. */
static uint64_t fixed_bytes(const struct planning *p)
{
    const struct tkv_session *s = p->s;
    uint64_t bytes = s->own_bytes - planned_bytes(s) + tkv_arena_sizes(s->arena).table_bytes +
                     TABLE_BYTES + p->c->budget_bytes / TABLE_PART + halves_bytes(s);

    bytes += (uint64_t)count_tiers(p->plan.tiers) * coders_bytes(p->c);
    for (uint32_t i = 0; i < p->c->n_layers; i++) {
        const struct tkv_layer *l = &s->layers[i];

        bytes += sizeof(struct tkv_half_buffer);
        bytes += sizeof(struct tkv_ladder) + l->config.shape.n_kv_heads * sizeof(struct tkv_rung);
        bytes += 64 * (2 + (uint64_t)l->config.shape.n_kv_heads); /* headers of shared memory */
    }
    for (uint32_t h = 0; h < p->plan.n_heads; h++) {
        const uint64_t block = p->heads[h].block_bytes[TKV_PLAN_TIERS - 1];

        bytes += SPARE_ENTRIES * sizeof(struct tkv_block);
        /* What a checkpoint holds back: an open block, one that was dropped, and a table. */
        if (s->config.rollback_tokens > 0)
            bytes += 2 * block + p->plan.n_cold_tokens / TKV_BLOCK_TOKENS * ENTRY_BYTES;
    }
    return bytes;
}

/* ---- planning ---------------------------------------------------------------------------- */

/* Blocks of a size: those that heads have, and those that a round makes before old ones go, which are as
 * many as the layer with most of them needs. */
struct size_class {
    uint32_t block_bytes;
    uint64_t n, n_fresh, n_fresh_here; /* of the layer that is looked at */
};

struct size_classes {
    struct size_class c[64 * TKV_PLAN_TIERS];
    uint32_t n;
};

static void add_size(struct size_classes *sizes, uint32_t block_bytes, uint64_t n, uint64_t n_fresh)
{
    uint32_t i = 0;

    while (i < sizes->n && sizes->c[i].block_bytes != block_bytes)
        i++;
    if (i == sizes->n)
        sizes->c[sizes->n++] = (struct size_class){.block_bytes = block_bytes};
    sizes->c[i].n += n;
    sizes->c[i].n_fresh_here += n_fresh;
    if (sizes->c[i].n_fresh < sizes->c[i].n_fresh_here)
        sizes->c[i].n_fresh = sizes->c[i].n_fresh_here;
}

/* Returns what could not be listed. */
static uint64_t add_head(const struct planning *p, uint32_t h, struct size_classes *sizes)
{
    const struct tkv_plan_choice c = p->choices[h];
    const uint32_t *block_bytes = p->heads[h].block_bytes;
    const uint32_t open = block_bytes[tkv_plan_open_tier(&p->plan, c)];
    const uint64_t all = tkv_plan_bytes(&p->plan, h, c);

    if (c.reach_tokens == 0)
        return 0;
    if (sizes->n + 2 > sizeof(sizes->c) / sizeof(sizes->c[0]))
        return all + all / TKV_PLAN_TIERS;
    add_size(sizes, open, 1, 1);
    /* With a reach one that is full comes before another is dropped. */
    add_size(sizes, block_bytes[c.tier], (all - open) / block_bytes[c.tier],
             c.reach_tokens < p->plan.n_cold_tokens);
    return 0;
}

/* What the choices take in whole slabs, counted with the first layer's sizes for layers like it;
 * others have classes of their own, as long as there is room to list them. */
static uint64_t slab_bytes(const struct planning *p)
{
    struct size_classes sizes = {.n = 0};
    uint64_t bytes = 0;
    uint32_t at = 0;

    for (uint32_t i = 0; i < p->c->n_layers; i++) {
        for (uint32_t t = 0; t < sizes.n; t++)
            sizes.c[t].n_fresh_here = 0;
        for (uint32_t h = 0; h < p->c->layers[i].shape.n_kv_heads; h++)
            bytes += add_head(p, at++, &sizes);
    }
    for (uint32_t i = 0; i < sizes.n; i++) {
        const uint64_t n = sizes.c[i].n + sizes.c[i].n_fresh;

        bytes += n * ENTRY_BYTES +
                 tkv_arena_slabs_bytes(p->s->arena, sizes.c[i].block_bytes - ENTRY_BYTES, false, n);
    }
    return bytes;
}

/* Plan with `give` bytes; is there room for it in whole slabs? */
static bool try_plan(struct planning *p, uint64_t give, uint64_t room, uint64_t *taken)
{
    (void)tkv_plan_solve(&p->plan, give, p->choices);
    *taken = slab_bytes(p);
    return *taken <= room;
}

/* Plan for what is left after the fixed bytes: less and less, until whole slabs hold it; then for some
 * more, since what was taken off at a time may be a whole slab. */
static int solve(struct planning *p, struct tkv_report *why)
{
    const uint64_t fixed = fixed_bytes(p);
    const uint64_t room = p->c->budget_bytes > fixed ? p->c->budget_bytes - fixed : 0;
    uint64_t give = room, fits, taken;

    if (room == 0)
        return tkv_fail(why, TRIKV_E_ARGUMENT,
                        "budget_bytes is %llu, but %llu are needed before any token is kept",
                        (unsigned long long)p->c->budget_bytes, (unsigned long long)fixed);
    if (try_plan(p, give, room, &taken))
        return 0;
    for (fits = give; fits > 0 && taken > room;) { /* nothing takes nothing */
        give = fits;
        fits = give > taken - room ? give - (taken - room) : 0;
        (void)try_plan(p, fits, room, &taken);
    }
    for (int i = 0; i < N_TURNS && fits + 1 < give; i++) {
        const uint64_t middle = fits + (give - fits) / 2;

        if (try_plan(p, middle, room, &taken))
            fits = middle;
        else
            give = middle;
    }
    (void)try_plan(p, fits, room, &taken);
    return 0;
}

static int begin(struct planning *p, struct tkv_report *why)
{
    const struct tkv_session_config *own = &p->s->config;
    const uint32_t fixed = own->pinned_tokens + own->recent_tokens;

    for (uint32_t i = 0; i < p->c->n_layers; i++)
        p->plan.n_heads += p->c->layers[i].shape.n_kv_heads;
    p->heads_bytes = p->plan.n_heads * sizeof(*p->heads);
    p->choices_bytes = p->plan.n_heads * sizeof(*p->choices);
    p->heads = tkv_budget_alloc(p->s->budget, p->heads_bytes);
    p->choices = tkv_budget_alloc(p->s->budget, p->choices_bytes);
    if (!p->heads || !p->choices)
        return tkv_fail(why, TRIKV_E_MEMORY_CAP, "no room to plan %u KV heads", p->plan.n_heads);
    p->plan.heads = p->heads;
    p->plan.n_hot_tokens = own->recent_tokens;
    p->plan.n_cold_tokens = p->n_tokens > fixed ? p->n_tokens - fixed : 0;
    p->plan.tiers = (1u << TKV_PLAN_TIERS) - 1;
    return fill_sizes(p, why);
}

static void end(struct planning *p)
{
    tkv_budget_free(p->s->budget, p->heads, p->heads_bytes);
    tkv_budget_free(p->s->budget, p->choices, p->choices_bytes);
}

/* ---- ladders ----------------------------------------------------------------------------- */

/* The tiers that the layer has, then those that this plan needs more. */
static void list_tiers(const struct planning *p, const struct tkv_ladder *old,
                       struct tkv_ladder *ladder)
{
    uint32_t have = 0;

    for (uint32_t t = 0; old && t < old->n_tiers; t++) {
        ladder->plan_tiers[ladder->n_tiers++] = old->plan_tiers[t];
        have |= 1u << old->plan_tiers[t];
    }
    for (uint32_t t = 0; t < TKV_PLAN_TIERS; t++)
        if (p->plan.tiers & ~have & 1u << t)
            ladder->plan_tiers[ladder->n_tiers++] = t;
}

/* So many tokens after it no query sees a token any more. */
static uint32_t within_window(const struct tkv_layer *l, uint32_t reach_tokens)
{
    const uint32_t window = l->config.attn.window_tokens;

    return window > 0 && window < reach_tokens ? window : reach_tokens;
}

static uint16_t index_of(const struct tkv_ladder *ladder, uint32_t plan_tier)
{
    uint16_t i = 0;

    while (i + 1u < ladder->n_tiers && ladder->plan_tiers[i] != plan_tier)
        i++;
    return i;
}

/* A coder of the session's next table of them. */
static const struct tkv_coder *find_coder(struct tkv_coder *coders, uint32_t *n_coders,
                                          uint32_t plan_tier, uint32_t dim)
{
    const struct tkv_codec *codec = tkv_codec_by_name(tkv_plan_codecs[plan_tier]);

    struct tkv_coder *c = coders;

    for (uint32_t i = 0; i < *n_coders; i++, c = tkv_coder_after(c))
        if (c->codec == codec && c->dim == dim)
            return c;
    (void)tkv_coder_init(c, codec, dim, TKV_ROTATION_SEED);
    ++*n_coders;
    return c;
}

/* What planning makes, before a session has it. */
struct made {
    struct tkv_coder *coders;
    uint32_t n_coders;
    struct tkv_ladder *ladders[TRIKV_MAX_LAYERS];
};

/* Layouts for the tiers that it lists. */
static void fill_tiers(const struct tkv_shape *shape, struct made *made, struct tkv_ladder *ladder)
{
    for (uint32_t t = 0; t < ladder->n_tiers; t++)
        tkv_block_layout_init(
            &ladder->tiers[t],
            find_coder(made->coders, &made->n_coders, ladder->plan_tiers[t], shape->head_dim_k),
            find_coder(made->coders, &made->n_coders, ladder->plan_tiers[t], shape->head_dim_v), 0);
}

static void fill_ladder(const struct planning *p, const struct tkv_layer *l, struct made *made,
                        struct tkv_ladder *ladder, const struct tkv_plan_choice *choices)
{
    const struct tkv_shape *shape = &l->config.shape;

    list_tiers(p, l->ladder, ladder);
    fill_tiers(shape, made, ladder);
    for (uint32_t h = 0; h < shape->n_kv_heads; h++)
        ladder->rungs[h] = (struct tkv_rung){
            .tier = index_of(ladder, choices[h].tier),
            .open_tier = index_of(ladder, tkv_plan_open_tier(&p->plan, choices[h])),
            .reach_tokens = within_window(l, choices[h].reach_tokens),
        };
}

static void unmake(struct tkv_session *s, struct made *made)
{
    for (uint32_t i = 0; i < s->config.n_layers; i++)
        tkv_shared_unref(s, made->ladders[i]);
    tkv_shared_unref(s, made->coders);
}

static struct tkv_ladder *new_ladder(struct tkv_session *s, const struct tkv_layer *l,
                                     struct tkv_report *why)
{
    const uint32_t n = l->config.shape.n_kv_heads;
    struct tkv_ladder *ladder = tkv_shared_alloc(s, sizeof(*ladder) + n * sizeof(ladder->rungs[0]));

    if (!ladder)
        tkv_fail(why, TRIKV_E_MEMORY_CAP, "no room for a plan of %u KV heads", n);
    return ladder;
}

static int make_ladders(const struct planning *p, struct made *made, struct tkv_report *why)
{
    struct tkv_session *s = p->s;
    const struct tkv_plan_choice *choices = p->choices;

    made->coders = tkv_shared_alloc(s, count_tiers(p->plan.tiers) * coders_bytes(p->c));
    if (!made->coders)
        return tkv_fail(why, TRIKV_E_MEMORY_CAP, "no room for the tables of the codecs");
    for (uint32_t i = 0; i < s->config.n_layers; i++) {
        made->ladders[i] = new_ladder(s, &s->layers[i], why);
        if (!made->ladders[i])
            return TRIKV_E_MEMORY_CAP;
        fill_ladder(p, &s->layers[i], made, made->ladders[i], choices);
        choices += s->layers[i].config.shape.n_kv_heads;
    }
    return 0;
}

/* The session has what was made; its blocks' tiers mean what they did. */
static void take_made(struct tkv_session *s, const struct made *made)
{
    for (uint32_t i = 0; i < s->config.n_layers; i++) {
        struct tkv_layer *l = &s->layers[i];

        l->moves = l->ladder;
        tkv_shared_unref(s, l->ladder);
        l->ladder = made->ladders[i];
        l->layout = l->ladder->tiers[0];
    }
    tkv_shared_unref(s, s->coders);
    s->coders = made->coders;
    s->n_coders = made->n_coders;
}

/* In two steps: which tiers are used, then what fits with their coders and no others. */
static int plan_all(struct planning *p, struct tkv_report *why)
{
    struct made made = {.n_coders = 0};
    int e;

    p->plan.open_tier = choose_open_tier(p);
    e = solve(p, why);
    if (e)
        return e;
    p->plan.tiers = tkv_plan_used(&p->plan, p->choices) | p->kept;
    p->plan.tiers = p->plan.tiers ? p->plan.tiers : 1; /* one, for queries */
    p->plan.open_tier = p->plan.tiers >> p->plan.open_tier & 1 ? p->plan.open_tier : 0;
    e = solve(p, why);
    e = e ? e : make_ladders(p, &made, why);
    if (e) {
        unmake(p->s, &made);
        return e;
    }
    take_made(p->s, &made);
    p->s->horizon_tokens = p->n_tokens;
    return 0;
}

int tkv_ladder_create(struct tkv_session *s, const struct tkv_session_config *c,
                      struct tkv_report *why)
{
    struct planning p = {.s = s, .c = c, .n_tokens = c->max_tokens};
    int e = begin(&p, why);

    tkv_arena_expect(s->arena, (size_t)c->budget_bytes);
    e = e ? e : plan_all(&p, why);
    end(&p);
    return e;
}

static int restore_ladders(struct tkv_session *s, const struct tkv_session_config *c,
                           const struct tkv_tier_list *tiers, const struct tkv_rung *rungs,
                           struct made *made, struct tkv_report *why)
{
    made->coders = tkv_shared_alloc(s, tiers->n * coders_bytes(c));
    if (!made->coders)
        return tkv_fail(why, TRIKV_E_MEMORY_CAP, "no room for the tables of the codecs");
    for (uint32_t i = 0; i < s->config.n_layers; i++) {
        const struct tkv_layer *l = &s->layers[i];
        struct tkv_ladder *ladder = new_ladder(s, l, why);

        made->ladders[i] = ladder;
        if (!ladder)
            return TRIKV_E_MEMORY_CAP;
        memcpy(ladder->plan_tiers, tiers->plan_tiers, sizeof(ladder->plan_tiers));
        ladder->n_tiers = tiers->n;
        fill_tiers(&l->config.shape, made, ladder);
        memcpy(ladder->rungs, rungs, l->config.shape.n_kv_heads * sizeof(*rungs));
        rungs += l->config.shape.n_kv_heads;
    }
    return 0;
}

int tkv_ladder_restore(struct tkv_session *s, const struct tkv_session_config *c,
                       uint32_t horizon_tokens, const struct tkv_tier_list *tiers,
                       const struct tkv_rung *rungs, struct tkv_report *why)
{
    struct made made = {.n_coders = 0};
    int e;

    tkv_arena_expect(s->arena, (size_t)c->budget_bytes);
    e = restore_ladders(s, c, tiers, rungs, &made, why);
    if (e) {
        unmake(s, &made);
        return e;
    }
    take_made(s, &made);
    s->horizon_tokens = horizon_tokens;
    return 0;
}

/* ---- again ------------------------------------------------------------------------------- */

/* A reach that ends with the window is that of all there is to see. */
static uint32_t most_reach(const struct tkv_layer *l, const struct tkv_rung *rung)
{
    const uint32_t window = l->config.attn.window_tokens;

    return window > 0 && rung->reach_tokens >= window ? TKV_PLAN_ALL : rung->reach_tokens;
}

/* What was dropped or coded in fewer bits does not come back. */
static void bind_heads(struct planning *p)
{
    uint32_t at = 0;

    for (uint32_t i = 0; i < p->s->config.n_layers; i++) {
        const struct tkv_layer *l = &p->s->layers[i];

        for (uint32_t t = 0; t < l->ladder->n_tiers; t++)
            p->kept |= 1u << l->ladder->plan_tiers[t];
        for (uint32_t h = 0; h < l->config.shape.n_kv_heads; h++, at++) {
            p->heads[at].is_bound = true;
            p->heads[at].most_tier = l->ladder->plan_tiers[l->ladder->rungs[h].tier];
            p->heads[at].most_reach = most_reach(l, &l->ladder->rungs[h]);
        }
    }
}

/* Some more than now, so that a text that grows is not planned for every token. */
static uint32_t next_horizon(const struct tkv_session *s, uint64_t n_tokens)
{
    const uint64_t more = (uint64_t)s->horizon_tokens + s->horizon_tokens / 2;
    const uint64_t n = n_tokens > more ? n_tokens : more;

    return n < UINT32_MAX ? (uint32_t)n : UINT32_MAX - 1;
}

int tkv_ladder_plan_again(struct tkv_session *s, uint64_t n_tokens, struct tkv_report *why)
{
    const size_t layers_bytes = s->config.n_layers * sizeof(struct tkv_layer_config);
    struct tkv_layer_config *layers = tkv_budget_alloc(s->budget, layers_bytes);
    struct tkv_session_config c = s->config;
    struct planning p = {.s = s, .c = &c, .n_tokens = next_horizon(s, n_tokens)};
    int e;

    if (!layers)
        return tkv_fail(why, TRIKV_E_MEMORY_CAP, "no room to plan %u layers again", c.n_layers);
    for (uint32_t i = 0; i < c.n_layers; i++)
        layers[i] = s->layers[i].config;
    c.layers = layers;
    e = begin(&p, why);
    if (!e) {
        bind_heads(&p);
        e = plan_all(&p, why);
    }
    if (s->journal)
        s->journal->is_changed = true; /* the plan is part of the session's image */
    end(&p);
    tkv_budget_free(s->budget, layers, layers_bytes);
    return e;
}
