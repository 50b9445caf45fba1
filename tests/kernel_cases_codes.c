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

/* The two parts of queries as one number, in the order that struct tkv_code_queries has. */
static void join_parts(int16_t *words, const int8_t *bytes, size_t n_bytes)
{
    static const size_t order[4] = {0, 2, 1, 3};

    for (size_t j = 0; j < n_bytes; j += 8)
        for (size_t k = 0; k < 4; k++)
            words[j / 2 + k] = (int16_t)(128 * bytes[j + order[k]] + bytes[j + 4 + order[k]]);
}

void check_code_dots(struct kernel_run *run)
{
    for (unsigned i = 0; i < 2 * N_SECTIONS; i++) {
        struct codes_case c = make_codes(run, i, true);
        const size_t n = query_counts[i / 3 % 8], slots = tkv_key_slots(c.codes.n, c.codes.w);
        const size_t n_bytes = 2 * n * slots, n_dots = n * TKV_BLOCK_TOKENS * sizeof(int32_t);
        int8_t *bytes = guard_alloc(n_bytes, GUARD_END);
        int16_t *words = guard_alloc(n_bytes, GUARD_END);
        int32_t sums[16][2] = {{0}};
        int32_t(*a)[TKV_BLOCK_TOKENS] = guard_alloc(n_dots, GUARD_START);
        int32_t(*b)[TKV_BLOCK_TOKENS] = guard_alloc(n_dots, GUARD_END);
        const struct tkv_code_queries q = {bytes, words, (const int32_t(*)[2])sums, n, i % 7 == 3};

        for (size_t j = 0; j < n_bytes; j++) {
            const int extreme = j % 2 ? 127 : -127;

            bytes[j] = (int8_t)(i % 5 == 0 ? extreme : (int)rng_below(&run->rng, 255) - 127);
            if (j / 8 / n * 4 + j % 4 >= c.codes.n)
                bytes[j] = 0;
            sums[j / 8 % n][j / 4 % 2] += bytes[j];
        }
        join_parts(words, bytes, n_bytes);
        for (size_t j = 0; j < n * TKV_BLOCK_TOKENS; j++)
            a[j / TKV_BLOCK_TOKENS][j % TKV_BLOCK_TOKENS] = (int32_t)rng_below(&run->rng, 1000);
        memcpy(b, a, n_dots);
        run->ref.code_dots(a, &c.codes, &q);
        run->now.code_dots(b, &c.codes, &q);
        kernel_expect(run, kernel_same(a, b, n_dots), "code_dots n=%zu w=%u queries=%zu", c.codes.n,
                      c.codes.w, n);
        guard_free(c.bytes, c.n_bytes);
        guard_free(bytes, n_bytes);
        guard_free(words, n_bytes);
        kernel_release(a, n_dots, run, "code_dots");
        kernel_release(b, n_dots, run, "code_dots");
    }
}

void check_level_dots(struct kernel_run *run)
{
    for (unsigned i = 0; i < 40; i++) {
        const size_t n_queries = query_counts[i % 8], n = 64 * (i % 3 ? 1 + i % 4 : 16);
        const size_t n_bytes = 2 * n * n_queries, dots_bytes = n_queries * sizeof(int32_t);
        uint8_t *codes = guard_alloc(n, GUARD_END);
        int8_t *bytes = guard_alloc(n_bytes, GUARD_END), level[16];
        int32_t *a = guard_alloc(dots_bytes, GUARD_START), *b = guard_alloc(dots_bytes, GUARD_END);
        int32_t sums[16][2] = {{0}};
        const struct tkv_code_queries q = {
            .bytes = bytes, .sums = (const int32_t(*)[2])sums, .n = n_queries};

        for (size_t j = 0; j < 16; j++)
            level[j] = (int8_t)(i % 5 == 0 ? 63 : (int)rng_below(&run->rng, 127) - 63);
        for (size_t j = 0; j < n; j++)
            codes[j] = (uint8_t)rng_below(&run->rng, 16);
        for (size_t j = 0; j < n_bytes; j++) {
            bytes[j] = (int8_t)(i % 5 == 0 ? 127 : (int)rng_below(&run->rng, 255) - 127);
            sums[j / n / 2][j / n % 2] += bytes[j];
        }
        run->ref.level_dots(a, codes, n, level, &q);
        run->now.level_dots(b, codes, n, level, &q);
        kernel_expect(run, kernel_same(a, b, dots_bytes), "level_dots n=%zu queries=%zu", n,
                      n_queries);
        guard_free(codes, n);
        guard_free(bytes, n_bytes);
        kernel_release(a, dots_bytes, run, "level_dots");
        kernel_release(b, dots_bytes, run, "level_dots");
    }
}

/* Blocks with codes of their own and one form. */
static size_t make_run(struct kernel_run *run, unsigned turn, struct codes_case *c)
{
    const size_t n_blocks = 1 + turn / 4 % TKV_RUN_BLOCKS;

    for (size_t b = 0; b < n_blocks; b++)
        c[b] = make_codes(run, turn, false);
    for (size_t b = 0; b < n_blocks; b++)
        c[b].codes.next = turn % 3 ? c[(b + 1) % n_blocks].bytes : NULL;
    return n_blocks;
}

void check_code_sums(struct kernel_run *run)
{
    for (unsigned i = 0; i < 4 * N_SECTIONS; i++) {
        struct codes_case c[TKV_RUN_BLOCKS];
        struct tkv_codes codes[TKV_RUN_BLOCKS];
        const size_t n_blocks = make_run(run, i, c), n = query_counts[i / 3 % 8];
        const size_t stride = c[0].codes.n + i % 5, n_acc = (n - 1) * stride + c[0].codes.n;
        const size_t n_weights = n * 2 * TKV_RUN_TOKENS;
        uint8_t *weights = kernel_bytes(run, n_weights, i, 127);
        float *unit = kernel_floats(run, n, i), *a = kernel_floats(run, n_acc, i);
        float *b = kernel_copy(a, n_acc * sizeof(*a), i + 1);

        if (i % 5 == 0)
            memset(weights, 127, n_weights);
        for (size_t k = 0; k < n_blocks; k++)
            codes[k] = c[k].codes;
        run->ref.code_sums(a, stride, codes, n_blocks, (const void *)weights, unit, n);
        run->now.code_sums(b, stride, codes, n_blocks, (const void *)weights, unit, n);
        kernel_compare(run, a, b, n_acc, "code_sums");
        for (size_t k = 0; k < n_blocks; k++)
            guard_free(c[k].bytes, c[k].n_bytes);
        guard_free(weights, n_weights);
        guard_free(unit, n * sizeof(*unit));
    }
}

void check_scale_dots(struct kernel_run *run)
{
    for (unsigned i = 0; i < 400; i++) {
        const size_t n_blocks = 1 + i / 2 % TKV_RUN_BLOCKS, stride = TKV_BLOCK_TOKENS + i % 3 * 16;
        const size_t n = (n_blocks - 1) * stride + TKV_BLOCK_TOKENS;
        const float offset[TKV_RUN_BLOCKS] = {-1, 0, (float)(i % 5), 1e-3f};
        float *scale = kernel_floats(run, n_blocks * TKV_BLOCK_TOKENS, i);
        float *fill = kernel_floats(run, n, i), *x[2], max[2];
        int32_t *dots = guard_alloc(n * sizeof(*dots), GUARD_END);

        for (size_t t = 0; t < n; t++)
            dots[t] = (int32_t)rng_next(&run->rng) >> (i % 31);
        for (int k = 0; k < 2; k++) {
            const struct tkv_kernels *kn = k ? &run->now : &run->ref;

            x[k] = kernel_copy(fill, n * sizeof(float), i);
            max[k] = kn->scale_dots(x[k], dots, stride, n_blocks, scale, 0.37f, offset);
        }
        kernel_expect(run, max[0] == max[1], "scale_dots: %a %a", (double)max[0], (double)max[1]);
        kernel_compare(run, x[0], x[1], n, "scale_dots");
        guard_free(scale, n_blocks * TKV_BLOCK_TOKENS * sizeof(*scale));
        guard_free(fill, n * sizeof(*fill));
        guard_free(dots, n * sizeof(*dots));
    }
}

/* A row of a run: logits with something between their blocks, scales, and two variants' results. */
struct weigh_case {
    size_t n_blocks, stride;
    float max;
    float *x, *scale;
    uint8_t parts[2][2][TKV_RUN_TOKENS];
    float sum[2][TKV_RUN_BLOCKS];
};

static size_t logit_bytes(const struct weigh_case *c)
{
    return ((c->n_blocks - 1) * c->stride + TKV_BLOCK_TOKENS) * sizeof(float);
}

static void make_weigh(struct kernel_run *run, unsigned turn, struct weigh_case *c)
{
    c->n_blocks = 1 + turn % TKV_RUN_BLOCKS;
    c->stride = TKV_BLOCK_TOKENS + turn % 3 * 16;
    c->max = 12.5f * (float)(turn % 3);
    c->x = guard_alloc(logit_bytes(c), GUARD_END);
    c->scale = kernel_floats(run, c->n_blocks * TKV_BLOCK_TOKENS, turn);
    for (size_t i = 0; i < logit_bytes(c) / sizeof(float); i++)
        c->x[i] = turn % 50 ? kernel_under(&run->rng, c->max) : -INFINITY;
    for (size_t i = 0; i < c->n_blocks * TKV_BLOCK_TOKENS; i++)
        c->scale[i] = fminf(fabsf(c->scale[i]), 65504);
}

/* The weights in double against the integers of a variant. */
static void check_weights(struct kernel_run *run, const struct weigh_case *c, int k, double unit)
{
    double w[TKV_RUN_TOKENS], largest = 0;
    bool fine = true;

    for (size_t b = 0; b < c->n_blocks; b++) {
        double sum = 0;

        for (size_t t = 0; t < TKV_BLOCK_TOKENS; t++) {
            const size_t i = b * TKV_BLOCK_TOKENS + t;
            const double e = exp((double)c->x[b * c->stride + t] - (double)c->max);

            sum += e;
            w[i] = e * (double)c->scale[i];
            largest = fmax(largest, w[i]);
        }
        fine = fine && kernel_within((double)c->sum[k][b], sum, 1e-5 * sum + 1e-35);
    }
    for (size_t i = 0; i < c->n_blocks * TKV_BLOCK_TOKENS; i++) {
        const double got = unit * (128.0 * c->parts[k][0][i] + c->parts[k][1][i]);

        fine = fine && c->parts[k][0][i] < 128 && c->parts[k][1][i] < 128 &&
               fabs(got - w[i]) <= 1.001 * unit + 1e-5 * largest + 1e-30;
    }
    kernel_expect(run, fine, "weigh: a weight or a sum, unit %g", unit);
}

void check_weigh(struct kernel_run *run)
{
    for (unsigned i = 0; i < 400; i++) {
        struct weigh_case c;

        make_weigh(run, i, &c);
        for (int k = 0; k < 2; k++) {
            const struct tkv_kernels *kn = k ? &run->now : &run->ref;
            const float unit = kn->weigh(c.parts[k][0], c.parts[k][1], c.x, c.stride, c.n_blocks,
                                         c.max, c.scale, c.sum[k]);

            check_weights(run, &c, k, (double)unit);
        }
        guard_free(c.x, logit_bytes(&c));
        guard_free(c.scale, c.n_blocks * TKV_BLOCK_TOKENS * sizeof(float));
    }
}
