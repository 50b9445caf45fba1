/*
 * The reference kernels: plain loops that say what the numbers are. They judge
 * every other variant, and serve where no other one exists.
 */
#include <math.h>
#include <string.h>

#include "core/half.h"
#include "core/kernels_priv.h"

/*
 * Stage h = 1, 2, 4, ... replaces each pair (a, b) = (x[j], x[j + h]) by
 * (a + b, a - b). Only the order of the stages decides the bits.
 */
void tkv_fwht_c(float *x, size_t n)
{
    for (size_t h = 1; h < n; h *= 2) {
        for (size_t i = 0; i < n; i += 2 * h) {
            for (size_t j = i; j < i + h; j++) {
                const float a = x[j], b = x[j + h];

                x[j] = a + b;
                x[j + h] = a - b;
            }
        }
    }
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

void tkv_quantise_c(uint8_t *codes, const float *x, size_t n, const float *edge, unsigned n_edges,
                    float scale)
{
    for (size_t i = 0; i < n; i++) {
        const float t = x[i] * scale;
        unsigned code = 0;

        for (unsigned e = 0; e < n_edges; e++)
            code += edge[e] <= t;
        codes[i] = (uint8_t)code;
    }
}

void tkv_lookup_c(float *dst, const uint8_t *codes, size_t n, const float *lut, float scale)
{
    for (size_t i = 0; i < n; i++)
        dst[i] = lut[codes[i]] * scale;
}

/*
 * In runs of n / 8 codes, run r of a plane of b-bit fields is bytes (r % b) * n / 8
 * and on, shifted by b * (r / b): the layout of core/pack.h, read in order of codes.
 */
static unsigned field(const uint8_t *plane, unsigned b, size_t run_length, unsigned r, size_t i)
{
    return (unsigned)plane[r % b * run_length + i] >> (b * (r / b)) & ((1u << b) - 1);
}

/* scale[n_scales]: one for each code, or one for all. */
static void expand(float *dst, const uint8_t *planes, size_t n, unsigned w, const float *lut,
                   const float *scale, size_t n_scales)
{
    const size_t length = n / 8;
    const unsigned b = w == 3 ? 2 : w;

    for (unsigned r = 0; r < 8; r++) {
        for (size_t i = 0; i < length; i++) {
            const size_t j = r * length + i;
            unsigned code = field(planes, b, length, r, i);

            if (w == 3)
                code |= field(planes + 2 * length, 1, length, r, i) << 2;
            dst[j] = lut[code] * scale[n_scales == 1 ? 0 : j];
        }
    }
}

void tkv_expand_c(float *dst, const uint8_t *planes, size_t n, unsigned w, const float *lut,
                  float scale)
{
    expand(dst, planes, n, w, lut, &scale, 1);
}

void tkv_expand_tile_c(float *tile, const uint8_t *rows, size_t n_rows, unsigned w,
                       const float *lut, const float *scale)
{
    for (size_t r = 0; r < n_rows; r++)
        expand(tile + r * TKV_BLOCK_TOKENS, rows + r * (TKV_BLOCK_TOKENS / 8 * w), TKV_BLOCK_TOKENS,
               w, lut, scale, TKV_BLOCK_TOKENS);
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
