/*
 * The integer kernels on codes, code_dots, level_dots and code_sums, written once and included by one file
 * for each instruction set, which first defines
 *
 *   ISA, LANES     suffix of the kernel names; words in a vector: 4, 8, 16
 *   load_part(p, n), store_part(p, v, n)   the first n < LANES floats
 *   BIAS           what is added to a level where a dot product wants one factor unsigned, or 0
 *   PERIODIC       1 if lookup_levels takes bytes with anything above their w bits
 *   struct levels, load_levels(level, w, bias), lookup_levels(table, bytes)
 *   dot4(sum, a, b)  sum + the four products of bytes in each word, of levels + BIAS and signed
 *                    bytes, or of bytes 0..127 and signed levels
 *   sum_words(v)     the sum of all
 *   PAIRS          1: queries and weights are multiplied whole, as 16 bits, by dot2(sum, a, b), which
 *                    adds both products of 16 bits in each word; 0: in two parts, by dot4
 *   SETTLE(v)      where registers are few: v is computed here, since a compiler that puts off sums keeps
 *                  their terms in memory
 *   OWN_DOTS       1 if core/neon_dots.h has the inner loops
 *   SLICES_1, _2, _4 vectors of tokens that have their sums in registers beside 1, 2, 4 queries
 *   FIELDS_4       fields that do beside 4 rows of weights
 */
#ifndef TKV_CORE_KERNELS_CODES_H
#define TKV_CORE_KERNELS_CODES_H

#include <string.h>

#include "core/kernels_priv.h"
#include "core/pack.h"

/* Before loops of a constant count whose sums must stay in registers. */
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

#define PASTE(a, b, c)  a##b##c
#define EXPAND(a, b, c) PASTE(a, b, c)
#define KERNEL(op)      EXPAND(tkv_##op, _, ISA)
#define INLINE          static inline __attribute__((always_inline))

typedef uint32_t vec_u32 __attribute__((vector_size(4 * LANES)));
typedef uint16_t vec_u16 __attribute__((vector_size(4 * LANES)));
typedef int32_t vec_i32 __attribute__((vector_size(4 * LANES)));
typedef float vec_f32 __attribute__((vector_size(4 * LANES)));
typedef uint32_t words_unaligned __attribute__((vector_size(4 * LANES), aligned(1), may_alias));
typedef float floats_unaligned __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

/* Up to LANES words from p on; none from n on is read. */
INLINE vec_u32 words_at(const uint8_t *p, size_t n)
{
    if (n >= LANES)
        return *(const words_unaligned *)p;
    return (vec_u32)load_part((const float *)(const void *)p, n);
}

/* All lanes the four bytes at p. */
INLINE vec_u32 four_bytes(const void *p)
{
    uint32_t word;

    memcpy(&word, p, sizeof(word));
    return (vec_u32){0} + word;
}

/* Bytes of the rows of a unit that hold no side's own bits come after those that do. */
INLINE size_t bits_row(const unsigned w)
{
    return w >= 2 ? 2 : 0;
}

/* A row of one side and the row of bits, as far as codes of w bits have them. */
struct rows {
    vec_u32 row, bits;
};

/* From the codes at hand to those that are wanted next, which are asked for row by row. */
INLINE ptrdiff_t way_to_next(const struct tkv_codes *c)
{
    return c->next ? (ptrdiff_t)((uintptr_t)c->next - (uintptr_t)c->bytes) : 0;
}

INLINE void ask_for_rows(const uint8_t *unit, size_t row_bytes, size_t side, const unsigned w,
                         ptrdiff_t way)
{
    if (w >= 2)
        __builtin_prefetch((const void *)((uintptr_t)unit + (uintptr_t)way + side * row_bytes));
    if (w % 2 && side == 0)
        __builtin_prefetch(
            (const void *)((uintptr_t)unit + (uintptr_t)way + bits_row(w) * row_bytes));
}

INLINE struct rows load_rows(const uint8_t *unit, size_t row_bytes, size_t side, const unsigned w,
                             size_t n)
{
    struct rows r = {{0}, {0}};

    if (w >= 2)
        r.row = words_at(unit + side * row_bytes, n);
    if (w % 2)
        r.bits = words_at(unit + bits_row(w) * row_bytes, n);
    return r;
}

/* Field f of a side: a code in each byte, with other bits above it if PERIODIC. */
INLINE vec_u32 field_bytes(struct rows r, const unsigned w, size_t side, unsigned f)
{
    const uint32_t ones = 0x01010101u;
    const unsigned at = 4 * (unsigned)side + f;
    vec_u32 code;

    if (w == 3)
        return (r.row >> (2 * f) & (3 * ones)) |
               ((at >= 2 ? r.bits >> (at - 2) : r.bits << (2 - at)) & (4 * ones));
    code = w == 1 ? r.bits >> at : r.row >> (w * f);
    return PERIODIC ? code : code & (((1u << w) - 1) * ones);
}

/* What operand j of a query or of a row of weights, its two of four bytes or of two numbers each, is
 * multiplied with, and which of its sums that goes into. */
INLINE vec_u32 factor_of(vec_u32 level, const size_t j)
{
    if (!PAIRS)
        return level;
    return j % 2 ? (vec_u32)((vec_u16)level >> 8) : level & 0x00ff00ffu;
}

INLINE size_t part_of(const size_t j)
{
    return PAIRS ? 0 : j % 2;
}

#if PAIRS
#define DOT(sum, a, b) ((vec_i32)dot2(sum, a, b))
#else
#define DOT(sum, a, b) ((vec_i32)dot4(sum, a, b))
#endif

/* Both parts of a sum. */
INLINE vec_i32 whole_sum(vec_i32 high, vec_i32 low)
{
    return PAIRS ? high : (vec_i32)((vec_u32)high * 128 + (vec_u32)low);
}

/* Of token t of a block of keys. */
INLINE size_t side_of(const size_t t)
{
    return t / TKV_UNIT_LANES % 2;
}

/* Rows of the unit `at` bytes into a section of keys, for LANES tokens from t on. */
INLINE struct rows key_rows(const struct tkv_codes *keys, size_t at, size_t t, const unsigned w,
                            ptrdiff_t way)
{
    const uint8_t *unit =
        keys->bytes + t / TKV_PAIR_TOKENS * keys->stride + at + t % TKV_UNIT_LANES * 4;

    ask_for_rows(unit, TKV_UNIT_LANES * 4, side_of(t), w, way);
    return load_rows(unit, TKV_UNIT_LANES * 4, side_of(t), w, LANES);
}

/* The dot products of nq queries with LANES tokens from t on. */
INLINE void put_dots(int32_t (*dots)[TKV_BLOCK_TOKENS], size_t t, vec_i32 (*sum)[2],
                     const size_t nq, bool first)
{
    UNROLL
    for (size_t j = 0; j < nq; j++) {
        words_unaligned *to = (words_unaligned *)(dots[j] + t);
        const vec_u32 all = (vec_u32)whole_sum(sum[j][0], sum[j][1]);

        if (first)
            *to = all;
        else
            *to += all;
    }
}

/* Sums of nr rows over nf fields; one row alone has one for each side, so that enough of them are on
 * their way at once (those of pairs do not wait for each other's products). */
typedef vec_i32 value_sums[4][4][2][2];

#if OWN_DOTS
#include "core/neon_dots.h"
#else

INLINE void add_dot(vec_i32 *sum, vec_u32 a, vec_u32 b)
{
    *sum = DOT(*sum, a, b);
    SETTLE(*sum);
}

/*
 * Dot products of nq queries from r on with the tokens of ns vectors from `slice` on.
 * Everything but the loop over units unrolls, so that the sums stay in registers.
 */
INLINE void dots_of(int32_t (*dots)[TKV_BLOCK_TOKENS], const struct tkv_codes *keys,
                    const struct tkv_code_queries *q, const struct levels *levels, size_t r,
                    size_t slice, const unsigned w, const size_t nq, const size_t ns)
{
    const size_t row_bytes = TKV_UNIT_LANES * 4, unit_bytes = tkv_unit_rows(w) * row_bytes;
    const size_t quad_bytes = q->n * 8;
    const uint8_t *query = (const uint8_t *)(PAIRS ? (const void *)q->words : q->bytes) + r * 8;
    const ptrdiff_t way = way_to_next(keys);
    vec_i32 sum[4][4][2];

    UNROLL
    for (size_t s = 0; s < ns; s++)
        UNROLL
    for (size_t i = 0; i < 2 * nq; i++)
        sum[s][i / 2][i % 2] =
            (vec_i32){0} - (PAIRS ? BIAS * (128 * q->sums[r + i / 2][0] + q->sums[r + i / 2][1])
                                  : BIAS * q->sums[r + i / 2][i % 2]);
    for (size_t i = 0, at = 0; i < keys->n; i += tkv_key_unit_dim(w)) {
        struct rows rows[4];

        UNROLL
        for (size_t s = 0; s < ns; s++)
            rows[s] = key_rows(keys, at, (slice + s) * LANES, w, way);
        UNROLL
        for (unsigned f = 0; f < tkv_unit_fields(w); f++) {
            vec_u32 level[4];

            UNROLL
            for (size_t s = 0; s < ns; s++)
                level[s] =
                    lookup_levels(levels, field_bytes(rows[s], w, side_of((slice + s) * LANES), f));
            UNROLL
            for (size_t j = 0; j < 2 * nq; j++) {
                const vec_u32 factor = four_bytes(query + f * quad_bytes + 4 * j);

                UNROLL
                for (size_t s = 0; s < ns; s++)
                    add_dot(&sum[s][j / 2][part_of(j)], factor_of(level[s], j), factor);
            }
        }
        at += unit_bytes;
        query += tkv_unit_fields(w) * quad_bytes;
    }
    UNROLL
    for (size_t s = 0; s < ns; s++)
        put_dots(dots + r, (slice + s) * LANES, sum[s], nq, q->first);
}

INLINE size_t sum_of_side(const size_t nr, const size_t side)
{
    return !PAIRS && nr == 1 ? side : 0;
}

/* Add what the tokens of a block weigh to the sums of fields from f0 on. */
INLINE void add_block(value_sums sum, const uint8_t *unit, ptrdiff_t way, const uint8_t *weights,
                      const struct levels *levels, const size_t lanes, const size_t n_lanes,
                      const unsigned f0, const unsigned w, const size_t nr, const size_t nf)
{
    const size_t row_bytes = lanes * 4;

    for (size_t p = 0; p < TKV_BLOCK_TOKENS / TKV_VALUE_PAIR_TOKENS; p++) {
        UNROLL
        for (size_t side = 0; side < 2; side++) {
            const struct rows rows = load_rows(unit, row_bytes, side, w, n_lanes);
            vec_u32 level[4];

            ask_for_rows(unit, row_bytes, side, w, way);
            UNROLL
            for (size_t f = 0; f < nf; f++)
                level[f] = lookup_levels(levels, field_bytes(rows, w, side, f0 + (unsigned)f));
            UNROLL
            for (size_t j = 0; j < 2 * nr; j++) {
                const vec_u32 factor = four_bytes(weights + j * TKV_RUN_TOKENS + 4 * side);

                UNROLL
                for (size_t f = 0; f < nf; f++) {
                    vec_i32 *to = &sum[j / 2][f][part_of(j)][sum_of_side(nr, side)];

                    add_dot(to, factor, factor_of(level[f], j));
                }
            }
        }
        unit += tkv_unit_rows(w) * row_bytes;
        weights += TKV_VALUE_PAIR_TOKENS;
    }
}
#endif

INLINE void all_dots(int32_t (*dots)[TKV_BLOCK_TOKENS], const struct tkv_codes *keys,
                     const struct tkv_code_queries *q, const unsigned w)
{
    const struct levels levels = load_levels(keys->level, w, BIAS);
    const size_t n_slices = TKV_BLOCK_TOKENS / LANES;
    size_t r = 0;

    for (; r + 4 <= q->n; r += 4)
        for (size_t s = 0; s < n_slices; s += SLICES_4)
            dots_of(dots, keys, q, &levels, r, s, w, 4, SLICES_4);
    for (; r + 2 <= q->n; r += 2)
        for (size_t s = 0; s < n_slices; s += SLICES_2)
            dots_of(dots, keys, q, &levels, r, s, w, 2, SLICES_2);
    for (; r < q->n; r++)
        for (size_t s = 0; s < n_slices; s += SLICES_1)
            dots_of(dots, keys, q, &levels, r, s, w, 1, SLICES_1);
}

void KERNEL(code_dots)(int32_t (*dots)[TKV_BLOCK_TOKENS], const struct tkv_codes *keys,
                       const struct tkv_code_queries *q)
{
    switch (keys->w) {
    case 1: all_dots(dots, keys, q, 1); break;
    case 2: all_dots(dots, keys, q, 2); break;
    case 3: all_dots(dots, keys, q, 3); break;
    default: all_dots(dots, keys, q, 4); break;
    }
}

void KERNEL(level_dots)(int32_t *dots, const uint8_t *codes, size_t n, const int8_t *level,
                        const struct tkv_code_queries *q)
{
    const struct levels levels = load_levels(level, 4, BIAS);

    for (size_t r = 0; r < q->n; r++) {
        const uint8_t *high = (const uint8_t *)q->bytes + r * 2 * n, *low = high + n;
        vec_i32 sum[2] = {{0}};

        for (size_t i = 0; i < n; i += 4 * LANES) {
            const vec_u32 entry = lookup_levels(&levels, words_at(codes + i, LANES));

            sum[0] = dot4(sum[0], entry, words_at(high + i, LANES));
            sum[1] = dot4(sum[1], entry, words_at(low + i, LANES));
        }
        dots[r] = sum_words((vec_i32)((vec_u32)sum[0] * 128 + (vec_u32)sum[1])) -
                  BIAS * (128 * q->sums[r][0] + q->sums[r][1]);
    }
}

/* One unit of a section of values: its lanes, the coordinate of the first, and what to add to. */
struct value_unit {
    const struct tkv_codes *blocks;
    size_t n_blocks;
    size_t at; /* bytes from the start of the section */
    size_t lanes;
    size_t first;
    size_t n; /* coordinates of the section */
    const uint8_t (*weights)[2][TKV_RUN_TOKENS];
    const int32_t *total; /* of the weights of each row, if levels have BIAS added */
    const float *unit;
    float *acc;
    size_t stride;
};

INLINE void add_sums(const struct value_unit *u, size_t r, size_t i, size_t n_lanes, vec_i32 sum)
{
    const size_t left = u->n > i ? u->n - i : 0, n = left < n_lanes ? left : n_lanes;
    float *to = u->acc + r * u->stride + i;
    const vec_f32 add = __builtin_convertvector(sum, vec_f32) * u->unit[r];

    if (n >= LANES)
        *(floats_unaligned *)to += add;
    else if (n > 0)
        store_part(to, load_part(to, n) + add, n);
}

/* Weighted sums of nf fields from f0 on, in the lanes from `lane` on, for nr rows from r on. */
INLINE void sums_of(const struct value_unit *u, const struct levels *levels, size_t r,
                    const size_t lanes, size_t lane, const unsigned f0, const unsigned w,
                    const size_t nr, const size_t nf)
{
    const size_t n_lanes = lanes - lane < LANES ? lanes - lane : LANES;
    value_sums sum;

    UNROLL
    for (size_t j = 0; j < nr * nf; j++)
        UNROLL
    for (size_t k = 0; k < 4; k++)
        sum[j / nf][j % nf][k / 2][k % 2] =
            (vec_i32){0} - (PAIRS && k == 0 ? BIAS * u->total[r + j / nf] : 0);
    for (size_t b = 0; b < u->n_blocks; b++)
        add_block(sum, u->blocks[b].bytes + u->at + lane * 4, way_to_next(&u->blocks[b]),
                  u->weights[r][0] + b * TKV_BLOCK_TOKENS, levels, lanes, n_lanes, f0, w, nr, nf);
    UNROLL
    for (size_t j = 0; j < nr; j++) {
        UNROLL
        for (size_t f = 0; f < nf; f++)
            add_sums(
                u, r + j, u->first + lanes * (f0 + f) + lane, n_lanes,
                whole_sum(sum[j][f][0][0] + sum[j][f][0][1], sum[j][f][1][0] + sum[j][f][1][1]));
    }
}

INLINE void unit_sums(const struct value_unit *u, const struct levels *levels, size_t n_rows,
                      const unsigned w, const size_t lanes)
{
    const unsigned fields = tkv_unit_fields(w);

    for (size_t lane = 0; lane < lanes; lane += LANES) {
        size_t r = 0;

        for (; r + 4 <= n_rows; r += 4)
            UNROLL
        for (unsigned f = 0; f < fields; f += FIELDS_4)
            sums_of(u, levels, r, lanes, lane, f, w, 4, FIELDS_4);
        for (; r + 2 <= n_rows; r += 2)
            UNROLL
        for (unsigned f = 0; f < fields; f += 2)
            sums_of(u, levels, r, lanes, lane, f, w, 2, 2);
        for (; r < n_rows; r++)
            UNROLL
        for (unsigned f = 0; f < fields; f += 2)
            sums_of(u, levels, r, lanes, lane, f, w, 1, 2);
    }
}

INLINE void all_sums(struct value_unit *u, const int8_t *level, size_t n_rows, const unsigned w)
{
    const struct levels levels = load_levels(level, w, PAIRS ? BIAS : 0);

    for (; u->first < u->n; u->first += u->lanes * tkv_unit_fields(w)) {
        u->lanes = tkv_value_lanes(u->n - u->first, w);
        if (u->lanes == TKV_UNIT_LANES) /* a constant: most units are whole */
            unit_sums(u, &levels, n_rows, w, TKV_UNIT_LANES);
        else
            unit_sums(u, &levels, n_rows, w, u->lanes);
        u->at += tkv_value_unit_bytes(u->lanes, w);
    }
}

INLINE void sums_of_rows(struct value_unit *u, size_t n_rows)
{
    const struct tkv_codes *values = u->blocks;

    switch (values->w) {
    case 1: all_sums(u, values->level, n_rows, 1); break;
    case 2: all_sums(u, values->level, n_rows, 2); break;
    case 3: all_sums(u, values->level, n_rows, 3); break;
    default: all_sums(u, values->level, n_rows, 4); break;
    }
}

#if PAIRS
/* The weights of a row as numbers of 16 bits, four bytes of the parts becoming numbers 0 and 2 in
 * place of the first and 1 and 3 in place of the other; returns the sum of all. */
INLINE int32_t join_weights(uint8_t (*numbers)[TKV_RUN_TOKENS],
                            const uint8_t (*parts)[TKV_RUN_TOKENS], size_t n)
{
    const vec_u32 ones = (vec_u32){0} + 0x00010001u;
    vec_i32 total = {0};

    for (size_t i = 0; i < n; i += 4 * LANES) {
        const vec_u16 high = (vec_u16)words_at(parts[0] + i, LANES);
        const vec_u16 low = (vec_u16)words_at(parts[1] + i, LANES);
        const vec_u16 even = (high & 0xff) * 128 + (low & 0xff);
        const vec_u16 odd = (high >> 8) * 128 + (low >> 8);

        *(words_unaligned *)(numbers[0] + i) = (vec_u32)even;
        *(words_unaligned *)(numbers[1] + i) = (vec_u32)odd;
        total = (vec_i32)dot2(dot2(total, (vec_u32)even, ones), (vec_u32)odd, ones);
    }
    return sum_words(total);
}

/* Four rows at a time, which is how many share the levels that were looked up. */
INLINE void join_and_sum(const struct value_unit *all, size_t n_rows)
{
    uint8_t numbers[4][2][TKV_RUN_TOKENS];
    int32_t total[4];

    for (size_t r = 0; r < n_rows; r += 4) {
        const size_t n = n_rows - r < 4 ? n_rows - r : 4;
        struct value_unit u = *all;

        for (size_t i = 0; i < n; i++)
            total[i] = join_weights(numbers[i], u.weights[r + i], u.n_blocks * TKV_BLOCK_TOKENS);
        u.weights = (const uint8_t(*)[2][TKV_RUN_TOKENS])numbers;
        u.total = total;
        u.unit += r;
        u.acc += r * u.stride;
        sums_of_rows(&u, n);
    }
}
#endif

void KERNEL(code_sums)(float *acc, size_t stride, const struct tkv_codes *values, size_t n_blocks,
                       const uint8_t (*weights)[2][TKV_RUN_TOKENS], const float *unit,
                       size_t n_rows)
{
    struct value_unit u = {
        .blocks = values,
        .n_blocks = n_blocks,
        .n = values->n,
        .weights = weights,
        .unit = unit,
        .acc = acc,
        .stride = stride,
    };

#if PAIRS
    join_and_sum(&u, n_rows);
#else
    sums_of_rows(&u, n_rows);
#endif
}

#endif /* TKV_CORE_KERNELS_CODES_H */
