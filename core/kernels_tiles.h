/*
 * Codes to floats, key_tile and value_rows: part of the SIMD body of core/kernels_simd.h, which
 * includes it.
 */
#ifndef TKV_CORE_KERNELS_TILES_H
#define TKV_CORE_KERNELS_TILES_H

/* Byte b of field f of a side, as table indices. */
INLINE vec_int code_indices(struct rows r, const unsigned w, size_t side, unsigned f, unsigned b)
{
    const vec_u32 row = r.row >> (8 * b + (w == 4 ? 4 : 2) * f);
    const vec_u32 bit = r.bits >> (8 * b + 4 * (unsigned)side + f) & 1;

    if (w == 1)
        return (vec_int)bit;
    return (vec_int)(w == 3 ? (row & 3) | bit << 2 : row & ((1u << w) - 1));
}

INLINE void key_tile_of(float *tile, const struct tkv_codes *codes, const struct table *table,
                        const float *scale, const float *mean, size_t t, const unsigned w)
{
    const size_t row_bytes = TKV_UNIT_LANES * 4, side = t / TKV_UNIT_LANES % 2;
    const uint8_t *unit =
        codes->bytes + t / TKV_PAIR_TOKENS * codes->stride + t % TKV_UNIT_LANES * 4;
    const vec scales = load(scale + t);
    size_t i = 0;

    for (; i < codes->n; unit += tkv_unit_rows(w) * row_bytes) {
        const struct rows rows = load_rows(unit, row_bytes, side, w, LANES);

        for (unsigned f = 0; f < tkv_unit_fields(w) && i < codes->n; f++)
            for (unsigned b = 0; b < 4 && i < codes->n; b++, i++)
                store(tile + i * TKV_BLOCK_TOKENS + t,
                      lookup_vec(table, code_indices(rows, w, side, f, b)) * scales +
                          all(mean ? mean[i] : 0));
    }
}

void KERNEL(key_tile)(float *tile, const struct tkv_codes *codes, const float *lut,
                      const float *scale, const float *mean)
{
    const struct table table = load_table(lut, 1);

    for (size_t t = 0; t < TKV_BLOCK_TOKENS; t += LANES) {
        switch (codes->w) {
        case 1: key_tile_of(tile, codes, &table, scale, mean, t, 1); break;
        case 2: key_tile_of(tile, codes, &table, scale, mean, t, 2); break;
        case 3: key_tile_of(tile, codes, &table, scale, mean, t, 3); break;
        default: key_tile_of(tile, codes, &table, scale, mean, t, 4); break;
        }
    }
}

/* What value_rows was called with, on its way. */
struct row_args {
    float *rows;
    size_t stride;
    const struct tkv_codes *codes;
    size_t n_tokens;
    const float *scale;
    const float *mean;
};

/* Lanes `lane` and on of one side (4 tokens from t on) of a unit whose first coordinate is i. */
INLINE void rows_of(const struct row_args *a, const struct table *table, struct rows rows, size_t t,
                    size_t i, size_t lanes, size_t lane, const unsigned w)
{
    const size_t n_lanes = lanes - lane < LANES ? lanes - lane : LANES;

    for (unsigned b = 0; b < 4 && t + b < a->n_tokens; b++) {
        float *row = a->rows + (t + b) * a->stride;
        const float scale = a->scale[t + b];

        for (unsigned f = 0; f < tkv_unit_fields(w); f++) {
            const size_t at = i + lanes * f + lane, left = a->codes->n > at ? a->codes->n - at : 0;
            const size_t n = left < n_lanes ? left : n_lanes;
            vec x = lookup_vec(table, code_indices(rows, w, t / 4 % 2, f, b)) * scale;

            if (n == 0)
                continue;
            x += a->mean ? load_n(a->mean + at, n) : (vec){0};
            store_n(row + at, x, n);
        }
    }
}

INLINE void all_rows(const struct row_args *a, const struct table *table, const unsigned w)
{
    const uint8_t *bytes = a->codes->bytes;
    size_t lanes;

    for (size_t i = 0; i < a->codes->n; i += lanes * tkv_unit_fields(w)) {
        lanes = tkv_value_lanes(a->codes->n - i, w);
        for (size_t t = 0; t < a->n_tokens; t += 4) {
            const uint8_t *unit = bytes + t / TKV_VALUE_PAIR_TOKENS * tkv_unit_rows(w) * lanes * 4;

            for (size_t lane = 0; lane < lanes; lane += LANES)
                rows_of(a, table, load_rows(unit + lane * 4, lanes * 4, t / 4 % 2, w, lanes - lane),
                        t, i, lanes, lane, w);
        }
        bytes += tkv_value_unit_bytes(lanes, w);
    }
}

void KERNEL(value_rows)(float *rows, size_t stride, const struct tkv_codes *codes, size_t n_tokens,
                        const float *lut, const float *scale, const float *mean)
{
    const struct row_args a = {rows, stride, codes, n_tokens, scale, mean};
    const struct table table = load_table(lut, 1);

    switch (codes->w) {
    case 1: all_rows(&a, &table, 1); break;
    case 2: all_rows(&a, &table, 2); break;
    case 3: all_rows(&a, &table, 3); break;
    default: all_rows(&a, &table, 4); break;
    }
}

#endif /* TKV_CORE_KERNELS_TILES_H */
