/* Reading an HTTP request; see http_parse.h. */
#include "daemon/http_parse.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

struct span {
    const char *p;
    size_t n;
};

static bool is(struct span s, const char *text)
{
    return s.n == strlen(text) && memcmp(s.p, text, s.n) == 0;
}

static bool is_caseless(struct span s, const char *text)
{
    return s.n == strlen(text) && strncasecmp(s.p, text, s.n) == 0;
}

/* Takes what stands before the first `end` off *rest; all of it if there is none. */
static struct span take_until(struct span *rest, char end)
{
    const char *at = memchr(rest->p, end, rest->n);
    const struct span s = {rest->p, at ? (size_t)(at - rest->p) : rest->n};
    const size_t used = s.n + (at ? 1 : 0);

    rest->p += used;
    rest->n -= used;
    return s;
}

static struct span trim(struct span s)
{
    while (s.n && (s.p[0] == ' ' || s.p[0] == '\t')) {
        s.p++;
        s.n--;
    }
    while (s.n && strchr(" \t\r", s.p[s.n - 1]))
        s.n--;
    return s;
}

/* Bytes up to and with the empty line, 0 if it has not come yet. */
static size_t head_bytes(const char *data, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (data[i] == '\n' && i + 1 < n && data[i + 1] == '\n')
            return i + 2;
        if (data[i] == '\n' && i + 2 < n && data[i + 1] == '\r' && data[i + 2] == '\n')
            return i + 3;
    }
    return 0;
}

static bool read_hex(struct span s, uint64_t *value)
{
    *value = 0;
    if (s.n == 0 || s.n > 16)
        return false;
    for (size_t i = 0; i < s.n; i++) {
        const char *digits = "0123456789abcdef";
        const char *at = s.p[i] ? strchr(digits, s.p[i]) : NULL;

        if (!at)
            return false;
        *value = *value << 4 | (uint64_t)(at - digits);
    }
    return *value != 0;
}

static bool read_query(struct span query, struct tkv_http_request *r)
{
    while (query.n) {
        struct span value = take_until(&query, '&');
        const struct span key = take_until(&value, '=');

        if (is(key, "layers") && (is(value, "1") || is(value, "0")))
            r->layers = value.p[0] == '1';
        else if (!is(key, "session") || !read_hex(value, &r->session))
            return false;
    }
    return true;
}

static int read_target(struct span target, struct tkv_http_request *r)
{
    const struct span path = take_until(&target, '?');

    if (is(path, "/"))
        r->page = TKV_HTTP_STATUS_PAGE;
    else if (is(path, "/metrics"))
        r->page = TKV_HTTP_METRICS;
    else if (is(path, "/healthz"))
        r->page = TKV_HTTP_HEALTH;
    else
        return 404;
    return read_query(target, r) ? 200 : 400;
}

static int read_request_line(struct span line, struct tkv_http_request *r)
{
    const struct span method = take_until(&line, ' ');
    const struct span target = take_until(&line, ' ');

    if (!is(line, "HTTP/1.1") && !is(line, "HTTP/1.0"))
        return line.n > 5 && memcmp(line.p, "HTTP/", 5) == 0 ? 505 : 400;
    if (!is(method, "GET") && !is(method, "HEAD"))
        return 405;
    r->head = is(method, "HEAD");
    return read_target(target, r);
}

/* "localhost", "127.x.y.z" or "[::1]", with a port or without. */
static bool is_local_host(struct span host)
{
    if (host.n && host.p[0] == '[')
        return host.n >= 5 && memcmp(host.p, "[::1]", 5) == 0 && (host.n == 5 || host.p[5] == ':');
    host = take_until(&host, ':');
    if (is_caseless(host, "localhost"))
        return true;
    for (size_t i = 0; i < host.n; i++) {
        if (!host.p[i] || !strchr("0123456789.", host.p[i]))
            return false;
    }
    return host.n > 4 && memcmp(host.p, "127.", 4) == 0;
}

static bool accepts_openmetrics(struct span value)
{
    while (value.n) {
        struct span item = take_until(&value, ',');

        if (is_caseless(trim(take_until(&item, ';')), "application/openmetrics-text"))
            return true;
    }
    return false;
}

int tkv_http_parse(const char *data, size_t n, bool local_only, struct tkv_http_request *r)
{
    struct span rest = {data, head_bytes(data, n)};
    bool local = !local_only;
    int status;

    *r = (struct tkv_http_request){.page = TKV_HTTP_STATUS_PAGE};
    if (!rest.n)
        return n < TKV_HTTP_REQUEST_BYTES ? 0 : 431;
    status = read_request_line(trim(take_until(&rest, '\n')), r);
    while (rest.n) {
        struct span value = take_until(&rest, '\n');
        const struct span name = take_until(&value, ':');

        value = trim(value);
        if (is_caseless(name, "accept"))
            r->openmetrics |= accepts_openmetrics(value);
        else if (is_caseless(name, "host") && local_only)
            local = is_local_host(value);
        else if (is_caseless(name, "transfer-encoding") ||
                 (is_caseless(name, "content-length") && !is(value, "0")))
            status = status == 200 ? 413 : status;
    }
    return local ? status : 421;
}
