/*
 * Two heat maps side by side, a row a layer. Bands run from fast to slow, with their
 * wavelengths below; a cell's number is in its tooltip.
 */
#include "tools/profile_plot.h"

#include <math.h>

#include "core/calibration.h"

enum {
    WIDTH = 1080,
    LEFT = 64,
    TOP = 104,
    BANDS_WIDTH = 620,
    GAP = 56,
    HEADS_WIDTH = WIDTH - LEFT - BANDS_WIDTH - GAP - 28,
    HEADS_LEFT = LEFT + BANDS_WIDTH + GAP,
    MAX_MAP_HEIGHT = 560,
    BELOW = 118,
    LEGEND_WIDTH = 240,
};

/* Lightness rises evenly from deep blue to yellow, so that it also reads in grey. */
static const unsigned char colours[][3] = {
    {33, 20, 66},   {50, 46, 110},  {46, 80, 138},  {36, 113, 145}, {32, 145, 140},
    {56, 177, 122}, {118, 204, 91}, {188, 222, 60}, {253, 231, 76},
};
enum { N_COLOURS = sizeof(colours) / sizeof(colours[0]) };

static void print_colour(FILE *out, double r)
{
    const double at = fmin(fmax(r, 0), 1) * (N_COLOURS - 1);
    const int i = at < N_COLOURS - 1 ? (int)at : N_COLOURS - 2;
    int c[3];

    for (int k = 0; k < 3; k++)
        c[k] = (int)lround(colours[i][k] + (at - i) * (colours[i + 1][k] - colours[i][k]));
    fprintf(out, "#%02x%02x%02x", c[0], c[1], c[2]);
}

/* Sums of |mean| and of mean_abs over heads and bands. */
struct sums {
    double of_mean, of_abs;
};

static void add(struct sums *s, const struct tkv_profile *p, uint32_t layer, uint32_t head,
                uint32_t band)
{
    const uint32_t n = p->shape.head_dim_k / 2;
    const float *m = tkv_profile_layer_statistics(p, layer) + (size_t)head * 3 * n + band;

    s->of_mean += hypot((double)m[0], (double)m[n]);
    s->of_abs += (double)m[2 * n];
}

static double ratio(const struct sums *s)
{
    return tkv_concentration(s->of_mean, 0, s->of_abs);
}

double tkv_profile_band_r(const struct tkv_profile *p, uint32_t layer, uint32_t band)
{
    struct sums s = {0};

    for (uint32_t h = 0; h < p->shape.n_q_heads; h++)
        add(&s, p, layer, h, band);
    return ratio(&s);
}

double tkv_profile_head_r(const struct tkv_profile *p, uint32_t layer, uint32_t head)
{
    const uint32_t n = p->shape.head_dim_k / 2;

    return tkv_head_concentration(tkv_profile_layer_statistics(p, layer) + (size_t)head * 3 * n, n);
}

double tkv_profile_layer_r(const struct tkv_profile *p, uint32_t layer)
{
    struct sums s = {0};

    for (uint32_t h = 0; h < p->shape.n_q_heads; h++) {
        for (uint32_t f = 0; f < p->shape.head_dim_k / 2; f++)
            add(&s, p, layer, h, f);
    }
    return ratio(&s);
}

static void print_head(FILE *out, const struct tkv_profile *p, double height)
{
    const struct tkv_shape *s = &p->shape;

    fprintf(out,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %.0f\" width=\"%d\" "
            "height=\"%.0f\" role=\"img\" aria-label=\"Query concentration of %s\">\n"
            "<style>\n"
            ".page{fill:#fff}.t{fill:#1c2130}.m{fill:#5b6478}.a{stroke:#9aa3b5}\n"
            "text{font-family:system-ui,'Segoe UI','DejaVu Sans',sans-serif;font-size:12px}\n"
            ".h{font-size:22px;font-weight:600}.s{font-size:14px;font-weight:600}\n"
            "rect.c:hover{stroke:#fff;stroke-width:1.5}\n"
            "@media (prefers-color-scheme:dark){.page{fill:#12151d}.t{fill:#eef1f7}"
            ".m{fill:#a3adc2}.a{stroke:#59627a}}\n"
            "</style>\n"
            "<rect class=\"page\" width=\"%d\" height=\"%.0f\"/>\n",
            WIDTH, height, WIDTH, height, p->name, WIDTH, height);
    fprintf(
        out,
        "<text class=\"t h\" x=\"%d\" y=\"42\">%s</text>\n"
        "<text class=\"m\" x=\"%d\" y=\"64\">How alike a model's queries are: R = |mean| / mean "
        "magnitude. %u layers, %u query heads on %u KV heads, %u bands, RoPE base %.9g</text>\n"
        "<text class=\"t s\" x=\"%d\" y=\"%d\">by band, over all heads</text>\n"
        "<text class=\"t s\" x=\"%d\" y=\"%d\">by query head</text>\n",
        LEFT, p->name, LEFT, p->n_layers, s->n_q_heads, s->n_kv_heads, s->head_dim_k / 2,
        p->rope_params.theta, LEFT, TOP - 10, HEADS_LEFT, TOP - 10);
}

/* One map: cells of a row, from fn. */
struct map {
    double left, width, row_height;
    uint32_t n_columns;
    const char *column;
    double (*fn)(const struct tkv_profile *p, uint32_t layer, uint32_t column);
};

/* Cells overlap by a hair, else a renderer shows seams between them. */
static void print_map(FILE *out, const struct tkv_profile *p, const struct map *m)
{
    const double w = m->width / m->n_columns, overlap = 0.4;

    fputs("<g>\n", out);
    for (uint32_t l = 0; l < p->n_layers; l++) {
        for (uint32_t c = 0; c < m->n_columns; c++) {
            const double r = m->fn(p, l, c);

            fprintf(
                out,
                "<rect class=\"c\" x=\"%.2f\" y=\"%.2f\" width=\"%.2f\" height=\"%.2f\" fill=\"",
                m->left + c * w, TOP + l * m->row_height, w + overlap, m->row_height + overlap);
            print_colour(out, r);
            fprintf(out, "\"><title>layer %u, %s %u: R %.3f</title></rect>\n", l, m->column, c, r);
        }
    }
    fputs("</g>\n", out);
}

static void print_label(FILE *out, double x, double y, const char *anchor, const char *text)
{
    fprintf(out, "<text class=\"m\" x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\">%s</text>\n", x, y,
            anchor, text);
}

static void print_tick(FILE *out, double x, double y)
{
    fprintf(out, "<line class=\"a\" x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\"/>\n", x, y, x,
            y + 5);
}

static void print_layers(FILE *out, const struct tkv_profile *p, double row_height)
{
    const uint32_t step = p->n_layers > 40 ? 8 : p->n_layers > 12 ? 4 : 1;

    for (uint32_t l = 0; l < p->n_layers; l += step) {
        char text[16];

        snprintf(text, sizeof(text), "%u", l);
        print_label(out, LEFT - 8, TOP + (l + 0.5) * row_height + 4, "end", text);
    }
    fprintf(out,
            "<text class=\"m\" transform=\"translate(%d %.1f) rotate(-90)\" "
            "text-anchor=\"middle\">layer</text>\n",
            LEFT - 40, TOP + p->n_layers * row_height / 2);
}

/* Where the wavelength, in tokens, passes a power of ten; 0 for bands that are not turned. */
static void print_wavelengths(FILE *out, const struct tkv_profile *p, double bottom)
{
    const uint32_t n = p->shape.head_dim_k / 2;
    const double w = (double)BANDS_WIDTH / n, full = 2 * 3.14159265358979323846;
    double power = 10;

    for (uint32_t f = 0; f < n && p->rope.inv_freq[f] > 0; f++) {
        const double tokens = full / (double)p->rope.inv_freq[f];
        static const char *const names[] = {"10", "100", "1k", "10k", "100k", "1M", "10M", "100M"};
        int i = -1;

        while (tokens >= power && power <= 1e8) {
            i = (int)lround(log10(power)) - 1;
            power *= 10;
        }
        if (i < 0)
            continue;
        print_tick(out, LEFT + f * w, bottom);
        print_label(out, LEFT + f * w, bottom + 19, "middle", names[i]);
    }
    print_label(out, LEFT + BANDS_WIDTH / 2.0, bottom + 38, "middle",
                "wavelength of the band, tokens (fast bands on the left)");
}

static void print_heads(FILE *out, const struct tkv_profile *p, double bottom)
{
    const uint32_t n = p->shape.n_q_heads, step = n > 40 ? 16 : n > 12 ? 8 : n > 6 ? 2 : 1;
    const double w = (double)HEADS_WIDTH / n;

    for (uint32_t h = 0; h < n; h += step) {
        char text[16];

        snprintf(text, sizeof(text), "%u", h);
        print_tick(out, HEADS_LEFT + (h + 0.5) * w, bottom);
        print_label(out, HEADS_LEFT + (h + 0.5) * w, bottom + 19, "middle", text);
    }
    print_label(out, HEADS_LEFT + HEADS_WIDTH / 2.0, bottom + 38, "middle", "query head");
}

static void print_legend(FILE *out, double y)
{
    fputs("<defs><linearGradient id=\"r\">", out);
    for (int i = 0; i < N_COLOURS; i++) {
        const double r = (double)i / (N_COLOURS - 1);

        fprintf(out, "<stop offset=\"%.3f\" stop-color=\"", r);
        print_colour(out, r);
        fputs("\"/>", out);
    }
    fprintf(
        out,
        "</linearGradient></defs>\n<rect x=\"%d\" y=\"%.1f\" width=\"%d\" height=\"12\" rx=\"2\" "
        "fill=\"url(#r)\"/>\n",
        LEFT, y, LEGEND_WIDTH);
    for (int i = 0; i <= 4; i++) {
        char text[16];

        snprintf(text, sizeof(text), "%.2g", i / 4.0);
        print_label(out, LEFT + LEGEND_WIDTH * i / 4.0, y + 28, "middle", text);
    }
    print_label(out, LEFT + LEGEND_WIDTH + 20, y + 11, "start",
                "R: 1 all queries alike, 0 no common direction");
}

void tkv_profile_plot(FILE *out, const struct tkv_profile *p)
{
    const double row = fmin(22, (double)MAX_MAP_HEIGHT / p->n_layers);
    const double bottom = TOP + row * p->n_layers;
    const struct map bands = {LEFT,   BANDS_WIDTH,       row, p->shape.head_dim_k / 2,
                              "band", tkv_profile_band_r};
    const struct map heads = {HEADS_LEFT,         HEADS_WIDTH,  row,
                              p->shape.n_q_heads, "query head", tkv_profile_head_r};

    print_head(out, p, bottom + BELOW);
    print_map(out, p, &bands);
    print_map(out, p, &heads);
    print_layers(out, p, row);
    print_wavelengths(out, p, bottom);
    print_heads(out, p, bottom);
    print_legend(out, bottom + 66);
    fputs("</svg>\n", out);
}
