/* Reading the other parts of an image into a session that is empty so far. */
#include <math.h>
#include <string.h>

#include "proto/errors.h"
#include "proto/limits.h"
#include "store/budget.h"
#include "store/image_priv.h"
#include "store/session_priv.h"

/* ---- what sessions share ------------------------------------------------------------------ */

enum share_kind { SHARE_NONE = 0, SHARE_HALVES = 1, SHARE_TABLE = 2 };

struct tkv_image_share {
    uint64_t name;
    enum share_kind kind;
    uint32_t n_blocks;
    void *p;
};

void tkv_image_source_release(struct tkv_image_source *source)
{
    struct tkv_image_shares *s = &source->shares;

    if (s->entries)
        tkv_budget_free(s->budget, s->entries, s->cap * sizeof(*s->entries));
    *s = (struct tkv_image_shares){0};
}

/* The entry of that name, or the free one where it belongs; there is one. */
static struct tkv_image_share *find_share(const struct tkv_image_shares *s, enum share_kind kind,
                                          uint64_t name)
{
    size_t i = (size_t)((name + (uint64_t)kind) * UINT64_C(0x9e3779b97f4a7c15) >> 32);

    for (;; i++) {
        struct tkv_image_share *e = &s->entries[i & (s->cap - 1)];

        if (e->kind == SHARE_NONE || (e->kind == kind && e->name == name))
            return e;
    }
}

static bool grow_shares(struct tkv_image_shares *s, struct tkv_budget *budget)
{
    struct tkv_image_shares more = {.cap = s->cap ? 2 * s->cap : 64, .budget = budget};

    if (s->cap > 0 && s->n < s->cap / 2)
        return true;
    more.entries = tkv_budget_alloc(budget, more.cap * sizeof(*more.entries));
    if (!more.entries)
        return false;
    for (size_t i = 0; i < s->cap; i++)
        if (s->entries[i].kind != SHARE_NONE) {
            *find_share(&more, s->entries[i].kind, s->entries[i].name) = s->entries[i];
            more.n++;
        }
    if (s->entries)
        tkv_budget_free(s->budget, s->entries, s->cap * sizeof(*s->entries));
    *s = more;
    return true;
}

/* ---- state -------------------------------------------------------------------------------- */

static int read_halves(struct tkv_session *s, struct tkv_layer *l, const struct image_in *in,
                       uint64_t name, struct tkv_image_source *source)
{
    struct tkv_image_share *share;
    struct tkv_half_buffer *b;
    int e;

    if (!grow_shares(&source->shares, s->budget))
        return tkv_fail(in->why, TRIKV_E_MEMORY_CAP, "no room to read an image");
    share = find_share(&source->shares, SHARE_HALVES, name);
    if (share->kind != SHARE_NONE) {
        if (share->n_blocks != tkv_halves_bytes(l) / 64)
            return tkv_image_fail(in, "half tiers of %zu bytes share a buffer with others of %zu",
                                  tkv_halves_bytes(l), (size_t)share->n_blocks * 64);
        l->halves = tkv_shared_ref(s, share->p);
        return 0;
    }
    b = tkv_shared_alloc(s, sizeof(*b));
    if (!b)
        return tkv_fail(in->why, TRIKV_E_MEMORY_CAP, "no room for half tiers");
    e = source->block(source->ctx, s->arena, name, tkv_halves_bytes(l), true, &b->id, in->why);
    if (e) {
        tkv_shared_free(s, b);
        return e;
    }
    atomic_init(&b->n_written, 0);
    *share = (struct tkv_image_share){name, SHARE_HALVES, (uint32_t)(tkv_halves_bytes(l) / 64), b};
    source->shares.n++;
    l->halves = b;
    return 0;
}

static int check_state(const struct tkv_session *s, const struct tkv_layer *l,
                       const struct image_in *in, const struct image_state *st)
{
    if (st->has_checkpoint > 1 || (st->has_checkpoint && s->config.rollback_tokens == 0))
        return tkv_image_fail(in, "a checkpoint, but rollback is %u tokens",
                              s->config.rollback_tokens);
    if (st->pinned_n > l->pinned.most || st->tail_n > l->tail.most ||
        (uint64_t)st->tail_first + st->tail_n > l->tail.cap)
        return tkv_image_fail(in, "%u pinned tokens of %u, %u + %u in the tail of %u", st->pinned_n,
                              l->pinned.most, st->tail_first, st->tail_n, l->tail.cap);
    if (st->checkpoint_first > st->tail_first || st->checkpoint_n > l->tail.most ||
        (uint64_t)st->checkpoint_first + st->checkpoint_n > l->tail.cap)
        return tkv_image_fail(in, "a checkpoint of %u + %u tokens in the tail, now %u + %u",
                              st->checkpoint_first, st->checkpoint_n, st->tail_first, st->tail_n);
    if (!st->halves && (st->n_seen || st->has_checkpoint))
        return tkv_image_fail(in, "%llu tokens seen, but no half tiers",
                              (unsigned long long)st->n_seen);
    return 0;
}

static int read_budgets(const struct tkv_layer *l, struct image_in *in, uint32_t n)
{
    int e;

    if (n != (l->budgets ? l->config.shape.n_kv_heads : 0))
        return tkv_image_fail(in, "%u budgets of heads", n);
    e = tkv_image_take(in, l->budgets, n * sizeof(*l->budgets));
    for (uint32_t h = 0; !e && h < n; h++)
        if (l->budgets[h] > TRIKV_MAX_POSITION)
            e = tkv_image_fail(in, "budget of KV head %u is %u tokens", h, l->budgets[h]);
    return e ? e : tkv_image_skip_pad(in, n * sizeof(*l->budgets));
}

static void take_state(struct tkv_session *s, struct tkv_layer *l, const struct image_state *st)
{
    struct tkv_checkpoint *c = &l->checkpoint;

    l->n_seen = st->n_seen;
    l->n_rounds = st->n_rounds;
    l->generation = st->generation;
    l->last_position = st->last_position;
    l->first_query = st->first_query;
    l->floor = (struct tkv_floor){st->floor_seen, st->floor_position};
    l->config.budget_tokens = st->budget_tokens;
    l->moves = l->ladder && st->moves;
    l->gate = (struct tkv_gate_stats){
        .n_passed = st->n_passed,
        .n_kept_more = st->n_kept_more,
        .n_exceeded = st->n_exceeded,
        .n_surplus_tokens = st->n_surplus_tokens,
        .n_dropped = st->n_dropped,
        .n_probes = st->n_gate_probes,
        .measure = {st->output_error, st->lse_change, st->lost_mass},
    };
    if (l->halves)
        tkv_halves_place(s, l, st->pinned_n, st->tail_first, st->tail_n);
    if (!st->has_checkpoint)
        return;
    c->is_live = true;
    c->n_seen = st->checkpoint_seen;
    c->floor = (struct tkv_floor){st->checkpoint_floor_seen, st->checkpoint_floor_position};
    c->first = st->checkpoint_first;
    c->n = st->checkpoint_n;
    c->n_rounds = st->checkpoint_rounds;
    c->first_query = st->checkpoint_first_query;
}

static int read_state(struct tkv_session *s, struct tkv_layer *l, struct image_in *in,
                      struct tkv_image_source *source)
{
    struct image_state st;
    int e = tkv_image_take(in, &st, sizeof(st));

    e = e ? e : check_state(s, l, in, &st);
    e = e ? e : read_budgets(l, in, st.n_budgets);
    e = e ? e : tkv_image_end(in);
    if (!e && tkv_layer_evicts(l) && !l->ladder)
        e = tkv_check_budget(&s->config, in->layer, st.budget_tokens, in->why);
    if (!e && st.halves)
        e = read_halves(s, l, in, st.halves, source);
    if (!e)
        take_state(s, l, &st);
    return e;
}

/* ---- tables ------------------------------------------------------------------------------- */

static int read_block(const struct tkv_session *s, const struct tkv_layer *l, struct image_in *in,
                      struct tkv_block *to, struct tkv_image_source *source)
{
    struct image_block b;
    int e = tkv_image_take(in, &b, sizeof(b));

    if (e)
        return e;
    if (b.tier >= (l->ladder ? l->ladder->n_tiers : 1) || b.n_tokens == 0 ||
        b.n_tokens > TKV_BLOCK_TOKENS || b.first_position < 0)
        return tkv_image_fail(in, "a block of %u tokens, tier %u, from position %d", b.n_tokens,
                              b.tier, b.first_position);
    to->first_position = b.first_position;
    to->n_tokens = b.n_tokens;
    to->tier = b.tier;
    return source->block(source->ctx, s->arena, b.name, tkv_layer_layout(l, to)->bytes, false,
                         &to->id, in->why);
}

/* A table of n blocks; h stays such that it can be released at any time. */
static int read_blocks(struct tkv_session *s, const struct tkv_layer *l, struct image_in *in,
                       struct tkv_head *h, uint32_t n, struct tkv_image_source *source)
{
    int e = 0;

    if (n > in->left / sizeof(struct image_block))
        return tkv_image_fail(in, "%u blocks in %zu bytes", n, in->left);
    if (n > 0)
        e = tkv_head_own(s, h, n, in->why);
    for (uint32_t b = 0; !e && b < n; b++) {
        e = read_block(s, l, in, &h->blocks[b], source);
        h->n_blocks += e ? 0 : 1;
    }
    return e;
}

/* The table is listed again by each that shares it: the first makes it, the others have it. */
static int share_table(struct tkv_session *s, const struct tkv_layer *l, struct image_in *in,
                       struct tkv_head *h, const struct image_table *t,
                       struct tkv_image_source *source)
{
    struct tkv_image_share *share;
    int e;

    if (!grow_shares(&source->shares, s->budget))
        return tkv_fail(in->why, TRIKV_E_MEMORY_CAP, "no room to read an image");
    share = find_share(&source->shares, SHARE_TABLE, t->name);
    if (share->kind == SHARE_NONE) {
        e = read_blocks(s, l, in, h, t->n_listed, source);
        if (e)
            return e;
        tkv_head_freeze(h);
        *share = (struct tkv_image_share){t->name, SHARE_TABLE, t->n_listed, h->blocks};
        source->shares.n++;
        return 0;
    }
    e = read_blocks(s, l, in, h, t->n_listed, source);
    if (e)
        return e;
    if (share->n_blocks != t->n_listed ||
        memcmp(share->p, h->blocks, t->n_listed * sizeof(*h->blocks)) != 0)
        return tkv_image_fail(in, "a table of %u blocks is shared as one of %u others", t->n_listed,
                              share->n_blocks);
    tkv_head_release(s, h);
    *h = (struct tkv_head){
        .blocks = tkv_shared_ref(s, share->p), .n_blocks = t->n_listed, .cap_blocks = t->n_listed};
    return 0;
}

/* Into h, or only past it if it is NULL. */
static int read_table(struct tkv_session *s, const struct tkv_layer *l, struct image_in *in,
                      struct tkv_head *h, struct tkv_image_source *source)
{
    struct image_table t;
    int e = tkv_image_take(in, &t, sizeof(t));

    if (e)
        return e;
    if (t.zero != 0 || (t.name && t.n_listed == 0) || (t.n_listed > 0 && t.n_blocks > t.n_listed))
        return tkv_image_fail(in, "a table of %u blocks with %u listed", t.n_blocks, t.n_listed);
    if (t.name)
        e = share_table(s, l, in, h, &t, source);
    else
        e = read_blocks(s, l, in, h, t.n_listed, source);
    if (e)
        return e;
    if (!t.name && t.n_blocks < t.n_listed)
        return tkv_image_fail(in, "%u blocks that nobody sees", t.n_listed - t.n_blocks);
    h->n_blocks = t.n_blocks;
    h->n_cold = t.n_cold;
    return 0;
}

static int read_rulers(struct tkv_layer *l, struct image_in *in)
{
    const uint32_t n = l->rulers ? l->config.shape.n_q_heads : 0;
    int e = tkv_image_take(in, l->rulers, n * sizeof(*l->rulers));

    for (uint32_t h = 0; !e && h < n; h++)
        if (!isfinite(l->rulers[h].base) || !isfinite(l->rulers[h].step) || l->rulers[h].step < 0)
            e = tkv_image_fail(in, "the ruler of query head %u is %g, %g", h,
                               (double)l->rulers[h].base, (double)l->rulers[h].step);
    return e;
}

static int read_tables(struct tkv_session *s, struct tkv_layer *l, struct image_in *in,
                       struct tkv_image_source *source)
{
    const uint32_t n = l->config.shape.n_kv_heads;
    int e = read_rulers(l, in);

    for (uint32_t h = 0; !e && h < n; h++)
        e = read_table(s, l, in, &l->heads[h], source);
    if (e || !l->checkpoint.is_live) /* one that is over may still be listed */
        return e;
    for (uint32_t h = 0; !e && h < n; h++)
        e = read_table(s, l, in, &l->checkpoint.heads[h], source);
    return e ? e : tkv_image_end(in);
}

/* ---- mass --------------------------------------------------------------------------------- */

static int read_mass(struct tkv_session *s, struct tkv_layer *l, struct image_in *in)
{
    for (uint32_t h = 0; l->mass && h < l->config.shape.n_kv_heads; h++) {
        struct tkv_mass *m = &l->mass[h];
        uint64_t cap;
        int e = tkv_image_take(in, &cap, sizeof(cap));

        if (e)
            return e;
        if (cap % TKV_BLOCK_TOKENS != 0 || cap > in->left / sizeof(float))
            return tkv_image_fail(in, "%llu numbers in %zu bytes", (unsigned long long)cap,
                                  in->left);
        if (!tkv_mass_grow(s, m, cap))
            return tkv_fail(in->why, TRIKV_E_MEMORY_CAP,
                            "no room for the observed attention of %llu tokens",
                            (unsigned long long)cap);
        e = tkv_image_take(in, m->x, cap * sizeof(float));
        for (size_t i = 0; !e && i < cap; i++)
            if (!isfinite(m->x[i]) || m->x[i] < 0)
                e = tkv_image_fail(in, "mass %zu of KV head %u is %g", i, h, (double)m->x[i]);
        if (e)
            return e;
    }
    return tkv_image_end(in);
}

/* ---- probes ------------------------------------------------------------------------------- */

static int read_probe_positions(struct tkv_probes *p, uint32_t cap, struct image_in *in)
{
    int32_t last = -1;
    int e = 0;

    for (uint32_t i = 0; !e && i < p->n; i++) {
        int32_t *position = &p->positions[(p->first + i) % cap];

        e = tkv_image_take(in, position, sizeof(*position));
        if (!e && *position <= last)
            e = tkv_image_fail(in, "probe %u is at position %d", i, *position);
        last = *position;
    }
    return e ? e : tkv_image_skip_pad(in, p->n * sizeof(*p->positions));
}

static int read_probe_values(struct tkv_probes *p, uint32_t cap, size_t n_values,
                             struct image_in *in)
{
    for (uint32_t i = 0; i < p->n; i++) {
        uint16_t *q = p->q + (p->first + i) % cap * n_values;
        const int e = tkv_image_take(in, q, n_values * sizeof(*q));

        if (e)
            return e;
        for (size_t j = 0; j < n_values; j++)
            if ((q[j] & 0x7c00) == 0x7c00)
                return tkv_image_fail(in, "value %zu of probe %u is not finite", j, i);
    }
    return tkv_image_skip_pad(in, p->n * n_values * sizeof(*p->q));
}

static int read_probes(const struct tkv_session *s, const struct tkv_layer *l, struct image_in *in)
{
    const size_t n_values = (size_t)l->config.shape.n_q_heads * l->config.shape.head_dim_k;
    const uint32_t cap = s->config.gate.n_probes;
    struct tkv_probes *p = l->probes;
    uint32_t ring[2]; /* first, n */
    int e;

    if (!p)
        return tkv_image_end(in);
    e = tkv_image_take(in, ring, sizeof(ring));
    if (!e && (ring[0] >= cap || ring[1] > cap))
        e = tkv_image_fail(in, "%u probes of %u, the first is %u", ring[1], cap, ring[0]);
    if (e)
        return e;
    p->first = ring[0];
    p->n = ring[1];
    e = read_probe_positions(p, cap, in);
    e = e ? e : read_probe_values(p, cap, n_values, in);
    return e ? e : tkv_image_end(in);
}

int tkv_image_read(struct tkv_session *s, enum tkv_image_part part, uint32_t layer,
                   const void *image, size_t bytes, struct tkv_image_source *source,
                   struct tkv_report *why)
{
    struct image_in in;
    struct image_counters c;
    int e = tkv_image_begin(&in, part, layer, image, bytes, why);

    if (!e && layer >= s->config.n_layers)
        e = tkv_image_fail(&in, "the session has %u layers", s->config.n_layers);
    if (e)
        return e;
    switch (part) {
    case TKV_IMAGE_COUNTERS:
        e = tkv_image_take(&in, &c, sizeof(c));
        e = e ? e : tkv_image_end(&in);
        s->generation = e ? s->generation : c.generation;
        s->n_evicted = e ? s->n_evicted : c.n_evicted;
        return e;
    case TKV_IMAGE_STATE: return read_state(s, &s->layers[layer], &in, source);
    case TKV_IMAGE_TABLES: return read_tables(s, &s->layers[layer], &in, source);
    case TKV_IMAGE_MASS: return read_mass(s, &s->layers[layer], &in);
    case TKV_IMAGE_PROBES: return read_probes(s, &s->layers[layer], &in);
    default: return tkv_image_fail(&in, "not a part to read into a session");
    }
}
