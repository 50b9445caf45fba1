/*
 * Writes a calibrated profile: the YAML of docs/profiles.md. Few statistics are inline; of
 * larger models they are a raw file NAME.stats beside it, half the size and not for reading.
 */
#ifndef TKV_TOOLS_PROFILE_WRITE_H
#define TKV_TOOLS_PROFILE_WRITE_H

#include "daemon/profile_text.h"
#include "tools/model.h"

enum { TKV_MAX_INLINE_STATISTICS_BYTES = 256 << 10 };

/* What a model says of itself; the rest is the caller's to fill. fingerprint: 32 bytes that live as
 * long as *f. -1 with a text if its RoPE follows no rule that a profile can name. */
int tkv_profile_facts_init(struct tkv_profile_facts *f, const struct tkv_model_config *model,
                           char *fingerprint, struct tkv_reason *why);

/*
 * Write beside `path` and rename, so that a reader never sees half a profile. 0, or -1 with
 * a text and `path` as it was. facts->sidecar is chosen here.
 */
int tkv_profile_write(const char *path, const struct tkv_profile_facts *facts,
                      struct tkv_reason *why);

/* NULL, or why this is no name for a profile in this file. */
const char *tkv_profile_check_name(const char *name, const char *path);

/* The name of a profile in this file: the file's without .yaml. -1 with a text if it is none. */
int tkv_profile_name_of(const char *path, char *name, size_t n, struct tkv_reason *why);

/* Write `path` by way of a temporary file beside it, flushed to the disk before it gets its
 * name: print(arg, file) writes it. 0, or -1 with a text and `path` as it was. */
int tkv_write_file(const char *path, void (*print)(const void *arg, FILE *out), const void *arg,
                   struct tkv_reason *why);

/* Room for "what: " and the name of a file without its folder, which is nobody's business but
 * this machine's. */
void tkv_profile_note(char *note, size_t n, const char *what, const char *path);

#endif /* TKV_TOOLS_PROFILE_WRITE_H */
