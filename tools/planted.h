/*
 * Texts that say what a cache has kept: prose, and prose with something to look back for, each
 * token marked with what it is asked for. Everything is drawn from a seed.
 */
#ifndef TKV_TOOLS_PLANTED_H
#define TKV_TOOLS_PLANTED_H

#include "tools/tokenizer.h"

enum { TKV_N_DEPTHS = 5 };

/* What the prediction of a token counts for. */
enum tkv_task {
    TKV_TASK_NOTHING,
    TKV_TASK_PROSE,
    TKV_TASK_NUMBER, /* of a person, told among prose; wordings of the training */
    TKV_TASK_WORD,   /* the same with ordinary words as answers */
    TKV_TASK_UNSEEN, /* wordings that were not trained on, numbers and words */
    TKV_TASK_LIST,   /* "river: candle": no odd token, no full sentence */
    TKV_TASK_REPEAT, /* a passage that comes again, after its first tokens */
    TKV_TASK_NEEDLE, /* one number, alone in the whole text */
    TKV_N_TASKS,
};

struct tkv_mark {
    uint8_t task;
    uint8_t depth;     /* fifth of the text in which the answer was told */
    uint16_t question; /* its tokens follow each other */
};

struct tkv_planted {
    struct tkv_ids ids;
    struct tkv_mark *marks; /* [ids.n] */
};

struct tkv_planted_options {
    const int32_t *prose; /* at least n_tokens of it are needed */
    size_t n_prose;
    size_t n_tokens; /* that a model reads; one more follows, to be predicted */
    uint64_t seed;
};

/*
 * Fill *p, to be given to tkv_planted_deinit in any case. 0, or -1 with a text.
 *   prose   nothing but prose
 *   facts   a number, a word and an unseen wording in each fifth, asked for at the end
 *   again   a list of pairs and a passage, in two fifths, both wanted at the end
 *   needle  one number in the given fifth, asked for at the end
 */
int tkv_planted_prose(struct tkv_planted *p, const struct tkv_tokenizer *t,
                      const struct tkv_planted_options *o, struct tkv_reason *why);
int tkv_planted_facts(struct tkv_planted *p, const struct tkv_tokenizer *t,
                      const struct tkv_planted_options *o, struct tkv_reason *why);
int tkv_planted_again(struct tkv_planted *p, const struct tkv_tokenizer *t,
                      const struct tkv_planted_options *o, struct tkv_reason *why);
int tkv_planted_needle(struct tkv_planted *p, const struct tkv_tokenizer *t,
                       const struct tkv_planted_options *o, unsigned depth, struct tkv_reason *why);
void tkv_planted_deinit(struct tkv_planted *p);

#endif /* TKV_TOOLS_PLANTED_H */
