/* UTF-8 and the character classes that pre-tokenizers ask for. */
#ifndef TKV_TOOLS_UNICODE_H
#define TKV_TOOLS_UNICODE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* What a byte that starts no valid UTF-8 sequence counts as: in no class. */
#define TKV_NOT_UNICODE UINT32_MAX

/* Bytes of the character at text (1 if it is not valid), n_bytes >= 1 of which exist. */
size_t tkv_unicode_next(const char *text, size_t n_bytes, uint32_t *c);

bool tkv_unicode_is_letter(uint32_t c); /* \p{L} */
bool tkv_unicode_is_number(uint32_t c); /* \p{N} */
bool tkv_unicode_is_space(uint32_t c);  /* \s */

#endif /* TKV_TOOLS_UNICODE_H */
