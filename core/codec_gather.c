/*
 * New blocks from tokens of others, their bits unchanged: what a round does with its survivors.
 * Codes move tile by tile in kernels; this file says which, and moves what each token has beside
 * its codes. Which tokens, and what else a block of the store holds, is left to the caller.
 */
#include <assert.h>

#include "core/codec_priv.h"

enum { MOST_PICKS = TKV_BLOCK_TOKENS + TKV_BLOCK_TOKENS / 4, NO_LANE = 0xff };

void tkv_gather_init(struct tkv_gather *g, const struct tkv_lane_run *runs, size_t n_runs)
{
    g->runs = runs;
    g->n_runs = n_runs;
    g->n = 0;
    for (size_t r = 0; r < n_runs; r++) {
        g->first[r] = (uint8_t)g->n;
        for (uint64_t left = runs[r].lanes; left; left &= left - 1) {
            assert(g->n < TKV_BLOCK_TOKENS);
            g->run[g->n] = (uint8_t)r;
            g->lane[g->n++] = (uint8_t)__builtin_ctzll(left);
        }
    }
    g->first[n_runs] = (uint8_t)g->n;
    memset(g->lane + g->n, NO_LANE, sizeof(g->lane) - g->n);
}

typedef uint8_t bytes16 __attribute__((vector_size(16)));

/* What is missing for tile `to` of the new block in tile `tile` of run r; tokens of other tiles, and
 * lanes where there are none, get places over 0x80. */
static void set_pick(struct tkv_pick *p, const struct tkv_gather *g, size_t offset, unsigned shift,
                     size_t r, size_t tile, size_t to)
{
    const bytes16 none = (bytes16){0} + 0x80;
    bytes16 lane;

    memcpy(&lane, g->lane + (to << shift), sizeof(lane));
    lane =
        (lane & (uint8_t)((1u << shift) - 1)) | ((bytes16)(lane >> shift != (uint8_t)tile) & none);
    p->block = (const uint8_t *)g->runs[r].block + offset;
    p->tile = (uint8_t)tile;
    p->to = (uint8_t)to;
    memcpy(p->from, &lane, sizeof(lane));
}

/* As many picks as it takes, token by token. */
static struct tkv_pick *pick_tokens(struct tkv_pick *p, const struct tkv_gather *g, size_t offset,
                                    unsigned shift, size_t first, size_t end)
{
    for (size_t t = first; t < end; t++) {
        const size_t tile = g->lane[t] >> shift, r = g->run[t];

        if (t > first && r == g->run[t - 1] && tile == (size_t)g->lane[t - 1] >> shift)
            continue;
        set_pick(p, g, offset, shift, r, tile, first >> shift);
        for (size_t i = first; i < first + ((size_t)1 << shift); i++)
            if (i >= end || g->run[i] != r)
                p->from[i - first] |= 0x80;
        p++;
    }
    return p;
}

/*
 * Tiles of 1 << shift tokens of the new block, each from a few tiles of others. If few tokens were
 * dropped, one comes from two tiles next to each other, or from one; it gets two picks in any
 * case, because a processor could not guess which it is.
 */
static size_t plan_picks(struct tkv_pick *picks, const struct tkv_gather *g, size_t offset,
                         unsigned shift)
{
    struct tkv_pick *p = picks;

    for (size_t t = 0; t < g->n; t += (size_t)1 << shift) {
        const size_t end = t + ((size_t)1 << shift) < g->n ? t + ((size_t)1 << shift) : g->n;
        const size_t a = g->lane[t] >> shift, b = g->lane[end - 1] >> shift;

        if (g->run[t] != g->run[end - 1] || b > a + 1) {
            p = pick_tokens(p, g, offset, shift, t, end);
            continue;
        }
        set_pick(p++, g, offset, shift, g->run[t], a, t >> shift);
        set_pick(p++, g, offset, shift, g->run[t], b, t >> shift);
        if (a == b)
            memset(p[-1].from, 0x80, sizeof(p->from));
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

void tkv_gather_bytes(const struct tkv_kernels *kn, void *dst, const struct tkv_gather *g,
                      size_t offset)
{
    uint8_t bytes[TKV_BLOCK_TOKENS] = {0};

    for (size_t r = 0; r < g->n_runs; r++)
        kn->pick_bytes(bytes + g->first[r], (const uint8_t *)g->runs[r].block + offset,
                       g->lane + g->first[r], (size_t)(g->first[r + 1] - g->first[r]));
    memcpy(dst, bytes, sizeof(bytes));
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
    n_picks = plan_picks(picks, g, 0, 4);
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
    n_picks = plan_picks(picks, g, offset, 2);
    for (uint32_t i = 0; i < c->n_sections; i++) {
        const struct tkv_section *s = &c->section[i];
        const struct tkv_codes_at at = {s->v_offset, 0, s->n, s->w};

        kn->pick_values(dst, &at, picks, n_picks);
    }
    tkv_gather_halves(kn, dst, g, offset);
    if (g->n > 0)
        tkv_put_value_mean(c, block, (const uint8_t *)g->runs[0].block + offset + tkv_v_mean_at());
}
