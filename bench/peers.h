/*
 * What others do, for comparison only: attention over caches of ggml-style q8_0 and q4_0 rows.
 * Written for this program from the description of the formats: 32 numbers share a half as
 * scale d, q8_0 stores them as int8 (x = d * q), q4_0 as nibbles (x = d * (q - 8)). A token is a
 * row of blocks, keys and values alike.
 *
 * It is kinder to the formats than the usual code is: query heads share the unpacking, softmax
 * runs over 64 tokens at a time with a vector exp, and dot products are int8 with the best
 * instruction there is.
 */
#ifndef TKV_BENCH_PEERS_H
#define TKV_BENCH_PEERS_H

#include "core/types.h"
#include "tools/reason.h"

enum tkv_peer_format { TKV_PEER_Q8_0 = 0, TKV_PEER_Q4_0 = 1 };

enum {
    TKV_PEER_BLOCK = 32, /* numbers that share a scale */
    TKV_PEER_MAX_DIM = 512,
    TKV_PEER_MAX_GROUP = 16,
    TKV_PEER_STEP_TOKENS = 64, /* of one softmax step */
};

static inline size_t tkv_peer_row_bytes(enum tkv_peer_format f, uint32_t dim)
{
    return dim / TKV_PEER_BLOCK * (f == TKV_PEER_Q8_0 ? 34u : 18u);
}

/* One KV head: token rows, keys and values. */
struct tkv_peer_head {
    enum tkv_peer_format format;
    uint32_t dim;   /* a multiple of 32, at most TKV_PEER_MAX_DIM */
    uint32_t group; /* at most TKV_PEER_MAX_GROUP */
    size_t n_tokens;
    const uint8_t *k;
    const uint8_t *v;
};

/* Working memory of one head, any contents. */
struct tkv_peer_work {
    _Alignas(64) float rows[TKV_PEER_STEP_TOKENS * TKV_PEER_MAX_DIM];
    _Alignas(64) float acc[TKV_PEER_MAX_GROUP][TKV_PEER_MAX_DIM];
    _Alignas(64) float logits[TKV_PEER_MAX_GROUP][TKV_PEER_STEP_TOKENS];
    _Alignas(64) int8_t q[TKV_PEER_MAX_GROUP][TKV_PEER_MAX_DIM];
    float q_scale[TKV_PEER_MAX_GROUP][TKV_PEER_MAX_DIM / TKV_PEER_BLOCK];
    float max[TKV_PEER_MAX_GROUP];
    float sum[TKV_PEER_MAX_GROUP];
};

/* The functions of one instruction set. */
struct tkv_peer_kernels {
    const char *name;
    /* A sum over bytes[n], n a multiple of 512: nothing but reading. */
    uint64_t (*read)(const void *bytes, size_t n);
    /* x[dim] to a row. */
    void (*encode)(enum tkv_peer_format f, uint8_t *row, const float *x, uint32_t dim);
    /* Decode attention of one query token: q[group][dim], out[group][dim], logits * scale. */
    void (*attend)(const struct tkv_peer_head *h, const float *q, float scale, float *out,
                   struct tkv_peer_work *w);
};

/* The best that this CPU has, minus the instruction sets named in `disable` (core/cpu.h). */
const struct tkv_peer_kernels *tkv_peer_kernels_best(const char *disable);

/* Decode a row to x[dim], plainly. */
void tkv_peer_decode(enum tkv_peer_format f, const uint8_t *row, uint32_t dim, float *x);

/* A cache of random tokens in n_layers layers, and one attention step of a layer of it. */
struct tkv_peer_cache;

struct tkv_peer_size {
    enum tkv_peer_format format;
    uint32_t dim;
    uint32_t n_kv_heads;
    uint32_t group;
    uint32_t n_layers;
    size_t n_tokens;
};

/* Whether the formats and the code here have room for this shape. */
bool tkv_peer_fits(uint32_t dim, uint32_t group);

int tkv_peer_cache_create(struct tkv_peer_cache **cache, const struct tkv_peer_size *size,
                          const struct tkv_peer_kernels *kn, uint64_t seed, struct tkv_reason *why);
void tkv_peer_cache_destroy(struct tkv_peer_cache **cache);

/* q and out are [n_kv_heads * group][dim]. */
void tkv_peer_cache_attend(struct tkv_peer_cache *cache, uint32_t layer, const float *q, float *out,
                           const struct tkv_exec *exec);

/* The relative error of `out`, KV head 0 only, against plain attention on the decoded rows: no
 * comparison with code that does not do the work. */
double tkv_peer_cache_error(const struct tkv_peer_cache *cache, uint32_t layer, const float *q,
                            const float *out);

#endif /* TKV_BENCH_PEERS_H */
