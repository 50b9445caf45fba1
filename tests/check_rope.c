/* RoPE: frequencies against arrays taken from the models themselves, turning against complex
 * numbers, and the refusal of incomplete configurations. */
#include <complex.h>
#include <glob.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>

#include "core/rope.h"
#include "tests/rng.h"

static const struct tkv_rope_params qwen3 = {.head_dim = 128, .rotary_dim = 128, .theta = 1e6};
static const struct tkv_rope_params llama3 = {.head_dim = 128,
                                              .rotary_dim = 128,
                                              .scaling = TKV_ROPE_LLAMA3,
                                              .theta = 5e5,
                                              .factor = 8,
                                              .low_freq_factor = 1,
                                              .high_freq_factor = 4,
                                              .original_context = 8192};
static const struct tkv_rope_params gpt_oss = {.head_dim = 64,
                                               .rotary_dim = 64,
                                               .scaling = TKV_ROPE_YARN,
                                               .theta = 1.5e5,
                                               .factor = 32,
                                               .beta_fast = 32,
                                               .beta_slow = 1,
                                               .original_context = 4096,
                                               .no_truncate = true};

static void expect_frequency(float got, double want, const char *what, size_t f)
{
    if (fabs((double)got / want - 1) > 1e-6)
        print_error("%s: band %zu is %.9g, want %.9g\n", what, f, (double)got, want);
    assert_true(fabs((double)got / want - 1) <= 1e-6);
}

/* Some values of real models, so that the rules are held even without the reference data. */
static void test_golden_frequencies(void **state)
{
    struct tkv_rope r;

    (void)state;
    assert_null(tkv_rope_init(&r, &llama3));
    expect_frequency(r.inv_freq[1], 0.8146172165870667, "llama3", 1);
    expect_frequency(r.inv_freq[28], 0.0032114461064338684, "llama3", 28); /* kept */
    expect_frequency(r.inv_freq[29], 0.0021665706299245358, "llama3", 29); /* blended */
    expect_frequency(r.inv_freq[32], 0.0005248460220173001, "llama3", 32); /* blended */
    assert_true(r.attention_scaling == 1);
    assert_null(tkv_rope_init(&r, &gpt_oss));
    assert_true(fabsf(r.attention_scaling - 1.3465735902799727f) < 2e-7f);
    assert_null(tkv_rope_init(&r, &qwen3));
    expect_frequency(r.inv_freq[32], 1e-3, "qwen3", 32);
}

static void test_linear_and_partial(void **state)
{
    struct tkv_rope_params p = qwen3;
    struct tkv_rope plain, r;

    (void)state;
    p.head_dim = 256;
    assert_null(tkv_rope_init(&plain, &p));
    p.scaling = TKV_ROPE_LINEAR;
    p.factor = 4;
    assert_null(tkv_rope_init(&r, &p));
    assert_int_equal(r.n_bands, 128);
    for (uint32_t f = 0; f < 64; f++)
        expect_frequency(r.inv_freq[f], (double)plain.inv_freq[f] / 4, "linear", f);
    for (uint32_t f = 64; f < 128; f++)
        assert_true(r.inv_freq[f] == 0);
}

/* With truncation the ramp runs between whole bands: those outside are kept or divided exactly. */
static void test_yarn_ramp(void **state)
{
    struct tkv_rope_params p = gpt_oss;
    struct tkv_rope fractional, whole, plain;

    (void)state;
    assert_null(tkv_rope_init(&fractional, &p));
    p.no_truncate = false;
    assert_null(tkv_rope_init(&whole, &p));
    p.scaling = TKV_ROPE_DEFAULT;
    assert_null(tkv_rope_init(&plain, &p));
    /* 64 ln(4096 / (2 pi 32)) / (2 ln 150000) = 8.09, and 17.40 for one turn */
    for (uint32_t f = 0; f <= 8; f++)
        assert_true(whole.inv_freq[f] == plain.inv_freq[f]);
    for (uint32_t f = 18; f < 32; f++)
        expect_frequency(whole.inv_freq[f], (double)plain.inv_freq[f] / 32, "yarn", f);
    assert_true(whole.inv_freq[9] < plain.inv_freq[9]);
    assert_true(fractional.inv_freq[9] > whole.inv_freq[9]);
    p.scaling = TKV_ROPE_YARN;
    p.beta_fast = p.beta_slow = 0; /* the defaults are what gpt-oss says */
    p.no_truncate = true;
    p.attention_factor = 1.5;
    assert_null(tkv_rope_init(&whole, &p));
    assert_memory_equal(whole.inv_freq, fractional.inv_freq, sizeof(whole.inv_freq));
    assert_true(whole.attention_scaling == 1.5f);
}

/* A change to a good configuration that makes it bad, and a word of the complaint. */
static void test_refusals(void **state)
{
    struct {
        struct tkv_rope_params p;
        const char *word;
    } bad[] = {
        {qwen3, "head_dim"},   {qwen3, "head_dim"},   {qwen3, "rotary_dim"},
        {qwen3, "rotary_dim"}, {qwen3, "theta"},      {qwen3, "theta"},
        {qwen3, "theta"},      {llama3, "factor"},    {llama3, "low_freq_factor"},
        {llama3, "high_freq"}, {llama3, "original"},  {gpt_oss, "factor"},
        {gpt_oss, "beta"},     {gpt_oss, "original"}, {gpt_oss, "attention_factor"},
    };

    (void)state;
    bad[0].p.head_dim = 6;
    bad[1].p.head_dim = 129;
    bad[2].p.rotary_dim = 130;
    bad[3].p.rotary_dim = 63;
    bad[4].p.theta = 0;
    bad[5].p.theta = 1;
    bad[6].p.theta = (double)NAN;
    bad[7].p.factor = 0.5;
    bad[8].p.low_freq_factor = 0;
    bad[9].p.high_freq_factor = 1;
    bad[10].p.original_context = 0;
    bad[11].p.factor = (double)INFINITY;
    bad[12].p.beta_slow = 40;
    bad[13].p.original_context = 0;
    bad[14].p.attention_factor = -1;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct tkv_rope r;
        const char *wrong = tkv_rope_init(&r, &bad[i].p);

        assert_non_null(wrong);
        assert_non_null(strstr(wrong, bad[i].word));
    }
}

/* Against complex numbers in double, in both layouts, with dimensions that are not turned. */
static void test_turn(void **state)
{
    static const int64_t positions[] = {0, 1, 77, 4095, 1000000};
    struct rng rng = {3};

    (void)state;
    for (unsigned i = 0; i < 20; i++) {
        struct tkv_rope_params p = gpt_oss;
        float x[96], y[96], cs[96];
        struct tkv_rope r;

        p.head_dim = i % 2 ? 64 : 96;
        p.layout = i % 4 < 2 ? TKV_ROPE_HALF : TKV_ROPE_INTERLEAVED;
        assert_null(tkv_rope_init(&r, &p));
        for (uint32_t j = 0; j < p.head_dim; j++)
            x[j] = rng_gauss(&rng);
        tkv_rope_angles(&r, positions[i / 4], cs);
        tkv_rope_turn(&r, cs, x, y);
        for (uint32_t f = 0; f < r.n_bands; f++) {
            const bool turned = f < 32;
            const double angle = (double)positions[i / 4] * (double)r.inv_freq[f];
            const uint32_t re = turned && p.layout == TKV_ROPE_HALF ? f : 2 * f;
            const uint32_t im = turned && p.layout == TKV_ROPE_HALF ? f + 32 : 2 * f + 1;
            const double complex z = ((double)x[re] + I * (double)x[im]) *
                                     (turned ? (double)r.attention_scaling * cexp(I * angle) : 1);

            assert_true(fabs((double)y[re] - creal(z)) <= 4e-7 * (cabs(z) + 1e-30));
            assert_true(fabs((double)y[im] - cimag(z)) <= 4e-7 * (cabs(z) + 1e-30));
            assert_true(turned || (y[re] == x[re] && y[im] == x[im]));
        }
        tkv_rope_turn_back(&r, cs, y, y); /* in place */
        for (uint32_t j = 0; j < p.head_dim; j++)
            assert_true(fabsf(y[j] - x[j]) < 2e-6f);
    }
}

static double number(const json_t *o, const char *key)
{
    return json_number_value(json_object_get(o, key));
}

/* The parameters that a reference file states. */
static struct tkv_rope_params read_params(const json_t *root)
{
    const json_t *scaling = json_object_get(root, "rope_scaling");
    const char *type = json_string_value(json_object_get(scaling, "rope_type"));
    const char *which = json_object_get(root, "head_dim") ? "head_dim" : "rotary_dim";
    struct tkv_rope_params p = {
        .head_dim = (uint32_t)number(root, which),
        .rotary_dim = (uint32_t)number(root, which),
        .theta = number(root, "rope_theta"),
        .factor = number(scaling, "factor"),
        .low_freq_factor = number(scaling, "low_freq_factor"),
        .high_freq_factor = number(scaling, "high_freq_factor"),
        .beta_fast = number(scaling, "beta_fast"),
        .beta_slow = number(scaling, "beta_slow"),
        .original_context = (uint32_t)number(scaling, "original_max_position_embeddings"),
        .no_truncate = json_is_false(json_object_get(scaling, "truncate")),
    };

    if (type)
        p.scaling = strcmp(type, "yarn") ? TKV_ROPE_LLAMA3 : TKV_ROPE_YARN;
    return p;
}

/* want[n] = the tensor inv_freq in the .bin beside a .json; false if the case has none. */
static bool read_tensor(const char *path, const json_t *root, float *want, size_t n)
{
    size_t i;
    json_t *tensor;
    char bin[4096];
    bool found = false;

    json_array_foreach(json_object_get(root, "tensors"), i, tensor)
    {
        FILE *file;

        if (strcmp(json_string_value(json_object_get(tensor, "name")), "inv_freq"))
            continue;
        snprintf(bin, sizeof(bin), "%.*s.bin", (int)strlen(path) - 5, path);
        file = fopen(bin, "rb");
        assert_non_null(file);
        assert_int_equal(fseek(file, (long)number(tensor, "offset"), SEEK_SET), 0);
        assert_int_equal(fread(want, sizeof(*want), n, file), n);
        fclose(file);
        found = true;
    }
    return found;
}

/* Returns whether the file has frequencies to compare. */
static bool compare_file(const char *path)
{
    json_t *root = json_load_file(path, 0, NULL);
    const json_t *listed = json_object_get(root, "inv_freq");
    bool compared = false;

    assert_non_null(root);
    if (json_object_get(root, "rope_theta")) {
        const struct tkv_rope_params p = read_params(root);
        float want[TKV_MAX_BANDS];
        struct tkv_rope r;

        assert_null(tkv_rope_init(&r, &p));
        for (uint32_t f = 0; f < r.n_bands; f++)
            want[f] = (float)json_number_value(json_array_get(listed, f));
        compared = listed || read_tensor(path, root, want, r.n_bands);
        for (uint32_t f = 0; compared && f < r.n_bands; f++)
            expect_frequency(r.inv_freq[f], (double)want[f], path, f);
        assert_true(fabs((double)r.attention_scaling - number(root, "attention_scaling")) < 2e-7);
    }
    json_decref(root);
    return compared;
}

static void test_reference_data(void **state)
{
    static const char *const folders[] = {"calibration", "vectors/triattention"};
    const char *shared = getenv("TRIKV_SHARED");
    unsigned n_compared = 0;

    (void)state;
    for (size_t i = 0; i < 2; i++) {
        char pattern[4096];
        glob_t found;

        snprintf(pattern, sizeof(pattern), "%s/%s/*.json", shared ? shared : "../shared",
                 folders[i]);
        if (glob(pattern, 0, NULL, &found)) {
            print_message("skipped: no %s\n", pattern);
            skip();
        }
        for (size_t k = 0; k < found.gl_pathc; k++)
            n_compared += compare_file(found.gl_pathv[k]);
        globfree(&found);
    }
    print_message("%u arrays of frequencies compared\n", n_compared);
    assert_true(n_compared >= 30);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden_frequencies),
        cmocka_unit_test(test_linear_and_partial),
        cmocka_unit_test(test_yarn_ramp),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_turn),
        cmocka_unit_test(test_reference_data),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
