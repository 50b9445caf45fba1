/* The checks of the kernel slots; the bounds of the close ones are those of core/kernels.h. */
#include "tests/kernel_cases.h"

#include <float.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "core/pack.h"
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

/* A search tree over 2^w - 1 ascending edges, which are quarters, and values on them. */
static void make_edges(struct kernel_run *run, float *tree, unsigned w, float *x, size_t n)
{
    const unsigned n_edges = (1u << w) - 1;

    for (unsigned node = 1; node <= n_edges; node++) {
        unsigned depth = 0, at;

        while (node >> (depth + 1))
            depth++;
        at = ((2 * (node - (1u << depth)) + 1) << (w - depth - 1)) - 1; /* its rank */
        tree[node] = ((float)at - (float)n_edges / 2) / 4;
    }
    for (size_t j = 0; j < n; j += 2)
        x[j] = tree[1 + rng_below(&run->rng, n_edges)];
}

static void check_quantise(struct kernel_run *run)
{
    for (unsigned i = 0; i < 2 * N_SIZES; i++) {
        const size_t n = size_of(i / 2);
        const unsigned w = 1 + i % 4;
        float *x = make_floats(run, n, i), *edge = make_floats(run, 16, 0);
        uint8_t *a = make_copy(x, n, i), *b = make_copy(x, n, i);

        make_edges(run, edge, w, x, n);
        run->ref.quantise(a, x, n, edge, w, (float)(1 + i % 3));
        run->now.quantise(b, x, n, edge, w, (float)(1 + i % 3));
        expect(run, same_bits(a, b, n), "quantise n=%zu w=%u", n, w);
        guard_free(x, n * sizeof(*x));
        guard_free(edge, 16 * sizeof(*edge));
        release(a, n, run, "quantise");
        release(b, n, run, "quantise");
    }
}

static void check_fit(struct kernel_run *run)
{
    for (unsigned i = 0; i < 2 * N_SIZES; i++) {
        const size_t n = size_of(i / 2);
        const unsigned w = 1 + i % 4;
        float *x = make_floats(run, n, i), *edge = make_floats(run, 16, 0);
        float *level = make_floats(run, 16, 0), fit[2][2];
        uint8_t *a = make_copy(x, n, i), *b = make_copy(x, n, i);

        make_edges(run, edge, w, x, n);
        run->ref.fit(a, x, n, edge, w, 0.9f, level, fit[0]);
        run->now.fit(b, x, n, edge, w, 0.9f, level, fit[1]);
        expect(run, same_bits(a, b, n) && same_bits(fit[0], fit[1], sizeof(fit[0])),
               "fit n=%zu w=%u", n, w);
        guard_free(x, n * sizeof(*x));
        guard_free(edge, 16 * sizeof(*edge));
        guard_free(level, 16 * sizeof(*level));
        release(a, n, run, "fit");
        release(b, n, run, "fit");
    }
}

static uint8_t *make_bytes(struct kernel_run *run, size_t n, unsigned turn, unsigned mask)
{
    uint8_t *p = guard_alloc(n, turn % 2 ? GUARD_START : GUARD_END);

    for (size_t i = 0; i < n; i++)
        p[i] = (uint8_t)(rng_next(&run->rng) & mask);
    return p;
}

/* What kernels with float outputs have in common: two outputs to compare and release. */
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
    c.bytes = make_bytes(run, c.n_bytes, turn, 255);
    c.codes.bytes = c.bytes;
    return c;
}

static void check_key_tile(struct kernel_run *run)
{
    for (unsigned i = 0; i < N_SECTIONS; i++) {
        struct codes_case c = make_codes(run, i, true);
        const size_t n = c.codes.n * TKV_BLOCK_TOKENS;
        float *lut = make_floats(run, 16, i), *scale = make_floats(run, TKV_BLOCK_TOKENS, i);
        float *a = make_floats(run, n, i), *b = make_floats(run, n, i);
        float *mean = make_floats(run, c.codes.n, i + 4);

        run->ref.key_tile(a, &c.codes, lut, scale, i % 3 ? mean : NULL);
        run->now.key_tile(b, &c.codes, lut, scale, i % 3 ? mean : NULL);
        guard_free(mean, c.codes.n * sizeof(*mean));
        compare_outputs(run, a, b, n, "key_tile");
        guard_free(c.bytes, c.n_bytes);
        guard_free(lut, 16 * sizeof(*lut));
        guard_free(scale, TKV_BLOCK_TOKENS * sizeof(*scale));
    }
}

static void check_value_rows(struct kernel_run *run)
{
    for (unsigned i = 0; i < N_SECTIONS; i++) {
        struct codes_case c = make_codes(run, i, false);
        const size_t n_tokens = i % 3 ? 64 : 1 + i % 64, stride = c.codes.n + i % 5;
        const size_t n = (n_tokens - 1) * stride + c.codes.n;
        float *lut = make_floats(run, 16, i), *scale = make_floats(run, n_tokens, i);
        float *a = make_floats(run, n, i), *b = make_copy(a, n * sizeof(*a), i);

        float *mean = make_floats(run, c.codes.n, i + 4);

        run->ref.value_rows(a, stride, &c.codes, n_tokens, lut, scale, i % 3 ? mean : NULL);
        run->now.value_rows(b, stride, &c.codes, n_tokens, lut, scale, i % 3 ? mean : NULL);
        guard_free(mean, c.codes.n * sizeof(*mean));
        compare_outputs(run, a, b, n, "value_rows");
        guard_free(c.bytes, c.n_bytes);
        guard_free(lut, 16 * sizeof(*lut));
        guard_free(scale, n_tokens * sizeof(*scale));
    }
}

static const size_t query_counts[] = {1, 2, 4, 5, 7, 8, 16, 3};

static void check_code_dots(struct kernel_run *run)
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
        expect(run, same_bits(a, b, n_dots), "code_dots n=%zu w=%u queries=%zu", c.codes.n,
               c.codes.w, n);
        guard_free(c.bytes, c.n_bytes);
        guard_free(bytes, n_bytes);
        release(a, n_dots, run, "code_dots");
        release(b, n_dots, run, "code_dots");
    }
}

static void check_code_sums(struct kernel_run *run)
{
    for (unsigned i = 0; i < 2 * N_SECTIONS; i++) {
        struct codes_case c = make_codes(run, i, false);
        const size_t n = query_counts[i / 3 % 8], n_tokens = i % 3 ? 64 : 1 + i % 64;
        const size_t stride = c.codes.n + i % 5, n_acc = (n - 1) * stride + c.codes.n;
        const size_t n_weights = n * 2 * TKV_BLOCK_TOKENS;
        uint8_t *weights = make_bytes(run, n_weights, i, 127);
        float *unit = make_floats(run, n, i), *a = make_floats(run, n_acc, i);
        float *b = make_copy(a, n_acc * sizeof(*a), i + 1);

        for (size_t j = 0; j < n_weights; j++)
            if (j % TKV_BLOCK_TOKENS >= n_tokens)
                weights[j] = 0;
            else if (i % 5 == 0)
                weights[j] = 127;
        run->ref.code_sums(a, stride, &c.codes, (const void *)weights, unit, n, n_tokens);
        run->now.code_sums(b, stride, &c.codes, (const void *)weights, unit, n, n_tokens);
        compare_outputs(run, a, b, n_acc, "code_sums");
        guard_free(c.bytes, c.n_bytes);
        guard_free(weights, n_weights);
        guard_free(unit, n * sizeof(*unit));
    }
}

static void check_scale_dots(struct kernel_run *run)
{
    for (unsigned i = 0; i < 400; i++) {
        float *scale = make_floats(run, TKV_BLOCK_TOKENS, i), *x[2], max[2];
        int32_t *dots = guard_alloc(TKV_BLOCK_TOKENS * sizeof(*dots), GUARD_END);

        for (size_t t = 0; t < TKV_BLOCK_TOKENS; t++)
            dots[t] = (int32_t)rng_next(&run->rng) >> (i % 31);
        for (int k = 0; k < 2; k++) {
            const struct tkv_kernels *kn = k ? &run->now : &run->ref;

            x[k] = make_copy(scale, TKV_BLOCK_TOKENS * sizeof(float), i);
            max[k] = kn->scale_dots(x[k], dots, scale, 0.37f, (float)(i % 3) - 1);
        }
        expect(run, max[0] == max[1], "scale_dots: %a %a", (double)max[0], (double)max[1]);
        compare_outputs(run, x[0], x[1], TKV_BLOCK_TOKENS, "scale_dots");
        guard_free(scale, TKV_BLOCK_TOKENS * sizeof(*scale));
        guard_free(dots, TKV_BLOCK_TOKENS * sizeof(*dots));
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
    expect(run, fine, "weigh: a weight, unit %g", unit);
}

static void check_weigh(struct kernel_run *run)
{
    for (unsigned i = 0; i < 400; i++) {
        const float max = 12.5f * (float)(i % 3);
        float *x = guard_alloc(TKV_BLOCK_TOKENS * sizeof(*x), GUARD_END);
        float *scale = make_floats(run, TKV_BLOCK_TOKENS, i), sum[2];
        uint8_t parts[2][2][TKV_BLOCK_TOKENS];

        for (size_t t = 0; t < TKV_BLOCK_TOKENS; t++) {
            x[t] = i % 50 ? under(&run->rng, max) : -INFINITY;
            scale[t] = fminf(fabsf(scale[t]), 65504);
        }
        for (int k = 0; k < 2; k++) {
            const struct tkv_kernels *kn = k ? &run->now : &run->ref;
            const float unit = kn->weigh(parts[k][0], parts[k][1], x, max, scale, &sum[k]);

            check_weights(run, x, max, scale, parts[k], (double)unit);
        }
        expect(run,
               within((double)sum[0], (double)sum[1],
                      (4e-7 + 64 * (double)FLT_EPSILON) * (double)sum[0]),
               "weigh: the sum");
        guard_free(x, TKV_BLOCK_TOKENS * sizeof(*x));
        guard_free(scale, TKV_BLOCK_TOKENS * sizeof(*scale));
    }
}

#define CASE(slot)                                              \
    {                                                           \
#slot, offsetof(struct tkv_kernels, slot), check_##slot \
    }

const struct kernel_case kernel_cases[N_KERNEL_CASES] = {
    CASE(fwht),     CASE(norm2),      CASE(dot),     CASE(f16_to_f32), CASE(f32_to_f16),
    CASE(quantise), CASE(fit),        CASE(lookup),  CASE(key_tile),   CASE(value_rows),
    CASE(logits),   CASE(accumulate), CASE(exp_sum), CASE(code_dots),  CASE(scale_dots),
    CASE(weigh),    CASE(code_sums),
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
