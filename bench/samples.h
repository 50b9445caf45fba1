/* Times, and what is said of them: the median, and the tenth and ninetieth percentile as spread. */
#ifndef TKV_BENCH_SAMPLES_H
#define TKV_BENCH_SAMPLES_H

#include <stddef.h>
#include <stdint.h>
#include <time.h>

enum { TKV_MAX_SAMPLES = 4096 };

/* Begins zeroed. */
struct tkv_samples {
    size_t n;
    double value[TKV_MAX_SAMPLES];
};

struct tkv_spread {
    double median;
    double p10;
    double p90;
    double p99;
};

/* Samples beyond TKV_MAX_SAMPLES are not kept: whoever measures stops before. */
void tkv_samples_add(struct tkv_samples *s, double value);

/* Sorts the samples. Of none, everything is 0. */
struct tkv_spread tkv_samples_spread(struct tkv_samples *s);

static inline uint64_t tkv_bench_now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * UINT64_C(1000000000) + (uint64_t)t.tv_nsec;
}

/* Whether one more repetition is wanted: at least `least`, then until `seconds` are over. */
struct tkv_bench_clock {
    uint64_t start_ns;
    double seconds;
    size_t least;
    size_t n;
};

struct tkv_bench_clock tkv_bench_clock_start(double seconds, size_t least);
int tkv_bench_clock_go_on(struct tkv_bench_clock *c);

#endif /* TKV_BENCH_SAMPLES_H */
