/*
 * The forward pass of a chunk of tokens: norms, projections, RoPE, feed-forward. Rows
 * are independent but for attention, so that everything here is spread over the
 * executor by blocks of rows or, in tools/linear.c, by rows of weights.
 */
#include "tools/model.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/cpu.h"

enum { ROWS_A_TASK = 8, SILU_PART = 256 };

static int allocate(struct tkv_model *m, struct tkv_reason *why)
{
    const struct tkv_model_config *c = &m->config;
    const struct tkv_shape *s = &c->shape;
    struct tkv_activations *a = &m->act;
    const struct {
        float **to;
        size_t width;
    } list[] = {
        {&a->x, c->d_model},
        {&a->h, c->d_model},
        {&a->q, (size_t)s->n_q_heads * s->head_dim_k},
        {&a->k, (size_t)s->n_kv_heads * s->head_dim_k},
        {&a->v, (size_t)s->n_kv_heads * s->head_dim_v},
        {&a->att, (size_t)s->n_q_heads * s->head_dim_v},
        {&a->gate, c->d_ff},
        {&a->up, c->d_ff},
        {&a->cs, 2 * (size_t)c->rope.n_bands},
    };
    size_t width = 0, n_bytes, at = 0;

    for (size_t i = 0; i < sizeof(list) / sizeof(list[0]); i++)
        width += list[i].width;
    if (!tkv_mul(width * sizeof(float), m->max_chunk_tokens, &n_bytes) ||
        !(a->memory = malloc(n_bytes)) ||
        !(a->positions = calloc(m->max_chunk_tokens, sizeof(*a->positions))))
        return tkv_reason_set(why, "out of memory for chunks of %zu tokens", m->max_chunk_tokens);
    for (size_t i = 0; i < sizeof(list) / sizeof(list[0]); i++) {
        *list[i].to = a->memory + at;
        at += list[i].width * m->max_chunk_tokens;
    }
    return 0;
}

int tkv_model_create(struct tkv_model **model, const struct tkv_gguf *g, size_t max_chunk_tokens,
                     const struct tkv_exec *exec, struct tkv_reason *why)
{
    struct tkv_model *m = calloc(1, sizeof(*m));

    *model = NULL;
    if (!m)
        return tkv_reason_set(why, "out of memory for a model");
    tkv_math_init(&m->math, tkv_cpu_flags(NULL));
    m->exec = exec;
    m->max_chunk_tokens = max_chunk_tokens;
    if (tkv_model_load(m, g, why) || allocate(m, why)) {
        tkv_model_destroy(&m);
        return -1;
    }
    *model = m;
    return 0;
}

void tkv_model_destroy(struct tkv_model **model)
{
    struct tkv_model *m = *model;

    if (!m)
        return;
    free(m->act.memory);
    free(m->act.positions);
    free(m->layers);
    free(m->vectors);
    free(m);
    *model = NULL;
}

/* dst = src / sqrt(mean(src^2) + eps) * weight; dst may be src. */
static void rms_norm(const struct tkv_model *m, float *dst, const float *src, const float *weight,
                     size_t n)
{
    const float mean = m->math.kn.norm2(src, n) / (float)n;
    const float scale = 1.0f / sqrtf(mean + m->config.eps);

    for (size_t i = 0; i < n; i++)
        dst[i] = src[i] * scale * weight[i];
}

/* What a task over blocks of rows works on. */
struct rows {
    const struct tkv_model *m;
    const struct tkv_model_layer *layer;
    const float *weight;
    size_t n;
    void (*row)(const struct rows *r, size_t i);
};

static void run_block(void *arg, size_t task)
{
    const struct rows *r = arg;

    for (size_t i = task * ROWS_A_TASK; i < r->n && i < (task + 1) * ROWS_A_TASK; i++)
        r->row(r, i);
}

static void run_rows(struct rows r)
{
    tkv_exec_run(r.m->exec, (r.n + ROWS_A_TASK - 1) / ROWS_A_TASK, run_block, &r);
}

static void norm_row(const struct rows *r, size_t i)
{
    const size_t d = r->m->config.d_model;

    rms_norm(r->m, r->m->act.h + i * d, r->m->act.x + i * d, r->weight, d);
}

static void add_row(const struct rows *r, size_t i)
{
    const size_t d = r->m->config.d_model;
    float *x = r->m->act.x + i * d;
    const float *h = r->m->act.h + i * d;

    for (size_t j = 0; j < d; j++)
        x[j] += h[j];
}

static void add_bias(float *x, const float *bias, size_t n)
{
    for (size_t i = 0; bias && i < n; i++)
        x[i] += bias[i];
}

static void norm_heads(const struct tkv_model *m, float *x, uint32_t n_heads, const float *weight)
{
    const size_t d = m->config.shape.head_dim_k;

    for (uint32_t h = 0; weight && h < n_heads; h++)
        rms_norm(m, x + h * d, x + h * d, weight, d);
}

static void finish_heads_row(const struct rows *r, size_t i)
{
    const struct tkv_model *m = r->m;
    const struct tkv_shape *s = &m->config.shape;
    const size_t n_q = (size_t)s->n_q_heads * s->head_dim_k;
    const size_t n_k = (size_t)s->n_kv_heads * s->head_dim_k;
    const size_t n_v = (size_t)s->n_kv_heads * s->head_dim_v;
    float *q = m->act.q + i * n_q, *k = m->act.k + i * n_k;

    add_bias(q, r->layer->q_bias, n_q);
    add_bias(k, r->layer->k_bias, n_k);
    add_bias(m->act.v + i * n_v, r->layer->v_bias, n_v);
    norm_heads(m, q, s->n_q_heads, r->layer->q_norm);
    norm_heads(m, k, s->n_kv_heads, r->layer->k_norm);
}

static void turn_heads_row(const struct rows *r, size_t i)
{
    const struct tkv_model *m = r->m;
    const struct tkv_shape *s = &m->config.shape;
    const float *cs = m->act.cs + i * 2 * m->config.rope.n_bands;
    float *q = m->act.q + i * s->n_q_heads * s->head_dim_k;
    float *k = m->act.k + i * s->n_kv_heads * s->head_dim_k;

    for (uint32_t h = 0; h < s->n_q_heads; h++, q += s->head_dim_k)
        tkv_rope_turn(&m->config.rope, cs, q, q);
    for (uint32_t h = 0; h < s->n_kv_heads; h++, k += s->head_dim_k)
        tkv_rope_turn(&m->config.rope, cs, k, k);
}

/*
 * gate = gate * sigmoid(gate) * up. With e = exp(-|g|) <= 1, sigmoid(g) is 1 / (1 + e) for
 * g >= 0 and e / (1 + e) otherwise: no overflow, and the kernel's exp serves.
 */
static void silu_row(const struct rows *r, size_t i)
{
    const size_t d = r->m->config.d_ff;
    float *gate = r->m->act.gate + i * d;
    const float *up = r->m->act.up + i * d;
    float e[SILU_PART];

    for (size_t from = 0; from < d; from += SILU_PART) {
        const size_t n = d - from < SILU_PART ? d - from : SILU_PART;

        for (size_t j = 0; j < n; j++)
            e[j] = -fabsf(gate[from + j]);
        r->m->math.kn.exp_sum(e, n, 0.0f);
        for (size_t j = 0; j < n; j++) {
            const float g = gate[from + j];

            gate[from + j] = g * (g >= 0 ? 1.0f : e[j]) / (1.0f + e[j]) * up[from + j];
        }
    }
}

static void angles_row(const struct rows *r, size_t i)
{
    const struct tkv_rope *rope = &r->m->config.rope;

    tkv_rope_angles(rope, r->m->act.positions[i], r->m->act.cs + i * 2 * rope->n_bands);
}

static int attend(struct tkv_model *m, uint32_t i, size_t n, const struct tkv_attention *attention,
                  struct tkv_reason *why)
{
    const struct tkv_model_layer *layer = &m->layers[i];
    const struct tkv_activations *a = &m->act;
    const struct tkv_attention_step step = {.layer = i,
                                            .n_tokens = n,
                                            .q = a->q,
                                            .k = a->k,
                                            .v = a->v,
                                            .positions = a->positions,
                                            .out = a->att};

    run_rows((struct rows){m, layer, layer->attn_norm, n, norm_row});
    tkv_linear(&m->math, m->exec, &layer->q, a->h, n, a->q);
    tkv_linear(&m->math, m->exec, &layer->k, a->h, n, a->k);
    tkv_linear(&m->math, m->exec, &layer->v, a->h, n, a->v);
    run_rows((struct rows){m, layer, NULL, n, finish_heads_row});
    if (m->hook.see)
        m->hook.see(m->hook.ctx, i, n, a->q);
    run_rows((struct rows){m, layer, NULL, n, turn_heads_row});
    if (attention->step(attention->ctx, &step, why))
        return -1;
    tkv_linear(&m->math, m->exec, &layer->o, a->att, n, a->h);
    run_rows((struct rows){m, layer, NULL, n, add_row});
    return 0;
}

static void feed_forward(struct tkv_model *m, uint32_t i, size_t n)
{
    const struct tkv_model_layer *layer = &m->layers[i];
    const struct tkv_activations *a = &m->act;

    run_rows((struct rows){m, layer, layer->ffn_norm, n, norm_row});
    tkv_linear(&m->math, m->exec, &layer->gate, a->h, n, a->gate);
    tkv_linear(&m->math, m->exec, &layer->up, a->h, n, a->up);
    run_rows((struct rows){m, layer, NULL, n, silu_row});
    tkv_linear(&m->math, m->exec, &layer->down, a->gate, n, a->h);
    run_rows((struct rows){m, layer, NULL, n, add_row});
}

static int start_chunk(struct tkv_model *m, const int32_t *ids, size_t n, int32_t first_position,
                       struct tkv_reason *why)
{
    const struct tkv_model_config *c = &m->config;

    if (!n || n > m->max_chunk_tokens)
        return tkv_reason_set(why, "chunk of %zu tokens, expected 1 to %zu", n,
                              m->max_chunk_tokens);
    if (first_position < 0 || n > (size_t)(INT32_MAX - first_position))
        return tkv_reason_set(why, "positions %" PRId32 " and %zu more", first_position, n);
    for (size_t i = 0; i < n; i++) {
        if (ids[i] < 0 || (uint32_t)ids[i] >= c->n_vocab)
            return tkv_reason_set(why, "token %zu is %" PRId32 ", the vocabulary has %u", i, ids[i],
                                  c->n_vocab);
        m->act.positions[i] = first_position + (int32_t)i;
        tkv_matrix_row(&m->math, &m->embedding, (size_t)ids[i], 0, c->d_model,
                       m->act.x + i * c->d_model);
    }
    run_rows((struct rows){m, NULL, NULL, n, angles_row});
    return 0;
}

int tkv_model_forward(struct tkv_model *m, const int32_t *ids, size_t n, int32_t first_position,
                      const struct tkv_attention *attention, struct tkv_reason *why)
{
    if (start_chunk(m, ids, n, first_position, why))
        return -1;
    for (uint32_t i = 0; i < m->config.n_layers; i++) {
        if (attend(m, i, n, attention, why))
            return -1;
        feed_forward(m, i, n);
    }
    run_rows((struct rows){m, NULL, m->output_norm, n, norm_row});
    return 0;
}

const float *tkv_model_states(const struct tkv_model *m)
{
    return m->act.h;
}

void tkv_model_logits(const struct tkv_model *m, const float *states, size_t n, float *logits)
{
    tkv_linear(&m->math, m->exec, &m->output, states, n, logits);
}
