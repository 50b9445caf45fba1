/*
 * Fills a template: what stands in it is copied, and between these lines tables come in
 *
 *   @table COMMAND KEY...        columns, by the names they have in JSON
 *   OPTIONS                      one row: the command is run with these options
 *   @end
 *
 * The first column says which command gave the row. More of what the last one gave can stand in a table
 * whose title the template has:
 *
 *   @row TEXT: KEY...            a row that begins with the text
 *
 * @date is replaced by the day.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "bench/commands.h"

enum { MAX_WORDS = 32, MAX_LINE = 512 };

struct words {
    char text[MAX_LINE];
    int n;
    char *word[MAX_WORDS + 1]; /* NULL-ended, as arguments are */
};

struct report {
    FILE *in;
    FILE *out;
    unsigned line;
    const struct tkv_bench_command *command; /* of the table that is open, or NULL */
    struct words columns;                    /* "@table", command, keys */
    bool titled;
    struct tkv_record last; /* of the row before */
};

static void split(const char *line, struct words *w)
{
    char *rest = w->text;
    char *word;

    w->n = 0;
    (void)snprintf(w->text, sizeof(w->text), "%s", line);
    while (w->n < MAX_WORDS && (word = strtok_r(rest, " \t\n", &rest)))
        w->word[w->n++] = word;
    w->word[w->n] = NULL;
}

static int open_table(struct report *r, const char *line, struct tkv_reason *why)
{
    split(line, &r->columns);
    r->command = r->columns.n > 2 ? tkv_bench_find(r->columns.word[1]) : NULL;
    r->titled = false;
    if (!r->command)
        return tkv_reason_set(why, "line %u: expected @table, a command and columns", r->line);
    return 0;
}

/* Labels are those of the first row's record. */
static int print_title(struct report *r, const struct tkv_record *record, struct tkv_reason *why)
{
    (void)fprintf(r->out, "| `%s %s` |", TKV_BENCH_PROGRAM, r->command->name);
    for (int i = 2; i < r->columns.n; i++) {
        const struct tkv_field *f = tkv_record_find(record, r->columns.word[i]);

        if (!f)
            return tkv_reason_set(why, "line %u: %s has no number called %s", r->line,
                                  r->command->name, r->columns.word[i]);
        (void)fprintf(r->out, " %s |", f->label);
    }
    (void)fputs("\n|---|", r->out);
    for (int i = 2; i < r->columns.n; i++)
        (void)fputs("---|", r->out);
    (void)putc('\n', r->out);
    r->titled = true;
    return 0;
}

/* A number that this row does not have (a format without this head dimension) leaves a dash. */
static void print_row(struct report *r, const struct words *options,
                      const struct tkv_record *record)
{
    (void)fputs(options->n > 1 ? "| `" : "| no options", r->out);
    for (int i = 1; i < options->n; i++)
        (void)fprintf(r->out, "%s%s", options->word[i], i + 1 < options->n ? " " : "`");
    (void)fputs(" |", r->out);
    for (int i = 2; i < r->columns.n; i++) {
        const struct tkv_field *f = tkv_record_find(record, r->columns.word[i]);
        char text[128] = "-";

        if (f)
            tkv_field_format(f, text, sizeof(text));
        (void)fprintf(r->out, " %s |", text);
    }
    (void)putc('\n', r->out);
    (void)fflush(r->out);
}

static int run_row(struct report *r, const char *line, struct tkv_reason *why)
{
    struct tkv_bench_options o = r->command->defaults;
    struct words options = {.n = 0};
    char named[MAX_LINE];

    (void)snprintf(named, sizeof(named), "%s %.400s", r->command->name, line);
    split(named, &options);
    if (tkv_bench_parse(&o, options.n, options.word) != TKV_PARSED)
        return tkv_reason_set(why, "line %u: not the options of a command: %s", r->line, line);
    (void)fprintf(stderr, "%s", named);
    r->last = (struct tkv_record){0};
    if (r->command->run(&o, &r->last, why))
        return -1;
    if (!r->titled && print_title(r, &r->last, why))
        return -1;
    print_row(r, &options, &r->last);
    return 0;
}

static int print_more(struct report *r, const char *line, struct tkv_reason *why)
{
    const char *text = line + strlen("@row "), *colon = strchr(line, ':');
    struct words keys = {.n = 0};

    if (!colon)
        return tkv_reason_set(why, "line %u: expected @row, a text, a colon and names", r->line);
    (void)fprintf(r->out, "| %.*s |", (int)(colon - text), text);
    split(colon + 1, &keys);
    for (int i = 0; i < keys.n; i++) {
        const struct tkv_field *f = tkv_record_find(&r->last, keys.word[i]);
        char number[128];

        if (!f)
            return tkv_reason_set(why, "line %u: the row before has no number called %s", r->line,
                                  keys.word[i]);
        tkv_field_format(f, number, sizeof(number));
        (void)fprintf(r->out, " %s |", number);
    }
    (void)putc('\n', r->out);
    return 0;
}

static void print_dated(struct report *r, const char *line)
{
    const char *at = strstr(line, "@date");
    const time_t now = time(NULL);
    char day[32] = "";
    struct tm t;

    if (!at) {
        (void)fputs(line, r->out);
        return;
    }
    if (gmtime_r(&now, &t))
        (void)strftime(day, sizeof(day), "%Y-%m-%d", &t);
    (void)fprintf(r->out, "%.*s%s%s", (int)(at - line), line, day, at + strlen("@date"));
}

static int take_line(struct report *r, const char *line, struct tkv_reason *why)
{
    if (r->command && strncmp(line, "@end", 4) == 0) {
        r->command = NULL;
        return 0;
    }
    if (r->command)
        return run_row(r, line, why);
    if (strncmp(line, "@table", 6) == 0)
        return open_table(r, line, why);
    if (strncmp(line, "@row ", 5) == 0)
        return print_more(r, line, why);
    print_dated(r, line);
    return 0;
}

static int fill(struct report *r, struct tkv_reason *why)
{
    char line[MAX_LINE];

    while (fgets(line, sizeof(line), r->in)) {
        r->line++;
        if (take_line(r, line, why))
            return -1;
    }
    if (r->command)
        return tkv_reason_set(why, "a table that begins before line %u has no @end", r->line);
    return ferror(r->in) ? tkv_reason_set(why, "cannot read the template") : 0;
}

/* The old report stays until the new one is whole. */
static int write_report(const struct tkv_bench_options *o, const char *temporary,
                        struct tkv_reason *why)
{
    struct report r = {.in = fopen(o->in, "re")};
    int e;

    if (!r.in)
        return tkv_reason_set(why, "%s: %s", o->in, strerror(errno));
    r.out = fopen(temporary, "we");
    if (!r.out) {
        (void)fclose(r.in);
        return tkv_reason_set(why, "%s: %s", temporary, strerror(errno));
    }
    e = fill(&r, why);
    (void)fclose(r.in);
    if (fclose(r.out) && !e)
        e = tkv_reason_set(why, "%s: %s", temporary, strerror(errno));
    return e;
}

int tkv_bench_report(const struct tkv_bench_options *o, struct tkv_reason *why)
{
    char temporary[512];
    int e;

    if (!o->in || !o->out)
        return tkv_reason_set(why, "report wants --in TEMPLATE and --out FILE");
    if ((size_t)snprintf(temporary, sizeof(temporary), "%s.new", o->out) >= sizeof(temporary))
        return tkv_reason_set(why, "%s: the path is too long", o->out);
    e = write_report(o, temporary, why);
    if (!e && rename(temporary, o->out))
        e = tkv_reason_set(why, "%s: %s", o->out, strerror(errno));
    if (e)
        (void)unlink(temporary);
    return e;
}
