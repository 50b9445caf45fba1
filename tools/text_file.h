/* The first tokens of a text of any length, read piece by piece. */
#ifndef TKV_TOOLS_TEXT_FILE_H
#define TKV_TOOLS_TEXT_FILE_H

#include "tools/tokenizer.h"

enum { TKV_TEXT_PIECE_BYTES = 1 << 20 };

/*
 * Append tokens of a file to ids, at most max_tokens, reading no further than that needs. Pieces end
 * at a line where there is one, so that a token is rarely cut. 0, or -1 with a text.
 */
int tkv_text_file_encode(const struct tkv_tokenizer *t, const char *path, size_t max_tokens,
                         struct tkv_ids *ids, struct tkv_reason *why);

#endif /* TKV_TOOLS_TEXT_FILE_H */
