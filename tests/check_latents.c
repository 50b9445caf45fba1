/*
 * Layers of latents (MLA) as DeepSeek has them: one KV head of 512 + 64 dimensions, 16 to 128 query heads, the
 * value a view of the key. Judged by attention in double; in the store, and from a client through
 * the daemon.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "core/half.h"
#include "store/session_priv.h"
#include "tests/emulated.h"
#include "tests/naive.h"
#include "tests/service.h"
#include "tests/session_aid.h"

enum { LATENT = 512, ROPE = 64, DIM = LATENT + ROPE, N = 250, MAX_HEADS = 128 };

static const float scale = 0.0721687836f; /* 1 / sqrt(192): of the model before absorption */

/* A session of one layer, and tokens whose values are the first of their keys. */
struct scene {
    struct aid a;
    struct aid_tokens t;
    float *values; /* [N][LATENT] */
    int32_t positions[N];
};

static void scene_open(struct scene *s, const char *codec, uint32_t n_heads, enum tkv_method method)
{
    aid_init(&s->a, codec);
    s->a.shape = (struct tkv_shape){n_heads, 1, DIM, LATENT, ROPE};
    s->a.config.n_layers = 1;
    s->a.config.method = method;
    s->a.config.rollback_tokens = 20;
    s->a.layers[0].attn.scale = scale;
    s->a.layers[0].budget_tokens = 150;
    if (aid_open(&s->a))
        fail_msg("%s", s->a.why.text);
    s->t = aid_tokens(&s->a, N, 31);
    s->values = calloc(N, LATENT * sizeof(float));
    assert_non_null(s->values);
    for (size_t i = 0; i < (size_t)N * DIM; i++)
        s->t.k[i] = tkv_f16_to_f32(tkv_f32_to_f16(s->t.k[i]));
    for (int32_t i = 0; i < N; i++) {
        memcpy(s->values + i * LATENT, s->t.k + i * DIM, LATENT * sizeof(float));
        s->positions[i] = i;
    }
}

static void scene_close(struct scene *s)
{
    free(s->values);
    free(s->t.k);
    aid_close(&s->a);
}

static struct tkv_step make_step(const struct scene *s, uint32_t first, uint32_t n)
{
    const size_t q = (size_t)first * s->a.shape.n_q_heads;

    return (struct tkv_step){.n_tokens = n,
                             .positions = s->positions + first,
                             .k = s->t.k + (size_t)first * DIM,
                             .q = s->t.q + q * DIM,
                             .out = s->t.out + q * LATENT,
                             .lse = s->t.lse + q};
}

static void step(struct scene *s, uint32_t first, uint32_t n)
{
    const struct tkv_step t = make_step(s, first, n);

    if (tkv_session_append_attend(s->a.session, &t, NULL, &s->a.why))
        fail_msg("%u + %u: %s", first, n, s->a.why.text);
}

/* Relative error of a token's outputs, of some heads. */
static double token_error(const struct scene *s, uint32_t token, double *lse_error)
{
    const struct naive n = {.shape = s->a.shape,
                            .scale = (double)scale,
                            .n_keys = N,
                            .key_positions = s->positions,
                            .k = s->t.k,
                            .v = s->values};
    double want[LATENT], error = 0, norm = 0;

    for (uint32_t h = 0; h < s->a.shape.n_q_heads; h += 5) {
        const size_t row = (size_t)token * s->a.shape.n_q_heads + h;
        const double lse = naive_attend(&n, h, s->positions[token], s->t.q + row * DIM, want);

        *lse_error = naive_worse(*lse_error, lse - (double)s->t.lse[row]);
        for (uint32_t i = 0; i < LATENT; i++) {
            const double d = want[i] - (double)s->t.out[row * LATENT + i];

            error += d * d;
            norm += want[i] * want[i];
        }
    }
    return sqrt(error / norm);
}

static void latents_are_keys_and_values(void **state)
{
    static const struct {
        const char *codec;
        uint32_t n_heads, step;
        double least, most; /* of the mean error */
    } cases[] = {
        {"f16", 16, 1, 0, 1e-5},
        {"f16", 128, 70, 0, 1e-5},
        {"int8", 16, 1, 0, 0.03},
        {"tq4", 16, 1, 0.02, 0.2},
        {"tq3", 16, 33, 0.05, 0.35},
        {"tq2", 64, 3, 0.1, 0.6},
        {"tq4-paper", 128, 130, 0.02, 0.3},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i += emulated_step(2)) {
        struct scene s;
        double sum = 0, lse = 0;
        uint32_t n = 0;

        scene_open(&s, cases[i].codec, cases[i].n_heads, TKV_METHOD_NONE);
        for (uint32_t at = 0; at < N; at += cases[i].step)
            step(&s, at, N - at < cases[i].step ? N - at : cases[i].step);
        for (uint32_t token = 0; token < N; token += 57, n++)
            sum += token_error(&s, token, &lse);
        if (!(sum / n >= cases[i].least && sum / n <= cases[i].most && lse < 1))
            fail_msg("%s, %u heads: error %g, lse %g", cases[i].codec, cases[i].n_heads, sum / n,
                     lse);
        scene_close(&s);
    }
}

/* A value is what its key's latent is, to the bit, and the rotary part is what came. */
static void the_value_is_the_latent(void **state)
{
    struct tkv_read r = {.n_heads = 1, .n_tokens = N, .dtype = TKV_F32};
    struct tkv_read_bytes bytes;
    struct tkv_layer_stats stats;
    struct tkv_session_stats all;
    int32_t positions[N];
    float *k, *v;
    struct scene s;

    (void)state;
    scene_open(&s, "tq4", 16, TKV_METHOD_NONE);
    step(&s, 0, N);
    assert_int_equal(tkv_session_read_check(s.a.session, &r, &bytes, &s.a.why), 0);
    assert_int_equal(bytes.v, N * LATENT * sizeof(float));
    r.positions = positions;
    r.k = k = malloc(bytes.k);
    r.v = v = malloc(bytes.v);
    tkv_session_read(s.a.session, &r);
    for (size_t t = 0; t < N; t++) {
        assert_memory_equal(v + t * LATENT, k + t * DIM, LATENT * sizeof(float));
        assert_memory_equal(k + t * DIM + LATENT, s.t.k + t * DIM + LATENT, ROPE * sizeof(float));
    }
    tkv_session_layer_stats(s.a.session, 0, &stats);
    assert_int_equal(stats.cold_bytes_v, 0);
    /* 4 bits of each latent coordinate, halves of the others, a scale and a part of the mean. */
    assert_in_range(stats.cold_bytes_k / stats.n_blocks / 64, LATENT / 2 + ROPE * 2 + 2,
                    LATENT / 2 + ROPE * 2 + 8);
    assert_string_equal(stats.codec_v, "view of K");
    tkv_session_stats(s.a.session, &all);
    assert_int_equal(all.fp16_bytes, N * DIM * 2);
    assert_true(all.bits_v <= 0 && all.bits_k > 4);
    assert_true(fabs(all.bits_k * N * DIM / 8 - (double)all.resident_bytes) < 1);
    free(k);
    free(v);
    scene_close(&s);
}

/* Rounds choose among latents; survivors are bit for bit what they were. */
static void rounds_keep_latents(void **state)
{
    static const enum tkv_method methods[] = {TKV_METHOD_STREAMING, TKV_METHOD_H2O,
                                              TKV_METHOD_SNAPKV, TKV_METHOD_KEYDIFF};

    (void)state;
    for (size_t i = 0; i < sizeof(methods) / sizeof(methods[0]); i += emulated_step(2)) {
        struct scene s;
        struct tkv_read r = {.n_heads = 1, .dtype = TKV_F32};
        struct tkv_read_bytes bytes;
        int32_t positions[N];
        float *k, *v;

        scene_open(&s, "f16", 16, methods[i]);
        for (uint32_t at = 0; at < N; at += 10)
            step(&s, at, 10);
        assert_int_equal(tkv_session_round(s.a.session, NULL, &s.a.why), 0);
        r.n_tokens = tkv_session_n_kept(s.a.session, 0);
        assert_int_equal(r.n_tokens, 150);
        assert_int_equal(tkv_session_read_check(s.a.session, &r, &bytes, &s.a.why), 0);
        r.positions = positions;
        r.k = k = malloc(bytes.k);
        r.v = v = malloc(bytes.v);
        tkv_session_read(s.a.session, &r);
        for (uint32_t t = 0; t < r.n_tokens; t++)
            assert_memory_equal(k + t * DIM, s.t.k + positions[t] * DIM, DIM * sizeof(float));
        free(k);
        free(v);
        scene_close(&s);
    }
}

static void refuse(struct aid *a, const char *want)
{
    assert_int_equal(aid_open(a), TRIKV_E_ARGUMENT);
    if (!strstr(a->why.text, want))
        fail_msg("want \"%s\", got \"%s\"", want, a->why.text);
    aid_close(a);
}

static void latents(struct aid *a)
{
    aid_init(a, "tq4");
    a->shape = (struct tkv_shape){16, 1, DIM, LATENT, ROPE};
    a->layers[0].budget_tokens = a->layers[1].budget_tokens = 150;
}

static void what_latents_cannot_be(void **state)
{
    struct aid a;

    (void)state;
    latents(&a);
    a.shape.n_kv_heads = 2;
    refuse(&a, "layer 0: latents have 1 KV head");
    latents(&a);
    a.shape.head_dim_v = 500;
    refuse(&a, "layer 0: latents of head_dim_k 576 and rope_dim 64");
    latents(&a);
    a.shape.rope_dim = UINT32_MAX - 1;
    refuse(&a, "layer 0: latents of head_dim_k 576");
    latents(&a);
    a.layers[1].codec_k = tkv_codec_by_name("tq4-qjl");
    refuse(&a, "layer 1: codec tq4-qjl is for keys only");
    latents(&a);
    a.config.method = TKV_METHOD_TRIATTENTION;
    refuse(&a, "layer 0: method triattention has no measure for latents");
    latents(&a);
    a.config.method = TKV_METHOD_DEFAULT;
    refuse(&a, "layer 0: method default has no measure for latents");
    latents(&a);
    a.layers[1].has_method = true;
    a.layers[1].method = TKV_METHOD_TRIATTENTION;
    refuse(&a, "layer 1: method triattention has no measure for latents");
    latents(&a);
    a.shape.n_q_heads = 129;
    refuse(&a, "n_kv_heads is 1");
}

/* ---- through the daemon ------------------------------------------------------------------------- */

static const struct trikv_layer mla = {.n_q_heads = 16,
                                       .n_kv_heads = 1,
                                       .head_dim_k = DIM,
                                       .head_dim_v = LATENT,
                                       .scale = 0.0721687836f,
                                       .rope_dim = ROPE};

static struct trikv_session *open_mla(struct trikv_client *c, const struct trikv_layer *layer)
{
    struct trikv_session_options o = TRIKV_SESSION_OPTIONS_INIT;
    struct trikv_session *s = NULL;

    o.n_layers = 2;
    o.same_layers = 1;
    o.layers = layer;
    o.codec_k = "tq3";
    o.method = "none";
    o.recent_tokens = 32;
    return trikv_open(c, &o, &s) ? NULL : s;
}

static struct trikv_step client_step(const struct scene *s, uint32_t first, uint32_t n)
{
    const struct tkv_step t = make_step(s, first, n);

    return (struct trikv_step){.size = sizeof(struct trikv_step),
                               .n_tokens = n,
                               .dtype = TRIKV_F32,
                               .positions = t.positions,
                               .k = t.k,
                               .q = t.q,
                               .out = t.out,
                               .lse = t.lse};
}

static void a_client_sends_no_values(void **state)
{
    static float here[3 * 16 * LATENT], local[3 * 16 * LATENT];
    struct trikv_client *c = service_connect(1 << 20), *other = service_connect(0);
    struct trikv_session *session = open_mla(c, &mla), *child;
    struct trikv_geometry g;
    struct trikv_map *map;
    struct trikv_step t;
    double lse = 0;
    struct scene s;

    (void)state;
    assert_non_null(session);
    scene_open(&s, "tq3", 16, TKV_METHOD_NONE); /* for its tokens */
    for (uint32_t at = 0; at < N; at += 50) {
        t = client_step(&s, at, 50);
        if (trikv_append_attend(session, &t))
            fail_msg("%s", trikv_last_error(c));
    }
    assert_true(token_error(&s, N - 1, &lse) < 0.35);
    assert_int_equal(trikv_fork_id(other, trikv_session_id(session), NULL, &child), 0);
    assert_int_equal(trikv_session_geometry(child, 1, &g), 0);
    assert_true(g.head_dim_k == DIM && g.head_dim_v == LATENT);
    assert_int_equal(trikv_map(other, trikv_session_id(session), &map), 0);
    t = client_step(&s, N - 3, 3);
    t.out = here;
    assert_int_equal(trikv_attend(child, &t), 0);
    t.out = local;
    if (trikv_attend_local(map, &t))
        fail_msg("%s", trikv_last_error(other));
    assert_memory_equal(here, local, sizeof(here));
    t.v = t.k;
    assert_int_equal(trikv_append(session, &t), TRIKV_E_ARGUMENT);
    assert_non_null(strstr(trikv_last_error(c), "v must be NULL"));
    trikv_disconnect(&other);
    trikv_disconnect(&c);
    scene_close(&s);
}

static void the_scale_is_to_be_said(void **state)
{
    struct trikv_client *c = service_connect(0);
    struct trikv_layer layer = mla;

    (void)state;
    layer.scale = 0;
    assert_null(open_mla(c, &layer));
    assert_non_null(strstr(trikv_last_error(c), "layer 0: scale is not said"));
    layer = mla;
    layer.rope_dim = 32;
    assert_null(open_mla(c, &layer));
    assert_non_null(strstr(trikv_last_error(c), "head_dim_v is 512"));
    trikv_disconnect(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(latents_are_keys_and_values), cmocka_unit_test(the_value_is_the_latent),
        cmocka_unit_test(rounds_keep_latents),         cmocka_unit_test(what_latents_cannot_be),
        cmocka_unit_test(a_client_sends_no_values),    cmocka_unit_test(the_scale_is_to_be_said),
    };

    return cmocka_run_group_tests(tests, service_start, service_stop);
}
