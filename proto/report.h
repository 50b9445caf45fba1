/* An error on its way to whoever asked: a number and a text with the facts in it. */
#ifndef TRIKV_PROTO_REPORT_H
#define TRIKV_PROTO_REPORT_H

struct tkv_report {
    int error;      /* enum trikv_error, 0: none */
    char text[248]; /* "want 4096 bytes, got 4080" */
};

/* Fill *r (which may be NULL) and return `error`, so that a function can end with it. */
int tkv_fail(struct tkv_report *r, int error, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

#endif /* TRIKV_PROTO_REPORT_H */
