/*
 * Zip by its central directory (PKWARE APPNOTE 4.3.12, 4.3.16). Local headers are read only for
 * where the data begin: torch leaves their sizes to a descriptor after the data.
 */
#include "tools/zip.h"

#include <stdlib.h>
#include <string.h>
#include <zlib.h>

enum {
    END_BYTES = 22,
    ENTRY_BYTES = 46,
    LOCAL_BYTES = 30,
    MAX_COMMENT_BYTES = 65535,
    FLAG_ENCRYPTED = 1,
    METHOD_DEFLATE = 8,
};

static uint32_t u16(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8;
}

static uint32_t u32(const uint8_t *p)
{
    return u16(p) | u16(p + 2) << 16;
}

/* The end record, whose comment must reach to the end of the file; NULL if there is none. */
static const uint8_t *find_end(const uint8_t *data, size_t n)
{
    for (size_t back = END_BYTES; back <= n && back <= END_BYTES + MAX_COMMENT_BYTES; back++) {
        const uint8_t *p = data + n - back;

        if (u32(p) == 0x06054b50 && u16(p + 20) == back - END_BYTES)
            return p;
    }
    return NULL;
}

/* One entry of the directory at dir[left]; returns its length, or 0 after an error. */
static size_t read_entry(struct tkv_zip_member *m, const uint8_t *data, size_t n,
                         const uint8_t *dir, size_t left, struct tkv_reason *why)
{
    const uint8_t *local;
    size_t at, n_all, start;

    if (left < ENTRY_BYTES || u32(dir) != 0x02014b50)
        return tkv_reason_set(why, "zip: the directory is cut off or broken"), 0;
    n_all = (size_t)ENTRY_BYTES + u16(dir + 28) + u16(dir + 30) + u16(dir + 32);
    if (left < n_all)
        return tkv_reason_set(why, "zip: the directory is cut off"), 0;
    *m = (struct tkv_zip_member){.name = (const char *)dir + ENTRY_BYTES,
                                 .name_bytes = u16(dir + 28),
                                 .is_deflated = u16(dir + 10) == METHOD_DEFLATE,
                                 .n_packed = u32(dir + 20),
                                 .n_bytes = u32(dir + 24),
                                 .crc32 = u32(dir + 16)};
    at = u32(dir + 42);
    if (u16(dir + 8) & FLAG_ENCRYPTED || (!m->is_deflated && u16(dir + 10) != 0) ||
        (!m->is_deflated && m->n_packed != m->n_bytes))
        return tkv_reason_set(why,
                              "zip: member %.*s is encrypted or packed in an unknown way, want it "
                              "stored or deflated",
                              (int)(m->name_bytes < 64 ? m->name_bytes : 64), m->name),
               0;
    if (at > n || n - at < LOCAL_BYTES || u32(data + at) != 0x04034b50)
        return tkv_reason_set(why, "zip: no member at byte %zu, where the directory says", at), 0;
    local = data + at;
    start = at + LOCAL_BYTES + u16(local + 26) + u16(local + 28);
    if (start > n || n - start < m->n_packed)
        return tkv_reason_set(why, "zip: a member at byte %zu goes beyond the end", at), 0;
    m->data = data + start;
    return n_all;
}

static int compare_names(const struct tkv_zip_member *a, const struct tkv_zip_member *b)
{
    const size_t n = a->name_bytes < b->name_bytes ? a->name_bytes : b->name_bytes;
    const int order = memcmp(a->name, b->name, n);

    return order ? order : (a->name_bytes > b->name_bytes) - (a->name_bytes < b->name_bytes);
}

static int compare(const void *a, const void *b)
{
    return compare_names(a, b);
}

static int read_directory(struct tkv_zip *z, const uint8_t *data, size_t n, const uint8_t *end,
                          struct tkv_reason *why)
{
    const size_t n_before = (size_t)(end - data), at = u32(end + 16);
    size_t left = u32(end + 12);
    const uint8_t *dir;

    if (at > n_before || n_before - at < left)
        return tkv_reason_set(why, "zip: the directory is not inside the file");
    dir = data + at;
    for (size_t i = 0; i < z->n; i++) {
        const size_t used = read_entry(&z->members[i], data, n, dir, left, why);

        if (!used)
            return -1;
        dir += used;
        left -= used;
    }
    qsort(z->members, z->n, sizeof(*z->members), compare);
    for (size_t i = 1; i < z->n; i++) {
        if (compare_names(&z->members[i - 1], &z->members[i]) == 0)
            return tkv_reason_set(why, "zip: two members of one name");
    }
    return 0;
}

int tkv_zip_parse(struct tkv_zip *z, const uint8_t *data, size_t n, struct tkv_reason *why)
{
    const uint8_t *end = find_end(data, n);

    *z = (struct tkv_zip){0};
    if (!end)
        return tkv_reason_set(why, "zip: no end record: the file is cut off, or no zip file");
    z->n = u16(end + 10);
    if (u32(end + 4) != 0 || u16(end + 8) != z->n || z->n == 0xffff)
        return tkv_reason_set(why, "zip: several volumes or zip64, want a plain file"), -1;
    z->members = calloc(z->n ? z->n : 1, sizeof(*z->members));
    if (!z->members)
        return tkv_reason_set(why, "out of memory for %zu members", z->n);
    if (read_directory(z, data, n, end, why) == 0)
        return 0;
    tkv_zip_deinit(z);
    return -1;
}

void tkv_zip_deinit(struct tkv_zip *z)
{
    free(z->members);
    *z = (struct tkv_zip){0};
}

const struct tkv_zip_member *tkv_zip_find(const struct tkv_zip *z, const char *name,
                                          size_t name_bytes)
{
    const struct tkv_zip_member key = {.name = name, .name_bytes = name_bytes};

    return z->n ? bsearch(&key, z->members, z->n, sizeof(*z->members), compare) : NULL;
}

/* CRC-32 of IEEE 802.3, half a byte at a time: entry i is i through four steps of the polynomial. */
static uint32_t crc_of(const uint8_t *data, size_t n)
{
    static const uint32_t table[16] = {0x00000000, 0x1db71064, 0x3b6e20c8, 0x26d930ac,
                                       0x76dc4190, 0x6b6b51f4, 0x4db26158, 0x5005713c,
                                       0xedb88320, 0xf00f9344, 0xd6d6a3e8, 0xcb61b38c,
                                       0x9b64c2b0, 0x86d3d2d4, 0xa00ae278, 0xbdbdf21c};
    uint32_t crc = 0xffffffff;

    for (size_t i = 0; i < n; i++) {
        crc ^= data[i];
        crc = crc >> 4 ^ table[crc & 15];
        crc = crc >> 4 ^ table[crc & 15];
    }
    return ~crc;
}

static int check_sum(const struct tkv_zip_member *m, const uint8_t *data, struct tkv_reason *why)
{
    if (crc_of(data, m->n_bytes) == m->crc32)
        return 0;
    return tkv_reason_set(why, "zip: member %.*s: its checksum is wrong: the file is damaged",
                          (int)(m->name_bytes < 64 ? m->name_bytes : 64), m->name);
}

int tkv_zip_check(const struct tkv_zip_member *m, struct tkv_reason *why)
{
    if (m->is_deflated)
        return tkv_reason_set(why, "zip: member %.*s is deflated, want it stored",
                              (int)(m->name_bytes < 64 ? m->name_bytes : 64), m->name);
    return check_sum(m, m->data, why);
}

/* Deflate (RFC 1951) into out[n_bytes], all of it and no more. Lengths are 32 bits here. */
static bool inflate_all(const struct tkv_zip_member *m, uint8_t *out)
{
    z_stream z = {.next_in = (uint8_t *)(uintptr_t)m->data,
                  .avail_in = (uInt)m->n_packed,
                  .next_out = out,
                  .avail_out = (uInt)m->n_bytes};
    bool good;

    if (inflateInit2(&z, -MAX_WBITS) != Z_OK)
        return false;
    good = inflate(&z, Z_FINISH) == Z_STREAM_END && z.total_out == m->n_bytes && z.avail_in == 0;
    (void)inflateEnd(&z);
    return good;
}

int tkv_zip_read(const struct tkv_zip_member *m, void *out, struct tkv_reason *why)
{
    if (!m->is_deflated)
        memcpy(out, m->data, m->n_bytes);
    else if (!inflate_all(m, out))
        return tkv_reason_set(why, "zip: member %.*s: its deflated data are damaged",
                              (int)(m->name_bytes < 64 ? m->name_bytes : 64), m->name);
    return check_sum(m, out, why);
}
