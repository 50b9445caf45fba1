/* Connecting, the first exchange, and what a client knows of its daemon. */
#include "client/client.h"

#include <stdlib.h>
#include <string.h>

#include "proto/trikv.pb-c.h"

#define DEFAULT_SOCKET "/run/trikv/trikvd.sock"

enum { DEFAULT_TIMEOUT_MS = 30000 };

int tkv_client_read_struct(struct trikv_client *c, void *to, const void *from, size_t known_bytes,
                           const char *name)
{
    size_t bytes;

    memcpy(&bytes, from, sizeof(bytes));
    if (bytes <= sizeof(bytes) || bytes > known_bytes)
        return tkv_fail(&c->report, TRIKV_E_ARGUMENT,
                        "%s.size is %zu: set it to sizeof(struct), here %zu", name, bytes,
                        known_bytes);
    memcpy(to, from, bytes);
    return 0;
}

static int read_options(struct trikv_client *c, const struct trikv_options *from,
                        struct trikv_options *o)
{
    *o = (struct trikv_options){0};
    if (from) {
        const int e = tkv_client_read_struct(c, o, from, sizeof(*o), "trikv_options");

        if (e)
            return e;
    }
    if (!o->socket)
        o->socket = getenv("TRIKV_SOCKET");
    if (!o->socket || !o->socket[0])
        o->socket = DEFAULT_SOCKET;
    if (o->timeout_ms == 0)
        o->timeout_ms = DEFAULT_TIMEOUT_MS;
    if (o->name && strlen(o->name) > TRIKV_MAX_NAME_BYTES)
        return tkv_fail(&c->report, TRIKV_E_ARGUMENT, "client name has %zu bytes, at most %d",
                        strlen(o->name), TRIKV_MAX_NAME_BYTES);
    return 0;
}

static int take_hello(struct trikv_client *c, const Trikv__HelloReply *m)
{
    if (m->protocol < TRIKV_PROTOCOL_MIN || m->protocol > TRIKV_PROTOCOL_MAX)
        return tkv_fail(&c->report, TRIKV_E_VERSION, "the daemon chose protocol %u, want %d to %d",
                        m->protocol, TRIKV_PROTOCOL_MIN, TRIKV_PROTOCOL_MAX);
    tkv_client_copy_text(c->version, sizeof(c->version), m->version);
    tkv_client_copy_text(c->cpu, sizeof(c->cpu), m->cpu);
    c->max_payload_bytes = m->max_payload_bytes;
    c->info.protocol = m->protocol;
    c->info.boot_id = m->boot_id;
    c->info.max_payload_bytes = m->max_payload_bytes;
    c->info.memory_cap_bytes = m->memory_cap_bytes;
    for (size_t i = 0; i < m->n_features; i++)
        c->ring_takes_ids |= strcmp(m->features[i], "ring_ids") == 0;
    return 0;
}

static int say_hello(struct trikv_client *c, const char *name)
{
    Trikv__HelloRequest m = TRIKV__HELLO_REQUEST__INIT;
    struct tkv_request r = TKV_REQUEST_INIT;
    int e;

    m.protocol_min = TRIKV_PROTOCOL_MIN;
    m.protocol_max = TRIKV_PROTOCOL_MAX;
    m.client = (char *)(uintptr_t)name;
    r.type = TRIKV_HELLO;
    r.message = &m.base;
    r.reply_type = &trikv__hello_reply__descriptor;
    e = tkv_request_run(c, &r);
    if (!e)
        e = take_hello(c, (const Trikv__HelloReply *)r.reply);
    tkv_request_deinit(&r);
    return e;
}

/* For the second time. A path that was connected to, and a name that was checked, fit. */
static void remember(struct trikv_client *c, const struct trikv_options *o)
{
    memcpy(c->socket, o->socket, strlen(o->socket) + 1);
    if (o->name)
        memcpy(c->name, o->name, strlen(o->name) + 1);
    c->staging_bytes = o->staging_bytes;
}

int tkv_client_connect_again(struct trikv_client *c)
{
    const uint32_t timeout_ms = c->stream.timeout_ms;
    int e;

    tkv_stream_close(&c->stream);
    tkv_client_ring_free(c);
    tkv_staging_deinit(&c->staging);
    e = tkv_stream_open(&c->stream, c->socket, timeout_ms, &c->report);
    if (!e)
        e = say_hello(c, c->name[0] ? c->name : NULL);
    if (!e && c->staging_bytes > 0)
        e = tkv_staging_init(c, c->staging_bytes);
    if (e)
        tkv_stream_close(&c->stream);
    return e;
}

static int connect_with(struct trikv_client *c, const struct trikv_options *options)
{
    struct trikv_options o;
    int e = read_options(c, options, &o);

    if (!e)
        e = tkv_stream_open(&c->stream, o.socket, o.timeout_ms, &c->report);
    if (!e)
        remember(c, &o);
    if (!e)
        e = say_hello(c, o.name);
    if (!e && o.staging_bytes > 0)
        e = tkv_staging_init(c, o.staging_bytes);
    return e;
}

int trikv_connect(struct trikv_client **client, const struct trikv_options *options)
{
    struct trikv_client *c = calloc(1, sizeof(*c));
    int e;

    *client = c;
    if (!c)
        return TRIKV_E_NO_MEMORY;
    c->stream.fd = -1;
    c->stream.passed_fd[0] = c->stream.passed_fd[1] = -1;
    c->info.version = c->version;
    c->info.cpu = c->cpu;
    e = connect_with(c, options);
    if (e)
        tkv_stream_close(&c->stream);
    return e;
}

void trikv_disconnect(struct trikv_client **client)
{
    struct trikv_client *c = *client;

    *client = NULL;
    if (!c)
        return;
    tkv_session_free_all(c);
    tkv_map_free_all(c);
    tkv_client_ring_free(c);
    tkv_stream_close(&c->stream);
    tkv_staging_deinit(&c->staging);
    free(c);
}

const struct trikv_info *trikv_info(const struct trikv_client *client)
{
    return &client->info;
}

const char *trikv_last_error(const struct trikv_client *client)
{
    return client ? client->report.text : "out of memory";
}

const char *trikv_error_text(int error)
{
    return tkv_error_text(error);
}

uint32_t trikv_abi_version(void)
{
    return TRIKV_ABI_VERSION;
}

const char *trikv_version(void)
{
    return TRIKV_VERSION;
}
