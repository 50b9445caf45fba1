/* A small seeded random source for tests: the same numbers on every machine. */
#ifndef TKV_TESTS_RNG_H
#define TKV_TESTS_RNG_H

#include <math.h>
#include <stdint.h>

struct rng {
    uint64_t state; /* the seed, to begin with */
};

/* splitmix64 (Steele, Lea and Flood, OOPSLA 2014). */
static inline uint64_t rng_next(struct rng *r)
{
    uint64_t z = r->state += UINT64_C(0x9e3779b97f4a7c15);

    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

/* Uniform in [0, 1). */
static inline float rng_uniform(struct rng *r)
{
    return (float)(rng_next(r) >> 40) * 0x1p-24f;
}

/* A whole number in 0 .. n - 1; n is small, so the bias of the remainder does not matter. */
static inline uint32_t rng_below(struct rng *r, uint32_t n)
{
    return (uint32_t)(rng_next(r) % n);
}

/* Standard normal (Box and Muller). */
static inline float rng_gauss(struct rng *r)
{
    const double u = ((double)(rng_next(r) >> 11) + 0.5) * 0x1p-53;
    const double v = (double)(rng_next(r) >> 11) * 0x1p-53;

    return (float)(sqrt(-2 * log(u)) * cos(6.283185307179586 * v));
}

#endif /* TKV_TESTS_RNG_H */
