/*
 * What `trikvctl top` shows, in the form of the stats page: read from the page itself, or asked for
 * with requests where there is no page to read.
 */
#ifndef TKV_TOOLS_CTL_VIEW_H
#define TKV_TOOLS_CTL_VIEW_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "proto/stats_page.h"

struct trikv_client;

/* Copy the page in this file: 0, or an errno; EPROTO: the file is no stats page of this version. */
int ctl_view_read_page(const char *path, struct trikv_stats_page *out);

/* Ask the daemon: 0 or a trikv_error. Tiers stay 0: they are only on the page. */
int ctl_view_ask(struct trikv_client *c, struct trikv_stats_page *out);

struct ctl_screen {
    unsigned columns;
    unsigned rows;
    bool colours;
    bool has_page;   /* tiers are known, and the age tells whether the daemon lives */
    uint64_t now_ms; /* CLOCK_MONOTONIC */
};

/* Draw it; `before` (or NULL) is an older view, for rates. No line is longer than the screen, nor are
 * there more of them. */
void ctl_view_draw(FILE *out, const struct trikv_stats_page *now,
                   const struct trikv_stats_page *before, const struct ctl_screen *screen);

#endif /* TKV_TOOLS_CTL_VIEW_H */
