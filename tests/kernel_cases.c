/* The checks of the kernel slots; the bounds of the close ones are those of core/kernels.h. */
#include "tests/kernel_cases.h"

#include <float.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "tests/guard.h"
#include "tests/kernel_aid.h"

static const size_t head_dims[] = {512, 576, 1024};
enum { SMALL = 301, N_SIZES = SMALL + 3 };

/* 0, 1, ... 300, then large head dimensions. */
static size_t size_of(unsigned i)
{
    return i < SMALL ? i : head_dims[i - SMALL];
}

static void check_norm2(struct kernel_run *run)
{
    for (unsigned i = 0; i < N_SIZES; i++) {
        for (unsigned turn = i % 2; turn < 2 * N_FILLS; turn += 3) {
            const size_t n = size_of(i);
            float *x = kernel_floats(run, n, turn);
            const float a = run->ref.norm2(x, n), b = run->now.norm2(x, n);

            kernel_expect(run, kernel_same(&a, &b, sizeof(a)), "norm2 n=%zu: %a %a", n, (double)a,
                          (double)b);
            guard_free(x, n * sizeof(*x));
        }
    }
}

static void check_dot(struct kernel_run *run)
{
    for (unsigned i = 0; i < N_SIZES; i++) {
        const size_t n = size_of(i);
        float *a = kernel_floats(run, n, i), *b = kernel_floats(run, n, i / 3);
        double size = 0;

        for (size_t j = 0; j < n; j++)
            size += fabs((double)a[j] * (double)b[j]);
        kernel_expect(run,
                      kernel_within((double)run->ref.dot(a, b, n), (double)run->now.dot(a, b, n),
                                    2.0 * (double)n * (double)FLT_EPSILON * size),
                      "dot n=%zu", n);
        guard_free(a, n * sizeof(*a));
        guard_free(b, n * sizeof(*b));
    }
}

/* Any bits are halves, NaN and infinity too. */
static void check_f16_to_f32(struct kernel_run *run)
{
    for (unsigned i = 0; i < N_SIZES; i++) {
        const size_t n = size_of(i);
        uint16_t *h = guard_alloc(n * sizeof(*h), i % 2 ? GUARD_START : GUARD_END);
        float *a = kernel_floats(run, n, i), *b = kernel_floats(run, n, i);

        for (size_t j = 0; j < n; j++)
            h[j] = (uint16_t)rng_next(&run->rng);
        run->ref.f16_to_f32(a, h, n);
        run->now.f16_to_f32(b, h, n);
        kernel_expect(run, kernel_same(a, b, n * sizeof(*a)), "f16_to_f32 n=%zu", n);
        guard_free(h, n * sizeof(*h));
        kernel_release(a, n * sizeof(*a), run, "f16_to_f32");
        kernel_release(b, n * sizeof(*b), run, "f16_to_f32");
    }
}

/* Any bits, and as often ones near a half's rounding points. */
static float any_float(struct rng *rng)
{
    uint32_t u = (uint32_t)rng_next(rng);
    float x;

    if (rng_below(rng, 2))
        u = (u & 0x80000000u) | ((102 + rng_below(rng, 44)) << 23) | (u & 0x7fe000u) |
            (rng_below(rng, 4) * 0x800u) | rng_below(rng, 2);
    memcpy(&x, &u, sizeof(x));
    return x;
}

static void check_f32_to_f16(struct kernel_run *run)
{
    for (unsigned i = 0; i < 2 * N_SIZES; i++) {
        const size_t n = size_of(i / 2);
        float *x = kernel_floats(run, n, i);
        uint16_t *a = kernel_copy(x, n * sizeof(*a), i), *b = kernel_copy(x, n * sizeof(*b), i);

        for (size_t j = 0; j < n; j++)
            x[j] = any_float(&run->rng);
        run->ref.f32_to_f16(a, x, n);
        run->now.f32_to_f16(b, x, n);
        kernel_expect(run, kernel_same(a, b, n * sizeof(*a)), "f32_to_f16 n=%zu", n);
        guard_free(x, n * sizeof(*x));
        kernel_release(a, n * sizeof(*a), run, "f32_to_f16");
        kernel_release(b, n * sizeof(*b), run, "f32_to_f16");
    }
}

/* Cells between 2^w - 1 edges a quarter apart, and values on them and just below. The table is
 * guarded as the floats are. */
static struct tkv_cells *make_cells(struct kernel_run *run, unsigned w, float *x, size_t n)
{
    const unsigned n_edges = (1u << w) - 1;
    struct tkv_cells *c = guard_alloc(sizeof(*c), GUARD_END);
    float edge[15];

    for (unsigned i = 0; i < n_edges; i++)
        edge[i] = ((float)i - (float)n_edges / 2) / 4;
    tkv_cells_init(c, edge, w);
    for (size_t j = 0; j < n; j += 2)
        x[j] = edge[rng_below(&run->rng, n_edges)];
    for (size_t j = 0; j < n; j += 6)
        x[j] = nextafterf(x[j], -INFINITY);
    for (size_t j = 0; w > 1 && j < n; j++) /* what codes are found for */
        x[j] = fabsf(x[j]) * 3 < 0x1p17f ? x[j] : x[j] < 0 ? -9.0f : 9.0f;
    return c;
}

static void check_quantise(struct kernel_run *run)
{
    for (unsigned i = 0; i < 2 * N_SIZES; i++) {
        const size_t n = size_of(i / 2);
        const unsigned w = 1 + i % 4;
        float *x = kernel_floats(run, n, i);
        struct tkv_cells *cells = make_cells(run, w, x, n);
        uint8_t *a = kernel_copy(x, n, i), *b = kernel_copy(x, n, i);

        run->ref.quantise(a, x, n, cells, w, (float)(1 + i % 3));
        run->now.quantise(b, x, n, cells, w, (float)(1 + i % 3));
        kernel_expect(run, kernel_same(a, b, n), "quantise n=%zu w=%u", n, w);
        guard_free(x, n * sizeof(*x));
        guard_free(cells, sizeof(*cells));
        kernel_release(a, n, run, "quantise");
        kernel_release(b, n, run, "quantise");
    }
}

static void check_fit(struct kernel_run *run)
{
    for (unsigned i = 0; i < 2 * N_SIZES; i++) {
        const size_t n = size_of(i / 2);
        const unsigned w = 1 + i % 4;
        float *x = kernel_floats(run, n, i);
        struct tkv_cells *cells = make_cells(run, w, x, n);
        float *level = kernel_floats(run, 16, 0), fit[2][2];
        uint8_t *a = kernel_copy(x, n, i), *b = kernel_copy(x, n, i);

        run->ref.fit(a, x, n, cells, w, 0.9f, level, fit[0]);
        run->now.fit(b, x, n, cells, w, 0.9f, level, fit[1]);
        kernel_expect(run, kernel_same(a, b, n) && kernel_same(fit[0], fit[1], sizeof(fit[0])),
                      "fit n=%zu w=%u", n, w);
        guard_free(x, n * sizeof(*x));
        guard_free(cells, sizeof(*cells));
        guard_free(level, 16 * sizeof(*level));
        kernel_release(a, n, run, "fit");
        kernel_release(b, n, run, "fit");
    }
}

/* Levels of every kind, most of the magnitudes within reach, some exactly between two. */
static void check_try_scales(struct kernel_run *run)
{
    for (unsigned i = 0; i < 2 * N_SIZES; i++) {
        const size_t n = size_of(i / 2);
        float *x = kernel_floats(run, n, i);
        uint8_t *level = kernel_bytes(run, 64 * TKV_N_TRIALS, i, 63);
        int32_t sums[2][2][TKV_N_TRIALS];
        float largest = 1e-20f;

        for (size_t j = 0; j < n; j++) {
            largest = fmaxf(largest, fabsf(x[j]));
            if (j % 7 == 3)
                x[j] = (float)(j % 256) * 0.5f * largest;
        }
        for (float scale = 1e9f / 512 / largest; scale * largest > 0.01f; scale /= 3.7f) {
            run->ref.try_scales(sums[0], x, n, scale, (const uint8_t(*)[64])level);
            run->now.try_scales(sums[1], x, n, scale, (const uint8_t(*)[64])level);
            kernel_expect(run, kernel_same(sums[0], sums[1], sizeof(sums[0])), "try_scales n=%zu",
                          n);
        }
        guard_free(x, n * sizeof(*x));
        guard_free(level, 64 * TKV_N_TRIALS);
    }
}

/* Also numbers just where a code begins. */
static void check_split_bytes(struct kernel_run *run)
{
    for (unsigned i = 0; i < 2 * N_SIZES; i++) {
        const size_t n = size_of(i / 2);
        float *x = kernel_floats(run, n, i), largest[2];
        uint8_t *a = kernel_bytes(run, 2 * n, i, 255), *b = kernel_copy(a, 2 * n, i);

        for (size_t j = 0; j < n && i % 3 == 0; j++)
            x[j] = j == 0 ? 127.5f : (float)(j % 255) - 127;
        largest[0] = run->ref.split_bytes(a, a + n, x, n);
        largest[1] = run->now.split_bytes(b, b + n, x, n);
        kernel_expect(run, largest[0] == largest[1] && kernel_same(a, b, 2 * n),
                      "split_bytes n=%zu", n);
        guard_free(x, n * sizeof(*x));
        kernel_release(a, 2 * n, run, "split_bytes");
        kernel_release(b, 2 * n, run, "split_bytes");
    }
}

static void check_lookup(struct kernel_run *run)
{
    for (unsigned i = 0; i < N_SIZES; i++) {
        const size_t n = size_of(i);
        uint8_t *codes = kernel_bytes(run, n, i, 15);
        float *lut = kernel_floats(run, 16, i), *a = kernel_floats(run, n, i);
        float *b = kernel_floats(run, n, i);

        run->ref.lookup(a, codes, n, lut, 0.37f);
        run->now.lookup(b, codes, n, lut, 0.37f);
        kernel_compare(run, a, b, n, "lookup");
        guard_free(codes, n);
        guard_free(lut, 16 * sizeof(*lut));
    }
}

static const size_t row_counts[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 13, 33};
static const size_t dims[] = {1,  2,  3,  7,  8,  9,  16,  18,  34,  40,  48,
                              63, 64, 65, 72, 80, 96, 112, 128, 192, 256, 576};
enum { N_ROW_COUNTS = 11, N_DIMS = 22 };

/* c = c0 + a[n_rows][lda] b[depth][n]: |c0| + sum |a b| of one element. */
static double magnitude(const float *a, const float *b, size_t n, size_t depth, double start)
{
    double sum = fabs(start);

    for (size_t k = 0; k < depth; k++)
        sum += fabs((double)a[k] * (double)b[k * n]);
    return sum;
}

static void check_logits_of(struct kernel_run *run, size_t n_rows, size_t dim, unsigned turn)
{
    const size_t n = n_rows * TKV_BLOCK_TOKENS, tile_n = dim * TKV_BLOCK_TOKENS;
    float *q = kernel_floats(run, n_rows * dim, turn), *tile = kernel_floats(run, tile_n, turn / 2);
    float *a = kernel_floats(run, n, turn), *b = kernel_floats(run, n, turn);
    bool fine = true;

    run->ref.logits(a, q, n_rows, tile, dim);
    run->now.logits(b, q, n_rows, tile, dim);
    for (size_t i = 0; i < n; i++)
        fine = fine &&
               kernel_within((double)a[i], (double)b[i],
                             2.0 * (double)dim * (double)FLT_EPSILON *
                                 magnitude(q + i / TKV_BLOCK_TOKENS * dim,
                                           tile + i % TKV_BLOCK_TOKENS, TKV_BLOCK_TOKENS, dim, 0));
    kernel_expect(run, fine, "logits rows=%zu dim=%zu", n_rows, dim);
    guard_free(q, n_rows * dim * sizeof(*q));
    guard_free(tile, tile_n * sizeof(*tile));
    kernel_release(a, n * sizeof(*a), run, "logits");
    kernel_release(b, n * sizeof(*b), run, "logits");
}

static void check_logits(struct kernel_run *run)
{
    for (unsigned r = 0; r < N_ROW_COUNTS; r++)
        for (unsigned d = 0; d < N_DIMS; d++)
            check_logits_of(run, row_counts[r], dims[d], r + 3 * d);
}

static void check_accumulate_of(struct kernel_run *run, size_t n_rows, size_t n_tokens, size_t dim,
                                unsigned turn)
{
    const size_t n = n_rows * dim, w_n = n_rows * TKV_BLOCK_TOKENS;
    float *w = kernel_floats(run, w_n, turn), *rows = kernel_floats(run, n_tokens * dim, turn / 2);
    float *a = kernel_floats(run, n, turn), *b = kernel_copy(a, n * sizeof(*b), turn);
    float *start = kernel_copy(a, n * sizeof(*start), turn);
    bool fine = true;

    run->ref.accumulate(a, w, n_rows, rows, n_tokens, dim);
    run->now.accumulate(b, w, n_rows, rows, n_tokens, dim);
    for (size_t i = 0; i < n; i++)
        fine = fine && kernel_within((double)a[i], (double)b[i],
                                     2.0 * (double)n_tokens * (double)FLT_EPSILON *
                                         magnitude(w + i / dim * TKV_BLOCK_TOKENS, rows + i % dim,
                                                   dim, n_tokens, (double)start[i]));
    kernel_expect(run, fine, "accumulate rows=%zu tokens=%zu dim=%zu", n_rows, n_tokens, dim);
    guard_free(w, w_n * sizeof(*w));
    guard_free(rows, n_tokens * dim * sizeof(*rows));
    guard_free(start, n * sizeof(*start));
    kernel_release(a, n * sizeof(*a), run, "accumulate");
    kernel_release(b, n * sizeof(*b), run, "accumulate");
}

static void check_accumulate(struct kernel_run *run)
{
    static const size_t tokens[] = {0, 1, 2, 15, 16, 17, 63, 64};

    for (unsigned r = 0; r < N_ROW_COUNTS; r++)
        for (unsigned d = 0; d < N_DIMS; d++)
            check_accumulate_of(run, row_counts[r], tokens[(r + d) % 8], dims[d], r + 3 * d);
}

static void check_exp_sum(struct kernel_run *run)
{
    for (unsigned i = 0; i < 2 * N_SIZES; i++) {
        const size_t n = size_of(i / 2), bytes = n * sizeof(float);
        const float max = i % 3 ? 12.5f * (float)(i % 3) : 0;
        float *a = kernel_floats(run, n, i), *b;
        double sum_a, sum_b;
        bool fine = true;

        for (size_t j = 0; j < n; j++)
            a[j] = kernel_under(&run->rng, max);
        b = kernel_copy(a, bytes, i);
        sum_a = (double)run->ref.exp_sum(a, n, max);
        sum_b = (double)run->now.exp_sum(b, n, max);
        for (size_t j = 0; j < n; j++)
            fine = fine && (kernel_within((double)a[j], (double)b[j], 4e-7 * (double)a[j]) ||
                            (a[j] < 1e-37f && b[j] == 0));
        kernel_expect(run, fine, "exp_sum n=%zu: an element", n);
        kernel_expect(run,
                      kernel_within(sum_a, sum_b, (4e-7 + (double)n * (double)FLT_EPSILON) * sum_a),
                      "exp_sum n=%zu: the sum", n);
        kernel_release(a, bytes, run, "exp_sum");
        kernel_release(b, bytes, run, "exp_sum");
    }
}

#define CASE(slot)                                              \
    {                                                           \
#slot, offsetof(struct tkv_kernels, slot), check_##slot \
    }

const struct kernel_case kernel_cases[N_KERNEL_CASES] = {
    CASE(fwht),        CASE(norm2),      CASE(dot),         CASE(f16_to_f32),  CASE(f32_to_f16),
    CASE(quantise),    CASE(fit),        CASE(lookup),      CASE(key_tile),    CASE(value_rows),
    CASE(logits),      CASE(accumulate), CASE(exp_sum),     CASE(code_dots),   CASE(level_dots),
    CASE(scale_dots),  CASE(weigh),      CASE(code_sums),   CASE(moments),     CASE(fold_scores),
    CASE(count_from),  CASE(pick_keys),  CASE(pick_values), CASE(pick_halves), CASE(try_scales),
    CASE(split_bytes), CASE(pick_bytes), CASE(add_steps),   CASE(sum_vectors),
};

_Static_assert(sizeof(struct tkv_kernels) == N_KERNEL_CASES * sizeof(void (*)(void)),
               "every slot has a check");

void kernel_run_init(struct kernel_run *run, const struct tkv_kernels *now, uint64_t seed)
{
    memset(run, 0, sizeof(*run));
    tkv_kernels_init(&run->ref, 0);
    run->now = *now;
    run->rng.state = seed;
}
