/* Brings up a model file; finds the model that ships with the project. */
#include "tools/engine.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define DEFAULT_MODEL "trikv-ref-6m.gguf"

int tkv_engine_init(struct tkv_engine *e, const char *path, unsigned n_threads,
                    size_t max_chunk_tokens, struct tkv_reason *why)
{
    const unsigned n = n_threads ? n_threads : tkv_team_default_threads();
    struct tkv_reason inner = {""};

    *e = (struct tkv_engine){0};
    if (tkv_gguf_open(&e->file, path, why))
        return -1;
    if (tkv_tokenizer_create(&e->tokenizer, &e->file, &inner) ||
        tkv_team_create(&e->team, n, &inner) ||
        tkv_model_create(&e->model, &e->file, max_chunk_tokens, tkv_team_exec(e->team), &inner)) {
        tkv_engine_deinit(e);
        return tkv_reason_set(why, "%.200s: %.180s", path, inner.text);
    }
    if (tkv_tokenizer_n_tokens(e->tokenizer) > e->model->config.n_vocab) {
        tkv_reason_set(why, "%.200s: %zu tokens, but embeddings for %u", path,
                       tkv_tokenizer_n_tokens(e->tokenizer), e->model->config.n_vocab);
        tkv_engine_deinit(e);
        return -1;
    }
    return 0;
}

void tkv_engine_deinit(struct tkv_engine *e)
{
    tkv_model_destroy(&e->model);
    tkv_team_destroy(&e->team);
    tkv_tokenizer_destroy(&e->tokenizer);
    tkv_gguf_close(&e->file);
    *e = (struct tkv_engine){0};
}

/* Cuts the last n components off a path. */
static void go_up(char *path, int n)
{
    while (n-- > 0) {
        char *slash = strrchr(path, '/');

        if (slash)
            *slash = '\0';
    }
}

int tkv_engine_default_path(char *path, size_t n, struct tkv_reason *why)
{
    /* prefix/bin/program, tree/build/bin/program, tree/build/variant/bin/program */
    static const struct {
        int levels;
        const char *tail;
    } places[] = {{2, "share/trikv/" DEFAULT_MODEL},
                  {3, "models/" DEFAULT_MODEL},
                  {4, "models/" DEFAULT_MODEL}};
    const char *named = getenv("TRIKV_MODEL");
    char program[PATH_MAX];
    ssize_t length;

    if (named && *named) {
        snprintf(path, n, "%s", named);
        return 0;
    }
    for (size_t i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
        length = readlink("/proc/self/exe", program, sizeof(program) - 1);
        if (length < 0)
            return tkv_reason_set(why, "/proc/self/exe: %s", strerror(errno));
        program[length] = '\0';
        go_up(program, places[i].levels);
        if ((size_t)snprintf(path, n, "%s/%s", program, places[i].tail) < n &&
            access(path, R_OK) == 0)
            return 0;
    }
    return tkv_reason_set(why, "no " DEFAULT_MODEL " was found near the program; name a model "
                               "with --model or TRIKV_MODEL");
}

void tkv_engine_default_profiles(char *path, size_t n)
{
    char program[PATH_MAX];
    const ssize_t length = readlink("/proc/self/exe", program, sizeof(program) - 1);

    /* tree/build/bin/program, tree/build/variant/bin/program */
    program[length > 0 ? length : 0] = '\0';
    go_up(program, 3);
    for (int i = 0; i < 2; i++, go_up(program, 1))
        if ((size_t)snprintf(path, n, "%s/conf/profiles", program) < n && access(path, R_OK) == 0)
            return;
    snprintf(path, n, TRIKV_SYSCONFDIR "/trikv/profiles");
}

int tkv_engine_read_text(const char *path, char **text, size_t *n_bytes, struct tkv_reason *why)
{
    FILE *file = fopen(path, "rb");
    char *data = NULL;
    long size = -1;

    *text = NULL;
    if (file && fseek(file, 0, SEEK_END) == 0)
        size = ftell(file);
    if (size < 0 || fseek(file, 0, SEEK_SET) || !(data = malloc((size_t)size + 1)) ||
        fread(data, 1, (size_t)size, file) != (size_t)size) {
        tkv_reason_set(why, "%s: %s", path, errno ? strerror(errno) : "cannot be read whole");
        free(data);
        if (file)
            fclose(file);
        return -1;
    }
    fclose(file);
    data[size] = '\0';
    *text = data;
    *n_bytes = (size_t)size;
    return 0;
}
