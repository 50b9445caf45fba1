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
    f->words = take(memory, &at, n_rows * k->n_slots * sizeof(*f->words));
    f->sums = take(memory, &at, k->n_sections * n_rows * sizeof(*f->sums));
    f->step = take(memory, &at, n_rows * sizeof(float));
    f->mean_slots = k->mean_bytes[TKV_KEYS] ? tkv_align(k->dim, 64) : 0;
    f->mean_bytes = take(memory, &at, n_rows * 2 * f->mean_slots);
    f->mean_sums = take(memory, &at, n_rows * sizeof(*f->mean_sums));
    f->mean_step = take(memory, &at, n_rows * sizeof(float));
    f->mean_dots = take(memory, &at, n_rows * sizeof(int32_t));
    f->dots = take(memory, &at, TKV_RUN_BLOCKS * n_rows * sizeof(*f->dots));
    f->x = take(memory, &at, TKV_RUN_BLOCKS * n_rows * sizeof(*f->x));
    f->offset = take(memory, &at, n_rows * sizeof(*f->offset));
    f->mass = take(memory, &at, n_rows * sizeof(*f->mass));
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

static void round_section(struct tkv_fused *f, size_t r, const struct tkv_section *s, float inverse)
{
    const float *q = f->q + r * f->k->tile_dim + s->first;
    int32_t *sums = f->sums[(size_t)(s - f->k->section) * f->n_rows + r];

    for (uint32_t j = 0; j < s->n; j++) {
        const int n = (int)lrintf(q[j] * s->alpha * inverse);
        const int h = (n + 64) >> 7;
        const size_t four = (s->slot + j) / 4 * f->n_rows + r;

        f->bytes[8 * four + j % 4] = (int8_t)h;
        f->bytes[8 * four + 4 + j % 4] = (int8_t)(n - 128 * h);
        f->words[4 * four + j % 4 / 2 + j % 2 * 2] = (int16_t)n;
        sums[0] += h;
        sums[1] += n - 128 * h;
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
        round_section(f, r, &k->section[i], inverse);
}

/* The query once more as it is multiplied with means, which have one section. */
static void round_for_means(struct tkv_fused *f, size_t r)
{
    const float *q = f->q + r * f->k->tile_dim;
    int8_t *high = f->mean_bytes + r * 2 * f->mean_slots, *low = high + f->mean_slots;
    float largest = 0, inverse;

    for (uint32_t j = 0; j < f->k->dim; j++)
        largest = fabsf(q[j]) > largest ? fabsf(q[j]) : largest;
    inverse = largest > 1e-30f && isfinite(f->step[r]) ? query_units / largest : 0;
    f->mean_step[r] = largest / query_units;
    for (uint32_t j = 0; inverse > 0 && j < f->k->dim; j++) {
        const int n = (int)lrintf(q[j] * inverse);

        high[j] = (int8_t)((n + 64) >> 7);
        low[j] = (int8_t)(n - 128 * high[j]);
        f->mean_sums[r][0] += high[j];
        f->mean_sums[r][1] += low[j];
    }
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
    memset(f->words, 0, n_rows * k->n_slots * sizeof(*f->words));
    memset(f->sums, 0, k->n_sections * n_rows * sizeof(*f->sums));
    memset(f->mean_bytes, 0, n_rows * 2 * f->mean_slots);
    memset(f->mean_sums, 0, n_rows * sizeof(*f->mean_sums));
    for (size_t r = 0; r < n_rows; r++) {
        round_query(f, r);
        if (f->mean_slots)
            round_for_means(f, r);
    }
}

/* dots[n_rows][64] of a block, from its codes alone. */
static void dot_codes(struct tkv_fused *f, const void *keys, const void *next,
                      int32_t (*dots)[LANES])
{
    const struct tkv_coder *k = f->k;

    for (uint32_t i = 0; i < k->n_sections; i++) {
        const struct tkv_codes codes = tkv_key_codes(k, i, keys, next);
        const struct tkv_code_queries q = {.bytes = f->bytes + 2 * f->n_rows * k->section[i].slot,
                                           .words = f->words + f->n_rows * k->section[i].slot,
                                           .sums = (const int32_t(*)[2])(f->sums + i * f->n_rows),
                                           .n = f->n_rows,
                                           .first = i == 0};

        f->kn->code_dots(dots, &codes, &q);
    }
}

static float load_mean_codes(const struct tkv_fused *f, const void *keys, uint8_t *codes)
{
    return tkv_mean_codes(f->k, TKV_KEYS, (const uint8_t *)keys + tkv_k_mean_at(f->k), codes);
}

/* What the mean of block b, these codes times scale, adds to all its logits. */
static void dot_mean(struct tkv_fused *f, const uint8_t *codes, float scale, size_t b)
{
    const struct tkv_code_queries q = {
        .bytes = f->mean_bytes, .sums = (const int32_t(*)[2])f->mean_sums, .n = f->n_rows};
    const struct tkv_section *s = &f->k->mean[TKV_KEYS];

    if (scale != 0)
        f->kn->level_dots(f->mean_dots, codes, f->mean_slots, s->level, &q);
    for (size_t r = 0; r < f->n_rows; r++)
        f->offset[r][b] =
            scale != 0 ? (float)f->mean_dots[r] * (f->mean_step[r] * (scale * s->alpha)) : 0;
}

/* Products of block b, from its codes and its mean. The codes of the mean are unpacked before they
 * are wanted: they cannot be read in larger pieces than they were just written in. */
static void dot_block(struct tkv_fused *f, const void *keys, const void *next, size_t b,
                      float factor)
{
    uint8_t mean[TKV_MAX_HEAD_DIM];
    const float scale = load_mean_codes(f, keys, mean);

    dot_codes(f, keys, next, f->dots + b * f->n_rows);
    dot_mean(f, mean, scale * factor, b);
}

/* Ask for what lies beside the codes of a block. */
static void fetch_small(const struct tkv_coder *k, const void *keys, const void *values,
                        const struct tkv_coder *v)
{
    const uint8_t *p = keys, *end = (const uint8_t *)values + v->v_codes_offset;

    for (p += tkv_k_scales_at(k); p < end; p += 64)
        __builtin_prefetch(p);
}

/* The same of keys alone. */
static void fetch_beside(const struct tkv_coder *k, const void *keys)
{
    const uint8_t *p = keys;

    for (size_t at = tkv_k_scales_at(k); at < k->k_block_bytes; at += 64)
        __builtin_prefetch(p + at);
}

/* f->dots of n blocks become f->x; returns the largest of row r, NaN if some may overflow. */
static float scale_row(struct tkv_fused *f, size_t r, size_t n, const float *scales, float factor)
{
    float offset = 0, top;

    for (size_t b = 0; b < n; b++)
        offset = fmaxf(offset, fabsf(f->offset[r][b]));
    top = f->kn->scale_dots(f->x[r], f->dots[r], f->n_rows * LANES, n, scales, f->step[r] * factor,
                            f->offset[r]);
    return fabsf(f->step[r] * factor) * largest_product + offset < FLT_MAX ? top : NAN;
}

void tkv_fused_logits(struct tkv_fused *f, const void *keys, const void *next, float factor,
                      float *max)
{
    float scales[LANES];

    dot_block(f, keys, next, 0, factor);
    if (next)
        fetch_beside(f->k, next);
    tkv_to_f32(f->kn, scales, (const uint8_t *)keys + tkv_k_scales_at(f->k), TKV_F16, LANES);
    for (size_t r = 0; r < f->n_rows; r++) {
        const float top = scale_row(f, r, 1, scales, factor);

        if (max)
            max[r] = top;
    }
}

/* What all rows of a run share. */
struct run {
    const struct tkv_coder *v;
    const struct tkv_attn_params *a;
    const struct tkv_attn_rows *rows;
    const struct tkv_fused_block *blocks;
    size_t n_blocks;
    bool whole; /* all rows see 64 tokens of each block */
    float v_scales[TKV_RUN_TOKENS];
    struct tkv_partial *p;
};

static void dot_run(struct tkv_fused *f, const struct run *run, float *scales)
{
    for (size_t b = 0; b < run->n_blocks; b++) {
        const struct tkv_fused_block *block = &run->blocks[b];

        dot_block(f, block->keys, block->next_keys, b, run->a->scale);
        if (block->next_keys)
            fetch_small(f->k, block->next_keys, block->next_values, run->v);
        tkv_to_f32(f->kn, scales + b * LANES, (const uint8_t *)block->keys + tkv_k_scales_at(f->k),
                   TKV_F16, LANES);
    }
}

/* What row r sees of block b, after the cap; returns the largest. */
static float settle_logits(struct tkv_fused *f, const struct run *run, size_t b, size_t r,
                           bool safe)
{
    const struct tkv_fused_block *block = &run->blocks[b];
    float *x = f->x[b * f->n_rows + r];
    struct tkv_span span = {0, (uint32_t)block->n};

    if (block->positions)
        span = tkv_seen_lanes(run->a, block->positions, block->n,
                              run->rows->positions[r / run->rows->group]);
    if (!safe && !tkv_span_is_finite(x, span))
        tkv_spoil_row(run->p, r);
    if (run->a->softcap > 0)
        tkv_cap_logits(f->kn, x, run->a->softcap);
    return tkv_mask_logits(x, span);
}

/* Brings row r to its new maximum; false if the run does not matter to it. */
static bool settle_row(struct tkv_fused *f, const struct run *run, size_t r, float top)
{
    struct tkv_partial *p = run->p;
    float max = top;

    if (!run->whole || isnan(top)) {
        max = -INFINITY;
        for (size_t b = 0; b < run->n_blocks; b++)
            max = fmaxf(max, settle_logits(f, run, b, r, !isnan(top)));
    }
    if (max > p->max[r])
        tkv_raise_max(p, r, max);
    /* Neither is true of a spoiled row, nor of one that has seen nothing. */
    return max >= p->max[r] - TKV_FUSED_SKIP && max > -INFINITY;
}

static bool all_zero(const uint8_t *bytes)
{
    uint64_t words[LANES / 8], any = 0;

    memcpy(words, bytes, sizeof(words));
    for (size_t i = 0; i < LANES / 8; i++)
        any |= words[i];
    return any == 0;
}

/* Logits of a row become weights; returns the blocks that have some, as bits. */
static unsigned weigh_row(struct tkv_fused *f, const struct run *run, size_t r)
{
    float *mass = f->mass[r];
    uint8_t(*weights)[TKV_RUN_TOKENS] = f->weights[r];
    unsigned live = 0;
    float sum = 0;

    f->unit[r] = f->kn->weigh(weights[0], weights[1], f->x[r], f->n_rows * LANES, run->n_blocks,
                              run->p->max[r], run->v_scales, mass);
    for (size_t b = 0; b < run->n_blocks; b++)
        sum += mass[b];
    run->p->sum[r] += sum;
    for (size_t b = 0; b < run->n_blocks; b++)
        if (mass[b] > 1e-3f * sum || !all_zero(weights[0] + b * LANES) ||
            !all_zero(weights[1] + b * LANES))
            live |= 1u << b;
    return live;
}

/* As weigh_row, for a run that does not matter. */
static void weigh_nothing(struct tkv_fused *f, size_t r)
{
    f->unit[r] = 0;
    memset(f->weights[r], 0, sizeof(f->weights[r]));
    memset(f->mass[r], 0, TKV_RUN_BLOCKS * sizeof(float));
}

/* Codes of section i of the live blocks, whose weights move together. */
static size_t list_codes(const struct run *run, uint32_t i, unsigned live, struct tkv_codes *codes)
{
    size_t n = 0;

    for (size_t b = 0; b < run->n_blocks; b++)
        if (live >> b & 1)
            codes[n++] =
                tkv_value_codes(run->v, i, run->blocks[b].values, run->blocks[b].next_values);
    return n;
}

static void close_gaps(struct tkv_fused *f, unsigned live)
{
    for (size_t r = 0; r < f->n_rows; r++)
        for (size_t part = 0; part < 2; part++)
            for (size_t b = 0, n = 0; b < TKV_RUN_BLOCKS; b++)
                if (live >> b & 1)
                    memmove(f->weights[r][part] + n++ * LANES, f->weights[r][part] + b * LANES,
                            LANES);
}

static void add_codes(struct tkv_fused *f, const struct run *run, unsigned live)
{
    const struct tkv_coder *v = run->v;
    float unit[TKV_FUSED_MAX_ROWS];
    struct tkv_codes codes[TKV_RUN_BLOCKS];

    if (live & (live + 1))
        close_gaps(f, live);
    for (uint32_t i = 0; i < v->n_sections; i++) {
        const size_t n = list_codes(run, i, live, codes);

        for (size_t r = 0; r < f->n_rows; r++)
            unit[r] = f->unit[r] * v->section[i].alpha;
        f->kn->code_sums(run->p->out + v->section[i].first, run->p->dim, codes, n,
                         (const uint8_t(*)[2][TKV_RUN_TOKENS])f->weights, unit, f->n_rows);
    }
}

static void add_means(struct tkv_fused *f, const struct run *run)
{
    const struct tkv_coder *v = run->v;
    float means[TKV_RUN_BLOCKS * TKV_MAX_HEAD_DIM];

    if (!v->mean_bytes[TKV_VALUES])
        return;
    for (size_t b = 0; b < run->n_blocks; b++)
        if (!tkv_load_mean(v, f->kn, TKV_VALUES,
                           (const uint8_t *)run->blocks[b].values + tkv_v_mean_at(),
                           means + b * v->dim))
            memset(means + b * v->dim, 0, v->dim * sizeof(*means));
    f->kn->accumulate(run->p->out, f->mass[0], f->n_rows, means, run->n_blocks, v->dim);
}

/* Weights of all rows; returns the blocks that have some. */
static unsigned weigh_rows(struct tkv_fused *f, const struct run *run, const float *scales)
{
    unsigned live = 0;

    for (size_t r = 0; r < f->n_rows; r++) {
        const float top = scale_row(f, r, run->n_blocks, scales, run->a->scale);

        if (settle_row(f, run, r, top))
            live |= weigh_row(f, run, r);
        else
            weigh_nothing(f, r);
    }
    return live;
}

void tkv_fused_attend(struct tkv_fused *f, const struct tkv_coder *v,
                      const struct tkv_attn_params *a, const struct tkv_attn_rows *rows,
                      const struct tkv_fused_block *blocks, size_t n_blocks, struct tkv_partial *p)
{
    struct run run;
    float scales[TKV_RUN_TOKENS];
    unsigned live;

    assert(tkv_fused_values(v) && f->n_rows <= TKV_FUSED_MAX_ROWS && n_blocks <= TKV_RUN_BLOCKS);
    assert(f->n_rows == rows->n_tokens * rows->group && p->n_rows == f->n_rows);
    run.v = v;
    run.a = a;
    run.rows = rows;
    run.blocks = blocks;
    run.n_blocks = n_blocks;
    run.whole = a->softcap <= 0;
    run.p = p;
    for (size_t b = 0; b < n_blocks; b++) {
        run.whole = run.whole && !blocks[b].positions && blocks[b].n == LANES;
        tkv_to_f32(f->kn, run.v_scales + b * LANES, blocks[b].values, TKV_F16, LANES);
    }
    dot_run(f, &run, scales);
    live = weigh_rows(f, &run, scales);
    if (!live)
        return;
    add_codes(f, &run, live);
    add_means(f, &run);
}
