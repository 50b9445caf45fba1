/*
 * The requests that carry tensors. Everything a request can be refused for is checked, and
 * everything it needs is allocated, before the session changes.
 */
#include <assert.h>
#include <math.h>
#include <string.h>

#include "core/half.h"
#include "core/kernels.h"
#include "proto/errors.h"
#include "proto/limits.h"
#include "store/budget.h"
#include "store/journal.h"
#include "store/session_priv.h"

/* Below this many multiply-adds a request is done by one thread: handing work out costs more. */
enum { MIN_PARALLEL_WORK = 1 << 17 };

/* What a request holds while it runs. */
struct run {
    struct tkv_session *s;
    struct tkv_layer *l;
    const struct tkv_step *step;
    const struct tkv_exec *exec;
    int32_t *positions; /* [n_tokens], own copy */
    uint16_t *k;        /* halves of n_halves tokens: all, or those of a part at a time */
    uint16_t *v;
    uint32_t n_halves;
    void *memory; /* positions, k, v */
    size_t memory_bytes;
    void *attend; /* scratch */
    size_t attend_bytes;
    size_t lse_at, observe_at; /* in it, if attention is observed */
    struct tkv_round_memory rounds;
    bool has_rounds;
    uint32_t n_after;               /* tokens that come after the last fold */
    uint32_t first_layer, n_layers; /* that the request may change */
};

static int check_step(const struct tkv_session *s, uint32_t layer, uint32_t n_tokens,
                      struct tkv_report *why)
{
    if (layer >= s->config.n_layers)
        return tkv_fail(why, TRIKV_E_ARGUMENT, "layer is %u, the session has %u", layer,
                        s->config.n_layers);
    if (n_tokens == 0 || n_tokens > TRIKV_MAX_REQUEST_TOKENS)
        return tkv_fail(why, TRIKV_E_ARGUMENT, "n_tokens is %u, want 1..%d", n_tokens,
                        TRIKV_MAX_REQUEST_TOKENS);
    return 0;
}

int tkv_session_step_bytes(const struct tkv_session *s, uint32_t layer, uint32_t n_tokens,
                           enum tkv_dtype dtype, struct tkv_step_bytes *bytes,
                           struct tkv_report *why)
{
    const struct tkv_shape *shape;
    const size_t element_bytes = tkv_dtype_bytes(dtype);
    const int e = check_step(s, layer, n_tokens, why);

    if (e)
        return e;
    /* At most 2^20 tokens * 2^10 heads * 2^10 dims * 4 bytes: no overflow. */
    shape = &s->layers[layer].config.shape;
    bytes->k = (size_t)n_tokens * shape->n_kv_heads * shape->head_dim_k * element_bytes;
    bytes->v = (size_t)n_tokens * shape->n_kv_heads * tkv_stored_dim_v(shape) * element_bytes;
    bytes->q = (size_t)n_tokens * shape->n_q_heads * shape->head_dim_k * element_bytes;
    bytes->out = (size_t)n_tokens * shape->n_q_heads * shape->head_dim_v * sizeof(float);
    bytes->lse = (size_t)n_tokens * shape->n_q_heads * sizeof(float);
    return 0;
}

/* ---- positions ------------------------------------------------------------------------------ */

static int check_new_positions(const struct run *r, struct tkv_report *why)
{
    int64_t last = r->l->last_position;

    for (uint32_t i = 0; i < r->step->n_tokens; i++) {
        if (r->positions[i] <= last || r->positions[i] > TRIKV_MAX_POSITION)
            return tkv_fail(why, TRIKV_E_POSITION,
                            "layer %u: position of token %u is %d, want over %lld and at most %d",
                            r->step->layer, i, r->positions[i], (long long)last,
                            TRIKV_MAX_POSITION);
        last = r->positions[i];
    }
    return 0;
}

static int new_positions(struct run *r, struct tkv_report *why)
{
    const uint32_t n = r->step->n_tokens;

    if (r->step->positions) {
        memcpy(r->positions, r->step->positions, n * sizeof(int32_t));
        return check_new_positions(r, why);
    }
    if (r->l->last_position > TRIKV_MAX_POSITION - (int32_t)n)
        return tkv_fail(why, TRIKV_E_POSITION, "layer %u: %u tokens after position %d pass %d",
                        r->step->layer, n, r->l->last_position, TRIKV_MAX_POSITION);
    for (uint32_t i = 0; i < n; i++)
        r->positions[i] = r->l->last_position + 1 + (int32_t)i;
    return 0;
}

/* Where queries without keys sit: where the caller says, or on the newest tokens. */
static int query_positions(struct run *r, struct tkv_report *why)
{
    const struct tkv_half_tier *tail = &r->l->tail;
    const uint32_t n = r->step->n_tokens;

    if (r->step->positions) {
        memcpy(r->positions, r->step->positions, n * sizeof(int32_t));
        for (uint32_t i = 0; i < n; i++)
            if (r->positions[i] < 0 || (i > 0 && r->positions[i] <= r->positions[i - 1]))
                return tkv_fail(why, TRIKV_E_POSITION,
                                "layer %u: position of query %u is %d, want increasing from 0",
                                r->step->layer, i, r->positions[i]);
        return tkv_window_check(r->l, r->step->layer, r->positions[0], why);
    }
    if (n > tail->n)
        return tkv_fail(why, TRIKV_E_POSITION,
                        "layer %u: %u queries without positions, but only the newest %u tokens "
                        "have theirs at hand",
                        r->step->layer, n, tail->n);
    memcpy(r->positions, tail->positions + tail->n - n, n * sizeof(int32_t));
    return 0;
}

/* ---- values ----------------------------------------------------------------------------------- */

static int bad_value(const struct run *r, const char *name, size_t at, uint32_t heads, uint32_t dim,
                     struct tkv_report *why)
{
    return tkv_fail(why, TRIKV_E_VALUE,
                    "layer %u: %s[token %zu][head %zu][%zu] is not a finite number of at most "
                    "65504",
                    r->step->layer, name, at / dim / heads, at / dim % heads, at % dim);
}

static bool holds_all(const struct run *r)
{
    return r->n_halves == r->step->n_tokens;
}

static size_t to_halves(const struct run *r, uint16_t *dst, const void *src, size_t n)
{
    return holds_all(r) ? tkv_to_f16(r->s->kn, dst, src, r->step->dtype, n)
                        : tkv_check_f16(r->s->kn, src, r->step->dtype, n);
}

static int convert(const struct run *r, struct tkv_report *why)
{
    const struct tkv_shape *shape = &r->l->config.shape;
    const size_t n_k = (size_t)r->step->n_tokens * shape->n_kv_heads * shape->head_dim_k;
    const size_t n_v = (size_t)r->step->n_tokens * shape->n_kv_heads * tkv_stored_dim_v(shape);
    size_t good = to_halves(r, r->k, r->step->k, n_k);

    if (good < n_k)
        return bad_value(r, "K", good, shape->n_kv_heads, shape->head_dim_k, why);
    if (n_v == 0)
        return 0;
    good = to_halves(r, r->v, r->step->v, n_v);
    if (good < n_v)
        return bad_value(r, "V", good, shape->n_kv_heads, shape->head_dim_v, why);
    return 0;
}

/* Rows of a request that was found good. A peer that changes them since then, in memory that it shares, has
 * zeros for what is not good any more. */
static void take_rows(const struct run *r, uint16_t *dst, const void *src, size_t first, size_t n)
{
    const uint8_t *from = (const uint8_t *)src + first * tkv_dtype_bytes(r->step->dtype);
    const size_t good = n ? tkv_to_f16(r->s->kn, dst, from, r->step->dtype, n) : 0;

    memset(dst + good, 0, (n - good) * sizeof(*dst));
}

static int check_queries(const struct run *r, struct tkv_report *why)
{
    const struct tkv_shape *shape = &r->l->config.shape;
    const struct tkv_cache c = tkv_layer_cache(r->s, r->l);
    const struct tkv_queries q = {
        .n_tokens = r->step->n_tokens, .dtype = r->step->dtype, .q = r->step->q};
    const size_t good = tkv_cache_check_queries(&c, &q);

    if (good < (size_t)q.n_tokens * shape->n_q_heads * shape->head_dim_k)
        return bad_value(r, "Q", good, shape->n_q_heads, shape->head_dim_k, why);
    return 0;
}

/* ---- preparation -------------------------------------------------------------------------------- */

void tkv_scratch_grow(struct tkv_scratch *c, struct tkv_budget *b, size_t limit_bytes)
{
    const size_t bytes = tkv_align(c->most_bytes, 4096);

    c->most_bytes = 0; /* one long step must not stand in the way of the many short ones */
    if (bytes <= c->bytes || bytes > limit_bytes)
        return;
    tkv_budget_free(b, c->memory, c->bytes);
    c->memory = tkv_budget_take(b, bytes);
    c->bytes = c->memory ? bytes : 0;
}

void tkv_scratch_free(struct tkv_scratch *c, struct tkv_budget *b)
{
    tkv_budget_free(b, c->memory, c->bytes);
    *c = (struct tkv_scratch){0};
}

/* Memory for this step: what the caller keeps for it, if there is so much, else its own. */
static void *take(const struct run *r, size_t bytes)
{
    struct tkv_scratch *const c = r->step->scratch;

    if (!c)
        return tkv_budget_take(r->s->budget, bytes);
    c->used_bytes += tkv_align(bytes, 64);
    if (c->most_bytes < c->used_bytes)
        c->most_bytes = c->used_bytes;
    if (c->used_bytes > c->bytes)
        return tkv_budget_take(r->s->budget, bytes);
    return (uint8_t *)c->memory + c->used_bytes - tkv_align(bytes, 64);
}

static void give_back(const struct run *r, void *p, size_t bytes)
{
    const struct tkv_scratch *const c = r->step->scratch;
    const uint8_t *const at = p;
    const uint8_t *const kept = c ? c->memory : NULL;

    if (!kept || at < kept || at >= kept + c->bytes)
        tkv_budget_free(r->s->budget, p, bytes);
}

/* Tokens that are pushed before a fold makes room again. */
static uint32_t most_at_once(const struct run *r)
{
    const uint32_t most = r->l->pinned.most + r->l->tail.most;

    return r->step->n_tokens < most ? r->step->n_tokens : most;
}

static int run_begin(struct run *r, bool appends, struct tkv_report *why)
{
    const struct tkv_shape *shape;
    size_t k_bytes, v_bytes, p_bytes;
    const int e = check_step(r->s, r->step->layer, r->step->n_tokens, why);

    if (e)
        return e;
    r->l = &r->s->layers[r->step->layer];
    shape = &r->l->config.shape;
    r->n_halves = most_at_once(r);
    p_bytes = tkv_align(r->step->n_tokens * sizeof(int32_t), 64);
    k_bytes = tkv_align((size_t)r->n_halves * shape->n_kv_heads * shape->head_dim_k * 2, 64);
    v_bytes = tkv_align((size_t)r->n_halves * shape->n_kv_heads * tkv_stored_dim_v(shape) * 2, 64);
    r->memory_bytes = p_bytes + (appends ? k_bytes + v_bytes : 0);
    r->memory = take(r, r->memory_bytes);
    if (!r->memory)
        return tkv_fail(why, TRIKV_E_MEMORY_CAP, "no room for %zu bytes of new tokens",
                        r->memory_bytes);
    r->positions = r->memory;
    r->k = (uint16_t *)(void *)((uint8_t *)r->memory + p_bytes);
    r->v = (uint16_t *)(void *)((uint8_t *)r->memory + p_bytes + k_bytes);
    return 0;
}

static void run_end(struct run *r)
{
    if (r->has_rounds)
        tkv_round_release(r->s, &r->rounds);
    give_back(r, r->attend, r->attend_bytes);
    give_back(r, r->memory, r->memory_bytes);
    if (r->step->scratch)
        r->step->scratch->used_bytes = 0;
}

static int prepare_attend(struct run *r, uint32_t most_tokens, struct tkv_report *why)
{
    const struct tkv_cache c = tkv_layer_cache(r->s, r->l);
    const int e = check_queries(r, why);

    if (e)
        return e;
    r->attend_bytes = tkv_align(tkv_cache_attend_bytes(&c, most_tokens), 64);
    if (tkv_layer_observes(r->l)) {
        r->lse_at = r->attend_bytes;
        r->attend_bytes += tkv_align((size_t)most_tokens * c.shape.n_q_heads * sizeof(float), 64);
        r->observe_at = r->attend_bytes;
        r->attend_bytes += tkv_observe_bytes(r->l);
    }
    r->attend = take(r, r->attend_bytes);
    if (!r->attend)
        return tkv_fail(why, TRIKV_E_MEMORY_CAP, "no room for %zu bytes of attention scratch",
                        r->attend_bytes);
    return 0;
}

static uint32_t room(const struct tkv_layer *l)
{
    return l->pinned.most - l->pinned.n + l->tail.most - l->tail.n;
}

/* A session that was read from an image may come to this by its checkpoints, no other. */
static int out_of_step(uint32_t a, uint32_t b, struct tkv_report *why)
{
    return tkv_fail(why, TRIKV_E_STATE,
                    "layers %u and %u have seen the same tokens, but keep different numbers", a, b);
}

/* Layers that hold their rounds together must be at the same token when one is due. */
static int check_in_step(const struct run *r, struct tkv_report *why)
{
    const struct tkv_session *s = r->s;
    const uint64_t ahead = tkv_session_ahead(s, r->l);
    const bool due = tkv_round_is_due(s, r->l);
    uint64_t most = due ? s->config.beta_tokens : tkv_round_distance(s, r->l);

    most = most > ahead ? most : ahead;
    if (r->step->n_tokens > most)
        return tkv_fail(why, TRIKV_E_STATE,
                        "layer %u: %u tokens at once would need a round of all layers midway; "
                        "with eviction_mode %s append at most %llu now",
                        r->step->layer, r->step->n_tokens,
                        tkv_eviction_mode_names[s->config.eviction_mode], (unsigned long long)most);
    for (uint32_t i = 0; due && i < s->config.n_layers; i++) {
        if (!tkv_layers_agree(&s->layers[i], r->l))
            return out_of_step(r->step->layer, i, why);
        if (s->layers[i].n_seen != r->l->n_seen)
            return tkv_fail(why, TRIKV_E_STATE,
                            "a round of all layers is due, but layer %u has seen %llu tokens and "
                            "layer %u %llu",
                            r->step->layer, (unsigned long long)r->l->n_seen, i,
                            (unsigned long long)s->layers[i].n_seen);
    }
    return 0;
}

/* The state before a round is kept if truncate may want it back: not if the same request goes on for
 * longer than it reaches. */
static bool keeps_checkpoint(const struct tkv_session *s, uint32_t n_after)
{
    return n_after <= s->config.rollback_tokens && s->config.rollback_tokens > 0;
}

/* Layers [*first, *first + n) are folded now, and hold their rounds together if one is due. */
static uint32_t round_layers(const struct run *r, uint32_t *first)
{
    const bool all = tkv_round_is_common(r->s, r->l);

    *first = all ? 0 : (uint32_t)(r->l - r->s->layers);
    return all ? r->s->config.n_layers : 1;
}

static int prepare_checkpoints(struct run *r, struct tkv_report *why)
{
    uint32_t first;
    const uint32_t n = round_layers(r, &first);
    int e = 0;

    r->n_after = (r->step->n_tokens - room(r->l) - 1) % tkv_layer_fold_tokens(r->s, r->l) + 1;
    for (uint32_t i = first; !e && keeps_checkpoint(r->s, r->n_after) && i < first + n; i++)
        e = tkv_checkpoint_prepare(r->s, &r->s->layers[i], why);
    return e;
}

static int prepare_rounds(struct run *r, struct tkv_report *why)
{
    const uint32_t n = r->step->n_tokens;
    int e;

    r->n_layers = round_layers(r, &r->first_layer);
    if (tkv_session_couples_layers(r->s)) {
        e = check_in_step(r, why);
        if (e)
            return e;
    }
    if (n <= room(r->l))
        return 0;
    r->has_rounds = true;
    e = tkv_journal_prepare(r->s, r->first_layer, r->n_layers,
                            why); /* for tables that it replaces */
    e = e ? e : tkv_round_prepare(r->s, r->l, n, r->positions[n - 1], &r->rounds, why);
    return e ? e : prepare_checkpoints(r, why);
}

/* ---- running -------------------------------------------------------------------------------------- */

/* Multiply-adds of the logits of so many queries. */
static size_t attend_work(const struct tkv_layer *l, uint32_t n_tokens)
{
    const size_t kept = (size_t)l->heads[0].n_cold + l->tail.n + l->pinned.n;

    return kept * n_tokens * l->config.shape.n_q_heads * l->config.shape.head_dim_k;
}

static const struct tkv_exec *attend_exec(const struct run *r, uint32_t n_tokens)
{
    return attend_work(r->l, n_tokens) < MIN_PARALLEL_WORK ? NULL : r->exec;
}

bool tkv_session_is_brief(const struct tkv_session *s, const struct tkv_step *step)
{
    const struct tkv_layer *l = &s->layers[step->layer];
    const size_t k_row = (size_t)l->config.shape.n_kv_heads * l->config.shape.head_dim_k;

    if (step->k && (step->n_tokens > room(l) || step->n_tokens * k_row >= MIN_PARALLEL_WORK))
        return false;
    return !step->q || attend_work(l, step->n_tokens) < MIN_PARALLEL_WORK;
}

static void attend_part(const struct run *r, uint32_t first, uint32_t n)
{
    const struct tkv_shape *shape = &r->l->config.shape;
    const size_t q_row = (size_t)shape->n_q_heads * shape->head_dim_k;
    const struct tkv_cache c = tkv_layer_cache(r->s, r->l);
    struct tkv_queries part = {
        .n_tokens = n,
        .dtype = r->step->dtype,
        .positions = r->positions + first,
        .q = (const uint8_t *)r->step->q + first * q_row * tkv_dtype_bytes(r->step->dtype),
        .out = r->step->out + (size_t)first * shape->n_q_heads * shape->head_dim_v,
        .lse = r->step->lse ? r->step->lse + (size_t)first * shape->n_q_heads : NULL,
    };

    tkv_probes_record(r->s, r->l, &part);
    r->s->n_changes += r->l->mass || r->l->probes;
    if (!tkv_layer_observes(r->l)) {
        tkv_cache_attend(&c, &part, r->attend, attend_exec(r, n));
        return;
    }
    if (!part.lse)
        part.lse = (float *)(void *)((uint8_t *)r->attend + r->lse_at);
    tkv_cache_attend(&c, &part, r->attend, attend_exec(r, n));
    tkv_observe(r->s, r->l, &part, (uint8_t *)r->attend + r->observe_at, attend_exec(r, n));
}

static void push_part(const struct run *r, uint32_t first, uint32_t n)
{
    const struct tkv_shape *shape = &r->l->config.shape;
    const size_t k_row = (size_t)shape->n_kv_heads * shape->head_dim_k;
    const size_t v_row = (size_t)shape->n_kv_heads * tkv_stored_dim_v(shape);
    const size_t at = holds_all(r) ? first : 0;
    const struct tkv_half_tokens t = {
        .k = r->k + at * k_row,
        .v = r->v + at * v_row,
        .exact_k = (const uint8_t *)r->step->k + first * k_row * tkv_dtype_bytes(r->step->dtype),
        .dtype = r->step->dtype,
        .positions = r->positions + first,
        .n = n,
    };

    if (!holds_all(r)) {
        take_rows(r, r->k, r->step->k, first * k_row, n * k_row);
        take_rows(r, r->v, r->step->v, first * v_row, n * v_row);
    }
    tkv_layer_push(r->s, r->l, &t, n * k_row < MIN_PARALLEL_WORK ? NULL : r->exec);
    r->s->n_changes++;
}

/* A layer is about to be folded; with `due` because the next token needs the room. */
static void before_fold(struct tkv_session *s, struct tkv_layer *l, bool due, bool keeps)
{
    if (!tkv_round_has_work(s, l))
        return;
    if (keeps)
        tkv_checkpoint_take(s, l);
    else
        tkv_checkpoint_drop(s, l);
    l->floor = (struct tkv_floor){l->n_seen + (due ? 1 : 0), l->last_position};
}

static void run_fold(const struct run *r, uint32_t n_left)
{
    uint32_t first;
    const uint32_t n = round_layers(r, &first);
    const bool keeps = n_left == r->n_after && keeps_checkpoint(r->s, r->n_after);

    for (uint32_t i = first; i < first + n; i++)
        before_fold(r->s, &r->s->layers[i], true, keeps);
    tkv_round_run(r->s, r->l, &r->rounds, r->exec);
}

/* Token after token as if each came alone: a fold whenever there is no room, then as many as fit,
 * and their attention before the next one. What a fold replaced has its place again before the
 * next one needs it: the tokens up to there are committed, as if they had come alone. */
static void run_all(const struct run *r)
{
    for (uint32_t done = 0; done < r->step->n_tokens;) {
        uint32_t n = r->step->n_tokens - done;

        if (room(r->l) == 0) {
            if (tkv_arena_has_deferred(r->s->arena))
                tkv_journal_commit(r->s, r->first_layer, r->n_layers);
            run_fold(r, n);
        }
        if (n > room(r->l))
            n = room(r->l);
        push_part(r, done, n);
        if (r->step->out)
            attend_part(r, done, n);
        done += n;
    }
    tkv_journal_commit(r->s, r->first_layer, r->n_layers);
}

static int append(struct tkv_session *s, const struct tkv_step *step, const struct tkv_exec *exec,
                  struct tkv_report *why)
{
    struct run r = {.s = s, .step = step, .exec = exec};
    int e = run_begin(&r, true, why);

    e = e ? e : new_positions(&r, why);
    e = e ? e : convert(&r, why);
    if (!e && step->out)
        e = prepare_attend(&r, step->n_tokens, why);
    e = e ? e : prepare_rounds(&r, why);
    if (!e)
        e = r.has_rounds ? tkv_journal_prepare(s, r.first_layer, r.n_layers, why)
                         : tkv_journal_prepare_push(s, r.first_layer, r.n_layers, why);
    e = e ? e : tkv_halves_own(s, r.l, step->n_tokens, why);
    if (!e)
        run_all(&r);
    run_end(&r);
    return e;
}

int tkv_session_append(struct tkv_session *s, const struct tkv_step *step,
                       const struct tkv_exec *exec, struct tkv_report *why)
{
    struct tkv_step only = *step;

    only.out = NULL;
    return append(s, &only, exec, why);
}

int tkv_session_append_attend(struct tkv_session *s, const struct tkv_step *step,
                              const struct tkv_exec *exec, struct tkv_report *why)
{
    assert(step->out);
    return append(s, step, exec, why);
}

int tkv_session_attend(struct tkv_session *s, const struct tkv_step *step,
                       const struct tkv_exec *exec, struct tkv_report *why)
{
    struct run r = {.s = s, .step = step, .exec = exec};
    int e = run_begin(&r, false, why);

    e = e ? e : query_positions(&r, why);
    e = e ? e : prepare_attend(&r, step->n_tokens, why);
    if (!e && tkv_layer_watches(r.l))
        e = tkv_journal_prepare(s, step->layer, 1, why);
    if (!e)
        attend_part(&r, 0, step->n_tokens);
    if (!e && tkv_layer_watches(r.l))
        tkv_journal_commit(s, step->layer, 1);
    run_end(&r);
    return e;
}

int tkv_session_round(struct tkv_session *s, const struct tkv_exec *exec, struct tkv_report *why)
{
    struct tkv_round_memory m;
    int32_t last = -1;
    int e;

    for (uint32_t i = 0; i < s->config.n_layers; i++) {
        if (tkv_session_couples_layers(s) && s->layers[i].n_seen != s->layers[0].n_seen)
            return tkv_fail(why, TRIKV_E_STATE,
                            "a round of all layers needs them at the same token, but layer %u "
                            "has seen %llu and layer 0 %llu",
                            i, (unsigned long long)s->layers[i].n_seen,
                            (unsigned long long)s->layers[0].n_seen);
        if (tkv_session_couples_layers(s) && !tkv_layers_agree(&s->layers[i], &s->layers[0]))
            return out_of_step(i, 0, why);
        if (s->layers[i].last_position > last)
            last = s->layers[i].last_position;
    }
    e = tkv_journal_prepare(s, 0, s->config.n_layers, why); /* for tables that prepare replaces */
    e = e ? e : tkv_round_prepare(s, NULL, 0, last, &m, why);
    if (e)
        return e;
    for (uint32_t i = 0; !e && keeps_checkpoint(s, 0) && i < s->config.n_layers; i++)
        e = tkv_checkpoint_prepare(s, &s->layers[i], why);
    e = e ? e : tkv_journal_prepare(s, 0, s->config.n_layers, why);
    for (uint32_t i = 0; !e && i < s->config.n_layers; i++)
        before_fold(s, &s->layers[i], false, keeps_checkpoint(s, 0));
    if (!e) {
        tkv_round_run(s, NULL, &m, exec);
        tkv_journal_commit(s, 0, s->config.n_layers);
    }
    tkv_round_release(s, &m);
    return e;
}
