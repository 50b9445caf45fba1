/*
 * Put before the C library of a trikvd under test (LD_PRELOAD): lets one chosen call fail, as the board
 * says; see board.h. Without a board it changes nothing.
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "tests/fault/board.h"

#define EXPORT __attribute__((visibility("default")))

/* The next definition of a function: jemalloc's or the C library's. */
#define NEXT(name)                                                  \
    static __typeof__(&name) next;                                  \
    if (!next) {                                                    \
        void *const found = find(#name);                            \
        memcpy((void *)&next, (const void *)&found, sizeof(found)); \
    }

static struct fault_board *board;

/* dlsym itself may allocate: it gets memory from here, which is never freed. */
static _Thread_local bool finding;
static char early[16384];
static size_t n_early;

static void *find(const char *name)
{
    void *p;

    finding = true;
    p = dlsym(RTLD_NEXT, name);
    finding = false;
    if (!p)
        abort();
    return p;
}

static void *take_early(size_t n)
{
    char *const p = early + n_early;

    n_early += (n + 15) / 16 * 16;
    if (n_early > sizeof(early))
        abort();
    return p;
}

static bool is_early(const void *p)
{
    return (const char *)p >= early && (const char *)p < early + sizeof(early);
}

__attribute__((constructor)) static void map_board(void)
{
    const char *path = getenv(FAULT_BOARD_VARIABLE);
    const int fd = path ? (int)syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC) : -1;
    void *p;

    if (fd < 0)
        return;
    p = mmap(NULL, sizeof(*board), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (p != MAP_FAILED)
        board = p;
}

static bool fails(enum fault_kind kind, int error)
{
    uint64_t n, chosen;

    if (!board || !(atomic_load(&board->armed) & 1u << kind))
        return false;
    n = atomic_fetch_add(&board->n_calls, 1) + 1;
    chosen = atomic_load(&board->chosen);
    if (n != chosen && !(chosen && n > chosen && atomic_load(&board->sticky)))
        return false;
    atomic_fetch_add(&board->n_failed, 1);
    errno = error;
    return true;
}

static void *count(void *p)
{
    if (p && board)
        atomic_fetch_add(&board->n_live, 1);
    return p;
}

/* ---- memory ------------------------------------------------------------------------------- */

EXPORT void *malloc(size_t n)
{
    if (finding)
        return take_early(n);
    NEXT(malloc);
    return fails(FAULT_MEMORY, ENOMEM) ? NULL : count(next(n));
}

EXPORT void *calloc(size_t n, size_t bytes)
{
    if (finding)
        return take_early(n * bytes); /* zero, as it was never used */
    NEXT(calloc);
    return fails(FAULT_MEMORY, ENOMEM) ? NULL : count(next(n, bytes));
}

EXPORT void *realloc(void *p, size_t n)
{
    void *moved;

    NEXT(realloc);
    if (fails(FAULT_MEMORY, ENOMEM))
        return NULL;
    if (is_early(p)) {
        moved = malloc(n);
        return moved ? memcpy(moved, p, n) : NULL;
    }
    moved = next(p, n);
    return p ? moved : count(moved);
}

EXPORT void *aligned_alloc(size_t align, size_t n)
{
    NEXT(aligned_alloc);
    return fails(FAULT_MEMORY, ENOMEM) ? NULL : count(next(align, n));
}

EXPORT void free(void *p)
{
    if (!p || is_early(p))
        return;
    NEXT(free);
    if (board)
        atomic_fetch_sub(&board->n_live, 1);
    next(p);
}

EXPORT void *mmap(void *at, size_t n, int protection, int flags, int fd, off_t offset)
{
    if (fails(FAULT_MAP, ENOMEM))
        return MAP_FAILED;
    return (void *)syscall(SYS_mmap, at, n, protection, flags, fd, offset);
}

EXPORT int memfd_create(const char *name, unsigned flags)
{
    return fails(FAULT_MAP, EMFILE) ? -1 : (int)syscall(SYS_memfd_create, name, flags);
}

EXPORT int ftruncate(int fd, off_t n)
{
    return fails(FAULT_MAP, ENOSPC) ? -1 : (int)syscall(SYS_ftruncate, fd, n);
}

EXPORT int fallocate(int fd, int mode, off_t offset, off_t n)
{
    /* Giving memory back does not fail. */
    if (!(mode & FALLOC_FL_PUNCH_HOLE) && fails(FAULT_MAP, ENOSPC))
        return -1;
    return (int)syscall(SYS_fallocate, fd, mode, offset, n);
}

EXPORT int posix_fallocate(int fd, off_t offset, off_t n)
{
    if (fails(FAULT_MAP, ENOSPC))
        return ENOSPC;
    return syscall(SYS_fallocate, fd, 0, offset, n) == 0 ? 0 : errno;
}

/* ---- descriptors and sockets -------------------------------------------------------------- */

EXPORT int open(const char *path, int flags, ...)
{
    mode_t mode = 0;
    va_list args;

    if (flags & (O_CREAT | O_TMPFILE)) {
        va_start(args, flags);
        mode = va_arg(args, mode_t);
        va_end(args);
    }
    return fails(FAULT_DESCRIPTOR, EMFILE) ? -1
                                           : (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode);
}

EXPORT int openat(int directory, const char *path, int flags, ...)
{
    mode_t mode = 0;
    va_list args;

    if (flags & (O_CREAT | O_TMPFILE)) {
        va_start(args, flags);
        mode = va_arg(args, mode_t);
        va_end(args);
    }
    return fails(FAULT_DESCRIPTOR, EMFILE) ? -1
                                           : (int)syscall(SYS_openat, directory, path, flags, mode);
}

EXPORT int fcntl(int fd, int command, ...)
{
    va_list args;
    long value;

    va_start(args, command);
    value = va_arg(args, long);
    va_end(args);
    if ((command == F_DUPFD_CLOEXEC || command == F_ADD_SEALS) && fails(FAULT_DESCRIPTOR, EMFILE))
        return -1;
    return (int)syscall(SYS_fcntl, fd, command, value);
}

EXPORT int eventfd(unsigned initial, int flags)
{
    return fails(FAULT_DESCRIPTOR, EMFILE) ? -1 : (int)syscall(SYS_eventfd2, initial, flags);
}

EXPORT int accept4(int fd, struct sockaddr *address, socklen_t *n, int flags)
{
    return fails(FAULT_DESCRIPTOR, EMFILE) ? -1 : (int)syscall(SYS_accept4, fd, address, n, flags);
}

EXPORT ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
    return fails(FAULT_SOCKET, ENOBUFS) ? -1 : syscall(SYS_sendmsg, fd, message, flags);
}

EXPORT ssize_t recvmsg(int fd, struct msghdr *message, int flags)
{
    return fails(FAULT_SOCKET, ENOMEM) ? -1 : syscall(SYS_recvmsg, fd, message, flags);
}

/* ---- files -------------------------------------------------------------------------------- */

EXPORT ssize_t write(int fd, const void *p, size_t n)
{
    struct stat s;

    if (fstat(fd, &s) == 0 && S_ISREG(s.st_mode) && fails(FAULT_FILE, ENOSPC))
        return -1;
    return syscall(SYS_write, fd, p, n);
}

EXPORT ssize_t read(int fd, void *p, size_t n)
{
    struct stat s;

    if (fstat(fd, &s) == 0 && S_ISREG(s.st_mode) && fails(FAULT_FILE, EIO))
        return -1;
    return syscall(SYS_read, fd, p, n);
}

EXPORT int fsync(int fd)
{
    return fails(FAULT_FILE, EIO) ? -1 : (int)syscall(SYS_fsync, fd);
}

EXPORT int rename(const char *from, const char *to)
{
    return fails(FAULT_FILE, EIO) ? -1
                                  : (int)syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0);
}

EXPORT int renameat(int from_fd, const char *from, int to_fd, const char *to)
{
    return fails(FAULT_FILE, EIO) ? -1 : (int)syscall(SYS_renameat2, from_fd, from, to_fd, to, 0);
}
