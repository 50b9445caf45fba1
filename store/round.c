/*
 * A round: score the cold tokens, select, rebuild; of one layer, or of all together. It cannot fail:
 * round_prepare.c has done before what could, and says when a round is due.
 */
#include <math.h>

#include "proto/limits.h"
#include "store/round_priv.h"

/* ---- a round of one layer ------------------------------------------------------------------- */

/* All of a round's working memory: keep lists, what heads have in common, shared rows if layers are
 * coupled, then the heads. */
struct round {
    struct tkv_session *s;
    struct tkv_layer *l;
    struct tkv_keep *keep; /* [n_kv_heads]; n: how many, before they are selected */
    struct tkv_places places[TKV_HEADS_AT_ONCE];
    void *common;
    void *gate;
    uint8_t *heads;
    size_t head_bytes;
    size_t n_candidates; /* of the head that has most */
    size_t first_head;   /* of those worked on */
};

static float *head_scores(const struct round *r, size_t kv_head)
{
    return (float *)(void *)(r->heads + kv_head * r->head_bytes);
}

static uint32_t *head_index(const struct round *r, size_t kv_head)
{
    return (uint32_t *)(void *)((uint8_t *)head_scores(r, kv_head) +
                                tkv_align(r->n_candidates * sizeof(float), 64));
}

static struct tkv_block_id *head_places(const struct round *r, size_t kv_head)
{
    return (struct tkv_block_id *)(void *)(r->heads + kv_head * r->head_bytes +
                                           tkv_round_select_bytes(r->n_candidates));
}

/* Memory of scoring, then of rebuilding. */
static void *head_work(const struct round *r, size_t kv_head)
{
    return (uint8_t *)head_places(r, kv_head) + tkv_places_bytes(tkv_round_most_cap_blocks(r->l));
}

static void score_one(void *arg, size_t kv_head)
{
    const struct round *r = arg;

    tkv_policy_score(r->s, r->l, (uint32_t)kv_head, r->common, head_scores(r, kv_head),
                     head_work(r, kv_head));
    tkv_window_hide(r->s, r->l, (uint32_t)kv_head, head_scores(r, kv_head));
}

static void select_one(const struct round *r, size_t kv_head, const float *scores)
{
    uint32_t *index = head_index(r, kv_head);
    uint32_t *scratch = index + tkv_align(r->n_candidates, 16);

    r->keep[kv_head].index = index;
    r->keep[kv_head].n = (uint32_t)tkv_select_top(r->s->kn, scores, r->l->heads[kv_head].n_cold,
                                                  r->keep[kv_head].n, index, scratch);
}

static void rebuild_one(void *arg, size_t i)
{
    struct round *r = arg;
    const size_t kv_head = r->first_head + i;

    tkv_mass_keep(r->l, (uint32_t)kv_head, &r->keep[kv_head]);
    tkv_head_rebuild(r->s, &r->l->layout, &r->l->heads[kv_head], &r->keep[kv_head], &r->places[i],
                     head_work(r, kv_head));
}

static void select_and_rebuild(void *arg, size_t i)
{
    const struct round *r = arg;
    const size_t kv_head = r->first_head + i;

    select_one(r, kv_head, head_scores(r, kv_head));
    tkv_gate_head(r->s, r->l, (uint32_t)kv_head, r->gate, &r->keep[kv_head], head_index(r, kv_head),
                  head_work(r, kv_head));
    rebuild_one(arg, i);
}

/* While what scoring read is near. */
static void score_and_rebuild(void *arg, size_t i)
{
    const struct round *r = arg;

    score_one(arg, r->first_head + i);
    select_and_rebuild(arg, i);
}

static struct round round_begin(struct tkv_session *s, struct tkv_layer *l, uint8_t *memory,
                                size_t offset)
{
    const uint32_t n_kv_heads = l->config.shape.n_kv_heads;
    const size_t keep_bytes = tkv_align(n_kv_heads * sizeof(struct tkv_keep), 64);
    struct round r = {.s = s, .l = l, .keep = (struct tkv_keep *)(void *)memory};

    r.n_candidates = tkv_round_most_cold(l);
    r.common = memory + keep_bytes;
    r.gate = memory + keep_bytes + tkv_policy_common_bytes(s, l);
    r.heads = (uint8_t *)r.gate + tkv_gate_common_bytes(s, l, 0) + offset;
    r.head_bytes = tkv_round_head_bytes(s, l, r.n_candidates);
    for (uint32_t h = 0; h < n_kv_heads; h++)
        r.keep[h].n = (uint32_t)tkv_budget_keeps(s, l, h);
    return r;
}

/* Places for all that the heads from first_head on can come to need, before they are worked on. */
static void take_places(struct round *r, size_t n_heads)
{
    const size_t surplus = r->l->probes ? r->s->config.gate.surplus_tokens : 0;

    for (size_t i = 0; i < n_heads; i++) {
        const size_t kv_head = r->first_head + i;
        const struct tkv_head *head = &r->l->heads[kv_head];
        const size_t keep = r->keep[kv_head].n + surplus;
        const size_t most =
            tkv_round_packed_blocks(keep < head->n_cold ? keep : head->n_cold, r->l->last_position);
        struct tkv_places *p = &r->places[i];

        *p = (struct tkv_places){.ids = head_places(r, kv_head),
                                 .n = (uint32_t)(most < head->n_blocks ? most : head->n_blocks)};
        tkv_arena_take_each(r->s->arena, r->l->layout.bytes, p->ids, p->n);
    }
}

static void give_places_back(const struct round *r, size_t n_heads)
{
    for (size_t i = 0; i < n_heads; i++)
        tkv_arena_unref_each(r->s->arena, r->places[i].ids, sizeof(*r->places[i].ids),
                             r->places[i].n);
}

static void change_heads(struct round *r, void (*work)(void *arg, size_t i),
                         const struct tkv_exec *exec)
{
    const size_t n = r->l->config.shape.n_kv_heads;
    const size_t n_before = tkv_round_count_cold(r->l);

    for (; r->first_head < n; r->first_head += TKV_HEADS_AT_ONCE) {
        const size_t left = n - r->first_head;
        const size_t n_heads = left < TKV_HEADS_AT_ONCE ? left : TKV_HEADS_AT_ONCE;

        take_places(r, n_heads);
        tkv_exec_run(exec, n_heads, work, r);
        give_places_back(r, n_heads);
    }
    r->s->n_evicted += n_before - tkv_round_count_cold(r->l);
    r->l->n_rounds++;
    tkv_layer_changed(r->s, r->l);
}

/* All scores first: together they say how many each head keeps. */
static void adapt_heads(struct round *r, const struct tkv_exec *exec)
{
    const uint32_t n = r->l->config.shape.n_kv_heads;
    const float *scores[TRIKV_MAX_HEADS] = {NULL};
    uint32_t n_keep[TRIKV_MAX_HEADS];

    tkv_exec_run(exec, n, score_one, r);
    for (uint32_t h = 0; h < n; h++)
        scores[h] = head_scores(r, h);
    tkv_budget_adapt(r->s, r->l, scores, n_keep);
    for (uint32_t h = 0; h < n; h++)
        r->keep[h].n = n_keep[h];
    change_heads(r, select_and_rebuild, exec);
}

/* With few enough tokens nothing is scored, but blocks that are not full are filled. */
static void round_of_layer(struct tkv_session *s, struct tkv_layer *l, uint8_t *memory,
                           const struct tkv_exec *exec)
{
    struct round r = round_begin(s, l, memory, 0);

    if (tkv_round_is_over(s, l)) {
        tkv_policy_common(s, l, r.common);
        tkv_gate_begin(s, l, r.gate, exec);
        if (s->config.allocator == TKV_ADAPTIVE)
            adapt_heads(&r, exec);
        else
            change_heads(&r, score_and_rebuild, exec);
        tkv_gate_end(s, l, r.gate);
        return;
    }
    for (uint32_t h = 0; h < l->config.shape.n_kv_heads; h++)
        r.keep[h] = (struct tkv_keep){NULL, l->heads[h].n_cold};
    change_heads(&r, rebuild_one, exec);
}

/* ---- a round of all layers together --------------------------------------------------------- */

/* Fold one layer's scores into the rows that all layers share: the mean over layers for each KV
 * head, or one maximum of all. */
static void fold_layer(const struct round *r, float *shared, size_t stride)
{
    const float weight = 1.0f / (float)r->s->config.n_layers;

    for (uint32_t h = 0; h < r->l->config.shape.n_kv_heads; h++) {
        if (r->s->config.eviction_mode == TKV_UNION)
            tkv_fold_max(shared, head_scores(r, h), r->n_candidates);
        else
            tkv_fold_sum(shared + h * stride, head_scores(r, h), weight, r->n_candidates);
    }
}

static void score_all(struct tkv_session *s, uint8_t *memory, float *shared, size_t stride,
                      size_t shared_bytes, const struct tkv_exec *exec)
{
    const size_t n = stride * s->layers[0].config.shape.n_kv_heads;

    for (size_t i = 0; i < n; i++)
        shared[i] = s->config.eviction_mode == TKV_UNION ? -INFINITY : 0.0f;
    for (uint32_t i = 0; i < s->config.n_layers; i++) {
        struct round r = round_begin(s, &s->layers[i], memory, shared_bytes);

        tkv_policy_common(s, r.l, r.common);
        tkv_exec_run(exec, s->layers[i].config.shape.n_kv_heads, score_one, &r);
        fold_layer(&r, shared, stride);
    }
}

static void round_of_all(struct tkv_session *s, uint8_t *memory, const struct tkv_exec *exec)
{
    const uint32_t n_kv_heads = s->layers[0].config.shape.n_kv_heads;
    const size_t n = tkv_round_most_cold(&s->layers[0]);
    const size_t stride = tkv_align(n, 16);
    const size_t shared_bytes = n_kv_heads * stride * sizeof(float);
    float *shared = (float *)(void *)(memory + tkv_align(n_kv_heads * sizeof(struct tkv_keep), 64) +
                                      tkv_policy_common_bytes(s, &s->layers[0]));

    score_all(s, memory, shared, stride, shared_bytes, exec);
    for (uint32_t i = 0; i < s->config.n_layers; i++) {
        struct round r = round_begin(s, &s->layers[i], memory, shared_bytes);

        for (uint32_t h = 0; h < n_kv_heads; h++)
            select_one(&r, h, s->config.eviction_mode == TKV_UNION ? shared : shared + h * stride);
        change_heads(&r, rebuild_one, exec);
    }
}

static void fold_and_round(struct tkv_session *s, struct tkv_layer *l, bool held, uint8_t *memory,
                           const struct tkv_exec *exec)
{
    held = held && tkv_layer_evicts(l) && tkv_round_has_work(s, l);
    tkv_layer_fold(s, l, exec);
    if (held)
        round_of_layer(s, l, memory, exec);
}

static void fold_all(struct tkv_session *s, const struct tkv_exec *exec)
{
    for (uint32_t i = 0; i < s->config.n_layers; i++)
        tkv_layer_fold(s, &s->layers[i], exec);
}

void tkv_round_run(struct tkv_session *s, struct tkv_layer *l, const struct tkv_round_memory *m,
                   const struct tkv_exec *exec)
{
    const bool held = !l || tkv_round_is_due(s, l);
    const struct tkv_layer *first = &s->layers[0];

    if (tkv_session_plans(s)) {
        tkv_ladder_run(s, l, m, exec);
    } else if (held && tkv_session_couples_layers(s) &&
               tkv_round_most_cold(first) + tkv_layer_warm(s, first) >
                   tkv_budget_keeps(s, first, 0)) {
        fold_all(s, exec);
        round_of_all(s, m->base, exec);
    } else if (l) {
        fold_and_round(s, l, held, m->base, exec);
    } else {
        for (uint32_t i = 0; i < s->config.n_layers; i++)
            fold_and_round(s, &s->layers[i], held, m->base, exec);
    }
}
