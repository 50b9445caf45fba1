/* Packed files: writing and reading them piece by piece. */
#include "store/pack.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>
#include <zstd.h>
#include <zstd_errors.h>

#include "core/types.h"
#include "proto/errors.h"
#include "store/budget.h"

#define PACK_MAGIC UINT64_C(0x314b434150564b54) /* "TKVPACK1" */

enum {
    LEVEL = 1,       /* codes hardly shrink: more effort gains nothing */
    WINDOW_LOG = 19, /* of what is written, and the most that is read */
    PIECE_BYTES = 128 << 10,
    /* zstd's own memory at this level and window: 1.37 MB to write, 1.01 to read (ZSTD_sizeof_*,
     * 1.5.4), and the piece. */
    ZSTD_BYTES = 2 << 20,
};

struct header {
    uint64_t magic;
    uint32_t version;
    uint32_t zero;
    uint64_t packed_bytes;
    uint64_t content_bytes;
    uint64_t checksum;
    uint64_t reserved[3];
};
_Static_assert(sizeof(struct header) == TKV_PACK_HEADER_BYTES, "no padding");

/* zstd gets its memory when it first needs it: without any, nothing is wrong with what it works on. */
static int fail_zstd(struct tkv_report *why, int error, const char *what, size_t code)
{
    if (ZSTD_getErrorCode(code) == ZSTD_error_memory_allocation)
        error = TRIKV_E_NO_MEMORY;
    return tkv_fail(why, error, "%s: %s", what, ZSTD_getErrorName(code));
}

/* ---- writing ------------------------------------------------------------------------------ */

struct tkv_pack_writer {
    struct tkv_budget *budget;
    size_t bytes;
    int directory_fd, fd;
    ZSTD_CCtx *zstd;
    XXH3_state_t *hash;
    uint64_t n_packed, n_content;
    char name[TKV_MAX_PACK_NAME_BYTES + 1];
    char temporary[TKV_MAX_PACK_NAME_BYTES + 32];
    uint8_t piece[PIECE_BYTES];
};

static int fail_system(struct tkv_report *why, const char *what)
{
    return tkv_fail(why, TRIKV_E_SYSTEM, "%s: %s", what, strerror(errno));
}

static int write_fully(int fd, const void *bytes, size_t n, struct tkv_report *why)
{
    const uint8_t *p = bytes;

    while (n > 0) {
        const ssize_t got = write(fd, p, n);

        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return fail_system(why, "write");
        p += got;
        n -= (size_t)got;
    }
    return 0;
}

static int open_temporary(struct tkv_pack_writer *w, struct tkv_report *why)
{
    const struct header none = {0};

    (void)snprintf(w->temporary, sizeof(w->temporary), ".%s.%" PRIxPTR ".tmp", w->name,
                   (uintptr_t)w);
    (void)unlinkat(w->directory_fd, w->temporary, 0); /* of one that was killed */
    w->fd = openat(w->directory_fd, w->temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (w->fd < 0)
        return fail_system(why, w->temporary);
    return write_fully(w->fd, &none, sizeof(none), why);
}

static bool start(struct tkv_pack_writer *w)
{
    w->zstd = ZSTD_createCCtx();
    w->hash = XXH3_createState();
    return w->zstd && w->hash && XXH3_64bits_reset(w->hash) == XXH_OK &&
           !ZSTD_isError(ZSTD_CCtx_setParameter(w->zstd, ZSTD_c_compressionLevel, LEVEL)) &&
           !ZSTD_isError(ZSTD_CCtx_setParameter(w->zstd, ZSTD_c_windowLog, WINDOW_LOG));
}

int tkv_pack_create(struct tkv_pack_writer **writer, int directory_fd, const char *name,
                    struct tkv_budget *budget, struct tkv_report *why)
{
    const size_t bytes = sizeof(struct tkv_pack_writer);
    struct tkv_pack_writer *w;
    int e;

    *writer = NULL;
    if (!*name || strlen(name) > TKV_MAX_PACK_NAME_BYTES)
        return tkv_fail(why, TRIKV_E_ARGUMENT, "a name of %zu bytes, want 1 to %d", strlen(name),
                        TKV_MAX_PACK_NAME_BYTES);
    if (!tkv_budget_reserve(budget, ZSTD_BYTES))
        return tkv_fail(why, TRIKV_E_MEMORY_CAP, "memory cap reached: no room to pack a file");
    w = tkv_budget_alloc(budget, bytes);
    if (!w) {
        tkv_budget_release(budget, ZSTD_BYTES);
        return tkv_fail(why, TRIKV_E_MEMORY_CAP, "memory cap reached: no room to pack a file");
    }
    w->budget = budget;
    w->bytes = bytes;
    w->directory_fd = directory_fd;
    w->fd = -1;
    memcpy(w->name, name, strlen(name) + 1);
    e = start(w) ? open_temporary(w, why)
                 : tkv_fail(why, TRIKV_E_NO_MEMORY, "no memory to compress with");
    if (e)
        tkv_pack_writer_destroy(&w);
    *writer = w;
    return e;
}

/* Compress `in` and write what comes of it; `end` finishes the frame. */
static int pump(struct tkv_pack_writer *w, ZSTD_inBuffer *in, bool end, struct tkv_report *why)
{
    size_t left = 1;
    int e = 0;

    while (!e && (end ? left > 0 : in->pos < in->size)) {
        ZSTD_outBuffer out = {w->piece, sizeof(w->piece), 0};

        left = ZSTD_compressStream2(w->zstd, &out, in, end ? ZSTD_e_end : ZSTD_e_continue);
        if (ZSTD_isError(left))
            return fail_zstd(why, TRIKV_E_INTERNAL, "compress", left);
        (void)XXH3_64bits_update(w->hash, w->piece, out.pos);
        w->n_packed += out.pos;
        e = write_fully(w->fd, w->piece, out.pos, why);
    }
    return e;
}

int tkv_pack_write(void *writer, const void *bytes, size_t n, struct tkv_report *why)
{
    struct tkv_pack_writer *w = writer;
    ZSTD_inBuffer in = {bytes, n, 0};

    w->n_content += n;
    return pump(w, &in, false, why);
}

static int write_header(struct tkv_pack_writer *w, struct tkv_report *why)
{
    struct header h = {.magic = PACK_MAGIC,
                       .version = TKV_PACK_VERSION,
                       .packed_bytes = w->n_packed,
                       .content_bytes = w->n_content};

    (void)XXH3_64bits_update(w->hash, &h, sizeof(h));
    h.checksum = XXH3_64bits_digest(w->hash);
    if (lseek(w->fd, 0, SEEK_SET) != 0)
        return fail_system(why, "seek");
    return write_fully(w->fd, &h, sizeof(h), why);
}

int tkv_pack_commit(struct tkv_pack_writer *w, uint64_t *file_bytes, struct tkv_report *why)
{
    ZSTD_inBuffer in = {NULL, 0, 0};
    int e = pump(w, &in, true, why);

    e = e ? e : write_header(w, why);
    if (!e && fsync(w->fd))
        e = fail_system(why, "fsync");
    if (!e && renameat(w->directory_fd, w->temporary, w->directory_fd, w->name))
        e = fail_system(why, w->name);
    if (e)
        return e;
    w->temporary[0] = '\0';
    *file_bytes = sizeof(struct header) + w->n_packed;
    return fsync(w->directory_fd) ? fail_system(why, "fsync of the directory") : 0;
}

void tkv_pack_writer_destroy(struct tkv_pack_writer **writer)
{
    struct tkv_pack_writer *w = *writer;

    if (!w)
        return;
    (void)ZSTD_freeCCtx(w->zstd);
    (void)XXH3_freeState(w->hash);
    if (w->fd >= 0) {
        close(w->fd);
        if (w->temporary[0])
            (void)unlinkat(w->directory_fd, w->temporary, 0);
    }
    tkv_budget_release(w->budget, ZSTD_BYTES);
    tkv_budget_free(w->budget, w, w->bytes);
    *writer = NULL;
}

/* ---- reading ------------------------------------------------------------------------------ */

struct tkv_pack_reader {
    struct tkv_budget *budget;
    size_t bytes;
    int fd;
    ZSTD_DCtx *zstd;
    uint64_t n_left;      /* of the content */
    uint64_t packed_left; /* not yet read from the file */
    ZSTD_inBuffer in;
    uint8_t piece[PIECE_BYTES];
};

/* As many bytes as there are, up to n. */
static int read_fully(int fd, void *bytes, size_t n, size_t *got, struct tkv_report *why)
{
    uint8_t *p = bytes;

    *got = 0;
    while (*got < n) {
        const ssize_t more = read(fd, p + *got, n - *got);

        if (more < 0 && errno == EINTR)
            continue;
        if (more < 0)
            return fail_system(why, "read");
        if (more == 0)
            break;
        *got += (size_t)more;
    }
    return 0;
}

static int check_header(const struct header *h, size_t got, int fd, struct tkv_report *why)
{
    struct stat st;

    if (got < sizeof(*h) || h->magic != PACK_MAGIC)
        return tkv_fail(why, TRIKV_E_VALUE, "not a file of trikvd");
    if (h->version != TKV_PACK_VERSION)
        return tkv_fail(why, TRIKV_E_VERSION, "file is of version %u, want %d", h->version,
                        TKV_PACK_VERSION);
    if (fstat(fd, &st))
        return fail_system(why, "stat");
    if (!S_ISREG(st.st_mode) || (uint64_t)st.st_size - sizeof(*h) != h->packed_bytes)
        return tkv_fail(why, TRIKV_E_VALUE, "file has %lld bytes, want %llu", (long long)st.st_size,
                        (unsigned long long)(h->packed_bytes + sizeof(*h)));
    return 0;
}

/* Of all that follows the header, then of the header. */
static int hash_file(struct tkv_pack_reader *r, XXH3_state_t *hash, const struct header *h,
                     struct tkv_report *why)
{
    struct header plain = *h;
    size_t got = 1;
    int e = 0;

    if (!hash || XXH3_64bits_reset(hash) != XXH_OK)
        return tkv_fail(why, TRIKV_E_NO_MEMORY, "no memory to check a file");
    while (!e && got > 0) {
        e = read_fully(r->fd, r->piece, sizeof(r->piece), &got, why);
        (void)XXH3_64bits_update(hash, r->piece, e ? 0 : got);
    }
    plain.checksum = 0;
    (void)XXH3_64bits_update(hash, &plain, sizeof(plain));
    if (!e && XXH3_64bits_digest(hash) != h->checksum)
        e = tkv_fail(why, TRIKV_E_CHECKSUM, "checksum is %016" PRIx64 ", want %016" PRIx64,
                     (uint64_t)XXH3_64bits_digest(hash), h->checksum);
    return e;
}

static int check_sum(struct tkv_pack_reader *r, const struct header *h, struct tkv_report *why)
{
    XXH3_state_t *hash = XXH3_createState();
    int e = hash_file(r, hash, h, why);

    (void)XXH3_freeState(hash);
    if (!e && lseek(r->fd, sizeof(*h), SEEK_SET) < 0)
        e = fail_system(why, "seek");
    return e;
}

static int begin(struct tkv_pack_reader *r, struct tkv_report *why)
{
    struct header h;
    size_t got;
    int e = read_fully(r->fd, &h, sizeof(h), &got, why);

    e = e ? e : check_header(&h, got, r->fd, why);
    e = e ? e : check_sum(r, &h, why);
    if (e)
        return e;
    r->n_left = h.content_bytes;
    r->packed_left = h.packed_bytes;
    r->zstd = ZSTD_createDCtx();
    if (!r->zstd || ZSTD_isError(ZSTD_DCtx_setParameter(r->zstd, ZSTD_d_windowLogMax, WINDOW_LOG)))
        return tkv_fail(why, TRIKV_E_NO_MEMORY, "no memory to decompress with");
    return 0;
}

int tkv_pack_open(struct tkv_pack_reader **reader, int fd, struct tkv_budget *budget,
                  struct tkv_report *why)
{
    const size_t bytes = sizeof(struct tkv_pack_reader);
    struct tkv_pack_reader *r = NULL;
    int e;

    *reader = NULL;
    if (tkv_budget_reserve(budget, ZSTD_BYTES)) {
        r = tkv_budget_alloc(budget, bytes);
        if (!r)
            tkv_budget_release(budget, ZSTD_BYTES);
    }
    if (!r)
        return tkv_fail(why, TRIKV_E_MEMORY_CAP, "memory cap reached: no room to read a file");
    r->budget = budget;
    r->bytes = bytes;
    r->fd = fd;
    e = begin(r, why);
    if (e) {
        r->fd = -1;
        tkv_pack_reader_destroy(&r);
    }
    *reader = r;
    return e;
}

static int refill(struct tkv_pack_reader *r, struct tkv_report *why)
{
    const size_t n = r->packed_left < sizeof(r->piece) ? (size_t)r->packed_left : sizeof(r->piece);
    size_t got;
    const int e = read_fully(r->fd, r->piece, n, &got, why);

    if (e)
        return e;
    if (got == 0)
        return tkv_fail(why, TRIKV_E_VALUE, "file ends early");
    r->packed_left -= got;
    r->in = (ZSTD_inBuffer){r->piece, got, 0};
    return 0;
}

int tkv_pack_read(void *reader, void *bytes, size_t n, struct tkv_report *why)
{
    struct tkv_pack_reader *r = reader;
    ZSTD_outBuffer out = {bytes, n, 0};

    if (n > r->n_left)
        return tkv_fail(why, TRIKV_E_VALUE, "want %zu bytes more, file has %llu", n,
                        (unsigned long long)r->n_left);
    r->n_left -= n;
    while (out.pos < n) {
        const size_t before = out.pos;
        size_t hint;

        if (r->in.pos == r->in.size) {
            const int e = refill(r, why);

            if (e)
                return e;
        }
        hint = ZSTD_decompressStream(r->zstd, &out, &r->in);
        if (ZSTD_isError(hint))
            return fail_zstd(why, TRIKV_E_VALUE, "decompress", hint);
        if (hint == 0 && out.pos < n && out.pos == before && r->packed_left == 0 &&
            r->in.pos == r->in.size)
            return tkv_fail(why, TRIKV_E_VALUE, "file ends early");
    }
    return 0;
}

int tkv_pack_end(const struct tkv_pack_reader *r, struct tkv_report *why)
{
    if (r->n_left > 0)
        return tkv_fail(why, TRIKV_E_VALUE, "file has %llu bytes too many",
                        (unsigned long long)r->n_left);
    return 0;
}

void tkv_pack_reader_destroy(struct tkv_pack_reader **reader)
{
    struct tkv_pack_reader *r = *reader;

    if (!r)
        return;
    (void)ZSTD_freeDCtx(r->zstd);
    if (r->fd >= 0)
        close(r->fd);
    tkv_budget_release(r->budget, ZSTD_BYTES);
    tkv_budget_free(r->budget, r, r->bytes);
    *reader = NULL;
}
