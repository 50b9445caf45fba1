/*
 * Reads the pickles of torch.save as data. Nothing is ever imported, called or built: the
 * operations and the three global names that such a file needs are known here, and any
 * other ends the reading. The pickle is hostile input.
 */
#ifndef TKV_TOOLS_PICKLE_H
#define TKV_TOOLS_PICKLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "tools/reason.h"

enum tkv_pickle_kind {
    TKV_PICKLE_NONE,
    TKV_PICKLE_BOOL,
    TKV_PICKLE_INT,
    TKV_PICKLE_REAL,
    TKV_PICKLE_TEXT,
    TKV_PICKLE_TUPLE,
    TKV_PICKLE_LIST,
    TKV_PICKLE_DICT,
    TKV_PICKLE_GLOBAL,
    TKV_PICKLE_STORAGE, /* float32 numbers in the member data/KEY */
    TKV_PICKLE_TENSOR,  /* one dimension, contiguous */
    TKV_PICKLE_MARK,
};

/* Values are named by their number; 0 is none. Containers may hold themselves: never walk down one
 * without a bound. */
struct tkv_pickle_value {
    enum tkv_pickle_kind kind;
    uint32_t first;    /* container: its first cell; tensor: its storage; global: which */
    uint32_t last;     /* container: its last cell */
    uint32_t n;        /* container: cells, two a pair for a dict */
    int64_t whole;     /* bool, int; storage: its numbers; tensor: where in the storage */
    double real;       /* real */
    const char *text;  /* text; storage: its key; not terminated */
    size_t text_bytes; /* tensor: its numbers */
};

struct tkv_pickle_cell {
    uint32_t value;
    uint32_t next; /* 0: the last one */
};

struct tkv_pickle {
    struct tkv_pickle_value *values;
    struct tkv_pickle_cell *cells;
    uint32_t root;
};

/* Views into data[n], which must outlive p. 0, or -1 with a text and *p zeroed. */
int tkv_pickle_parse(struct tkv_pickle *p, const uint8_t *data, size_t n, struct tkv_reason *why);
void tkv_pickle_deinit(struct tkv_pickle *p);

/* The value of a text key of a dict; NULL if it is no dict (NULL is allowed) or has none. Of
 * several the last, as Python has it. */
const struct tkv_pickle_value *tkv_pickle_get(const struct tkv_pickle *p,
                                              const struct tkv_pickle_value *dict, const char *key);

bool tkv_pickle_text_is(const struct tkv_pickle_value *v, const char *text);

#endif /* TKV_TOOLS_PICKLE_H */
