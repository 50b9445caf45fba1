/* The half tiers: tokens come in at the end, warm ones leave at the front. */
#include <string.h>

#include "core/half.h"
#include "core/kernels.h"
#include "store/session_priv.h"

/* What one KV head's share of a push needs. */
struct push {
    const struct tkv_session *s;
    struct tkv_layer *l;
    const struct tkv_half_tokens *t;
    struct tkv_half_tier *to;
};

/* The norm terms of a new key for all query heads of its group, from the key as it came. */
static void push_scores(const struct push *p, size_t kv_head, uint32_t token)
{
    const struct tkv_shape *shape = &p->l->config.shape;
    const struct tkv_rope *rope = &p->s->rope;
    const size_t dim = shape->head_dim_k;
    const size_t at = ((size_t)token * shape->n_kv_heads + kv_head) * dim;
    float key[TKV_MAX_HEAD_DIM];
    float norms[TKV_MAX_BANDS];

    tkv_to_f32(p->s->kn, key, (const uint8_t *)p->t->exact_k + at * tkv_dtype_bytes(p->t->dtype),
               p->t->dtype, dim);
    tkv_band_norms(rope, key, norms);
    for (uint32_t g = 0; g < tkv_group(shape); g++) {
        const size_t head = kv_head * tkv_group(shape) + g;

        p->to->scores[head * p->to->cap + p->to->n + token] =
            tkv_tri_norm_term(p->l->norm_weights + head * rope->n_bands, norms, rope->n_bands);
    }
}

static void push_head(void *arg, size_t kv_head)
{
    const struct push *p = arg;
    const struct tkv_shape *shape = &p->l->config.shape;
    const size_t dk = shape->head_dim_k;
    const size_t dv = shape->head_dim_v;

    for (uint32_t i = 0; i < p->t->n; i++) {
        const size_t from = (size_t)i * shape->n_kv_heads + kv_head;
        const size_t to = kv_head * p->to->cap + p->to->n + i;

        memcpy(p->to->k + to * dk, p->t->k + from * dk, dk * sizeof(uint16_t));
        memcpy(p->to->v + to * dv, p->t->v + from * dv, dv * sizeof(uint16_t));
        if (p->to->scores)
            push_scores(p, kv_head, i);
    }
}

static void push_tier(const struct tkv_session *s, struct tkv_layer *l, struct tkv_half_tier *to,
                      const struct tkv_half_tokens *t, const struct tkv_exec *exec)
{
    struct push p = {.s = s, .l = l, .t = t, .to = to};

    tkv_exec_run(exec, l->config.shape.n_kv_heads, push_head, &p);
    memcpy(to->positions + to->n, t->positions, t->n * sizeof(int32_t));
    to->n += t->n;
}

void tkv_layer_push(const struct tkv_session *s, struct tkv_layer *l,
                    const struct tkv_half_tokens *t, const struct tkv_exec *exec)
{
    const struct tkv_shape *shape = &l->config.shape;
    const uint32_t room = l->pinned.cap - l->pinned.n;
    const uint32_t n_pinned = t->n < room ? t->n : room;
    struct tkv_half_tokens part = *t;

    part.n = n_pinned;
    if (part.n > 0)
        push_tier(s, l, &l->pinned, &part, exec);
    part = *t;
    part.n -= n_pinned;
    part.k += (size_t)n_pinned * shape->n_kv_heads * shape->head_dim_k;
    part.v += (size_t)n_pinned * shape->n_kv_heads * shape->head_dim_v;
    part.exact_k = (const uint8_t *)t->exact_k + (size_t)n_pinned * shape->n_kv_heads *
                                                     shape->head_dim_k * tkv_dtype_bytes(t->dtype);
    part.positions += n_pinned;
    if (part.n > 0)
        push_tier(s, l, &l->tail, &part, exec);
    l->n_seen += t->n;
    l->last_position = t->positions[t->n - 1];
}

void tkv_tail_drop(struct tkv_half_tier *t, const struct tkv_shape *shape, uint32_t n)
{
    const size_t left = t->n - n;
    const size_t dk = shape->head_dim_k;
    const size_t dv = shape->head_dim_v;

    for (size_t h = 0; h < shape->n_kv_heads; h++) {
        uint16_t *k = t->k + h * t->cap * dk;
        uint16_t *v = t->v + h * t->cap * dv;

        memmove(k, k + n * dk, left * dk * sizeof(*k));
        memmove(v, v + n * dv, left * dv * sizeof(*v));
    }
    for (size_t h = 0; t->scores && h < shape->n_q_heads; h++)
        memmove(t->scores + h * t->cap, t->scores + h * t->cap + n, left * sizeof(float));
    memmove(t->positions, t->positions + n, left * sizeof(int32_t));
    t->n = (uint32_t)left;
}
