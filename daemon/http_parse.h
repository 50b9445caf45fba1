/*
 * The little of HTTP/1.1 that a scraper and a browser need to look at the daemon: one GET or HEAD
 * without a body. Pure: bytes in, a request or a status out.
 */
#ifndef TKV_DAEMON_HTTP_PARSE_H
#define TKV_DAEMON_HTTP_PARSE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { TKV_HTTP_REQUEST_BYTES = 4096 }; /* request line and header fields */

struct tkv_http_request {
    enum { TKV_HTTP_STATUS_PAGE = 0, TKV_HTTP_METRICS, TKV_HTTP_HEALTH } page;
    bool head;        /* no body is wanted */
    bool openmetrics; /* the peer accepts OpenMetrics; else the older Prometheus text */
    bool layers;      /* ?layers=1 */
    uint64_t session; /* ?session=HEX, 0: all */
};

/*
 * 0: the request is not complete yet; 200: it is in *r; else the HTTP status that refuses it.
 * local_only (a TCP listener): the Host must be this machine, so that no web page can point a name of
 * its own at us and read what we say.
 */
int tkv_http_parse(const char *data, size_t n, bool local_only, struct tkv_http_request *r);

#endif /* TKV_DAEMON_HTTP_PARSE_H */
