/* Writing and reading single tokens of a block's codes; the layout is drawn in pack.h. */
#include "core/pack.h"

#include <string.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "stored formats are little-endian");

#define INLINE static inline __attribute__((always_inline))

enum { ROW_BYTES = TKV_UNIT_LANES * 4 };

/* How a code of w bits is split: `low` bits in the row of its side, the rest in the row of bits. */
static unsigned low_bits(unsigned w)
{
    return w == 4 ? 4 : w >= 2 ? 2 : 0;
}

/* Row of bits, counted in rows from the start of a unit. */
static size_t bits_row(unsigned w)
{
    return w >= 2 ? 2 : 0;
}

static uint32_t load_word(const uint8_t *p)
{
    uint32_t x;

    memcpy(&x, p, sizeof(x));
    return x;
}

static void add_to_word(uint8_t *p, uint32_t bits)
{
    bits |= load_word(p);
    memcpy(p, &bits, sizeof(bits));
}

static uint64_t load_eight(const uint8_t *p)
{
    uint64_t x;

    memcpy(&x, p, sizeof(x));
    return x;
}

/* Bits low .. low + b - 1 of the codes of a unit, in fields of b bits. Byte i of eight codes is that
 * of code i, and the second four have to come one field higher. */
INLINE uint32_t fields_of(const uint8_t *codes, const unsigned w, const unsigned b,
                          const unsigned low)
{
    const uint64_t mask = ((1u << b) - 1) * UINT64_C(0x0101010101010101);
    const uint64_t first = load_eight(codes) >> low & mask;
    uint32_t word = (uint32_t)(first | first >> (32 - b));

    if (tkv_unit_fields(w) == 4) {
        const uint64_t second = load_eight(codes + 8) >> low & mask;

        word |= (uint32_t)(second | second >> (32 - b)) << 2 * b;
    }
    return word;
}

/* Into a lane that nobody has put yet; the row of bits is the other side's too. */
INLINE void put_unit(uint8_t *lane, const unsigned w, unsigned side, const uint8_t *codes)
{
    if (w >= 2) {
        const uint32_t row = fields_of(codes, w, low_bits(w), 0);

        memcpy(lane + side * ROW_BYTES, &row, sizeof(row));
    }
    if (w % 2)
        add_to_word(lane + bits_row(w) * ROW_BYTES, fields_of(codes, w, 1, low_bits(w))
                                                        << 4 * side);
}

static void get_unit(uint8_t *codes, unsigned w, unsigned side, const uint8_t *lane)
{
    const unsigned b = low_bits(w);
    const uint32_t mask = ((1u << b) - 1) * 0x01010101u;
    const uint32_t row = b ? load_word(lane + side * ROW_BYTES) : 0;
    const uint32_t bits = w % 2 ? load_word(lane + bits_row(w) * ROW_BYTES) : 0;

    for (unsigned f = 0; f < tkv_unit_fields(w); f++) {
        const uint32_t four = (row >> (b * f) & mask) | (bits >> (4 * side + f) & 0x01010101u) << b;

        memcpy(codes + 4 * (size_t)f, &four, sizeof(four));
    }
}

INLINE void put_units(uint8_t *section, size_t n, const unsigned w, size_t t, const uint8_t *codes)
{
    const size_t dim = tkv_key_unit_dim(w), unit_bytes = tkv_unit_rows(w) * ROW_BYTES;
    const unsigned side = (unsigned)(t / TKV_UNIT_LANES);
    uint8_t *lane = section + t % TKV_UNIT_LANES * 4;
    uint8_t last[16] = {0};
    size_t i = 0;

    for (; i + dim <= n; i += dim, lane += unit_bytes)
        put_unit(lane, w, side, codes + i);
    if (i < n) {
        memcpy(last, codes + i, n - i);
        put_unit(lane, w, side, last);
    }
}

/* Widths as constants, so that the fields unroll. */
void tkv_key_put(uint8_t *section, size_t n, unsigned w, size_t t, const uint8_t *codes)
{
    switch (w) {
    case 1: put_units(section, n, 1, t, codes); break;
    case 2: put_units(section, n, 2, t, codes); break;
    case 3: put_units(section, n, 3, t, codes); break;
    default: put_units(section, n, 4, t, codes); break;
    }
}

typedef uint8_t bytes16 __attribute__((vector_size(16)));
typedef uint32_t words4 __attribute__((vector_size(16)));

INLINE words4 load_words(const uint8_t *p)
{
    words4 x;

    memcpy(&x, p, sizeof(x));
    return x;
}

/* Word j of v[i] and word i of v[j] change places. */
INLINE void transpose(words4 *v)
{
    const words4 ab = __builtin_shufflevector(v[0], v[1], 0, 4, 1, 5);
    const words4 ab_ = __builtin_shufflevector(v[0], v[1], 2, 6, 3, 7);
    const words4 cd = __builtin_shufflevector(v[2], v[3], 0, 4, 1, 5);
    const words4 cd_ = __builtin_shufflevector(v[2], v[3], 2, 6, 3, 7);

    v[0] = __builtin_shufflevector(ab, cd, 0, 1, 4, 5);
    v[1] = __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
    v[2] = __builtin_shufflevector(ab_, cd_, 0, 1, 4, 5);
    v[3] = __builtin_shufflevector(ab_, cd_, 2, 3, 6, 7);
}

/* Fields of the codes of four units: word u of field[f] has the four codes of field f of unit u. */
INLINE void load_fields(words4 *field, const uint8_t *codes, const unsigned w)
{
    if (tkv_unit_fields(w) == 2) {
        const words4 a = load_words(codes), b = load_words(codes + 16);

        field[0] = __builtin_shufflevector(a, b, 0, 2, 4, 6);
        field[1] = __builtin_shufflevector(a, b, 1, 3, 5, 7);
        return;
    }
    for (size_t u = 0; u < 4; u++)
        field[u] = load_words(codes + 16 * u);
    transpose(field);
}

/* Bits low .. low + b - 1 of all codes, in fields of b bits. */
INLINE words4 join_fields(const words4 *field, const unsigned w, const unsigned b,
                          const unsigned low)
{
    words4 row = {0};

    for (unsigned f = 0; f < tkv_unit_fields(w); f++)
        row |= (field[f] >> low & ((1u << b) - 1) * 0x01010101u) << b * f;
    return row;
}

/* Four units of four tokens from lane on; as put_unit, but for all of them at once. */
INLINE void put_four_units(uint8_t *lane, const unsigned w, unsigned side, const uint8_t *codes,
                           size_t stride)
{
    const size_t unit_bytes = tkv_unit_rows(w) * ROW_BYTES;
    words4 row[4], bits[4], field[4];

    for (size_t i = 0; i < 4; i++) {
        load_fields(field, codes + i * stride, w);
        if (w >= 2)
            row[i] = join_fields(field, w, low_bits(w), 0);
        if (w % 2)
            bits[i] = join_fields(field, w, 1, low_bits(w)) << 4 * side;
    }
    if (w >= 2)
        transpose(row);
    if (w % 2)
        transpose(bits);
    for (size_t u = 0; u < 4; u++, lane += unit_bytes) {
        if (w >= 2)
            memcpy(lane + side * ROW_BYTES, &row[u], sizeof(row[u]));
        if (w % 2) {
            bits[u] |= load_words(lane + bits_row(w) * ROW_BYTES);
            memcpy(lane + bits_row(w) * ROW_BYTES, &bits[u], sizeof(bits[u]));
        }
    }
}

INLINE void put_units4(uint8_t *section, size_t n, const unsigned w, size_t t, const uint8_t *codes,
                       size_t stride)
{
    const size_t dim = 4 * tkv_key_unit_dim(w), bytes = 4 * tkv_unit_rows(w) * ROW_BYTES;
    const unsigned side = (unsigned)(t / TKV_UNIT_LANES);

    for (; n >= dim; n -= dim, codes += dim, section += bytes)
        put_four_units(section + t % TKV_UNIT_LANES * 4, w, side, codes, stride);
    for (size_t i = 0; n > 0 && i < 4; i++)
        put_units(section, n, w, t + i, codes + i * stride);
}

void tkv_key_put4(uint8_t *section, size_t n, unsigned w, size_t t, const uint8_t *codes,
                  size_t stride)
{
    switch (w) {
    case 1: put_units4(section, n, 1, t, codes, stride); break;
    case 2: put_units4(section, n, 2, t, codes, stride); break;
    case 3: put_units4(section, n, 3, t, codes, stride); break;
    default: put_units4(section, n, 4, t, codes, stride); break;
    }
}

void tkv_key_get(uint8_t *codes, const uint8_t *section, size_t n, unsigned w, size_t t)
{
    const size_t dim = tkv_key_unit_dim(w), unit_bytes = tkv_unit_rows(w) * ROW_BYTES;
    const unsigned side = (unsigned)(t / TKV_UNIT_LANES);
    const uint8_t *lane = section + t % TKV_UNIT_LANES * 4;
    uint8_t last[16];
    size_t i = 0;

    for (; i + dim <= n; i += dim, lane += unit_bytes)
        get_unit(codes + i, w, side, lane);
    if (i < n) {
        get_unit(last, w, side, lane);
        memcpy(codes + i, last, n - i);
    }
}

/* One token's place in a unit of a value block: byte, stride 4, and the byte in the row of bits. */
struct place {
    size_t lanes;
    size_t row;
    size_t bits;
    unsigned side;
};

static struct place place_of(size_t t, size_t left, unsigned w)
{
    const size_t lanes = tkv_value_lanes(left, w);
    const size_t at = t / TKV_VALUE_PAIR_TOKENS * tkv_unit_rows(w) * lanes * 4 + t % 4;
    const unsigned side = (unsigned)(t / 4 % 2);

    return (struct place){lanes, at + side * lanes * 4, at + bits_row(w) * lanes * 4, side};
}

/* One byte of a row, and of the row of bits: the codes of a lane in all fields, `lanes` apart. */
INLINE void put_lane(uint8_t *row, uint8_t *bits, const unsigned w, unsigned side, size_t lanes,
                     const uint8_t *codes)
{
    const unsigned b = low_bits(w), mask = (1u << b) - 1;
    unsigned low = 0, high = 0;

    for (unsigned f = 0; f < tkv_unit_fields(w); f++) {
        low |= (codes[f * lanes] & mask) << (b * f);
        high |= (codes[f * lanes] >> b & 1u) << (4 * side + f);
    }
    if (b)
        *row = (uint8_t)low;
    if (w % 2)
        *bits = (uint8_t)(*bits | high);
}

INLINE void put_values(uint8_t *section, size_t n, const unsigned w, size_t t, const uint8_t *codes)
{
    const size_t dim = TKV_UNIT_LANES * tkv_unit_fields(w);
    uint8_t last[64] = {0};

    for (size_t i = 0; i < n;) {
        const struct place p = place_of(t, n - i, w);
        const size_t whole = p.lanes * tkv_unit_fields(w);
        const uint8_t *from = codes + i;

        if (n - i < dim)
            from = memcpy(last, from, n - i);
        for (size_t l = 0; l < p.lanes; l++)
            put_lane(section + p.row + 4 * l, section + p.bits + 4 * l, w, p.side, p.lanes,
                     from + l);
        section += tkv_value_unit_bytes(p.lanes, w);
        i += whole;
    }
}

void tkv_value_put(uint8_t *section, size_t n, unsigned w, size_t t, const uint8_t *codes)
{
    switch (w) {
    case 1: put_values(section, n, 1, t, codes); break;
    case 2: put_values(section, n, 2, t, codes); break;
    case 3: put_values(section, n, 3, t, codes); break;
    default: put_values(section, n, 4, t, codes); break;
    }
}

typedef uint16_t pairs8 __attribute__((vector_size(16)));

/* Bytes b0 of a, b, c, d, then their bytes b1, ... */
INLINE void store_interleaved(uint8_t *to, const bytes16 *row)
{
    for (int half = 0; half < 2; half++) {
        const bytes16 ab = half ? __builtin_shufflevector(row[0], row[1], 8, 24, 9, 25, 10, 26, 11,
                                                          27, 12, 28, 13, 29, 14, 30, 15, 31)
                                : __builtin_shufflevector(row[0], row[1], 0, 16, 1, 17, 2, 18, 3,
                                                          19, 4, 20, 5, 21, 6, 22, 7, 23);
        const bytes16 cd = half ? __builtin_shufflevector(row[2], row[3], 8, 24, 9, 25, 10, 26, 11,
                                                          27, 12, 28, 13, 29, 14, 30, 15, 31)
                                : __builtin_shufflevector(row[2], row[3], 0, 16, 1, 17, 2, 18, 3,
                                                          19, 4, 20, 5, 21, 6, 22, 7, 23);
        const pairs8 low =
            __builtin_shufflevector((pairs8)ab, (pairs8)cd, 0, 8, 1, 9, 2, 10, 3, 11);
        const pairs8 high =
            __builtin_shufflevector((pairs8)ab, (pairs8)cd, 4, 12, 5, 13, 6, 14, 7, 15);

        memcpy(to + 32 * half, &low, sizeof(low));
        memcpy(to + 32 * half + 16, &high, sizeof(high));
    }
}

typedef uint64_t longs2 __attribute__((vector_size(16)));

/* As fields_of, of the 16 lanes of a whole unit of values: code f * 16 + l is field f of lane l. */
INLINE bytes16 value_fields(const uint8_t *codes, const unsigned w, const unsigned b,
                            const unsigned low)
{
    const longs2 mask = ((1u << b) - 1) * UINT64_C(0x0101010101010101) - (longs2){0};
    longs2 row = {0};

    for (unsigned f = 0; f < tkv_unit_fields(w); f++) {
        longs2 code;

        memcpy(&code, codes + 16 * (size_t)f, sizeof(code));
        row |= (code >> low & mask) << b * f;
    }
    return (bytes16)row;
}

INLINE void put_value_unit4(uint8_t *row, uint8_t *bits, const unsigned w, unsigned side,
                            const uint8_t *codes, size_t stride)
{
    bytes16 rows[4];
    uint64_t old[8];
    uint8_t new[64];

    for (size_t i = 0; w >= 2 && i < 4; i++)
        rows[i] = value_fields(codes + i * stride, w, low_bits(w), 0);
    if (w >= 2)
        store_interleaved(row, rows);
    if (w % 2 == 0)
        return;
    for (size_t i = 0; i < 4; i++)
        rows[i] =
            (bytes16)((longs2)value_fields(codes + i * stride, w, 1, low_bits(w)) << 4 * side);
    store_interleaved(new, rows);
    memcpy(old, bits, sizeof(old));
    for (size_t i = 0; i < 8; i++)
        old[i] |= load_eight(new + 8 * i);
    memcpy(bits, old, sizeof(old));
}

INLINE void put_values4(uint8_t *section, size_t n, const unsigned w, size_t t,
                        const uint8_t *codes, size_t stride)
{
    const size_t dim = TKV_UNIT_LANES * tkv_unit_fields(w);
    size_t i = 0;

    for (; i + dim <= n; i += dim) {
        const struct place p = place_of(t, n - i, w);

        put_value_unit4(section + p.row, section + p.bits, w, p.side, codes + i, stride);
        section += tkv_value_unit_bytes(TKV_UNIT_LANES, w);
    }
    for (size_t j = 0; i < n && j < 4; j++)
        put_values(section, n - i, w, t + j, codes + i + j * stride);
}

void tkv_value_put4(uint8_t *section, size_t n, unsigned w, size_t t, const uint8_t *codes,
                    size_t stride)
{
    switch (w) {
    case 1: put_values4(section, n, 1, t, codes, stride); break;
    case 2: put_values4(section, n, 2, t, codes, stride); break;
    case 3: put_values4(section, n, 3, t, codes, stride); break;
    default: put_values4(section, n, 4, t, codes, stride); break;
    }
}

void tkv_value_get(uint8_t *codes, const uint8_t *section, size_t n, unsigned w, size_t t)
{
    const unsigned b = low_bits(w), mask = (1u << b) - 1;

    for (size_t i = 0; i < n;) {
        const struct place p = place_of(t, n - i, w);
        const size_t lanes = p.lanes;

        for (unsigned f = 0; f < tkv_unit_fields(w); f++) {
            for (size_t l = 0; l < lanes && i < n; l++, i++) {
                unsigned code = b ? section[p.row + 4 * l] >> (b * f) & mask : 0;

                if (w % 2)
                    code |= (section[p.bits + 4 * l] >> (4 * p.side + f) & 1u) << b;
                codes[i] = (uint8_t)code;
            }
        }
        section += tkv_value_unit_bytes(lanes, w);
    }
}
