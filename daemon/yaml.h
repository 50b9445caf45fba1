/*
 * A YAML file as a tree, over libyaml's events, which keeps where each thing stands so that
 * every error can say file:line:column. Narrower than YAML: one document, no
 * anchors, aliases or tags, scalar keys, each once in its mapping, at most 32 levels.
 */
#ifndef TKV_DAEMON_YAML_H
#define TKV_DAEMON_YAML_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "daemon/diag.h"

enum { TKV_YAML_MAX_DEPTH = 32, TKV_MAX_CONFIG_FILE_BYTES = 1 << 20 };

enum tkv_yaml_kind { TKV_YAML_SCALAR = 0, TKV_YAML_SEQUENCE, TKV_YAML_MAPPING };

struct tkv_yaml_node {
    enum tkv_yaml_kind kind;
    uint32_t line, column; /* from 1 */
    char *text;            /* scalar: its value, without NUL inside */
    size_t text_bytes;
    bool quoted;                 /* scalar: then it is text, not a number */
    struct tkv_yaml_node *key;   /* child of a mapping */
    struct tkv_yaml_node *first; /* children, in the order of the file */
    struct tkv_yaml_node *last;
    struct tkv_yaml_node *next; /* sibling */
    size_t n;                   /* children */
};

struct tkv_yaml {
    const char *file; /* a view: for messages */
    struct tkv_diag *diag;
    struct tkv_yaml_node *root; /* NULL: an empty document */
};

/* Parse text[n]. False if there was an error (all are in diag). The tree is valid, as far as
 * it could be read, until deinit, also after an error. */
bool tkv_yaml_parse(struct tkv_yaml *y, const char *file, const char *text, size_t n,
                    struct tkv_diag *diag);
void tkv_yaml_deinit(struct tkv_yaml *y);

/* A whole file of at most max_bytes; the caller frees *text. */
bool tkv_yaml_read_file(const char *file, size_t max_bytes, char **text, size_t *n,
                        struct tkv_diag *diag);

/* The value of a key of a mapping (map may be NULL), or NULL. */
const struct tkv_yaml_node *tkv_yaml_find(const struct tkv_yaml_node *map, const char *key);

/* An error at a node; node NULL: of the whole file. */
void tkv_yaml_error(const struct tkv_yaml *y, const struct tkv_yaml_node *node, const char *format,
                    ...) __attribute__((format(printf, 3, 4)));

/* Every key of map must be one of names (NULL-ended); errors suggest the nearest name. False if
 * map is no mapping or has an unknown key. `what` names the mapping. */
bool tkv_yaml_check_keys(const struct tkv_yaml *y, const struct tkv_yaml_node *map,
                         const char *what, const char *const *names);

/* The name in names (NULL-ended) that is nearest to text, or NULL if none is near. */
const char *tkv_yaml_nearest(const char *text, const char *const *names);

#endif /* TKV_DAEMON_YAML_H */
