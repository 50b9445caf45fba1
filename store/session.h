/*
 * A session: the KV cache of one sequence, in tiers.
 *
 *   pinned  the first `pinned` tokens of a layer, halves, kept for good
 *   tail    the newest tokens, halves, up to `recent` + 64 of them: the hot `recent` ones and
 *           before them the warm ones
 *   cold    everything else that is kept: immutable blocks of up to 64 tokens per KV head
 *
 * When a layer's tail is full and another token comes, it is folded first: its warm tokens are
 * encoded into blocks. If the next fold would bring the layer above budget + beta, a round follows:
 * the cold tokens are scored and selected by the policy, survivors go to new blocks, and the
 * old blocks are released. So the attention of a step always
 * sees every token of that step, and the result does not depend on how a caller cuts its
 * tokens into requests.
 *
 * With method default a round encodes the warm tokens of each KV head in the bits that the plan
 * gives it, and drops what its reach leaves behind (ladder.c, ladder_plan.c).
 *
 * A session belongs to one thread at a time; different sessions are independent. Calls that
 * take an executor may spread their work over its threads.
 */
#ifndef TKV_STORE_SESSION_H
#define TKV_STORE_SESSION_H

#include "core/allocate.h"
#include "core/attention.h"
#include "core/codec.h"
#include "core/gate.h"
#include "core/plan.h"
#include "core/rope.h"
#include "core/select.h"
#include "core/triattention.h"
#include "core/types.h"
#include "proto/report.h"

struct tkv_budget;
struct tkv_kernels;
struct tkv_session;

/* How the tokens that stay are chosen, and in how many bits; the scores are in core/triattention.h and core/policy.h. */
enum tkv_method {
    TKV_METHOD_NONE = 0, /* all stay */
    TKV_METHOD_TRIATTENTION = 1,
    TKV_METHOD_STREAMING = 2, /* pinned tokens and a window */
    TKV_METHOD_H2O = 3,       /* the most attention so far */
    TKV_METHOD_SNAPKV = 4,    /* the most attention of the last queries before a round */
    TKV_METHOD_KEYDIFF = 5,   /* the keys least like the mean key */
    TKV_METHOD_DEFAULT = 6,   /* bits and reach for each KV head: core/plan.h */
};

/* "none", "triattention", ...: the names of configuration and wire, NULL-ended. */
extern const char *const tkv_method_names[];
extern const char *const tkv_eviction_mode_names[];
extern const char *const tkv_aggregation_names[];
extern const char *const tkv_allocator_names[];

/* The index of name in one of these lists, or -1. */
int tkv_name_index(const char *const *names, const char *name);

struct tkv_layer_config {
    struct tkv_shape shape;
    struct tkv_attn_params attn; /* scale is set, never 0 */
    const float *sinks;          /* [n_q_heads] or NULL; copied */
    const struct tkv_codec *codec_k;
    const struct tkv_codec *codec_v;
    bool has_method;        /* of its own; method default is of a whole session */
    enum tkv_method method; /* if it has */
    uint32_t budget_tokens; /* kept per KV head after a round, pinned and tail included */
    const float *stats;     /* [n_q_heads][3][n_bands]: mean_re, mean_im, mean_abs; a view that
                             * outlives the session; NULL if the method needs none */
    const float *errors; /* [n_kv_heads][TKV_PLAN_ERRORS]: a view that outlives the session; NULL if
                             * the method needs none */
};

/* The coherence gate (store/gate.c). */
struct tkv_gate_config {
    struct tkv_gate_measure limits;
    uint32_t surplus_tokens; /* that a KV head may keep beyond its budget */
    uint32_t n_probes;       /* queries that a layer remembers; 0: no gate */
};

enum { TKV_MAX_PROBES = 256 };

struct tkv_session_config {
    uint32_t n_layers;
    const struct tkv_layer_config *layers; /* copied */
    enum tkv_method method;
    uint32_t beta_tokens;   /* >= 1; from 64 on rounded up to a multiple of it */
    uint32_t recent_tokens; /* method default: at most; it also chooses beta itself */
    uint32_t pinned_tokens;
    uint32_t rollback_tokens; /* < 64: so far behind a fold or round truncate undoes it */
    enum tkv_eviction_mode eviction_mode;
    enum tkv_allocator allocator; /* who shares the budgets' tokens, and how */
    bool normalize_scores;
    uint64_t budget_bytes; /* method default: what all of the session may occupy, ... */
    uint32_t max_tokens;   /* ... planned for so many tokens at first; with more it plans again */
    struct tkv_gate_config gate;
    struct tkv_tri_params tri;
    const struct tkv_rope *rope; /* copied; NULL if the method needs none */
    bool is_kept;   /* in an arena that a successor of this process can take over, ... */
    uint32_t owner; /* ... and of this user */
};

/*
 * Working memory that a caller with many steps keeps from one to the next (it is taken and given back at
 * each of them otherwise). A step that needs more takes its own, and says here how much it was.
 */
struct tkv_scratch {
    void *memory; /* 64-byte aligned, or NULL */
    size_t bytes;
    size_t used_bytes; /* by the step that runs */
    size_t most_bytes; /* that a step has needed since it was grown last */
};

/* After a step: as much as it needed, if that is more than there is and at most limit_bytes. */
void tkv_scratch_grow(struct tkv_scratch *c, struct tkv_budget *b, size_t limit_bytes);
void tkv_scratch_free(struct tkv_scratch *c, struct tkv_budget *b);

/* Tokens of one layer; see trikv_step in client/trikv.h for the shapes. Pointers are views. */
struct tkv_step {
    uint32_t layer;
    uint32_t n_tokens;
    enum tkv_dtype dtype;
    const int32_t *positions; /* or NULL: continue; attend: the last n_tokens appended */
    const void *k;
    const void *v;
    const void *q;
    float *out;
    float *lse;                  /* or NULL */
    struct tkv_scratch *scratch; /* or NULL */
};

/* What a layer's gate decided, for each KV head in each round that dropped tokens. */
struct tkv_gate_stats {
    uint64_t n_passed;    /* within the limits */
    uint64_t n_kept_more; /* within them with some of the surplus */
    uint64_t n_exceeded;  /* over them with all of it */
    uint64_t n_surplus_tokens;
    /* Of the last round: */
    uint64_t n_dropped; /* tokens, sum over KV heads */
    uint32_t n_probes;
    struct tkv_gate_measure measure; /* the worst head's, before more was kept */
};

struct tkv_layer_stats {
    uint64_t n_seen;
    uint64_t n_kept; /* sum over KV heads */
    uint64_t pinned_bytes;
    uint64_t tail_bytes;
    uint64_t cold_bytes_k;
    uint64_t cold_bytes_v;
    uint64_t cold_bytes_meta;
    uint64_t n_cold_tokens; /* sum over KV heads */
    uint32_t n_blocks;
    const char *codec_k;
    const char *codec_v;
    struct tkv_gate_stats gate; /* of the rounds so far; zero without a gate */
};

struct tkv_session_stats {
    uint64_t n_seen; /* the largest over layers */
    double n_kept;   /* mean over layers and KV heads */
    uint64_t resident_bytes;
    uint64_t fp16_bytes;
    double bits_k;
    double bits_v;
    uint32_t n_layers;
    uint32_t n_rounds;
    uint64_t n_evicted;
    uint64_t arena_bytes;
    uint64_t slack_bytes;
};

/*
 * Create a session. The config is checked whole: every number from a peer may be wrong, and
 * the report names the field and the layer. *session is NULL on failure.
 */
int tkv_session_create(struct tkv_session **session, const struct tkv_session_config *config,
                       struct tkv_budget *budget, const struct tkv_kernels *kn,
                       struct tkv_report *why);
void tkv_session_destroy(struct tkv_session **session);

/* Bytes that k, v, q (of the request's dtype), out and lse of n_tokens of a layer take; error if
 * the layer does not exist or n_tokens is 0 or over the limit. NULL outputs are not wanted. */
struct tkv_step_bytes {
    size_t k, v, q, out, lse;
};
int tkv_session_step_bytes(const struct tkv_session *s, uint32_t layer, uint32_t n_tokens,
                           enum tkv_dtype dtype, struct tkv_step_bytes *bytes,
                           struct tkv_report *why);

/* Whether a step (of a layer that exists) takes so little, some microseconds and no fold, that handing
 * it to another thread would cost as much. */
bool tkv_session_is_brief(const struct tkv_session *s, const struct tkv_step *step);

/*
 * Add tokens; attend; or both. Values are checked before anything changes, memory is
 * reserved before anything changes: an error leaves the session as it was.
 */
int tkv_session_append(struct tkv_session *s, const struct tkv_step *step,
                       const struct tkv_exec *exec, struct tkv_report *why);
int tkv_session_attend(struct tkv_session *s, const struct tkv_step *step,
                       const struct tkv_exec *exec, struct tkv_report *why);
int tkv_session_append_attend(struct tkv_session *s, const struct tkv_step *step,
                              const struct tkv_exec *exec, struct tkv_report *why);

/*
 * Tokens that a layer keeps, decoded: positions [n_tokens], k [n_tokens][n_heads][head_dim_k], v
 * likewise. Of one KV head, or of all of them (n_heads), which only a session that evicts nothing
 * can say: otherwise heads may keep different tokens.
 */
struct tkv_read {
    uint32_t layer;
    uint32_t kv_head, n_heads;
    uint64_t first; /* of those kept, in order of position */
    uint32_t n_tokens;
    enum tkv_dtype dtype; /* TKV_F32 or TKV_F16 */
    int32_t *positions;
    void *k;
    void *v;
};

/* Check what is asked for and learn the sizes; read, once the pointers are set, cannot fail. */
struct tkv_read_bytes {
    size_t positions, k, v;
};
int tkv_session_read_check(const struct tkv_session *s, const struct tkv_read *r,
                           struct tkv_read_bytes *bytes, struct tkv_report *why);
void tkv_session_read(const struct tkv_session *s, const struct tkv_read *r);
uint64_t tkv_session_head_kept(const struct tkv_session *s, uint32_t layer, uint32_t kv_head);
/* True if these are the halves that were appended, to the bit. */
bool tkv_session_read_is_exact(const struct tkv_session *s, const struct tkv_read *r);

/*
 * Forget the newest n_tokens, counted from the layer that has seen most, in every layer that has seen
 * them. What follows is as if they had never been appended, to the bit; a round that they caused is
 * undone. If that is too long ago (config.rollback_tokens) nothing changes and the report says how
 * far truncate reaches.
 */
int tkv_session_truncate(struct tkv_session *s, uint64_t n_tokens, struct tkv_report *why);

/*
 * Another session in the state of this one, which goes its own way from then on. Blocks, tables and
 * half tiers are shared until one of them writes: the child costs a few KiB. Sessions that
 * share may work on different threads and be destroyed in any order.
 */
int tkv_session_fork(struct tkv_session **child, struct tkv_session *parent,
                     struct tkv_report *why);

/*
 * From now on a successor of this process can have the session as it was after the last request that
 * returned: its arena is kept (config.is_kept), and the arena's descriptor outlives this process. What
 * is noted, at least one byte, the successor is told. A fork is not kept until this is said of it, at
 * little cost with the parent that it was made of, unchanged since then (else NULL).
 * Requests of many tokens may be cut by a crash, to a number of whole tokens.
 */
int tkv_session_keep(struct tkv_session *s, const struct tkv_session *parent, const void *note,
                     size_t bytes, struct tkv_report *why);
bool tkv_session_is_kept(const struct tkv_session *s);

/* Forget it here, and leave it and its arena to the successor as they are. */
void tkv_session_leave(struct tkv_session **session);

/* The rest does nothing for a session that is not kept. Another note, at once. */
int tkv_session_note(struct tkv_session *s, const void *note, size_t bytes, struct tkv_report *why);

/*
 * The ids of tokens: written behind those that count, to count with the step that appends them. After
 * it, or if it failed, commit says how many do count. A successor must not believe in more than there are
 * tokens: a process may end in between.
 */
int tkv_session_write_ids(struct tkv_session *s, uint32_t at, const uint32_t *ids, uint32_t n,
                          struct tkv_report *why);
void tkv_session_commit_ids(struct tkv_session *s, uint32_t n);

/* The arena: its own name, and the descriptor that leads to all of it. */
uint64_t tkv_session_arena_id(const struct tkv_session *s);
int tkv_session_arena_own_fd(const struct tkv_session *s);

/* Another budget for all layers from the next round on; an error if nothing is evicted. */
int tkv_session_set_budget(struct tkv_session *s, uint32_t budget_tokens, struct tkv_report *why);

/* What a layer is: valid as long as the session. */
const struct tkv_layer_config *tkv_session_layer(const struct tkv_session *s, uint32_t layer);

/* Is a session of this (checked) configuration of the same kind? A profile's statistics are compared by
 * address, the rotary embedding not at all: the caller compares profiles. */
enum tkv_likeness { TKV_ALIKE = 0, TKV_OTHER_GEOMETRY, TKV_OTHER_POLICY };
enum tkv_likeness tkv_session_compare(const struct tkv_session *s,
                                      const struct tkv_session_config *config);

bool tkv_session_is_like(const struct tkv_session *a, const struct tkv_session *b);

/* The fewest tokens that truncate could leave now. */
uint64_t tkv_session_reach(const struct tkv_session *s);

/* All layers have seen n tokens, at the positions 0 to n - 1. */
bool tkv_session_is_contiguous(const struct tkv_session *s);
void tkv_session_seen(const struct tkv_session *s, uint64_t *least, uint64_t *most);

/* Marks of the memory that a session shares with its forks; they stay. */
enum tkv_mark {
    TKV_MARK_EXPORTED = 1, /* its descriptor was given away */
    TKV_MARK_MIXED = 2,    /* sessions of several users are in it */
};
void tkv_session_mark(struct tkv_session *s, unsigned marks);
unsigned tkv_session_marks(const struct tkv_session *s);

/* In every layer fold what is warm, and come down to the budget. */
int tkv_session_round(struct tkv_session *s, const struct tkv_exec *exec, struct tkv_report *why);

/* Per layer, stats[n_layers]: what a round would drop now and what the gate says to it. Nothing changes:
 * a fork holds the round. An error if the session has no gate. */
int tkv_session_gate(struct tkv_session *s, const struct tkv_exec *exec,
                     struct tkv_gate_stats *stats, struct tkv_report *why);
bool tkv_session_gates(const struct tkv_session *s);

/*
 * Of a session that shares with forks: resident_bytes is all that it refers to, shared or not, with an
 * equal part of the arena's slack and tables. tkv_session_shared_bytes says how much of it others
 * refer to as well (it looks at every block).
 */
void tkv_session_stats(const struct tkv_session *s, struct tkv_session_stats *out);
uint64_t tkv_session_resident_bytes(const struct tkv_session *s);
uint64_t tkv_session_shared_bytes(const struct tkv_session *s);
/* Memory of its own beside the arena's: what a fork has taken. */
uint64_t tkv_session_private_bytes(const struct tkv_session *s);
void tkv_session_layer_stats(const struct tkv_session *s, uint32_t layer,
                             struct tkv_layer_stats *out);
/* What a token reply says: tokens seen by a layer, the most kept by one of its KV heads. */
uint64_t tkv_session_n_seen(const struct tkv_session *s, uint32_t layer);
uint32_t tkv_session_n_kept(const struct tkv_session *s, uint32_t layer);
uint32_t tkv_session_n_rounds(const struct tkv_session *s);
uint32_t tkv_session_n_layers(const struct tkv_session *s);

/* Another number after everything that a snapshot would show; a fork begins with its parent's. */
uint64_t tkv_session_n_changes(const struct tkv_session *s);
const struct tkv_shape *tkv_session_shape(const struct tkv_session *s, uint32_t layer);

/*
 * Make what this session refers to findable by others who map the arena: value (not 0) stands in it, at
 * a place that the map tells, until the session is destroyed, before anything else of it goes.
 * A session that is pinned is not to be changed any more: fork one for this.
 */
int tkv_session_pin(struct tkv_session *s, uint64_t value, struct tkv_report *why);

/* The map of a pinned session, in the form of proto/shm_layout.h. */
size_t tkv_session_map_bytes(const struct tkv_session *s);
void tkv_session_map(const struct tkv_session *s, void *map);

/*
 * The arena as a read-only descriptor (the session keeps it: duplicate to keep longer) and
 * the block table in the form of proto/shm_layout.h. Call with table NULL to
 * learn the size; table must be tkv_session_table_bytes() long.
 */
int tkv_session_arena_fd(const struct tkv_session *s);
size_t tkv_session_table_bytes(const struct tkv_session *s);
void tkv_session_table(const struct tkv_session *s, void *table);
uint64_t tkv_session_generation(const struct tkv_session *s);

#endif /* TKV_STORE_SESSION_H */
