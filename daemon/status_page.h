/* The page for people at /: what the daemon holds and does, drawn without scripts or outside assets.
 * The browser asks again every two seconds. */
#ifndef TKV_DAEMON_STATUS_PAGE_H
#define TKV_DAEMON_STATUS_PAGE_H

#include "daemon/text.h"

struct tkv_server;

void tkv_status_page_write(struct tkv_server *s, struct tkv_text *t);

#endif /* TKV_DAEMON_STATUS_PAGE_H */
