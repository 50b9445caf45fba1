/* An address of this machine alone, as the configuration writes it. */
#ifndef TKV_DAEMON_LOOPBACK_H
#define TKV_DAEMON_LOOPBACK_H

#include <stdbool.h>
#include <sys/socket.h>

/* "127.0.0.1:9464" or "[::1]:9464"; port 0 lets the kernel choose. False if it is anything else, or
 * an address that other machines could reach. */
bool tkv_loopback_parse(const char *text, struct sockaddr_storage *address, socklen_t *n);

#endif /* TKV_DAEMON_LOOPBACK_H */
