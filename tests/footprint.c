/* From /proc: status, smaps and the files behind the descriptors. */
#include "tests/footprint.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MAX_FILES = 8192 };

struct files {
    ino_t inode[MAX_FILES];
    unsigned n;
};

/* False if it was there. */
static bool add_file(struct files *f, ino_t inode)
{
    for (unsigned i = 0; i < f->n; i++)
        if (f->inode[i] == inode)
            return false;
    assert_true(f->n < MAX_FILES);
    f->inode[f->n++] = inode;
    return true;
}

static bool has_file(const struct files *f, ino_t inode)
{
    for (unsigned i = 0; i < f->n; i++)
        if (f->inode[i] == inode)
            return true;
    return false;
}

static void count_descriptors(pid_t pid, struct files *files, struct footprint *f)
{
    char path[320], target[256];
    const struct dirent *e;
    struct stat st;
    DIR *dir;

    (void)snprintf(path, sizeof(path), "/proc/%d/fd", (int)pid);
    dir = opendir(path);
    if (!dir)
        fail_msg("%s: no such process", path);
    while ((e = readdir(dir)) != NULL) {
        ssize_t n;

        if (e->d_name[0] == '.')
            continue;
        f->n_fds++;
        (void)snprintf(path, sizeof(path), "/proc/%d/fd/%.200s", (int)pid, e->d_name);
        n = readlink(path, target, sizeof(target) - 1);
        target[n > 0 ? n : 0] = '\0';
        if (strncmp(target, "/memfd:", 7) == 0 && stat(path, &st) == 0 &&
            add_file(files, st.st_ino))
            f->shared_bytes += (uint64_t)st.st_blocks * 512;
    }
    closedir(dir);
}

/* A line of smaps that begins a mapping; is it shared memory, and of which file? */
static bool begins_mapping(const char *line, bool *is_shared, ino_t *inode)
{
    unsigned long long from, to, number;
    char name[256] = "";

    if (sscanf(line, "%llx-%llx %*s %*s %*s %llu %255s", &from, &to, &number, name) < 3)
        return false;
    *is_shared = strncmp(name, "/memfd:", 7) == 0 || strncmp(name, "/dev/shm/", 9) == 0 ||
                 strncmp(name, "/dev/zero", 9) == 0;
    *inode = (ino_t)number;
    return true;
}

static void count_mappings(pid_t pid, const struct files *files, struct footprint *f)
{
    char line[512];
    bool is_shared = false;
    ino_t inode = 0;
    unsigned long kib;
    FILE *in;

    (void)snprintf(line, sizeof(line), "/proc/%d/smaps", (int)pid);
    in = fopen(line, "r");
    assert_non_null(in);
    while (fgets(line, sizeof(line), in)) {
        if (begins_mapping(line, &is_shared, &inode))
            f->n_mappings++;
        else if (is_shared && !has_file(files, inode) && sscanf(line, "Rss: %lu kB", &kib) == 1)
            f->shared_bytes += (uint64_t)kib * 1024;
    }
    (void)fclose(in);
}

static uint64_t own_bytes(pid_t pid)
{
    char line[256];
    unsigned long kib = 0;
    FILE *in;

    (void)snprintf(line, sizeof(line), "/proc/%d/status", (int)pid);
    in = fopen(line, "r");
    assert_non_null(in);
    while (fgets(line, sizeof(line), in))
        if (sscanf(line, "RssAnon: %lu kB", &kib) == 1)
            break;
    (void)fclose(in);
    return (uint64_t)kib * 1024;
}

struct footprint footprint_of(pid_t pid)
{
    struct files *files = calloc(1, sizeof(*files));
    struct footprint f = {0};

    assert_non_null(files);
    count_descriptors(pid, files, &f);
    count_mappings(pid, files, &f);
    f.own_bytes = own_bytes(pid);
    free(files);
    return f;
}

bool footprint_is_telling(void)
{
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    return false;
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
    return false;
#endif
#endif
    return getenv("TRIKV_RUNNER") == NULL;
}
