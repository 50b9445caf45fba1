/* The rotation: orthogonal, invertible, mixing, and the same bits everywhere. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "core/codec.h"
#include "core/cpu.h"
#include "core/kernels.h"
#include "core/rotation.h"
#include "tests/codec_aid.h"

static double norm_of(const float *x, uint32_t dim)
{
    double sum = 0;

    for (uint32_t j = 0; j < dim; j++)
        sum += (double)x[j] * (double)x[j];
    return sqrt(sum);
}

/* Length and inner product are kept, and the way back is exact to a few roundings. */
static void test_orthogonal_in_every_dimension(void **state)
{
    struct tkv_kernels kn;
    struct rng rng = {11};

    (void)state;
    tkv_kernels_init(&kn, tkv_cpu_flags(NULL));
    for (uint32_t dim = TKV_MIN_HEAD_DIM; dim <= TKV_MAX_HEAD_DIM; dim += 2) {
        float x[TKV_MAX_HEAD_DIM], y[TKV_MAX_HEAD_DIM], z[TKV_MAX_HEAD_DIM];
        double before, after = 0, inner = 0;
        float room[TKV_ROTATION_ROOM];
        struct tkv_rotation r;

        tkv_rotation_init(&r, dim, TKV_ROTATION_SEED + dim, room);
        for (uint32_t j = 0; j < dim; j++) {
            x[j] = rng_gauss(&rng);
            z[j] = rng_gauss(&rng);
            inner += (double)x[j] * (double)z[j];
        }
        memcpy(y, x, sizeof(x));
        before = norm_of(x, dim);
        tkv_rotate(&r, &kn, y, y);
        tkv_rotate(&r, &kn, z, z);
        for (uint32_t j = 0; j < dim; j++)
            after += (double)y[j] * (double)z[j];
        assert_true(fabs(norm_of(y, dim) / before - 1) < 2e-6);
        assert_true(fabs(after - inner) < 4e-6 * before * norm_of(z, dim));
        tkv_unrotate(&r, &kn, y);
        for (uint32_t j = 0; j < dim; j++)
            y[j] -= x[j];
        assert_true(norm_of(y, dim) < 4e-6 * before);
    }
}

/* No entry of the matrix is 0: every channel goes into every coordinate. */
static void test_mixes_all_channels(void **state)
{
    static const uint32_t dims[] = {8, 18, 34, 48, 80, 96, 112, 128, 192, 254, 576, 1022};
    struct tkv_kernels kn;

    (void)state;
    tkv_kernels_init(&kn, tkv_cpu_flags(NULL));
    for (size_t k = 0; k < sizeof(dims) / sizeof(dims[0]); k++) {
        const uint32_t dim = dims[k];
        float room[TKV_ROTATION_ROOM];
        struct tkv_rotation r;

        tkv_rotation_init(&r, dim, TKV_ROTATION_SEED, room);
        for (uint32_t c = 0; c<dim; c += dim> 256 ? 37 : 1) {
            float x[TKV_MAX_HEAD_DIM] = {0};

            x[c] = 1;
            tkv_rotate(&r, &kn, x, x);
            for (uint32_t j = 0; j < dim; j++)
                assert_true(fabsf(x[j]) > 1e-3f / sqrtf((float)dim) &&
                            fabsf(x[j]) < 1.4143f / sqrtf((float)dim));
        }
    }
}

static uint64_t hash_rotation(const struct tkv_kernels *kn, uint32_t dim)
{
    float x[TKV_MAX_HEAD_DIM], room[TKV_ROTATION_ROOM];
    struct tkv_rotation r;
    struct rng rng = {dim};
    uint64_t hash;

    tkv_rotation_init(&r, dim, TKV_ROTATION_SEED, room);
    codec_aid_fill(&rng, x, dim);
    tkv_rotate(&r, kn, x, x);
    hash = codec_aid_hash(x, dim * sizeof(*x), CODEC_AID_HASH);
    tkv_unrotate(&r, kn, x);
    return codec_aid_hash(x, dim * sizeof(*x), hash);
}

/* Recorded on x86-64; the same on every CPU, with every set of kernels. */
static void test_same_bits_everywhere(void **state)
{
    static const struct {
        uint32_t dim;
        uint64_t hash;
    } golden[] = {
        {8, UINT64_C(0x8b72a4ef155102f7)},    {18, UINT64_C(0x9192093a95f551d0)},
        {34, UINT64_C(0x4bebf8764afcb64a)},   {64, UINT64_C(0xe18f9eb5a3e19673)},
        {80, UINT64_C(0x0b392f68f59d6be3)},   {96, UINT64_C(0xdd0503574db78d3e)},
        {112, UINT64_C(0x20ae32a89a59aa0e)},  {128, UINT64_C(0xbe3851493e2d9fd2)},
        {192, UINT64_C(0x0c26cdc9da7fb37a)},  {576, UINT64_C(0xd5f101743fb0da68)},
        {1022, UINT64_C(0x1e315a14faabae08)}, {1024, UINT64_C(0x108d7e262253a28d)},
    };
    static const unsigned sets[] = {0, TKV_CPU_AVX2, TKV_CPU_AVX512, TKV_CPU_NEON};
    const unsigned cpu = tkv_cpu_flags(NULL);

    (void)state;
    for (size_t s = 0; s < 4; s++) {
        struct tkv_kernels kn;

        if ((cpu & sets[s]) != sets[s])
            continue;
        tkv_kernels_init(&kn, sets[s]);
        for (size_t i = 0; i < sizeof(golden) / sizeof(golden[0]); i++) {
            const uint64_t hash = hash_rotation(&kn, golden[i].dim);

            if (hash != golden[i].hash)
                print_error("set %x dim %u: {%u, 0x%016llx},\n", sets[s], golden[i].dim,
                            golden[i].dim, (unsigned long long)hash);
            assert_true(hash == golden[i].hash);
        }
    }
}

static void test_seeds_differ(void **state)
{
    float room_a[TKV_ROTATION_ROOM], room_b[TKV_ROTATION_ROOM];
    struct tkv_rotation a, b;
    unsigned n_equal = 0;

    (void)state;
    tkv_rotation_init(&a, 1024, 1, room_a);
    tkv_rotation_init(&b, 1024, 2, room_b);
    for (uint32_t j = 0; j < 1024; j++)
        n_equal += a.signs[j] == b.signs[j];
    assert_in_range(n_equal, 512 - 80, 512 + 80); /* five standard deviations */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_orthogonal_in_every_dimension),
        cmocka_unit_test(test_mixes_all_channels),
        cmocka_unit_test(test_same_bits_everywhere),
        cmocka_unit_test(test_seeds_differ),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
