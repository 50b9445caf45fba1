/*
 * A file of packed bytes: compressed, with a checksum over all of it, there whole or not at all. What
 * the bytes mean is the caller's matter.
 *
 *   64-byte header | one zstd frame
 *
 * The header says the sizes of both forms and has the XXH3 (64 bits) of everything after it and then of
 * itself, the field zero. All numbers are little-endian. Calls block; any thread may make them, one at a
 * time for each object.
 */
#ifndef TKV_STORE_PACK_H
#define TKV_STORE_PACK_H

#include <stddef.h>
#include <stdint.h>

#include "proto/report.h"

struct tkv_budget;
struct tkv_pack_writer;
struct tkv_pack_reader;

enum { TKV_PACK_VERSION = 1, TKV_PACK_HEADER_BYTES = 64, TKV_MAX_PACK_NAME_BYTES = 128 };

/* A file that will be called name in the directory, mode 0600. The descriptor of the directory stays the
 * caller's, and open until the writer is destroyed. */
int tkv_pack_create(struct tkv_pack_writer **writer, int directory_fd, const char *name,
                    struct tkv_budget *budget, struct tkv_report *why);
int tkv_pack_write(void *writer, const void *bytes, size_t n, struct tkv_report *why);

/* On the disk under its name, in the place of what had it; file_bytes: how long it is. */
int tkv_pack_commit(struct tkv_pack_writer *writer, uint64_t *file_bytes, struct tkv_report *why);

/* Without a commit nothing stays of it. */
void tkv_pack_writer_destroy(struct tkv_pack_writer **writer);

/* The whole file is read to check it before the first byte is given out. Takes fd on success. */
int tkv_pack_open(struct tkv_pack_reader **reader, int fd, struct tkv_budget *budget,
                  struct tkv_report *why);
int tkv_pack_read(void *reader, void *bytes, size_t n, struct tkv_report *why);

/* 0 if everything was read. */
int tkv_pack_end(const struct tkv_pack_reader *reader, struct tkv_report *why);
void tkv_pack_reader_destroy(struct tkv_pack_reader **reader);

#endif /* TKV_STORE_PACK_H */
