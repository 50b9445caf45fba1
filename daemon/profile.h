/*
 * Calibrated profiles: what model a cache is for, how to treat it, and the query statistics
 * that scoring needs (docs/profiles.md). A profile is checked whole when it is read; nothing in it
 * is guessed. It is read-only and shared: sessions hold a reference while they live.
 */
#ifndef TKV_DAEMON_PROFILE_H
#define TKV_DAEMON_PROFILE_H

#include "core/rope.h"
#include "daemon/policy.h"
#include "proto/limits.h"

struct tkv_diag;

enum {
    TKV_MAX_PROFILES = 256, /* so that a list of them fits a message */
    TKV_MAX_PROFILE_FILE_BYTES = 16 << 20,
};

/* "half", ... and "none", ...: the names of rope.layout and rope.scaling, NULL-ended. */
extern const char *const tkv_rope_layout_names[];
extern const char *const tkv_rope_scaling_names[];

/* A layer's own method, budget and codecs, after the overrides; and the model's window there, if it has
 * one. */
struct tkv_profile_layer {
    uint32_t said; /* method, budget, codec_k, codec_v of enum tkv_policy_field */
    uint32_t method;
    uint32_t budget_tokens;
    uint32_t codec_k;
    uint32_t codec_v;
    uint32_t window_tokens;
};

struct tkv_profile {
    unsigned n_refs; /* loop thread */
    char name[TRIKV_MAX_NAME_BYTES + 1];
    char architecture[TRIKV_MAX_NAME_BYTES + 1];
    char fingerprint[32]; /* "xxh3:..." or "none" */
    uint32_t n_layers;
    struct tkv_shape shape; /* of every layer */
    bool has_rope;
    struct tkv_rope_params rope_params;
    struct tkv_rope rope;
    struct tkv_policy policy;
    struct tkv_profile_layer *layers; /* [n_layers] */
    size_t n_statistics;              /* floats; 0: none */
    float *errors;                    /* [layer][kv_head][TKV_PLAN_ERRORS], or NULL */
    float *statistics;                /* [layer][q_head][mean_re, mean_im, mean_abs][band] */
};

/* The profiles of a directory, by name. Loop thread. */
struct tkv_profiles {
    size_t n;
    struct tkv_profile *item[TKV_MAX_PROFILES];
};

/* Read one file; every error goes to diag. NULL if there was one. The caller has a reference. */
struct tkv_profile *tkv_profile_load(const char *file, struct tkv_diag *diag);

/* The same for text in memory, `name` standing for the file; directory: where a sidecar is. */
struct tkv_profile *tkv_profile_parse(const char *name, const char *directory, const char *text,
                                      size_t n, struct tkv_diag *diag);

struct tkv_profile *tkv_profile_ref(struct tkv_profile *p);
void tkv_profile_unref(struct tkv_profile **p);

/* All profiles of a directory: broken ones are reported and left out. A directory that is not
 * there has none. False if there was an error. */
bool tkv_profiles_load(struct tkv_profiles *list, const char *directory, struct tkv_diag *diag);
void tkv_profiles_deinit(struct tkv_profiles *list);
struct tkv_profile *tkv_profiles_find(const struct tkv_profiles *list, const char *name);

/* The statistics of a layer, [q_head][3][band]; NULL if there are none. */
const float *tkv_profile_layer_statistics(const struct tkv_profile *p, uint32_t layer);

/* The errors of a layer's KV heads, [kv_head][TKV_PLAN_ERRORS]; NULL if there are none. */
const float *tkv_profile_layer_errors(const struct tkv_profile *p, uint32_t layer);

#endif /* TKV_DAEMON_PROFILE_H */
