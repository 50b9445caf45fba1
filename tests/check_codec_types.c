/*
 * Halves and bfloats are coded as they lie, and give the same block, bit for bit, as floats that
 * equal them: with every instruction set of this CPU, vectors apart from each other, at odd addresses.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "core/codec.h"
#include "core/cpu.h"
#include "core/half.h"
#include "core/kernels.h"
#include "tests/codec_aid.h"
#include "tests/guard.h"

enum { LANES = TKV_BLOCK_TOKENS, GAP = 6 };

static const uint32_t dims[] = {8, 18, 64, 80, 96, 128, 256, 576};
static const size_t counts[] = {LANES, 37, 64, 1};

/* Vectors of halves, and the floats that they are. */
struct vectors {
    uint8_t *memory;
    size_t bytes;
    struct tkv_vectors halves;
    float *floats; /* [n][dim] */
};

static uint16_t half_of(struct rng *rng, enum tkv_dtype type, size_t t)
{
    /* Ordinary, zero, subnormal as halves, as large as halves get; bfloats whose squares overflow. */
    static const float sizes[] = {1, 0, 1e-6f, 2e4f, 0.01f, 100};
    const float size = type == TKV_BF16 && t % 16 == 7 ? 1e30f : sizes[t % 6];
    const float x = (rng_gauss(rng) + 1) * size;

    if (type == TKV_BF16)
        return tkv_f32_to_bf16(x);
    return tkv_f32_to_f16(x > 65504 ? 65504 : x < -65504 ? -65504 : x);
}

static void make_vectors(struct vectors *v, enum tkv_dtype type, uint32_t dim, size_t n)
{
    const size_t stride = dim + GAP;
    struct rng rng = {dim * 100 + n};
    uint8_t *to;

    v->bytes = ((n - 1) * stride + dim) * sizeof(uint16_t) + 1;
    v->memory = guard_alloc(v->bytes, GUARD_END);
    to = v->memory + 1;
    v->halves = (struct tkv_vectors){.x = to, .type = type, .stride = stride};
    v->floats = guard_alloc(n * dim * sizeof(float), GUARD_END);
    memset(v->memory, 0xff, v->bytes); /* between them lies what is not a number */
    for (size_t t = 0; t < n; t++)
        for (uint32_t i = 0; i < dim; i++) {
            const uint16_t h = half_of(&rng, type, t);

            memcpy(to + (t * stride + i) * sizeof(h), &h, sizeof(h));
            v->floats[t * dim + i] = type == TKV_F16 ? tkv_f16_to_f32(h) : tkv_bf16_to_f32(h);
        }
}

static void code(const struct tkv_coder *c, const struct tkv_kernels *kn, struct tkv_vectors x,
                 size_t n, uint8_t *blocks)
{
    uint8_t mean[TKV_MAX_MEAN_BYTES];

    tkv_code_mean(c, kn, TKV_KEYS, x, n, mean);
    tkv_encode_keys(c, kn, mean, x, n, blocks);
    if (c->v_block_bytes == 0)
        return;
    tkv_code_mean(c, kn, TKV_VALUES, x, n, mean);
    tkv_encode_values(c, kn, mean, x, n, blocks + c->k_block_bytes);
}

/* Against the floats coded by the reference. */
static void compare(const struct tkv_coder *c, const struct tkv_kernels *kn, enum tkv_dtype type,
                    size_t n)
{
    const size_t bytes = c->k_block_bytes + c->v_block_bytes;
    uint8_t *want = guard_alloc(bytes, GUARD_END), *got = guard_alloc(bytes, GUARD_END);
    struct tkv_kernels plain;
    struct vectors v;

    tkv_kernels_init(&plain, 0);
    make_vectors(&v, type, c->dim, n);
    memset(got, 0xa5, bytes);
    code(c, &plain, tkv_floats(v.floats, c->dim), n, want);
    code(c, kn, v.halves, n, got);
    assert_memory_equal(got, want, bytes);
    assert_true(guard_intact(got, bytes));
    guard_free(want, bytes);
    guard_free(got, bytes);
    guard_free(v.memory, v.bytes);
    guard_free(v.floats, n * c->dim * sizeof(float));
}

static void test_halves_give_the_bytes_of_floats(void **state)
{
    const unsigned cpu = tkv_cpu_flags(getenv("TRIKV_CPU_DISABLE"));
    struct tkv_kernels best, plain;
    struct tkv_coder c;

    (void)state;
    tkv_kernels_init(&best, cpu);
    tkv_kernels_init(&plain, 0);
    for (const struct tkv_codec *codec = tkv_codecs; codec->name; codec++) {
        for (size_t d = 0; d < sizeof(dims) / sizeof(dims[0]); d++) {
            codec_aid_coder(&c, codec, dims[d]);
            compare(&c, &best, TKV_F16, counts[d % 4]);
            compare(&c, &best, TKV_BF16, counts[d % 4]);
            compare(&c, &plain, d % 2 ? TKV_F16 : TKV_BF16, counts[d % 4]);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_halves_give_the_bytes_of_floats)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
