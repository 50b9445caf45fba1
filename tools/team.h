/* A fixed team of threads that works on one loop at a time, as a struct tkv_exec. */
#ifndef TKV_TOOLS_TEAM_H
#define TKV_TOOLS_TEAM_H

#include "core/types.h"
#include "tools/reason.h"

struct tkv_team;

/*
 * n_threads >= 1, the caller's thread counts as one. 0, or -1 with a text. The team
 * serves one caller at a time: two threads must not run loops on it together.
 */
int tkv_team_create(struct tkv_team **team, unsigned n_threads, struct tkv_reason *why);
void tkv_team_destroy(struct tkv_team **team);

/* View, valid as long as the team. */
const struct tkv_exec *tkv_team_exec(const struct tkv_team *team);

/* The number of processors this process may use, at least 1. */
unsigned tkv_team_default_threads(void);

#endif /* TKV_TOOLS_TEAM_H */
