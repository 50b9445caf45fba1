/*
 * The frame: what goes over the socket, in both directions.
 *
 *   64-byte header | protobuf message | zeros to a multiple of 64 | payload
 *
 * so that tensors start 64-byte aligned in the stream. The payload is raw tensors,
 * each starting at a multiple of 64 bytes, in the order the message names them.
 * All numbers are little-endian. The checksum is CRC-32C (Castagnoli) over the
 * header with the field itself zero, then the protobuf message; it does not cover the payload.
 *
 * A reply carries the sequence number of its request and the request's type with
 * TRIKV_REPLY set; an error reply is of type TRIKV_REPLY_ERROR.
 */
#ifndef TRIKV_PROTO_FRAME_H
#define TRIKV_PROTO_FRAME_H

#include <stddef.h>
#include <stdint.h>

enum { TRIKV_FRAME_BYTES = 64, TRIKV_FRAME_ALIGN = 64 };
#define TRIKV_FRAME_MAGIC UINT32_C(0x564b5254) /* "TRKV" */

/* Requests. Values are wire values: never reused. */
enum trikv_frame_type {
    TRIKV_HELLO = 1,
    TRIKV_PROFILE_LIST = 2,
    TRIKV_SESSION_LIST = 3,
    TRIKV_DAEMON_STATS = 4,
    TRIKV_CONFIG = 5,
    TRIKV_OPEN = 16,
    TRIKV_CLOSE = 17,
    TRIKV_STATS = 18,
    TRIKV_DROP = 19, /* close a session by id, from any connection of the same user or root */
    TRIKV_FORK = 20,
    TRIKV_TRUNCATE = 21,
    TRIKV_KEEP = 22,        /* store a session's state as a prefix */
    TRIKV_PREFIX_LIST = 23, /* what is stored */
    TRIKV_SNAPSHOT = 24,    /* write a session to a file of the daemon's */
    TRIKV_RESTORE = 25,     /* a session from such a file */
    TRIKV_SNAPSHOT_LIST = 26,
    TRIKV_SNAPSHOT_DELETE = 27,
    TRIKV_REATTACH = 28, /* a session that an earlier daemon served */
    TRIKV_APPEND = 32,
    TRIKV_ATTEND = 33,
    TRIKV_APPEND_ATTEND = 34,
    TRIKV_ROUND = 35,
    TRIKV_OBSERVE = 36,
    TRIKV_CALIBRATE = 37,
    TRIKV_READ = 38,
    TRIKV_GATE = 40, /* what a round would drop */
    TRIKV_HANDLE = 48,
    TRIKV_STAGING = 49, /* carries one descriptor */
    TRIKV_MAP = 50,
    TRIKV_UNMAP = 51,
    TRIKV_RING = 52, /* carries one descriptor, its reply two */
    TRIKV_RING_CLOSE = 53,
    TRIKV_REPLY = 0x8000,
    TRIKV_REPLY_ERROR = 0xffff,
};

struct trikv_frame {
    uint32_t magic;
    uint16_t version; /* TRIKV_PROTOCOL_MAX */
    uint16_t type;
    uint32_t flags;         /* 0 */
    uint32_t header_bytes;  /* of the protobuf message, <= TRIKV_MAX_HEADER_BYTES */
    uint64_t payload_bytes; /* after the padding; 0 if there is none */
    uint64_t sequence;
    uint32_t crc32c;
    uint32_t n_fds;       /* descriptors sent with the first byte of this frame, <= 2 */
    uint8_t reserved[24]; /* zero */
};
_Static_assert(sizeof(struct trikv_frame) == TRIKV_FRAME_BYTES, "frame is 64 bytes");
_Static_assert(offsetof(struct trikv_frame, version) == 4, "frame layout");
_Static_assert(offsetof(struct trikv_frame, type) == 6, "frame layout");
_Static_assert(offsetof(struct trikv_frame, flags) == 8, "frame layout");
_Static_assert(offsetof(struct trikv_frame, header_bytes) == 12, "frame layout");
_Static_assert(offsetof(struct trikv_frame, payload_bytes) == 16, "frame layout");
_Static_assert(offsetof(struct trikv_frame, sequence) == 24, "frame layout");
_Static_assert(offsetof(struct trikv_frame, crc32c) == 32, "frame layout");
_Static_assert(offsetof(struct trikv_frame, n_fds) == 36, "frame layout");
_Static_assert(offsetof(struct trikv_frame, reserved) == 40, "frame layout");
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the host must be little-endian");

/* CRC-32C of data[n], continued from crc (0 to begin). */
uint32_t tkv_crc32c(uint32_t crc, const void *data, size_t n);

/* Bytes of zeros between a protobuf message and the payload. */
static inline size_t tkv_frame_padding(uint32_t header_bytes)
{
    return (TRIKV_FRAME_ALIGN - header_bytes % TRIKV_FRAME_ALIGN) % TRIKV_FRAME_ALIGN;
}

/* Fill the fixed fields and the checksum of *f for this message. */
void tkv_frame_seal(struct trikv_frame *f, const void *message);

/*
 * Check a header as it arrived. Returns 0 or a trikv_error, with *why (never NULL
 * then) a static text naming the field. The checksum needs the message and is
 * checked apart.
 */
int tkv_frame_check(const struct trikv_frame *f, uint64_t max_payload_bytes, const char **why);
int tkv_frame_check_message(const struct trikv_frame *f, const void *message, const char **why);

#endif /* TRIKV_PROTO_FRAME_H */
