/*
 * The cells that the codes of a section stand for, as the kernels that look for them want them. What
 * lies between two edges is one cell; which level stands for it is the codec's matter.
 */
#ifndef TKV_CORE_CELLS_H
#define TKV_CORE_CELLS_H

#include "core/types.h"

/* Edges are whole multiples of 1 / TKV_CELL_UNITS, and so far apart that in 16 bits the highest
 * five of a number leave at most one edge to be compared with. */
enum { TKV_CELL_UNITS = 1 << 13, TKV_CELL_SPANS = 32 };

struct tkv_cells {
    float edge[16]; /* a search tree, its root 1, below node k the nodes 2k and 2k + 1 */
    /* Of the numbers with these five bits: the code below an edge, one more from there on, in units. */
    int16_t code[TKV_CELL_SPANS];
    int16_t next[TKV_CELL_SPANS];
};

/* A number rounded to where an edge may be. */
float tkv_cells_round(float edge);

/* 2^w cells between edge[2^w - 1], which ascend, are rounded so and lie between -4 and 4. */
void tkv_cells_init(struct tkv_cells *c, const float *edge, unsigned w);

#endif /* TKV_CORE_CELLS_H */
