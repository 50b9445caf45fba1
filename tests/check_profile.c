/* Profiles: a right one is read whole; each wrong one is refused with file, line, column. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

#include "daemon/diag.h"
#include "daemon/profile.h"
#include "tests/rng.h"

enum { N_LAYERS = 3, N_Q = 2, N_BANDS = 4, N_FLOATS = N_LAYERS * N_Q * 3 * N_BANDS };

static const char *const HEAD =
    "format: trikv-profile/1\n"                                        /* 1 */
    "name: good\n"                                                     /* 2 */
    "model:\n"                                                         /* 3 */
    "  architecture: qwen3\n"                                          /* 4 */
    "  fingerprint: \"xxh3:0123456789abcdef\"\n"                       /* 5 */
    "  n_layers: 3\n"                                                  /* 6 */
    "  n_q_heads: 2\n"                                                 /* 7 */
    "  n_kv_heads: 1\n"                                                /* 8 */
    "  head_dim: 8\n"                                                  /* 9 */
    "rope:\n"                                                          /* 10 */
    "  layout: half\n"                                                 /* 11 */
    "  theta: 100000.0\n"                                              /* 12 */
    "  rotary_dim: 8\n"                                                /* 13 */
    "  scaling: none\n"                                                /* 14 */
    "policy:\n"                                                        /* 15 */
    "  tokens:\n"                                                      /* 16 */
    "    method: triattention\n"                                       /* 17 */
    "    budget: 2048\n"                                               /* 18 */
    "    beta: 64\n"                                                   /* 19 */
    "    recent: 128\n"                                                /* 20 */
    "    pinned: 4\n"                                                  /* 21 */
    "    eviction_mode: per_layer_perhead\n"                           /* 22 */
    "    normalize_scores: false\n"                                    /* 23 */
    "    aggregation: max\n"                                           /* 24 */
    "    offset_max: 1024\n"                                           /* 25 */
    "  bits:\n"                                                        /* 26 */
    "    k: tq4\n"                                                     /* 27 */
    "    v: tq3\n"                                                     /* 28 */
    "  layers:\n"                                                      /* 29 */
    "    - layers: [0, 2]\n"                                           /* 30 */
    "      budget: 4096\n"                                             /* 31 */
    "    - layers: [2]\n"                                              /* 32 */
    "      k: f16\n"                                                   /* 33 */
    "statistics:\n"                                                    /* 34 */
    "  n_tokens: 65536\n"                                              /* 35 */
    "  order: \"[layer][q_head][mean_re, mean_im, mean_abs][band]\"\n" /* 36 */
    "  encoding: base64-f32le\n";                                      /* 37 */

static unsigned n_malformed;

static void encode_base64(const unsigned char *p, size_t n, char *out)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

    for (size_t i = 0; i < n; i += 3) {
        const unsigned rest = n - i < 3 ? (unsigned)(n - i) : 3;
        uint32_t v = (uint32_t)p[i] << 16;

        v |= rest > 1 ? (uint32_t)p[i + 1] << 8 : 0;
        v |= rest > 2 ? p[i + 2] : 0;
        *out++ = digits[v >> 18];
        *out++ = digits[v >> 12 & 63];
        *out++ = '=';
        *out++ = '=';
        if (rest > 1)
            out[-2] = digits[v >> 6 & 63];
        if (rest > 2)
            out[-1] = digits[v & 63];
    }
    *out = 0;
}

static void make_statistics(float *x)
{
    struct rng rng = {9};

    for (size_t h = 0; h < N_LAYERS * N_Q; h++) {
        for (size_t f = 0; f < N_BANDS; f++) {
            float *const re = x + h * 3 * N_BANDS + f;

            re[0] = rng_gauss(&rng);
            re[N_BANDS] = rng_gauss(&rng);
            re[2 * N_BANDS] = sqrtf(re[0] * re[0] + re[N_BANDS] * re[N_BANDS]) * 1.5f;
        }
    }
}

/* HEAD and these statistics as a whole profile, on the heap. */
static char *make_profile(const float *x)
{
    char *text = malloc(8192), data[N_FLOATS * 6 + 8];
    size_t n;

    assert_non_null(text);
    encode_base64((const unsigned char *)x, N_FLOATS * sizeof(float), data);
    n = (size_t)sprintf(text, "%s  xxh3: %016llx\n  data: |\n", HEAD,
                        (unsigned long long)XXH3_64bits(x, N_FLOATS * sizeof(float)));
    for (size_t i = 0; i < strlen(data); i += 60)
        n += (size_t)sprintf(text + n, "    %.60s\n", data + i);
    return text;
}

static char *good_profile(void)
{
    float x[N_FLOATS];

    make_statistics(x);
    return make_profile(x);
}

static struct tkv_profile *parse(const char *text, struct tkv_diag *diag)
{
    memset(diag, 0, sizeof(*diag));
    return tkv_profile_parse("dir/good.yaml", "/nonexistent", text, strlen(text), diag);
}

static void check_good(void **state)
{
    char *text = good_profile();
    float x[N_FLOATS];
    struct tkv_diag diag;
    struct tkv_profile *p = parse(text, &diag), *again;

    (void)state;
    if (!p)
        fail_msg("%s", diag.line[0]);
    make_statistics(x);
    assert_string_equal(p->name, "good");
    assert_int_equal(p->n_layers, 3);
    assert_int_equal(p->shape.head_dim_v, 8);
    assert_true(p->has_rope);
    assert_int_equal(p->policy.said & ~0xfffu, 0);
    assert_int_equal(p->policy.method, TKV_METHOD_TRIATTENTION);
    assert_int_equal(p->policy.eviction_mode, TKV_PER_LAYER_PERHEAD);
    assert_int_equal(p->policy.aggregation, TKV_AGGREGATE_MAX);
    assert_false(p->policy.normalize_scores);
    assert_int_equal(p->policy.said, TKV_POLICY_ALL & ~(unsigned)TKV_POLICY_ROLLBACK);
    assert_int_equal(p->layers[0].budget_tokens, 4096);
    assert_int_equal(p->layers[0].said, TKV_POLICY_BUDGET);
    assert_int_equal(p->layers[1].said, 0);
    assert_int_equal(p->layers[2].said, TKV_POLICY_BUDGET | TKV_POLICY_CODEC_K);
    assert_int_equal(p->layers[2].codec_k, TKV_CODEC_F16);
    assert_memory_equal(p->statistics, x, sizeof(x));
    assert_ptr_equal(tkv_profile_layer_statistics(p, 1), p->statistics + N_Q * 3 * N_BANDS);
    again = tkv_profile_ref(p);
    tkv_profile_unref(&p);
    assert_null(p);
    assert_string_equal(again->architecture, "qwen3");
    tkv_profile_unref(&again);
    free(text);
}

/* text with the first `from` replaced by `to`; the caller frees it. */
static char *replace(const char *text, const char *from, const char *to)
{
    const char *at = strstr(text, from);
    char *out;

    if (!at)
        fail_msg("the profile does not have \"%s\"", from);
    out = malloc(strlen(text) + strlen(to) + 1);
    assert_non_null(out);
    sprintf(out, "%.*s%s%s", (int)(at - text), text, to, at + strlen(from));
    return out;
}

static void refuse(const char *text, const char *place, const char *part, const char *name)
{
    struct tkv_diag diag;
    struct tkv_profile *p = parse(text, &diag);
    char start[64];
    bool found = false;

    snprintf(start, sizeof(start), "dir/good.yaml:%s", place);
    for (size_t i = 0; i < diag.n; i++)
        found |= strncmp(diag.line[i], start, strlen(start)) == 0 && strstr(diag.line[i], part);
    if (p || !found)
        fail_msg("%s: want \"%s...%s\", got \"%s\"", name, start, part,
                 diag.n ? diag.line[0] : "no error");
    tkv_diag_deinit(&diag);
    n_malformed++;
}

struct mutation {
    const char *from, *to;
    const char *place; /* where the error is: the start of "line:column: " */
    const char *part;
};

static const struct mutation mutations[] = {
    {"format: trikv-profile/1", "format: trikv-profile/2", "1:9: ", "trikv-profile/1"},
    {"format: trikv-profile/1\n", "", "1:1: ", "\"format\" is missing"},
    {"name: good", "name: Good", "2:7: ", "a-z"},
    {"name: good", "name: other", "2:7: ", "not the name of the file"},
    {"name: good", "name: ../good", "2:7: ", "a-z"},
    {"name: good\n", "", "1:1: ", "\"name\" is missing"},
    {"model:", "modell:", "3:1: ", "did you mean \"model\""},
    {"architecture: qwen3\n", "architecture: [a]\n", "4:17: ", "architecture"},
    {"xxh3:0123456789abcdef\"", "xxh3:0123\"", "5:16: ", "16 hexadecimal"},
    {"xxh3:0123456789abcdef\"", "md5:0123456789abcdef\"", "5:16: ", "xxh3"},
    {"  fingerprint: \"xxh3:0123456789abcdef\"\n", "", "4:3: ", "fingerprint"},
    {"n_layers: 3", "n_layers: 0", "6:13: ", "from 1 to 512"},
    {"n_layers: 3", "n_layers: 513", "6:13: ", "from 1 to 512"},
    {"n_layers: 3", "n_layers: three", "6:13: ", "n_layers"},
    {"n_layers: 3", "n_layers: 2", "30:19: ", "from 0 to 1"},
    {"n_layers: 3", "n_layers: 4", "40:9: ", "shorter"},
    {"n_q_heads: 2", "n_q_heads: 2000", "7:14: ", "n_q_heads"},
    {"n_q_heads: 2", "n_q_heads: 1", "40:9: ", "longer"},
    {"n_kv_heads: 1", "n_kv_heads: 3", "4:3: ", "must divide"},
    {"n_kv_heads: 1", "n_kv_heads: -1", "8:15: ", "n_kv_heads"},
    {"  n_kv_heads: 1\n", "", "4:3: ", "n_kv_heads"},
    {"head_dim: 8", "head_dim: 9", "4:3: ", "even"},
    {"head_dim: 8", "head_dim: 6", "9:13: ", "from 8 to 1024"},
    {"head_dim: 8", "head_dim: 2048", "9:13: ", "head_dim"},
    {"head_dim: 8", "head_dim_k: 8", "4:3: ", "head_dim_v"},
    {"      budget: 4096\n", "      budget: 4096\n      window: 0\n", "32:15: ", "window"},
    {"head_dim: 8", "head_dim: 8\n  rope_dim: 2", "10:13: ", "latents have 1 KV head"},
    {"head_dim: 8", "head_dim: 8\n  rope_dim: 8", "10:13: ", "latents have 1 KV head"},
    {"head_dim: 8", "head_dim: 8\n  head_dim_k: 8", "4:3: ", "or head_dim_k and head_dim_v"},
    {"layout: half", "layout: neox", "11:11: ", "half, interleaved"},
    {"  layout: half\n", "", "11:3: ", "layout"},
    {"  theta: 100000.0\n", "", "11:3: ", "\"theta\" is missing"},
    {"theta: 100000.0", "theta: .nan", "12:10: ", "finite"},
    {"theta: 100000.0", "theta: .inf", "12:10: ", "finite"},
    {"theta: 100000.0", "theta: 1e400", "12:10: ", "finite"},
    {"theta: 100000.0", "theta: 0.5", "12:10: ", "theta"},
    {"theta: 100000.0", "theta: 1", "11:3: ", "theta"},
    {"theta: 100000.0", "theta: -10000", "12:10: ", "theta"},
    {"theta: 100000.0", "theta: 0x1p4", "12:10: ", "theta"},
    {"theta: 100000.0", "theta: \"100000\"", "12:10: ", "theta"},
    {"theta: 100000.0", "theta: ", "12:9: ", "theta"},
    {"rotary_dim: 8", "rotary_dim: 10", "11:3: ", "rope"},
    {"rotary_dim: 8", "rotary_dim: 7", "11:3: ", "rope"},
    {"  rotary_dim: 8\n", "", "11:3: ", "rotary_dim"},
    {"scaling: none", "scaling: ntk", "14:12: ", "none, linear, llama3, yarn"},
    {"scaling: none", "scaling: linear", "11:3: ", "factor"},
    {"scaling: none", "scaling: llama3\n  factor: 8", "11:3: ", "low_freq_factor"},
    {"scaling: none", "scaling: yarn\n  factor: 8", "11:3: ", "original_context"},
    {"scaling: none", "scaling: none\n  factor: 8", "15:3: ", "means nothing"},
    {"scaling: none", "scaling: linear\n  factor: 0.5", "15:11: ", "factor"},
    {"scaling: none", "scaling: linear\n  factor: 2\n  truncate: false", "16:3: ", "means nothing"},
    {"scaling: none", "scaling: none\n  teta: 4", "15:3: ", "did you mean \"theta\""},
    {"rope:", "ropes:", "10:1: ", "did you mean \"rope\""},
    {"method: triattention", "method: snapkw", "17:13: ", "none, triattention"},
    {"    method: triattention\n", "", "17:5: ", "method"},
    {"    budget: 2048\n", "", "17:5: ", "\"budget\" is missing"},
    {"budget: 2048", "budget: 132", "18:13: ", "more than pinned 4 + recent 128"},
    {"budget: 2048", "budget: 0", "18:13: ", "budget"},
    {"beta: 64", "beta: 0", "19:11: ", "beta"},
    {"recent: 128", "recent: 99999999", "20:13: ", "recent"},
    {"pinned: 4", "pinned: -4", "21:13: ", "pinned"},
    {"mode: per_layer_perhead", "mode: all", "22:20: ", "per_layer_perhead"},
    {"mode: per_layer_perhead", "mode: union", "31:15: ", "same budget in all layers"},
    {"    eviction_mode: per_layer_perhead\n", "", "17:5: ", "eviction_mode"},
    {"    beta: 64\n", "", "17:5: ", "\"beta\" is missing"},
    {"    recent: 128\n", "", "17:5: ", "\"recent\" is missing"},
    {"    pinned: 4\n", "", "17:5: ", "\"pinned\" is missing"},
    {"    normalize_scores: false\n", "", "17:5: ", "normalize_scores"},
    {"    aggregation: max\n", "", "17:5: ", "aggregation"},
    {"    offset_max: 1024\n", "", "17:5: ", "offset_max"},
    {"    k: tq4\n", "", "27:5: ", "\"k\" is missing"},
    {"normalize_scores: false", "normalize_scores: no", "23:23: ", "true or false"},
    {"aggregation: max", "aggregation: sum", "24:18: ", "mean, max"},
    {"offset_max: 1024", "offset_max: 0", "25:17: ", "offset_max"},
    {"k: tq4", "k: tq5", "27:8: ", "tq4"},
    {"v: tq3", "v: tq4-qjl", "28:8: ", "keys only"},
    {"    beta: 64", "    allocator: fair\n    beta: 64", "19:16: ", "uniform, pyramid"},
    {"      budget: 4096", "      method: default", "31:15: ", "plans all layers together"},
    {"      budget: 4096", "      method: all", "31:15: ", "none, triattention"},
    {"    beta: 64", "    target_ratio: 0.5\n    beta: 64", "19:19: ", "target_ratio"},
    {"    beta: 64", "    max_tokens: 0\n    beta: 64", "19:17: ", "max_tokens"},
    {"  bits:", "  gate:\n    probes: 4\n  bits:", "27:5: ", "\"surplus\" is missing"},
    {"  bits:", "  gate:\n    surplus: 64\n    probes: 0\n  bits:", "28:13: ", "gate.probes"},
    {"  bits:", "  gate:\n    lost_mass: -1\n  bits:", "27:16: ", "gate.lost_mass"},
    {"  bits:", "  gate:\n    mass: 1\n  bits:", "27:5: ", "unknown key \"mass\""},
    {"bits:", "bit:", "26:3: ", "did you mean \"bits\""},
    {"[0, 2]", "[0, 3]", "30:19: ", "from 0 to 2"},
    {"[0, 2]", "[]", "30:15: ", "a list of layer numbers"},
    {"[0, 2]", "0", "30:15: ", "a list of layer numbers"},
    {"      budget: 4096\n", "      budget: 5\n", "31:15: ", "more than pinned"},
    {"      k: f16\n", "      q: f16\n", "33:7: ", "unknown key \"q\""},
    {"    - layers: [2]\n", "    - layer: [2]\n", "32:7: ", "did you mean \"layers\""},
    {"n_tokens: 65536", "n_tokens: many", "35:13: ", "n_tokens"},
    {"[layer][q_head]", "[q_head][layer]", "36:10: ", "want \"[layer][q_head]"},
    {"encoding: base64-f32le", "encoding: hex", "37:13: ", "base64-f32le"},
    {"  encoding: base64-f32le\n", "", "35:3: ", "encoding"},
    {"  xxh3: ", "  xxh3: f", "38:9: ", "16 hexadecimal"},
    {"  xxh3: ", "  xxh4: ", "38:3: ", "did you mean \"xxh3\""},
    {"  data: |\n", "  data: |\n    ????\n", "39:9: ", "not base64"},
    {"  data: |\n", "  data: |\n    AAAA\n", "39:9: ", "longer"},
    {"  data: |\n", "  data: |\n    A\n", "39:9: ", "statistics.data"},
    {"  data: |\n", "  data: |\n    AA==\n", "39:9: ", "goes on after"},
    {"  data: |\n", "  file: x.stats\n  data: |\n", "35:3: ", "either data or file"},
    {"  data: |\n", "  file: |\n", "37:13: ", "want \"f32le\""},
    {"  data: |\n", "  data: [1]\n  other: |\n", "40:3: ", "unknown key"},
    {"statistics:", "statistic:", "34:1: ", "did you mean \"statistics\""},
    {"  n_tokens", "  data: x\n  data: y\n  n_tokens", "36:3: ", "already there"},
};

static void check_methods(void **state)
{
    char *good = good_profile();
    char *text = replace(good, "    beta: 64", "    allocator: adaptive\n    beta: 64");
    char *more = replace(text, "      k: f16", "      k: f16\n      method: h2o");
    struct tkv_diag diag;
    struct tkv_profile *p = parse(more, &diag);

    (void)state;
    assert_non_null(p);
    assert_int_equal(p->policy.allocator, TKV_ADAPTIVE);
    assert_true(p->policy.said & TKV_POLICY_ALLOCATOR);
    assert_int_equal(p->layers[0].said & TKV_POLICY_METHOD, 0);
    assert_int_equal(p->layers[2].method, TKV_METHOD_H2O);
    assert_true(p->layers[2].said & TKV_POLICY_METHOD);
    tkv_profile_unref(&p);
    free(more);
    free(text);
    free(good);
}

/* Limits that a gate does not name do not bind. */
static void check_gate(void **state)
{
    char *good = good_profile();
    char *text = replace(
        good, "  bits:", "  gate:\n    lost_mass: 0.25\n    surplus: 64\n    probes: 16\n  bits:");
    struct tkv_diag diag;
    struct tkv_profile *p = parse(text, &diag);

    (void)state;
    assert_non_null(p);
    assert_int_equal(p->policy.said,
                     (TKV_POLICY_ALL & ~(unsigned)TKV_POLICY_ROLLBACK) | TKV_POLICY_GATE);
    assert_true(p->policy.gate.limits.lost_mass == 0.25f);
    assert_true(isinf(p->policy.gate.limits.output_error));
    assert_true(isinf(p->policy.gate.limits.lse_change));
    assert_int_equal(p->policy.gate.surplus_tokens, 64);
    assert_int_equal(p->policy.gate.n_probes, 16);
    tkv_profile_unref(&p);
    free(text);
    free(good);
}

static void check_mutations(void **state)
{
    char *good = good_profile();

    (void)state;
    for (size_t i = 0; i < sizeof(mutations) / sizeof(mutations[0]); i++) {
        char *text = replace(good, mutations[i].from, mutations[i].to);
        const struct mutation *m = &mutations[i];

        /* the place of the data depends on how long the lines above are: any will do */
        refuse(text, strstr(m->place, "40:9") || strstr(m->place, "39:9") ? "" : m->place, m->part,
               m->to);
        free(text);
    }
    free(good);
}

/* Values that no queries can have, in a profile whose hash is right. */
static void check_values(void **state)
{
    static const struct {
        float value;
        size_t index;
        const char *part;
    } cases[] = {
        {NAN, 0, "layer 0, query head 0, band 0"},
        {INFINITY, N_BANDS + 1, "layer 0, query head 0, band 1"},
        {-1, 2 * N_BANDS, "mean_abs"},
        {0, 3 * N_BANDS + 2 * N_BANDS + 3, "layer 0, query head 1, band 3"},
        {1e30f, 5 * 3 * N_BANDS, "layer 2, query head 1, band 0"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        float x[N_FLOATS];
        char *text;

        make_statistics(x);
        x[cases[i].index] = cases[i].value;
        text = make_profile(x);
        refuse(text, "", cases[i].part, cases[i].part);
        free(text);
    }
}

/* A wrong bit anywhere in the data is found by the hash. */
static void check_hash(void **state)
{
    float x[N_FLOATS], y[N_FLOATS];
    char from[64], to[64], *good, *text;

    (void)state;
    make_statistics(x);
    good = make_profile(x);
    memcpy(y, x, sizeof(y));
    y[5] = y[5] * (1 + 1e-7f) + 1e-6f;
    snprintf(from, sizeof(from), "%016llx", (unsigned long long)XXH3_64bits(x, sizeof(x)));
    snprintf(to, sizeof(to), "%016llx", (unsigned long long)XXH3_64bits(y, sizeof(y)));
    text = replace(good, from, to);
    refuse(text, "38:9: ", from, "hash");
    free(text);
    free(good);
}

#define ORDER  "[layer][kv_head][tq1, tq2, tq3, tq4, window 16, 32, 64, 128, 256, 512, 1024, 2048]"
#define ROW    "    - [.5, .25, .125, 1e-2, 9, 8, 7, 6, 5, 4, 3, 2]\n"
#define ERRORS "errors:\n  n_tokens: 4096\n  order: \"" ORDER "\"\n  data:\n" ROW ROW ROW

/* Section errors: read as it stands, and refused where it does not fit the model. */
static void check_errors(void **state)
{
    static const struct {
        const char *from, *to, *what;
    } cases[] = {
        {ROW ROW, ROW, "want 3 lists"},
        {", 3, 2]", ", 3]", "a list of 12 numbers"},
        {".5", "-.5", "errors.data"},
        {".5", "many", "errors.data"},
        {"n_tokens: 4096", "n_tokens: 0", "errors.n_tokens"},
        {"window 16", "window 17", "errors.order"},
        {"  n_tokens: 4096\n", "", "n_tokens"},
        {"  data:\n" ROW ROW ROW, "", "data"},
        {"  data:", "  rows: 1\n  data:", "rows"},
    };
    char *good = good_profile(), *text = replace(good, "statistics:\n", ERRORS "statistics:\n");
    struct tkv_diag diag = {0};
    struct tkv_profile *p = tkv_profile_parse("dir/good.yaml", "/", text, strlen(text), &diag);

    (void)state;
    assert_non_null(p);
    assert_true(tkv_profile_layer_errors(p, 2)[3] == 1e-2f);
    assert_true(tkv_profile_layer_errors(p, 0)[11] == 2);
    tkv_profile_unref(&p);
    tkv_diag_deinit(&diag);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        char *bad = replace(text, cases[i].from, cases[i].to);

        refuse(bad, "", cases[i].what, cases[i].what);
        free(bad);
    }
    free(text);
    text = replace(good, "method: triattention", "method: default");
    refuse(text, "", "errors", "method default needs");
    free(text);
    free(good);
}

/* The profile is cut after every byte: an error, or a shorter profile that is whole. */
static void check_truncated(void **state)
{
    char *good = good_profile();
    const size_t n = strlen(good);

    (void)state;
    for (size_t cut = 0; cut + 2 < n; cut += 3) {
        struct tkv_diag diag = {0};
        struct tkv_profile *p =
            tkv_profile_parse("dir/good.yaml", "/nonexistent", good, cut, &diag);

        if (p || diag.n == 0)
            fail_msg("cut after %zu bytes: accepted", cut);
        assert_non_null(strstr(diag.line[0], "dir/good.yaml:"));
        tkv_diag_deinit(&diag);
        n_malformed++;
    }
    free(good);
}

static void write_file(const char *directory, const char *name, const void *data, size_t n)
{
    char path[256];
    FILE *f;

    snprintf(path, sizeof(path), "%s/%s", directory, name);
    f = fopen(path, "w");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

/* A directory: sidecars are found beside their profile, a broken profile hides no other. */
static void check_directory(void **state)
{
    char directory[] = "/tmp/trikv-test-XXXXXX", hash[64];
    static const char *const files[] = {"good.yaml", "good.stats", "bad.yaml", "note.txt"};
    float x[N_FLOATS];
    char *good = good_profile(), *cut, *text;
    struct tkv_profiles list;
    struct tkv_diag diag = {0};

    (void)state;
    make_statistics(x);
    assert_non_null(mkdtemp(directory));
    cut = strstr(good, "  encoding");
    *cut = 0;
    text = malloc(strlen(good) + 200);
    assert_non_null(text);
    snprintf(hash, sizeof(hash), "%016llx", (unsigned long long)XXH3_64bits(x, sizeof(x)));
    sprintf(text, "%s  xxh3: %s\n  file: good.stats\n", good, hash);
    write_file(directory, "good.yaml", text, strlen(text));
    write_file(directory, "good.stats", x, sizeof(x));
    write_file(directory, "bad.yaml", "name: bad\n", 10);
    write_file(directory, "note.txt", "no", 2);
    assert_false(tkv_profiles_load(&list, directory, &diag));
    assert_int_equal(list.n, 1);
    assert_non_null(tkv_profiles_find(&list, "good"));
    assert_null(tkv_profiles_find(&list, "bad"));
    assert_non_null(strstr(diag.line[0], "bad.yaml:1:1: "));
    tkv_profiles_deinit(&list);
    tkv_diag_deinit(&diag);
    write_file(directory, "good.stats", x, sizeof(x) - 1);
    assert_false(tkv_profiles_load(&list, directory, &diag));
    assert_int_equal(list.n, 0);
    tkv_diag_deinit(&diag);
    for (size_t i = 0; i < sizeof(files) / sizeof(files[0]); i++) {
        char path[256];

        snprintf(path, sizeof(path), "%s/%s", directory, files[i]);
        unlink(path);
    }
    rmdir(directory);
    assert_true(tkv_profiles_load(&list, directory, &diag)); /* none there: none loaded */
    assert_int_equal(list.n, 0);
    free(text);
    free(good);
}

/* The profiles that we ship are sound. */
static void check_shipped(void **state)
{
    struct tkv_profiles list;
    struct tkv_diag diag = {0};

    (void)state;
    if (!tkv_profiles_load(&list, "conf/profiles", &diag))
        fail_msg("%s", diag.line[0]);
    print_message("%zu shipped profiles, %u malformed ones\n", list.n, n_malformed);
    tkv_profiles_deinit(&list);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(check_good),      cmocka_unit_test(check_gate),
        cmocka_unit_test(check_methods),   cmocka_unit_test(check_mutations),
        cmocka_unit_test(check_errors),    cmocka_unit_test(check_values),
        cmocka_unit_test(check_hash),      cmocka_unit_test(check_truncated),
        cmocka_unit_test(check_directory), cmocka_unit_test(check_shipped),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
