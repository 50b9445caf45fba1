/*
 * Matrices of a model as they lie in its file, and their product with activations:
 * y[n][n_out] = x[n][n_in] W[n_out][n_in]^T. Private to the tools; the daemon never
 * multiplies weights.
 */
#ifndef TKV_TOOLS_LINEAR_H
#define TKV_TOOLS_LINEAR_H

#include "core/kernels.h"
#include "core/types.h"
#include "tools/gguf.h"

enum { TKV_TILE_ROWS = 8, TKV_TILE_COLS = 32 };

/*
 * out[8][32] = x[8][k] panel[k][32], x given by its rows. The whole of a product is
 * made of these. Close: 2 * k * FLT_EPSILON * sum |x * panel| for each element.
 */
typedef void tkv_tile(float *out, const float *const *x, const float *panel, size_t k);

tkv_tile tkv_tile_c, tkv_tile_avx2, tkv_tile_avx512, tkv_tile_neon;

/* dst[n] = the values of n / 32 blocks of Q8_0. Exact. */
typedef void tkv_read_q8(float *dst, const uint8_t *src, size_t n);

tkv_read_q8 tkv_read_q8_c, tkv_read_q8_avx2, tkv_read_q8_avx512, tkv_read_q8_neon;

/* What a machine multiplies with. Read-only once made. */
struct tkv_math {
    struct tkv_kernels kn;
    tkv_tile *tile;
    tkv_read_q8 *read_q8;
};

/* cpu: tkv_cpu_flags; 0 gives the portable code. */
void tkv_math_init(struct tkv_math *m, unsigned cpu);

struct tkv_matrix {
    enum tkv_ggml_type type;
    uint32_t n_out;
    uint32_t n_in; /* Q8_0: a multiple of 32 */
    const uint8_t *data;
};

/* dst[n] = n values of a row from column `from` on (Q8_0: both multiples of 32). */
void tkv_matrix_row(const struct tkv_math *m, const struct tkv_matrix *w, size_t row, size_t from,
                    size_t n, float *dst);

/* A row of y depends on its row of x alone, but for the rounding of the last bits: fewer than
 * four rows take another path than more. y may not overlap x. */
void tkv_linear(const struct tkv_math *m, const struct tkv_exec *exec, const struct tkv_matrix *w,
                const float *x, size_t n, float *y);

#endif /* TKV_TOOLS_LINEAR_H */
