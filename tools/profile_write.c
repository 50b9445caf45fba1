/* Profiles as files: names, sidecars, and files that are there whole or not at all. */
#include "tools/profile_write.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char *file_of(const char *path)
{
    const char *slash = strrchr(path, '/');

    return slash ? slash + 1 : path;
}

const char *tkv_profile_check_name(const char *name, const char *path)
{
    const char *file = file_of(path);
    const char *wrong = tkv_profile_name_wrong(name);
    const size_t n = strlen(name);

    if (wrong)
        return wrong;
    if (strncmp(file, name, n) != 0 || strcmp(file + n, ".yaml") != 0)
        return "a profile's file has the profile's name and .yaml";
    return NULL;
}

int tkv_profile_name_of(const char *path, char *name, size_t n, struct tkv_reason *why)
{
    const char *wrong;
    char *dot;

    snprintf(name, n, "%s", file_of(path));
    dot = strrchr(name, '.');
    if (dot)
        *dot = '\0';
    wrong = tkv_profile_check_name(name, path);
    return wrong ? tkv_reason_set(why, "%s: %s", path, wrong) : 0;
}

int tkv_profile_facts_init(struct tkv_profile_facts *f, const struct tkv_model_config *model,
                           char *fingerprint, struct tkv_reason *why)
{
    if (!model->rope_has_rule)
        return tkv_reason_set(why, "the model's RoPE follows no rule that a profile can name");
    snprintf(fingerprint, 32, "xxh3:%016" PRIx64, model->fingerprint);
    *f = (struct tkv_profile_facts){
        .architecture = model->architecture,
        .fingerprint = fingerprint,
        .n_layers = model->n_layers,
        .shape = model->shape,
        .rope = model->rope_params,
    };
    return 0;
}

void tkv_profile_note(char *note, size_t n, const char *what, const char *path)
{
    snprintf(note, n, "%s: %s", what, file_of(path));
}

int tkv_write_file(const char *path, void (*print)(const void *arg, FILE *out), const void *arg,
                   struct tkv_reason *why)
{
    char temporary[PATH_MAX];
    FILE *out = NULL;
    int fd, error;

    if ((size_t)snprintf(temporary, sizeof(temporary), "%s.XXXXXX", path) >= sizeof(temporary))
        return tkv_reason_set(why, "%.100s...: the path is too long", path);
    fd = mkstemp(temporary);
    if (fd < 0)
        return tkv_reason_set(why, "%s: %s", temporary, strerror(errno));
    if (fchmod(fd, 0644) || !(out = fdopen(fd, "w"))) {
        tkv_reason_set(why, "%s: %s", temporary, strerror(errno));
        close(fd);
        unlink(temporary);
        return -1;
    }
    print(arg, out);
    error = fflush(out) || ferror(out) || fsync(fd);
    error = fclose(out) || error || rename(temporary, path);
    if (!error)
        return 0;
    tkv_reason_set(why, "%s: %s", path, strerror(errno));
    unlink(temporary);
    return -1;
}

static void print_yaml(const void *arg, FILE *out)
{
    tkv_profile_print(out, arg);
}

static void print_raw(const void *arg, FILE *out)
{
    const struct tkv_profile_facts *f = arg;

    fwrite(f->statistics, sizeof(*f->statistics), f->n_statistics, out);
}

/* The sidecar goes first: a reader between the two finds that its hash is not the profile's. */
int tkv_profile_write(const char *path, const struct tkv_profile_facts *facts,
                      struct tkv_reason *why)
{
    const char *wrong = tkv_profile_facts_wrong(facts);
    char sidecar[PATH_MAX];
    struct tkv_profile_facts f = *facts;

    if (wrong)
        return tkv_reason_set(why, "%s: %s", path, wrong);
    f.sidecar = NULL;
    if (f.n_statistics * sizeof(*f.statistics) > TKV_MAX_INLINE_STATISTICS_BYTES) {
        if ((size_t)snprintf(sidecar, sizeof(sidecar), "%.*s%s.stats", (int)(file_of(path) - path),
                             path, f.name) >= sizeof(sidecar))
            return tkv_reason_set(why, "%.100s...: the path is too long", path);
        if (tkv_write_file(sidecar, print_raw, &f, why))
            return -1;
        f.sidecar = file_of(sidecar);
    }
    return tkv_write_file(path, print_yaml, &f, why);
}
