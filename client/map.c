/*
 * Maps: a session's arena in this process, and attention on it. Before and after each piece of work the
 * pin is looked at: if the daemon has let go of what is mapped, the result is not given out.
 */
#include "client/map.h"

#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "core/cpu.h"
#include "proto/trikv.pb-c.h"

/* Without the seal, reading could be met with SIGBUS at any moment. */
static const char *map_arena(struct trikv_map *m, int fd, uint64_t arena_bytes)
{
    struct stat st;
    const int seals = fcntl(fd, F_GET_SEALS);
    void *p;

    if (seals < 0 || !(seals & F_SEAL_SHRINK))
        return "the arena is not sealed against shrinking";
    if (arena_bytes < sizeof(uint64_t) || arena_bytes > SIZE_MAX / 2 || fstat(fd, &st) < 0 ||
        st.st_size < 0 || (uint64_t)st.st_size < arena_bytes)
        return "the arena is shorter than announced";
    p = mmap(NULL, arena_bytes, PROT_READ, MAP_SHARED | MAP_NORESERVE, fd, 0);
    if (p == MAP_FAILED)
        return "the arena cannot be mapped";
    m->base = p;
    m->arena_bytes = arena_bytes;
    return NULL;
}

/* Kernels differ in the last bits: take those that the daemon named, as far as they are here. */
static unsigned kernels_of_daemon(const struct trikv_client *c)
{
    const unsigned here = tkv_cpu_flags(NULL);
    unsigned flags = 0;

    for (unsigned bit = 1; bit && bit <= here; bit <<= 1) {
        char name[64], list[TKV_CLIENT_TEXT_BYTES + 2], wanted[66];

        (void)snprintf(wanted, sizeof(wanted), ",%s,", tkv_cpu_names(bit, name, sizeof(name)));
        (void)snprintf(list, sizeof(list), ",%s,", c->cpu);
        if ((here & bit) && strstr(list, wanted))
            flags |= bit;
    }
    return flags;
}

static void free_map(struct trikv_map *m)
{
    struct trikv_map **at = &m->client->maps;

    while (*at && *at != m)
        at = &(*at)->next;
    if (*at)
        *at = m->next;
    tkv_map_forget(m);
    if (m->base)
        munmap(m->base, m->arena_bytes);
    free(m->scratch);
    free(m);
}

void tkv_map_free_all(struct trikv_client *c)
{
    while (c->maps)
        free_map(c->maps);
}

static int take_map(struct trikv_client *c, const struct tkv_request *r, struct trikv_map **map)
{
    const Trikv__MapReply *reply = (const Trikv__MapReply *)r->reply;
    struct trikv_map *m = calloc(1, sizeof(*m));
    const char *why;

    if (!m)
        return tkv_fail(&c->report, TRIKV_E_NO_MEMORY, "map: no memory");
    m->client = c;
    m->id = reply->map;
    tkv_kernels_init(&m->kn, kernels_of_daemon(c));
    why = map_arena(m, r->fd[0], reply->arena_bytes);
    if (!why)
        why = tkv_map_read(m, r->payload, r->payload_bytes);
    if (why) {
        free_map(m);
        return tkv_fail(&c->report, TRIKV_E_PROTOCOL, "map: %s", why);
    }
    m->next = c->maps;
    c->maps = m;
    *map = m;
    return 0;
}

int trikv_map(struct trikv_client *client, uint64_t session, struct trikv_map **map)
{
    struct tkv_request r = TKV_REQUEST_INIT;
    int e;

    *map = NULL;
    r.reply_type = &trikv__map_reply__descriptor;
    r.takes_payload = 1;
    r.takes_fds = 1;
    e = tkv_session_request(client, session, TRIKV_MAP, &r);
    if (!e) {
        e = take_map(client, &r, map);
        if (e)
            tkv_stream_close(&client->stream); /* the daemon keeps a pin that nobody could undo */
    }
    tkv_request_deinit(&r);
    return e;
}

int trikv_unmap(struct trikv_map **map)
{
    struct trikv_map *m = *map;
    struct tkv_request r = TKV_REQUEST_INIT;
    int e;

    *map = NULL;
    if (!m)
        return 0;
    r.reply_type = &trikv__empty__descriptor;
    e = tkv_session_request(m->client, m->id, TRIKV_UNMAP, &r);
    tkv_request_deinit(&r);
    free_map(m);
    return e;
}

uint32_t trikv_map_n_layers(const struct trikv_map *map)
{
    return map->n_layers;
}

int trikv_map_geometry(const struct trikv_map *map, uint32_t layer, struct trikv_geometry *geometry)
{
    const struct tkv_shape *shape;

    *geometry = (struct trikv_geometry){0};
    if (layer >= map->n_layers)
        return tkv_fail(&map->client->report, TRIKV_E_ARGUMENT, "layer is %u, the map has %u",
                        layer, map->n_layers);
    shape = &map->caches[layer].shape;
    *geometry = (struct trikv_geometry){.n_q_heads = shape->n_q_heads,
                                        .n_kv_heads = shape->n_kv_heads,
                                        .head_dim_k = shape->head_dim_k,
                                        .head_dim_v = shape->head_dim_v};
    return 0;
}

uint64_t trikv_map_n_seen(const struct trikv_map *map, uint32_t layer)
{
    return layer < map->n_layers ? map->n_seen[layer] : 0;
}

/* ---- attention ---------------------------------------------------------------------------- */

static int check_pin(const struct trikv_map *m)
{
    const _Atomic uint64_t *pin = (const _Atomic uint64_t *)(const void *)(m->base + m->pin_offset);

    atomic_thread_fence(memory_order_acquire);
    if (atomic_load(pin) == m->pin_value)
        return 0;
    return tkv_fail(&m->client->report, TRIKV_E_STALE,
                    "the daemon does not keep what is mapped any more: the connection has ended");
}

static int check_step(const struct trikv_map *m, const struct trikv_step *t)
{
    struct tkv_report *why = &m->client->report;

    if (t->layer >= m->n_layers)
        return tkv_fail(why, TRIKV_E_ARGUMENT, "layer %u, the session has %u", t->layer,
                        m->n_layers);
    if (t->n_tokens == 0 || t->n_tokens > TRIKV_MAX_REQUEST_TOKENS)
        return tkv_fail(why, TRIKV_E_ARGUMENT, "n_tokens is %u, want 1 to %d", t->n_tokens,
                        TRIKV_MAX_REQUEST_TOKENS);
    if ((int)t->dtype < TRIKV_F32 || t->dtype > TRIKV_BF16)
        return tkv_fail(why, TRIKV_E_ARGUMENT, "dtype %d is not one", (int)t->dtype);
    if (!t->q || !t->out)
        return tkv_fail(why, TRIKV_E_ARGUMENT, "%s is NULL", t->q ? "out" : "q");
    return 0;
}

/* As in the daemon: without positions the queries sit on the newest tokens. */
static int find_positions(const struct trikv_map *m, const struct tkv_cache *c,
                          const struct trikv_step *t, struct tkv_queries *q)
{
    struct tkv_report *why = &m->client->report;

    q->positions = t->positions;
    if (!t->positions) {
        q->positions = c->tail.positions + (c->tail.n - t->n_tokens);
        if (t->n_tokens > c->tail.n)
            return tkv_fail(why, TRIKV_E_POSITION,
                            "layer %u: %u queries without positions, but only the newest %u tokens "
                            "have theirs at hand",
                            t->layer, t->n_tokens, c->tail.n);
    }
    for (uint32_t i = 0; t->positions && i < t->n_tokens; i++)
        if (t->positions[i] < 0 || (i > 0 && t->positions[i] <= t->positions[i - 1]))
            return tkv_fail(why, TRIKV_E_POSITION,
                            "layer %u: position of query %u is %d, want increasing from 0",
                            t->layer, i, t->positions[i]);
    if (t->positions && t->positions[0] < m->first_query[t->layer])
        return tkv_fail(why, TRIKV_E_POSITION,
                        "layer %u: a query at %d looks back %u tokens, some of which are gone: "
                        "queries from %d on see all of their window",
                        t->layer, t->positions[0], c->attn.window_tokens, m->first_query[t->layer]);
    return 0;
}

static int check_values(const struct trikv_map *m, const struct tkv_cache *c,
                        const struct tkv_queries *q, uint32_t layer)
{
    const size_t n = (size_t)q->n_tokens * c->shape.n_q_heads * c->shape.head_dim_k;
    const size_t good = tkv_cache_check_queries(c, q);

    if (good == n)
        return 0;
    return tkv_fail(&m->client->report, TRIKV_E_VALUE,
                    "layer %u: value %zu of Q is not a finite number of at most 65504", layer,
                    good);
}

static int need_scratch(struct trikv_map *m, const struct tkv_cache *c, uint32_t n_tokens)
{
    const size_t bytes = tkv_align(tkv_cache_attend_bytes(c, n_tokens), 64);

    if (bytes <= m->scratch_bytes)
        return 0;
    free(m->scratch);
    m->scratch = aligned_alloc(64, bytes);
    m->scratch_bytes = m->scratch ? bytes : 0;
    if (m->scratch)
        return 0;
    return tkv_fail(&m->client->report, TRIKV_E_NO_MEMORY, "no %zu bytes of attention scratch",
                    bytes);
}

static int attend(struct trikv_map *m, const struct trikv_step *t)
{
    const struct tkv_cache *c = &m->caches[t->layer];
    struct tkv_queries q = {.n_tokens = t->n_tokens,
                            .dtype = (enum tkv_dtype)t->dtype,
                            .q = t->q,
                            .out = t->out,
                            .lse = t->lse};
    int e = find_positions(m, c, t, &q);

    e = e ? e : check_values(m, c, &q, t->layer);
    e = e ? e : need_scratch(m, c, t->n_tokens);
    e = e ? e : check_pin(m);
    if (e)
        return e;
    tkv_cache_attend(c, &q, m->scratch, NULL);
    return check_pin(m);
}

int trikv_attend_local(struct trikv_map *map, const struct trikv_step *step)
{
    struct trikv_step t = {0};
    int e = tkv_client_read_struct(map->client, &t, step, sizeof(t), "trikv_step");

    e = e ? e : check_step(map, &t);
    return e ? e : attend(map, &t);
}
