/*
 * How attention over a cache is cut up: batches of queries, and ranges of the tokens of a long head;
 * and the memory that each piece of work wants.
 */
#include "core/cache_priv.h"

#include "core/fused.h"

/* Query tokens worked on at once: enough to pay for unpacking a block, few enough that their
 * partial results stay in the cache. */
enum { MAX_ROWS = 512, MAX_BATCH_TOKENS = 128 };

/* Up to so many rows a block is attended to in its codes: unpacking it costs more (measured: even
 * at 32 rows with AVX2, later with AVX-512). */
enum { MAX_FUSED_ROWS = 32 };

/*
 * A range has at least so many cold tokens, and so many for every KV head: to begin one costs as
 * much as some 500 (measured), and heads are shared out anyway. There are at most so many in all,
 * which bounds their memory; rows that are many take much of it.
 */
enum { RANGE_TOKENS = 8192, RANGE_TOKENS_PER_HEAD = 4096, MAX_RANGES = 64, MAX_WIDE_RANGES = 16 };

bool tkv_cache_is_fused(const struct tkv_cache *c, size_t n_rows)
{
    return n_rows <= MAX_FUSED_ROWS && tkv_cache_any_tier(c)->raw_dim == 0 &&
           tkv_fused_keys(tkv_cache_any_tier(c)->k) && tkv_fused_values(tkv_cache_any_tier(c)->v);
}

static size_t fused_bytes(const struct tkv_cache *c, size_t n_rows)
{
    size_t most = 0;

    for (uint32_t i = 0; i < c->n_tiers; i++) {
        const size_t bytes = tkv_fused_bytes(c->tiers[i].k, n_rows);

        most = bytes > most ? bytes : most;
    }
    return most;
}

static void *take(uint8_t *base, size_t *at, size_t bytes)
{
    void *p = base ? base + *at : NULL;

    *at += tkv_align(bytes, 64);
    return p;
}

struct tkv_work tkv_work_layout(const struct tkv_cache *c, uint32_t batch_tokens, uint32_t range,
                                uint8_t *base)
{
    const struct tkv_shape *shape = &c->shape;
    const size_t rows = (size_t)batch_tokens * tkv_group(shape);
    const uint32_t tile_dim = tkv_block_tile_dim(tkv_cache_any_tier(c));
    const uint32_t widest = tile_dim > shape->head_dim_k ? tile_dim : shape->head_dim_k;
    const bool tiles = !tkv_cache_is_fused(c, rows), first = range == 0;
    struct tkv_work w = {0};
    size_t at = 0;

    w.cold = take(base, &at, sizeof(*w.cold));
    w.half = take(base, &at, first ? sizeof(*w.half) : 0);
    w.q = take(base, &at, rows * shape->head_dim_k * sizeof(float));
    w.coded = take(base, &at, rows * tile_dim * sizeof(float));
    w.tile = take(base, &at, tiles ? (size_t)tile_dim * TKV_BLOCK_TOKENS * sizeof(float) : 0);
    w.values =
        take(base, &at, tiles ? (size_t)shape->head_dim_v * TKV_BLOCK_TOKENS * sizeof(float) : 0);
    w.out = take(base, &at, first ? rows * shape->head_dim_v * sizeof(float) : 0);
    w.lse = take(base, &at, first ? rows * sizeof(float) : 0);
    w.cold_memory = take(base, &at, tkv_partial_bytes(rows, shape->head_dim_v));
    w.half_memory = take(base, &at, first ? tkv_partial_bytes(rows, shape->head_dim_v) : 0);
    w.scratch = take(
        base, &at, first || tiles ? tkv_attend_scratch_bytes(rows, widest, shape->head_dim_v) : 0);
    /* Also with more rows: what is left of a request may be few, in memory made for many. */
    if (tkv_cache_is_fused(c, 1))
        w.fused = take(base, &at, fused_bytes(c, rows < MAX_FUSED_ROWS ? rows : MAX_FUSED_ROWS));
    w.bytes = at;
    return w;
}

uint32_t tkv_cache_ranges(const struct tkv_cache *c, uint64_t n_cold, uint32_t batch_tokens)
{
    const size_t n_rows = (size_t)batch_tokens * tkv_group(&c->shape);
    const uint32_t n_heads = c->shape.n_kv_heads;
    const uint64_t least = (uint64_t)RANGE_TOKENS_PER_HEAD * n_heads;
    const uint64_t n = n_cold / (least > RANGE_TOKENS ? least : RANGE_TOKENS);
    const uint32_t all = tkv_cache_is_fused(c, n_rows) ? MAX_RANGES : MAX_WIDE_RANGES;
    const uint32_t most = n_heads < all ? all / n_heads : 1;

    return n > most ? most : n > 1 ? (uint32_t)n : 1;
}

uint32_t tkv_cache_batch(const struct tkv_cache *c, uint32_t n_tokens)
{
    uint32_t n = MAX_ROWS / tkv_group(&c->shape);

    if (n > MAX_BATCH_TOKENS)
        n = MAX_BATCH_TOKENS;
    return n < n_tokens ? n : n_tokens;
}

uint32_t tkv_cache_longest(const struct tkv_cache *c)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < c->shape.n_kv_heads; i++)
        n = c->heads[i].n_cold > n ? c->heads[i].n_cold : n;
    return n;
}

static size_t bytes_for(const struct tkv_cache *c, uint32_t batch_tokens, uint64_t n_cold)
{
    const uint32_t n = tkv_cache_ranges(c, n_cold, batch_tokens);
    size_t bytes = tkv_work_layout(c, batch_tokens, 0, NULL).bytes;

    if (n > 1)
        bytes += (n - 1) * tkv_work_layout(c, batch_tokens, 1, NULL).bytes;
    return c->shape.n_kv_heads * bytes;
}

/* Also for a part of the tokens, while the others fold to blocks: fewer rows may have more ranges. */
size_t tkv_cache_attend_bytes(const struct tkv_cache *c, uint32_t n_tokens)
{
    const uint64_t n_cold = (uint64_t)tkv_cache_longest(c) + c->tail.n + n_tokens;
    const uint32_t batch = tkv_cache_batch(c, n_tokens);
    const uint32_t few = MAX_FUSED_ROWS / tkv_group(&c->shape);
    const size_t bytes = bytes_for(c, batch, n_cold);
    const size_t with_few = few && few < batch ? bytes_for(c, few, n_cold) : 0;

    return bytes > with_few ? bytes : with_few;
}
