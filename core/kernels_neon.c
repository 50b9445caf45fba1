/* NEON of the 64-bit ARM base architecture: 4 lanes, tails by single floats. */
#if defined(__aarch64__)
#include <arm_neon.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "core/neon_codes.h"

#define ISA       neon
#define GEMM_VECS 4
#define OWN_EXP2  0

typedef float32x4_t vec;
typedef uint32x4_t vec_int;

static inline vec fma_vec(vec a, vec b, vec c)
{
    return vfmaq_f32(c, a, b);
}

static inline vec load_f16(const void *halves)
{
    return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(halves)));
}

static inline vec load_bf16(const void *halves)
{
    return vreinterpretq_f32_u32(vshll_n_u16(vreinterpret_u16_u8(vld1_u8(halves)), 16));
}

/* The 64 bytes of 16 floats, which is what one table instruction can address. */
struct table {
    uint8x16x4_t bytes;
};

static inline struct table load_table(const float *lut, float factor)
{
    struct table t;

    for (int i = 0; i < 4; i++)
        t.bytes.val[i] = vreinterpretq_u8_f32(vmulq_n_f32(vld1q_f32(lut + 4 * i), factor));
    return t;
}

static inline uint32x4_t widen(const uint8_t *bytes)
{
    uint32_t word;

    memcpy(&word, bytes, sizeof(word));
    return vmovl_u16(vget_low_u16(vmovl_u8(vreinterpret_u8_u32(vdup_n_u32(word)))));
}

/* The bytes of float i are 4i .. 4i + 3: i times 0x04040404, plus 0x03020100. */
static inline vec lookup_vec(const struct table *t, uint32x4_t index)
{
    const uint32x4_t bytes = vmlaq_n_u32(vdupq_n_u32(0x03020100u), index, 0x04040404u);

    return vreinterpretq_f32_u8(vqtbl4q_u8(t->bytes, vreinterpretq_u8_u32(bytes)));
}

static inline uint32x4_t count_below(uint32x4_t n, vec a, vec b)
{
    return vsubq_u32(n, vcleq_f32(a, b));
}

static inline vec larger(vec a, vec b)
{
    return vmaxq_f32(a, b);
}

/* Without the dot product instructions: products of 16 bits, added up in two steps. */
static inline int32x4_t dot4(int32x4_t sum, uint32x4_t a, uint32x4_t b)
{
    const int8x16_t x = vreinterpretq_s8_u32(a), y = vreinterpretq_s8_u32(b);
    const int32x4_t low = vpaddlq_s16(vmull_s8(vget_low_s8(x), vget_low_s8(y)));
    const int32x4_t high = vpaddlq_s16(vmull_high_s8(x, y));

    return vaddq_s32(sum, vpaddq_s32(low, high));
}

/* In every word; the lane is part of the instruction, and known when loops are unrolled. */
static inline int8x16_t spread(struct factor x)
{
    const uint32x4_t quads = vreinterpretq_u32_s8(x.quads);

    switch (x.i) {
    case 0: return vreinterpretq_s8_u32(vdupq_laneq_u32(quads, 0));
    case 1: return vreinterpretq_s8_u32(vdupq_laneq_u32(quads, 1));
    case 2: return vreinterpretq_s8_u32(vdupq_laneq_u32(quads, 2));
    default: return vreinterpretq_s8_u32(vdupq_laneq_u32(quads, 3));
    }
}

/* Sums of four products of a level and a number fit 16 bits: 63 * 127 * 4. */
static inline int32x4_t dot8(int32x4_t sum, uint32x4_t a, struct factor x, uint32x4_t b,
                             struct factor y)
{
    const int8x16_t ab = vreinterpretq_s8_u32(a), xb = spread(x);
    const int8x16_t bb = vreinterpretq_s8_u32(b), yb = spread(y);
    const int16x8_t low =
        vmlal_s8(vmull_s8(vget_low_s8(ab), vget_low_s8(xb)), vget_low_s8(bb), vget_low_s8(yb));
    const int16x8_t high = vmlal_high_s8(vmull_high_s8(ab, xb), bb, yb);

    return vpadalq_s16(sum, vpaddq_s16(low, high));
}

/* The compilers' own vector: a pointer to NEON's is another type. */
typedef int32_t sums __attribute__((vector_size(16)));

static inline void split_units(uint8_t *high, uint8_t *low, const sums *v)
{
    const uint16x8_t a =
        vuzp1q_u16(vreinterpretq_u16_s32((int32x4_t)v[0]), vreinterpretq_u16_s32((int32x4_t)v[1]));
    const uint16x8_t b =
        vuzp1q_u16(vreinterpretq_u16_s32((int32x4_t)v[2]), vreinterpretq_u16_s32((int32x4_t)v[3]));
    const uint16x8_t mask = vdupq_n_u16(127);

    vst1q_u8(high, vuzp1q_u8(vreinterpretq_u8_u16(vshrq_n_u16(a, 7)),
                             vreinterpretq_u8_u16(vshrq_n_u16(b, 7))));
    vst1q_u8(low, vuzp1q_u8(vreinterpretq_u8_u16(vandq_u16(a, mask)),
                            vreinterpretq_u8_u16(vandq_u16(b, mask))));
}

/* Bytes of a row of 64: 4 from .. 4 from + 3 for each word, beyond 63 where there is none. */
struct places {
    uint8x16_t bytes[4];
};

static inline struct places load_places(const uint8_t *from)
{
    static const uint8_t quads[16] = {0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3};
    const uint8x16_t four = vqshlq_n_u8(vld1q_u8(from), 2);
    const uint8x16_t inside = vreinterpretq_u8_u32(vdupq_n_u32(0x03020100u));
    struct places p;

    for (uint8_t v = 0; v < 4; v++) {
        const uint8x16_t place = vaddq_u8(vld1q_u8(quads), vdupq_n_u8((uint8_t)(4 * v)));

        p.bytes[v] = vorrq_u8(vqtbl1q_u8(four, place), inside);
    }
    return p;
}

static inline uint32x4_t pick_words(const uint8_t *row, const struct places *p, size_t v)
{
    return vreinterpretq_u32_u8(vqtbl4q_u8(vld1q_u8_x4(row), p->bytes[v]));
}

static inline uint32x4_t pick_bytes(uint32x4_t row, uint32x4_t places)
{
    return vreinterpretq_u32_u8(
        vqtbl1q_u8(vreinterpretq_u8_u32(row), vreinterpretq_u8_u32(places)));
}

#include "core/kernels_simd.h"

void tkv_f16_to_f32_neon(float *dst, const uint16_t *src, size_t n)
{
    size_t i = 0;

    for (; i + 4 <= n; i += 4)
        vst1q_f32(dst + i, vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(src + i))));
    for (; i < n; i++)
        dst[i] = tkv_f16_to_f32(src[i]);
}

void tkv_f32_to_f16_neon(uint16_t *dst, const float *src, size_t n)
{
    size_t i = 0;

    for (; i + 4 <= n; i += 4)
        vst1_u16(dst + i, vreinterpret_u16_f16(vcvt_f16_f32(vld1q_f32(src + i))));
    for (; i < n; i++)
        dst[i] = tkv_f32_to_f16(src[i]);
}

/* Nothing moves halves between lanes by index: the reference, compiled here. */
void tkv_pick_halves_neon(void *dst, const void *src, const uint8_t *lane, size_t n)
{
    for (size_t i = 0; i < n; i++)
        memcpy((uint8_t *)dst + 2 * i, (const uint8_t *)src + 2 * (size_t)lane[i], 2);
}

void tkv_pick_bytes_neon(uint8_t *dst, const uint8_t *src, const uint8_t *lane, size_t n)
{
    for (size_t i = 0; i < n; i++)
        dst[i] = src[lane[i]];
}
#endif
