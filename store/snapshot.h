/*
 * Sessions as a stream of bytes and back: their images (store/image.h) and the blocks that these name,
 * each once, however many of the sessions refer to it. What is not a token of theirs is not in it:
 * places of a block or a half tier that hold none are zero. The bytes are the same on every machine.
 *
 *   n_sessions, meta_bytes, n_blocks | meta | configs | blocks' sizes | blocks | parts of each session
 *
 * Where the bytes go and come from is the caller's matter (store/pack.h), and so is what meta means.
 */
#ifndef TKV_STORE_SNAPSHOT_H
#define TKV_STORE_SNAPSHOT_H

#include "store/image.h"

enum { TKV_SNAPSHOT_MAX_SESSIONS = 256, TKV_SNAPSHOT_MAX_META_BYTES = 64 << 20 };

struct tkv_snapshot_sink {
    int (*write)(void *ctx, const void *bytes, size_t n, struct tkv_report *why);
    void *ctx;
};

struct tkv_snapshot_source {
    int (*read)(void *ctx, void *bytes, size_t n, struct tkv_report *why);
    void *ctx;
};

/* Sessions of one arena, that nobody works on meanwhile. */
int tkv_snapshot_write(const struct tkv_snapshot_sink *sink,
                       const struct tkv_session *const *sessions, uint32_t n, const void *meta,
                       size_t meta_bytes, struct tkv_report *why);

/* Reading goes in two steps: between them the caller finds what the configs need. */
struct tkv_snapshot {
    struct tkv_snapshot_source source;
    struct tkv_budget *budget;
    uint32_t n_sessions;
    struct tkv_image_config **configs; /* [n_sessions] */
    void *meta;
    size_t meta_bytes;
    uint64_t n_blocks;
    struct tkv_snapshot_block *blocks; /* [n_blocks] */
    struct tkv_arena *arena;
    void *part; /* the last that was read */
    size_t part_bytes;
};
int tkv_snapshot_open(struct tkv_snapshot **snapshot, const struct tkv_snapshot_source *source,
                      struct tkv_budget *budget, struct tkv_report *why);

/* sessions[n_sessions], all of them or none. */
int tkv_snapshot_read(struct tkv_snapshot *snapshot, const struct tkv_kernels *kn,
                      struct tkv_session **sessions, struct tkv_report *why);
void tkv_snapshot_close(struct tkv_snapshot **snapshot);

#endif /* TKV_STORE_SNAPSHOT_H */
