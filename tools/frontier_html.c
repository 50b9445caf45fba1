/*
 * The rows as one page that needs nothing else: plots of quality against ratio, the tables behind
 * them, and what was measured how. Without scripts; readable on a phone, by day and by night.
 */
#include <math.h>
#include <string.h>

#include "tools/frontier.h"
#include "tools/plot.h"

enum { N_COLOURS = 9 };

static const char style[] =
    ":root{--paper:#fbfaf7;--card:#fff;--ink:#1d2126;--dim:#666e78;--line:#e4e2dc;"
    "--c0:#1d2126;--c1:#c2410c;--c2:#1d63c4;--c3:#0f8a6b;--c4:#8b3fc1;--c5:#a07a00;"
    "--c6:#be2e6b;--c7:#4f7d1f;--c8:#5a6b86;--hot:194,65,12}\n"
    "@media(prefers-color-scheme:dark){:root{--paper:#14171b;--card:#1c2026;--ink:#e9e7e2;"
    "--dim:#99a1ac;--line:#30363e;--c0:#e9e7e2;--c1:#ff8a4c;--c2:#6fa8ff;--c3:#3fcfa5;"
    "--c4:#c592f5;--c5:#dcb53c;--c6:#f57fae;--c7:#9ccc65;--c8:#9fb0cc;--hot:255,138,76}}\n"
    "*{box-sizing:border-box}html{-webkit-text-size-adjust:100%}"
    "body{margin:0 auto;max-width:1180px;padding:28px 18px 60px;background:var(--paper);"
    "color:var(--ink);font:16px/1.5 system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',"
    "sans-serif}\n"
    "h1{font-size:1.75rem;line-height:1.2;margin:0 0 6px;letter-spacing:-.01em}"
    "h2{font-size:1.25rem;margin:44px 0 10px}h3{font-size:1rem;margin:30px 0 8px}"
    "p{max-width:46rem;margin:8px 0}.dim,small{color:var(--dim)}\n"
    ".key{display:flex;flex-wrap:wrap;gap:4px 18px;margin:14px 0 12px;padding:0;list-style:none}"
    ".key li::before{content:'';display:inline-block;width:18px;height:4px;border-radius:2px;"
    "margin-right:7px;vertical-align:.2em;background:currentColor}.key span{color:var(--ink)}\n"
    ".plots{display:grid;gap:14px;grid-template-columns:repeat(auto-fit,minmax(min(330px,100%),"
    "1fr))}figure{margin:0;padding:12px 10px 4px;background:var(--card);border:1px solid "
    "var(--line);border-radius:10px}figcaption{font-weight:600;font-size:.92rem;padding:0 6px 4px}"
    "svg{display:block;width:100%;height:auto}\n"
    "svg text{font-size:11px;fill:var(--dim)}.grid{stroke:var(--line)}"
    ".rule{stroke:var(--c0);stroke-dasharray:4 4;opacity:.65}svg g{stroke:currentColor;"
    "fill:currentColor}polyline{fill:none;stroke-width:2;stroke-linejoin:round}"
    ".bar{stroke-width:1.6;opacity:.4}.pt{stroke:var(--card);stroke-width:1.2}\n"
    ".wide{overflow-x:auto;border:1px solid var(--line);border-radius:10px;background:var(--card)}"
    "table{border-collapse:collapse;font-size:.84rem;font-variant-numeric:tabular-nums;"
    "white-space:nowrap;width:100%}th,td{padding:6px 10px;text-align:right;border-bottom:1px solid "
    "var(--line)}th{font-weight:600;color:var(--dim)}tr:last-child td{border-bottom:0}"
    "th:first-child,td:first-child{text-align:left;position:sticky;left:0;background:var(--card);"
    "font-weight:600}td small{font-size:.78em}.bad{text-align:left;color:var(--c1)}\n";

/* ---- series: a policy is one; codecs that keep every token are one together ------------------------- */

struct series {
    const char *name;
    unsigned colour;
    const struct tkv_frontier_row *row[TKV_MAX_POLICIES];
    size_t n;
};

struct page {
    const struct tkv_frontier *f;
    FILE *out;
    size_t context;
    struct series series[TKV_MAX_POLICIES + 1];
    size_t n_series;
    const struct tkv_frontier_row *fp16;
    double x_tick[TKV_MAX_RATIOS + 1];
    size_t n_x_ticks;
};

static struct series *series_of(struct page *p, const struct tkv_frontier_row *row)
{
    const char *name = row->policy->fixed ? "codes alone, every token kept" : row->policy->name;
    struct series *s;

    for (size_t i = 0; i < p->n_series; i++)
        if (strcmp(p->series[i].name, name) == 0)
            return &p->series[i];
    s = &p->series[p->n_series];
    s->name = name;
    s->colour = 1 + (unsigned)(p->n_series++ % (N_COLOURS - 1));
    return s;
}

static void collect(struct page *p, size_t context)
{
    p->context = context;
    p->n_series = 0;
    memset(p->series, 0, sizeof(p->series));
    for (size_t i = 0; i < p->f->n_rows; i++) {
        const struct tkv_frontier_row *row = &p->f->rows[i];
        struct series *s;

        if (row->context != context || row->error[0])
            continue;
        if (strcmp(row->policy->name, "fp16") == 0) {
            p->fp16 = row;
            continue;
        }
        s = series_of(p, row);
        if (s->n < TKV_MAX_POLICIES)
            s->row[s->n++] = row;
    }
}

/* 1, then the ratios in order. */
static void make_ticks(struct page *p)
{
    p->x_tick[0] = 1;
    p->n_x_ticks = 1;
    for (size_t i = 0; i < p->f->o->n_ratios; i++) {
        const double ratio = p->f->o->ratios[i];
        size_t at = p->n_x_ticks;

        if (ratio <= 1)
            continue;
        while (at > 1 && p->x_tick[at - 1] > ratio)
            at--;
        memmove(&p->x_tick[at + 1], &p->x_tick[at], (p->n_x_ticks - at) * sizeof(p->x_tick[0]));
        p->x_tick[at] = ratio;
        p->n_x_ticks++;
    }
}

/* ---- plots -------------------------------------------------------------------------------------------- */

/* What a plot shows: a measure of the windows, or attention mass. */
enum { SHOW_MASS = TKV_N_MEASURES };

static const struct view {
    unsigned measure;
    const char *title, *unit;
    bool log, percent;
} views[] = {
    {TKV_RECALL, "Recall of planted facts", "%", false, true},
    {TKV_ANSWERS, "Facts answered wholly right", "%", false, true},
    {TKV_PERPLEXITY_CHANGE, "Perplexity of prose, against fp16", "%", false, false},
    {TKV_KL, "KL divergence from fp16, nats per token", "", true, false},
    {TKV_REPEAT_NATS, "A passage shown again, nats per token", "", false, false},
    {TKV_RECALL_UNSEEN, "Recall in wordings never trained on", "%", false, true},
    {TKV_RECALL_LIST, "Recall from lists of word pairs", "%", false, true},
    {TKV_RECALL_NEEDLE, "Recall of one needle", "%", false, true},
    {TKV_TOP1, "Same most likely token as fp16", "%", false, false},
    {SHOW_MASS, "Attention mass that is kept", "%", false, false},
};

static struct tkv_plot_point point_of(const struct tkv_frontier_row *row, unsigned measure)
{
    const double ratio = tkv_frontier_ratio(row);
    struct tkv_spread s;

    if (measure == SHOW_MASS)
        return (struct tkv_plot_point){ratio, 100 * row->replayed.mass, 0};
    s = tkv_outcome_spread(&row->outcome, measure);
    return (struct tkv_plot_point){ratio, s.mean, s.sd};
}

static void take_range(struct tkv_plot *plot, const struct tkv_plot_point *a)
{
    if (!isfinite(a->y) || (plot->y_log && a->y <= 0))
        return;
    plot->y_min = fmin(plot->y_min, plot->y_log ? a->y : a->y - a->spread);
    plot->y_max = fmax(plot->y_max, a->y + a->spread);
}

static void draw_series(const struct tkv_plot *plot, const struct series *s, unsigned measure)
{
    struct tkv_plot_point points[TKV_MAX_POLICIES];

    for (size_t i = 0; i < s->n; i++)
        points[i] = point_of(s->row[i], measure);
    tkv_plot_series(plot, s->colour, s->name, points, s->n);
}

static bool choose_range(const struct page *p, const struct view *v, struct tkv_plot *plot)
{
    const struct tkv_plot_point exact = point_of(p->fp16, v->measure);

    *plot = (struct tkv_plot){.out = p->out,
                              .title = v->title,
                              .unit = v->unit,
                              .x_tick = p->x_tick,
                              .n_x_ticks = p->n_x_ticks,
                              .y_min = INFINITY,
                              .y_max = -INFINITY,
                              .y_log = v->log};
    take_range(plot, &exact);
    for (size_t i = 0; i < p->n_series; i++)
        for (size_t j = 0; j < p->series[i].n; j++) {
            const struct tkv_plot_point a = point_of(p->series[i].row[j], v->measure);

            take_range(plot, &a);
        }
    if (v->percent) {
        plot->y_min = 0;
        plot->y_max = 100;
    }
    return plot->y_min <= plot->y_max && isfinite(exact.y);
}

static void draw_view(const struct page *p, const struct view *v)
{
    struct tkv_plot plot;

    if (!choose_range(p, v, &plot))
        return; /* not measured: there were no needles */
    tkv_plot_begin(&plot);
    tkv_plot_rule(&plot, point_of(p->fp16, v->measure).y);
    for (size_t i = p->n_series; i-- > 0;) /* the first policy on top */
        draw_series(&plot, &p->series[i], v->measure);
    tkv_plot_end(&plot);
}

static void put_key(const struct page *p)
{
    (void)fputs("<ul class=\"key\"><li class=\"s0\"><span>fp16, the dashed line</span></li>",
                p->out);
    for (size_t i = 0; i < p->n_series; i++) {
        (void)fprintf(p->out, "<li class=\"s%u\"><span>", p->series[i].colour);
        tkv_html_put(p->out, p->series[i].name);
        (void)fputs("</span></li>", p->out);
    }
    (void)fputs("</ul>\n", p->out);
}

/* ---- the page ------------------------------------------------------------------------------------------ */

static void put_file(FILE *out, const char *path)
{
    const char *slash = strrchr(path, '/');

    tkv_html_put(out, slash ? slash + 1 : path);
}

static void put_head(const struct page *p)
{
    const struct tkv_frontier *f = p->f;
    char day[32] = "";
    struct tm t;

    if (gmtime_r(&f->start, &t))
        (void)strftime(day, sizeof(day), "%Y-%m-%d %H:%M UTC", &t);
    (void)fputs("<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">"
                "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">"
                "<meta name=\"color-scheme\" content=\"light dark\">"
                "<title>TriKV: quality against ratio</title>\n<style>",
                p->out);
    (void)fputs(style, p->out);
    for (unsigned i = 0; i < N_COLOURS; i++)
        (void)fprintf(p->out, ".s%u{color:var(--c%u)}", i, i);
    (void)fputs("</style></head><body>\n<h1>Quality against compression</h1>\n<p class=\"dim\">",
                p->out);
    put_file(p->out, f->model_path);
    (void)fputs(" reading ", p->out);
    put_file(p->out, f->o->text);
    (void)fprintf(p->out, " &middot; %s &middot; ", day);
    tkv_html_put(p->out, f->machine.name);
    (void)fprintf(p->out,
                  " (%s), %u threads &middot; %.0f s &middot; TriKV " TRIKV_VERSION "</p>\n",
                  f->machine.features, f->machine.n_threads, f->seconds);
}

static void put_reading(const struct page *p)
{
    const struct tkv_frontier_options *o = p->f->o;

    (void)fprintf(
        p->out,
        "<p>The model keeps its cache in a <code>trikvd</code> daemon. At each ratio every policy "
        "has the settings that make its sessions as large as they may be: the cache as halves "
        "over the ratio, every resident byte counted (codes, scales, positions, half-precision "
        "tail, tables). Further right is smaller; what stays near the dashed line has lost "
        "nothing.</p>\n<p class=\"dim\">Means over %zu windows of the text%s; bars and &plusmn; "
        "are "
        "one standard deviation between windows. In each window the model reads plain prose, "
        "prose with %d facts to be asked for, and prose with a list and a passage that come "
        "again%s.</p>\n",
        (size_t)o->n_windows, p->f->overlap ? ", which overlap, since it is short" : "",
        3 * TKV_N_DEPTHS, o->needles ? ", and prose with one fact" : "");
}

static void put_context(struct page *p, size_t context)
{
    collect(p, context);
    (void)fprintf(p->out, "<section><h2>%zu tokens</h2>\n", context);
    if (p->fp16) {
        put_key(p);
        (void)fputs("<div class=\"plots\">\n", p->out);
        for (size_t i = 0; i < sizeof(views) / sizeof(views[0]); i++)
            draw_view(p, &views[i]);
        (void)fputs("</div>\n", p->out);
    }
    tkv_frontier_write_tables(p->f, context, p->out);
    (void)fputs("</section>\n", p->out);
}

void tkv_frontier_write_html(const struct tkv_frontier *f, FILE *out)
{
    struct page p = {.f = f, .out = out};

    make_ticks(&p);
    put_head(&p);
    put_reading(&p);
    for (size_t i = 0; i < f->o->n_contexts; i++)
        put_context(&p, (size_t)f->o->contexts[i]);
    (void)fputs("</body></html>\n", out);
}
