/* A session's cache as this process has mapped it. */
#ifndef TKV_CLIENT_MAP_H
#define TKV_CLIENT_MAP_H

#include "client/client.h"
#include "core/cache.h"
#include "core/kernels.h"
#include "proto/shm_layout.h"

struct trikv_map {
    struct trikv_client *client;
    struct trikv_map *next;
    uint64_t id;
    struct tkv_kernels kn; /* those of the daemon, so that the bits are */
    uint8_t *base;
    uint64_t arena_bytes;
    uint64_t pin_offset;
    uint64_t pin_value;
    uint32_t n_layers;
    uint64_t *n_seen;                 /* [n_layers] */
    int32_t *first_query;             /* [n_layers] queries before it would miss keys */
    struct tkv_cache *caches;         /* [n_layers]; point to the rest */
    struct tkv_block_layout *layouts; /* of a layer one, or as many as it says */
    struct tkv_head *heads;
    struct tkv_block *blocks;
    float *sinks;
    struct tkv_coder **coders; /* two for each layout at most, each in memory of its own */
    uint32_t n_coders;
    void *scratch;
    size_t scratch_bytes;
};

/*
 * Read the payload of a MAP reply, of which nothing is believed before it is checked, for an arena
 * that is mapped at m->base already. NULL, or what is wrong with it.
 */
const char *tkv_map_read(struct trikv_map *m, const void *payload, size_t bytes);

/* Free what read has made. */
void tkv_map_forget(struct trikv_map *m);

#endif /* TKV_CLIENT_MAP_H */
