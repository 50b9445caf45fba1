/* Line plots as inline SVG: a ratio on a logarithmic x axis, points with their spread. Colours and
 * type come from the page's style sheet, by class. */
#ifndef TKV_TOOLS_PLOT_H
#define TKV_TOOLS_PLOT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

struct tkv_plot_point {
    double x, y;   /* one that is not finite is left out */
    double spread; /* drawn as y - spread to y + spread */
};

struct tkv_plot {
    FILE *out;
    const char *title;
    const char *unit;     /* behind the numbers of the y axis */
    const double *x_tick; /* [n_x_ticks] ascending, > 0: also the range of the axis */
    size_t n_x_ticks;
    double y_min, y_max; /* as data need; tkv_plot_begin makes them round */
    bool y_log;          /* then y_min > 0 */
    double y_step;       /* set by tkv_plot_begin */
};

void tkv_plot_begin(struct tkv_plot *p);

/* Points of one policy, with a line through them; `name` is shown when one is pointed at. */
void tkv_plot_series(const struct tkv_plot *p, unsigned colour, const char *name,
                     const struct tkv_plot_point *points, size_t n);

/* A level to compare with, right across. */
void tkv_plot_rule(const struct tkv_plot *p, double y);

void tkv_plot_end(const struct tkv_plot *p);

/* Text with &, <, > and " made harmless. */
void tkv_html_put(FILE *out, const char *text);

#endif /* TKV_TOOLS_PLOT_H */
