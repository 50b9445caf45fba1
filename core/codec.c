/*
 * The table of codecs, the making of a coder, and the coding of one vector, which
 * keys and values share. Packing into blocks is in codec_keys.c and codec_values.c.
 */
#include "core/codec.h"

#include <math.h>

#include "core/codebook.h"
#include "core/codec_priv.h"

#define TQ(name_, id_, first, second)                                                          \
    {                                                                                          \
        .id = id_, .name = name_, .bits_first = first, .bits_second = second, .rotated = true, \
        .best = true                                                                           \
    }
#define PAPER(name_, id_, first, second)                                                      \
    {                                                                                         \
        .id = id_, .name = name_, .bits_first = first, .bits_second = second, .rotated = true \
    }
/* The residual is that of the paper's decoder, so the scale is the paper's too. */
#define QJL(name_, id_, bits)                                                               \
    {                                                                                       \
        .id = id_, .name = name_, .bits_first = bits, .bits_second = bits, .rotated = true, \
        .qjl = true                                                                         \
    }

const struct tkv_codec tkv_codecs[] = {
    {.id = TKV_CODEC_F16, .name = "f16", .bits_first = 16, .bits_second = 16},
    TQ("tq1", TKV_CODEC_TQ1, 1, 1),
    TQ("tq2", TKV_CODEC_TQ2, 2, 2),
    TQ("tq2.5", TKV_CODEC_TQ2_5, 3, 2),
    TQ("tq3", TKV_CODEC_TQ3, 3, 3),
    TQ("tq3.5", TKV_CODEC_TQ3_5, 4, 3),
    TQ("tq4", TKV_CODEC_TQ4, 4, 4),
    PAPER("tq2-paper", TKV_CODEC_TQ2_PAPER, 2, 2),
    PAPER("tq2.5-paper", TKV_CODEC_TQ2_5_PAPER, 3, 2),
    PAPER("tq3-paper", TKV_CODEC_TQ3_PAPER, 3, 3),
    PAPER("tq3.5-paper", TKV_CODEC_TQ3_5_PAPER, 4, 3),
    PAPER("tq4-paper", TKV_CODEC_TQ4_PAPER, 4, 4),
    QJL("tq2-qjl", TKV_CODEC_TQ2_QJL, 1),
    QJL("tq3-qjl", TKV_CODEC_TQ3_QJL, 2),
    QJL("tq4-qjl", TKV_CODEC_TQ4_QJL, 3),
    {.name = NULL},
};

const struct tkv_codec *tkv_codec_by_name(const char *name)
{
    for (const struct tkv_codec *c = tkv_codecs; c->name; c++)
        if (!strcmp(c->name, name))
            return c;
    return NULL;
}

const struct tkv_codec *tkv_codec_by_id(uint32_t id)
{
    for (const struct tkv_codec *c = tkv_codecs; c->name; c++)
        if ((uint32_t)c->id == id)
            return c;
    return NULL;
}

/* Sketch signs must be independent of the first rotation's (the same ones would be biased). */
static const uint64_t sketch_salt = UINT64_C(0x736b65746368514a);

/* The positive levels of 1 to 4 bits; see core/codec.h. */
static const int8_t half_levels[5][8] = {
    [1] = {1},
    [2] = {12, 40},
    [3] = {7, 22, 39, 62},
    [4] = {3, 9, 15, 21, 28, 36, 46, 61},
};

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

/* Pre-scales tried, in the order of how often they win. */
static const float prescales[TKV_N_TRIALS] = {1.0f,  0.93f, 1.07f, 0.86f,
                                              1.15f, 0.79f, 1.24f, 1.34f};
/* Magnitudes are tried in these parts of the unit, and have a level for every two. */
#define TRIAL_UNITS 32.0f

static void fill_trials(struct tkv_section *s)
{
    for (unsigned f = 0; f < TKV_N_TRIALS; f++)
        for (unsigned i = 0; i < 64; i++) {
            const float t = (2 * (float)i + 0.5f) / TRIAL_UNITS / prescales[f];
            unsigned node = 1;

            for (unsigned level = 0; level < s->w; level++)
                node = 2 * node + (s->edge[node] <= t);
            s->trial[f][i] = (uint8_t)s->level[node - (1u << s->w)];
        }
}

static void fill_tables(struct tkv_section *s, uint32_t dim)
{
    const unsigned n = 1u << s->w, half = n / 2;
    struct tkv_codebook book;
    double product = 0, square = 0;
    float edge[15];

    tkv_codebook_init(&book, dim, s->w);
    for (unsigned i = 0; i < half; i++) {
        const int8_t level = half_levels[s->w][i];

        s->level[half + i] = level;
        s->level[half - 1 - i] = (int8_t)-level;
        product += level * book.centroid[half + i];
        square += level * level;
    }
    s->alpha = (float)(product / square);
    for (unsigned i = 0; i < n; i++) {
        s->levels[i] = s->level[i];
        s->lut[i] = s->alpha * s->levels[i];
    }
    for (unsigned i = 0; i + 1 < n; i++)
        edge[i] = (s->lut[i] + s->lut[i + 1]) / 2;
    fill_tree(s->edge, 1, edge, 0, n - 1);
    fill_trials(s);
}

/* The next section of n coordinates of w bits. */
static void add_section(struct tkv_coder *c, uint32_t n, unsigned w)
{
    struct tkv_section *s = &c->section[c->n_sections++];

    *s = (struct tkv_section){.n = n, .w = w, .slot = c->n_slots, .k_offset = c->k_pair_bytes};
    s->first = c->tile_dim;
    s->v_offset = c->v_block_bytes;
    c->tile_dim += n;
    c->n_slots += (uint32_t)tkv_key_slots(n, w);
    c->k_pair_bytes += tkv_key_section_bytes(n, w);
    c->v_block_bytes += tkv_value_section_bytes(n, w);
}

static void fill_sections(struct tkv_coder *c)
{
    const struct tkv_codec *codec = c->codec;

    for (int side = 0; codec->best && side < 2; side++) {
        c->mean[side] = (struct tkv_section){.n = c->dim, .w = side == TKV_KEYS ? 4 : 3};
        fill_tables(&c->mean[side], c->dim);
        c->mean_bytes[side] = sizeof(uint16_t) + tkv_align(c->dim, 16) * c->mean[side].w / 8;
    }
    c->v_block_bytes = c->v_codes_offset = TKV_HALVES_BYTES + c->mean_bytes[TKV_VALUES];
    if (codec->bits_first == codec->bits_second) {
        add_section(c, c->dim, codec->bits_first);
    } else {
        add_section(c, c->dim / 2, codec->bits_first);
        add_section(c, c->dim / 2, codec->bits_second);
    }
    for (uint32_t i = 0; i < c->n_sections; i++)
        fill_tables(&c->section[i], c->dim);
    if (codec->qjl) {
        struct tkv_section *sketch = &c->section[c->n_sections];

        add_section(c, c->dim, 1);
        c->n_sections--;
        sketch->alpha = 1;
        for (unsigned i = 0; i < 2; i++)
            sketch->lut[i] = sketch->levels[i] = sketch->level[i] = i ? 1 : -1;
    }
}

static void fill_sizes(struct tkv_coder *c)
{
    c->k_block_bytes = 2 * c->k_pair_bytes + TKV_HALVES_BYTES + c->mean_bytes[TKV_KEYS];
    if (c->codec->qjl) {
        c->k_block_bytes += TKV_HALVES_BYTES;
        c->v_block_bytes = 0;
    }
}

const char *tkv_coder_init(struct tkv_coder *c, const struct tkv_codec *codec, uint32_t dim,
                           uint64_t seed)
{
    memset(c, 0, sizeof(*c));
    if (dim < TKV_MIN_HEAD_DIM || dim > TKV_MAX_HEAD_DIM || dim % 2)
        return "head_dim must be even, 8 to 1024";
    c->codec = codec;
    c->dim = dim;
    if (!codec->rotated) {
        c->tile_dim = dim;
        c->k_block_bytes = c->v_block_bytes = (size_t)dim * TKV_HALVES_BYTES;
        return NULL;
    }
    tkv_rotation_init(&c->rotation, dim, seed);
    fill_sections(c);
    fill_sizes(c);
    if (codec->qjl) {
        tkv_rotation_init(&c->sketch, dim, seed ^ sketch_salt);
        c->sketch_scale = (float)(1 / ((double)dim * tkv_sphere_mean_abs(dim)));
    }
    return NULL;
}

/* A finite float brought to where its half is finite. fminf would be a call. */
static float clamp(float x)
{
    const float largest = 65504;

    return x > largest ? largest : x < -largest ? -largest : x;
}

static uint16_t saturated(float x)
{
    return tkv_f32_to_f16(clamp(x));
}

void tkv_saturate(const struct tkv_kernels *kn, void *dst, const float *src, size_t n)
{
    float x[TKV_MAX_HEAD_DIM];
    uint16_t halves[TKV_MAX_HEAD_DIM];

    for (size_t j = 0; j < n; j++)
        x[j] = clamp(src[j]);
    kn->f32_to_f16(halves, x, n);
    memcpy(dst, halves, n * sizeof(*halves));
}

static bool measurable(float norm2)
{
    return norm2 > 1e-30f && norm2 < 1e30f;
}

/*
 * Length of y[dim], whose square leaves the range of a float: y is brought to around 1 by an
 * exact power of two first; *exponent says which. 0 for a zero vector.
 */
static float measure_extreme(const struct tkv_kernels *kn, float *y, uint32_t dim, int *exponent)
{
    float largest = 0;

    for (uint32_t j = 0; j < dim; j++)
        largest = fmaxf(largest, fabsf(y[j]));
    if (largest == 0)
        return 0;
    *exponent = ilogbf(largest);
    for (uint32_t j = 0; j < dim; j++)
        y[j] = ldexpf(y[j], -*exponent);
    return sqrtf(kn->norm2(y, dim));
}

/*
 * The residual in the rotated domain against what will be decoded, which is the
 * stored, rounded scale: so the estimate is unbiased to the last bit of it.
 */
static void sketch(const struct tkv_coder *c, const struct tkv_kernels *kn, float *y, int exponent,
                   struct tkv_coded *out)
{
    static const float zero[16] = {0};
    const struct tkv_section *s = &c->section[0];
    const float scale = ldexpf(tkv_f16_to_f32(saturated(out->scale)), -exponent);
    float decoded[TKV_MAX_HEAD_DIM];

    kn->lookup(decoded, out->codes, c->dim, s->lut, scale);
    for (uint32_t j = 0; j < c->dim; j++)
        y[j] -= decoded[j];
    out->residual = ldexpf(sqrtf(kn->norm2(y, c->dim)), exponent);
    tkv_rotate(&c->sketch, kn, y, y);
    kn->quantise(out->signs, y, c->dim, zero, 1, 1);
}

/* y / unit coded in all sections; fit[0] = <y, v> and fit[1] = <v, v>, v being what they stand for. */
static void fit_codes(const struct tkv_section *s, uint32_t n_sections,
                      const struct tkv_kernels *kn, const float *y, float unit, uint8_t *codes,
                      float *fit)
{
    fit[0] = fit[1] = 0;
    for (uint32_t i = 0; i < n_sections; i++, s++) {
        float part[2];

        kn->fit(codes + s->first, y + s->first, s->n, s->edge, s->w, 1 / unit, s->levels, part);
        fit[0] += s->alpha * part[0];
        fit[1] += s->alpha * s->alpha * part[1];
    }
}

typedef float trials __attribute__((vector_size(4 * TKV_N_TRIALS)));
typedef int32_t trial_ints __attribute__((vector_size(4 * TKV_N_TRIALS)));

/* The pre-scale whose codes have the largest <y, v>^2 / <v, v>: they leave |y|^2 less that. It is
 * found on rounded magnitudes, and compared as integers whose last bits say which: a processor
 * that guessed at a branch here would guess wrong. */
static size_t best_prescale(const struct tkv_section *s, uint32_t n_sections,
                            const struct tkv_kernels *kn, const float *y, float unit)
{
    static const trial_ints last_first = {7, 6, 5, 4, 3, 2, 1, 0};
    trials product = {0}, square = {0}, gain;
    trial_ints order;
    int32_t most = 0;

    for (uint32_t i = 0; i < n_sections; i++, s++) {
        trial_ints sums[2];

        kn->try_scales((int32_t(*)[TKV_N_TRIALS])sums, y + s->first, s->n, TRIAL_UNITS / unit,
                       s->trial);
        product += s->alpha * __builtin_convertvector(sums[0], trials);
        square += s->alpha * s->alpha * __builtin_convertvector(sums[1], trials);
    }
    gain = product * product / square;
    order = ((trial_ints)gain & -TKV_N_TRIALS) + last_first;
    for (size_t i = 0; i < TKV_N_TRIALS; i++)
        most = order[i] > most ? order[i] : most;
    return TKV_N_TRIALS - 1 - (size_t)(most % TKV_N_TRIALS);
}

/* Codes with the best of the pre-scales; the scale is <y, v> / <v, v> or norm / |v|. */
static float search(const struct tkv_section *s, uint32_t n_sections, const struct tkv_kernels *kn,
                    const float *y, float norm, float unit, enum tkv_scale_rule rule,
                    uint8_t *codes)
{
    const size_t best = best_prescale(s, n_sections, kn, y, unit);
    float fit[2];

    fit_codes(s, n_sections, kn, y, unit * prescales[best], codes, fit);
    if (rule == TKV_SCALE_LENGTH)
        return norm / sqrtf(fit[1]);
    return fit[0] / fit[1];
}

static void code_plain(const struct tkv_coder *c, const struct tkv_kernels *kn, const float *y,
                       float unit, uint8_t *codes)
{
    const struct tkv_section *s = c->section;

    for (uint32_t i = 0; i < c->n_sections; i++, s++)
        kn->quantise(codes + s->first, y + s->first, s->n, s->edge, s->w, unit > 0 ? 1 / unit : 0);
}

typedef float floats4 __attribute__((vector_size(16)));

/* y[dim] -= m[dim] */
static void subtract(float *y, const float *m, uint32_t dim)
{
    uint32_t j = 0;

    for (; j + 4 <= dim; j += 4) {
        floats4 a, b;

        memcpy(&a, y + j, sizeof(a));
        memcpy(&b, m + j, sizeof(b));
        a -= b;
        memcpy(y + j, &a, sizeof(a));
    }
    for (; j < dim; j++)
        y[j] -= m[j];
}

/* y = R x - mean, brought near 1 by a power of two if need be; returns its length. */
static float residual_of(const struct tkv_coder *c, const struct tkv_kernels *kn, const float *x,
                         const float *mean, float *y, int *exponent)
{
    float norm2 = kn->norm2(x, c->dim), norm = 0;
    int further = 0;

    *exponent = 0;
    if (measurable(norm2)) {
        norm = sqrtf(norm2);
        tkv_rotate(&c->rotation, kn, y, x);
    } else {
        memcpy(y, x, c->dim * sizeof(*y));
        norm = measure_extreme(kn, y, c->dim, exponent);
        tkv_rotate(&c->rotation, kn, y, y);
    }
    if (!mean)
        return norm;
    if (*exponent)
        for (uint32_t j = 0; j < c->dim; j++)
            y[j] -= ldexpf(mean[j], -*exponent);
    else
        subtract(y, mean, c->dim);
    norm2 = kn->norm2(y, c->dim);
    if (measurable(norm2))
        return sqrtf(norm2);
    norm = measure_extreme(kn, y, c->dim, &further);
    *exponent += further;
    return norm;
}

static void code_vector(const struct tkv_coder *c, const struct tkv_kernels *kn, float *y,
                        float norm, int exponent, enum tkv_scale_rule rule, struct tkv_coded *out)
{
    float scale = norm * c->rotation.scale;

    if (c->codec->best && norm > 0)
        scale = search(c->section, c->n_sections, kn, y, norm, scale, rule, out->codes);
    else
        code_plain(c, kn, y, scale, out->codes);
    out->scale = exponent ? ldexpf(scale, exponent) : scale;
    out->residual = 0;
    if (c->codec->qjl)
        sketch(c, kn, y, exponent, out);
}

/* Vectors to come, since reading them takes as long as coding those at hand. */
static void prefetch(const float *x, size_t n)
{
    for (size_t i = 0; i < n; i += 16)
        __builtin_prefetch(x + i);
}

/* All are rotated before any is coded: a processor then works on one while another waits for its
 * length. */
void tkv_code_vectors(const struct tkv_coder *c, const struct tkv_kernels *kn, const float *x,
                      size_t n, const float *mean, enum tkv_scale_rule rule, struct tkv_coded *out)
{
    const size_t now = n < TKV_CODED_TOKENS ? n : TKV_CODED_TOKENS;
    float y[TKV_CODED_TOKENS][TKV_MAX_HEAD_DIM], norm[TKV_CODED_TOKENS];
    int exponent[TKV_CODED_TOKENS];

    if (n >= 3 * TKV_CODED_TOKENS)
        prefetch(x + 2 * now * c->dim, now * c->dim);
    for (size_t t = 0; t < now; t++)
        norm[t] = residual_of(c, kn, x + t * c->dim, mean, y[t], &exponent[t]);
    for (size_t t = 0; t < now; t++)
        code_vector(c, kn, y[t], norm[t], exponent[t], rule, &out[t]);
    memset(out + now, 0, (TKV_CODED_TOKENS - now) * sizeof(*out));
}

/* Fields of b bits over n codes: those from bit `low` of a code on. */
static void put_plane(uint8_t *plane, const uint8_t *codes, size_t n, unsigned b, unsigned low)
{
    const size_t n_bytes = n * b / 8;
    const unsigned mask = (1u << b) - 1;

    for (size_t i = 0; i < n; i++)
        plane[i % n_bytes] =
            (uint8_t)(plane[i % n_bytes] | (codes[i] >> low & mask) << b * (i / n_bytes));
}

typedef uint64_t bytes16 __attribute__((vector_size(16)));

static void get_plane(uint8_t *codes, const uint8_t *plane, size_t n, unsigned b, unsigned low)
{
    const size_t n_bytes = n * b / 8;
    const uint64_t mask = ((1u << b) - 1) * UINT64_C(0x0101010101010101);

    for (size_t at = 0; at < n; at += n_bytes) {
        const unsigned shift = b * (unsigned)(at / n_bytes);
        size_t i = 0;

        for (; i + 16 <= n_bytes; i += 16) {
            bytes16 in, out;

            memcpy(&in, plane + i, sizeof(in));
            memcpy(&out, codes + at + i, sizeof(out));
            out |= (in >> shift & mask) << low;
            memcpy(codes + at + i, &out, sizeof(out));
        }
        for (; i < n_bytes; i++)
            codes[at + i] = (uint8_t)(codes[at + i] | (plane[i] >> shift & mask & 255) << low);
    }
}

static floats4 load4(const float *x)
{
    floats4 v;

    memcpy(&v, x, sizeof(v));
    return v;
}

/* sum[dim] += factor * each of x[4][dim], in order. */
static void add_four_rows(float *sum, const float *x, uint32_t dim, float factor)
{
    uint32_t j = 0;

    for (; j + 4 <= dim; j += 4) {
        const float *at = x + j;
        floats4 s = load4(sum + j) + load4(at) * factor;

        s = s + load4(at + dim) * factor;
        s = s + load4(at + 2 * (size_t)dim) * factor;
        s = s + load4(at + 3 * (size_t)dim) * factor;
        memcpy(sum + j, &s, sizeof(s));
    }
    for (; j < dim; j++)
        for (size_t t = 0; t < 4; t++)
            sum[j] += x[t * dim + j] * factor;
}

static void add_rows(float *sum, const float *x, size_t n, uint32_t dim, float factor)
{
    size_t t = 0;

    for (; t + 4 <= n; t += 4)
        add_four_rows(sum, x + t * dim, dim, factor);
    for (; t < n; t++)
        for (uint32_t j = 0; j < dim; j++)
            sum[j] += x[t * dim + j] * factor;
}

void tkv_code_mean(const struct tkv_coder *c, const struct tkv_kernels *kn, enum tkv_side side,
                   const float *x, size_t n, void *mean)
{
    const struct tkv_section *s = &c->mean[side];
    const size_t padded = tkv_align(c->dim, 16);
    uint8_t *to = mean, codes[TKV_MAX_HEAD_DIM] = {0};
    float sum[TKV_MAX_HEAD_DIM] = {0}, y[TKV_MAX_HEAD_DIM];
    float norm, scale = 0;
    int exponent = 0;

    if (c->mean_bytes[side] == 0)
        return;
    add_rows(sum, x, n, c->dim, 1 / (float)n);
    norm = residual_of(c, kn, sum, NULL, y, &exponent);
    if (norm > 0)
        scale = search(s, 1, kn, y, norm, norm * c->rotation.scale, TKV_SCALE_LEAST_SQUARES, codes);
    memset(to, 0, c->mean_bytes[side]);
    tkv_store_half(to, 0, saturated(ldexpf(scale, exponent)));
    if (s->w == 4) {
        put_plane(to + sizeof(uint16_t), codes, padded, 4, 0);
    } else {
        put_plane(to + sizeof(uint16_t), codes, padded, 2, 0);
        put_plane(to + sizeof(uint16_t) + padded / 4, codes, padded, 1, 2);
    }
}

static bytes16 get_16(const uint8_t *plane, unsigned shift, uint64_t mask)
{
    bytes16 x;

    memcpy(&x, plane, sizeof(x));
    return x >> shift & mask * UINT64_C(0x0101010101010101);
}

/* The planes of n codes of 4 or 3 bits, for n that make 16 codes neighbours in each plane: a block's
 * mean is read as often as its codes are. */
static void get_codes(uint8_t *codes, const uint8_t *from, size_t n, unsigned w)
{
    const uint8_t *bit = from + n / 4;

    for (unsigned eighth = 0; eighth < 8; eighth++) {
        for (size_t i = 0; i < n / 8; i += 16) {
            const size_t pair = eighth % 2 * (n / 8) + i, quad = eighth % 4 * (n / 8) + i;
            const bytes16 x =
                w == 4 ? get_16(from + quad, eighth / 4 * 4, 15)
                       : get_16(from + pair, eighth / 2 * 2, 3) | get_16(bit + i, eighth, 1) << 2;

            memcpy(codes + eighth * (n / 8) + i, &x, sizeof(x));
        }
    }
}

const float *tkv_load_mean(const struct tkv_coder *c, const struct tkv_kernels *kn,
                           enum tkv_side side, const void *mean, float *m)
{
    const struct tkv_section *s = &c->mean[side];
    const size_t padded = tkv_align(c->dim, 16);
    const uint8_t *from = mean;
    uint8_t codes[TKV_MAX_HEAD_DIM];
    uint16_t scale;

    if (c->mean_bytes[side] == 0)
        return NULL;
    scale = tkv_load_half(from, 0);
    from += sizeof(scale);
    if (scale == 0)
        return NULL;
    if (padded % 128 == 0) {
        get_codes(codes, from, padded, s->w);
    } else if (memset(codes, 0, padded), s->w == 4) {
        get_plane(codes, from, padded, 4, 0);
    } else {
        get_plane(codes, from, padded, 2, 0);
        get_plane(codes, from + padded / 4, padded, 1, 2);
    }
    kn->lookup(m, codes, c->dim, s->lut, tkv_f16_to_f32(scale));
    return m;
}
