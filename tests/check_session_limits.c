/* Sessions when things go wrong: bad numbers, bad values, no memory. Nothing changes then. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proto/errors.h"
#include "proto/limits.h"
#include "proto/shm_layout.h"
#include "store/session_priv.h"
#include "tests/emulated.h"
#include "tests/session_aid.h"

/* ---- configurations that must be refused, with the field named ----------------------------------- */

static void no_layers(struct aid *a)
{
    a->config.n_layers = 0;
}
static void too_many_layers(struct aid *a)
{
    a->config.n_layers = TRIKV_MAX_LAYERS + 1;
}
static void no_kv_heads(struct aid *a)
{
    a->shape.n_kv_heads = 0;
}
static void uneven_heads(struct aid *a)
{
    a->shape.n_kv_heads = 3;
}
static void no_q_heads(struct aid *a)
{
    a->shape.n_q_heads = 0;
}
static void wide_group(struct aid *a)
{
    a->shape = (struct tkv_shape){256, 1, 64, 64, 0};
}
static void odd_dim(struct aid *a)
{
    a->shape.head_dim_k = 63;
}
static void large_dim(struct aid *a)
{
    a->shape.head_dim_v = 2048;
}
static void small_dim(struct aid *a)
{
    a->shape.head_dim_v = 4;
}
static void nan_scale(struct aid *a)
{
    a->layers[1].attn.scale = NAN;
}
static void zero_scale(struct aid *a)
{
    a->layers[0].attn.scale = 0;
}
static void negative_softcap(struct aid *a)
{
    a->layers[0].attn.softcap = -1;
}
static void no_codec(struct aid *a)
{
    a->layers[0].codec_k = NULL;
}
static void qjl_values(struct aid *a)
{
    a->layers[1].codec_v = tkv_codec_by_name("tq4-qjl");
}
static void no_beta(struct aid *a)
{
    a->config.beta_tokens = 0;
}
static void huge_recent(struct aid *a)
{
    a->config.recent_tokens = UINT32_MAX;
}
static void huge_pinned(struct aid *a)
{
    a->config.pinned_tokens = 1u << 30;
}
static void small_budget(struct aid *a)
{
    a->layers[1].budget_tokens = 36;
}
static void no_stats(struct aid *a)
{
    a->layers[1].stats = NULL;
}
static void no_rope(struct aid *a)
{
    a->config.rope = NULL;
}
static void other_dim(struct aid *a)
{
    a->shape.head_dim_k = 32;
}
static void no_offsets(struct aid *a)
{
    a->config.tri.offset_max = 0;
}
static void union_of_budgets(struct aid *a)
{
    a->config.eviction_mode = TKV_UNION;
    a->layers[1].budget_tokens++;
}

static void bad_configs_are_refused_by_name(void **state)
{
    static const struct {
        void (*spoil)(struct aid *a);
        const char *names;
    } cases[] = {
        {no_layers, "n_layers"},
        {too_many_layers, "n_layers"},
        {no_kv_heads, "n_kv_heads"},
        {uneven_heads, "n_kv_heads"},
        {no_q_heads, "n_q_heads"},
        {wide_group, "group"},
        {odd_dim, "head_dim_k"},
        {large_dim, "head_dim_v"},
        {small_dim, "head_dim_v"},
        {nan_scale, "layer 1: scale"},
        {zero_scale, "layer 0: scale"},
        {negative_softcap, "softcap"},
        {no_codec, "codec"},
        {qjl_values, "keys only"},
        {no_beta, "beta"},
        {huge_recent, "recent"},
        {huge_pinned, "pinned"},
        {small_budget, "layer 1: budget"},
        {no_stats, "statistics"},
        {no_rope, "rope"},
        {other_dim, "head_dim_k"},
        {no_offsets, "offset"},
        {union_of_budgets, "union"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct aid a;

        aid_init(&a, "tq4");
        aid_triattention(&a, 200, 3);
        cases[i].spoil(&a);
        if (aid_open(&a) == 0 || !strstr(a.why.text, cases[i].names))
            fail_msg("case %zu (%s): \"%s\"", i, cases[i].names, a.why.text);
        assert_null(a.session);
        aid_close(&a);
    }
}

/* ---- requests that must be refused ---------------------------------------------------------------- */

static void assert_unchanged(const struct aid *a, const struct tkv_session_stats *before)
{
    struct tkv_session_stats now;

    tkv_session_stats(a->session, &now);
    assert_memory_equal(before, &now, sizeof(now));
}

/* In requests that are taken at once, and that are taken in parts, whose last is bad. */
static void bad_values_change_nothing(void **state)
{
    enum { FIRST = 150, MOST = 800 };
    struct aid a;
    struct aid_tokens t;
    struct tkv_session_stats before;
    const float bad[] = {NAN, INFINITY, -INFINITY, 1e6f, -65520.0f};

    (void)state;
    aid_init(&a, "tq4");
    assert_int_equal(aid_open(&a), 0);
    t = aid_tokens(&a, MOST, 1);
    assert_int_equal(aid_step(&a, 0, &t, 0, FIRST), 0);
    tkv_session_stats(a.session, &before);
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        float *victims[] = {t.k + 200 * 128 + 64 + 5, t.v + (MOST - 1) * 128 + 127,
                            t.q + 150 * 256};
        static const char *const names[] = {"K[token 50][head 1][5]", "V[token 649][head 1][63]",
                                            "Q[token 0][head 0][0]"};

        for (size_t v = 0; v < 3; v++) {
            const float good = *victims[v];

            *victims[v] = bad[i];
            assert_int_equal(aid_step(&a, 0, &t, FIRST, MOST - FIRST), TRIKV_E_VALUE);
            if (!strstr(a.why.text, names[v]))
                fail_msg("want %s in \"%s\"", names[v], a.why.text);
            assert_unchanged(&a, &before);
            if (v == 0)
                assert_int_equal(aid_step(&a, 0, &t, FIRST, 60), TRIKV_E_VALUE);
            assert_unchanged(&a, &before);
            *victims[v] = good;
        }
    }
    assert_int_equal(aid_step(&a, 0, &t, FIRST, MOST - FIRST), 0);
    free(t.k);
    aid_close(&a);
}

static void bad_positions_change_nothing(void **state)
{
    static const int32_t cases[][3] = {{5, 6, 7},    {10, 10, 11},        {12, 11, 13},
                                       {-1, 20, 21}, {20, 21, INT32_MAX}, {9, 10, 11}};
    struct aid a;
    struct aid_tokens t;
    struct tkv_session_stats before;

    (void)state;
    aid_init(&a, "tq4");
    assert_int_equal(aid_open(&a), 0);
    t = aid_tokens(&a, 300, 1);
    assert_int_equal(aid_step(&a, 0, &t, 0, 10), 0);
    tkv_session_stats(a.session, &before);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        const struct tkv_step step = {.n_tokens = 3, .k = t.k, .v = t.v, .positions = cases[i]};

        assert_int_equal(tkv_session_append(a.session, &step, NULL, &a.why), TRIKV_E_POSITION);
        assert_non_null(strstr(a.why.text, "position of token"));
        assert_unchanged(&a, &before);
    }
    assert_int_equal(aid_step(&a, 7, &t, 0, 10), TRIKV_E_ARGUMENT);
    assert_int_equal(aid_step(&a, 0, &t, 0, 0), TRIKV_E_ARGUMENT);
    assert_unchanged(&a, &before);
    free(t.k);
    aid_close(&a);
}

/* Positions so far apart that one block cannot span them. */
static void far_positions_are_kept_exactly(void **state)
{
    enum { N = 300 };
    int32_t positions[N], kept[N];
    struct aid a;
    struct aid_tokens t;

    (void)state;
    aid_init(&a, "tq4");
    assert_int_equal(aid_open(&a), 0);
    t = aid_tokens(&a, N, 1);
    for (int32_t i = 0; i < N; i++)
        positions[i] = i * (i % 2 ? 40000 : 40001);
    for (uint32_t i = 0; i < N; i += 50) {
        const struct tkv_step step = {.n_tokens = 50,
                                      .k = t.k + (size_t)i * 128,
                                      .v = t.v + (size_t)i * 128,
                                      .positions = positions + i};

        assert_int_equal(tkv_session_append(a.session, &step, NULL, &a.why), 0);
    }
    assert_int_equal(aid_kept(&a, 0, 0, kept, N), N);
    assert_memory_equal(kept, positions, sizeof(kept));
    free(t.k);
    aid_close(&a);
}

/* ---- memory ------------------------------------------------------------------------------------------ */

/* Whatever the cap, a request is done wholly or not at all, and a session stays usable. */
static void the_cap_holds_at_every_size(void **state)
{
    uint32_t n_refused = 0, n_whole = 0;

    (void)state;
    for (size_t cap = 40 << 10; cap < (size_t)3 << 20; cap += (size_t)37 * emulated_step(5) << 10) {
        struct aid a;
        struct aid_tokens t;
        uint32_t done = 0;

        aid_init(&a, cap % 2 ? "tq3" : "f16");
        if (cap % 3)
            aid_triattention(&a, 300, 3);
        tkv_budget_init(&a.budget, cap);
        if (aid_open(&a)) {
            assert_int_equal(a.why.error, TRIKV_E_MEMORY_CAP);
            aid_close(&a);
            continue;
        }
        t = aid_tokens(&a, 1000, cap);
        while (done + 50 <= 1000) {
            struct tkv_session_stats before;
            int e;

            tkv_session_stats(a.session, &before);
            e = aid_step(&a, 0, &t, done, 50);
            if (e) {
                assert_int_equal(e, TRIKV_E_MEMORY_CAP);
                assert_int_equal(tkv_session_n_seen(a.session, 0), done);
                n_refused++;
                break;
            }
            done += 50;
            assert_int_equal(tkv_session_n_seen(a.session, 0), done);
            assert_true(atomic_load(&a.budget.peak_bytes) <= cap);
        }
        n_whole += done == 1000;
        free(t.k);
        aid_close(&a);
    }
    printf("%u caps refused, %u held all\n", n_refused, n_whole);
    assert_true(n_refused > 10 / emulated_step(5));
    assert_true(n_whole > 10 / emulated_step(5));
}

/* Resident bytes are all bytes: what the session says is what the budget holds. */
static void every_byte_is_reported(void **state)
{
    struct aid a;
    struct aid_tokens t;
    struct tkv_session_stats s;
    struct tkv_layer_stats l;
    double bits;

    (void)state;
    aid_init(&a, "tq4");
    aid_triattention(&a, 300, 3);
    assert_int_equal(aid_open(&a), 0);
    t = aid_tokens(&a, 1000, 5);
    for (uint32_t at = 0; at < 1000; at += 20) {
        assert_int_equal(aid_step(&a, 0, &t, at, 20), 0);
        tkv_session_stats(a.session, &s);
        assert_int_equal(s.resident_bytes, atomic_load(&a.budget.used_bytes));
    }
    tkv_session_layer_stats(a.session, 0, &l);
    assert_int_equal(l.n_kept, 2 * tkv_session_n_kept(a.session, 0));
    assert_int_equal(s.n_seen, 1000);
    assert_int_equal(s.fp16_bytes, 1000 * 2 * 128 * 2);
    assert_int_equal(s.n_evicted, 2 * (1000 - tkv_session_n_kept(a.session, 0)));
    assert_true(s.slack_bytes < 128 << 10); /* less than two slabs, after many rounds */
    bits = s.n_kept * 2 * 2 * 64 * (s.bits_k + s.bits_v); /* layers * heads * dim */
    assert_true(fabs(bits / 8 / (double)s.resident_bytes - 1) < 1e-9);
    free(t.k);
    aid_close(&a);
}

/* The bar of honest bits: 32k tokens, head_dim 128, everything counted. */
static void long_sessions_have_honest_bits(void **state)
{
    static const struct {
        const char *codec;
        double most;
    } cases[] = {{"int8", 8.55},  {"tq4", 4.4},  {"tq3.5", 3.95}, {"tq3", 3.4},
                 {"tq2.5", 2.95}, {"tq2", 2.45}, {"tq1", 1.45}};

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct aid a;
        struct aid_tokens t;
        struct tkv_session_stats s;

        aid_init(&a, cases[i].codec);
        a.shape = (struct tkv_shape){4, 1, 128, 128, 0};
        a.config.n_layers = 1;
        a.config.beta_tokens = a.config.recent_tokens = 128;
        assert_int_equal(aid_open(&a), 0);
        t = aid_tokens(&a, 1024, 5);
        for (uint32_t at = 0; at < 32; at++) {
            const struct tkv_step step = {.n_tokens = 1024, .k = t.k, .v = t.v};

            assert_int_equal(tkv_session_append(a.session, &step, NULL, &a.why), 0);
        }
        tkv_session_stats(a.session, &s);
        print_message("%s: %.3f bits per K value, %.3f per V value, %.1f %% slack\n",
                      cases[i].codec, s.bits_k, s.bits_v,
                      100.0 * (double)s.slack_bytes / (double)s.arena_bytes);
        if (!(s.bits_k <= cases[i].most && s.bits_v <= cases[i].most))
            fail_msg("%s: want at most %g", cases[i].codec, cases[i].most);
        free(t.k);
        aid_close(&a);
    }
}

static void the_block_table_is_sound(void **state)
{
    struct aid a;
    struct aid_tokens t;
    struct trikv_table_header *h;
    const struct trikv_table_entry *e;
    uint64_t n_tokens = 0;

    (void)state;
    aid_init(&a, "tq4");
    aid_triattention(&a, 300, 3);
    assert_int_equal(aid_open(&a), 0);
    t = aid_tokens(&a, 1000, 5);
    assert_int_equal(aid_step(&a, 1, &t, 0, 1000), 0);
    h = malloc(tkv_session_table_bytes(a.session));
    assert_non_null(h);
    tkv_session_table(a.session, h);
    assert_int_equal(h->magic, TRIKV_SHM_MAGIC);
    assert_int_equal(h->generation, tkv_session_generation(a.session));
    assert_int_equal(sizeof(*h) + h->n_entries * sizeof(*e), tkv_session_table_bytes(a.session));
    e = (const struct trikv_table_entry *)(h + 1);
    for (uint32_t i = 0; i < h->n_entries; i++, e++) {
        assert_int_equal(e->layer, 1);
        assert_int_equal(e->block_offset % 64, 0);
        assert_true(e->block_offset + e->block_bytes <= h->arena_bytes);
        assert_true(e->n_tokens >= 1 && e->n_tokens <= 64);
        n_tokens += e->n_tokens;
    }
    assert_int_equal(n_tokens, 2 * a.session->layers[1].heads[0].n_cold);
    free(h);
    free(t.k);
    aid_close(&a);
}

/* Layers that hold their rounds together may be at the same token at other positions: in one of them each
 * token then has a block of its own. */
static void coupled_layers_may_have_other_positions(void **state)
{
    enum { N = 400, APART = 70000 };

    (void)state;
    for (uint32_t far = 0; far < 2; far++) {
        struct aid a;
        struct aid_tokens t;

        aid_init(&a, "tq4");
        aid_triattention(&a, 150, 3);
        a.config.eviction_mode = far ? TKV_UNION : TKV_PER_HEAD;
        a.config.rollback_tokens = far ? 0 : 16;
        assert_int_equal(aid_open(&a), 0);
        t = aid_tokens(&a, N, 5);
        for (uint32_t i = 0; i < N; i++)
            for (uint32_t l = 0; l < 2; l++) {
                const int32_t position = (int32_t)(l == far ? i * APART : i);
                const struct tkv_step step = {
                    .layer = l,
                    .n_tokens = 1,
                    .k = t.k + (size_t)i * a.shape.n_kv_heads * a.shape.head_dim_k,
                    .v = t.v + (size_t)i * a.shape.n_kv_heads * a.shape.head_dim_v,
                    .positions = &position,
                };

                if (tkv_session_append(a.session, &step, NULL, &a.why))
                    fail_msg("%s", a.why.text);
            }
        assert_true(a.session->layers[far].n_rounds > 1);
        assert_int_equal(a.session->layers[far].heads[0].n_blocks,
                         a.session->layers[far].heads[0].n_cold);
        free(t.k);
        aid_close(&a);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bad_configs_are_refused_by_name),
        cmocka_unit_test(bad_values_change_nothing),
        cmocka_unit_test(bad_positions_change_nothing),
        cmocka_unit_test(far_positions_are_kept_exactly),
        cmocka_unit_test(coupled_layers_may_have_other_positions),
        cmocka_unit_test(the_cap_holds_at_every_size),
        cmocka_unit_test(every_byte_is_reported),
        cmocka_unit_test(long_sessions_have_honest_bits),
        cmocka_unit_test(the_block_table_is_sound),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
