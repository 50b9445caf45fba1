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

static const uint8_t no_places[TKV_UNIT_LANES] = {0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80,
                                                  0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80};

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

/* What is the same in all units: where a pick's first row lies, and its sides. */
struct origin {
    const uint8_t *row;
    unsigned side, to;
};

INLINE void store_words(uint8_t *p, vec_u32 v, size_t n)
{
    if (n >= LANES)
        *(words_unaligned *)p = v;
    else
        store_part((float *)(void *)p, (vec_f32)v, n);
}

/* ---- keys: words of a row move ------------------------------------------------------------- */

INLINE vec_u32 key_part(const struct origin *o, size_t at, const struct places *places, size_t v,
                        const unsigned bits)
{
    const vec_u32 part = pick_words(o->row + at, places, v);

    return bits ? move_side(part, o->side, o->to) : part;
}

/* Rows of codes (bits = 0) or of bits, `unit_bytes` apart, from nr origins. */
INLINE void pick_key_rows(uint8_t *to, size_t n_bytes, size_t unit_bytes,
                          const struct origin *origin, const struct places *places,
                          const unsigned bits, const size_t nr)
{
    for (size_t i = 0; i < n_bytes; i += unit_bytes) {
        UNROLL
        for (size_t v = 0; v < TKV_UNIT_LANES / LANES; v++) {
            vec_u32 sum = {0};

            if (nr == 2) /* a constant there */
                sum = key_part(&origin[0], i, &places[0], v, bits) |
                      key_part(&origin[1], i, &places[1], v, bits);
            for (size_t r = 0; nr != 2 && r < nr; r++)
                sum |= key_part(&origin[r], i, &places[r], v, bits);
            store_words(to + i + v * LANES * 4, sum, LANES);
        }
    }
}

/* Most tiles come from two; one alone gets a second that gives nothing, so that there is no
 * branch to guess. */
INLINE void pick_key_run(uint8_t *to, const struct tkv_codes_at *at, struct run run, size_t row,
                         const unsigned bits)
{
    const size_t unit_bytes = tkv_unit_rows(at->w) * PICK_ROW_BYTES;
    const size_t n_bytes = tkv_key_slots(at->n, at->w) / tkv_key_unit_dim(at->w) * unit_bytes;
    struct places places[2 * TKV_UNIT_LANES];
    struct origin origin[2 * TKV_UNIT_LANES];

    for (size_t r = 0; r < run.n; r++) {
        const struct tkv_pick *p = &run.pick[r];
        const size_t side = bits ? 0 : p->tile % 2u;

        places[r] = load_places(p->from);
        origin[r].row = p->block + at->offset + p->tile / 2u * at->stride + row;
        origin[r].row += side * PICK_ROW_BYTES;
        origin[r].side = p->tile % 2u;
        origin[r].to = p->to % 2u;
    }
    if (run.n == 1) {
        places[1] = load_places(no_places);
        origin[1] = origin[0];
        run.n = 2;
    }
    if (run.n == 2)
        pick_key_rows(to, n_bytes, unit_bytes, origin, places, bits, 2);
    else
        pick_key_rows(to, n_bytes, unit_bytes, origin, places, bits, run.n);
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

INLINE vec_u32 value_part(const struct origin *o, size_t at, vec_u32 places, size_t n,
                          const unsigned bits)
{
    const vec_u32 part = pick_bytes(words_at(o->row + at, n), places);

    return bits ? move_side(part, o->side, o->to) : part;
}

/* A row of `lanes` words of codes or of bits, from nr origins, `offset` bytes after their rows. */
INLINE void pick_value_row(uint8_t *to, size_t offset, const struct origin *origin,
                           const vec_u32 *places, const size_t lanes, const unsigned bits,
                           const size_t nr)
{
    for (size_t l = 0; l < lanes; l += LANES) {
        const size_t at = offset + l * 4;
        vec_u32 sum = {0};

        if (nr == 2)
            sum = value_part(&origin[0], at, places[0], lanes - l, bits) |
                  value_part(&origin[1], at, places[1], lanes - l, bits);
        for (size_t r = 0; nr != 2 && r < nr; r++)
            sum |= value_part(&origin[r], at, places[r], lanes - l, bits);
        store_words(to + offset + l * 4, sum, lanes - l);
    }
}

/* Some units of a section of values, one after the other, and rows of 8 tokens in each. */
struct units {
    size_t offset;
    size_t n;
    size_t rows;
};

/* One row of all these units: that of codes of a tile, or that of bits of a pair. */
INLINE void pick_value_run(uint8_t *dst, const struct units *u, struct run run, size_t tile,
                           const unsigned bits, const size_t lanes)
{
    const size_t row_bytes = lanes * 4, unit_bytes = u->rows * row_bytes * TKV_BLOCK_TOKENS / 8;
    const size_t bits_at = bits ? (u->rows - 1) * row_bytes : 0;
    vec_u32 places[MOST_PICKS], ramp;
    struct origin origin[MOST_PICKS];

    for (unsigned i = 0; i < LANES; i++)
        ramp[i] = i % 4 * 0x04040404u;
    for (size_t r = 0; r < run.n; r++) {
        const struct tkv_pick *p = &run.pick[r];

        places[r] = four_bytes(p->from) + ramp;
        origin[r].row = p->block + u->offset + p->tile / 2u * u->rows * row_bytes + bits_at;
        origin[r].row += bits ? 0 : p->tile % 2u * row_bytes;
        origin[r].side = p->tile % 2u;
        origin[r].to = p->to % 2u;
    }
    if (run.n == 1) { /* as in pick_key_run */
        places[1] = four_bytes(no_places) + ramp;
        origin[1] = origin[0];
        run.n = 2;
    }
    dst += u->offset + tile / 2 * u->rows * row_bytes + bits_at + (bits ? 0 : tile % 2 * row_bytes);
    if (run.n == 2)
        for (size_t i = 0; i < u->n; i++)
            pick_value_row(dst, i * unit_bytes, origin, places, lanes, bits, 2);
    else
        for (size_t i = 0; i < u->n; i++)
            pick_value_row(dst, i * unit_bytes, origin, places, lanes, bits, run.n);
}

INLINE void pick_units(uint8_t *dst, const struct units *u, const struct tkv_pick *picks,
                       size_t n_picks, unsigned w, const size_t lanes)
{
    for (size_t tile = 0, i = 0; w >= 2 && tile < TKV_BLOCK_TOKENS / 4; tile++)
        pick_value_run(dst, u, next_run(picks, n_picks, &i, (unsigned)tile + 1), tile, 0, lanes);
    for (size_t tile = 0, i = 0; w % 2 && tile < TKV_BLOCK_TOKENS / 4; tile += 2)
        pick_value_run(dst, u, next_run(picks, n_picks, &i, (unsigned)tile + 2), tile, 1, lanes);
}

void KERNEL(pick_values)(uint8_t *dst, const struct tkv_codes_at *at, const struct tkv_pick *picks,
                         size_t n_picks)
{
    const size_t unit_dim = TKV_UNIT_LANES * tkv_unit_fields(at->w), n = at->n / unit_dim;
    struct units u = {at->offset, n, tkv_unit_rows(at->w)};
    const size_t last = tkv_value_lanes(at->n % unit_dim, at->w);

    pick_units(dst, &u, picks, n_picks, at->w, TKV_UNIT_LANES);
    u.offset += n * tkv_value_unit_bytes(TKV_UNIT_LANES, at->w);
    u.n = 1;
    if (last)
        pick_units(dst, &u, picks, n_picks, at->w, last);
}

#endif /* TKV_CORE_KERNELS_PICKS_H */
