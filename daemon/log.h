/*
 * The log: one line an event, logfmt or JSON, on stderr. Under the service manager lines begin with
 * the priority that the journal reads. Tensor data never goes in here. Loop thread
 * (or main, before the loop) only.
 */
#ifndef TKV_DAEMON_LOG_H
#define TKV_DAEMON_LOG_H

#include <stdbool.h>
#include <stddef.h>

enum tkv_log_level { TKV_LOG_ERROR = 0, TKV_LOG_WARN = 1, TKV_LOG_INFO = 2, TKV_LOG_DEBUG = 3 };

enum tkv_log_format { TKV_LOG_LOGFMT = 0, TKV_LOG_JSON = 1 };

struct tkv_log {
    enum tkv_log_level level; /* lines above it are dropped */
    enum tkv_log_format format;
    bool journal;
};

/* "error", "warn", ...: the names of the configuration, NULL-ended. */
extern const char *const tkv_log_level_names[];
extern const char *const tkv_log_format_names[];

void tkv_log_init(struct tkv_log *log, enum tkv_log_level level);

/* Write "level=... " and the rest, which the caller gives as key=value pairs. */
void tkv_log(const struct tkv_log *log, enum tkv_log_level level, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* text as a quoted value in buf[n], cut to fit; returns buf. For text that others chose. */
const char *tkv_log_quote(char *buf, size_t n, const char *text);

/* The pairs of a logfmt line as one JSON object in buf[n], cut after the last pair that fits;
 * returns its length. Numbers stay numbers. */
size_t tkv_log_json(const char *logfmt, char *buf, size_t n);

#endif /* TKV_DAEMON_LOG_H */
