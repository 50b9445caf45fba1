/* Random scoring problems; see the header. */
#include "tests/tri_scene.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/tri_queries.h"

struct tkv_tri_stats tri_scene_stats(const struct tri_scene *s)
{
    return (struct tkv_tri_stats){s->mean_re, s->mean_im, s->mean_abs};
}

void tri_scene_turn(struct tri_scene *s, int64_t shift)
{
    float cs[2 * TKV_MAX_BANDS];

    for (size_t t = 0; t < TRI_N_KEYS; t++) {
        tkv_rope_angles(&s->rope, s->positions[t] + shift, cs);
        tkv_rope_turn(&s->rope, cs, s->pre[t], s->keys[t]);
    }
}

void tri_scene_make(struct tri_scene *s, struct rng *r, const struct tkv_rope_params *rope,
                    const struct tkv_tri_params *params)
{
    memset(s, 0, sizeof *s);
    tkv_kernels_init(&s->kn, 0);
    assert_null(tkv_rope_init(&s->rope, rope));
    assert_null(tkv_tri_fold_init(&s->fold, &s->rope, params));
    for (uint32_t f = 0; f < s->rope.n_bands; f++) {
        const float magnitude = expf(0.5f * rng_gauss(r));
        const float angle = 6.2831853f * rng_uniform(r);
        const float concentration = sqrtf(rng_uniform(r));

        s->mean_abs[f] = magnitude;
        s->mean_re[f] = magnitude * concentration * cosf(angle);
        s->mean_im[f] = magnitude * concentration * sinf(angle);
    }
    for (size_t t = 0; t < TRI_N_KEYS; t++) {
        s->positions[t] = (int32_t)(17 * t + rng_below(r, 17));
        for (uint32_t i = 0; i < s->rope.head_dim; i++)
            s->pre[t][i] = rng_gauss(r);
    }
    s->n_seen = 17 * TRI_N_KEYS + rng_below(r, 3000);
    tri_scene_turn(s, 0);
}

void tri_scene_score_at(const struct tri_scene *s, const struct tkv_tri_stats *stats,
                        int64_t n_seen, float *scores)
{
    static float w[TKV_MAX_OFFSETS * TRI_MAX_DIM];
    float u[TKV_MAX_BANDS];
    float norms[TKV_MAX_BANDS];
    float dots[TKV_MAX_OFFSETS];

    tri_queries(&s->fold, &s->rope, stats, n_seen, w);
    tkv_tri_norm_weights(&s->fold, &s->rope, stats, u);
    for (size_t t = 0; t < TRI_N_KEYS; t++) {
        for (size_t i = 0; i < s->fold.n_queries; i++)
            dots[i] = s->kn.dot(w + i * s->rope.head_dim, s->keys[t], s->rope.head_dim);
        tkv_band_norms(&s->rope, s->keys[t], norms);
        scores[t] = tkv_tri_score(&s->fold, dots, tkv_tri_norm_term(u, norms, s->rope.n_bands));
    }
}

void tri_scene_score(const struct tri_scene *s, float *scores)
{
    const struct tkv_tri_stats stats = tri_scene_stats(s);

    tri_scene_score_at(s, &stats, s->n_seen, scores);
}

/* Both terms of one key at one distance, straight from the paper, from the key before RoPE. The
 * logit's scaling is s for the query times s for the key, in the bands that are turned. */
static double brute_term(const struct tri_scene *s, size_t t, double distance, bool norm)
{
    double sum = 0;

    for (uint32_t f = 0; f < s->rope.n_bands; f++) {
        const double scaling = f < s->rope.rotary_dim / 2 ? (double)s->rope.attention_scaling : 1;
        const double c = hypot((double)s->mean_re[f], (double)s->mean_im[f]);
        uint32_t re;
        uint32_t im;
        double k;
        double phase;

        tkv_rope_band(&s->rope, f, &re, &im);
        k = scaling * scaling * hypot((double)s->pre[t][re], (double)s->pre[t][im]);
        phase = (double)s->rope.inv_freq[f] * distance +
                atan2((double)s->mean_im[f], (double)s->mean_re[f]) -
                atan2((double)s->pre[t][im], (double)s->pre[t][re]);
        if (!norm)
            sum += c * k * cos(phase);
        else
            sum += ((double)s->mean_abs[f] - (s->fold.params.disable_mlr ? 0 : c)) * k;
    }
    return sum;
}

double tri_brute_score(const struct tri_scene *s, size_t t)
{
    const struct tkv_tri_params *p = &s->fold.params;
    const double distance = (double)(s->n_seen - s->positions[t]);
    double sum = 0;
    double max = -INFINITY;
    size_t n = 0;

    for (double delta = 1; delta <= (double)p->offset_max; delta *= 2, n++) {
        const double term = brute_term(s, t, distance + delta, false);

        sum += term;
        max = fmax(max, term);
    }
    if (p->disable_trig)
        sum = max = 0;
    return (p->aggregation == TKV_AGGREGATE_MAX ? max : sum / (double)n) +
           brute_term(s, t, distance, true);
}
