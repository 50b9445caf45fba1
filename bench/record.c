#include "bench/record.h"

#include <assert.h>
#include <math.h>
#include <string.h>

static struct tkv_field *add(struct tkv_record *r, const char *key, const char *label)
{
    struct tkv_field *f = &r->fields[r->n];

    assert(r->n < TKV_MAX_FIELDS);
    r->n++;
    *f = (struct tkv_field){.key = key, .label = label};
    return f;
}

void tkv_record_number(struct tkv_record *r, const char *key, const char *label, double number)
{
    add(r, key, label)->number = number;
}

void tkv_record_text(struct tkv_record *r, const char *key, const char *label, const char *text)
{
    struct tkv_field *f = add(r, key, label);

    f->is_text = true;
    (void)snprintf(f->text, sizeof(f->text), "%s", text);
}

void tkv_record_spread(struct tkv_record *r, const char *key, const char *label,
                       struct tkv_samples *s)
{
    const struct tkv_spread d = tkv_samples_spread(s);

    tkv_record_number(r, key, label, d.median);
    tkv_record_number(r, "p10", "p10", d.p10);
    tkv_record_number(r, "p90", "p90", d.p90);
    tkv_record_number(r, "spread", "spread", d.median > 0 ? (d.p90 - d.p10) / d.median : 0);
    tkv_record_number(r, "repetitions", "repetitions", (double)s->n);
}

const struct tkv_field *tkv_record_find(const struct tkv_record *r, const char *key)
{
    for (size_t i = 0; i < r->n; i++)
        if (strcmp(r->fields[i].key, key) == 0)
            return &r->fields[i];
    return NULL;
}

void tkv_field_format(const struct tkv_field *f, char *text, size_t n)
{
    const double size = fabs(f->number);

    if (f->is_text)
        (void)snprintf(text, n, "%s", f->text);
    else if (size >= 100 || f->number == floor(f->number))
        (void)snprintf(text, n, "%.0f", f->number);
    else
        (void)snprintf(text, n, "%.3g", f->number);
}

void tkv_record_print_text(const struct tkv_record *r, FILE *out)
{
    char text[128];

    for (size_t i = 0; i < r->n; i++) {
        tkv_field_format(&r->fields[i], text, sizeof(text));
        (void)fprintf(out, "  %-44s %s\n", r->fields[i].label, text);
    }
}

static void print_json_text(const char *text, FILE *out)
{
    (void)putc('"', out);
    for (const char *c = text; *c; c++) {
        if (*c == '"' || *c == '\\')
            (void)fprintf(out, "\\%c", *c);
        else if ((unsigned char)*c < 0x20)
            (void)fprintf(out, "\\u%04x", (unsigned)(unsigned char)*c);
        else
            (void)putc(*c, out);
    }
    (void)putc('"', out);
}

void tkv_record_print_json(const struct tkv_record *r, bool flat, FILE *out)
{
    (void)fputs(flat ? "{" : "{\"results\": [{", out);
    for (size_t i = 0; i < r->n; i++) {
        const struct tkv_field *f = &r->fields[i];

        (void)fprintf(out, "%s\"%s\": ", i ? ", " : "", f->key);
        if (f->is_text)
            print_json_text(f->text, out);
        else if (isfinite(f->number))
            (void)fprintf(out, "%.9g", f->number);
        else
            (void)fputs("null", out);
    }
    (void)fputs(flat ? "}\n" : "}]}\n", out);
}
