/*
 * Published statistics: every format against what was put into it, every cut and every flipped
 * byte, pickles that want to do something, what must be said and what must agree; and the
 * real files against an independent conversion of them.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>
#include <unistd.h>

#include "daemon/diag.h"
#include "daemon/profile.h"
#include "tests/import_aid.h"
#include "tools/engine.h"
#include "tools/import.h"
#include "tools/import_command.h"

static char folder[] = "/tmp/trikv-import-XXXXXX";

static void check_values(const struct tkv_import *im)
{
    assert_int_equal(im->n_layers, AID_LAYERS);
    assert_int_equal(im->n_q_heads, AID_HEADS);
    assert_int_equal(im->n_bands, AID_BANDS);
    assert_int_equal(im->head_dim, 2 * AID_BANDS);
    assert_int_equal(im->n_empty_layers, 0);
    for (uint32_t l = 0; l < AID_LAYERS; l++) {
        for (uint32_t h = 0; h < AID_HEADS; h++) {
            for (uint32_t i = 0; i < 3 * AID_BANDS; i++)
                assert_true(tkv_import_head(im, l, h)[i] <=
                                import_aid_value(l, h, i / AID_BANDS, i % AID_BANDS) &&
                            tkv_import_head(im, l, h)[i] >=
                                import_aid_value(l, h, i / AID_BANDS, i % AID_BANDS));
        }
    }
}

static void test_formats(void **state)
{
    static const struct {
        const char *format;
        uint32_t n_kv_heads;
        double theta;
        bool theta_is_default;
        enum tkv_rope_layout layout;
    } want[AID_KINDS] = {
        {"torch", 0, 0, false, TKV_ROPE_HALF},
        {"torch", AID_KV_HEADS, 150000, false, TKV_ROPE_HALF},
        {"TRIA of triattention-ggml, version 1", AID_KV_HEADS, 1e4, true, TKV_ROPE_HALF},
        {"TRIA of triattention-ggml, version 2", AID_KV_HEADS, 1e6, false, TKV_ROPE_HALF},
        {"TRIA of llama-cpp-triattention, version 1", AID_KV_HEADS, 1e6, false,
         TKV_ROPE_INTERLEAVED},
        {"TRIA of llama-cpp-triattention, version 2", AID_KV_HEADS, 1e6, false,
         TKV_ROPE_INTERLEAVED},
        {"TRIA of llama-cpp-triattention, version 3", AID_KV_HEADS, 1e6, false,
         TKV_ROPE_INTERLEAVED},
        {"npz", 0, 0, false, TKV_ROPE_HALF},
        {"npz", 0, 0, false, TKV_ROPE_HALF},
    };

    (void)state;
    for (int kind = 0; kind < AID_KINDS; kind++) {
        struct tkv_reason why = {""};
        struct tkv_import im;
        size_t n;
        uint8_t *data = import_aid_make((enum import_aid_kind)kind, &n);

        if (tkv_import_parse(&im, data, n, &why))
            fail_msg("kind %d: %s", kind, why.text);
        check_values(&im);
        assert_string_equal(im.format, want[kind].format);
        assert_int_equal(im.n_kv_heads, want[kind].n_kv_heads);
        assert_true(fabs(im.rope.theta - want[kind].theta) < 1e-9);
        assert_int_equal(im.theta_is_default, want[kind].theta_is_default);
        assert_int_equal(im.has_layout, kind < AID_NPZ);
        assert_int_equal(im.has_inv_freq, kind == AID_NPZ);
        assert_int_equal(im.rope.layout, want[kind].layout);
        assert_int_equal(im.has_scaling, kind == AID_TORCH_YARN);
        if (im.has_scaling) {
            assert_int_equal(im.rope.scaling, TKV_ROPE_YARN);
            assert_true(fabs(im.rope.factor - 32) < 1e-12 && im.rope.no_truncate);
            assert_int_equal(im.rope.original_context, 4096);
        }
        tkv_import_deinit(&im);
        free(data);
    }
}

/* Every prefix is an error with a text. */
static void test_truncated(void **state)
{
    size_t n_cuts = 0;

    (void)state;
    for (int kind = 0; kind < AID_KINDS; kind++) {
        size_t n;
        uint8_t *data = import_aid_make((enum import_aid_kind)kind, &n);

        for (size_t cut = 0; cut < n; cut++, n_cuts++) {
            uint8_t *part = malloc(cut ? cut : 1); /* exact, for the sanitizer */
            struct tkv_reason why = {""};
            struct tkv_import im;

            assert_non_null(part);
            memcpy(part, data, cut);
            if (!tkv_import_parse(&im, part, cut, &why) || !why.text[0])
                fail_msg("kind %d is taken with %zu of %zu bytes", kind, cut, n);
            assert_null(im.statistics);
            free(part);
        }
        free(data);
    }
    print_message("%zu cut files\n", n_cuts);
}

/*
 * Every byte changed in three ways is an error, or leaves numbers that are sound: TRIA has no
 * checksum, and a time of day in a zip means nothing.
 */
static void test_flipped(void **state)
{
    size_t n_wrong = 0, n_taken = 0;

    (void)state;
    for (int kind = 0; kind < AID_KINDS; kind++) {
        size_t n;
        uint8_t *data = import_aid_make((enum import_aid_kind)kind, &n);

        for (size_t i = 0; i < 3 * n; i++) {
            static const uint8_t masks[] = {1, 0x80, 0xff};
            struct tkv_reason why = {""};
            struct tkv_import im;

            data[i / 3] ^= masks[i % 3];
            if (tkv_import_parse(&im, data, n, &why)) {
                assert_true(why.text[0] != '\0');
                n_wrong++;
            } else {
                n_taken++;
                for (size_t k = 0; k < (size_t)im.n_layers * im.n_q_heads * 3 * im.n_bands; k++)
                    assert_true(isfinite(im.statistics[k]));
            }
            tkv_import_deinit(&im);
            data[i / 3] ^= masks[i % 3];
        }
        free(data);
    }
    print_message("%zu refused, %zu harmless\n", n_wrong, n_taken);
    assert_true(n_wrong > n_taken);
}

/* A flipped byte of the numbers is found by the checksum, which only the zip has. */
static void test_checksum(void **state)
{
    struct tkv_reason why = {""};
    struct tkv_import im;
    const float value = import_aid_value(1, 2, 2, 3);
    size_t n, at = 0;
    uint8_t *data = import_aid_make(AID_TORCH, &n);

    (void)state;
    while (at + 4 <= n && memcmp(data + at, &value, 4) != 0)
        at++;
    assert_true(at + 4 <= n);
    data[at] ^= 1;
    assert_int_equal(tkv_import_parse(&im, data, n, &why), -1);
    assert_non_null(strstr(why.text, "checksum"));
    free(data);
}

/* Pickles that are no data, or data of the wrong shape. */
static void test_pickles(void **state)
{
#define P(body, text)                                                       \
    {                                                                       \
        (const uint8_t *)"\x80\x02" body, sizeof("\x80\x02" body) - 1, text \
    }
    static const struct {
        const uint8_t *pickle;
        size_t n;
        const char *text;
    } wrong[] = {
        P("cos\nsystem\nX\x02\0\0\0ls\x85R.", "names os system"),
        P("cbuiltins\neval\n.", "names builtins eval"),
        P("ctorch\nHalfStorage\n.", "HalfStorage"),
        P("ccollections\nOrderedDict\nK\x01\x85R.", "not known"),
        P("K\x01)R.", "not known"),
        P("ctorch._utils\n_rebuild_tensor_v2\n)R.", "tensor"),
        P("(ios\nsystem\n.", "0x69"),
        P("\x93.", "0x93"),
        P("Vtext\n.", "0x56"),
        P("h\x05.", "remembered"),
        P("q\x01.", "remember"),
        P("t.", "no mark"),
        P("e.", "no mark"),
        P("\x85.", "stack is empty"),
        P("(\x85.", "mark"),
        P("K\x01K\x02.", "one value"),
        P("(.", "one value"),
        P("}(K\x01u.", "without a value"),
        P("K\x01K\x02"
          "a.",
          "container"),
        P("X\xff\xff\xff\xffx.", "cut off"),
        P("\x8a\x09xxxxxxxxx.", "too long"),
        P("G1234.", "cut off"),
        P("}", "cut off"),
        P("}.", "metadata and stats"),
        P("].", "metadata and stats"),
        P("}(X\x08\0\0\0metadata}X\x05\0\0\0stats}u.", "no head"),
        P("}(X\x08\0\0\0metadata}X\x05\0\0\0stats}(X\x03\0\0\0abc}uu.", "layerNN_headNN"),
        P("}(X\x08\0\0\0metadata}X\x05\0\0\0stats}(X\x0f\0\0\0layer99999_head}uu.", "layerNN"),
        P("}(X\x08\0\0\0metadata}(X\x0c\0\0\0num_kv_headsX\x01\0\0\0auX\x05\0\0\0stats}u.",
          "num_kv_heads"),
    };
#undef P

    (void)state;
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        struct tkv_reason why = {""};
        struct tkv_import im;
        size_t n;
        uint8_t *data = import_aid_zip(wrong[i].pickle, wrong[i].n, &n);

        if (!tkv_import_parse(&im, data, n, &why) || !strstr(why.text, wrong[i].text))
            fail_msg("pickle %zu: want \"%s\", got \"%s\"", i, wrong[i].text, why.text);
        free(data);
    }
}

/* ---- the command ------------------------------------------------------------------------ */

enum { MAX_WORDS = 32 };

/* Where an '@' stands comes the folder. */
static char *expand(const char *word)
{
    const char *at = strchr(word, '@');
    char *out = malloc(strlen(word) + sizeof(folder));

    assert_non_null(out);
    sprintf(out, "%.*s%s%s", (int)(at ? at - word : 0), word, at ? folder : "", at ? at + 1 : word);
    return out;
}

/* trikv-calibrate import with these words. Returns the exit status, with what was said in
 * said[n]. */
static int run(const char *line, char *said, size_t n)
{
    char words[512], log[64], *argv[MAX_WORDS] = {NULL};
    int argc = 0, status, saved;

    snprintf(words, sizeof(words), "trikv-calibrate import %s", line);
    for (char *w = strtok(words, " "); w && argc < MAX_WORDS - 1; w = strtok(NULL, " "))
        argv[argc++] = expand(w);
    snprintf(log, sizeof(log), "%s/log", folder);
    fflush(stderr);
    saved = dup(STDERR_FILENO);
    assert_non_null(freopen(log, "w+", stderr));
    status = tkv_import_command(argc, argv);
    fflush(stderr);
    rewind(stderr);
    said[fread(said, 1, n - 1, stderr)] = '\0';
    dup2(saved, STDERR_FILENO);
    close(saved);
    while (argc > 0)
        free(argv[--argc]);
    return status;
}

static void write_file(const char *name, const void *data, size_t n)
{
    char path[128];
    FILE *f;

    snprintf(path, sizeof(path), "%s/%s", folder, name);
    f = fopen(path, "w");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

static int write_inputs(void **state)
{
    (void)state;
    if (!mkdtemp(folder))
        return -1;
    for (int kind = 0; kind < AID_KINDS; kind++) {
        char name[16];
        size_t n;
        uint8_t *data = import_aid_make((enum import_aid_kind)kind, &n);

        snprintf(name, sizeof(name), "%d", kind);
        write_file(name, data, n);
        free(data);
    }
    return 0;
}

static int remove_inputs(void **state)
{
    char command[128];

    (void)state;
    snprintf(command, sizeof(command), "rm -r %s", folder);
    return system(command);
}

static void test_command(void **state)
{
    static const struct {
        const char *line;
        const char *text; /* NULL: it works */
    } cases[] = {
        {"@/0 --n-kv-heads 2 --rope-theta 1e6 --output @/p.yaml", NULL},
        {"@/0 --rope-theta 1e6 --output @/q.yaml", "n_kv_heads: the file does not say"},
        {"@/0 --n-kv-heads 2 --output @/q.yaml", "rope.theta: the file does not say"},
        {"@/0 --n-kv-heads 3 --rope-theta 1e6 --output @/q.yaml", "n_kv_heads: 3"},
        {"@/0 --n-kv-heads 2 --rope-theta 1e6 --rope-layout interleaved --output @/q.yaml",
         "rope.layout"},
        {"@/0 --n-kv-heads 2 --rope-theta 1e6 --head-dim 6 --output @/q.yaml", "head_dim: 6"},
        {"@/0 --n-kv-heads 2 --rope-theta 1e6 --rope-scaling llama3 --output @/q.yaml", "rope: "},
        {"@/0 --n-kv-heads 2 --rope-theta 1e6 --rope-scaling linear --rope-factor 4 --output "
         "@/p.yaml",
         NULL},
        {"@/1 --output @/p.yaml", NULL},
        {"@/1 --rope-theta 1e6 --output @/q.yaml", "rope.theta: the file says 150000"},
        {"@/1 --rope-scaling none --output @/q.yaml", "rope.scaling: the file says yarn"},
        {"@/1 --n-kv-heads 4 --output @/q.yaml", "n_kv_heads: the file says 2"},
        {"@/2 --output @/q.yaml", "does not know the model's"},
        {"@/2 --rope-theta 1e6 --output @/p.yaml", NULL},
        {"@/3 --output @/p.yaml", NULL},
        {"@/3 --rope-theta 1e4 --output @/q.yaml", "rope.theta: the file says 1000000"},
        {"@/4 --head-dim 32 --head-dim-v 16 --output @/p.yaml", NULL},
        {"@/5 --output @/p.yaml", NULL},
        {"@/6 --output @/p.yaml", NULL},
        {"@/6 --output @/P.yaml", "a-z"},
        {"@/6 --output @/p.txt", ".yaml"},
        {"@/6 --output @/p.yaml --fingerprint 12", "fingerprint"},
        {"@/7 --n-kv-heads 2 --rope-theta 1e6 --rope-layout half --output @/p.yaml", NULL},
        {"@/7 --n-kv-heads 2 --rope-theta 1e6 --output @/q.yaml", "rope.layout"},
        {"@/7 --n-kv-heads 2 --rope-theta 1e4 --rope-layout half --output @/q.yaml",
         "band 1 turns by"},
        {"@/8 --n-kv-heads 2 --rope-theta 1e4 --rope-layout half --output @/p.yaml", NULL},
        {"@/none --output @/q.yaml", "none"},
        {"@/6", "--output is missing"},
        {"@/6 --n-layers 3 --output @/q.yaml", "go together"},
        {"@/6 --n-layers 7 --n-q-heads 5 --output @/q.yaml", "float32 [7][5][3]"},
        {"--output @/q.yaml", "which file"},
        {"@/6 @/6 --output @/q.yaml", "more than one"},
        {"@/6 --rope-theta 0 --output @/q.yaml", "rope-theta"},
        {"@/6 --rope-theta nan --output @/q.yaml", "rope-theta"},
    };
    char path[128], said[1024];

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        const int status = run(cases[i].line, said, sizeof(said));

        if (cases[i].text ? status == EX_OK || !strstr(said, cases[i].text) : status != EX_OK)
            fail_msg("\"%s\": status %d, \"%s\"", cases[i].line, status, said);
        if (!cases[i].text) {
            struct tkv_diag diag = {0};
            struct tkv_profile *p;

            snprintf(path, sizeof(path), "%s/p.yaml", folder);
            p = tkv_profile_load(path, &diag);
            if (!p)
                fail_msg("\"%s\": %s", cases[i].line, diag.line[0]);
            assert_int_equal(p->shape.n_kv_heads, AID_KV_HEADS);
            assert_int_equal(p->rope.rotary_dim, 2 * AID_BANDS);
            tkv_profile_unref(&p);
        }
    }
    snprintf(path, sizeof(path), "%s/q.yaml", folder);
    assert_int_equal(access(path, F_OK), -1); /* what failed has left nothing */
}

/* Arrays that are none, or of another type, order or shape. */
static void test_arrays(void **state)
{
#define HEAD(dict) "\x93NUMPY\1\0\x60\0" dict
    static const struct {
        const char *head, *part;
    } cases[] = {
        {HEAD("{'descr': '<f4', 'fortran_order': False, 'shape': (1, 1, 1), }"), NULL},
        {HEAD("{'shape':(1,1,1),'descr':'<f4','fortran_order':False}"), NULL},
        {HEAD("{'descr': '<f8', 'fortran_order': False, 'shape': (1, 1, 1), }"), "want {'descr'"},
        {HEAD("{'descr': '|O', 'fortran_order': False, 'shape': (1, 1, 1), }"), "want {'descr'"},
        {HEAD("{'descr': '<f4', 'fortran_order': True, 'shape': (1, 1, 1), }"), "want {'descr'"},
        {HEAD("{'descr': '<f4', 'fortran_order': False, }"), "want {'descr'"},
        {HEAD("{'descr': '<f4', 'descr': '<f4', 'shape': (1, 1, 1), }"), "want {'descr'"},
        {HEAD("{'descr': '<f4', 'fortran_order': False, 'shape': (1 1 1), }"), "want {'descr'"},
        {HEAD("{'descr': '<f4', 'fortran_order': False, 'shape': (1, 1, 1, 1, 1), }"), "at most 4"},
        {HEAD("{'descr': '<f4', 'fortran_order': False, 'shape': (1, 1, 2), }"),
         "the shape says 8"},
        {HEAD("{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }"), "1 dimensions"},
        {HEAD("{'descr': '<f4', 'fortran_order': False, 'shape': (1048576, 1048576, 1048576, "
              "1048576)}"),
         "want {'descr'"},
        {HEAD("{'descr': '<f4', 'fortran_order': False, 'shape': (1, 1, __import__('os'))}"),
         "want {'descr'"},
        {"\x93NUMPY\4\0\x60\0", "version 4"},
        {"\x93NUMPX\1\0\x60\0", "not an array"},
        {"\x93NUMPY\1\0\xff\x0f", "goes beyond the end"},
    };
    static const char *const names[] = {"q_mean_re.npy", "q_mean_im.npy", "q_abs_mean.npy"};

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        uint8_t array[10 + 0x60 + 4];
        const void *const members[] = {array, array, array};
        const size_t sizes[] = {sizeof(array), sizeof(array), sizeof(array)};
        const float value = 0;
        struct tkv_reason why = {""};
        struct tkv_import im;
        uint8_t *data;
        size_t n;

        memset(array, ' ', sizeof(array));
        memcpy(array, cases[i].head, 10); /* it may hold zeros */
        memcpy(array + 10, cases[i].head + 10, strlen(cases[i].head + 10));
        memcpy(array + sizeof(array) - 4, &value, 4);
        data = import_aid_npz(names, members, sizes, 3, &n);
        assert_int_equal(tkv_import_parse(&im, data, n, &why), -1);
        if (!strstr(why.text, cases[i].part ? cases[i].part : "all statistics are zero"))
            fail_msg("case %zu: \"%s\"", i, why.text);
        free(data);
    }
#undef HEAD
}

/* Numbers that no statistics have are refused, and their place named. */
static void test_bad_numbers(void **state)
{
    static const char head[] = "\x93NUMPY\1\0\x50\0"
                               "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 1, 2), }";
    static const char *const names[] = {"q_mean_re.npy", "q_mean_im.npy", "q_abs_mean.npy"};
    static const struct {
        unsigned member;
        float value;
    } cases[] = {{0, NAN}, {1, NAN}, {2, NAN}, {0, INFINITY}, {2, INFINITY}, {2, -1}, {0, 2}};

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        uint8_t arrays[3][10 + 0x50 + 8];
        const void *const members[] = {arrays[0], arrays[1], arrays[2]};
        const size_t sizes[] = {sizeof(arrays[0]), sizeof(arrays[0]), sizeof(arrays[0])};
        struct tkv_reason why = {""};
        struct tkv_import im;
        uint8_t *data;
        size_t n;

        for (unsigned m = 0; m < 3; m++) {
            const float x[2] = {m == 2 ? 1 : .5f,
                                m == cases[i].member ? cases[i].value : (m == 2 ? 1 : .5f)};

            memset(arrays[m], ' ', sizeof(arrays[m]));
            memcpy(arrays[m], head, sizeof(head) - 1);
            memcpy(arrays[m] + sizeof(arrays[m]) - sizeof(x), x, sizeof(x));
        }
        data = import_aid_npz(names, members, sizes, 3, &n);
        assert_int_equal(tkv_import_parse(&im, data, n, &why), -1);
        if (!strstr(why.text, "layer 0, query head 0, band 1") || !strstr(why.text, "mean_abs"))
            fail_msg("case %zu: \"%s\"", i, why.text);
        free(data);
    }
}

/* What is unpacked is what the directory says, no more, no less. */
static void test_deflated(void **state)
{
    struct tkv_reason why = {""};
    struct tkv_import im;
    size_t n, at = 0;
    uint8_t *data = import_aid_make(AID_NPZ, &n);

    (void)state;
    while (memcmp(data + at, "PK\1\2", 4) != 0) /* the first entry of the directory */
        at++;
    for (int more = -1; more <= 1; more += 2) {
        data[at + 24] = (uint8_t)(data[at + 24] + more);
        assert_int_equal(tkv_import_parse(&im, data, n, &why), -1);
        assert_non_null(strstr(why.text, "damaged"));
        data[at + 24] = (uint8_t)(data[at + 24] - more);
    }
    memset(data + at + 24, 0xff, 4); /* four gigabytes */
    assert_int_equal(tkv_import_parse(&im, data, n, &why), -1);
    assert_non_null(strstr(why.text, "want 1.."));
    free(data);
}

/* ---- the real files --------------------------------------------------------------------- */

static const struct {
    const char *original, *converted;
} real_files[] = {
    {"qwen3_8b_aime24.pt", "qwen3_8b_aime24.bin"},
    {"ds_llama8b.pt", "ds_llama8b_aime24.bin"},
    {"gpt_oss_120b_stats.pt", "gpt_oss_120b.bin"},
    {"tria_qwen3.5-27b.bin", "tria_qwen3p5_27b.bin"},
    {"tria_qwen3-8b.bin", NULL},
    {"tria_qwen3-1.7b.bin", NULL},
};

static void test_real_files(void **state)
{
    const char *shared = getenv("TRIKV_SHARED");
    char path[512];

    (void)state;
    shared = shared ? shared : "../shared";
    snprintf(path, sizeof(path), "%s/calibration/original", shared);
    if (access(path, R_OK)) {
        print_message("skipped: no %s\n", path);
        skip();
    }
    for (size_t i = 0; i < sizeof(real_files) / sizeof(real_files[0]); i++) {
        struct tkv_reason why = {""};
        struct tkv_import im;
        char *want = NULL;
        size_t n = 0, bytes;

        snprintf(path, sizeof(path), "%s/calibration/original/%s", shared, real_files[i].original);
        if (tkv_import_read(&im, path, 0, 0, &why))
            fail_msg("%s", why.text);
        bytes = (size_t)im.n_layers * im.n_q_heads * 3 * im.n_bands * sizeof(float);
        if (real_files[i].converted) {
            snprintf(path, sizeof(path), "%s/calibration/%s", shared, real_files[i].converted);
            assert_int_equal(tkv_engine_read_text(path, &want, &n, &why), 0);
            assert_int_equal(n, bytes);
            assert_memory_equal(im.statistics, want, bytes);
            free(want);
        }
        tkv_import_deinit(&im);
    }
}

/* One model's statistics in two formats. */
static void test_real_npz(void **state)
{
    const char *shared = getenv("TRIKV_SHARED");
    struct tkv_reason why = {""};
    struct tkv_import npz, tria;
    char path[512];

    (void)state;
    shared = shared ? shared : "../shared";
    snprintf(path, sizeof(path), "%s/calibration/tria_qwen3_1p7b.npz", shared);
    if (access(path, R_OK)) {
        print_message("skipped: no %s\n", path);
        skip();
    }
    if (tkv_import_read(&npz, path, 0, 0, &why))
        fail_msg("%s", why.text);
    snprintf(path, sizeof(path), "%s/calibration/original/tria_qwen3-1.7b.bin", shared);
    if (tkv_import_read(&tria, path, 0, 0, &why))
        fail_msg("%s", why.text);
    assert_int_equal(npz.n_layers, tria.n_layers);
    assert_int_equal(npz.n_q_heads, tria.n_q_heads);
    assert_int_equal(npz.n_bands, tria.n_bands);
    assert_true(npz.has_inv_freq);
    assert_memory_equal(npz.statistics, tria.statistics,
                        (size_t)npz.n_layers * npz.n_q_heads * 3 * npz.n_bands * sizeof(float));
    tkv_import_deinit(&npz);
    tkv_import_deinit(&tria);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_formats),     cmocka_unit_test(test_truncated),
        cmocka_unit_test(test_flipped),     cmocka_unit_test(test_checksum),
        cmocka_unit_test(test_pickles),     cmocka_unit_test(test_command),
        cmocka_unit_test(test_real_files),  cmocka_unit_test(test_arrays),
        cmocka_unit_test(test_bad_numbers), cmocka_unit_test(test_deflated),
        cmocka_unit_test(test_real_npz),
    };

    return cmocka_run_group_tests(tests, write_inputs, remove_inputs);
}
