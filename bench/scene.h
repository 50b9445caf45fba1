/* A session filled with random tokens, really encoded, and steps on it: what is measured. */
#ifndef TKV_BENCH_SCENE_H
#define TKV_BENCH_SCENE_H

#include "bench/inputs.h"
#include "bench/machine.h"
#include "store/budget.h"
#include "store/session.h"

struct tkv_scene_size {
    uint32_t head_dim;
    uint32_t n_kv_heads;
    uint32_t group;
    uint32_t rope_dim; /* of latents, or 0 */
    uint32_t n_layers;
    uint64_t n_tokens;
    const char *codec;
    /* TriAttention with random statistics, keeping this many; 0: nothing is dropped. */
    uint32_t budget_tokens;
};

struct tkv_scene {
    struct tkv_scene_size size;
    const struct tkv_machine *machine;
    const struct tkv_kernels *kn;
    struct tkv_budget budget;
    struct tkv_rope rope;
    struct tkv_session *session;
    struct tkv_source source;
    float *stats;
    float *k, *v; /* [chunk][n_kv_heads][head_dim] */
};

/* In rounds of such a scene, tokens between rounds, and the newest and first tokens that stay. */
enum { TKV_SCENE_BETA = 128, TKV_SCENE_RECENT = 128, TKV_SCENE_PINNED = 4 };

/* The codec of values beside this one of keys: itself, or for keys-only codecs the plain one. */
const struct tkv_codec *tkv_scene_value_codec(const struct tkv_codec *keys);

/* kn: m->kernels or m->plain. Filled on all of the machine's threads. 0, or -1 with a text. */
int tkv_scene_init(struct tkv_scene *s, const struct tkv_scene_size *size,
                   const struct tkv_machine *m, const struct tkv_kernels *kn, uint64_t seed,
                   struct tkv_reason *why);
void tkv_scene_deinit(struct tkv_scene *s);

/* Append n fresh random tokens to a layer. */
int tkv_scene_append(struct tkv_scene *s, uint32_t layer, uint32_t n, struct tkv_reason *why);

/* Attention of one query token q[n_kv_heads * group][head_dim] over all tokens of a layer. */
int tkv_scene_attend(struct tkv_scene *s, uint32_t layer, const float *q, float *out,
                     struct tkv_reason *why);

/* Another budget from the next round on. */
int tkv_scene_budget(struct tkv_scene *s, uint32_t budget_tokens, struct tkv_reason *why);

/* A round in every layer. */
int tkv_scene_round(struct tkv_scene *s, struct tkv_reason *why);

/* Bytes of codes that attention on a layer reads. */
size_t tkv_scene_code_bytes(const struct tkv_scene *s, uint32_t layer);

#endif /* TKV_BENCH_SCENE_H */
