/*
 * The body of a Q8_0 reader, compiled once per instruction set; whoever includes it
 * defines READ_Q8. A block is d (half), q[32] (signed bytes): 32 values d * q. Exact:
 * one rounding for each value. The copy keeps the compiler from fearing that dst is src.
 */
#include <string.h>

#include "core/half.h"
#include "tools/linear.h"

void READ_Q8(float *dst, const uint8_t *src, size_t n)
{
    for (size_t i = 0; i < n; i += TKV_Q8_BLOCK, src += TKV_Q8_BLOCK_BYTES) {
        int8_t q[TKV_Q8_BLOCK];
        uint16_t half;
        float d;

        memcpy(&half, src, sizeof(half));
        memcpy(q, src + sizeof(half), sizeof(q));
        d = tkv_f16_to_f32(half);
        for (size_t j = 0; j < TKV_Q8_BLOCK; j++)
            dst[i + j] = d * (float)q[j];
    }
}
