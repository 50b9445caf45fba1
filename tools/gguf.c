/*
 * Parsing of GGUF: header, metadata, tensor table. Each step first proves that what
 * it reads lies inside the file. Lookups by key are in gguf_access.c.
 */
#include "tools/gguf.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/types.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "numbers are read as they lie");

enum { DEFAULT_ALIGNMENT = 32, MAX_ALIGNMENT = 1 << 20, SHOWN = 64 };

/* The least bytes of an entry (key length, type, value) and of a tensor (name length, number of
 * dimensions, one dimension, type, offset): no file can hold more of them than fit. */
enum { MIN_ENTRY_BYTES = 8 + 4 + 1, MIN_TENSOR_BYTES = 8 + 4 + 8 + 4 + 8 };

struct reader {
    const uint8_t *data;
    size_t n_bytes;
    size_t at;
    struct tkv_reason *why;
};

static int take(struct reader *r, void *out, size_t n, const char *what)
{
    if (r->n_bytes - r->at < n)
        return tkv_reason_set(r->why, "byte %zu: %s needs %zu bytes, the file has %zu left", r->at,
                              what, n, r->n_bytes - r->at);
    memcpy(out, r->data + r->at, n);
    r->at += n;
    return 0;
}

static int take_text(struct reader *r, struct tkv_text *out, const char *what)
{
    const size_t at = r->at;
    uint64_t n = 0;

    if (take(r, &n, sizeof(n), what))
        return -1;
    if (n > r->n_bytes - r->at)
        return tkv_reason_set(r->why, "byte %zu: %s of %" PRIu64 " bytes, the file has %zu left",
                              at, what, n, r->n_bytes - r->at);
    *out = (struct tkv_text){(const char *)r->data + r->at, (size_t)n};
    r->at += (size_t)n;
    return 0;
}

/* Bytes of a scalar type; 0 for strings, arrays and unknown types. */
static size_t scalar_bytes(uint32_t type)
{
    static const uint8_t bytes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};

    return type < sizeof(bytes) ? bytes[type] : 0;
}

static int shown(struct tkv_text t)
{
    return (int)(t.n_bytes < SHOWN ? t.n_bytes : SHOWN);
}

static int skip_strings(struct reader *r, uint64_t n)
{
    struct tkv_text text;

    for (uint64_t i = 0; i < n; i++) {
        if (take_text(r, &text, "string in an array"))
            return -1;
    }
    return 0;
}

static int parse_array(struct reader *r, struct tkv_gguf_entry *e)
{
    size_t n_bytes;

    if (take(r, &e->element_type, 4, "array type") || take(r, &e->n_items, 8, "array length"))
        return -1;
    e->data = r->data + r->at;
    if (e->element_type == TKV_GGUF_STRING)
        return skip_strings(r, e->n_items);
    if (!scalar_bytes(e->element_type))
        return tkv_reason_set(r->why, "key %.*s: array of type %u, expected strings or numbers",
                              shown(e->key), e->key.data, e->element_type);
    if (!tkv_mul(e->n_items, scalar_bytes(e->element_type), &n_bytes) ||
        n_bytes > r->n_bytes - r->at)
        return tkv_reason_set(r->why,
                              "key %.*s: array of %" PRIu64 " items, the file has %zu bytes left",
                              shown(e->key), e->key.data, e->n_items, r->n_bytes - r->at);
    r->at += n_bytes;
    return 0;
}

static int parse_entry(struct reader *r, struct tkv_gguf_entry *e)
{
    struct tkv_text text;
    uint64_t value = 0;

    if (take_text(r, &e->key, "key") || take(r, &e->type, 4, "value type"))
        return -1;
    e->n_items = 1;
    e->data = r->data + r->at;
    if (e->type == TKV_GGUF_STRING)
        return take_text(r, &text, "string value");
    if (e->type == TKV_GGUF_ARRAY)
        return parse_array(r, e);
    if (!scalar_bytes(e->type))
        return tkv_reason_set(r->why, "key %.*s: unknown value type %u", shown(e->key), e->key.data,
                              e->type);
    return take(r, &value, scalar_bytes(e->type), "value");
}

/* Bytes of a tensor of n elements whose rows are row long; false for a type or shape we lack. */
static bool tensor_bytes(uint32_t type, uint64_t n, uint64_t row, size_t *out)
{
    switch (type) {
    case TKV_GGML_F32: return tkv_mul(n, 4, out);
    case TKV_GGML_F16:
    case TKV_GGML_BF16: return tkv_mul(n, 2, out);
    case TKV_GGML_Q8_0:
        return row % TKV_Q8_BLOCK == 0 && tkv_mul(n / TKV_Q8_BLOCK, TKV_Q8_BLOCK_BYTES, out);
    default: return false;
    }
}

static int parse_dims(struct reader *r, struct tkv_gguf_tensor *t, size_t *n_elements)
{
    if (take(r, &t->n_dims, 4, "number of dimensions"))
        return -1;
    if (t->n_dims < 1 || t->n_dims > TKV_GGUF_MAX_DIMS)
        return tkv_reason_set(r->why, "tensor %.*s: %u dimensions, expected 1 to %d",
                              shown(t->name), t->name.data, t->n_dims, TKV_GGUF_MAX_DIMS);
    *n_elements = 1;
    for (uint32_t i = 0; i < TKV_GGUF_MAX_DIMS; i++) {
        t->dims[i] = 1;
        if (i < t->n_dims && take(r, &t->dims[i], 8, "dimension"))
            return -1;
        if (!t->dims[i] || !tkv_mul(*n_elements, t->dims[i], n_elements))
            return tkv_reason_set(r->why, "tensor %.*s: dimension %u is %" PRIu64, shown(t->name),
                                  t->name.data, i, t->dims[i]);
    }
    return 0;
}

/* Leaves the offset inside the data section in *offset; place_tensor turns it into a pointer. */
static int parse_tensor(struct reader *r, struct tkv_gguf_tensor *t, uint64_t *offset)
{
    size_t n_elements = 0;

    if (take_text(r, &t->name, "tensor name") || parse_dims(r, t, &n_elements) ||
        take(r, &t->type, 4, "tensor type") || take(r, offset, 8, "tensor offset"))
        return -1;
    if (!tensor_bytes(t->type, n_elements, t->dims[0], &t->n_bytes))
        return tkv_reason_set(
            r->why,
            "tensor %.*s: ggml type %u with rows of %" PRIu64
            ", expected F32 (0), F16 (1), BF16 (30) or Q8_0 (8) with rows of whole blocks of 32",
            shown(t->name), t->name.data, t->type, t->dims[0]);
    return 0;
}

static int place_tensor(const struct tkv_gguf *g, struct tkv_gguf_tensor *t, uint64_t offset,
                        struct tkv_reason *why)
{
    const size_t have = g->n_bytes - g->data_offset;

    if (offset % g->alignment)
        return tkv_reason_set(why, "tensor %.*s: offset %" PRIu64 " is not a multiple of %zu",
                              shown(t->name), t->name.data, offset, g->alignment);
    if (offset > have || t->n_bytes > have - offset)
        return tkv_reason_set(
            why, "tensor %.*s: %zu bytes at offset %" PRIu64 ", the file has %zu bytes of data",
            shown(t->name), t->name.data, t->n_bytes, offset, have);
    t->data = g->data + g->data_offset + offset;
    return 0;
}

static int compare_text(struct tkv_text a, struct tkv_text b)
{
    const size_t n = a.n_bytes < b.n_bytes ? a.n_bytes : b.n_bytes;
    const int order = n ? memcmp(a.data, b.data, n) : 0;

    return order ? order : (a.n_bytes > b.n_bytes) - (a.n_bytes < b.n_bytes);
}

static int compare_entries(const void *a, const void *b)
{
    return compare_text(((const struct tkv_gguf_entry *)a)->key,
                        ((const struct tkv_gguf_entry *)b)->key);
}

static int compare_tensors(const void *a, const void *b)
{
    return compare_text(((const struct tkv_gguf_tensor *)a)->name,
                        ((const struct tkv_gguf_tensor *)b)->name);
}

static int parse_header(struct reader *r, struct tkv_gguf *g)
{
    uint64_t n_tensors = 0, n_entries = 0;
    char magic[4];

    if (take(r, magic, 4, "magic") || take(r, &g->version, 4, "version"))
        return -1;
    if (memcmp(magic, "GGUF", 4) != 0)
        return tkv_reason_set(r->why, "byte 0: no GGUF file: the magic is not \"GGUF\"");
    if (g->version != 2 && g->version != 3)
        return tkv_reason_set(r->why, "byte 4: GGUF version %u, expected 2 or 3 (little-endian)",
                              g->version);
    if (take(r, &n_tensors, 8, "tensor count") || take(r, &n_entries, 8, "metadata count"))
        return -1;
    if (n_tensors > (r->n_bytes - r->at) / MIN_TENSOR_BYTES)
        return tkv_reason_set(r->why, "byte 8: %" PRIu64 " tensors cannot fit into %zu bytes",
                              n_tensors, r->n_bytes);
    if (n_entries > (r->n_bytes - r->at) / MIN_ENTRY_BYTES)
        return tkv_reason_set(r->why,
                              "byte 16: %" PRIu64 " metadata keys cannot fit into %zu bytes",
                              n_entries, r->n_bytes);
    g->n_tensors = (size_t)n_tensors;
    g->n_entries = (size_t)n_entries;
    return 0;
}

static int parse_entries(struct reader *r, struct tkv_gguf *g)
{
    g->entries = calloc(g->n_entries + 1, sizeof(*g->entries));
    if (!g->entries)
        return tkv_reason_set(r->why, "out of memory for %zu metadata keys", g->n_entries);
    for (size_t i = 0; i < g->n_entries; i++) {
        if (parse_entry(r, &g->entries[i]))
            return -1;
    }
    qsort(g->entries, g->n_entries, sizeof(*g->entries), compare_entries);
    for (size_t i = 1; i < g->n_entries; i++) {
        if (compare_entries(&g->entries[i - 1], &g->entries[i]) == 0)
            return tkv_reason_set(r->why, "key %.*s occurs twice", shown(g->entries[i].key),
                                  g->entries[i].key.data);
    }
    return 0;
}

static int read_alignment(struct tkv_gguf *g, struct tkv_reason *why)
{
    uint32_t alignment = DEFAULT_ALIGNMENT;

    if (tkv_gguf_find(g, "general.alignment") &&
        tkv_gguf_u32(g, "general.alignment", &alignment, why))
        return -1;
    if (alignment < 8 || alignment > MAX_ALIGNMENT || (alignment & (alignment - 1)))
        return tkv_reason_set(why, "key general.alignment: %u, expected a power of two, 8 to %d",
                              alignment, MAX_ALIGNMENT);
    g->alignment = alignment;
    return 0;
}

static int place_tensors(struct tkv_gguf *g, const uint64_t *offsets, struct tkv_reason *why)
{
    for (size_t i = 0; i < g->n_tensors; i++) {
        if (place_tensor(g, &g->tensors[i], offsets[i], why))
            return -1;
    }
    qsort(g->tensors, g->n_tensors, sizeof(*g->tensors), compare_tensors);
    for (size_t i = 1; i < g->n_tensors; i++) {
        if (compare_tensors(&g->tensors[i - 1], &g->tensors[i]) == 0)
            return tkv_reason_set(why, "tensor %.*s occurs twice", shown(g->tensors[i].name),
                                  g->tensors[i].name.data);
    }
    return 0;
}

static int parse_tensors(struct reader *r, struct tkv_gguf *g)
{
    uint64_t *offsets = calloc(g->n_tensors + 1, sizeof(*offsets));
    int error = -1;

    g->tensors = calloc(g->n_tensors + 1, sizeof(*g->tensors));
    if (!g->tensors || !offsets) {
        tkv_reason_set(r->why, "out of memory for %zu tensors", g->n_tensors);
        goto done;
    }
    for (size_t i = 0; i < g->n_tensors; i++) {
        if (parse_tensor(r, &g->tensors[i], &offsets[i]))
            goto done;
    }
    g->data_offset = tkv_align(r->at, g->alignment);
    if (g->data_offset > g->n_bytes) {
        if (g->n_tensors) {
            tkv_reason_set(r->why,
                           "byte %zu: tensor data should start at %zu, the file ends at %zu", r->at,
                           g->data_offset, g->n_bytes);
            goto done;
        }
        g->data_offset = g->n_bytes;
    }
    error = place_tensors(g, offsets, r->why);
done:
    free(offsets);
    return error;
}

int tkv_gguf_parse(struct tkv_gguf *g, const uint8_t *data, size_t n_bytes, struct tkv_reason *why)
{
    struct reader r = {.data = data, .n_bytes = n_bytes, .why = why};

    *g = (struct tkv_gguf){.data = data, .n_bytes = n_bytes};
    if (parse_header(&r, g) || parse_entries(&r, g) || read_alignment(g, why) ||
        parse_tensors(&r, g)) {
        tkv_gguf_close(g);
        return -1;
    }
    return 0;
}

static void *map_file(const char *path, size_t *n_bytes, struct tkv_reason *why)
{
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    void *data = MAP_FAILED;
    struct stat st;

    if (fd < 0 || fstat(fd, &st)) {
        tkv_reason_set(why, "%s: %s", path, strerror(errno));
    } else if (!S_ISREG(st.st_mode) || st.st_size == 0) {
        tkv_reason_set(why, "%s: not a regular file with something in it", path);
    } else {
        *n_bytes = (size_t)st.st_size;
        data = mmap(NULL, *n_bytes, PROT_READ, MAP_PRIVATE, fd, 0);
        if (data == MAP_FAILED)
            tkv_reason_set(why, "%s: cannot map %zu bytes: %s", path, *n_bytes, strerror(errno));
    }
    if (fd >= 0)
        close(fd);
    return data;
}

int tkv_gguf_open(struct tkv_gguf *g, const char *path, struct tkv_reason *why)
{
    struct tkv_reason inner = {""};
    size_t n_bytes = 0;
    void *data = map_file(path, &n_bytes, why);

    *g = (struct tkv_gguf){0};
    if (data == MAP_FAILED)
        return -1;
    if (tkv_gguf_parse(g, data, n_bytes, &inner)) {
        munmap(data, n_bytes);
        return tkv_reason_set(why, "%.200s: %.170s", path, inner.text);
    }
    g->mapped = true;
    return 0;
}

void tkv_gguf_close(struct tkv_gguf *g)
{
    if (g->mapped) {
        union {
            const void *read;
            void *write;
        } mapping = {.read = g->data}; /* munmap takes a pointer that is not const */
        munmap(mapping.write, g->n_bytes);
    }
    free(g->entries);
    free(g->tensors);
    *g = (struct tkv_gguf){0};
}
