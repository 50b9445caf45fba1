/*
 * The judge. Tokens are kept in blocks of 512, laid out so that the tile kernel of
 * tools/linear.h does both products:
 *
 *   keys    [kv_head][16 panels][head_dim_k][32 tokens]    logits = q panel
 *   values  [kv_head][panels][512 tokens][32 of head_dim_v]   out += p panel
 *
 * Eight query rows go over all blocks with the online softmax. In a block, logits and
 * weights are floats; the sums over weights, and the outputs over blocks, are double.
 */
#include "tools/attention_local.h"

#include <math.h>
#include <stdalign.h>
#include <stdlib.h>
#include <string.h>

enum {
    ROWS = TKV_TILE_ROWS,
    LANES = TKV_TILE_COLS,
    BLOCK = 512,
    MAX_PANELS = TKV_MAX_HEAD_DIM / TKV_TILE_COLS,
};

struct block {
    int32_t positions[BLOCK];
    float *keys;
    float *values;
};

struct cache {
    struct block **blocks;
    size_t n_blocks, capacity;
    size_t n_tokens;
};

struct tkv_local {
    struct tkv_shape shape;
    uint32_t n_panels; /* of values: head_dim_v / 32, rounded up */
    float scale;
    const struct tkv_math *math;
    const struct tkv_exec *exec;
    uint32_t n_layers;
    struct cache *caches;
};

static void free_block(struct block **b)
{
    if (*b) {
        free((*b)->keys);
        free((*b)->values);
    }
    free(*b);
    *b = NULL;
}

static struct block *make_block(const struct tkv_local *l)
{
    struct block *b = calloc(1, sizeof(*b));

    if (!b)
        return NULL;
    b->keys = calloc((size_t)l->shape.n_kv_heads * BLOCK * l->shape.head_dim_k, sizeof(float));
    b->values = calloc((size_t)l->shape.n_kv_heads * BLOCK * LANES * l->n_panels, sizeof(float));
    if (!b->keys || !b->values)
        free_block(&b);
    return b;
}

/* Blocks for n more tokens. */
static bool grow(const struct tkv_local *l, struct cache *c, size_t n)
{
    const size_t need = (c->n_tokens + n + BLOCK - 1) / BLOCK;

    if (need > c->capacity) {
        const size_t capacity = need > 2 * c->capacity ? need : 2 * c->capacity;
        struct block **grown = realloc(c->blocks, capacity * sizeof(*grown));

        if (!grown)
            return false;
        c->blocks = grown;
        c->capacity = capacity;
    }
    for (; c->n_blocks < need; c->n_blocks++) {
        c->blocks[c->n_blocks] = make_block(l);
        if (!c->blocks[c->n_blocks])
            return false;
    }
    return true;
}

static float *key_panel(const struct tkv_local *l, const struct block *b, size_t head, size_t panel)
{
    return b->keys + (head * (BLOCK / LANES) + panel) * l->shape.head_dim_k * LANES;
}

static float *value_panel(const struct tkv_local *l, const struct block *b, size_t head,
                          size_t panel)
{
    return b->values + (head * l->n_panels + panel) * BLOCK * LANES;
}

static void store_token(const struct tkv_local *l, struct block *b, size_t at, const float *k,
                        const float *v)
{
    const struct tkv_shape *s = &l->shape;

    for (size_t head = 0; head < s->n_kv_heads; head++) {
        float *keys = key_panel(l, b, head, at / LANES) + at % LANES;

        for (size_t i = 0; i < s->head_dim_k; i++)
            keys[i * LANES] = k[head * s->head_dim_k + i];
        for (size_t i = 0; i < s->head_dim_v; i++)
            value_panel(l, b, head, i / LANES)[at * LANES + i % LANES] =
                v[head * s->head_dim_v + i];
    }
}

static bool append(const struct tkv_local *l, const struct tkv_attention_step *step)
{
    struct cache *c = &l->caches[step->layer];
    const size_t width_k = (size_t)l->shape.n_kv_heads * l->shape.head_dim_k;
    const size_t width_v = (size_t)l->shape.n_kv_heads * l->shape.head_dim_v;

    if (!grow(l, c, step->n_tokens))
        return false;
    for (size_t i = 0; i < step->n_tokens; i++, c->n_tokens++) {
        struct block *b = c->blocks[c->n_tokens / BLOCK];

        b->positions[c->n_tokens % BLOCK] = step->positions[i];
        store_token(l, b, c->n_tokens % BLOCK, step->k + i * width_k, step->v + i * width_v);
    }
    return true;
}

/* Eight rows (query heads of one KV head, over tokens) on their way through the blocks. */
struct rows {
    const float *q[ROWS];
    float *out[ROWS];
    int32_t position[ROWS];
    size_t n;
    float max[ROWS];
    double sum[ROWS];
    double *acc; /* [ROWS][n_panels * LANES] */
};

/* logits[ROWS][BLOCK] of the first n keys of a block, scaled. */
static void compute_logits(const struct tkv_local *l, const struct rows *r, const struct block *b,
                           size_t head, size_t n, float *logits)
{
    alignas(64) float tile[ROWS * LANES];

    for (size_t panel = 0; panel * LANES < n; panel++) {
        l->math->tile(tile, r->q, key_panel(l, b, head, panel), l->shape.head_dim_k);
        for (size_t row = 0; row < ROWS; row++) {
            for (size_t t = 0; t < LANES; t++)
                logits[row * BLOCK + panel * LANES + t] = tile[row * LANES + t] * l->scale;
        }
    }
}

/* How many of the first n keys of a block the last of the rows can see. */
static size_t count_visible(const struct block *b, size_t n, int32_t position)
{
    while (n && b->positions[n - 1] > position)
        n--;
    return n;
}

/* The largest of w[n], n a multiple of LANES: in lanes, since one running maximum would wait for
 * itself at every step. */
static float largest(const float *w, size_t n)
{
    float lanes[LANES], max = -INFINITY;

    for (size_t i = 0; i < LANES; i++)
        lanes[i] = -INFINITY;
    for (size_t t = 0; t < n; t += LANES) {
        for (size_t i = 0; i < LANES; i++)
            lanes[i] = w[t + i] > lanes[i] ? w[t + i] : lanes[i];
    }
    for (size_t i = 0; i < LANES; i++)
        max = lanes[i] > max ? lanes[i] : max;
    return max;
}

/* w[n] = exp(w - max); returns their sum. */
static double exponentiate(float *w, size_t n, float max)
{
    double lanes[8] = {0};

    for (size_t t = 0; t < n; t++)
        w[t] = expf(w[t] - max);
    for (size_t t = 0; t < n; t += 8) {
        for (size_t i = 0; i < 8; i++)
            lanes[i] += (double)w[t + i];
    }
    return ((lanes[0] + lanes[4]) + (lanes[1] + lanes[5])) +
           ((lanes[2] + lanes[6]) + (lanes[3] + lanes[7]));
}

/* Row `row`: logits become weights relative to the new maximum; what was gathered before is
 * brought to it. Keys later than the row's position weigh nothing. */
static void weigh_row(const struct tkv_local *l, struct rows *r, size_t row, const struct block *b,
                      size_t n, float *w)
{
    const size_t width = (size_t)l->n_panels * LANES, padded = tkv_align(n, LANES);
    float max;

    n = count_visible(b, n, r->position[row]);
    for (size_t t = n; t < padded; t++)
        w[t] = -INFINITY;
    max = largest(w, padded);
    max = max > r->max[row] ? max : r->max[row];
    if (max > r->max[row]) {
        const double shrink = exp((double)r->max[row] - (double)max);

        r->sum[row] *= shrink;
        for (size_t i = 0; i < width; i++)
            r->acc[row * width + i] *= shrink;
        r->max[row] = max;
    }
    r->sum[row] += exponentiate(w, padded, max);
}

static void add_values(const struct tkv_local *l, struct rows *r, const struct block *b,
                       size_t head, size_t n, const float *weights)
{
    const size_t width = (size_t)l->n_panels * LANES;
    alignas(64) float tile[ROWS * LANES];
    const float *w[ROWS];

    for (size_t row = 0; row < ROWS; row++)
        w[row] = weights + row * BLOCK;
    for (size_t panel = 0; panel < l->n_panels; panel++) {
        l->math->tile(tile, w, value_panel(l, b, head, panel), n);
        for (size_t row = 0; row < ROWS; row++) {
            double *acc = r->acc + row * width + panel * LANES;

            for (size_t i = 0; i < LANES; i++)
                acc[i] += (double)tile[row * LANES + i];
        }
    }
}

static void attend_rows(const struct tkv_local *l, const struct cache *c, size_t head,
                        struct rows *r)
{
    const size_t width = (size_t)l->n_panels * LANES;
    alignas(64) float weights[ROWS * BLOCK];

    for (size_t row = 0; row < ROWS; row++) {
        r->max[row] = -INFINITY;
        r->sum[row] = 0;
    }
    memset(r->acc, 0, ROWS * width * sizeof(*r->acc));
    for (size_t at = 0; at < c->n_tokens; at += BLOCK) {
        const struct block *b = c->blocks[at / BLOCK];
        const size_t have = c->n_tokens - at < BLOCK ? c->n_tokens - at : BLOCK;
        const size_t n = count_visible(b, have, r->position[ROWS - 1]);

        if (!n)
            break;
        compute_logits(l, r, b, head, n, weights);
        for (size_t row = 0; row < ROWS; row++)
            weigh_row(l, r, row, b, n, weights + row * BLOCK);
        add_values(l, r, b, head, n, weights);
    }
    for (size_t row = 0; row < r->n; row++) {
        for (size_t i = 0; i < l->shape.head_dim_v; i++)
            r->out[row][i] = (float)(r->acc[row * width + i] / r->sum[row]);
    }
}

struct job {
    const struct tkv_local *l;
    const struct tkv_attention_step *step;
    size_t n_tasks_a_head;
};

/* Row i of a KV head: query head i % group of token i / group. Spare rows repeat the last one. */
static void pick_rows(const struct job *j, size_t head, size_t first, struct rows *r)
{
    const struct tkv_shape *s = &j->l->shape;
    const size_t group = tkv_group(s), n_rows = j->step->n_tokens * group;

    r->n = n_rows - first < ROWS ? n_rows - first : ROWS;
    for (size_t row = 0; row < ROWS; row++) {
        const size_t i = first + (row < r->n ? row : r->n - 1);
        const size_t token = i / group, q_head = head * group + i % group;

        r->q[row] = j->step->q + (token * s->n_q_heads + q_head) * s->head_dim_k;
        r->out[row] = j->step->out + (token * s->n_q_heads + q_head) * s->head_dim_v;
        r->position[row] = j->step->positions[token];
    }
}

static void attend_task(void *arg, size_t task)
{
    alignas(64) double acc[ROWS * MAX_PANELS * LANES];
    const struct job *j = arg;
    const size_t head = task / j->n_tasks_a_head;
    struct rows r = {.acc = acc};

    pick_rows(j, head, task % j->n_tasks_a_head * ROWS, &r);
    attend_rows(j->l, &j->l->caches[j->step->layer], head, &r);
}

static int step_local(void *ctx, const struct tkv_attention_step *step, struct tkv_reason *why)
{
    const struct tkv_local *l = ctx;
    struct job job = {.l = l, .step = step};

    if (step->layer >= l->n_layers)
        return tkv_reason_set(why, "layer %u of %u", step->layer, l->n_layers);
    if (!append(l, step))
        return tkv_reason_set(why, "out of memory for the cache of layer %u after %zu tokens",
                              step->layer, l->caches[step->layer].n_tokens);
    job.n_tasks_a_head = (step->n_tokens * tkv_group(&l->shape) + ROWS - 1) / ROWS;
    tkv_exec_run(l->exec, job.n_tasks_a_head * l->shape.n_kv_heads, attend_task, &job);
    return 0;
}

int tkv_local_create(struct tkv_local **local, uint32_t n_layers, const struct tkv_shape *shape,
                     const struct tkv_math *math, const struct tkv_exec *exec,
                     struct tkv_reason *why)
{
    struct tkv_local *l = calloc(1, sizeof(*l));

    *local = NULL;
    if (l)
        l->caches = calloc(n_layers, sizeof(*l->caches));
    if (!l || !l->caches) {
        free(l);
        return tkv_reason_set(why, "out of memory for the caches of %u layers", n_layers);
    }
    l->shape = *shape;
    l->n_panels = (shape->head_dim_v + LANES - 1) / LANES;
    l->scale = 1.0f / sqrtf((float)shape->head_dim_k);
    l->math = math;
    l->exec = exec;
    l->n_layers = n_layers;
    *local = l;
    return 0;
}

void tkv_local_reset(struct tkv_local *l)
{
    for (uint32_t i = 0; i < l->n_layers; i++)
        l->caches[i].n_tokens = 0;
}

void tkv_local_destroy(struct tkv_local **local)
{
    struct tkv_local *l = *local;

    if (!l)
        return;
    for (uint32_t i = 0; i < l->n_layers; i++) {
        for (size_t b = 0; b < l->caches[i].n_blocks; b++)
            free_block(&l->caches[i].blocks[b]);
        free(l->caches[i].blocks);
    }
    free(l->caches);
    free(l);
    *local = NULL;
}

struct tkv_attention tkv_local_attention(struct tkv_local *l)
{
    return (struct tkv_attention){step_local, l};
}
