/*
 * The codecs on keys and values recorded from a small model: mean Kullback-Leibler divergence of
 * attention when only the keys are coded, with the mean of each block as rounds without
 * eviction make it, with one mean frozen after the first tokens, and with none, as
 * evicting rounds have it. The recordings are reference data: without them nothing is checked.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "core/codec.h"
#include "core/half.h"
#include "core/kernels.h"
#include "tests/codec_aid.h"
#include "tests/cpu.h"

enum { N_LAYERS = 5, N_Q_HEADS = 8, N_KV_HEADS = 4, N_TOKENS = 2048, DIM = 64, FIRST_QUERY = 1024 };
enum { QUERY_STEP = 37, N_FROZEN = 128, LANES = TKV_BLOCK_TOKENS };

enum mean_kind { MEAN_NONE, MEAN_BLOCK, MEAN_FROZEN };

static float *read_halves(const char *name, size_t n)
{
    const char *shared = getenv("TRIKV_SHARED");
    char path[512];
    uint16_t *halves = malloc(n * sizeof(*halves));
    float *x = malloc(n * sizeof(*x));
    FILE *f;

    assert_non_null(halves);
    assert_non_null(x);
    snprintf(path, sizeof(path), "%s/models/kv/%s", shared ? shared : "../shared", name);
    f = fopen(path, "rb");
    if (!f || fread(halves, sizeof(*halves), n, f) != n) {
        print_message("skipped: no recordings at %s\n", path);
        free(halves);
        free(x);
        x = NULL;
    } else {
        for (size_t i = 0; i < n; i++)
            x[i] = tkv_f16_to_f32(halves[i]);
        free(halves);
    }
    if (f)
        fclose(f);
    return x;
}

/* decoded[N_TOKENS][DIM] = the vectors of one head after coding. */
static void recode(const struct tkv_coder *c, const struct tkv_kernels *kn, enum mean_kind kind,
                   const float *x, float *decoded)
{
    static uint8_t block[LANES * DIM * 2];
    uint8_t mean[TKV_MAX_MEAN_BYTES] = {0};

    if (kind == MEAN_FROZEN)
        tkv_code_mean(c, kn, TKV_KEYS, tkv_floats(x, DIM), N_FROZEN, mean);
    for (size_t t = 0; t < N_TOKENS; t += LANES) {
        if (kind == MEAN_BLOCK)
            tkv_code_mean(c, kn, TKV_KEYS, tkv_floats(x + t * DIM, DIM), LANES, mean);
        tkv_encode_keys(c, kn, mean, tkv_floats(x + t * DIM, DIM), LANES, block);
        for (size_t i = 0; i < LANES; i++)
            tkv_decode_key(c, kn, block, i, decoded + (t + i) * DIM);
    }
}

/* p[n] = softmax of q . k / 8. */
static void softmax(const struct tkv_kernels *kn, const float *q, const float *k, size_t n,
                    double *p)
{
    double max = -INFINITY, sum = 0;

    for (size_t t = 0; t < n; t++) {
        p[t] = (double)kn->dot(q, k + t * DIM, DIM) / 8;
        max = fmax(max, p[t]);
    }
    for (size_t t = 0; t < n; t++)
        sum += p[t] = exp(p[t] - max);
    for (size_t t = 0; t < n; t++)
        p[t] /= sum;
}

static double divergence(const struct tkv_kernels *kn, const float *q, const float *k,
                         const float *coded, size_t n)
{
    static double p[N_TOKENS], r[N_TOKENS];
    double sum = 0;

    softmax(kn, q, k, n, p);
    softmax(kn, q, coded, n, r);
    for (size_t t = 0; t < n; t++)
        if (p[t] > 0)
            sum += p[t] * log(p[t] / fmax(r[t], 1e-300));
    return sum;
}

static double mean_divergence(const struct tkv_coder *c, const float *q, const float *k,
                              enum mean_kind kind)
{
    static float coded[N_TOKENS * DIM];
    struct tkv_kernels kn;
    double sum = 0;
    size_t n = 0;

    tkv_kernels_init(&kn, cpu_flags());
    for (size_t h = 0; h < N_LAYERS * N_KV_HEADS; h++) {
        const float *keys = k + h * N_TOKENS * DIM;

        recode(c, &kn, kind, keys, coded);
        for (size_t g = 0; g < 2; g++)
            for (size_t t = FIRST_QUERY; t < N_TOKENS; t += QUERY_STEP, n++)
                sum += divergence(&kn, q + ((2 * h + g) * N_TOKENS + t) * DIM, keys, coded, t + 1);
    }
    return sum / (double)n;
}

/* Bits per value of a full block of keys: codes, scales, mean. */
static double bits(const struct tkv_coder *c)
{
    return 8 * (double)c->k_block_bytes / (LANES * DIM);
}

static void recorded_keys_are_coded_well(void **state)
{
    static const struct {
        const char *name;
        double most_bits, most;
    } cases[] = {{"tq4", 4.5, .0085}, {"tq3", 3.5, .035}, {"tq2", 2.5, .135}};
    float *q = read_halves("moby.q.f16", (size_t)N_LAYERS * N_Q_HEADS * N_TOKENS * DIM);
    float *k = read_halves("moby.k.f16", (size_t)N_LAYERS * N_KV_HEADS * N_TOKENS * DIM);

    (void)state;
    if (!q || !k) {
        free(q);
        free(k);
        skip();
    }
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct tkv_coder c, paper;
        char name[16];
        double own, frozen, none, plain;

        snprintf(name, sizeof(name), "%s-paper", cases[i].name);
        codec_aid_coder(&c, tkv_codec_by_name(cases[i].name), DIM);
        codec_aid_coder(&paper, tkv_codec_by_name(name), DIM);
        own = mean_divergence(&c, q, k, MEAN_BLOCK);
        frozen = mean_divergence(&c, q, k, MEAN_FROZEN);
        none = mean_divergence(&c, q, k, MEAN_NONE);
        plain = mean_divergence(&paper, q, k, MEAN_NONE);
        print_message("%s, %.3f bits: KL %.5f with block means, %.5f frozen, %.5f none; paper "
                      "%.5f\n",
                      cases[i].name, bits(&c), own, frozen, none, plain);
        assert_true(bits(&c) <= cases[i].most_bits);
        assert_true(own <= cases[i].most);
        assert_true(own < none && none < plain);
        assert_true(none < frozen); /* why evicting sessions have no means */
    }
    free(q);
    free(k);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(recorded_keys_are_coded_well),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
