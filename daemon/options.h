/* The command line. */
#ifndef TKV_DAEMON_OPTIONS_H
#define TKV_DAEMON_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>

struct tkv_config;
struct tkv_diag;

enum { TKV_MAX_OVERRIDES = 16 };

struct tkv_options {
    enum { TKV_SERVE = 0, TKV_CHECK_CONFIG, TKV_DUMP_CONFIG, TKV_HELP, TKV_SHOW_VERSION } action;
    const char *config_file; /* NULL: the default one, if it is there */
    size_t n_overrides;
    struct {
        const char *option; /* "memory.cap" */
        const char *value;
    } override[TKV_MAX_OVERRIDES];
};

/* False if the command line is wrong: *message (static or of argv) says how. */
bool tkv_options_parse(struct tkv_options *o, int argc, char **argv, char *message,
                       size_t message_bytes);

/* The configuration that these options ask for: file, then overrides, then the whole checked. */
bool tkv_options_config(const struct tkv_options *o, struct tkv_config *c, struct tkv_diag *diag);

/* The text of --help. */
const char *tkv_options_help(void);

#endif /* TKV_DAEMON_OPTIONS_H */
