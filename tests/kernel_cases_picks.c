/* The checks of the kernels that move codes to other blocks. */
#include <string.h>

#include "core/pack.h"
#include "tests/guard.h"
#include "tests/kernel_aid.h"

static const size_t section_dims[] = {1, 4, 9, 16, 24, 32, 40, 48, 63, 64, 80, 96, 128, 288};
enum { N_SECTION_DIMS = 14, N_CASES = 24 * N_SECTION_DIMS, N_BLOCKS = 3 };

/* A section somewhere in blocks of random bytes, and another block to fill. */
struct picks_case {
    struct tkv_codes_at at;
    uint8_t *blocks[N_BLOCKS];
    size_t n_bytes;
    struct tkv_pick picks[TKV_BLOCK_TOKENS];
    size_t n_picks;
};

/* The next token from here, into place t of the new block. */
static void add_token(struct picks_case *c, size_t t, const uint8_t *block, size_t lane,
                      size_t tile_tokens)
{
    struct tkv_pick *p = c->n_picks ? &c->picks[c->n_picks - 1] : NULL;

    if (!p || p->to != t / tile_tokens || p->tile != lane / tile_tokens || p->block != block) {
        p = &c->picks[c->n_picks++];
        p->block = block;
        p->tile = (uint8_t)(lane / tile_tokens);
        p->to = (uint8_t)(t / tile_tokens);
        memset(p->from, 0x80 + (int)(t % 128), sizeof(p->from)); /* none */
    }
    p->from[t % tile_tokens] = (uint8_t)(lane % tile_tokens);
}

/* Few tokens or many are dropped, sometimes all, and a few places stay empty. */
static void make_case(struct picks_case *c, struct kernel_run *run, unsigned turn, bool keys)
{
    const unsigned w = 1 + turn % 4;
    const size_t n = section_dims[turn / 4 % N_SECTION_DIMS];
    const size_t half = keys ? tkv_key_section_bytes(n, w) : tkv_value_section_bytes(n, w);
    const size_t kept = 1 + turn % 7, n_tokens = turn % 3 ? 64 : turn % 65;
    size_t lane = rng_below(&run->rng, 16);

    c->at = (struct tkv_codes_at){2 * (turn % 5), keys ? half + 6 * (turn % 2) : 0, n, w};
    c->n_bytes = c->at.offset + c->at.stride + half;
    for (size_t b = 0; b < N_BLOCKS; b++)
        c->blocks[b] = kernel_bytes(run, c->n_bytes, turn + (unsigned)b, 255);
    c->n_picks = 0;
    for (size_t t = 0; t < n_tokens; t++, lane++) {
        while (rng_below(&run->rng, 8) >= kept)
            lane++;
        add_token(c, t, c->blocks[lane / 64 % N_BLOCKS], lane % 64, keys ? 16 : 4);
        t += turn % 11 == 0 && rng_below(&run->rng, 9) == 0;
    }
}

/* Padding of a section is zero in real blocks, and stays as it is in some variants only. */
static void clear_padding(struct picks_case *c, bool keys)
{
    uint8_t code[TKV_MAX_HEAD_DIM];

    for (size_t b = 0; b < N_BLOCKS; b++) {
        uint8_t *copy = kernel_copy(c->blocks[b], c->n_bytes, 0);
        uint8_t *to = c->blocks[b] + c->at.offset, *from = copy + c->at.offset;

        memset(c->blocks[b], 0, c->n_bytes);
        for (size_t t = 0; t < TKV_BLOCK_TOKENS; t++) {
            const size_t pair = keys ? t / TKV_PAIR_TOKENS * c->at.stride : 0;

            if (keys) {
                tkv_key_get(code, from + pair, c->at.n, c->at.w, t % TKV_PAIR_TOKENS);
                tkv_key_put(to + pair, c->at.n, c->at.w, t % TKV_PAIR_TOKENS, code);
            } else {
                tkv_value_get(code, from, c->at.n, c->at.w, t);
                tkv_value_put(to, c->at.n, c->at.w, t, code);
            }
        }
        guard_free(copy, c->n_bytes);
    }
}

static void check_picks(struct kernel_run *run, bool keys)
{
    const char *name = keys ? "pick_keys" : "pick_values";

    for (unsigned i = 0; i < N_CASES; i++) {
        struct picks_case c;
        uint8_t *a, *b;

        make_case(&c, run, i, keys);
        clear_padding(&c, keys);
        a = kernel_bytes(run, c.n_bytes, i, 255);
        b = kernel_copy(a, c.n_bytes, i + 1);
        if (keys) {
            run->ref.pick_keys(a, &c.at, c.picks, c.n_picks);
            run->now.pick_keys(b, &c.at, c.picks, c.n_picks);
        } else {
            run->ref.pick_values(a, &c.at, c.picks, c.n_picks);
            run->now.pick_values(b, &c.at, c.picks, c.n_picks);
        }
        kernel_expect(run, kernel_same(a, b, c.n_bytes), "%s n=%zu w=%u turn %u", name, c.at.n,
                      c.at.w, i);
        for (size_t j = 0; j < N_BLOCKS; j++)
            guard_free(c.blocks[j], c.n_bytes);
        kernel_release(a, c.n_bytes, run, name);
        kernel_release(b, c.n_bytes, run, name);
    }
}

void check_pick_keys(struct kernel_run *run)
{
    check_picks(run, true);
}

void check_pick_values(struct kernel_run *run)
{
    check_picks(run, false);
}

void check_pick_halves(struct kernel_run *run)
{
    for (unsigned i = 0; i < 4 * (TKV_BLOCK_TOKENS + 1); i++) {
        const size_t n = i / 4, bytes = n * sizeof(uint16_t);
        uint8_t *src = kernel_bytes(run, 2 * TKV_BLOCK_TOKENS, i, 255);
        uint8_t *lane = kernel_bytes(run, n, i, 63);
        uint8_t *a = kernel_bytes(run, bytes, i + 1, 255), *b = kernel_copy(a, bytes, i);

        run->ref.pick_halves(a, src, lane, n);
        run->now.pick_halves(b, src, lane, n);
        kernel_expect(run, kernel_same(a, b, bytes), "pick_halves n=%zu", n);
        guard_free(src, 2 * TKV_BLOCK_TOKENS);
        guard_free(lane, n);
        kernel_release(a, bytes, run, "pick_halves");
        kernel_release(b, bytes, run, "pick_halves");
    }
}

void check_pick_bytes(struct kernel_run *run)
{
    for (unsigned i = 0; i < 4 * (TKV_BLOCK_TOKENS + 1); i++) {
        const size_t n = i / 4;
        uint8_t *src = kernel_bytes(run, TKV_BLOCK_TOKENS, i, 255);
        uint8_t *lane = kernel_bytes(run, n, i, 63);
        uint8_t *a = kernel_bytes(run, n, i + 1, 255), *b = kernel_copy(a, n, i);

        run->ref.pick_bytes(a, src, lane, n);
        run->now.pick_bytes(b, src, lane, n);
        kernel_expect(run, kernel_same(a, b, n), "pick_bytes n=%zu", n);
        guard_free(src, TKV_BLOCK_TOKENS);
        guard_free(lane, n);
        kernel_release(a, n, run, "pick_bytes");
        kernel_release(b, n, run, "pick_bytes");
    }
}
