/*
 * Reader of GGUF files, versions 2 and 3, little-endian, mapped read-only. The file
 * is hostile input: every count, length and offset is checked against its size
 * before it is used, and an error says where and what was expected.
 *
 * All strings and tensors are views into the mapping, valid until close.
 * Tensor dimensions are in the file's order: dims[0] is contiguous.
 */
#ifndef TKV_TOOLS_GGUF_H
#define TKV_TOOLS_GGUF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "tools/reason.h"

enum tkv_gguf_type {
    TKV_GGUF_U8 = 0,
    TKV_GGUF_I8 = 1,
    TKV_GGUF_U16 = 2,
    TKV_GGUF_I16 = 3,
    TKV_GGUF_U32 = 4,
    TKV_GGUF_I32 = 5,
    TKV_GGUF_F32 = 6,
    TKV_GGUF_BOOL = 7,
    TKV_GGUF_STRING = 8,
    TKV_GGUF_ARRAY = 9,
    TKV_GGUF_U64 = 10,
    TKV_GGUF_I64 = 11,
    TKV_GGUF_F64 = 12,
};

/* Q8_0: blocks of 32 weights, a half scale and 32 signed bytes. */
enum tkv_ggml_type { TKV_GGML_F32 = 0, TKV_GGML_F16 = 1, TKV_GGML_Q8_0 = 8, TKV_GGML_BF16 = 30 };

enum { TKV_GGUF_MAX_DIMS = 4, TKV_Q8_BLOCK = 32, TKV_Q8_BLOCK_BYTES = 34 };

/* Not terminated. */
struct tkv_text {
    const char *data;
    size_t n_bytes;
};

struct tkv_gguf_entry {
    struct tkv_text key;
    uint32_t type;         /* enum tkv_gguf_type */
    uint32_t element_type; /* of an array */
    uint64_t n_items;      /* of an array; 1 otherwise */
    const uint8_t *data;   /* the first item */
};

struct tkv_gguf_tensor {
    struct tkv_text name;
    uint32_t type; /* enum tkv_ggml_type */
    uint32_t n_dims;
    uint64_t dims[TKV_GGUF_MAX_DIMS]; /* 1 beyond n_dims */
    const uint8_t *data;
    size_t n_bytes;
};

struct tkv_gguf {
    const uint8_t *data;
    size_t n_bytes;
    bool mapped;
    uint32_t version;
    size_t alignment;
    size_t data_offset; /* where the tensor data start */
    size_t n_entries;
    struct tkv_gguf_entry *entries; /* ascending by key */
    size_t n_tensors;
    struct tkv_gguf_tensor *tensors; /* ascending by name */
};

/* 0, or -1 with a text and *g zeroed. parse works on the caller's bytes, which must outlive g
 * and be 8-byte aligned. */
int tkv_gguf_open(struct tkv_gguf *g, const char *path, struct tkv_reason *why);
int tkv_gguf_parse(struct tkv_gguf *g, const uint8_t *data, size_t n_bytes, struct tkv_reason *why);
void tkv_gguf_close(struct tkv_gguf *g);

/* NULL if there is none. */
const struct tkv_gguf_entry *tkv_gguf_find(const struct tkv_gguf *g, const char *key);
const struct tkv_gguf_tensor *tkv_gguf_tensor(const struct tkv_gguf *g, const char *name);

/*
 * Scalars by key. -1 with a text if the key is missing, of another kind, or out of range;
 * integers of any width convert, as do F32 and F64 to double.
 */
int tkv_gguf_u32(const struct tkv_gguf *g, const char *key, uint32_t *out, struct tkv_reason *why);
int tkv_gguf_f64(const struct tkv_gguf *g, const char *key, double *out, struct tkv_reason *why);
int tkv_gguf_bool(const struct tkv_gguf *g, const char *key, bool *out, struct tkv_reason *why);
int tkv_gguf_text(const struct tkv_gguf *g, const char *key, struct tkv_text *out,
                  struct tkv_reason *why);

/* An array by key, whose items must be of this type. */
int tkv_gguf_array(const struct tkv_gguf *g, const char *key, enum tkv_gguf_type element_type,
                   const struct tkv_gguf_entry **out, struct tkv_reason *why);

/* The string at *cursor (start with entry->data), which moves on; at most n_items times. */
struct tkv_text tkv_gguf_next_text(const uint8_t **cursor);

/* Whether text equals the terminated string. */
bool tkv_text_is(struct tkv_text t, const char *s);

/* XXH3-64 of everything from the first tensor's data to the end of the file. */
uint64_t tkv_gguf_fingerprint(const struct tkv_gguf *g);

#endif /* TKV_TOOLS_GGUF_H */
