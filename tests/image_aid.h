/* A session made again from its image in an arena of its own: what a file does, without the file. */
#ifndef TKV_TESTS_IMAGE_AID_H
#define TKV_TESTS_IMAGE_AID_H

#include "store/arena.h"
#include "store/image.h"
#include "tests/session_aid.h"

enum { IMAGE_AID_MAX_BLOCKS = 16384 };

/* Blocks of one arena and their copies in another one. */
struct image_aid {
    struct tkv_image_source source;
    struct tkv_arena *to;
    const struct tkv_session *from;
    struct tkv_session *empty; /* of which the first and those like it are forks */
    uint64_t digest;           /* of its CONFIG */
    struct {
        uint64_t name;
        struct tkv_block_id id;
    } blocks[IMAGE_AID_MAX_BLOCKS];
    size_t n;
};

void image_aid_init(struct image_aid *a);
/* References of its own are given back; sessions that were read live on. */
void image_aid_deinit(struct image_aid *a);

/* The session again; a's stats and errors are those of the aid. */
struct tkv_session *image_aid_copy(struct image_aid *a, const struct aid *of,
                                   const struct tkv_session *from);

/* Every part of both images is the same, with tables and blocks by their contents. */
void image_aid_compare(const struct tkv_session *a, const struct tkv_session *b);

#endif /* TKV_TESTS_IMAGE_AID_H */
