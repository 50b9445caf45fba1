/*
 * A random KV head with queries and options, and the attention it must give: a
 * plain double implementation, and the ways to run core's over the same keys.
 * Memory is of the exact size that core asks for, so that the address sanitizer
 * sees every step outside.
 */
#ifndef TKV_TESTS_ATTEND_SCENE_H
#define TKV_TESTS_ATTEND_SCENE_H

#include "core/attention.h"
#include "core/kernels.h"
#include "tests/rng.h"

enum {
    ATTEND_MAX_KEYS = 200,
    ATTEND_MAX_TOKENS = 40,
    ATTEND_MAX_K_DIM = 256,
    ATTEND_MAX_V_DIM = 256,
    ATTEND_PAD = 6
};

/* One KV head with its keys, queries and options. */
struct attend_scene {
    struct tkv_kernels kn;
    struct tkv_attn_params a;
    struct tkv_attn_rows rows;
    uint32_t k_dim;
    uint32_t v_dim;
    size_t n;
    size_t n_rows;
    bool with_sinks;
    float sinks[TKV_MAX_GROUP];
    int32_t q_positions[ATTEND_MAX_TOKENS];
    int32_t k_positions[ATTEND_MAX_KEYS];
    float q[ATTEND_MAX_TOKENS * 16 * ATTEND_MAX_K_DIM];
    uint16_t k[ATTEND_MAX_KEYS *
               (ATTEND_MAX_K_DIM + ATTEND_PAD)]; /* rows of k_dim + ATTEND_PAD, the pad NaN */
    uint16_t v[ATTEND_MAX_KEYS * (ATTEND_MAX_V_DIM + ATTEND_PAD)];
};

/* Kernels by turns: the reference, the machine's best, the best but for AVX-512. */
unsigned attend_cpu(unsigned round);

/* Shapes, options and data at random; keys have gaps, queries lie among and after them. */
void attend_scene_make(struct attend_scene *s, struct rng *r, unsigned cpu);

/* Element i of a row of s->k or s->v. */
double attend_half_at(const uint16_t *x, size_t row, uint32_t dim, size_t i);

/* One row in double, with two passes over all keys: out[v_dim] and the log of the sum. */
void attend_naive_row(const struct attend_scene *s, size_t row, double *out, double *lse);

/* An empty partial for the scene's rows; free its max. */
struct tkv_partial attend_new_partial(const struct attend_scene *s);

/* Attend to keys from .. to - 1 as uncoded halves, or, at most 64, as a tile whose other lanes
 * are NaN. */
void attend_scene_halves(const struct attend_scene *s, size_t from, size_t to,
                         struct tkv_partial *p);
void attend_scene_tile(const struct attend_scene *s, size_t from, size_t to, struct tkv_partial *p);

#endif /* TKV_TESTS_ATTEND_SCENE_H */
