/*
 * The quality lab: every policy at every ratio and context, each as large as it may be
 * (tools/contender.h), over the windows of one text (tools/windows.h), in a trikvd of its own.
 * JSON and the HTML report are made of the rows that come out.
 */
#ifndef TKV_TOOLS_FRONTIER_H
#define TKV_TOOLS_FRONTIER_H

#include <stdio.h>
#include <time.h>

#include "tools/contender.h"
#include "tools/windows.h"

enum { TKV_MAX_POLICIES = 32, TKV_MAX_RATIOS = 16, TKV_MAX_CONTEXTS = 8 };

struct tkv_frontier_options {
    const char *daemon, *config, *profiles, *profile, *model, *text; /* NULL: the usual one */
    const char *json, *html;
    size_t n_policies, n_ratios, n_contexts;
    char *policies[TKV_MAX_POLICIES];
    bool policies_named; /* by the user: one that is not known is a mistake */
    double ratios[TKV_MAX_RATIOS];
    uint64_t contexts[TKV_MAX_CONTEXTS];
    uint64_t n_windows, n_threads, seed;
    bool needles;
};

struct tkv_frontier_row {
    const struct tkv_contender *policy;
    size_t context;
    double target_ratio; /* 0: this policy has only one size */
    struct tkv_remote_options settings;
    struct tkv_replayed replayed;
    struct tkv_outcome outcome;
    char error[384]; /* why there are no numbers; "" if there are */
};

struct tkv_frontier_machine {
    char name[128];     /* of the processor, as the kernel gives it */
    char features[128]; /* instruction sets in use */
    unsigned n_threads;
};

struct tkv_frontier {
    const struct tkv_frontier_options *o;
    struct tkv_engine engine;
    char model_path[4096];
    struct tkv_frontier_machine machine;
    time_t start;
    double seconds;
    size_t n_prose;
    bool overlap; /* windows of the longest context */
    struct tkv_contender contenders[TKV_MAX_POLICIES];
    size_t n_contenders;
    struct tkv_frontier_row *rows; /* [n_rows] */
    size_t n_rows, n_failed;
};

/* Run it all, with a line on stdout for each row. 0 with every row there is, even if some have an
 * error; -1 with a text. To be given to tkv_frontier_deinit in any case. */
int tkv_frontier_run(struct tkv_frontier *f, const struct tkv_frontier_options *o,
                     struct tkv_reason *why);
void tkv_frontier_deinit(struct tkv_frontier *f);

/* fp16 bytes over resident bytes. */
double tkv_frontier_ratio(const struct tkv_frontier_row *row);

void tkv_frontier_write_json(const struct tkv_frontier *f, FILE *out);
void tkv_frontier_write_html(const struct tkv_frontier *f, FILE *out);

/* The tables of one context. Part of the HTML report. */
void tkv_frontier_write_tables(const struct tkv_frontier *f, size_t context, FILE *out);

#endif /* TKV_TOOLS_FRONTIER_H */
