/*
 * When rounds are due, and everything of folds and rounds that could fail, which is done before them:
 * arena places, tables and working memory, from bounds on what the coming folds and rounds can need.
 * What was not used goes back after them. Running them is round.c's.
 */
#include "proto/errors.h"
#include "proto/limits.h"
#include "store/budget.h"
#include "store/journal.h"
#include "store/round_priv.h"

size_t tkv_round_most_cold(const struct tkv_layer *l)
{
    size_t n = 0;

    for (uint32_t h = 0; h < l->config.shape.n_kv_heads; h++)
        n = l->heads[h].n_cold > n ? l->heads[h].n_cold : n;
    return n;
}

static size_t most_blocks(const struct tkv_layer *l)
{
    size_t n = 0;

    for (uint32_t h = 0; h < l->config.shape.n_kv_heads; h++)
        n = l->heads[h].n_blocks > n ? l->heads[h].n_blocks : n;
    return n;
}

size_t tkv_round_most_cap_blocks(const struct tkv_layer *l)
{
    size_t n = 0;

    for (uint32_t h = 0; h < l->config.shape.n_kv_heads; h++)
        n = l->heads[h].cap_blocks > n ? l->heads[h].cap_blocks : n;
    return n;
}

/* ---- when ----------------------------------------------------------------------------------- */

size_t tkv_round_count_cold(const struct tkv_layer *l)
{
    size_t n = 0;

    for (uint32_t h = 0; h < l->config.shape.n_kv_heads; h++)
        n += l->heads[h].n_cold;
    return n;
}

static size_t mean_cold(const struct tkv_layer *l)
{
    return tkv_round_count_cold(l) / l->config.shape.n_kv_heads;
}

bool tkv_round_is_over(const struct tkv_session *s, const struct tkv_layer *l)
{
    const uint32_t n = l->config.shape.n_kv_heads;

    if (s->config.allocator == TKV_ADAPTIVE)
        return tkv_round_count_cold(l) > n * tkv_budget_keeps(s, l, 0);
    for (uint32_t h = 0; h < n; h++)
        if (l->heads[h].n_cold > tkv_budget_keeps(s, l, h))
            return true;
    return false;
}

/* Folds until one at which a round is due: the one after it would bring a cache over budget + beta. */
static uint64_t folds_left(const struct tkv_session *s, const struct tkv_layer *l)
{
    const uint64_t fixed = (uint64_t)l->pinned.most + s->config.recent_tokens + TKV_BLOCK_TOKENS;
    const uint64_t most = (uint64_t)tkv_budget_mean(l) + s->config.beta_tokens;
    const uint64_t used = fixed + mean_cold(l);

    if (tkv_layer_folds_few(s, l))
        return 0;
    return used < most ? (most - used) / TKV_BLOCK_TOKENS : 0;
}

uint64_t tkv_round_distance(const struct tkv_session *s, const struct tkv_layer *l)
{
    const uint32_t room = l->pinned.most - l->pinned.n + l->tail.most - l->tail.n;

    return tkv_layer_evicts(l) ? room + folds_left(s, l) * TKV_BLOCK_TOKENS : UINT64_MAX;
}

bool tkv_round_is_near(const struct tkv_session *s, const struct tkv_layer *l)
{
    return tkv_layer_evicts(l) && folds_left(s, l) == 0;
}

bool tkv_round_is_due(const struct tkv_session *s, const struct tkv_layer *l)
{
    return tkv_round_distance(s, l) == 0 && tkv_session_ahead(s, l) == 0;
}

bool tkv_round_has_work(const struct tkv_session *s, const struct tkv_layer *l)
{
    if (tkv_session_plans(s))
        return tkv_layer_warm(s, l) > 0;
    return tkv_layer_warm(s, l) > 0 || (tkv_layer_evicts(l) && tkv_round_is_over(s, l));
}

/* ---- bounds ----------------------------------------------------------------------------------- */

/* The most that one KV head of a layer can come to. */
struct bound {
    size_t candidates;
    size_t blocks;    /* in its table */
    size_t transient; /* new blocks of one round, while the old ones still live */
    bool rounds;      /* is one of them held? */
};

/* New blocks of the folds that n_new tokens bring, or one that was asked for if there are none. */
static size_t fold_blocks(const struct tkv_session *s, const struct tkv_layer *l, uint32_t n_new,
                          int32_t last_position)
{
    const uint32_t room = l->pinned.most - l->pinned.n + l->tail.most - l->tail.n;
    const int32_t first = l->tail.n > 0 ? l->tail.positions[0] : l->last_position;
    /* A fold makes a block for every token if they lie far apart; two folds' may be there. */
    const size_t spans = last_position - (int64_t)first > TKV_BLOCK_SPAN ? 2 * TKV_BLOCK_TOKENS : 0;
    const uint32_t fold = tkv_layer_fold_tokens(s, l);
    size_t n = tkv_layer_warm(s, l) > 0;

    if (n_new > 0)
        n = n_new > room ? (n_new - room + fold - 1) / fold : 0;
    n += last_position > first ? (size_t)(last_position - first) / TKV_BLOCK_SPAN : 0;
    if (l->slides && n > tkv_window_blocks(l) + spans)
        n = tkv_window_blocks(l) + spans;
    return n;
}

static bool has_rounds(const struct tkv_session *s, const struct tkv_layer *l, uint32_t n_new)
{
    if (!tkv_layer_evicts(l))
        return false;
    return n_new > 0 ? tkv_round_distance(s, l) < n_new : tkv_round_has_work(s, l);
}

/* Where layers are coupled, one that is behind comes to what the others have. */
static size_t cold_before(const struct tkv_session *s, const struct tkv_layer *l)
{
    size_t n = tkv_round_most_cold(l);

    for (uint32_t i = 0; tkv_session_couples_layers(s) && i < s->config.n_layers; i++)
        n = tkv_round_most_cold(&s->layers[i]) > n ? tkv_round_most_cold(&s->layers[i]) : n;
    return n;
}

size_t tkv_round_packed_blocks(size_t n, int32_t last_position)
{
    return n / TKV_BLOCK_TOKENS + 2 +
           (size_t)(last_position > 0 ? last_position : 0) / TKV_BLOCK_SPAN;
}

static struct bound layer_bound(const struct tkv_session *s, const struct tkv_layer *l,
                                uint32_t n_new, int32_t of_request, bool held)
{
    /* The request may be another layer's, which shares the round, but not the positions. */
    const int32_t last_position = of_request > l->last_position ? of_request : l->last_position;
    const size_t keep = tkv_budget_most(s, l), cold = cold_before(s, l) + TKV_BLOCK_TOKENS;
    const size_t most = keep + s->config.beta_tokens;
    struct bound b = {.candidates = tkv_round_most_cold(l) + l->tail.n + n_new,
                      .blocks = most_blocks(l) + fold_blocks(s, l, n_new, last_position),
                      .rounds = held || has_rounds(s, l, n_new)};
    size_t packed;

    if (!b.rounds)
        return b;
    if (b.candidates > most && b.candidates > cold)
        b.candidates = most > cold ? most : cold;
    packed =
        tkv_round_packed_blocks(b.candidates, last_position) + 1; /* the last that a round left */
    b.blocks = packed < b.blocks ? packed : b.blocks;
    b.transient = tkv_round_packed_blocks(keep, last_position);
    b.transient = b.transient < b.blocks ? b.transient : b.blocks;
    return b;
}

/* ---- preparation -------------------------------------------------------------------------- */

/* Blocks that a round does not free, because forks or a checkpoint refer to them, too. */
static size_t count_held(const struct tkv_session *s, const struct tkv_layer *l)
{
    size_t n = 0;

    for (uint32_t h = 0; h < l->config.shape.n_kv_heads; h++)
        if (l->heads[h].n_blocks > 0)
            n += tkv_arena_count_shared(s->arena, &l->heads[h].blocks->id,
                                        sizeof(*l->heads[h].blocks), l->heads[h].n_blocks);
    return n;
}

size_t tkv_round_select_bytes(size_t n_candidates)
{
    return tkv_align(n_candidates * sizeof(float), 64) +
           2 * tkv_align(n_candidates * sizeof(uint32_t), 64);
}

size_t tkv_round_head_bytes(const struct tkv_session *s, const struct tkv_layer *l,
                            size_t n_candidates)
{
    const size_t rebuild = tkv_rebuild_bytes(tkv_round_most_cap_blocks(l));
    const size_t score = tkv_policy_bytes(s, l, n_candidates);
    const size_t gate = tkv_gate_bytes(s, l, n_candidates);
    const size_t most = score > rebuild ? score : rebuild;

    return tkv_round_select_bytes(n_candidates) + tkv_places_bytes(tkv_round_most_cap_blocks(l)) +
           (gate > most ? gate : most);
}

/* Working memory of a layer's rounds; folds need none. */
static size_t layer_bytes(const struct tkv_session *s, const struct tkv_layer *l,
                          const struct bound *b)
{
    const uint32_t n_kv_heads = l->config.shape.n_kv_heads;
    const size_t shared = tkv_session_couples_layers(s) ? tkv_round_select_bytes(b->candidates) : 0;

    if (!b->rounds)
        return 0;
    return tkv_policy_common_bytes(s, l) +
           tkv_gate_common_bytes(s, l, b->candidates + l->tail.most) + 64 +
           n_kv_heads *
               (sizeof(struct tkv_keep) + shared + tkv_round_head_bytes(s, l, b->candidates));
}

/* Of a layer. */
struct need {
    size_t blocks;    /* more in the tables, and those that are not freed */
    size_t transient; /* beside them, during a round */
    ptrdiff_t after;  /* more than now after one fold and its round */
    size_t bytes;     /* of working memory */
    bool has_rounds;
};

static void count_need(struct tkv_session *s, const struct tkv_layer *l, const struct bound *b,
                       struct need *need)
{
    const uint32_t n_kv_heads = l->config.shape.n_kv_heads;
    const bool all_stay = tkv_session_holds_old(s); /* a checkpoint or journal has the old blocks */
    const size_t held = b->rounds ? count_held(s, l) : 0;

    *need = (struct need){.bytes = layer_bytes(s, l, b), .has_rounds = b->rounds};
    for (uint32_t h = 0; h < n_kv_heads; h++) {
        const size_t n = l->heads[h].n_blocks;

        need->blocks += b->blocks > n ? b->blocks - n : 0;
        need->after += (ptrdiff_t)b->transient - (ptrdiff_t)n;
    }
    need->blocks += held;
    need->after += (ptrdiff_t)held;
    need->transient = b->transient *
                      (all_stay || n_kv_heads < TKV_HEADS_AT_ONCE ? n_kv_heads : TKV_HEADS_AT_ONCE);
    if (all_stay || !b->rounds)
        need->after = (ptrdiff_t)(need->blocks + need->transient);
}

/* need->has_rounds: one is held whatever this layer by itself would do. */
static int prepare_layer(struct tkv_session *s, struct tkv_layer *l, uint32_t n_new,
                         int32_t last_position, struct need *need, struct tkv_report *why)
{
    const struct bound b = layer_bound(s, l, n_new, last_position, need->has_rounds);

    for (uint32_t h = 0; h < l->config.shape.n_kv_heads; h++) {
        const int e = tkv_head_own(s, &l->heads[h], b.blocks, why);

        if (e)
            return e;
        if (l->mass && !tkv_mass_grow(s, &l->mass[h], b.candidates + l->tail.most))
            return tkv_fail(why, TRIKV_E_MEMORY_CAP,
                            "no room for the observed attention of %zu tokens", b.candidates);
    }
    count_need(s, l, &b, need);
    return 0;
}

/* Places for layers [first, first + n) with blocks of this size, which are worked on one after the
 * other; but coupled layers all fold before the first is rebuilt. */
static size_t count_places(const struct tkv_session *s, const struct need *needs, uint32_t first,
                           uint32_t n, size_t block_bytes)
{
    const bool couples = tkv_session_couples_layers(s);
    ptrdiff_t sum = 0, most = 0, folds = 0;

    for (uint32_t i = first; i < first + n; i++) {
        const ptrdiff_t blocks = (ptrdiff_t)needs[i].blocks;
        const ptrdiff_t transient = (ptrdiff_t)needs[i].transient;
        ptrdiff_t peak = sum + transient;

        if (s->layers[i].layout.bytes != block_bytes)
            continue;
        peak += couples ? 0 : blocks;
        most = peak > most ? peak : most;
        folds += couples ? blocks : 0;
        if (!couples)
            sum += needs[i].after;
        else if (tkv_session_holds_old(s)) /* the old blocks of all layers stay */
            sum += transient;
    }
    return (size_t)(folds + most);
}

/* Layers whose blocks are of one size share slabs: sum their needs, then reserve. */
static int reserve_blocks(struct tkv_session *s, const struct need *needs, uint32_t first,
                          uint32_t n, struct tkv_report *why)
{
    for (uint32_t i = first; i < first + n; i++) {
        const size_t bytes = s->layers[i].layout.bytes;
        bool done = false;
        int e;

        for (uint32_t j = first; j < i; j++)
            done |= s->layers[j].layout.bytes == bytes;
        if (done)
            continue;
        e = tkv_arena_reserve(s->arena, bytes, count_places(s, needs, first, n, bytes), why);
        if (e)
            return e;
    }
    return 0;
}

int tkv_round_take_scratch(struct tkv_session *s, struct tkv_round_memory *m, size_t bytes,
                           struct tkv_report *why)
{
    if (bytes == 0)
        return TRIKV_OK;
    m->base = tkv_budget_take(s->budget, bytes);
    m->bytes = m->base ? bytes : 0;
    return m->base
               ? TRIKV_OK
               : tkv_fail(why, TRIKV_E_MEMORY_CAP, "no room for %zu bytes of round scratch", bytes);
}

int tkv_round_prepare(struct tkv_session *s, struct tkv_layer *l, uint32_t n_new,
                      int32_t last_position, struct tkv_round_memory *m, struct tkv_report *why)
{
    const bool all = !l || tkv_round_is_common(s, l);
    const uint32_t first = all ? 0 : (uint32_t)(l - s->layers);
    const uint32_t n = all ? s->config.n_layers : 1;
    const bool common =
        tkv_session_couples_layers(s) && all && (l || tkv_round_has_work(s, &s->layers[0]));
    struct need needs[TRIKV_MAX_LAYERS] = {{0}};
    size_t bytes = 0;
    int e = 0;

    *m = (struct tkv_round_memory){0};
    if (tkv_session_plans(s))
        return tkv_ladder_prepare(s, l, n_new, last_position, m, why);
    for (uint32_t i = first; !e && i < first + n; i++) {
        needs[i].has_rounds = common;
        e = prepare_layer(s, &s->layers[i], n_new, last_position, &needs[i], why);
        bytes = needs[i].bytes > bytes ? needs[i].bytes : bytes;
        m->has_rounds |= needs[i].has_rounds;
    }
    e = e ? e : reserve_blocks(s, needs, first, n, why);
    e = e ? e : tkv_round_take_scratch(s, m, bytes, why);
    if (e)
        tkv_round_release(s, m);
    return e;
}

/* Budgets of so many times beta have places ahead. */
enum { FEW_PLACES = 16 };

/* Places that will be taken before the next rounds of layers that have held one: these gave as many
 * back, and keep them where they are few beside the budget, since new slabs for each fold would
 * cost more than they do. */
static size_t places_ahead(const struct tkv_session *s, size_t block_bytes)
{
    const uint64_t beta = s->config.beta_tokens, most = beta / TKV_BLOCK_TOKENS;
    size_t n = 0;

    for (uint32_t i = 0; i < s->config.n_layers; i++) {
        const struct tkv_layer *l = &s->layers[i];
        const uint64_t left = folds_left(s, l) + 1;

        if (tkv_layer_evicts(l) && l->n_rounds > 0 && l->layout.bytes == block_bytes &&
            l->config.budget_tokens >= FEW_PLACES * beta)
            n += l->config.shape.n_kv_heads * (size_t)(left < most ? left : most);
    }
    return n;
}

/* Give what was prepared and not used back; false if there was nothing. */
static bool give_back(struct tkv_session *s)
{
    bool any = false;

    for (uint32_t i = 0; i < s->config.n_layers; i++) {
        const struct tkv_ladder *ladder = s->layers[i].ladder;
        const size_t bytes = s->layers[i].layout.bytes;

        for (uint32_t t = 0; ladder && t < ladder->n_tiers; t++)
            any |= tkv_arena_unreserve(s->arena, ladder->tiers[t].bytes, 0);
        if (!ladder && (i == 0 || bytes != s->layers[i - 1].layout.bytes))
            any |= tkv_arena_unreserve(s->arena, bytes, places_ahead(s, bytes));
    }
    return any;
}

/* Rounds leave holes: gather what is left into fewer slabs when the holes come to a slab or more. */
void tkv_round_gather(struct tkv_session *s)
{
    if (!tkv_journal_fits(s) || tkv_arena_drain(s->arena) == 0)
        return;
    for (uint32_t i = 0; i < s->config.n_layers; i++) {
        tkv_layer_changed(s, &s->layers[i]);
        for (uint32_t h = 0; h < s->layers[i].config.shape.n_kv_heads; h++) {
            const struct tkv_head *head = &s->layers[i].heads[h];

            if (!head->blocks || tkv_is_shared(head->blocks))
                continue;
            for (uint32_t b = 0; b < head->n_blocks; b++)
                head->blocks[b].id = tkv_arena_move(s->arena, head->blocks[b].id);
        }
    }
    tkv_journal_commit(s, 0, s->config.n_layers);
    tkv_arena_sweep(s->arena);
}

void tkv_round_release(struct tkv_session *s, struct tkv_round_memory *m)
{
    tkv_budget_free(s->budget, m->base, m->bytes);
    if (give_back(s)) {
        tkv_arena_sweep(s->arena);
        if (m->has_rounds)
            tkv_round_gather(s);
    }
    *m = (struct tkv_round_memory){0};
}
