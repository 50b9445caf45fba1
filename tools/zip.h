/*
 * Reader of zip archives whose members are stored, not compressed: what torch.save writes.
 * The archive is hostile input: every offset and length is checked, and a member's checksum.
 */
#ifndef TKV_TOOLS_ZIP_H
#define TKV_TOOLS_ZIP_H

#include <stddef.h>
#include <stdint.h>

#include "tools/reason.h"

struct tkv_zip_member {
    const char *name; /* not terminated */
    size_t name_bytes;
    const uint8_t *data;
    size_t n_bytes;
    uint32_t crc32;
};

struct tkv_zip {
    size_t n;
    struct tkv_zip_member *members; /* ascending by name */
};

/* Views into data[n], which must outlive z. 0, or -1 with a text and *z zeroed. */
int tkv_zip_parse(struct tkv_zip *z, const uint8_t *data, size_t n, struct tkv_reason *why);
void tkv_zip_deinit(struct tkv_zip *z);

/* NULL if there is none. */
const struct tkv_zip_member *tkv_zip_find(const struct tkv_zip *z, const char *name,
                                          size_t name_bytes);

/* -1 with a text if the member's data are not those that were put there. */
int tkv_zip_check(const struct tkv_zip_member *m, struct tkv_reason *why);

#endif /* TKV_TOOLS_ZIP_H */
