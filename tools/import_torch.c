/*
 * The reference's file: ROOT/data.pkl is a dict of "metadata" and "stats", stats a dict of
 * "layer%02d_head%02d", each a dict of three float32 tensors whose numbers are members
 * ROOT/data/KEY. Early files say nothing of KV heads and RoPE.
 */
#include "tools/import.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proto/limits.h"
#include "tools/pickle.h"
#include "tools/zip.h"

struct reader {
    struct tkv_import *im;
    struct tkv_zip zip;
    struct tkv_pickle pickle;
    const struct tkv_pickle_value *stats;
    const char *root; /* the folder in the zip */
    size_t root_bytes;
    struct tkv_reason *why;
};

static bool ends_with(const struct tkv_zip_member *m, const char *tail)
{
    const size_t n = strlen(tail);

    return m->name_bytes > n && memcmp(m->name + m->name_bytes - n, tail, n) == 0;
}

static int open_pickle(struct reader *r)
{
    const struct tkv_zip_member *pickle = NULL, *order;
    char name[512];
    int n;

    for (size_t i = 0; i < r->zip.n && !pickle; i++) {
        if (ends_with(&r->zip.members[i], "/data.pkl"))
            pickle = &r->zip.members[i];
    }
    if (!pickle || pickle->name_bytes > 256)
        return tkv_reason_set(r->why, "zip: no member FOLDER/data.pkl: not made by torch.save");
    r->root = pickle->name;
    r->root_bytes = pickle->name_bytes - strlen("data.pkl");
    n = snprintf(name, sizeof(name), "%.*sbyteorder", (int)r->root_bytes, r->root);
    order = tkv_zip_find(&r->zip, name, (size_t)n);
    if (order &&
        (order->is_deflated || order->n_bytes != 6 || memcmp(order->data, "little", 6) != 0))
        return tkv_reason_set(r->why, "byteorder: want little");
    if (tkv_zip_check(pickle, r->why))
        return -1;
    return tkv_pickle_parse(&r->pickle, pickle->data, pickle->n_bytes, r->why);
}

static const struct tkv_pickle_value *get(const struct reader *r,
                                          const struct tkv_pickle_value *dict, const char *key)
{
    return tkv_pickle_get(&r->pickle, dict, key);
}

/* A count of metadata, if it is there. */
static int take_count(const struct reader *r, const struct tkv_pickle_value *meta, const char *key,
                      uint32_t max, uint32_t *out)
{
    const struct tkv_pickle_value *v = get(r, meta, key);

    if (!v)
        return 0;
    if (v->kind != TKV_PICKLE_INT || v->whole < 1 || v->whole > max)
        return tkv_reason_set(r->why, "metadata.%s: want a number from 1 to %u", key, max);
    *out = (uint32_t)v->whole;
    return 0;
}

static int take_real(const struct reader *r, const struct tkv_pickle_value *dict, const char *key,
                     double *out)
{
    const struct tkv_pickle_value *v = get(r, dict, key);

    if (!v)
        return 0;
    if (v->kind != TKV_PICKLE_INT && v->kind != TKV_PICKLE_REAL)
        return tkv_reason_set(r->why, "%s: want a number", key);
    *out = v->kind == TKV_PICKLE_INT ? (double)v->whole : v->real;
    return 0;
}

/* A dict as Hugging Face configurations have it. */
static int take_scaling(struct reader *r, const struct tkv_pickle_value *s)
{
    static const char *const types[] = {"default", "linear", "llama3", "yarn", NULL};
    struct tkv_rope_params *p = &r->im->rope;
    const struct tkv_pickle_value *type = get(r, s, "rope_type"), *truncate = get(r, s, "truncate");
    int i = 0;

    while (types[i] && !tkv_pickle_text_is(type, types[i]))
        i++;
    if (!types[i])
        return tkv_reason_set(r->why, "rope_scaling.rope_type: want default, linear, llama3, yarn");
    p->scaling = (enum tkv_rope_scaling)i;
    r->im->has_scaling = true;
    p->no_truncate = truncate && truncate->kind == TKV_PICKLE_BOOL && !truncate->whole;
    return take_real(r, s, "factor", &p->factor) ||
           take_real(r, s, "low_freq_factor", &p->low_freq_factor) ||
           take_real(r, s, "high_freq_factor", &p->high_freq_factor) ||
           take_real(r, s, "beta_fast", &p->beta_fast) ||
           take_real(r, s, "beta_slow", &p->beta_slow) ||
           take_real(r, s, "attention_factor", &p->attention_factor) ||
           take_count(r, s, "original_max_position_embeddings", 1 << 30, &p->original_context);
}

static int read_metadata(struct reader *r, const struct tkv_pickle_value *meta)
{
    struct tkv_import *im = r->im;
    const struct tkv_pickle_value *style = get(r, meta, "rope_style");
    const struct tkv_pickle_value *scaling = get(r, meta, "rope_scaling");
    const struct tkv_pickle_value *model = get(r, meta, "model_name");

    if (take_count(r, meta, "head_dim", TKV_MAX_HEAD_DIM, &im->head_dim) ||
        take_count(r, meta, "num_layers", TRIKV_MAX_LAYERS, &im->n_layers) ||
        take_count(r, meta, "num_attention_heads", TRIKV_MAX_HEADS, &im->n_q_heads) ||
        take_count(r, meta, "num_kv_heads", TRIKV_MAX_HEADS, &im->n_kv_heads) ||
        take_real(r, meta, "rope_theta", &im->rope.theta))
        return -1;
    if (style) {
        im->has_layout = true;
        im->rope.layout = tkv_pickle_text_is(style, "half") ? TKV_ROPE_HALF : TKV_ROPE_INTERLEAVED;
        if (im->rope.layout != TKV_ROPE_HALF && !tkv_pickle_text_is(style, "interleaved"))
            return tkv_reason_set(r->why, "metadata.rope_style: want half or interleaved");
    }
    if (model && model->kind == TKV_PICKLE_TEXT)
        snprintf(im->model, sizeof(im->model), "%.*s",
                 (int)(model->text_bytes < 64 ? model->text_bytes : 64), model->text);
    return scaling && scaling->kind == TKV_PICKLE_DICT ? take_scaling(r, scaling) : 0;
}

/* Digits at *at of text[n], at most five; false if there are none. */
static bool read_index(const char *text, size_t n, size_t *at, uint32_t *out)
{
    const size_t from = *at;

    *out = 0;
    while (*at < n && *at - from < 5 && text[*at] >= '0' && text[*at] <= '9')
        *out = *out * 10 + (uint32_t)(text[(*at)++] - '0');
    return *at > from;
}

/* "layer07_head31". */
static int read_key(const struct reader *r, const struct tkv_pickle_value *key, uint32_t *layer,
                    uint32_t *head)
{
    const size_t n = key->kind == TKV_PICKLE_TEXT ? key->text_bytes : 0;
    size_t at = 5;

    if (n > 5 && memcmp(key->text, "layer", 5) == 0 && read_index(key->text, n, &at, layer) &&
        n - at > 5 && memcmp(key->text + at, "_head", 5) == 0) {
        at += 5;
        if (read_index(key->text, n, &at, head) && at == n && *layer < TRIKV_MAX_LAYERS &&
            *head < TRIKV_MAX_HEADS)
            return 0;
    }
    return tkv_reason_set(r->why, "stats: a key that is not layerNN_headNN");
}

/* Calls one(r, layer, head, entry) for every head of stats. */
static int each_head(struct reader *r, int (*one)(struct reader *r, uint32_t layer, uint32_t head,
                                                  const struct tkv_pickle_value *entry))
{
    const struct tkv_pickle *p = &r->pickle;

    for (uint32_t cell = r->stats->first; cell;) {
        const uint32_t next = p->cells[cell].next;
        uint32_t layer = 0, head = 0;

        if (read_key(r, &p->values[p->cells[cell].value], &layer, &head) ||
            one(r, layer, head, &p->values[p->cells[next].value]))
            return -1;
        cell = p->cells[next].next;
    }
    return 0;
}

/* The geometry is that of the keys; what metadata says must agree. */
static int widen(struct reader *r, uint32_t layer, uint32_t head,
                 const struct tkv_pickle_value *entry)
{
    struct tkv_import *im = r->im;
    const struct tkv_pickle_value *re = get(r, entry, "q_mean_real");

    if (layer >= im->n_layers)
        im->n_layers = layer + 1;
    if (head >= im->n_q_heads)
        im->n_q_heads = head + 1;
    if (im->n_bands == 0 && re && re->kind == TKV_PICKLE_TENSOR && re->text_bytes <= TKV_MAX_BANDS)
        im->n_bands = (uint32_t)re->text_bytes;
    return 0;
}

static int read_tensor(struct reader *r, const struct tkv_pickle_value *entry, const char *key,
                       float *out)
{
    const struct tkv_pickle_value *t = get(r, entry, key), *storage;
    const struct tkv_zip_member *m;
    char name[512];
    int n;

    if (!t || t->kind != TKV_PICKLE_TENSOR || t->text_bytes != r->im->n_bands)
        return tkv_reason_set(r->why, "%s: want a tensor of %u float32 numbers", key,
                              r->im->n_bands);
    storage = &r->pickle.values[t->first];
    n = snprintf(name, sizeof(name), "%.*sdata/%.*s", (int)r->root_bytes, r->root,
                 (int)(storage->text_bytes < 64 ? storage->text_bytes : 64), storage->text);
    m = tkv_zip_find(&r->zip, name, (size_t)n);
    if (!m || m->n_bytes / sizeof(float) < (uint64_t)storage->whole)
        return tkv_reason_set(r->why, "%s: the member %s is missing or too short", key, name);
    if (tkv_zip_check(m, r->why))
        return -1;
    memcpy(out, m->data + (size_t)t->whole * sizeof(float), r->im->n_bands * sizeof(float));
    return 0;
}

static int read_head(struct reader *r, uint32_t layer, uint32_t head,
                     const struct tkv_pickle_value *entry)
{
    static const char *const parts[] = {"q_mean_real", "q_mean_imag", "q_abs_mean"};
    float *to = tkv_import_head(r->im, layer, head);
    struct tkv_reason inner = {""}, *const outer = r->why;
    int error = 0;

    r->why = &inner;
    for (size_t i = 0; i < 3 && !error; i++)
        error = read_tensor(r, entry, parts[i], to + i * r->im->n_bands);
    r->why = outer;
    return error
               ? tkv_reason_set(outer, "stats: layer %u, head %u: %.250s", layer, head, inner.text)
               : 0;
}

/* One entry a head, none missing: as many as there are heads, and none twice. */
static int check_complete(const struct reader *r)
{
    const struct tkv_import *im = r->im;
    const size_t n_heads = (size_t)im->n_layers * im->n_q_heads, n = r->stats->n / 2;

    if (im->n_bands == 0)
        return tkv_reason_set(r->why, "stats: no head with q_mean_real of 1 to %d numbers",
                              TKV_MAX_BANDS);
    if (n != n_heads)
        return tkv_reason_set(r->why, "stats: %zu heads, want %u layers of %u", n, im->n_layers,
                              im->n_q_heads);
    return 0;
}

static int mark_seen(struct reader *r, uint32_t layer, uint32_t head,
                     const struct tkv_pickle_value *entry)
{
    float *abs = tkv_import_head(r->im, layer, head);

    (void)entry;
    if (*abs > 0)
        return tkv_reason_set(r->why, "stats: layer %u, head %u is there twice", layer, head);
    *abs = 1;
    return 0;
}

static int read_all(struct reader *r)
{
    const struct tkv_pickle_value *root, *meta;

    if (open_pickle(r))
        return -1;
    root = &r->pickle.values[r->pickle.root];
    meta = get(r, root, "metadata");
    r->stats = get(r, root, "stats");
    if (!meta || meta->kind != TKV_PICKLE_DICT || !r->stats || r->stats->kind != TKV_PICKLE_DICT)
        return tkv_reason_set(r->why, "want a dict of metadata and stats");
    if (read_metadata(r, meta) || each_head(r, widen) || check_complete(r) ||
        tkv_import_alloc(r->im, r->why))
        return -1;
    return each_head(r, mark_seen) || each_head(r, read_head) ? -1 : 0;
}

int tkv_import_torch(struct tkv_import *im, const uint8_t *data, size_t n, struct tkv_reason *why)
{
    struct reader r = {.im = im, .why = why};
    int error = tkv_zip_parse(&r.zip, data, n, why);

    if (!error)
        error = read_all(&r);
    snprintf(im->format, sizeof(im->format), "torch");
    tkv_pickle_deinit(&r.pickle);
    tkv_zip_deinit(&r.zip);
    return error;
}
