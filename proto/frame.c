/* The frame header: checksum, sealing and checking. Who reads and writes sockets is
 * elsewhere (daemon/conn.c, client/). */
#include "proto/frame.h"

#include <string.h>

#include "proto/crc32c_table.h"
#include "proto/errors.h"
#include "proto/limits.h"

uint32_t tkv_crc32c(uint32_t crc, const void *data, size_t n)
{
    const unsigned char *p = data;

    crc = ~crc;
    for (; n >= 8; n -= 8, p += 8) {
        uint32_t lo, hi;

        memcpy(&lo, p, 4);
        memcpy(&hi, p + 4, 4);
        lo ^= crc;
        crc = crc32c_table[7][lo & 255] ^ crc32c_table[6][lo >> 8 & 255] ^
              crc32c_table[5][lo >> 16 & 255] ^ crc32c_table[4][lo >> 24] ^
              crc32c_table[3][hi & 255] ^ crc32c_table[2][hi >> 8 & 255] ^
              crc32c_table[1][hi >> 16 & 255] ^ crc32c_table[0][hi >> 24];
    }
    for (; n; n--)
        crc = crc >> 8 ^ crc32c_table[0][(crc ^ *p++) & 255];
    return ~crc;
}

static uint32_t checksum(const struct trikv_frame *f, const void *message)
{
    struct trikv_frame h = *f;

    h.crc32c = 0;
    return tkv_crc32c(tkv_crc32c(0, &h, sizeof(h)), message, f->header_bytes);
}

void tkv_frame_seal(struct trikv_frame *f, const void *message)
{
    f->magic = TRIKV_FRAME_MAGIC;
    f->version = TRIKV_PROTOCOL_MAX;
    f->flags = 0;
    memset(f->reserved, 0, sizeof(f->reserved));
    f->crc32c = checksum(f, message);
}

static int refuse(const char **why, const char *text, int error)
{
    *why = text;
    return error;
}

int tkv_frame_check(const struct trikv_frame *f, uint64_t max_payload_bytes, const char **why)
{
    if (f->magic != TRIKV_FRAME_MAGIC)
        return refuse(why, "magic: want \"TRKV\"", TRIKV_E_PROTOCOL);
    if (f->version < TRIKV_PROTOCOL_MIN || f->version > TRIKV_PROTOCOL_MAX)
        return refuse(why, "version: want 1", TRIKV_E_VERSION);
    if (f->flags != 0)
        return refuse(why, "flags: want 0", TRIKV_E_PROTOCOL);
    if (f->header_bytes > TRIKV_MAX_HEADER_BYTES)
        return refuse(why, "header_bytes: over 65536", TRIKV_E_TOO_LARGE);
    if (f->payload_bytes > max_payload_bytes)
        return refuse(why, "payload_bytes: over the limit that HELLO tells", TRIKV_E_TOO_LARGE);
    if (f->n_fds > TRIKV_MAX_MESSAGE_FDS)
        return refuse(why, "n_fds: over 2", TRIKV_E_PROTOCOL);
    for (size_t i = 0; i < sizeof(f->reserved); i++) {
        if (f->reserved[i])
            return refuse(why, "reserved: want zeros", TRIKV_E_PROTOCOL);
    }
    return TRIKV_OK;
}

int tkv_frame_check_message(const struct trikv_frame *f, const void *message, const char **why)
{
    if (f->crc32c != checksum(f, message))
        return refuse(why, "crc32c: header and message do not match it", TRIKV_E_CHECKSUM);
    return TRIKV_OK;
}
