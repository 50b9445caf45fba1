/* The commands of trikvctl: one request each, and what is printed of its answer. */
#ifndef TKV_TOOLS_CTL_COMMANDS_H
#define TKV_TOOLS_CTL_COMMANDS_H

#include <stdbool.h>
#include <stdint.h>

struct trikv_client;
struct trikv_options;

struct ctl_context {
    struct trikv_client *client;
    const char *socket; /* as given on the command line, NULL: the default */
    double connect_s;   /* how long connecting took */
    uint64_t session;   /* of commands that name one */
    const char *name;   /* of commands that want one */
    bool json;
    bool gate;                           /* session show: --gate */
    bool once;                           /* top: print and leave */
    const char *page;                    /* top: --page, or NULL */
    const struct trikv_options *options; /* for commands that connect when they want to */
};

/* Each returns 0 or a trikv_error, and has printed only on success. */
int ctl_ping(const struct ctl_context *x);
int ctl_info(const struct ctl_context *x);
int ctl_sessions(const struct ctl_context *x);
int ctl_prefixes(const struct ctl_context *x);
int ctl_session_show(const struct ctl_context *x);
int ctl_stats(const struct ctl_context *x);
int ctl_drop(const struct ctl_context *x);
int ctl_snapshot(const struct ctl_context *x);
int ctl_restore(const struct ctl_context *x);
int ctl_snapshots(const struct ctl_context *x);
int ctl_snapshot_delete(const struct ctl_context *x);
int ctl_config(const struct ctl_context *x);
int ctl_profiles(const struct ctl_context *x);

/* These need no daemon: they have no client, and print their own errors. */
int ctl_top(const struct ctl_context *x);
int ctl_doctor(const struct ctl_context *x);

#endif /* TKV_TOOLS_CTL_COMMANDS_H */
