/*
 * Small random models of each architecture as GGUF files, and the definition of their
 * forward pass in double, written for reading: the judge of tools/model.c.
 */
#ifndef TKV_TESTS_TINY_MODEL_H
#define TKV_TESTS_TINY_MODEL_H

#include "tests/gguf_aid.h"
#include "tools/gguf.h"

struct tiny_model {
    const char *architecture;
    uint32_t type; /* of the matrices, enum tkv_ggml_type */
    uint32_t n_layers, n_vocab, d_model, d_ff;
    uint32_t n_q_heads, n_kv_heads, head_dim_k, head_dim_v, rotary_dim;
    float theta, eps;
    bool tied;
    float rope_divisor; /* > 0: rope_freqs.weight with band f divided by 1 + divisor * f */
};

extern const struct tiny_model tiny_models[];
extern const size_t n_tiny_models;

/* Everything but the tokenizer goes to g, weights drawn with this seed. */
void tiny_model_put(struct gguf_aid *g, const struct tiny_model *m, uint64_t seed);

/* logits[n][n_vocab] of ids[n] by the definition, from the file's own tensors. */
void tiny_model_forward(const struct tiny_model *m, const struct tkv_gguf *g, const int32_t *ids,
                        size_t n, double *logits);

#endif /* TKV_TESTS_TINY_MODEL_H */
