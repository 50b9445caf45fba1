/*
 * Text for a peer, in a buffer that never grows: what does not fit is left out, and the overflow
 * remembered, so that the caller can say less.
 */
#ifndef TKV_DAEMON_TEXT_H
#define TKV_DAEMON_TEXT_H

#include <stdbool.h>
#include <stddef.h>

struct tkv_text {
    char *data; /* the caller's */
    size_t n_bytes;
    size_t cap_bytes;
    bool overflow; /* something was left out: the text is not whole */
};

void tkv_text_init(struct tkv_text *t, char *data, size_t cap_bytes);
void tkv_text_add(struct tkv_text *t, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* What is text already, but may hold control characters or bytes that are no UTF-8. */
void tkv_text_add_clean(struct tkv_text *t, const char *value);

/* What others chose, as the value of a label (between quotes) or as HTML text or attribute.
 * Control characters and what is no UTF-8 become '?'. */
void tkv_text_add_label(struct tkv_text *t, const char *value);
void tkv_text_add_html(struct tkv_text *t, const char *value);

#endif /* TKV_DAEMON_TEXT_H */
