/* What other layers and stored files rely on: names, sizes, and the bytes that a codec makes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "core/codec.h"
#include "core/cpu.h"
#include "core/kernels.h"
#include "tests/codec_aid.h"
#include "tests/cpu.h"
#include "tests/rng.h"

/* Sizes that other layers and stored files rely on. */
static void test_sizes(void **state)
{
    static const struct {
        const char *name;
        uint32_t dim, tile_dim;
        size_t key_bytes, value_bytes;
    } golden[] = {
        {"f16", 128, 128, 16384, 16384}, {"tq4", 128, 128, 4290, 4274},
        {"tq3.5", 128, 128, 3778, 3762}, {"tq3", 64, 64, 1698, 1690},
        {"tq2.5", 128, 128, 2754, 2738}, {"tq2", 18, 18, 658, 462},
        {"tq4-qjl", 128, 256, 4352, 0},  {"tq2-qjl", 64, 128, 1280, 0},
        {"tq3.5", 80, 80, 2602, 2400},   {"tq4-paper", 48, 48, 1664, 1664},
        {"tq1", 64, 64, 674, 666},       {"int8", 128, 128, 8320, 8320},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(golden) / sizeof(golden[0]); i++) {
        struct tkv_coder c;

        codec_aid_coder(&c, tkv_codec_by_name(golden[i].name), golden[i].dim);
        assert_int_equal(c.tile_dim, golden[i].tile_dim);
        assert_int_equal(c.k_block_bytes, golden[i].key_bytes);
        assert_int_equal(c.v_block_bytes, golden[i].value_bytes);
    }
}

static void test_table(void **state)
{
    struct tkv_coder c;

    (void)state;
    for (const struct tkv_codec *k = tkv_codecs; k->name; k++) {
        assert_ptr_equal(tkv_codec_by_name(k->name), k);
        assert_ptr_equal(tkv_codec_by_id(k->id), k);
    }
    assert_null(tkv_codec_by_name("tq5"));
    assert_null(tkv_codec_by_name(""));
    assert_null(tkv_codec_by_id(0));
    assert_int_equal(tkv_codec_by_name("tq3.5")->id, 19);
    assert_int_equal(tkv_codec_by_name("int8")->id, 8);
    for (uint32_t dim = 0; dim <= 1030; dim++) {
        const bool fine = dim >= 8 && dim <= 1024 && dim % 2 == 0;

        assert_true(!tkv_coder_init(&c, tkv_codec_by_name("f16"), dim, 1) == fine);
    }
}

/* In so many bytes and no more (a sanitizer looks at the end) a coder does the same. */
static void test_coders_are_as_small_as_they_say(void **state)
{
    static const uint32_t dims[] = {18, 64, 80, 96, 1024};
    static struct tkv_coder whole;
    static uint8_t want[64 * 1024 * 4], got[64 * 1024 * 4];
    static float x[3 * 1024];
    struct rng rng = {77};

    (void)state;
    for (size_t i = 0; i < sizeof(x) / sizeof(x[0]); i++)
        x[i] = rng_gauss(&rng);
    for (const struct tkv_codec *k = tkv_codecs; k->name; k++)
        for (size_t i = 0; i < sizeof(dims) / sizeof(dims[0]); i++) {
            const uint8_t mean[TKV_MAX_MEAN_BYTES] = {0};
            struct tkv_coder *c = aligned_alloc(64, tkv_coder_bytes(k, dims[i]));

            assert_non_null(c);
            assert_true(tkv_coder_bytes(k, dims[i]) <= (sizeof(whole) + 63) / 64 * 64);
            assert_null(tkv_coder_init(c, k, dims[i], 1));
            assert_null(tkv_coder_init(&whole, k, dims[i], 1));
            assert_true(whole.k_block_bytes <= sizeof(want));
            tkv_encode_keys(&whole, cpu_kernels(), mean, tkv_floats(x, c->dim), 3, want);
            tkv_encode_keys(c, cpu_kernels(), mean, tkv_floats(x, c->dim), 3, got);
            assert_memory_equal(want, got, whole.k_block_bytes);
            free(c);
        }
}

/* Fingerprints at dims 18, 64, 96, 128, recorded on x86-64; equal for every kernel set and CPU. */
static void test_same_bytes_everywhere(void **state)
{
    static const uint32_t at[] = {18, 64, 96, 128};
    static const struct {
        const char *name;
        uint64_t hash[4];
    } golden[] = {
        {"f16",
         {
             UINT64_C(0xcd74ab8493610b05),
             UINT64_C(0x1ea4cae28dad7c91),
             UINT64_C(0xf3693785a6574cbd),
             UINT64_C(0xb7fd5914e4fb202d),
         }},
        {"int8",
         {
             UINT64_C(0xfdaff13c3b3de30e),
             UINT64_C(0xa8b1298667ff5550),
             UINT64_C(0x8a69965d7ccffb27),
             UINT64_C(0x1cc28235a340ba71),
         }},
        {"tq1",
         {
             UINT64_C(0xd8e3ff19751ed927),
             UINT64_C(0x8e9b35526624c74a),
             UINT64_C(0x5d856b53f79417b5),
             UINT64_C(0xe090a06de2dcc7f9),
         }},
        {"tq2",
         {
             UINT64_C(0x8fefc89de509937b),
             UINT64_C(0x640328d96a60b1cd),
             UINT64_C(0xcd63d75758e5ea1b),
             UINT64_C(0xbe69b4b06c99778d),
         }},
        {"tq2.5",
         {
             UINT64_C(0x5d95aecbd6d86844),
             UINT64_C(0x29aaba020c3f7575),
             UINT64_C(0xba64f4179d42c592),
             UINT64_C(0x12b8517b177d21a4),
         }},
        {"tq3",
         {
             UINT64_C(0xbbe4d1179db1e458),
             UINT64_C(0x56668982ec1dbce0),
             UINT64_C(0x9c625d3b3875aab5),
             UINT64_C(0x51ba92b42a8556e4),
         }},
        {"tq3.5",
         {
             UINT64_C(0x3fdac8121aa586b2),
             UINT64_C(0x7a1bfaf8102eedf7),
             UINT64_C(0xecba6af753f74809),
             UINT64_C(0x32367b3d47a23cd2),
         }},
        {"tq4",
         {
             UINT64_C(0xf2073c7d0e122bf0),
             UINT64_C(0x350d110437716f9f),
             UINT64_C(0x6088d702ddd08465),
             UINT64_C(0x803e101137e8a97a),
         }},
        {"tq2-paper",
         {
             UINT64_C(0x09ab086bc5eb6e5e),
             UINT64_C(0xcb1111f2efc28343),
             UINT64_C(0x5d176a5a2a764468),
             UINT64_C(0xedd018995f6bfd8b),
         }},
        {"tq2.5-paper",
         {
             UINT64_C(0x979d9530e11f7455),
             UINT64_C(0x02030323569b6378),
             UINT64_C(0x3ecdbf1eec8c7697),
             UINT64_C(0x6afc3fbf387402b4),
         }},
        {"tq3-paper",
         {
             UINT64_C(0xd9551fcf8874d3e2),
             UINT64_C(0x2f6505f72daedc96),
             UINT64_C(0xd5bd7d8c72b07be6),
             UINT64_C(0x3da1a15734df2973),
         }},
        {"tq3.5-paper",
         {
             UINT64_C(0x5cf958fc7b173a3f),
             UINT64_C(0x6eb3232a179b9946),
             UINT64_C(0xec74109623ea07cd),
             UINT64_C(0xf99e7be0465adaf7),
         }},
        {"tq4-paper",
         {
             UINT64_C(0x7a328be39b0ffcfb),
             UINT64_C(0x197803e659018358),
             UINT64_C(0x940122abe45218c0),
             UINT64_C(0xeb7324ad716e1a4c),
         }},
        {"tq2-qjl",
         {
             UINT64_C(0xbdcc9a5cb66a2e3e),
             UINT64_C(0x570c8e06c88402dc),
             UINT64_C(0x11d3ea53aa9aa0aa),
             UINT64_C(0x187906f6665ce7c3),
         }},
        {"tq3-qjl",
         {
             UINT64_C(0xb2d1222ca34c33b5),
             UINT64_C(0xe73831ac64c06ae3),
             UINT64_C(0x96e1429768599213),
             UINT64_C(0x36286a211159bdc3),
         }},
        {"tq4-qjl",
         {
             UINT64_C(0xade18d7db12fc931),
             UINT64_C(0x939e87a720438575),
             UINT64_C(0x5d5c75878bb01188),
             UINT64_C(0x1da421acc71545c7),
         }},
    };
    static const unsigned sets[] = {0,
                                    TKV_CPU_AVX2,
                                    TKV_CPU_AVX512,
                                    TKV_CPU_AVX512 | TKV_CPU_VNNI,
                                    TKV_CPU_NEON,
                                    TKV_CPU_NEON | TKV_CPU_DOTPROD};
    const unsigned cpu = tkv_cpu_flags(NULL);

    (void)state;
    for (size_t s = 0; s < sizeof(sets) / sizeof(sets[0]); s++) {
        struct tkv_kernels kn;

        if ((cpu & sets[s]) != sets[s])
            continue;
        tkv_kernels_init(&kn, sets[s]);
        for (size_t i = 0; i < 4 * sizeof(golden) / sizeof(golden[0]); i++) {
            const char *name = golden[i / 4].name;
            const uint64_t hash = codec_aid_fingerprint(&kn, tkv_codec_by_name(name), at[i % 4]);

            if (hash != golden[i / 4].hash[i % 4])
                fail_msg("set %x, %s, dim %u: 0x%016llx", sets[s], name, at[i % 4],
                         (unsigned long long)hash);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_table),
        cmocka_unit_test(test_sizes),
        cmocka_unit_test(test_coders_are_as_small_as_they_say),
        cmocka_unit_test(test_same_bytes_everywhere),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
