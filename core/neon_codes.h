/* What the two NEON files give to the kernels on codes: everything but the dot product. */
#ifndef TKV_CORE_NEON_CODES_H
#define TKV_CORE_NEON_CODES_H

#include <arm_neon.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define LANES    4
#define BIAS     0
#define OWN_DOTS 1
#define PERIODIC 0
#define PAIRS    0
#define SLICES_1 4
#define SLICES_2 2
#define SLICES_4 2
#define FIELDS_4 2

static inline float32x4_t load_part(const float *p, size_t n)
{
    float x[4] = {0};

    memcpy(x, p, n * sizeof(*x));
    return vld1q_f32(x);
}

static inline void store_part(float *p, float32x4_t v, size_t n)
{
    float x[4];

    vst1q_f32(x, v);
    memcpy(p, x, n * sizeof(*x));
}

struct levels {
    int8x16_t entry;
};

static inline struct levels load_levels(const int8_t *level, unsigned w, int bias)
{
    (void)w;
    (void)bias;
    return (struct levels){vld1q_s8(level)};
}

static inline uint32x4_t lookup_levels(const struct levels *t, uint32x4_t bytes)
{
    return vreinterpretq_u32_s8(vqtbl1q_s8(t->entry, vreinterpretq_u8_u32(bytes)));
}

struct indices {
    uint8x16_t all;
};

static inline struct indices split_indices(uint32x4_t index)
{
    return (struct indices){vreinterpretq_u8_u32(index)};
}

static inline uint32x4_t lookup_64(const uint8_t *table, const struct indices *at)
{
    return vreinterpretq_u32_u8(vqtbl4q_u8(vld1q_u8_x4(table), at->all));
}

/* One of four quads, which instructions take from where it lies. */
struct factor {
    int8x16_t quads;
    size_t i;
};

static inline struct factor factor_at(const uint8_t *p, size_t i, size_t n)
{
    const int8_t *from = (const int8_t *)p + i / 4 * 16;

    if (n - i / 4 * 4 >= 4)
        return (struct factor){vld1q_s8(from), i % 4};
    return (struct factor){vcombine_s8(vld1_s8(from), vdup_n_s8(0)), i % 4};
}

static inline int32_t sum_words(int32x4_t v)
{
    return vaddvq_s32(v);
}

#endif /* TKV_CORE_NEON_CODES_H */
