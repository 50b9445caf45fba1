/* Forks and going back: the requests that make a session out of another, or of an earlier state. */
#include "client/client.h"

#include <stdlib.h>

#include "proto/trikv.pb-c.h"

/* What the library itself relies on of a daemon's word about layers; their number is *n_layers. */
static const char *check_layers(const struct tkv_client_layers *m, uint32_t *n_layers)
{
    *n_layers = 0;
    for (size_t i = 0; i < m->n; i++) {
        const Trikv__Layer *l = m->layers[i];

        if (l->repeat < 1 || l->repeat > TRIKV_MAX_LAYERS - *n_layers)
            return "layers are too many";
        if (l->n_q_heads == 0 || l->n_q_heads > TRIKV_MAX_HEADS)
            return "a layer's heads are out of range";
        *n_layers += l->repeat;
    }
    return *n_layers > 0 ? NULL : "no layers";
}

static struct trikv_session *create_session(struct trikv_client *c,
                                            const struct tkv_client_layers *m, uint32_t n_layers)
{
    const uint32_t n_shapes = m->n == 1 ? 1 : n_layers;
    struct trikv_session *s = calloc(1, sizeof(*s) + n_shapes * sizeof(s->shapes[0]));
    uint32_t layer = 0;

    if (!s)
        return NULL;
    s->client = c;
    s->boot_id = c->info.boot_id;
    s->n_layers = n_layers;
    s->n_shapes = n_shapes;
    for (size_t i = 0; i < m->n; i++) {
        const Trikv__Layer *l = m->layers[i];

        for (uint32_t r = 0; r < l->repeat && layer < n_shapes; r++)
            s->shapes[layer++] = (struct tkv_shape){.n_q_heads = l->n_q_heads,
                                                    .n_kv_heads = l->n_kv_heads,
                                                    .head_dim_k = l->head_dim_k,
                                                    .head_dim_v = l->head_dim_v,
                                                    .rope_dim = l->rope_dim};
    }
    return s;
}

int tkv_session_of_layers(struct trikv_client *c, const struct tkv_client_layers *m,
                          struct trikv_session **child)
{
    uint32_t n_layers;
    const char *why = check_layers(m, &n_layers);

    if (why) {
        tkv_stream_close(&c->stream);
        return tkv_fail(&c->report, TRIKV_E_PROTOCOL, "reply of the daemon: %s", why);
    }
    *child = create_session(c, m, n_layers);
    if (!*child) {
        tkv_stream_close(&c->stream); /* the daemon has a session that nobody could close */
        return tkv_fail(&c->report, TRIKV_E_DISCONNECTED, "no memory for a session");
    }
    tkv_session_add(*child);
    return 0;
}

int tkv_session_take(struct trikv_client *c, const Trikv__ForkReply *m,
                     struct trikv_session **child)
{
    const struct tkv_client_layers layers = {m->layers, m->n_layers};
    const int e = tkv_session_of_layers(c, &layers, child);

    if (!e) {
        (*child)->id = m->session;
        (*child)->reserved_bytes = m->reserved_bytes;
    }
    return e;
}

int trikv_fork_id(struct trikv_client *client, uint64_t parent,
                  const struct trikv_fork_options *options, struct trikv_session **child)
{
    struct trikv_fork_options o = {0};
    Trikv__ForkRequest m = TRIKV__FORK_REQUEST__INIT;
    struct tkv_request r = TKV_REQUEST_INIT;
    int e =
        options ? tkv_client_read_struct(client, &o, options, sizeof(o), "trikv_fork_options") : 0;

    *child = NULL;
    if (e)
        return e;
    m.session = parent;
    m.label = (char *)(uintptr_t)o.label;
    m.has_budget_tokens = o.budget_tokens != 0;
    m.budget_tokens = o.budget_tokens;
    r.type = TRIKV_FORK;
    r.message = &m.base;
    r.reply_type = &trikv__fork_reply__descriptor;
    e = tkv_request_run(client, &r);
    if (!e)
        e = tkv_session_take(client, (const Trikv__ForkReply *)r.reply, child);
    tkv_request_deinit(&r);
    return e;
}

int trikv_fork(struct trikv_session *parent, const struct trikv_fork_options *options,
               struct trikv_session **child)
{
    return trikv_fork_id(parent->client, parent->id, options, child);
}

int trikv_truncate(struct trikv_session *session, uint64_t n_tokens)
{
    Trikv__TruncateRequest m = TRIKV__TRUNCATE_REQUEST__INIT;
    struct tkv_request r = TKV_REQUEST_INIT;
    int e;

    m.session = session->id;
    m.n_tokens = n_tokens;
    r.type = TRIKV_TRUNCATE;
    r.message = &m.base;
    r.reply_type = &trikv__truncate_reply__descriptor;
    e = tkv_request_run(session->client, &r);
    tkv_request_deinit(&r);
    return e;
}
