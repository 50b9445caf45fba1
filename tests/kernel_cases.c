/* The checks of the kernel slots; the bounds of the close ones are those of core/kernels.h. */
#include "tests/kernel_cases.h"

#include <float.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "tests/guard.h"

static const size_t head_dims[] = {512, 576, 1024};
enum { SMALL = 301, N_SIZES = SMALL + 3 };

/* 0, 1, ... 300, then large head dimensions. */
static size_t size_of(unsigned i)
{
    return i < SMALL ? i : head_dims[i - SMALL];
}

/* What arrays are filled with, in turn. */
enum fill { GAUSS, ZERO, MINUS_ZERO, OUTLIER, HUGE_ONES, TINY, EQUAL, MIXED, N_FILLS };

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

static float *make_floats(struct kernel_run *run, size_t n, unsigned turn)
{
    float *x = guard_alloc(n * sizeof(*x), turn % 2 ? GUARD_START : GUARD_END);

    for (size_t i = 0; i < n; i++)
        x[i] = value(&run->rng, (enum fill)(turn / 2 % N_FILLS), i);
    return x;
}

static void *make_copy(const void *src, size_t bytes, unsigned turn)
{
    void *p = guard_alloc(bytes, turn % 2 ? GUARD_START : GUARD_END);

    if (bytes)
        memcpy(p, src, bytes);
    return p;
}

static void release(void *p, size_t bytes, struct kernel_run *run, const char *what)
{
    if (!guard_intact(p, bytes)) {
        run->n_failures++;
        snprintf(run->first_failure, sizeof(run->first_failure), "%s: wrote outside", what);
    }
    guard_free(p, bytes);
}

__attribute__((format(printf, 3, 4))) static void expect(struct kernel_run *run, bool fine,
                                                         const char *format, ...)
{
    va_list args;

    run->n_compared++;
    if (fine || run->n_failures++)
        return;
    va_start(args, format);
    vsnprintf(run->first_failure, sizeof(run->first_failure), format, args);
    va_end(args);
}

static bool same_bits(const void *a, const void *b, size_t bytes)
{
    return bytes == 0 || !memcmp(a, b, bytes);
}

/* Also true if both are the same infinity. */
static bool within(double a, double b, double bound)
{
    return a == b || fabs(a - b) <= bound;
}

static void check_fwht(struct kernel_run *run)
{
    for (unsigned turn = 0; turn < 2 * N_FILLS; turn++) {
        for (size_t n = 1; n <= 1024; n *= 2) {
            const size_t bytes = n * sizeof(float);
            float *a = make_floats(run, n, turn), *b = make_copy(a, bytes, turn);

            run->ref.fwht(a, n);
            run->now.fwht(b, n);
            expect(run, same_bits(a, b, bytes), "fwht n=%zu", n);
            release(a, bytes, run, "fwht");
            release(b, bytes, run, "fwht");
        }
    }
}

static void check_norm2(struct kernel_run *run)
{
    for (unsigned i = 0; i < N_SIZES; i++) {
        for (unsigned turn = i % 2; turn < 2 * N_FILLS; turn += 3) {
            const size_t n = size_of(i);
            float *x = make_floats(run, n, turn);
            const float a = run->ref.norm2(x, n), b = run->now.norm2(x, n);

            expect(run, same_bits(&a, &b, sizeof(a)), "norm2 n=%zu: %a %a", n, (double)a,
                   (double)b);
            guard_free(x, n * sizeof(*x));
        }
    }
}

static void check_dot(struct kernel_run *run)
{
    for (unsigned i = 0; i < N_SIZES; i++) {
        const size_t n = size_of(i);
        float *a = make_floats(run, n, i), *b = make_floats(run, n, i / 3);
        double size = 0;

        for (size_t j = 0; j < n; j++)
            size += fabs((double)a[j] * (double)b[j]);
        expect(run,
               within((double)run->ref.dot(a, b, n), (double)run->now.dot(a, b, n),
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
        float *a = make_floats(run, n, i), *b = make_floats(run, n, i);

        for (size_t j = 0; j < n; j++)
            h[j] = (uint16_t)rng_next(&run->rng);
        run->ref.f16_to_f32(a, h, n);
        run->now.f16_to_f32(b, h, n);
        expect(run, same_bits(a, b, n * sizeof(*a)), "f16_to_f32 n=%zu", n);
        guard_free(h, n * sizeof(*h));
        release(a, n * sizeof(*a), run, "f16_to_f32");
        release(b, n * sizeof(*b), run, "f16_to_f32");
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
        float *x = make_floats(run, n, i);
        uint16_t *a = make_copy(x, n * sizeof(*a), i), *b = make_copy(x, n * sizeof(*b), i);

        for (size_t j = 0; j < n; j++)
            x[j] = any_float(&run->rng);
        run->ref.f32_to_f16(a, x, n);
        run->now.f32_to_f16(b, x, n);
        expect(run, same_bits(a, b, n * sizeof(*a)), "f32_to_f16 n=%zu", n);
        guard_free(x, n * sizeof(*x));
        release(a, n * sizeof(*a), run, "f32_to_f16");
        release(b, n * sizeof(*b), run, "f32_to_f16");
    }
}

/* With scale 1 and 2, some values lie exactly on an edge. */
static void check_quantise(struct kernel_run *run)
{
    for (unsigned i = 0; i < N_SIZES; i++) {
        const size_t n = size_of(i);
        const unsigned n_edges = i % 16;
        float *x = make_floats(run, n, i), *edge = make_floats(run, n_edges, 0);
        uint8_t *a = make_copy(x, n, i), *b = make_copy(x, n, i);

        for (unsigned e = 0; e < n_edges; e++)
            edge[e] = ((float)e - (float)n_edges / 2) / 4;
        for (size_t j = 0; n_edges && j < n; j += 2)
            x[j] = edge[rng_below(&run->rng, n_edges)];
        run->ref.quantise(a, x, n, edge, n_edges, (float)(1 + i % 3));
        run->now.quantise(b, x, n, edge, n_edges, (float)(1 + i % 3));
        expect(run, same_bits(a, b, n), "quantise n=%zu edges=%u", n, n_edges);
        guard_free(x, n * sizeof(*x));
        guard_free(edge, n_edges * sizeof(*edge));
        release(a, n, run, "quantise");
        release(b, n, run, "quantise");
    }
}

static uint8_t *make_bytes(struct kernel_run *run, size_t n, unsigned turn, unsigned mask)
{
    uint8_t *p = guard_alloc(n, turn % 2 ? GUARD_START : GUARD_END);

    for (size_t i = 0; i < n; i++)
        p[i] = (uint8_t)(rng_next(&run->rng) & mask);
    return p;
}

/* What lookup, expand and expand_tile have in common: two outputs to compare and release. */
static void compare_outputs(struct kernel_run *run, float *a, float *b, size_t n, const char *what)
{
    expect(run, same_bits(a, b, n * sizeof(*a)), "%s n=%zu", what, n);
    release(a, n * sizeof(*a), run, what);
    release(b, n * sizeof(*b), run, what);
}

static void check_lookup(struct kernel_run *run)
{
    for (unsigned i = 0; i < N_SIZES; i++) {
        const size_t n = size_of(i);
        uint8_t *codes = make_bytes(run, n, i, 15);
        float *lut = make_floats(run, 16, i), *a = make_floats(run, n, i);
        float *b = make_floats(run, n, i);

        run->ref.lookup(a, codes, n, lut, 0.37f);
        run->now.lookup(b, codes, n, lut, 0.37f);
        compare_outputs(run, a, b, n, "lookup");
        guard_free(codes, n);
        guard_free(lut, 16 * sizeof(*lut));
    }
}

static void check_expand(struct kernel_run *run)
{
    for (unsigned i = 0; i < 4 * 130; i++) {
        const unsigned w = 1 + i % 4;
        const size_t n = i / 4 * 8;
        uint8_t *planes = make_bytes(run, n * w / 8, i / 4, 255);
        float *lut = make_floats(run, 16, i), *a = make_floats(run, n, i);
        float *b = make_floats(run, n, i);

        run->ref.expand(a, planes, n, w, lut, -1.7f);
        run->now.expand(b, planes, n, w, lut, -1.7f);
        compare_outputs(run, a, b, n, "expand");
        guard_free(planes, n * w / 8);
        guard_free(lut, 16 * sizeof(*lut));
    }
}

static void check_expand_tile(struct kernel_run *run)
{
    for (unsigned i = 0; i < 4 * 40; i++) {
        const unsigned w = 1 + i % 4;
        const size_t n_rows = i / 4, n = n_rows * TKV_BLOCK_TOKENS;
        uint8_t *rows = make_bytes(run, n * w / 8, i / 4, 255);
        float *lut = make_floats(run, 16, i), *scale = make_floats(run, TKV_BLOCK_TOKENS, i);
        float *a = make_floats(run, n, i), *b = make_floats(run, n, i);

        run->ref.expand_tile(a, rows, n_rows, w, lut, scale);
        run->now.expand_tile(b, rows, n_rows, w, lut, scale);
        compare_outputs(run, a, b, n, "expand_tile");
        guard_free(rows, n * w / 8);
        guard_free(lut, 16 * sizeof(*lut));
        guard_free(scale, TKV_BLOCK_TOKENS * sizeof(*scale));
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
    float *q = make_floats(run, n_rows * dim, turn), *tile = make_floats(run, tile_n, turn / 2);
    float *a = make_floats(run, n, turn), *b = make_floats(run, n, turn);
    bool fine = true;

    run->ref.logits(a, q, n_rows, tile, dim);
    run->now.logits(b, q, n_rows, tile, dim);
    for (size_t i = 0; i < n; i++)
        fine = fine && within((double)a[i], (double)b[i],
                              2.0 * (double)dim * (double)FLT_EPSILON *
                                  magnitude(q + i / TKV_BLOCK_TOKENS * dim,
                                            tile + i % TKV_BLOCK_TOKENS, TKV_BLOCK_TOKENS, dim, 0));
    expect(run, fine, "logits rows=%zu dim=%zu", n_rows, dim);
    guard_free(q, n_rows * dim * sizeof(*q));
    guard_free(tile, tile_n * sizeof(*tile));
    release(a, n * sizeof(*a), run, "logits");
    release(b, n * sizeof(*b), run, "logits");
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
    float *w = make_floats(run, w_n, turn), *rows = make_floats(run, n_tokens * dim, turn / 2);
    float *a = make_floats(run, n, turn), *b = make_copy(a, n * sizeof(*b), turn);
    float *start = make_copy(a, n * sizeof(*start), turn);
    bool fine = true;

    run->ref.accumulate(a, w, n_rows, rows, n_tokens, dim);
    run->now.accumulate(b, w, n_rows, rows, n_tokens, dim);
    for (size_t i = 0; i < n; i++)
        fine = fine && within((double)a[i], (double)b[i],
                              2.0 * (double)n_tokens * (double)FLT_EPSILON *
                                  magnitude(w + i / dim * TKV_BLOCK_TOKENS, rows + i % dim, dim,
                                            n_tokens, (double)start[i]));
    expect(run, fine, "accumulate rows=%zu tokens=%zu dim=%zu", n_rows, n_tokens, dim);
    guard_free(w, w_n * sizeof(*w));
    guard_free(rows, n_tokens * dim * sizeof(*rows));
    guard_free(start, n * sizeof(*start));
    release(a, n * sizeof(*a), run, "accumulate");
    release(b, n * sizeof(*b), run, "accumulate");
}

static void check_accumulate(struct kernel_run *run)
{
    static const size_t tokens[] = {0, 1, 2, 15, 16, 17, 63, 64};

    for (unsigned r = 0; r < N_ROW_COUNTS; r++)
        for (unsigned d = 0; d < N_DIMS; d++)
            check_accumulate_of(run, row_counts[r], tokens[(r + d) % 8], dims[d], r + 3 * d);
}

/* Logits under their maximum, as far down as floats go. */
static float under(struct rng *rng, float max)
{
    switch (rng_below(rng, 8)) {
    case 0: return -INFINITY;
    case 1: return max;
    case 2: return max - 80 - 10 * rng_uniform(rng);
    case 3: return -FLT_MAX;
    default: return max - 20 * rng_uniform(rng);
    }
}

static void check_exp_sum(struct kernel_run *run)
{
    for (unsigned i = 0; i < 2 * N_SIZES; i++) {
        const size_t n = size_of(i / 2), bytes = n * sizeof(float);
        const float max = i % 3 ? 12.5f * (float)(i % 3) : 0;
        float *a = make_floats(run, n, i), *b;
        double sum_a, sum_b;
        bool fine = true;

        for (size_t j = 0; j < n; j++)
            a[j] = under(&run->rng, max);
        b = make_copy(a, bytes, i);
        sum_a = (double)run->ref.exp_sum(a, n, max);
        sum_b = (double)run->now.exp_sum(b, n, max);
        for (size_t j = 0; j < n; j++)
            fine = fine && (within((double)a[j], (double)b[j], 4e-7 * (double)a[j]) ||
                            (a[j] < 1e-37f && b[j] == 0));
        expect(run, fine, "exp_sum n=%zu: an element", n);
        expect(run, within(sum_a, sum_b, (4e-7 + (double)n * (double)FLT_EPSILON) * sum_a),
               "exp_sum n=%zu: the sum", n);
        release(a, bytes, run, "exp_sum");
        release(b, bytes, run, "exp_sum");
    }
}

#define CASE(slot)                                              \
    {                                                           \
#slot, offsetof(struct tkv_kernels, slot), check_##slot \
    }

const struct kernel_case kernel_cases[N_KERNEL_CASES] = {
    CASE(fwht),        CASE(norm2),    CASE(dot),        CASE(f16_to_f32),
    CASE(f32_to_f16),  CASE(quantise), CASE(lookup),     CASE(expand),
    CASE(expand_tile), CASE(logits),   CASE(accumulate), CASE(exp_sum),
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
