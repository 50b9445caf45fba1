/*
 * Reader of zip archives whose members are stored (what torch.save writes) or deflated (numpy). The
 * archive is hostile input: every offset and length is checked, and a member's checksum.
 */
#ifndef TKV_TOOLS_ZIP_H
#define TKV_TOOLS_ZIP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "tools/reason.h"

struct tkv_zip_member {
    const char *name; /* not terminated */
    size_t name_bytes;
    bool is_deflated;
    const uint8_t *data;
    size_t n_packed; /* bytes there; n_bytes if stored */
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

/* The member's n_bytes, unpacked and checked. */
int tkv_zip_read(const struct tkv_zip_member *m, void *out, struct tkv_reason *why);

/* Of a stored member, to be used in place: -1 with a text if it is not, or its data are not those that
 * were put there. */
int tkv_zip_check(const struct tkv_zip_member *m, struct tkv_reason *why);

#endif /* TKV_TOOLS_ZIP_H */
