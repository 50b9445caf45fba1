/* Sessions in files of the daemon's: the requests about them. */
#include "client/client.h"

#include "proto/trikv.pb-c.h"

static int check_name(struct trikv_client *c, const char *name)
{
    return name ? 0 : tkv_fail(&c->report, TRIKV_E_ARGUMENT, "name is NULL");
}

int trikv_snapshot(struct trikv_session *session, const char *name, uint64_t *file_bytes)
{
    Trikv__SnapshotRequest m = TRIKV__SNAPSHOT_REQUEST__INIT;
    struct tkv_request r = TKV_REQUEST_INIT;
    int e = check_name(session->client, name);

    if (e)
        return e;
    m.session = session->id;
    m.name = (char *)(uintptr_t)name;
    r.type = TRIKV_SNAPSHOT;
    r.message = &m.base;
    r.reply_type = &trikv__snapshot_reply__descriptor;
    e = tkv_request_run(session->client, &r);
    if (!e && file_bytes)
        *file_bytes = ((const Trikv__SnapshotReply *)r.reply)->file_bytes;
    tkv_request_deinit(&r);
    return e;
}

int trikv_restore(struct trikv_client *client, const char *name, struct trikv_session **session)
{
    Trikv__RestoreRequest m = TRIKV__RESTORE_REQUEST__INIT;
    struct tkv_request r = TKV_REQUEST_INIT;
    int e = check_name(client, name);

    *session = NULL;
    if (e)
        return e;
    m.name = (char *)(uintptr_t)name;
    r.type = TRIKV_RESTORE;
    r.message = &m.base;
    r.reply_type = &trikv__fork_reply__descriptor;
    e = tkv_request_run(client, &r);
    if (!e)
        e = tkv_session_take(client, (const Trikv__ForkReply *)r.reply, session);
    tkv_request_deinit(&r);
    return e;
}

int trikv_snapshot_delete(struct trikv_client *client, const char *name)
{
    Trikv__SnapshotNameRequest m = TRIKV__SNAPSHOT_NAME_REQUEST__INIT;
    struct tkv_request r = TKV_REQUEST_INIT;
    int e = check_name(client, name);

    if (e)
        return e;
    m.name = (char *)(uintptr_t)name;
    r.type = TRIKV_SNAPSHOT_DELETE;
    r.message = &m.base;
    r.reply_type = &trikv__empty__descriptor;
    e = tkv_request_run(client, &r);
    tkv_request_deinit(&r);
    return e;
}
