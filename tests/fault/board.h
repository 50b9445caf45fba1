/*
 * What the preloaded library (preload.c) and the test that drives it (faults.c) have in common: a file
 * that both map. The library counts the calls of the daemon that can fail, and lets the one fail that the
 * test has chosen.
 */
#ifndef TKV_TESTS_FAULT_BOARD_H
#define TKV_TESTS_FAULT_BOARD_H

#include <stdatomic.h>
#include <stdint.h>

#define FAULT_BOARD_VARIABLE "TRIKV_FAULT_BOARD"

enum fault_kind {
    FAULT_MEMORY = 0, /* malloc, calloc, realloc, aligned_alloc */
    FAULT_MAP,        /* mmap, memfd_create, ftruncate, fallocate */
    FAULT_DESCRIPTOR, /* open, openat, fcntl, eventfd, accept4 */
    FAULT_SOCKET,     /* sendmsg, recvmsg */
    FAULT_FILE,       /* read, write, fsync, rename, renameat */
    FAULT_N_KINDS,
};

struct fault_board {
    atomic_uint armed;  /* bit 1 << kind: calls of this kind count */
    atomic_uint sticky; /* those after the chosen one fail, too */
    _Atomic uint64_t chosen;
    _Atomic uint64_t n_calls; /* that counted since it was armed */
    _Atomic uint64_t n_failed;
    _Atomic int64_t n_live; /* pieces of memory allocated and not freed, always counted */
};

#endif /* TKV_TESTS_FAULT_BOARD_H */
