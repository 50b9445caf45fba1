/* Random attention problems; see the header. */
#include "tests/attend_scene.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "core/cpu.h"
#include "core/half.h"

unsigned attend_cpu(unsigned round)
{
    if (round % 3 == 0)
        return 0;
    return tkv_cpu_flags(round % 3 == 1 ? NULL : "avx512");
}

static void fill_halves(struct rng *r, uint16_t *x, size_t n, uint32_t dim)
{
    for (size_t i = 0; i < n * (dim + ATTEND_PAD); i++)
        x[i] = i % (dim + ATTEND_PAD) < dim ? tkv_f32_to_f16(rng_gauss(r)) : 0x7e00;
}

void attend_scene_make(struct attend_scene *s, struct rng *r, unsigned cpu)
{
    static const uint32_t groups[] = {1, 2, 3, 4, 5, 7, 8, 16};
    static const uint32_t dims[] = {8, 10, 16, 24, 64, 80, 96, 128, 192, 256};
    int32_t position = 0;

    tkv_kernels_init(&s->kn, cpu);
    s->k_dim = dims[rng_below(r, 10)];
    s->v_dim = dims[rng_below(r, 10)];
    s->n = 1 + rng_below(r, ATTEND_MAX_KEYS);
    s->rows.group = groups[rng_below(r, 8)];
    s->rows.n_tokens = rng_below(r, 2) ? 1 : 1 + rng_below(r, ATTEND_MAX_TOKENS);
    s->rows.positions = s->q_positions;
    s->n_rows = s->rows.n_tokens * s->rows.group;
    s->a.scale = 1 / sqrtf((float)s->k_dim);
    s->a.softcap = rng_below(r, 3) ? 0 : 1 + 4 * rng_uniform(r);
    s->a.window_tokens = rng_below(r, 3) ? 0 : 1 + rng_below(r, 300);
    s->with_sinks = rng_below(r, 3) == 0;
    for (uint32_t h = 0; h < s->rows.group; h++)
        s->sinks[h] = 2 * rng_gauss(r);
    for (size_t t = 0; t < s->n; t++)
        s->k_positions[t] = position += 1 + (int32_t)(rng_below(r, 4) ? 0 : rng_below(r, 9));
    position = rng_below(r, 2) ? position : (int32_t)rng_below(r, (uint32_t)position + 1);
    for (size_t t = 0; t < s->rows.n_tokens; t++)
        s->q_positions[t] = position + (int32_t)t;
    for (size_t i = 0; i < s->n_rows * s->k_dim; i++)
        s->q[i] = 2 * rng_gauss(r);
    fill_halves(r, s->k, s->n, s->k_dim);
    fill_halves(r, s->v, s->n, s->v_dim);
}

double attend_half_at(const uint16_t *x, size_t row, uint32_t dim, size_t i)
{
    return (double)tkv_f16_to_f32(x[row * (dim + ATTEND_PAD) + i]);
}

static bool sees(const struct attend_scene *s, size_t row, size_t t)
{
    const int64_t p = s->q_positions[row / s->rows.group];
    const int64_t k = s->k_positions[t];

    return k <= p && (s->a.window_tokens == 0 || p - k < (int64_t)s->a.window_tokens);
}

static double naive_logit(const struct attend_scene *s, size_t row, size_t t)
{
    double x = 0;

    for (uint32_t i = 0; i < s->k_dim; i++)
        x += (double)s->q[row * s->k_dim + i] * attend_half_at(s->k, t, s->k_dim, i);
    x *= (double)s->a.scale;
    return s->a.softcap > 0 ? (double)s->a.softcap * tanh(x / (double)s->a.softcap) : x;
}

void attend_naive_row(const struct attend_scene *s, size_t row, double *out, double *lse)
{
    const double sink = s->with_sinks ? (double)s->sinks[row % s->rows.group] : -INFINITY;
    double x[ATTEND_MAX_KEYS];
    double max = sink;
    double sum = 0;

    memset(out, 0, s->v_dim * sizeof *out);
    for (size_t t = 0; t < s->n; t++) {
        x[t] = sees(s, row, t) ? naive_logit(s, row, t) : -INFINITY;
        max = fmax(max, x[t]);
    }
    *lse = -INFINITY;
    if (max == -INFINITY)
        return;
    sum = exp(sink - max);
    for (size_t t = 0; t < s->n; t++) {
        const double w = exp(x[t] - max);

        sum += w;
        for (uint32_t i = 0; i < s->v_dim; i++)
            out[i] += w * attend_half_at(s->v, t, s->v_dim, i);
    }
    for (uint32_t i = 0; i < s->v_dim; i++)
        out[i] /= sum;
    *lse = max + log(sum);
}

struct tkv_partial attend_new_partial(const struct attend_scene *s)
{
    struct tkv_partial p;
    void *memory = NULL;

    assert_int_equal(posix_memalign(&memory, 64, tkv_partial_bytes(s->n_rows, s->v_dim)), 0);
    tkv_partial_init(&p, memory, s->n_rows, s->v_dim);
    return p;
}

void attend_scene_halves(const struct attend_scene *s, size_t from, size_t to,
                         struct tkv_partial *p)
{
    const size_t scratch_bytes = tkv_attend_scratch_bytes(s->n_rows, s->k_dim, s->v_dim);
    void *scratch = malloc(scratch_bytes);
    const size_t k_stride = s->k_dim + ATTEND_PAD;
    const size_t v_stride = s->v_dim + ATTEND_PAD;
    /* Cut somewhere: the result must not depend on where. */
    const size_t middle = from + (to - from) * 2 / 5;
    const struct tkv_half_rows runs[2] = {
        {s->k + from * k_stride, k_stride, s->v + from * v_stride, v_stride, s->k_positions + from,
         middle - from},
        {s->k + middle * k_stride, k_stride, s->v + middle * v_stride, v_stride,
         s->k_positions + middle, to - middle},
    };

    memset(scratch, 0xff, scratch_bytes); /* NaN, whatever it is read as */
    tkv_attend_half(&s->kn, &s->a, &s->rows, s->q, s->k_dim, runs, p, scratch);
    free(scratch);
}

void attend_scene_tile(const struct attend_scene *s, size_t from, size_t to, struct tkv_partial *p)
{
    float *tile = malloc(sizeof(float) * s->k_dim * TKV_BLOCK_TOKENS);
    float *values = malloc(sizeof(float) * (to - from) * s->v_dim);
    void *scratch = malloc(tkv_attend_scratch_bytes(s->n_rows, s->k_dim, s->v_dim));

    for (size_t i = 0; i < s->k_dim * (size_t)TKV_BLOCK_TOKENS; i++)
        tile[i] = NAN;
    for (size_t t = from; t < to; t++) {
        for (uint32_t i = 0; i < s->k_dim; i++)
            tile[i * TKV_BLOCK_TOKENS + t - from] = (float)attend_half_at(s->k, t, s->k_dim, i);
        for (uint32_t i = 0; i < s->v_dim; i++)
            values[(t - from) * s->v_dim + i] = (float)attend_half_at(s->v, t, s->v_dim, i);
    }
    tkv_attend_tile(&s->kn, &s->a, &s->rows, s->q, s->k_dim, tile, values, s->k_positions + from,
                    to - from, p, scratch);
    free(tile);
    free(values);
    free(scratch);
}
