/*
 * What a session is apart from the bytes in its arena, as flat bytes: to be kept elsewhere and made a
 * session again, in this process or another one, on this machine or another one. Parts can be written
 * again alone:
 *
 *   CONFIG    what the session was opened with, and its plan; changes when it plans again, and with
 *             budgets, which STATE has, too
 *   COUNTERS  of the session
 *   STATE     of a layer: counters, floors, half tiers, checkpoint; changes with every token
 *   TABLES    of a layer: its blocks; changes when tkv_layer.generation does, and with a fork
 *   MASS      of a layer: attention observed; changes with every query, empty if none is
 *   PROBES    of a layer: queries that its gate remembers; likewise
 *
 * All numbers are little-endian, nothing is a pointer. Blocks, buffers and tables have names, which
 * tkv_image_names chooses and tkv_image_source understands: within one arena their own will do. Sessions
 * that share tables and half tiers share them again if they are read with the same source.
 *
 * Who reads trusts nothing: whatever the bytes are, the result is a session that works or an error that
 * says what and where.
 */
#ifndef TKV_STORE_IMAGE_H
#define TKV_STORE_IMAGE_H

#include "store/session.h"

struct tkv_arena;
struct tkv_block_id;
struct tkv_budget;
struct tkv_rung;

enum { TKV_IMAGE_VERSION = 1 };

enum tkv_image_part {
    TKV_IMAGE_CONFIG = 0,
    TKV_IMAGE_COUNTERS = 1,
    TKV_IMAGE_STATE = 2, /* from here on of a layer */
    TKV_IMAGE_TABLES = 3,
    TKV_IMAGE_MASS = 4,
    TKV_IMAGE_PROBES = 5,
    TKV_IMAGE_N_PARTS = 6,
};

/* How an image calls blocks and buffers, and the tables that forks share: never 0, except for a table
 * that is to be the session's own when it is read. NULL functions: as they are called here. */
struct tkv_image_names {
    uint64_t (*block)(void *ctx, struct tkv_block_id id);
    uint64_t (*table)(void *ctx, const void *table);
    void *ctx;
};

/* A multiple of 8; layer is 0 for parts of the session. Out is so long. */
size_t tkv_image_bytes(const struct tkv_session *s, enum tkv_image_part part, uint32_t layer,
                       const struct tkv_image_names *names);
void tkv_image_write(const struct tkv_session *s, enum tkv_image_part part, uint32_t layer,
                     const struct tkv_image_names *names, void *out);

/* ---- reading ------------------------------------------------------------------------------ */

/* A session before it is made. Whoever has the profiles sets stats and errors of the layers that want
 * them (has_stats, has_errors), as views that outlive the session. */
struct tkv_image_config {
    struct tkv_session_config config;
    struct tkv_layer_config *layers; /* config.layers */
    bool has_stats, has_errors;
    uint32_t horizon_tokens;
    uint32_t n_tiers, plan_tiers[TKV_PLAN_TIERS]; /* of the plan */
    struct tkv_rung *rungs;                       /* of all KV heads; NULL without a plan */
    struct tkv_rope *rope;                        /* config.rope */
    uint64_t digest; /* the same for sessions that may be forks of each other */
    struct tkv_budget *budget;
    size_t bytes; /* of this struct and all that it points to */
};

int tkv_image_read_config(struct tkv_image_config **out, const void *image, size_t bytes,
                          struct tkv_budget *budget, struct tkv_report *why);
void tkv_image_config_destroy(struct tkv_image_config **config);

/* Where the blocks of an image are now. */
struct tkv_image_source {
    /* One reference more to the block of this name, which must be of this size, a buffer if `fixed`. */
    int (*block)(void *ctx, struct tkv_arena *arena, uint64_t name, size_t bytes, bool fixed,
                 struct tkv_block_id *id, struct tkv_report *why);
    void *ctx;
    /* Zeroed at first: what sessions share that were read so far. They must live until it is released. */
    struct tkv_image_shares {
        struct tkv_image_share *entries; /* [cap], a power of two */
        size_t n, cap;
        struct tkv_budget *budget;
    } shares;
};
void tkv_image_source_release(struct tkv_image_source *source);

/* An empty session, in an arena of its own, or (of not NULL) in that one. Forks of it are empty, too:
 * so sessions with the same CONFIG share what follows from it. */
int tkv_image_open(struct tkv_session **session, const struct tkv_image_config *config,
                   const struct tkv_arena *of, struct tkv_budget *budget,
                   const struct tkv_kernels *kn, struct tkv_report *why);

/* COUNTERS, then for each layer STATE, TABLES, MASS, PROBES, then finish. After an error the session is only
 * good to be destroyed. Finish looks at all that must fit together, and with `contents` also at
 * every token's position and at all halves. */
int tkv_image_read(struct tkv_session *s, enum tkv_image_part part, uint32_t layer,
                   const void *image, size_t bytes, struct tkv_image_source *source,
                   struct tkv_report *why);
int tkv_image_finish(const struct tkv_session *s, bool contents, struct tkv_report *why);

#endif /* TKV_STORE_IMAGE_H */
