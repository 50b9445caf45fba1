/*
 * Attention that was seen: for every token a KV head keeps beside the pinned ones, how much the
 * queries so far gave to it. The daemon computes that attention anyway; here the logits are made
 * a second time, once the log-sum-exp of a row is known, since only then they are weights. H2O
 * counts all queries, SnapKV those on the last tokens before a round. What a query that is
 * undone later has seen stays counted.
 */
#include <string.h>

#include "core/half.h"
#include "core/kernels.h"
#include "core/policy.h"
#include "store/session_priv.h"

enum {
    SNAPKV_QUERIES = 32, /* the observation window, as its authors have it */
    BATCH_TOKENS = 64,
};

bool tkv_layer_observes(const struct tkv_layer *l)
{
    return !l->slides &&
           (l->config.method == TKV_METHOD_H2O || l->config.method == TKV_METHOD_SNAPKV);
}

/* ---- the memory ------------------------------------------------------------------------------ */

bool tkv_mass_grow(struct tkv_session *s, struct tkv_mass *m, size_t n)
{
    const size_t cap = tkv_align(n, TKV_BLOCK_TOKENS);
    float *x;

    if (n <= m->cap)
        return true;
    x = tkv_session_alloc(s, cap * sizeof(*x));
    if (!x)
        return false;
    if (m->cap > 0)
        memcpy(x, m->x, m->cap * sizeof(*x));
    tkv_session_free(s, m->x, m->cap * sizeof(*x));
    *m = (struct tkv_mass){x, cap};
    return true;
}

bool tkv_mass_create(struct tkv_session *s, struct tkv_layer *l, const struct tkv_mass *from)
{
    const uint32_t n_kv_heads = l->config.shape.n_kv_heads;

    if (!tkv_layer_observes(l))
        return true;
    l->mass = tkv_session_alloc(s, n_kv_heads * sizeof(*l->mass));
    for (uint32_t h = 0; l->mass && h < n_kv_heads; h++) {
        if (!tkv_mass_grow(s, &l->mass[h], from ? from[h].cap : l->tail.most))
            return false;
        if (from)
            memcpy(l->mass[h].x, from[h].x, from[h].cap * sizeof(float));
    }
    return l->mass;
}

void tkv_mass_destroy(struct tkv_session *s, struct tkv_layer *l)
{
    const uint32_t n_kv_heads = l->config.shape.n_kv_heads;

    for (uint32_t h = 0; l->mass && h < n_kv_heads; h++)
        tkv_session_free(s, l->mass[h].x, l->mass[h].cap * sizeof(float));
    tkv_session_free(s, l->mass, n_kv_heads * sizeof(*l->mass));
    l->mass = NULL;
}

void tkv_mass_push(struct tkv_layer *l, uint32_t n)
{
    for (uint32_t h = 0; l->mass && h < l->config.shape.n_kv_heads; h++)
        memset(l->mass[h].x + l->heads[h].n_cold + l->tail.n, 0, n * sizeof(float));
}

void tkv_mass_keep(struct tkv_layer *l, uint32_t kv_head, const struct tkv_keep *keep)
{
    float *x = l->mass ? l->mass[kv_head].x : NULL;

    if (!x)
        return;
    for (uint32_t j = 0; keep->index && j < keep->n; j++)
        x[j] = x[keep->index[j]];
    memmove(x + keep->n, x + l->heads[kv_head].n_cold, l->tail.n * sizeof(*x));
    if (l->config.method == TKV_METHOD_SNAPKV) /* the next round has its own window */
        memset(x, 0, (keep->n + l->tail.n) * sizeof(*x));
}

/* ---- looking ------------------------------------------------------------------------------------ */

/* One KV head's working memory: up to BATCH_TOKENS queries and a tile of keys. */
struct work {
    float *q;     /* [rows][head_dim_k] */
    float *coded; /* [rows][tile_dim] */
    float *dots;  /* [rows][64] */
    float *tile;  /* [tile_dim][64], tile_dim >= head_dim_k */
    size_t bytes;
};

struct observe {
    const struct tkv_session *s;
    const struct tkv_layer *l;
    const struct tkv_queries *q;
    uint32_t first; /* query token that counts */
    uint8_t *memory;
    size_t work_bytes;
};

/* Queries of a batch, n_rows of them. */
struct rows {
    const struct observe *o;
    const struct work *w;
    uint32_t kv_head, first_token;
    size_t n;
};

static float *take(uint8_t *base, size_t *at, size_t n)
{
    float *p = base ? (float *)(void *)(base + *at) : NULL;

    *at += tkv_align(n * sizeof(float), 64);
    return p;
}

static struct work work_layout(const struct tkv_layer *l, uint8_t *base)
{
    const size_t rows = (size_t)BATCH_TOKENS * tkv_group(&l->config.shape);
    const size_t tile_dim = tkv_block_tile_dim(&l->layout);
    struct work w = {0};
    size_t at = 0;

    w.q = take(base, &at, rows * l->config.shape.head_dim_k);
    w.coded = take(base, &at, rows * tile_dim);
    w.dots = take(base, &at, rows * TKV_BLOCK_TOKENS);
    w.tile = take(base, &at, tile_dim * TKV_BLOCK_TOKENS);
    w.bytes = at;
    return w;
}

size_t tkv_observe_bytes(const struct tkv_layer *l)
{
    if (!l->mass)
        return 0;
    return l->config.shape.n_kv_heads * work_layout(l, NULL).bytes;
}

/* Rows look at n <= 64 keys in the tile; x[rows][dim] are their queries in its domain. */
static void observe_tile(const struct rows *rows, const float *x, size_t dim,
                         const int32_t *positions, size_t n, float *mass)
{
    const struct observe *o = rows->o;
    const struct tkv_shape *shape = &o->l->config.shape;
    const uint32_t group = tkv_group(shape);

    o->s->kn->logits(rows->w->dots, x, rows->n, rows->w->tile, dim);
    for (size_t r = 0; r < rows->n; r++) {
        const size_t token = rows->first_token + r / group;
        const size_t head = (size_t)rows->kv_head * group + r % group;

        tkv_add_mass(o->s->kn, &o->l->config.attn, rows->w->dots + r * TKV_BLOCK_TOKENS,
                     o->q->lse[token * shape->n_q_heads + head], o->q->positions[token], positions,
                     n, mass);
    }
}

static void observe_cold(const struct rows *rows, float *mass)
{
    const struct observe *o = rows->o;
    const struct tkv_block_layout *layout = &o->l->layout;
    const struct tkv_head *head = &o->l->heads[rows->kv_head];
    int32_t positions[TKV_BLOCK_TOKENS];

    for (uint32_t b = 0; b < head->n_blocks; b++) {
        const struct tkv_block *block = &head->blocks[b];
        void *bytes = tkv_arena_at(o->s->arena, block->id);
        const uint16_t *distance = tkv_block_positions(layout, bytes);

        for (uint32_t t = 0; t < block->n_tokens; t++)
            positions[t] = block->first_position + distance[t];
        tkv_block_key_tile(layout, o->s->kn, bytes, rows->w->tile);
        observe_tile(rows, rows->w->coded, tkv_block_tile_dim(layout), positions, block->n_tokens,
                     mass);
        mass += block->n_tokens;
    }
}

static void observe_tail(const struct rows *rows, float *mass)
{
    const struct tkv_half_tier *tail = &rows->o->l->tail;
    const size_t dim = rows->o->l->config.shape.head_dim_k;
    const uint16_t *keys = tail->k + (size_t)rows->kv_head * tail->cap * dim;
    float key[TKV_MAX_HEAD_DIM];

    for (uint32_t at = 0; at < tail->n; at += TKV_BLOCK_TOKENS) {
        const uint32_t n = tail->n - at < TKV_BLOCK_TOKENS ? tail->n - at : TKV_BLOCK_TOKENS;

        for (uint32_t t = 0; t < n; t++) { /* lanes after them hold an older tile's numbers */
            rows->o->s->kn->f16_to_f32(key, keys + (at + t) * dim, dim);
            for (size_t i = 0; i < dim; i++)
                rows->w->tile[i * TKV_BLOCK_TOKENS + t] = key[i];
        }
        observe_tile(rows, rows->w->q, dim, tail->positions + at, n, mass + at);
    }
}

/* Rows are [token][head in group]; the request has [token][query head]. */
static void load_queries(const struct rows *rows)
{
    const struct observe *o = rows->o;
    const struct tkv_shape *shape = &o->l->config.shape;
    const size_t dim = shape->head_dim_k, group = tkv_group(shape);
    const uint32_t tile_dim = tkv_block_tile_dim(&o->l->layout);

    for (size_t r = 0; r < rows->n; r++) {
        const size_t at = ((rows->first_token + r / group) * shape->n_q_heads +
                           rows->kv_head * group + r % group) *
                          dim;

        tkv_to_f32(o->s->kn, rows->w->q + r * dim,
                   (const uint8_t *)o->q->q + at * tkv_dtype_bytes(o->q->dtype), o->q->dtype, dim);
        tkv_block_code_query(&o->l->layout, o->s->kn, rows->w->q + r * dim,
                             rows->w->coded + r * tile_dim);
    }
}

static void observe_head(void *arg, size_t kv_head)
{
    const struct observe *o = arg;
    const struct work w = work_layout(o->l, o->memory + kv_head * o->work_bytes);
    float *mass = o->l->mass[kv_head].x;

    for (uint32_t at = o->first; at < o->q->n_tokens; at += BATCH_TOKENS) {
        const uint32_t left = o->q->n_tokens - at;
        const struct rows rows = {.o = o,
                                  .w = &w,
                                  .kv_head = (uint32_t)kv_head,
                                  .first_token = at,
                                  .n = (size_t)(left < BATCH_TOKENS ? left : BATCH_TOKENS) *
                                       tkv_group(&o->l->config.shape)};

        load_queries(&rows);
        observe_cold(&rows, mass);
        observe_tail(&rows, mass + o->l->heads[kv_head].n_cold);
    }
}

/* Positions from which on queries count. A token's place in the full tail, at whose fold a round may be
 * due, is its place now. */
static int32_t first_position(const struct tkv_session *s, const struct tkv_layer *l)
{
    const uint32_t most = l->tail.most;
    const uint32_t first = most > SNAPKV_QUERIES ? most - SNAPKV_QUERIES : 0;

    if (l->config.method == TKV_METHOD_H2O)
        return 0;
    return first < l->tail.n && tkv_round_is_near(s, l) ? l->tail.positions[first] : INT32_MAX;
}

void tkv_observe(const struct tkv_session *s, const struct tkv_layer *l,
                 const struct tkv_queries *q, void *memory, const struct tkv_exec *exec)
{
    struct observe o = {.s = s, .l = l, .q = q, .memory = memory};
    int32_t from;

    if (!l->mass)
        return;
    from = first_position(s, l);
    o.work_bytes = work_layout(l, NULL).bytes;
    while (o.first < q->n_tokens && q->positions[o.first] < from)
        o.first++;
    if (o.first < q->n_tokens)
        tkv_exec_run(exec, l->config.shape.n_kv_heads, observe_head, &o);
}
