/*
 * Reader of numpy's array files (NEP 1), as far as statistics need it: float32, little-endian, in C
 * order. The header is a Python literal that is compared with what numpy writes, never evaluated.
 */
#ifndef TKV_TOOLS_NPY_H
#define TKV_TOOLS_NPY_H

#include <stddef.h>
#include <stdint.h>

#include "tools/reason.h"

enum { TKV_NPY_MAX_DIMS = 4 };

struct tkv_npy {
    uint32_t n_dims;
    uint32_t shape[TKV_NPY_MAX_DIMS];
    size_t n_values;
    const uint8_t *values; /* float32, not aligned; a view into the data */
};

/* 0, or -1 with a text. The numbers are all of what follows the header. */
int tkv_npy_parse(struct tkv_npy *a, const uint8_t *data, size_t n, struct tkv_reason *why);

#endif /* TKV_TOOLS_NPY_H */
