/*
 * The coherence gate of a round: what would the recent real queries lose with the tokens that the policy
 * drops? Each layer remembers a few of them, spread over the tokens of a round or so. Before a KV
 * head is rebuilt their attention is measured with and without what it drops (core/gate.h); over the
 * limits the head keeps those of the dropped tokens that the probes look at most, one after the other,
 * until it is within them or the surplus is used up.
 *
 * Only later queries can tell what was needed; the gate knows no more than those it has seen.
 */
#include <string.h>

#include "core/half.h"
#include "core/kernels.h"
#include "proto/errors.h"
#include "store/session_priv.h"

bool tkv_session_gates(const struct tkv_session *s)
{
    return s->config.gate.n_probes > 0;
}

/* ---- probes ------------------------------------------------------------------------------- */

static size_t probe_values(const struct tkv_layer *l)
{
    return (size_t)l->config.shape.n_q_heads * l->config.shape.head_dim_k;
}

/* The ring's own fields, its queries, their positions. */
static size_t positions_at(const struct tkv_session *s, const struct tkv_layer *l)
{
    return tkv_align(sizeof(struct tkv_probes), 64) +
           tkv_align(s->config.gate.n_probes * probe_values(l) * sizeof(uint16_t), 64);
}

static size_t probes_bytes(const struct tkv_session *s, const struct tkv_layer *l)
{
    return positions_at(s, l) + s->config.gate.n_probes * sizeof(int32_t);
}

bool tkv_probes_create(struct tkv_session *s, struct tkv_layer *l, const struct tkv_probes *from)
{
    uint8_t *p;

    l->probes = NULL;
    if (!tkv_session_gates(s) || !tkv_layer_evicts(l)) /* it holds no rounds */
        return true;
    p = tkv_session_alloc(s, probes_bytes(s, l));
    if (!p)
        return false;
    if (from)
        memcpy(p, from, probes_bytes(s, l));
    l->probes = (struct tkv_probes *)(void *)p;
    l->probes->q = (uint16_t *)(void *)(p + tkv_align(sizeof(*l->probes), 64));
    l->probes->positions = (int32_t *)(void *)(p + positions_at(s, l));
    return true;
}

void tkv_probes_destroy(struct tkv_session *s, struct tkv_layer *l)
{
    if (l->probes)
        tkv_session_free(s, l->probes, probes_bytes(s, l));
    l->probes = NULL;
}

static void record(const struct tkv_session *s, const struct tkv_layer *l,
                   const struct tkv_queries *q, uint32_t token)
{
    const uint32_t cap = s->config.gate.n_probes;
    const size_t n = probe_values(l);
    struct tkv_probes *p = l->probes;
    uint32_t slot;

    /* A query that comes again, after truncate or for another sample, is the one that counts. */
    while (p->n > 0 && p->positions[(p->first + p->n - 1) % cap] >= q->positions[token])
        p->n--;
    if (p->n == cap) {
        p->first = (p->first + 1) % cap;
        p->n--;
    }
    slot = (p->first + p->n++) % cap;
    p->positions[slot] = q->positions[token];
    (void)tkv_to_f16(s->kn, p->q + slot * n,
                     (const uint8_t *)q->q + token * n * tkv_dtype_bytes(q->dtype), q->dtype, n);
}

void tkv_probes_record(const struct tkv_session *s, const struct tkv_layer *l,
                       const struct tkv_queries *q)
{
    int32_t stride;

    if (!l->probes)
        return;
    stride = (int32_t)(s->config.beta_tokens / s->config.gate.n_probes);
    for (uint32_t i = 0; i < q->n_tokens; i++)
        if (stride < 2 || q->positions[i] % stride == 0)
            record(s, l, q, i);
}

/* ---- memory ------------------------------------------------------------------------------- */

/* What the gate found of a head. */
struct result {
    struct tkv_gate_measure measure;
    uint32_t n_dropped, n_surplus;
    enum { NOT_LOOKED_AT = 0, PASSED, KEPT_MORE, EXCEEDED } decision;
};

/* Of a layer: the probes' attention before the round; behind it scratch of attention. */
struct common {
    struct result *results; /* [n_kv_heads] */
    float *out;             /* [n_probes][n_q_heads][head_dim_v] */
    float *lse;             /* [n_probes][n_q_heads] */
    int32_t *positions;     /* [n_probes] */
    void *attend;
    size_t bytes;
};

/* Of a head. */
struct work {
    float *q;       /* [rows][tile_dim], as key tiles want them */
    float *out;     /* [rows][head_dim_v] */
    float *lse;     /* [rows] */
    float *mass;    /* [rows] */
    float *lost;    /* [rows][head_dim_v] */
    float *weights; /* [rows][64] */
    float *block;   /* [tile_dim][64]: keys of a block */
    float *tile;    /* [tile_dim][64]: those of them that are dropped */
    float *values;  /* [64][head_dim_v] */
    float *token_mass;
    uint32_t *dropped;
    size_t bytes;
};

static void *take(uint8_t *base, size_t *at, size_t bytes)
{
    void *p = base ? base + *at : NULL;

    *at += tkv_align(bytes, 64);
    return p;
}

static struct common common_layout(const struct tkv_session *s, const struct tkv_layer *l,
                                   uint8_t *base)
{
    const struct tkv_shape *shape = &l->config.shape;
    const size_t n = s->config.gate.n_probes;
    struct common c = {0};
    size_t at = 0;

    c.results = take(base, &at, shape->n_kv_heads * sizeof(*c.results));
    c.out = take(base, &at, n * shape->n_q_heads * shape->head_dim_v * sizeof(float));
    c.lse = take(base, &at, n * shape->n_q_heads * sizeof(float));
    c.positions = take(base, &at, n * sizeof(int32_t));
    c.attend = base ? base + at : NULL;
    c.bytes = at;
    return c;
}

static struct work work_layout(const struct tkv_session *s, const struct tkv_layer *l,
                               size_t n_candidates, uint8_t *base)
{
    const size_t rows = (size_t)s->config.gate.n_probes * tkv_group(&l->config.shape);
    const size_t tile_dim = tkv_block_tile_dim(&l->layout), dv = l->config.shape.head_dim_v;
    struct work w = {0};
    size_t at = 0;

    w.q = take(base, &at, rows * tile_dim * sizeof(float));
    w.out = take(base, &at, rows * dv * sizeof(float));
    w.lse = take(base, &at, rows * sizeof(float));
    w.mass = take(base, &at, rows * sizeof(float));
    w.lost = take(base, &at, rows * dv * sizeof(float));
    w.weights = take(base, &at, rows * TKV_BLOCK_TOKENS * sizeof(float));
    w.block = take(base, &at, tile_dim * TKV_BLOCK_TOKENS * sizeof(float));
    w.tile = take(base, &at, tile_dim * TKV_BLOCK_TOKENS * sizeof(float));
    w.values = take(base, &at, TKV_BLOCK_TOKENS * dv * sizeof(float));
    w.token_mass = take(base, &at, n_candidates * sizeof(float));
    w.dropped = take(base, &at, n_candidates * sizeof(uint32_t));
    w.bytes = at;
    return w;
}

/* The scratch grows with the cache: that of n_more queries more is enough for as many tokens more. */
size_t tkv_gate_common_bytes(const struct tkv_session *s, const struct tkv_layer *l, size_t n_more)
{
    const size_t n = s->config.gate.n_probes + n_more;
    struct tkv_cache cache;

    if (!l->probes)
        return 0;
    cache = tkv_layer_cache(s, l);
    return common_layout(s, l, NULL).bytes +
           tkv_align(tkv_cache_attend_bytes(&cache, (uint32_t)n), 64);
}

size_t tkv_gate_bytes(const struct tkv_session *s, const struct tkv_layer *l, size_t n_candidates)
{
    return l->probes ? work_layout(s, l, n_candidates, NULL).bytes : 0;
}

/* ---- before: all heads -------------------------------------------------------------------- */

/* Probes [from, from + n) of the ring, which lie there one after the other, at `at` of the results. */
static void attend_run(const struct tkv_session *s, const struct tkv_layer *l,
                       const struct common *c, uint32_t from, uint32_t n, uint32_t at,
                       const struct tkv_exec *exec)
{
    const struct tkv_shape *shape = &l->config.shape;
    const struct tkv_cache cache = tkv_layer_cache(s, l);
    const struct tkv_queries q = {
        .n_tokens = n,
        .dtype = TKV_F16,
        .positions = l->probes->positions + from,
        .q = l->probes->q + from * probe_values(l),
        .out = c->out + (size_t)at * shape->n_q_heads * shape->head_dim_v,
        .lse = c->lse + (size_t)at * shape->n_q_heads,
    };

    if (n == 0)
        return;
    tkv_cache_attend(&cache, &q, c->attend, exec);
    memcpy(c->positions + at, q.positions, n * sizeof(int32_t));
}

void tkv_gate_begin(const struct tkv_session *s, const struct tkv_layer *l, void *memory,
                    const struct tkv_exec *exec)
{
    struct common c;
    uint32_t n_first;

    if (!l->probes)
        return;
    c = common_layout(s, l, memory);
    memset(c.results, 0, l->config.shape.n_kv_heads * sizeof(*c.results));
    n_first = s->config.gate.n_probes - l->probes->first;
    n_first = l->probes->n < n_first ? l->probes->n : n_first;
    attend_run(s, l, &c, l->probes->first, n_first, 0, exec);
    attend_run(s, l, &c, 0, l->probes->n - n_first, n_first, exec);
}

/* ---- a head ------------------------------------------------------------------------------- */

struct gate {
    const struct tkv_session *s;
    const struct tkv_layer *l;
    const struct tkv_head *head;
    struct work w;
    struct tkv_gate_rows rows;
    uint32_t n_dropped;
};

/* The head's rows: queries in the codec's domain, what they get now, and nothing lost. */
static void load_rows(struct gate *g, const struct common *c, uint32_t kv_head)
{
    const struct tkv_shape *shape = &g->l->config.shape;
    const uint32_t group = tkv_group(shape), cap = g->s->config.gate.n_probes;
    const struct tkv_probes *p = g->l->probes;
    const size_t dk = shape->head_dim_k, dv = shape->head_dim_v;
    const size_t tile_dim = tkv_block_tile_dim(&g->l->layout);
    float q[TKV_MAX_HEAD_DIM];

    for (uint32_t r = 0; r < p->n * group; r++) {
        const uint32_t i = r / group;
        const size_t q_head = (size_t)kv_head * group + r % group;
        const size_t from = ((size_t)((p->first + i) % cap) * shape->n_q_heads + q_head) * dk;
        const size_t at = (size_t)i * shape->n_q_heads + q_head;

        g->s->kn->f16_to_f32(q, p->q + from, dk);
        tkv_block_code_query(&g->l->layout, g->s->kn, q, g->w.q + r * tile_dim);
        memcpy(g->w.out + r * dv, c->out + at * dv, dv * sizeof(float));
        g->w.lse[r] = c->lse[at];
    }
    memset(g->w.mass, 0, (size_t)p->n * group * sizeof(float));
    memset(g->w.lost, 0, (size_t)p->n * group * dv * sizeof(float));
    g->rows = (struct tkv_gate_rows){.attn = g->l->config.attn,
                                     .n_rows = (size_t)p->n * group,
                                     .group = group,
                                     .dim_k = (uint32_t)tile_dim,
                                     .dim_v = (uint32_t)dv,
                                     .positions = c->positions,
                                     .q = g->w.q,
                                     .out = g->w.out,
                                     .lse = g->w.lse,
                                     .mass = g->w.mass,
                                     .lost = g->w.lost};
}

/* What `keep` leaves out, ascending. */
static void list_dropped(struct gate *g, const struct tkv_keep *keep)
{
    uint32_t k = 0;

    for (uint32_t i = 0; i < g->head->n_cold; i++) {
        if (k < keep->n && keep->index[k] == i)
            k++;
        else
            g->w.dropped[g->n_dropped++] = i;
    }
}

/* Tokens `lane`[n] of a block are lost, or with sign -1 are not. */
static void add_lanes(struct gate *g, const struct tkv_block *block, const uint8_t *lane,
                      uint32_t n, float sign, float *token_mass)
{
    const struct tkv_block_layout *layout = &g->l->layout;
    const size_t tile_dim = tkv_block_tile_dim(layout), dv = g->l->config.shape.head_dim_v;
    void *bytes = tkv_arena_at(g->s->arena, block->id);
    const uint16_t *distance = tkv_block_positions(layout, bytes);
    int32_t positions[TKV_BLOCK_TOKENS];

    tkv_block_key_tile(layout, g->s->kn, bytes, g->w.block);
    memset(g->w.tile, 0, tile_dim * TKV_BLOCK_TOKENS * sizeof(float));
    for (size_t i = 0; i < tile_dim; i++)
        for (uint32_t t = 0; t < n; t++)
            g->w.tile[i * TKV_BLOCK_TOKENS + t] = g->w.block[i * TKV_BLOCK_TOKENS + lane[t]];
    for (uint32_t t = 0; t < n; t++) {
        positions[t] = block->first_position + distance[lane[t]];
        tkv_block_decode_value(layout, g->s->kn, bytes, lane[t], g->w.values + t * dv);
    }
    tkv_gate_add(&g->rows, g->s->kn, sign, g->w.tile, g->w.values, positions, n, g->w.weights,
                 token_mass);
}

static void lose_dropped(struct gate *g)
{
    uint32_t at = 0, first = 0;

    for (uint32_t b = 0; b < g->head->n_blocks; b++) {
        const struct tkv_block *block = &g->head->blocks[b];
        uint8_t lane[TKV_BLOCK_TOKENS];
        uint32_t n = 0;

        while (at + n < g->n_dropped && g->w.dropped[at + n] < first + block->n_tokens) {
            lane[n] = (uint8_t)(g->w.dropped[at + n] - first);
            n++;
        }
        if (n > 0)
            add_lanes(g, block, lane, n, 1, g->w.token_mass + at);
        at += n;
        first += block->n_tokens;
    }
}

/* The dropped token with the most of the probes' attention is kept after all; its mass becomes -1.
 * False if no probe looks at any. */
static bool give_back(struct gate *g)
{
    uint32_t best = 0, first = 0, b = 0;
    uint8_t lane;

    for (uint32_t i = 1; i < g->n_dropped; i++)
        if (g->w.token_mass[i] > g->w.token_mass[best])
            best = i;
    if (!(g->w.token_mass[best] > 0))
        return false;
    for (; g->w.dropped[best] - first >= g->head->blocks[b].n_tokens; b++)
        first += g->head->blocks[b].n_tokens;
    lane = (uint8_t)(g->w.dropped[best] - first);
    add_lanes(g, &g->head->blocks[b], &lane, 1, -1, NULL);
    g->w.token_mass[best] = -1;
    return true;
}

/* index[keep->n], ascending, gets the tokens that were given back. */
static void join(struct gate *g, struct tkv_keep *keep, uint32_t *index)
{
    uint32_t n = 0, k = keep->n, at;

    for (uint32_t i = 0; i < g->n_dropped; i++)
        if (g->w.token_mass[i] < 0)
            g->w.dropped[n++] = g->w.dropped[i];
    keep->n += n;
    for (at = keep->n; n > 0;) /* from the end, so that nothing is written over */
        if (k > 0 && index[k - 1] > g->w.dropped[n - 1])
            index[--at] = index[--k];
        else
            index[--at] = g->w.dropped[--n];
}

void tkv_gate_head(const struct tkv_session *s, const struct tkv_layer *l, uint32_t kv_head,
                   void *common, struct tkv_keep *keep, uint32_t *index, void *memory)
{
    const struct tkv_gate_config *limits = &s->config.gate;
    struct gate g = {.s = s, .l = l, .head = &l->heads[kv_head]};
    struct tkv_gate_measure now;
    struct common c;
    struct result *result;

    if (!l->probes || keep->n >= g.head->n_cold)
        return;
    c = common_layout(s, l, common);
    result = &c.results[kv_head];
    g.w = work_layout(s, l, g.head->n_cold, memory);
    load_rows(&g, &c, kv_head);
    list_dropped(&g, keep);
    lose_dropped(&g);
    now = tkv_gate_measure(&g.rows);
    *result = (struct result){.measure = now, .decision = PASSED};
    while (tkv_gate_is_over(&now, &limits->limits)) {
        if (result->n_surplus == limits->surplus_tokens || !give_back(&g)) {
            result->decision = EXCEEDED;
            break;
        }
        result->decision = KEPT_MORE;
        result->n_surplus++;
        now = tkv_gate_measure(&g.rows);
    }
    join(&g, keep, index);
    result->n_dropped = g.head->n_cold - keep->n;
}

void tkv_gate_end(const struct tkv_session *s, struct tkv_layer *l, void *common)
{
    struct tkv_gate_stats *stats = &l->gate;
    struct common c;

    if (!l->probes)
        return;
    c = common_layout(s, l, common);
    stats->n_probes = l->probes->n;
    stats->n_dropped = 0;
    stats->measure = (struct tkv_gate_measure){0};
    for (uint32_t h = 0; h < l->config.shape.n_kv_heads; h++) {
        const struct result *r = &c.results[h];

        stats->n_passed += r->decision == PASSED;
        stats->n_kept_more += r->decision == KEPT_MORE;
        stats->n_exceeded += r->decision == EXCEEDED;
        stats->n_surplus_tokens += r->n_surplus;
        stats->n_dropped += r->n_dropped;
        tkv_gate_worst(&stats->measure, &r->measure);
    }
}

/* ---- a dry run ---------------------------------------------------------------------------- */

int tkv_session_gate(struct tkv_session *s, const struct tkv_exec *exec,
                     struct tkv_gate_stats *stats, struct tkv_report *why)
{
    struct tkv_session *child;
    int e;

    if (!tkv_session_gates(s))
        return tkv_fail(why, TRIKV_E_STATE,
                        "the session has no gate: its profile's policy has no part gate");
    e = tkv_session_fork(&child, s, why);
    if (e)
        return e;
    for (uint32_t i = 0; i < s->config.n_layers; i++)
        child->layers[i].gate = (struct tkv_gate_stats){0};
    e = tkv_session_round(child, exec, why);
    for (uint32_t i = 0; !e && i < s->config.n_layers; i++)
        stats[i] = child->layers[i].gate;
    tkv_session_destroy(&child);
    return e;
}
