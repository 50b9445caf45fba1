/*
 * The table of codecs, the making of a coder, and the coding of one vector, which
 * keys and values share. Packing into blocks is in codec_keys.c and codec_values.c.
 */
#include "core/codec.h"

#include <math.h>

#include "core/codebook.h"
#include "core/codec_priv.h"

#define TQ(name_, id_, first, second)                                                         \
    {                                                                                         \
        .id = id_, .name = name_, .bits_first = first, .bits_second = second, .rotated = true \
    }
#define PAPER(name_, id_, first, second)                                                       \
    {                                                                                          \
        .id = id_, .name = name_, .bits_first = first, .bits_second = second, .rotated = true, \
        .paper_scale = true                                                                    \
    }
/* The residual is that of the paper's decoder, so the scale is the paper's too. */
#define QJL(name_, id_, bits)                                                               \
    {                                                                                       \
        .id = id_, .name = name_, .bits_first = bits, .bits_second = bits, .rotated = true, \
        .paper_scale = true, .qjl = true                                                    \
    }

const struct tkv_codec tkv_codecs[] = {
    {.id = TKV_CODEC_F16, .name = "f16", .bits_first = 16, .bits_second = 16},
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

static void fill_tables(struct tkv_coder *c, int h)
{
    struct tkv_codebook book;

    tkv_codebook_init(&book, c->dim, tkv_half_bits(c, h));
    for (uint32_t i = 0; i < book.n_levels; i++)
        c->lut[h][i] = (float)book.centroid[i];
    for (uint32_t i = 0; i + 1 < book.n_levels; i++)
        c->edge[h][i] = (float)book.boundary[i];
}

static void fill_sizes(struct tkv_coder *c)
{
    const bool qjl = c->codec->qjl;

    c->tile_dim = qjl ? 2 * c->dim : c->dim;
    if (!c->codec->rotated) {
        c->k_block_bytes = c->v_block_bytes = (size_t)c->dim * TKV_HALVES_BYTES;
        return;
    }
    c->k_block_bytes = tkv_k_codes_bytes(c) + tkv_k_sketch_bytes(c) + TKV_HALVES_BYTES;
    if (qjl)
        c->k_block_bytes += TKV_HALVES_BYTES;
    else
        c->v_block_bytes = TKV_BLOCK_TOKENS * tkv_v_row_bytes(c) + TKV_HALVES_BYTES;
}

const char *tkv_coder_init(struct tkv_coder *c, const struct tkv_codec *codec, uint32_t dim,
                           uint64_t seed)
{
    memset(c, 0, sizeof(*c));
    if (dim < TKV_MIN_HEAD_DIM || dim > TKV_MAX_HEAD_DIM || dim % 2)
        return "head_dim must be even, 8 to 1024";
    c->codec = codec;
    c->dim = dim;
    fill_sizes(c);
    if (!codec->rotated)
        return NULL;
    tkv_rotation_init(&c->rotation, dim, seed);
    fill_tables(c, 0);
    fill_tables(c, 1);
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

void tkv_saturate(const struct tkv_kernels *kn, uint16_t *dst, const float *src, size_t dim)
{
    float x[TKV_MAX_HEAD_DIM];

    for (size_t j = 0; j < dim; j++)
        x[j] = clamp(src[j]);
    kn->f32_to_f16(dst, x, dim);
}

/*
 * Length of y[dim]. Where its square would leave the range of a float, y is brought
 * to around 1 by an exact power of two first; *exponent says which. 0 for a zero vector.
 */
static float measure(const struct tkv_kernels *kn, float *y, uint32_t dim, int *exponent)
{
    float norm2 = kn->norm2(y, dim);
    float largest = 0;

    *exponent = 0;
    if (norm2 > 1e-30f && norm2 < 1e30f)
        return sqrtf(norm2);
    for (uint32_t j = 0; j < dim; j++)
        largest = fmaxf(largest, fabsf(y[j]));
    if (largest == 0)
        return 0;
    *exponent = ilogbf(largest);
    for (uint32_t j = 0; j < dim; j++)
        y[j] = ldexpf(y[j], -*exponent);
    return sqrtf(kn->norm2(y, dim));
}

/* dst[dim] = centroids of the codes times scale. */
static void decode(const struct tkv_coder *c, const struct tkv_kernels *kn, const uint8_t *codes,
                   float scale, float *dst)
{
    const uint32_t half = tkv_half_dim(c);

    kn->lookup(dst, codes, half, c->lut[0], scale);
    kn->lookup(dst + half, codes + half, half, c->lut[1], scale);
}

static void quantise(const struct tkv_coder *c, const struct tkv_kernels *kn, const float *y,
                     float unit, uint8_t *codes)
{
    const uint32_t half = tkv_half_dim(c);

    for (int h = 0; h < 2; h++)
        kn->quantise(codes + (uint32_t)h * half, y + (uint32_t)h * half, half, c->edge[h],
                     (1u << tkv_half_bits(c, h)) - 1, unit);
}

/*
 * The residual in the rotated domain against what will be decoded, which is the
 * stored, rounded scale: so the estimate is unbiased to the last bit of it.
 */
static void sketch(const struct tkv_coder *c, const struct tkv_kernels *kn, float *y, int exponent,
                   struct tkv_coded *out)
{
    static const float zero = 0;
    const float scale = ldexpf(tkv_f16_to_f32(out->scale), -exponent);
    float decoded[TKV_MAX_HEAD_DIM];

    decode(c, kn, out->codes, scale, decoded);
    for (uint32_t j = 0; j < c->dim; j++)
        y[j] -= decoded[j];
    out->residual = saturated(ldexpf(sqrtf(kn->norm2(y, c->dim)), exponent));
    tkv_rotate(&c->sketch, kn, y);
    kn->quantise(out->signs, y, c->dim, &zero, 1, 1);
}

/*
 * y = R x,  s = |x| / sqrt(d),  code = cell of y / s  (TurboQuant_mse, Algorithm 1),
 * and the scale that is stored: s, or |x| / |centroids|.
 */
void tkv_code_vector(const struct tkv_coder *c, const struct tkv_kernels *kn, const float *x,
                     struct tkv_coded *out)
{
    float y[TKV_MAX_HEAD_DIM], centroids[TKV_MAX_HEAD_DIM];
    int exponent;
    float norm, scale;

    memcpy(y, x, c->dim * sizeof(*y));
    norm = measure(kn, y, c->dim, &exponent);
    tkv_rotate(&c->rotation, kn, y);
    scale = norm * c->rotation.scale;
    quantise(c, kn, y, norm > 0 ? 1 / scale : 0, out->codes);
    if (!c->codec->paper_scale) {
        decode(c, kn, out->codes, 1, centroids);
        scale = norm / sqrtf(kn->norm2(centroids, c->dim));
    }
    out->scale = saturated(ldexpf(scale, exponent));
    if (c->codec->qjl)
        sketch(c, kn, y, exponent, out);
}
