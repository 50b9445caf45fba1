/* The set of profiles and their references. Reading one is in profile_read.c. */
#include "daemon/profile.h"

#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/diag.h"

struct tkv_profile *tkv_profile_ref(struct tkv_profile *p)
{
    p->n_refs++;
    return p;
}

void tkv_profile_unref(struct tkv_profile **profile)
{
    struct tkv_profile *p = *profile;

    *profile = NULL;
    if (!p)
        return;
    assert(p->n_refs > 0);
    if (--p->n_refs)
        return;
    free(p->layers);
    free(p->errors);
    free(p->statistics);
    free(p);
}

const float *tkv_profile_layer_errors(const struct tkv_profile *p, uint32_t layer)
{
    return p->errors ? p->errors + (size_t)layer * p->shape.n_kv_heads * TKV_PLAN_ERRORS : NULL;
}

const float *tkv_profile_layer_statistics(const struct tkv_profile *p, uint32_t layer)
{
    return p->n_statistics ? p->statistics + p->n_statistics / p->n_layers * layer : NULL;
}

struct tkv_profile *tkv_profiles_find(const struct tkv_profiles *list, const char *name)
{
    for (size_t i = 0; i < list->n; i++) {
        if (strcmp(list->item[i]->name, name) == 0)
            return list->item[i];
    }
    return NULL;
}

static int is_profile(const struct dirent *d)
{
    const size_t n = strlen(d->d_name);

    return n > 5 && d->d_name[0] != '.' && strcmp(d->d_name + n - 5, ".yaml") == 0;
}

static bool load_into(struct tkv_profiles *list, const char *directory, const char *file_name,
                      struct tkv_diag *diag)
{
    char path[2048];
    struct tkv_profile *p;

    if ((size_t)snprintf(path, sizeof(path), "%s/%s", directory, file_name) >= sizeof(path)) {
        tkv_diag_add(diag, directory, 0, 0, "%s: the path is too long", file_name);
        return false;
    }
    if (list->n == TKV_MAX_PROFILES) {
        tkv_diag_add(diag, path, 0, 0, "more than %d profiles", TKV_MAX_PROFILES);
        return false;
    }
    p = tkv_profile_load(path, diag);
    if (p)
        list->item[list->n++] = p;
    return p != NULL;
}

bool tkv_profiles_load(struct tkv_profiles *list, const char *directory, struct tkv_diag *diag)
{
    struct dirent **entries;
    const int n = scandir(directory, &entries, is_profile, alphasort);
    bool good = true;

    *list = (struct tkv_profiles){0};
    if (n < 0 && errno == ENOENT)
        return true;
    if (n < 0) {
        tkv_diag_add(diag, directory, 0, 0, "cannot read: %s", strerror(errno));
        return false;
    }
    for (int i = 0; i < n; i++) {
        good &= load_into(list, directory, entries[i]->d_name, diag);
        free(entries[i]);
    }
    free(entries);
    return good;
}

void tkv_profiles_deinit(struct tkv_profiles *list)
{
    for (size_t i = 0; i < list->n; i++)
        tkv_profile_unref(&list->item[i]);
    list->n = 0;
}
