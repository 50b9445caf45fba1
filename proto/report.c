/* Filling in an error report. */
#include "proto/report.h"

#include <stdarg.h>
#include <stdio.h>

int tkv_fail(struct tkv_report *r, int error, const char *format, ...)
{
    va_list args;

    if (!r)
        return error;
    r->error = error;
    va_start(args, format);
    vsnprintf(r->text, sizeof(r->text), format, args);
    va_end(args);
    return error;
}
