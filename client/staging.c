/*
 * The area is sealed against shrinking before the daemon sees it, so that neither
 * side can be killed by the other's ftruncate. How a step uses it is in step.c.
 */
#include "client/client.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "proto/trikv.pb-c.h"

static int announce(struct trikv_client *c, int fd, size_t bytes)
{
    Trikv__StagingRequest m = TRIKV__STAGING_REQUEST__INIT;
    struct tkv_request r = TKV_REQUEST_INIT;
    int e;

    m.staging_bytes = bytes;
    r.type = TRIKV_STAGING;
    r.message = &m.base;
    r.reply_type = &trikv__empty__descriptor;
    r.pass_fd = fd;
    e = tkv_request_run(c, &r);
    tkv_request_deinit(&r);
    return e;
}

/* Pages are taken here, because a later write into a hole would be killed, not refused,
 * when memory has run out. */
static int size_and_seal(struct trikv_client *c, int fd, size_t bytes)
{
    int error = posix_fallocate(fd, 0, (off_t)bytes);

    if (!error && fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) < 0)
        error = errno;
    if (error)
        return tkv_fail(&c->report, TRIKV_E_SYSTEM, "staging area of %zu bytes: %s", bytes,
                        strerror(error));
    return 0;
}

static int map_and_announce(struct trikv_client *c, int fd, size_t bytes)
{
    void *base;
    int e = size_and_seal(c, fd, bytes);

    if (e)
        return e;
    base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (base == MAP_FAILED)
        return tkv_fail(&c->report, TRIKV_E_NO_MEMORY, "staging area: cannot map %zu bytes: %s",
                        bytes, strerror(errno));
    e = announce(c, fd, bytes);
    if (e) {
        munmap(base, bytes);
        return e;
    }
    c->staging = (struct tkv_staging){.base = base, .bytes = bytes};
    return 0;
}

int tkv_staging_init(struct trikv_client *c, size_t bytes)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    int fd;
    int e;

    if (bytes > c->max_payload_bytes)
        return tkv_fail(&c->report, TRIKV_E_TOO_LARGE,
                        "staging area of %zu bytes, the daemon takes %llu", bytes,
                        (unsigned long long)c->max_payload_bytes);
    fd = memfd_create("trikv-staging", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0)
        return tkv_fail(&c->report, TRIKV_E_SYSTEM, "memfd_create: %s", strerror(errno));
    e = map_and_announce(c, fd, tkv_align(bytes, page));
    close(fd);
    return e;
}

void tkv_staging_deinit(struct tkv_staging *s)
{
    if (s->base)
        munmap(s->base, s->bytes);
    *s = (struct tkv_staging){0};
}
