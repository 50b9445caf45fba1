/* One unit is about one pixel of a phone: the page scales the whole drawing. */
#include "tools/plot.h"

#include <math.h>

enum { WIDTH = 360, HEIGHT = 232, LEFT = 46, RIGHT = 350, TOP = 12, BOTTOM = 204 };

void tkv_html_put(FILE *out, const char *text)
{
    for (; *text; text++) {
        switch (*text) {
        case '&': (void)fputs("&amp;", out); break;
        case '<': (void)fputs("&lt;", out); break;
        case '>': (void)fputs("&gt;", out); break;
        case '"': (void)fputs("&quot;", out); break;
        default: (void)putc(*text, out); break;
        }
    }
}

static double x_of(const struct tkv_plot *p, double x)
{
    const double first = log2(p->x_tick[0]), last = log2(p->x_tick[p->n_x_ticks - 1]);
    const double share = last > first ? (log2(x) - first) / (last - first) : 0.5;

    return LEFT + 8 + share * (RIGHT - LEFT - 18);
}

static double y_of(const struct tkv_plot *p, double y)
{
    const double low = p->y_log ? log10(p->y_min) : p->y_min;
    const double high = p->y_log ? log10(p->y_max) : p->y_max;
    const double value = p->y_log ? log10(fmax(y, p->y_min)) : fmin(fmax(y, low), p->y_max);

    return BOTTOM - (fmin(value, high) - low) / (high - low) * (BOTTOM - TOP);
}

/* 1, 2, 2.5 or 5 times a power of ten, so that there are about four steps. */
static double round_step(double range)
{
    static const double steps[] = {1, 2, 2.5, 5};
    const double raw = range / 4, power = pow(10, floor(log10(raw)));

    for (size_t i = 0; i < sizeof(steps) / sizeof(steps[0]); i++)
        if (raw <= steps[i] * power * (1 + 1e-9))
            return steps[i] * power;
    return 10 * power;
}

static void make_round(struct tkv_plot *p)
{
    if (p->y_log) {
        p->y_min = pow(10, floor(log10(p->y_min)));
        p->y_max = pow(10, ceil(log10(p->y_max)));
        p->y_max = p->y_max > p->y_min ? p->y_max : 10 * p->y_min;
        return;
    }
    if (!(p->y_max > p->y_min))
        p->y_max = p->y_min + 1;
    p->y_step = round_step(p->y_max - p->y_min);
    p->y_min = floor(p->y_min / p->y_step + 1e-9) * p->y_step;
    p->y_max = ceil(p->y_max / p->y_step - 1e-9) * p->y_step;
}

static void y_tick(const struct tkv_plot *p, double y)
{
    const double at = y_of(p, y);

    (void)fprintf(p->out,
                  "<line class=\"grid\" x1=\"%d\" x2=\"%d\" y1=\"%.1f\" y2=\"%.1f\"/>"
                  "<text x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%g%s</text>\n",
                  LEFT, RIGHT, at, at, LEFT - 6, at + 3.5, fabs(y) < 1e-12 ? 0 : y, p->unit);
}

static void axes(const struct tkv_plot *p)
{
    if (p->y_log)
        for (double y = p->y_min; y < p->y_max * 1.001; y *= 10)
            y_tick(p, y);
    else
        for (double y = p->y_min; y < p->y_max + p->y_step / 2; y += p->y_step)
            y_tick(p, y);
    for (size_t i = 0; i < p->n_x_ticks; i++)
        (void)fprintf(p->out,
                      "<text x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%g\xc3\x97</text>\n",
                      x_of(p, p->x_tick[i]), BOTTOM + 17, p->x_tick[i]);
}

void tkv_plot_begin(struct tkv_plot *p)
{
    make_round(p);
    (void)fputs("<figure><figcaption>", p->out);
    tkv_html_put(p->out, p->title);
    (void)fprintf(p->out, "</figcaption>\n<svg viewBox=\"0 0 %d %d\" role=\"img\" aria-label=\"",
                  WIDTH, HEIGHT);
    tkv_html_put(p->out, p->title);
    (void)fputs("\">\n", p->out);
    axes(p);
}

static bool drawable(const struct tkv_plot *p, const struct tkv_plot_point *a)
{
    return isfinite(a->x) && isfinite(a->y) && a->x > 0 && (!p->y_log || a->y > 0);
}

static void line(const struct tkv_plot *p, const struct tkv_plot_point *points, size_t n)
{
    (void)fputs("<polyline points=\"", p->out);
    for (size_t i = 0; i < n; i++)
        if (drawable(p, &points[i]))
            (void)fprintf(p->out, "%.1f,%.1f ", x_of(p, points[i].x), y_of(p, points[i].y));
    (void)fputs("\"/>\n", p->out);
}

static void point(const struct tkv_plot *p, const char *name, const struct tkv_plot_point *a)
{
    const double x = x_of(p, a->x);

    if (a->spread > 0)
        (void)fprintf(p->out,
                      "<line class=\"bar\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\"/>", x, x,
                      y_of(p, a->y - a->spread), y_of(p, a->y + a->spread));
    (void)fprintf(p->out, "<circle class=\"pt\" cx=\"%.1f\" cy=\"%.1f\" r=\"3.6\"><title>", x,
                  y_of(p, a->y));
    tkv_html_put(p->out, name);
    (void)fprintf(p->out, " at %.2f\xc3\x97: %.4g%s \xc2\xb1 %.2g</title></circle>\n", a->x, a->y,
                  p->unit, a->spread);
}

void tkv_plot_series(const struct tkv_plot *p, unsigned colour, const char *name,
                     const struct tkv_plot_point *points, size_t n)
{
    (void)fprintf(p->out, "<g class=\"s%u\">", colour);
    line(p, points, n);
    for (size_t i = 0; i < n; i++)
        if (drawable(p, &points[i]))
            point(p, name, &points[i]);
    (void)fputs("</g>\n", p->out);
}

void tkv_plot_rule(const struct tkv_plot *p, double y)
{
    if (isfinite(y) && (!p->y_log || y > 0))
        (void)fprintf(p->out,
                      "<line class=\"rule\" x1=\"%d\" x2=\"%d\" y1=\"%.1f\" y2=\"%.1f\"/>\n", LEFT,
                      RIGHT, y_of(p, y), y_of(p, y));
}

void tkv_plot_end(const struct tkv_plot *p)
{
    (void)fputs("</svg></figure>\n", p->out);
}
