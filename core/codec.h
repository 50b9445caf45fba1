/*
 * Codecs: how a vector of a cache becomes bits, and how a block of codes becomes
 * a tile that attention works on. Nothing outside core names a codec except by
 * its id or its name.
 *
 *   name       bits per value (codes only)   method
 *   f16        16                            halves, not rotated
 *   int8       8     256 equal steps between the largest coordinate and its negative
 *   tq4        4     TurboQuant_mse codes of what a block's mean leaves, scale searched
 *   tq3.5      4 | 3 the first half of the rotated coordinates gets the larger width
 *   tq3        3
 *   tq2.5      3 | 2
 *   tq2        2
 *   tq1        1                         signs, for caches that must be very small
 *   tqN-paper  TurboQuant_mse (arXiv 2504.19874, Algorithm 1): no mean, the paper's scale
 *   tqN-qjl    TurboQuant_prod (Algorithm 2), N = 4, 3, 2: N-1 bits of codes and
 *              one of a sign sketch of the residual; keys only; unbiased
 *
 * A coder is a codec made ready for one head_dim: rotation, codebooks, sizes. It
 * is read-only once made and may be used by many threads.
 *
 * Levels. The rotated vector y has codes of w bits for t = y / s, s = |y| / sqrt(d), which has
 * unit variance. A code stands for alpha * level, an integer of at most 63 (1.5 of the
 * codebooks' numbers, rounded so that the error grows by .2 % at most), so that
 * every CPU gets the same sums:
 *
 *   w = 1: +-1   2: +-12 40   3: +-7 22 39 62   4: +-3 9 15 21 28 36 46 61
 *
 * alpha is the least-squares factor from levels to the Lloyd-Max centroids of core/codebook.h, and
 * the edges between codes lie midway between neighbours, rounded to 2^-13.
 *
 * int8 codes a coordinate by u = 0..255, which stands for (2 u - 255) / 16 of the token's scale, in
 * two sections of all coordinates: u / 16, at levels -15, -13, ..., 15, and u % 16, at the same
 * levels, a sixteenth as much. So it is two codes of 4 bits for every kernel, which add up. The
 * scale puts the largest coordinate in the middle of its outermost step.
 *
 * Stored scale, as a half, saturated at 65504; a zero vector has scale 0. `paper` and
 * `qjl` store s. The others try pre-scales f, code y / (f s), and keep the codes v = alpha *
 * level with the largest <y, v>^2 / <v, v>, which leave the smallest error (the f is chosen on y
 * rounded to 7 bits, in integers: kernel try_scales; the codes are then exact); values
 * store the least-squares scale <y, v> / <v, v>, keys |y| / |v|, which keeps the length.
 *
 * Mean. The best codecs code y - m, where m is the mean of some tokens, itself coded: levels of
 * its rotated coordinates, 4 bits for keys and 3 for values, and one half scale. It lies once in the block, and is exact
 * under softmax: its dot product with the query is added to all logits of the block,
 * its value is weighted by the sum of the weights. A coder may be made to leave it out.
 *
 * A block holds up to 64 tokens of one KV head, keys or values. A token can be copied to another
 * block with the same mean bytes without coding it again.
 *
 *   key block     tokens 0..31, then 32..63: the sections of codes, one for each half of the
 *                 coordinates if their widths differ, for int8 the two halves of a code, else one
 *                 for all, as core/pack.h draws them (qjl: then one of sign bits, 1: >= 0); then
 *                 64 scales (half); qjl: then 64 residual norms (half), of what the codes with
 *                 the scale as stored leave of the rotated key; then the mean, if any:
 *                 scale (half), then its codes in planes: of 4 bits, or of the low 2 bits
 *                 and then of bit 2. In a plane of b bits over n codes, n = dim padded
 *                 to a multiple of 16, code i is in byte i % (n b / 8) from bit
 *                 b (i / (n b / 8)) on.
 *   value block   64 scales; the mean; the sections of codes, as core/pack.h draws them.
 *   f16           key block [dim][64] halves, value block [64][dim] halves, saturated at
 *                 65504.
 *
 * All numbers little-endian. The unused lanes of a block of n < 64 tokens are zero. This is
 * version 2 of the format (1 had bit planes in rows of 64 tokens, and no mean).
 */
#ifndef TKV_CORE_CODEC_H
#define TKV_CORE_CODEC_H

#include "core/cells.h"
#include "core/rotation.h"
#include "core/types.h"

struct tkv_kernels;

/* Wire and shared-memory values: never renumbered. */
enum tkv_codec_id {
    TKV_CODEC_F16 = 1,
    TKV_CODEC_INT8 = 8,
    TKV_CODEC_TQ1 = 15,
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
    uint8_t bits_first;  /* of the first half of the coordinates; 16 for f16, 8 for int8 */
    uint8_t bits_second; /* of the second half */
    bool rotated;
    bool best; /* mean and searched scale, else the paper's rule */
    bool qjl;  /* keys only */
};

/* All codecs, ended by an entry with a NULL name; find by name or id: NULL if there is none. */
extern const struct tkv_codec tkv_codecs[];
const struct tkv_codec *tkv_codec_by_name(const char *name);
const struct tkv_codec *tkv_codec_by_id(uint32_t id);

/* What a vector is: an index of what differs. */
enum tkv_side { TKV_KEYS = 0, TKV_VALUES = 1 };

/* Coordinates coded alike. */
struct tkv_section {
    uint32_t first; /* row of a key tile */
    uint32_t code;  /* place of the first code in struct tkv_coded */
    uint32_t n;
    uint32_t w;
    uint32_t slot;   /* place of the first in a list padded to whole units of each section */
    size_t k_offset; /* bytes from the start of 32 tokens */
    size_t v_offset;
    bool adds; /* int8: to what the section before gives the same coordinates */
    float alpha;
    int8_t level[16];
    float levels[16]; /* the same */
    float lut[16];    /* alpha * level */
    struct tkv_cells cells;
};

enum { TKV_MAX_SECTIONS = 3, TKV_MAX_MEAN_BYTES = TKV_MAX_HEAD_DIM / 2 + 2 };

struct tkv_coder {
    const struct tkv_codec *codec;
    uint32_t dim;
    uint32_t tile_dim;   /* rows of a key tile: dim, or 2 * dim with a QJL sketch */
    uint32_t n_sections; /* of codes; with qjl, section[n_sections] is the sketch, of keys only */
    uint32_t n_slots;
    struct tkv_section section[TKV_MAX_SECTIONS];
    struct tkv_section mean[2]; /* how means are coded, by tkv_side; offsets unused */
    size_t mean_bytes[2];       /* 0: no mean */
    size_t k_pair_bytes;        /* of 32 tokens' codes */
    size_t k_block_bytes;
    size_t v_block_bytes;  /* 0 for a qjl codec */
    size_t v_codes_offset; /* worth aligning; those of keys come first in their block */
    struct tkv_rotation rotation;
    struct tkv_rotation sketch;        /* qjl: applied to the rotated residual, own signs */
    float sketch_scale;                /* qjl: 1 / (d * E|u_1|), makes the estimate unbiased */
    float room[2 * TKV_ROTATION_ROOM]; /* what the rotations need of it: tkv_coder_bytes */
};

/* A coder of this codec looks at no more of its memory than these bytes, a multiple of 64, so that
 * one may lie in so many. It must stay where it was made. */
size_t tkv_coder_bytes(const struct tkv_codec *codec, uint32_t dim);

/* The seed of every rotation, since format version 1. */
#define TKV_ROTATION_SEED UINT64_C(0x5472694b56000001)

/* Make *c ready; dim is checked. Returns NULL, or a static text that says what is wrong.
 * Computes codebooks: milliseconds. */
const char *tkv_coder_init(struct tkv_coder *c, const struct tkv_codec *codec, uint32_t dim,
                           uint64_t seed);

/* The same without means, for blocks whose tokens come from many others: called right after init. */
void tkv_coder_drop_means(struct tkv_coder *c);

/* mean[mean_bytes[side]] = the mean of n vectors x of dim elements, coded; nothing if the codec has none.
 * n = 0: zero. */
void tkv_code_mean(const struct tkv_coder *c, const struct tkv_kernels *kn, enum tkv_side side,
                   struct tkv_vectors x, size_t n, void *mean);

/* Encode n <= 64 vectors x of dim elements, all finite, into block (k_block_bytes / v_block_bytes), which
 * gets this mean (mean_bytes, as tkv_code_mean makes it, or any other). Same bytes on every CPU, and
 * the same from halves as from floats that equal them. */
void tkv_encode_keys(const struct tkv_coder *c, const struct tkv_kernels *kn, const void *mean,
                     struct tkv_vectors x, size_t n, void *block);
void tkv_encode_values(const struct tkv_coder *c, const struct tkv_kernels *kn, const void *mean,
                       struct tkv_vectors x, size_t n, void *block);

/* The key tile of a block: tile[tile_dim][64], in the codec's rotated domain, scales applied and
 * the mean added.
 * The logit of query q and token t is the dot product of tkv_code_query(q) and lane t. */
void tkv_key_tile(const struct tkv_coder *c, const struct tkv_kernels *kn, const void *block,
                  float *tile);

/* The first n value rows of a block: rows[n][dim], rotated domain, scales applied and the
 * mean added. */
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

/* The mean of a block, coded (mean_bytes). */
const void *tkv_key_mean(const struct tkv_coder *c, const void *block);
const void *tkv_value_mean(const struct tkv_coder *c, const void *block);

/* Give a block this mean (mean_bytes). */
void tkv_put_key_mean(const struct tkv_coder *c, void *block, const void *mean);
void tkv_put_value_mean(const struct tkv_coder *c, void *block, const void *mean);

/* Tokens of one block: a bit for each lane. */
struct tkv_lane_run {
    const void *block;
    uint64_t lanes;
};

/* The tokens of runs, at most 64 and one of each run at least, in the order in which they come to
 * lie in a new block. A view of the runs. */
struct tkv_gather {
    const struct tkv_lane_run *runs;
    size_t n_runs, n;
    uint8_t first[TKV_BLOCK_TOKENS + 1]; /* place of each run's first token; then n */
    uint8_t run[TKV_BLOCK_TOKENS];       /* of each token */
    uint8_t lane[TKV_BLOCK_TOKENS + 16]; /* of each token in its block; then 255 */
};

void tkv_gather_init(struct tkv_gather *g, const struct tkv_lane_run *runs, size_t n_runs);

/*
 * Fill a block with tokens of other blocks of this coder, bits unchanged; they must all have the
 * same mean, which the block gets too (with no tokens, none). Values, and halves in general, lie
 * `offset` bytes after the start of a block; those of unused lanes become 0.
 */
void tkv_gather_keys(const struct tkv_coder *c, const struct tkv_kernels *kn, void *block,
                     const struct tkv_gather *g);
void tkv_gather_values(const struct tkv_coder *c, const struct tkv_kernels *kn, void *block,
                       const struct tkv_gather *g, size_t offset);
void tkv_gather_bytes(const struct tkv_kernels *kn, void *dst, const struct tkv_gather *g,
                      size_t offset);
void tkv_gather_halves(const struct tkv_kernels *kn, void *dst, const struct tkv_gather *g,
                       size_t offset);

#endif /* TKV_CORE_CODEC_H */
