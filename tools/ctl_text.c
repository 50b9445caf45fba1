/* Records as aligned text. Labels and names come from other users: no control character
 * of theirs reaches a terminal. */
#include "tools/ctl_text.h"

#include <assert.h>
#include <inttypes.h>
#include <string.h>

enum { CELL_BYTES = 128 };

static struct ctl_field *add(struct ctl_record *r, const char *key, const char *label,
                             enum ctl_kind kind)
{
    struct ctl_field *f = &r->fields[r->n_fields];

    assert(r->n_fields < CTL_MAX_FIELDS);
    r->n_fields++;
    *f = (struct ctl_field){.key = key, .label = label, .kind = kind, .text = ""};
    return f;
}

void ctl_add_text(struct ctl_record *r, const char *key, const char *label, const char *text)
{
    add(r, key, label, CTL_TEXT)->text = text;
}

void ctl_add_count(struct ctl_record *r, const char *key, const char *label, enum ctl_kind kind,
                   uint64_t count)
{
    add(r, key, label, kind)->count = count;
}

void ctl_add_number(struct ctl_record *r, const char *key, const char *label, enum ctl_kind kind,
                    double number)
{
    add(r, key, label, kind)->number = number;
}

static void format_text(const char *text, char *buf, size_t n)
{
    size_t i = 0;

    for (; i + 1 < n && text[i]; i++)
        buf[i] = (unsigned char)text[i] < 0x20 || text[i] == 0x7f ? '?' : text[i];
    buf[i] = '\0';
    if (i == 0)
        snprintf(buf, n, "-");
}

static void format_bytes(uint64_t bytes, char *buf, size_t n)
{
    static const char *const units[] = {"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    double x = (double)bytes / 1024;
    size_t unit = 0;

    if (bytes < 1024) {
        snprintf(buf, n, "%" PRIu64 " B", bytes);
        return;
    }
    for (; x >= 1023.95 && unit < 5; unit++)
        x /= 1024;
    snprintf(buf, n, "%.1f %s", x, units[unit]);
}

static void format_seconds(double s, char *buf, size_t n)
{
    const uint64_t whole = s > 0 && s < 1e15 ? (uint64_t)s : 0;

    if (s < 0.1)
        snprintf(buf, n, "%.3f ms", s * 1e3);
    else if (s < 120)
        snprintf(buf, n, "%.1f s", s);
    else if (s < 7200)
        snprintf(buf, n, "%" PRIu64 " min %" PRIu64 " s", whole / 60, whole % 60);
    else if (s < 2 * 86400)
        snprintf(buf, n, "%" PRIu64 " h %" PRIu64 " min", whole / 3600, whole / 60 % 60);
    else
        snprintf(buf, n, "%" PRIu64 " d %" PRIu64 " h", whole / 86400, whole / 3600 % 24);
}

void ctl_format(const struct ctl_field *f, char *buf, size_t n)
{
    switch (f->kind) {
    case CTL_TEXT: format_text(f->text, buf, n); break;
    case CTL_COUNT: snprintf(buf, n, "%" PRIu64, f->count); break;
    case CTL_BYTES: format_bytes(f->count, buf, n); break;
    case CTL_SECONDS: format_seconds(f->number, buf, n); break;
    case CTL_NUMBER: snprintf(buf, n, "%.2f", f->number); break;
    case CTL_ID: snprintf(buf, n, "%016" PRIx64, f->count); break;
    case CTL_BOOL: snprintf(buf, n, "%s", f->count ? "yes" : "no"); break;
    }
}

/* Columns on a terminal: one per character, not per byte of UTF-8. */
static size_t width_of(const char *text)
{
    size_t n = 0;

    for (; *text; text++)
        n += ((unsigned char)*text & 0xc0) != 0x80;
    return n;
}

static void print_padding(FILE *out, size_t n)
{
    for (; n > 0; n--)
        fputc(' ', out);
}

void ctl_print_record(FILE *out, const struct ctl_record *r)
{
    char cell[CELL_BYTES];
    size_t width = 0;

    for (size_t i = 0; i < r->n_fields; i++) {
        if (r->fields[i].label && width_of(r->fields[i].label) > width)
            width = width_of(r->fields[i].label);
    }
    for (size_t i = 0; i < r->n_fields; i++) {
        const struct ctl_field *f = &r->fields[i];

        if (!f->label)
            continue;
        ctl_format(f, cell, sizeof(cell));
        fputs(f->label, out);
        print_padding(out, width - width_of(f->label) + 2);
        fprintf(out, "%s\n", cell);
    }
}

static size_t column_width(const struct ctl_record *records, size_t n, size_t column)
{
    size_t width = width_of(records[0].fields[column].label);
    char cell[CELL_BYTES];

    for (size_t i = 0; i < n; i++) {
        ctl_format(&records[i].fields[column], cell, sizeof(cell));
        if (width_of(cell) > width)
            width = width_of(cell);
    }
    return width;
}

/* Text is flush left, numbers flush right; no blanks at the end of a line. */
static void print_cell(FILE *out, const char *cell, size_t width, bool is_text, bool is_last)
{
    const size_t padding = width - width_of(cell);

    if (!is_text)
        print_padding(out, padding);
    fputs(cell, out);
    if (is_last)
        fputc('\n', out);
    else
        print_padding(out, 2 + (is_text ? padding : 0));
}

static size_t last_shown(const struct ctl_record *r)
{
    size_t last = 0;

    for (size_t i = 0; i < r->n_fields; i++) {
        if (r->fields[i].label)
            last = i;
    }
    return last;
}

void ctl_print_table(FILE *out, const struct ctl_record *records, size_t n)
{
    size_t widths[CTL_MAX_FIELDS] = {0};
    const size_t last = n > 0 ? last_shown(&records[0]) : 0;
    char cell[CELL_BYTES];

    for (size_t c = 0; n > 0 && c < records[0].n_fields; c++) {
        if (records[0].fields[c].label)
            widths[c] = column_width(records, n, c);
    }
    for (size_t row = 0; n > 0 && row <= n; row++) {
        for (size_t c = 0; c < records[0].n_fields; c++) {
            const struct ctl_field *f = &records[row ? row - 1 : 0].fields[c];

            if (!f->label)
                continue;
            if (row > 0)
                ctl_format(f, cell, sizeof(cell));
            print_cell(out, row > 0 ? cell : f->label, widths[c],
                       f->kind == CTL_TEXT || f->kind == CTL_ID, c == last);
        }
    }
}

void ctl_print_one(bool json, const struct ctl_record *r)
{
    if (!json) {
        ctl_print_record(stdout, r);
        return;
    }
    putchar('{');
    ctl_json_members(stdout, r);
    puts("}");
}
