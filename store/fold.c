/*
 * A fold: the warm tokens of a layer become blocks at the end of its heads' tables. The tail is folded
 * whenever it is full, so encoding is spread evenly over appends, and a round (round.c) has to do with
 * codes only. Room in the tables and the arena was prepared (tkv_round_prepare).
 *
 * A block has the mean of its own tokens if tokens are never dropped, or in whole blocks only. Where
 * tokens are dropped, survivors of many blocks meet in one, which needs the same mean in all: there
 * blocks have none, because a mean of the first tokens turns away from later keys with their RoPE
 * phases, which was measured to be worse (tests/check_kv_quality.c).
 */
#include <assert.h>

#include "store/session_priv.h"

struct fold {
    const struct tkv_session *s;
    struct tkv_layer *l;
};

/* n latents: their codes are keys and values in one. */
static void encode_latents(const struct fold *f, const uint16_t *keys, uint32_t n, uint8_t *block)
{
    const struct tkv_layer *l = f->l;
    const struct tkv_kernels *kn = f->s->kn;
    const struct tkv_vectors x = tkv_halves(keys, l->config.shape.head_dim_k);
    uint8_t mean[TKV_MAX_MEAN_BYTES];

    tkv_code_mean(l->layout.k, kn, TKV_KEYS, x, n, mean);
    tkv_encode_keys(l->layout.k, kn, mean, x, n, block);
    tkv_block_put_raw(&l->layout, block, keys, x.stride, n);
}

/* Encode n tokens from `first` of the tail on into a fresh block. */
static void encode(const struct fold *f, size_t kv_head, uint32_t first, uint32_t n, uint8_t *block)
{
    const struct tkv_layer *l = f->l;
    const struct tkv_kernels *kn = f->s->kn;
    const size_t dk = l->config.shape.head_dim_k, dv = l->config.shape.head_dim_v;
    const size_t at = kv_head * l->tail.cap + first;
    const struct tkv_vectors keys = tkv_halves(l->tail.k + at * dk, dk);
    const struct tkv_vectors values = tkv_halves(l->tail.v + at * dv, dv);
    uint8_t mean[TKV_MAX_MEAN_BYTES];

    if (l->layout.raw_dim > 0) {
        encode_latents(f, l->tail.k + at * dk, n, block);
        return;
    }
    tkv_code_mean(l->layout.k, kn, TKV_KEYS, keys, n, mean);
    tkv_encode_keys(l->layout.k, kn, mean, keys, n, block);
    tkv_code_mean(l->layout.v, kn, TKV_VALUES, values, n, mean);
    tkv_encode_values(l->layout.v, kn, mean, values, n, tkv_block_values(&l->layout, block));
    for (uint32_t g = 0; g < l->layout.n_score_heads; g++) {
        const size_t q_head = kv_head * l->layout.n_score_heads + g;
        const float *terms = l->tail.scores + q_head * l->tail.cap + first;
        uint8_t *codes = tkv_block_scores(&l->layout, block, g);

        for (uint32_t i = 0; i < n; i++)
            codes[i] = tkv_ruler_code(&l->rulers[q_head], terms[i]);
    }
}

/* The norm terms of a query head's first block are what all are measured by. If the keys there are all
 * zero, a key of ones is. */
static void lay_rulers(const struct fold *f, size_t kv_head, uint32_t n_warm)
{
    const struct tkv_layer *l = f->l;
    const uint32_t n_bands = f->s->rope.n_bands;

    for (uint32_t g = 0; l->heads[kv_head].n_blocks == 0 && g < l->layout.n_score_heads; g++) {
        const size_t q_head = kv_head * l->layout.n_score_heads + g;
        float ones[TKV_MAX_BANDS], otherwise;

        for (uint32_t i = 0; i < n_bands; i++)
            ones[i] = 1;
        otherwise = tkv_tri_norm_term(l->norm_weights + (size_t)q_head * n_bands, ones, n_bands);
        l->rulers[q_head] = tkv_ruler_lay(l->tail.scores + q_head * l->tail.cap, n_warm, otherwise);
    }
}

static void fold_head(void *arg, size_t kv_head)
{
    const struct fold *f = arg;
    const struct tkv_head *head = &f->l->heads[kv_head];
    const uint32_t n_warm = tkv_layer_warm(f->s, f->l);
    uint32_t b = head->n_blocks;

    lay_rulers(f, kv_head, n_warm);
    for (uint32_t first = 0; first < n_warm; first += head->blocks[b++].n_tokens) {
        const struct tkv_block *block = &head->blocks[b];
        uint8_t *bytes = tkv_arena_at(f->s->arena, block->id);
        uint16_t *distance = tkv_block_positions(&f->l->layout, bytes);

        for (uint32_t i = 0; i < block->n_tokens; i++)
            distance[i] = (uint16_t)(f->l->tail.positions[first + i] - block->first_position);
        encode(f, kv_head, first, block->n_tokens, bytes);
    }
}

/* Entries behind the table's end for n tokens of the tail, in as few blocks as their positions allow;
 * returns how many. */
static uint32_t add_entries(struct tkv_session *s, const struct tkv_layer *l, struct tkv_head *head,
                            uint32_t n)
{
    struct tkv_block *block = head->blocks + head->n_blocks;
    uint32_t n_added = 0;

    for (uint32_t i = 0; i < n; i++) {
        const int32_t position = l->tail.positions[i];

        if (n_added == 0 || block->n_tokens == TKV_BLOCK_TOKENS ||
            position - block->first_position > TKV_BLOCK_SPAN) {
            assert(head->n_blocks + n_added < head->cap_blocks);
            block = head->blocks + head->n_blocks + n_added++;
            *block = (struct tkv_block){.id = tkv_arena_alloc(s->arena, l->layout.bytes),
                                        .first_position = position};
        }
        block->n_tokens++;
    }
    return n_added;
}

void tkv_layer_fold(struct tkv_session *s, struct tkv_layer *l, const struct tkv_exec *exec)
{
    const uint32_t n_kv_heads = l->config.shape.n_kv_heads;
    const uint32_t n_warm = tkv_layer_warm(s, l);
    struct fold f = {.s = s, .l = l};
    uint32_t n_added = 0;

    if (n_warm == 0)
        return;
    for (uint32_t h = 0; h < n_kv_heads; h++)
        n_added = add_entries(s, l, &l->heads[h], n_warm); /* positions are those of all heads */
    tkv_exec_run(exec, n_kv_heads, fold_head, &f);
    for (uint32_t h = 0; h < n_kv_heads; h++) {
        l->heads[h].n_blocks += n_added;
        l->heads[h].n_cold += n_warm;
    }
    tkv_tail_drop(&l->tail, &l->config.shape, n_warm);
    tkv_layer_slide(s, l);
    tkv_layer_changed(s, l);
}
