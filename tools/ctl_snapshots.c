/* The commands of trikvctl that are about snapshots. */
#include <stdio.h>
#include <stdlib.h>

#include "client/request.h"
#include "client/trikv.h"
#include "proto/errors.h"
#include "proto/frame.h"
#include "proto/trikv.pb-c.h"
#include "tools/ctl_commands.h"
#include "tools/ctl_text.h"

static int ask(const struct ctl_context *x, struct tkv_request *r, uint16_t type,
               const ProtobufCMessage *message, const ProtobufCMessageDescriptor *reply_type)
{
    int e;

    r->type = type;
    r->message = message;
    r->reply_type = reply_type;
    e = tkv_request_run(x->client, r);
    r->message = NULL;
    return e;
}

int ctl_snapshot(const struct ctl_context *x)
{
    Trikv__SnapshotRequest m = TRIKV__SNAPSHOT_REQUEST__INIT;
    struct tkv_request r = TKV_REQUEST_INIT;
    struct ctl_record record = {.n_fields = 0};
    int e;

    m.session = x->session;
    m.name = (char *)(uintptr_t)x->name;
    e = ask(x, &r, TRIKV_SNAPSHOT, &m.base, &trikv__snapshot_reply__descriptor);
    if (!e) {
        const Trikv__SnapshotReply *reply = (const Trikv__SnapshotReply *)r.reply;

        ctl_add_text(&record, "name", "snapshot", x->name);
        ctl_add_count(&record, "n_seen", "seen", CTL_COUNT, reply->n_seen);
        ctl_add_count(&record, "file_bytes", "file", CTL_BYTES, reply->file_bytes);
        ctl_print_one(x->json, &record);
    }
    tkv_request_deinit(&r);
    return e;
}

/* Take it back and let it go at once as a stored prefix: others that begin the same begin warm. */
int ctl_restore(const struct ctl_context *x)
{
    struct trikv_session *s = NULL;
    struct ctl_record record = {.n_fields = 0};
    uint32_t n_tokens = 0;
    int e = trikv_restore(x->client, x->name, &s);

    if (!e)
        e = trikv_keep(s, &n_tokens);
    if (e)
        return e;
    ctl_add_text(&record, "name", "snapshot", x->name);
    ctl_add_count(&record, "n_tokens", "prefix of tokens", CTL_COUNT, n_tokens);
    ctl_print_one(x->json, &record);
    return 0;
}

int ctl_snapshot_delete(const struct ctl_context *x)
{
    struct ctl_record record = {.n_fields = 0};
    const int e = trikv_snapshot_delete(x->client, x->name);

    if (e)
        return e;
    ctl_add_text(&record, "deleted", "deleted", x->name);
    ctl_print_one(x->json, &record);
    return 0;
}

static void print_list(const struct ctl_context *x, const Trikv__SnapshotListReply *m,
                       const struct ctl_record *records)
{
    if (x->json) {
        printf("{\"total\": %u, \"snapshots\":\n", m->snapshots_total);
        ctl_json_array(stdout, records, m->n_snapshots);
        puts("}");
        return;
    }
    ctl_print_table(stdout, records, m->n_snapshots);
    if (m->n_snapshots == 0)
        puts("no snapshots");
    if (m->snapshots_total > m->n_snapshots)
        printf("... and %zu more\n", (size_t)m->snapshots_total - m->n_snapshots);
}

int ctl_snapshots(const struct ctl_context *x)
{
    struct tkv_request r = TKV_REQUEST_INIT;
    struct ctl_record *records;
    int e = ask(x, &r, TRIKV_SNAPSHOT_LIST, NULL, &trikv__snapshot_list_reply__descriptor);

    if (!e) {
        const Trikv__SnapshotListReply *m = (const Trikv__SnapshotListReply *)r.reply;

        records = calloc(m->n_snapshots + 1, sizeof(*records));
        for (size_t i = 0; records && i < m->n_snapshots; i++) {
            ctl_add_text(&records[i], "name", "snapshot", m->snapshots[i]->name);
            ctl_add_count(&records[i], "file_bytes", "file", CTL_BYTES,
                          m->snapshots[i]->file_bytes);
            ctl_add_number(&records[i], "age_s", "age", CTL_SECONDS, m->snapshots[i]->age_s);
        }
        if (records)
            print_list(x, m, records);
        else
            e = TRIKV_E_NO_MEMORY;
        free(records);
    }
    tkv_request_deinit(&r);
    return e;
}
