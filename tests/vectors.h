/*
 * Golden vectors of TriAttention: cases of <name>.json (scalars and a table of
 * tensors) and <name>.bin (little-endian tensors at the offsets the table gives).
 * Reading is strict: a missing file, field or tensor, a wrong size or type is a
 * failure of the case. So is a tensor that no check has asked for: nothing that a
 * case expects can be passed over in silence.
 */
#ifndef TKV_TESTS_VECTORS_H
#define TKV_TESTS_VECTORS_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/kernels.h"
#include "core/rope.h"
#include "core/triattention.h"

enum { VEC_MAX_DIMS = 6 };

enum vec_type { VEC_F32, VEC_F64, VEC_I32 };

struct vec_tensor {
    const char *name; /* lives as long as the case */
    enum vec_type type;
    size_t n_dims;
    size_t dims[VEC_MAX_DIMS];
    size_t n; /* elements */
    const void *data;
    bool used;
};

struct vec_case {
    const char *name;
    json_t *json;
    unsigned char *bin;
    size_t bin_bytes;
    struct vec_tensor *tensors;
    size_t n_tensors;
    unsigned n_failures;
};

/* Read case `name` of folder dir. False if it failed; deinit it in any case. */
bool vec_init(struct vec_case *c, const char *dir, const char *name);
void vec_deinit(struct vec_case *c);

/* Print "FAIL <case>: ..." and count it. */
void vec_fail(struct vec_case *c, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Fail for each tensor that was never asked for. */
void vec_check_all_used(struct vec_case *c);

/* The tensor, marked as used; NULL if the case has none of that name. */
const struct vec_tensor *vec_find(struct vec_case *c, const char *name);

/* The tensor's elements; it must exist and have this type and shape, or the case fails and
 * the answer is NULL. */
const void *vec_data(struct vec_case *c, const char *name, enum vec_type type, size_t n_dims,
                     const size_t *dims);
#define VEC_DATA(c, name, type, ...)                                          \
    vec_data(c, name, type, sizeof((size_t[]){__VA_ARGS__}) / sizeof(size_t), \
             (const size_t[]){__VA_ARGS__})

/* Scalars of the case. A missing one, or one of another type, fails the case (the answer is
 * then 0, false or ""). Integers must lie in 0 .. max. */
int64_t vec_int(struct vec_case *c, const char *key, int64_t max);
double vec_real(struct vec_case *c, const char *key);
bool vec_bool(struct vec_case *c, const char *key);
const char *vec_text(struct vec_case *c, const char *key);

/* Does the case say anything under this key? */
bool vec_has(const struct vec_case *c, const char *key);

/* The rope of a case: head_dim, rope_layout ("half" if absent), attention_scaling and the
 * inv_freq tensor. */
bool vec_rope(struct vec_case *c, struct tkv_rope *rope);

/* The query heads of a case, ready to score: [layers][kv_heads][group], one head if the case
 * does not say. Statistics are views of its tensors. */
struct vec_model {
    struct tkv_kernels kn;
    struct tkv_rope rope;
    struct tkv_tri_fold fold;
    size_t n_layers;
    size_t n_kv_heads;
    size_t group;
    const float *mean_re;
    const float *mean_im;
    const float *mean_abs;
};

bool vec_model_init(struct vec_case *c, struct vec_model *m);

/* Statistics of query head `head` of kv_heads * group in a layer. */
struct tkv_tri_stats vec_model_stats(const struct vec_model *m, size_t layer, size_t head);

/* scores[n] of keys[n][head_dim] for one query head, as the daemon would compute them. */
void vec_model_score(const struct vec_model *m, const struct tkv_tri_stats *stats,
                     const float *keys, size_t n, int64_t n_seen, float *scores);

/* Vectors to turn forward or back: from[n][head_dim], vector i at positions[i % n_positions], or
 * at i % n_positions itself if positions is NULL. */
struct vec_turn {
    const float *from;
    size_t n;
    const int32_t *positions;
    size_t n_positions;
    bool back;
};

/* Fail if core's RoPE does not make `want` of them, but for what a float32 reference may be off:
 * the phase error position * inv_freq * 2^-23 and some roundings, band by band. */
void vec_check_turned(struct vec_case *c, const struct tkv_rope *rope, const struct vec_turn *turn,
                      const struct vec_tensor *want);

/* Rows [layers][kv_heads][group][n] to [layers][kv_heads][n]: the group's maximum or mean. */
void vec_fold_group(const struct vec_model *m, const float *rows, size_t n, bool mean, float *out);

/* [layers][kv_heads][n] to [kv_heads][n], the mean over layers; or to [n], the maximum of all. */
void vec_fold_layers(const struct vec_model *m, const float *rows, size_t n, float *out);
void vec_fold_all(const struct vec_model *m, const float *rows, size_t n, float *out);

/* Fail, with the worst element, if some |got - want| > tolerance. */
void vec_compare(struct vec_case *c, const char *what, const double *got, const double *want,
                 size_t n, double tolerance);

/* The same for floats against a tensor of floats or doubles with as many elements. */
void vec_compare_tensor(struct vec_case *c, const struct vec_tensor *want, const float *got,
                        size_t n, double tolerance);

/* Fail, with the first difference, if the sets got[n] and want[n] are not the same. */
void vec_compare_sets(struct vec_case *c, const char *what, size_t row, const uint32_t *got,
                      size_t n_got, const int32_t *want, size_t n_want);

/* Heap memory of n elements, zeroed; a test that has none ends at once. */
void *vec_alloc(size_t n, size_t element_bytes);

/* One function for each kind; each checks everything that a case of its kind expects. */
void vec_run_single_head(struct vec_case *c);
void vec_run_fold_constants(struct vec_case *c);
void vec_run_calibration(struct vec_case *c);
void vec_run_selection(struct vec_case *c);
void vec_run_multi_round(struct vec_case *c);
void vec_run_vllm_selection(struct vec_case *c);

#endif /* TKV_TESTS_VECTORS_H */
