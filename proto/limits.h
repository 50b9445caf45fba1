/* Bounds that both sides know. Each is checked where a peer's number first arrives. */
#ifndef TRIKV_PROTO_LIMITS_H
#define TRIKV_PROTO_LIMITS_H

enum {
    TRIKV_PROTOCOL_MIN = 1,
    TRIKV_PROTOCOL_MAX = 1,
    TRIKV_MAX_HEADER_BYTES = 64 * 1024, /* of the protobuf part */
    TRIKV_MAX_LAYERS = 512,
    TRIKV_MAX_HEADS = 1024, /* query heads of a layer */
    TRIKV_MAX_NAME_BYTES = 64,
    TRIKV_MAX_REQUEST_TOKENS = 1 << 20,
    TRIKV_MAX_POSITION = 0x7ffffffe,
    TRIKV_MAX_MESSAGE_FDS = 2,                       /* a request has at most 1 */
    TRIKV_DEFAULT_PAYLOAD_BYTES = 256 * 1024 * 1024, /* configurable in the daemon */
};

#endif /* TRIKV_PROTO_LIMITS_H */
