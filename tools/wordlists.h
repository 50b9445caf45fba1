/* Names, words and wordings that planted facts are made of: those that the reference model was
 * trained on (models/tasks.py), and wordings that it was not. */
#ifndef TKV_TOOLS_WORDLISTS_H
#define TKV_TOOLS_WORDLISTS_H

#include <stddef.h>

/* NULL-ended. */
extern const char *const tkv_first_names[];
extern const char *const tkv_last_names[];
extern const char *const tkv_things[];

/*
 * How a fact is told and how it is asked: both take the name, the answer follows each. `answers`
 * is a list of words, NULL where the answer is a number.
 */
struct tkv_wording {
    const char *told;
    const char *asked;
    const char *const *answers;
};

/* Ended by an entry without a text. */
extern const struct tkv_wording tkv_number_wordings[];
extern const struct tkv_wording tkv_word_wordings[];
extern const struct tkv_wording tkv_unseen_wordings[]; /* asked by their own beginning */

size_t tkv_words_count(const char *const *words);
size_t tkv_wordings_count(const struct tkv_wording *wordings);

#endif /* TKV_TOOLS_WORDLISTS_H */
