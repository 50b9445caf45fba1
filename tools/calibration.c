/* Gathers query statistics. Heads are independent: each is one task of the executor. */
#include "tools/calibration.h"

#include <math.h>
#include <stdlib.h>

int tkv_calibration_init(struct tkv_calibration *c, const struct tkv_model_config *model,
                         const struct tkv_exec *exec, struct tkv_reason *why)
{
    *c = (struct tkv_calibration){
        .rope = model->rope,
        .n_layers = model->n_layers,
        .n_q_heads = model->shape.n_q_heads,
        .n_bands = model->rope.n_bands,
        .exec = exec,
    };
    c->sums = calloc(tkv_calibration_n_floats(c), sizeof(*c->sums));
    return c->sums ? 0 : tkv_reason_set(why, "out of memory for query statistics");
}

void tkv_calibration_deinit(struct tkv_calibration *c)
{
    free(c->sums);
    *c = (struct tkv_calibration){0};
}

size_t tkv_calibration_n_floats(const struct tkv_calibration *c)
{
    return (size_t)c->n_layers * c->n_q_heads * 3 * c->n_bands;
}

struct chunk {
    struct tkv_calibration *c;
    uint32_t layer;
    size_t n_tokens;
    const float *q;
};

static void add_head(void *arg, size_t head)
{
    const struct chunk *chunk = arg;
    const struct tkv_calibration *c = chunk->c;
    double *re_sum = c->sums + (chunk->layer * (size_t)c->n_q_heads + head) * 3 * c->n_bands;
    double *im_sum = re_sum + c->n_bands, *abs_sum = im_sum + c->n_bands;

    for (size_t t = 0; t < chunk->n_tokens; t++) {
        const float *q = chunk->q + (t * c->n_q_heads + head) * c->rope.head_dim;

        for (uint32_t f = 0; f < c->n_bands; f++) {
            uint32_t re, im;
            double x, y;

            tkv_rope_band(&c->rope, f, &re, &im);
            x = (double)q[re];
            y = (double)q[im];
            re_sum[f] += x;
            im_sum[f] += y;
            abs_sum[f] += sqrt(x * x + y * y);
        }
    }
}

static void see(void *ctx, uint32_t layer, size_t n_tokens, const float *q)
{
    struct tkv_calibration *c = ctx;
    struct chunk chunk = {c, layer, n_tokens, q};

    if (layer == 0)
        c->n_tokens += n_tokens;
    tkv_exec_run(c->exec, c->n_q_heads, add_head, &chunk);
}

struct tkv_query_hook tkv_calibration_hook(struct tkv_calibration *c)
{
    return (struct tkv_query_hook){see, c};
}

void tkv_calibration_means(const struct tkv_calibration *c, float *means)
{
    const size_t n_heads = (size_t)c->n_layers * c->n_q_heads;
    const double n = (double)c->n_tokens;

    for (size_t head = 0; head < n_heads; head++) {
        const double *sums = c->sums + head * 3 * c->n_bands;
        float *re = means + head * 3 * c->n_bands, *im = re + c->n_bands, *abs = im + c->n_bands;

        for (uint32_t f = 0; f < c->n_bands; f++) {
            re[f] = (float)(sums[f] / n);
            im[f] = (float)(sums[c->n_bands + f] / n);
            abs[f] = (float)(sums[2 * c->n_bands + f] / n);
            while ((double)abs[f] < hypot((double)re[f], (double)im[f]))
                abs[f] = nextafterf(abs[f], INFINITY);
        }
    }
}

static int compare(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

int tkv_calibration_concentration(const struct tkv_calibration *c, struct tkv_concentration *out,
                                  struct tkv_reason *why)
{
    const size_t n_heads = (size_t)c->n_layers * c->n_q_heads, n = n_heads * c->n_bands;
    double *all = malloc(n * sizeof(*all));
    size_t n_above = 0;

    if (!all)
        return tkv_reason_set(why, "out of memory for %zu bands", n);
    for (size_t i = 0; i < n; i++) {
        const double *sums = c->sums + i / c->n_bands * 3 * c->n_bands + i % c->n_bands;
        const double abs = sums[2 * c->n_bands];

        all[i] = abs > 0 ? hypot(sums[0], sums[c->n_bands]) / abs : 0;
        n_above += all[i] > 0.95;
    }
    qsort(all, n, sizeof(*all), compare);
    out->median = n % 2 ? all[n / 2] : (all[n / 2 - 1] + all[n / 2]) / 2;
    out->share_above_095 = (double)n_above / (double)n;
    free(all);
    return 0;
}
