/* Checking and mapping a client's memfd. */
#include "daemon/staging.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include "proto/errors.h"
#include "proto/frame.h"
#include "store/budget.h"

/* A file that can shrink, or whose pages may fail to come (huge pages), would kill the
 * daemon with SIGBUS. */
int tkv_memfd_check(int fd, uint64_t bytes, const char *what, struct tkv_report *why)
{
    struct stat s;
    struct statfs f;
    int seals;

    seals = fcntl(fd, F_GET_SEALS); /* first: to ask another file may be to ask a process */
    if (seals < 0)
        return tkv_fail(why, TRIKV_E_ARGUMENT, "%s: the descriptor is not a memfd of pages", what);
    if (fstat(fd, &s) < 0 || fstatfs(fd, &f) < 0)
        return tkv_fail(why, TRIKV_E_SYSTEM, "%s: fstat: %s", what, strerror(errno));
    if (!S_ISREG(s.st_mode) || f.f_type != TMPFS_MAGIC)
        return tkv_fail(why, TRIKV_E_ARGUMENT, "%s: the descriptor is not a memfd of pages", what);
    if (!(seals & F_SEAL_SHRINK))
        return tkv_fail(why, TRIKV_E_ARGUMENT, "%s: the memfd is not sealed with F_SEAL_SHRINK",
                        what);
    if (s.st_size < 0 || (uint64_t)s.st_size != bytes)
        return tkv_fail(why, TRIKV_E_SIZE, "%s: want a memfd of %llu bytes, got %lld", what,
                        (unsigned long long)bytes, (long long)s.st_size);
    return TRIKV_OK;
}

int tkv_staging_open(struct tkv_staging *g, struct tkv_budget *budget, int fd, uint64_t bytes,
                     uint64_t max_bytes, struct tkv_report *why)
{
    void *base;
    int e;

    if (g->base)
        return tkv_fail(why, TRIKV_E_EXISTS, "staging: this connection has an area of %zu bytes",
                        g->bytes);
    if (bytes == 0)
        return tkv_fail(why, TRIKV_E_ARGUMENT, "staging_bytes: 0");
    if (bytes > max_bytes)
        return tkv_fail(why, TRIKV_E_TOO_LARGE, "staging_bytes: %llu, the limit is %llu",
                        (unsigned long long)bytes, (unsigned long long)max_bytes);
    e = tkv_memfd_check(fd, bytes, "staging", why);
    if (e)
        return e;
    if (!tkv_budget_reserve(budget, bytes))
        return tkv_fail(why, TRIKV_E_MEMORY_CAP, "memory cap reached: no %llu bytes for staging",
                        (unsigned long long)bytes);
    base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (base == MAP_FAILED) {
        tkv_budget_release(budget, bytes);
        return tkv_fail(why, TRIKV_E_SYSTEM, "staging: mmap: %s", strerror(errno));
    }
    *g = (struct tkv_staging){base, bytes};
    return TRIKV_OK;
}

void tkv_staging_close(struct tkv_staging *g, struct tkv_budget *budget)
{
    if (!g->base)
        return;
    munmap(g->base, g->bytes);
    tkv_budget_release(budget, g->bytes);
    *g = (struct tkv_staging){0};
}

int tkv_staging_range(const struct tkv_staging *g, uint64_t offset, uint64_t n, const char *what,
                      char **p, struct tkv_report *why)
{
    if (!g->base)
        return tkv_fail(why, TRIKV_E_STATE, "%s: this connection has no staging area", what);
    if (offset % TRIKV_FRAME_ALIGN)
        return tkv_fail(why, TRIKV_E_ARGUMENT, "%s: %llu is not a multiple of 64", what,
                        (unsigned long long)offset);
    if (offset > g->bytes || n > g->bytes - offset)
        return tkv_fail(why, TRIKV_E_ARGUMENT,
                        "%s: %llu + %llu bytes is outside of the staging area of %zu", what,
                        (unsigned long long)offset, (unsigned long long)n, g->bytes);
    *p = g->base + offset;
    return TRIKV_OK;
}
