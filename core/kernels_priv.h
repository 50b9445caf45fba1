/*
 * Names of the kernel variants, for kernels.c and the files that define them. A
 * variant of an operation is tkv_<operation>_<instruction set>.
 */
#ifndef TKV_CORE_KERNELS_PRIV_H
#define TKV_CORE_KERNELS_PRIV_H

#include "core/kernels.h"

/* Every instruction set has every kernel: the table has no holes and no mixtures. But one that only
 * adds better integer dot products has just what works on codes, over an older set. */
#define TKV_DECLARE_CODE_KERNELS(isa)                                                              \
    void tkv_level_dots_##isa(int32_t *dots, const uint8_t *codes, size_t n, const int8_t *level,  \
                              const struct tkv_code_queries *q);                                   \
    void tkv_try_scales_##isa(int32_t(*sums)[TKV_N_TRIALS], const float *x, size_t n, float scale, \
                              const uint8_t(*level)[64]);                                          \
    void tkv_code_dots_##isa(int32_t(*dots)[TKV_BLOCK_TOKENS], const struct tkv_codes *keys,       \
                             const struct tkv_code_queries *q);                                    \
    void tkv_code_sums_##isa(float *acc, size_t stride, const struct tkv_codes *values,            \
                             size_t n_blocks, const uint8_t(*weights)[2][TKV_RUN_TOKENS],          \
                             const float *unit, size_t n_rows)

#define TKV_DECLARE_KERNELS(isa)                                                                 \
    void tkv_fwht_##isa(float *y, const void *x, enum tkv_dtype type, const float *factor,       \
                        size_t n);                                                               \
    void tkv_sum_vectors_##isa(float *sum, const struct tkv_vectors *x, size_t n, size_t dim,    \
                               float factor);                                                    \
    float tkv_norm2_##isa(const float *x, size_t n);                                             \
    float tkv_dot_##isa(const float *a, const float *b, size_t n);                               \
    void tkv_f16_to_f32_##isa(float *dst, const uint16_t *src, size_t n);                        \
    void tkv_f32_to_f16_##isa(uint16_t *dst, const float *src, size_t n);                        \
    void tkv_quantise_##isa(uint8_t *codes, const float *x, size_t n,                            \
                            const struct tkv_cells *cells, unsigned w, float scale);             \
    void tkv_fit_##isa(uint8_t *codes, const float *x, size_t n, const struct tkv_cells *cells,  \
                       unsigned w, float scale, const float *level, float *fit);                 \
    float tkv_split_bytes_##isa(uint8_t *high, uint8_t *low, const float *x, size_t n);          \
    void tkv_lookup_##isa(float *dst, const uint8_t *codes, size_t n, const float *lut,          \
                          float scale);                                                          \
    void tkv_key_tile_##isa(float *tile, const struct tkv_codes *codes, const float *lut,        \
                            const float *scale, const float *mean);                              \
    void tkv_value_rows_##isa(float *rows, size_t stride, const struct tkv_codes *codes,         \
                              size_t n_tokens, const float *lut, const float *scale,             \
                              const float *mean);                                                \
    void tkv_logits_##isa(float *out, const float *q, size_t n_rows, const float *tile,          \
                          size_t dim);                                                           \
    void tkv_accumulate_##isa(float *acc, const float *w, size_t n_rows, const float *rows,      \
                              size_t n_tokens, size_t dim);                                      \
    float tkv_exp_sum_##isa(float *x, size_t n, float max);                                      \
    float tkv_scale_dots_##isa(float *x, const int32_t *dots, size_t stride, size_t n_blocks,    \
                               const float *scale, float factor, const float *offset);           \
    float tkv_weigh_##isa(uint8_t *high, uint8_t *low, const float *x, size_t stride,            \
                          size_t n_blocks, float max, const float *scale, float *sum);           \
    void tkv_moments_##isa(double *sums, const float *x, size_t n, double from);                 \
    void tkv_fold_scores_##isa(float *dst, const float *x, size_t n, double mean, double scale); \
    size_t tkv_count_from_##isa(const uint32_t *keys, size_t n, uint32_t least);                 \
    void tkv_pick_keys_##isa(uint8_t *dst, const struct tkv_codes_at *at,                        \
                             const struct tkv_pick *picks, size_t n_picks);                      \
    void tkv_pick_values_##isa(uint8_t *dst, const struct tkv_codes_at *at,                      \
                               const struct tkv_pick *picks, size_t n_picks);                    \
    void tkv_pick_halves_##isa(void *dst, const void *src, const uint8_t *lane, size_t n);       \
    void tkv_pick_bytes_##isa(uint8_t *dst, const uint8_t *src, const uint8_t *lane, size_t n);  \
    void tkv_add_steps_##isa(float *dst, const float *x, const uint8_t *codes, size_t n,         \
                             float base, float step);                                            \
    TKV_DECLARE_CODE_KERNELS(isa)

TKV_DECLARE_KERNELS(c);
TKV_DECLARE_KERNELS(avx2);
TKV_DECLARE_CODE_KERNELS(avxvnni);
TKV_DECLARE_KERNELS(avx512);
TKV_DECLARE_CODE_KERNELS(vnni);
TKV_DECLARE_KERNELS(neon);
TKV_DECLARE_CODE_KERNELS(dotprod);

#define TKV_KERNELS(isa)                                                                  \
    (struct tkv_kernels)                                                                  \
    {                                                                                     \
        .fwht = tkv_fwht_##isa, .norm2 = tkv_norm2_##isa, .dot = tkv_dot_##isa,           \
        .f16_to_f32 = tkv_f16_to_f32_##isa, .f32_to_f16 = tkv_f32_to_f16_##isa,           \
        .quantise = tkv_quantise_##isa, .fit = tkv_fit_##isa, .lookup = tkv_lookup_##isa, \
        .key_tile = tkv_key_tile_##isa, .value_rows = tkv_value_rows_##isa,               \
        .logits = tkv_logits_##isa, .accumulate = tkv_accumulate_##isa,                   \
        .exp_sum = tkv_exp_sum_##isa, .code_dots = tkv_code_dots_##isa,                   \
        .level_dots = tkv_level_dots_##isa, .scale_dots = tkv_scale_dots_##isa,           \
        .weigh = tkv_weigh_##isa, .code_sums = tkv_code_sums_##isa,                       \
        .try_scales = tkv_try_scales_##isa, .pick_keys = tkv_pick_keys_##isa,             \
        .pick_values = tkv_pick_values_##isa, .moments = tkv_moments_##isa,               \
        .fold_scores = tkv_fold_scores_##isa, .count_from = tkv_count_from_##isa,         \
        .pick_halves = tkv_pick_halves_##isa, .pick_bytes = tkv_pick_bytes_##isa,         \
        .add_steps = tkv_add_steps_##isa, .split_bytes = tkv_split_bytes_##isa,           \
        .sum_vectors = tkv_sum_vectors_##isa,                                             \
    }

/* The largest weight of a block in its units: two parts of seven bits. */
#define TKV_WEIGHT_UNITS 16383.0f
/* Under this the largest weight, and with it the block, counts as nothing. */
#define TKV_LEAST_WEIGHT 1e-30f

/* Halves of s[16] folded onto halves: the fixed end of every norm2. */
static inline float tkv_fold16(float *s)
{
    for (size_t half = 8; half; half /= 2)
        for (size_t i = 0; i < half; i++)
            s[i] += s[i + half];
    return s[0];
}

static inline double tkv_fold16_double(double *s)
{
    for (size_t half = 8; half; half /= 2)
        for (size_t i = 0; i < half; i++)
            s[i] += s[i + half];
    return s[0];
}

#endif /* TKV_CORE_KERNELS_PRIV_H */
