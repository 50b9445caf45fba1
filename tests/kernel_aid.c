/* What the checks of kernels share; see the header. */
#include "tests/kernel_aid.h"

#include <float.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "tests/guard.h"

/* What arrays are filled with, in turn. */
enum fill { GAUSS, ZERO, MINUS_ZERO, OUTLIER, HUGE_ONES, TINY, EQUAL, MIXED };
_Static_assert(MIXED + 1 == N_FILLS, "every kind has its turn");

static float value(struct rng *rng, enum fill fill, size_t i)
{
    static const float mixed[] = {0.0f, -0.0f, 1e15f, -1e15f, 1e-15f, 1.0f, -3.5f, 65519.0f};

    switch (fill) {
    case ZERO: return 0.0f;
    case MINUS_ZERO: return -0.0f;
    case OUTLIER: return i == 1 ? 3e4f : 0.01f * rng_gauss(rng);
    case HUGE_ONES: return 1e15f * rng_gauss(rng);
    case TINY: return 1e-15f * rng_gauss(rng);
    case EQUAL: return 0.7f;
    case MIXED: return rng_below(rng, 2) ? rng_gauss(rng) : mixed[rng_below(rng, 8)];
    default: return rng_gauss(rng);
    }
}

float *kernel_floats(struct kernel_run *run, size_t n, unsigned turn)
{
    float *x = guard_alloc(n * sizeof(*x), turn % 2 ? GUARD_START : GUARD_END);

    for (size_t i = 0; i < n; i++)
        x[i] = value(&run->rng, (enum fill)(turn / 2 % N_FILLS), i);
    return x;
}

void *kernel_copy(const void *src, size_t bytes, unsigned turn)
{
    void *p = guard_alloc(bytes, turn % 2 ? GUARD_START : GUARD_END);

    if (bytes)
        memcpy(p, src, bytes);
    return p;
}

void kernel_release(void *p, size_t bytes, struct kernel_run *run, const char *what)
{
    if (!guard_intact(p, bytes)) {
        run->n_failures++;
        snprintf(run->first_failure, sizeof(run->first_failure), "%s: wrote outside", what);
    }
    guard_free(p, bytes);
}

void kernel_expect(struct kernel_run *run, bool fine, const char *format, ...)
{
    va_list args;

    run->n_compared++;
    if (fine || run->n_failures++)
        return;
    va_start(args, format);
    vsnprintf(run->first_failure, sizeof(run->first_failure), format, args);
    va_end(args);
}

bool kernel_same(const void *a, const void *b, size_t bytes)
{
    return bytes == 0 || !memcmp(a, b, bytes);
}

/* Also true if both are the same infinity. */
bool kernel_within(double a, double b, double bound)
{
    return a == b || fabs(a - b) <= bound;
}

uint8_t *kernel_bytes(struct kernel_run *run, size_t n, unsigned turn, unsigned mask)
{
    uint8_t *p = guard_alloc(n, turn % 2 ? GUARD_START : GUARD_END);

    for (size_t i = 0; i < n; i++)
        p[i] = (uint8_t)(rng_next(&run->rng) & mask);
    return p;
}

/* What kernels with float outputs have in common: two outputs to compare and release. */
void kernel_compare(struct kernel_run *run, float *a, float *b, size_t n, const char *what)
{
    kernel_expect(run, kernel_same(a, b, n * sizeof(*a)), "%s n=%zu", what, n);
    kernel_release(a, n * sizeof(*a), run, what);
    kernel_release(b, n * sizeof(*b), run, what);
}

/* Logits under their maximum, as far down as floats go. */
float kernel_under(struct rng *rng, float max)
{
    switch (rng_below(rng, 8)) {
    case 0: return -INFINITY;
    case 1: return max;
    case 2: return max - 80 - 10 * rng_uniform(rng);
    case 3: return -FLT_MAX;
    default: return max - 20 * rng_uniform(rng);
    }
}
