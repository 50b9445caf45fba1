#include "bench/inputs.h"

/* splitmix64 (Steele, Lea and Flood, OOPSLA 2014). */
static inline uint64_t mix(uint64_t z)
{
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

/* One word gives four uniform numbers of 16 bits; their sum has mean 4 * 32767.5 and standard
 * deviation 65536 * sqrt(4 / 12). */
void tkv_source_gauss(struct tkv_source *s, float *x, size_t n)
{
    const float scale = 1.0f / 37837.2f;

    for (size_t i = 0; i < n; i++) {
        const uint64_t z = mix(s->state += UINT64_C(0x9e3779b97f4a7c15));
        const uint64_t pairs =
            (z & UINT64_C(0x0000ffff0000ffff)) + (z >> 16 & UINT64_C(0x0000ffff0000ffff));
        const int32_t sum = (int32_t)((pairs >> 32) + (pairs & 0xffffffff));

        x[i] = (float)(sum - 131070) * scale;
    }
}
