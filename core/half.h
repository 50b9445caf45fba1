/* IEEE half, bfloat16 and float, converted with round to nearest, ties to even. */
#ifndef TKV_CORE_HALF_H
#define TKV_CORE_HALF_H

#include "core/types.h"

/*
 * Scalar conversions, total functions: a NaN stays a (quiet) NaN, a value too
 * large becomes an infinity, subnormals are kept. Same bits on every CPU.
 */
float tkv_f16_to_f32(uint16_t h);
uint16_t tkv_f32_to_f16(float x);
float tkv_bf16_to_f32(uint16_t b);
uint16_t tkv_f32_to_bf16(float x);

/* Element i of x, which need not be aligned. */
float tkv_element(const void *x, enum tkv_dtype type, size_t i);

struct tkv_kernels;

/* dst[n] = src[n], which holds elements of the given type and need not be aligned. */
void tkv_to_f32(const struct tkv_kernels *kn, float *dst, const void *src, enum tkv_dtype type,
                size_t n);

/*
 * dst[n] = src[n] as halves. Returns n, or the index of the first element that
 * is not finite as a half (NaN, infinity, magnitude over 65504 after rounding);
 * dst is then only partly written.
 */
size_t tkv_to_f16(const struct tkv_kernels *kn, uint16_t *dst, const void *src, enum tkv_dtype type,
                  size_t n);

/* What tkv_to_f16 would return. */
size_t tkv_check_f16(const struct tkv_kernels *kn, const void *src, enum tkv_dtype type, size_t n);

#endif /* TKV_CORE_HALF_H */
