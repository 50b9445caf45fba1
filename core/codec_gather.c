/*
 * New blocks from tokens of others, their bits unchanged: what a round does with its survivors.
 * Codes move tile by tile in kernels; this file says which, and moves what each token has beside
 * its codes. Which tokens, and what else a block of the store holds, is left to the caller.
 */
#include "core/codec_priv.h"

/* Tiles of the new block, each from a few tiles of others; *picks has room for every token. */
static size_t plan_picks(struct tkv_pick *picks, const struct tkv_token *tokens, size_t n,
                         size_t offset, unsigned tile_tokens)
{
    size_t n_picks = 0;

    for (size_t t = 0; t < n; t++) {
        const uint8_t *block = (const uint8_t *)tokens[t].block + offset;
        const uint8_t tile = (uint8_t)(tokens[t].lane / tile_tokens);
        const uint8_t to = (uint8_t)(t / tile_tokens);
        struct tkv_pick *p = n_picks ? &picks[n_picks - 1] : NULL;

        if (!p || p->to != to || p->tile != tile || p->block != block) {
            p = &picks[n_picks++];
            *p = (struct tkv_pick){.block = block, .tile = tile, .to = to};
            memset(p->from, 0x80, sizeof(p->from));
        }
        p->from[t % tile_tokens] = (uint8_t)(tokens[t].lane % tile_tokens);
    }
    return n_picks;
}

void tkv_gather_halves(void *dst, const struct tkv_token *tokens, size_t n, size_t offset)
{
    uint16_t halves[TKV_BLOCK_TOKENS] = {0};

    for (size_t t = 0; t < n; t++)
        halves[t] = tkv_load_half((const uint8_t *)tokens[t].block + offset, tokens[t].lane);
    memcpy(dst, halves, sizeof(halves));
}

/* f16: one half for each coordinate. */
static void gather_key_halves(const struct tkv_coder *c, uint8_t *dst,
                              const struct tkv_token *tokens, size_t n)
{
    for (size_t at = 0; at < (size_t)c->dim * TKV_HALVES_BYTES; at += TKV_HALVES_BYTES)
        tkv_gather_halves(dst + at, tokens, n, at);
}

static void gather_value_halves(const struct tkv_coder *c, uint8_t *dst,
                                const struct tkv_token *tokens, size_t n, size_t offset)
{
    const size_t row_bytes = c->dim * sizeof(uint16_t);

    for (size_t t = 0; t < n; t++)
        memcpy(dst + t * row_bytes,
               (const uint8_t *)tokens[t].block + offset + tokens[t].lane * row_bytes, row_bytes);
    memset(dst + n * row_bytes, 0, (TKV_BLOCK_TOKENS - n) * row_bytes);
}

void tkv_gather_keys(const struct tkv_coder *c, const struct tkv_kernels *kn, void *block,
                     const struct tkv_token *tokens, size_t n)
{
    const size_t scales_at = tkv_k_scales_at(c), residuals_at = tkv_k_residuals_at(c);
    struct tkv_pick picks[TKV_BLOCK_TOKENS];
    uint8_t *dst = block;
    size_t n_picks;

    if (!c->codec->rotated) {
        gather_key_halves(c, dst, tokens, n);
        return;
    }
    n_picks = plan_picks(picks, tokens, n, 0, TKV_UNIT_LANES);
    for (uint32_t i = 0; i < tkv_k_sections(c); i++) {
        const struct tkv_section *s = &c->section[i];
        const struct tkv_codes_at at = {s->k_offset, c->k_pair_bytes, s->n, s->w};

        kn->pick_keys(dst, &at, picks, n_picks);
    }
    tkv_gather_halves(dst + scales_at, tokens, n, scales_at);
    if (c->codec->qjl)
        tkv_gather_halves(dst + residuals_at, tokens, n, residuals_at);
    if (n > 0)
        tkv_put_key_mean(c, block, (const uint8_t *)tokens[0].block + tkv_k_mean_at(c));
}

void tkv_gather_values(const struct tkv_coder *c, const struct tkv_kernels *kn, void *block,
                       const struct tkv_token *tokens, size_t n, size_t offset)
{
    struct tkv_pick picks[TKV_BLOCK_TOKENS];
    uint8_t *dst = block;
    size_t n_picks;

    if (!c->codec->rotated) {
        gather_value_halves(c, dst, tokens, n, offset);
        return;
    }
    n_picks = plan_picks(picks, tokens, n, offset, 4);
    for (uint32_t i = 0; i < c->n_sections; i++) {
        const struct tkv_section *s = &c->section[i];
        const struct tkv_codes_at at = {s->v_offset, 0, s->n, s->w};

        kn->pick_values(dst, &at, picks, n_picks);
    }
    tkv_gather_halves(dst, tokens, n, offset);
    if (n > 0)
        tkv_put_value_mean(c, block, (const uint8_t *)tokens[0].block + offset + tkv_v_mean_at());
}
