/* The rows as JSON: what others read by name, then spreads over windows, then all windows. */
#include <math.h>

#include "tools/frontier.h"

/* Texts come from command lines and files' names. */
static void put_text(FILE *out, const char *name, const char *text, const char *end)
{
    (void)fprintf(out, "\"%s\": \"", name);
    for (const unsigned char *c = (const unsigned char *)text; *c; c++) {
        if (*c == '"' || *c == '\\')
            (void)fprintf(out, "\\%c", *c);
        else if (*c < 0x20)
            (void)fprintf(out, "\\u%04x", *c);
        else
            (void)putc(*c, out);
    }
    (void)fprintf(out, "\"%s", end);
}

static void put_number(FILE *out, double value)
{
    if (isfinite(value))
        (void)fprintf(out, "%.8g", value);
    else
        (void)fputs("null", out);
}

static void put_named(FILE *out, const char *name, double value)
{
    (void)fprintf(out, ", \"%s\": ", name);
    put_number(out, value);
}

static void put_settings(FILE *out, const struct tkv_frontier_row *row)
{
    const struct tkv_remote_options *s = &row->settings;

    (void)fprintf(out,
                  ",\n   \"codec\": \"%s\", \"budget_tokens\": %u, \"recent_tokens\": %d, "
                  "\"beta_tokens\": %u, \"pinned_tokens\": %d",
                  row->policy->codec, s->budget_tokens, s->recent_tokens, s->beta_tokens,
                  s->pinned_tokens);
}

static void put_measures(FILE *out, const struct tkv_outcome *o)
{
    for (unsigned m = 0; m < TKV_N_MEASURES; m++)
        put_named(out, tkv_measure_names[m], tkv_outcome_spread(o, m).mean);
    (void)fputs(",\n   \"spread\": {", out);
    for (unsigned m = 0; m < TKV_N_MEASURES; m++) {
        (void)fprintf(out, "%s\"%s\": ", m ? ", " : "", tkv_measure_names[m]);
        put_number(out, tkv_outcome_spread(o, m).sd);
    }
    (void)fputs("},\n   \"windows\": {", out);
    for (unsigned m = 0; m < TKV_N_MEASURES; m++) {
        (void)fprintf(out, "%s\"%s\": [", m ? ", " : "", tkv_measure_names[m]);
        for (size_t i = 0; i < o->n_windows; i++) {
            (void)fputs(i ? ", " : "", out);
            put_number(out, o->value[m][i]);
        }
        (void)putc(']', out);
    }
    (void)putc('}', out);
}

static void put_row(const struct tkv_frontier_row *row, FILE *out)
{
    const struct tkv_outcome *o = &row->outcome;

    (void)fputs("  {", out);
    put_text(out, "policy", row->policy->name, ", ");
    (void)fprintf(out, "\"context\": %zu", row->context);
    put_named(out, "target_ratio", row->target_ratio > 0 ? row->target_ratio : NAN);
    if (row->error[0]) {
        (void)fputs(", ", out);
        put_text(out, "error", row->error, "}");
        return;
    }
    put_named(out, "ratio", tkv_frontier_ratio(row));
    put_named(out, "resident_bytes", o->resident_bytes);
    put_named(out, "fp16_bytes", o->fp16_bytes);
    put_named(out, "tokens_kept", o->tokens_kept);
    put_named(out, "rounds", o->rounds);
    put_named(out, "attention_mass", 100 * row->replayed.mass);
    put_named(out, "output_error", row->replayed.out_error);
    put_named(out, "seconds", o->seconds);
    put_named(out, "tokens_per_s", o->tokens_per_s);
    put_settings(out, row);
    put_measures(out, o);
    (void)putc('}', out);
}

void tkv_frontier_write_json(const struct tkv_frontier *f, FILE *out)
{
    char day[32] = "";
    struct tm t;

    if (gmtime_r(&f->start, &t))
        (void)strftime(day, sizeof(day), "%Y-%m-%dT%H:%M:%SZ", &t);
    (void)fputs("{", out);
    put_text(out, "program", "trikv-eval " TRIKV_VERSION, ", ");
    put_text(out, "date", day, ",\n ");
    put_text(out, "model", f->model_path, ", ");
    put_text(out, "text", f->o->text, ",\n ");
    put_text(out, "cpu", f->machine.name, ", ");
    put_text(out, "features", f->machine.features, ", ");
    (void)fprintf(out,
                  "\"threads\": %u, \"seconds\": %.1f, \"text_tokens\": %zu, \"n_windows\": %zu, "
                  "\"windows_overlap\": %s, \"seed\": %zu, \"n_failed\": %zu,\n \"rows\": [\n",
                  f->machine.n_threads, f->seconds, f->n_prose, (size_t)f->o->n_windows,
                  f->overlap ? "true" : "false", (size_t)f->o->seed, f->n_failed);
    for (size_t i = 0; i < f->n_rows; i++) {
        put_row(&f->rows[i], out);
        (void)fputs(i + 1 < f->n_rows ? ",\n" : "\n", out);
    }
    (void)fputs(" ]}\n", out);
}
