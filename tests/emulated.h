/* Less of the same under an emulator, which is a hundred times slower and shows what differs with
 * instructions, layouts and the order of memory, not with one more case of many. */
#ifndef TKV_TESTS_EMULATED_H
#define TKV_TESTS_EMULATED_H

#include <stdint.h>
#include <stdlib.h>

/* The step of a loop over cases: `step` under an emulator (tests/run gives its name), and where only
 * what is reached counts (BUILD=coverage, without optimisation), else 1. */
static inline uint32_t emulated_step(uint32_t step)
{
#ifdef TRIKV_FEW_CASES
    return step;
#else
    return getenv("TRIKV_RUNNER") ? step : 1;
#endif
}

/* The same where ThreadSanitizer watches, too: for what has one thread and very many cases. */
static inline uint32_t slow_step(uint32_t step)
{
#ifdef __SANITIZE_THREAD__
    return step;
#else
    return emulated_step(step);
#endif
}

#endif /* TKV_TESTS_EMULATED_H */
