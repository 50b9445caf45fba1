/*
 * One connection: bytes to frames and replies to bytes. Knows the frame, not the requests.
 *
 * A connection reads one frame, gives it to its owner, and reads nothing more until the reply
 * is wholly written: the kernel's socket buffer is the only queue, so a fast writer is
 * held back and a reply can never pile up behind another. A frame may arrive cut at any byte.
 *
 * Loop thread only. The owner embeds the struct and frees it after `closed`.
 */
#ifndef TKV_DAEMON_CONN_H
#define TKV_DAEMON_CONN_H

#include "core/types.h" /* wants to come before uv.h */

#include <protobuf-c/protobuf-c.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <uv.h>

#include "daemon/buffer.h"
#include "daemon/foreign.h"
#include "proto/frame.h"
#include "proto/limits.h"
#include "proto/report.h"

struct tkv_conn;

/* May change while connections live (reload): each check reads them anew. */
struct tkv_conn_limits {
    uint64_t max_payload_bytes;
    uint64_t frame_timeout_ms; /* for a peer to send one frame, or to take one reply */
    uint64_t idle_timeout_ms;  /* between frames; 0: none */
};

struct tkv_conn_ops {
    /* May this frame's payload be held? Header and descriptor are there, nothing else.
     * Anything but 0: the payload is thrown away and that error is the answer. */
    int (*admit)(struct tkv_conn *c, struct tkv_report *why);
    /* There is no memory for a frame: true if some may have become free. */
    bool (*reclaim)(struct tkv_conn *c);
    /* The frame was read and thrown away (admit said so, or there was no memory): the
     * connection answers with this. */
    void (*refused)(struct tkv_conn *c, struct tkv_report *why);
    /* A whole, checked frame: answer with tkv_conn_reply or tkv_conn_fail, now or later. */
    void (*request)(struct tkv_conn *c);
    /* A reply is out: another frame may come, nothing of the last is in use. May be NULL. */
    void (*served)(struct tkv_conn *c);
    /* Nothing came for idle_timeout_ms: true if the peer was active in another way. May be NULL. */
    bool (*active)(struct tkv_conn *c);
    /* The frame cannot be trusted; the connection is about to answer and close. */
    void (*bad_frame)(struct tkv_conn *c, const struct tkv_report *why);
    /* The socket is closed and no callback will follow: the owner calls tkv_conn_deinit
     * once it needs the buffers no more. */
    void (*closed)(struct tkv_conn *c);
};

enum tkv_conn_timer { TKV_TIMER_OFF = 0, TKV_TIMER_IDLE, TKV_TIMER_FRAME, TKV_TIMER_REPLY };

enum tkv_conn_state {
    TKV_CONN_READING = 0,
    TKV_CONN_BUSY,    /* the owner has the frame */
    TKV_CONN_WRITING, /* a reply is on its way */
    TKV_CONN_CLOSING,
};

/* What all connections share. */
struct tkv_conn_shared {
    uv_loop_t *loop;
    const struct tkv_conn_ops *ops;
    const struct tkv_conn_limits *limits;
    struct tkv_foreign *foreign;
};

struct tkv_conn {
    const struct tkv_conn_ops *ops;
    const struct tkv_conn_limits *limits;
    struct tkv_foreign *foreign;
    struct tkv_budget *budget;
    enum tkv_conn_state state;
    uv_poll_t poll;
    uv_timer_t timer;
    int poll_events; /* what poll is armed for */
    enum tkv_conn_timer timer_for;
    unsigned n_handles;
    int fd;
    pid_t peer_pid; /* SO_PEERCRED: of the process that connected */
    uid_t peer_uid;
    bool close_after_reply;
    const char *close_reason; /* static text */

    /* the frame being read or served */
    struct trikv_frame in;
    uint64_t n_got_bytes; /* of header, message, padding and payload */
    struct tkv_buffer message;
    struct tkv_buffer payload; /* in.payload_bytes of it */
    int in_fd;                 /* or -1; the owner may take it */
    struct tkv_report refusal; /* error != 0: the payload is not kept, this is the answer */
    bool message_dropped;      /* there was no memory even for the message */

    /* the reply being written */
    struct trikv_frame out;
    struct tkv_buffer out_message;
    const void *out_payload;
    uint64_t n_sent_bytes;
    int out_fd[TRIKV_MAX_MESSAGE_FDS]; /* owned */
    unsigned n_out_fds;
};

/* Take over fd and start reading. On failure (a libuv error) fd stays the caller's. */
int tkv_conn_init(struct tkv_conn *c, const struct tkv_conn_shared *shared, int fd,
                  struct tkv_budget *budget);

/* Free the buffers; only after `closed`. */
void tkv_conn_deinit(struct tkv_conn *c);

/*
 * Answer the frame in hand with `message`, payload[payload_bytes] (a view until the frame
 * after) and fd (taken, in every case; -1: none). If the reply cannot be built an error reply
 * goes out in its place.
 */
void tkv_conn_reply(struct tkv_conn *c, const ProtobufCMessage *message, const void *payload,
                    uint64_t payload_bytes, int fd);
/* The same without payload, with n_fds descriptors. */
void tkv_conn_reply_fds(struct tkv_conn *c, const ProtobufCMessage *message, const int *fd,
                        unsigned n_fds);
void tkv_conn_fail(struct tkv_conn *c, const struct tkv_report *why);

/* Stop at once; `closed` follows from the loop. reason is static text for the log. */
void tkv_conn_close(struct tkv_conn *c, const char *reason);

/* Close now if nothing has arrived of a next frame. */
void tkv_conn_close_if_idle(struct tkv_conn *c, const char *reason);

#endif /* TKV_DAEMON_CONN_H */
