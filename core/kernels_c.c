/*
 * The reference kernels: plain loops that say what the numbers are. They judge
 * every other variant, and serve where no other one exists.
 */
#include <math.h>
#include <string.h>

#include "core/half.h"
#include "core/kernels_priv.h"
#include "core/pack.h"

/*
 * Stage h = 1, 2, 4, ... replaces each pair (a, b) = (y[j], y[j + h]) by
 * (a + b, a - b). Only the order of the stages decides the bits.
 */
void tkv_fwht_c(float *y, const void *x, enum tkv_dtype type, const float *factor, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        const float e = tkv_element(x, type, i);

        y[i] = factor ? e * factor[i] : e;
    }
    for (size_t h = 1; h < n; h *= 2) {
        for (size_t i = 0; i < n; i += 2 * h) {
            for (size_t j = i; j < i + h; j++) {
                const float a = y[j], b = y[j + h];

                y[j] = a + b;
                y[j + h] = a - b;
            }
        }
    }
}

void tkv_sum_vectors_c(float *sum, const struct tkv_vectors *x, size_t n, size_t dim, float factor)
{
    for (size_t i = 0; i < dim; i++)
        sum[i] = 0;
    for (size_t t = 0; t < n; t++)
        for (size_t i = 0; i < dim; i++)
            sum[i] += tkv_element(tkv_vectors_from(*x, t).x, x->type, i) * factor;
}

float tkv_norm2_c(const float *x, size_t n)
{
    float s[16] = {0};

    for (size_t i = 0; i < n; i++)
        s[i % 16] += x[i] * x[i];
    return tkv_fold16(s);
}

float tkv_dot_c(const float *a, const float *b, size_t n)
{
    float sum = 0;

    for (size_t i = 0; i < n; i++)
        sum += a[i] * b[i];
    return sum;
}

void tkv_f16_to_f32_c(float *dst, const uint16_t *src, size_t n)
{
    for (size_t i = 0; i < n; i++)
        dst[i] = tkv_f16_to_f32(src[i]);
}

void tkv_f32_to_f16_c(uint16_t *dst, const float *src, size_t n)
{
    for (size_t i = 0; i < n; i++)
        dst[i] = tkv_f32_to_f16(src[i]);
}

static uint8_t cell(float t, const float *edge, unsigned w)
{
    unsigned node = 1;

    for (unsigned level = 0; level < w; level++)
        node = 2 * node + (edge[node] <= t);
    return (uint8_t)(node - (1u << w));
}

void tkv_quantise_c(uint8_t *codes, const float *x, size_t n, const struct tkv_cells *cells,
                    unsigned w, float scale)
{
    for (size_t i = 0; i < n; i++)
        codes[i] = cell(x[i] * scale, cells->edge, w);
}

void tkv_fit_c(uint8_t *codes, const float *x, size_t n, const struct tkv_cells *cells, unsigned w,
               float scale, const float *level, float *fit)
{
    float product[16] = {0}, square[16] = {0};

    tkv_quantise_c(codes, x, n, cells, w, scale);
    for (size_t i = 0; i < n; i++) {
        const float v = level[codes[i]];

        product[i % 16] += x[i] * v;
        square[i % 16] += v * v;
    }
    fit[0] = tkv_fold16(product);
    fit[1] = tkv_fold16(square);
}

/* Magnitudes that share a level are added up first: there are fewer pairs of them than
 * coordinates. */
void tkv_try_scales_c(int32_t (*sums)[TKV_N_TRIALS], const float *x, size_t n, float scale,
                      const uint8_t (*level)[64])
{
    int32_t total[64] = {0}, count[64] = {0};

    for (size_t i = 0; i < n; i++) {
        const float size = fabsf(x[i]) * scale + 0.5f;
        const int32_t m = size < 127 ? (int32_t)size : 127;

        total[m / 2] += m;
        count[m / 2]++;
    }
    for (size_t t = 0; t < TKV_N_TRIALS; t++) {
        int32_t product = 0, square = 0;

        for (size_t i = 0; i < 64; i++) {
            product += total[i] * level[t][i];
            square += count[i] * (level[t][i] * level[t][i]);
        }
        sums[0][t] = product;
        sums[1][t] = square;
    }
}

float tkv_split_bytes_c(uint8_t *high, uint8_t *low, const float *x, size_t n)
{
    float largest = 0, units;

    for (size_t i = 0; i < n; i++)
        largest = fabsf(x[i]) > largest ? fabsf(x[i]) : largest;
    units = largest > 0 ? 127.5f / largest : 0;
    for (size_t i = 0; i < n; i++) {
        const unsigned code = (unsigned)(x[i] * units + 128);

        high[i] = (uint8_t)(code >> 4);
        low[i] = code & 15;
    }
    return largest;
}

void tkv_lookup_c(float *dst, const uint8_t *codes, size_t n, const float *lut, float scale)
{
    for (size_t i = 0; i < n; i++)
        dst[i] = lut[codes[i]] * scale;
}

/* The codes of token t, t < 64. */
static void get_key(uint8_t *codes, const struct tkv_codes *keys, size_t t)
{
    tkv_key_get(codes, keys->bytes + t / TKV_PAIR_TOKENS * keys->stride, keys->n, keys->w,
                t % TKV_PAIR_TOKENS);
}

void tkv_key_tile_c(float *tile, const struct tkv_codes *codes, const float *lut,
                    const float *scale, const float *mean)
{
    uint8_t code[TKV_MAX_HEAD_DIM];

    for (size_t t = 0; t < TKV_BLOCK_TOKENS; t++) {
        get_key(code, codes, t);
        for (size_t i = 0; i < codes->n; i++)
            tile[i * TKV_BLOCK_TOKENS + t] = lut[code[i]] * scale[t] + (mean ? mean[i] : 0);
    }
}

void tkv_value_rows_c(float *rows, size_t stride, const struct tkv_codes *codes, size_t n_tokens,
                      const float *lut, const float *scale, const float *mean)
{
    uint8_t code[TKV_MAX_HEAD_DIM];

    for (size_t t = 0; t < n_tokens; t++) {
        tkv_value_get(code, codes->bytes, codes->n, codes->w, t);
        for (size_t i = 0; i < codes->n; i++)
            rows[t * stride + i] = lut[code[i]] * scale[t] + (mean ? mean[i] : 0);
    }
}

void tkv_logits_c(float *out, const float *q, size_t n_rows, const float *tile, size_t dim)
{
    for (size_t r = 0; r < n_rows; r++) {
        float *to = out + r * TKV_BLOCK_TOKENS;

        memset(to, 0, TKV_BLOCK_TOKENS * sizeof(*to));
        for (size_t i = 0; i < dim; i++)
            for (size_t t = 0; t < TKV_BLOCK_TOKENS; t++)
                to[t] += q[r * dim + i] * tile[i * TKV_BLOCK_TOKENS + t];
    }
}

void tkv_accumulate_c(float *acc, const float *w, size_t n_rows, const float *rows, size_t n_tokens,
                      size_t dim)
{
    for (size_t r = 0; r < n_rows; r++)
        for (size_t t = 0; t < n_tokens; t++)
            for (size_t i = 0; i < dim; i++)
                acc[r * dim + i] += w[r * TKV_BLOCK_TOKENS + t] * rows[t * dim + i];
}

float tkv_exp_sum_c(float *x, size_t n, float max)
{
    float sum = 0;

    for (size_t i = 0; i < n; i++) {
        x[i] = expf(x[i] - max);
        sum += x[i];
    }
    return sum;
}

void tkv_code_dots_c(int32_t (*dots)[TKV_BLOCK_TOKENS], const struct tkv_codes *keys,
                     const struct tkv_code_queries *q)
{
    uint8_t code[TKV_MAX_HEAD_DIM];

    for (size_t t = 0; t < TKV_BLOCK_TOKENS; t++) {
        get_key(code, keys, t);
        for (size_t r = 0; r < q->n; r++) {
            int32_t sum = q->first ? 0 : dots[r][t];

            for (size_t i = 0; i < keys->n; i++) {
                const int8_t *parts = q->bytes + (i / 4 * q->n + r) * 8 + i % 4;

                sum += (128 * parts[0] + parts[4]) * keys->level[code[i]];
            }
            dots[r][t] = sum;
        }
    }
}

void tkv_level_dots_c(int32_t *dots, const uint8_t *codes, size_t n, const int8_t *level,
                      const struct tkv_code_queries *q)
{
    for (size_t r = 0; r < q->n; r++) {
        const int8_t *high = q->bytes + r * 2 * n, *low = high + n;

        dots[r] = 0;
        for (size_t i = 0; i < n; i++)
            dots[r] += (128 * high[i] + low[i]) * level[codes[i]];
    }
}

float tkv_scale_dots_c(float *x, const int32_t *dots, size_t stride, size_t n_blocks,
                       const float *scale, float factor, const float *offset)
{
    float max = -INFINITY;

    for (size_t b = 0; b < n_blocks; b++) {
        for (size_t t = 0; t < TKV_BLOCK_TOKENS; t++) {
            const size_t i = b * stride + t;

            x[i] = (float)dots[i] * (scale[b * TKV_BLOCK_TOKENS + t] * factor) + offset[b];
            max = x[i] > max ? x[i] : max;
        }
    }
    return max;
}

float tkv_weigh_c(uint8_t *high, uint8_t *low, const float *x, size_t stride, size_t n_blocks,
                  float max, const float *scale, float *sum)
{
    float w[TKV_RUN_TOKENS];
    float largest = 0, inverse;

    for (size_t b = 0; b < n_blocks; b++) {
        sum[b] = 0;
        for (size_t t = 0; t < TKV_BLOCK_TOKENS; t++) {
            const size_t i = b * TKV_BLOCK_TOKENS + t;
            const float e = expf(x[b * stride + t] - max);

            sum[b] += e;
            w[i] = e * scale[i];
            largest = w[i] > largest ? w[i] : largest;
        }
    }
    inverse = largest >= TKV_LEAST_WEIGHT ? TKV_WEIGHT_UNITS / largest : 0;
    for (size_t i = 0; i < n_blocks * TKV_BLOCK_TOKENS; i++) {
        const int units = (int)(w[i] * inverse + 0.5f);

        high[i] = (uint8_t)(units >> 7);
        low[i] = (uint8_t)(units & 127);
    }
    return largest * (1 / TKV_WEIGHT_UNITS);
}

/* sum[i] += the weighted levels of coordinate i of a block. */
static void add_block(int32_t *sum, const struct tkv_codes *values, const uint8_t *high,
                      const uint8_t *low)
{
    uint8_t code[TKV_MAX_HEAD_DIM];

    for (size_t t = 0; t < TKV_BLOCK_TOKENS; t++) {
        tkv_value_get(code, values->bytes, values->n, values->w, t);
        for (size_t i = 0; i < values->n; i++)
            sum[i] += (128 * high[t] + low[t]) * values->level[code[i]];
    }
}

void tkv_code_sums_c(float *acc, size_t stride, const struct tkv_codes *values, size_t n_blocks,
                     const uint8_t (*weights)[2][TKV_RUN_TOKENS], const float *unit, size_t n_rows)
{
    int32_t sum[TKV_MAX_HEAD_DIM];

    for (size_t r = 0; r < n_rows; r++) {
        memset(sum, 0, sizeof(sum));
        for (size_t b = 0; b < n_blocks; b++)
            add_block(sum, values + b, weights[r][0] + b * TKV_BLOCK_TOKENS,
                      weights[r][1] + b * TKV_BLOCK_TOKENS);
        for (size_t i = 0; i < values->n; i++)
            acc[r * stride + i] += unit[r] * (float)sum[i];
    }
}

void tkv_moments_c(double *sums, const float *x, size_t n, double from)
{
    double first[16] = {0}, second[16] = {0};

    for (size_t i = 0; i < n; i++) {
        const double d = (double)x[i] - from;

        first[i % 16] += d;
        second[i % 16] += d * d;
    }
    sums[0] = tkv_fold16_double(first);
    sums[1] = tkv_fold16_double(second);
}

void tkv_fold_scores_c(float *dst, const float *x, size_t n, double mean, double scale)
{
    for (size_t i = 0; i < n; i++) {
        const float z = (float)(((double)x[i] - mean) * scale);

        dst[i] = z > dst[i] ? z : dst[i];
    }
}

size_t tkv_count_from_c(const uint32_t *keys, size_t n, uint32_t least)
{
    size_t count = 0;

    for (size_t i = 0; i < n; i++)
        count += keys[i] >= least;
    return count;
}

void tkv_pick_keys_c(uint8_t *dst, const struct tkv_codes_at *at, const struct tkv_pick *picks,
                     size_t n_picks)
{
    const size_t n_bytes = tkv_key_section_bytes(at->n, at->w);
    uint8_t code[TKV_MAX_HEAD_DIM];

    for (size_t t = 0; t < TKV_BLOCK_TOKENS; t += TKV_PAIR_TOKENS)
        memset(dst + at->offset + t / TKV_PAIR_TOKENS * at->stride, 0, n_bytes);
    for (const struct tkv_pick *p = picks; p < picks + n_picks; p++)
        for (size_t i = 0; i < TKV_UNIT_LANES; i++)
            if (p->from[i] < TKV_UNIT_LANES) {
                tkv_key_get(code, p->block + at->offset + p->tile / 2u * at->stride, at->n, at->w,
                            p->tile % 2u * TKV_UNIT_LANES + p->from[i]);
                tkv_key_put(dst + at->offset + p->to / 2u * at->stride, at->n, at->w,
                            p->to % 2u * TKV_UNIT_LANES + i, code);
            }
}

void tkv_pick_values_c(uint8_t *dst, const struct tkv_codes_at *at, const struct tkv_pick *picks,
                       size_t n_picks)
{
    uint8_t code[TKV_MAX_HEAD_DIM];

    memset(dst + at->offset, 0, tkv_value_section_bytes(at->n, at->w));
    for (const struct tkv_pick *p = picks; p < picks + n_picks; p++)
        for (size_t i = 0; i < 4; i++)
            if (p->from[i] < 4) {
                tkv_value_get(code, p->block + at->offset, at->n, at->w, 4u * p->tile + p->from[i]);
                tkv_value_put(dst + at->offset, at->n, at->w, 4u * p->to + i, code);
            }
}

void tkv_pick_halves_c(void *dst, const void *src, const uint8_t *lane, size_t n)
{
    for (size_t i = 0; i < n; i++)
        memcpy((uint8_t *)dst + 2 * i, (const uint8_t *)src + 2 * (size_t)lane[i], 2);
}

void tkv_pick_bytes_c(uint8_t *dst, const uint8_t *src, const uint8_t *lane, size_t n)
{
    for (size_t i = 0; i < n; i++)
        dst[i] = src[lane[i]];
}

void tkv_add_steps_c(float *dst, const float *x, const uint8_t *codes, size_t n, float base,
                     float step)
{
    for (size_t i = 0; i < n; i++)
        dst[i] = x[i] + (base + step * (float)codes[i]);
}
