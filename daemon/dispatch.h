/*
 * From a checked frame to an answer: one handler for each type of request. A handler answers at
 * once, or starts a job whose end answers, or waits for another's job on the session.
 */
#ifndef TKV_DAEMON_DISPATCH_H
#define TKV_DAEMON_DISPATCH_H

#include <protobuf-c/protobuf-c.h>

#include "daemon/conn.h"
#include "daemon/pool.h"
#include "proto/report.h"

struct tkv_call;
struct tkv_session_entry;

/* May the payload of this frame be held? (struct tkv_conn_ops) */
int tkv_dispatch_admit(struct tkv_conn *conn, struct tkv_report *why);

/* Serve the frame that the client's connection holds. */
void tkv_dispatch(struct tkv_call *call);

/* The session that a call waited for is free, or gone. */
void tkv_call_again(struct tkv_call *call);

/* The session that a CLOSE or DROP doomed is destroyed. */
void tkv_call_closed(struct tkv_call *call);

/* Answer with call->why, which holds an error. */
void tkv_call_fail(struct tkv_call *call);

void tkv_call_reply(struct tkv_call *call, const ProtobufCMessage *message);

/* The session of call->session_id if it was opened on this connection; else NULL, and the
 * reason in call->why. */
struct tkv_session_entry *tkv_call_own_session(struct tkv_call *call);

/* Run call->job on a worker; `done` on the loop thread then answers. */
void tkv_call_start(struct tkv_call *call, void (*work)(struct tkv_job *job),
                    void (*done)(struct tkv_job *job));

/* The same on the thread for files: what waits for a disk keeps no worker from the others. */
void tkv_call_start_file(struct tkv_call *call, void (*work)(struct tkv_job *job),
                         void (*done)(struct tkv_job *job));

/* To be called first in every `done`; false if the client has gone meanwhile: then the call
 * must not be touched any more. */
bool tkv_call_ended(struct tkv_call *call);

/* Count the request that the connection holds by its kind, served or not. */
void tkv_dispatch_count(struct tkv_conn *conn);

/* The name of the i-th kind of request and its type; NULL after the last. */
const char *tkv_dispatch_kind(size_t i, uint16_t *type);

struct tkv_call *tkv_call_of(struct tkv_job *job);

#endif /* TKV_DAEMON_DISPATCH_H */
