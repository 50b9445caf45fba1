/*
 * The half tiers: tokens come in at the end, warm ones leave at the front. Their memory is in the arena.
 * Forks share it: tokens that are there do not change while it is shared, and the first who writes
 * behind them may do it in place; the others copy.
 */
#include <string.h>

#include "core/half.h"
#include "core/kernels.h"
#include "proto/errors.h"
#include "store/journal.h"

/* ---- memory ------------------------------------------------------------------------------- */

static size_t score_rows(const struct tkv_half_tier *t, const struct tkv_shape *shape)
{
    return t->has_scores ? shape->n_q_heads : 0;
}

/* Where the parts of a tier begin. */
struct parts {
    size_t v, positions, scores, bytes;
};

static struct parts parts_of(const struct tkv_half_tier *t, const struct tkv_shape *shape)
{
    const size_t cap = t->cap;
    struct parts p;

    p.v = tkv_align(shape->n_kv_heads * cap * shape->head_dim_k * sizeof(uint16_t), 64);
    p.positions = p.v + tkv_align(shape->n_kv_heads * cap * tkv_stored_dim_v(shape) * 2, 64);
    p.scores = p.positions + tkv_align(cap * sizeof(int32_t), 64);
    p.bytes = p.scores + tkv_align(score_rows(t, shape) * cap * sizeof(float), 64);
    return p;
}

static struct tkv_half_tier make_tier(const struct tkv_shape *shape, uint32_t most,
                                      uint32_t n_spare, bool scores)
{
    struct tkv_half_tier t = {.most = most, .cap = most + n_spare, .has_scores = scores};

    t.bytes = parts_of(&t, shape).bytes;
    return t;
}

void tkv_halves_init(const struct tkv_session *s, struct tkv_layer *l)
{
    const struct tkv_session_config *c = &s->config;

    /* What leaves a window is seen by nobody, pinned or not. */
    l->pinned = make_tier(&l->config.shape, l->slides ? 0 : c->pinned_tokens, 0, false);
    l->tail =
        make_tier(&l->config.shape, tkv_layer_recent(s, l) + tkv_layer_fold_tokens(s, l),
                  c->rollback_tokens, l->config.method == TKV_METHOD_TRIATTENTION && !l->slides);
}

/* Point at the token `first` of the tier whose memory is at base. */
static void point_at(struct tkv_half_tier *t, const struct tkv_shape *shape, uint8_t *base,
                     uint32_t first)
{
    const struct parts p = parts_of(t, shape);

    t->k = (uint16_t *)(void *)base + (size_t)first * shape->head_dim_k;
    t->v = (uint16_t *)(void *)(base + p.v) + (size_t)first * tkv_stored_dim_v(shape);
    t->positions = (int32_t *)(void *)(base + p.positions) + first;
    t->scores = t->has_scores ? (float *)(void *)(base + p.scores) + first : NULL;
    t->first = first;
}

/* Move the n tokens from `from` on to those from `to` on, of another buffer or the same one. */
static void move_tokens(const struct tkv_half_tier *from, const struct tkv_half_tier *to,
                        const struct tkv_shape *shape, uint32_t n)
{
    const size_t dk = shape->head_dim_k;
    const size_t dv = tkv_stored_dim_v(shape);

    for (size_t h = 0; h < shape->n_kv_heads; h++) {
        memmove(to->k + h * to->cap * dk, from->k + h * from->cap * dk, n * dk * sizeof(*to->k));
        memmove(to->v + h * to->cap * dv, from->v + h * from->cap * dv, n * dv * sizeof(*to->v));
    }
    for (size_t h = 0; h < score_rows(to, shape); h++)
        memmove(to->scores + h * to->cap, from->scores + h * from->cap, n * sizeof(float));
    memmove(to->positions, from->positions, n * sizeof(int32_t));
}

size_t tkv_halves_bytes(const struct tkv_layer *l)
{
    return l->tail.bytes + l->pinned.bytes;
}

void tkv_halves_copy(const struct tkv_layer *l, void *to)
{
    const struct tkv_shape *shape = &l->config.shape;
    const uint32_t first = l->checkpoint.is_live ? l->checkpoint.first : l->tail.first;
    struct tkv_half_tier tail = l->tail, pinned = l->pinned;
    struct tkv_half_tier from = l->tail;

    tkv_tier_rewind(&from, shape, first, l->tail.first - first + l->tail.n);
    point_at(&tail, shape, to, first);
    move_tokens(&from, &tail, shape, from.n);
    point_at(&pinned, shape, (uint8_t *)to + l->tail.bytes, 0);
    move_tokens(&l->pinned, &pinned, shape, l->pinned.n);
}

int tkv_halves_new(struct tkv_session *s, const struct tkv_layer *l, struct tkv_half_buffer **out,
                   struct tkv_report *why)
{
    const size_t bytes = tkv_halves_bytes(l);
    struct tkv_half_buffer *b = tkv_shared_alloc(s, sizeof(*b));
    int e;

    if (!b)
        return tkv_fail(why, TRIKV_E_MEMORY_CAP, "no room for %zu bytes of half tiers", bytes);
    e = tkv_arena_buffer(s->arena, bytes, &b->id, why);
    if (e) {
        tkv_shared_unref(s, b);
        return e;
    }
    atomic_init(&b->n_written, 0);
    *out = b;
    return 0;
}

/* The tiers as they are, in other memory; with what lies in front of the tail. */
static void move_to(struct tkv_session *s, struct tkv_layer *l, struct tkv_half_buffer *b)
{
    const struct tkv_shape *shape = &l->config.shape;
    uint8_t *base = tkv_arena_at(s->arena, b->id);
    const uint32_t first = l->tail.first;
    const uint32_t n = l->tail.n;
    struct tkv_half_tier tail = l->tail;
    const struct tkv_half_tier pinned = l->pinned;

    point_at(&l->tail, shape, base, 0);
    point_at(&l->pinned, shape, base + l->tail.bytes, 0);
    if (l->halves) {
        tkv_tier_rewind(&tail, shape, 0, first + n);
        move_tokens(&tail, &l->tail, shape, tail.n);
        move_tokens(&pinned, &l->pinned, shape, pinned.n);
        tkv_tier_rewind(&l->tail, shape, first, n);
    }
    tkv_halves_release(s, l);
    l->halves = b;
    l->halves_fresh = true;
}

/* True if nobody has written behind the tail's tokens yet: from now on it may. */
static bool claim(const struct tkv_layer *l, uint32_t n)
{
    unsigned end = l->tail.first + l->tail.n;

    return atomic_compare_exchange_strong(&l->halves->n_written, &end, end + n);
}

/* Do so many more have room without moving any? */
static bool fits(const struct tkv_layer *l, uint32_t n_tail)
{
    return (uint64_t)l->tail.first + l->tail.n + n_tail <= l->tail.cap;
}

int tkv_halves_own(struct tkv_session *s, struct tkv_layer *l, uint32_t n, struct tkv_report *why)
{
    const uint32_t left = l->pinned.most - l->pinned.n;
    const uint32_t n_tail = n > left ? n - left : 0;
    struct tkv_half_buffer *b = NULL;
    int e;

    e = fits(l, n_tail) ? 0 : tkv_journal_spare(s, l, why);
    if (e || (l->halves && !tkv_is_shared(l->halves)))
        return e;
    /* In place, if no token goes to the pinned ones and none must move. */
    if (l->halves && left == 0 && fits(l, n_tail) && claim(l, n_tail))
        return 0;
    e = tkv_halves_new(s, l, &b, why);
    if (!e)
        move_to(s, l, b);
    return e;
}

void tkv_halves_share(struct tkv_session *s, struct tkv_layer *to, const struct tkv_layer *from)
{
    to->halves = from->halves;
    if (!from->halves)
        return;
    if (!tkv_is_shared(from->halves))
        atomic_store(&from->halves->n_written, from->tail.first + from->tail.n);
    (void)tkv_shared_ref(s, to->halves);
}

void tkv_halves_release(struct tkv_session *s, struct tkv_layer *l)
{
    struct tkv_half_buffer *b = l->halves;

    l->halves = NULL;
    if (!b || !tkv_shared_drop(s, b))
        return;
    tkv_arena_unref(s->arena, b->id);
    tkv_shared_free(s, b);
}

void tkv_halves_place(const struct tkv_session *s, struct tkv_layer *l, uint32_t n_pinned,
                      uint32_t first, uint32_t n)
{
    uint8_t *base = tkv_arena_at(s->arena, l->halves->id);

    point_at(&l->tail, &l->config.shape, base, first);
    point_at(&l->pinned, &l->config.shape, base + l->tail.bytes, 0);
    l->tail.n = n;
    l->pinned.n = n_pinned;
    if (atomic_load(&l->halves->n_written) < first + n)
        atomic_store(&l->halves->n_written, first + n);
}

void tkv_tier_rewind(struct tkv_half_tier *t, const struct tkv_shape *shape, uint32_t first,
                     uint32_t n)
{
    const ptrdiff_t by = (ptrdiff_t)first - (ptrdiff_t)t->first;

    t->k += by * (ptrdiff_t)shape->head_dim_k;
    t->v += by * (ptrdiff_t)tkv_stored_dim_v(shape);
    t->positions += by;
    t->scores = t->scores ? t->scores + by : NULL;
    t->first = first;
    t->n = n;
}

/* ---- tokens ------------------------------------------------------------------------------- */

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
    for (uint32_t g = 0; p->l->norm_weights && g < tkv_group(shape); g++) {
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
    const size_t dv = tkv_stored_dim_v(shape);

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

/* All tokens of the tail that anybody needs: its own, and those before them of a checkpoint. */
static struct tkv_half_tier needed(const struct tkv_half_tier *t, const struct tkv_shape *shape,
                                   const struct tkv_checkpoint *kept)
{
    const uint32_t shift = kept->is_live ? kept->first : t->first;
    struct tkv_half_tier all = *t;

    tkv_tier_rewind(&all, shape, shift, t->first - shift + t->n);
    return all;
}

/* The others make room at the front. */
static void compact(struct tkv_half_tier *t, const struct tkv_shape *shape,
                    struct tkv_checkpoint *kept)
{
    const struct tkv_half_tier from = needed(t, shape, kept);
    const uint32_t n = t->n;

    tkv_tier_rewind(t, shape, 0, from.n);
    move_tokens(&from, t, shape, from.n);
    tkv_tier_rewind(t, shape, from.n - n, n);
    if (kept->is_live)
        kept->first = 0;
}

/* The same where the journal still refers to the tokens as they lie: in the spare buffer, and this one
 * is the next spare. */
static void compact_apart(struct tkv_session *s, struct tkv_layer *l)
{
    const struct tkv_shape *shape = &l->config.shape;
    struct tkv_half_buffer *b = s->journal->spare;
    uint8_t *base = tkv_arena_at(s->arena, b->id);
    const struct tkv_half_tier tail = needed(&l->tail, shape, &l->checkpoint);
    const struct tkv_half_tier pinned = l->pinned;
    const uint32_t n = l->tail.n;

    point_at(&l->tail, shape, base, 0);
    point_at(&l->pinned, shape, base + l->tail.bytes, 0);
    move_tokens(&tail, &l->tail, shape, tail.n);
    move_tokens(&pinned, &l->pinned, shape, pinned.n);
    tkv_tier_rewind(&l->tail, shape, tail.n - n, n);
    if (l->checkpoint.is_live)
        l->checkpoint.first = 0;
    s->journal->spare = l->halves;
    l->halves = b;
    l->halves_fresh = true;
}

static void make_room(struct tkv_session *s, struct tkv_layer *l)
{
    if (s->journal && !l->halves_fresh)
        compact_apart(s, l);
    else
        compact(&l->tail, &l->config.shape, &l->checkpoint);
}

static void push_tail(struct tkv_session *s, struct tkv_layer *l, const struct tkv_half_tokens *t,
                      const struct tkv_exec *exec)
{
    if (l->checkpoint.is_live &&
        l->n_seen + t->n - l->checkpoint.n_seen > s->config.rollback_tokens)
        tkv_checkpoint_drop(s, l);
    if (l->tail.first + l->tail.n + t->n > l->tail.cap)
        make_room(s, l);
    tkv_mass_push(l, t->n);
    push_tier(s, l, &l->tail, t, exec);
}

void tkv_layer_push(struct tkv_session *s, struct tkv_layer *l, const struct tkv_half_tokens *t,
                    const struct tkv_exec *exec)
{
    const struct tkv_shape *shape = &l->config.shape;
    const uint32_t room = l->pinned.most - l->pinned.n;
    const uint32_t n_pinned = t->n < room ? t->n : room;
    struct tkv_half_tokens part = *t;

    part.n = n_pinned;
    if (part.n > 0)
        push_tier(s, l, &l->pinned, &part, exec);
    part = *t;
    part.n -= n_pinned;
    part.k += (size_t)n_pinned * shape->n_kv_heads * shape->head_dim_k;
    part.v += (size_t)n_pinned * shape->n_kv_heads * tkv_stored_dim_v(shape);
    part.exact_k = (const uint8_t *)t->exact_k + (size_t)n_pinned * shape->n_kv_heads *
                                                     shape->head_dim_k * tkv_dtype_bytes(t->dtype);
    part.positions += n_pinned;
    if (part.n > 0)
        push_tail(s, l, &part, exec);
    l->n_seen += t->n;
    l->last_position = t->positions[t->n - 1];
}

void tkv_tail_drop(struct tkv_half_tier *t, const struct tkv_shape *shape, uint32_t n)
{
    tkv_tier_rewind(t, shape, t->first + n, t->n - n);
}
