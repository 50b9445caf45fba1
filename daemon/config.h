/*
 * The daemon's configuration: one table of options (config_schema.c) drives defaults,
 * reading, checking, printing and reloading.
 */
#ifndef TKV_DAEMON_CONFIG_H
#define TKV_DAEMON_CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "daemon/log.h"
#include "daemon/policy.h"
#include "proto/limits.h"

struct tkv_diag;

enum {
    TKV_CONFIG_PATH_BYTES = 1024,
    TKV_CONFIG_SOCKET_BYTES = 108, /* sun_path */
    TKV_CONFIG_MAX_OPTIONS = 56,
};

/* Where the value of an option comes from. */
struct tkv_config_origin {
    enum { TKV_FROM_DEFAULT = 0, TKV_FROM_FILE, TKV_FROM_COMMAND_LINE } source;
    uint32_t line, column; /* in the file */
};

struct tkv_config {
    char socket[TKV_CONFIG_SOCKET_BYTES];
    uint32_t socket_mode;
    uint32_t max_connections;
    uint64_t memory_cap_bytes; /* 0: auto */
    uint32_t memory_pressure;  /* percent; 0: not looked at */
    uint64_t max_payload_bytes;
    uint32_t max_sessions;
    uint32_t max_sessions_per_connection;
    uint64_t user_memory_bytes; /* 0: auto, the cap; as the next one */
    uint64_t session_memory_bytes;
    uint64_t evict_idle_ms; /* 0: never */
    uint32_t max_prefixes;
    bool prefix_across_users;
    bool warm_restart;
    uint64_t grace_ms;
    char handover[TKV_CONFIG_SOCKET_BYTES]; /* "": none */
    uint64_t request_timeout_ms;
    uint64_t idle_timeout_ms;                     /* 0: never */
    char metrics_socket[TKV_CONFIG_SOCKET_BYTES]; /* "": none, as the next ones */
    uint32_t metrics_mode;
    char metrics_listen[64];
    char metrics_page[TKV_CONFIG_PATH_BYTES];
    uint32_t n_threads; /* 0: number of CPUs */
    char cpu_disable[64];
    uint32_t ring_spin_us; /* 0: rings sleep at once */
    uint32_t log_level;    /* enum tkv_log_level */
    uint32_t log_format;   /* enum tkv_log_format */
    char profiles_directory[TKV_CONFIG_PATH_BYTES];
    char snapshot_directory[TKV_CONFIG_PATH_BYTES]; /* "": no snapshots */
    uint64_t snapshot_day_bytes;                    /* 0: no bound */
    uint64_t snapshot_every_ms;                     /* 0: never */
    bool snapshot_on_stop;
    bool snapshot_restore;
    uint64_t snapshot_deadline_ms;
    struct tkv_policy defaults;

    char file[TKV_CONFIG_PATH_BYTES];                        /* "": none was read */
    struct tkv_config_origin origin[TKV_CONFIG_MAX_OPTIONS]; /* by index of the option */
};

/* Every option at its default. */
void tkv_config_init(struct tkv_config *c);

/* Read a file over *c. Every error goes to diag; false if there was one (then *c is half
 * changed and must be thrown away). */
bool tkv_config_load(struct tkv_config *c, const char *file, struct tkv_diag *diag);

/* The same for text in memory; `name` stands for the file in messages. */
bool tkv_config_parse(struct tkv_config *c, const char *name, const char *text, size_t n,
                      struct tkv_diag *diag);

/* Set one option by its full name ("memory.cap") as the command line gives it. */
bool tkv_config_set(struct tkv_config *c, const char *option, const char *value,
                    struct tkv_diag *diag);

/* The checks that concern more than one option; errors name the line of the one at fault. */
bool tkv_config_check(const struct tkv_config *c, struct tkv_diag *diag);

/* The effective values as YAML that reads back to the same, each with its origin. */
void tkv_config_print(const struct tkv_config *c, FILE *out);

/* The name of the first option that differs and cannot be changed by a reload, or NULL. */
const char *tkv_config_fixed_difference(const struct tkv_config *a, const struct tkv_config *b);

/* True if every option has the same value in both (whatever its origin). */
bool tkv_config_equal(const struct tkv_config *a, const struct tkv_config *b);

#endif /* TKV_DAEMON_CONFIG_H */
