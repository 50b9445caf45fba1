/* Scalars to values, keys to names. */
#include "daemon/yaml_value.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_NAME = 64 };

struct unit {
    const char *name;
    uint64_t factor;
};

static bool is_scalar(const struct tkv_yaml *y, const struct tkv_yaml_node *n, const char *what,
                      const char *want)
{
    if (n->kind == TKV_YAML_SCALAR)
        return true;
    tkv_yaml_error(y, n, "%s: want %s, got a %s", what, want,
                   n->kind == TKV_YAML_MAPPING ? "mapping" : "list");
    return false;
}

/* Decimal digits at the start of text; false if there are none or too many. */
static bool digits(const char *text, uint64_t *value, const char **rest)
{
    const char *p = text;

    *value = 0;
    for (; *p >= '0' && *p <= '9'; p++) {
        if (__builtin_mul_overflow(*value, 10u, value) ||
            __builtin_add_overflow(*value, (uint64_t)(*p - '0'), value))
            return false;
    }
    *rest = p;
    return p > text;
}

/* A whole number with one of the units; false if it is none, or over 2^64. */
static bool with_unit(const char *text, const struct unit *units, uint64_t *value)
{
    const char *rest;

    if (!digits(text, value, &rest))
        return false;
    for (; units->name; units++) {
        if (strcmp(rest, units->name) == 0)
            return !__builtin_mul_overflow(*value, units->factor, value);
    }
    return false;
}

bool tkv_yaml_bool(const struct tkv_yaml *y, const struct tkv_yaml_node *n, const char *what,
                   bool *out)
{
    if (!is_scalar(y, n, what, "true or false"))
        return false;
    if (n->quoted || (strcmp(n->text, "true") != 0 && strcmp(n->text, "false") != 0)) {
        tkv_yaml_error(y, n, "%s: want true or false, got \"%.64s\"", what, n->text);
        return false;
    }
    *out = n->text[0] == 't';
    return true;
}

bool tkv_yaml_u32(const struct tkv_yaml *y, const struct tkv_yaml_node *n, const char *what,
                  uint32_t min, uint32_t max, uint32_t *out)
{
    static const struct unit none[] = {{"", 1}, {NULL, 0}};
    uint64_t value;

    if (!is_scalar(y, n, what, "a whole number"))
        return false;
    if (n->quoted || !with_unit(n->text, none, &value) || value < min || value > max) {
        tkv_yaml_error(y, n, "%s: want a whole number from %u to %u, got \"%.64s\"", what, min, max,
                       n->text);
        return false;
    }
    *out = (uint32_t)value;
    return true;
}

bool tkv_yaml_double(const struct tkv_yaml *y, const struct tkv_yaml_node *n, const char *what,
                     double min, double max, double *out)
{
    double value;
    char *end;

    if (!is_scalar(y, n, what, "a number"))
        return false;
    value = strtod(n->text, &end);
    if (n->quoted || end == n->text || *end || strpbrk(n->text, "xXnN \t") || !isfinite(value) ||
        value < min || value > max) {
        tkv_yaml_error(y, n, "%s: want a finite number from %g to %g, got \"%.64s\"", what, min,
                       max, n->text);
        return false;
    }
    *out = value;
    return true;
}

bool tkv_yaml_bytes(const struct tkv_yaml *y, const struct tkv_yaml_node *n, const char *what,
                    uint64_t min, uint64_t max, uint64_t *out)
{
    static const struct unit units[] = {
        {"", 1}, {"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {NULL, 0}};
    uint64_t value;

    if (!is_scalar(y, n, what, "a size"))
        return false;
    if (n->quoted || !with_unit(n->text, units, &value)) {
        tkv_yaml_error(y, n, "%s: want bytes as 4096, 64KiB, 512MiB or 2GiB, got \"%.64s\"", what,
                       n->text);
        return false;
    }
    if (value < min || value > max) {
        tkv_yaml_error(y, n, "%s: want %llu to %llu bytes, got %llu", what, (unsigned long long)min,
                       (unsigned long long)max, (unsigned long long)value);
        return false;
    }
    *out = value;
    return true;
}

bool tkv_yaml_duration(const struct tkv_yaml *y, const struct tkv_yaml_node *n, const char *what,
                       uint64_t max_ms, uint64_t *out_ms)
{
    static const struct unit units[] = {{"ms", 1}, {"s", 1000}, {"min", 60000}, {NULL, 0}};
    uint64_t value = 0;

    if (!is_scalar(y, n, what, "a time"))
        return false;
    if (n->quoted || (strcmp(n->text, "0") != 0 && !with_unit(n->text, units, &value))) {
        tkv_yaml_error(y, n, "%s: want a time as 500ms, 30s, 5min or 0, got \"%.64s\"", what,
                       n->text);
        return false;
    }
    if (value > max_ms) {
        tkv_yaml_error(y, n, "%s: want at most %llums, got %llums", what,
                       (unsigned long long)max_ms, (unsigned long long)value);
        return false;
    }
    *out_ms = value;
    return true;
}

/* "a, b, c" in buf. */
static const char *join(const char *const *names, char *buf, size_t n)
{
    size_t at = 0;

    buf[0] = 0;
    for (; *names && at < n; names++)
        at += (size_t)snprintf(buf + at, n - at, "%s%s", at ? ", " : "", *names);
    return buf;
}

bool tkv_yaml_enum(const struct tkv_yaml *y, const struct tkv_yaml_node *n, const char *what,
                   const char *const *names, uint32_t *out)
{
    char list[512];

    if (!is_scalar(y, n, what, "a name"))
        return false;
    for (uint32_t i = 0; names[i]; i++) {
        if (strcmp(names[i], n->text) == 0) {
            *out = i;
            return true;
        }
    }
    tkv_yaml_error(y, n, "%s: want one of %s, got \"%.64s\"", what, join(names, list, sizeof(list)),
                   n->text);
    return false;
}

bool tkv_yaml_text(const struct tkv_yaml *y, const struct tkv_yaml_node *n, const char *what,
                   char *out, size_t out_bytes)
{
    if (!is_scalar(y, n, what, "text"))
        return false;
    if (n->text_bytes >= out_bytes) {
        tkv_yaml_error(y, n, "%s: want at most %zu bytes, got %zu", what, out_bytes - 1,
                       n->text_bytes);
        return false;
    }
    for (size_t i = 0; i < n->text_bytes; i++) {
        const unsigned char c = (unsigned char)n->text[i];

        if (c < 0x20 || c == 0x7f) {
            tkv_yaml_error(y, n, "%s: holds the control character %#x", what, c);
            return false;
        }
    }
    memcpy(out, n->text, n->text_bytes + 1);
    return true;
}

bool tkv_yaml_mode(const struct tkv_yaml *y, const struct tkv_yaml_node *n, const char *what,
                   uint32_t *out)
{
    uint32_t mode = 0;
    size_t i = 0;

    if (!is_scalar(y, n, what, "a file mode"))
        return false;
    for (; i < n->text_bytes && n->text[i] >= '0' && n->text[i] <= '7' && i < 5; i++)
        mode = mode * 8 + (uint32_t)(n->text[i] - '0');
    if (i < 3 || n->text[i] || mode > 0777) {
        tkv_yaml_error(y, n, "%s: want an octal file mode from 000 to 0777, got \"%.64s\"", what,
                       n->text);
        return false;
    }
    *out = mode;
    return true;
}

/* Levenshtein distance; both shorter than MAX_NAME. */
static unsigned distance(const char *a, const char *b)
{
    unsigned row[MAX_NAME + 1];
    const size_t n = strlen(b);

    for (size_t j = 0; j <= n; j++)
        row[j] = (unsigned)j;
    for (unsigned i = 1; *a; a++, i++) {
        unsigned diagonal = row[0];

        row[0] = i;
        for (size_t j = 1; j <= n; j++) {
            const unsigned replace = diagonal + (*a != b[j - 1]);
            const unsigned skip = (row[j] < row[j - 1] ? row[j] : row[j - 1]) + 1;

            diagonal = row[j];
            row[j] = replace < skip ? replace : skip;
        }
    }
    return row[n];
}

const char *tkv_yaml_nearest(const char *text, const char *const *names)
{
    const char *best = NULL;
    unsigned best_distance = ((unsigned)strlen(text) + 1) / 3;

    if (strlen(text) >= MAX_NAME)
        return NULL;
    for (; *names; names++) {
        const unsigned d = strlen(*names) < MAX_NAME ? distance(text, *names) : MAX_NAME;

        if (d <= best_distance && (!best || d < best_distance)) {
            best = *names;
            best_distance = d;
        }
    }
    return best;
}

bool tkv_yaml_check_keys(const struct tkv_yaml *y, const struct tkv_yaml_node *map,
                         const char *what, const char *const *names)
{
    bool good = true;

    if (map->kind != TKV_YAML_MAPPING) {
        tkv_yaml_error(y, map, "%s: want a mapping of names to values", what);
        return false;
    }
    for (const struct tkv_yaml_node *n = map->first; n; n = n->next) {
        const char *near;
        bool known = false;

        for (size_t i = 0; names[i] && !known; i++)
            known = strcmp(names[i], n->key->text) == 0;
        if (known)
            continue;
        good = false;
        near = tkv_yaml_nearest(n->key->text, names);
        if (near)
            tkv_yaml_error(y, n->key, "%s: unknown key \"%.64s\", did you mean \"%s\"?", what,
                           n->key->text, near);
        else
            tkv_yaml_error(y, n->key, "%s: unknown key \"%.64s\"", what, n->key->text);
    }
    return good;
}
