/*
 * The handle: the descriptor of an arena and the table of its blocks, checked once
 * so that who maps it can follow the table without looking again.
 */
#include "client/client.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "proto/shm_layout.h"
#include "proto/trikv.pb-c.h"

static const char *check_header(const struct tkv_request *r)
{
    const Trikv__HandleReply *m = (const Trikv__HandleReply *)r->reply;
    const struct trikv_table_header *h = r->payload;

    if (r->payload_bytes < sizeof(*h))
        return "block table is shorter than its header";
    if (h->magic != TRIKV_SHM_MAGIC || h->version != TRIKV_SHM_VERSION ||
        h->entry_bytes != sizeof(struct trikv_table_entry))
        return "block table is of another layout";
    if (h->generation != m->generation || h->arena_bytes != m->arena_bytes ||
        h->n_entries != m->n_blocks)
        return "block table and message differ";
    if (r->payload_bytes - sizeof(*h) != (uint64_t)h->n_entries * h->entry_bytes)
        return "block table's size does not fit its entries";
    return NULL;
}

static bool entry_is_sound(const struct trikv_table_entry *e, uint64_t arena_bytes)
{
    return e->block_offset % TRIKV_FRAME_ALIGN == 0 && e->block_offset <= arena_bytes &&
           e->block_bytes <= arena_bytes - e->block_offset && e->k_bytes <= e->block_bytes &&
           e->v_bytes <= e->block_bytes - e->k_bytes && e->n_tokens >= 1 &&
           e->n_tokens <= TKV_BLOCK_TOKENS;
}

/* Without the seal, reading a mapping could be met with SIGBUS at any moment. */
static const char *check_arena(const struct tkv_request *r, uint64_t arena_bytes)
{
    struct stat st;
    const int seals = fcntl(r->fd[0], F_GET_SEALS);

    if (seals < 0 || !(seals & F_SEAL_SHRINK))
        return "arena is not sealed against shrinking";
    if (fstat(r->fd[0], &st) < 0 || st.st_size < 0 || (uint64_t)st.st_size < arena_bytes)
        return "arena is shorter than announced";
    return NULL;
}

static const char *check_table(const struct tkv_request *r)
{
    const struct trikv_table_header *h = r->payload;
    const struct trikv_table_entry *entries;
    const char *why = check_header(r);

    if (why)
        return why;
    entries = (const struct trikv_table_entry *)(h + 1);
    for (uint32_t i = 0; i < h->n_entries; i++) {
        if (!entry_is_sound(&entries[i], h->arena_bytes))
            return "a block lies outside the arena, or is not whole";
    }
    return check_arena(r, h->arena_bytes);
}

static void take_handle(struct trikv_handle *handle, struct tkv_request *r)
{
    const struct trikv_table_header *h = r->payload;

    *handle = (struct trikv_handle){.fd = r->fd[0],
                                    .generation = h->generation,
                                    .arena_bytes = h->arena_bytes,
                                    .n_blocks = h->n_entries,
                                    .table = r->payload,
                                    .table_bytes = r->payload_bytes};
    r->fd[0] = -1;
    r->payload = NULL;
}

int trikv_handle(struct trikv_session *session, struct trikv_handle *handle)
{
    struct tkv_request r = TKV_REQUEST_INIT;
    int e;

    *handle = (struct trikv_handle){.fd = -1};
    r.reply_type = &trikv__handle_reply__descriptor;
    r.takes_payload = 1;
    r.takes_fds = 1;
    e = tkv_session_request(session->client, session->id, TRIKV_HANDLE, &r);
    if (!e) {
        const char *why = check_table(&r);

        if (why) {
            tkv_stream_close(&session->client->stream);
            e = tkv_fail(&session->client->report, TRIKV_E_PROTOCOL, "handle: %s", why);
        } else {
            take_handle(handle, &r);
        }
    }
    tkv_request_deinit(&r);
    return e;
}

void trikv_handle_release(struct trikv_handle *handle)
{
    tkv_fd_close(&handle->fd);
    free((void *)(uintptr_t)handle->table);
    *handle = (struct trikv_handle){.fd = -1};
}
