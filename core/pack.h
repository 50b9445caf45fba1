/*
 * Codes of w = 1..4 bits in bit planes: a plane of b-bit fields over n codes, n a
 * multiple of 8, is n * b / 8 bytes, and code j sits in byte j % (n * b / 8) at bit
 * b * (j / (n * b / 8)). w = 4: one plane of 4; 3: one of 2 for the low bits, then
 * one of 1 for bit 2; 2: one of 2; 1: one of 1.
 *
 *   plane of 2-bit fields over 64 codes, 16 bytes:
 *
 *     byte i    | code i+48 | code i+32 | code i+16 | code i |
 *     bits        7       6   5       4   3       2   1    0
 *
 * So one shift and one mask give as many codes in order as a plane has bytes, at any vector width.
 */
#ifndef TKV_CORE_PACK_H
#define TKV_CORE_PACK_H

#include "core/types.h"

/* Bytes of n codes of w bits. */
static inline size_t tkv_pack_bytes(size_t n, unsigned w)
{
    return n * w / 8;
}

/* planes = codes[n]. The way back is the kernel `expand`. */
void tkv_pack(uint8_t *planes, const uint8_t *codes, size_t n, unsigned w);

/*
 * Column access to n_rows consecutive rows of 64 codes of w bits: code[r] = row r's code of lane
 * t; put needs the lane to be zero.
 */
void tkv_lane_put(uint8_t *rows, size_t n_rows, unsigned w, size_t t, const uint8_t *codes);
void tkv_lane_get(uint8_t *codes, const uint8_t *rows, size_t n_rows, unsigned w, size_t t);

#endif /* TKV_CORE_PACK_H */
