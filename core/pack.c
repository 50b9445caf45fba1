/* Writing codes into bit planes, and single lanes of them; the layout is drawn in pack.h. */
#include "core/pack.h"

#include <string.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "stored formats are little-endian");

/* A plane: b-bit fields that hold the bits of a code from `low` on. */
struct plane {
    unsigned b;
    unsigned low;
};

/* The planes of w-bit codes; the second is {0} if there is only one. */
static const struct plane planes_of[5][2] = {
    [1] = {{1, 0}},
    [2] = {{2, 0}},
    [3] = {{2, 0}, {1, 2}},
    [4] = {{4, 0}},
};

static void pack_plane(uint8_t *restrict plane, const uint8_t *restrict codes, size_t n,
                       struct plane l)
{
    const size_t bytes = n * l.b / 8;
    const unsigned mask = (1u << l.b) - 1;

    memset(plane, 0, bytes);
    for (unsigned k = 0; k < 8 / l.b; k++)
        for (size_t i = 0; i < bytes; i++)
            plane[i] = (uint8_t)(plane[i] | (codes[k * bytes + i] >> l.low & mask) << (k * l.b));
}

void tkv_pack(uint8_t *planes, const uint8_t *codes, size_t n, unsigned w)
{
    const struct plane *l = planes_of[w];

    pack_plane(planes, codes, n, l[0]);
    if (l[1].b)
        pack_plane(planes + n * l[0].b / 8, codes, n, l[1]);
}

/* Where lane t of a 64-code row sits in a plane. */
static size_t lane_byte(struct plane l, size_t t)
{
    return t % (TKV_BLOCK_TOKENS / 8 * l.b);
}

static unsigned lane_shift(struct plane l, size_t t)
{
    return l.b * (unsigned)(t / (TKV_BLOCK_TOKENS / 8 * l.b));
}

static void put_plane(uint8_t *plane, size_t n_rows, size_t stride, struct plane l, size_t t,
                      const uint8_t *codes)
{
    const unsigned mask = (1u << l.b) - 1, shift = lane_shift(l, t);
    uint8_t *p = plane + lane_byte(l, t);

    for (size_t r = 0; r < n_rows; r++)
        p[r * stride] = (uint8_t)(p[r * stride] | (codes[r] >> l.low & mask) << shift);
}

void tkv_lane_put(uint8_t *rows, size_t n_rows, unsigned w, size_t t, const uint8_t *codes)
{
    const struct plane *l = planes_of[w];
    const size_t stride = tkv_pack_bytes(TKV_BLOCK_TOKENS, w);

    put_plane(rows, n_rows, stride, l[0], t, codes);
    if (l[1].b)
        put_plane(rows + TKV_BLOCK_TOKENS / 8 * l[0].b, n_rows, stride, l[1], t, codes);
}

static unsigned get_field(const uint8_t *row, struct plane l, size_t t)
{
    return ((unsigned)row[lane_byte(l, t)] >> lane_shift(l, t) & ((1u << l.b) - 1)) << l.low;
}

void tkv_lane_get(uint8_t *codes, const uint8_t *rows, size_t n_rows, unsigned w, size_t t)
{
    const struct plane *l = planes_of[w];
    const size_t stride = tkv_pack_bytes(TKV_BLOCK_TOKENS, w);

    for (size_t r = 0; r < n_rows; r++) {
        const uint8_t *row = rows + r * stride;
        unsigned code = get_field(row, l[0], t);

        if (l[1].b)
            code |= get_field(row + TKV_BLOCK_TOKENS / 8 * l[0].b, l[1], t);
        codes[r] = (uint8_t)code;
    }
}
