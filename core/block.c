#include "core/block.h"

#include <string.h>

void tkv_block_layout_init(struct tkv_block_layout *l, const struct tkv_coder *k,
                           const struct tkv_coder *v, uint32_t n_score_heads)
{
    const size_t row_bytes = TKV_BLOCK_TOKENS * sizeof(uint16_t);

    l->k = k;
    l->v = v;
    l->n_score_heads = n_score_heads;
    /* The codes of both start on a cache line, with all small things between them. */
    l->values_offset = tkv_align(k->k_block_bytes + v->v_codes_offset, 64) - v->v_codes_offset;
    l->positions_offset = l->values_offset + tkv_align(v->v_block_bytes, 2);
    l->scores_offset = l->positions_offset + row_bytes;
    l->bytes = tkv_align(l->scores_offset + n_score_heads * row_bytes, 64);
}

static void zero_gap(void *block, size_t from, size_t to)
{
    memset((uint8_t *)block + from, 0, to - from);
}

void tkv_block_gather(const struct tkv_block_layout *l, const struct tkv_kernels *kn, void *block,
                      const struct tkv_gather *g)
{
    const size_t row_bytes = TKV_BLOCK_TOKENS * sizeof(uint16_t);

    tkv_gather_keys(l->k, kn, block, g);
    tkv_gather_values(l->v, kn, tkv_block_values(l, block), g, l->values_offset);
    for (uint32_t i = 0; i < l->n_score_heads; i++)
        tkv_gather_halves(kn, tkv_block_scores(l, block, i), g, l->scores_offset + i * row_bytes);
    zero_gap(block, l->k->k_block_bytes, l->values_offset);
    zero_gap(block, l->values_offset + l->v->v_block_bytes, l->positions_offset);
    zero_gap(block, l->scores_offset + l->n_score_heads * row_bytes, l->bytes);
}
