/*
 * A random query head with its keys, scored as core does it and by brute force: a
 * cosine for every band and offset, straight from the paper's equations 6-11.
 */
#ifndef TKV_TESTS_TRI_SCENE_H
#define TKV_TESTS_TRI_SCENE_H

#include "core/kernels.h"
#include "core/rope.h"
#include "core/triattention.h"
#include "tests/rng.h"

enum { TRI_N_KEYS = 96, TRI_MAX_DIM = 128 };

/* One query head and the keys it scores. */
struct tri_scene {
    struct tkv_kernels kn;
    struct tkv_rope rope;
    struct tkv_tri_fold fold;
    float mean_re[TKV_MAX_BANDS];
    float mean_im[TKV_MAX_BANDS];
    float mean_abs[TKV_MAX_BANDS];
    int32_t positions[TRI_N_KEYS];
    float pre[TRI_N_KEYS][TRI_MAX_DIM]; /* keys before RoPE */
    float keys[TRI_N_KEYS][TRI_MAX_DIM];
    int64_t n_seen;
};

void tri_scene_make(struct tri_scene *s, struct rng *r, const struct tkv_rope_params *rope,
                    const struct tkv_tri_params *params);
struct tkv_tri_stats tri_scene_stats(const struct tri_scene *s);

/* Keys as a cache holds them: turned to their positions, moved by `shift`. */
void tri_scene_turn(struct tri_scene *s, int64_t shift);

/* scores[TRI_N_KEYS] by core, of the scene or with other statistics at another time. */
void tri_scene_score(const struct tri_scene *s, float *scores);
void tri_scene_score_at(const struct tri_scene *s, const struct tkv_tri_stats *stats,
                        int64_t n_seen, float *scores);

/* The score of key t by brute force, from the key before RoPE. */
double tri_brute_score(const struct tri_scene *s, size_t t);

#endif /* TKV_TESTS_TRI_SCENE_H */
