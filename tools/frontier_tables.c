/* The numbers behind the plots: one table of everything, one of recall by where a fact was told. */
#include <math.h>

#include "tools/frontier.h"
#include "tools/plot.h"

static const struct column {
    unsigned measure;
    const char *title;
    const char *format; /* of mean and spread */
} columns[] = {
    {TKV_RECALL, "recall %", "%.1f <small>&plusmn; %.1f</small>"},
    {TKV_ANSWERS, "answers %", "%.1f <small>&plusmn; %.1f</small>"},
    {TKV_RECALL_UNSEEN, "unseen %", "%.1f <small>&plusmn; %.1f</small>"},
    {TKV_RECALL_LIST, "lists %", "%.1f <small>&plusmn; %.1f</small>"},
    {TKV_RECALL_NEEDLE, "needle %", "%.1f <small>&plusmn; %.1f</small>"},
    {TKV_PERPLEXITY, "perplexity", "%.2f <small>&plusmn; %.2f</small>"},
    {TKV_PERPLEXITY_CHANGE, "change %", "%+.2f <small>&plusmn; %.2f</small>"},
    {TKV_KL, "KL", "%.5f <small>&plusmn; %.5f</small>"},
    {TKV_TOP1, "top-1 %", "%.1f <small>&plusmn; %.1f</small>"},
    {TKV_REPEAT_NATS, "repeat, nats", "%.3f <small>&plusmn; %.3f</small>"},
};
enum { N_COLUMNS = sizeof(columns) / sizeof(columns[0]) };

static void put_name(const struct tkv_frontier_row *row, FILE *out)
{
    (void)fputs("<tr><td>", out);
    tkv_html_put(out, row->policy->name);
    if (row->target_ratio > 0)
        (void)fprintf(out, "</td><td>%g&times;</td>", row->target_ratio);
    else
        (void)fputs("</td><td>&ndash;</td>", out);
}

/* The formats are const, each with two numbers in it. */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
static void put_measure(const struct column *c, const struct tkv_outcome *o, FILE *out)
{
    const struct tkv_spread s = tkv_outcome_spread(o, c->measure);

    (void)fputs("<td>", out);
    if (isfinite(s.mean))
        (void)fprintf(out, c->format, s.mean, s.sd);
    else
        (void)fputs("&ndash;", out);
    (void)fputs("</td>", out);
}
#pragma GCC diagnostic pop

static void put_row(const struct tkv_frontier_row *row, FILE *out)
{
    const struct tkv_remote_options *s = &row->settings;
    const struct tkv_outcome *o = &row->outcome;

    put_name(row, out);
    if (row->error[0]) {
        (void)fprintf(out, "<td class=\"bad\" colspan=\"%d\">", N_COLUMNS + 9);
        tkv_html_put(out, row->error);
        (void)fputs("</td></tr>\n", out);
        return;
    }
    (void)fprintf(out, "<td>%.2f&times;</td><td>%.1f</td>", tkv_frontier_ratio(row),
                  o->resident_bytes / 1024);
    for (size_t i = 0; i < N_COLUMNS; i++)
        put_measure(&columns[i], o, out);
    (void)fprintf(out, "<td>%.1f</td><td>%.4f</td><td>%.0f</td><td>%.0f</td>",
                  100 * row->replayed.mass, row->replayed.out_error, o->tokens_kept, o->rounds);
    if (row->policy->fixed)
        (void)fprintf(out, "<td>%s</td>", row->policy->codec);
    else
        (void)fprintf(out, "<td>%s, %u/%d/%u/%d</td>", row->policy->codec, s->budget_tokens,
                      s->recent_tokens, s->beta_tokens, s->pinned_tokens);
    (void)fprintf(out, "<td>%.1f</td><td>%.0f</td></tr>\n", o->seconds, o->tokens_per_s);
}

static void put_all(const struct tkv_frontier *f, size_t context, FILE *out)
{
    (void)fputs("<h3>Everything measured</h3>\n<div class=\"wide\"><table><tr><th>policy</th>"
                "<th>asked</th><th>ratio</th><th>resident KiB</th>",
                out);
    for (size_t i = 0; i < N_COLUMNS; i++)
        (void)fprintf(out, "<th>%s</th>", columns[i].title);
    (void)fputs("<th>mass %</th><th>output error</th><th>tokens kept</th><th>rounds</th>"
                "<th>codec, budget/recent/beta/pinned</th><th>seconds</th><th>tokens/s</th></tr>\n",
                out);
    for (size_t i = 0; i < f->n_rows; i++)
        if (f->rows[i].context == context)
            put_row(&f->rows[i], out);
    (void)fputs(
        "</table></div>\n<p class=\"dim\"><small>Recall counts the answer tokens of facts that "
        "are the model's first choice, answers the facts that are wholly right. Mass and "
        "output error: attention with the exact cache's queries, keys and values, on the first "
        "window. Perplexity is that of all windows together.</small></p>\n",
        out);
}

/* The more is lost, the warmer the cell. */
static void put_depths(const struct tkv_frontier_row *row, FILE *out)
{
    put_name(row, out);
    for (unsigned d = 0; d < TKV_N_DEPTHS; d++) {
        const struct tkv_spread s = tkv_outcome_spread(&row->outcome, TKV_RECALL_DEPTH + d);

        (void)fprintf(out,
                      "<td style=\"background:rgba(var(--hot),%.2f)\">%.1f <small>&plusmn; "
                      "%.1f</small></td>",
                      0.55 * (1 - s.mean / 100), s.mean, s.sd);
    }
    (void)fputs("</tr>\n", out);
}

void tkv_frontier_write_tables(const struct tkv_frontier *f, size_t context, FILE *out)
{
    put_all(f, context, out);
    (void)fputs("<h3>Recall by depth</h3>\n<div class=\"wide\"><table><tr><th>told in the</th>"
                "<th>asked</th><th>first fifth</th><th>second</th><th>third</th><th>fourth</th>"
                "<th>last fifth</th></tr>\n",
                out);
    for (size_t i = 0; i < f->n_rows; i++)
        if (f->rows[i].context == context && !f->rows[i].error[0])
            put_depths(&f->rows[i], out);
    (void)fputs(
        "</table></div>\n<p class=\"dim\"><small>Percent of answer tokens. Facts are asked for "
        "after the last fifth, so the first fifth is the farthest away.</small></p>\n",
        out);
}
