/*
 * Published query statistics of models, in the files their makers ship them in. What a file
 * does not say stays unsaid: who imports it must say it, nothing is guessed. Files are hostile input.
 *
 *   torch   the reference's torch.save of {metadata, stats}: a zip with a pickle
 *   TRIA    magic "AIRT": the fixed header of triattention-ggml, versions 1 and 2, or the
 *           header with a model name of llama-cpp-triattention, versions 1 to 3. Magic and
 *           version are the same; only the file's size tells them apart.
 *   npz     arrays of numpy: a zip of q_mean_re, q_mean_im, q_abs_mean and perhaps inv_freq
 *   raw     numbers alone, of a geometry that must be given
 */
#ifndef TKV_TOOLS_IMPORT_H
#define TKV_TOOLS_IMPORT_H

#include "core/rope.h"
#include "tools/reason.h"

enum { TKV_MAX_IMPORT_BYTES = 256 << 20 };

/* 0, or NaN for theta: the file does not say. */
struct tkv_import {
    char format[64]; /* for people */
    char model[65];
    uint32_t n_layers, n_q_heads, n_kv_heads;
    uint32_t n_bands; /* those that are turned */
    uint32_t head_dim;
    bool has_layout;
    bool has_scaling;            /* rope.scaling and its numbers are the file's */
    bool theta_is_default;       /* the file's writer puts this theta when it does not know */
    struct tkv_rope_params rope; /* what is known of it; theta 0: unknown */
    uint32_t n_empty_layers;     /* all zero: no attention there, or not calibrated */
    bool has_inv_freq;           /* the file says how its bands turn: */
    float inv_freq[TKV_MAX_BANDS];
    float *statistics; /* [layer][q_head][mean_re, mean_im, mean_abs][band] */
};

/* 0, or -1 with a text and *im zeroed. data need not be aligned. */
int tkv_import_parse(struct tkv_import *im, const uint8_t *data, size_t n, struct tkv_reason *why);
void tkv_import_deinit(struct tkv_import *im);

/* The same of numbers alone, float32 [n_layers][n_q_heads][mean_re, mean_im, mean_abs][band]: how
 * many bands there are follows from the size. */
int tkv_import_raw(struct tkv_import *im, const uint8_t *data, size_t n, uint32_t n_layers,
                   uint32_t n_q_heads, struct tkv_reason *why);

/* A whole file; n_layers not 0: of numbers alone. */
int tkv_import_read(struct tkv_import *im, const char *path, uint32_t n_layers, uint32_t n_q_heads,
                    struct tkv_reason *why);

/* The readers of the formats. Each fills a zeroed struct, which is deinit'ed whatever it
 * returns; statistics are checked by tkv_import_parse. */
int tkv_import_torch(struct tkv_import *im, const uint8_t *data, size_t n, struct tkv_reason *why);
int tkv_import_npz(struct tkv_import *im, const uint8_t *data, size_t n, struct tkv_reason *why);
int tkv_import_tria(struct tkv_import *im, const uint8_t *data, size_t n, struct tkv_reason *why);

/* A zip: is it one of numpy's? */
bool tkv_import_is_npz(const uint8_t *data, size_t n);

/* Room for the statistics of a geometry, which is checked; zeroed. */
int tkv_import_alloc(struct tkv_import *im, struct tkv_reason *why);

/* The statistics of a head, and those of a layer in floats. */
float *tkv_import_head(const struct tkv_import *im, size_t layer, size_t head);

#endif /* TKV_TOOLS_IMPORT_H */
