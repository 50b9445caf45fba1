/* Value blocks: coordinates across the lanes, four tokens in a word. */
#include "core/codec_priv.h"

/* Places t .. t + 3 of a block that is still zero there. */
static void put_codes(const struct tkv_coder *c, uint8_t *block, size_t t,
                      const struct tkv_coded *v)
{
    for (uint32_t i = 0; i < c->n_sections; i++) {
        const struct tkv_section *s = &c->section[i];

        tkv_value_put4(block + s->v_offset, s->n, s->w, t, v->codes + s->code, sizeof(*v));
    }
}

static void get_token(const struct tkv_coder *c, const uint8_t *block, size_t t,
                      struct tkv_coded *v)
{
    for (uint32_t i = 0; i < c->n_sections; i++) {
        const struct tkv_section *s = &c->section[i];

        tkv_value_get(v->codes + s->code, block + s->v_offset, s->n, s->w, t);
    }
    v->scale = tkv_f16_to_f32(tkv_load_half(block, t));
}

const void *tkv_value_mean(const struct tkv_coder *c, const void *block)
{
    (void)c;
    return (const uint8_t *)block + tkv_v_mean_at();
}

void tkv_put_value_mean(const struct tkv_coder *c, void *block, const void *mean)
{
    if (c->mean_bytes[TKV_VALUES])
        memcpy((uint8_t *)block + tkv_v_mean_at(), mean, c->mean_bytes[TKV_VALUES]);
}

void tkv_encode_values(const struct tkv_coder *c, const struct tkv_kernels *kn, const void *mean,
                       struct tkv_vectors x, size_t n, void *block)
{
    struct tkv_coded v[TKV_CODED_TOKENS];
    float scale[TKV_BLOCK_TOKENS] = {0};
    struct tkv_coding g;

    memset(block, 0, c->v_block_bytes);
    for (size_t t = 0; !c->codec->rotated && t < n; t++)
        tkv_saturate_vector(kn, (uint8_t *)block + t * c->dim * 2, tkv_vectors_from(x, t), c->dim);
    if (!c->codec->rotated)
        return;
    tkv_coding_init(&g, c, kn, TKV_VALUES, mean);
    for (size_t t = 0; t < n; t += TKV_CODED_TOKENS) {
        tkv_code_vectors(&g, tkv_vectors_from(x, t), n - t, v);
        put_codes(c, block, t, v);
        for (size_t i = 0; i < TKV_CODED_TOKENS; i++)
            scale[t + i] = v[i].scale;
    }
    tkv_saturate(kn, block, scale, TKV_BLOCK_TOKENS);
    tkv_put_value_mean(c, block, mean);
}

/* The rows of a section that adds to what is there, some coordinates at a time. */
static void add_to_rows(const struct tkv_kernels *kn, struct tkv_codes codes, size_t n_tokens,
                        const float *lut, const float *scales, float *rows, size_t stride)
{
    float part[TKV_BLOCK_TOKENS * TKV_ADDED_DIM];
    size_t left = codes.n;

    for (; left > 0; left -= codes.n, rows += codes.n) {
        codes.n = left < TKV_ADDED_DIM ? left : TKV_ADDED_DIM;
        kn->value_rows(part, codes.n, &codes, n_tokens, lut, scales, NULL);
        for (size_t t = 0; t < n_tokens; t++)
            for (size_t i = 0; i < codes.n; i++)
                rows[t * stride + i] += part[t * codes.n + i];
        codes.bytes += tkv_value_section_bytes(codes.n, codes.w);
    }
}

void tkv_value_rows(const struct tkv_coder *c, const struct tkv_kernels *kn, const void *block,
                    size_t n, float *rows)
{
    const uint8_t *from = block;
    float scales[TKV_BLOCK_TOKENS], mean[TKV_MAX_HEAD_DIM];
    const float *m;

    if (!c->codec->rotated) {
        tkv_to_f32(kn, rows, block, TKV_F16, n * c->dim);
        return;
    }
    tkv_to_f32(kn, scales, from, TKV_F16, TKV_BLOCK_TOKENS);
    m = tkv_load_mean(c, kn, TKV_VALUES, from + tkv_v_mean_at(), mean);
    for (uint32_t i = 0; i < c->n_sections; i++) {
        const struct tkv_codes codes = tkv_value_codes(c, i, block, NULL);

        if (c->section[i].adds)
            add_to_rows(kn, codes, n, c->section[i].lut, scales, rows, c->dim);
        else
            kn->value_rows(rows + c->section[i].first, c->dim, &codes, n, c->section[i].lut, scales,
                           m ? m + c->section[i].first : NULL);
    }
}

void tkv_uncode_value(const struct tkv_coder *c, const struct tkv_kernels *kn, float *acc)
{
    if (c->codec->rotated)
        tkv_unrotate(&c->rotation, kn, acc);
}

void tkv_decode_value(const struct tkv_coder *c, const struct tkv_kernels *kn, const void *block,
                      size_t t, float *x)
{
    const uint8_t *from = block;
    float mean[TKV_MAX_HEAD_DIM];
    struct tkv_coded v;

    if (!c->codec->rotated) {
        tkv_to_f32(kn, x, from + t * c->dim * 2, TKV_F16, c->dim);
        return;
    }
    get_token(c, from, t, &v);
    tkv_decode_codes(c, kn, &v, x);
    if (tkv_load_mean(c, kn, TKV_VALUES, from + tkv_v_mean_at(), mean))
        for (uint32_t j = 0; j < c->dim; j++)
            x[j] += mean[j];
    tkv_unrotate(&c->rotation, kn, x);
}
