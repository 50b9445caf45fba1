/*
 * One request, one reply: the exchange under every call of the library. Not installed;
 * trikvctl uses it for requests that the library does not offer.
 */
#ifndef TKV_CLIENT_REQUEST_H
#define TKV_CLIENT_REQUEST_H

#include <stddef.h>
#include <stdint.h>

#include <protobuf-c/protobuf-c.h>

#include "proto/limits.h"

struct trikv_client;

enum { TKV_REQUEST_MAX_TENSORS = 5 };

/* A tensor of a request, or the place of one of a reply. */
struct tkv_tensor {
    void *data; /* request: only read; reply: NULL if it is not wanted */
    size_t bytes;
};

struct tkv_request {
    uint16_t type;                   /* enum trikv_frame_type */
    const ProtobufCMessage *message; /* NULL: an empty one */
    int pass_fd;                     /* -1: none; stays the caller's */

    /* The payload of the request, and of the reply, whose size must be just that. */
    struct tkv_tensor tensors[TKV_REQUEST_MAX_TENSORS];
    uint32_t n_tensors;
    struct tkv_tensor outputs[TKV_REQUEST_MAX_TENSORS];
    uint32_t n_outputs;
    int takes_payload;  /* a reply payload of any size goes into `payload` instead */
    uint32_t takes_fds; /* the reply must carry so many descriptors */

    /* What came back; released by tkv_request_deinit. */
    const ProtobufCMessageDescriptor *reply_type;
    ProtobufCMessage *reply;
    void *payload;
    size_t payload_bytes;
    int fd[TRIKV_MAX_MESSAGE_FDS];
};

#define TKV_REQUEST_INIT                \
    {                                   \
        .pass_fd = -1, .fd = { -1, -1 } \
    }

/*
 * Send *r and wait for its reply. 0, or an error whose text trikv_last_error() has; then
 * nothing needs to be released. An error that leaves the stream in doubt closes the connection.
 */
int tkv_request_run(struct trikv_client *c, struct tkv_request *r);

void tkv_request_deinit(struct tkv_request *r);

/* Bytes of n tensors in a payload: each starts at a multiple of 64, the last has no padding.
 * SIZE_MAX if that overflows. */
size_t tkv_tensors_bytes(const struct tkv_tensor *t, uint32_t n);

#endif /* TKV_CLIENT_REQUEST_H */
