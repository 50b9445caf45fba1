/* What the three files of a connection share. */
#ifndef TKV_DAEMON_CONN_PRIV_H
#define TKV_DAEMON_CONN_PRIV_H

#include "daemon/conn.h"

/* Wait for these events, and no others. */
void tkv_conn_arm(struct tkv_conn *c, int events);
void tkv_conn_set_timer(struct tkv_conn *c, enum tkv_conn_timer purpose);

/* Read until the frame is whole, the socket is empty or it is another's turn. */
void tkv_conn_read(struct tkv_conn *c);

/* Close those of the reply, sent or not. */
void tkv_conn_close_out_fds(struct tkv_conn *c);

/* Write on; after the last byte tkv_conn_next_frame. */
void tkv_conn_write(struct tkv_conn *c);
void tkv_conn_next_frame(struct tkv_conn *c);

#endif /* TKV_DAEMON_CONN_PRIV_H */
