/* The checks of the kernels that work on rows of scores. */
#include <math.h>

#include "tests/guard.h"
#include "tests/kernel_aid.h"

static const size_t row_sizes[] = {0,  1,  2,  3,  7,  8,  9,   15,  16,  17,  31,
                                   33, 63, 64, 65, 71, 80, 127, 128, 333, 2176};
enum { N_ROW_SIZES = 21, N_TURNS = 4 * N_FILLS };

void check_moments(struct kernel_run *run)
{
    for (unsigned i = 0; i < N_TURNS * N_ROW_SIZES; i++) {
        const size_t n = row_sizes[i % N_ROW_SIZES];
        float *x = kernel_floats(run, n, i / N_ROW_SIZES);
        double a[2], b[2];

        run->ref.moments(a, x, n, i % 3 ? 0.37 : 0);
        run->now.moments(b, x, n, i % 3 ? 0.37 : 0);
        kernel_expect(run, kernel_same(a, b, sizeof(a)), "moments n=%zu: %a %a", n, a[0], b[0]);
        guard_free(x, n * sizeof(*x));
    }
}

/* Some scores are not numbers. */
void check_fold_scores(struct kernel_run *run)
{
    for (unsigned i = 0; i < N_TURNS * N_ROW_SIZES; i++) {
        const size_t n = row_sizes[i % N_ROW_SIZES];
        float *x = kernel_floats(run, n, i / N_ROW_SIZES), *a = kernel_floats(run, n, i);
        float *b;

        for (size_t j = i % 7; j < n; j += 11) {
            x[j] = j % 2 ? NAN : (float)INFINITY;
            a[j] = -INFINITY;
        }
        b = kernel_copy(a, n * sizeof(*a), i);
        run->ref.fold_scores(a, x, n, 0.1, 1 / (1.5 + i));
        run->now.fold_scores(b, x, n, 0.1, 1 / (1.5 + i));
        guard_free(x, n * sizeof(*x));
        kernel_compare(run, a, b, n, "fold_scores");
    }
}

void check_add_steps(struct kernel_run *run)
{
    for (unsigned i = 0; i < N_TURNS * N_ROW_SIZES; i++) {
        const size_t n = row_sizes[i % N_ROW_SIZES];
        float *x = kernel_floats(run, n, i / N_ROW_SIZES), *a = kernel_floats(run, n, i), *b;
        uint8_t *codes = kernel_bytes(run, n, i, i % 3 ? 255 : 1);

        b = kernel_copy(a, n * sizeof(*a), i);
        run->ref.add_steps(a, x, codes, n, 7.1f - (float)i, 0.3f * (float)i);
        run->now.add_steps(b, x, codes, n, 7.1f - (float)i, 0.3f * (float)i);
        guard_free(x, n * sizeof(*x));
        guard_free(codes, n);
        kernel_compare(run, a, b, n, "add_steps");
    }
}

void check_count_from(struct kernel_run *run)
{
    for (unsigned i = 0; i < N_TURNS * N_ROW_SIZES; i++) {
        const size_t n = row_sizes[i % N_ROW_SIZES];
        const uint32_t mask = i % 2 ? 0xffffffffu : 3u << 30;
        uint32_t *keys = guard_alloc(n * sizeof(*keys), i % 2 ? GUARD_START : GUARD_END), least;
        size_t a, b;

        for (size_t j = 0; j < n; j++)
            keys[j] = (uint32_t)rng_next(&run->rng) & mask;
        least = i % 5 ? (uint32_t)rng_next(&run->rng) & mask : i % 4 ? 0 : 0xffffffffu;
        a = run->ref.count_from(keys, n, least);
        b = run->now.count_from(keys, n, least);
        kernel_expect(run, a == b, "count_from n=%zu: %zu %zu", n, a, b);
        guard_free(keys, n * sizeof(*keys));
    }
}
