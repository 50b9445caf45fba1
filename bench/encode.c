/*
 * Encoding: blocks of 64 vectors to codes, as a fold does it, with the quality that
 * comes out, so that a fast encoder that gives its codes away would be seen. Halves are coded as
 * they lie; beside that stands what it takes to make floats of them first.
 */
#include <stdlib.h>

#include "bench/commands.h"
#include "bench/inputs.h"
#include "bench/machine.h"
#include "bench/scene.h"
#include "core/codec.h"
#include "core/half.h"

enum {
    SIDE_KEYS = 0,
    SIDE_VALUES,
    SIDE_FLOAT_KEYS, /* of halves that become floats first */
    SIDE_FLOAT_VALUES,
    SIDE_PLAIN_KEYS,
    SIDE_PLAIN_VALUES,
    SIDE_Q8,
    SIDE_Q4,
    N_SIDES,
    N_BLOCKS = 256,
    LEAST_REPETITIONS = 7,
};

struct bench {
    const struct tkv_bench_options *o;
    struct tkv_machine machine;
    struct tkv_coder k;
    struct tkv_coder v;
    struct tkv_source source;
    float *x;        /* [N_BLOCKS][64][head_dim] */
    uint16_t *input; /* the same, as they come if not as floats */
    uint8_t *blocks;
    size_t block_bytes;
    int side;
    struct tkv_samples ns[N_SIDES]; /* of a vector */
    double rel_mse[N_SIDES];
};

static int make(struct bench *b, struct tkv_reason *why)
{
    const struct tkv_codec *codec = tkv_codec_by_name(b->o->codec);
    const struct tkv_codec *values = tkv_scene_value_codec(codec);
    const size_t n = (size_t)N_BLOCKS * TKV_BLOCK_TOKENS * b->o->head_dim;
    const char *wrong = tkv_coder_init(&b->k, codec, b->o->head_dim, TKV_ROTATION_SEED);

    if (!wrong)
        wrong = tkv_coder_init(&b->v, values, b->o->head_dim, TKV_ROTATION_SEED);
    if (wrong)
        return tkv_reason_set(why, "%s", wrong);
    b->source.state = 5;
    b->block_bytes =
        b->k.k_block_bytes > b->v.v_block_bytes ? b->k.k_block_bytes : b->v.v_block_bytes;
    /* No row of another format is longer than two bytes a value. */
    if (b->block_bytes < (size_t)2 * TKV_BLOCK_TOKENS * b->o->head_dim)
        b->block_bytes = (size_t)2 * TKV_BLOCK_TOKENS * b->o->head_dim;
    b->block_bytes = tkv_align(b->block_bytes, 64);
    b->x = aligned_alloc(64, n * sizeof(float));
    b->input = aligned_alloc(64, n * sizeof(uint16_t));
    b->blocks = aligned_alloc(64, N_BLOCKS * b->block_bytes);
    return b->x && b->input && b->blocks ? 0 : tkv_reason_set(why, "out of memory for vectors");
}

static enum tkv_peer_format format_of(int side)
{
    return side == SIDE_Q8 ? TKV_PEER_Q8_0 : TKV_PEER_Q4_0;
}

static size_t row_bytes(const struct bench *b, int side)
{
    return tkv_peer_row_bytes(format_of(side), b->o->head_dim);
}

static void encode_rows(const struct bench *b, const float *x, uint8_t *block)
{
    for (size_t t = 0; t < TKV_BLOCK_TOKENS; t++)
        b->machine.peers->encode(format_of(b->side), block + t * row_bytes(b, b->side),
                                 x + t * b->o->head_dim, b->o->head_dim);
}

static void encode_vectors(const struct bench *b, struct tkv_vectors x, uint8_t *block)
{
    const struct tkv_kernels *kn =
        b->side >= SIDE_PLAIN_KEYS ? &b->machine.plain : &b->machine.kernels;
    uint8_t mean[TKV_MAX_MEAN_BYTES];

    if (b->side % 2 == SIDE_KEYS) {
        tkv_code_mean(&b->k, kn, TKV_KEYS, x, TKV_BLOCK_TOKENS, mean);
        tkv_encode_keys(&b->k, kn, mean, x, TKV_BLOCK_TOKENS, block);
    } else {
        tkv_code_mean(&b->v, kn, TKV_VALUES, x, TKV_BLOCK_TOKENS, mean);
        tkv_encode_values(&b->v, kn, mean, x, TKV_BLOCK_TOKENS, block);
    }
}

static void encode_block(void *arg, size_t i)
{
    const struct bench *b = arg;
    const size_t n = (size_t)TKV_BLOCK_TOKENS * b->o->head_dim;
    const enum tkv_dtype type = b->o->input;
    const void *from =
        type == TKV_F32 ? (const void *)(b->x + i * n) : (const void *)(b->input + i * n);
    uint8_t *block = b->blocks + i * b->block_bytes;
    float floats[TKV_BLOCK_TOKENS * TKV_MAX_HEAD_DIM];

    if (b->side >= SIDE_Q8) {
        encode_rows(b, b->x + i * n, block);
    } else if (b->side == SIDE_FLOAT_KEYS || b->side == SIDE_FLOAT_VALUES) {
        tkv_to_f32(&b->machine.kernels, floats, from, type, n);
        encode_vectors(b, tkv_floats(floats, b->o->head_dim), block);
    } else {
        encode_vectors(b, (struct tkv_vectors){from, type, b->o->head_dim}, block);
    }
}

/* Mean squared error over mean square of what the block last encoded decodes to. */
static double rel_mse_of(const struct bench *b, int side)
{
    double error = 0, size = 0;
    float x[TKV_MAX_HEAD_DIM];

    for (size_t t = 0; t < (size_t)16 * TKV_BLOCK_TOKENS; t++) {
        const size_t lane = t % TKV_BLOCK_TOKENS;
        const uint8_t *block = b->blocks + t / TKV_BLOCK_TOKENS * b->block_bytes;
        const float *exact = b->x + t * b->o->head_dim;

        if (side >= SIDE_Q8)
            tkv_peer_decode(format_of(side), block + lane * row_bytes(b, side), b->o->head_dim, x);
        else if (side % 2 == SIDE_KEYS)
            tkv_decode_key(&b->k, &b->machine.kernels, block, lane, x);
        else
            tkv_decode_value(&b->v, &b->machine.kernels, block, lane, x);
        for (uint32_t i = 0; i < b->o->head_dim; i++) {
            error += (double)(x[i] - exact[i]) * (double)(x[i] - exact[i]);
            size += (double)exact[i] * (double)exact[i];
        }
    }
    return error / size;
}

/* Fresh vectors, and what they are as the input's type. */
static void fill(struct bench *b, size_t n)
{
    tkv_source_gauss(&b->source, b->x, n);
    for (size_t i = 0; b->o->input != TKV_F32 && i < n; i++) {
        b->input[i] = b->o->input == TKV_F16 ? tkv_f32_to_f16(b->x[i]) : tkv_f32_to_bf16(b->x[i]);
        b->x[i] = tkv_element(&b->input[i], b->o->input, 0);
    }
}

/* Fresh vectors, then every block of them; plain C gets an eighth of the blocks. */
static void time_side(struct bench *b, int side, size_t turn)
{
    const size_t n = side == SIDE_PLAIN_KEYS || side == SIDE_PLAIN_VALUES ? N_BLOCKS / 8 : N_BLOCKS;
    uint64_t start, ns;

    b->side = side;
    fill(b, n * TKV_BLOCK_TOKENS * b->o->head_dim);
    start = tkv_machine_now_ns(&b->machine);
    tkv_exec_run(b->machine.exec, n, encode_block, b);
    ns = tkv_machine_now_ns(&b->machine) - start;
    if (turn == 0)
        b->rel_mse[side] = rel_mse_of(b, side);
    else
        tkv_samples_add(&b->ns[side], (double)ns / (double)(n * TKV_BLOCK_TOKENS));
}

static void measure(struct bench *b)
{
    const bool peers = !b->o->alone && tkv_peer_fits(b->o->head_dim, 1);
    const bool converts = b->o->input != TKV_F32;
    struct tkv_bench_clock clock = tkv_bench_clock_start(b->o->seconds, LEAST_REPETITIONS + 1);

    while (tkv_bench_clock_go_on(&clock)) {
        const size_t turn = clock.n - 1;

        for (int side = SIDE_KEYS; side <= SIDE_VALUES; side++)
            time_side(b, side, turn);
        for (int side = SIDE_FLOAT_KEYS; converts && side <= SIDE_FLOAT_VALUES; side++)
            time_side(b, side, turn);
        for (int side = SIDE_PLAIN_KEYS; !b->o->alone && side <= SIDE_PLAIN_VALUES; side++)
            time_side(b, side, turn);
        for (int side = SIDE_Q8; peers && side <= SIDE_Q4; side++)
            time_side(b, side, turn);
    }
}

static void record_comparisons(struct bench *b, double ns, struct tkv_record *r)
{
    const double floats = tkv_samples_spread(&b->ns[SIDE_FLOAT_KEYS]).median +
                          tkv_samples_spread(&b->ns[SIDE_FLOAT_VALUES]).median;
    const double plain = tkv_samples_spread(&b->ns[SIDE_PLAIN_KEYS]).median +
                         tkv_samples_spread(&b->ns[SIDE_PLAIN_VALUES]).median;

    if (b->o->input != TKV_F32) {
        tkv_record_number(r, "floats_first_ns", "made floats of first, ns", floats / 2);
        tkv_record_number(r, "speedup_vs_floats_first", "times faster than made floats of first",
                          floats / 2 / ns);
    }
    if (b->o->alone)
        return;
    tkv_record_number(r, "plain_c_ns", "our plain C kernels, ns", plain / 2);
    tkv_record_number(r, "speedup_vs_plain_c", "times faster than plain C", plain / 2 / ns);
    if (!b->ns[SIDE_Q8].n)
        return;
    tkv_record_number(r, "q8_0_ns", "q8_0 rows, ns", tkv_samples_spread(&b->ns[SIDE_Q8]).median);
    tkv_record_number(r, "q4_0_ns", "q4_0 rows, ns", tkv_samples_spread(&b->ns[SIDE_Q4]).median);
    tkv_record_number(r, "q8_0_rel_mse", "relative squared error of q8_0", b->rel_mse[SIDE_Q8]);
    tkv_record_number(r, "q4_0_rel_mse", "relative squared error of q4_0", b->rel_mse[SIDE_Q4]);
}

static void record(struct bench *b, struct tkv_record *r)
{
    const double keys = tkv_samples_spread(&b->ns[SIDE_KEYS]).median;
    const double values = tkv_samples_spread(&b->ns[SIDE_VALUES]).median;
    struct tkv_samples both = {0};

    for (size_t i = 0; i < b->ns[SIDE_KEYS].n; i++)
        tkv_samples_add(&both, (b->ns[SIDE_KEYS].value[i] + b->ns[SIDE_VALUES].value[i]) / 2);
    tkv_machine_describe(&b->machine, r);
    tkv_record_text(r, "codec", "codec", b->o->codec);
    tkv_record_number(r, "head_dim", "head dimension", b->o->head_dim);
    tkv_record_number(r, "vectors_per_s", "vectors per second", 2e9 / (keys + values));
    tkv_record_number(r, "mvectors_per_s", "million vectors per second", 2e3 / (keys + values));
    tkv_record_number(r, "keys_per_s", "keys per second", 1e9 / keys);
    tkv_record_number(r, "values_per_s", "values per second", 1e9 / values);
    tkv_record_spread(r, "ns_per_vector", "ns per vector, keys and values", &both);
    tkv_record_number(r, "rel_mse_keys", "relative squared error of keys", b->rel_mse[SIDE_KEYS]);
    tkv_record_number(r, "rel_mse_values", "relative squared error of values",
                      b->rel_mse[SIDE_VALUES]);
    record_comparisons(b, (keys + values) / 2, r);
}

int tkv_bench_encode(const struct tkv_bench_options *o, struct tkv_record *r,
                     struct tkv_reason *why)
{
    struct bench *b = calloc(1, sizeof(*b));
    int e;

    if (!b)
        return tkv_reason_set(why, "out of memory");
    b->o = o;
    e = tkv_machine_init(&b->machine, o->threads, o->disable, why) || make(b, why);
    if (!e) {
        measure(b);
        record(b, r);
    }
    tkv_machine_deinit(&b->machine);
    free(b->x);
    free(b->input);
    free(b->blocks);
    free(b);
    return e ? -1 : 0;
}
