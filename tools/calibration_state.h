/*
 * An unfinished calibration as a file, so that a long one survives the end of its process. It
 * belongs to one model, one text and one way to cut it, and is refused for any other.
 */
#ifndef TKV_TOOLS_CALIBRATION_STATE_H
#define TKV_TOOLS_CALIBRATION_STATE_H

#include "tools/calibration.h"

struct tkv_calibration_work {
    uint64_t model; /* fingerprint */
    uint64_t text;  /* hash of the tokens to be read */
    uint64_t n_tokens;
    uint64_t n_context;
    uint64_t n_done; /* tokens read, whole contexts */
};

/* Write by way of a temporary file, with a checksum. 0, or -1 with a text. */
int tkv_calibration_save(const char *path, const struct tkv_calibration *c,
                         const struct tkv_calibration_work *w, struct tkv_reason *why);

/* Sums and w->n_done from the file; a file that is not there leaves both as they are. -1 with
 * a text if it is damaged or of other work, with both as they were. */
int tkv_calibration_resume(const char *path, struct tkv_calibration *c,
                           struct tkv_calibration_work *w, struct tkv_reason *why);

#endif /* TKV_TOOLS_CALIBRATION_STATE_H */
