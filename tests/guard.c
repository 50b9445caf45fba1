/* One mapping for each allocation: the pages of the data, and one without access on each side. */
#include "tests/guard.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { PATTERN = 0xa5 };

static size_t page_bytes(void)
{
    return (size_t)sysconf(_SC_PAGESIZE);
}

/* At least one page, so that the pointer of 0 bytes can have both sides guarded too. */
static size_t data_bytes(size_t bytes)
{
    const size_t page = page_bytes();

    return bytes ? (bytes + page - 1) / page * page : page;
}

/* The first data page; 0 bytes at the end lie just behind the data, hence the - 1. */
static unsigned char *first_page(const void *p, size_t bytes)
{
    const uintptr_t at = (uintptr_t)p;
    const size_t page = page_bytes();

    if (bytes == 0 && at % page == 0)
        return (unsigned char *)(at - page);
    return (unsigned char *)(at / page * page);
}

void *guard_alloc(size_t bytes, enum guard_side side)
{
    const size_t page = page_bytes(), data = data_bytes(bytes);
    unsigned char *map = mmap(NULL, data + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (map == MAP_FAILED || mprotect(map + page, data, PROT_READ | PROT_WRITE)) {
        fprintf(stderr, "guard: no %zu bytes of memory\n", data + 2 * page);
        abort();
    }
    memset(map + page, PATTERN, data);
    if (bytes == 0)
        side = GUARD_END;
    return side == GUARD_START ? map + page : map + page + data - bytes;
}

bool guard_intact(const void *p, size_t bytes)
{
    const unsigned char *first = first_page(p, bytes);
    const unsigned char *mine = p;
    const size_t data = data_bytes(bytes);

    for (const unsigned char *q = first; q < first + data; q++)
        if ((q < mine || q >= mine + bytes) && *q != PATTERN)
            return false;
    return true;
}

void guard_free(void *p, size_t bytes)
{
    munmap(first_page(p, bytes) - page_bytes(), data_bytes(bytes) + 2 * page_bytes());
}
