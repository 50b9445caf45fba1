/* Numbers of command lines. */
#include "tools/options.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bool tkv_option_number(const char *program, const char *option, const char *text, uint64_t min,
                       uint64_t max, uint64_t *out)
{
    uint64_t value = 0, unit = 1;
    char *end = NULL;

    errno = 0;
    if (text[0] >= '0' && text[0] <= '9')
        value = strtoull(text, &end, 10);
    if (end && (*end == 'k' || *end == 'M'))
        unit = *end++ == 'k' ? 1024 : 1024 * 1024;
    if (!end || *end || errno || value > UINT64_MAX / unit || value * unit < min ||
        value * unit > max) {
        fprintf(stderr,
                "%s: --%s: \"%s\", expected a whole number from %" PRIu64 " to %" PRIu64 "\n",
                program, option, text, min, max);
        return false;
    }
    *out = value * unit;
    return true;
}

bool tkv_option_real(const char *program, const char *option, const char *text, double min,
                     double max, double *out)
{
    char *end;
    const double value = strtod(text, &end);

    if (end == text || *end || !isfinite(value) || value < min || value > max) {
        fprintf(stderr, "%s: --%s: \"%s\", expected a number from %g to %g\n", program, option,
                text, min, max);
        return false;
    }
    *out = value;
    return true;
}
