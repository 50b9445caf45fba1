/*
 * What clients ask for less often, once through: a profile with a gate, a prefix with its ids, a ring, files.
 * For tests/fault/faults.c, which lets the daemon's calls fail meanwhile.
 */
#ifndef TKV_TESTS_FAULT_WIDE_H
#define TKV_TESTS_FAULT_WIDE_H

#include <stdbool.h>

struct daemon_aid;

/* The daemon's configuration, with a directory of files that deinit removes. */
void wide_init(char *config, unsigned long n);
void wide_deinit(void);

/* Give a daemon its profile, and wait until it has it. */
void wide_add_profile(const struct daemon_aid *d);

/* All of it, as far as it comes; how far that is. Errors are those that a fault may have (with `sticky`
 * no answer at all, either), a session that came back from its file has every bit, and no part of a
 * file is left. */
const char *wide_play(const char *socket, bool sticky);

#endif /* TKV_TESTS_FAULT_WIDE_H */
