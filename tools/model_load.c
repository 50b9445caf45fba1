/*
 * Loading: configuration keys and tensors of a GGUF model. Each tensor is checked
 * for its shape, and every tensor of the file must have been used in the end, so that
 * a variant of an architecture that this code does not know cannot pass as one it does.
 */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/half.h"
#include "tools/model.h"

enum { NAME_BYTES = 96, MAX_LAYERS = 1024, MAX_WIDTH = 1 << 20 };

struct loader {
    struct tkv_model *m;
    const struct tkv_gguf *g;
    struct tkv_reason *why;
    bool *used; /* [n_tensors] */
};

static const char *key_of(const struct loader *l, const char *name, char *key)
{
    snprintf(key, NAME_BYTES, "%s.%s", l->m->config.architecture, name);
    return key;
}

static int number(const struct loader *l, const char *name, uint32_t max, uint32_t *out)
{
    char key[NAME_BYTES];

    if (tkv_gguf_u32(l->g, key_of(l, name, key), out, l->why))
        return -1;
    if (*out < 1 || *out > max)
        return tkv_reason_set(l->why, "key %s: %u, expected 1 to %u", key, *out, max);
    return 0;
}

/* A key that may be missing: then `otherwise` holds. */
static int number_or(const struct loader *l, const char *name, uint32_t otherwise, uint32_t *out)
{
    char key[NAME_BYTES];

    *out = otherwise;
    return tkv_gguf_find(l->g, key_of(l, name, key)) ? tkv_gguf_u32(l->g, key, out, l->why) : 0;
}

static int read_architecture(struct loader *l)
{
    static const char *const known[] = {"llama", "qwen2", "qwen3"};
    struct tkv_text name;

    if (tkv_gguf_text(l->g, "general.architecture", &name, l->why))
        return -1;
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
        if (tkv_text_is(name, known[i])) {
            strcpy(l->m->config.architecture, known[i]);
            return 0;
        }
    }
    return tkv_reason_set(l->why,
                          "key general.architecture: \"%.*s\", expected llama, qwen2 or qwen3",
                          (int)(name.n_bytes < 64 ? name.n_bytes : 64), name.data);
}

/* Keys that change the computation in ways this code does not follow: fine if they are 0. */
static int refuse_variants(const struct loader *l)
{
    static const char *const names[] = {"expert_count", "attention.sliding_window"};
    static const char *const scales[] = {"attention.scale", "logit_scale", "residual_scale",
                                         "embedding_scale", "attention.clamp_kqv"};
    char key[NAME_BYTES];
    uint32_t value;

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        if (number_or(l, names[i], 0, &value))
            return -1;
        if (value)
            return tkv_reason_set(l->why, "key %s: %u is not supported", key_of(l, names[i], key),
                                  value);
    }
    for (size_t i = 0; i < sizeof(scales) / sizeof(scales[0]); i++) {
        if (tkv_gguf_find(l->g, key_of(l, scales[i], key)))
            return tkv_reason_set(l->why, "key %s is not supported", key);
    }
    return 0;
}

static int read_heads(const struct loader *l)
{
    struct tkv_model_config *c = &l->m->config;
    struct tkv_shape *s = &c->shape;
    char key[NAME_BYTES];

    if (number(l, "attention.head_count", 1 << 16, &s->n_q_heads) ||
        number_or(l, "attention.head_count_kv", s->n_q_heads, &s->n_kv_heads))
        return -1;
    if (!s->n_kv_heads || s->n_q_heads % s->n_kv_heads || tkv_group(s) > TKV_MAX_GROUP)
        return tkv_reason_set(l->why, "key %s: %u KV heads for %u query heads",
                              key_of(l, "attention.head_count_kv", key), s->n_kv_heads,
                              s->n_q_heads);
    if (number_or(l, "attention.key_length", c->d_model / s->n_q_heads, &s->head_dim_k) ||
        number_or(l, "attention.value_length", s->head_dim_k, &s->head_dim_v))
        return -1;
    if (s->head_dim_k < TKV_MIN_HEAD_DIM || s->head_dim_k > TKV_MAX_HEAD_DIM || s->head_dim_k % 2 ||
        s->head_dim_v < TKV_MIN_HEAD_DIM || s->head_dim_v > TKV_MAX_HEAD_DIM || s->head_dim_v % 2)
        return tkv_reason_set(l->why,
                              "head dimensions %u (keys) and %u (values), "
                              "expected even numbers from %d to %d",
                              s->head_dim_k, s->head_dim_v, TKV_MIN_HEAD_DIM, TKV_MAX_HEAD_DIM);
    return 0;
}

static int read_config(struct loader *l)
{
    struct tkv_model_config *c = &l->m->config;
    char key[NAME_BYTES];
    double eps;

    if (read_architecture(l) || refuse_variants(l) ||
        number(l, "block_count", MAX_LAYERS, &c->n_layers) ||
        number(l, "embedding_length", MAX_WIDTH, &c->d_model) ||
        number(l, "feed_forward_length", MAX_WIDTH, &c->d_ff) ||
        number_or(l, "context_length", 0, &c->context_tokens) || read_heads(l) ||
        tkv_gguf_f64(l->g, key_of(l, "attention.layer_norm_rms_epsilon", key), &eps, l->why))
        return -1;
    if (!(eps >= 0 && eps < 1))
        return tkv_reason_set(l->why, "key %s: %g, expected 0 to 1", key, eps);
    c->eps = (float)eps;
    return tkv_model_read_rope(c, l->g, l->why);
}

/* NULL, with a text, if the tensor is missing or of another shape. n_in 0: a vector. */
static const struct tkv_gguf_tensor *need(struct loader *l, const char *name, uint64_t n_out,
                                          uint64_t n_in)
{
    const struct tkv_gguf_tensor *t = tkv_gguf_tensor(l->g, name);
    const uint64_t first = n_in ? n_in : n_out, second = n_in ? n_out : 1;

    if (!t) {
        tkv_reason_set(l->why, "tensor %s is missing", name);
        return NULL;
    }
    if (t->dims[0] != first || t->dims[1] != second || t->dims[2] != 1 || t->dims[3] != 1) {
        tkv_reason_set(l->why,
                       "tensor %s: %" PRIu64 " x %" PRIu64 ", expected %" PRIu64 " x %" PRIu64,
                       name, t->dims[0], t->dims[1], first, second);
        return NULL;
    }
    l->used[t - l->g->tensors] = true;
    return t;
}

static int load_matrix(struct loader *l, const char *name, uint32_t n_out, uint32_t n_in,
                       struct tkv_matrix *w)
{
    const struct tkv_gguf_tensor *t = need(l, name, n_out, n_in);

    if (!t)
        return -1;
    *w = (struct tkv_matrix){(enum tkv_ggml_type)t->type, n_out, n_in, t->data};
    return 0;
}

/* Norms and biases become floats, whatever the file has. */
static int load_vector(struct loader *l, const char *name, uint32_t n, const float **out)
{
    const struct tkv_gguf_tensor *t = need(l, name, n, 0);
    float *to = l->m->vectors + l->m->n_vector_floats;
    struct tkv_matrix row;

    if (!t)
        return -1;
    row = (struct tkv_matrix){(enum tkv_ggml_type)t->type, 1, n, t->data};
    tkv_matrix_row(&l->m->math, &row, 0, 0, n, to);
    for (uint32_t i = 0; i < n; i++) {
        if (!isfinite(to[i]))
            return tkv_reason_set(l->why, "tensor %s: value %u is not finite", name, i);
    }
    l->m->n_vector_floats += n;
    *out = to;
    return 0;
}

static const char *name_of(uint32_t layer, const char *part, char *name)
{
    snprintf(name, NAME_BYTES, "blk.%u.%s", layer, part);
    return name;
}

static int load_matrices(struct loader *l, uint32_t i)
{
    const struct tkv_model_config *c = &l->m->config;
    const struct tkv_shape *s = &c->shape;
    struct tkv_model_layer *layer = &l->m->layers[i];
    const struct {
        const char *part;
        uint32_t n_out;
        uint32_t n_in;
        struct tkv_matrix *to;
    } list[] = {
        {"attn_q.weight", s->n_q_heads * s->head_dim_k, c->d_model, &layer->q},
        {"attn_k.weight", s->n_kv_heads * s->head_dim_k, c->d_model, &layer->k},
        {"attn_v.weight", s->n_kv_heads * s->head_dim_v, c->d_model, &layer->v},
        {"attn_output.weight", c->d_model, s->n_q_heads * s->head_dim_v, &layer->o},
        {"ffn_gate.weight", c->d_ff, c->d_model, &layer->gate},
        {"ffn_up.weight", c->d_ff, c->d_model, &layer->up},
        {"ffn_down.weight", c->d_model, c->d_ff, &layer->down},
    };
    char name[NAME_BYTES];

    for (size_t j = 0; j < sizeof(list) / sizeof(list[0]); j++) {
        if (load_matrix(l, name_of(i, list[j].part, name), list[j].n_out, list[j].n_in, list[j].to))
            return -1;
    }
    return 0;
}

static int load_vectors(struct loader *l, uint32_t i)
{
    const struct tkv_model_config *c = &l->m->config;
    const struct tkv_shape *s = &c->shape;
    struct tkv_model_layer *layer = &l->m->layers[i];
    const bool head_norms = !strcmp(c->architecture, "qwen3");
    const bool biases = !strcmp(c->architecture, "qwen2");
    const struct {
        const char *part;
        uint32_t n;
        bool needed;
        const float **to;
    } list[] = {
        {"attn_norm.weight", c->d_model, true, &layer->attn_norm},
        {"ffn_norm.weight", c->d_model, true, &layer->ffn_norm},
        {"attn_q_norm.weight", s->head_dim_k, head_norms, &layer->q_norm},
        {"attn_k_norm.weight", s->head_dim_k, head_norms, &layer->k_norm},
        {"attn_q.bias", s->n_q_heads * s->head_dim_k, biases, &layer->q_bias},
        {"attn_k.bias", s->n_kv_heads * s->head_dim_k, biases, &layer->k_bias},
        {"attn_v.bias", s->n_kv_heads * s->head_dim_v, biases, &layer->v_bias},
    };
    char name[NAME_BYTES];

    for (size_t j = 0; j < sizeof(list) / sizeof(list[0]); j++) {
        if (list[j].needed && load_vector(l, name_of(i, list[j].part, name), list[j].n, list[j].to))
            return -1;
    }
    return 0;
}

/* Tensors outside the layers. A file without output.weight uses the embedding for it. */
static int load_ends(struct loader *l)
{
    struct tkv_model *m = l->m;
    struct tkv_model_config *c = &m->config;
    const struct tkv_gguf_tensor *embedding = tkv_gguf_tensor(l->g, "token_embd.weight");

    if (!embedding)
        return tkv_reason_set(l->why, "tensor token_embd.weight is missing");
    if (embedding->dims[1] > MAX_WIDTH)
        return tkv_reason_set(l->why, "tensor token_embd.weight: %" PRIu64 " tokens, at most %d",
                              embedding->dims[1], MAX_WIDTH);
    c->n_vocab = (uint32_t)embedding->dims[1];
    if (load_matrix(l, "token_embd.weight", c->n_vocab, c->d_model, &m->embedding) ||
        load_vector(l, "output_norm.weight", c->d_model, &m->output_norm))
        return -1;
    m->output = m->embedding;
    if (!tkv_gguf_tensor(l->g, "output.weight"))
        return 0;
    return load_matrix(l, "output.weight", c->n_vocab, c->d_model, &m->output);
}

static int allocate(struct loader *l)
{
    struct tkv_model *m = l->m;
    const struct tkv_model_config *c = &m->config;
    const struct tkv_shape *s = &c->shape;
    const size_t heads = (size_t)s->n_q_heads * s->head_dim_k + s->head_dim_k +
                         (size_t)s->n_kv_heads * (s->head_dim_k + s->head_dim_v) + s->head_dim_k;

    m->n_vector_room = c->n_layers * (2 * (size_t)c->d_model + heads) + c->d_model;
    m->vectors = calloc(m->n_vector_room, sizeof(*m->vectors));
    m->layers = calloc(c->n_layers, sizeof(*m->layers));
    return m->vectors && m->layers ? 0 : tkv_reason_set(l->why, "out of memory for the weights");
}

static int refuse_unused(const struct loader *l)
{
    for (size_t i = 0; i < l->g->n_tensors; i++) {
        const struct tkv_text name = l->g->tensors[i].name;

        if (!l->used[i] && !tkv_text_is(name, "rope_freqs.weight"))
            return tkv_reason_set(l->why, "tensor %.*s is not part of a %s model as known here",
                                  (int)(name.n_bytes < 64 ? name.n_bytes : 64), name.data,
                                  l->m->config.architecture);
    }
    return 0;
}

static int load_layers(struct loader *l)
{
    for (uint32_t i = 0; i < l->m->config.n_layers; i++) {
        if (load_vectors(l, i) || load_matrices(l, i))
            return -1;
    }
    return 0;
}

int tkv_model_read_config(struct tkv_model_config *c, const struct tkv_gguf *g,
                          struct tkv_reason *why)
{
    struct tkv_model m = {0};
    struct loader l = {.m = &m, .g = g, .why = why};

    if (read_config(&l))
        return -1;
    *c = m.config;
    c->fingerprint = tkv_gguf_fingerprint(g);
    return 0;
}

int tkv_model_load(struct tkv_model *m, const struct tkv_gguf *g, struct tkv_reason *why)
{
    struct loader l = {.m = m, .g = g, .why = why};
    int error;

    l.used = calloc(g->n_tensors + 1, sizeof(*l.used));
    if (!l.used)
        return tkv_reason_set(why, "out of memory for %zu tensors", g->n_tensors);
    error =
        read_config(&l) || allocate(&l) || load_ends(&l) || load_layers(&l) || refuse_unused(&l);
    free(l.used);
    m->config.fingerprint = tkv_gguf_fingerprint(g);
    return error ? -1 : 0;
}
