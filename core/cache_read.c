/*
 * Tokens of a cache, decoded. Nothing here is fast: attention never needs it, engines that want
 * their cache back do.
 */
#include "core/cache.h"

#include <string.h>

#include "core/half.h"

uint64_t tkv_cache_n_kept(const struct tkv_cache *c, uint32_t kv_head)
{
    return (uint64_t)c->pinned.n + c->heads[kv_head].n_cold + c->tail.n;
}

bool tkv_cache_is_exact(const struct tkv_cache *c, const struct tkv_cache_read *r)
{
    const uint64_t cold_end = (uint64_t)c->pinned.n + c->heads[r->kv_head].n_cold;

    return (!c->tiers->k->codec->rotated && !c->tiers->v->codec->rotated) || r->first >= cold_end ||
           r->first + r->n_tokens <= c->pinned.n;
}

/* Token i of the request gets these values. */
static void put(void *to, size_t i, size_t stride, enum tkv_dtype dtype, const float *x, size_t dim)
{
    uint16_t *halves = (uint16_t *)to + i * stride;

    if (dtype == TKV_F32) {
        memcpy((float *)to + i * stride, x, dim * sizeof(float));
        return;
    }
    for (size_t j = 0; j < dim; j++) {
        /* What is stored is at most 65504; what is decoded of it may be a little more. */
        const float bounded = x[j] > 65504 ? 65504 : x[j] < -65504 ? -65504 : x[j];

        halves[j] = tkv_f32_to_f16(bounded);
    }
}

static void put_halves(void *to, size_t i, size_t stride, enum tkv_dtype dtype, const uint16_t *x,
                       size_t dim)
{
    if (dtype == TKV_F16) {
        memcpy((uint16_t *)to + i * stride, x, dim * sizeof(*x));
        return;
    }
    for (size_t j = 0; j < dim; j++)
        ((float *)to)[i * stride + j] = tkv_f16_to_f32(x[j]);
}

/* Of a range of `n` tokens that begins `at` tokens into the cache: those that are asked for. */
struct overlap {
    size_t from; /* in the range */
    size_t n;
    size_t to; /* in the request */
};

static struct overlap overlap_of(const struct tkv_cache_read *r, uint64_t at, size_t n)
{
    const uint64_t begin = r->first > at ? r->first : at;
    const uint64_t end = r->first + r->n_tokens < at + n ? r->first + r->n_tokens : at + n;

    if (begin >= end)
        return (struct overlap){0};
    return (struct overlap){
        .from = (size_t)(begin - at), .n = (size_t)(end - begin), .to = (size_t)(begin - r->first)};
}

static void read_halves(const struct tkv_cache *c, const struct tkv_half_run *run, uint64_t at,
                        const struct tkv_cache_read *r)
{
    const struct overlap o = overlap_of(r, at, run->n);
    const size_t dk = c->shape.head_dim_k;
    const size_t dv = c->shape.head_dim_v;
    const bool latents = c->shape.rope_dim > 0;
    const size_t row = (size_t)r->kv_head * run->cap + o.from;

    for (size_t i = 0; i < o.n; i++) {
        put_halves(r->k, o.to + i, r->k_stride, r->dtype, run->k + (row + i) * dk, dk);
        put_halves(r->v, o.to + i, r->v_stride, r->dtype,
                   latents ? run->k + (row + i) * dk : run->v + (row + i) * dv, dv);
        r->positions[o.to + i] = run->positions[o.from + i];
    }
}

static void read_block(const struct tkv_cache *c, const struct tkv_block *b, uint64_t at,
                       const struct tkv_cache_read *r)
{
    const struct tkv_block_layout *l = &c->tiers[b->tier];
    const struct overlap o = overlap_of(r, at, b->n_tokens);
    void *block = tkv_cache_at(c, b->id);
    float x[TKV_MAX_HEAD_DIM];

    for (size_t i = 0; i < o.n; i++) {
        const size_t t = o.from + i;

        tkv_block_decode_key(l, c->kn, block, t, x);
        put(r->k, o.to + i, r->k_stride, r->dtype, x, c->shape.head_dim_k);
        tkv_block_decode_value(l, c->kn, block, t, x);
        put(r->v, o.to + i, r->v_stride, r->dtype, x, c->shape.head_dim_v);
        r->positions[o.to + i] = b->first_position + tkv_block_positions(l, block)[t];
    }
}

void tkv_cache_read(const struct tkv_cache *c, const struct tkv_cache_read *r)
{
    const struct tkv_head *h = &c->heads[r->kv_head];
    uint64_t at = c->pinned.n;

    read_halves(c, &c->pinned, 0, r);
    for (uint32_t i = 0; i < h->n_blocks; i++) {
        read_block(c, &h->blocks[i], at, r);
        at += h->blocks[i].n_tokens;
    }
    read_halves(c, &c->tail, at, r);
}
