/* What other layers and stored files rely on: names, sizes, and the bytes that a codec makes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "core/codec.h"
#include "core/cpu.h"
#include "core/kernels.h"
#include "tests/codec_aid.h"

/* Sizes that other layers and stored files rely on. */
static void test_sizes(void **state)
{
    static const struct {
        const char *name;
        uint32_t dim, tile_dim;
        size_t key_bytes, value_bytes;
    } golden[] = {
        {"f16", 128, 128, 16384, 16384}, {"tq4", 128, 128, 4224, 4224},
        {"tq3.5", 128, 128, 3712, 3712}, {"tq3", 64, 64, 1664, 1664},
        {"tq2.5", 128, 128, 2688, 2688}, {"tq2", 18, 18, 416, 640},
        {"tq4-qjl", 128, 256, 4352, 0},  {"tq2-qjl", 64, 128, 1280, 0},
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
    for (uint32_t dim = 0; dim <= 1030; dim++) {
        const bool fine = dim >= 8 && dim <= 1024 && dim % 2 == 0;

        assert_true(!tkv_coder_init(&c, tkv_codec_by_name("f16"), dim, 1) == fine);
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
        {"tq2",
         {
             UINT64_C(0x755930c65fca48cc),
             UINT64_C(0xcd066fb5a899d55d),
             UINT64_C(0x9e58d39efa6ad718),
             UINT64_C(0x2bd82cd274804fd6),
         }},
        {"tq2.5",
         {
             UINT64_C(0xbd63b545d20dba6c),
             UINT64_C(0x9a322ee14fc85c21),
             UINT64_C(0x497805f86db36964),
             UINT64_C(0xc86585c868ae9ba9),
         }},
        {"tq3",
         {
             UINT64_C(0xeb94edd97667c9f9),
             UINT64_C(0x8eeedf1422148890),
             UINT64_C(0xfe00f7001e4a8c5d),
             UINT64_C(0x185695a3344c461e),
         }},
        {"tq3.5",
         {
             UINT64_C(0x853b92862bd2be31),
             UINT64_C(0xff5c17b35a53a208),
             UINT64_C(0xc6bdd9edc97f38b2),
             UINT64_C(0x7ac7a46246102b64),
         }},
        {"tq4",
         {
             UINT64_C(0x419a696da158a3e4),
             UINT64_C(0x3be94c049863400c),
             UINT64_C(0xea01b2efcf359dc1),
             UINT64_C(0x714c6c89fac38410),
         }},
        {"tq2-paper",
         {
             UINT64_C(0xfacc5e11f86f5464),
             UINT64_C(0xda605f0b1fa11955),
             UINT64_C(0xb0aeab8f71de8438),
             UINT64_C(0x5e7f215f62721c62),
         }},
        {"tq2.5-paper",
         {
             UINT64_C(0x4de6231a41a2b8f8),
             UINT64_C(0xea2d74d89d26228d),
             UINT64_C(0x764b197abf2444e4),
             UINT64_C(0xded076dbdae18711),
         }},
        {"tq3-paper",
         {
             UINT64_C(0x3de301919f22939d),
             UINT64_C(0x4bbda944e649a490),
             UINT64_C(0xe8873746a5b51929),
             UINT64_C(0x197a593145206b82),
         }},
        {"tq3.5-paper",
         {
             UINT64_C(0xbb0bacaffaec7cf1),
             UINT64_C(0x80d2282cc74a8568),
             UINT64_C(0x59682102a7ea2ab2),
             UINT64_C(0xc3677f0739ea3ac0),
         }},
        {"tq4-paper",
         {
             UINT64_C(0x18a7e05d39967848),
             UINT64_C(0xbe7708d56c2e2b6c),
             UINT64_C(0x2ea407ed8916c725),
             UINT64_C(0x2ca302ce83afe328),
         }},
        {"tq2-qjl",
         {
             UINT64_C(0xcf9331273aa289a4),
             UINT64_C(0x4550bb36445a1c5a),
             UINT64_C(0xc3439cd7280c6454),
             UINT64_C(0x1864df071a1d975a),
         }},
        {"tq3-qjl",
         {
             UINT64_C(0xa27f6ac92e90696b),
             UINT64_C(0x199e9bb3cdda887a),
             UINT64_C(0x84380b123eb12d9c),
             UINT64_C(0xb163b241b6488f8e),
         }},
        {"tq4-qjl",
         {
             UINT64_C(0xee7d6f12c9ac9b73),
             UINT64_C(0xbdcced8f1624e0a7),
             UINT64_C(0x5db30e20da305fd0),
             UINT64_C(0x4f768472e100e100),
         }},
    };
    static const unsigned sets[] = {0, TKV_CPU_AVX2, TKV_CPU_AVX512, TKV_CPU_NEON};
    const unsigned cpu = tkv_cpu_flags(NULL);

    (void)state;
    for (size_t s = 0; s < 4; s++) {
        struct tkv_kernels kn;

        if ((cpu & sets[s]) != sets[s])
            continue;
        tkv_kernels_init(&kn, sets[s]);
        for (size_t i = 0; i < sizeof(golden) / sizeof(golden[0]); i++)
            for (size_t d = 0; d < 4; d++)
                assert_true(codec_aid_fingerprint(&kn, tkv_codec_by_name(golden[i].name), at[d]) ==
                            golden[i].hash[d]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_table),
        cmocka_unit_test(test_sizes),
        cmocka_unit_test(test_same_bytes_everywhere),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
