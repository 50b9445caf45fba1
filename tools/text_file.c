/* Reading ahead of the tokenizer, and cutting at lines. */
#include "tools/text_file.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* How much of a full piece to take: up to its last line end, all of it if that is far away. */
static size_t cut(const char *piece, size_t n)
{
    const char *end = memrchr(piece + n / 2, '\n', n - n / 2);

    return end ? (size_t)(end + 1 - piece) : n;
}

static int encode(const struct tkv_tokenizer *t, FILE *f, char *piece, size_t max_tokens,
                  struct tkv_ids *ids, struct tkv_reason *why)
{
    size_t n = 0;
    bool more = true;

    while (more && ids->n < max_tokens) {
        size_t used;

        n += fread(piece + n, 1, TKV_TEXT_PIECE_BYTES - n, f);
        more = n == TKV_TEXT_PIECE_BYTES;
        used = more ? cut(piece, n) : n;
        if (tkv_tokenizer_encode(t, piece, used, 0, ids, why))
            return -1;
        n -= used;
        memmove(piece, piece + used, n);
    }
    if (ids->n > max_tokens)
        ids->n = max_tokens;
    return 0;
}

int tkv_text_file_encode(const struct tkv_tokenizer *t, const char *path, size_t max_tokens,
                         struct tkv_ids *ids, struct tkv_reason *why)
{
    FILE *f = fopen(path, "re");
    char *piece = malloc(TKV_TEXT_PIECE_BYTES);
    int error;

    if (!f)
        error = tkv_reason_set(why, "%s: %s", path, strerror(errno));
    else if (!piece)
        error = tkv_reason_set(why, "out of memory for a piece of text");
    else
        error = encode(t, f, piece, max_tokens, ids, why);
    if (!error && ferror(f))
        error = tkv_reason_set(why, "%s: %s", path, strerror(errno));
    if (f)
        fclose(f);
    free(piece);
    return error;
}
