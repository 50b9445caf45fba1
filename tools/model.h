/*
 * A language model from a GGUF file: llama, qwen2 and qwen3. It computes everything
 * but attention, which is behind an interface so that it can live in a daemon.
 *
 * Not for two threads at once: a model owns the buffers of the chunk it works on.
 */
#ifndef TKV_TOOLS_MODEL_H
#define TKV_TOOLS_MODEL_H

#include "core/rope.h"
#include "core/types.h"
#include "tools/gguf.h"
#include "tools/linear.h"
#include "tools/reason.h"

/* One layer's queries, keys and values of a chunk, after RoPE. Views. */
struct tkv_attention_step {
    uint32_t layer;
    size_t n_tokens;
    const float *q;           /* [n_tokens][n_q_heads][head_dim_k] */
    const float *k;           /* [n_tokens][n_kv_heads][head_dim_k] */
    const float *v;           /* [n_tokens][n_kv_heads][head_dim_v] */
    const int32_t *positions; /* [n_tokens], ascending */
    float *out;               /* [n_tokens][n_q_heads][head_dim_v] */
};

/*
 * Append k and v to the cache of the layer and attend with q, each token up to and
 * including itself, logits scaled by 1 / sqrt(head_dim_k). 0, or -1 with a text.
 */
struct tkv_attention {
    int (*step)(void *ctx, const struct tkv_attention_step *step, struct tkv_reason *why);
    void *ctx;
};

/* Sees every layer's queries [n_tokens][n_q_heads][head_dim_k] after q_norm, before RoPE. */
struct tkv_query_hook {
    void (*see)(void *ctx, uint32_t layer, size_t n_tokens, const float *q);
    void *ctx;
};

struct tkv_model_config {
    char architecture[16];
    uint32_t n_layers;
    uint32_t n_vocab;
    uint32_t d_model;
    uint32_t d_ff;
    uint32_t context_tokens; /* trained for; 0: the file does not say */
    struct tkv_shape shape;  /* the same in all layers */
    float eps;
    struct tkv_rope_params rope_params;
    struct tkv_rope rope;
    bool rope_has_rule; /* rope_params give rope.inv_freq; false: the file's own divisors do */
    uint64_t fingerprint;
};

/* Vectors are NULL where the model has none. */
struct tkv_model_layer {
    const float *attn_norm, *ffn_norm, *q_norm, *k_norm;
    const float *q_bias, *k_bias, *v_bias;
    struct tkv_matrix q, k, v, o, gate, up, down;
};

/* Activations of a chunk, [chunk][...]. */
struct tkv_activations {
    float *memory;
    float *x, *h;           /* d_model: residual stream, normed input */
    float *q, *k, *v, *att; /* heads */
    float *gate, *up;       /* d_ff */
    float *cs;              /* 2 * n_bands: cosines, sines */
    int32_t *positions;
};

struct tkv_model {
    struct tkv_model_config config;
    struct tkv_math math;
    const struct tkv_exec *exec;
    struct tkv_matrix embedding, output;
    const float *output_norm;
    struct tkv_model_layer *layers;
    float *vectors; /* behind all norms and biases */
    size_t n_vector_floats, n_vector_room;
    size_t max_chunk_tokens;
    struct tkv_activations act;
    struct tkv_query_hook hook; /* see may be NULL */
};

/*
 * The file stays in use and must outlive the model, as must exec (NULL: one thread).
 * What the loader does not understand is refused by name. 0, or -1 with a text.
 */
int tkv_model_create(struct tkv_model **m, const struct tkv_gguf *g, size_t max_chunk_tokens,
                     const struct tkv_exec *exec, struct tkv_reason *why);
void tkv_model_destroy(struct tkv_model **m);

/*
 * Run n <= max_chunk_tokens tokens at positions first_position, ... through all layers.
 * The chunks of a sequence come in order; the cache is attention's. 0, or -1 with
 * a text, when a token id is out of range or attention fails.
 */
int tkv_model_forward(struct tkv_model *m, const int32_t *ids, size_t n, int32_t first_position,
                      const struct tkv_attention *attention, struct tkv_reason *why);

/* The final states [n][d_model] of the last chunk: a view until the next forward. */
const float *tkv_model_states(const struct tkv_model *m);

/* logits[n][n_vocab] of n final states. */
void tkv_model_logits(const struct tkv_model *m, const float *states, size_t n, float *logits);

/* RoPE of the model from the file's keys and rope_freqs.weight. Part of loading. */
int tkv_model_read_rope(struct tkv_model_config *c, const struct tkv_gguf *g,
                        struct tkv_reason *why);

/* What a file says of its model, without looking at the weights. 0, or -1 with a text. */
int tkv_model_read_config(struct tkv_model_config *c, const struct tkv_gguf *g,
                          struct tkv_reason *why);

/* Fills config, matrices and vectors of a zeroed model. Part of creating. */
int tkv_model_load(struct tkv_model *m, const struct tkv_gguf *g, struct tkv_reason *why);

#endif /* TKV_TOOLS_MODEL_H */
