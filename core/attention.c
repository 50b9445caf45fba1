/*
 * Online-softmax attention of a group of query rows over tiles of 64 keys. Rows go
 * through a tile in batches, so that the logits stay in the nearest cache; what a
 * row gets never depends on the rows beside it. Where tiles come from, which tier
 * they belong to and when partials are merged is left to the store.
 */
#include "core/attention.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#include "core/attention_priv.h"
#include "core/kernels.h"

enum { LANES = TKV_BLOCK_TOKENS, WIDE_LANES = 16, ROW_BATCH = 64, ALIGN_BYTES = 64 };

/* What all batches of one tile share. */
struct tile {
    const struct tkv_kernels *kn;
    const struct tkv_attn_params *a;
    const struct tkv_attn_rows *rows;
    const int32_t *key_positions;
    size_t n;
};

static size_t row_bytes(size_t n_rows)
{
    return tkv_align(n_rows * sizeof(float), ALIGN_BYTES);
}

size_t tkv_partial_bytes(size_t n_rows, uint32_t dim)
{
    return 2 * row_bytes(n_rows) + row_bytes(n_rows * dim);
}

void tkv_partial_init(struct tkv_partial *p, void *memory, size_t n_rows, uint32_t dim)
{
    p->n_rows = n_rows;
    p->dim = dim;
    p->max = memory;
    p->sum = p->max + row_bytes(n_rows) / sizeof(float);
    p->out = p->sum + row_bytes(n_rows) / sizeof(float);
    for (size_t r = 0; r < n_rows; r++) {
        p->max[r] = -INFINITY;
        p->sum[r] = 0;
    }
    memset(p->out, 0, n_rows * dim * sizeof(float));
}

/* What is not finite has no place on the softmax's scale: the row says so for good. */
void tkv_spoil_row(struct tkv_partial *p, size_t r)
{
    p->max[r] = NAN;
    p->sum[r] = NAN;
}

void tkv_partial_add_sinks(struct tkv_partial *p, const float *sinks, uint32_t group)
{
    assert(group > 0 && p->n_rows % group == 0);
    for (size_t r = 0; r < p->n_rows; r++) {
        const float sink = sinks[r % group];

        assert(p->sum[r] == 0);
        if (sink == -INFINITY)
            continue;
        if (!isfinite(sink)) {
            tkv_spoil_row(p, r);
            continue;
        }
        p->max[r] = sink;
        p->sum[r] = 1;
    }
}

/* How many of the ascending positions[n] are before `limit`. */
static uint32_t count_before(const int32_t *positions, size_t n, int64_t limit)
{
    size_t low = 0;
    size_t high = n;

    /* Most tiles are wholly in the past: no search. */
    if (n == 0 || positions[n - 1] < limit)
        return (uint32_t)n;
    while (low < high) {
        const size_t middle = (low + high) / 2;

        if (positions[middle] < limit)
            low = middle + 1;
        else
            high = middle;
    }
    return (uint32_t)low;
}

struct tkv_span tkv_seen_lanes(const struct tkv_attn_params *a, const int32_t *key_positions,
                               size_t n, int64_t position)
{
    const int64_t window = a->window_tokens;
    struct tkv_span s = {0, count_before(key_positions, n, position + 1)};

    if (window > 0 && s.end > 0 && key_positions[0] <= position - window)
        s.begin = count_before(key_positions, s.end, position - window + 1);
    return s;
}

/*
 * Find the next rows, from *row on, that all see something: at most ROW_BATCH.
 * Returns their number and sets *row to the first; 0 when there are none left.
 * Blind rows are stepped over, not multiplied by zero: that would turn -0 into +0.
 */
static size_t next_batch(const struct tile *t, size_t *row, struct tkv_span *spans)
{
    const uint32_t group = t->rows->group;
    size_t token = *row / group;
    size_t head = *row % group;
    size_t n_rows = 0;

    for (; token < t->rows->n_tokens && n_rows < ROW_BATCH; token++, head = 0) {
        const struct tkv_span s =
            tkv_seen_lanes(t->a, t->key_positions, t->n, t->rows->positions[token]);

        if (s.begin == s.end) {
            if (n_rows > 0)
                break;
            continue;
        }
        if (n_rows == 0)
            *row = token * group + head;
        for (; head < group && n_rows < ROW_BATCH; head++)
            spans[n_rows++] = s;
    }
    return n_rows;
}

/*
 * x = c tanh(x / c) through the exp kernel: with e = exp(-2 |x| / c),
 * tanh(|x| / c) = (1 - e) / (1 + e). The argument is never positive, so nothing
 * overflows; the error is about c * FLT_EPSILON, however small x is.
 */
void tkv_cap_logits(const struct tkv_kernels *kn, float *x, float cap)
{
    const float slope = -2.0f / cap;
    float e[LANES];

    for (size_t i = 0; i < LANES; i++)
        e[i] = slope * fabsf(x[i]);
    kn->exp_sum(e, LANES, 0);
    for (size_t i = 0; i < LANES; i++)
        x[i] = copysignf(cap * (1 - e[i]) / (1 + e[i]), x[i]);
}

/* x *= scale. False if some product is not finite: x * 0 is then NaN, and stays in
 * the sum. Lane sums of fixed length, which compilers turn into vector code. */
static bool scale_logits(float *x, float scale)
{
    float zero[8] = {0};
    float sum = 0;

    for (size_t i = 0; i < LANES; i += 8) {
        for (size_t j = 0; j < 8; j++) {
            x[i + j] *= scale;
            zero[j] += x[i + j] * 0.0f;
        }
    }
    for (size_t j = 0; j < 8; j++)
        sum += zero[j];
    return sum == 0;
}

static float max_logit(const float *x)
{
    float m[8];
    float max = -INFINITY;

    memcpy(m, x, sizeof m);
    for (size_t i = 8; i < LANES; i += 8) {
        for (size_t j = 0; j < 8; j++)
            m[j] = x[i + j] > m[j] ? x[i + j] : m[j];
    }
    for (size_t j = 0; j < 8; j++)
        max = m[j] > max ? m[j] : max;
    return max;
}

bool tkv_span_is_finite(const float *x, struct tkv_span s)
{
    for (uint32_t i = s.begin; i < s.end; i++) {
        if (!isfinite(x[i]))
            return false;
    }
    return true;
}

static void multiply(float *x, float by, size_t n)
{
    for (size_t i = 0; i < n; i++)
        x[i] *= by;
}

float tkv_mask_logits(float *x, struct tkv_span s)
{
    for (uint32_t i = 0; i < s.begin; i++)
        x[i] = -INFINITY;
    for (uint32_t i = s.end; i < LANES; i++)
        x[i] = -INFINITY;
    return max_logit(x);
}

void tkv_raise_max(struct tkv_partial *p, size_t r, float max)
{
    const float shrink = expf(p->max[r] - max);

    p->sum[r] *= shrink;
    multiply(p->out + r * p->dim, shrink, p->dim);
    p->max[r] = max;
}

/* Turn the dot products x[64] of row r into weights, and bring the row's maximum,
 * sum and output to the new maximum (arXiv 1805.02867, algorithm 3). */
static void weigh_row(const struct tile *t, struct tkv_partial *p, size_t r, struct tkv_span s,
                      float *x)
{
    const bool finite = scale_logits(x, t->a->scale) || tkv_span_is_finite(x, s);
    float max;
    float sum;

    if (!finite)
        tkv_spoil_row(p, r);
    if (isnan(p->max[r]))
        return; /* the weights do not matter any more */
    if (t->a->softcap > 0)
        tkv_cap_logits(t->kn, x, t->a->softcap);
    max = tkv_mask_logits(x, s);
    if (max > p->max[r])
        tkv_raise_max(p, r, max);
    sum = t->kn->exp_sum(x, LANES, p->max[r]);
    p->sum[r] += sum;
}

void tkv_attend_tile(const struct tkv_kernels *kn, const struct tkv_attn_params *a,
                     const struct tkv_attn_rows *rows, const float *q, uint32_t tile_dim,
                     const float *tile, const float *values, const int32_t *key_positions, size_t n,
                     struct tkv_partial *p, void *scratch)
{
    const struct tile t = {kn, a, rows, key_positions, n};
    struct tkv_span spans[ROW_BATCH];
    float *x = scratch;
    size_t row = 0;
    size_t n_rows;

    assert(n <= LANES && rows->group > 0);
    assert(p->n_rows == rows->n_tokens * rows->group);
    while ((n_rows = next_batch(&t, &row, spans)) > 0) {
        kn->logits(x, q + row * tile_dim, n_rows, tile, tile_dim);
        for (size_t i = 0; i < n_rows; i++)
            weigh_row(&t, p, row + i, spans[i], x + i * LANES);
        kn->accumulate(p->out + row * p->dim, x, n_rows, values, n, p->dim);
        row += n_rows;
    }
}

/*
 * Halves that are not coded lie token by token and must be turned to lie across
 * the lanes, 8 by 8: three rounds of interleaving each row with the one four
 * below it are a transpose. Vector types of the compiler, so one source serves
 * every instruction set.
 */
typedef uint16_t half8 __attribute__((vector_size(16)));

#define LOW(a, b)  __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11)
#define HIGH(a, b) __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15)

/* Written out, for a loop would keep its eight rows in memory. */
static inline void interleave(const half8 *in, half8 *out)
{
    out[0] = LOW(in[0], in[4]);
    out[1] = HIGH(in[0], in[4]);
    out[2] = LOW(in[1], in[5]);
    out[3] = HIGH(in[1], in[5]);
    out[4] = LOW(in[2], in[6]);
    out[5] = HIGH(in[2], in[6]);
    out[6] = LOW(in[3], in[7]);
    out[7] = HIGH(in[3], in[7]);
}

static inline half8 load(const uint16_t *src)
{
    half8 x;

    memcpy(&x, src, sizeof x);
    return x;
}

static inline void store(uint16_t *dst, half8 x)
{
    memcpy(dst, &x, sizeof x);
}

static void transpose_8x8(uint16_t *dst, const uint16_t *const *rows, size_t at)
{
    half8 a[8] = {
        load(rows[0] + at), load(rows[1] + at), load(rows[2] + at), load(rows[3] + at),
        load(rows[4] + at), load(rows[5] + at), load(rows[6] + at), load(rows[7] + at),
    };
    half8 b[8];

    interleave(a, b);
    interleave(b, a);
    interleave(a, b);
    store(dst, b[0]);
    store(dst + LANES, b[1]);
    store(dst + 2 * LANES, b[2]);
    store(dst + 3 * LANES, b[3]);
    store(dst + 4 * LANES, b[4]);
    store(dst + 5 * LANES, b[5]);
    store(dst + 6 * LANES, b[6]);
    store(dst + 7 * LANES, b[7]);
}

/* dst[dim][64] = k[n] transposed, into the n lanes from `lane` on; what those behind them get, up to a
 * multiple of 8, is of no meaning. */
static void transpose_keys(uint16_t *dst, size_t lane, const struct tkv_half_rows *h, uint32_t dim)
{
    const uint32_t dim_whole = dim / 8 * 8;
    size_t t = 0;

    for (; t < h->n && lane + t + 8 <= LANES; t += 8) {
        const uint16_t *rows[8];

        for (size_t j = 0; j < 8; j++) /* the last ones again where there are fewer */
            rows[j] = h->k + (t + j < h->n ? t + j : h->n - 1) * h->k_stride;
        for (uint32_t i = 0; i < dim_whole; i += 8)
            transpose_8x8(dst + i * (size_t)LANES + lane + t, rows, i);
    }
    for (size_t j = 0; j < h->n; j++) {
        for (uint32_t i = j < t ? dim_whole : 0; i < dim; i++)
            dst[i * (size_t)LANES + lane + j] = h->k[j * h->k_stride + i];
    }
}

size_t tkv_attend_scratch_bytes(size_t n_rows, uint32_t tile_dim, uint32_t v_dim)
{
    const size_t n_batch = n_rows < ROW_BATCH ? n_rows : ROW_BATCH;
    const size_t lane_bytes = sizeof(float) * (n_batch + tile_dim + v_dim);

    /* Logits, then for uncoded tokens the key tile, the value rows, the turned halves. */
    return LANES * (lane_bytes + sizeof(uint16_t) * tile_dim);
}

/* Is there a query that sees one of keys[n]? Saves turning tiles for nobody. */
static bool any_sees(const struct tkv_attn_params *a, const struct tkv_attn_rows *rows,
                     const int32_t *keys, size_t n)
{
    for (size_t i = 0; i < rows->n_tokens; i++) {
        const struct tkv_span s = tkv_seen_lanes(a, keys, n, rows->positions[i]);

        if (s.begin < s.end)
            return true;
    }
    return false;
}

/* To floats, in the lanes of n tokens and perhaps in others: those hold anything. */
static void widen_tile(const struct tkv_kernels *kn, float *tile, const uint16_t *turned,
                       uint32_t dim, size_t n)
{
    const size_t width = tkv_align(n, WIDE_LANES);

    if (width > LANES / 2) {
        kn->f16_to_f32(tile, turned, (size_t)dim * LANES);
        return;
    }
    for (size_t i = 0; i < dim; i++)
        kn->f16_to_f32(tile + i * LANES, turned + i * LANES, width);
}

/* Tokens of both runs, as many as a tile has lanes, which are taken from them. */
struct half_tile {
    struct tkv_half_rows part[2];
    int32_t positions[LANES];
    size_t n;
};

static struct tkv_half_rows take_rows(struct tkv_half_rows *from, size_t most)
{
    struct tkv_half_rows taken = *from;

    taken.n = taken.n < most ? taken.n : most;
    from->k += taken.n * from->k_stride;
    from->v += taken.n * from->v_stride;
    from->positions += taken.n;
    from->n -= taken.n;
    return taken;
}

static void take_tile(struct half_tile *t, struct tkv_half_rows *runs)
{
    t->n = 0;
    for (size_t i = 0; i < 2; i++) {
        t->part[i] = runs[i].n ? take_rows(&runs[i], LANES - t->n) : (struct tkv_half_rows){.n = 0};
        if (t->part[i].n > 0)
            memcpy(t->positions + t->n, t->part[i].positions, t->part[i].n * sizeof(int32_t));
        t->n += t->part[i].n;
    }
}

void tkv_attend_half(const struct tkv_kernels *kn, const struct tkv_attn_params *a,
                     const struct tkv_attn_rows *rows, const float *q, uint32_t tile_dim,
                     const struct tkv_half_rows runs[2], struct tkv_partial *p, void *scratch)
{
    const size_t n_batch = p->n_rows < ROW_BATCH ? p->n_rows : ROW_BATCH;
    float *logits = scratch;
    float *tile = logits + n_batch * LANES;
    float *values = tile + (size_t)tile_dim * LANES;
    uint16_t *turned = (uint16_t *)(values + (size_t)p->dim * LANES);
    struct tkv_half_rows left[2] = {runs[0], runs[1]};
    struct half_tile t;

    for (take_tile(&t, left); t.n > 0; take_tile(&t, left)) {
        size_t lane = 0;

        if (!any_sees(a, rows, t.positions, t.n))
            continue;
        for (size_t i = 0; i < 2; i++) {
            const struct tkv_half_rows *h = &t.part[i];

            transpose_keys(turned, lane, h, tile_dim);
            for (size_t j = 0; j < h->n; j++)
                kn->f16_to_f32(values + (lane + j) * p->dim, h->v + j * h->v_stride, p->dim);
            lane += h->n;
        }
        widen_tile(kn, tile, turned, tile_dim, t.n);
        tkv_attend_tile(kn, a, rows, q, tile_dim, tile, values, t.positions, t.n, p, logits);
    }
}

/* dst[n] = dst * a + src * b. */
static void blend(float *dst, float a, const float *src, float b, size_t n)
{
    for (size_t i = 0; i < n; i++)
        dst[i] = dst[i] * a + src[i] * b;
}

void tkv_partial_merge(struct tkv_partial *dst, const struct tkv_partial *src)
{
    assert(dst->n_rows == src->n_rows && dst->dim == src->dim);
    for (size_t r = 0; r < dst->n_rows; r++) {
        const size_t at = r * dst->dim;
        const float max = src->max[r] > dst->max[r] ? src->max[r] : dst->max[r];
        float keep;
        float add;

        if (isnan(src->max[r]) || isnan(dst->max[r])) {
            tkv_spoil_row(dst, r);
            continue;
        }
        if (src->max[r] == -INFINITY)
            continue;
        keep = expf(dst->max[r] - max);
        add = expf(src->max[r] - max);
        dst->max[r] = max;
        dst->sum[r] = dst->sum[r] * keep + src->sum[r] * add;
        blend(dst->out + at, keep, src->out + at, add, dst->dim);
    }
}

void tkv_partial_finish(const struct tkv_partial *p, float *out, float *lse)
{
    for (size_t r = 0; r < p->n_rows; r++) {
        const bool blind = p->sum[r] == 0;
        const float inverse = blind ? 0 : 1 / p->sum[r];

        lse[r] = blind ? -INFINITY : p->max[r] + logf(p->sum[r]);
        for (size_t i = 0; i < p->dim; i++)
            out[r * p->dim + i] = p->out[r * p->dim + i] * inverse;
    }
}
