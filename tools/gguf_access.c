/* Lookups in a parsed GGUF file: metadata by key and type, tensors by name. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include <xxhash.h>

#include "tools/gguf.h"

bool tkv_text_is(struct tkv_text t, const char *s)
{
    return strlen(s) == t.n_bytes && memcmp(t.data, s, t.n_bytes) == 0;
}

/* strcmp of a terminated string with a text. */
static int compare(const char *s, struct tkv_text t)
{
    const size_t n_bytes = strlen(s);
    const size_t n = n_bytes < t.n_bytes ? n_bytes : t.n_bytes;
    const int order = n ? memcmp(s, t.data, n) : 0;

    return order ? order : (n_bytes > t.n_bytes) - (n_bytes < t.n_bytes);
}

static int compare_entry(const void *key, const void *entry)
{
    return compare(key, ((const struct tkv_gguf_entry *)entry)->key);
}

static int compare_tensor(const void *name, const void *tensor)
{
    return compare(name, ((const struct tkv_gguf_tensor *)tensor)->name);
}

const struct tkv_gguf_entry *tkv_gguf_find(const struct tkv_gguf *g, const char *key)
{
    return bsearch(key, g->entries, g->n_entries, sizeof(*g->entries), compare_entry);
}

const struct tkv_gguf_tensor *tkv_gguf_tensor(const struct tkv_gguf *g, const char *name)
{
    return bsearch(name, g->tensors, g->n_tensors, sizeof(*g->tensors), compare_tensor);
}

static const struct tkv_gguf_entry *need(const struct tkv_gguf *g, const char *key,
                                         struct tkv_reason *why)
{
    const struct tkv_gguf_entry *e = tkv_gguf_find(g, key);

    if (!e)
        tkv_reason_set(why, "key %s is missing", key);
    return e;
}

#define READ(type) \
    type value;    \
    memcpy(&value, e->data, sizeof(value))

/* Any integer as a signed 64-bit number (values above INT64_MAX are out of every range here). */
static bool as_integer(const struct tkv_gguf_entry *e, int64_t *out)
{
    switch (e->type) {
    case TKV_GGUF_U8: *out = e->data[0]; return true;
    case TKV_GGUF_I8: *out = (int8_t)e->data[0]; return true;
    case TKV_GGUF_U16: {
        READ(uint16_t);
        *out = value;
        return true;
    }
    case TKV_GGUF_I16: {
        READ(int16_t);
        *out = value;
        return true;
    }
    case TKV_GGUF_U32: {
        READ(uint32_t);
        *out = value;
        return true;
    }
    case TKV_GGUF_I32: {
        READ(int32_t);
        *out = value;
        return true;
    }
    case TKV_GGUF_U64: {
        READ(uint64_t);
        *out = value > INT64_MAX ? INT64_MAX : (int64_t)value;
        return true;
    }
    case TKV_GGUF_I64: {
        READ(int64_t);
        *out = value;
        return true;
    }
    default: return false;
    }
}

int tkv_gguf_u32(const struct tkv_gguf *g, const char *key, uint32_t *out, struct tkv_reason *why)
{
    const struct tkv_gguf_entry *e = need(g, key, why);
    int64_t value;

    if (!e)
        return -1;
    if (!as_integer(e, &value))
        return tkv_reason_set(why, "key %s: type %u, expected an integer", key, e->type);
    if (value < 0 || value > UINT32_MAX)
        return tkv_reason_set(why, "key %s: %" PRId64 ", expected 0 to %u", key, value, UINT32_MAX);
    *out = (uint32_t)value;
    return 0;
}

int tkv_gguf_f64(const struct tkv_gguf *g, const char *key, double *out, struct tkv_reason *why)
{
    const struct tkv_gguf_entry *e = need(g, key, why);

    if (!e)
        return -1;
    if (e->type == TKV_GGUF_F32) {
        READ(float);
        *out = (double)value;
        return 0;
    }
    if (e->type == TKV_GGUF_F64) {
        READ(double);
        *out = value;
        return 0;
    }
    return tkv_reason_set(why, "key %s: type %u, expected F32 or F64", key, e->type);
}

int tkv_gguf_bool(const struct tkv_gguf *g, const char *key, bool *out, struct tkv_reason *why)
{
    const struct tkv_gguf_entry *e = need(g, key, why);

    if (!e)
        return -1;
    if (e->type != TKV_GGUF_BOOL || e->data[0] > 1)
        return tkv_reason_set(why, "key %s: type %u, expected a bool of 0 or 1", key, e->type);
    *out = e->data[0] == 1;
    return 0;
}

struct tkv_text tkv_gguf_next_text(const uint8_t **cursor)
{
    struct tkv_text t;
    uint64_t n;

    memcpy(&n, *cursor, sizeof(n));
    t = (struct tkv_text){(const char *)*cursor + sizeof(n), (size_t)n};
    *cursor += sizeof(n) + t.n_bytes;
    return t;
}

int tkv_gguf_text(const struct tkv_gguf *g, const char *key, struct tkv_text *out,
                  struct tkv_reason *why)
{
    const struct tkv_gguf_entry *e = need(g, key, why);
    const uint8_t *cursor;

    if (!e)
        return -1;
    if (e->type != TKV_GGUF_STRING)
        return tkv_reason_set(why, "key %s: type %u, expected a string", key, e->type);
    cursor = e->data;
    *out = tkv_gguf_next_text(&cursor);
    return 0;
}

int tkv_gguf_array(const struct tkv_gguf *g, const char *key, enum tkv_gguf_type element_type,
                   const struct tkv_gguf_entry **out, struct tkv_reason *why)
{
    const struct tkv_gguf_entry *e = need(g, key, why);

    if (!e)
        return -1;
    if (e->type != TKV_GGUF_ARRAY || e->element_type != element_type)
        return tkv_reason_set(why, "key %s: type %u of %u, expected an array of type %u", key,
                              e->type, e->element_type, (unsigned)element_type);
    *out = e;
    return 0;
}

uint64_t tkv_gguf_fingerprint(const struct tkv_gguf *g)
{
    return XXH3_64bits(g->data + g->data_offset, g->n_bytes - g->data_offset);
}
