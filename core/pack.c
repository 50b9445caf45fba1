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

/* Four codes at a time: byte b of a word is code b, as it is in a field. */
INLINE void put_unit(uint8_t *lane, const unsigned w, unsigned side, const uint8_t *codes)
{
    const unsigned b = low_bits(w);
    const uint32_t mask = ((1u << b) - 1) * 0x01010101u;
    uint32_t row = 0, bits = 0;

    for (unsigned f = 0; f < tkv_unit_fields(w); f++) {
        const uint32_t four = load_word(codes + 4 * (size_t)f);

        row |= (four & mask) << (b * f);
        bits |= (four >> b & 0x01010101u) << (4 * side + f);
    }
    if (b)
        add_to_word(lane + side * ROW_BYTES, row);
    if (w % 2)
        add_to_word(lane + bits_row(w) * ROW_BYTES, bits);
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
