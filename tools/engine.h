/* A model file made ready: mapped, its tokenizer and model built, with a team of threads. */
#ifndef TKV_TOOLS_ENGINE_H
#define TKV_TOOLS_ENGINE_H

#include "tools/model.h"
#include "tools/team.h"
#include "tools/tokenizer.h"

struct tkv_engine {
    struct tkv_gguf file;
    struct tkv_tokenizer *tokenizer;
    struct tkv_team *team;
    struct tkv_model *model;
};

/* n_threads 0: as many as there are processors. 0, or -1 with a text and *e zeroed. */
int tkv_engine_init(struct tkv_engine *e, const char *path, unsigned n_threads,
                    size_t max_chunk_tokens, struct tkv_reason *why);
void tkv_engine_deinit(struct tkv_engine *e);

/*
 * The model to use when none is named, in path[n]: $TRIKV_MODEL, or trikv-ref-6m.gguf in
 * ../share/trikv beside the program's folder, or in models/ of the source tree. -1 with
 * a text if there is none of them.
 */
int tkv_engine_default_path(char *path, size_t n, struct tkv_reason *why);

/* The folder of profiles in path[n]: conf/profiles of the source tree, or the installed one. */
void tkv_engine_default_profiles(char *path, size_t n);

/* Read a whole file into *text (malloc) of *n_bytes. 0, or -1 with a text. */
int tkv_engine_read_text(const char *path, char **text, size_t *n_bytes, struct tkv_reason *why);

#endif /* TKV_TOOLS_ENGINE_H */
