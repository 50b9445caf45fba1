#include "bench/scene.h"

#include <math.h>
#include <stdlib.h>
#include <unistd.h>

enum { CHUNK_TOKENS = 512 };

const struct tkv_codec *tkv_scene_value_codec(const struct tkv_codec *keys)
{
    return keys->qjl ? tkv_codec_by_id(keys->id - TKV_CODEC_TQ2_QJL + TKV_CODEC_TQ2) : keys;
}

/* Statistics of queries that agree on a direction about as much as those of real models. */
static int make_stats(struct tkv_scene *s, struct tkv_reason *why)
{
    const size_t n_bands = s->size.head_dim / 2;
    const size_t n_heads = (size_t)s->size.n_layers * s->size.n_kv_heads * s->size.group;

    s->stats = malloc(n_heads * 3 * n_bands * sizeof(float));
    if (!s->stats)
        return tkv_reason_set(why, "out of memory for statistics");
    tkv_source_gauss(&s->source, s->stats, n_heads * 3 * n_bands);
    for (size_t h = 0; h < n_heads; h++)
        for (size_t f = 0; f < n_bands; f++) {
            float *mean = s->stats + h * 3 * n_bands + f;

            mean[2 * n_bands] =
                sqrtf(mean[0] * mean[0] + mean[n_bands] * mean[n_bands]) + fabsf(mean[2 * n_bands]);
        }
    return 0;
}

static void configure(struct tkv_scene *s, struct tkv_session_config *c,
                      struct tkv_layer_config *layers)
{
    const struct tkv_scene_size *z = &s->size;
    const struct tkv_codec *codec = tkv_codec_by_name(z->codec);
    const size_t layer_stats = (size_t)z->n_kv_heads * z->group * 3 * (z->head_dim / 2);

    for (uint32_t i = 0; i < z->n_layers; i++)
        layers[i] = (struct tkv_layer_config){
            .shape = {z->n_kv_heads * z->group, z->n_kv_heads, z->head_dim,
                      z->head_dim - z->rope_dim, z->rope_dim},
            .attn = {.scale = 1 / sqrtf((float)z->head_dim)},
            .codec_k = codec,
            .codec_v = tkv_scene_value_codec(codec),
            .budget_tokens = z->budget_tokens,
            .stats = s->stats ? s->stats + i * layer_stats : NULL,
        };
    *c = (struct tkv_session_config){.n_layers = z->n_layers,
                                     .layers = layers,
                                     .beta_tokens = CHUNK_TOKENS,
                                     .normalize_scores = true,
                                     .tri = {.offset_max = 65536}};
    if (z->budget_tokens) {
        c->method = TKV_METHOD_TRIATTENTION;
        c->beta_tokens = TKV_SCENE_BETA;
        c->recent_tokens = TKV_SCENE_RECENT;
        c->pinned_tokens = TKV_SCENE_PINNED;
        c->rope = &s->rope;
    }
}

static int open_session(struct tkv_scene *s, struct tkv_reason *why)
{
    const struct tkv_rope_params rope = {
        .head_dim = s->size.head_dim, .rotary_dim = s->size.head_dim, .theta = 1e6};
    struct tkv_layer_config *layers = calloc(s->size.n_layers, sizeof(*layers));
    struct tkv_session_config config;
    struct tkv_report report = {0};
    const char *wrong;
    int e;

    if (!layers)
        return tkv_reason_set(why, "out of memory for %u layers", s->size.n_layers);
    wrong = tkv_rope_init(&s->rope, &rope);
    if (wrong) {
        free(layers);
        return tkv_reason_set(why, "rope: %s", wrong);
    }
    configure(s, &config, layers);
    e = tkv_session_create(&s->session, &config, &s->budget, s->kn, &report);
    free(layers);
    return e ? tkv_reason_set(why, "session: %s", report.text) : 0;
}

/* The cap is there to give a clear error instead of a machine out of memory. */
static size_t cap_bytes(void)
{
    const long pages = sysconf(_SC_PHYS_PAGES);
    const long page_bytes = sysconf(_SC_PAGESIZE);

    return pages > 0 && page_bytes > 0 ? (size_t)pages / 4 * 3 * (size_t)page_bytes : 0;
}

static int fill(struct tkv_scene *s, struct tkv_reason *why)
{
    for (uint32_t layer = 0; layer < s->size.n_layers; layer++)
        for (uint64_t at = 0; at < s->size.n_tokens; at += CHUNK_TOKENS) {
            const uint64_t left = s->size.n_tokens - at;

            if (tkv_scene_append(s, layer, left < CHUNK_TOKENS ? (uint32_t)left : CHUNK_TOKENS,
                                 why))
                return -1;
        }
    return tkv_scene_round(s, why);
}

int tkv_scene_init(struct tkv_scene *s, const struct tkv_scene_size *size,
                   const struct tkv_machine *m, const struct tkv_kernels *kn, uint64_t seed,
                   struct tkv_reason *why)
{
    const size_t row = (size_t)size->n_kv_heads * size->head_dim;

    *s = (struct tkv_scene){.size = *size, .machine = m, .kn = kn, .source = {seed}};
    tkv_budget_init(&s->budget, cap_bytes());
    s->k = malloc(2 * CHUNK_TOKENS * row * sizeof(float));
    if (!s->k)
        return tkv_reason_set(why, "out of memory for inputs");
    s->v = s->k + CHUNK_TOKENS * row;
    if ((size->budget_tokens && make_stats(s, why)) || open_session(s, why) || fill(s, why)) {
        tkv_scene_deinit(s);
        return -1;
    }
    return 0;
}

void tkv_scene_deinit(struct tkv_scene *s)
{
    tkv_session_destroy(&s->session);
    free(s->k);
    free(s->stats);
    *s = (struct tkv_scene){0};
}

int tkv_scene_append(struct tkv_scene *s, uint32_t layer, uint32_t n, struct tkv_reason *why)
{
    const struct tkv_step step = {.layer = layer, .n_tokens = n, .k = s->k, .v = s->v};
    const size_t n_values = (size_t)n * s->size.n_kv_heads * s->size.head_dim;
    struct tkv_report report = {0};

    tkv_source_gauss(&s->source, s->k, n_values);
    tkv_source_gauss(&s->source, s->v, n_values);
    if (tkv_session_append(s->session, &step, s->machine->exec, &report))
        return tkv_reason_set(why, "append to layer %u: %s", layer, report.text);
    return 0;
}

int tkv_scene_attend(struct tkv_scene *s, uint32_t layer, const float *q, float *out,
                     struct tkv_reason *why)
{
    const int32_t position = (int32_t)tkv_session_n_seen(s->session, layer) - 1;
    const struct tkv_step step = {
        .layer = layer, .n_tokens = 1, .positions = &position, .q = q, .out = out};
    struct tkv_report report = {0};

    if (tkv_session_attend(s->session, &step, s->machine->exec, &report))
        return tkv_reason_set(why, "attend to layer %u: %s", layer, report.text);
    return 0;
}

int tkv_scene_round(struct tkv_scene *s, struct tkv_reason *why)
{
    struct tkv_report report = {0};

    if (tkv_session_round(s->session, s->machine->exec, &report))
        return tkv_reason_set(why, "round: %s", report.text);
    return 0;
}

int tkv_scene_budget(struct tkv_scene *s, uint32_t budget_tokens, struct tkv_reason *why)
{
    struct tkv_report report = {0};

    if (tkv_session_set_budget(s->session, budget_tokens, &report))
        return tkv_reason_set(why, "budget: %s", report.text);
    return 0;
}

size_t tkv_scene_code_bytes(const struct tkv_scene *s, uint32_t layer)
{
    struct tkv_layer_stats l;

    tkv_session_layer_stats(s->session, layer, &l);
    return (size_t)(l.cold_bytes_k + l.cold_bytes_v);
}
