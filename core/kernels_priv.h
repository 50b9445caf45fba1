/*
 * Names of the kernel variants, for kernels.c and the files that define them. A
 * variant of an operation is tkv_<operation>_<instruction set>.
 */
#ifndef TKV_CORE_KERNELS_PRIV_H
#define TKV_CORE_KERNELS_PRIV_H

#include "core/kernels.h"

/* Every instruction set has every kernel: the table has no holes and no mixtures. */
#define TKV_DECLARE_KERNELS(isa)                                                            \
    void tkv_fwht_##isa(float *x, size_t n);                                                \
    float tkv_norm2_##isa(const float *x, size_t n);                                        \
    float tkv_dot_##isa(const float *a, const float *b, size_t n);                          \
    void tkv_f16_to_f32_##isa(float *dst, const uint16_t *src, size_t n);                   \
    void tkv_f32_to_f16_##isa(uint16_t *dst, const float *src, size_t n);                   \
    void tkv_quantise_##isa(uint8_t *codes, const float *x, size_t n, const float *edge,    \
                            unsigned n_edges, float scale);                                 \
    void tkv_lookup_##isa(float *dst, const uint8_t *codes, size_t n, const float *lut,     \
                          float scale);                                                     \
    void tkv_expand_##isa(float *dst, const uint8_t *planes, size_t n, unsigned w,          \
                          const float *lut, float scale);                                   \
    void tkv_expand_tile_##isa(float *tile, const uint8_t *rows, size_t n_rows, unsigned w, \
                               const float *lut, const float *scale);                       \
    void tkv_logits_##isa(float *out, const float *q, size_t n_rows, const float *tile,     \
                          size_t dim);                                                      \
    void tkv_accumulate_##isa(float *acc, const float *w, size_t n_rows, const float *rows, \
                              size_t n_tokens, size_t dim);                                 \
    float tkv_exp_sum_##isa(float *x, size_t n, float max)

TKV_DECLARE_KERNELS(c);
TKV_DECLARE_KERNELS(avx2);
TKV_DECLARE_KERNELS(avx512);
TKV_DECLARE_KERNELS(neon);

#define TKV_KERNELS(isa)                                                                        \
    (struct tkv_kernels)                                                                        \
    {                                                                                           \
        .fwht = tkv_fwht_##isa, .norm2 = tkv_norm2_##isa, .dot = tkv_dot_##isa,                 \
        .f16_to_f32 = tkv_f16_to_f32_##isa, .f32_to_f16 = tkv_f32_to_f16_##isa,                 \
        .quantise = tkv_quantise_##isa, .lookup = tkv_lookup_##isa, .expand = tkv_expand_##isa, \
        .expand_tile = tkv_expand_tile_##isa, .logits = tkv_logits_##isa,                       \
        .accumulate = tkv_accumulate_##isa, .exp_sum = tkv_exp_sum_##isa,                       \
    }

/* Halves of s[16] folded onto halves: the fixed end of every norm2. */
static inline float tkv_fold16(float *s)
{
    for (size_t half = 8; half; half /= 2)
        for (size_t i = 0; i < half; i++)
            s[i] += s[i + half];
    return s[0];
}

#endif /* TKV_CORE_KERNELS_PRIV_H */
