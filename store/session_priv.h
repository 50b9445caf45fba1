/* How a session looks inside. Only store/ and its tests include this. */
#ifndef TKV_STORE_SESSION_PRIV_H
#define TKV_STORE_SESSION_PRIV_H

#include <stdatomic.h>

#include "core/cache.h"
#include "core/ruler.h"
#include "store/arena.h"
#include "store/session.h"

/* The memory of a layer's half tiers in the arena, which forks may share: tokens that are written do
 * not change there, and whoever is first may go on writing behind those of the tail. */
struct tkv_half_buffer {
    struct tkv_block_id id;
    atomic_uint n_written; /* in the tail's part */
};

/* A run of half tokens: K [n_kv_heads][cap][head_dim_k], V likewise. The pointers are
 * those of the first token held; `first` more before it are what a checkpoint may need again. */
struct tkv_half_tier {
    uint16_t *k;
    uint16_t *v;
    int32_t *positions; /* [cap] */
    float *scores;      /* [n_q_heads][cap] norm terms; NULL if the method needs none */
    size_t bytes;
    uint32_t first, n;
    uint32_t most; /* tokens held, at most */
    uint32_t cap;  /* places: a head's part is so far from the next one's */
    bool has_scores;
};

/* How far back a layer can be cut without undoing a round: tokens seen, and the last one's position. */
struct tkv_floor {
    uint64_t n_seen;
    int32_t position;
};

/* A layer as it was before its last round; kept for config.rollback_tokens tokens. */
struct tkv_checkpoint {
    bool is_live;
    uint64_t n_seen;
    struct tkv_floor floor;
    uint32_t first, n; /* of the tail */
    uint32_t n_rounds;
    int32_t first_query;
    struct tkv_head *heads; /* [n_kv_heads]; where nothing is dropped blocks is NULL: the table has
                             * only grown */
    struct tkv_head *next;  /* [n_kv_heads] tables prepared for the next round's checkpoint */
};

/* What a KV head gets by the latest plan: indices of its ladder's tiers. */
struct tkv_rung {
    uint16_t tier;      /* of a full block */
    uint16_t open_tier; /* of the last one while it fills */
    uint32_t reach_tokens;
};

/* Method default, of a layer; the same for all its forks until one of them plans again. Tiers keep their
 * indices: what another plan needs comes after them. */
struct tkv_ladder {
    struct tkv_block_layout tiers[TKV_PLAN_TIERS];
    uint32_t plan_tiers[TKV_PLAN_TIERS]; /* what they are to core/plan.h */
    uint32_t n_tiers;
    struct tkv_rung rungs[]; /* [n_kv_heads] */
};

/* Attention seen by the cold tokens of a KV head and by those of the tail, in this order. */
struct tkv_mass {
    float *x; /* [cap] */
    size_t cap;
};

/* The queries that a layer's gate remembers: a ring, oldest at `first`, positions ascending from there. */
struct tkv_probes {
    uint32_t first, n;
    uint16_t *q;        /* [gate.n_probes][n_q_heads][head_dim_k] halves */
    int32_t *positions; /* [gate.n_probes] */
};

/* Block tables (struct tkv_head) may be shared with forks: who changes one makes it its own first
 * (tkv_head_own). */
struct tkv_layer {
    struct tkv_layer_config config;
    float *sinks;        /* own copy of config.sinks */
    float *norm_weights; /* [n_q_heads][n_bands], or NULL */
    struct tkv_ruler
        *rulers; /* [n_q_heads] of the norm terms in blocks, if there are any; or NULL */
    struct tkv_block_layout layout;
    struct tkv_ladder *ladder;      /* NULL: all blocks have `layout` */
    bool moves;                     /* blocks may have more than the ladder's rungs say */
    struct tkv_half_buffer *halves; /* of both tiers */
    struct tkv_half_tier pinned;
    struct tkv_half_tier tail;
    struct tkv_head *heads;    /* [n_kv_heads] */
    struct tkv_mass *mass;     /* [n_kv_heads]; NULL if attention is not observed */
    uint32_t *budgets;         /* [n_kv_heads]; NULL: config.budget_tokens for all */
    struct tkv_probes *probes; /* NULL without a gate */
    struct tkv_gate_stats gate;
    uint64_t n_seen;
    uint32_t n_rounds;
    int32_t last_position; /* -1 before the first token */
    int32_t first_query;   /* queries before this position would miss keys that left the window */
    bool slides;           /* the window alone says what stays: window.c */
    struct tkv_floor floor;
    struct tkv_checkpoint checkpoint;
    uint64_t generation; /* the session's when the tables changed last */
    bool halves_fresh;   /* the journal does not refer to this half buffer yet */
};

struct tkv_journal;

/*
 * Memory for everything that a fork has of its own, in one piece: what is allocated comes from it as long
 * as there is some, and goes back with the session. Zeroed.
 */
struct tkv_room {
    uint8_t *base; /* or NULL */
    size_t bytes, used_bytes;
};

struct tkv_session {
    struct tkv_budget *budget;
    const struct tkv_kernels *kn;
    struct tkv_session_config config; /* layers and rope point to own copies */
    struct tkv_rope rope;
    struct tkv_tri_fold *fold; /* NULL without method triattention */
    struct tkv_layer *layers;
    struct tkv_coder *coders; /* one per distinct (codec, dim), each behind the one before */
    uint32_t n_coders;
    struct tkv_arena *arena;
    struct tkv_block_id pin; /* buffer of pin_value, if that is not 0 */
    uint64_t pin_value;
    size_t own_bytes;        /* private memory that it refers to: tables, coders */
    struct tkv_room room;    /* of a fork */
    uint32_t horizon_tokens; /* method default: what the plan is for, config.max_tokens at first */
    uint64_t n_changes;      /* that leave all tables as they are */
    uint64_t generation;
    uint64_t n_evicted;              /* (token, layer, KV head) triples */
    struct tkv_journal *journal;     /* NULL: it ends with this process */
    struct tkv_session *next_failed; /* while an arena is adopted */
};

/* What a session is built on. */
struct tkv_base {
    struct tkv_budget *budget;
    const struct tkv_kernels *kn;
    const struct tkv_arena *arena; /* it becomes another user of this one; NULL: its own */
};

/* A session but for its ladders, if the method has some: they are next, then nothing may look at
 * config.layers any more. The config was checked and is final: nothing in it is chosen here. */
int tkv_session_build(struct tkv_session **session, const struct tkv_session_config *config,
                      const struct tkv_base *base, struct tkv_report *why);

/* The tables of a layer are others than before. */
static inline void tkv_layer_changed(struct tkv_session *s, struct tkv_layer *l)
{
    l->generation = ++s->generation;
}

/* Where a table of coders goes on behind one that was made. */
static inline struct tkv_coder *tkv_coder_after(struct tkv_coder *c)
{
    return (struct tkv_coder *)(void *)((uint8_t *)c + tkv_coder_bytes(c->codec, c->dim));
}

/* Does attention alone change a layer? */
static inline bool tkv_layer_watches(const struct tkv_layer *l)
{
    return l->mass || l->probes;
}

/* Another's state is referred to beside the session's own while a request changes it. */
static inline bool tkv_session_holds_old(const struct tkv_session *s)
{
    return s->config.rollback_tokens > 0 || s->journal;
}

/* The coder of (codec, dim), with the means that its codec has or without, made at its first use; room
 * for it was made before. */
const struct tkv_coder *tkv_session_coder(struct tkv_session *s, const struct tkv_codec *codec,
                                          uint32_t dim, bool means);

/* Zeroed memory that counts as the session's own; NULL over the cap. */
void *tkv_session_alloc(struct tkv_session *s, size_t bytes);
void tkv_session_free(struct tkv_session *s, void *p, size_t bytes);

/* store/map.c: others must not look at what this session refers to any more. */
void tkv_session_unpin(struct tkv_session *s);

/*
 * store/share.c: memory that a session and its forks may refer to together. It counts in own_bytes of
 * each of them, and once in the budget. Unref accepts NULL.
 */
void *tkv_shared_alloc(struct tkv_session *s, size_t bytes);
void *tkv_shared_ref(struct tkv_session *s, void *p);
void tkv_shared_unref(struct tkv_session *s, void *p);
/* True: it was the last reference, and the caller frees what it leads to, then itself. */
bool tkv_shared_drop(struct tkv_session *s, void *p);
void tkv_shared_free(struct tkv_session *s, void *p);
bool tkv_is_shared(const void *p); /* by others than the caller's session */
size_t tkv_shared_bytes(const void *p);

/* A table that is this session's alone, with room for n blocks and those it had. */
int tkv_head_own(struct tkv_session *s, struct tkv_head *h, size_t n, struct tkv_report *why);
void tkv_head_share(struct tkv_session *s, struct tkv_head *to, const struct tkv_head *from);
void tkv_head_release(struct tkv_session *s, struct tkv_head *h);
/* Forget the first n blocks of an own table, which hold n_tokens. */
void tkv_head_drop_front(struct tkv_session *s, struct tkv_head *h, uint32_t n, uint32_t n_tokens);
/* Blocks that the table of h refers to, some of which only others may see. */
uint32_t tkv_head_n_listed(const struct tkv_head *h);
/* The table gets other users: it refers to what h sees, whatever each of them sees. */
void tkv_head_freeze(struct tkv_head *h);
/* Forget all blocks but the first n. */
void tkv_head_cut(struct tkv_session *s, struct tkv_head *h, uint32_t n);

/* store/checkpoint.c: the state before a round, to be had back within rollback_tokens tokens. Take and
 * restore cannot fail. Prepare comes after that of the round; create, share and destroy are for the
 * layer's life. */
bool tkv_layer_drops(const struct tkv_layer *l); /* do blocks of it ever go? */
int tkv_checkpoint_prepare(struct tkv_session *s, struct tkv_layer *l, struct tkv_report *why);
void tkv_checkpoint_take(struct tkv_session *s, struct tkv_layer *l);
void tkv_checkpoint_drop(struct tkv_session *s, struct tkv_layer *l);
void tkv_checkpoint_restore(struct tkv_session *s, struct tkv_layer *l);
bool tkv_checkpoint_create(struct tkv_session *s, struct tkv_layer *l);
void tkv_checkpoint_share(struct tkv_session *s, struct tkv_layer *to,
                          const struct tkv_layer *from);
void tkv_checkpoint_destroy(struct tkv_session *s, struct tkv_layer *l);

/* Newest tokens that stay halves: no more than a window sees. */
static inline uint32_t tkv_layer_recent(const struct tkv_session *s, const struct tkv_layer *l)
{
    const uint32_t window = l->config.attn.window_tokens;

    return l->slides && window < s->config.recent_tokens ? window : s->config.recent_tokens;
}

static inline uint32_t tkv_layer_warm(const struct tkv_session *s, const struct tkv_layer *l)
{
    const uint32_t recent = tkv_layer_recent(s, l);

    return l->tail.n > recent ? l->tail.n - recent : 0;
}

/* Does a layer hold rounds? Once a session is made every layer says its method. */
static inline bool tkv_layer_evicts(const struct tkv_layer *l)
{
    return l->config.method != TKV_METHOD_NONE && !l->slides;
}

static inline bool tkv_session_plans(const struct tkv_session *s)
{
    return s->config.method == TKV_METHOD_DEFAULT;
}

/* Do blocks have the means that their codecs know? Not where tokens are dropped one by one (fold.c). */
static inline bool tkv_layer_has_means(const struct tkv_layer *l)
{
    return !tkv_layer_evicts(l) || l->config.method == TKV_METHOD_DEFAULT;
}

/* True if all layers must hold their rounds together. */
static inline bool tkv_config_couples_layers(const struct tkv_session_config *c)
{
    return c->method == TKV_METHOD_TRIATTENTION && c->eviction_mode != TKV_PER_LAYER_PERHEAD;
}

static inline bool tkv_session_couples_layers(const struct tkv_session *s)
{
    return tkv_config_couples_layers(&s->config);
}

/* Are fewer tokens than a block folded at a time? Then each fold has a round, so that blocks are filled
 * whatever a fold brings. */
static inline bool tkv_layer_folds_few(const struct tkv_session *s, const struct tkv_layer *l)
{
    return tkv_layer_evicts(l) && s->config.beta_tokens < TKV_BLOCK_TOKENS;
}

/* Warm tokens that a tail gathers before they are folded. */
static inline uint32_t tkv_layer_fold_tokens(const struct tkv_session *s, const struct tkv_layer *l)
{
    return tkv_session_plans(s) || tkv_layer_folds_few(s, l) ? s->config.beta_tokens
                                                             : TKV_BLOCK_TOKENS;
}

/* Tokens between rounds: whole folds, of a block unless so few tokens are wanted. Truncate undoes one
 * fold at most. */
static inline uint32_t tkv_config_beta(const struct tkv_session_config *c)
{
    if (c->beta_tokens >= TKV_BLOCK_TOKENS || tkv_config_couples_layers(c))
        return (uint32_t)tkv_align(c->beta_tokens, TKV_BLOCK_TOKENS);
    return c->beta_tokens > c->rollback_tokens ? c->beta_tokens : c->rollback_tokens + 1;
}

/* How a block of a layer is laid out. */
static inline const struct tkv_block_layout *tkv_layer_layout(const struct tkv_layer *l,
                                                              const struct tkv_block *block)
{
    return l->ladder ? &l->ladder->tiers[block->tier] : &l->layout;
}

/* How many tokens more the others have seen, if layers are coupled. What they went past without a round
 * l goes past, too: the budget may have become less in between. */
static inline uint64_t tkv_session_ahead(const struct tkv_session *s, const struct tkv_layer *l)
{
    uint64_t most = l->n_seen;

    for (uint32_t i = 0; tkv_session_couples_layers(s) && i < s->config.n_layers; i++)
        most = s->layers[i].n_seen > most ? s->layers[i].n_seen : most;
    return most - l->n_seen;
}

/* The method of a layer of a configuration, and whether one has it. */
static inline enum tkv_method tkv_config_method(const struct tkv_session_config *c,
                                                const struct tkv_layer_config *l)
{
    return l->has_method ? l->method : c->method;
}

static inline bool tkv_config_uses(const struct tkv_session_config *c, enum tkv_method method)
{
    for (uint32_t i = 0; i < c->n_layers; i++)
        if (tkv_config_method(c, &c->layers[i]) == method)
            return true;
    return false;
}

/* Layers that hold their rounds together keep the same numbers once they have seen the same. */
static inline bool tkv_layers_agree(const struct tkv_layer *a, const struct tkv_layer *b)
{
    return a->n_seen != b->n_seen || (a->heads[0].n_cold == b->heads[0].n_cold &&
                                      a->tail.n == b->tail.n && a->pinned.n == b->pinned.n);
}

/* store/check.c: 0, or what is wrong with a config, field and layer named. */
int tkv_session_check(const struct tkv_session_config *c, struct tkv_report *why);
int tkv_check_budget(const struct tkv_session_config *c, uint32_t layer, uint32_t tokens,
                     struct tkv_report *why);

/* store/window.c: does this layer of a (checked) configuration keep its window and nothing else? */
bool tkv_layer_config_slides(const struct tkv_session_config *c, const struct tkv_layer_config *l);
/* After a fold: drop what has left the window. */
void tkv_layer_slide(struct tkv_session *s, struct tkv_layer *l);
/* The most new blocks of a KV head that are there at a time, however many tokens come. */
size_t tkv_window_blocks(const struct tkv_layer *l);
/* Scores of cold tokens that no query sees any more become the lowest. */
void tkv_window_hide(const struct tkv_session *s, const struct tkv_layer *l, uint32_t kv_head,
                     float *scores);
/* Is all there that a query at this position sees? */
int tkv_window_check(const struct tkv_layer *l, uint32_t layer, int32_t position,
                     struct tkv_report *why);

/* store/tail.c: set the half tiers up; their memory comes with the first own. */
void tkv_halves_init(const struct tkv_session *s, struct tkv_layer *l);
/* Make sure that n tokens can be written behind those that the tiers hold. */
int tkv_halves_own(struct tkv_session *s, struct tkv_layer *l, uint32_t n, struct tkv_report *why);
void tkv_halves_share(struct tkv_session *s, struct tkv_layer *to, const struct tkv_layer *from);
void tkv_halves_release(struct tkv_session *s, struct tkv_layer *l);
size_t tkv_halves_bytes(const struct tkv_layer *l);
/* The tiers hold these of the tokens in l->halves, which others may have, too. */
void tkv_halves_place(const struct tkv_session *s, struct tkv_layer *l, uint32_t n_pinned,
                      uint32_t first, uint32_t n);
/* The tokens that the tiers hold, and those that a checkpoint may want, in other memory laid out like
 * l->halves. */
void tkv_halves_copy(const struct tkv_layer *l, void *to);
int tkv_halves_new(struct tkv_session *s, const struct tkv_layer *l, struct tkv_half_buffer **out,
                   struct tkv_report *why);
/* Back to an earlier state of the same buffer. */
void tkv_tier_rewind(struct tkv_half_tier *t, const struct tkv_shape *shape, uint32_t first,
                     uint32_t n);

/* n tokens of halves [n][n_kv_heads][dim] and their positions enter the pinned tier or
 * the tail, which have room. x holds the same tokens in the request's own type. */
struct tkv_half_tokens {
    const uint16_t *k;
    const uint16_t *v;
    const void *exact_k; /* for the norm terms */
    enum tkv_dtype dtype;
    const int32_t *positions;
    uint32_t n;
};
void tkv_layer_push(struct tkv_session *s, struct tkv_layer *l, const struct tkv_half_tokens *t,
                    const struct tkv_exec *exec);

/* The first warm tokens leave the tail; they stay readable in front of it for a while. */
void tkv_tail_drop(struct tkv_half_tier *t, const struct tkv_shape *shape, uint32_t n);

/* A layer as attention sees it. */
struct tkv_cache tkv_layer_cache(const struct tkv_session *s, const struct tkv_layer *l);

/*
 * store/fold.c: the warm tokens of a layer become blocks at the ends of its heads' tables. Room in
 * them and in the arena was prepared.
 */
void tkv_layer_fold(struct tkv_session *s, struct tkv_layer *l, const struct tkv_exec *exec);

/*
 * store/round_prepare.c. Folds and rounds are prepared before a request changes anything: arena blocks,
 * tables and working memory for those that n_new more tokens (the last at last_position) can
 * cause in layer l, or in all layers if l is NULL or layers are coupled. Then running them cannot
 * fail. Release gives the working memory and unused blocks back.
 */
struct tkv_round_memory {
    void *base;
    size_t bytes;
    bool has_rounds; /* not folds only */
};
int tkv_round_prepare(struct tkv_session *s, struct tkv_layer *l, uint32_t n_new,
                      int32_t last_position, struct tkv_round_memory *m, struct tkv_report *why);
int tkv_round_take_scratch(struct tkv_session *s, struct tkv_round_memory *m, size_t bytes,
                           struct tkv_report *why);
void tkv_round_release(struct tkv_session *s, struct tkv_round_memory *m);

/* Slabs that hold few blocks are emptied into others and given back. */
void tkv_round_gather(struct tkv_session *s);

/* store/round.c: a fold of l, whose tail is full, and the round that is due with it, if one is; l NULL:
 * of all layers, and a round whether it is due or not. */
void tkv_round_run(struct tkv_session *s, struct tkv_layer *l, const struct tkv_round_memory *m,
                   const struct tkv_exec *exec);

/* Tokens that can come to l before the fold at which a round is due; UINT64_MAX if none ever is. */
uint64_t tkv_round_distance(const struct tkv_session *s, const struct tkv_layer *l);
bool tkv_round_is_near(const struct tkv_session *s,
                       const struct tkv_layer *l); /* at the next fold */
bool tkv_round_is_due(const struct tkv_session *s, const struct tkv_layer *l); /* now */

/* Is a round due now that all layers hold together? */
static inline bool tkv_round_is_common(const struct tkv_session *s, const struct tkv_layer *l)
{
    return tkv_session_couples_layers(s) && tkv_round_is_due(s, l);
}

/* Would a round now, whether due or not, change anything? */
bool tkv_round_has_work(const struct tkv_session *s, const struct tkv_layer *l);

/*
 * store/allocate.c: tokens that the KV heads of a layer may keep. Create makes room for budgets, or a
 * copy; share sets those of all layers (false: over the cap). Then for a round: what its heads keep
 * of their cold tokens, the most that one of them can, and, if only scores can tell, how many each.
 */
bool tkv_budgets_create(struct tkv_session *s, struct tkv_layer *l, const uint32_t *from);
void tkv_budgets_destroy(struct tkv_session *s, struct tkv_layer *l);
bool tkv_budgets_share(struct tkv_session *s);
uint32_t tkv_budget_mean(const struct tkv_layer *l); /* of the heads, pinned and tail included */
size_t tkv_budget_keeps(const struct tkv_session *s, const struct tkv_layer *l, uint32_t kv_head);
size_t tkv_budget_most(const struct tkv_session *s, const struct tkv_layer *l);
void tkv_budget_adapt(const struct tkv_session *s, const struct tkv_layer *l,
                      const float *const *scores, uint32_t *n_keep);

/* What the heads of a layer have in common when they are scored: made once, in memory of
 * tkv_score_common_bytes(). */
size_t tkv_score_common_bytes(const struct tkv_session *s);
void tkv_score_common(const struct tkv_session *s, const struct tkv_layer *l, void *common);

/* store/ladder_plan.c: sizes of the half tiers from the budget; then the ladders of all layers. */
void tkv_ladder_size_tiers(struct tkv_session_config *own, const struct tkv_layer_config *layers);
int tkv_ladder_create(struct tkv_session *s, const struct tkv_session_config *c,
                      struct tkv_report *why);
/* Ladders as they were planned before, for horizon_tokens: the tiers, and the rungs of all KV heads. */
struct tkv_tier_list {
    uint32_t plan_tiers[TKV_PLAN_TIERS];
    uint32_t n;
};
int tkv_ladder_restore(struct tkv_session *s, const struct tkv_session_config *c,
                       uint32_t horizon_tokens, const struct tkv_tier_list *tiers,
                       const struct tkv_rung *rungs, struct tkv_report *why);
/* Plan again, for n_tokens and some more: no head gets more than it has. Layers move down the ladder
 * before their next rounds. On error nothing has changed. */
int tkv_ladder_plan_again(struct tkv_session *s, uint64_t n_tokens, struct tkv_report *why);

/* store/ladder_move.c: all blocks of a layer in the tiers of its rungs, none behind their reaches. On error
 * heads may have come only part of the way; the next call goes on. */
int tkv_ladder_move(struct tkv_session *s, struct tkv_layer *l, struct tkv_report *why);

/* store/ladder.c: what prepare and run are for method default. */
int tkv_ladder_prepare(struct tkv_session *s, struct tkv_layer *l, uint32_t n_new,
                       int32_t last_position, struct tkv_round_memory *m, struct tkv_report *why);
void tkv_ladder_run(struct tkv_session *s, struct tkv_layer *l, const struct tkv_round_memory *m,
                    const struct tkv_exec *exec);

/* store/score.c: the scores of all cold tokens of one KV head, out[n_cold]; scratch of
 * tkv_score_bytes(n_candidates). */
size_t tkv_score_bytes(const struct tkv_session *s, const struct tkv_layer *l, size_t n_candidates);
void tkv_score_head(const struct tkv_session *s, const struct tkv_layer *l, uint32_t kv_head,
                    const void *common, float *out, void *scratch);

/* store/policy.c: the same three by the layer's method. */
size_t tkv_policy_common_bytes(const struct tkv_session *s, const struct tkv_layer *l);
void tkv_policy_common(const struct tkv_session *s, const struct tkv_layer *l, void *common);
size_t tkv_policy_bytes(const struct tkv_session *s, const struct tkv_layer *l,
                        size_t n_candidates);
void tkv_policy_score(const struct tkv_session *s, const struct tkv_layer *l, uint32_t kv_head,
                      const void *common, float *out, void *scratch);

/*
 * store/rebuild.c: make the blocks of a head of l those of the kept tokens (indices as
 * in tkv_score_head, ascending). Blocks that stay whole
 * are shared with the old table, which was prepared. Heads may be rebuilt by
 * several threads at once. Memory of tkv_rebuild_bytes(), for tables of at most cap_blocks.
 */
struct tkv_keep {
    const uint32_t *index; /* NULL: all */
    uint32_t n;
};
/* Arena places that a rebuild may use, at most cap_blocks; then those that it has no use for any more,
 * with the references that the table had. Heads that are rebuilt at once have theirs taken before and
 * given back after in the order of heads, so that where blocks lie does not depend on threads. */
struct tkv_places {
    struct tkv_block_id *ids; /* memory of tkv_places_bytes() */
    uint32_t n;
};
size_t tkv_places_bytes(size_t cap_blocks);
size_t tkv_rebuild_bytes(size_t cap_blocks);
void tkv_head_rebuild(const struct tkv_session *s, const struct tkv_block_layout *layout,
                      struct tkv_head *head, const struct tkv_keep *keep, struct tkv_places *places,
                      void *memory);

/*
 * store/observe.c, of methods that observe attention; of others it does nothing. A layer's mass
 * starts empty, or as a copy of another's; grow makes room for n tokens; push is told before n tokens
 * enter the tail, keep before a rebuild; a fold changes nothing. False means over the cap.
 */
bool tkv_layer_observes(const struct tkv_layer *l);
bool tkv_mass_create(struct tkv_session *s, struct tkv_layer *l, const struct tkv_mass *from);
void tkv_mass_destroy(struct tkv_session *s, struct tkv_layer *l);
bool tkv_mass_grow(struct tkv_session *s, struct tkv_mass *m, size_t n);
void tkv_mass_push(struct tkv_layer *l, uint32_t n);
void tkv_mass_keep(struct tkv_layer *l, uint32_t kv_head, const struct tkv_keep *keep);

/* Queries after their attention, with their lse; memory of tkv_observe_bytes(). */
size_t tkv_observe_bytes(const struct tkv_layer *l);
void tkv_observe(const struct tkv_session *s, const struct tkv_layer *l,
                 const struct tkv_queries *q, void *memory, const struct tkv_exec *exec);

/*
 * store/gate.c, which does nothing in sessions without a gate. A layer's probes start empty, or as a copy
 * of another's; record is told of queries after their attention. In a round begin comes first, then
 * for each head that was selected, several of them at once, tkv_gate_head, which may add to
 * keep, whose index[n_cold] this is; at last end. Memory of tkv_gate_common_bytes(), n_more tokens being
 * there more by then, and for each head of tkv_gate_bytes(); so far only n_cold tokens are in its table.
 */
bool tkv_probes_create(struct tkv_session *s, struct tkv_layer *l, const struct tkv_probes *from);
void tkv_probes_destroy(struct tkv_session *s, struct tkv_layer *l);
void tkv_probes_record(const struct tkv_session *s, const struct tkv_layer *l,
                       const struct tkv_queries *q);
size_t tkv_gate_common_bytes(const struct tkv_session *s, const struct tkv_layer *l, size_t n_more);
void tkv_gate_begin(const struct tkv_session *s, const struct tkv_layer *l, void *memory,
                    const struct tkv_exec *exec);
size_t tkv_gate_bytes(const struct tkv_session *s, const struct tkv_layer *l, size_t n_candidates);
void tkv_gate_head(const struct tkv_session *s, const struct tkv_layer *l, uint32_t kv_head,
                   void *common, struct tkv_keep *keep, uint32_t *index, void *memory);
void tkv_gate_end(const struct tkv_session *s, struct tkv_layer *l, void *common);

#endif /* TKV_STORE_SESSION_PRIV_H */
