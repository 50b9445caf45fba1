/* What the files of the library share about a connection and a session. */
#ifndef TKV_CLIENT_CLIENT_H
#define TKV_CLIENT_CLIENT_H

#include <stdbool.h>

#include "client/trikv.h"

#include "client/request.h"
#include "client/ring.h"
#include "client/staging.h"
#include "client/stream.h"
#include "core/types.h"
#include "proto/errors.h"
#include "proto/frame.h"
#include "proto/limits.h"
#include "proto/report.h"

enum { TKV_CLIENT_TEXT_BYTES = 128, TKV_CLIENT_REASON_BYTES = 32, TKV_CLIENT_SOCKET_BYTES = 108 };

struct trikv_client {
    struct tkv_stream stream;
    struct tkv_staging staging;
    struct tkv_client_ring *ring;   /* or NULL */
    struct trikv_session *sessions; /* those open, newest first */
    struct trikv_map *maps;
    uint64_t sequence; /* of the last request */
    uint64_t max_payload_bytes;
    struct trikv_info info;
    bool ring_takes_ids; /* of tokens; by the daemon's features */
    char version[TKV_CLIENT_TEXT_BYTES];
    char cpu[TKV_CLIENT_TEXT_BYTES];
    char socket[TKV_CLIENT_SOCKET_BYTES]; /* as it was connected */
    char name[TRIKV_MAX_NAME_BYTES + 1];
    size_t staging_bytes;
    struct tkv_report report;
    /* A message with its padding, out or in. */
    uint8_t message[TRIKV_MAX_HEADER_BYTES + TRIKV_FRAME_ALIGN];
};

/* The geometry a step's sizes follow from. */
struct trikv_session {
    struct trikv_client *client;
    struct trikv_session *next;
    uint64_t id;
    uint64_t boot_id; /* of the daemon that opened it */
    uint64_t reserved_bytes;
    struct trikv_prefix_result prefix;
    char prefix_reason[TKV_CLIENT_REASON_BYTES];
    uint32_t n_layers;
    uint32_t n_shapes; /* n_layers, or 1 if all layers are alike */
    struct tkv_shape shapes[];
};

/*
 * Read a struct of the caller that begins with its size into *to, which holds the default of
 * each field: an older caller's struct is shorter. ARGUMENT if it is longer than ours, or
 * lacks even the field after the size.
 */
int tkv_client_read_struct(struct trikv_client *c, void *to, const void *from, size_t known_bytes,
                           const char *name);

/* A session of layers as the daemon says them, equal ones in a row as one; its id is not set. */
struct Trikv__Layer;
struct tkv_client_layers {
    struct Trikv__Layer *const *layers;
    size_t n;
};
int tkv_session_of_layers(struct trikv_client *c, const struct tkv_client_layers *m,
                          struct trikv_session **session);

/* client/connection.c: connect as before, to whatever daemon is there now. */
int tkv_client_connect_again(struct trikv_client *c);

/* Hold it among those of its client. */
void tkv_session_add(struct trikv_session *s);

/* client/prefix.c: what the caller says of a prefix, into the message and the request; and what the
 * daemon answered. */
struct Trikv__OpenReply;
struct Trikv__Prefix;
int tkv_prefix_fill(struct trikv_client *c, const struct trikv_prefix *from,
                    struct Trikv__Prefix *m, struct tkv_request *r);
int tkv_prefix_take(struct trikv_session *s, uint32_t n_asked, const struct Trikv__OpenReply *m);

/* client/fork.c: the session that a reply to FORK or RESTORE speaks of. */
struct Trikv__ForkReply;
int tkv_session_take(struct trikv_client *c, const struct Trikv__ForkReply *m,
                     struct trikv_session **session);

/* Forget every session without telling the daemon. */
void tkv_session_free_all(struct trikv_client *c);

/* Unmap all without telling the daemon. */
void tkv_map_free_all(struct trikv_client *c);

/* A request whose message is just a session's id. */
int tkv_session_request(struct trikv_client *c, uint64_t id, uint16_t type, struct tkv_request *r);

/* Copy text of a peer for people: cut to n - 1 bytes, control characters replaced. */
void tkv_client_copy_text(char *to, size_t n, const char *from);

#endif /* TKV_CLIENT_CLIENT_H */
