/*
 * New blocks from tokens of others, their bits unchanged: what a round does with its survivors.
 * Codes move tile by tile in kernels; this file says which, and moves what each token has beside
 * its codes. Which tokens, and what else a block of the store holds, is left to the caller.
 */
#include <assert.h>

#include "core/codec_priv.h"

enum { MOST_PICKS = 2 * TKV_BLOCK_TOKENS + 2, NONE = 0x80 };

void tkv_gather_init(struct tkv_gather *g, const struct tkv_lane_run *runs, size_t n_runs)
{
    g->runs = runs;
    g->n_runs = n_runs;
    g->n = 0;
    for (size_t r = 0; r < n_runs; r++) {
        g->first[r] = (uint8_t)g->n;
        for (uint64_t left = runs[r].lanes; left; left &= left - 1) {
            assert(g->n < TKV_BLOCK_TOKENS);
            g->lane[g->n++] = (uint8_t)__builtin_ctzll(left);
        }
    }
    g->first[n_runs] = (uint8_t)g->n;
    memset(g->lane + g->n, 0, sizeof(g->lane) - g->n);
}

/* Places a .. b of a tile are from here, the others not. */
static void limit(uint8_t *from, const uint8_t *lanes, unsigned tile_tokens, unsigned a, unsigned b)
{
    static const uint8_t outside[48] = {
        NONE, NONE, NONE, NONE, NONE, NONE,        NONE, NONE, NONE, NONE, NONE,
        NONE, NONE, NONE, NONE, NONE, [32] = NONE, NONE, NONE, NONE, NONE, NONE,
        NONE, NONE, NONE, NONE, NONE, NONE,        NONE, NONE, NONE, NONE};
    typedef uint8_t bytes16 __attribute__((vector_size(16)));
    bytes16 lane, low, high;

    memcpy(&lane, lanes, sizeof(lane));
    memcpy(&low, outside + 16 - a, sizeof(low));
    memcpy(&high, outside + 32 - b, sizeof(high));
    lane = (lane & (uint8_t)(tile_tokens - 1)) | low | high;
    memcpy(from, &lane, sizeof(lane));
}

/*
 * Tiles of the new block, each from a few tiles of others. What one tile has fills at most two of
 * the new ones; both are written, and counted if there is something in them: a processor could
 * not guess whether there is.
 */
static size_t plan_picks(struct tkv_pick *picks, const struct tkv_gather *g, size_t offset,
                         unsigned tile_tokens)
{
    struct tkv_pick *p = picks;

    for (size_t r = 0; r < g->n_runs; r++) {
        const uint8_t *block = (const uint8_t *)g->runs[r].block + offset;
        unsigned at = g->first[r];

        for (unsigned lane = 0; lane < TKV_BLOCK_TOKENS; lane += tile_tokens) {
            const uint8_t tile = (uint8_t)(lane / tile_tokens), to = (uint8_t)(at / tile_tokens);
            const unsigned a = at % tile_tokens;
            unsigned b = a;

            for (unsigned i = lane; i < lane + tile_tokens; i += 4) /* bits in each four */
                b += UINT64_C(0x4332322132212110) >> (g->runs[r].lanes >> i & 15) * 4 & 15;
            at += b - a;
            p->block = block, p->tile = tile, p->to = to;
            limit(p->from, g->lane + to * tile_tokens, tile_tokens, a,
                  b < tile_tokens ? b : tile_tokens);
            p += b > a;
            p->block = block, p->tile = tile, p->to = to + 1;
            limit(p->from, g->lane + (to + 1u) * tile_tokens, tile_tokens, 0,
                  b > tile_tokens ? b - tile_tokens : 0);
            p += b > tile_tokens;
        }
    }
    return (size_t)(p - picks);
}

void tkv_gather_halves(const struct tkv_kernels *kn, void *dst, const struct tkv_gather *g,
                       size_t offset)
{
    uint16_t halves[TKV_BLOCK_TOKENS] = {0};

    for (size_t r = 0; r < g->n_runs; r++)
        kn->pick_halves(halves + g->first[r], (const uint8_t *)g->runs[r].block + offset,
                        g->lane + g->first[r], (size_t)(g->first[r + 1] - g->first[r]));
    memcpy(dst, halves, sizeof(halves));
}

/* f16: rows of halves. */
static void gather_rows(uint8_t *dst, const struct tkv_gather *g, size_t offset, size_t row_bytes)
{
    uint8_t *to = dst;

    for (size_t r = 0; r < g->n_runs; r++)
        for (size_t t = g->first[r]; t < g->first[r + 1]; t++, to += row_bytes)
            memcpy(to, (const uint8_t *)g->runs[r].block + offset + g->lane[t] * row_bytes,
                   row_bytes);
    memset(to, 0, (TKV_BLOCK_TOKENS - g->n) * row_bytes);
}

void tkv_gather_keys(const struct tkv_coder *c, const struct tkv_kernels *kn, void *block,
                     const struct tkv_gather *g)
{
    const size_t scales_at = tkv_k_scales_at(c), residuals_at = tkv_k_residuals_at(c);
    struct tkv_pick picks[MOST_PICKS];
    uint8_t *dst = block;
    size_t n_picks;

    if (!c->codec->rotated) {
        for (size_t at = 0; at < c->k_block_bytes; at += TKV_HALVES_BYTES)
            tkv_gather_halves(kn, dst + at, g, at);
        return;
    }
    n_picks = plan_picks(picks, g, 0, TKV_UNIT_LANES);
    for (uint32_t i = 0; i < tkv_k_sections(c); i++) {
        const struct tkv_section *s = &c->section[i];
        const struct tkv_codes_at at = {s->k_offset, c->k_pair_bytes, s->n, s->w};

        kn->pick_keys(dst, &at, picks, n_picks);
    }
    tkv_gather_halves(kn, dst + scales_at, g, scales_at);
    if (c->codec->qjl)
        tkv_gather_halves(kn, dst + residuals_at, g, residuals_at);
    if (g->n > 0)
        tkv_put_key_mean(c, block, (const uint8_t *)g->runs[0].block + tkv_k_mean_at(c));
}

void tkv_gather_values(const struct tkv_coder *c, const struct tkv_kernels *kn, void *block,
                       const struct tkv_gather *g, size_t offset)
{
    struct tkv_pick picks[MOST_PICKS];
    uint8_t *dst = block;
    size_t n_picks;

    if (!c->codec->rotated) {
        gather_rows(dst, g, offset, c->dim * sizeof(uint16_t));
        return;
    }
    n_picks = plan_picks(picks, g, offset, 4);
    for (uint32_t i = 0; i < c->n_sections; i++) {
        const struct tkv_section *s = &c->section[i];
        const struct tkv_codes_at at = {s->v_offset, 0, s->n, s->w};

        kn->pick_values(dst, &at, picks, n_picks);
    }
    tkv_gather_halves(kn, dst, g, offset);
    if (g->n > 0)
        tkv_put_value_mean(c, block, (const uint8_t *)g->runs[0].block + offset + tkv_v_mean_at());
}
