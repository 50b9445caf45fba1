/* Collecting messages. */
#include "daemon/diag.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void tkv_diag_add(struct tkv_diag *d, const char *file, uint32_t line, uint32_t column,
                  const char *format, ...)
{
    char text[1536];
    size_t n = 0;
    va_list args;

    if (line)
        n = (size_t)snprintf(text, sizeof(text), "%s:%u:%u: ", file, line, column);
    else
        n = (size_t)snprintf(text, sizeof(text), "%s: ", file);
    if (n >= sizeof(text))
        n = sizeof(text) - 1;
    va_start(args, format);
    vsnprintf(text + n, sizeof(text) - n, format, args);
    va_end(args);
    if (d->n < TKV_MAX_DIAG)
        d->line[d->n] = strdup(text);
    if (d->n < TKV_MAX_DIAG && d->line[d->n])
        d->n++;
    else
        d->n_dropped++;
}

void tkv_diag_deinit(struct tkv_diag *d)
{
    for (size_t i = 0; i < d->n; i++)
        free(d->line[i]);
    *d = (struct tkv_diag){0};
}
