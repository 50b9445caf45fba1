/* The answer to /metrics: OpenMetrics 1.0, or the Prometheus text format 0.0.4 that came before it. */
#ifndef TKV_DAEMON_OPENMETRICS_H
#define TKV_DAEMON_OPENMETRICS_H

#include "daemon/http_parse.h"
#include "daemon/text.h"

struct tkv_server;

/* Sessions that do not fit are left out, the newest first; trikv_sessions_left_out says how many. */
void tkv_openmetrics_write(struct tkv_server *s, const struct tkv_http_request *r,
                           struct tkv_text *t);

#endif /* TKV_DAEMON_OPENMETRICS_H */
