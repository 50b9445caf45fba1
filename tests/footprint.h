/*
 * What a process holds, as the kernel counts it: its own pages, and those of shared memory, which are
 * counted once for each file, whoever wrote them and whether or not they are mapped.
 */
#ifndef TKV_TESTS_FOOTPRINT_H
#define TKV_TESTS_FOOTPRINT_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct footprint {
    uint64_t own_bytes;    /* RssAnon: heap, stacks, data */
    uint64_t shared_bytes; /* of every memfd that it has open, and of others that it has mapped */
    unsigned n_fds;
    unsigned n_mappings;
};

/* Fails the test if there is no such process. */
struct footprint footprint_of(pid_t pid);

static inline uint64_t footprint_bytes(const struct footprint *f)
{
    return f->own_bytes + f->shared_bytes;
}

/* Do these numbers say anything? A sanitizer keeps what is freed, an emulator is counted itself. */
bool footprint_is_telling(void);

#endif /* TKV_TESTS_FOOTPRINT_H */
