/*
 * Making a ring, and ending it. The file is sealed before the daemon sees it, so that neither side
 * can be killed by the other's ftruncate. How steps go through it is in ring_step.c.
 */
#include "client/client.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <unistd.h>

#include "proto/trikv.pb-c.h"

enum { DEFAULT_ENTRIES = 64, DEFAULT_COPY_BYTES = 1 << 20, DEFAULT_SPIN_US = 50 };

static int read_options(struct trikv_client *c, const struct trikv_ring_options *from,
                        struct trikv_ring_options *o)
{
    *o = (struct trikv_ring_options){0};
    if (from) {
        const int e = tkv_client_read_struct(c, o, from, sizeof(*o), "trikv_ring_options");

        if (e)
            return e;
    }
    if (o->n_entries == 0)
        o->n_entries = DEFAULT_ENTRIES;
    if (o->n_entries > TRIKV_RING_MAX_ENTRIES || (o->n_entries & (o->n_entries - 1)))
        return tkv_fail(&c->report, TRIKV_E_ARGUMENT,
                        "n_entries is %u, want a power of two up to %d", o->n_entries,
                        TRIKV_RING_MAX_ENTRIES);
    if (o->copy_bytes == 0)
        o->copy_bytes = DEFAULT_COPY_BYTES;
    if (o->copy_bytes > c->max_payload_bytes || o->tensor_bytes > c->max_payload_bytes)
        return tkv_fail(&c->report, TRIKV_E_TOO_LARGE,
                        "a ring with %zu + %zu bytes for tensors, the daemon takes %llu",
                        o->tensor_bytes, o->copy_bytes, (unsigned long long)c->max_payload_bytes);
    return 0;
}

/* With one processor, who spins keeps the other from running. */
static uint32_t spin_ns(int32_t spin_us)
{
    cpu_set_t set;

    CPU_ZERO(&set);
    if (spin_us < 0 || (sched_getaffinity(0, sizeof(set), &set) == 0 && CPU_COUNT(&set) < 2))
        return 0;
    return (spin_us ? (uint32_t)spin_us : DEFAULT_SPIN_US) * 1000;
}

static struct tkv_client_ring *make(const struct trikv_ring_options *o)
{
    struct tkv_client_ring *r = calloc(1, sizeof(*r) + o->n_entries * sizeof(r->pending[0]));
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);

    if (!r)
        return NULL;
    r->doorbell_fd = r->answer_fd = r->epoll_fd = -1;
    r->n_entries = o->n_entries;
    r->spin_ns = spin_ns(o->spin_us);
    r->tensors_at = tkv_align(tkv_ring_tensors_at(o->n_entries), page);
    r->tensors_bytes = tkv_align(o->tensor_bytes, page);
    r->copies_at = r->tensors_at + r->tensors_bytes;
    r->copies_bytes = tkv_align(o->copy_bytes, page);
    r->bytes = r->copies_at + r->copies_bytes;
    return r;
}

/* Pages are taken here, because a later write into a hole would be killed, not refused,
 * when memory has run out. */
static int map(struct trikv_client *c, struct tkv_client_ring *r, int fd)
{
    int error = posix_fallocate(fd, 0, (off_t)r->bytes);
    void *base = MAP_FAILED;

    if (!error && fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0)
        error = errno;
    if (!error)
        base = mmap(NULL, r->bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
    if (!error && base == MAP_FAILED)
        error = errno;
    if (error)
        return tkv_fail(&c->report, TRIKV_E_SYSTEM, "ring of %zu bytes: %s", r->bytes,
                        strerror(error));
    r->base = base;
    r->shared = base;
    r->shared->header = (struct trikv_ring_header){
        .magic = TRIKV_RING_MAGIC, .version = TRIKV_RING_VERSION, .n_entries = r->n_entries};
    return 0;
}

static int announce(struct trikv_client *c, struct tkv_client_ring *r, int fd)
{
    Trikv__RingRequest m = TRIKV__RING_REQUEST__INIT;
    struct tkv_request q = TKV_REQUEST_INIT;
    int e;

    m.ring_bytes = r->bytes;
    q.type = TRIKV_RING;
    q.message = &m.base;
    q.reply_type = &trikv__empty__descriptor;
    q.pass_fd = fd;
    q.takes_fds = 2;
    e = tkv_request_run(c, &q);
    if (!e) {
        r->doorbell_fd = q.fd[0];
        r->answer_fd = q.fd[1];
        q.fd[0] = q.fd[1] = -1;
    }
    tkv_request_deinit(&q);
    return e;
}

/* Edge-triggered, so that nobody has to read it; and the end of the connection. */
static int watch(struct trikv_client *c, struct tkv_client_ring *r)
{
    struct epoll_event answer = {.events = EPOLLIN | EPOLLET};
    struct epoll_event end = {.events = EPOLLRDHUP};

    r->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (r->epoll_fd < 0 || epoll_ctl(r->epoll_fd, EPOLL_CTL_ADD, r->answer_fd, &answer) < 0 ||
        epoll_ctl(r->epoll_fd, EPOLL_CTL_ADD, c->stream.fd, &end) < 0)
        return tkv_fail(&c->report, TRIKV_E_SYSTEM, "ring: epoll: %s", strerror(errno));
    return 0;
}

static int open_file(struct trikv_client *c, struct tkv_client_ring *r)
{
    const int fd = memfd_create("trikv-ring", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    int e;

    if (fd < 0)
        return tkv_fail(&c->report, TRIKV_E_SYSTEM, "memfd_create: %s", strerror(errno));
    e = map(c, r, fd);
    e = e ? e : announce(c, r, fd);
    close(fd);
    return e;
}

static int tell_end(struct trikv_client *c)
{
    struct tkv_request r = TKV_REQUEST_INIT;
    int e;

    r.type = TRIKV_RING_CLOSE;
    r.reply_type = &trikv__empty__descriptor;
    e = tkv_request_run(c, &r);
    tkv_request_deinit(&r);
    return e;
}

int trikv_ring_open(struct trikv_client *client, const struct trikv_ring_options *options)
{
    struct trikv_ring_options o;
    int e = read_options(client, options, &o);

    if (!e && client->ring)
        e = tkv_fail(&client->report, TRIKV_E_EXISTS, "this client has a ring");
    if (e)
        return e;
    client->ring = make(&o);
    if (!client->ring)
        return tkv_fail(&client->report, TRIKV_E_NO_MEMORY, "no memory for a ring");
    e = open_file(client, client->ring);
    if (!e) {
        e = watch(client, client->ring);
        if (e)
            (void)tell_end(client);
    }
    if (e)
        tkv_client_ring_free(client);
    return e;
}

int trikv_ring_close(struct trikv_client *client)
{
    int waited;
    int e;

    if (!client->ring)
        return 0;
    waited = tkv_ring_wait(client);
    if (!client->ring)
        return waited; /* it had ended by itself */
    tkv_client_ring_free(client);
    e = tell_end(client);
    return waited ? waited : e;
}

void *trikv_ring_tensors(const struct trikv_client *client)
{
    const struct tkv_client_ring *r = client->ring;

    return r && r->tensors_bytes > 0 ? r->base + r->tensors_at : NULL;
}

int tkv_ring_end(struct trikv_client *c)
{
    int e;

    tkv_client_ring_free(c);
    e = tell_end(c);
    return e ? e : tkv_fail(&c->report, TRIKV_E_PROTOCOL, "ring: it ended, nobody knows why");
}

void tkv_client_ring_free(struct trikv_client *c)
{
    struct tkv_client_ring *r = c->ring;

    c->ring = NULL;
    if (!r)
        return;
    if (r->base)
        munmap(r->base, r->bytes);
    tkv_fd_close(&r->doorbell_fd);
    tkv_fd_close(&r->answer_fd);
    tkv_fd_close(&r->epoll_fd);
    free(r);
}
