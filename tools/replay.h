/*
 * Queries, keys and values of one text, recorded while exact half-precision attention reads it,
 * and replayed to sessions with other settings: what such a session then occupies, and
 * what becomes of attention when its input stays the same.
 */
#ifndef TKV_TOOLS_REPLAY_H
#define TKV_TOOLS_REPLAY_H

#include "tools/attention_daemon.h"
#include "tools/engine.h"

struct tkv_recorded_layer {
    float *q, *k, *v; /* [n_tokens][heads][head_dim] */
    float *out, *lse; /* of the exact attention: [n_tokens][n_q_heads][head_dim_v], [n_q_heads] */
};

struct tkv_recording {
    const struct tkv_engine *engine;
    size_t n_tokens;
    size_t chunk_tokens;
    struct tkv_recorded_layer *layers;
};

/* `exact` are the options of a session that keeps everything as it is. Fill *r, to be given to
 * tkv_recording_deinit in any case. 0, or -1 with a text. */
int tkv_recording_init(struct tkv_recording *r, const struct tkv_engine *engine, const int32_t *ids,
                       size_t n_tokens, const struct tkv_remote_options *exact,
                       struct tkv_reason *why);
void tkv_recording_deinit(struct tkv_recording *r);

struct tkv_replayed {
    struct trikv_stats stats; /* at the end */
    /* Means over tokens, heads and layers, 0 unless attention was asked for: the relative error
     * |o - o'| / |o| of an output, and exp(lse' - lse), at most 1: the part of the attention
     * mass that is still there. */
    double out_error, mass;
};

/* 0, or -1 with what the daemon said. */
int tkv_recording_replay(const struct tkv_recording *r, const struct tkv_remote_options *options,
                         bool attend, struct tkv_replayed *out, struct tkv_reason *why);

#endif /* TKV_TOOLS_REPLAY_H */
