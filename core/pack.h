/*
 * Where the codes of a block lie: in units of 32-bit words that the kernels read as
 * they are, words across the lanes of a vector and four codes in every field of a word.
 *
 * A unit has two sides, A and B, and F fields: 2 fields of 4 bits (w = 4), or 4 fields of 2 bits
 * (w = 2, 3), with bit 2 of a code (w = 3) or its only bit (w = 1) in a row of
 * bits that both sides share. A row is one word for each lane:
 *
 *   w = 4   row A, row B          w = 3   row A, row B, bits
 *   w = 2   row A, row B          w = 1   bits
 *
 *   word of a row, w = 4        byte 3    |   byte 2    |   byte 1    |   byte 0
 *                            f 1  |  f 0  | f 1  |  f 0 | f 1  |  f 0 | f 1  |  f 0
 *   word of a row, w = 2, 3  f3 f2 f1 f0  | f3 f2 f1 f0 | f3 f2 f1 f0 | f3 f2 f1 f0
 *   word of bits             byte b: side A fields 0..3 in bits 0..3, side B in bits 4..7
 *
 *   keys     lane = one of 16 tokens, byte b of field f of unit u = coordinate 4 (F u + f) + b;
 *            sides: two tiles of 16 tokens. A section of n coordinates has ceil(n / 4F)
 *            units, for tokens 0..31 of the block and again for 32..63.
 *   values   byte = one of 4 tokens, lane l of field f of unit u = coordinate
 *            16 F u + L f + l; sides: two runs of 4 tokens. A unit is stored for each
 *            8 tokens in turn, 8 times in a block, and has L = 16 lanes; the last
 *            one of a section as few as hold what is left.
 *
 * So dot products over coordinates, and weighted sums over tokens, need no sum across lanes, and a
 * four-way 8-bit dot product instruction adds up a field at once.
 */
#ifndef TKV_CORE_PACK_H
#define TKV_CORE_PACK_H

#include "core/types.h"

enum {
    TKV_UNIT_LANES = 16,
    TKV_PAIR_TOKENS = 32,      /* keys: tokens of the two sides of a unit */
    TKV_VALUE_PAIR_TOKENS = 8, /* values: the same */
};

/* Fields in a word of a row, for codes of w bits. */
static inline unsigned tkv_unit_fields(unsigned w)
{
    return w == 4 ? 2 : 4;
}

static inline size_t tkv_unit_rows(unsigned w)
{
    return (w >= 2 ? 2 : 0) + w % 2;
}

/* Coordinates of a unit of keys. */
static inline size_t tkv_key_unit_dim(unsigned w)
{
    return 4 * tkv_unit_fields(w);
}

/* Coordinates that a section of n takes room for in a key block. */
static inline size_t tkv_key_slots(size_t n, unsigned w)
{
    return tkv_align(n, tkv_key_unit_dim(w));
}

/* Bytes of a section of n coordinates, of 32 tokens of a key block. */
static inline size_t tkv_key_section_bytes(size_t n, unsigned w)
{
    return tkv_key_slots(n, w) / tkv_key_unit_dim(w) * tkv_unit_rows(w) * TKV_UNIT_LANES * 4;
}

/* Lanes of the unit that begins with n coordinates left. */
static inline size_t tkv_value_lanes(size_t n, unsigned w)
{
    const size_t fields = tkv_unit_fields(w);

    return n >= TKV_UNIT_LANES * fields ? TKV_UNIT_LANES : (n + fields - 1) / fields;
}

/* Bytes of a unit of that many lanes in a whole value block. */
static inline size_t tkv_value_unit_bytes(size_t lanes, unsigned w)
{
    return TKV_BLOCK_TOKENS / TKV_VALUE_PAIR_TOKENS * tkv_unit_rows(w) * lanes * 4;
}

static inline size_t tkv_value_section_bytes(size_t n, unsigned w)
{
    const size_t unit = TKV_UNIT_LANES * tkv_unit_fields(w);

    return n / unit * tkv_value_unit_bytes(TKV_UNIT_LANES, w) +
           tkv_value_unit_bytes(tkv_value_lanes(n % unit, w), w);
}

/*
 * Codes of one token in a section of n coordinates: put needs the token's place to be zero.
 * section is that of the 32 tokens (keys), t < 32, or of the block (values), t < 64.
 */
void tkv_key_put(uint8_t *section, size_t n, unsigned w, size_t t, const uint8_t *codes);
void tkv_key_get(uint8_t *codes, const uint8_t *section, size_t n, unsigned w, size_t t);
void tkv_value_put(uint8_t *section, size_t n, unsigned w, size_t t, const uint8_t *codes);
void tkv_value_get(uint8_t *codes, const uint8_t *section, size_t n, unsigned w, size_t t);

/* put for tokens t .. t + 3, t a multiple of 4, whose codes are `stride` bytes apart and 0 where
 * there is no token. */
void tkv_key_put4(uint8_t *section, size_t n, unsigned w, size_t t, const uint8_t *codes,
                  size_t stride);
void tkv_value_put4(uint8_t *section, size_t n, unsigned w, size_t t, const uint8_t *codes,
                    size_t stride);

#endif /* TKV_CORE_PACK_H */
