/* Attention in a running trikvd, through libtrikv: one session, one sequence. */
#ifndef TKV_TOOLS_ATTENTION_DAEMON_H
#define TKV_TOOLS_ATTENTION_DAEMON_H

#include "client/trikv.h"
#include "tools/model.h"

struct tkv_remote;

/* NULL, 0 or negative: the profile's value, or the daemon's default. */
struct tkv_remote_options {
    const char *socket;
    uint32_t timeout_ms;
    size_t chunk_tokens; /* the most in one step: sizes the shared memory; not 0 */
    bool inline_tensors; /* send tensors in the socket instead of shared memory */
    bool no_ring;        /* steps through the socket, though the daemon offers rings */
    const char *label;
    const char *profile;
    const char *codec_k, *codec_v;
    const char *method;
    const char *allocator;
    const char *eviction_mode;
    const char *aggregation;
    bool observe; /* let the daemon see every query, for tkv_remote_calibrate */
    uint32_t budget_tokens, beta_tokens;
    uint64_t budget_bytes;                /* method default, ... */
    uint32_t max_tokens;                  /* ... planned for so many */
    int32_t recent_tokens, pinned_tokens; /* negative: default */
    int32_t normalize_scores;             /* negative: default */
};

/* Connect and open a session for a model. 0, or -1 with what libtrikv or the daemon said. */
int tkv_remote_create(struct tkv_remote **r, const struct tkv_model_config *model,
                      const struct tkv_remote_options *options, struct tkv_reason *why);
void tkv_remote_destroy(struct tkv_remote **r);

/* The interface the model calls; valid as long as r. */
struct tkv_attention tkv_remote_attention(struct tkv_remote *r);

int tkv_remote_stats(struct tkv_remote *r, struct trikv_stats *stats, struct tkv_reason *why);

/* Write a profile of what the daemon has seen to `path`, NAME.yaml. 0, or -1 with a text. */
int tkv_remote_calibrate(struct tkv_remote *r, const struct tkv_model_config *model,
                         const char *path, uint64_t *n_tokens, struct tkv_reason *why);

/* The session, for calls that have no wrapper here. */
struct trikv_session *tkv_remote_session(const struct tkv_remote *r);

#endif /* TKV_TOOLS_ATTENTION_DAEMON_H */
