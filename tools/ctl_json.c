/* Records as JSON (RFC 8259). Ids are strings: 64 bits do not fit a double. */
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "tools/ctl_text.h"

/* Bytes of the well-formed UTF-8 character at s, 0 if it is none (RFC 3629). */
static size_t utf8_length(const unsigned char *s)
{
    size_t n;

    if (s[0] < 0x80)
        return 1;
    if (s[0] >= 0xc2 && s[0] <= 0xdf)
        n = 2;
    else if (s[0] >= 0xe0 && s[0] <= 0xef)
        n = 3;
    else if (s[0] >= 0xf0 && s[0] <= 0xf4)
        n = 4;
    else
        return 0;
    for (size_t i = 1; i < n; i++) {
        if ((s[i] & 0xc0) != 0x80)
            return 0;
    }
    /* Overlong forms, surrogates, and beyond U+10FFFF. */
    if ((s[0] == 0xe0 && s[1] < 0xa0) || (s[0] == 0xed && s[1] > 0x9f) ||
        (s[0] == 0xf0 && s[1] < 0x90) || (s[0] == 0xf4 && s[1] > 0x8f))
        return 0;
    return n;
}

void ctl_json_string(FILE *out, const char *text)
{
    const unsigned char *s = (const unsigned char *)text;

    fputc('"', out);
    while (*s) {
        const size_t n = utf8_length(s);

        if (n == 0)
            fputs("\\ufffd", out);
        else if (*s == '"' || *s == '\\')
            fprintf(out, "\\%c", *s);
        else if (*s == '\n')
            fputs("\\n", out);
        else if (*s < 0x20 || *s == 0x7f)
            fprintf(out, "\\u%04x", *s);
        else
            fwrite(s, 1, n, out);
        s += n > 0 ? n : 1;
    }
    fputc('"', out);
}

static void print_value(FILE *out, const struct ctl_field *f)
{
    switch (f->kind) {
    case CTL_TEXT: ctl_json_string(out, f->text); break;
    case CTL_ID: fprintf(out, "\"%016" PRIx64 "\"", f->count); break;
    case CTL_BOOL: fputs(f->count ? "true" : "false", out); break;
    case CTL_COUNT:
    case CTL_BYTES: fprintf(out, "%" PRIu64, f->count); break;
    case CTL_SECONDS:
    case CTL_NUMBER:
        if (isfinite(f->number))
            fprintf(out, "%.9g", f->number);
        else
            fputs("null", out); /* JSON has no word for it */
        break;
    }
}

void ctl_json_members(FILE *out, const struct ctl_record *r)
{
    for (size_t i = 0; i < r->n_fields; i++) {
        fprintf(out, "%s\"%s\": ", i > 0 ? ", " : "", r->fields[i].key);
        print_value(out, &r->fields[i]);
    }
}

void ctl_json_array(FILE *out, const struct ctl_record *records, size_t n)
{
    fputc('[', out);
    for (size_t i = 0; i < n; i++) {
        fputs(i > 0 ? ",\n {" : "{", out);
        ctl_json_members(out, &records[i]);
        fputc('}', out);
    }
    fputc(']', out);
}
