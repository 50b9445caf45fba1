/* Half and bfloat16 conversions, against an independent definition: powers of two in double. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "core/cpu.h"
#include "core/half.h"
#include "core/kernels.h"
#include "tests/rng.h"

/* The value of a half that is not a NaN. */
static double value_of(unsigned h)
{
    const double sign = h & 0x8000u ? -1 : 1;
    const int exponent = (int)(h >> 10 & 31u);
    const double mantissa = h & 0x3ffu;

    if (exponent == 31)
        return sign * (double)INFINITY;
    return sign * (exponent ? ldexp(1024 + mantissa, exponent - 25) : ldexp(mantissa, -24));
}

static bool is_nan_half(unsigned h)
{
    return (h & 0x7fffu) > 0x7c00u;
}

static void test_all_halves(void **state)
{
    (void)state;
    for (unsigned h = 0; h < 65536; h++) {
        const float x = tkv_f16_to_f32((uint16_t)h);

        if (is_nan_half(h)) {
            assert_true(isnan(x));
            assert_int_equal(tkv_f32_to_f16(x), h | 0x200u); /* quiet, payload kept */
            continue;
        }
        assert_true((double)x == value_of(h) && !signbit(x) == !(h & 0x8000u));
        assert_int_equal(tkv_f32_to_f16(x), h);
    }
}

/* Between two neighbouring halves: the middle goes to the even one, anything else to the nearer. */
static void test_rounding(void **state)
{
    (void)state;
    for (unsigned h = 0; h < 0x7bffu; h++) {
        const float low = tkv_f16_to_f32((uint16_t)h), high = tkv_f16_to_f32((uint16_t)(h + 1));
        const float middle = low + (high - low) / 2;
        const unsigned even = h % 2 ? h + 1 : h;

        assert_int_equal(tkv_f32_to_f16(middle), even);
        assert_int_equal(tkv_f32_to_f16(-middle), even | 0x8000u);
        assert_int_equal(tkv_f32_to_f16(nextafterf(middle, low)), h);
        assert_int_equal(tkv_f32_to_f16(nextafterf(middle, high)), h + 1);
    }
}

static void test_half_limits(void **state)
{
    (void)state;
    assert_int_equal(tkv_f32_to_f16(65504.0f), 0x7bff);
    assert_int_equal(tkv_f32_to_f16(65519.996f), 0x7bff);
    assert_int_equal(tkv_f32_to_f16(65520.0f), 0x7c00);
    assert_int_equal(tkv_f32_to_f16(-3e38f), 0xfc00);
    assert_int_equal(tkv_f32_to_f16(0x1p-25f), 0);
    assert_int_equal(tkv_f32_to_f16(0x1.000002p-25f), 1);
    assert_int_equal(tkv_f32_to_f16(-0x1p-126f), 0x8000);
    assert_int_equal(tkv_f32_to_f16(0x1p-149f), 0);
}

static uint32_t bits_of(float x)
{
    uint32_t u;

    memcpy(&u, &x, sizeof(u));
    return u;
}

static void test_bf16(void **state)
{
    (void)state;
    for (unsigned b = 0; b < 65536; b++) {
        const float x = tkv_bf16_to_f32((uint16_t)b);
        const bool nan = (b & 0x7fffu) > 0x7f80u;

        assert_int_equal(bits_of(x), (nan ? b | 0x40u : b) << 16);
        assert_int_equal(tkv_f32_to_bf16(x), nan ? b | 0x40u : b);
    }
    assert_int_equal(tkv_f32_to_bf16(1.00390625f), 0x3f80);  /* 1 + 2^-8: a tie, to even */
    assert_int_equal(tkv_f32_to_bf16(1.01171875f), 0x3f82);  /* 1 + 3 * 2^-8: up to even */
    assert_int_equal(tkv_f32_to_bf16(1.003906369f), 0x3f81); /* just above the tie */
    assert_int_equal(tkv_f32_to_bf16(3.4e38f), 0x7f80);
}

enum { N = 1003 }; /* more than one piece of a bulk conversion, and no multiple of a vector */

/* Elements of a type at an odd address, and what they are. */
static void make_source(uint8_t *src, enum tkv_dtype type, float *want, uint64_t seed)
{
    struct rng rng = {seed};

    for (size_t i = 0; i < N; i++) {
        const float x = 100 * rng_gauss(&rng);
        const uint16_t h = type == TKV_F16 ? tkv_f32_to_f16(x) : tkv_f32_to_bf16(x);

        if (type == TKV_F32)
            memcpy(src + 4 * i, &x, sizeof(x));
        else
            memcpy(src + 2 * i, &h, sizeof(h));
        want[i] = type == TKV_F32 ? x : type == TKV_F16 ? tkv_f16_to_f32(h) : tkv_bf16_to_f32(h);
    }
}

static void test_bulk(void **state)
{
    static const enum tkv_dtype types[] = {TKV_F32, TKV_F16, TKV_BF16};
    static uint8_t src[4 * N + 1];
    static float want[N], got[N];
    static uint16_t halves[N];
    struct tkv_kernels kn;

    (void)state;
    tkv_kernels_init(&kn, tkv_cpu_flags(NULL));
    for (size_t t = 0; t < 3; t++) {
        for (size_t odd = 0; odd < 2; odd++) {
            make_source(src + odd, types[t], want, 7 + t);
            tkv_to_f32(&kn, got, src + odd, types[t], N);
            assert_memory_equal(got, want, sizeof(want));
            assert_int_equal(tkv_to_f16(&kn, halves, src + odd, types[t], N), N);
            for (size_t i = 0; i < N; i++)
                assert_int_equal(halves[i], tkv_f32_to_f16(want[i]));
        }
        assert_int_equal(tkv_to_f16(&kn, halves, src, types[t], 0), 0);
        tkv_to_f32(&kn, got, src, types[t], 0);
    }
}

/* The first element that is no finite half is reported, wherever it is. */
static void test_not_finite(void **state)
{
    static const float bad[] = {INFINITY, -INFINITY, NAN, 65520.0f, -1e30f};
    static const size_t at[] = {0, 1, 255, 256, 511, 700, N - 1};
    static float x[N];
    static uint16_t b[N], halves[N];
    struct tkv_kernels kn;

    (void)state;
    tkv_kernels_init(&kn, tkv_cpu_flags(NULL));
    for (size_t i = 0; i < sizeof(at) / sizeof(at[0]); i++) {
        for (size_t k = 0; k < sizeof(bad) / sizeof(bad[0]); k++) {
            for (size_t j = 0; j < N; j++)
                x[j] = j < at[i] ? 65504.0f : bad[k];
            assert_int_equal(tkv_to_f16(&kn, halves, x, TKV_F32, N), at[i]);
            for (size_t j = 0; j < N; j++)
                b[j] = tkv_f32_to_f16(x[j]);
            assert_int_equal(tkv_to_f16(&kn, halves, b, TKV_F16, N), at[i]);
            for (size_t j = 0; j < N; j++)
                b[j] = j < at[i] ? tkv_f32_to_bf16(1.5f) : tkv_f32_to_bf16(bad[k]);
            assert_int_equal(tkv_to_f16(&kn, halves, b, TKV_BF16, N), at[i]);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_all_halves),  cmocka_unit_test(test_rounding),
        cmocka_unit_test(test_half_limits), cmocka_unit_test(test_bf16),
        cmocka_unit_test(test_bulk),        cmocka_unit_test(test_not_finite),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
