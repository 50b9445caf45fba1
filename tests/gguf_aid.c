/* The GGUF writer of the tests: it trusts its caller and dies when memory is short. */
#include "tests/gguf_aid.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/half.h"

void gguf_aid_bytes(struct gguf_aid_buffer *b, const void *bytes, size_t n)
{
    if (b->n + n >= b->capacity) {
        b->capacity = 2 * (b->n + n) + 64;
        b->bytes = realloc(b->bytes, b->capacity);
        if (!b->bytes)
            abort();
    }
    if (n)
        memcpy(b->bytes + b->n, bytes, n);
    b->n += n;
}

void gguf_aid_text(struct gguf_aid_buffer *b, const char *text, size_t n)
{
    const uint64_t length = n;

    gguf_aid_bytes(b, &length, sizeof(length));
    gguf_aid_bytes(b, text, n);
}

void gguf_aid_key(struct gguf_aid *g, const char *key, uint32_t type)
{
    gguf_aid_text(&g->entries, key, strlen(key));
    gguf_aid_bytes(&g->entries, &type, sizeof(type));
    g->n_entries++;
}

void gguf_aid_u32(struct gguf_aid *g, const char *key, uint32_t value)
{
    gguf_aid_key(g, key, TKV_GGUF_U32);
    gguf_aid_bytes(&g->entries, &value, sizeof(value));
}

void gguf_aid_f32(struct gguf_aid *g, const char *key, float value)
{
    gguf_aid_key(g, key, TKV_GGUF_F32);
    gguf_aid_bytes(&g->entries, &value, sizeof(value));
}

void gguf_aid_bool(struct gguf_aid *g, const char *key, uint8_t value)
{
    gguf_aid_key(g, key, TKV_GGUF_BOOL);
    gguf_aid_bytes(&g->entries, &value, sizeof(value));
}

void gguf_aid_string(struct gguf_aid *g, const char *key, const char *value)
{
    gguf_aid_key(g, key, TKV_GGUF_STRING);
    gguf_aid_text(&g->entries, value, strlen(value));
}

static void start_array(struct gguf_aid *g, const char *key, uint32_t type, uint64_t n)
{
    gguf_aid_key(g, key, TKV_GGUF_ARRAY);
    gguf_aid_bytes(&g->entries, &type, sizeof(type));
    gguf_aid_bytes(&g->entries, &n, sizeof(n));
}

void gguf_aid_strings(struct gguf_aid *g, const char *key, const struct tkv_text *texts, size_t n)
{
    start_array(g, key, TKV_GGUF_STRING, n);
    for (size_t i = 0; i < n; i++)
        gguf_aid_text(&g->entries, texts[i].data, texts[i].n_bytes);
}

void gguf_aid_array(struct gguf_aid *g, const char *key, uint32_t type, const void *items, size_t n,
                    size_t item_bytes)
{
    start_array(g, key, type, n);
    gguf_aid_bytes(&g->entries, items, n * item_bytes);
}

static void put_q8(struct gguf_aid_buffer *b, const float *x)
{
    int8_t q[TKV_Q8_BLOCK];
    float max = 0;
    uint16_t half;

    for (size_t i = 0; i < TKV_Q8_BLOCK; i++)
        max = fmaxf(max, fabsf(x[i]));
    half = tkv_f32_to_f16(max / 127);
    for (size_t i = 0; i < TKV_Q8_BLOCK; i++)
        q[i] = (int8_t)(max > 0 ? roundf(x[i] * 127 / max) : 0);
    gguf_aid_bytes(b, &half, sizeof(half));
    gguf_aid_bytes(b, q, sizeof(q));
}

static void put_values(struct gguf_aid_buffer *b, uint32_t type, const float *x, size_t n)
{
    for (size_t i = 0; i < n; i += type == TKV_GGML_Q8_0 ? TKV_Q8_BLOCK : 1) {
        const uint16_t half = tkv_f32_to_f16(x[i]), bf16 = tkv_f32_to_bf16(x[i]);

        switch (type) {
        case TKV_GGML_Q8_0: put_q8(b, x + i); break;
        case TKV_GGML_F16: gguf_aid_bytes(b, &half, sizeof(half)); break;
        case TKV_GGML_BF16: gguf_aid_bytes(b, &bf16, sizeof(bf16)); break;
        default: gguf_aid_bytes(b, &x[i], sizeof(x[i])); break;
        }
    }
}

static void pad(struct gguf_aid_buffer *b, size_t alignment)
{
    while (b->n % alignment)
        gguf_aid_bytes(b, "", 1);
}

void gguf_aid_tensor(struct gguf_aid *g, const char *name, uint32_t type, uint64_t n_in,
                     uint64_t n_out, const float *values)
{
    const uint32_t n_dims = n_out ? 2 : 1;
    uint64_t offset;

    pad(&g->data, g->alignment ? g->alignment : 32);
    offset = g->data.n;
    gguf_aid_text(&g->tensors, name, strlen(name));
    gguf_aid_bytes(&g->tensors, &n_dims, sizeof(n_dims));
    gguf_aid_bytes(&g->tensors, &n_in, sizeof(n_in));
    if (n_out)
        gguf_aid_bytes(&g->tensors, &n_out, sizeof(n_out));
    gguf_aid_bytes(&g->tensors, &type, sizeof(type));
    gguf_aid_bytes(&g->tensors, &offset, sizeof(offset));
    put_values(&g->data, type, values, n_in * (n_out ? n_out : 1));
    g->n_tensors++;
}

uint8_t *gguf_aid_finish(struct gguf_aid *g, size_t *n_bytes)
{
    const uint32_t version = g->version ? g->version : 3;
    struct gguf_aid_buffer file = {0};
    uint8_t *exact;

    gguf_aid_bytes(&file, "GGUF", 4);
    gguf_aid_bytes(&file, &version, sizeof(version));
    gguf_aid_bytes(&file, &g->n_tensors, sizeof(g->n_tensors));
    gguf_aid_bytes(&file, &g->n_entries, sizeof(g->n_entries));
    gguf_aid_bytes(&file, g->entries.bytes, g->entries.n);
    gguf_aid_bytes(&file, g->tensors.bytes, g->tensors.n);
    if (g->n_tensors)
        pad(&file, g->alignment ? g->alignment : 32);
    gguf_aid_bytes(&file, g->data.bytes, g->data.n);
    exact = malloc(file.n);
    if (!exact)
        abort();
    memcpy(exact, file.bytes, file.n);
    *n_bytes = file.n;
    free(file.bytes);
    free(g->entries.bytes);
    free(g->tensors.bytes);
    free(g->data.bytes);
    *g = (struct gguf_aid){0};
    return exact;
}
