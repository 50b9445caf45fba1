/*
 * A connected socket with a deadline: whole buffers out, whole buffers in, at most
 * one descriptor out and two in. It knows nothing of frames.
 */
#ifndef TKV_CLIENT_STREAM_H
#define TKV_CLIENT_STREAM_H

#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "proto/limits.h"
#include "proto/report.h"

enum { TKV_STREAM_AHEAD_BYTES = 1024 };

struct tkv_stream {
    int fd;                               /* non-blocking; -1: closed */
    uint32_t timeout_ms;                  /* of one call */
    int64_t deadline_ms;                  /* of the call in progress, monotonic clock */
    int passed_fd[TRIKV_MAX_MESSAGE_FDS]; /* received and not yet taken, -1: none */
    uint32_t n_passed;    /* descriptors received since tkv_stream_start; those too many
                           * were closed */
    uint32_t n_truncated; /* messages whose descriptors the kernel had to cut */
    uint32_t n_ahead;     /* bytes received before they were asked for, ... */
    uint32_t ahead_at;    /* ... from here on: small replies come in one system call */
    uint8_t ahead[TKV_STREAM_AHEAD_BYTES];
};

/* Connect to a Unix socket within timeout_ms. */
int tkv_stream_open(struct tkv_stream *s, const char *path, uint32_t timeout_ms,
                    struct tkv_report *why);
void tkv_stream_close(struct tkv_stream *s);

/* Close *fd unless it is -1, which it is afterwards. */
void tkv_fd_close(int *fd);

/* Start the clock of a call, and forget descriptors of the one before. */
void tkv_stream_start(struct tkv_stream *s);

/* Milliseconds until the deadline of the call, or TRIKV_E_DEADLINE. */
int tkv_stream_left(const struct tkv_stream *s, int64_t *left_ms, struct tkv_report *why);

/* Send everything in iov[n] (which is consumed: changed as it goes); pass_fd >= 0 travels with
 * the first byte and stays the caller's. TRIKV_E_DISCONNECTED or TRIKV_E_DEADLINE. */
int tkv_stream_send(struct tkv_stream *s, struct iovec *iov, size_t n, int pass_fd,
                    struct tkv_report *why);

/* Fill everything in iov[n], likewise. */
int tkv_stream_receive(struct tkv_stream *s, struct iovec *iov, size_t n, struct tkv_report *why);

#endif /* TKV_CLIENT_STREAM_H */
