/* Tiny models: nothing here is fast, and nothing is shared with tools/model.c. */
#include "tests/tiny_model.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/half.h"
#include "tests/rng.h"

enum { MAX_WIDTH = 256, MAX_TOKENS = 128 };

const struct tiny_model tiny_models[] = {
    {"llama", TKV_GGML_F32, 2, 50, 64, 96, 4, 2, 16, 16, 16, 10000, 1e-5f, false, 0},
    {"llama", TKV_GGML_F16, 2, 50, 64, 96, 4, 1, 16, 16, 16, 500000, 1e-5f, true, 0.25f},
    {"llama", TKV_GGML_BF16, 1, 33, 64, 96, 4, 4, 16, 16, 8, 10000, 0.02f, true, 0},
    {"qwen2", TKV_GGML_Q8_0, 2, 64, 64, 96, 4, 2, 16, 16, 16, 1e6f, 1e-6f, false, 0},
    {"qwen2", TKV_GGML_F32, 1, 41, 32, 70, 2, 1, 16, 16, 16, 1e6f, 1e-6f, true, 0},
    {"qwen3", TKV_GGML_Q8_0, 2, 64, 64, 96, 6, 2, 32, 16, 32, 1e5f, 1e-6f, true, 0},
    {"qwen3", TKV_GGML_F16, 3, 50, 48, 100, 3, 1, 24, 40, 24, 1e5f, 0.05f, false, 0},
};
const size_t n_tiny_models = sizeof(tiny_models) / sizeof(tiny_models[0]);

static void put_random(struct gguf_aid *g, const char *name, uint32_t type, uint32_t n_in,
                       uint32_t n_out, struct rng *rng, float mean)
{
    const size_t n = (size_t)n_in * (n_out ? n_out : 1);
    const float scale = n_out ? 1.0f / sqrtf((float)n_in) : 0.2f;
    float *values = malloc(n * sizeof(*values));

    if (!values)
        abort();
    for (size_t i = 0; i < n; i++)
        values[i] = mean + scale * rng_gauss(rng);
    gguf_aid_tensor(g, name, n_out ? type : (uint32_t)TKV_GGML_F32, n_in, n_out, values);
    free(values);
}

static void put_keys(struct gguf_aid *g, const struct tiny_model *m)
{
    const struct {
        const char *name;
        uint32_t value;
    } numbers[] = {
        {"block_count", m->n_layers},
        {"embedding_length", m->d_model},
        {"feed_forward_length", m->d_ff},
        {"attention.head_count", m->n_q_heads},
        {"attention.head_count_kv", m->n_kv_heads},
        {"attention.key_length", m->head_dim_k},
        {"attention.value_length", m->head_dim_v},
        {"rope.dimension_count", m->rotary_dim},
    };
    char key[96];

    gguf_aid_string(g, "general.architecture", m->architecture);
    for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++) {
        snprintf(key, sizeof(key), "%s.%s", m->architecture, numbers[i].name);
        gguf_aid_u32(g, key, numbers[i].value);
    }
    snprintf(key, sizeof(key), "%s.rope.freq_base", m->architecture);
    gguf_aid_f32(g, key, m->theta);
    snprintf(key, sizeof(key), "%s.attention.layer_norm_rms_epsilon", m->architecture);
    gguf_aid_f32(g, key, m->eps);
}

static void put_layer(struct gguf_aid *g, const struct tiny_model *m, uint32_t layer,
                      struct rng *rng)
{
    const bool qwen2 = !strcmp(m->architecture, "qwen2"), qwen3 = !strcmp(m->architecture, "qwen3");
    const uint32_t n_q = m->n_q_heads * m->head_dim_k, n_k = m->n_kv_heads * m->head_dim_k;
    const uint32_t n_v = m->n_kv_heads * m->head_dim_v, n_o = m->n_q_heads * m->head_dim_v;
    const struct {
        const char *name;
        uint32_t n_in, n_out;
        float mean;
        bool has;
    } list[] = {
        {"attn_norm.weight", m->d_model, 0, 1, true},
        {"attn_q.weight", m->d_model, n_q, 0, true},
        {"attn_k.weight", m->d_model, n_k, 0, true},
        {"attn_v.weight", m->d_model, n_v, 0, true},
        {"attn_q.bias", n_q, 0, 0.3f, qwen2},
        {"attn_k.bias", n_k, 0, -0.3f, qwen2},
        {"attn_v.bias", n_v, 0, 0.1f, qwen2},
        {"attn_q_norm.weight", m->head_dim_k, 0, 1.5f, qwen3},
        {"attn_k_norm.weight", m->head_dim_k, 0, 1.5f, qwen3},
        {"attn_output.weight", n_o, m->d_model, 0, true},
        {"ffn_norm.weight", m->d_model, 0, 1, true},
        {"ffn_gate.weight", m->d_model, m->d_ff, 0, true},
        {"ffn_up.weight", m->d_model, m->d_ff, 0, true},
        {"ffn_down.weight", m->d_ff, m->d_model, 0, true},
    };
    char name[64];

    for (size_t i = 0; i < sizeof(list) / sizeof(list[0]); i++) {
        snprintf(name, sizeof(name), "blk.%u.%s", layer, list[i].name);
        if (list[i].has)
            put_random(g, name, m->type, list[i].n_in, list[i].n_out, rng, list[i].mean);
    }
}

void tiny_model_put(struct gguf_aid *g, const struct tiny_model *m, uint64_t seed)
{
    struct rng rng = {seed};
    float divisors[MAX_WIDTH];

    put_keys(g, m);
    put_random(g, "token_embd.weight", m->type, m->d_model, m->n_vocab, &rng, 0);
    put_random(g, "output_norm.weight", m->type, m->d_model, 0, &rng, 1);
    if (!m->tied)
        put_random(g, "output.weight", m->type, m->d_model, m->n_vocab, &rng, 0);
    for (uint32_t i = 0; i < m->n_layers; i++)
        put_layer(g, m, i, &rng);
    for (uint32_t f = 0; f < m->rotary_dim / 2; f++)
        divisors[f] = 1 + m->rope_divisor * (float)f;
    if (m->rope_divisor > 0)
        gguf_aid_tensor(g, "rope_freqs.weight", TKV_GGML_F32, m->rotary_dim / 2, 0, divisors);
}

static double weight(const struct tkv_gguf_tensor *t, size_t i)
{
    uint16_t half;
    float x;

    switch (t->type) {
    case TKV_GGML_F32: memcpy(&x, t->data + 4 * i, 4); return (double)x;
    case TKV_GGML_F16: memcpy(&half, t->data + 2 * i, 2); return (double)tkv_f16_to_f32(half);
    case TKV_GGML_BF16: memcpy(&half, t->data + 2 * i, 2); return (double)tkv_bf16_to_f32(half);
    default:
        memcpy(&half, t->data + i / 32 * 34, 2);
        return (double)tkv_f16_to_f32(half) * (int8_t)t->data[i / 32 * 34 + 2 + i % 32];
    }
}

/* A forward pass on its way. */
struct pass {
    const struct tiny_model *m;
    const struct tkv_gguf *g;
    size_t n;
    double x[MAX_TOKENS][MAX_WIDTH];
};

static const struct tkv_gguf_tensor *tensor(const struct pass *p, int layer, const char *part)
{
    char name[64];

    if (layer < 0)
        return tkv_gguf_tensor(p->g, part);
    snprintf(name, sizeof(name), "blk.%d.%s", layer, part);
    return tkv_gguf_tensor(p->g, name);
}

/* y = W x (+ bias) */
static void multiply(const struct tkv_gguf_tensor *w, const struct tkv_gguf_tensor *bias,
                     const double *x, double *y)
{
    for (size_t o = 0; o < w->dims[1]; o++) {
        y[o] = bias ? weight(bias, o) : 0;
        for (size_t i = 0; i < w->dims[0]; i++)
            y[o] += weight(w, o * w->dims[0] + i) * x[i];
    }
}

static void norm(const struct pass *p, const struct tkv_gguf_tensor *w, const double *x, size_t n,
                 double *y)
{
    double sum = 0;

    for (size_t i = 0; i < n; i++)
        sum += x[i] * x[i];
    for (size_t i = 0; i < n; i++)
        y[i] = x[i] / sqrt(sum / (double)n + (double)p->m->eps) * weight(w, i);
}

static void rotate(const struct pass *p, double *x, size_t position)
{
    const struct tkv_gguf_tensor *divisors = tkv_gguf_tensor(p->g, "rope_freqs.weight");
    const uint32_t half = p->m->rotary_dim / 2;
    const bool neighbours = !strcmp(p->m->architecture, "llama");

    for (uint32_t f = 0; f < half; f++) {
        const double frequency = pow((double)p->m->theta, -2.0 * f / p->m->rotary_dim);
        const double a = (double)position * frequency / (divisors ? weight(divisors, f) : 1);
        double *re = &x[neighbours ? 2 * f : f], *im = &x[neighbours ? 2 * f + 1 : f + half];
        const double u = *re * cos(a) - *im * sin(a), v = *im * cos(a) + *re * sin(a);

        *re = u;
        *im = v;
    }
}

static void heads(const struct pass *p, int layer, char which, uint32_t n_heads, uint32_t dim,
                  size_t token, double *y)
{
    const struct tkv_gguf_tensor *w;
    double h[MAX_WIDTH];
    char name[32];

    norm(p, tensor(p, layer, "attn_norm.weight"), p->x[token], p->m->d_model, h);
    snprintf(name, sizeof(name), "attn_%c.bias", which);
    w = tensor(p, layer, name);
    snprintf(name, sizeof(name), "attn_%c.weight", which);
    multiply(tensor(p, layer, name), w, h, y);
    if (which == 'v')
        return;
    snprintf(name, sizeof(name), "attn_%c_norm.weight", which);
    w = tensor(p, layer, name);
    for (uint32_t i = 0; i < n_heads; i++) {
        if (w)
            norm(p, w, y + i * dim, dim, y + i * dim);
        rotate(p, y + i * dim, token);
    }
}

static void attend(const struct pass *p, const double *q, double (*k)[MAX_WIDTH],
                   double (*v)[MAX_WIDTH], size_t token, double *out)
{
    const struct tiny_model *m = p->m;

    for (uint32_t head = 0; head < m->n_q_heads; head++) {
        const uint32_t kv = head / (m->n_q_heads / m->n_kv_heads);
        double w[MAX_TOKENS], sum = 0;

        for (size_t t = 0; t <= token; t++) {
            double dot = 0;

            for (uint32_t i = 0; i < m->head_dim_k; i++)
                dot += q[head * m->head_dim_k + i] * k[t][kv * m->head_dim_k + i];
            sum += w[t] = exp(dot / sqrt(m->head_dim_k));
        }
        for (uint32_t i = 0; i < m->head_dim_v; i++) {
            out[head * m->head_dim_v + i] = 0;
            for (size_t t = 0; t <= token; t++)
                out[head * m->head_dim_v + i] += w[t] / sum * v[t][kv * m->head_dim_v + i];
        }
    }
}

static void attention_block(struct pass *p, int layer)
{
    static double q[MAX_TOKENS][MAX_WIDTH], k[MAX_TOKENS][MAX_WIDTH], v[MAX_TOKENS][MAX_WIDTH];
    const struct tiny_model *m = p->m;
    double out[MAX_WIDTH], y[MAX_WIDTH];

    for (size_t t = 0; t < p->n; t++) {
        heads(p, layer, 'q', m->n_q_heads, m->head_dim_k, t, q[t]);
        heads(p, layer, 'k', m->n_kv_heads, m->head_dim_k, t, k[t]);
        heads(p, layer, 'v', m->n_kv_heads, m->head_dim_v, t, v[t]);
    }
    for (size_t t = 0; t < p->n; t++) {
        attend(p, q[t], k, v, t, out);
        multiply(tensor(p, layer, "attn_output.weight"), NULL, out, y);
        for (uint32_t i = 0; i < m->d_model; i++)
            p->x[t][i] += y[i];
    }
}

static void feed_forward(struct pass *p, int layer, double *x)
{
    double h[MAX_WIDTH], gate[MAX_WIDTH], up[MAX_WIDTH], y[MAX_WIDTH];

    norm(p, tensor(p, layer, "ffn_norm.weight"), x, p->m->d_model, h);
    multiply(tensor(p, layer, "ffn_gate.weight"), NULL, h, gate);
    multiply(tensor(p, layer, "ffn_up.weight"), NULL, h, up);
    for (uint32_t i = 0; i < p->m->d_ff; i++)
        gate[i] *= up[i] / (1 + exp(-gate[i]));
    multiply(tensor(p, layer, "ffn_down.weight"), NULL, gate, y);
    for (uint32_t i = 0; i < p->m->d_model; i++)
        x[i] += y[i];
}

void tiny_model_forward(const struct tiny_model *m, const struct tkv_gguf *g, const int32_t *ids,
                        size_t n, double *logits)
{
    static struct pass p;
    double h[MAX_WIDTH];

    p.m = m;
    p.g = g;
    p.n = n;
    for (size_t t = 0; t < n; t++) {
        for (uint32_t i = 0; i < m->d_model; i++)
            p.x[t][i] =
                weight(tensor(&p, -1, "token_embd.weight"), (size_t)ids[t] * m->d_model + i);
    }
    for (int layer = 0; layer < (int)m->n_layers; layer++) {
        attention_block(&p, layer);
        for (size_t t = 0; t < n; t++)
            feed_forward(&p, layer, p.x[t]);
    }
    for (size_t t = 0; t < n; t++) {
        norm(&p, tensor(&p, -1, "output_norm.weight"), p.x[t], m->d_model, h);
        multiply(tensor(&p, -1, m->tied ? "token_embd.weight" : "output.weight"), NULL, h,
                 logits + t * m->n_vocab);
    }
}
