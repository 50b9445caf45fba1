/*
 * The staging area of a connection: a memfd that the client made and both map, so that tensors
 * need not go through the socket. The client can change it at any time: nothing read from
 * it is trusted twice.
 */
#ifndef TKV_DAEMON_STAGING_H
#define TKV_DAEMON_STAGING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/report.h"

struct tkv_budget;

/* Is fd a memfd of exactly `bytes`, which cannot shrink? `what` names it in errors. */
int tkv_memfd_check(int fd, uint64_t bytes, const char *what, struct tkv_report *why);

struct tkv_staging {
    char *base; /* NULL: there is none */
    size_t bytes;
};

/* Map fd, which must be a memfd of exactly `bytes`, sealed against shrinking. fd stays the
 * caller's. Counted in the budget. */
int tkv_staging_open(struct tkv_staging *g, struct tkv_budget *budget, int fd, uint64_t bytes,
                     uint64_t max_bytes, struct tkv_report *why);
void tkv_staging_close(struct tkv_staging *g, struct tkv_budget *budget);

/* *p = the address of bytes [offset, offset + n); `what` names them in errors. */
int tkv_staging_range(const struct tkv_staging *g, uint64_t offset, uint64_t n, const char *what,
                      char **p, struct tkv_report *why);

#endif /* TKV_DAEMON_STAGING_H */
