/* The checks of the kernels that work on codes; the bounds are those of core/kernels.h. */
#include <float.h>
#include <math.h>
#include <string.h>

#include "core/pack.h"
#include "tests/guard.h"
#include "tests/kernel_aid.h"

/* Sections as coders make them: widths in turn, sizes small and real. */
static const size_t section_dims[] = {1,  2,  3,  4,  5,  9,  15, 16, 17,  24,  31,
                                      32, 33, 40, 48, 63, 64, 80, 96, 128, 136, 288};
enum { N_SECTION_DIMS = 22, N_SECTIONS = 4 * N_SECTION_DIMS };

static const int8_t some_levels[4][16] = {
    {-1, 1},
    {-40, -12, 12, 40},
    {-62, -39, -22, -7, 7, 22, 39, 62},
    {-63, -46, -36, -28, -21, -15, -9, -3, 3, 9, 15, 21, 28, 36, 46, 63},
};

/* Random bytes are some codes. Keys have something between their two runs of 32 tokens. */
struct codes_case {
    struct tkv_codes codes;
    uint8_t *bytes;
    size_t n_bytes;
};

static struct codes_case make_codes(struct kernel_run *run, unsigned turn, bool keys)
{
    const unsigned w = 1 + turn % 4;
    const size_t n = section_dims[turn / 4 % N_SECTION_DIMS];
    const size_t half = keys ? tkv_key_section_bytes(n, w) : 0;
    struct codes_case c = {.codes = {.n = n, .w = w, .level = some_levels[w - 1]}};

    c.codes.stride = half + 6 * (turn % 3);
    c.n_bytes = keys ? c.codes.stride + half : tkv_value_section_bytes(n, w);
    c.bytes = kernel_bytes(run, c.n_bytes, turn, 255);
    c.codes.bytes = c.bytes;
    return c;
}

void check_key_tile(struct kernel_run *run)
{
    for (unsigned i = 0; i < N_SECTIONS; i++) {
        struct codes_case c = make_codes(run, i, true);
        const size_t n = c.codes.n * TKV_BLOCK_TOKENS;
        float *lut = kernel_floats(run, 16, i), *scale = kernel_floats(run, TKV_BLOCK_TOKENS, i);
        float *a = kernel_floats(run, n, i), *b = kernel_floats(run, n, i);
        float *mean = kernel_floats(run, c.codes.n, i + 4);

        run->ref.key_tile(a, &c.codes, lut, scale, i % 3 ? mean : NULL);
        run->now.key_tile(b, &c.codes, lut, scale, i % 3 ? mean : NULL);
        guard_free(mean, c.codes.n * sizeof(*mean));
        kernel_compare(run, a, b, n, "key_tile");
        guard_free(c.bytes, c.n_bytes);
        guard_free(lut, 16 * sizeof(*lut));
        guard_free(scale, TKV_BLOCK_TOKENS * sizeof(*scale));
    }
}

void check_value_rows(struct kernel_run *run)
{
    for (unsigned i = 0; i < N_SECTIONS; i++) {
        struct codes_case c = make_codes(run, i, false);
        const size_t n_tokens = i % 3 ? 64 : 1 + i % 64, stride = c.codes.n + i % 5;
        const size_t n = (n_tokens - 1) * stride + c.codes.n;
        float *lut = kernel_floats(run, 16, i), *scale = kernel_floats(run, n_tokens, i);
        float *a = kernel_floats(run, n, i), *b = kernel_copy(a, n * sizeof(*a), i);

        float *mean = kernel_floats(run, c.codes.n, i + 4);

        run->ref.value_rows(a, stride, &c.codes, n_tokens, lut, scale, i % 3 ? mean : NULL);
        run->now.value_rows(b, stride, &c.codes, n_tokens, lut, scale, i % 3 ? mean : NULL);
        guard_free(mean, c.codes.n * sizeof(*mean));
        kernel_compare(run, a, b, n, "value_rows");
        guard_free(c.bytes, c.n_bytes);
        guard_free(lut, 16 * sizeof(*lut));
        guard_free(scale, n_tokens * sizeof(*scale));
    }
}

static const size_t query_counts[] = {1, 2, 4, 5, 7, 8, 16, 3};

void check_code_dots(struct kernel_run *run)
{
    for (unsigned i = 0; i < 2 * N_SECTIONS; i++) {
        struct codes_case c = make_codes(run, i, true);
        const size_t n = query_counts[i / 3 % 8], slots = tkv_key_slots(c.codes.n, c.codes.w);
        const size_t n_bytes = 2 * n * slots, n_dots = n * TKV_BLOCK_TOKENS * sizeof(int32_t);
        int8_t *bytes = guard_alloc(n_bytes, GUARD_END);
        int32_t sums[16][2] = {{0}};
        int32_t(*a)[TKV_BLOCK_TOKENS] = guard_alloc(n_dots, GUARD_START);
        int32_t(*b)[TKV_BLOCK_TOKENS] = guard_alloc(n_dots, GUARD_END);
        struct tkv_code_queries q = {bytes, (const int32_t(*)[2])sums, n};

        for (size_t j = 0; j < n_bytes; j++) {
            const int extreme = j % 2 ? 127 : -127;

            bytes[j] = (int8_t)(i % 5 == 0 ? extreme : (int)rng_below(&run->rng, 255) - 127);
            if (j / 8 / n * 4 + j % 4 >= c.codes.n)
                bytes[j] = 0;
            sums[j / 8 % n][j / 4 % 2] += bytes[j];
        }
        for (size_t j = 0; j < n * TKV_BLOCK_TOKENS; j++)
            a[j / TKV_BLOCK_TOKENS][j % TKV_BLOCK_TOKENS] = (int32_t)rng_below(&run->rng, 1000);
        memcpy(b, a, n_dots);
        run->ref.code_dots(a, &c.codes, &q);
        run->now.code_dots(b, &c.codes, &q);
        kernel_expect(run, kernel_same(a, b, n_dots), "code_dots n=%zu w=%u queries=%zu", c.codes.n,
                      c.codes.w, n);
        guard_free(c.bytes, c.n_bytes);
        guard_free(bytes, n_bytes);
        kernel_release(a, n_dots, run, "code_dots");
        kernel_release(b, n_dots, run, "code_dots");
    }
}

void check_code_sums(struct kernel_run *run)
{
    for (unsigned i = 0; i < 2 * N_SECTIONS; i++) {
        struct codes_case c = make_codes(run, i, false);
        const size_t n = query_counts[i / 3 % 8], n_tokens = i % 3 ? 64 : 1 + i % 64;
        const size_t stride = c.codes.n + i % 5, n_acc = (n - 1) * stride + c.codes.n;
        const size_t n_weights = n * 2 * TKV_BLOCK_TOKENS;
        uint8_t *weights = kernel_bytes(run, n_weights, i, 127);
        float *unit = kernel_floats(run, n, i), *a = kernel_floats(run, n_acc, i);
        float *b = kernel_copy(a, n_acc * sizeof(*a), i + 1);

        for (size_t j = 0; j < n_weights; j++)
            if (j % TKV_BLOCK_TOKENS >= n_tokens)
                weights[j] = 0;
            else if (i % 5 == 0)
                weights[j] = 127;
        run->ref.code_sums(a, stride, &c.codes, (const void *)weights, unit, n, n_tokens);
        run->now.code_sums(b, stride, &c.codes, (const void *)weights, unit, n, n_tokens);
        kernel_compare(run, a, b, n_acc, "code_sums");
        guard_free(c.bytes, c.n_bytes);
        guard_free(weights, n_weights);
        guard_free(unit, n * sizeof(*unit));
    }
}

void check_scale_dots(struct kernel_run *run)
{
    for (unsigned i = 0; i < 400; i++) {
        float *scale = kernel_floats(run, TKV_BLOCK_TOKENS, i), *x[2], max[2];
        int32_t *dots = guard_alloc(TKV_BLOCK_TOKENS * sizeof(*dots), GUARD_END);

        for (size_t t = 0; t < TKV_BLOCK_TOKENS; t++)
            dots[t] = (int32_t)rng_next(&run->rng) >> (i % 31);
        for (int k = 0; k < 2; k++) {
            const struct tkv_kernels *kn = k ? &run->now : &run->ref;

            x[k] = kernel_copy(scale, TKV_BLOCK_TOKENS * sizeof(float), i);
            max[k] = kn->scale_dots(x[k], dots, scale, 0.37f, (float)(i % 3) - 1);
        }
        kernel_expect(run, max[0] == max[1], "scale_dots: %a %a", (double)max[0], (double)max[1]);
        kernel_compare(run, x[0], x[1], TKV_BLOCK_TOKENS, "scale_dots");
        guard_free(scale, TKV_BLOCK_TOKENS * sizeof(*scale));
        guard_free(dots, TKV_BLOCK_TOKENS * sizeof(*dots));
    }
}

/* The weights of the reference's exponentials, in double, against the integers of a variant. */
static void check_weights(struct kernel_run *run, const float *x, float max, const float *scale,
                          const uint8_t (*parts)[TKV_BLOCK_TOKENS], double unit)
{
    double w[TKV_BLOCK_TOKENS], largest = 0;
    bool fine = true;

    for (size_t t = 0; t < TKV_BLOCK_TOKENS; t++) {
        w[t] = exp((double)x[t] - (double)max) * (double)scale[t];
        largest = fmax(largest, w[t]);
    }
    for (size_t t = 0; t < TKV_BLOCK_TOKENS; t++) {
        const double got = unit * (128.0 * parts[0][t] + parts[1][t]);

        fine = fine && parts[0][t] < 128 && parts[1][t] < 128 &&
               fabs(got - w[t]) <= 1.001 * unit + 5e-7 * largest + 1e-30;
    }
    kernel_expect(run, fine, "weigh: a weight, unit %g", unit);
}

void check_weigh(struct kernel_run *run)
{
    for (unsigned i = 0; i < 400; i++) {
        const float max = 12.5f * (float)(i % 3);
        float *x = guard_alloc(TKV_BLOCK_TOKENS * sizeof(*x), GUARD_END);
        float *scale = kernel_floats(run, TKV_BLOCK_TOKENS, i), sum[2];
        uint8_t parts[2][2][TKV_BLOCK_TOKENS];

        for (size_t t = 0; t < TKV_BLOCK_TOKENS; t++) {
            x[t] = i % 50 ? kernel_under(&run->rng, max) : -INFINITY;
            scale[t] = fminf(fabsf(scale[t]), 65504);
        }
        for (int k = 0; k < 2; k++) {
            const struct tkv_kernels *kn = k ? &run->now : &run->ref;
            const float unit = kn->weigh(parts[k][0], parts[k][1], x, max, scale, &sum[k]);

            check_weights(run, x, max, scale, parts[k], (double)unit);
        }
        kernel_expect(run,
                      kernel_within((double)sum[0], (double)sum[1],
                                    (4e-7 + 64 * (double)FLT_EPSILON) * (double)sum[0]),
                      "weigh: the sum");
        guard_free(x, TKV_BLOCK_TOKENS * sizeof(*x));
        guard_free(scale, TKV_BLOCK_TOKENS * sizeof(*scale));
    }
}
