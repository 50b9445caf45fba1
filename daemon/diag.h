/* A list of messages about files, each "file:line:column: what", lines and columns from 1. */
#ifndef TKV_DAEMON_DIAG_H
#define TKV_DAEMON_DIAG_H

#include <stddef.h>
#include <stdint.h>

/* Enough to mend a file in one go; a file of garbage does not fill the log. */
enum { TKV_MAX_DIAG = 100 };

/* Zeroed to begin with. */
struct tkv_diag {
    size_t n;
    size_t n_dropped; /* over TKV_MAX_DIAG, or out of memory */
    char *line[TKV_MAX_DIAG];
};

/* line 0: the message concerns the file as a whole. */
void tkv_diag_add(struct tkv_diag *d, const char *file, uint32_t line, uint32_t column,
                  const char *format, ...) __attribute__((format(printf, 5, 6)));
void tkv_diag_deinit(struct tkv_diag *d);

#endif /* TKV_DAEMON_DIAG_H */
