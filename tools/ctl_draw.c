/* Drawing a view of the daemon on a terminal of any size. */
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "tools/ctl_text.h"
#include "tools/ctl_view.h"

enum { OLD_MS = 3500, LINE_BYTES = 512, MIN_BAR = 10 };

/* Colours of the tiers, as on the status page; and the letters that stand for them without. */
static const unsigned char tier_colour[TRIKV_STATS_TIERS] = {175, 178, 25, 74, 36, 245};
static const char tier_letter[] = "ptkvmo";
static const char *const tier_name[TRIKV_STATS_TIERS] = {"pinned", "tail", "keys",
                                                         "values", "meta", "other"};

struct pen {
    FILE *out;
    const struct ctl_screen *screen;
    unsigned n_lines;
};

/* A whole line of plain text, cut to the screen. */
static void line(struct pen *p, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void line(struct pen *p, const char *format, ...)
{
    char text[LINE_BYTES];
    size_t columns = 0, n = 0;
    va_list args;

    if (p->n_lines++ >= p->screen->rows)
        return;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    for (; text[n]; n++) {
        columns += ((unsigned char)text[n] & 0xc0) != 0x80;
        if (columns > p->screen->columns)
            break;
    }
    fwrite(text, 1, n, p->out);
    fputc('\n', p->out);
}

static const char *shown(enum ctl_kind kind, double number, uint64_t count, char *buf, size_t n)
{
    const struct ctl_field f = {.kind = kind, .text = "", .number = number, .count = count};

    ctl_format(&f, buf, n);
    return buf;
}

#define BYTES(x)   shown(CTL_BYTES, 0, x, (char[32]){0}, 32)
#define SECONDS(x) shown(CTL_SECONDS, x, 0, (char[32]){0}, 32)

static void cells(struct pen *p, unsigned n, size_t tier)
{
    if (n && p->screen->colours)
        fprintf(p->out, "\033[48;5;%um%*s\033[0m", tier_colour[tier], (int)n, "");
    else
        for (; n; n--)
            fputc(tier_letter[tier], p->out);
}

/* A bar of `width` cells: each tier's share of `whole`, rounded so that the sum is right. */
static void tier_bar(struct pen *p, const uint64_t *bytes, uint64_t whole, unsigned width)
{
    uint64_t sum = 0;
    unsigned done = 0;

    for (size_t i = 0; i < TRIKV_STATS_TIERS && whole; i++) {
        unsigned to;

        sum += bytes[i];
        to = (unsigned)((double)width * (double)sum / (double)whole + 0.5);
        to = to > width ? width : to;
        cells(p, to - done, i);
        done = to;
    }
    fprintf(p->out, "%*s", (int)(width - done), "");
}

static double ratio(uint64_t fp16_bytes, uint64_t resident_bytes)
{
    return resident_bytes ? (double)fp16_bytes / (double)resident_bytes : 0;
}

/* Is the process of the page there? A pid may have been given to another since. */
static const char *fate(uint32_t pid)
{
    return kill((pid_t)pid, 0) == 0 || errno == EPERM ? "is there but does nothing" : "is gone";
}

static void draw_head(struct pen *p, const struct trikv_stats_page *x)
{
    static const char *const states[] = {"serving", "draining", "STALLED"};
    const uint64_t age_ms =
        p->screen->now_ms > x->updated_ms ? p->screen->now_ms - x->updated_ms : 0;

    if (p->screen->has_page && age_ms > OLD_MS)
        line(p, "NO NEWS FOR %s: process %u %s", SECONDS((double)age_ms / 1000), x->pid,
             fate(x->pid));
    line(p, "trikvd %s  up %s  %s  %u connections  %u threads  %u jobs waiting, %u running",
         x->trikvd_version, SECONDS((double)(x->updated_ms - x->started_ms) / 1000),
         x->state < 3 ? states[x->state] : "?", x->n_connections, x->n_threads, x->n_queued_jobs,
         x->n_running_jobs);
    line(p, "memory  %s of %s (%.0f %%), peak %s", BYTES(x->memory_used_bytes),
         BYTES(x->memory_cap_bytes),
         x->memory_cap_bytes ? 100 * (double)x->memory_used_bytes / (double)x->memory_cap_bytes : 0,
         BYTES(x->memory_peak_bytes));
    line(p, "caches  %s of fp16 in %s: %.1fx", BYTES(x->fp16_bytes), BYTES(x->resident_bytes),
         ratio(x->fp16_bytes, x->resident_bytes));
}

static void draw_rates(struct pen *p, const struct trikv_stats_page *x,
                       const struct trikv_stats_page *before)
{
    double s = 0;

    if (before && before->boot_id == x->boot_id && x->updated_ms > before->updated_ms)
        s = (double)(x->updated_ms - before->updated_ms) / 1000;
    if (s > 0)
        line(p, "rates   %.0f tokens/s  %.0f rows/s  %.0f requests/s  %.0f errors/s  %.0f rounds/s",
             (double)(x->n_tokens_appended - before->n_tokens_appended) / s,
             (double)(x->n_rows_attended - before->n_rows_attended) / s,
             (double)(x->n_requests - before->n_requests) / s,
             (double)(x->n_errors - before->n_errors) / s,
             (double)(x->n_rounds - before->n_rounds) / s);
    else
        line(p,
             "totals  %" PRIu64 " tokens  %" PRIu64 " rows  %" PRIu64 " requests  %" PRIu64
             " errors  %" PRIu64 " rounds",
             x->n_tokens_appended, x->n_rows_attended, x->n_requests, x->n_errors, x->n_rounds);
}

static void draw_tiers(struct pen *p, const struct trikv_stats_page *x)
{
    const unsigned width = p->screen->columns;
    unsigned used = 8;

    if (!p->screen->has_page || width < 80 || p->n_lines + 2 > p->screen->rows)
        return;
    fputs("tiers   ", p->out);
    tier_bar(p, x->tier_bytes, x->resident_bytes, width - used);
    fputs("\n        ", p->out);
    p->n_lines += 2;
    for (size_t i = 0; i < TRIKV_STATS_TIERS; i++) {
        const char *bytes = BYTES(x->tier_bytes[i]);
        const unsigned n = (unsigned)(strlen(tier_name[i]) + strlen(bytes)) + 5;

        if (used + n > width)
            break;
        used += n;
        cells(p, 1, i);
        fprintf(p->out, " %s %s  ", tier_name[i], bytes);
    }
    fputc('\n', p->out);
}

static int by_size(const void *a, const void *b)
{
    const struct trikv_stats_session *const *x = a, *const *y = b;

    return ((*x)->resident_bytes < (*y)->resident_bytes) -
           ((*x)->resident_bytes > (*y)->resident_bytes);
}

static void draw_session(struct pen *p, const struct trikv_stats_session *s, uint64_t most_bytes)
{
    enum { TABLE = 82 }; /* columns before the bar */
    const unsigned bar = p->screen->columns > TABLE + MIN_BAR ? p->screen->columns - TABLE : 0;
    const struct ctl_field label = {.kind = CTL_TEXT, .text = s->label};
    char text[LINE_BYTES], name[64];

    ctl_format(&label, name, 20);
    snprintf(text, sizeof(text), "%8" PRIx64 "  %-18s %9" PRIu64 " %9.0f %11s %6.1fx %6u %9s",
             s->session, name, s->n_seen, s->n_kept, BYTES(s->resident_bytes),
             ratio(s->fp16_bytes, s->resident_bytes), s->n_rounds,
             s->busy || s->idle_s < 1 ? "active" : SECONDS(s->idle_s));
    if (!bar || !p->screen->has_page || strlen(text) > TABLE - 1 || p->n_lines >= p->screen->rows) {
        line(p, "%s", text);
        return;
    }
    fprintf(p->out, "%-*s", TABLE, text);
    tier_bar(p, s->tier_bytes, most_bytes, bar);
    fputc('\n', p->out);
    p->n_lines++;
}

static void draw_sessions(struct pen *p, const struct trikv_stats_page *x)
{
    const struct trikv_stats_session *list[TRIKV_STATS_SESSIONS] = {NULL};
    uint32_t n_shown = x->n_listed;

    for (uint32_t i = 0; i < x->n_listed; i++)
        list[i] = &x->session[i];
    qsort(list, x->n_listed, sizeof(list[0]), by_size);
    line(p, "%s", "");
    line(p,
         " SESSION  LABEL                   SEEN      KEPT    RESIDENT   RATIO ROUNDS      IDLE");
    if (p->n_lines + n_shown > p->screen->rows)
        n_shown = p->screen->rows > p->n_lines ? p->screen->rows - p->n_lines - 1 : 0;
    for (uint32_t i = 0; i < n_shown; i++)
        draw_session(p, list[i], list[0]->resident_bytes);
    if (x->n_sessions > n_shown)
        line(p, "... and %u more", x->n_sessions - n_shown);
    else if (!x->n_sessions)
        line(p, "no sessions");
}

void ctl_view_draw(FILE *out, const struct trikv_stats_page *now,
                   const struct trikv_stats_page *before, const struct ctl_screen *screen)
{
    struct pen p = {.out = out, .screen = screen};

    draw_head(&p, now);
    draw_rates(&p, now, before);
    draw_tiers(&p, now);
    draw_sessions(&p, now);
}
