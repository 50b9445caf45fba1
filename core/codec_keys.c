/* Key blocks: codes of 32 tokens at a time, tokens across the lanes. */
#include "core/codec_priv.h"

/* Where section s of the 32 tokens that t belongs to begins. */
static size_t section_at(const struct tkv_coder *c, const struct tkv_section *s, size_t t)
{
    return t / TKV_PAIR_TOKENS * c->k_pair_bytes + s->k_offset;
}

/* Lanes t .. t + 3 of a block that is still zero there. */
static void put_codes(const struct tkv_coder *c, uint8_t *block, size_t t,
                      const struct tkv_coded *v)
{
    for (uint32_t i = 0; i < tkv_k_sections(c); i++) {
        const struct tkv_section *s = &c->section[i];

        tkv_key_put4(block + section_at(c, s, t), s->n, s->w, t % TKV_PAIR_TOKENS,
                     v->codes + s->code, sizeof(*v));
    }
}

static void get_token(const struct tkv_coder *c, const uint8_t *block, size_t t,
                      struct tkv_coded *v)
{
    for (uint32_t i = 0; i < tkv_k_sections(c); i++) {
        const struct tkv_section *s = &c->section[i];

        tkv_key_get(v->codes + s->code, block + section_at(c, s, t), s->n, s->w,
                    t % TKV_PAIR_TOKENS);
    }
    v->scale = tkv_f16_to_f32(tkv_load_half(block + tkv_k_scales_at(c), t));
    if (c->codec->qjl)
        v->residual = tkv_f16_to_f32(tkv_load_half(block + tkv_k_residuals_at(c), t));
}

const void *tkv_key_mean(const struct tkv_coder *c, const void *block)
{
    return (const uint8_t *)block + tkv_k_mean_at(c);
}

void tkv_put_key_mean(const struct tkv_coder *c, void *block, const void *mean)
{
    if (c->mean_bytes[TKV_KEYS])
        memcpy((uint8_t *)block + tkv_k_mean_at(c), mean, c->mean_bytes[TKV_KEYS]);
}

static void encode_halves(const struct tkv_coder *c, const struct tkv_kernels *kn,
                          struct tkv_vectors x, size_t n, uint8_t *block)
{
    uint16_t row[TKV_MAX_HEAD_DIM];

    for (size_t t = 0; t < n; t++) {
        tkv_saturate_vector(kn, row, tkv_vectors_from(x, t), c->dim);
        for (uint32_t j = 0; j < c->dim; j++)
            tkv_store_half(block, (size_t)j * TKV_BLOCK_TOKENS + t, row[j]);
    }
}

void tkv_encode_keys(const struct tkv_coder *c, const struct tkv_kernels *kn, const void *mean,
                     struct tkv_vectors x, size_t n, void *block)
{
    struct tkv_coded v[TKV_CODED_TOKENS];
    float scale[TKV_BLOCK_TOKENS] = {0}, residual[TKV_BLOCK_TOKENS] = {0};
    struct tkv_coding g;

    memset(block, 0, c->k_block_bytes);
    if (!c->codec->rotated) {
        encode_halves(c, kn, x, n, block);
        return;
    }
    tkv_coding_init(&g, c, kn, TKV_KEYS, mean);
    for (size_t t = 0; t < n; t += TKV_CODED_TOKENS) {
        tkv_code_vectors(&g, tkv_vectors_from(x, t), n - t, v);
        put_codes(c, block, t, v);
        for (size_t i = 0; i < TKV_CODED_TOKENS; i++) {
            scale[t + i] = v[i].scale;
            residual[t + i] = v[i].residual;
        }
    }
    tkv_saturate(kn, (uint8_t *)block + tkv_k_scales_at(c), scale, TKV_BLOCK_TOKENS);
    if (c->codec->qjl)
        tkv_saturate(kn, (uint8_t *)block + tkv_k_residuals_at(c), residual, TKV_BLOCK_TOKENS);
    tkv_put_key_mean(c, block, mean);
}

/* floats[64] = a block's 64 halves times factor. */
static void load_scales(const struct tkv_kernels *kn, const uint8_t *halves, float factor,
                        float *floats)
{
    tkv_to_f32(kn, floats, halves, TKV_F16, TKV_BLOCK_TOKENS);
    for (size_t t = 0; t < TKV_BLOCK_TOKENS; t++)
        floats[t] *= factor;
}

/* The tile of a section that adds to one that is there, part by part. */
static void add_to_tile(const struct tkv_kernels *kn, struct tkv_codes codes, const float *lut,
                        const float *scales, float *tile)
{
    float part[TKV_ADDED_DIM * TKV_BLOCK_TOKENS];
    size_t left = codes.n;

    for (; left > 0; left -= codes.n, tile += codes.n * TKV_BLOCK_TOKENS) {
        codes.n = left < TKV_ADDED_DIM ? left : TKV_ADDED_DIM;
        kn->key_tile(part, &codes, lut, scales, NULL);
        for (size_t i = 0; i < codes.n * TKV_BLOCK_TOKENS; i++)
            tile[i] += part[i];
        codes.bytes += tkv_key_section_bytes(codes.n, codes.w);
    }
}

void tkv_key_tile(const struct tkv_coder *c, const struct tkv_kernels *kn, const void *block,
                  float *tile)
{
    const uint8_t *from = block;
    float scales[TKV_BLOCK_TOKENS], mean[TKV_MAX_HEAD_DIM];
    const float *m;

    if (!c->codec->rotated) {
        tkv_to_f32(kn, tile, block, TKV_F16, (size_t)c->dim * TKV_BLOCK_TOKENS);
        return;
    }
    m = tkv_load_mean(c, kn, TKV_KEYS, from + tkv_k_mean_at(c), mean);
    for (uint32_t i = 0; i < tkv_k_sections(c); i++) {
        const struct tkv_codes codes = tkv_key_codes(c, i, block, NULL);

        if (i < c->n_sections)
            load_scales(kn, from + tkv_k_scales_at(c), 1, scales);
        else
            load_scales(kn, from + tkv_k_residuals_at(c), c->sketch_scale, scales);
        if (c->section[i].adds)
            add_to_tile(kn, codes, c->section[i].lut, scales, tile);
        else
            kn->key_tile(tile + (size_t)c->section[i].first * TKV_BLOCK_TOKENS, &codes,
                         c->section[i].lut, scales, m ? m + c->section[i].first : NULL);
    }
}

void tkv_code_query(const struct tkv_coder *c, const struct tkv_kernels *kn, const float *q,
                    float *out)
{
    if (!c->codec->rotated) {
        memcpy(out, q, c->dim * sizeof(*out));
        return;
    }
    tkv_rotate(&c->rotation, kn, out, q);
    if (c->codec->qjl)
        tkv_rotate(&c->sketch, kn, out + c->dim, out);
}

/* Adds the residual's estimate, gamma * sketch_scale * S^T sign. */
static void add_sketch(const struct tkv_coder *c, const struct tkv_kernels *kn,
                       const struct tkv_coded *v, float *x)
{
    float r[TKV_MAX_HEAD_DIM];

    kn->lookup(r, v->codes + c->dim, c->dim, c->section[c->n_sections].lut,
               v->residual * c->sketch_scale);
    tkv_unrotate(&c->sketch, kn, r);
    for (uint32_t j = 0; j < c->dim; j++)
        x[j] += r[j];
}

void tkv_decode_key(const struct tkv_coder *c, const struct tkv_kernels *kn, const void *block,
                    size_t t, float *x)
{
    float mean[TKV_MAX_HEAD_DIM];
    struct tkv_coded v;

    if (!c->codec->rotated) {
        for (uint32_t j = 0; j < c->dim; j++)
            x[j] = tkv_f16_to_f32(tkv_load_half(block, (size_t)j * TKV_BLOCK_TOKENS + t));
        return;
    }
    get_token(c, block, t, &v);
    tkv_decode_codes(c, kn, &v, x);
    if (c->codec->qjl)
        add_sketch(c, kn, &v, x);
    if (tkv_load_mean(c, kn, TKV_KEYS, (const uint8_t *)block + tkv_k_mean_at(c), mean))
        for (uint32_t j = 0; j < c->dim; j++)
            x[j] += mean[j];
    tkv_unrotate(&c->rotation, kn, x);
}
