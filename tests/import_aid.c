/* Zip, pickle and both TRIA headers, written from their definitions. */
#include "tests/import_aid.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

typedef struct gguf_aid_buffer buffer;

static void bytes(buffer *b, const void *data, size_t n)
{
    gguf_aid_bytes(b, data, n);
}

static void byte(buffer *b, unsigned x)
{
    const uint8_t c = (uint8_t)x;

    bytes(b, &c, 1);
}

static void u16(buffer *b, unsigned x)
{
    byte(b, x & 255);
    byte(b, x >> 8);
}

static void u32(buffer *b, uint32_t x)
{
    bytes(b, &x, sizeof(x));
}

static void f32(buffer *b, float x)
{
    bytes(b, &x, sizeof(x));
}

static void f64(buffer *b, double x)
{
    bytes(b, &x, sizeof(x));
}

static void text(buffer *b, const char *s)
{
    bytes(b, s, strlen(s));
}

float import_aid_value(uint32_t layer, uint32_t head, uint32_t part, uint32_t band)
{
    const float re = (float)(layer + 1) * 0.5f - (float)band, im = (float)head * 0.25f - 0.5f;

    return part == 0 ? re : part == 1 ? im : hypotf(re, im) + 0.125f * (float)(band + 1);
}

/* ---- zip -------------------------------------------------------------------------------- */

static uint32_t sum_of(const uint8_t *data, size_t n)
{
    uint32_t crc = 0xffffffff;

    for (size_t i = 0; i < n; i++) {
        crc ^= data[i];
        for (int k = 0; k < 8; k++)
            crc = crc >> 1 ^ (crc & 1 ? 0xedb88320 : 0);
    }
    return ~crc;
}

struct archive {
    buffer file, directory;
    unsigned n;
};

/* A member whose n bytes are packed by a method; as torch does it, the local header knows no sizes. */
static void add_packed(struct archive *a, const char *name, unsigned method, const void *packed,
                       size_t n_packed, uint32_t crc, size_t n)
{
    const uint32_t at = (uint32_t)a->file.n;

    u32(&a->file, 0x04034b50);
    u16(&a->file, 0);
    u16(&a->file, 0x0808);
    u16(&a->file, method);
    for (int i = 0; i < 8; i++) /* time, date, crc, two sizes */
        u16(&a->file, 0);
    u16(&a->file, (unsigned)strlen(name));
    u16(&a->file, 3);
    text(&a->file, name);
    text(&a->file, "pad");
    bytes(&a->file, packed, n_packed);
    u32(&a->directory, 0x02014b50);
    u32(&a->directory, 0);
    u16(&a->directory, 0x0808);
    u16(&a->directory, method);
    u32(&a->directory, 0);
    u32(&a->directory, crc);
    u32(&a->directory, (uint32_t)n_packed);
    u32(&a->directory, (uint32_t)n);
    u16(&a->directory, (unsigned)strlen(name));
    for (int i = 0; i < 6; i++) /* extra, comment, disk, attributes */
        u16(&a->directory, 0);
    u32(&a->directory, at);
    text(&a->directory, name);
    a->n++;
}

static void add_member(struct archive *a, const char *name, const void *data, size_t n)
{
    add_packed(a, name, 0, data, n, sum_of(data, n), n);
}

static void add_deflated(struct archive *a, const char *name, const void *data, size_t n)
{
    uint8_t packed[4096];
    z_stream z = {.next_in = (uint8_t *)(uintptr_t)data,
                  .avail_in = (uInt)n,
                  .next_out = packed,
                  .avail_out = sizeof(packed)};

    if (deflateInit2(&z, 9, Z_DEFLATED, -MAX_WBITS, 8, Z_DEFAULT_STRATEGY) != Z_OK)
        abort();
    if (deflate(&z, Z_FINISH) != Z_STREAM_END)
        abort();
    add_packed(a, name, 8, packed, z.total_out, sum_of(data, n), n);
    (void)deflateEnd(&z);
}

static uint8_t *shrink(buffer *b, size_t *n)
{
    uint8_t *exact = malloc(b->n);

    if (exact)
        memcpy(exact, b->bytes, b->n);
    free(b->bytes);
    *n = b->n;
    return exact;
}

static uint8_t *finish(struct archive *a, size_t *n)
{
    const uint32_t at = (uint32_t)a->file.n;

    bytes(&a->file, a->directory.bytes, a->directory.n);
    u32(&a->file, 0x06054b50);
    u32(&a->file, 0);
    u16(&a->file, a->n);
    u16(&a->file, a->n);
    u32(&a->file, (uint32_t)a->directory.n);
    u32(&a->file, at);
    u16(&a->file, 0);
    free(a->directory.bytes);
    return shrink(&a->file, n);
}

uint8_t *import_aid_zip(const uint8_t *pickle, size_t n_pickle, size_t *n)
{
    struct archive a = {0};

    add_member(&a, "x/data.pkl", pickle, n_pickle);
    return finish(&a, n);
}

/* ---- pickle ----------------------------------------------------------------------------- */

static void word(buffer *b, const char *s)
{
    byte(b, 'X');
    u32(b, (uint32_t)strlen(s));
    text(b, s);
}

/* One tensor; names and call are remembered at the first and recalled from then on. */
static void tensor(buffer *b, uint32_t storage, bool first)
{
    char key[16];

    snprintf(key, sizeof(key), "%u", storage);
    text(b, first ? "ctorch._utils\n_rebuild_tensor_v2\nq\xc8" : "h\xc8");
    text(b, "((");
    word(b, "storage");
    text(b, first ? "ctorch\nFloatStorage\nq\xc9" : "h\xc9");
    word(b, key);
    word(b, "cpu");
    byte(b, 'K');
    byte(b, AID_BANDS);
    text(b, "tQK");
    byte(b, 0);
    byte(b, 'K');
    byte(b, AID_BANDS);
    text(b, "\x85K\x01\x85\x89"
            "ccollections\nOrderedDict\n)RtR");
}

static void metadata(buffer *b, bool yarn)
{
    text(b, "}(");
    word(b, "rope_style");
    word(b, "half");
    word(b, "head_dim");
    byte(b, 'K');
    byte(b, 2 * AID_BANDS);
    if (yarn) {
        word(b, "num_kv_heads");
        byte(b, 'K');
        byte(b, AID_KV_HEADS);
        word(b, "rope_theta");
        byte(b, 'J');
        u32(b, 150000);
        word(b, "rope_scaling");
        text(b, "}(");
        word(b, "rope_type");
        word(b, "yarn");
        word(b, "factor");
        text(b, "G@@");
        bytes(b, "\0\0\0\0\0\0", 6); /* 32.0 */
        word(b, "original_max_position_embeddings");
        byte(b, 'M');
        u16(b, 4096);
        word(b, "truncate");
        text(b, "\x89u");
    }
    text(b, "u");
}

static const char *const parts[] = {"q_mean_real", "q_mean_imag", "q_abs_mean"};

static uint8_t *make_torch(bool yarn, size_t *n)
{
    struct archive a = {0};
    buffer b = {0};
    uint32_t storage = 0;

    text(&b, "\x80\x02}q");
    byte(&b, 0);
    byte(&b, '(');
    word(&b, "metadata");
    metadata(&b, yarn);
    word(&b, "stats");
    text(&b, "}(");
    for (uint32_t i = 0; i < AID_LAYERS * AID_HEADS; i++) {
        char key[32];

        snprintf(key, sizeof(key), "layer%02u_head%02u", i / AID_HEADS, i % AID_HEADS);
        word(&b, key);
        text(&b, "}(");
        for (uint32_t part = 0; part < 3; part++, storage++) {
            word(&b, parts[part]);
            tensor(&b, storage, storage == 0);
        }
        text(&b, "u");
    }
    text(&b, "uu.");
    add_member(&a, "x/data.pkl", b.bytes, b.n);
    free(b.bytes);
    add_member(&a, "x/byteorder", "little", 6);
    for (uint32_t i = 0; i < storage; i++) {
        float row[AID_BANDS];
        char name[32];

        for (uint32_t f = 0; f < AID_BANDS; f++)
            row[f] = import_aid_value(i / 3 / AID_HEADS, i / 3 % AID_HEADS, i % 3, f);
        snprintf(name, sizeof(name), "x/data/%u", i);
        add_member(&a, name, row, sizeof(row));
    }
    return finish(&a, n);
}

/* ---- TRIA ------------------------------------------------------------------------------- */

static void rows(buffer *b, uint32_t layer, uint32_t head)
{
    for (uint32_t part = 0; part < 4; part++) {
        for (uint32_t f = 0; f < AID_BANDS; f++)
            f32(b, part < 3 ? import_aid_value(layer, head, part, f) : 0.5f);
    }
}

static uint8_t *make_fixed(uint32_t version, size_t *n)
{
    const uint32_t header[] = {version,      AID_LAYERS,    AID_HEADS,
                               AID_KV_HEADS, 2 * AID_BANDS, AID_BANDS};
    buffer b = {0};

    text(&b, "AIRT");
    bytes(&b, header, sizeof(header));
    f32(&b, version == 1 ? 1e4f : 1e6f);
    f32(&b, 1);
    while (b.n < 64)
        byte(&b, 0);
    for (uint32_t l = 0; version == 2 && l < AID_LAYERS; l++)
        f32(&b, 1);
    for (uint32_t i = 0; i < AID_LAYERS * AID_HEADS; i++)
        rows(&b, i / AID_HEADS, i % AID_HEADS);
    return shrink(&b, n);
}

static void layer_record(buffer *b)
{
    const uint32_t record[] = {2 * AID_BANDS, 2 * AID_BANDS, 0, AID_HEADS, AID_KV_HEADS, 0, 1, 0};

    bytes(b, record, sizeof(record));
    f64(b, 1e6);
    for (int i = 0; i < 5; i++)
        f32(b, 1);
    u32(b, AID_BANDS);
    u32(b, 1);
    for (uint32_t f = 0; f < 2 * AID_BANDS; f++)
        f32(b, 1);
}

/* Entries from the last to the first: order is the file's affair. */
static uint8_t *make_named(uint32_t version, size_t *n)
{
    const uint32_t header[] = {version, 2 * AID_BANDS, AID_LAYERS, AID_HEADS, AID_KV_HEADS};
    const uint32_t rest[] = {1, AID_LAYERS * AID_HEADS, AID_BANDS, 5};
    buffer b = {0};

    text(&b, "AIRT");
    bytes(&b, header, sizeof(header));
    f64(&b, 1e6);
    bytes(&b, rest, sizeof(rest));
    bytes(&b, "tiny", 5);
    for (uint32_t f = 0; version == 2 && f < 2 * AID_BANDS; f++)
        f32(&b, 1);
    if (version == 3) {
        u32(&b, AID_LAYERS);
        for (uint32_t l = 0; l < AID_LAYERS; l++)
            layer_record(&b);
    }
    for (uint32_t i = AID_LAYERS * AID_HEADS; i-- > 0;) {
        u32(&b, i / AID_HEADS);
        u32(&b, i % AID_HEADS);
        rows(&b, i / AID_HEADS, i % AID_HEADS);
    }
    return shrink(&b, n);
}

/* ---- npz -------------------------------------------------------------------------------- */

/* An array as numpy writes it: the header is padded to a multiple of 64. */
static void array(buffer *b, const char *shape, const float *x, size_t n)
{
    char header[128];
    const int used = snprintf(header, sizeof(header),
                              "{'descr': '<f4', 'fortran_order': False, 'shape': (%s), }", shape);
    const unsigned all = ((unsigned)used + 1 + 10 + 63) / 64 * 64 - 10;

    text(b, "\x93NUMPY");
    byte(b, 1);
    byte(b, 0);
    u16(b, all);
    text(b, header);
    for (unsigned i = (unsigned)used; i + 1 < all; i++)
        text(b, " ");
    text(b, "\n");
    bytes(b, x, n * sizeof(*x));
}

static uint8_t *make_npz(bool deflated, size_t *n)
{
    static const char *const names[] = {"q_mean_re.npy", "q_mean_im.npy", "q_abs_mean.npy"};
    void (*const add)(struct archive * a, const char *name, const void *data, size_t n_bytes) =
        deflated ? add_deflated : add_member;
    float inv_freq[AID_BANDS];
    struct archive a = {0};
    char shape[64];

    snprintf(shape, sizeof(shape), "%d, %d, %d", AID_LAYERS, AID_HEADS, AID_BANDS);
    for (uint32_t part = 0; part < 3; part++) {
        float x[AID_LAYERS * AID_HEADS * AID_BANDS];
        buffer b = {0};

        for (uint32_t i = 0; i < sizeof(x) / sizeof(x[0]); i++)
            x[i] = import_aid_value(i / AID_BANDS / AID_HEADS, i / AID_BANDS % AID_HEADS, part,
                                    i % AID_BANDS);
        array(&b, shape, x, sizeof(x) / sizeof(x[0]));
        add(&a, names[part], b.bytes, b.n);
        free(b.bytes);
    }
    for (uint32_t f = 0; deflated && f < AID_BANDS; f++)
        inv_freq[f] = (float)pow(1e6, -(double)f / AID_BANDS);
    if (deflated) {
        buffer b = {0};

        snprintf(shape, sizeof(shape), "%d,", AID_BANDS);
        array(&b, shape, inv_freq, AID_BANDS);
        add(&a, "inv_freq.npy", b.bytes, b.n);
        free(b.bytes);
    }
    return finish(&a, n);
}

uint8_t *import_aid_npz(const char *const *names, const void *const *members, const size_t *n_bytes,
                        size_t n_members, size_t *n)
{
    struct archive a = {0};

    for (size_t i = 0; i < n_members; i++)
        add_deflated(&a, names[i], members[i], n_bytes[i]);
    return finish(&a, n);
}

uint8_t *import_aid_make(enum import_aid_kind kind, size_t *n)
{
    switch (kind) {
    case AID_TORCH: return make_torch(false, n);
    case AID_TORCH_YARN: return make_torch(true, n);
    case AID_FIXED_1: return make_fixed(1, n);
    case AID_FIXED_2: return make_fixed(2, n);
    case AID_NAMED_1: return make_named(1, n);
    case AID_NAMED_2: return make_named(2, n);
    case AID_NPZ: return make_npz(true, n);
    case AID_NPZ_STORED: return make_npz(false, n);
    default: return make_named(3, n);
    }
}
