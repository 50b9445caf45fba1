#include "store/block.h"

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

void tkv_block_copy_token(const struct tkv_block_layout *l, void *dst, uint32_t to, void *src,
                          uint32_t from)
{
    tkv_copy_key(l->k, dst, to, src, from);
    tkv_copy_value(l->v, tkv_block_values(l, dst), to, tkv_block_values(l, src), from);
    for (uint32_t g = 0; g < l->n_score_heads; g++)
        tkv_block_scores(l, dst, g)[to] = tkv_block_scores(l, src, g)[from];
}
