/* A shared area for tensors: made and mapped by the client, mapped by the daemon too. */
#ifndef TKV_CLIENT_STAGING_H
#define TKV_CLIENT_STAGING_H

#include <stddef.h>
#include <stdint.h>

#include "proto/report.h"

struct trikv_client;

struct tkv_staging {
    uint8_t *base; /* NULL: there is none */
    size_t bytes;
};

/* Make an area of at least `bytes`, its memory taken now, and tell the daemon. */
int tkv_staging_init(struct trikv_client *c, size_t bytes);
void tkv_staging_deinit(struct tkv_staging *s);

#endif /* TKV_CLIENT_STAGING_H */
