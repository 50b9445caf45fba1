/*
 * Layers with a sliding window. One whose window is within its budget, or of a session that evicts
 * nothing, slides: the window says what stays, nothing is scored. Its blocks are dropped at a fold
 * once no query from there on can see them: not one on the newest tokens, which are still halves,
 * nor one on any that comes. A layer whose window is larger than its budget holds rounds as others do;
 * there what no query can see any more has the lowest score.
 */
#include <math.h>

#include "proto/errors.h"
#include "store/session_priv.h"

bool tkv_layer_config_slides(const struct tkv_session_config *c, const struct tkv_layer_config *l)
{
    const enum tkv_method method = tkv_config_method(c, l);
    const uint32_t window = l->attn.window_tokens;

    if (window == 0 || method == TKV_METHOD_DEFAULT) /* a plan's reach ends at the window */
        return false;
    return method == TKV_METHOD_NONE || window <= l->budget_tokens;
}

/* The oldest query there will be: on the oldest half, or on the newest token if there is none. */
static int32_t oldest_query(const struct tkv_layer *l)
{
    return l->tail.n > 0 ? l->tail.positions[0] : l->last_position;
}

/* Keys up to here are seen by no query there will be; negative: all are seen. */
static int64_t last_unseen(const struct tkv_layer *l)
{
    return (int64_t)oldest_query(l) - l->config.attn.window_tokens;
}

static int32_t last_position(const struct tkv_session *s, const struct tkv_layer *l,
                             const struct tkv_block *block)
{
    const uint16_t *distance =
        tkv_block_positions(tkv_layer_layout(l, block), tkv_arena_at(s->arena, block->id));

    return block->first_position + distance[block->n_tokens - 1];
}

void tkv_layer_slide(struct tkv_session *s, struct tkv_layer *l)
{
    const struct tkv_head *first = &l->heads[0]; /* all heads have their blocks cut alike */
    uint32_t n_blocks = 0, n_tokens = 0;

    if (!l->slides)
        return;
    while (n_blocks < first->n_blocks &&
           last_position(s, l, &first->blocks[n_blocks]) <= last_unseen(l))
        n_tokens += first->blocks[n_blocks++].n_tokens;
    if (n_blocks == 0)
        return;
    l->first_query = oldest_query(l);
    for (uint32_t h = 0; h < l->config.shape.n_kv_heads; h++)
        tkv_head_drop_front(s, &l->heads[h], n_blocks, n_tokens);
    s->n_evicted += (uint64_t)n_tokens * l->config.shape.n_kv_heads;
}

size_t tkv_window_blocks(const struct tkv_layer *l)
{
    /* Tokens that are seen, those that left with others of their block still seen, and those of the
     * fold under way; then the one more of a checkpoint. */
    const size_t n = (size_t)l->config.attn.window_tokens + 2 * TKV_BLOCK_TOKENS;

    return n / TKV_BLOCK_TOKENS + 2 + (size_t)l->config.attn.window_tokens / TKV_BLOCK_SPAN;
}

void tkv_window_hide(const struct tkv_session *s, const struct tkv_layer *l, uint32_t kv_head,
                     float *scores)
{
    const struct tkv_head *head = &l->heads[kv_head];
    const int64_t unseen = last_unseen(l);
    size_t at = 0;

    if (l->config.attn.window_tokens == 0 || tkv_session_couples_layers(s))
        return;
    for (uint32_t b = 0; b < head->n_blocks && head->blocks[b].first_position <= unseen; b++) {
        const struct tkv_block *block = &head->blocks[b];
        const uint16_t *distance =
            tkv_block_positions(&l->layout, tkv_arena_at(s->arena, block->id));

        for (uint32_t t = 0; t < block->n_tokens; t++)
            if (block->first_position + distance[t] <= unseen)
                scores[at + t] = -INFINITY;
        at += block->n_tokens;
    }
}

int tkv_window_check(const struct tkv_layer *l, uint32_t layer, int32_t position,
                     struct tkv_report *why)
{
    if (position >= l->first_query)
        return 0;
    return tkv_fail(why, TRIKV_E_POSITION,
                    "layer %u: a query at %d looks back %u tokens, some of which are gone: queries "
                    "from %d on see all of their window",
                    layer, position, l->config.attn.window_tokens, l->first_query);
}
