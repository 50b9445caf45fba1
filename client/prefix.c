/* Stored prefixes: what OPEN says of them and hears, and KEEP. */
#include "client/client.h"

#include <string.h>

#include "proto/trikv.pb-c.h"

int tkv_prefix_fill(struct trikv_client *c, const struct trikv_prefix *from, Trikv__Prefix *m,
                    struct tkv_request *r)
{
    struct trikv_prefix p = {0};
    const int e = tkv_client_read_struct(c, &p, from, sizeof(p), "trikv_prefix");

    if (e)
        return e;
    if (p.n_token_ids && !p.token_ids)
        return tkv_fail(&c->report, TRIKV_E_ARGUMENT, "prefix: token_ids is NULL");
    if (p.salt_bytes && !p.salt)
        return tkv_fail(&c->report, TRIKV_E_ARGUMENT, "prefix: salt is NULL");
    if (p.n_token_ids * (uint64_t)sizeof(uint32_t) > c->max_payload_bytes)
        return tkv_fail(&c->report, TRIKV_E_TOO_LARGE,
                        "prefix: %u token ids, a payload has at most %llu bytes", p.n_token_ids,
                        (unsigned long long)c->max_payload_bytes);
    m->n_token_ids = p.n_token_ids;
    m->has_keep = true;
    m->keep = p.keep != 0;
    m->has_salt = p.salt_bytes > 0;
    m->salt.data = (uint8_t *)(uintptr_t)p.salt;
    m->salt.len = p.salt_bytes;
    if (p.n_token_ids) {
        r->tensors[0].data = (void *)(uintptr_t)p.token_ids;
        r->tensors[0].bytes = p.n_token_ids * sizeof(uint32_t);
        r->n_tensors = 1;
    }
    return 0;
}

static enum trikv_prefix_outcome outcome_of(const char *name)
{
    static const char *const names[] = {"", "hit", "partial", "miss"};

    for (int i = TRIKV_PREFIX_HIT; name && i <= TRIKV_PREFIX_MISS; i++)
        if (strcmp(name, names[i]) == 0)
            return (enum trikv_prefix_outcome)i;
    return TRIKV_PREFIX_NOT_ASKED;
}

/* A daemon that claims more tokens than it was asked for would make the caller skip some. */
int tkv_prefix_take(struct trikv_session *s, uint32_t n_asked, const Trikv__OpenReply *m)
{
    if (m->n_prefix_tokens > n_asked) {
        tkv_stream_close(&s->client->stream);
        return tkv_fail(&s->client->report, TRIKV_E_PROTOCOL,
                        "reply of the daemon: a prefix of %u tokens, %u were asked for",
                        m->n_prefix_tokens, n_asked);
    }
    s->prefix.outcome = outcome_of(m->prefix_outcome);
    s->prefix.n_tokens = m->n_prefix_tokens;
    tkv_client_copy_text(s->prefix_reason, sizeof(s->prefix_reason),
                         m->prefix_reason ? m->prefix_reason : "");
    return 0;
}

void trikv_session_prefix(const struct trikv_session *session, struct trikv_prefix_result *result)
{
    *result = session->prefix;
    result->reason = session->prefix_reason;
}

int trikv_keep(struct trikv_session *session, uint32_t *n_tokens)
{
    struct tkv_request r = TKV_REQUEST_INIT;
    int e;

    r.reply_type = &trikv__keep_reply__descriptor;
    e = tkv_session_request(session->client, session->id, TRIKV_KEEP, &r);
    if (!e && n_tokens)
        *n_tokens = ((const Trikv__KeepReply *)r.reply)->n_tokens;
    tkv_request_deinit(&r);
    return e;
}
