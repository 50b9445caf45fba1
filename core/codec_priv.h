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
    /* [dim]; then, of qjl, 1 where the sketched residual is >= 0; of int8, the lower halves. */
    uint8_t codes[2 * TKV_MAX_HEAD_DIM];
    float scale;
    float residual; /* qjl: the length of what the codes leave */
};

/* Vectors coded together: as many as values have in a word. */
enum { TKV_CODED_TOKENS = 4 };

/* Which scale the best codecs store. */
enum tkv_scale_rule { TKV_SCALE_LENGTH, TKV_SCALE_LEAST_SQUARES };

/* A search for the pre-scale that codes some sections best, made ready. */
struct tkv_search {
    const struct tkv_section *sections;
    uint32_t n_sections;
    enum tkv_scale_rule rule;
    uint8_t levels[2][TKV_N_TRIALS][64]; /* of each section */
};

void tkv_search_init(struct tkv_search *search, const struct tkv_section *sections,
                     uint32_t n_sections, enum tkv_scale_rule rule);

/* The codes of y, whose length is norm > 0, with the best of the pre-scales of unit; returns the
 * scale, <y, v> / <v, v> or norm / |v|. */
float tkv_search_codes(const struct tkv_search *search, const struct tkv_kernels *kn,
                       const float *y, float norm, float unit, uint8_t *codes);

/* y[dim] = R x - mean, x being the first of some vectors, brought near 1 by 2^-exponent if need be;
 * returns its length. mean may be NULL: 0. */
float tkv_residual(const struct tkv_coder *c, const struct tkv_kernels *kn,
                   const struct tkv_vectors *x, const float *mean, float *y, int *exponent);

/* What the vectors of a block are coded with, for a rotated codec. */
struct tkv_coding {
    const struct tkv_coder *c;
    const struct tkv_kernels *kn;
    const float *mean; /* [dim] in the rotated domain, or NULL */
    float mean_room[TKV_MAX_HEAD_DIM];
    struct tkv_search search; /* of the best codecs */
};

void tkv_coding_init(struct tkv_coding *g, const struct tkv_coder *c, const struct tkv_kernels *kn,
                     enum tkv_side side, const void *mean);

/* out[TKV_CODED_TOKENS] = the codes of the first of x[n][dim]; those beyond n become 0. */
void tkv_code_vectors(const struct tkv_coding *g, struct tkv_vectors x, size_t n,
                      struct tkv_coded *out);

/* x[dim] = what a token's codes stand for, in the rotated domain, without sketch and mean. */
void tkv_decode_codes(const struct tkv_coder *c, const struct tkv_kernels *kn,
                      const struct tkv_coded *v, float *x);

/* codes[dim, and zeros to a multiple of 64] of a coded mean, which stand for its levels times the
 * number returned; if that is 0, so is the mean, or the codec has none: no codes. */
float tkv_mean_codes(const struct tkv_coder *c, enum tkv_side side, const void *mean,
                     uint8_t *codes);

/* m[dim] = a coded mean in the rotated domain; returns m, or NULL if it is zero or the
 * codec has none. */
const float *tkv_load_mean(const struct tkv_coder *c, const struct tkv_kernels *kn,
                           enum tkv_side side, const void *mean, float *m);

/* x as a half, saturated at 65504 if it is finite. */
uint16_t tkv_saturated(float x);

/* dst[n] = src as halves, finite ones saturated at 65504, at any address; n <= TKV_MAX_HEAD_DIM. */
void tkv_saturate(const struct tkv_kernels *kn, void *dst, const float *src, size_t n);

/* dst[dim] = the first of some vectors as halves, saturated, at any address. */
void tkv_saturate_vector(const struct tkv_kernels *kn, void *dst, struct tkv_vectors x, size_t dim);

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

enum { TKV_HALVES_BYTES = TKV_BLOCK_TOKENS * 2 };

/*
 *   offsets in a key block                      in a value block
 *   codes            2 * k_pair_bytes           64 halves           scales
 *   scales           64 halves                  mean_bytes          mean
 *   residual norms   qjl: 64 halves             the sections        codes
 *   mean             mean_bytes
 */
static inline size_t tkv_k_scales_at(const struct tkv_coder *c)
{
    return 2 * c->k_pair_bytes;
}

static inline size_t tkv_k_residuals_at(const struct tkv_coder *c)
{
    return tkv_k_scales_at(c) + TKV_HALVES_BYTES;
}

static inline size_t tkv_k_mean_at(const struct tkv_coder *c)
{
    return c->k_block_bytes - c->mean_bytes[TKV_KEYS];
}

static inline size_t tkv_v_mean_at(void)
{
    return TKV_HALVES_BYTES;
}

/* Sections of keys: with qjl, the sketch is the last. */
static inline uint32_t tkv_k_sections(const struct tkv_coder *c)
{
    return c->n_sections + (c->codec->qjl ? 1u : 0u);
}

/* Codes of a section; next: the block that is worked on after this one, or NULL. */
static inline struct tkv_codes tkv_key_codes(const struct tkv_coder *c, uint32_t section,
                                             const void *block, const void *next)
{
    const struct tkv_section *s = &c->section[section];

    return (struct tkv_codes){.bytes = (const uint8_t *)block + s->k_offset,
                              .stride = c->k_pair_bytes,
                              .n = s->n,
                              .w = s->w,
                              .level = s->level,
                              .next = next ? (const uint8_t *)next + s->k_offset : NULL};
}

static inline struct tkv_codes tkv_value_codes(const struct tkv_coder *c, uint32_t section,
                                               const void *block, const void *next)
{
    const struct tkv_section *s = &c->section[section];

    return (struct tkv_codes){.bytes = (const uint8_t *)block + s->v_offset,
                              .n = s->n,
                              .w = s->w,
                              .level = s->level,
                              .next = next ? (const uint8_t *)next + s->v_offset : NULL};
}

/* Coordinates of a section that are unpacked to a small tile, to be added to a larger one. */
enum { TKV_ADDED_DIM = 64 };

#endif /* TKV_CORE_CODEC_PRIV_H */
