/*
 * Codecs: how a vector of a cache becomes bits, and how a block of codes becomes
 * a tile that attention works on. Nothing outside core names a codec except by
 * its id or its name.
 *
 *   name       bits per value (codes only)   method
 *   f16        16                            halves, not rotated
 *   tq4        4     TurboQuant_mse, Lloyd-Max codes, norm-corrected scale
 *   tq3.5      4 | 3 the first half of the rotated coordinates gets the larger width
 *   tq3        3
 *   tq2.5      3 | 2
 *   tq2        2
 *   tqN-paper  the same codes, the paper's scale rule (arXiv 2504.19874, Algorithm 1)
 *   tqN-qjl    TurboQuant_prod (Algorithm 2), N = 4, 3, 2: N-1 bits of codes and
 *              one of a sign sketch of the residual; keys only; unbiased
 *
 * A coder is a codec made ready for one head_dim: rotation, codebooks, sizes. It
 * is read-only once made and may be used by many threads.
 *
 * Stored scale. t = rotated x / s has unit variance with s = |x| / sqrt(d); codes
 * are those of t. `paper` stores s; the norm-corrected rule stores
 * |x| / |c|, c being the chosen centroids, so that the decoded vector has the
 * length of x. As a half, saturated at 65504; a zero vector has scale 0.
 *
 * A block holds up to 64 tokens of one KV head, keys or values, and never spans
 * tokens with a shared parameter: a token can be copied to another block without
 * coding it again. Codes of w bits are stored in planes: the nibble plane (w = 4),
 * or the 2-bit plane of the low bits (w = 2, 3) followed by the 1-bit plane of
 * bit 2 (w = 3) or of bit 0 (w = 1). In a plane of b-bit fields over n codes, n
 * a multiple of 8, code j sits in byte j % (n*b/8) at bit b * (j / (n*b/8)).
 *
 *   key block     for each rotated coordinate one row of 64 tokens (8 * w bytes);
 *                 then 64 scales (half). qjl: the rows hold w = N-1 bits, then for
 *                 each sketch coordinate one row of 64 sign bits (8 bytes; 1: >= 0), then
 *                 scales, then 64 residual norms (half). The residual is what the codes
 *                 with the scale as stored leave of the rotated key.
 *   value block   for each of 64 tokens one row: the planes of the first half of
 *                 the coordinates (padded to a multiple of 8 codes), then of the
 *                 second half; then 64 scales (half).
 *   f16           key block [dim][64] halves, value block [64][dim] halves, saturated at
 *                 65504.
 *
 * All numbers little-endian. The unused lanes of a block of n < 64 tokens are zero.
 */
#ifndef TKV_CORE_CODEC_H
#define TKV_CORE_CODEC_H

#include "core/rotation.h"
#include "core/types.h"

struct tkv_kernels;

/* Wire and shared-memory values: never renumbered. */
enum tkv_codec_id {
    TKV_CODEC_F16 = 1,
    TKV_CODEC_TQ2 = 16,
    TKV_CODEC_TQ2_5 = 17,
    TKV_CODEC_TQ3 = 18,
    TKV_CODEC_TQ3_5 = 19,
    TKV_CODEC_TQ4 = 20,
    TKV_CODEC_TQ2_PAPER = 32,
    TKV_CODEC_TQ2_5_PAPER = 33,
    TKV_CODEC_TQ3_PAPER = 34,
    TKV_CODEC_TQ3_5_PAPER = 35,
    TKV_CODEC_TQ4_PAPER = 36,
    TKV_CODEC_TQ2_QJL = 48,
    TKV_CODEC_TQ3_QJL = 50,
    TKV_CODEC_TQ4_QJL = 52,
};

struct tkv_codec {
    enum tkv_codec_id id;
    const char *name;
    uint8_t bits_first;  /* of the first half of the coordinates; 16 for f16 */
    uint8_t bits_second; /* of the second half */
    bool rotated;
    bool paper_scale;
    bool qjl; /* keys only */
};

/* All codecs, ended by an entry with a NULL name; find by name or id: NULL if there is none. */
extern const struct tkv_codec tkv_codecs[];
const struct tkv_codec *tkv_codec_by_name(const char *name);
const struct tkv_codec *tkv_codec_by_id(uint32_t id);

struct tkv_coder {
    const struct tkv_codec *codec;
    uint32_t dim;
    uint32_t tile_dim; /* rows of a key tile: dim, or 2 * dim with a QJL sketch */
    size_t k_block_bytes;
    size_t v_block_bytes; /* 0 for a qjl codec */
    struct tkv_rotation rotation;
    struct tkv_rotation sketch; /* qjl: applied to the rotated residual, own signs */
    float lut[2][16];           /* centroids of the first and second half, unit variance */
    float edge[2][15];          /* boundaries, ascending */
    float sketch_scale;         /* qjl: 1 / (d * E|u_1|), makes the estimate unbiased */
};

/* The seed of every rotation of format version 1. */
#define TKV_ROTATION_SEED UINT64_C(0x5472694b56000001)

/* Make *c ready; dim is checked. Returns NULL, or a static text that says what is wrong.
 * Computes codebooks: milliseconds. */
const char *tkv_coder_init(struct tkv_coder *c, const struct tkv_codec *codec, uint32_t dim,
                           uint64_t seed);

/* Encode n <= 64 vectors x[n][dim], all finite, into block (k_block_bytes / v_block_bytes).
 * Same bytes on every CPU. */
void tkv_encode_keys(const struct tkv_coder *c, const struct tkv_kernels *kn, const float *x,
                     size_t n, void *block);
void tkv_encode_values(const struct tkv_coder *c, const struct tkv_kernels *kn, const float *x,
                       size_t n, void *block);

/* The key tile of a block: tile[tile_dim][64], in the codec's rotated domain, scales applied.
 * The logit of query q and token t is the dot product of tkv_code_query(q) and lane t. */
void tkv_key_tile(const struct tkv_coder *c, const struct tkv_kernels *kn, const void *block,
                  float *tile);

/* The first n value rows of a block: rows[n][dim], rotated domain, scales applied. */
void tkv_value_rows(const struct tkv_coder *c, const struct tkv_kernels *kn, const void *block,
                    size_t n, float *rows);

/* out[tile_dim] = the query q[dim] as key tiles want it: rotated, then sketched if qjl. */
void tkv_code_query(const struct tkv_coder *c, const struct tkv_kernels *kn, const float *q,
                    float *out);

/* A weighted sum of value rows, back in the original domain, in place: acc[dim]. */
void tkv_uncode_value(const struct tkv_coder *c, const struct tkv_kernels *kn, float *acc);

/* Decode token t of a key or value block to x[dim] in the original domain (tests, tools). */
void tkv_decode_key(const struct tkv_coder *c, const struct tkv_kernels *kn, const void *block,
                    size_t t, float *x);
void tkv_decode_value(const struct tkv_coder *c, const struct tkv_kernels *kn, const void *block,
                      size_t t, float *x);

/* Copy token `from` of block src to lane `to` of block dst, bits unchanged. The lane of dst
 * must be zero (a fresh block). */
void tkv_copy_key(const struct tkv_coder *c, void *dst, size_t to, const void *src, size_t from);
void tkv_copy_value(const struct tkv_coder *c, void *dst, size_t to, const void *src, size_t from);

#endif /* TKV_CORE_CODEC_H */
