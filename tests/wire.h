/* Frames by hand, for tests that must be able to send wrong ones. */
#ifndef TKV_TESTS_WIRE_H
#define TKV_TESTS_WIRE_H

#include <protobuf-c/protobuf-c.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/frame.h"
#include "proto/trikv.pb-c.h"

enum { WIRE_TIMEOUT_MS = 20000 };

struct wire_reply {
    struct trikv_frame frame;
    uint8_t *message;
    uint8_t *payload;
    int fd;         /* or -1 */
    int fd2;        /* a second one; 0 or -1: none */
    int code;       /* of an error reply, else 0 */
    char text[256]; /* of an error reply */
};

/* A connected socket, or -1. */
int wire_connect(const char *path);

/* A whole frame on the heap, *n bytes long; message NULL: an empty one. */
uint8_t *wire_frame(uint16_t type, uint64_t sequence, const ProtobufCMessage *message,
                    const void *payload, size_t payload_bytes, unsigned n_fds, size_t *n);

/* Make the checksum of a frame right again after a change of header or message. */
void wire_reseal(uint8_t *frame);

/* All bytes, with a descriptor on the first if passed >= 0. False if the peer is gone. */
bool wire_write(int fd, const void *data, size_t n, int passed);

/* True once the peer has read all that was written; waits for it as long as for a reply. */
bool wire_taken(int fd);

/* One reply: 1; 0: the daemon closed the connection; -1: nothing came in time or it is not
 * a frame. */
int wire_read(int fd, struct wire_reply *r, int timeout_ms);
void wire_reply_deinit(struct wire_reply *r);

/* Send a request and read its reply; asserts that the exchange itself works. Returns the error
 * code of the reply, 0 for success. */
int wire_call(int fd, uint16_t type, const ProtobufCMessage *message, const void *payload,
              size_t payload_bytes, int passed, struct wire_reply *r);

/* The same without payload; the text of an error goes to text (or NULL). */
int wire_plain_call(int fd, uint16_t type, const ProtobufCMessage *message, char *text);

/* HELLO; asserts success. */
void wire_hello(int fd);

/* n_layers layers of WIRE_N_Q query heads, 2 KV heads, head_dim WIRE_DIM. */
Trikv__Layer wire_layer(uint32_t n_layers);

/* OPEN as `m` asks; the session's id, or 0 with the error in *code. */
uint64_t wire_open_as(int fd, const Trikv__OpenRequest *m, int *code);

/* OPEN of such layers with codec tq4 and no eviction. */
uint64_t wire_open(int fd, uint32_t n_layers, int *code);

/* The daemon's statistics. */
struct wire_daemon_stats {
    uint64_t memory_used_bytes;
    uint32_t n_sessions;
    uint32_t n_connections;
    uint64_t n_bad_frames;
    uint64_t n_requests;
};
void wire_daemon_stats(int fd, struct wire_daemon_stats *s);

/* Sessions of wire_open: floats of K (or V) and of Q (or O) per token and layer. */
enum { WIRE_N_Q = 4, WIRE_DIM = 64, WIRE_K_FLOATS = 2 * WIRE_DIM, WIRE_Q_FLOATS = 4 * WIRE_DIM };

struct rng;

int wire_connect_hello(const char *path);

/* Random K, V, Q of n tokens as a payload, on the heap. */
float *wire_payload(struct rng *rng, size_t n, size_t *bytes);
int wire_append_attend(int fd, uint64_t session, uint32_t layer, const void *payload, size_t bytes,
                       uint32_t n, struct wire_reply *r);

/* STATS, ROUND, CLOSE, ...: the reply's code. */
int wire_session_call(int fd, uint16_t type, uint64_t session, struct wire_reply *r);
void wire_close_session(int fd, uint64_t session);

/* A client that does what clients do: connects, opens, appends, attends, closes; asserts that it is
 * served. */
void wire_serve_well(const char *path);

#endif /* TKV_TESTS_WIRE_H */
