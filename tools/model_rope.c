/*
 * RoPE of a GGUF model. Keys give the base and linear or YaRN scaling. Llama 3 files
 * carry no such keys but a tensor of divisors, one per band; which rule made them is
 * found by trying the published one, and if it does not give these very numbers,
 * the divisors are used as they are.
 */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/half.h"
#include "tools/model.h"

enum { KEY_BYTES = 96 };

static const char *key_of(const struct tkv_model_config *c, const char *name, char *key)
{
    snprintf(key, KEY_BYTES, "%s.%s", c->architecture, name);
    return key;
}

static int optional_f64(const struct tkv_model_config *c, const struct tkv_gguf *g,
                        const char *name, double *out, struct tkv_reason *why)
{
    char key[KEY_BYTES];

    key_of(c, name, key);
    return tkv_gguf_find(g, key) ? tkv_gguf_f64(g, key, out, why) : 0;
}

static int optional_u32(const struct tkv_model_config *c, const struct tkv_gguf *g,
                        const char *name, uint32_t *out, struct tkv_reason *why)
{
    char key[KEY_BYTES];

    key_of(c, name, key);
    return tkv_gguf_find(g, key) ? tkv_gguf_u32(g, key, out, why) : 0;
}

static int read_scaling_type(struct tkv_model_config *c, const struct tkv_gguf *g,
                             struct tkv_reason *why)
{
    struct tkv_rope_params *p = &c->rope_params;
    char key[KEY_BYTES];
    struct tkv_text type;

    key_of(c, "rope.scaling.type", key);
    if (!tkv_gguf_find(g, key)) {
        if (optional_f64(c, g, "rope.scale_linear", &p->factor, why))
            return -1;
        p->scaling = p->factor > 0 && p->factor != 1 ? TKV_ROPE_LINEAR : TKV_ROPE_DEFAULT;
        return 0;
    }
    if (tkv_gguf_text(g, key, &type, why))
        return -1;
    if (tkv_text_is(type, "none"))
        p->scaling = TKV_ROPE_DEFAULT;
    else if (tkv_text_is(type, "linear"))
        p->scaling = TKV_ROPE_LINEAR;
    else if (tkv_text_is(type, "yarn"))
        p->scaling = TKV_ROPE_YARN;
    else
        return tkv_reason_set(why, "key %s: \"%.*s\", expected none, linear or yarn", key,
                              (int)(type.n_bytes < 32 ? type.n_bytes : 32), type.data);
    return 0;
}

static int read_scaling(struct tkv_model_config *c, const struct tkv_gguf *g,
                        struct tkv_reason *why)
{
    struct tkv_rope_params *p = &c->rope_params;
    double multiplier = 1;

    if (read_scaling_type(c, g, why))
        return -1;
    if (p->scaling == TKV_ROPE_DEFAULT)
        return 0;
    if (optional_f64(c, g, "rope.scaling.factor", &p->factor, why))
        return -1;
    if (p->scaling != TKV_ROPE_YARN)
        return 0;
    if (optional_u32(c, g, "rope.scaling.original_context_length", &p->original_context, why) ||
        optional_f64(c, g, "rope.scaling.attn_factor", &multiplier, why) ||
        optional_f64(c, g, "rope.scaling.yarn_beta_fast", &p->beta_fast, why) ||
        optional_f64(c, g, "rope.scaling.yarn_beta_slow", &p->beta_slow, why))
        return -1;
    if (multiplier != 1) /* in GGUF it comes on top of YaRN's own factor */
        p->attention_factor = multiplier * (0.1 * log(p->factor) + 1);
    return 0;
}

/* Whether Llama 3's rule with this factor gives the divided frequencies, to float's last bits. */
static bool is_llama3(const struct tkv_model_config *c, const float *divided, double factor)
{
    struct tkv_rope_params p = c->rope_params;
    struct tkv_rope rope;

    p.scaling = TKV_ROPE_LLAMA3;
    p.factor = factor;
    p.low_freq_factor = 1;
    p.high_freq_factor = 4;
    p.original_context = 8192;
    if (factor < 1 || tkv_rope_init(&rope, &p))
        return false;
    for (uint32_t f = 0; f < c->rope.rotary_dim / 2; f++) {
        if (!(fabsf(rope.inv_freq[f] - divided[f]) <= 1e-5f * divided[f]))
            return false;
    }
    return true;
}

static void use_llama3(struct tkv_model_config *c, double factor)
{
    c->rope_params.scaling = TKV_ROPE_LLAMA3;
    c->rope_params.factor = factor;
    c->rope_params.low_freq_factor = 1;
    c->rope_params.high_freq_factor = 4;
    c->rope_params.original_context = 8192;
}

static int apply_divisors(struct tkv_model_config *c, const struct tkv_gguf_tensor *t,
                          struct tkv_reason *why)
{
    const uint32_t n_bands = c->rope.rotary_dim / 2;
    float largest = 1;

    if (t->type != TKV_GGML_F32 || t->n_dims != 1 || t->dims[0] != n_bands)
        return tkv_reason_set(why,
                              "tensor rope_freqs.weight: type %u, %llu values, expected F32, %u",
                              t->type, (unsigned long long)t->dims[0], n_bands);
    if (c->rope_params.scaling != TKV_ROPE_DEFAULT)
        return tkv_reason_set(why, "tensor rope_freqs.weight beside RoPE scaling keys");
    for (uint32_t f = 0; f < n_bands; f++) {
        float divisor;

        memcpy(&divisor, t->data + f * sizeof(divisor), sizeof(divisor));
        if (!(divisor > 0) || !isfinite(divisor))
            return tkv_reason_set(why, "tensor rope_freqs.weight: value %u is %g", f,
                                  (double)divisor);
        c->rope.inv_freq[f] /= divisor;
        largest = divisor > largest ? divisor : largest;
    }
    c->rope_has_rule = is_llama3(c, c->rope.inv_freq, (double)largest);
    if (c->rope_has_rule)
        use_llama3(c, (double)largest);
    return 0;
}

int tkv_model_read_rope(struct tkv_model_config *c, const struct tkv_gguf *g,
                        struct tkv_reason *why)
{
    const struct tkv_gguf_tensor *divisors = tkv_gguf_tensor(g, "rope_freqs.weight");
    struct tkv_rope_params *p = &c->rope_params;
    char key[KEY_BYTES];
    const char *error;

    p->head_dim = c->shape.head_dim_k;
    p->rotary_dim = p->head_dim;
    /* Converters of llama models permute the rows of q and k to bring pairs side by side. */
    p->layout = strcmp(c->architecture, "llama") ? TKV_ROPE_HALF : TKV_ROPE_INTERLEAVED;
    if (tkv_gguf_f64(g, key_of(c, "rope.freq_base", key), &p->theta, why) ||
        optional_u32(c, g, "rope.dimension_count", &p->rotary_dim, why) || read_scaling(c, g, why))
        return -1;
    error = tkv_rope_init(&c->rope, p);
    if (error)
        return tkv_reason_set(why, "RoPE of the model: %s", error);
    c->rope_has_rule = true;
    return divisors ? apply_divisors(c, divisors, why) : 0;
}
