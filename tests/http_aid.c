/* A client that knows just enough HTTP; see http_aid.h. */
#include "tests/http_aid.h"

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "tests/wire.h"

enum { PATIENCE_MS = 10000 };

/* False if the peer did not close in time. */
static bool read_all(int fd, char *out)
{
    size_t n = 0;

    for (;;) {
        struct pollfd p = {.fd = fd, .events = POLLIN};
        ssize_t got;

        if (poll(&p, 1, PATIENCE_MS) != 1)
            return false;
        got = recv(fd, out + n, HTTP_REPLY_BYTES - 1 - n, 0);
        if (got <= 0)
            break;
        n += (size_t)got;
    }
    out[n] = 0;
    return true;
}

int http_exchange(const char *path, const char *request, char *out)
{
    const int fd = wire_connect(path);
    int status = 0;

    if (fd < 0)
        return -1;
    send(fd, request, strlen(request), MSG_NOSIGNAL);
    if (!read_all(fd, out))
        status = -1;
    else if (sscanf(out, "HTTP/1.1 %d ", &status) != 1)
        status = 0;
    close(fd);
    return status;
}

int http_get(const char *path, const char *target, bool openmetrics, char *out)
{
    char request[512];
    const char *body;
    int status;

    snprintf(request, sizeof(request), "GET %s HTTP/1.1\r\nHost: test\r\n%s\r\n", target,
             openmetrics ? "Accept: application/openmetrics-text;version=1.0.0\r\n" : "");
    status = http_exchange(path, request, out);
    body = strstr(out, "\r\n\r\n");
    if (status > 0 && body)
        memmove(out, body + 4, strlen(body + 4) + 1);
    return status;
}

double http_sample(const char *text, const char *name)
{
    const size_t n = strlen(name);

    for (const char *at = text; (at = strstr(at, name)) != NULL; at += n) {
        if ((at == text || at[-1] == '\n') && at[n] == ' ')
            return strtod(at + n, NULL);
    }
    return -1;
}
