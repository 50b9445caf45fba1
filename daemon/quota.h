/*
 * Who may hold how much of the memory under the cap: every user one share, and in it every family of
 * sessions (a session and its forks, which have memory in common) one. A share is a budget whose whole
 * is the next larger one; its cap is limits.user_memory or limits.session_memory.
 *
 * A user's share counts its sessions with their observations, what its connections read, and its
 * staging areas; a session that began as a fork of another user's stored prefix counts with that user.
 * Loop thread only, but for the budgets.
 */
#ifndef TKV_DAEMON_QUOTA_H
#define TKV_DAEMON_QUOTA_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "proto/report.h"
#include "store/budget.h"

struct tkv_server;

struct tkv_quota {
    struct tkv_budget budget;
    struct tkv_server *server;
    struct tkv_quota *user; /* of a family: whose; of a user: NULL */
    struct tkv_quota *next; /* of a user: in server->users */
    uid_t uid;
    uint32_t n_refs;
};

/* A reference to the share of a user, or to a new one inside it; NULL over the cap. */
struct tkv_quota *tkv_quota_of_user(struct tkv_server *s, uid_t uid);
struct tkv_quota *tkv_quota_of_family(struct tkv_quota *user);

struct tkv_quota *tkv_quota_ref(struct tkv_quota *q);
void tkv_quota_unref(struct tkv_quota **q); /* NULL is allowed */

/* If a request failed because this share is used up: true, said so in *why, and not said again. */
bool tkv_quota_explain(struct tkv_quota *q, struct tkv_report *why);

#endif /* TKV_DAEMON_QUOTA_H */
