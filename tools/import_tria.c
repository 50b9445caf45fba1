/*
 * Both families of TRIA files, little-endian, without checksum. All begin
 *
 *     u32 magic "AIRT", u32 version
 *
 * triattention-ggml goes on, in a header of 64 bytes,
 *     u32 layers, heads, KV heads, rotary dim, bands; f32 theta, attention scale; zeros
 *     version 2: f32 budget scale [layer]
 *     f32 [layer][head][mean_re, mean_im, mean_abs, R][band]
 * llama-cpp-triattention with
 *     u32 head dim, layers, heads, KV heads; f64 theta; u32 layout, entries, bands,
 *     name length; the name
 *     version 2: f32 frequency [band], squared scale [band]
 *     version 3: u32 layers, then for each layer its own geometry (struct layer_record)
 *     entries: u32 layer, head; f32 [mean_re, mean_im, mean_abs, R][band]
 */
#include "tools/import.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "proto/limits.h"

enum { FIXED_HEADER_BYTES = 64, MAX_NAME_BYTES = 256, LAYER_RECORD_BYTES = 68 };

/* Both writers put this where they do not know the model's. */
#define DEFAULT_THETA 10000.0

struct file {
    const uint8_t *data;
    size_t n, at;
    bool cut; /* something was read beyond the end */
};

static const uint8_t *take(struct file *f, size_t n)
{
    const uint8_t *p = f->data + f->at;

    if (f->cut || f->n - f->at < n) {
        f->cut = true;
        return NULL;
    }
    f->at += n;
    return p;
}

static uint32_t take_u32(struct file *f)
{
    uint32_t x = 0;
    const uint8_t *p = take(f, sizeof(x));

    if (p)
        memcpy(&x, p, sizeof(x));
    return x;
}

static double take_f32(struct file *f)
{
    float x = 0;
    const uint8_t *p = take(f, sizeof(x));

    if (p)
        memcpy(&x, p, sizeof(x));
    return (double)x;
}

static double take_f64(struct file *f)
{
    double x = 0;
    const uint8_t *p = take(f, sizeof(x));

    if (p)
        memcpy(&x, p, sizeof(x));
    return x;
}

static void take_theta(struct tkv_import *im, double theta)
{
    im->rope.theta = isfinite(theta) && theta > 1 ? theta : 0;
    im->theta_is_default = im->rope.theta > 0 && !(theta < DEFAULT_THETA || theta > DEFAULT_THETA);
}

/* Three of the four rows of a head. */
static void take_head(struct file *f, const struct tkv_import *im, size_t layer, size_t head)
{
    const size_t bytes = (size_t)im->n_bands * sizeof(float);
    const uint8_t *p = take(f, 4 * bytes);

    if (p)
        memcpy(tkv_import_head(im, layer, head), p, 3 * bytes);
}

/* Limits that keep every product below 2^63. */
static bool sane(const struct tkv_import *im)
{
    return im->n_layers >= 1 && im->n_layers <= TRIKV_MAX_LAYERS && im->n_q_heads >= 1 &&
           im->n_q_heads <= TRIKV_MAX_HEADS && im->n_kv_heads <= TRIKV_MAX_HEADS &&
           im->n_bands >= 1 && im->n_bands <= TKV_MAX_BANDS;
}

/* The fixed header; the size that the file must then have, 0 if it cannot be one. */
static uint64_t read_fixed(struct file *f, struct tkv_import *im)
{
    const uint32_t version = (f->at = 4, take_u32(f));
    uint64_t bytes;

    im->n_layers = take_u32(f);
    im->n_q_heads = take_u32(f);
    im->n_kv_heads = take_u32(f);
    im->head_dim = take_u32(f);
    im->n_bands = take_u32(f);
    take_theta(im, take_f32(f));
    if (f->cut || f->n < FIXED_HEADER_BYTES || (version != 1 && version != 2) || !sane(im) ||
        im->head_dim != 2 * im->n_bands)
        return 0;
    snprintf(im->format, sizeof(im->format), "TRIA of triattention-ggml, version %u", version);
    bytes = FIXED_HEADER_BYTES + (version == 2 ? 4 * (uint64_t)im->n_layers : 0);
    f->at = (size_t)bytes;
    return bytes + (uint64_t)im->n_layers * im->n_q_heads * 16 * im->n_bands;
}

static int read_fixed_heads(struct file *f, struct tkv_import *im, struct tkv_reason *why)
{
    if (tkv_import_alloc(im, why))
        return -1;
    for (size_t l = 0; l < im->n_layers; l++) {
        for (size_t h = 0; h < im->n_q_heads; h++)
            take_head(f, im, l, h);
    }
    im->has_layout = true; /* the writer knows no other */
    return 0;
}

/* One layer of version 3: all must be like the header says, since a profile has one geometry. */
static bool read_layer_record(struct file *f, struct tkv_import *im, bool first)
{
    const uint32_t head_dim = take_u32(f), rotary = take_u32(f), offset = take_u32(f);
    const uint32_t n_q = take_u32(f), n_kv = take_u32(f), source = take_u32(f);
    const uint32_t style = take_u32(f), context = take_u32(f);
    const double theta = take_f64(f);
    bool explicit_rope;
    uint32_t n_bands;

    (void)source;
    (void)context;
    take(f, 5 * sizeof(float)); /* scaling by llama.cpp's own parameters */
    n_bands = take_u32(f);
    explicit_rope = take_u32(f) != 0;
    if (first) {
        im->n_bands = n_bands;
        im->head_dim = head_dim;
        take_theta(im, theta);
    }
    if (explicit_rope && n_bands <= TKV_MAX_BANDS)
        take(f, 2 * sizeof(float) * n_bands);
    return !f->cut && rotary == 2 * n_bands && n_bands == im->n_bands && offset == 0 &&
           head_dim == im->head_dim && n_q == im->n_q_heads && n_kv == im->n_kv_heads &&
           style == (uint32_t)im->rope.layout &&
           !(theta < im->rope.theta || theta > im->rope.theta);
}

static bool read_extras(struct file *f, struct tkv_import *im, uint32_t version)
{
    if (version == 2)
        take(f, 2 * sizeof(float) * im->n_bands);
    if (version < 3)
        return im->head_dim == 2 * im->n_bands;
    if (take_u32(f) != im->n_layers)
        return false;
    for (uint32_t l = 0; l < im->n_layers; l++) {
        if (!read_layer_record(f, im, l == 0))
            return false;
    }
    return true;
}

/* The header with a name; the size that the file must then have, 0 if it cannot be one. */
static uint64_t read_named(struct file *f, struct tkv_import *im, uint32_t *n_entries)
{
    const uint32_t version = (f->at = 4, take_u32(f));
    const uint8_t *name;
    uint32_t layout, n_name;

    im->head_dim = take_u32(f);
    im->n_layers = take_u32(f);
    im->n_q_heads = take_u32(f);
    im->n_kv_heads = take_u32(f);
    take_theta(im, take_f64(f));
    layout = take_u32(f);
    *n_entries = take_u32(f);
    im->n_bands = take_u32(f);
    n_name = take_u32(f);
    if (f->cut || version < 1 || version > 3 || !sane(im) || layout > 1 || n_name < 1 ||
        n_name > MAX_NAME_BYTES || *n_entries > im->n_layers * im->n_q_heads)
        return 0;
    im->has_layout = true;
    im->rope.layout = (enum tkv_rope_layout)layout;
    name = take(f, n_name);
    if (name)
        snprintf(im->model, sizeof(im->model), "%.*s", (int)(n_name < 64 ? n_name : 64),
                 (const char *)name);
    if (!name || !read_extras(f, im, version) || f->cut || !sane(im))
        return 0;
    snprintf(im->format, sizeof(im->format), "TRIA of llama-cpp-triattention, version %u", version);
    return f->at + *n_entries * (8 + 16 * (uint64_t)im->n_bands);
}

/* Layers may be missing whole (no attention there), heads of a layer may not. */
static int read_named_heads(struct file *f, struct tkv_import *im, uint32_t n_entries,
                            struct tkv_reason *why)
{
    uint32_t n_of_layer[TRIKV_MAX_LAYERS] = {0};
    uint8_t seen[TRIKV_MAX_LAYERS][TRIKV_MAX_HEADS / 8] = {{0}};

    if (tkv_import_alloc(im, why))
        return -1;
    for (uint32_t i = 0; i < n_entries; i++) {
        const uint32_t layer = take_u32(f), head = take_u32(f);

        if (layer >= im->n_layers || head >= im->n_q_heads)
            return tkv_reason_set(why, "entry %u: layer %u, head %u: there is none", i, layer,
                                  head);
        if (seen[layer][head / 8] >> head % 8 & 1)
            return tkv_reason_set(why, "layer %u, head %u is there twice", layer, head);
        seen[layer][head / 8] |= (uint8_t)(1u << head % 8);
        n_of_layer[layer]++;
        take_head(f, im, layer, head);
    }
    for (uint32_t l = 0; l < im->n_layers; l++) {
        if (n_of_layer[l] && n_of_layer[l] != im->n_q_heads)
            return tkv_reason_set(why, "layer %u: %u query heads of %u have statistics", l,
                                  n_of_layer[l], im->n_q_heads);
    }
    return 0;
}

int tkv_import_tria(struct tkv_import *im, const uint8_t *data, size_t n, struct tkv_reason *why)
{
    struct tkv_import named = {0};
    struct file f = {data, n, 0, false}, g = f;
    uint32_t n_entries = 0;
    const uint64_t fixed_bytes = read_fixed(&f, im);
    const uint64_t named_bytes = read_named(&g, &named, &n_entries);

    if (fixed_bytes == n && named_bytes == n)
        return tkv_reason_set(why, "TRIA: its size fits both families: cannot tell which it is");
    if (fixed_bytes == n)
        return read_fixed_heads(&f, im, why);
    *im = named;
    if (named_bytes == n)
        return read_named_heads(&g, im, n_entries, why);
    return tkv_reason_set(why,
                          "TRIA: %zu bytes; by its header it would have %llu (triattention-ggml) "
                          "or %llu (llama-cpp-triattention; 0: not one)",
                          n, (unsigned long long)fixed_bytes, (unsigned long long)named_bytes);
}
