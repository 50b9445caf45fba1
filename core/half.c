/*
 * Half floats and bfloat16 in plain integer arithmetic: the reference that the
 * hardware conversions of the kernels must match to the bit. Bulk conversions
 * go through the kernel table, by way of an aligned piece where a source may lie
 * at an odd address.
 */
#include "core/half.h"

#include <string.h>

#include "core/kernels.h"

/* Elements converted at a time by the bulk functions. */
enum { PIECE = 256 };

static uint32_t bits_of(float x)
{
    uint32_t u;

    memcpy(&u, &x, sizeof(u));
    return u;
}

static float float_of(uint32_t u)
{
    float x;

    memcpy(&x, &u, sizeof(x));
    return x;
}

/*
 *   half    s eeeee mmmmmmmmmm                    bias 15
 *   float   s eeeeeeee mmmmmmmmmm0000000000000    bias 127
 */
float tkv_f16_to_f32(uint16_t h)
{
    const uint32_t sign = (uint32_t)(h & 0x8000u) << 16;
    const uint32_t exponent = h >> 10 & 31u;
    const uint32_t mantissa = h & 0x3ffu;

    if (exponent == 31)
        return float_of(sign | 0x7f800000u | (mantissa ? 0x400000u | mantissa << 13 : 0));
    if (exponent == 0) /* a multiple of 2^-24, exact in float */
        return float_of(sign | bits_of((float)mantissa * 0x1p-24f));
    return float_of(sign | (exponent + 112) << 23 | mantissa << 13);
}

/* u / 2^shift rounded to nearest, ties to even; 1 <= shift <= 31. */
static uint32_t shift_to_even(uint32_t u, unsigned shift)
{
    const uint32_t half = UINT32_C(1) << (shift - 1);
    const uint32_t rest = u & (2 * half - 1);
    const uint32_t q = u >> shift;

    return q + (rest > half || (rest == half && (q & 1)));
}

uint16_t tkv_f32_to_f16(float x)
{
    const uint32_t u = bits_of(x);
    const uint32_t sign = u >> 16 & 0x8000u;
    const uint32_t magnitude = u & 0x7fffffffu;
    const uint32_t exponent = magnitude >> 23;
    uint32_t h;

    if (magnitude > 0x7f800000u)
        h = 0x7e00u | (magnitude >> 13 & 0x1ffu);
    else if (exponent >= 143) /* 2^16 and more */
        h = 0x7c00u;
    else if (exponent >= 113) /* a normal half; a carry out of the mantissa is right as it is */
        h = shift_to_even(magnitude - (UINT32_C(112) << 23), 13);
    else if (exponent >= 102) /* in steps of 2^-24 */
        h = shift_to_even((magnitude & 0x7fffffu) | 0x800000u, 126 - exponent);
    else
        h = 0;
    return (uint16_t)(sign | h);
}

float tkv_bf16_to_f32(uint16_t b)
{
    const uint32_t u = (uint32_t)b << 16;
    const bool nan = (u & 0x7fffffffu) > 0x7f800000u;

    return float_of(nan ? u | 0x400000u : u);
}

uint16_t tkv_f32_to_bf16(float x)
{
    const uint32_t u = bits_of(x);

    if ((u & 0x7fffffffu) > 0x7f800000u)
        return (uint16_t)(u >> 16 | 0x40u);
    return (uint16_t)shift_to_even(u, 16);
}

float tkv_element(const void *x, enum tkv_dtype type, size_t i)
{
    const uint8_t *from = (const uint8_t *)x + i * tkv_dtype_bytes(type);
    uint16_t h;
    float f;

    if (type == TKV_F32) {
        memcpy(&f, from, sizeof(f));
        return f;
    }
    memcpy(&h, from, sizeof(h));
    return type == TKV_F16 ? tkv_f16_to_f32(h) : tkv_bf16_to_f32(h);
}

/* n <= PIECE elements. */
static void piece_to_f32(const struct tkv_kernels *kn, float *dst, const uint8_t *src,
                         enum tkv_dtype type, size_t n)
{
    uint16_t h[PIECE];

    memcpy(h, src, n * sizeof(*h));
    if (type == TKV_F16) {
        kn->f16_to_f32(dst, h, n);
        return;
    }
    for (size_t i = 0; i < n; i++)
        dst[i] = tkv_bf16_to_f32(h[i]);
}

void tkv_to_f32(const struct tkv_kernels *kn, float *dst, const void *src, enum tkv_dtype type,
                size_t n)
{
    const uint8_t *from = src;

    if (type == TKV_F32) {
        if (n)
            memcpy(dst, src, n * sizeof(*dst));
        return;
    }
    if (type == TKV_F16 && (uintptr_t)src % sizeof(uint16_t) == 0) {
        kn->f16_to_f32(dst, src, n);
        return;
    }
    for (size_t i = 0; i < n; i += PIECE)
        piece_to_f32(kn, dst + i, from + 2 * i, type, n - i < PIECE ? n - i : PIECE);
}

/* The index of the first half of h[n] that is infinite or NaN, or n. The exponent of these, and of no other,
 * carries into the sign. In groups of fixed length, which compilers turn into vector code. */
static size_t find_not_finite(const uint16_t *h, size_t n)
{
    enum { LANES = 16 };
    uint16_t bad[LANES] = {0};
    uint16_t any = 0;
    size_t at = 0;

    for (; at + LANES <= n; at += LANES)
        for (size_t j = 0; j < LANES; j++)
            bad[j] |= (uint16_t)((h[at + j] & 0x7c00) + 0x400);
    for (; at < n; at++)
        any |= (uint16_t)((h[at] & 0x7c00) + 0x400);
    for (size_t j = 0; j < LANES; j++)
        any |= bad[j];
    if (!(any & 0x8000))
        return n;
    for (size_t i = 0; i < n; i++)
        if ((h[i] & 0x7c00u) == 0x7c00u)
            return i;
    return n;
}

size_t tkv_to_f16(const struct tkv_kernels *kn, uint16_t *dst, const void *src, enum tkv_dtype type,
                  size_t n)
{
    const uint8_t *from = src;
    float x[PIECE];

    for (size_t i = 0; i < n; i += PIECE) {
        const size_t m = n - i < PIECE ? n - i : PIECE;
        size_t fine;

        if (type == TKV_F16) {
            memcpy(dst + i, from + 2 * i, m * sizeof(*dst));
        } else {
            tkv_to_f32(kn, x, from + i * tkv_dtype_bytes(type), type, m);
            kn->f32_to_f16(dst + i, x, m);
        }
        fine = find_not_finite(dst + i, m);
        if (fine < m)
            return i + fine;
    }
    return n;
}

size_t tkv_check_f16(const struct tkv_kernels *kn, const void *src, enum tkv_dtype type, size_t n)
{
    const uint8_t *from = src;
    uint16_t part[PIECE];

    for (size_t i = 0; i < n; i += PIECE) {
        const size_t m = n - i < PIECE ? n - i : PIECE;
        const size_t fine = tkv_to_f16(kn, part, from + i * tkv_dtype_bytes(type), type, m);

        if (fine < m)
            return i + fine;
    }
    return n;
}
