/* The command line of trikv-run. */
#ifndef TKV_TOOLS_RUN_OPTIONS_H
#define TKV_TOOLS_RUN_OPTIONS_H

#include <stdbool.h>
#include <stdint.h>

#include "tools/attention_daemon.h"

/* What was asked for, checked; texts are views into argv. */
struct tkv_run_options {
    const char *model, *text, *prompt;
    const char *calibrate; /* the profile to write, or NULL */
    uint64_t n_tokens, n_skip, n_chunk, n_generate, n_threads, seed;
    double temperature;
    bool local, compare_local, json, generate_given;
    const char *daemon_option; /* the first one given, which --local does not go with */
    struct tkv_remote_options remote;
};

/* -1: run; otherwise the exit status, everything that is to be said having been said. */
int tkv_run_options_parse(struct tkv_run_options *o, int argc, char **argv);

#endif /* TKV_TOOLS_RUN_OPTIONS_H */
