#include "tests/scenes.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <stdlib.h>

#include "core/plan.h"

static const struct {
    enum tkv_method method;
    enum tkv_eviction_mode mode;
    const char *codec_k, *codec_v;
    uint32_t beta;
    uint32_t windows[2]; /* of layers 0 and 1 */
    enum tkv_allocator allocator;
    uint32_t n_probes;
    uint32_t rope_dim; /* of latents */
    uint32_t max_tokens;
    bool mixed; /* layer 1 has method h2o */
} scenes[N_SCENES] = {
    {.method = TKV_METHOD_NONE,
     .mode = TKV_PER_LAYER_PERHEAD,
     .codec_k = "tq4",
     .codec_v = "tq2.5",
     .beta = 64},
    {.method = TKV_METHOD_NONE,
     .mode = TKV_PER_LAYER_PERHEAD,
     .codec_k = "f16",
     .codec_v = "f16",
     .beta = 64},
    {.method = TKV_METHOD_NONE,
     .mode = TKV_PER_LAYER_PERHEAD,
     .codec_k = "tq4-qjl",
     .codec_v = "tq3-paper",
     .beta = 64},
    {.method = TKV_METHOD_TRIATTENTION,
     .mode = TKV_PER_LAYER_PERHEAD,
     .codec_k = "tq4",
     .codec_v = "tq4",
     .beta = 64},
    {.method = TKV_METHOD_TRIATTENTION,
     .mode = TKV_PER_LAYER_PERHEAD,
     .codec_k = "tq3-qjl",
     .codec_v = "tq3.5",
     .beta = 130},
    {.method = TKV_METHOD_TRIATTENTION,
     .mode = TKV_PER_HEAD,
     .codec_k = "tq3",
     .codec_v = "tq2",
     .beta = 64},
    {.method = TKV_METHOD_TRIATTENTION,
     .mode = TKV_UNION,
     .codec_k = "tq3.5-paper",
     .codec_v = "tq2.5-paper",
     .beta = 192},
    {.method = TKV_METHOD_TRIATTENTION,
     .mode = TKV_UNION,
     .codec_k = "f16",
     .codec_v = "tq1",
     .beta = 64},
    {.method = TKV_METHOD_STREAMING,
     .mode = TKV_PER_LAYER_PERHEAD,
     .codec_k = "tq2.5",
     .codec_v = "tq2",
     .beta = 64},
    {.method = TKV_METHOD_H2O,
     .mode = TKV_PER_LAYER_PERHEAD,
     .codec_k = "tq2",
     .codec_v = "tq3",
     .beta = 64},
    {.method = TKV_METHOD_SNAPKV,
     .mode = TKV_PER_LAYER_PERHEAD,
     .codec_k = "tq2-paper",
     .codec_v = "tq4-paper",
     .beta = 128},
    {.method = TKV_METHOD_KEYDIFF,
     .mode = TKV_PER_LAYER_PERHEAD,
     .codec_k = "tq4",
     .codec_v = "f16",
     .beta = 64},
    {.method = TKV_METHOD_KEYDIFF,
     .mode = TKV_PER_LAYER_PERHEAD,
     .codec_k = "tq2-qjl",
     .codec_v = "tq4",
     .beta = 64},
    {.method = TKV_METHOD_DEFAULT,
     .codec_k = "tq4",
     .codec_v = "tq4",
     .beta = 64,
     .max_tokens = 1200},
    {.method = TKV_METHOD_DEFAULT,
     .codec_k = "tq4",
     .codec_v = "tq4",
     .beta = 64,
     .max_tokens = 150},
    {.method = TKV_METHOD_NONE,
     .codec_k = "tq4",
     .codec_v = "tq3",
     .beta = 64,
     .windows = {100, 0}},
    {.method = TKV_METHOD_TRIATTENTION,
     .codec_k = "tq4",
     .codec_v = "tq3",
     .beta = 64,
     .windows = {0, 100}},
    {.method = TKV_METHOD_STREAMING,
     .codec_k = "tq4",
     .codec_v = "tq3",
     .beta = 64,
     .windows = {300, 200}},
    {.method = TKV_METHOD_H2O, .codec_k = "tq4", .codec_v = "tq4", .beta = 64, .n_probes = 32},
    {.method = TKV_METHOD_KEYDIFF,
     .codec_k = "tq4",
     .codec_v = "tq4",
     .beta = 64,
     .allocator = TKV_ADAPTIVE,
     .n_probes = 8},
    {.method = TKV_METHOD_TRIATTENTION,
     .codec_k = "tq4",
     .codec_v = "tq4",
     .beta = 128,
     .allocator = TKV_CONCENTRATION},
    {.method = TKV_METHOD_SNAPKV,
     .codec_k = "tq3",
     .codec_v = "tq3",
     .beta = 64,
     .allocator = TKV_PYRAMID},
    {.method = TKV_METHOD_NONE, .codec_k = "tq4", .codec_v = "tq4", .beta = 64, .rope_dim = 16},
    {.method = TKV_METHOD_H2O, .codec_k = "tq3", .codec_v = "tq3", .beta = 64, .rope_dim = 16},
    {.method = TKV_METHOD_STREAMING, .codec_k = "f16", .codec_v = "tq4", .beta = 64, .mixed = true},
};

const char *scene_name(size_t scene)
{
    return tkv_method_names[scenes[scene].method];
}

/* A head that needs everything and one that lives on its window, by more or less. */
static void plan_errors(struct aid *a, float *errors)
{
    for (uint32_t i = 0; i < a->config.n_layers; i++) {
        a->layers[i].errors = errors + (size_t)i * a->shape.n_kv_heads * TKV_PLAN_ERRORS;
        for (uint32_t h = 0; h < a->shape.n_kv_heads; h++) {
            float *e = errors + ((size_t)i * a->shape.n_kv_heads + h) * TKV_PLAN_ERRORS;

            for (uint32_t t = 0; t < TKV_PLAN_TIERS; t++)
                e[t] = (h ? 1e-4f : 1.0f) / (float)(1u << 2 * t);
            for (uint32_t r = 0; r < TKV_PLAN_REACHES; r++)
                e[TKV_PLAN_TIERS + r] = (h ? 1e-2f * (float)i : 50.0f) / (float)(1u << 2 * r);
        }
    }
}

void scene_configure(struct aid *a, size_t scene, const struct tkv_shape *shape)
{
    aid_init(a, scenes[scene].codec_k);
    if (shape)
        a->shape = *shape;
    if (scenes[scene].rope_dim > 0) {
        a->shape.n_kv_heads = 1;
        a->shape.rope_dim = scenes[scene].rope_dim;
        a->shape.head_dim_k = a->shape.head_dim_v + a->shape.rope_dim;
    }
    for (uint32_t i = 0; i < AID_MAX_LAYERS; i++) {
        a->layers[i].codec_v = tkv_codec_by_name(scenes[scene].codec_v);
        a->layers[i].budget_tokens = 150;
    }
    if (scenes[scene].method == TKV_METHOD_TRIATTENTION)
        aid_triattention(a, 150, 3);
    a->config.method = scenes[scene].method;
    a->config.eviction_mode = scenes[scene].mode;
    a->config.beta_tokens = scenes[scene].beta;
    a->config.rollback_tokens = 16;
    a->config.allocator = scenes[scene].allocator;
    a->config.gate.n_probes = scenes[scene].n_probes;
    a->config.gate.surplus_tokens = 30;
    a->config.gate.limits = (struct tkv_gate_measure){0.1f, 0.1f, 0.05f};
    for (uint32_t i = 0; i < 2; i++)
        a->layers[i].attn.window_tokens = scenes[scene].windows[i];
    a->layers[1].has_method = scenes[scene].mixed;
    a->layers[1].method = TKV_METHOD_H2O;
    if (a->config.method != TKV_METHOD_DEFAULT)
        return;
    a->stats = calloc(AID_MAX_LAYERS * a->shape.n_kv_heads * TKV_PLAN_ERRORS, sizeof(float));
    assert_non_null(a->stats);
    plan_errors(a, a->stats);
    a->config.budget_bytes = 400000;
    a->config.max_tokens = scenes[scene].max_tokens;
}

void scene_open(struct aid *a, size_t scene)
{
    scene_configure(a, scene, NULL);
    if (aid_open(a))
        fail_msg("%s: %s", scene_name(scene), a->why.text);
}

void scene_most(struct aid *a)
{
    aid_init(a, "tq4");
    a->shape.head_dim_k += 16;
    a->shape.head_dim_v += 16;
}

void scene_close(struct aid *a)
{
    aid_close(a);
}

uint32_t scene_step(const struct aid *a)
{
    return a->config.eviction_mode == TKV_PER_LAYER_PERHEAD ? 37 : 1;
}

void scene_feed(struct aid *a, struct tkv_session *s, const struct aid_tokens *t, uint32_t first,
                uint32_t n)
{
    const uint32_t step = scene_step(a);

    a->session = s;
    for (uint32_t i = 0; i < n; i += step)
        for (uint32_t layer = 0; layer < a->config.n_layers; layer++)
            if (aid_step(a, layer, t, first + i, step < n - i ? step : n - i))
                fail_msg("%s", a->why.text);
}
