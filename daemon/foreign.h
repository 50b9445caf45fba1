/*
 * Descriptors that peers sent. Closing the last one of a file may take as long as the peer likes: a socket with
 * SO_LINGER waits for its own peer, a file of a FUSE mount for its server, a Unix socket for what lies
 * in it. So the loop closes none that it does not know: threads do, a few at most. Nor does it leave any
 * unread in a connection that it closes, for the kernel would close them, and wait.
 */
#ifndef TKV_DAEMON_FOREIGN_H
#define TKV_DAEMON_FOREIGN_H

#include <stddef.h>
#include <sys/socket.h>
#include <sys/types.h>

struct tkv_foreign;

int tkv_foreign_create(struct tkv_foreign **f); /* 0 or -1 */

/* Threads that still wait for a peer do so until the process ends. */
void tkv_foreign_destroy(struct tkv_foreign **f);

/* Room for all descriptors that a message can have (SCM_MAX_FD): the kernel would close the others. */
struct tkv_foreign_control {
    _Alignas(struct cmsghdr) char bytes[CMSG_SPACE(253 * sizeof(int))];
};

/* recv without waiting, for who wants no descriptors. */
ssize_t tkv_foreign_recv(struct tkv_foreign *f, int fd, void *bytes, size_t n);

/* Close a descriptor that a peer sent. */
void tkv_foreign_close(struct tkv_foreign *f, int fd);

/* Close a connection over a Unix socket. */
void tkv_foreign_hang_up(struct tkv_foreign *f, int fd);

#endif /* TKV_DAEMON_FOREIGN_H */
