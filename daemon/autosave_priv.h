/* What is in line to be written, and its names. Only daemon/autosave*.c include this. */
#ifndef TKV_DAEMON_AUTOSAVE_PRIV_H
#define TKV_DAEMON_AUTOSAVE_PRIV_H

#include "daemon/autosave.h"

#include "daemon/pool.h"
#include "proto/report.h"

struct tkv_quota;
struct tkv_session;

struct tkv_autosave_item {
    struct tkv_job job;
    struct tkv_server *server;
    struct tkv_autosave_item *next;
    uint64_t id; /* of the session, which may be gone */
    uint64_t unsaved_ms;
    uid_t uid;
    char name[TRIKV_MAX_NAME_BYTES + 1];
    char label[TRIKV_MAX_NAME_BYTES + 1];
    enum tkv_autosave_when when;
    struct tkv_session *fork;
    struct tkv_quota *quota; /* where the fork counts, whatever becomes of its parent */
    uint8_t *meta;
    size_t meta_bytes;
    uint64_t about_bytes, file_bytes;
    bool running;
    bool discard; /* its client is done with it meanwhile */
    struct tkv_report why;
};

/* Does a session of this user, or what is being written of one, have this file? */
bool tkv_autosave_is_taken(const struct tkv_server *s, uid_t uid, const char *name);

/* The entry has a name for its file from now on. */
void tkv_autosave_name(struct tkv_session_entry *e);

#endif /* TKV_DAEMON_AUTOSAVE_PRIV_H */
