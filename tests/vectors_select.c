/*
 * Golden vectors of selection: one round over a given cache, with the statistics
 * and guards of the reference (candidates only, population deviation) or of the
 * vLLM port (all tokens, sample deviation, guards forced to infinity).
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/select.h"
#include "tests/cpu.h"
#include "tests/vectors.h"
#include "tests/z_scores.h"

/* One selection case: raw scores of every query head for every token of the cache. */
struct selection {
    struct vec_model m;
    size_t n;
    size_t prefix;
    size_t budget;
    size_t n_heads; /* of all layers */
    float *raw;     /* [n_heads][n] */
};

static bool score_all(struct vec_case *c, struct selection *s)
{
    const int64_t n_seen = vec_int(c, "round_start", INT32_MAX);
    const float *keys;

    if (!vec_model_init(c, &s->m))
        return false;
    s->n = (size_t)vec_int(c, "n", 1 << 20);
    s->budget = (size_t)vec_int(c, "budget", (int64_t)s->n);
    s->n_heads = s->m.n_layers * s->m.n_kv_heads * s->m.group;
    keys = VEC_DATA(c, "k_rot", VEC_F32, s->m.n_layers, s->m.n_kv_heads, s->n, s->m.rope.head_dim);
    if (!VEC_DATA(c, "positions", VEC_I32, s->n) || !keys || c->n_failures > 0)
        return false;
    s->raw = vec_alloc(s->n_heads * s->n, sizeof *s->raw);
    for (size_t i = 0; i < s->n_heads; i++) {
        const size_t per_layer = s->m.n_kv_heads * s->m.group;
        const struct tkv_tri_stats stats = vec_model_stats(&s->m, i / per_layer, i % per_layer);

        vec_model_score(&s->m, &stats, keys + i / s->m.group * s->n * s->m.rope.head_dim, s->n,
                        n_seen, s->raw + i * s->n);
    }
    return true;
}

/* The rows of the candidates, slots first .. n - 1, normalised or not: [n_heads][n - first]. */
static float *candidate_rows(const struct selection *s, size_t first, bool normalize)
{
    const size_t n = s->n - first;
    float *rows = vec_alloc(s->n_heads * n, sizeof *rows);

    for (size_t i = 0; i < s->n_heads; i++) {
        memcpy(rows + i * n, s->raw + i * s->n + first, n * sizeof *rows);
        if (normalize)
            z_scores(rows + i * n, n);
    }
    return rows;
}

/* Keep `first` pinned slots and the best of each of rows[n_rows][s->n - first]; compare with the
 * tensor [n_rows][budget], if the case has it. */
static void check_kept(struct vec_case *c, const struct selection *s, const char *name,
                       const float *rows, size_t n_rows, size_t first)
{
    const struct vec_tensor *want = vec_find(c, name);
    const size_t n = s->n - first;
    uint32_t *keep;
    uint32_t *scratch;

    if (!want)
        return;
    if (want->type != VEC_I32 || want->n != n_rows * s->budget || s->budget < first) {
        vec_fail(c, "%s: want %zu rows of %zu i32", name, n_rows, s->budget);
        return;
    }
    keep = vec_alloc(s->n, sizeof *keep);
    scratch = vec_alloc(n, sizeof *scratch);
    for (size_t i = 0; i < first; i++)
        keep[i] = (uint32_t)i;
    for (size_t r = 0; r < n_rows; r++) {
        const size_t n_top = tkv_select_top(cpu_kernels(), rows + r * n, n, s->budget - first,
                                            keep + first, scratch);

        for (size_t i = 0; i < n_top; i++)
            keep[first + i] += (uint32_t)first;
        vec_compare_sets(c, name, r, keep, first + n_top,
                         (const int32_t *)want->data + r * s->budget, s->budget);
    }
    free(keep);
    free(scratch);
}

/* A tensor of float32 reference scores; normalised ones are in deviations. */
static void check_scores(struct vec_case *c, const char *name, const float *got, size_t n,
                         double std)
{
    const struct vec_tensor *want = vec_find(c, name);

    if (want)
        vec_compare_tensor(c, want, got, n, 5e-4 * std);
}

/* raw_scores_decode, row_mean and row_std_pop, row by row in that row's deviations. */
static void check_raw_rows(struct vec_case *c, const struct selection *s)
{
    const size_t n = s->n - s->prefix;
    const size_t heads = s->m.n_kv_heads * s->m.group;
    const float *raw = VEC_DATA(c, "raw_scores_decode", VEC_F32, s->m.n_layers, heads, n);
    const float *means = VEC_DATA(c, "row_mean", VEC_F32, s->m.n_layers, heads);
    const float *stds = VEC_DATA(c, "row_std_pop", VEC_F32, s->m.n_layers, heads);
    double *got = vec_alloc(2 * n, sizeof *got);

    for (size_t r = 0; raw && means && stds && r < s->n_heads; r++) {
        double mean = 0;
        double var = 0;
        double std;

        for (size_t i = 0; i < n; i++) {
            got[i] = (double)s->raw[r * s->n + s->prefix + i];
            got[n + i] = (double)raw[r * n + i];
            mean += got[i] / (double)n;
        }
        for (size_t i = 0; i < n; i++)
            var += (got[i] - mean) * (got[i] - mean) / (double)n;
        std = sqrt(var);
        vec_compare(c, "raw_scores_decode", got, got + n, n, 5e-4 * std);
        vec_compare(c, "row_mean", &mean, &(double){(double)means[r]}, 1, 5e-4 * std);
        vec_compare(c, "row_std_pop", &std, &(double){(double)stds[r]}, 1, 5e-4 * std);
    }
    free(got);
}

/* Everything that follows from the rows of candidates `first` .. n - 1. */
struct folds {
    float *rows;       /* [layers][kv_heads][group][n] */
    float *group_max;  /* [layers][kv_heads][n] */
    float *group_mean; /* the same */
    float *per_head;   /* [kv_heads][n] */
    float *all;        /* [n] */
};

static struct folds fold_rows(const struct selection *s, size_t first, bool normalize)
{
    const size_t n = s->n - first;
    const size_t n_kv = s->m.n_layers * s->m.n_kv_heads;
    struct folds f = {
        .rows = candidate_rows(s, first, normalize),
        .group_max = vec_alloc(n_kv * n, sizeof(float)),
        .group_mean = vec_alloc(n_kv * n, sizeof(float)),
        .per_head = vec_alloc(s->m.n_kv_heads * n, sizeof(float)),
        .all = vec_alloc(n, sizeof(float)),
    };

    vec_fold_group(&s->m, f.rows, n, false, f.group_max);
    vec_fold_group(&s->m, f.rows, n, true, f.group_mean);
    vec_fold_layers(&s->m, f.group_max, n, f.per_head);
    vec_fold_all(&s->m, f.group_max, n, f.all);
    return f;
}

static void free_folds(struct folds *f)
{
    free(f->rows);
    free(f->group_max);
    free(f->group_mean);
    free(f->per_head);
    free(f->all);
}

static void check_selection(struct vec_case *c, const struct selection *s)
{
    const size_t n = s->n - s->prefix;
    const size_t n_kv = s->m.n_layers * s->m.n_kv_heads;
    struct folds z = fold_rows(s, s->prefix, true);
    struct folds raw = fold_rows(s, s->prefix, false);
    struct folds whole = fold_rows(s, 0, true);

    check_raw_rows(c, s);
    check_scores(c, "z_scores_decode", z.rows, s->n_heads * n, 1);
    check_scores(c, "group_max_decode", z.group_max, n_kv * n, 1);
    check_scores(c, "per_head_agg_decode", z.per_head, s->m.n_kv_heads * n, 1);
    check_scores(c, "union_combined_decode", z.all, n, 1);
    check_kept(c, s, "keep_per_head", z.per_head, s->m.n_kv_heads, s->prefix);
    check_kept(c, s, "keep_per_layer_perhead_max", z.group_max, n_kv, s->prefix);
    check_kept(c, s, "keep_per_layer_perhead_mean", z.group_mean, n_kv, s->prefix);
    check_kept(c, s, "keep_union", z.all, 1, s->prefix);
    check_kept(c, s, "keep_per_head_allow_prefill", whole.per_head, s->m.n_kv_heads, 0);
    check_kept(c, s, "keep_per_head_no_norm", raw.per_head, s->m.n_kv_heads, s->prefix);
    free_folds(&z);
    free_folds(&raw);
    free_folds(&whole);
}

void vec_run_selection(struct vec_case *c)
{
    struct selection s = {0};

    if (score_all(c, &s)) {
        s.prefix = (size_t)vec_int(c, "prefix", (int64_t)s.budget);
        if ((size_t)vec_int(c, "decode_keep", (int64_t)s.n) != s.budget - s.prefix)
            vec_fail(c, "decode_keep: want budget - prefix = %zu", s.budget - s.prefix);
        else if (c->n_failures == 0)
            check_selection(c, &s);
    }
    free(s.raw);
}

/* The port's z-scores: sample deviation, and 1 instead of a deviation below 1e-8. It is a factor
 * away from the population's, so the core's own normalisation is used. */
static void normalize_sample(float *row, size_t n)
{
    float first = row[0];
    bool flat = true;

    for (size_t i = 1; i < n; i++)
        flat = flat && row[i] == first;
    z_scores(row, n);
    for (size_t i = 0; !flat && i < n; i++)
        row[i] = (float)((double)row[i] * sqrt((double)(n - 1) / (double)n));
}

static void guard_rows(float *rows, size_t n_rows, size_t n, size_t prefix, size_t window)
{
    for (size_t r = 0; r < n_rows; r++) {
        for (size_t i = 0; i < n; i++) {
            if (i < prefix || i + window >= n)
                rows[r * n + i] = INFINITY;
        }
    }
}

/* Rank as `mode` says and compare; the port calls the modes by its own names. */
static void check_vllm_kept(struct vec_case *c, const struct selection *s, const float *rows)
{
    const char *mode = vec_text(c, "mode");
    const bool mean = vec_has(c, "layer_perhead_aggregation") &&
                      strcmp(vec_text(c, "layer_perhead_aggregation"), "mean") == 0;
    const size_t n_kv = s->m.n_layers * s->m.n_kv_heads;
    float *group = vec_alloc(n_kv * s->n, sizeof *group);
    float *folded = vec_alloc(s->m.n_kv_heads * s->n, sizeof *folded);
    const bool per_layer =
        strcmp(mode, "per_layer_perhead") == 0 || strcmp(mode, "per_layer_per_head") == 0;

    vec_fold_group(&s->m, rows, s->n, per_layer && mean, group);
    if (per_layer) {
        check_kept(c, s, "keep", group, n_kv, 0);
    } else if (strcmp(mode, "per_head") == 0 || strcmp(mode, "hf_aligned_global_per_head") == 0) {
        vec_fold_layers(&s->m, group, s->n, folded);
        check_kept(c, s, "keep", folded, s->m.n_kv_heads, 0);
    } else if (strcmp(mode, "union") == 0) {
        vec_fold_all(&s->m, group, s->n, folded);
        check_kept(c, s, "keep", folded, 1, 0);
    } else {
        vec_fail(c, "mode %s: unknown", mode);
    }
    free(group);
    free(folded);
}

void vec_run_vllm_selection(struct vec_case *c)
{
    struct selection s = {0};
    const size_t window = (size_t)vec_int(c, "window", INT32_MAX);
    const size_t prefill = (size_t)vec_int(c, "prefill", INT32_MAX);
    const bool protect = vec_bool(c, "protect_prefill");

    if (score_all(c, &s)) {
        const struct vec_tensor *z = vec_find(c, "z_f64");
        float *rows = candidate_rows(&s, 0, false);

        for (size_t i = 0; i < s.n_heads; i++)
            normalize_sample(rows + i * s.n, s.n);
        if (!z || !vec_find(c, "keep"))
            vec_fail(c, "no z_f64 or no keep");
        else
            vec_compare_tensor(c, z, rows, s.n_heads * s.n, 1e-5);
        guard_rows(rows, s.n_heads, s.n, protect ? prefill : 0, window);
        check_vllm_kept(c, &s, rows);
        free(rows);
    }
    free(s.raw);
}
