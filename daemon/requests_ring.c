/* RING and RING_CLOSE. What happens between them is not a request: ring.c. */
#include "daemon/dispatch.h"
#include "daemon/requests.h"
#include "daemon/server.h"
#include "proto/errors.h"
#include "proto/trikv.pb-c.h"

void tkv_handle_ring(struct tkv_call *call, const ProtobufCMessage *message)
{
    const Trikv__RingRequest *m = (const Trikv__RingRequest *)message;
    struct tkv_client *const client = call->client;
    const Trikv__Empty reply = TRIKV__EMPTY__INIT;
    int fds[2];

    if (client->ring)
        tkv_fail(&call->why, TRIKV_E_EXISTS, "ring: this connection has one; RING_CLOSE ends it");
    else if (!tkv_ring_open(client, client->conn.in_fd, m->ring_bytes, fds, &call->why))
        tkv_conn_reply_fds(&client->conn, &reply.base, fds, 2);
    if (call->why.error)
        tkv_call_fail(call);
}

void tkv_handle_ring_close(struct tkv_call *call, const ProtobufCMessage *message)
{
    (void)message;
    if (call->client->ring) {
        tkv_ring_close(call->client->ring, call);
    } else {
        tkv_fail(&call->why, TRIKV_E_STATE, "ring: this connection has none");
        tkv_call_fail(call);
    }
}
