/*
 * The two matrix products of attention, logits and accumulate: one register-blocked
 * body for both, part of the SIMD body of core/kernels_simd.h, which includes it.
 */
#ifndef TKV_CORE_KERNELS_GEMM_H
#define TKV_CORE_KERNELS_GEMM_H

/* c[n_rows][ldc] (+)= a[n_rows][lda] b[depth][ldb] over n_columns columns. */
struct gemm {
    float *c;
    const float *a, *b;
    size_t ldc, lda, ldb;
    size_t n_rows, n_columns, depth;
    bool add;
};

/*
 * One register block, rows x (vecs * LANES) with both constant, or rows x part columns.
 * Everything unrolls, so that the sums stay in registers over the whole depth.
 */
INLINE void gemm_block(const struct gemm *g, size_t row, size_t column, const size_t rows,
                       const size_t vecs, size_t part)
{
    float *c = g->c + row * g->ldc + column;
    const float *a = g->a + row * g->lda;
    const float *b = g->b + column;
    vec sum[4][GEMM_VECS];

    UNROLL
    for (size_t r = 0; r < rows; r++)
        UNROLL
    for (size_t v = 0; v < vecs; v++)
        sum[r][v] = g->add ? load_n(c + r * g->ldc + v * LANES, part) : (vec){0};
    for (size_t k = 0; k < g->depth; k++, b += g->ldb) {
        vec column_vec[GEMM_VECS];

        UNROLL
        for (size_t v = 0; v < vecs; v++)
            column_vec[v] = load_n(b + v * LANES, part);
        UNROLL
        for (size_t r = 0; r < rows; r++) {
            const vec weight = all(a[r * g->lda + k]);

            UNROLL
            for (size_t v = 0; v < vecs; v++)
                sum[r][v] = fma_vec(weight, column_vec[v], sum[r][v]);
        }
    }
    UNROLL
    for (size_t r = 0; r < rows; r++)
        UNROLL
    for (size_t v = 0; v < vecs; v++)
        store_n(c + r * g->ldc + v * LANES, sum[r][v], part);
}

/* All rows of a strip of columns, four rows at a time while there are four. */
INLINE void gemm_strip(const struct gemm *g, size_t column, const size_t vecs, size_t part)
{
    size_t row = 0;

    for (; row + 4 <= g->n_rows; row += 4)
        gemm_block(g, row, column, 4, vecs, part);
    if (g->n_rows - row >= 2) {
        gemm_block(g, row, column, 2, vecs, part);
        row += 2;
    }
    if (row < g->n_rows)
        gemm_block(g, row, column, 1, vecs, part);
}

static void gemm(const struct gemm *g)
{
    size_t column = 0;

    for (; column + GEMM_VECS * LANES <= g->n_columns; column += GEMM_VECS * LANES)
        gemm_strip(g, column, GEMM_VECS, LANES);
    for (; column + LANES <= g->n_columns; column += LANES)
        gemm_strip(g, column, 1, LANES);
    if (column < g->n_columns)
        gemm_strip(g, column, 1, g->n_columns - column);
}

void KERNEL(logits)(float *out, const float *q, size_t n_rows, const float *tile, size_t dim)
{
    gemm(&(struct gemm){.c = out,
                        .ldc = TKV_BLOCK_TOKENS,
                        .a = q,
                        .lda = dim,
                        .b = tile,
                        .ldb = TKV_BLOCK_TOKENS,
                        .n_rows = n_rows,
                        .n_columns = TKV_BLOCK_TOKENS,
                        .depth = dim});
}

void KERNEL(accumulate)(float *acc, const float *w, size_t n_rows, const float *rows,
                        size_t n_tokens, size_t dim)
{
    gemm(&(struct gemm){.c = acc,
                        .ldc = dim,
                        .a = w,
                        .lda = TKV_BLOCK_TOKENS,
                        .b = rows,
                        .ldb = dim,
                        .n_rows = n_rows,
                        .n_columns = dim,
                        .depth = n_tokens,
                        .add = true});
}

#endif /* TKV_CORE_KERNELS_GEMM_H */
