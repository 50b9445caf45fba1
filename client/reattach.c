/* Coming back to a daemon that has been started again, and to the sessions that it took over. */
#include "client/client.h"

#include "proto/trikv.pb-c.h"

int trikv_reconnect(struct trikv_client *client)
{
    return tkv_client_connect_again(client);
}

uint64_t trikv_session_boot_id(const struct trikv_session *session)
{
    return session->boot_id;
}

static void take_progress(const Trikv__ReattachReply *m, struct trikv_progress *p)
{
    for (uint32_t i = 0; p->n_seen && i < m->n_n_seen && i < p->n_seen_cap; i++)
        p->n_seen[i] = m->n_seen[i];
    p->n_layers = (uint32_t)m->n_n_seen;
    p->n_rounds = m->n_rounds;
    p->n_token_ids = m->n_token_ids;
}

/* *session NULL: it is made. */
static int take_reply(struct trikv_client *c, const Trikv__ReattachReply *m,
                      struct trikv_session **session)
{
    const struct tkv_client_layers layers = {m->layers, m->n_layers};
    int e = 0;

    if (!*session)
        e = tkv_session_of_layers(c, &layers, session);
    if (!e && m->n_n_seen != (*session)->n_layers) {
        tkv_stream_close(&c->stream);
        e = tkv_fail(&c->report, TRIKV_E_PROTOCOL, "reply of the daemon: %zu layers, want %u",
                     m->n_n_seen, (*session)->n_layers);
    }
    return e;
}

static int reattach(struct trikv_client *c, uint64_t id, uint64_t boot_id,
                    struct trikv_progress *progress, struct trikv_session **session)
{
    struct trikv_progress p = {0};
    Trikv__ReattachRequest m = TRIKV__REATTACH_REQUEST__INIT;
    struct tkv_request r = TKV_REQUEST_INIT;
    int e = progress ? tkv_client_read_struct(c, &p, progress, sizeof(p), "trikv_progress") : 0;

    if (e)
        return e;
    m.session = id;
    m.boot_id = boot_id;
    r.type = TRIKV_REATTACH;
    r.message = &m.base;
    r.reply_type = &trikv__reattach_reply__descriptor;
    e = tkv_request_run(c, &r);
    if (!e)
        e = take_reply(c, (const Trikv__ReattachReply *)r.reply, session);
    if (!e) {
        (*session)->id = id;
        (*session)->boot_id = boot_id;
    }
    if (!e && progress)
        take_progress((const Trikv__ReattachReply *)r.reply, progress);
    tkv_request_deinit(&r);
    return e;
}

int trikv_reattach(struct trikv_session *session, struct trikv_progress *progress)
{
    return reattach(session->client, session->id, session->boot_id, progress, &session);
}

int trikv_reattach_id(struct trikv_client *client, uint64_t id, uint64_t boot_id,
                      struct trikv_progress *progress, struct trikv_session **session)
{
    *session = NULL;
    return reattach(client, id, boot_id, progress, session);
}
