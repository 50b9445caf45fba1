/*
 * trikv-calibrate: streams a text through a model, gathers the statistics of its queries
 * that TriAttention needs, and writes them as a profile for trikvd.
 */
#include <getopt.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>
#include <time.h>
#include <unistd.h>

#include <xxhash.h>

#include "tools/attention_local.h"
#include "tools/calibration.h"
#include "tools/calibration_state.h"
#include "tools/head_errors.h"
#include "tools/import_command.h"
#include "tools/options.h"
#include "tools/profile_write.h"
#include "tools/runner.h"
#include "tools/text_file.h"

#define PROGRAM "trikv-calibrate"

enum { CHUNK_TOKENS = 256, MAX_DEFAULT_CONTEXT = 4096 };

static const char help_text[] =
    "Usage: trikv-calibrate [options] --text FILE --output PROFILE.yaml\n"
    "       trikv-calibrate import [options] FILE --output PROFILE.yaml (see import --help)\n"
    "\n"
    "Streams a text through a GGUF model and writes a profile for trikvd: the statistics of\n"
    "its queries, and what each KV head loses with few bits or a window. Take a text of the\n"
    "kind the model will read, but not one that you will judge by.\n"
    "\n"
    "  --text FILE         what the model reads\n"
    "  --output FILE       the profile; its name is the file's name without .yaml\n"
    "  --name NAME         must be that name if it is given\n"
    "  --model GGUF        default $TRIKV_MODEL, else the model that comes with TriKV\n"
    "  --tokens N          read at most N tokens (64k)\n"
    "  --context N         start anew every N tokens (what the model was trained for, at\n"
    "                      most 4k)\n"
    "  --state FILE        keep what is done in FILE after every context, and go on from\n"
    "                      it if it is there; removed when the profile is written\n"
    "  --threads N         default all processors\n"
    "  --help, --version\n";

struct options {
    const char *model, *text, *output, *name, *state;
    uint64_t n_tokens, n_context, n_threads;
    char file_name[NAME_MAX + 1];
};

enum option_id {
    OPT_MODEL = 256,
    OPT_TEXT,
    OPT_OUTPUT,
    OPT_NAME,
    OPT_TOKENS,
    OPT_CONTEXT,
    OPT_STATE,
    OPT_THREADS,
    OPT_HELP,
    OPT_VERSION,
};

static const struct option long_options[] = {
    {"model", required_argument, NULL, OPT_MODEL},
    {"text", required_argument, NULL, OPT_TEXT},
    {"output", required_argument, NULL, OPT_OUTPUT},
    {"name", required_argument, NULL, OPT_NAME},
    {"tokens", required_argument, NULL, OPT_TOKENS},
    {"context", required_argument, NULL, OPT_CONTEXT},
    {"state", required_argument, NULL, OPT_STATE},
    {"threads", required_argument, NULL, OPT_THREADS},
    {"help", no_argument, NULL, OPT_HELP},
    {"version", no_argument, NULL, OPT_VERSION},
    {NULL, 0, NULL, 0},
};

static bool number(const char *name, uint64_t min, uint64_t max, uint64_t *out)
{
    return tkv_option_number(PROGRAM, name, optarg, min, max, out);
}

static bool set_option(struct options *o, int id, const char *name)
{
    switch (id) {
    case OPT_MODEL: o->model = optarg; return true;
    case OPT_TEXT: o->text = optarg; return true;
    case OPT_OUTPUT: o->output = optarg; return true;
    case OPT_NAME: o->name = optarg; return true;
    case OPT_TOKENS: return number(name, 1, INT32_MAX, &o->n_tokens);
    case OPT_CONTEXT: return number(name, 2, INT32_MAX, &o->n_context);
    case OPT_STATE: o->state = optarg; return true;
    default: return number(name, 1, 1024, &o->n_threads);
    }
}

/* The name is the file's without .yaml, unless one is given, which must then be the same. */
static bool choose_name(struct options *o)
{
    const char *slash = strrchr(o->output, '/'), *wrong;
    char *dot;

    snprintf(o->file_name, sizeof(o->file_name), "%s", slash ? slash + 1 : o->output);
    dot = strrchr(o->file_name, '.');
    if (dot)
        *dot = '\0';
    if (!o->name)
        o->name = o->file_name;
    wrong = tkv_profile_check_name(o->name, o->output);
    if (wrong)
        fprintf(stderr, PROGRAM ": --output %s, --name %s: %s\n", o->output, o->name, wrong);
    return !wrong;
}

/* -1: run; otherwise the exit status. */
static int parse_options(struct options *o, int argc, char **argv)
{
    int index, id;

    while ((id = getopt_long(argc, argv, "", long_options, &index)) != -1) {
        if (id == OPT_HELP)
            return fputs(help_text, stdout) < 0 ? EX_IOERR : EX_OK;
        if (id == OPT_VERSION)
            return puts(PROGRAM " " TRIKV_VERSION) < 0 ? EX_IOERR : EX_OK;
        if (id == '?' || !set_option(o, id, long_options[index].name))
            return EX_USAGE;
    }
    if (optind < argc) {
        fprintf(stderr, PROGRAM ": unexpected argument \"%s\"; see --help\n", argv[optind]);
        return EX_USAGE;
    }
    if (!o->text || !o->output) {
        fprintf(stderr, PROGRAM ": --%s is missing; see --help\n", o->text ? "output" : "text");
        return EX_USAGE;
    }
    return choose_name(o) ? -1 : EX_USAGE;
}

struct job {
    const struct options *o;
    char model_path[PATH_MAX];
    struct tkv_engine engine;
    struct tkv_local *local;
    struct tkv_calibration calibration;
    struct tkv_ids ids;
    struct tkv_calibration_work work;
    float *errors; /* of the heads; NULL: the text is too short for them */
    size_t n_error_tokens;
};

static void deinit(struct job *j)
{
    free(j->errors);
    tkv_calibration_deinit(&j->calibration);
    tkv_local_destroy(&j->local);
    tkv_ids_deinit(&j->ids);
    tkv_engine_deinit(&j->engine);
}

static int start(struct job *j, struct tkv_reason *why)
{
    const struct options *o = j->o;
    const struct tkv_model *m;

    if (o->model)
        snprintf(j->model_path, sizeof(j->model_path), "%s", o->model);
    else if (tkv_engine_default_path(j->model_path, sizeof(j->model_path), why))
        return -1;
    if (tkv_engine_init(&j->engine, j->model_path, (unsigned)o->n_threads, CHUNK_TOKENS, why))
        return -1;
    m = j->engine.model;
    if (tkv_calibration_init(&j->calibration, &m->config, m->exec, why) ||
        tkv_local_create(&j->local, m->config.n_layers, &m->config.shape, &m->math, m->exec, why))
        return -1;
    j->engine.model->hook = tkv_calibration_hook(&j->calibration);
    return 0;
}

static int read_text(struct job *j, struct tkv_reason *why)
{
    if (tkv_text_file_encode(j->engine.tokenizer, j->o->text, (size_t)j->o->n_tokens, &j->ids, why))
        return -1;
    return j->ids.n ? 0 : tkv_reason_set(why, "%s: the text is empty", j->o->text);
}

static size_t context_tokens(const struct job *j)
{
    const uint32_t trained = j->engine.model->config.context_tokens;

    if (j->o->n_context)
        return (size_t)j->o->n_context;
    return trained && trained < MAX_DEFAULT_CONTEXT ? trained : MAX_DEFAULT_CONTEXT;
}

/* What there is to do, and how far an earlier process came with it. */
static int plan(struct job *j, struct tkv_reason *why)
{
    j->work = (struct tkv_calibration_work){
        .model = j->engine.model->config.fingerprint,
        .text = XXH3_64bits(j->ids.ids, j->ids.n * sizeof(*j->ids.ids)),
        .n_tokens = j->ids.n,
        .n_context = context_tokens(j),
    };
    if (!j->o->state)
        return 0;
    if (tkv_calibration_resume(j->o->state, &j->calibration, &j->work, why))
        return -1;
    if (j->work.n_done)
        fprintf(stderr, PROGRAM ": going on from token %" PRIu64 " of %zu\n", j->work.n_done,
                j->ids.n);
    return 0;
}

static double seconds_now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void show_progress(const struct job *j, uint64_t from, double start_s)
{
    const double s = seconds_now() - start_s, done = (double)(j->work.n_done - from);
    const double rate = s > 0 ? done / s : 0;

    if (isatty(STDERR_FILENO))
        fprintf(stderr, "\r%" PRIu64 " of %zu tokens, %.0f tokens/s, %.0f s left %s",
                j->work.n_done, j->ids.n, rate,
                rate > 0 ? (double)(j->ids.n - j->work.n_done) / rate : 0.0,
                j->work.n_done == j->ids.n ? "\n" : "");
}

/* Windows of n_context tokens, each from an empty cache at position 0: between two of them the
 * sums are all there is to keep. */
static int stream(struct job *j, struct tkv_reason *why)
{
    const uint64_t from = j->work.n_done;
    const double start_s = seconds_now();

    while (j->work.n_done < j->ids.n) {
        const size_t left = j->ids.n - (size_t)j->work.n_done;
        const size_t n = left < j->work.n_context ? left : (size_t)j->work.n_context;
        struct tkv_run run = {
            .engine = &j->engine,
            .attention = tkv_local_attention(j->local),
            .chunk_tokens = CHUNK_TOKENS,
        };

        tkv_local_reset(j->local);
        if (tkv_run_feed(&run, j->ids.ids + j->work.n_done, n, why))
            return -1;
        j->work.n_done += n;
        if (j->o->state && tkv_calibration_save(j->o->state, &j->calibration, &j->work, why))
            return -1;
        show_progress(j, from, start_s);
    }
    return 0;
}

/* One context of the text in one piece. */
static int measure_errors(struct job *j, struct tkv_reason *why)
{
    const size_t n = context_tokens(j);

    j->n_error_tokens = n < j->ids.n ? n : j->ids.n;
    if (j->n_error_tokens < TKV_LEAST_ERROR_TOKENS) {
        fprintf(stderr,
                PROGRAM ": no section errors, which method default needs: %zu tokens in one "
                        "piece, want %d\n",
                j->n_error_tokens, TKV_LEAST_ERROR_TOKENS);
        return 0;
    }
    return tkv_head_errors_measure(j->model_path, (unsigned)j->o->n_threads, j->ids.ids,
                                   j->n_error_tokens, &j->errors, why);
}

static int write_profile(struct job *j, struct tkv_reason *why)
{
    const struct tkv_calibration *c = &j->calibration;
    char fingerprint[32], model_note[PATH_MAX], text_note[PATH_MAX];
    struct tkv_profile_facts facts;
    struct tkv_concentration r;
    float *means;
    int error;

    if (tkv_calibration_concentration(c, &r, why) ||
        tkv_profile_facts_init(&facts, &j->engine.model->config, fingerprint, why))
        return -1;
    tkv_profile_note(model_note, sizeof(model_note), "model", j->model_path);
    tkv_profile_note(text_note, sizeof(text_note), "text", j->o->text);
    facts.name = j->o->name;
    facts.notes[0] = "Written by trikv-calibrate.";
    facts.notes[1] = model_note;
    facts.notes[2] = text_note;
    facts.n_tokens = c->n_tokens;
    facts.errors = j->errors;
    facts.n_error_tokens = (uint64_t)j->n_error_tokens;
    facts.n_statistics = tkv_calibration_n_floats(c);
    means = malloc(facts.n_statistics * sizeof(*means));
    if (!means)
        return tkv_reason_set(why, "out of memory for %zu numbers", facts.n_statistics);
    tkv_calibration_means(c, means);
    facts.statistics = means;
    error = tkv_profile_write(j->o->output, &facts, why);
    free(means);
    if (!error)
        printf("%s: %" PRIu64 " tokens, %u layers, %u query heads, %u bands; concentration: "
               "median %.3f, above 0.95 in %.1f %% of bands\n",
               j->o->output, c->n_tokens, c->n_layers, c->n_q_heads, c->n_bands, r.median,
               100 * r.share_above_095);
    return error;
}

static int run(const struct options *o)
{
    struct job j = {.o = o};
    struct tkv_reason why = {""};
    const int error = start(&j, &why) || read_text(&j, &why) || plan(&j, &why) ||
                      stream(&j, &why) || measure_errors(&j, &why) || write_profile(&j, &why);

    if (!error && o->state)
        unlink(o->state);
    if (error)
        fprintf(stderr, PROGRAM ": %s\n", why.text);
    deinit(&j);
    return error ? EXIT_FAILURE : EX_OK;
}

int main(int argc, char **argv)
{
    struct options o = {.n_tokens = 65536};
    int status;

    if (argc > 1 && strcmp(argv[1], "import") == 0)
        return tkv_import_command(argc, argv);
    status = parse_options(&o, argc, argv);
    return status >= 0 ? status : run(&o);
}
