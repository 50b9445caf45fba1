/*
 * Products with a model's matrices. Many rows: 32 rows of W at a time are made floats
 * and laid out [k][32], so that a tile kernel runs over them with the activations
 * broadcast. Few rows: each row of W is made floats and multiplied at once.
 */
#include "tools/linear.h"

#include <stdalign.h>
#include <string.h>

#include "core/cpu.h"
#include "core/half.h"

enum {
    FEW_ROWS = 4,     /* from here on a panel pays */
    ROWS_A_TASK = 64, /* rows of W in a task of the few-rows path */
    MAX_K = 512,      /* columns of W in a panel: 64 KiB, half of a usual L2 share */
};

#define LANES TKV_TILE_COLS

/* The judge of the other tiles: plain loops. */
void tkv_tile_c(float *out, const float *const *x, const float *panel, size_t k)
{
    memset(out, 0, sizeof(*out) * TKV_TILE_ROWS * LANES);
    for (size_t r = 0; r < TKV_TILE_ROWS; r++) {
        for (size_t i = 0; i < k; i++) {
            for (size_t c = 0; c < LANES; c++)
                out[r * LANES + c] += x[r][i] * panel[i * LANES + c];
        }
    }
}

#define READ_Q8 tkv_read_q8_c
#include "tools/linear_q8.h"

void tkv_math_init(struct tkv_math *m, unsigned cpu)
{
    tkv_kernels_init(&m->kn, cpu);
    m->tile = tkv_tile_c;
    m->read_q8 = tkv_read_q8_c;
#if defined(__x86_64__)
    if (cpu & TKV_CPU_AVX2) {
        m->tile = tkv_tile_avx2;
        m->read_q8 = tkv_read_q8_avx2;
    }
    if (cpu & TKV_CPU_AVX512) {
        m->tile = tkv_tile_avx512;
        m->read_q8 = tkv_read_q8_avx512;
    }
#elif defined(__aarch64__)
    if (cpu & TKV_CPU_NEON) {
        m->tile = tkv_tile_neon;
        m->read_q8 = tkv_read_q8_neon;
    }
#endif
}

void tkv_matrix_row(const struct tkv_math *m, const struct tkv_matrix *w, size_t row, size_t from,
                    size_t n, float *dst)
{
    const size_t first = row * w->n_in + from;

    switch (w->type) {
    case TKV_GGML_F32: memcpy(dst, w->data + 4 * first, 4 * n); break;
    case TKV_GGML_F16: tkv_to_f32(&m->kn, dst, w->data + 2 * first, TKV_F16, n); break;
    case TKV_GGML_BF16: tkv_to_f32(&m->kn, dst, w->data + 2 * first, TKV_BF16, n); break;
    case TKV_GGML_Q8_0:
        m->read_q8(dst, w->data + first / TKV_Q8_BLOCK * TKV_Q8_BLOCK_BYTES, n);
        break;
    }
}

struct product {
    const struct tkv_math *m;
    const struct tkv_matrix *w;
    const float *x;
    size_t n;
    float *y;
};

static size_t least(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* Columns [from, from + k) of 32 rows of W, as panel[k][32]; rows beyond the last are 0. */
static void fill_panel(const struct product *p, size_t first_row, size_t from, size_t k,
                       float *panel)
{
    float row[MAX_K];

    for (size_t r = 0; r < LANES; r++) {
        if (first_row + r < p->w->n_out)
            tkv_matrix_row(p->m, p->w, first_row + r, from, k, row);
        else
            memset(row, 0, k * sizeof(*row));
        for (size_t i = 0; i < k; i++)
            panel[i * LANES + r] = row[i];
    }
}

/* Adds the panel's part to up to 8 rows of y from `at` on; the first part replaces what is there. */
static void multiply_panel(const struct product *p, size_t at, size_t first_row, size_t from,
                           size_t k, const float *panel)
{
    alignas(64) float out[TKV_TILE_ROWS * LANES];
    const float *rows[TKV_TILE_ROWS];
    const size_t n_rows = least(TKV_TILE_ROWS, p->n - at);
    const size_t n_cols = least(LANES, p->w->n_out - first_row);

    for (size_t r = 0; r < TKV_TILE_ROWS; r++) /* spare rows repeat the last one */
        rows[r] = p->x + (at + least(r, n_rows - 1)) * p->w->n_in + from;
    p->m->tile(out, rows, panel, k);
    for (size_t r = 0; r < n_rows; r++) {
        float *y = p->y + (at + r) * p->w->n_out + first_row;

        if (!from) {
            memcpy(y, out + r * LANES, n_cols * sizeof(*y));
            continue;
        }
        for (size_t c = 0; c < n_cols; c++)
            y[c] += out[r * LANES + c];
    }
}

static void multiply_many(void *arg, size_t task)
{
    alignas(64) float panel[MAX_K * LANES];
    const struct product *p = arg;

    for (size_t from = 0; from < p->w->n_in; from += MAX_K) {
        const size_t k = least(MAX_K, p->w->n_in - from);

        fill_panel(p, task * LANES, from, k, panel);
        for (size_t at = 0; at < p->n; at += TKV_TILE_ROWS)
            multiply_panel(p, at, task * LANES, from, k, panel);
    }
}

static void multiply_few(void *arg, size_t task)
{
    const struct product *p = arg;
    const size_t end = least(p->w->n_out, (task + 1) * ROWS_A_TASK);
    float part[MAX_K];

    for (size_t row = task * ROWS_A_TASK; row < end; row++) {
        for (size_t at = 0; at < p->n; at++)
            p->y[at * p->w->n_out + row] = 0.0f;
        for (size_t from = 0; from < p->w->n_in; from += MAX_K) {
            const size_t k = least(MAX_K, p->w->n_in - from);

            tkv_matrix_row(p->m, p->w, row, from, k, part);
            for (size_t at = 0; at < p->n; at++)
                p->y[at * p->w->n_out + row] +=
                    p->m->kn.dot(part, p->x + at * p->w->n_in + from, k);
        }
    }
}

void tkv_linear(const struct tkv_math *m, const struct tkv_exec *exec, const struct tkv_matrix *w,
                const float *x, size_t n, float *y)
{
    struct product p = {m, w, x, n, y};

    if (n < FEW_ROWS)
        tkv_exec_run(exec, (w->n_out + ROWS_A_TASK - 1) / ROWS_A_TASK, multiply_few, &p);
    else
        tkv_exec_run(exec, (w->n_out + LANES - 1) / LANES, multiply_many, &p);
}
