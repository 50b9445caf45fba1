/* From a case to scores and folds, through the functions of core/ that the daemon uses. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/select.h"
#include "tests/tri_queries.h"
#include "tests/vectors.h"

bool vec_rope(struct vec_case *c, struct tkv_rope *rope)
{
    const uint32_t dim = (uint32_t)vec_int(c, "head_dim", TKV_MAX_HEAD_DIM);
    const char *layout = vec_has(c, "rope_layout") ? vec_text(c, "rope_layout") : "half";
    const float *inv_freq = VEC_DATA(c, "inv_freq", VEC_F32, dim / 2);
    const bool half = strcmp(layout, "half") == 0;

    if (dim < TKV_MIN_HEAD_DIM || dim % 2 != 0 || (!half && strcmp(layout, "interleaved") != 0)) {
        vec_fail(c, "head_dim %u, rope_layout %s: not supported", dim, layout);
        return false;
    }
    *rope = (struct tkv_rope){
        .head_dim = dim,
        .rotary_dim = dim,
        .n_bands = dim / 2,
        .layout = half ? TKV_ROPE_HALF : TKV_ROPE_INTERLEAVED,
        .attention_scaling = (float)vec_real(c, "attention_scaling"),
    };
    if (inv_freq)
        memcpy(rope->inv_freq, inv_freq, sizeof(float) * rope->n_bands);
    return c->n_failures == 0;
}

static bool optional_bool(struct vec_case *c, const char *key)
{
    return vec_has(c, key) && vec_bool(c, key);
}

/* What a case leaves out is the reference's default: 65536, mean, no ablation. */
static bool read_params(struct vec_case *c, struct tkv_tri_params *p)
{
    const char *aggregation = vec_has(c, "aggregation") ? vec_text(c, "aggregation") : "mean";
    const bool max = strcmp(aggregation, "max") == 0;

    *p = (struct tkv_tri_params){
        .offset_max = 65536,
        .aggregation = max ? TKV_AGGREGATE_MAX : TKV_AGGREGATE_MEAN,
        .disable_mlr = optional_bool(c, "disable_mlr"),
        .disable_trig = optional_bool(c, "disable_trig"),
    };
    if (vec_has(c, "offset_max_length"))
        p->offset_max = (uint32_t)vec_int(c, "offset_max_length", UINT32_MAX);
    if (!max && strcmp(aggregation, "mean") != 0)
        vec_fail(c, "aggregation %s: want mean or max", aggregation);
    return c->n_failures == 0;
}

static bool read_stats(struct vec_case *c, struct vec_model *m, bool many_heads)
{
    const size_t n_heads = m->n_kv_heads * m->group;
    const size_t dims[] = {m->n_layers, n_heads, m->rope.n_bands};
    const size_t skip = many_heads ? 0 : 2;

    m->mean_re = vec_data(c, "q_mean_re", VEC_F32, 3 - skip, dims + skip);
    m->mean_im = vec_data(c, "q_mean_im", VEC_F32, 3 - skip, dims + skip);
    m->mean_abs = vec_data(c, "q_abs_mean", VEC_F32, 3 - skip, dims + skip);
    return m->mean_re && m->mean_im && m->mean_abs;
}

bool vec_model_init(struct vec_case *c, struct vec_model *m)
{
    const bool many_heads = vec_has(c, "layers");
    struct tkv_tri_params params;
    const char *error;

    *m = (struct vec_model){.n_layers = 1, .n_kv_heads = 1, .group = 1};
    tkv_kernels_init(&m->kn, 0);
    if (many_heads) {
        m->n_layers = (size_t)vec_int(c, "layers", 1024);
        m->n_kv_heads = (size_t)vec_int(c, "kv_heads", 1024);
        m->group = (size_t)vec_int(c, "group", TKV_MAX_GROUP);
    }
    if (vec_has(c, "q_heads") &&
        (size_t)vec_int(c, "q_heads", UINT32_MAX) != m->n_kv_heads * m->group)
        vec_fail(c, "q_heads: want kv_heads * group = %zu", m->n_kv_heads * m->group);
    if (!vec_rope(c, &m->rope) || !read_params(c, &params) || !read_stats(c, m, many_heads))
        return false;
    error = tkv_tri_fold_init(&m->fold, &m->rope, &params);
    if (error)
        vec_fail(c, "tkv_tri_fold_init: %s", error);
    return !error;
}

struct tkv_tri_stats vec_model_stats(const struct vec_model *m, size_t layer, size_t head)
{
    const size_t at = (layer * m->n_kv_heads * m->group + head) * m->rope.n_bands;

    return (struct tkv_tri_stats){m->mean_re + at, m->mean_im + at, m->mean_abs + at};
}

void vec_model_score(const struct vec_model *m, const struct tkv_tri_stats *stats,
                     const float *keys, size_t n, int64_t n_seen, float *scores)
{
    const uint32_t dim = m->rope.head_dim;
    float *w = vec_alloc((size_t)TKV_MAX_OFFSETS * dim, sizeof *w);
    float u[TKV_MAX_BANDS];
    float norms[TKV_MAX_BANDS];
    float dots[TKV_MAX_OFFSETS];

    tri_queries(&m->fold, &m->rope, stats, n_seen, w);
    tkv_tri_norm_weights(&m->fold, &m->rope, stats, u);
    for (size_t t = 0; t < n; t++) {
        const float *key = keys + t * dim;

        for (size_t i = 0; i < m->fold.n_queries; i++)
            dots[i] = m->kn.dot(w + i * dim, key, dim);
        tkv_band_norms(&m->rope, key, norms);
        scores[t] = tkv_tri_score(&m->fold, dots, tkv_tri_norm_term(u, norms, m->rope.n_bands));
    }
    free(w);
}

/* Errors of one vector into got[head_dim], in units of what each band may be off. */
static void turn_errors(const struct tkv_rope *rope, const struct vec_turn *turn, size_t i,
                        const float *want, double *errors)
{
    const size_t lane = i % turn->n_positions;
    const int64_t position = turn->positions ? turn->positions[lane] : (int64_t)lane;
    float cs[2 * TKV_MAX_BANDS];
    float got[TKV_MAX_HEAD_DIM];

    tkv_rope_angles(rope, position, cs);
    (turn->back ? tkv_rope_turn_back : tkv_rope_turn)(rope, cs, turn->from + i * rope->head_dim,
                                                      got);
    for (uint32_t f = 0; f < rope->n_bands; f++) {
        uint32_t re;
        uint32_t im;
        double unit;

        tkv_rope_band(rope, f, &re, &im);
        /* 8 stands for the roundings of table, products and sum; the last term for bands that
         * are next to nothing. */
        unit = 0x1p-23 * ((double)position * (double)rope->inv_freq[f] + 8);
        unit = unit * hypot((double)want[re], (double)want[im]) + 1e-30;
        errors[re] = ((double)got[re] - (double)want[re]) / unit;
        errors[im] = ((double)got[im] - (double)want[im]) / unit;
    }
}

void vec_check_turned(struct vec_case *c, const struct tkv_rope *rope, const struct vec_turn *turn,
                      const struct vec_tensor *want)
{
    const size_t n = turn->n * rope->head_dim;
    double *errors;
    double *zeros;

    if (want->type != VEC_F32 || want->n != n) {
        vec_fail(c, "%s: want %zu f32", want->name, n);
        return;
    }
    errors = vec_alloc(n, sizeof *errors);
    zeros = vec_alloc(n, sizeof *zeros);
    for (size_t i = 0; i < turn->n; i++)
        turn_errors(rope, turn, i, (const float *)want->data + i * rope->head_dim,
                    errors + i * rope->head_dim);
    vec_compare(c, want->name, errors, zeros, n, 1);
    free(errors);
    free(zeros);
}

void vec_fold_group(const struct vec_model *m, const float *rows, size_t n, bool mean, float *out)
{
    for (size_t i = 0; i < m->n_layers * m->n_kv_heads; i++) {
        float *to = out + i * n;

        for (size_t g = 0; g < m->group; g++) {
            const float *row = rows + (i * m->group + g) * n;

            if (mean) {
                if (g == 0)
                    memset(to, 0, n * sizeof *to);
                tkv_fold_sum(to, row, 1 / (float)m->group, n);
            } else if (g == 0) {
                memcpy(to, row, n * sizeof *to);
            } else {
                tkv_fold_max(to, row, n);
            }
        }
    }
}

void vec_fold_layers(const struct vec_model *m, const float *rows, size_t n, float *out)
{
    memset(out, 0, m->n_kv_heads * n * sizeof *out);
    for (size_t l = 0; l < m->n_layers; l++)
        tkv_fold_sum(out, rows + l * m->n_kv_heads * n, 1 / (float)m->n_layers, m->n_kv_heads * n);
}

void vec_fold_all(const struct vec_model *m, const float *rows, size_t n, float *out)
{
    memcpy(out, rows, n * sizeof *out);
    for (size_t i = 1; i < m->n_layers * m->n_kv_heads; i++)
        tkv_fold_max(out, rows + i * n, n);
}
