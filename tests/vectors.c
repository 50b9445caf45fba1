/* Reading and comparing golden vectors; what a case means is in tests/vectors_*.c. */
#include "tests/vectors.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "tensors are read as they lie");

void vec_fail(struct vec_case *c, const char *format, ...)
{
    va_list args;

    c->n_failures++;
    printf("FAIL %s: ", c->name);
    va_start(args, format);
    vprintf(format, args);
    va_end(args);
    putchar('\n');
}

void *vec_alloc(size_t n, size_t element_bytes)
{
    void *p = calloc(n ? n : 1, element_bytes);

    if (!p) {
        fprintf(stderr, "no memory for %zu elements of %zu bytes\n", n, element_bytes);
        abort();
    }
    return p;
}

static size_t type_bytes(enum vec_type type)
{
    return type == VEC_F64 ? 8 : 4;
}

static const char *type_name(enum vec_type type)
{
    static const char *const names[] = {"f32", "f64", "i32"};

    return names[type];
}

static bool parse_type(const char *name, enum vec_type *type)
{
    for (*type = VEC_F32; *type <= VEC_I32; (*type)++) {
        if (name && strcmp(name, type_name(*type)) == 0)
            return true;
    }
    return false;
}

/* A row of the tensor table; false if it is not one that fits the file. */
static bool parse_tensor(struct vec_case *c, json_t *row, struct vec_tensor *t)
{
    const json_int_t offset = json_integer_value(json_object_get(row, "offset"));
    const json_int_t n_bytes = json_integer_value(json_object_get(row, "nbytes"));
    json_t *shape = json_object_get(row, "shape");

    t->name = json_string_value(json_object_get(row, "name"));
    t->n_dims = json_array_size(shape);
    t->n = 1;
    if (!t->name || !parse_type(json_string_value(json_object_get(row, "dtype")), &t->type) ||
        t->n_dims < 1 || t->n_dims > VEC_MAX_DIMS) {
        vec_fail(c, "a row of the tensor table has a wrong name, dtype or shape");
        return false;
    }
    for (size_t i = 0; i < t->n_dims; i++) {
        const json_int_t dim = json_integer_value(json_array_get(shape, i));

        t->dims[i] = dim > 0 ? (size_t)dim : 0;
        if (!tkv_mul(t->n, t->dims[i], &t->n) || t->n > c->bin_bytes)
            t->n = 0;
    }
    if (t->n == 0 || offset < 0 || offset % 16 != 0 || (size_t)offset > c->bin_bytes ||
        t->n > (c->bin_bytes - (size_t)offset) / type_bytes(t->type) ||
        (json_int_t)(t->n * type_bytes(t->type)) != n_bytes) {
        vec_fail(c, "%s: %zu elements, %lld bytes at %lld, in a file of %zu bytes", t->name, t->n,
                 (long long)n_bytes, (long long)offset, c->bin_bytes);
        return false;
    }
    t->data = c->bin + offset;
    return true;
}

static bool read_bin(struct vec_case *c, const char *path)
{
    FILE *file = fopen(path, "rb");
    long size = -1;

    if (file && fseek(file, 0, SEEK_END) == 0)
        size = ftell(file);
    if (size > 0) {
        rewind(file);
        c->bin_bytes = (size_t)size;
        c->bin = vec_alloc(c->bin_bytes, 1);
        if (fread(c->bin, 1, c->bin_bytes, file) != c->bin_bytes)
            size = -1;
    }
    if (file)
        fclose(file);
    if (size <= 0)
        vec_fail(c, "%s: missing, empty or unreadable", path);
    return size > 0;
}

bool vec_init(struct vec_case *c, const char *dir, const char *name)
{
    char path[4096];
    json_error_t error;
    json_t *table;

    *c = (struct vec_case){.name = name};
    snprintf(path, sizeof path, "%s/%s.json", dir, name);
    c->json = json_load_file(path, 0, &error);
    if (!c->json) {
        vec_fail(c, "%s:%d: %s", path, error.line, error.text);
        return false;
    }
    snprintf(path, sizeof path, "%s/%s", dir, vec_text(c, "bin"));
    table = json_object_get(c->json, "tensors");
    if (c->n_failures > 0 || !read_bin(c, path))
        return false;
    if (json_array_size(table) == 0) {
        vec_fail(c, "no tensors");
        return false;
    }
    c->tensors = vec_alloc(json_array_size(table), sizeof *c->tensors);
    for (; c->n_tensors < json_array_size(table); c->n_tensors++) {
        if (!parse_tensor(c, json_array_get(table, c->n_tensors), &c->tensors[c->n_tensors]))
            return false;
    }
    return true;
}

void vec_deinit(struct vec_case *c)
{
    json_decref(c->json);
    free(c->bin);
    free(c->tensors);
    *c = (struct vec_case){0};
}

void vec_check_all_used(struct vec_case *c)
{
    for (size_t i = 0; i < c->n_tensors; i++) {
        if (!c->tensors[i].used)
            vec_fail(c, "%s: a tensor that no check knows", c->tensors[i].name);
    }
}

const struct vec_tensor *vec_find(struct vec_case *c, const char *name)
{
    for (size_t i = 0; i < c->n_tensors; i++) {
        if (strcmp(c->tensors[i].name, name) == 0) {
            c->tensors[i].used = true;
            return &c->tensors[i];
        }
    }
    return NULL;
}

const void *vec_data(struct vec_case *c, const char *name, enum vec_type type, size_t n_dims,
                     const size_t *dims)
{
    const struct vec_tensor *t = vec_find(c, name);

    if (!t) {
        vec_fail(c, "%s: no such tensor", name);
        return NULL;
    }
    if (t->type != type || t->n_dims != n_dims) {
        vec_fail(c, "%s: want %s in %zu dimensions, got %s in %zu", name, type_name(type), n_dims,
                 type_name(t->type), t->n_dims);
        return NULL;
    }
    for (size_t i = 0; i < n_dims; i++) {
        if (t->dims[i] != dims[i]) {
            vec_fail(c, "%s: dimension %zu: want %zu, got %zu", name, i, dims[i], t->dims[i]);
            return NULL;
        }
    }
    return t->data;
}

bool vec_has(const struct vec_case *c, const char *key)
{
    return json_object_get(c->json, key) != NULL;
}

int64_t vec_int(struct vec_case *c, const char *key, int64_t max)
{
    json_t *value = json_object_get(c->json, key);
    const json_int_t n = json_integer_value(value);

    if (json_is_integer(value) && n >= 0 && n <= max)
        return n;
    vec_fail(c, "%s: want an integer from 0 to %lld", key, (long long)max);
    return 0;
}

double vec_real(struct vec_case *c, const char *key)
{
    json_t *value = json_object_get(c->json, key);

    if (!json_is_number(value))
        vec_fail(c, "%s: want a number", key);
    return json_number_value(value);
}

bool vec_bool(struct vec_case *c, const char *key)
{
    json_t *value = json_object_get(c->json, key);

    if (!json_is_boolean(value))
        vec_fail(c, "%s: want true or false", key);
    return json_is_true(value);
}

const char *vec_text(struct vec_case *c, const char *key)
{
    const char *text = json_string_value(json_object_get(c->json, key));

    if (!text)
        vec_fail(c, "%s: want a text", key);
    return text ? text : "";
}

void vec_compare(struct vec_case *c, const char *what, const double *got, const double *want,
                 size_t n, double tolerance)
{
    double worst = 0;
    size_t at = 0;

    for (size_t i = 0; i < n; i++) {
        const double error = fabs(got[i] - want[i]);

        /* Written so that a NaN, on either side, is worse than anything. */
        if (!(error <= worst)) {
            worst = error;
            at = i;
            if (isnan(error))
                break;
        }
    }
    if (!(worst <= tolerance))
        vec_fail(c, "%s: worst error %.3g at %zu (got %.9g, want %.9g), tolerance %.3g", what,
                 worst, at, got[at], want[at], tolerance);
}

void vec_compare_tensor(struct vec_case *c, const struct vec_tensor *want, const float *got,
                        size_t n, double tolerance)
{
    double *wide;

    if (want->n != n || want->type == VEC_I32) {
        vec_fail(c, "%s: want %zu real numbers, got %zu %s", want->name, n, want->n,
                 type_name(want->type));
        return;
    }
    wide = vec_alloc(2 * n, sizeof *wide);
    for (size_t i = 0; i < n; i++) {
        wide[i] = (double)got[i];
        wide[n + i] = want->type == VEC_F32 ? (double)((const float *)want->data)[i]
                                            : ((const double *)want->data)[i];
    }
    vec_compare(c, want->name, wide, wide + n, n, tolerance);
    free(wide);
}

void vec_compare_sets(struct vec_case *c, const char *what, size_t row, const uint32_t *got,
                      size_t n_got, const int32_t *want, size_t n_want)
{
    if (n_got != n_want) {
        vec_fail(c, "%s: row %zu: %zu kept, want %zu", what, row, n_got, n_want);
        return;
    }
    for (size_t i = 0; i < n_want; i++) {
        if ((int64_t)got[i] != want[i]) {
            vec_fail(c, "%s: row %zu: element %zu of %zu: got %u, want %d", what, row, i, n_want,
                     got[i], want[i]);
            return;
        }
    }
}
