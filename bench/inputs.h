/* Random numbers for measurements: cheap, since whole caches are filled with them. */
#ifndef TKV_BENCH_INPUTS_H
#define TKV_BENCH_INPUTS_H

#include <stddef.h>
#include <stdint.h>

struct tkv_source {
    uint64_t state; /* the seed, to begin with */
};

/* x[n]: near normal, mean 0, variance 1 (the sum of four uniform numbers). */
void tkv_source_gauss(struct tkv_source *s, float *x, size_t n);

#endif /* TKV_BENCH_INPUTS_H */
