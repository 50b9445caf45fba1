/* Going through an image's bytes. Only store/image*.c include this. */
#ifndef TKV_STORE_IMAGE_PRIV_H
#define TKV_STORE_IMAGE_PRIV_H

#include "store/image.h"
#include "store/image_layout.h"

struct image_in {
    const uint8_t *at;
    size_t left;
    const char *name; /* of the part */
    uint32_t layer;
    struct tkv_report *why;
};

int tkv_image_begin(struct image_in *in, enum tkv_image_part part, uint32_t layer,
                    const void *image, size_t bytes, struct tkv_report *why);

/* The next bytes; an error if there are not so many. */
int tkv_image_take(struct image_in *in, void *out, size_t bytes);
int tkv_image_skip_pad(struct image_in *in, size_t bytes); /* after so many */

/* All bytes were used. */
int tkv_image_end(struct image_in *in);

/* "image of layer 3, state: ..." */
int tkv_image_fail(const struct image_in *in, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

#endif /* TKV_STORE_IMAGE_PRIV_H */
