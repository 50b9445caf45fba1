/* The texts and names of the error numbers, from the one list in errors.h. */
#include "proto/errors.h"

const char *tkv_error_text(int error)
{
    switch (error) {
    case 0: return "success";
#define X(number, name, text) \
    case number: return text;
        TRIKV_ERRORS(X)
#undef X
    default: return "unknown error";
    }
}

const char *tkv_error_name(int error)
{
    switch (error) {
    case 0: return "OK";
#define X(number, name, text) \
    case number: return #name;
        TRIKV_ERRORS(X)
#undef X
    default: return "UNKNOWN";
    }
}
