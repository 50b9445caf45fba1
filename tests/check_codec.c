/* Codecs: blocks and what tiles, rows and decoders make of them, copies, and damaged blocks. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "core/codec.h"
#include "core/cpu.h"
#include "core/half.h"
#include "core/kernels.h"
#include "tests/codec_aid.h"
#include "tests/guard.h"

static const uint32_t dims[] = {8, 16, 18, 34, 48, 64, 80, 96, 112, 128, 192, 256, 512, 576};
enum { N_DIMS = 14, LANES = TKV_BLOCK_TOKENS };

/* A coder, 64 vectors, and blocks between guard pages, so that any step outside is fatal. */
struct fixture {
    struct tkv_kernels kn;
    struct tkv_coder coder;
    size_t n;
    float *x;
    uint8_t mean[2][TKV_MAX_MEAN_BYTES];
    uint8_t *keys, *values;
    float *tile, *rows;
    float *decoded; /* [dim] */
};

static float *new_floats(size_t n)
{
    return guard_alloc(n * sizeof(float), GUARD_END);
}

static void free_floats(float *x, size_t n)
{
    assert_true(guard_intact(x, n * sizeof(float)));
    guard_free(x, n * sizeof(float));
}

static void begin(struct fixture *f, const struct tkv_codec *codec, uint32_t dim, size_t n)
{
    struct rng rng = {dim + n};

    memset(f, 0, sizeof(*f));
    tkv_kernels_init(&f->kn, tkv_cpu_flags(NULL));
    codec_aid_coder(&f->coder, codec, dim);
    f->n = n;
    f->x = new_floats(n * dim);
    for (size_t i = 0; i < n * dim; i++)
        f->x[i] = rng_gauss(&rng) + 2 * (float)(i % 3);
    tkv_code_mean(&f->coder, &f->kn, TKV_KEYS, tkv_floats(f->x, f->coder.dim), n,
                  f->mean[TKV_KEYS]);
    tkv_code_mean(&f->coder, &f->kn, TKV_VALUES, tkv_floats(f->x, f->coder.dim), n,
                  f->mean[TKV_VALUES]);
    f->keys = guard_alloc(f->coder.k_block_bytes, GUARD_END);
    f->values = guard_alloc(f->coder.v_block_bytes, GUARD_END);
    f->tile = new_floats((size_t)f->coder.tile_dim * LANES);
    f->rows = new_floats(n * dim);
    f->decoded = new_floats(dim);
}

static void encode(struct fixture *f)
{
    tkv_encode_keys(&f->coder, &f->kn, f->mean[TKV_KEYS], tkv_floats(f->x, f->coder.dim), f->n,
                    f->keys);
    if (f->coder.v_block_bytes)
        tkv_encode_values(&f->coder, &f->kn, f->mean[TKV_VALUES], tkv_floats(f->x, f->coder.dim),
                          f->n, f->values);
}

static void end(struct fixture *f)
{
    const size_t dim = f->coder.dim;

    assert_true(guard_intact(f->keys, f->coder.k_block_bytes));
    assert_true(guard_intact(f->values, f->coder.v_block_bytes));
    guard_free(f->keys, f->coder.k_block_bytes);
    guard_free(f->values, f->coder.v_block_bytes);
    free_floats(f->x, f->n * dim);
    free_floats(f->tile, (size_t)f->coder.tile_dim * LANES);
    free_floats(f->rows, f->n * dim);
    free_floats(f->decoded, dim);
}

static double dot(const float *a, const float *b, size_t n, size_t stride)
{
    double sum = 0;

    for (size_t i = 0; i < n; i++)
        sum += (double)a[i] * (double)b[i * stride];
    return sum;
}

static double norm(const float *x, size_t n)
{
    return sqrt(dot(x, x, n, 1));
}

/* The tile's lane t against a query is the inner product with the decoded key. */
static void check_tile(struct fixture *f)
{
    const uint32_t dim = f->coder.dim;
    float q[TKV_MAX_HEAD_DIM], coded[2 * TKV_MAX_HEAD_DIM];
    struct rng rng = {99};

    for (uint32_t j = 0; j < dim; j++)
        q[j] = rng_gauss(&rng);
    tkv_code_query(&f->coder, &f->kn, q, coded);
    tkv_key_tile(&f->coder, &f->kn, f->keys, f->tile);
    for (size_t t = 0; t < f->n; t++) {
        double got = dot(coded, f->tile + t, f->coder.tile_dim, LANES), want;

        tkv_decode_key(&f->coder, &f->kn, f->keys, t, f->decoded);
        want = dot(q, f->decoded, dim, 1);
        assert_true(fabs(got - want) <= 1e-5 * norm(q, dim) * (norm(f->decoded, dim) + 1e-30));
    }
    for (size_t t = f->n + 1; t < LANES; t++) /* unused lanes: scale 0, so the mean alone */
        assert_true(f->tile[t] == f->tile[f->n]);
}

/* A weighted sum of rows, turned back, is the weighted sum of decoded values. */
static void check_rows(struct fixture *f)
{
    const uint32_t dim = f->coder.dim;
    float sum[TKV_MAX_HEAD_DIM] = {0};
    double want[TKV_MAX_HEAD_DIM] = {0}, error = 0, size = 1e-30;

    tkv_value_rows(&f->coder, &f->kn, f->values, f->n, f->rows);
    for (size_t t = 0; t < f->n; t++) {
        const float w = 1.0f / (float)(t + 1);

        tkv_decode_value(&f->coder, &f->kn, f->values, t, f->decoded);
        for (uint32_t j = 0; j < dim; j++) {
            sum[j] += w * f->rows[t * dim + j];
            want[j] += (double)w * (double)f->decoded[j];
        }
    }
    tkv_uncode_value(&f->coder, &f->kn, sum);
    for (uint32_t j = 0; j < dim; j++) {
        error += ((double)sum[j] - want[j]) * ((double)sum[j] - want[j]);
        size += want[j] * want[j];
    }
    assert_true(sqrt(error) <= 1e-5 * sqrt(size));
}

static void test_tiles_and_rows(void **state)
{
    static const size_t counts[] = {0, 1, 15, 16, 17, 63, 64};

    (void)state;
    for (const struct tkv_codec *c = tkv_codecs; c->name; c++) {
        for (size_t d = 0; d < N_DIMS; d++) {
            struct fixture f;

            begin(&f, c, dims[d], counts[(d + (size_t)(c - tkv_codecs)) % 7]);
            encode(&f);
            check_tile(&f);
            if (f.coder.v_block_bytes)
                check_rows(&f);
            end(&f);
        }
    }
}

/* Where a code's word is, in rows of `lanes` words; and its place in the word. */
struct place {
    size_t unit, lane, lanes;
    unsigned side, field, byte;
};

static unsigned code_at(const uint8_t *unit, unsigned w, struct place p)
{
    const uint8_t *row = unit + p.side * p.lanes * 4 + p.lane * 4 + p.byte;
    const uint8_t *bits = unit + (w == 1 ? 0 : 2) * p.lanes * 4 + p.lane * 4 + p.byte;
    const unsigned at = 4 * p.side + p.field;

    if (w == 1)
        return *bits >> at & 1u;
    if (w == 3)
        return (*row >> (2 * p.field) & 3u) | (*bits >> at & 1u) << 2;
    return *row >> (w * p.field) & ((1u << w) - 1);
}

/* Code of coordinate i of n of token t, by the words of core/pack.h alone. */
static unsigned key_code(const uint8_t *section, size_t n, unsigned w, size_t t, size_t i)
{
    const unsigned fields = w == 4 ? 2 : 4, rows = w == 4 ? 2 : w;
    const struct place p = {.lane = t % 16,
                            .lanes = 16,
                            .side = (unsigned)(t / 16 % 2),
                            .field = (unsigned)(i / 4 % fields),
                            .byte = (unsigned)(i % 4)};

    assert_true(i < n);
    return code_at(section + i / 4 / fields * rows * 64, w, p);
}

static unsigned value_code(const uint8_t *section, size_t n, unsigned w, size_t t, size_t i)
{
    const unsigned fields = w == 4 ? 2 : 4, rows = w == 4 ? 2 : w;
    const size_t unit = i / (16 * fields), left = n - unit * 16 * fields;
    const size_t lanes = left < 16 * fields ? (left + fields - 1) / fields : 16;
    const size_t at = i % (16 * fields);
    const struct place p = {.lane = at % lanes,
                            .lanes = lanes,
                            .side = (unsigned)(t / 4 % 2),
                            .field = (unsigned)(at / lanes),
                            .byte = (unsigned)(t % 4)};

    return code_at(section + unit * 8 * rows * 64 + t / 8 * rows * lanes * 4, w, p);
}

/* Code i of n of a coded mean. */
static unsigned plane_at(const uint8_t *plane, size_t n, unsigned b, size_t i)
{
    const size_t n_bytes = n * b / 8;

    return (unsigned)plane[i % n_bytes] >> (b * (i / n_bytes)) & ((1u << b) - 1);
}

static unsigned mean_code(const uint8_t *codes, size_t dim, unsigned w, size_t i)
{
    const size_t n = (dim + 15) / 16 * 16;

    if (w == 4)
        return plane_at(codes, n, 4, i);
    return plane_at(codes, n, 2, i) | plane_at(codes + n / 4, n, 1, i) << 2;
}

/* Codes, scale and mean of token t by the headers' words alone, turned back to a vector. */
static void decode_by_hand(const struct fixture *f, bool key, size_t t, float *x)
{
    const struct tkv_coder *c = &f->coder;
    const uint8_t *block = key ? f->keys : f->values;
    const uint8_t *scales = block + (key ? 2 * c->k_pair_bytes : 0);
    const uint8_t *mean = scales + sizeof(uint16_t) * LANES;
    const enum tkv_side side = key ? TKV_KEYS : TKV_VALUES;
    const unsigned mean_w = key ? 4 : 3;
    uint16_t scale, mean_scale = 0;

    memcpy(&scale, scales + 2 * t, sizeof(scale));
    if (c->mean_bytes[side])
        memcpy(&mean_scale, mean, sizeof(mean_scale));
    for (uint32_t s = 0; s < c->n_sections; s++) {
        const struct tkv_section *section = &c->section[s];

        for (uint32_t i = 0; i < section->n; i++) {
            const uint32_t j = section->first + i;
            const unsigned code =
                key ? key_code(block + t / 32 * c->k_pair_bytes + section->k_offset, section->n,
                               section->w, t % 32, i)
                    : value_code(block + section->v_offset, section->n, section->w, t, i);

            x[j] = section->lut[code] * tkv_f16_to_f32(scale) +
                   (s == 1 && section->first == 0 ? x[j] : 0);
            if (c->mean_bytes[side])
                x[j] += c->mean[side].lut[mean_code(mean + 2, c->dim, mean_w, j)] *
                        tkv_f16_to_f32(mean_scale);
        }
    }
    tkv_unrotate(&c->rotation, &f->kn, x);
}

static void test_layout(void **state)
{
    (void)state;
    for (const struct tkv_codec *c = tkv_codecs; c->name; c++) {
        for (size_t d = 0; d < N_DIMS && c->rotated && !c->qjl; d++) {
            float want[TKV_MAX_HEAD_DIM];
            struct fixture f;

            begin(&f, c, dims[d], LANES);
            encode(&f);
            for (size_t t = 0; t < LANES; t += 7) {
                decode_by_hand(&f, true, t, want);
                tkv_decode_key(&f.coder, &f.kn, f.keys, t, f.decoded);
                assert_memory_equal(f.decoded, want, dims[d] * sizeof(float));
                decode_by_hand(&f, false, t, want);
                tkv_decode_value(&f.coder, &f.kn, f.values, t, f.decoded);
                assert_memory_equal(f.decoded, want, dims[d] * sizeof(float));
            }
            end(&f);
        }
    }
}

/* Lanes of the two blocks in turn, until there are n tokens: all, few, or as rounds leave them. */
static size_t make_runs(struct tkv_lane_run *runs, const struct fixture *a, const struct fixture *b,
                        struct rng *rng, size_t n)
{
    const unsigned of_8 = 1 + (unsigned)rng_below(rng, 8);
    size_t n_runs = 0;

    while (n > 0) {
        uint64_t lanes = 0;

        for (size_t lane = rng_below(rng, 3); lane < LANES && n > 0; lane++)
            if (rng_below(rng, 8) < of_8) {
                lanes |= UINT64_C(1) << lane;
                n--;
            }
        if (lanes) {
            runs[n_runs] = (struct tkv_lane_run){n_runs % 2 ? b->keys : a->keys, lanes};
            n_runs++;
        }
    }
    return n_runs;
}

static void check_gathered(const struct fixture *a, const struct fixture *b, struct fixture *want,
                           struct rng *rng)
{
    const uint32_t dim = a->coder.dim;
    struct tkv_lane_run runs[LANES];
    struct tkv_gather g;
    size_t t = 0;

    tkv_gather_init(&g, runs, make_runs(runs, a, b, rng, want->n));
    assert_int_equal(g.n, want->n);
    for (size_t r = 0; r < g.n_runs; r++)
        for (size_t lane = 0; lane < LANES; lane++)
            if (runs[r].lanes >> lane & 1)
                memcpy(want->x + t++ * dim, (r % 2 ? b : a)->x + lane * dim, dim * sizeof(float));
    encode(want);
    memset(want->tile, 0xa5, want->coder.tile_dim * LANES * sizeof(float)); /* whatever was there */
    tkv_gather_keys(&want->coder, &want->kn, want->tile, &g);
    assert_memory_equal(want->tile, want->keys, want->coder.k_block_bytes);
    if (!want->coder.v_block_bytes)
        return;
    for (size_t r = 0; r < g.n_runs; r++)
        runs[r].block = (r % 2 ? b : a)->values - 6;
    tkv_gather_values(&want->coder, &want->kn, want->tile, &g, 6);
    assert_memory_equal(want->tile, want->values, want->coder.v_block_bytes);
}

/* Tokens gathered from blocks are, bit for bit, as if they had been coded together. */
static void test_gathering(void **state)
{
    static const size_t counts[] = {LANES, 37, 64, 1, 16, 61};
    struct rng rng = {77};

    (void)state;
    for (const struct tkv_codec *c = tkv_codecs; c->name; c++) {
        for (size_t d = 0; d < N_DIMS; d++) {
            struct fixture a, b, want;

            begin(&a, c, dims[d], LANES);
            begin(&b, c, dims[d], LANES);
            begin(&want, c, dims[d], counts[d % 6]);
            for (size_t i = 0; i < LANES * dims[d]; i++)
                b.x[i] = a.x[LANES * dims[d] - 1 - i];
            memcpy(b.mean, a.mean, sizeof(b.mean));
            memcpy(want.mean, a.mean, sizeof(a.mean));
            encode(&a);
            encode(&b);
            for (unsigned i = 0; i < 6; i++)
                check_gathered(&a, &b, &want, &rng);
            end(&a);
            end(&b);
            end(&want);
        }
    }
}

/* Random bytes are some block: whatever they decode to, nothing outside is touched. */
static void test_garbage(void **state)
{
    struct rng rng = {5};

    (void)state;
    for (const struct tkv_codec *c = tkv_codecs; c->name; c++) {
        for (size_t d = 0; d < N_DIMS; d++) {
            struct fixture f;

            begin(&f, c, dims[d], LANES);
            for (size_t i = 0; i < f.coder.k_block_bytes; i++)
                f.keys[i] = (uint8_t)rng_next(&rng);
            for (size_t i = 0; i < f.coder.v_block_bytes; i++)
                f.values[i] = (uint8_t)rng_next(&rng);
            tkv_key_tile(&f.coder, &f.kn, f.keys, f.tile);
            tkv_decode_key(&f.coder, &f.kn, f.keys, 63, f.decoded);
            if (f.coder.v_block_bytes) {
                tkv_value_rows(&f.coder, &f.kn, f.values, LANES, f.rows);
                tkv_decode_value(&f.coder, &f.kn, f.values, 63, f.decoded);
            }
            end(&f);
        }
    }
}

/* Relative error of token t's decoded key. */
static double key_error(struct fixture *f, size_t t)
{
    const uint32_t dim = f->coder.dim;
    double error = 0;

    tkv_decode_key(&f->coder, &f->kn, f->keys, t, f->decoded);
    for (uint32_t j = 0; j < dim; j++)
        error += pow((double)f->decoded[j] - (double)f->x[t * dim + j], 2);
    return error / pow(norm(f->x + t * dim, dim), 2);
}

/* Zero, one-hot, constant; and lengths whose squares leave the range of a float. */
static void test_awkward_vectors(void **state)
{
    static const int exponents[] = {-120, -70, -24, -10, 0, 9, 15, 40, 120};

    (void)state;
    for (const struct tkv_codec *c = tkv_codecs; c->name; c++) {
        const double ordinary = c->id == TKV_CODEC_TQ1 ? 0.5 : 0.3;
        struct fixture f;

        begin(&f, c, 64, 12);
        memset(f.mean, 0, sizeof(f.mean));
        memset(f.x, 0, 3 * 64 * sizeof(float));
        f.x[64 + 5] = 2;
        for (uint32_t j = 0; j < 64; j++)
            f.x[2 * 64 + j] = -1;
        for (size_t t = 3; t < 12; t++)
            for (uint32_t j = 0; j < 64; j++)
                f.x[t * 64 + j] = ldexpf(f.x[t * 64 + j], exponents[t - 3]);
        encode(&f);
        for (size_t t = 0; t < 12; t++) {
            tkv_decode_key(&f.coder, &f.kn, f.keys, t, f.decoded);
            for (uint32_t j = 0; j < 64; j++)
                assert_true(isfinite(f.decoded[j]) && (t != 0 || f.decoded[j] == 0));
        }
        assert_true(key_error(&f, 1) < ordinary + 0.1 && key_error(&f, 2) < ordinary + 0.1);
        for (size_t t = 6; t < 9; t++) /* within the range of a half: ordinary quality */
            assert_true(key_error(&f, t) < ordinary);
        end(&f);
    }
}

/* Lengths beyond the scale's range still get the right codes, with the largest scale. */
static void test_huge_keeps_direction(void **state)
{
    struct fixture f;
    double cosine;

    (void)state;
    begin(&f, tkv_codec_by_name("tq4"), 64, 1);
    memset(f.mean, 0, sizeof(f.mean));
    for (uint32_t j = 0; j < 64; j++)
        f.x[j] = ldexpf(f.x[j], 120);
    encode(&f);
    tkv_decode_key(&f.coder, &f.kn, f.keys, 0, f.decoded);
    for (uint32_t j = 0; j < 64; j++)
        f.x[j] = ldexpf(f.x[j], -120);
    cosine = dot(f.x, f.decoded, 64, 1) / (norm(f.x, 64) * norm(f.decoded, 64));
    assert_true(cosine > 0.99);
    assert_true(fabs(norm(f.decoded, 64) / (65504 * 8) - 1) < 0.3); /* the codes' own length */
    end(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_layout),          cmocka_unit_test(test_tiles_and_rows),
        cmocka_unit_test(test_gathering),       cmocka_unit_test(test_garbage),
        cmocka_unit_test(test_awkward_vectors), cmocka_unit_test(test_huge_keeps_direction),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
