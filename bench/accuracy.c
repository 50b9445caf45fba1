/*
 * Attention from codes against exact attention on what the codes decode to, in double: relative L2
 * error of the output over all rows, and of the log-sum-exp. Keys and values are random; queries are
 * as long as logits of a standard deviation of 1, 2 and 4 want them, in turn, since it is logits that
 * queries in whole numbers disturb.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench/commands.h"
#include "bench/inputs.h"
#include "bench/machine.h"
#include "core/block.h"
#include "core/fused.h"

enum { N_LENGTHS = 3, BLOCK = TKV_BLOCK_TOKENS };

static const float deviations[N_LENGTHS] = {1, 2, 4};

struct bench {
    const struct tkv_bench_options *o;
    struct tkv_machine machine;
    struct tkv_source source;
    struct tkv_coder coder;
    struct tkv_block_layout layout;
    size_t n_blocks;
    uint8_t *blocks;
    float *x;            /* [64][head_dim] */
    float *q, *coded;    /* [group][head_dim] */
    double *want, *norm; /* [group][head_dim]; [group] sum of weights */
    double *max;         /* [group] */
    void *fused, *partial;
    double error[N_LENGTHS], lse_error;
};

static uint8_t *block_at(const struct bench *b, size_t i)
{
    return b->blocks + i * b->layout.bytes;
}

static int make(struct bench *b, struct tkv_reason *why)
{
    const size_t dim = b->o->head_dim, group = b->o->group;
    const char *wrong =
        tkv_coder_init(&b->coder, tkv_codec_by_name(b->o->codec), (uint32_t)dim, TKV_ROTATION_SEED);

    if (wrong)
        return tkv_reason_set(why, "%s: %s", b->o->codec, wrong);
    if (!tkv_fused_keys(&b->coder) || !tkv_fused_values(&b->coder))
        return tkv_reason_set(why, "%s: expected a codec whose codes are attended to", b->o->codec);
    tkv_block_layout_init(&b->layout, &b->coder, &b->coder, 0);
    b->n_blocks = (size_t)(b->o->tokens + BLOCK - 1) / BLOCK;
    b->blocks = aligned_alloc(64, b->n_blocks * b->layout.bytes);
    b->x = malloc(BLOCK * dim * sizeof(float));
    b->q = malloc(group * dim * sizeof(float));
    b->coded = malloc(group * dim * sizeof(float));
    b->want = malloc(group * (dim + 2) * sizeof(double));
    b->fused = aligned_alloc(64, tkv_align(tkv_fused_bytes(&b->coder, group), 64));
    b->partial = aligned_alloc(64, tkv_align(tkv_partial_bytes(group, (uint32_t)dim), 64));
    if (!b->blocks || !b->x || !b->q || !b->coded || !b->want || !b->fused || !b->partial)
        return tkv_reason_set(why, "out of memory for %zu blocks", b->n_blocks);
    b->norm = b->want + group * dim;
    b->max = b->norm + group;
    return 0;
}

static void encode(struct bench *b)
{
    const struct tkv_kernels *kn = &b->machine.kernels;
    uint8_t mean[TKV_MAX_MEAN_BYTES];

    for (size_t i = 0; i < b->n_blocks; i++) {
        uint8_t *k = block_at(b, i), *v = tkv_block_values(&b->layout, k);

        tkv_source_gauss(&b->source, b->x, BLOCK * b->o->head_dim);
        tkv_code_mean(&b->coder, kn, TKV_KEYS, tkv_floats(b->x, b->o->head_dim), BLOCK, mean);
        tkv_encode_keys(&b->coder, kn, mean, tkv_floats(b->x, b->o->head_dim), BLOCK, k);
        tkv_source_gauss(&b->source, b->x, BLOCK * b->o->head_dim);
        tkv_code_mean(&b->coder, kn, TKV_VALUES, tkv_floats(b->x, b->o->head_dim), BLOCK, mean);
        tkv_encode_values(&b->coder, kn, mean, tkv_floats(b->x, b->o->head_dim), BLOCK, v);
    }
}

/* Tokens of block i. */
static size_t tokens_of(const struct bench *b, size_t i)
{
    const size_t left = (size_t)b->o->tokens - i * BLOCK;

    return left < BLOCK ? left : BLOCK;
}

static void attend_fused(struct bench *b, float scale, struct tkv_partial *p)
{
    const int32_t position = INT32_MAX;
    const struct tkv_attn_params a = {.scale = scale};
    const struct tkv_attn_rows rows = {1, b->o->group, &position};
    int32_t positions[BLOCK];
    struct tkv_fused f;

    for (int32_t t = 0; t < BLOCK; t++)
        positions[t] = t;
    tkv_partial_init(p, b->partial, b->o->group, b->o->head_dim);
    tkv_fused_init(&f, &b->machine.kernels, &b->coder, b->o->group, b->coded, b->fused);
    for (size_t i = 0; i < b->n_blocks; i += TKV_RUN_BLOCKS) {
        struct tkv_fused_block run[TKV_RUN_BLOCKS];
        size_t n = 0;

        for (; n < TKV_RUN_BLOCKS && i + n < b->n_blocks; n++)
            run[n] = (struct tkv_fused_block){
                .keys = block_at(b, i + n),
                .values = tkv_block_values(&b->layout, block_at(b, i + n)),
                .positions = tokens_of(b, i + n) < BLOCK ? positions : NULL,
                .n = tokens_of(b, i + n)};
        tkv_fused_attend(&f, &b->coder, &a, &rows, run, n, p);
    }
    for (uint32_t r = 0; r < b->o->group; r++)
        tkv_uncode_value(&b->coder, &b->machine.kernels, p->out + r * b->o->head_dim);
}

static double dot(const float *x, const float *y, size_t n)
{
    double sum = 0;

    for (size_t i = 0; i < n; i++)
        sum += (double)x[i] * (double)y[i];
    return sum;
}

/* Online softmax of one token for all rows, in double. */
static void add_token(struct bench *b, const float *k, const float *v, double scale)
{
    const size_t dim = b->o->head_dim;

    for (size_t r = 0; r < b->o->group; r++) {
        const double x = scale * dot(b->q + r * dim, k, dim);
        double *want = b->want + r * dim, weight;

        if (x > b->max[r]) {
            const double less = exp(b->max[r] - x);

            for (size_t i = 0; i < dim; i++)
                want[i] *= less;
            b->norm[r] *= less;
            b->max[r] = x;
        }
        weight = exp(x - b->max[r]);
        b->norm[r] += weight;
        for (size_t i = 0; i < dim; i++)
            want[i] += weight * (double)v[i];
    }
}

static void attend_exactly(struct bench *b, double scale)
{
    const size_t dim = b->o->head_dim;
    float k[TKV_MAX_HEAD_DIM], v[TKV_MAX_HEAD_DIM];

    memset(b->want, 0, b->o->group * (dim + 1) * sizeof(double));
    for (size_t r = 0; r < b->o->group; r++)
        b->max[r] = -INFINITY;
    for (size_t i = 0; i < b->n_blocks; i++)
        for (size_t t = 0; t < tokens_of(b, i); t++) {
            tkv_decode_key(&b->coder, &b->machine.kernels, block_at(b, i), t, k);
            tkv_decode_value(&b->coder, &b->machine.kernels,
                             tkv_block_values(&b->layout, block_at(b, i)), t, v);
            add_token(b, k, v, scale);
        }
}

/* Relative L2 error over all rows; keeps the largest error of a log-sum-exp. */
static double compare(struct bench *b, const struct tkv_partial *p)
{
    const size_t dim = b->o->head_dim;
    double error = 0, size = 0;

    for (size_t r = 0; r < b->o->group; r++) {
        const double lse = (double)p->max[r] + log((double)p->sum[r]);

        b->lse_error = fmax(b->lse_error, fabs(lse - b->max[r] - log(b->norm[r])));
        for (size_t i = 0; i < dim; i++) {
            const double want = b->want[r * dim + i] / b->norm[r];
            const double got = (double)(p->out[r * dim + i] / p->sum[r]);

            error += (got - want) * (got - want);
            size += want * want;
        }
    }
    return sqrt(error / size);
}

static void measure(struct bench *b)
{
    const size_t dim = b->o->head_dim;

    encode(b);
    for (int i = 0; i < N_LENGTHS; i++) {
        const float scale = deviations[i] / sqrtf((float)dim);
        struct tkv_partial p;

        tkv_source_gauss(&b->source, b->q, b->o->group * dim);
        for (size_t r = 0; r < b->o->group; r++)
            tkv_code_query(&b->coder, &b->machine.kernels, b->q + r * dim, b->coded + r * dim);
        attend_fused(b, scale, &p);
        attend_exactly(b, (double)scale);
        b->error[i] = compare(b, &p);
    }
}

static void record(const struct bench *b, struct tkv_record *r)
{
    static const char *const keys[N_LENGTHS] = {"error_std_1", "error_std_2", "error_std_4"};
    static const char *const labels[N_LENGTHS] = {"relative L2 error, logits of deviation 1",
                                                  "deviation 2", "deviation 4"};

    tkv_machine_describe(&b->machine, r);
    tkv_record_text(r, "codec", "codec", b->o->codec);
    tkv_record_number(r, "head_dim", "head dimension", b->o->head_dim);
    tkv_record_number(r, "group", "query heads", b->o->group);
    tkv_record_number(r, "tokens", "tokens", (double)b->o->tokens);
    for (int i = 0; i < N_LENGTHS; i++)
        tkv_record_number(r, keys[i], labels[i], b->error[i]);
    tkv_record_number(r, "lse_error", "largest error of a log-sum-exp", b->lse_error);
}

int tkv_bench_accuracy(const struct tkv_bench_options *o, struct tkv_record *r,
                       struct tkv_reason *why)
{
    struct bench *b = calloc(1, sizeof(*b));
    int e;

    if (!b)
        return tkv_reason_set(why, "out of memory");
    b->o = o;
    b->source.state = 11;
    e = tkv_machine_init(&b->machine, 1, o->disable, why) || make(b, why);
    if (!e) {
        measure(b);
        record(b, r);
    }
    tkv_machine_deinit(&b->machine);
    free(b->blocks);
    free(b->x);
    free(b->q);
    free(b->coded);
    free(b->want);
    free(b->fused);
    free(b->partial);
    free(b);
    return e ? -1 : 0;
}
