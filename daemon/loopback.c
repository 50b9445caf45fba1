/* Reading loopback addresses; see loopback.h. */
#include "daemon/loopback.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static bool read_port(const char *text, in_port_t *port)
{
    const size_t n = strlen(text);
    unsigned long value;

    if (n == 0 || n > 5 || strspn(text, "0123456789") != n)
        return false;
    value = strtoul(text, NULL, 10);
    *port = htons((uint16_t)value);
    return value <= UINT16_MAX;
}

static bool read_four(const char *host, const char *port, struct sockaddr_in *a)
{
    a->sin_family = AF_INET;
    return inet_pton(AF_INET, host, &a->sin_addr) == 1 && read_port(port, &a->sin_port) &&
           ntohl(a->sin_addr.s_addr) >> 24 == IN_LOOPBACKNET;
}

static bool read_six(const char *host, const char *port, struct sockaddr_in6 *a)
{
    a->sin6_family = AF_INET6;
    return inet_pton(AF_INET6, host, &a->sin6_addr) == 1 && read_port(port, &a->sin6_port) &&
           IN6_IS_ADDR_LOOPBACK(&a->sin6_addr);
}

bool tkv_loopback_parse(const char *text, struct sockaddr_storage *address, socklen_t *n)
{
    const char *colon = strrchr(text, ':');
    const bool six = text[0] == '[';
    const size_t length = colon ? (size_t)(colon - text) : 0;
    char host[64];

    memset(address, 0, sizeof(*address));
    *n = six ? sizeof(struct sockaddr_in6) : sizeof(struct sockaddr_in);
    if (length < 3 || length >= sizeof(host) || (six && text[length - 1] != ']'))
        return false;
    memcpy(host, text + six, length - (six ? 2 : 0));
    host[length - (six ? 2 : 0)] = 0;
    return six ? read_six(host, colon + 1, (struct sockaddr_in6 *)address)
               : read_four(host, colon + 1, (struct sockaddr_in *)address);
}
