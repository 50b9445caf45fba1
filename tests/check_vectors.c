/*
 * check_vectors [DIR]: run every case that DIR/index.json lists. Prints a line for
 * each failure, then "N passed, M failed", counting cases; exits with 1 if any
 * failed or there was none. Without DIR it looks in the reference data of the
 * checkout, and says so if that is absent.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/vectors.h"

static const struct {
    const char *kind;
    void (*run)(struct vec_case *c);
} kinds[] = {
    {"single_head", vec_run_single_head}, {"fold_constants", vec_run_fold_constants},
    {"calibration", vec_run_calibration}, {"selection", vec_run_selection},
    {"multi_round", vec_run_multi_round}, {"vllm_runtime_selection", vec_run_vllm_selection},
};

static void run_kind(struct vec_case *c)
{
    const char *kind = vec_text(c, "kind");

    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        if (strcmp(kind, kinds[i].kind) == 0) {
            kinds[i].run(c);
            /* A case that could not be read through has not asked for all it has. */
            if (c->n_failures == 0)
                vec_check_all_used(c);
            return;
        }
    }
    vec_fail(c, "unknown kind \"%s\"", kind);
}

/* Run one row of the index. True if it passed. */
static bool run_case(const char *dir, const json_t *row)
{
    const char *name = json_string_value(json_object_get(row, "case"));
    struct vec_case c;
    bool passed;

    if (!name || strchr(name, '/')) {
        printf("FAIL index.json: a case without a name\n");
        return false;
    }
    if (vec_init(&c, dir, name))
        run_kind(&c);
    passed = c.n_failures == 0;
    vec_deinit(&c);
    return passed;
}

static int run_all(const char *dir)
{
    char path[4096];
    json_error_t error;
    json_t *index;
    json_t *cases;
    size_t n_passed = 0;
    size_t n;

    snprintf(path, sizeof path, "%s/index.json", dir);
    index = json_load_file(path, 0, &error);
    cases = json_object_get(index, "cases");
    n = json_array_size(cases);
    if (!index)
        printf("FAIL %s:%d: %s\n", path, error.line, error.text);
    else if (n == 0)
        printf("FAIL %s: lists no cases\n", path);
    for (size_t i = 0; i < n; i++)
        n_passed += run_case(dir, json_array_get(cases, i));
    json_decref(index);
    /* An index that lists nothing is itself the failure. */
    printf("%zu passed, %zu failed\n", n_passed, n > 0 ? n - n_passed : 1);
    return n > 0 && n_passed == n ? EXIT_SUCCESS : EXIT_FAILURE;
}

int main(int argc, char **argv)
{
    const char *shared = getenv("TRIKV_SHARED");
    char dir[4096];

    if (argc > 2) {
        fprintf(stderr, "usage: %s [DIR]\n", argv[0]);
        return 2;
    }
    if (argc == 2)
        return run_all(argv[1]);
    snprintf(dir, sizeof dir, "%s/vectors/triattention", shared ? shared : "../shared");
    if (access(dir, F_OK) != 0) {
        printf("skipped: no golden vectors in %s\n", dir);
        return EXIT_SUCCESS;
    }
    return run_all(dir);
}
