/* The handlers of dispatch.c. Each takes a message that is unpacked but not yet checked. */
#ifndef TKV_DAEMON_REQUESTS_H
#define TKV_DAEMON_REQUESTS_H

#include <stdbool.h>
#include <stdint.h>

#include "proto/trikv.pb-c.h"

struct tkv_call;
struct tkv_gate_stats;
struct tkv_prefix;
struct tkv_prefix_match;
struct tkv_profile;
struct tkv_report;
struct tkv_rope_params;
struct tkv_session;
struct tkv_session_entry;

/* protobuf-c has no const strings; messages that are only packed are not written to. */
static inline char *tkv_pb_text(const char *s)
{
    const union {
        const char *in;
        char *out;
    } u = {s};

    return u.out;
}

/* requests_info.c */
void tkv_handle_hello(struct tkv_call *call, const ProtobufCMessage *message);
void tkv_handle_profile_list(struct tkv_call *call, const ProtobufCMessage *message);
void tkv_handle_daemon_stats(struct tkv_call *call, const ProtobufCMessage *message);
void tkv_handle_config(struct tkv_call *call, const ProtobufCMessage *message);

/* requests_stats.c */
void tkv_handle_session_list(struct tkv_call *call, const ProtobufCMessage *message);
void tkv_handle_prefix_list(struct tkv_call *call, const ProtobufCMessage *message);
void tkv_handle_stats(struct tkv_call *call, const ProtobufCMessage *message);

/* requests_open.c */
void tkv_handle_open(struct tkv_call *call, const ProtobufCMessage *message);

/* requests_rope.c: rope of an OpenRequest against that of a profile; and what it says by itself,
 * of heads of this size. */
int tkv_rope_fits_profile(const struct tkv_profile *p, const Trikv__Rope *r,
                          struct tkv_report *why);
int tkv_rope_from_request(const Trikv__Rope *r, uint32_t head_dim, struct tkv_rope_params *out,
                          struct tkv_report *why);

/* requests_fork.c */
/* The layers of a session, equal ones in a row as one: how many there are. */
size_t tkv_fill_layers(const struct tkv_session *s, uint32_t n_layers, Trikv__Layer *item,
                       Trikv__Layer **items);
/* Answer with a session and its layers. */
void tkv_call_reply_session(struct tkv_call *call, struct tkv_session_entry *e,
                            uint64_t reserved_bytes);
void tkv_handle_fork(struct tkv_call *call, const ProtobufCMessage *message);
void tkv_handle_truncate(struct tkv_call *call, const ProtobufCMessage *message);

/* requests_reattach.c */
void tkv_handle_reattach(struct tkv_call *call, const ProtobufCMessage *message);

/* requests_prefix.c */
void tkv_handle_keep(struct tkv_call *call, const ProtobufCMessage *message);

/* What OPEN says of prefixes, checked; the ids it asks for are the payload of the request. */
int tkv_prefix_of_open(struct tkv_call *call, const Trikv__OpenRequest *m, struct tkv_prefix *out);

/* A session as the match has it, in entry. */
int tkv_prefix_fork(struct tkv_call *call, const struct tkv_prefix_match *match,
                    struct tkv_session_entry *entry);

/* requests_snapshot.c */
void tkv_handle_snapshot(struct tkv_call *call, const ProtobufCMessage *message);
void tkv_handle_restore(struct tkv_call *call, const ProtobufCMessage *message);
void tkv_handle_snapshot_list(struct tkv_call *call, const ProtobufCMessage *message);
void tkv_handle_snapshot_delete(struct tkv_call *call, const ProtobufCMessage *message);

/* requests_map.c */
void tkv_handle_map(struct tkv_call *call, const ProtobufCMessage *message);
void tkv_handle_unmap(struct tkv_call *call, const ProtobufCMessage *message);

/* requests_session.c */
void tkv_handle_close(struct tkv_call *call, const ProtobufCMessage *message);
void tkv_handle_drop(struct tkv_call *call, const ProtobufCMessage *message);
void tkv_handle_handle(struct tkv_call *call, const ProtobufCMessage *message);
void tkv_handle_staging(struct tkv_call *call, const ProtobufCMessage *message);

/* A session that this user may look at or drop, or NULL with the reason in call->why. */
struct tkv_session_entry *tkv_call_any_session(struct tkv_call *call);

/* 0 if a descriptor of the session's memory may be given away. */
int tkv_call_check_export(struct tkv_call *call, const struct tkv_session *s);

/* Of another process, but of the very same user, or NULL with the reason in call->why. */
struct tkv_session_entry *tkv_call_users_session(struct tkv_call *call);

/* Wait for the job on e; then the handler is called again. */
void tkv_call_wait(struct tkv_call *call, struct tkv_session_entry *e);

/* requests_tokens.c */
void tkv_handle_append(struct tkv_call *call, const ProtobufCMessage *message);
void tkv_handle_attend(struct tkv_call *call, const ProtobufCMessage *message);
void tkv_handle_append_attend(struct tkv_call *call, const ProtobufCMessage *message);
void tkv_handle_round(struct tkv_call *call, const ProtobufCMessage *message);

/* What a TokensRequest has beside positions. */
enum { TKV_STEP_KV = 1, TKV_STEP_Q = 2, TKV_STEP_OUT = 4 };

/* Find the session, the input and room for the output of a TokensRequest: call->entry and
 * call->step. False with the reason in call->why. */
bool tkv_call_take_step(struct tkv_call *call, const ProtobufCMessage *message, unsigned parts);

/* requests_ring.c */
void tkv_handle_ring(struct tkv_call *call, const ProtobufCMessage *message);
void tkv_handle_ring_close(struct tkv_call *call, const ProtobufCMessage *message);

/* requests_calibrate.c */
void tkv_handle_observe(struct tkv_call *call, const ProtobufCMessage *message);
void tkv_handle_calibrate(struct tkv_call *call, const ProtobufCMessage *message);

/* requests_gate.c */
void tkv_fill_gate(Trikv__GateStats *m, const struct tkv_gate_stats *s);
void tkv_handle_gate(struct tkv_call *call, const ProtobufCMessage *message);

/* requests_read.c */
void tkv_handle_read(struct tkv_call *call, const ProtobufCMessage *message);

#endif /* TKV_DAEMON_REQUESTS_H */
