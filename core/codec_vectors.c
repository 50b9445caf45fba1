/*
 * The coding of vectors, which keys and values share: rotation, length, the search for the best
 * scale, codes. Packing into blocks is in codec_keys.c and codec_values.c.
 */
#include <math.h>

#include "core/codec_priv.h"

/* A finite float brought to where its half is finite. fminf would be a call. */
static float clamp(float x)
{
    const float largest = 65504;

    return x > largest ? largest : x < -largest ? -largest : x;
}

uint16_t tkv_saturated(float x)
{
    return tkv_f32_to_f16(clamp(x));
}

void tkv_saturate(const struct tkv_kernels *kn, void *dst, const float *src, size_t n)
{
    float x[TKV_MAX_HEAD_DIM];
    uint16_t halves[TKV_MAX_HEAD_DIM];

    for (size_t j = 0; j < n; j++)
        x[j] = clamp(src[j]);
    kn->f32_to_f16(halves, x, n);
    memcpy(dst, halves, n * sizeof(*halves));
}

void tkv_saturate_vector(const struct tkv_kernels *kn, void *dst, struct tkv_vectors x, size_t dim)
{
    float row[TKV_MAX_HEAD_DIM];

    tkv_to_f32(kn, row, x.x, x.type, dim);
    tkv_saturate(kn, dst, row, dim);
}

static bool measurable(float norm2)
{
    return norm2 > 1e-30f && norm2 < 1e30f;
}

/*
 * Length of y[dim], whose square leaves the range of a float: y is brought to around 1 by an
 * exact power of two first; *exponent says which. 0 for a zero vector.
 */
static float measure_extreme(const struct tkv_kernels *kn, float *y, uint32_t dim, int *exponent)
{
    float largest = 0;

    for (uint32_t j = 0; j < dim; j++)
        largest = fmaxf(largest, fabsf(y[j]));
    if (largest == 0)
        return 0;
    *exponent = ilogbf(largest);
    for (uint32_t j = 0; j < dim; j++)
        y[j] = ldexpf(y[j], -*exponent);
    return sqrtf(kn->norm2(y, dim));
}

/*
 * The residual in the rotated domain against what will be decoded, which is the
 * stored, rounded scale: so the estimate is unbiased to the last bit of it.
 */
static void sketch(const struct tkv_coder *c, const struct tkv_kernels *kn, float *y, int exponent,
                   struct tkv_coded *out)
{
    static const struct tkv_cells signs = {.edge = {0}};
    const struct tkv_section *s = &c->section[0];
    const float scale = ldexpf(tkv_f16_to_f32(tkv_saturated(out->scale)), -exponent);
    float decoded[TKV_MAX_HEAD_DIM];

    kn->lookup(decoded, out->codes, c->dim, s->lut, scale);
    for (uint32_t j = 0; j < c->dim; j++)
        y[j] -= decoded[j];
    out->residual = ldexpf(sqrtf(kn->norm2(y, c->dim)), exponent);
    tkv_rotate(&c->sketch, kn, y, y);
    kn->quantise(out->codes + c->dim, y, c->dim, &signs, 1, 1);
}

/* Pre-scales tried, in the order of how often they win. */
static const float prescales[TKV_N_TRIALS] = {1.0f,  0.93f, 1.07f, 0.86f,
                                              1.15f, 0.79f, 1.24f, 1.34f};
/* Magnitudes are tried in these parts of the unit, and have a level for every two. */
#define TRIAL_UNITS 32.0f

/* Levels of 64 magnitudes under a pre-scale: entry i is of those around (2 i + 1/2) units. */
static void fill_levels(uint8_t *levels, const struct tkv_section *s, float prescale)
{
    const size_t n = (size_t)1 << s->w;

    memset(levels, s->level[n / 2], 64);
    for (size_t code = n / 2 + 1; code < n; code++) {
        const float edge = (s->lut[code - 1] + s->lut[code]) / 2 * prescale;
        const size_t first = (size_t)(edge * (TRIAL_UNITS / 2) + 0.75f);

        if (first < 64)
            memset(levels + first, s->level[code], 64 - first);
    }
}

void tkv_search_init(struct tkv_search *search, const struct tkv_section *sections,
                     uint32_t n_sections, enum tkv_scale_rule rule)
{
    search->sections = sections;
    search->n_sections = n_sections;
    search->rule = rule;
    for (uint32_t i = 0; i < n_sections; i++)
        for (size_t t = 0; t < TKV_N_TRIALS; t++)
            fill_levels(search->levels[i][t], &sections[i], prescales[t]);
}

/* y / unit coded in all sections; fit[0] = <y, v> and fit[1] = <v, v>, v being what they stand for. */
static void fit_codes(const struct tkv_search *search, const struct tkv_kernels *kn, const float *y,
                      float unit, uint8_t *codes, float *fit)
{
    fit[0] = fit[1] = 0;
    for (uint32_t i = 0; i < search->n_sections; i++) {
        const struct tkv_section *s = &search->sections[i];
        float part[2];

        kn->fit(codes + s->first, y + s->first, s->n, &s->cells, s->w, 1 / unit, s->levels, part);
        fit[0] += s->alpha * part[0];
        fit[1] += s->alpha * s->alpha * part[1];
    }
}

typedef float trials __attribute__((vector_size(4 * TKV_N_TRIALS)));
typedef int32_t trial_ints __attribute__((vector_size(4 * TKV_N_TRIALS)));

/* The pre-scale whose codes have the largest <y, v>^2 / <v, v>: they leave |y|^2 less that. It is
 * found on rounded magnitudes, and compared as integers whose last bits say which: a processor
 * that guessed at a branch here would guess wrong. */
static size_t best_prescale(const struct tkv_search *search, const struct tkv_kernels *kn,
                            const float *y, float unit)
{
    static const trial_ints last_first = {7, 6, 5, 4, 3, 2, 1, 0};
    trials product = {0}, square = {0}, gain;
    trial_ints order;
    int32_t most = 0;

    for (uint32_t i = 0; i < search->n_sections; i++) {
        const struct tkv_section *s = &search->sections[i];
        int32_t sums[2][TKV_N_TRIALS];
        trial_ints products, squares;

        kn->try_scales(sums, y + s->first, s->n, TRIAL_UNITS / unit, search->levels[i]);
        memcpy(&products, sums[0], sizeof(products));
        memcpy(&squares, sums[1], sizeof(squares));
        product += s->alpha * __builtin_convertvector(products, trials);
        square += s->alpha * s->alpha * __builtin_convertvector(squares, trials);
    }
    gain = product * product / square;
    order = ((trial_ints)gain & -TKV_N_TRIALS) + last_first;
    for (size_t i = 0; i < TKV_N_TRIALS; i++)
        most = order[i] > most ? order[i] : most;
    return TKV_N_TRIALS - 1 - (size_t)(most % TKV_N_TRIALS);
}

float tkv_search_codes(const struct tkv_search *search, const struct tkv_kernels *kn,
                       const float *y, float norm, float unit, uint8_t *codes)
{
    const size_t best = best_prescale(search, kn, y, unit);
    float fit[2];

    fit_codes(search, kn, y, unit * prescales[best], codes, fit);
    if (search->rule == TKV_SCALE_LENGTH)
        return norm / sqrtf(fit[1]);
    return fit[0] / fit[1];
}

static void code_plain(const struct tkv_coder *c, const struct tkv_kernels *kn, const float *y,
                       float unit, uint8_t *codes)
{
    const struct tkv_section *s = c->section;

    for (uint32_t i = 0; i < c->n_sections; i++, s++)
        kn->quantise(codes + s->first, y + s->first, s->n, &s->cells, s->w,
                     unit > 0 ? 1 / unit : 0);
}

typedef float floats4 __attribute__((vector_size(16)));

/* y[dim] -= m[dim] */
static void subtract(float *y, const float *m, uint32_t dim)
{
    uint32_t j = 0;

    for (; j + 4 <= dim; j += 4) {
        floats4 a, b;

        memcpy(&a, y + j, sizeof(a));
        memcpy(&b, m + j, sizeof(b));
        a -= b;
        memcpy(y + j, &a, sizeof(a));
    }
    for (; j < dim; j++)
        y[j] -= m[j];
}

/* For a vector whose square, or that of what the mean leaves of it, leaves the range of a float. */
static float residual_extreme(const struct tkv_coder *c, const struct tkv_kernels *kn,
                              const struct tkv_vectors *x, const float *mean, float *y,
                              int *exponent)
{
    int further = 0;
    float norm, norm2;

    tkv_to_f32(kn, y, x->x, x->type, c->dim);
    norm = measure_extreme(kn, y, c->dim, exponent);
    tkv_rotate(&c->rotation, kn, y, y);
    if (!mean)
        return norm;
    for (uint32_t j = 0; j < c->dim; j++)
        y[j] -= ldexpf(mean[j], -*exponent);
    norm2 = kn->norm2(y, c->dim);
    if (measurable(norm2))
        return sqrtf(norm2);
    norm = measure_extreme(kn, y, c->dim, &further);
    *exponent += further;
    return norm;
}

static void turn(const struct tkv_coder *c, const struct tkv_kernels *kn,
                 const struct tkv_vectors *x, const float *mean, float *y)
{
    tkv_rotate_vector(&c->rotation, kn, y, x);
    if (mean)
        subtract(y, mean, c->dim);
}

/* The length of y, what `turn` made of x; or both made again. */
static float measure(const struct tkv_coder *c, const struct tkv_kernels *kn,
                     const struct tkv_vectors *x, const float *mean, float *y, int *exponent)
{
    const float norm2 = kn->norm2(y, c->dim);

    *exponent = 0;
    if (measurable(norm2))
        return sqrtf(norm2);
    return residual_extreme(c, kn, x, mean, y, exponent);
}

float tkv_residual(const struct tkv_coder *c, const struct tkv_kernels *kn,
                   const struct tkv_vectors *x, const float *mean, float *y, int *exponent)
{
    turn(c, kn, x, mean, y);
    return measure(c, kn, x, mean, y, exponent);
}

static void code_vector(const struct tkv_coding *g, float *y, float norm, int exponent,
                        struct tkv_coded *out)
{
    const struct tkv_coder *c = g->c;
    float scale = norm * c->rotation.scale;

    if (c->codec->id == TKV_CODEC_INT8)
        scale = g->kn->split_bytes(out->codes, out->codes + c->dim, y, c->dim) * (8 / 127.5f);
    else if (c->codec->best && norm > 0)
        scale = tkv_search_codes(&g->search, g->kn, y, norm, scale, out->codes);
    else
        code_plain(c, g->kn, y, scale, out->codes);
    out->scale = exponent ? ldexpf(scale, exponent) : scale;
    out->residual = 0;
    if (c->codec->qjl)
        sketch(c, g->kn, y, exponent, out);
}

void tkv_decode_codes(const struct tkv_coder *c, const struct tkv_kernels *kn,
                      const struct tkv_coded *v, float *x)
{
    float low[TKV_MAX_HEAD_DIM];

    for (uint32_t i = 0; i < c->n_sections; i++) {
        const struct tkv_section *s = &c->section[i];

        float *const to = s->adds ? low : x + s->first;

        kn->lookup(to, v->codes + s->code, s->n, s->lut, v->scale);
        for (uint32_t j = 0; s->adds && j < s->n; j++)
            x[s->first + j] += low[j];
    }
}

void tkv_coding_init(struct tkv_coding *g, const struct tkv_coder *c, const struct tkv_kernels *kn,
                     enum tkv_side side, const void *mean)
{
    g->c = c;
    g->kn = kn;
    g->mean = tkv_load_mean(c, kn, side, mean, g->mean_room);
    if (c->codec->best)
        tkv_search_init(&g->search, c->section, c->n_sections,
                        side == TKV_KEYS ? TKV_SCALE_LENGTH : TKV_SCALE_LEAST_SQUARES);
}

/* Vectors to come, since reading them takes as long as coding those at hand. */
static void prefetch(struct tkv_vectors x, size_t first, size_t n, size_t dim)
{
    const size_t bytes = dim * tkv_dtype_bytes(x.type);

    for (size_t t = first; t < first + n; t++) {
        const uint8_t *from = tkv_vectors_from(x, t).x;

        for (size_t at = 0; at < bytes; at += 64)
            __builtin_prefetch(from + at);
    }
}

/* All are rotated before any is measured, and measured before any is coded: a processor then works on
 * one while another waits. */
void tkv_code_vectors(const struct tkv_coding *g, struct tkv_vectors x, size_t n,
                      struct tkv_coded *out)
{
    const size_t now = n < TKV_CODED_TOKENS ? n : TKV_CODED_TOKENS, dim = g->c->dim;
    _Alignas(64) float y[TKV_CODED_TOKENS * TKV_MAX_HEAD_DIM];
    struct tkv_vectors at[TKV_CODED_TOKENS];
    float norm[TKV_CODED_TOKENS];
    int exponent[TKV_CODED_TOKENS];

    if (n >= 3 * TKV_CODED_TOKENS)
        prefetch(x, 2 * now, now, dim);
    for (size_t t = 0; t < now; t++) {
        at[t] = tkv_vectors_from(x, t);
        turn(g->c, g->kn, &at[t], g->mean, y + t * dim);
    }
    for (size_t t = 0; t < now; t++)
        norm[t] = measure(g->c, g->kn, &at[t], g->mean, y + t * dim, &exponent[t]);
    for (size_t t = 0; t < now; t++)
        code_vector(g, y + t * dim, norm[t], exponent[t], &out[t]);
    memset(out + now, 0, (TKV_CODED_TOKENS - now) * sizeof(*out));
}
