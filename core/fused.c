/* Attention from codes: preparing queries, and one block at a time. The sums are kernels. */
#include "core/fused.h"

#include <assert.h>
#include <float.h>
#include <math.h>
#include <string.h>

#include "core/attention_priv.h"
#include "core/codec_priv.h"

enum { LANES = TKV_BLOCK_TOKENS };

/* 127 * 128 + 63: the largest of 128 * high + low with both within -127..127 and low under 64. */
static const float query_units = 16319;

/* A dot product is under 2^31, a scale at most 65504. */
static const float largest_product = 0x1p31f * 0x1p16f;

bool tkv_fused_keys(const struct tkv_coder *k)
{
    return k->codec->rotated && !k->codec->qjl;
}

bool tkv_fused_values(const struct tkv_coder *v)
{
    return v->codec->rotated && !v->codec->qjl;
}

static void *take(uint8_t *base, size_t *at, size_t bytes)
{
    void *p = base ? base + *at : NULL;

    *at += tkv_align(bytes, 64);
    return p;
}

static size_t layout(struct tkv_fused *f, const struct tkv_coder *k, size_t n_rows, void *memory)
{
    size_t at = 0;

    f->bytes = take(memory, &at, n_rows * 2 * k->n_slots);
    f->sums = take(memory, &at, k->n_sections * n_rows * sizeof(*f->sums));
    f->step = take(memory, &at, n_rows * sizeof(float));
    f->dots = take(memory, &at, n_rows * sizeof(*f->dots));
    f->x = take(memory, &at, n_rows * sizeof(*f->x));
    f->weights = take(memory, &at, n_rows * sizeof(*f->weights));
    f->unit = take(memory, &at, n_rows * sizeof(float));
    return at;
}

size_t tkv_fused_bytes(const struct tkv_coder *k, size_t n_rows)
{
    struct tkv_fused f;

    return layout(&f, k, n_rows, NULL);
}

/* Levels stand for alpha each, which goes into the query. NaN if q is not finite. */
static float largest_of(const struct tkv_coder *k, const float *q)
{
    float largest = 0, zero = 0;

    for (uint32_t i = 0; i < k->n_sections; i++) {
        const struct tkv_section *s = &k->section[i];

        for (uint32_t j = 0; j < s->n; j++) {
            const float x = fabsf(q[s->first + j] * s->alpha);

            zero += x * 0;
            largest = x > largest ? x : largest;
        }
    }
    return largest + zero;
}

static void round_section(const struct tkv_section *s, const float *q, float inverse, size_t n_rows,
                          int8_t *bytes, int32_t *sums)
{
    for (uint32_t j = 0; j < s->n; j++) {
        const int n = (int)lrintf(q[s->first + j] * s->alpha * inverse);
        const int h = (n + 64) >> 7;
        int8_t *to = bytes + (s->slot + j) / 4 * n_rows * 8 + j % 4;

        to[0] = (int8_t)h;
        to[4] = (int8_t)(n - 128 * h);
        sums[0] += to[0];
        sums[1] += to[4];
    }
}

static void round_query(struct tkv_fused *f, size_t r)
{
    const struct tkv_coder *k = f->k;
    const float *q = f->q + r * k->tile_dim;
    const float largest = largest_of(k, q);
    /* A query too small to be divided by is zero; one that is not finite spoils by its step. */
    const float inverse = largest > 1e-30f && isfinite(largest) ? query_units / largest : 0;

    f->step[r] = largest / query_units;
    for (uint32_t i = 0; inverse > 0 && i < k->n_sections; i++)
        round_section(&k->section[i], q, inverse, f->n_rows, f->bytes + r * 8,
                      f->sums[i * f->n_rows + r]);
}

void tkv_fused_init(struct tkv_fused *f, const struct tkv_kernels *kn, const struct tkv_coder *k,
                    size_t n_rows, const float *q, void *memory)
{
    assert(tkv_fused_keys(k));
    f->kn = kn;
    f->k = k;
    f->n_rows = n_rows;
    f->q = q;
    layout(f, k, n_rows, memory);
    memset(f->bytes, 0, 2 * n_rows * k->n_slots);
    memset(f->sums, 0, k->n_sections * n_rows * sizeof(*f->sums));
    for (size_t r = 0; r < n_rows; r++)
        round_query(f, r);
}

void tkv_fused_logits(struct tkv_fused *f, const void *keys, float factor, float *max)
{
    const struct tkv_coder *k = f->k;
    const uint8_t *bytes = keys;
    float scales[LANES], mean[TKV_MAX_HEAD_DIM];
    const float *m = tkv_load_mean(k, f->kn, TKV_KEYS, bytes + tkv_k_mean_at(k), mean);

    memset(f->dots, 0, f->n_rows * sizeof(*f->dots));
    for (uint32_t i = 0; i < k->n_sections; i++) {
        const struct tkv_codes codes = tkv_key_codes(k, i, keys);
        const struct tkv_code_queries q = {.bytes = f->bytes + 2 * f->n_rows * k->section[i].slot,
                                           .sums = (const int32_t(*)[2])(f->sums + i * f->n_rows),
                                           .n = f->n_rows};

        f->kn->code_dots(f->dots, &codes, &q);
    }
    tkv_to_f32(f->kn, scales, bytes + tkv_k_scales_at(k), TKV_F16, LANES);
    for (size_t r = 0; r < f->n_rows; r++) {
        const float offset = m ? f->kn->dot(f->q + r * k->tile_dim, m, k->dim) * factor : 0;

        const float top =
            f->kn->scale_dots(f->x[r], f->dots[r], scales, f->step[r] * factor, offset);
        const bool safe = fabsf(f->step[r] * factor) * largest_product + fabsf(offset) < FLT_MAX;

        if (max)
            max[r] = safe ? top : NAN;
    }
}

/* What all rows of a block share. */
struct block {
    const struct tkv_attn_params *a;
    const float *v_scales;
    size_t n;
};

/* Row r's logits become its weights; returns the sum they add, 0 if they do not matter. */
static float weigh_row(struct tkv_fused *f, const struct block *b, struct tkv_partial *p, size_t r,
                       struct tkv_span span, float max)
{
    float *x = f->x[r];
    float sum = 0;

    f->unit[r] = 0;
    memset(f->weights[r], 0, sizeof(f->weights[r]));
    if (span.begin == span.end)
        return 0;
    if (isnan(max)) {
        max = tkv_mask_logits(x, span);
        if (!tkv_span_is_finite(x, span))
            tkv_spoil_row(p, r);
    }
    if (isnan(p->max[r]))
        return 0;
    if (b->a->softcap > 0)
        tkv_cap_logits(f->kn, x, b->a->softcap);
    if (b->a->softcap > 0 || span.end - span.begin < LANES)
        max = tkv_mask_logits(x, span);
    if (max < p->max[r] - TKV_FUSED_SKIP)
        return 0;
    if (max > p->max[r])
        tkv_raise_max(p, r, max);
    f->unit[r] = f->kn->weigh(f->weights[r][0], f->weights[r][1], x, p->max[r], b->v_scales, &sum);
    p->sum[r] += sum;
    return sum;
}

static void add_values(struct tkv_fused *f, const struct tkv_coder *v, const void *values, size_t n,
                       const float *mass, struct tkv_partial *p)
{
    float unit[TKV_FUSED_MAX_ROWS], mean[TKV_MAX_HEAD_DIM];
    const float *m =
        tkv_load_mean(v, f->kn, TKV_VALUES, (const uint8_t *)values + tkv_v_mean_at(), mean);

    for (uint32_t i = 0; i < v->n_sections; i++) {
        const struct tkv_codes codes = tkv_value_codes(v, i, values);

        for (size_t r = 0; r < f->n_rows; r++)
            unit[r] = f->unit[r] * v->section[i].alpha;
        f->kn->code_sums(p->out + v->section[i].first, p->dim, &codes,
                         (const uint8_t(*)[2][LANES])f->weights, unit, f->n_rows, n);
    }
    if (!m)
        return;
    for (size_t r = 0; r < f->n_rows; r++)
        f->x[r][0] = mass[r];
    f->kn->accumulate(p->out, f->x[0], f->n_rows, m, 1, p->dim);
}

void tkv_fused_attend(struct tkv_fused *f, const struct tkv_coder *v,
                      const struct tkv_attn_params *a, const struct tkv_attn_rows *rows,
                      const void *keys, const void *values, const int32_t *positions, size_t n,
                      struct tkv_partial *p)
{
    float max[TKV_FUSED_MAX_ROWS], mass[TKV_FUSED_MAX_ROWS], scales[LANES];
    const struct block b = {a, scales, n};
    float total = 0;

    assert(tkv_fused_values(v) && f->n_rows <= TKV_FUSED_MAX_ROWS);
    assert(f->n_rows == rows->n_tokens * rows->group && p->n_rows == f->n_rows);
    tkv_fused_logits(f, keys, a->scale, max);
    tkv_to_f32(f->kn, scales, values, TKV_F16, LANES);
    for (size_t r = 0; r < f->n_rows; r++) {
        const struct tkv_span span =
            tkv_seen_lanes(a, positions, n, rows->positions[r / rows->group]);

        mass[r] = weigh_row(f, &b, p, r, span, max[r]);
        total += mass[r];
    }
    if (total > 0)
        add_values(f, v, values, n, mass, p);
}
