/* Builds small GGUF files in memory, right ones and wrong ones, for the tests of their readers. */
#ifndef TKV_TESTS_GGUF_AID_H
#define TKV_TESTS_GGUF_AID_H

#include <stddef.h>
#include <stdint.h>

#include "tools/gguf.h"

struct gguf_aid_buffer {
    uint8_t *bytes;
    size_t n;
    size_t capacity;
};

/* Zero it, set what differs from the defaults, put keys and tensors, finish. */
struct gguf_aid {
    uint32_t version;   /* 0: 3 */
    uint32_t alignment; /* 0: 32; put the key yourself */
    uint64_t n_entries;
    uint64_t n_tensors;
    struct gguf_aid_buffer entries, tensors, data;
};

void gguf_aid_bytes(struct gguf_aid_buffer *b, const void *bytes, size_t n);
void gguf_aid_text(struct gguf_aid_buffer *b, const char *text, size_t n);

/* A key and the type of its value; the value's bytes are the caller's to put. */
void gguf_aid_key(struct gguf_aid *g, const char *key, uint32_t type);

void gguf_aid_u32(struct gguf_aid *g, const char *key, uint32_t value);
void gguf_aid_f32(struct gguf_aid *g, const char *key, float value);
void gguf_aid_bool(struct gguf_aid *g, const char *key, uint8_t value);
void gguf_aid_string(struct gguf_aid *g, const char *key, const char *value);
/* texts may hold zero bytes: lengths beside them */
void gguf_aid_strings(struct gguf_aid *g, const char *key, const struct tkv_text *texts, size_t n);
void gguf_aid_array(struct gguf_aid *g, const char *key, uint32_t type, const void *items, size_t n,
                    size_t item_bytes);

/* A tensor of one (n_out 0) or two dimensions, its floats converted to the type. */
void gguf_aid_tensor(struct gguf_aid *g, const char *name, uint32_t type, uint64_t n_in,
                     uint64_t n_out, const float *values);

/* The file, malloc'd at its exact size so that a sanitizer sees a read beyond it; g is emptied. */
uint8_t *gguf_aid_finish(struct gguf_aid *g, size_t *n_bytes);

#endif /* TKV_TESTS_GGUF_AID_H */
