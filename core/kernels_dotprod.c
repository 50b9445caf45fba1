/* NEON with the dot product instructions of ARMv8.2: the kernels on codes. */
#if defined(__aarch64__)
#include <arm_neon.h>
#include <stddef.h>
#include <stdint.h>

#include "core/neon_codes.h"

#define ISA dotprod

static inline int32x4_t dot4(int32x4_t sum, uint32x4_t a, uint32x4_t b)
{
    return vdotq_s32(sum, vreinterpretq_s8_u32(a), vreinterpretq_s8_u32(b));
}

/* The lane is part of the instruction; it is known when loops are unrolled. */
static inline int32x4_t dot_one(int32x4_t sum, int8x16_t a, struct factor x)
{
    switch (x.i) {
    case 0: return vdotq_laneq_s32(sum, a, x.quads, 0);
    case 1: return vdotq_laneq_s32(sum, a, x.quads, 1);
    case 2: return vdotq_laneq_s32(sum, a, x.quads, 2);
    default: return vdotq_laneq_s32(sum, a, x.quads, 3);
    }
}

static inline int32x4_t dot8(int32x4_t sum, uint32x4_t a, struct factor x, uint32x4_t b,
                             struct factor y)
{
    return dot_one(dot_one(sum, vreinterpretq_s8_u32(a), x), vreinterpretq_s8_u32(b), y);
}

#include "core/kernels_codes.h"

#include "core/kernels_trials.h"
#endif
