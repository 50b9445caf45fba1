/* Gathers query statistics. Heads are independent: each is one task of the executor. */
#include "tools/calibration.h"

#include <stdlib.h>

#include "core/calibration.h"

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
    const size_t dim = c->rope.head_dim;

    tkv_calibration_add(&c->rope, chunk->q + head * dim, c->n_q_heads * dim, chunk->n_tokens,
                        c->sums + (chunk->layer * (size_t)c->n_q_heads + head) * 3 * c->n_bands);
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
    tkv_calibration_mean(c->sums, (size_t)c->n_layers * c->n_q_heads, c->n_bands, c->n_tokens,
                         means);
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

        all[i] = tkv_concentration(sums[0], sums[c->n_bands], sums[2 * c->n_bands]);
        n_above += all[i] > 0.95;
    }
    qsort(all, n, sizeof(*all), compare);
    out->median = n % 2 ? all[n / 2] : (all[n / 2 - 1] + all[n / 2]) / 2;
    out->share_above_095 = (double)n_above / (double)n;
    free(all);
    return 0;
}
