/*
 * The tokenizer of a GGUF file: SentencePiece BPE ("llama") or byte-level BPE ("gpt2").
 * Any bytes can be encoded, and decoding gives them back (with SentencePiece, U+2581
 * becomes a space: it is that scheme's sign for one).
 */
#ifndef TKV_TOOLS_TOKENIZER_H
#define TKV_TOOLS_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "tools/gguf.h"
#include "tools/reason.h"

struct tkv_tokenizer;

/* A growing list of token ids; zeroed it is empty, free it with tkv_ids_deinit. */
struct tkv_ids {
    int32_t *ids;
    size_t n;
    size_t capacity;
};

bool tkv_ids_add(struct tkv_ids *ids, int32_t id); /* false if memory is short */
void tkv_ids_deinit(struct tkv_ids *ids);

enum tkv_encode_flags {
    TKV_ENCODE_START = 1, /* the text begins a sequence: the start token, if the model wants one */
    TKV_ENCODE_CONTROL = 2, /* control tokens are recognised in the text, as <|im_start|> */
};

/* The tokenizer copies what it needs: the file may be closed. 0, or -1 with a text. */
int tkv_tokenizer_create(struct tkv_tokenizer **t, const struct tkv_gguf *g,
                         struct tkv_reason *why);
void tkv_tokenizer_destroy(struct tkv_tokenizer **t);

/* Appends the tokens of text[n_bytes] to ids. 0, or -1 with a text and ids in part filled. */
int tkv_tokenizer_encode(const struct tkv_tokenizer *t, const char *text, size_t n_bytes,
                         unsigned flags, struct tkv_ids *ids, struct tkv_reason *why);

/*
 * The bytes a token stands for: a view that lives as long as the tokenizer, empty for
 * control tokens and ids out of range. They may be part of a character: whoever
 * prints a stream of them writes them through unchanged.
 */
struct tkv_text tkv_tokenizer_bytes(const struct tkv_tokenizer *t, int32_t id);

size_t tkv_tokenizer_n_tokens(const struct tkv_tokenizer *t);
int32_t tkv_tokenizer_bos(const struct tkv_tokenizer *t); /* -1: none */
int32_t tkv_tokenizer_eos(const struct tkv_tokenizer *t); /* -1: none */

#endif /* TKV_TOOLS_TOKENIZER_H */
