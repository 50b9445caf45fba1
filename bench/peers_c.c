/* The comparison kernels in plain C with the compilers' vectors: any CPU. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "core/half.h"

#define ISA      c
#define ISA_NAME "plain C"
#define LANES    4

typedef float vec __attribute__((vector_size(16)));
typedef vec partial;

static inline vec fma_vec(vec a, vec b, vec c)
{
    return a * b + c;
}

static inline vec max_vec(vec a, vec b)
{
    vec m = a;

    for (size_t i = 0; i < LANES; i++)
        m[i] = b[i] > m[i] ? b[i] : m[i];
    return m;
}

static inline void store_low_bytes(uint8_t *dst, vec v)
{
    uint32_t bits[LANES];

    memcpy(bits, &v, sizeof(bits));
    for (size_t i = 0; i < LANES; i++)
        dst[i] = (uint8_t)bits[i];
}

static inline float largest_lane(vec v)
{
    float m = v[0];

    for (size_t i = 1; i < LANES; i++)
        m = v[i] > m ? v[i] : m;
    return m;
}

struct codes {
    int8_t byte[32];
};

static inline struct codes load_codes(const uint8_t *bytes)
{
    struct codes c;

    memcpy(c.byte, bytes, sizeof(c.byte));
    return c;
}

static inline struct codes load_nibbles(const uint8_t *bytes)
{
    struct codes c;

    for (size_t i = 0; i < 16; i++) {
        c.byte[i] = (int8_t)((bytes[i] & 15) - 8);
        c.byte[i + 16] = (int8_t)((bytes[i] >> 4) - 8);
    }
    return c;
}

/* The sum is in lane 0, and the other lanes are 0. */
static inline partial dot_codes(struct codes c, const int8_t *y)
{
    int32_t sum = 0;

    for (size_t i = 0; i < 32; i++)
        sum += c.byte[i] * y[i];
    return (partial){(float)sum};
}

static inline float add_partial(partial v)
{
    return v[0];
}

static inline void widen_codes(float *dst, struct codes c, float scale)
{
    for (size_t i = 0; i < 32; i++)
        dst[i] = c.byte[i] * scale;
}

static inline float half_to_float(const uint8_t *bytes)
{
    uint16_t h;

    memcpy(&h, bytes, sizeof(h));
    return tkv_f16_to_f32(h);
}

static inline uint16_t float_to_half(float x)
{
    return tkv_f32_to_f16(x);
}

#include "bench/peers_simd.h"
