/*
 * libtrikv: keep the KV cache of a language model in a trikvd daemon, compressed,
 * and get attention computed on it.
 *
 * The life of a session:
 *
 *     struct trikv_client *c = NULL;
 *     struct trikv_session *s = NULL;
 *     struct trikv_layer layer = {.n_q_heads = 32, .n_kv_heads = 8, .head_dim_k = 128,
 *                                 .head_dim_v = 128};
 *     struct trikv_session_options o = TRIKV_SESSION_OPTIONS_INIT;
 *     o.n_layers = 36;
 *     o.layers = &layer;
 *     o.same_layers = 1;
 *     o.codec_k = o.codec_v = "tq4";
 *     int e = trikv_connect(&c, NULL);
 *     if (!e)
 *         e = trikv_open(c, &o, &s);
 *     for (each token, each layer) {
 *         struct trikv_step t = {.size = sizeof(t), .layer = l, .n_tokens = 1, .dtype = TRIKV_F32,
 *                                .k = k, .v = v, .q = q, .out = out};
 *         e = trikv_append_attend(s, &t);
 *     }
 *     if (e)
 *         fprintf(stderr, "%s\n", trikv_last_error(c));
 *     trikv_close(&s);
 *     trikv_disconnect(&c);
 *
 * Calls block until the daemon answers or the client's deadline passes. A client and its
 * sessions belong to one thread at a time; different clients are independent. Functions
 * return TRIKV_OK or a positive error; trikv_last_error() then has a text with
 * the details. After TRIKV_E_DISCONNECTED, _DEADLINE, _PROTOCOL, _VERSION or _CHECKSUM the
 * connection is closed and every further call on this client returns TRIKV_E_DISCONNECTED: the cache
 * is gone for this client, and the engine must recompute. After any other error nothing has changed
 * in the daemon and the client goes on. The outputs of a call that failed are undefined.
 *
 * Option structs begin with their size, so that they can grow.
 */
#ifndef TRIKV_H
#define TRIKV_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define TRIKV_API         __attribute__((visibility("default")))
#define TRIKV_ABI_VERSION 0

/* Errors. Numbers are stable. */
enum trikv_error {
    TRIKV_OK = 0,
    TRIKV_E_PROTOCOL = 1,
    TRIKV_E_VERSION = 2,
    TRIKV_E_CHECKSUM = 3,
    TRIKV_E_UNKNOWN_REQUEST = 4,
    TRIKV_E_ARGUMENT = 5,
    TRIKV_E_SIZE = 6,
    TRIKV_E_VALUE = 7,
    TRIKV_E_POSITION = 8,
    TRIKV_E_NO_SESSION = 20,
    TRIKV_E_NO_PROFILE = 21,
    TRIKV_E_GEOMETRY = 22,
    TRIKV_E_STATE = 23,
    TRIKV_E_DENIED = 24,
    TRIKV_E_EXISTS = 25,
    TRIKV_E_EVICTED = 26,
    TRIKV_E_TOO_LARGE = 40,
    TRIKV_E_MEMORY_CAP = 41,
    TRIKV_E_TOO_MANY = 42,
    TRIKV_E_QUOTA = 43,
    TRIKV_E_NO_MEMORY = 60,
    TRIKV_E_SYSTEM = 61,
    TRIKV_E_DRAINING = 62,
    TRIKV_E_INTERNAL = 63,
    TRIKV_E_CONNECT = 80,
    TRIKV_E_DISCONNECTED = 81,
    TRIKV_E_DEADLINE = 82,
    TRIKV_E_STALE = 83,
};

enum trikv_dtype { TRIKV_F32 = 0, TRIKV_F16 = 1, TRIKV_BF16 = 2 };

struct trikv_client;
struct trikv_session;
struct trikv_map;

/* NULL, or a zero field, means the default. */
struct trikv_options {
    size_t size;
    const char *socket;   /* default $TRIKV_SOCKET, else /run/trikv/trikvd.sock */
    uint32_t timeout_ms;  /* of every call; default 30000 */
    size_t staging_bytes; /* shared area for tensors, made at connect; 0: tensors go inline */
    const char *name;     /* shown in the daemon's logs, at most 64 bytes */
};

/* What the daemon said of itself. Valid as long as the client. */
struct trikv_info {
    uint32_t protocol;
    uint64_t boot_id; /* new at every start of the daemon */
    const char *version;
    const char *cpu;
    uint64_t max_payload_bytes;
    uint64_t memory_cap_bytes;
};

/* Geometry and attention of one layer. */
struct trikv_layer {
    uint32_t n_q_heads;
    uint32_t n_kv_heads; /* divides n_q_heads */
    uint32_t head_dim_k; /* even, 8..1024 */
    uint32_t head_dim_v;
    float scale;            /* of logits; 0: 1 / sqrt(head_dim_k) */
    float softcap;          /* 0: none */
    uint32_t window_tokens; /* 0: none */
    uint32_t rope_dim;  /* 0; or latents (MLA): 1 KV head whose keys are a latent of head_dim_v and
                             * rope_dim more; the value is the latent. v is NULL, scale is said */
    const float *sinks; /* [n_q_heads] attention-sink logits, or NULL */
};

/* Of a layer, its shape alone. */
struct trikv_geometry {
    uint32_t n_q_heads;
    uint32_t n_kv_heads;
    uint32_t head_dim_k;
    uint32_t head_dim_v;
};

/* Rotary embedding, to be compared with the profile's; without a profile what trikv_observe needs. */
struct trikv_rope {
    double theta;
    uint32_t rotary_dim;
    const char *layout;     /* "half", "interleaved" */
    const char *scaling;    /* "none", "linear", "llama3", "yarn" */
    double factor;          /* 0: not said, as all that follow */
    double low_freq_factor; /* llama3 */
    double high_freq_factor;
    uint32_t original_context; /* llama3, yarn: tokens */
    double beta_fast;          /* yarn */
    double beta_slow;
    double attention_factor;
    int no_truncate; /* yarn: the correction range stays fractional */
};

/*
 * Begin with what the daemon has stored of these tokens, of an earlier session of the same user, model,
 * geometry, profile and policy: trikv_session_prefix tells how many are there, the caller appends the
 * rest. Wants the session's fingerprint. With n_token_ids 0 nothing is looked for, but the session may
 * be stored.
 */
struct trikv_prefix {
    size_t size;
    const uint32_t *token_ids;
    uint32_t n_token_ids;
    int keep;          /* store the session when it ends, also if its process is killed */
    const void *salt;  /* only what was stored with the same salt is found */
    size_t salt_bytes; /* at most 64 */
};

enum trikv_prefix_outcome {
    TRIKV_PREFIX_NOT_ASKED = 0,
    TRIKV_PREFIX_HIT = 1,     /* all of them */
    TRIKV_PREFIX_PARTIAL = 2, /* the first n_tokens of them */
    TRIKV_PREFIX_MISS = 3,
};

struct trikv_prefix_result {
    enum trikv_prefix_outcome outcome;
    uint32_t n_tokens;
    const char *reason; /* why not more, a word of docs/protocol.md; valid as long as the session */
};

/* What is NULL, 0 or negative is taken from the profile, or without one from the daemon's defaults. */
struct trikv_session_options {
    size_t size;
    uint32_t n_layers;
    const struct trikv_layer *layers; /* [n_layers], or one if same_layers */
    int same_layers;
    const char *profile;     /* name of a calibrated profile */
    const char *fingerprint; /* of the model; refused if the profile's differs */
    const struct trikv_rope *rope;
    const char *label; /* for people */
    const char *codec_k;
    const char *codec_v;
    const char
        *method; /* "none", "triattention", "streaming", "h2o", "snapkv", "keydiff", "default" */
    uint32_t budget_tokens;
    uint32_t beta_tokens;  /* between rounds; from 64 on rounded up to a multiple of it */
    int32_t recent_tokens; /* < 0: default (0 is a value) */
    int32_t pinned_tokens; /* < 0: default */
    const char *eviction_mode;
    const char *aggregation;
    uint32_t offset_max;
    int32_t normalize_scores; /* < 0: default, 0: no, 1: yes */
    int32_t rollback_tokens;  /* < 64: so far behind it trikv_truncate undoes a compression; < 0:
                               * default */
    uint64_t budget_bytes;    /* method "default": all that the session may occupy, ... */
    uint32_t max_tokens;      /* ... and how many tokens it is planned for at first */
    float target_ratio; /* instead of budget_bytes: what max_tokens take as halves over this */
    const struct trikv_prefix *prefix;
    int never_evict;       /* stay, however idle, when others need memory */
    const char *allocator; /* of budgets: "uniform", "pyramid", "concentration", "adaptive" */
};

/* What a fork may have of its own. NULL, or a zero field: as its parent. */
struct trikv_fork_options {
    size_t size;
    const char *label;
    uint32_t budget_tokens;
};

/* A session_options with every field at "not said"; in order, so that C++ takes it too. */
#define TRIKV_SESSION_OPTIONS_INIT                                                            \
    {                                                                                         \
        sizeof(struct trikv_session_options), 0, NULL, 0, NULL, NULL, NULL, NULL, NULL, NULL, \
            NULL, 0, 0, -1, -1, NULL, NULL, 0, -1, -1, 0, 0, 0, NULL, 0, NULL                 \
    }

/*
 * Tokens of one layer. Tensors are dense, in the given dtype; out and lse are always float.
 *   k [n_tokens][n_kv_heads][head_dim_k]   v [n_tokens][n_kv_heads][head_dim_v]
 *   q [n_tokens][n_q_heads][head_dim_k]    out [n_tokens][n_q_heads][head_dim_v]
 *   lse [n_tokens][n_q_heads]
 * K and Q are after RoPE.
 */
struct trikv_step {
    size_t size;
    uint32_t layer;
    uint32_t n_tokens;
    enum trikv_dtype dtype;
    const int32_t *positions; /* [n_tokens], strictly increasing; NULL: following the last one
                               * (attend alone: the last n_tokens appended) */
    const void *k;            /* append, append_attend */
    const void *v;            /* the same; of latents NULL */
    const void *q;            /* attend, append_attend */
    float *out;               /* attend, append_attend */
    float *lse;               /* or NULL */
    const uint32_t
        *token_ids; /* [n_tokens] append, append_attend: of a session opened with a prefix,
                                * in at least one layer (in more, the same); NULL: not told */
};

enum trikv_step_kind {
    TRIKV_STEP_APPEND = 1,
    TRIKV_STEP_ATTEND = 2,
    TRIKV_STEP_APPEND_ATTEND = 3,
};

/* NULL, or a zero field, means the default. */
struct trikv_ring_options {
    size_t size;
    uint32_t n_entries;  /* steps in flight at most: a power of two, to 4096; default 64 */
    int32_t spin_us;     /* before sleeping, while that mostly helps; default 50, < 0: never */
    size_t copy_bytes;   /* for tensors that lie elsewhere, of all steps in flight; default 1 MiB */
    size_t tensor_bytes; /* for tensors that the caller puts into the ring itself; default none */
};

/*
 * Tokens that a layer keeps, to be decoded, `first` counted in order of position.
 *   positions [n_tokens]   k [n_tokens][n_heads][head_dim_k]   v [n_tokens][n_heads][head_dim_v]
 * Each may be NULL. n_heads is 1, or n_kv_heads for kv_head -1: of a session that evicts nothing.
 */
struct trikv_read {
    size_t size;
    uint32_t layer;
    int32_t kv_head;
    uint64_t first;
    uint32_t n_tokens;      /* 0: only learn how many there are */
    enum trikv_dtype dtype; /* of k and v: TRIKV_F32 or TRIKV_F16 */
    int32_t *positions;
    void *k;
    void *v;
};

struct trikv_read_result {
    uint64_t n_seen; /* tokens appended to the layer */
    uint64_t n_kept; /* by this head */
    int exact;       /* these are the halves that were appended, to the bit */
};

/* Queries of one layer, to be observed: q [n_tokens][n_q_heads][head_dim_k]. */
struct trikv_queries {
    size_t size;
    uint32_t layer;
    uint32_t n_tokens;
    enum trikv_dtype dtype;
    const int32_t *positions; /* [n_tokens]; needed after RoPE */
    const void *q;
    int before_rope; /* 0: after RoPE, as for attention */
};

/* What the profile to be made is called and belongs to. */
struct trikv_calibration_options {
    size_t size;
    const char *name;         /* 1 to 64 of a-z 0-9 . _ - */
    const char *architecture; /* NULL: the session's profile's, else "unknown" */
    const char *fingerprint;  /* of the model; NULL: the profile's, else "none" */
};

/* A profile, to be written to NAME.yaml in the daemon's directory of profiles by whoever may. */
struct trikv_calibration {
    char *yaml; /* not terminated */
    size_t yaml_bytes;
    uint64_t n_tokens; /* observed, of the layer with the fewest */
};

struct trikv_stats {
    uint64_t session;
    uint64_t n_seen;         /* tokens appended, the largest over layers */
    double n_kept;           /* mean over layers and KV heads */
    uint64_t resident_bytes; /* everything the session occupies in the daemon */
    uint64_t fp16_bytes;     /* what n_seen tokens would take as halves, of a window those in it */
    double bits_k;           /* per kept value, every byte counted */
    double bits_v;
    uint32_t n_rounds;
    uint64_t n_evicted; /* (token, layer, KV head) triples */
    uint64_t arena_bytes;
    uint64_t slack_bytes;
    uint64_t shared_bytes; /* of resident_bytes, in forks, too: held once for all of them */
};

/* What the gate of a profile (docs/profiles.md) decided of a layer's rounds, and found in the last. */
struct trikv_gate {
    uint64_t n_passed;    /* within its limits */
    uint64_t n_kept_more; /* within them with some of the surplus */
    uint64_t n_exceeded;  /* over them with all of it */
    uint64_t n_surplus_tokens;
    uint64_t n_dropped; /* sum over KV heads */
    uint32_t n_probes;  /* queries that it asked */
    float output_error; /* the worst head's, before more was kept */
    float lse_change;
    float lost_mass;
};

/* The compressed cache itself: a read-only descriptor and the table of its blocks
 * (struct trikv_table_header and entries, docs/protocol.md). */
struct trikv_handle {
    int fd;
    uint64_t generation;
    uint64_t arena_bytes;
    uint32_t n_blocks;
    const void *table; /* header, then n_blocks entries of 64 bytes */
    size_t table_bytes;
};

/* Connect and say hello. On failure *client is still made (if memory allows), good only for
 * trikv_last_error and trikv_disconnect. options may be NULL. */
TRIKV_API int trikv_connect(struct trikv_client **client, const struct trikv_options *options);

/* Close the connection, and with it every session opened on it; NULL is allowed; leaves NULL.
 * Sessions still held are freed and must not be used, not even closed. */
TRIKV_API void trikv_disconnect(struct trikv_client **client);

TRIKV_API const struct trikv_info *trikv_info(const struct trikv_client *client);

/* The text of the last error of this client, "" if there was none. Valid until the next call. */
TRIKV_API const char *trikv_last_error(const struct trikv_client *client);

/* The general text of an error number; never NULL. */
TRIKV_API const char *trikv_error_text(int error);

/* Of the library that is loaded, to be compared with TRIKV_ABI_VERSION of the header used. */
TRIKV_API uint32_t trikv_abi_version(void);
TRIKV_API const char *trikv_version(void);

/* A session of this connection; it dies with the connection. */
TRIKV_API int trikv_open(struct trikv_client *client, const struct trikv_session_options *options,
                         struct trikv_session **session);

/* Close it. Whatever comes back, the session is freed and *session NULL; NULL is allowed. */
TRIKV_API int trikv_close(struct trikv_session **session);
TRIKV_API uint64_t trikv_session_id(const struct trikv_session *session);

/* What opening or forking it took of the daemon's memory cap. */
TRIKV_API uint64_t trikv_session_reserved_bytes(const struct trikv_session *session);

/* What the tensors of a layer follow from; of a fork_id, too. */
TRIKV_API uint32_t trikv_session_n_layers(const struct trikv_session *session);
TRIKV_API int trikv_session_geometry(const struct trikv_session *session, uint32_t layer,
                                     struct trikv_geometry *geometry);

/* What trikv_open found of its prefix. */
TRIKV_API void trikv_session_prefix(const struct trikv_session *session,
                                    struct trikv_prefix_result *result);

/*
 * Store the session as it is now, so that others can begin with it, and go on: the tokens that all
 * layers have seen and whose ids were told, *n_tokens (or NULL) of them. TRIKV_E_STATE, with the reason, if
 * its state is not what appending these tokens would give.
 */
TRIKV_API int trikv_keep(struct trikv_session *session, uint32_t *n_tokens);

/*
 * A session that begins as the other one is now and goes its own way: what they have in common is kept
 * once. It belongs to this client. trikv_fork_id forks a session of another process of
 * the same user, while that one works on it. options may be NULL.
 */
TRIKV_API int trikv_fork(struct trikv_session *parent, const struct trikv_fork_options *options,
                         struct trikv_session **child);
TRIKV_API int trikv_fork_id(struct trikv_client *client, uint64_t parent,
                            const struct trikv_fork_options *options, struct trikv_session **child);

/*
 * Write the session as it is now to a file that the daemon keeps for this user under a name: 1 to 64 of
 * A-Z a-z 0-9 . _ -, the first not a dot; what had the name is replaced. It is on the disk when the
 * call returns; *file_bytes (or NULL) is how long it is. TRIKV_E_STATE if the daemon keeps no files.
 * The file is good for every daemon on every machine that has the same profile.
 */
TRIKV_API int trikv_snapshot(struct trikv_session *session, const char *name, uint64_t *file_bytes);

/* A session as it was when it was written, to the bit, and from then on: a new one, of this client.
 * Sums of trikv_observe do not come back. */
TRIKV_API int trikv_restore(struct trikv_client *client, const char *name,
                            struct trikv_session **session);
TRIKV_API int trikv_snapshot_delete(struct trikv_client *client, const char *name);

/*
 * After TRIKV_E_DISCONNECTED: connect again, with the options of trikv_connect, to whatever daemon is
 * there now. If it took over what the one before it kept, its sessions wait for trikv_reattach; maps
 * (trikv_map) and the ring are gone. May be called again until it succeeds.
 */
TRIKV_API int trikv_reconnect(struct trikv_client *client);

/* What a session has that was taken over. Of the request that was never answered it may have everything,
 * nothing, or its first tokens: n_seen says of each layer, and trikv_truncate makes them even. */
struct trikv_progress {
    size_t size;
    uint64_t
        *n_seen; /* [n_seen_cap] of the caller, or NULL; the session's layers, as many as fit */
    uint32_t n_seen_cap;
    uint32_t n_layers; /* the last three are the answer */
    uint32_t n_rounds;
    uint32_t n_token_ids; /* tokens whose ids are known, of a session opened with a prefix */
};

/*
 * Go on with a session after trikv_reconnect: its handle is as good as before. TRIKV_E_NO_SESSION: it was not
 * taken over, or nobody came back for it in time. trikv_reattach_id: from another process of the
 * same user, by the session's id and the boot_id (trikv_info) of the daemon that opened it.
 */
TRIKV_API int trikv_reattach(struct trikv_session *session, struct trikv_progress *progress);
TRIKV_API int trikv_reattach_id(struct trikv_client *client, uint64_t id, uint64_t boot_id,
                                struct trikv_progress *progress, struct trikv_session **session);

/* The boot_id to be given then. */
TRIKV_API uint64_t trikv_session_boot_id(const struct trikv_session *session);

/*
 * Forget the newest n_tokens in every layer, as if they had never been appended (layers that
 * have seen fewer tokens than the others lose fewer). TRIKV_E_STATE, and nothing changes, if a round has
 * compressed what came before them and cannot be undone any more: see rollback_tokens.
 */
TRIKV_API int trikv_truncate(struct trikv_session *session, uint64_t n_tokens);

/* Add tokens to a layer; compute attention of queries over what the layer holds; or both in
 * one round trip, the usual step of an engine: every new token attends to all kept tokens
 * up to and including itself. Tokens are appended all or none. */
TRIKV_API int trikv_append(struct trikv_session *session, const struct trikv_step *step);
TRIKV_API int trikv_attend(struct trikv_session *session, const struct trikv_step *step);
TRIKV_API int trikv_append_attend(struct trikv_session *session, const struct trikv_step *step);

/*
 * The fast path: memory shared with the daemon through which steps go without a system call while both
 * sides are awake. One ring a client. The three functions above use it by themselves as long as it is open,
 * for steps that fit into it; everything else goes by the socket as ever. It takes
 * as much of the daemon's memory cap as it is large. TRIKV_E_UNKNOWN_REQUEST from a daemon that has no rings.
 */
TRIKV_API int trikv_ring_open(struct trikv_client *client,
                              const struct trikv_ring_options *options);

/* Wait for what is in flight, and end the ring; no ring is fine. */
TRIKV_API int trikv_ring_close(struct trikv_client *client);

/* tensor_bytes of shared memory, or NULL: tensors in here, at multiples of 64, are not copied.
 * Valid until the ring is closed or the client disconnected. */
TRIKV_API void *trikv_ring_tensors(const struct trikv_client *client);

/*
 * Several steps of a session at once, such as all layers of a token, and more before these are done. They are
 * done in order; after one that fails the others of this call are not done. Tensors must stay as they are and
 * outputs are undefined until trikv_ring_wait, which returns the first error of all that was submitted;
 * until then every other call but these two is TRIKV_E_STATE. Without a ring the steps are just done.
 */
TRIKV_API int trikv_ring_submit(struct trikv_session *session, enum trikv_step_kind kind,
                                const struct trikv_step *steps, uint32_t n_steps);
TRIKV_API int trikv_ring_wait(struct trikv_client *client);

/* Get tokens back. TRIKV_E_POSITION if they are not all there. result may be NULL. */
TRIKV_API int trikv_read(struct trikv_session *session, const struct trikv_read *read,
                         struct trikv_read_result *result);

/* Compress now: encode all but the recent tokens, and come down to the budget. */
TRIKV_API int trikv_round(struct trikv_session *session);

TRIKV_API int trikv_stats(struct trikv_session *session, struct trikv_stats *stats);

/* What a round held now would drop, layer by layer into layers[n_layers of the session], and what the gate
 * says to it; nothing changes. TRIKV_E_STATE: the session's profile has no gate. */
TRIKV_API int trikv_gate(struct trikv_session *session, struct trikv_gate *layers);

/*
 * Let the daemon see queries of the model, any number of times; then make a calibrated profile
 * of all it has seen. The session must know its RoPE, from its options or a profile, and have one
 * geometry in all layers. Neither changes the cache. The caller owns *calibration after success.
 */
TRIKV_API int trikv_observe(struct trikv_session *session, const struct trikv_queries *queries);
TRIKV_API int trikv_calibrate(struct trikv_session *session,
                              const struct trikv_calibration_options *options,
                              struct trikv_calibration *calibration);
TRIKV_API void trikv_calibration_release(struct trikv_calibration *calibration);

/* Take and release a handle. The caller owns it after success. */
TRIKV_API int trikv_handle(struct trikv_session *session, struct trikv_handle *handle);
TRIKV_API void trikv_handle_release(struct trikv_handle *handle);

/*
 * A session as it is now, of this or another process of the same user, for attention in this process:
 * the same code on the same shared bytes gives the same bits as in the daemon, without asking
 * it. What is mapped stays as it is, and takes memory of the daemon, until trikv_unmap or the end of
 * the connection; for what was appended since, map anew. A map belongs to its client's thread; it
 * must not be used after trikv_disconnect.
 */
TRIKV_API int trikv_map(struct trikv_client *client, uint64_t session, struct trikv_map **map);

/* NULL is allowed; leaves NULL whatever comes back. */
TRIKV_API int trikv_unmap(struct trikv_map **map);

TRIKV_API uint32_t trikv_map_n_layers(const struct trikv_map *map);
TRIKV_API int trikv_map_geometry(const struct trikv_map *map, uint32_t layer,
                                 struct trikv_geometry *geometry);

/* Tokens that the session had seen in this layer when it was mapped; 0 if there is no such layer. */
TRIKV_API uint64_t trikv_map_n_seen(const struct trikv_map *map, uint32_t layer);

/* As trikv_attend, on the map. TRIKV_E_STALE: the connection has ended, and with it the daemon's
 * promise; the outputs may be anything. Needs no daemon, allocates only for more tokens than before. */
TRIKV_API int trikv_attend_local(struct trikv_map *map, const struct trikv_step *step);

#ifdef __cplusplus
}
#endif

#endif /* TRIKV_H */
