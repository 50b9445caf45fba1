/* Value blocks: one row of coordinates for each token, so that a weighted sum streams rows. */
#include "core/codec_priv.h"

/* Codes of one half of a row at most, padding included. */
enum { ROW_CODES = TKV_MAX_HEAD_DIM / 2 };

static size_t scales_at(const struct tkv_coder *c)
{
    return TKV_BLOCK_TOKENS * tkv_v_row_bytes(c);
}

static void put_row(const struct tkv_coder *c, uint8_t *row, const uint8_t *codes)
{
    const uint32_t half = tkv_half_dim(c);
    uint8_t padded[ROW_CODES] = {0};

    for (int h = 0; h < 2; h++) {
        memcpy(padded, codes + (uint32_t)h * half, half);
        tkv_pack(row, padded, tkv_v_half_codes(c), tkv_half_bits(c, h));
        row += tkv_v_half_bytes(c, h);
    }
}

/* dst = the centroids of half h of a row, without its padding, times scale. */
static void load_half(const struct tkv_coder *c, const struct tkv_kernels *kn, const uint8_t *codes,
                      int h, float scale, float *dst)
{
    const size_t n = tkv_v_half_codes(c);
    float padded[ROW_CODES];

    if (n == tkv_half_dim(c)) {
        kn->expand(dst, codes, n, tkv_half_bits(c, h), c->lut[h], scale);
        return;
    }
    kn->expand(padded, codes, n, tkv_half_bits(c, h), c->lut[h], scale);
    memcpy(dst, padded, tkv_half_dim(c) * sizeof(*dst));
}

/* x[dim] = row t of a block, in the rotated domain. */
static void load_row(const struct tkv_coder *c, const struct tkv_kernels *kn, const uint8_t *block,
                     size_t t, float scale, float *x)
{
    const uint8_t *row = block + t * tkv_v_row_bytes(c);

    load_half(c, kn, row, 0, scale, x);
    load_half(c, kn, row + tkv_v_half_bytes(c, 0), 1, scale, x + tkv_half_dim(c));
}

void tkv_encode_values(const struct tkv_coder *c, const struct tkv_kernels *kn, const float *x,
                       size_t n, void *block)
{
    uint8_t *to = block;
    uint16_t row[TKV_MAX_HEAD_DIM];
    struct tkv_coded v;

    memset(block, 0, c->v_block_bytes);
    for (size_t t = 0; t < n; t++) {
        if (c->codec->rotated) {
            tkv_code_vector(c, kn, x + t * c->dim, &v);
            put_row(c, to + t * tkv_v_row_bytes(c), v.codes);
            tkv_store_half(to + scales_at(c), t, v.scale);
            continue;
        }
        tkv_saturate(kn, row, x + t * c->dim, c->dim);
        memcpy(to + t * c->dim * sizeof(*row), row, c->dim * sizeof(*row));
    }
}

void tkv_value_rows(const struct tkv_coder *c, const struct tkv_kernels *kn, const void *block,
                    size_t n, float *rows)
{
    const uint8_t *from = block;
    float scales[TKV_BLOCK_TOKENS];

    if (!c->codec->rotated) {
        tkv_to_f32(kn, rows, block, TKV_F16, n * c->dim);
        return;
    }
    tkv_to_f32(kn, scales, from + scales_at(c), TKV_F16, n);
    for (size_t t = 0; t < n; t++)
        load_row(c, kn, from, t, scales[t], rows + t * c->dim);
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

    if (!c->codec->rotated) {
        tkv_to_f32(kn, x, from + t * c->dim * 2, TKV_F16, c->dim);
        return;
    }
    load_row(c, kn, from, t, tkv_f16_to_f32(tkv_load_half(from + scales_at(c), t)), x);
    tkv_unrotate(&c->rotation, kn, x);
}

void tkv_copy_value(const struct tkv_coder *c, void *dst, size_t to, const void *src, size_t from)
{
    const size_t row_bytes = c->codec->rotated ? tkv_v_row_bytes(c) : c->dim * sizeof(uint16_t);
    uint8_t *out = dst;
    const uint8_t *in = src;

    memcpy(out + to * row_bytes, in + from * row_bytes, row_bytes);
    if (c->codec->rotated)
        tkv_store_half(out + scales_at(c), to, tkv_load_half(in + scales_at(c), from));
}
