/*
 * Small random vocabularies of both kinds of tokenizer, and encoders written straight from
 * the definitions, to compare the fast ones with.
 */
#ifndef TKV_TESTS_TINY_VOCABULARY_H
#define TKV_TESTS_TINY_VOCABULARY_H

#include <stdbool.h>

#include "tests/gguf_aid.h"
#include "tests/rng.h"

enum { TINY_MAX_TOKENS = 600, TINY_TOKEN_BYTES = 64 };

/* A vocabulary in the making. */
struct tiny_vocabulary {
    char text[TINY_MAX_TOKENS][TINY_TOKEN_BYTES];
    struct tkv_text view[TINY_MAX_TOKENS];
    float scores[TINY_MAX_TOKENS];
    int32_t types[TINY_MAX_TOKENS];
    int32_t left[TINY_MAX_TOKENS], right[TINY_MAX_TOKENS]; /* BPE: what was merged, or -1 */
    size_t n;
};

int32_t tiny_vocabulary_add(struct tiny_vocabulary *p, const char *text, size_t n_bytes,
                            int32_t type, float score);

/* The normal token with this text, or -1. */
int32_t tiny_vocabulary_find(const struct tiny_vocabulary *p, const char *text, size_t n_bytes);

/* Tokens and types as they are. */
void tiny_vocabulary_put(struct gguf_aid *g, const struct tiny_vocabulary *p);

/* Everything a byte-level BPE needs, tokens and merges spelt in printable characters. */
void tiny_vocabulary_put_bpe(struct gguf_aid *g, const struct tiny_vocabulary *p, const char *pre);

/* SentencePiece: token 0 unknown, 1 control, 2 + b byte b. cross_spaces: pieces with a space sign
 * after another character. */
void tiny_vocabulary_make_spm(struct tiny_vocabulary *p, struct rng *rng, bool cross_spaces);

/* Byte-level: token b is byte b, 256..399 are merges, 400 <|end|>, 401 <think>, 402 <th. */
void tiny_vocabulary_make_bpe(struct tiny_vocabulary *p, struct rng *rng);

/* Tokens of an escaped text; of one word. Both return how many. */
size_t tiny_vocabulary_encode_spm(const struct tiny_vocabulary *p, const char *text, size_t n,
                                  int32_t *out);
size_t tiny_vocabulary_encode_bpe(const struct tiny_vocabulary *p, const char *word, size_t n,
                                  int32_t *out);

/* Writes a character; returns its bytes. */
size_t tiny_vocabulary_utf8(char *out, uint32_t c);

#endif /* TKV_TESTS_TINY_VOCABULARY_H */
