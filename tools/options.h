/* What the command lines of the tools share: numbers with bounds, and the text of an error. */
#ifndef TKV_TOOLS_OPTIONS_H
#define TKV_TOOLS_OPTIONS_H

#include <stdbool.h>
#include <stdint.h>

/*
 * A whole number within bounds from an option's argument; "4k" and "1M" are 4096 and
 * 1048576. False, with a message that names the option on stderr, if it is none.
 */
bool tkv_option_number(const char *program, const char *option, const char *text, uint64_t min,
                       uint64_t max, uint64_t *out);

/* The same for a number with a fraction. */
bool tkv_option_real(const char *program, const char *option, const char *text, double min,
                     double max, double *out);

#endif /* TKV_TOOLS_OPTIONS_H */
