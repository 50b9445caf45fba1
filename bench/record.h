/* What a measurement found: named numbers and words, printed as text or JSON, or put in a table. */
#ifndef TKV_BENCH_RECORD_H
#define TKV_BENCH_RECORD_H

#include <stdbool.h>
#include <stdio.h>

#include "bench/samples.h"

enum { TKV_MAX_FIELDS = 64 };

struct tkv_field {
    const char *key;   /* of JSON, a static text */
    const char *label; /* for people, a static text */
    bool is_text;
    double number;
    char text[96];
};

/* Begins zeroed. */
struct tkv_record {
    size_t n;
    struct tkv_field fields[TKV_MAX_FIELDS];
};

void tkv_record_number(struct tkv_record *r, const char *key, const char *label, double number);
void tkv_record_text(struct tkv_record *r, const char *key, const char *label, const char *text);

/* The median under `key`, then p10, p90, spread = (p90 - p10) / median and repetitions. */
void tkv_record_spread(struct tkv_record *r, const char *key, const char *label,
                       struct tkv_samples *s);

/* NULL if there is none. */
const struct tkv_field *tkv_record_find(const struct tkv_record *r, const char *key);

/* Three digits or more, as people read them. */
void tkv_field_format(const struct tkv_field *f, char *text, size_t n);

void tkv_record_print_text(const struct tkv_record *r, FILE *out);

/* One object; in {"results": [...]} unless flat. */
void tkv_record_print_json(const struct tkv_record *r, bool flat, FILE *out);

#endif /* TKV_BENCH_RECORD_H */
