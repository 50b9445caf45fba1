/*
 * What a TriAttention round on codes keeps of keys recorded from a small model, beside what the
 * formulas keep of the exact keys: the part of the kept set that both have. Statistics are those of
 * the first half of the recorded queries. Halves show what norm terms of a byte change by
 * themselves. The recordings are reference data: without them nothing is checked.
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

#include "core/calibration.h"
#include "core/half.h"
#include "core/select.h"
#include "core/triattention.h"
#include "store/session_priv.h"
#include "tests/session_aid.h"
#include "tests/tri_queries.h"

enum { N_LAYERS = 5, N_Q_HEADS = 8, N_KV_HEADS = 4, GROUP = 2, N_TOKENS = 2048, DIM = 64 };
enum { N_BANDS = DIM / 2, PINNED = 4, RECENT = 32, N_CANDIDATES = N_TOKENS - PINNED - RECENT };

static float *read_halves(const char *name, size_t n)
{
    const char *shared = getenv("TRIKV_SHARED");
    char path[512];
    uint16_t *halves = malloc(n * sizeof(*halves));
    float *x = malloc(n * sizeof(*x));
    bool whole;
    FILE *f;

    assert_non_null(halves);
    assert_non_null(x);
    snprintf(path, sizeof(path), "%s/models/kv/%s", shared ? shared : "../shared", name);
    f = fopen(path, "rb");
    whole = f && fread(halves, sizeof(*halves), n, f) == n;
    for (size_t i = 0; whole && i < n; i++)
        x[i] = tkv_f16_to_f32(halves[i]);
    if (f)
        fclose(f);
    free(halves);
    if (whole)
        return x;
    print_message("skipped: no recordings at %s\n", path);
    free(x);
    return NULL;
}

/* stats[N_Q_HEADS][3][N_BANDS] of the queries [N_Q_HEADS][N_TOKENS][DIM] of a layer. */
static void calibrate(const struct tkv_rope *rope, const float *q, float *stats)
{
    static double sums[N_Q_HEADS * 3 * N_BANDS];

    memset(sums, 0, sizeof(sums));
    for (size_t h = 0; h < N_Q_HEADS; h++) {
        for (size_t t = 0; t < N_TOKENS / 2; t++) {
            float cs[DIM], plain[DIM];

            tkv_rope_angles(rope, (int64_t)t, cs);
            tkv_rope_turn_back(rope, cs, q + (h * N_TOKENS + t) * DIM, plain);
            tkv_calibration_add(rope, plain, DIM, 1, sums + h * 3 * N_BANDS);
        }
    }
    tkv_calibration_mean(sums, N_Q_HEADS, N_BANDS, N_TOKENS / 2, stats);
}

/* What the formulas keep of a head's candidates k[N_CANDIDATES][DIM]: kept[n_keep], ascending. */
static void keep_exactly(const struct aid *a, size_t kv_head, const float *k, uint32_t n_keep,
                         uint32_t *kept)
{
    static float row[N_CANDIDATES], best[N_CANDIDATES];
    static uint32_t scratch[N_CANDIDATES];

    for (size_t i = 0; i < N_CANDIDATES; i++)
        best[i] = -INFINITY;
    for (size_t g = 0; g < GROUP; g++) {
        const float *s = a->stats + (kv_head * GROUP + g) * 3 * N_BANDS;
        const struct tkv_tri_stats stats = {s, s + N_BANDS, s + 2 * (size_t)N_BANDS};
        float w[DIM], u[N_BANDS], norms[N_BANDS];

        tri_queries(a->session->fold, &a->rope, &stats, N_TOKENS, w);
        tkv_tri_norm_weights(a->session->fold, &a->rope, &stats, u);
        for (size_t i = 0; i < N_CANDIDATES; i++) {
            const float dot = a->kn.dot(w, k + i * DIM, DIM);

            tkv_band_norms(&a->rope, k + i * DIM, norms);
            row[i] = tkv_tri_score(a->session->fold, &dot, tkv_tri_norm_term(u, norms, N_BANDS));
        }
        tkv_tri_fold_row(&a->kn, best, row, N_CANDIDATES, true);
    }
    assert_int_equal(tkv_select_top(&a->kn, best, N_CANDIDATES, n_keep, kept, scratch), n_keep);
}

static double overlap(const uint32_t *exact, uint32_t n_keep, const int32_t *positions)
{
    uint32_t n_both = 0, at = 0;

    for (uint32_t i = 0; i < n_keep; i++) {
        const int32_t want = (int32_t)exact[i] + PINNED;

        while (at < n_keep && positions[at] < want)
            at++;
        n_both += at < n_keep && positions[at] == want;
    }
    return (double)n_both / n_keep;
}

/* Append a layer's tokens, from [head][token] to [token][head], and hold one round. */
static void feed(struct aid *a, const float *k, uint32_t budget)
{
    float *rows = malloc((size_t)N_TOKENS * N_KV_HEADS * DIM * sizeof(*rows));
    const struct tkv_step step = {.n_tokens = N_TOKENS, .k = rows, .v = rows};

    assert_non_null(rows);
    for (size_t h = 0; h < N_KV_HEADS; h++)
        for (size_t t = 0; t < N_TOKENS; t++)
            memcpy(rows + (t * N_KV_HEADS + h) * DIM, k + (h * N_TOKENS + t) * DIM,
                   DIM * sizeof(*rows));
    assert_int_equal(tkv_session_append(a->session, &step, NULL, &a->why), 0);
    assert_int_equal(tkv_session_set_budget(a->session, budget, &a->why), 0);
    assert_int_equal(tkv_session_round(a->session, NULL, &a->why), 0);
    free(rows);
}

/* The mean over the KV heads of a layer, and the least. */
static double layer_overlap(const char *codec, const float *q, const float *k, uint32_t budget,
                            double *least)
{
    static uint32_t exact[N_TOKENS];
    static int32_t positions[N_TOKENS];
    const uint32_t n_keep = budget - PINNED - RECENT;
    double sum = 0;
    struct aid a;

    aid_init(&a, codec);
    a.shape = (struct tkv_shape){N_Q_HEADS, N_KV_HEADS, DIM, DIM, 0};
    a.config.n_layers = 1;
    a.config.recent_tokens = RECENT;
    a.config.pinned_tokens = PINNED;
    aid_triattention(&a, N_TOKENS, 1);
    calibrate(&a.rope, q, a.stats);
    assert_int_equal(aid_open(&a), 0);
    feed(&a, k, budget);
    for (uint32_t h = 0; h < N_KV_HEADS; h++) {
        double part;

        keep_exactly(&a, h, k + ((size_t)h * N_TOKENS + PINNED) * DIM, n_keep, exact);
        assert_int_equal(aid_kept(&a, 0, h, positions, N_TOKENS), budget);
        part = overlap(exact, n_keep, positions + PINNED);
        *least = fmin(*least, part);
        sum += part / N_KV_HEADS;
    }
    aid_close(&a);
    return sum;
}

static void codes_keep_what_exact_keys_keep(void **state)
{
    static const struct {
        const char *codec;
        double least[2]; /* for half of the tokens, and for a quarter */
    } cases[] = {
        {"f16", {.98, .97}}, {"tq4", {.93, .93}}, {"tq3.5", {.94, .91}}, {"tq3", {.93, .89}}};
    float *q = read_halves("moby.q.f16", (size_t)N_LAYERS * N_Q_HEADS * N_TOKENS * DIM);
    float *k = read_halves("moby.k.f16", (size_t)N_LAYERS * N_KV_HEADS * N_TOKENS * DIM);
    const size_t per_layer = (size_t)N_TOKENS * DIM;

    (void)state;
    if (!q || !k) {
        free(q);
        free(k);
        skip();
    }
    for (size_t i = 0; i < 2 * sizeof(cases) / sizeof(cases[0]); i++) {
        const uint32_t budget = i % 2 ? N_TOKENS / 4 : N_TOKENS / 2;
        double sum = 0, least = 1;

        for (size_t l = 0; l < N_LAYERS; l++)
            sum += layer_overlap(cases[i / 2].codec, q + l * N_Q_HEADS * per_layer,
                                 k + l * N_KV_HEADS * per_layer, budget, &least) /
                   N_LAYERS;
        print_message(
            "%s, %u of %d tokens: %.4f of the kept set is that of exact keys, %.4f in the "
            "worst head\n",
            cases[i / 2].codec, budget, N_TOKENS, sum, least);
        assert_true(sum >= cases[i / 2].least[i % 2]);
    }
    free(q);
    free(k);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(codes_keep_what_exact_keys_keep),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
