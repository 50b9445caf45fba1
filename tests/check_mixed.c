/*
 * A model whose layers differ in everything they may differ in: heads, dimensions, codecs, windows,
 * sinks, softcap, methods, latents. Its sessions append, attend, hold rounds, fork, go back, are
 * mapped, read and closed in any order, and every query is judged by attention in double over what
 * the session has seen.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "client/map.h"
#include "core/cpu.h"
#include "core/half.h"
#include "proto/errors.h"
#include "store/session_priv.h"
#include "tests/naive.h"
#include "tests/rng.h"
#include "tests/session_aid.h"

enum { N_LAYERS = 8, N_TOKENS = 700, N_SESSIONS = 4, MAX_STEP = 150, ROLLBACK = 24 };

static const uint64_t seed = 1722;
static const float sinks[6] = {0.5f, -1, 2, 0, 1, -3};

/* error: of an output, against the largest of all outputs of a step. */
static const struct mixed {
    struct tkv_shape shape;
    const char *codec_k, *codec_v;
    struct tkv_attn_params attn;
    bool has_sinks;
    double error;
} layers[N_LAYERS] = {
    {{8, 2, 64, 64, 0}, "tq4", "tq4", {0.125f, 0, 0}, false, 0.25},
    {{3, 1, 80, 48, 0}, "tq3.5", "f16", {0.1f, 20, 0}, false, 0.4},
    {{4, 4, 16, 24, 0}, "f16", "f16", {0.3f, 0, 100}, true, 1e-5},
    {{6, 3, 96, 96, 0}, "f16", "f16", {0.1f, 0, 0}, true, 1e-5},
    {{4, 2, 64, 64, 0}, "tq4", "tq3", {0.125f, 0, 40}, false, 0.6},
    {{6, 2, 128, 32, 0}, "tq4-qjl", "tq4", {0.09f, 50, 300}, true, 0.6},
    {{6, 1, 80, 64, 16}, "f16", "tq4", {0.1f, 0, 0}, true, 1e-5},
    {{8, 1, 80, 64, 16}, "tq4", "f16", {0.1f, 0, 90}, false, 0.3},
};

/* Tokens of a layer that sessions append in their own order; of each the queries are the same. */
struct stream {
    float *k, *v, *q;
};

/* A session, and what it has seen: indices into the stream. */
struct seen {
    struct tkv_session *session;
    uint32_t token[N_TOKENS];
    uint32_t n;
};

struct world {
    struct tkv_budget budget;
    struct tkv_kernels kn;
    struct tkv_layer_config configs[N_LAYERS];
    struct tkv_session_config config;
    struct stream streams[N_LAYERS];
    struct rng rng;
    struct tkv_report why;
    float *k, *v, *q, *out, *lse, *other; /* of a step, or of all that a session has seen */
    int32_t positions[N_TOKENS];
};

/* ---- the world ---------------------------------------------------------------------------- */

static float *halves(struct rng *r, size_t n)
{
    float *x = malloc(n * sizeof(*x));

    assert_non_null(x);
    for (size_t i = 0; i < n; i++)
        x[i] = tkv_f16_to_f32(tkv_f32_to_f16(rng_gauss(r)));
    return x;
}

static float *floats(size_t n)
{
    float *x = calloc(n, sizeof(*x));

    assert_non_null(x);
    return x;
}

/* The values of latents are the latents. */
static void make_values(const struct tkv_shape *s, struct stream *t)
{
    for (size_t i = 0; s->rope_dim > 0 && i < N_TOKENS; i++)
        memcpy(t->v + i * s->head_dim_v, t->k + i * s->head_dim_k, s->head_dim_v * sizeof(float));
}

static void world_init(struct world *w, enum tkv_method method)
{
    const size_t row = 8 * 128; /* of any layer, at most */

    memset(w, 0, sizeof(*w));
    w->rng.state = seed + (uint64_t)method;
    tkv_budget_init(&w->budget, (size_t)256 << 20);
    tkv_kernels_init(&w->kn, tkv_cpu_flags(getenv("TRIKV_CPU_DISABLE")));
    for (uint32_t i = 0; i < N_LAYERS; i++) {
        const struct tkv_shape *s = &layers[i].shape;

        w->configs[i] = (struct tkv_layer_config){.shape = *s,
                                                  .attn = layers[i].attn,
                                                  .sinks = layers[i].has_sinks ? sinks : NULL,
                                                  .codec_k = tkv_codec_by_name(layers[i].codec_k),
                                                  .codec_v = tkv_codec_by_name(layers[i].codec_v),
                                                  .budget_tokens = 130 + 10 * i};
        w->streams[i].k = halves(&w->rng, (size_t)N_TOKENS * s->n_kv_heads * s->head_dim_k);
        w->streams[i].v = halves(&w->rng, (size_t)N_TOKENS * s->n_kv_heads * s->head_dim_v);
        w->streams[i].q = halves(&w->rng, (size_t)N_TOKENS * s->n_q_heads * s->head_dim_k);
        make_values(s, &w->streams[i]);
    }
    w->config = (struct tkv_session_config){.n_layers = N_LAYERS,
                                            .layers = w->configs,
                                            .method = method,
                                            .beta_tokens = 64,
                                            .recent_tokens = 30,
                                            .pinned_tokens = 4,
                                            .rollback_tokens = ROLLBACK};
    for (int32_t i = 0; i < N_TOKENS; i++)
        w->positions[i] = i;
    w->k = floats(N_TOKENS * row);
    w->v = floats(N_TOKENS * row);
    w->q = floats(MAX_STEP * row);
    w->out = floats(MAX_STEP * row);
    w->lse = floats(MAX_STEP * 8);
    w->other = floats(MAX_STEP * row);
}

static void world_deinit(struct world *w)
{
    for (uint32_t i = 0; i < N_LAYERS; i++) {
        free(w->streams[i].k);
        free(w->streams[i].v);
        free(w->streams[i].q);
    }
    free(w->k);
    free(w->v);
    free(w->q);
    free(w->out);
    free(w->lse);
    free(w->other);
    assert_int_equal(atomic_load(&w->budget.used_bytes), 0);
}

static void collect(float *to, const float *from, const uint32_t *token, uint32_t n, size_t row)
{
    for (uint32_t i = 0; i < n; i++)
        memcpy(to + i * row, from + token[i] * row, row * sizeof(*to));
}

/* ---- what is done with a session, layer by layer ------------------------------------------------ */

static struct tkv_step make_step(struct world *w, const struct seen *s, uint32_t layer,
                                 uint32_t first, uint32_t n)
{
    const struct tkv_shape *shape = &layers[layer].shape;

    collect(w->k, w->streams[layer].k, s->token + first, n,
            (size_t)shape->n_kv_heads * shape->head_dim_k);
    collect(w->v, w->streams[layer].v, s->token + first, n,
            (size_t)shape->n_kv_heads * shape->head_dim_v);
    collect(w->q, w->streams[layer].q, s->token + first, n,
            (size_t)shape->n_q_heads * shape->head_dim_k);
    return (struct tkv_step){.layer = layer,
                             .n_tokens = n,
                             .k = w->k,
                             .v = shape->rope_dim > 0 ? NULL : w->v,
                             .q = w->q,
                             .out = w->out,
                             .lse = w->lse};
}

/* Outputs of the tokens first .. first + n - 1, which are in w->out, as attention over all that was
 * seen has them. */
static void judge(struct world *w, const struct seen *s, uint32_t layer, uint32_t first, uint32_t n)
{
    const struct mixed *m = &layers[layer];
    const struct tkv_shape *shape = &m->shape;
    const struct naive naive = {.shape = *shape,
                                .scale = (double)m->attn.scale,
                                .softcap = (double)m->attn.softcap,
                                .window_tokens = m->attn.window_tokens,
                                .sinks = m->has_sinks ? sinks : NULL,
                                .n_keys = first + n,
                                .key_positions = w->positions,
                                .k = w->k,
                                .v = w->v};
    double want[128];
    double most = 0, worst = 0;

    collect(w->k, w->streams[layer].k, s->token, first + n,
            (size_t)shape->n_kv_heads * shape->head_dim_k);
    collect(w->v, w->streams[layer].v, s->token, first + n,
            (size_t)shape->n_kv_heads * shape->head_dim_v);
    for (uint32_t r = 0; r<n * shape->n_q_heads; r += n> 8 ? 13 : 1) {
        const uint32_t token = r / shape->n_q_heads, head = r % shape->n_q_heads;

        naive_attend(&naive, head, (int32_t)(first + token), w->q + (size_t)r * shape->head_dim_k,
                     want);
        for (uint32_t i = 0; i < shape->head_dim_v; i++) {
            most = fmax(most, fabs(want[i]));
            worst = naive_worse(worst, want[i] - (double)w->out[(size_t)r * shape->head_dim_v + i]);
        }
    }
    if (!(worst <= m->error * most))
        fail_msg("layer %u, tokens %u + %u: error %g of %g", layer, first, n, worst, most);
}

static void append(struct world *w, struct seen *s)
{
    const uint32_t n = 1 + rng_below(&w->rng, rng_below(&w->rng, 3) ? 6 : MAX_STEP);
    const bool apart = n <= 20 && rng_below(&w->rng, 2);

    if (s->n + n > N_TOKENS)
        return;
    for (uint32_t i = 0; i < n; i++)
        s->token[s->n + i] = rng_below(&w->rng, N_TOKENS);
    for (uint32_t layer = 0; layer < N_LAYERS; layer++) {
        struct tkv_step t = make_step(w, s, layer, s->n, n);
        int e;

        if (apart)
            e = tkv_session_append(s->session, &t, NULL, &w->why);
        else
            e = tkv_session_append_attend(s->session, &t, NULL, &w->why);
        t.positions = w->positions + s->n;
        if (!e && apart)
            e = tkv_session_attend(s->session, &t, NULL, &w->why);
        if (e)
            fail_msg("layer %u: %s", layer, w->why.text);
        if (!tkv_layer_evicts(&s->session->layers[layer]))
            judge(w, s, layer, s->n, n);
    }
    s->n += n;
}

static void go_back(struct world *w, struct seen *s, uint32_t *n_done)
{
    const uint32_t n = 1 + rng_below(&w->rng, ROLLBACK);
    const int e = n <= s->n ? tkv_session_truncate(s->session, n, &w->why) : TRIKV_E_STATE;

    assert_true(e == 0 || e == TRIKV_E_STATE);
    if (e == 0) {
        s->n -= n;
        ++*n_done;
    }
}

/* What a KV head keeps are tokens that were seen, to the bit where nothing is coded. */
static void read_back(struct world *w, const struct seen *s, uint32_t layer)
{
    const struct tkv_shape *shape = &layers[layer].shape;
    const bool exact = strcmp(layers[layer].codec_k, "f16") == 0;
    struct tkv_read r = {.layer = layer,
                         .kv_head = rng_below(&w->rng, shape->n_kv_heads),
                         .n_heads = 1,
                         .dtype = TKV_F32};
    struct tkv_read_bytes bytes;
    int32_t positions[N_TOKENS];

    r.n_tokens = (uint32_t)tkv_session_head_kept(s->session, layer, r.kv_head);
    if (tkv_session_read_check(s->session, &r, &bytes, &w->why))
        fail_msg("layer %u: %s", layer, w->why.text);
    r.positions = positions;
    r.k = w->k;
    r.v = w->v;
    tkv_session_read(s->session, &r);
    for (uint32_t i = 0; i < r.n_tokens; i++) {
        assert_true(positions[i] < (int32_t)s->n && (i == 0 || positions[i] > positions[i - 1]));
        if (exact)
            assert_memory_equal(
                w->k + (size_t)i * shape->head_dim_k,
                w->streams[layer].k +
                    ((size_t)s->token[positions[i]] * shape->n_kv_heads + r.kv_head) *
                        shape->head_dim_k,
                shape->head_dim_k * sizeof(float));
    }
}

/* Another process would get the same bits from the same bytes. */
static void map_and_look(struct world *w, const struct seen *s)
{
    struct tkv_session *pinned = NULL;
    struct trikv_map m = {.kn = w->kn};
    void *payload;

    if (tkv_session_fork(&pinned, s->session, &w->why) || tkv_session_pin(pinned, 1, &w->why))
        fail_msg("%s", w->why.text);
    payload = malloc(tkv_session_map_bytes(pinned));
    assert_non_null(payload);
    tkv_session_map(pinned, payload);
    m.base = tkv_arena_at(pinned->arena, (struct tkv_block_id){0});
    m.arena_bytes = tkv_arena_capacity_bytes(pinned->arena);
    assert_null(tkv_map_read(&m, payload, tkv_session_map_bytes(pinned)));
    for (uint32_t layer = 0; layer < N_LAYERS; layer++) {
        const struct tkv_shape *shape = &layers[layer].shape;
        struct tkv_step t = make_step(w, s, layer, s->n - 3, 3);
        const struct tkv_queries q = {
            .n_tokens = 3, .positions = w->positions + s->n - 3, .q = t.q, .out = w->other};
        void *memory =
            aligned_alloc(64, tkv_align(tkv_cache_attend_bytes(&m.caches[layer], 3), 64));

        t.positions = q.positions;
        assert_non_null(memory);
        assert_int_equal(tkv_session_attend(s->session, &t, NULL, &w->why), 0);
        tkv_cache_attend(&m.caches[layer], &q, memory, NULL);
        assert_memory_equal(w->out, w->other,
                            (size_t)3 * shape->n_q_heads * shape->head_dim_v * sizeof(float));
        free(memory);
    }
    tkv_map_forget(&m);
    free(payload);
    tkv_session_destroy(&pinned);
}

static void check_stats(const struct seen *s)
{
    struct tkv_session_stats all;
    uint64_t n_kept = 0, n_heads = 0;

    for (uint32_t layer = 0; layer < N_LAYERS; layer++) {
        struct tkv_layer_stats l;

        tkv_session_layer_stats(s->session, layer, &l);
        assert_int_equal(l.n_seen, s->n);
        assert_true(l.n_kept <= (uint64_t)s->n * layers[layer].shape.n_kv_heads);
        n_kept += l.n_kept;
        n_heads += layers[layer].shape.n_kv_heads;
    }
    tkv_session_stats(s->session, &all);
    assert_int_equal(all.n_seen, s->n);
    assert_true(fabs(all.n_kept * (double)n_heads - (double)n_kept) < 1e-6 * (double)n_kept + 1e-9);
    assert_int_equal(all.n_evicted + n_kept, s->n * n_heads);
}

/* ---- many sessions ---------------------------------------------------------------------------- */

static void renew(struct world *w, struct seen *all, uint32_t i)
{
    const uint32_t from = rng_below(&w->rng, N_SESSIONS);
    int e;

    tkv_session_destroy(&all[i].session);
    all[i].n = 0;
    if (all[from].session) {
        e = tkv_session_fork(&all[i].session, all[from].session, &w->why);
        all[i].n = all[from].n;
        memcpy(all[i].token, all[from].token, sizeof(all[i].token));
    } else {
        e = tkv_session_create(&all[i].session, &w->config, &w->budget, &w->kn, &w->why);
    }
    if (e)
        fail_msg("%s", w->why.text);
}

/* mixed: layers have methods of their own. */
static void live(enum tkv_method method, bool mixed, uint32_t n_turns)
{
    static struct seen all[N_SESSIONS];
    struct world w;
    uint32_t n_back = 0;

    memset(all, 0, sizeof(all));
    world_init(&w, method);
    for (uint32_t i = 0; mixed && i < N_LAYERS; i++) {
        w.configs[i].has_method = true;
        w.configs[i].method = (enum tkv_method[]){
            TKV_METHOD_NONE, TKV_METHOD_STREAMING, TKV_METHOD_SNAPKV, TKV_METHOD_H2O,
            TKV_METHOD_NONE, TKV_METHOD_KEYDIFF,   TKV_METHOD_H2O,    TKV_METHOD_NONE}[i];
    }
    renew(&w, all, 0);
    append(&w, &all[0]);
    assert_int_equal(tkv_session_resident_bytes(all[0].session), atomic_load(&w.budget.used_bytes));
    for (uint32_t turn = 0; turn < n_turns; turn++) {
        const uint32_t i = rng_below(&w.rng, N_SESSIONS), what = rng_below(&w.rng, 16);
        struct seen *s = &all[i];

        if (!s->session || what == 0)
            renew(&w, all, i);
        else if (what == 1)
            assert_int_equal(tkv_session_round(s->session, NULL, &w.why), 0);
        else if (what < 5)
            go_back(&w, s, &n_back);
        else if (what == 5 && s->n > 2)
            map_and_look(&w, s);
        else if (what == 6)
            read_back(&w, s, rng_below(&w.rng, N_LAYERS));
        else
            append(&w, s);
        if (s->session)
            check_stats(s);
    }
    assert_true(n_back > 0);
    for (uint32_t i = 0; i < N_SESSIONS; i++)
        tkv_session_destroy(&all[(i * 3 + 1) % N_SESSIONS].session);
    world_deinit(&w);
}

static void layers_may_differ(void **state)
{
    (void)state;
    live(TKV_METHOD_NONE, false, 120);
}

static void layers_may_differ_and_evict(void **state)
{
    (void)state;
    live(TKV_METHOD_STREAMING, false, 50);
    live(TKV_METHOD_H2O, false, 30);
    live(TKV_METHOD_SNAPKV, false, 30);
    live(TKV_METHOD_KEYDIFF, false, 50);
}

static void methods_may_differ(void **state)
{
    (void)state;
    live(TKV_METHOD_STREAMING, true, 90);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(layers_may_differ),
        cmocka_unit_test(layers_may_differ_and_evict),
        cmocka_unit_test(methods_may_differ),
    };

    print_message("seed %llu\n", (unsigned long long)seed);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
