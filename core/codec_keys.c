/* Key blocks: one row of 64 tokens for each rotated coordinate, so that a tile is rows in order. */
#include "core/codec_priv.h"

/*
 *   offsets in a key block
 *   codes   half 0    dim/2 rows of 8 * bits_first bytes
 *           half 1    dim/2 rows of 8 * bits_second bytes
 *   sketch            qjl: dim rows of 8 bytes
 *   scales            64 halves
 *   residual norms    qjl: 64 halves
 */
static size_t sketch_at(const struct tkv_coder *c)
{
    return tkv_k_codes_bytes(c);
}

static size_t scales_at(const struct tkv_coder *c)
{
    return sketch_at(c) + tkv_k_sketch_bytes(c);
}

static size_t residuals_at(const struct tkv_coder *c)
{
    return scales_at(c) + TKV_HALVES_BYTES;
}

/* Lane t of a block that is still zero there. */
static void put_token(const struct tkv_coder *c, uint8_t *block, size_t t,
                      const struct tkv_coded *v)
{
    const uint32_t half = tkv_half_dim(c);

    tkv_lane_put(block, half, tkv_half_bits(c, 0), t, v->codes);
    tkv_lane_put(block + tkv_k_half_bytes(c, 0), half, tkv_half_bits(c, 1), t, v->codes + half);
    tkv_store_half(block + scales_at(c), t, v->scale);
    if (!c->codec->qjl)
        return;
    tkv_lane_put(block + sketch_at(c), c->dim, 1, t, v->signs);
    tkv_store_half(block + residuals_at(c), t, v->residual);
}

static void get_token(const struct tkv_coder *c, const uint8_t *block, size_t t,
                      struct tkv_coded *v)
{
    const uint32_t half = tkv_half_dim(c);

    tkv_lane_get(v->codes, block, half, tkv_half_bits(c, 0), t);
    tkv_lane_get(v->codes + half, block + tkv_k_half_bytes(c, 0), half, tkv_half_bits(c, 1), t);
    v->scale = tkv_load_half(block + scales_at(c), t);
    if (!c->codec->qjl)
        return;
    tkv_lane_get(v->signs, block + sketch_at(c), c->dim, 1, t);
    v->residual = tkv_load_half(block + residuals_at(c), t);
}

void tkv_encode_keys(const struct tkv_coder *c, const struct tkv_kernels *kn, const float *x,
                     size_t n, void *block)
{
    uint16_t row[TKV_MAX_HEAD_DIM];
    struct tkv_coded v;

    memset(block, 0, c->k_block_bytes);
    for (size_t t = 0; t < n; t++) {
        if (c->codec->rotated) {
            tkv_code_vector(c, kn, x + t * c->dim, &v);
            put_token(c, block, t, &v);
            continue;
        }
        tkv_saturate(kn, row, x + t * c->dim, c->dim);
        for (uint32_t j = 0; j < c->dim; j++)
            tkv_store_half(block, (size_t)j * TKV_BLOCK_TOKENS + t, row[j]);
    }
}

/* floats[64] = a block's 64 halves times factor. */
static void load_scales(const struct tkv_kernels *kn, const uint8_t *halves, float factor,
                        float *floats)
{
    tkv_to_f32(kn, floats, halves, TKV_F16, TKV_BLOCK_TOKENS);
    for (size_t t = 0; t < TKV_BLOCK_TOKENS; t++)
        floats[t] *= factor;
}

/* What a sign bit stands for; a table like any other. */
static const float sign_lut[16] = {-1, 1};

void tkv_key_tile(const struct tkv_coder *c, const struct tkv_kernels *kn, const void *block,
                  float *tile)
{
    const size_t half = tkv_half_dim(c);
    const uint8_t *from = block;
    float scales[TKV_BLOCK_TOKENS];

    if (!c->codec->rotated) {
        tkv_to_f32(kn, tile, block, TKV_F16, (size_t)c->dim * TKV_BLOCK_TOKENS);
        return;
    }
    load_scales(kn, from + scales_at(c), 1, scales);
    kn->expand_tile(tile, from, half, tkv_half_bits(c, 0), c->lut[0], scales);
    kn->expand_tile(tile + half * TKV_BLOCK_TOKENS, from + tkv_k_half_bytes(c, 0), half,
                    tkv_half_bits(c, 1), c->lut[1], scales);
    if (!c->codec->qjl)
        return;
    load_scales(kn, from + residuals_at(c), c->sketch_scale, scales);
    kn->expand_tile(tile + 2 * half * TKV_BLOCK_TOKENS, from + sketch_at(c), c->dim, 1, sign_lut,
                    scales);
}

void tkv_code_query(const struct tkv_coder *c, const struct tkv_kernels *kn, const float *q,
                    float *out)
{
    memcpy(out, q, c->dim * sizeof(*out));
    if (!c->codec->rotated)
        return;
    tkv_rotate(&c->rotation, kn, out);
    if (!c->codec->qjl)
        return;
    memcpy(out + c->dim, out, c->dim * sizeof(*out));
    tkv_rotate(&c->sketch, kn, out + c->dim);
}

/* Adds the residual's estimate, gamma * sketch_scale * S^T sign. */
static void add_sketch(const struct tkv_coder *c, const struct tkv_kernels *kn,
                       const struct tkv_coded *v, float *x)
{
    float r[TKV_MAX_HEAD_DIM];

    kn->lookup(r, v->signs, c->dim, sign_lut, tkv_f16_to_f32(v->residual) * c->sketch_scale);
    tkv_unrotate(&c->sketch, kn, r);
    for (uint32_t j = 0; j < c->dim; j++)
        x[j] += r[j];
}

void tkv_decode_key(const struct tkv_coder *c, const struct tkv_kernels *kn, const void *block,
                    size_t t, float *x)
{
    const uint32_t half = tkv_half_dim(c);
    struct tkv_coded v;
    float scale;

    if (!c->codec->rotated) {
        for (uint32_t j = 0; j < c->dim; j++)
            x[j] = tkv_f16_to_f32(tkv_load_half(block, (size_t)j * TKV_BLOCK_TOKENS + t));
        return;
    }
    get_token(c, block, t, &v);
    scale = tkv_f16_to_f32(v.scale);
    kn->lookup(x, v.codes, half, c->lut[0], scale);
    kn->lookup(x + half, v.codes + half, half, c->lut[1], scale);
    if (c->codec->qjl)
        add_sketch(c, kn, &v, x);
    tkv_unrotate(&c->rotation, kn, x);
}

void tkv_copy_key(const struct tkv_coder *c, void *dst, size_t to, const void *src, size_t from)
{
    struct tkv_coded v;

    if (c->codec->rotated) {
        get_token(c, src, from, &v);
        put_token(c, dst, to, &v);
        return;
    }
    for (size_t j = 0; j < (size_t)c->dim * TKV_BLOCK_TOKENS; j += TKV_BLOCK_TOKENS)
        tkv_store_half(dst, j + to, tkv_load_half(src, j + from));
}
