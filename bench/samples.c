#include "bench/samples.h"

#include <stdlib.h>

void tkv_samples_add(struct tkv_samples *s, double value)
{
    if (s->n < TKV_MAX_SAMPLES)
        s->value[s->n++] = value;
}

static int ascending(const void *a, const void *b)
{
    const double x = *(const double *)a;
    const double y = *(const double *)b;

    return (x > y) - (x < y);
}

/* The value below which this share of the samples lies, between two samples if need be. */
static double quantile(const struct tkv_samples *s, double share)
{
    const double at = share * (double)(s->n - 1);
    const size_t low = (size_t)at;
    const size_t high = low + 1 < s->n ? low + 1 : low;

    return s->value[low] + (s->value[high] - s->value[low]) * (at - (double)low);
}

struct tkv_spread tkv_samples_spread(struct tkv_samples *s)
{
    if (s->n == 0)
        return (struct tkv_spread){0};
    qsort(s->value, s->n, sizeof(s->value[0]), ascending);
    return (struct tkv_spread){quantile(s, 0.5), quantile(s, 0.1), quantile(s, 0.9),
                               quantile(s, 0.99)};
}

struct tkv_bench_clock tkv_bench_clock_start(double seconds, size_t least)
{
    return (struct tkv_bench_clock){tkv_bench_now_ns(), seconds, least, 0};
}

int tkv_bench_clock_go_on(struct tkv_bench_clock *c)
{
    const double gone = (double)(tkv_bench_now_ns() - c->start_ns) * 1e-9;

    if (c->n >= TKV_MAX_SAMPLES || (c->n >= c->least && gone >= c->seconds))
        return 0;
    c->n++;
    return 1;
}
