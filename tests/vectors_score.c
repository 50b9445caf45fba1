/*
 * Golden vectors of one head: scores, fold constants, calibration.
 *
 * Tolerances. Against float64, a folded score may be off by 1e-5 of the standard
 * deviation of the scores; against the float32 reference by 5e-4, the reference's
 * own error (specification 1.10).
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/tri_queries.h"
#include "tests/vectors.h"

enum { MAX_TOKENS = 1 << 20 };

static double deviation(const double *x, size_t n)
{
    double mean = 0;
    double var = 0;

    for (size_t i = 0; i < n; i++)
        mean += x[i] / (double)n;
    for (size_t i = 0; i < n; i++)
        var += (x[i] - mean) * (x[i] - mean) / (double)n;
    return sqrt(var);
}

/* The parts of the score, each with all of its own term: tensors of a case state them whatever
 * the aggregation, and a switched-off first term either so or as zeros. */
static void check_terms(struct vec_case *c, const struct vec_model *m, const float *keys, size_t n,
                        int64_t n_seen, double tolerance)
{
    const struct vec_tensor *trig = vec_find(c, "trig_mean_f64");
    const struct vec_tensor *norm = vec_find(c, "norm_f64");
    const struct tkv_tri_stats stats = vec_model_stats(m, 0, 0);
    const struct tkv_tri_params all = {.offset_max = m->fold.params.offset_max,
                                       .disable_mlr = m->fold.params.disable_mlr};
    float *zeros = vec_alloc(m->rope.n_bands, sizeof *zeros);
    const struct tkv_tri_stats no_norm = {stats.mean_re, stats.mean_im, zeros};
    struct vec_model part = *m;
    float *got = vec_alloc(n, sizeof *got);

    if (trig) {
        const bool zero = m->fold.params.disable_trig && trig->type == VEC_F64 &&
                          ((const double *)trig->data)[0] == 0;

        /* Without the subtraction of |c|, a mean magnitude of 0 leaves the first term alone. */
        part.fold.params = all;
        part.fold.params.disable_mlr = true;
        part.fold.n_queries = 1;
        if (!zero)
            vec_model_score(&part, &no_norm, keys, n, n_seen, got);
        vec_compare_tensor(c, trig, got, n, tolerance);
    }
    if (norm) {
        part.fold.params = all;
        part.fold.n_queries = 0;
        vec_model_score(&part, &stats, keys, n, n_seen, got);
        vec_compare_tensor(c, norm, got, n, tolerance);
    }
    free(got);
    free(zeros);
}

/* The scores that other programs computed in float32. How far vLLM's are off the case may say
 * itself; 1e-5 is our share. */
static void check_float_scores(struct vec_case *c, const struct vec_model *m, const float *scores,
                               size_t n, double std)
{
    const double stated = vec_has(c, "max_abs_err_vllm_over_std")
                              ? vec_real(c, "max_abs_err_vllm_over_std") + 1e-5
                              : 5e-4;
    const struct vec_tensor *reference = vec_find(c, "score_ref_f32");
    const struct vec_tensor *vllm = vec_find(c, "score_vllm_torch_f32");
    const struct vec_tensor *folded = vec_find(c, "score_folded_f32");
    const float s = m->rope.attention_scaling;
    float *scaled = vec_alloc(n, sizeof *scaled);

    if (reference)
        vec_compare_tensor(c, reference, scores, n, 5e-4 * std);
    if (folded)
        vec_compare_tensor(c, folded, scores, n, 2e-5 * std);
    /* vLLM takes s squared of keys that already carry s: one s more (specification 1.7). */
    for (size_t i = 0; i < n; i++)
        scaled[i] = scores[i] * s;
    if (vllm)
        vec_compare_tensor(c, vllm, scaled, n, stated * std * (double)s);
    free(scaled);
}

static void check_offsets(struct vec_case *c, const struct tkv_tri_fold *fold)
{
    const float *offsets = VEC_DATA(c, "offsets", VEC_F32, fold->n_offsets);

    for (uint32_t i = 0; offsets && i < fold->n_offsets; i++) {
        if ((double)offsets[i] != fold->offset[i])
            vec_fail(c, "offsets: %u: got %g, want %g", i, fold->offset[i], (double)offsets[i]);
    }
}

void vec_run_single_head(struct vec_case *c)
{
    const size_t n = (size_t)vec_int(c, "n", MAX_TOKENS);
    const int64_t n_seen = vec_int(c, "round_start", INT32_MAX);
    struct vec_model m;
    const bool ready = vec_model_init(c, &m);
    const float *keys = ready ? VEC_DATA(c, "k_rot", VEC_F32, n, m.rope.head_dim) : NULL;
    const int32_t *positions = VEC_DATA(c, "positions", VEC_I32, n);
    const double *want = VEC_DATA(c, "score_f64", VEC_F64, n);
    const struct vec_tensor *k_pre = vec_find(c, "k_pre");
    const struct vec_tensor *k_unrot = vec_find(c, "k_unrot_ref");
    struct tkv_tri_stats stats;
    float *scores;
    double std;

    if (!ready || !keys || !positions || !want)
        return;
    stats = vec_model_stats(&m, 0, 0);
    std = deviation(want, n);
    if (vec_has(c, "score_std"))
        vec_compare(c, "score_std", &std, &(double){vec_real(c, "score_std")}, 1, 1e-9 * std);
    scores = vec_alloc(n, sizeof *scores);
    vec_model_score(&m, &stats, keys, n, n_seen, scores);
    vec_compare_tensor(c, vec_find(c, "score_f64"), scores, n, 1e-5 * std);
    check_float_scores(c, &m, scores, n, std);
    check_terms(c, &m, keys, n, n_seen, 1e-5 * std);
    if (vec_find(c, "offsets"))
        check_offsets(c, &m.fold);
    if (k_pre)
        vec_check_turned(c, &m.rope, &(struct vec_turn){keys, n, positions, n, true}, k_pre);
    if (k_unrot)
        vec_check_turned(c, &m.rope, &(struct vec_turn){keys, n, positions, n, true}, k_unrot);
    free(scores);
}

/* "<model>_G<offset_max>_re": the constant G_f; "<model>_C<N>_re": the same turned to position
 * N, offsets to 65536; "_im" alike. False if the name is of neither form. */
static bool parse_fold_name(const char *name, size_t *model_length, char *what, uint32_t *number,
                            bool *imaginary)
{
    const size_t length = strlen(name);
    const char *end = length > 3 ? name + length - 3 : name;
    const char *p = end;
    unsigned long value;

    *imaginary = strcmp(end, "_im") == 0;
    if (!*imaginary && strcmp(end, "_re") != 0)
        return false;
    while (p > name && p[-1] >= '0' && p[-1] <= '9')
        p--;
    if (p == end || p < name + 3 || (p[-1] != 'G' && p[-1] != 'C') || p[-2] != '_')
        return false;
    value = strtoul(p, NULL, 10);
    *what = p[-1];
    *model_length = (size_t)(p - 2 - name);
    *number = value <= UINT32_MAX ? (uint32_t)value : 0;
    return true;
}

/* tri's constants for one tensor: G in double from the fold, C in float as the virtual query of
 * a mean query of 1. */
static void check_fold_tensor(struct vec_case *c, const struct tkv_rope *rope, char what,
                              uint32_t number, bool imaginary, const struct vec_tensor *want)
{
    const struct tkv_tri_params params = {.offset_max = what == 'G' ? number : 65536};
    struct tkv_tri_fold fold;
    const char *error = tkv_tri_fold_init(&fold, rope, &params);
    const size_t skip = imaginary ? rope->n_bands : 0;
    float one[TKV_MAX_BANDS];
    float zero[TKV_MAX_BANDS] = {0};
    float w[TKV_MAX_HEAD_DIM];
    double got[TKV_MAX_HEAD_DIM];

    if (error || want->type != VEC_F64 || want->n != rope->n_bands) {
        vec_fail(c, "%s: %s", want->name, error ? error : "want one f64 for each inv_freq");
        return;
    }
    for (size_t f = 0; f < rope->n_bands; f++)
        one[f] = 1;
    tri_queries(&fold, rope, &(struct tkv_tri_stats){one, zero, one}, number, w);
    for (size_t f = 0; f < rope->n_bands; f++) {
        const double constant = imaginary ? fold.mean_im[f] : fold.mean_re[f];

        got[f] = what == 'G' ? constant : (double)w[f + skip];
    }
    /* G: 32 cosines of exact phases, each within 2^-52, and their sum. C: no larger than 1,
     * rounded to float. */
    vec_compare(c, want->name, got, want->data, rope->n_bands,
                what == 'G' ? 1e-14 : 0x1p-25 * 1.001);
}

void vec_run_fold_constants(struct vec_case *c)
{
    size_t n_checked = 0;

    for (size_t i = 0; i < c->n_tensors; i++) {
        const struct vec_tensor *inv_freq;
        struct tkv_rope rope = {.attention_scaling = 1};
        size_t model_length;
        uint32_t number;
        bool imaginary;
        char what;
        char name[256];

        if (!parse_fold_name(c->tensors[i].name, &model_length, &what, &number, &imaginary))
            continue;
        snprintf(name, sizeof name, "%.*s_inv_freq", (int)model_length, c->tensors[i].name);
        inv_freq = vec_find(c, name);
        if (!inv_freq || inv_freq->type != VEC_F32 || inv_freq->n > TKV_MAX_BANDS) {
            vec_fail(c, "%s: no such tensor of floats", name);
            continue;
        }
        rope.n_bands = (uint32_t)inv_freq->n;
        rope.head_dim = rope.rotary_dim = 2 * rope.n_bands;
        memcpy(rope.inv_freq, inv_freq->data, inv_freq->n * sizeof(float));
        check_fold_tensor(c, &rope, what, number, imaginary, vec_find(c, c->tensors[i].name));
        n_checked++;
    }
    if (n_checked == 0)
        vec_fail(c, "no tensor to check");
}
