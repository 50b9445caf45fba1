/*
 * Codes of single tokens moved to other blocks, pick_keys and pick_values: part of the SIMD body of
 * core/kernels_simd.h, which includes it. Wants of each instruction set
 *
 *   struct places, load_places(from)   16 of tkv_pick.from, made ready
 *   pick_words(row, places, v)         words LANES v .. of a new row: word from[i], or 0
 *   pick_bytes(words, places)          in each word byte from[b], or 0, places a vec_u32 of
 *                                      four_bytes(from) plus 0, 4, 8, 12 in turn
 */
#ifndef TKV_CORE_KERNELS_PICKS_H
#define TKV_CORE_KERNELS_PICKS_H

enum { PICK_ROW_BYTES = TKV_UNIT_LANES * 4, MOST_PICKS = TKV_BLOCK_TOKENS };

/* The picks of one new tile, or of two that share a row of bits. */
struct run {
    const struct tkv_pick *pick;
    size_t n;
};

/* The next picks whose new tile is below `end`. */
INLINE struct run next_run(const struct tkv_pick *pick, size_t n_picks, size_t *at, unsigned end)
{
    struct run r = {pick + *at, 0};

    while (*at < n_picks && pick[*at].to < end) {
        ++*at;
        r.n++;
    }
    return r;
}

/* Bits of side `from` of a row of bits, as those of side `to`. */
INLINE vec_u32 move_side(vec_u32 bits, unsigned from, unsigned to)
{
    const uint32_t low = 0x0f0f0f0fu;

    return (bits >> (4 * from) & low) << (4 * to);
}

INLINE void store_words(uint8_t *p, vec_u32 v, size_t n)
{
    if (n >= LANES)
        *(words_unaligned *)p = v;
    else
        store_part((float *)(void *)p, (vec_f32)v, n);
}

/* ---- keys: words of a row move ------------------------------------------------------------- */

/* Rows of codes (bits = 0) or of bits, `unit_bytes` apart, from the nr picks of a run. */
INLINE void pick_key_rows(uint8_t *to, const struct tkv_codes_at *at, struct run run,
                          const struct places *places, size_t row, const unsigned bits,
                          const size_t nr)
{
    const size_t unit_bytes = tkv_unit_rows(at->w) * PICK_ROW_BYTES;
    const size_t n_bytes = tkv_key_slots(at->n, at->w) / tkv_key_unit_dim(at->w) * unit_bytes;

    for (size_t i = 0; i < n_bytes; i += unit_bytes) {
        UNROLL
        for (size_t v = 0; v < TKV_UNIT_LANES / LANES; v++) {
            vec_u32 sum = {0};

            for (size_t r = 0; r < nr; r++) {
                const struct tkv_pick *p = &run.pick[r];
                const size_t side = bits ? 0 : p->tile % 2u;
                const uint8_t *from = p->block + at->offset + p->tile / 2u * at->stride + row +
                                      side * PICK_ROW_BYTES + i;
                const vec_u32 part = pick_words(from, &places[r], v);

                sum |= bits ? move_side(part, p->tile % 2u, p->to % 2u) : part;
            }
            store_words(to + i + v * LANES * 4, sum, LANES);
        }
    }
}

INLINE void pick_key_run(uint8_t *to, const struct tkv_codes_at *at, struct run run, size_t row,
                         const unsigned bits)
{
    struct places places[2 * TKV_UNIT_LANES];

    for (size_t r = 0; r < run.n; r++)
        places[r] = load_places(run.pick[r].from);
    if (run.n == 2 && !bits) /* as it mostly is */
        pick_key_rows(to, at, run, places, row, bits, 2);
    else
        pick_key_rows(to, at, run, places, row, bits, run.n);
}

void KERNEL(pick_keys)(uint8_t *dst, const struct tkv_codes_at *at, const struct tkv_pick *picks,
                       size_t n_picks)
{
    const size_t row = bits_row(at->w) * PICK_ROW_BYTES;

    dst += at->offset;
    for (size_t tile = 0, i = 0; at->w >= 2 && tile < TKV_BLOCK_TOKENS / TKV_UNIT_LANES; tile++)
        pick_key_run(dst + tile / 2 * at->stride + tile % 2 * PICK_ROW_BYTES, at,
                     next_run(picks, n_picks, &i, (unsigned)tile + 1), 0, 0);
    for (size_t pair = 0, i = 0; at->w % 2 && pair < TKV_BLOCK_TOKENS / TKV_PAIR_TOKENS; pair++)
        pick_key_run(dst + pair * at->stride + row, at,
                     next_run(picks, n_picks, &i, 2 * (unsigned)pair + 2), row, 1);
}

/* ---- values: bytes of the words of a row move ------------------------------------------------ */

/* One unit of a section of values: where it lies in a block, and how long its rows are. */
struct unit_at {
    size_t offset;
    size_t lanes;
    size_t pair_bytes;
};

/* A row of codes or of bits of one unit, from the nr picks of a run. */
INLINE void pick_value_row(uint8_t *to, const struct unit_at *unit, struct run run,
                           const vec_u32 *places, size_t row, const unsigned bits, const size_t nr)
{
    for (size_t l = 0; l < unit->lanes; l += LANES) {
        const size_t left = unit->lanes - l;
        vec_u32 sum = {0};

        for (size_t r = 0; r < nr; r++) {
            const struct tkv_pick *p = &run.pick[r];
            const size_t side = bits ? 0 : p->tile % 2u;
            const uint8_t *from = p->block + unit->offset + p->tile / 2u * unit->pair_bytes +
                                  (row + side) * unit->lanes * 4 + l * 4;
            const vec_u32 part = pick_bytes(words_at(from, left), places[r]);

            sum |= bits ? move_side(part, p->tile % 2u, p->to % 2u) : part;
        }
        store_words(to + l * 4, sum, left);
    }
}

/* The same row of all units: n whole ones, and then `last` if it has any lanes. */
INLINE void pick_value_run(uint8_t *dst, const struct unit_at *first, size_t n,
                           const struct unit_at *last, struct run run, size_t tile, unsigned w,
                           const unsigned bits)
{
    const size_t row = bits ? bits_row(w) : 0, to = row + (bits ? 0 : tile % 2);
    const size_t unit_bytes = tkv_value_unit_bytes(TKV_UNIT_LANES, w);
    vec_u32 places[MOST_PICKS], ramp;
    struct unit_at u = *first;

    for (unsigned i = 0; i < LANES; i++)
        ramp[i] = i % 4 * 0x04040404u;
    for (size_t r = 0; r < run.n; r++)
        places[r] = four_bytes(run.pick[r].from) + ramp;
    for (size_t i = 0; i < n; i++, u.offset += unit_bytes) {
        uint8_t *p = dst + u.offset + tile / 2 * u.pair_bytes + to * PICK_ROW_BYTES;

        if (run.n == 2 && !bits)
            pick_value_row(p, &u, run, places, row, bits, 2);
        else
            pick_value_row(p, &u, run, places, row, bits, run.n);
    }
    if (last->lanes)
        pick_value_row(dst + last->offset + tile / 2 * last->pair_bytes + to * last->lanes * 4,
                       last, run, places, row, bits, run.n);
}

void KERNEL(pick_values)(uint8_t *dst, const struct tkv_codes_at *at, const struct tkv_pick *picks,
                         size_t n_picks)
{
    const size_t unit_dim = TKV_UNIT_LANES * tkv_unit_fields(at->w), n = at->n / unit_dim;
    const size_t rows = tkv_unit_rows(at->w);
    const struct unit_at whole = {at->offset, TKV_UNIT_LANES, rows * PICK_ROW_BYTES};
    struct unit_at last = {at->offset + n * tkv_value_unit_bytes(TKV_UNIT_LANES, at->w), 0, 0};

    last.lanes = tkv_value_lanes(at->n % unit_dim, at->w);
    last.pair_bytes = rows * last.lanes * 4;
    for (size_t tile = 0, i = 0; at->w >= 2 && tile < TKV_BLOCK_TOKENS / 4; tile++)
        pick_value_run(dst, &whole, n, &last, next_run(picks, n_picks, &i, (unsigned)tile + 1),
                       tile, at->w, 0);
    for (size_t tile = 0, i = 0; at->w % 2 && tile < TKV_BLOCK_TOKENS / 4; tile += 2)
        pick_value_run(dst, &whole, n, &last, next_run(picks, n_picks, &i, (unsigned)tile + 2),
                       tile, at->w, 1);
}

#endif /* TKV_CORE_KERNELS_PICKS_H */
