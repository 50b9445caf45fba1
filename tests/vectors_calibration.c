/*
 * Golden vectors of calibration: statistics of pre-RoPE queries. The reference
 * script comes by them through rotated queries and carries the attention scaling
 * once too often; both are checked.
 */
#include <math.h>
#include <stdlib.h>

#include "tests/vectors.h"

struct stats {
    double *mean_re;
    double *mean_im;
    double *mean_abs;
    double *mrl;
};

struct queries {
    struct tkv_rope rope;
    size_t n_heads;
    size_t n_tokens;
    const float *pre;
    const float *post;
    double largest;
};

/* The four statistics of x[heads][tokens][head_dim], each [heads][bands], in one allocation. */
static struct stats compute_stats(const struct queries *q, const float *x)
{
    const size_t n = q->n_heads * q->rope.n_bands;
    double *memory = vec_alloc(4 * n, sizeof *memory);
    struct stats s = {memory, memory + n, memory + 2 * n, memory + 3 * n};

    for (size_t i = 0; i < n; i++) {
        const float *head = x + i / q->rope.n_bands * q->n_tokens * q->rope.head_dim;
        uint32_t re;
        uint32_t im;

        tkv_rope_band(&q->rope, (uint32_t)(i % q->rope.n_bands), &re, &im);
        for (size_t t = 0; t < q->n_tokens; t++) {
            const double x_re = (double)head[t * q->rope.head_dim + re];
            const double x_im = (double)head[t * q->rope.head_dim + im];

            s.mean_re[i] += x_re / (double)q->n_tokens;
            s.mean_im[i] += x_im / (double)q->n_tokens;
            s.mean_abs[i] += hypot(x_re, x_im) / (double)q->n_tokens;
        }
        s.mrl[i] = hypot(s.mean_re[i], s.mean_im[i]) / s.mean_abs[i];
    }
    return s;
}

/* q->post turned back: what a script that sees rotated queries has to do. */
static float *turn_back(const struct queries *q)
{
    const uint32_t dim = q->rope.head_dim;
    float *pre = vec_alloc(q->n_heads * q->n_tokens * dim, sizeof *pre);
    float cs[2 * TKV_MAX_BANDS];

    for (size_t i = 0; i < q->n_heads * q->n_tokens; i++) {
        tkv_rope_angles(&q->rope, (int64_t)(i % q->n_tokens), cs);
        tkv_rope_turn_back(&q->rope, cs, q->post + i * dim, pre + i * dim);
    }
    return pre;
}

/* Against the float32 chain, times by: it has the attention scaling in its result. */
static void check_reference(struct vec_case *c, const char *name, const struct queries *q,
                            const double *got, double by, double tolerance)
{
    const size_t n = q->n_heads * q->rope.n_bands;
    const float *want = VEC_DATA(c, name, VEC_F32, q->n_heads, q->rope.n_bands);
    double *wide = vec_alloc(2 * n, sizeof *wide);

    for (size_t i = 0; want && i < n; i++) {
        wide[i] = by * got[i];
        wide[n + i] = (double)want[i];
    }
    if (want)
        vec_compare(c, name, wide, wide + n, n, tolerance);
    free(wide);
}

static void check_exact(struct vec_case *c, const char *name, const struct queries *q,
                        const double *got, double tolerance)
{
    const double *want = VEC_DATA(c, name, VEC_F64, q->n_heads, q->rope.n_bands);

    if (want)
        vec_compare(c, name, got, want, q->n_heads * q->rope.n_bands, tolerance);
}

static bool read_queries(struct vec_case *c, struct queries *q)
{
    if (!vec_rope(c, &q->rope))
        return false;
    q->n_heads = (size_t)vec_int(c, "heads", 1024);
    q->n_tokens = (size_t)vec_int(c, "tokens", 1 << 20);
    q->pre = VEC_DATA(c, "q_pre", VEC_F32, q->n_heads, q->n_tokens, q->rope.head_dim);
    q->post = VEC_DATA(c, "q_post", VEC_F32, q->n_heads, q->n_tokens, q->rope.head_dim);
    if (!q->pre || !q->post)
        return false;
    for (size_t i = 0; i < q->n_heads * q->n_tokens * q->rope.head_dim; i++)
        q->largest = fmax(q->largest, fabs((double)q->pre[i]));
    return c->n_failures == 0;
}

void vec_run_calibration(struct vec_case *c)
{
    struct queries q = {0};
    const double ratio = vec_real(c, "ref_over_true_magnitude");
    double s;
    double tolerance;
    size_t n;
    float *pre;
    struct stats exact;
    struct stats turned;

    if (!read_queries(c, &q))
        return;
    n = q.n_heads * q.n_tokens;
    s = (double)q.rope.attention_scaling;
    /* Phase error of a float32 table at the last position, and some roundings. */
    tolerance = 0x1p-23 * ((double)q.n_tokens * (double)q.rope.inv_freq[0] + 8) * q.largest * s;
    pre = turn_back(&q);
    exact = compute_stats(&q, q.pre);
    turned = compute_stats(&q, pre);
    vec_check_turned(c, &q.rope, &(struct vec_turn){q.post, n, NULL, q.n_tokens, true},
                     vec_find(c, "q_pre"));
    vec_check_turned(c, &q.rope, &(struct vec_turn){q.pre, n, NULL, q.n_tokens, false},
                     vec_find(c, "q_post"));
    /* Sums of n_tokens doubles, in whatever order. */
    check_exact(c, "q_mean_re_f64", &q, exact.mean_re, 1e-12 * q.largest);
    check_exact(c, "q_mean_im_f64", &q, exact.mean_im, 1e-12 * q.largest);
    check_exact(c, "q_abs_mean_f64", &q, exact.mean_abs, 1e-12 * q.largest);
    check_exact(c, "mrl_f64", &q, exact.mrl, 1e-12);
    check_reference(c, "q_mean_re_ref", &q, turned.mean_re, s, tolerance);
    check_reference(c, "q_mean_im_ref", &q, turned.mean_im, s, tolerance);
    check_reference(c, "q_abs_mean_ref", &q, turned.mean_abs, s, tolerance);
    vec_compare(c, "ref_over_true_magnitude", &s, &ratio, 1, 1e-6);
    free(exact.mean_re);
    free(turned.mean_re);
    free(pre);
}
