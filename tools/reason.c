/* The text of a failure. Leaves printing it and the exit status to each program's main. */
#include "tools/reason.h"

#include <stdarg.h>
#include <stdio.h>

int tkv_reason_set(struct tkv_reason *r, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vsnprintf(r->text, sizeof(r->text), format, args);
    va_end(args);
    return -1;
}
