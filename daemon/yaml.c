/* Events to tree. */
#include "daemon/yaml.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <yaml.h>

enum { MAX_KEYS = 4096 }; /* looking for a key twice is quadratic */

struct build {
    struct tkv_yaml *y;
    struct tkv_yaml_node *open[TKV_YAML_MAX_DEPTH]; /* the collections we are in */
    size_t depth;
    struct tkv_yaml_node *key; /* of the innermost mapping, waiting for its value */
    unsigned n_documents;
    bool failed;
};

static void free_node(struct tkv_yaml_node *n)
{
    if (!n)
        return;
    while (n->first) {
        struct tkv_yaml_node *child = n->first;

        n->first = child->next;
        free_node(child); /* at most TKV_YAML_MAX_DEPTH deep */
    }
    if (n->key)
        free(n->key->text);
    free(n->key);
    free(n->text);
    free(n);
}

static void fail_at(struct build *b, yaml_mark_t mark, const char *text)
{
    b->failed = true;
    tkv_diag_add(b->y->diag, b->y->file, (uint32_t)mark.line + 1, (uint32_t)mark.column + 1, "%s",
                 text);
}

static struct tkv_yaml_node *new_node(struct build *b, enum tkv_yaml_kind kind, yaml_mark_t mark)
{
    struct tkv_yaml_node *n = calloc(1, sizeof(*n));

    if (!n) {
        fail_at(b, mark, "out of memory");
        return NULL;
    }
    n->kind = kind;
    n->line = (uint32_t)mark.line + 1;
    n->column = (uint32_t)mark.column + 1;
    return n;
}

static struct tkv_yaml_node *innermost(const struct build *b)
{
    return b->depth ? b->open[b->depth - 1] : NULL;
}

static bool take_key(struct build *b, struct tkv_yaml_node *map, struct tkv_yaml_node *key)
{
    const struct tkv_yaml_node *before;

    b->key = key;
    if (map->n >= MAX_KEYS) {
        b->failed = true;
        tkv_yaml_error(b->y, key, "a mapping of more than %d keys", MAX_KEYS);
        return false;
    }
    before = tkv_yaml_find(map, key->text);
    if (before) {
        b->failed = true;
        tkv_yaml_error(b->y, key, "key \"%.64s\" is already there, in line %u", key->text,
                       before->key->line);
    }
    return true;
}

/* Put a node where it belongs: the root, a key, a value, an item. */
static bool place_node(struct build *b, struct tkv_yaml_node *n)
{
    struct tkv_yaml_node *in = innermost(b);

    if (!in) {
        b->y->root = n;
        return true;
    }
    if (in->kind == TKV_YAML_MAPPING) {
        if (!b->key && n->kind != TKV_YAML_SCALAR) {
            b->failed = true;
            tkv_yaml_error(b->y, n, "a key must be a plain word");
            free_node(n);
            return false;
        }
        if (!b->key)
            return take_key(b, in, n);
        n->key = b->key;
        b->key = NULL;
    }
    if (in->last)
        in->last->next = n;
    else
        in->first = n;
    in->last = n;
    in->n++;
    return true;
}

static bool take_scalar(struct build *b, const yaml_event_t *e)
{
    struct tkv_yaml_node *n = new_node(b, TKV_YAML_SCALAR, e->start_mark);
    const char *const value = (const char *)e->data.scalar.value;

    if (!n)
        return false;
    n->text_bytes = e->data.scalar.length;
    n->quoted = e->data.scalar.style != YAML_PLAIN_SCALAR_STYLE;
    n->text = malloc(n->text_bytes + 1);
    if (!n->text) {
        free_node(n);
        fail_at(b, e->start_mark, "out of memory");
        return false;
    }
    memcpy(n->text, value, n->text_bytes);
    n->text[n->text_bytes] = 0;
    if (memchr(n->text, 0, n->text_bytes)) /* "\0" in double quotes */
        fail_at(b, e->start_mark, "a NUL character is not allowed in a value");
    return place_node(b, n);
}

static bool take_start(struct build *b, enum tkv_yaml_kind kind, yaml_mark_t mark)
{
    struct tkv_yaml_node *n;

    if (b->depth == TKV_YAML_MAX_DEPTH) {
        fail_at(b, mark, "nested deeper than 32 levels");
        return false;
    }
    n = new_node(b, kind, mark);
    if (!n || !place_node(b, n))
        return false;
    b->open[b->depth++] = n;
    return true;
}

static bool take_document(struct build *b, const yaml_event_t *e)
{
    if (e->data.document_start.version_directive ||
        e->data.document_start.tag_directives.start != e->data.document_start.tag_directives.end)
        fail_at(b, e->start_mark, "directives (%YAML, %TAG) are not allowed");
    if (++b->n_documents < 2)
        return true;
    fail_at(b, e->start_mark, "a second document: want one only");
    return false;
}

static const void *anchor_of(const yaml_event_t *e)
{
    switch (e->type) {
    case YAML_SCALAR_EVENT: return e->data.scalar.anchor;
    case YAML_SEQUENCE_START_EVENT: return e->data.sequence_start.anchor;
    case YAML_MAPPING_START_EVENT: return e->data.mapping_start.anchor;
    default: return NULL;
    }
}

static const void *tag_of(const yaml_event_t *e)
{
    switch (e->type) {
    case YAML_SCALAR_EVENT: return e->data.scalar.tag;
    case YAML_SEQUENCE_START_EVENT: return e->data.sequence_start.tag;
    case YAML_MAPPING_START_EVENT: return e->data.mapping_start.tag;
    default: return NULL;
    }
}

/* False: there is no use in going on. */
static bool take_event(struct build *b, const yaml_event_t *e)
{
    if (anchor_of(e))
        fail_at(b, e->start_mark, "anchors are not allowed");
    if (tag_of(e))
        fail_at(b, e->start_mark, "tags are not allowed");
    switch (e->type) {
    case YAML_DOCUMENT_START_EVENT: return take_document(b, e);
    case YAML_ALIAS_EVENT: fail_at(b, e->start_mark, "aliases are not allowed"); return false;
    case YAML_SCALAR_EVENT: return take_scalar(b, e);
    case YAML_SEQUENCE_START_EVENT: return take_start(b, TKV_YAML_SEQUENCE, e->start_mark);
    case YAML_MAPPING_START_EVENT: return take_start(b, TKV_YAML_MAPPING, e->start_mark);
    case YAML_SEQUENCE_END_EVENT:
    case YAML_MAPPING_END_EVENT: b->depth--; return true;
    default: return true;
    }
}

/* libyaml gives the place of a bad byte as an offset only. */
static yaml_mark_t mark_of_offset(const char *text, size_t n, size_t offset)
{
    yaml_mark_t m = {0};

    for (size_t i = 0; i < offset && i < n; i++) {
        m.column = text[i] == '\n' ? 0 : m.column + 1;
        m.line += text[i] == '\n';
    }
    return m;
}

static void report_parser(struct build *b, const yaml_parser_t *p, const char *text, size_t n)
{
    char message[256];
    yaml_mark_t mark = p->problem_mark;

    if (p->error == YAML_READER_ERROR) {
        mark = mark_of_offset(text, n, p->problem_offset);
        snprintf(message, sizeof(message), "%s (byte value %#x)", p->problem,
                 (unsigned)p->problem_value);
    } else {
        snprintf(message, sizeof(message), "%s%s%s", p->context ? p->context : "",
                 p->context ? ": " : "", p->problem ? p->problem : "out of memory");
    }
    fail_at(b, mark, message);
}

static void run_parser(struct build *b, yaml_parser_t *p, const char *text, size_t n)
{
    bool more = true;

    while (more) {
        yaml_event_t e;

        if (!yaml_parser_parse(p, &e)) {
            report_parser(b, p, text, n);
            return;
        }
        more = e.type != YAML_STREAM_END_EVENT && take_event(b, &e);
        yaml_event_delete(&e);
    }
}

bool tkv_yaml_parse(struct tkv_yaml *y, const char *file, const char *text, size_t n,
                    struct tkv_diag *diag)
{
    struct build b = {.y = y};
    yaml_parser_t parser;

    *y = (struct tkv_yaml){.file = file, .diag = diag};
    if (!yaml_parser_initialize(&parser)) {
        tkv_diag_add(diag, file, 0, 0, "out of memory");
        return false;
    }
    yaml_parser_set_encoding(&parser, YAML_UTF8_ENCODING);
    yaml_parser_set_input_string(&parser, (const unsigned char *)text, n);
    run_parser(&b, &parser, text, n);
    yaml_parser_delete(&parser);
    if (b.key)
        free(b.key->text);
    free(b.key);
    return !b.failed;
}

void tkv_yaml_deinit(struct tkv_yaml *y)
{
    free_node(y->root);
    y->root = NULL;
}

bool tkv_yaml_read_file(const char *file, size_t max_bytes, char **text, size_t *n,
                        struct tkv_diag *diag)
{
    FILE *f = fopen(file, "re");
    char *buf = f ? malloc(max_bytes + 1) : NULL;
    bool good = false;

    *text = NULL;
    if (!buf) {
        tkv_diag_add(diag, file, 0, 0, "cannot read: %s", strerror(errno));
    } else {
        *n = fread(buf, 1, max_bytes + 1, f);
        if (ferror(f))
            tkv_diag_add(diag, file, 0, 0, "cannot read: %s", strerror(errno));
        else if (*n > max_bytes)
            tkv_diag_add(diag, file, 0, 0, "larger than %zu bytes", max_bytes);
        else
            good = true;
    }
    if (f)
        fclose(f);
    if (good)
        *text = buf;
    else
        free(buf);
    return good;
}

const struct tkv_yaml_node *tkv_yaml_find(const struct tkv_yaml_node *map, const char *key)
{
    if (!map || map->kind != TKV_YAML_MAPPING)
        return NULL;
    for (const struct tkv_yaml_node *n = map->first; n; n = n->next) {
        if (strcmp(n->key->text, key) == 0)
            return n;
    }
    return NULL;
}

void tkv_yaml_error(const struct tkv_yaml *y, const struct tkv_yaml_node *node, const char *format,
                    ...)
{
    char text[1024];
    va_list args;

    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    tkv_diag_add(y->diag, y->file, node ? node->line : 1, node ? node->column : 1, "%s", text);
}
