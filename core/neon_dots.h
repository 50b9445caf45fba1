/*
 * The inner loops of code_dots and code_sums for NEON, in place of those in core/kernels_codes.h, which
 * includes this: products of two fields of keys, or of both sides of values, go into a sum at once.
 * Wanted of the instruction set:
 *
 *   struct factor, factor_at(p, i, n)   four bytes i of n quads at p, to multiply all words with
 *   dot8(sum, a, x, b, y)               sum + the products of bytes a, x and of b, y in each word, for
 *                                       numbers of -127..127 and levels
 */
#ifndef TKV_CORE_NEON_DOTS_H
#define TKV_CORE_NEON_DOTS_H

/* As its namesake there. */
INLINE void dots_of(int32_t (*dots)[TKV_BLOCK_TOKENS], const struct tkv_codes *keys,
                    const struct tkv_code_queries *q, const struct levels *levels, size_t r,
                    size_t slice, const unsigned w, const size_t nq, const size_t ns)
{
    const size_t row_bytes = TKV_UNIT_LANES * 4, unit_bytes = tkv_unit_rows(w) * row_bytes;
    const size_t quad_bytes = q->n * 8;
    const uint8_t *query = (const uint8_t *)q->bytes + r * 8;
    const ptrdiff_t way = way_to_next(keys);
    vec_i32 sum[4][4][2] = {{{{0}}}};

    for (size_t i = 0, at = 0; i < keys->n; i += tkv_key_unit_dim(w)) {
        struct rows rows[4];

        UNROLL
        for (size_t s = 0; s < ns; s++)
            rows[s] = key_rows(keys, at, (slice + s) * LANES, w, way);
        UNROLL
        for (unsigned f = 0; f < tkv_unit_fields(w); f += 2) {
            const uint8_t *quads = query + f * quad_bytes;
            vec_u32 level[4][2];

            UNROLL
            for (unsigned s = 0; s < 2 * ns; s++)
                level[s / 2][s % 2] =
                    lookup_levels(levels, field_bytes(rows[s / 2], w,
                                                      side_of((slice + s / 2) * LANES), f + s % 2));
            UNROLL
            for (size_t j = 0; j < 2 * nq; j++) {
                const struct factor x = factor_at(quads, j, 2 * nq);
                const struct factor y = factor_at(quads + quad_bytes, j, 2 * nq);

                UNROLL
                for (size_t s = 0; s < ns; s++) {
                    vec_i32 *to = &sum[s][j / 2][j % 2];

                    *to = dot8(*to, level[s][0], x, level[s][1], y);
                }
            }
        }
        at += unit_bytes;
        query += tkv_unit_fields(w) * quad_bytes;
    }
    UNROLL
    for (size_t s = 0; s < ns; s++)
        put_dots(dots + r, (slice + s) * LANES, sum[s], nq, q->first);
}

/* The same. Weights of two pairs of tokens, both sides of each, are four quads. */
INLINE void add_block(value_sums sum, const uint8_t *unit, ptrdiff_t way, const uint8_t *weights,
                      const struct levels *levels, const size_t lanes, const size_t n_lanes,
                      const unsigned f0, const unsigned w, const size_t nr, const size_t nf)
{
    const size_t row_bytes = lanes * 4;

    for (size_t t = 0; t < TKV_BLOCK_TOKENS; t += 2 * TKV_VALUE_PAIR_TOKENS) {
        UNROLL
        for (size_t p = 0; p < 2; p++) {
            vec_u32 level[4][2];

            UNROLL
            for (size_t side = 0; side < 2; side++) {
                const struct rows rows = load_rows(unit, row_bytes, side, w, n_lanes);

                ask_for_rows(unit, row_bytes, side, w, way);
                UNROLL
                for (size_t f = 0; f < nf; f++)
                    level[f][side] =
                        lookup_levels(levels, field_bytes(rows, w, side, f0 + (unsigned)f));
            }
            UNROLL
            for (size_t j = 0; j < 2 * nr; j++) {
                const uint8_t *quads = weights + j * TKV_RUN_TOKENS + t;
                const struct factor x = factor_at(quads, 2 * p, 4);
                const struct factor y = factor_at(quads, 2 * p + 1, 4);

                UNROLL
                for (size_t f = 0; f < nf; f++) {
                    vec_i32 *to = &sum[j / 2][f][j % 2][0];

                    *to = dot8(*to, level[f][0], x, level[f][1], y);
                }
            }
            unit += tkv_unit_rows(w) * row_bytes;
        }
    }
}

#endif /* TKV_CORE_NEON_DOTS_H */
