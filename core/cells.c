/* Tables for finding cells: by a search tree, and by the highest bits of a number. */
#include "core/cells.h"

#include <assert.h>
#include <math.h>

float tkv_cells_round(float edge)
{
    return rintf(edge * TKV_CELL_UNITS) / TKV_CELL_UNITS;
}

/* Nodes in the order of a search tree: the subtree below `node` gets the edges low .. high - 1. */
static void fill_tree(float *tree, unsigned node, const float *edge, unsigned low, unsigned high)
{
    const unsigned middle = (low + high) / 2;

    if (low == high)
        return;
    tree[node] = edge[middle];
    fill_tree(tree, 2 * node, edge, low, middle);
    fill_tree(tree, 2 * node + 1, edge, middle + 1, high);
}

/* The span from `lowest` on; numbers under 0 come last, as their bits say. Above all edges is the last
 * one, which no number is below: the largest may stand for some that are larger. */
static void fill_span(struct tkv_cells *c, int lowest, const float *edge, unsigned n_edges)
{
    const size_t at = (uint16_t)lowest / (65536 / TKV_CELL_SPANS);
    unsigned code = 0;

    while (code < n_edges && edge[code] * TKV_CELL_UNITS <= (float)lowest)
        code++;
    assert(code + 1 >= n_edges ||
           edge[code + 1] * TKV_CELL_UNITS >= (float)(lowest + 65536 / TKV_CELL_SPANS));
    c->code[at] = (int16_t)(code < n_edges ? code : n_edges - 1);
    c->next[at] = code < n_edges ? (int16_t)(edge[code] * TKV_CELL_UNITS) : INT16_MIN;
}

void tkv_cells_init(struct tkv_cells *c, const float *edge, unsigned w)
{
    const unsigned n_edges = (1u << w) - 1;

    fill_tree(c->edge, 1, edge, 0, n_edges);
    for (int lowest = INT16_MIN; lowest < INT16_MAX; lowest += 65536 / TKV_CELL_SPANS)
        fill_span(c, lowest, edge, n_edges);
}
