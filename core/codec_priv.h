/* What the key and the value side of the codecs share: one vector's codes, and block geometry. */
#ifndef TKV_CORE_CODEC_PRIV_H
#define TKV_CORE_CODEC_PRIV_H

#include <string.h>

#include "core/codec.h"
#include "core/half.h"
#include "core/kernels.h"
#include "core/pack.h"

/* A vector coded but not yet packed. */
struct tkv_coded {
    uint8_t codes[TKV_MAX_HEAD_DIM];
    uint16_t scale;                  /* half */
    uint16_t residual;               /* half; qjl: the length of what the codes leave */
    uint8_t signs[TKV_MAX_HEAD_DIM]; /* qjl: 1 where the sketched residual is >= 0 */
};

/* *out = the codes of x[dim], for a rotated codec. */
void tkv_code_vector(const struct tkv_coder *c, const struct tkv_kernels *kn, const float *x,
                     struct tkv_coded *out);

/* dst[dim] = src as halves, finite ones saturated at 65504: what f16 stores. */
void tkv_saturate(const struct tkv_kernels *kn, uint16_t *dst, const float *src, size_t dim);

/* Coordinates of half h (0, 1), and their code width. */
static inline uint32_t tkv_half_dim(const struct tkv_coder *c)
{
    return c->dim / 2;
}

static inline unsigned tkv_half_bits(const struct tkv_coder *c, int h)
{
    return h ? c->codec->bits_second : c->codec->bits_first;
}

/* Halves in a block, which may lie at any address. */
static inline uint16_t tkv_load_half(const uint8_t *halves, size_t i)
{
    uint16_t h;

    memcpy(&h, halves + 2 * i, sizeof(h));
    return h;
}

static inline void tkv_store_half(uint8_t *halves, size_t i, uint16_t h)
{
    memcpy(halves + 2 * i, &h, sizeof(h));
}

/* Bytes of the rows of a key block: codes of half 0, of half 1, then the sketch. */
static inline size_t tkv_k_half_bytes(const struct tkv_coder *c, int h)
{
    return tkv_half_dim(c) * tkv_pack_bytes(TKV_BLOCK_TOKENS, tkv_half_bits(c, h));
}

static inline size_t tkv_k_codes_bytes(const struct tkv_coder *c)
{
    return tkv_k_half_bytes(c, 0) + tkv_k_half_bytes(c, 1);
}

static inline size_t tkv_k_sketch_bytes(const struct tkv_coder *c)
{
    return c->codec->qjl ? c->dim * tkv_pack_bytes(TKV_BLOCK_TOKENS, 1) : 0;
}

/* A value row: the planes of each half, over its coordinates padded to a multiple of 8. */
static inline size_t tkv_v_half_codes(const struct tkv_coder *c)
{
    return tkv_align(tkv_half_dim(c), 8);
}

static inline size_t tkv_v_half_bytes(const struct tkv_coder *c, int h)
{
    return tkv_pack_bytes(tkv_v_half_codes(c), tkv_half_bits(c, h));
}

static inline size_t tkv_v_row_bytes(const struct tkv_coder *c)
{
    return tkv_v_half_bytes(c, 0) + tkv_v_half_bytes(c, 1);
}

enum { TKV_HALVES_BYTES = TKV_BLOCK_TOKENS * 2 };

#endif /* TKV_CORE_CODEC_PRIV_H */
