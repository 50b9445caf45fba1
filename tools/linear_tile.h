/*
 * The body of a tile kernel, written once. Whoever includes it defines
 *
 *   TILE      name of the function     VEC   vector of WIDTH floats
 *   LOAD(p)   unaligned load           SET(f)      all lanes f
 *   STORE(p, v)                        FMA(a, b, c)   a * b + c
 *   ROWS, VECS   the part of the 8 x 32 tile whose sums fit into the registers
 */
#include "tools/linear.h"

/* Compilers differ in how to ask for unrolling, without which acc stays in memory. */
#ifdef __clang__
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 8")
#endif

static inline __attribute__((always_inline)) void part(float *out, const float *const *x,
                                                       const float *panel, size_t k)
{
    VEC acc[ROWS][VECS];

    UNROLL for (int r = 0; r < ROWS; r++)
    {
        UNROLL for (int v = 0; v < VECS; v++) acc[r][v] = SET(0.0f);
    }
    for (size_t i = 0; i < k; i++) {
        VEC w[VECS];

        UNROLL for (int v = 0; v < VECS; v++) w[v] = LOAD(panel + i * TKV_TILE_COLS + v * WIDTH);
        UNROLL for (int r = 0; r < ROWS; r++)
        {
            const VEC b = SET(x[r][i]);

            UNROLL for (int v = 0; v < VECS; v++) acc[r][v] = FMA(b, w[v], acc[r][v]);
        }
    }
    UNROLL for (int r = 0; r < ROWS; r++)
    {
        UNROLL for (int v = 0; v < VECS; v++) STORE(out + r * TKV_TILE_COLS + v * WIDTH, acc[r][v]);
    }
}

void TILE(float *out, const float *const *x, const float *panel, size_t k)
{
    for (int r = 0; r < TKV_TILE_ROWS; r += ROWS) {
        for (int c = 0; c < TKV_TILE_COLS; c += VECS * WIDTH)
            part(out + r * TKV_TILE_COLS + c, x + r, panel + c, k);
    }
}
