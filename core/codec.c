/*
 * The table of codecs and the making of a coder. Vectors are coded in codec_vectors.c and
 * packed in codec_keys.c and codec_values.c; means are in codec_mean.c.
 */
#include "core/codec.h"

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
    {.id = TKV_CODEC_INT8, .name = "int8", .bits_first = 8, .bits_second = 8, .rotated = true},
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
        edge[i] = tkv_cells_round((s->lut[i] + s->lut[i + 1]) / 2);
    tkv_cells_init(&s->cells, edge, s->w);
}

/* The next section of n coordinates of w bits. */
static void add_section(struct tkv_coder *c, uint32_t n, unsigned w)
{
    struct tkv_section *s = &c->section[c->n_sections++];

    *s = (struct tkv_section){.n = n, .w = w, .slot = c->n_slots, .k_offset = c->k_pair_bytes};
    s->first = s->code = c->tile_dim;
    s->v_offset = c->v_block_bytes;
    c->tile_dim += n;
    c->n_slots += (uint32_t)tkv_key_slots(n, w);
    c->k_pair_bytes += tkv_key_section_bytes(n, w);
    c->v_block_bytes += tkv_value_section_bytes(n, w);
}

/* Both halves of a byte, over the same coordinates. */
static void add_bytes(struct tkv_coder *c)
{
    for (uint32_t i = 0; i < 2; i++) {
        struct tkv_section *s = &c->section[i];

        add_section(c, c->dim, 4);
        s->adds = i == 1;
        s->first = 0;
        s->alpha = i ? 1.0f / 16 : 1;
        for (int code = 0; code < 16; code++) {
            s->levels[code] = s->level[code] = (int8_t)(2 * code - 15);
            s->lut[code] = s->alpha * s->levels[code];
        }
    }
    c->tile_dim = c->dim;
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
    if (codec->bits_first == 8) {
        add_bytes(c);
        return;
    }
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

void tkv_coder_drop_means(struct tkv_coder *c)
{
    for (uint32_t i = 0; i < c->n_sections; i++)
        c->section[i].v_offset -= c->mean_bytes[TKV_VALUES];
    c->v_codes_offset -= c->mean_bytes[TKV_VALUES];
    c->v_block_bytes -= c->mean_bytes[TKV_VALUES];
    c->k_block_bytes -= c->mean_bytes[TKV_KEYS];
    c->mean_bytes[TKV_KEYS] = c->mean_bytes[TKV_VALUES] = 0;
}

size_t tkv_coder_bytes(const struct tkv_codec *codec, uint32_t dim)
{
    const size_t n_rotations = codec->qjl ? 2 : codec->rotated;
    const size_t bytes =
        offsetof(struct tkv_coder, room) + n_rotations * tkv_rotation_room(dim) * sizeof(float);

    return (bytes + 63) / 64 * 64;
}

const char *tkv_coder_init(struct tkv_coder *c, const struct tkv_codec *codec, uint32_t dim,
                           uint64_t seed)
{
    memset(c, 0, offsetof(struct tkv_coder, room));
    if (dim < TKV_MIN_HEAD_DIM || dim > TKV_MAX_HEAD_DIM || dim % 2)
        return "head_dim must be even, 8 to 1024";
    c->codec = codec;
    c->dim = dim;
    if (!codec->rotated) {
        c->tile_dim = dim;
        c->k_block_bytes = c->v_block_bytes = (size_t)dim * TKV_HALVES_BYTES;
        return NULL;
    }
    tkv_rotation_init(&c->rotation, dim, seed, c->room);
    fill_sections(c);
    fill_sizes(c);
    if (codec->qjl) {
        tkv_rotation_init(&c->sketch, dim, seed ^ sketch_salt, c->room + tkv_rotation_room(dim));
        c->sketch_scale = (float)(1 / ((double)dim * tkv_sphere_mean_abs(dim)));
    }
    return NULL;
}
