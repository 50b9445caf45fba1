/* A daemon that does what a test tells it to, in a thread: one connection at a time. */
#ifndef TKV_TESTS_FAKE_H
#define TKV_TESTS_FAKE_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <protobuf-c/protobuf-c.h>

#include "proto/frame.h"

/* Serves one connection; runs in the fake's thread. */
typedef void fake_serve(int fd, void *arg);

struct fake {
    char directory[64];
    char path[80];
    int listen_fd;
    pthread_t thread;
    fake_serve *serve;
    void *arg;
};

void fake_init(struct fake *f);
void fake_deinit(struct fake *f);

/* Serve the next connection; fake_join waits until `serve` has returned and closed it. */
void fake_start(struct fake *f, fake_serve *serve, void *arg);
void fake_join(struct fake *f);

struct fake_request {
    struct trikv_frame frame;
    uint8_t message[64 * 1024 + 64];
    uint8_t *payload; /* heap */
    int fd;           /* or -1 */
};

/* Read a whole request; false if the peer is gone. Released by fake_request_deinit. */
bool fake_read(int fd, struct fake_request *q);
void fake_request_deinit(struct fake_request *q);

/* A reply as bytes, sealed: message and payload may be NULL. Heap. */
struct fake_frame {
    uint8_t *bytes;
    size_t n_bytes;
};
struct fake_frame fake_frame_of(uint16_t type, uint64_t sequence, const ProtobufCMessage *message,
                                const void *payload, size_t payload_bytes);

/* Seal again after a change of header or message. */
void fake_frame_reseal(struct fake_frame *f);

/* Send bytes with n_fds (0..3) copies of pass_fd. False if the peer is gone. */
bool fake_send(int fd, const void *bytes, size_t n, int pass_fd, unsigned n_fds);

/* Build, send and free. */
bool fake_reply(int fd, uint16_t type, uint64_t sequence, const ProtobufCMessage *message);

/* How many descriptors this process has open. */
unsigned fake_count_fds(void);

#endif /* TKV_TESTS_FAKE_H */
