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

#include "core/kernels_codes.h"

#include "core/kernels_trials.h"
#endif
