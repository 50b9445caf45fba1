/*
 * What trikvctl prints, described once and shown in two ways: aligned text with human
 * units, or JSON with plain numbers.
 */
#ifndef TKV_TOOLS_CTL_TEXT_H
#define TKV_TOOLS_CTL_TEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

enum ctl_kind { CTL_TEXT, CTL_COUNT, CTL_BYTES, CTL_SECONDS, CTL_NUMBER, CTL_ID, CTL_BOOL };

struct ctl_field {
    const char *key;   /* in JSON */
    const char *label; /* for people; NULL: only in JSON */
    enum ctl_kind kind;
    const char *text;
    uint64_t count; /* also bytes, id, bool */
    double number;  /* also seconds */
};

enum { CTL_MAX_FIELDS = 32 };

struct ctl_record {
    struct ctl_field fields[CTL_MAX_FIELDS];
    size_t n_fields;
};

void ctl_add_text(struct ctl_record *r, const char *key, const char *label, const char *text);
void ctl_add_count(struct ctl_record *r, const char *key, const char *label, enum ctl_kind kind,
                   uint64_t count);
void ctl_add_number(struct ctl_record *r, const char *key, const char *label, enum ctl_kind kind,
                    double number);

/* The value for people, in buf[n]. */
void ctl_format(const struct ctl_field *f, char *buf, size_t n);

/* "label   value" lines. */
void ctl_print_record(FILE *out, const struct ctl_record *r);

/* A header line and one line a record; all records have the fields of the first. */
void ctl_print_table(FILE *out, const struct ctl_record *records, size_t n);

/* The record alone on stdout: an object of its own, or lines. */
void ctl_print_one(bool json, const struct ctl_record *r);

/* JSON: a string with its quotes, always valid UTF-8; the members of an object without its
 * braces; an array of objects. */
void ctl_json_string(FILE *out, const char *text);
void ctl_json_members(FILE *out, const struct ctl_record *r);
void ctl_json_array(FILE *out, const struct ctl_record *records, size_t n);

#endif /* TKV_TOOLS_CTL_TEXT_H */
