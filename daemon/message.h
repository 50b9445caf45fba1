/*
 * Unpacking a peer's protobuf message in bounded memory. protobuf-c keeps unknown fields,
 * one allocation each, does not look into strings and has no bound of its own: so a message is
 * scanned before it is unpacked, and unpacked into an arena that fails when it is full.
 */
#ifndef TKV_DAEMON_MESSAGE_H
#define TKV_DAEMON_MESSAGE_H

#include <protobuf-c/protobuf-c.h>
#include <stddef.h>

#include "proto/report.h"

enum {
    /* The largest honest OPEN (64 KiB of layers) needs about half of it. */
    TKV_MESSAGE_ARENA_BYTES = 256 * 1024,
    /* A newer client may send some fields that we do not know; more is an attack or a mistake. */
    TKV_MESSAGE_UNKNOWN_FIELDS = 16,
};

struct tkv_message_arena {
    ProtobufCAllocator allocator;
    char *memory;
    size_t size_bytes;
    size_t used_bytes;
};

/* Takes `memory` of size_bytes as a view for its whole life. */
void tkv_message_arena_init(struct tkv_message_arena *a, void *memory, size_t size_bytes);

/*
 * Unpack data[n] as `type`. The message is valid until the next unpack with the same arena.
 * NULL on failure, with the reason (PROTOCOL, and the field where it is known) in *why.
 */
ProtobufCMessage *tkv_message_unpack(struct tkv_message_arena *a,
                                     const ProtobufCMessageDescriptor *type, const void *data,
                                     size_t n, struct tkv_report *why);

/* True if text[n] is UTF-8 (RFC 3629: no overlong forms, surrogates or NUL). */
int tkv_utf8_check(const void *text, size_t n);

#endif /* TKV_DAEMON_MESSAGE_H */
