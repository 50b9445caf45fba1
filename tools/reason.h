/* How the tools report what went wrong: a text that says what, where, and what was expected. */
#ifndef TKV_TOOLS_REASON_H
#define TKV_TOOLS_REASON_H

struct tkv_reason {
    char text[384];
};

/* Formats into r->text (cut if too long) and returns -1, so that a function can end with it. */
__attribute__((format(printf, 2, 3))) int tkv_reason_set(struct tkv_reason *r, const char *format,
                                                         ...);

#endif /* TKV_TOOLS_REASON_H */
