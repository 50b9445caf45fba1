/*
 * A text that can only be predicted by looking back: prose with facts planted in its first three
 * quarters ("The number of Ada Baker is 40213.") that are asked for, in another order, in
 * the last one. Perplexity hides a lost fact; the answers do not.
 */
#ifndef TKV_TOOLS_RECALL_H
#define TKV_TOOLS_RECALL_H

#include "tools/tokenizer.h"

struct tkv_recall {
    struct tkv_ids ids;
    uint8_t *is_answer; /* [ids.n]: this token is part of an answer */
    size_t n_answer_tokens;
};

struct tkv_recall_options {
    const int32_t *prose; /* tokens of a text to hide the facts in */
    size_t n_prose;
    size_t n_tokens; /* of the whole sequence, start token included */
    size_t n_facts;
    uint64_t seed; /* of names, numbers and places */
};

/* Fill *r, to be given to tkv_recall_deinit in any case. 0, or -1 with a text. */
int tkv_recall_init(struct tkv_recall *r, const struct tkv_tokenizer *t,
                    const struct tkv_recall_options *o, struct tkv_reason *why);
void tkv_recall_deinit(struct tkv_recall *r);

#endif /* TKV_TOOLS_RECALL_H */
