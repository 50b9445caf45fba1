/* Talking HTTP to a daemon, well or badly. */
#ifndef TKV_TESTS_HTTP_AID_H
#define TKV_TESTS_HTTP_AID_H

#include <stdbool.h>
#include <stddef.h>

enum { HTTP_REPLY_BYTES = 1 << 20 };

/* Send `request` to the Unix socket and read until the peer closes: the status, 0 if it closed without
 * a word, -1 if it did not close within ten seconds. The reply is in out[HTTP_REPLY_BYTES], ended
 * by a NUL. */
int http_exchange(const char *path, const char *request, char *out);

/* GET of a target; the body is left in out. */
int http_get(const char *path, const char *target, bool openmetrics, char *out);

/* The value of a sample, named with its labels as they stand in the text; -1 if it is not there. */
double http_sample(const char *text, const char *name);

#endif /* TKV_TESTS_HTTP_AID_H */
