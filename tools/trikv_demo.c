/*
 * trikv-demo: what TriKV is for, on real input. A language model reads held-out prose with
 * facts hidden in it, its KV cache living in a trikvd of its own, once per configuration;
 * one table says what each costs and what it keeps. Then the model speaks.
 */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>
#include <unistd.h>

#include "tools/options.h"
#include "tools/runner.h"
#include "tools/score.h"
#include "tools/spawn.h"

#define PROGRAM "trikv-demo"

enum {
    RECENT_TOKENS = 32,
    BETA_TOKENS = 64,
    PINNED_TOKENS = 4,
    N_FACTS = 8,
    CHUNK_TOKENS = 128,
    N_SPOKEN = 60,
};

static const char help_text[] =
    "Usage: trikv-demo [options]\n"
    "\n"
    "Reads a text with a language model whose KV cache lives in trikvd, once per\n"
    "configuration, and prints what each configuration costs and keeps.\n"
    "\n"
    "  --daemon PATH     the trikvd to start (trikvd beside this program)\n"
    "  --config FILE     its configuration (built-in defaults)\n"
    "  --profiles DIR    its profiles (conf/profiles)\n"
    "  --profile NAME    the model's profile, for TriAttention (trikv-ref-6m)\n"
    "  --model GGUF      default $TRIKV_MODEL, else the model that comes with TriKV\n"
    "  --text FILE       held-out prose (models/data/heldout.txt)\n"
    "  --tokens N        length of a sequence (4096)\n"
    "  --texts N         sequences (3)\n"
    "  --json FILE       write the table here too (build/demo.json)\n"
    "  --threads N       default all processors\n"
    "  --help, --version\n";

/* percent 0: no eviction; a ratio: method default with so small a part of the fp16 cache's bytes. */
static const struct {
    const char *name;
    const char *codec;
    unsigned percent;
    unsigned ratio;
} rows[] = {
    {"fp16", "f16", 0, 0},           {"tq4", "tq4", 0, 0},
    {"tq3.5", "tq3.5", 0, 0},        {"tq3", "tq3", 0, 0},
    {"tq2.5", "tq2.5", 0, 0},        {"default 1/8", NULL, 0, 8},
    {"default 1/16", NULL, 0, 16},   {"default 1/32", NULL, 0, 32},
    {"tri50", "f16", 50, 0},         {"tri25", "f16", 25, 0},
    {"tri10", "f16", 10, 0},         {"tri50+tq4", "tq4", 50, 0},
    {"tri25+tq3.5", "tq3.5", 25, 0}, {"tri10+tq3", "tq3", 10, 0},
};
enum { N_ROWS = sizeof(rows) / sizeof(rows[0]) };

struct options {
    const char *daemon, *config, *profiles, *profile, *model, *text, *json;
    uint64_t n_tokens, n_texts, n_threads;
};

struct demo {
    struct options o;
    struct tkv_engine engine;
    struct tkv_ids prose;
    struct tkv_recall *texts;
    struct tkv_scorer scorer;
    struct tkv_spawn daemon;
    struct tkv_score scores[N_ROWS];
    struct tkv_reason why;
};

/* ---- options ------------------------------------------------------------------------------------ */

static const struct option long_options[] = {{"daemon", required_argument, NULL, 'd'},
                                             {"config", required_argument, NULL, 'c'},
                                             {"profiles", required_argument, NULL, 'P'},
                                             {"profile", required_argument, NULL, 'p'},
                                             {"model", required_argument, NULL, 'm'},
                                             {"text", required_argument, NULL, 't'},
                                             {"tokens", required_argument, NULL, 'n'},
                                             {"texts", required_argument, NULL, 'N'},
                                             {"json", required_argument, NULL, 'j'},
                                             {"threads", required_argument, NULL, 'T'},
                                             {"help", no_argument, NULL, 'h'},
                                             {"version", no_argument, NULL, 'v'},
                                             {NULL, 0, NULL, 0}};

static bool set_option(struct options *o, int c, const char *name)
{
    switch (c) {
    case 'd': o->daemon = optarg; return true;
    case 'c': o->config = optarg; return true;
    case 'P': o->profiles = optarg; return true;
    case 'p': o->profile = optarg; return true;
    case 'm': o->model = optarg; return true;
    case 't': o->text = optarg; return true;
    case 'j': o->json = optarg; return true;
    case 'n': return tkv_option_number(PROGRAM, name, optarg, 1024, 65536, &o->n_tokens);
    case 'N': return tkv_option_number(PROGRAM, name, optarg, 1, 64, &o->n_texts);
    default: return tkv_option_number(PROGRAM, name, optarg, 1, 1024, &o->n_threads);
    }
}

/* -1 to go on, else the exit status. */
static int read_options(struct options *o, int argc, char **argv)
{
    int c, index = 0;

    *o = (struct options){.profiles = "conf/profiles",
                          .profile = "trikv-ref-6m",
                          .text = "models/data/heldout.txt",
                          .json = "build/demo.json",
                          .n_tokens = 4096,
                          .n_texts = 3};
    while ((c = getopt_long(argc, argv, "", long_options, &index)) != -1) {
        if (c == 'h')
            return fputs(help_text, stdout) < 0 ? EX_IOERR : EX_OK;
        if (c == 'v')
            return puts(PROGRAM " " TRIKV_VERSION) < 0 ? EX_IOERR : EX_OK;
        if (c == '?' || !set_option(o, c, long_options[index].name))
            return EX_USAGE;
    }
    if (optind < argc) {
        (void)fprintf(stderr, PROGRAM ": unexpected argument '%s' (--help)\n", argv[optind]);
        return EX_USAGE;
    }
    return -1;
}

/* ---- preparation ---------------------------------------------------------------------------------- */

static int load_model(struct demo *d)
{
    char path[4096];

    if (d->o.model)
        (void)snprintf(path, sizeof(path), "%s", d->o.model);
    else if (tkv_engine_default_path(path, sizeof(path), &d->why))
        return -1;
    return tkv_engine_init(&d->engine, path, (unsigned)d->o.n_threads, CHUNK_TOKENS, &d->why);
}

static int load_texts(struct demo *d)
{
    char *text = NULL;
    size_t n_bytes;
    int error = tkv_engine_read_text(d->o.text, &text, &n_bytes, &d->why);

    error = error ? error
                  : tkv_tokenizer_encode(d->engine.tokenizer, text, n_bytes, 0, &d->prose, &d->why);
    free(text);
    d->texts = calloc(d->o.n_texts, sizeof(*d->texts));
    if (!error && !d->texts)
        return tkv_reason_set(&d->why, "out of memory for %zu texts", (size_t)d->o.n_texts);
    for (size_t i = 0; !error && i < d->o.n_texts; i++) {
        const size_t start = i * d->o.n_tokens;
        const struct tkv_recall_options o = {
            .prose = d->prose.ids + start,
            .n_prose = start < d->prose.n ? d->prose.n - start : 0,
            .n_tokens = d->o.n_tokens + 1, /* the last one is only predicted */
            .n_facts = N_FACTS,
            .seed = 1 + i,
        };

        error = tkv_recall_init(&d->texts[i], d->engine.tokenizer, &o, &d->why);
    }
    return error;
}

/* The daemon beside this program, unless another is named. */
static int start_daemon(struct demo *d)
{
    const char *arguments[8] = {"--profiles", d->o.profiles, "--log-level", "warn"};
    char path[4096];

    if (d->o.config) {
        arguments[4] = "--config";
        arguments[5] = d->o.config;
    }
    tkv_spawn_daemon_path(path, sizeof(path));
    return tkv_spawn_start(&d->daemon, d->o.daemon ? d->o.daemon : path, arguments, &d->why);
}

/* ---- the table -------------------------------------------------------------------------------------- */

static void show_progress(void *ctx, size_t done, size_t total)
{
    (void)fprintf(stderr, "\r  %-12s %3zu %%\r", (const char *)ctx, 100 * done / total);
}

static void print_bytes(double bytes)
{
    if (bytes >= 1 << 20)
        printf(" %7.2f MiB", bytes / (1 << 20));
    else
        printf(" %7.1f KiB", bytes / 1024);
}

static void print_heading(const struct demo *d)
{
    printf("\n%zu sequences of %zu tokens, each with %d facts told and asked for. Sizes are those "
           "of one\nsession at the end, every byte counted; recall and perplexity are over all "
           "sequences.\n\n",
           (size_t)d->o.n_texts, (size_t)d->o.n_tokens, N_FACTS);
    printf("%-12s %6s %6s %6s %6s %11s %6s %8s %8s %6s %7s %7s\n", "config", "bits K", "bits V",
           "seen", "kept", "resident", "ratio", "ppl", "KL", "top-1", "recall", "tok/s");
}

static void print_row(const char *name, const struct tkv_score *s)
{
    printf("%-12s %6.2f %6.2f %6.0f %6.0f", name, s->bits_k, s->bits_v, s->tokens_seen,
           s->tokens_kept);
    print_bytes(s->resident_bytes);
    printf(" %5.1fx %8.3f %8.5f %5.1f%% %6.1f%% %7.0f\n", s->ratio, s->perplexity, s->kl, s->top1,
           s->recall, s->tokens_per_s);
    (void)fflush(stdout);
}

static uint64_t fp16_bytes(const struct demo *d)
{
    const struct tkv_model_config *m = &d->engine.model->config;

    return 2 * d->o.n_tokens * m->n_layers * m->shape.n_kv_heads *
           ((uint64_t)m->shape.head_dim_k + m->shape.head_dim_v);
}

static struct tkv_remote_options row_options(const struct demo *d, size_t row)
{
    struct tkv_remote_options o = {
        .socket = d->daemon.socket,
        .chunk_tokens = CHUNK_TOKENS,
        .label = rows[row].name,
        .codec_k = rows[row].codec,
        .codec_v = rows[row].codec,
        .method = rows[row].percent ? "triattention" : "none",
        .profile = rows[row].percent ? d->o.profile : NULL,
        .recent_tokens = RECENT_TOKENS,
        .beta_tokens = BETA_TOKENS,
        .pinned_tokens = PINNED_TOKENS,
        .normalize_scores = -1,
    };

    if (rows[row].ratio) {
        o.method = "default";
        o.profile = d->o.profile;
        o.recent_tokens = 128; /* at most: a part of the budget decides */
        o.budget_bytes = fp16_bytes(d) / rows[row].ratio;
        o.max_tokens = (uint32_t)d->o.n_tokens;
    }
    /* A cache saw-tooths by beta above its budget: never more than the stated part is kept. */
    if (rows[row].percent)
        o.budget_tokens = (uint32_t)(d->o.n_tokens * rows[row].percent / 100) - BETA_TOKENS;
    return o;
}

static int run_rows(struct demo *d)
{
    const bool terminal = isatty(STDERR_FILENO);

    print_heading(d);
    for (size_t i = 0; i < N_ROWS; i++) {
        const struct tkv_remote_options o = row_options(d, i);

        d->scorer.progress = terminal ? show_progress : NULL;
        d->scorer.progress_ctx = (void *)(uintptr_t)rows[i].name;
        if (tkv_scorer_run(&d->scorer, &o, &d->scores[i], &d->why))
            return -1;
        print_row(rows[i].name, &d->scores[i]);
    }
    return 0;
}

static int write_json(struct demo *d)
{
    FILE *f = fopen(d->o.json, "w");

    if (!f)
        return tkv_reason_set(&d->why, "cannot write %s", d->o.json);
    (void)fprintf(f, "{\"rows\": [");
    for (size_t i = 0; i < N_ROWS; i++) {
        const struct tkv_score *s = &d->scores[i];

        (void)fprintf(f,
                      "%s\n  {\"config\": \"%s\", \"bits_k\": %.4f, \"bits_v\": %.4f, "
                      "\"tokens_seen\": %.0f, \"tokens_kept\": %.2f, \"resident_bytes\": %.0f, "
                      "\"ratio\": %.4f, \"perplexity\": %.5f, \"kl\": %.7f, \"top1\": %.4f, "
                      "\"recall\": %.3f, \"tokens_per_s\": %.1f}",
                      i ? "," : "", rows[i].name, s->bits_k, s->bits_v, s->tokens_seen,
                      s->tokens_kept, s->resident_bytes, s->ratio, s->perplexity, s->kl, s->top1,
                      s->recall, s->tokens_per_s);
    }
    (void)fprintf(f, "\n]}\n");
    return fclose(f) ? tkv_reason_set(&d->why, "cannot write %s", d->o.json) : 0;
}

/* ---- the model speaks ---------------------------------------------------------------------------------- */

static void print_token(void *ctx, int32_t id)
{
    const struct tkv_text t = tkv_tokenizer_bytes(ctx, id);

    (void)fwrite(t.data, 1, t.n_bytes, stdout);
    (void)fflush(stdout);
}

/* After reading the first sequence with a compressed cache, it is asked for a fact and goes on. */
static int speak(struct demo *d)
{
    const struct tkv_recall *text = &d->texts[0];
    struct tkv_remote_options o = row_options(d, 1);
    struct tkv_run run = {.engine = &d->engine, .chunk_tokens = CHUNK_TOKENS};
    struct tkv_writing w = {.n = N_SPOKEN, .emit = print_token, .ctx = d->engine.tokenizer};
    struct tkv_remote *remote = NULL;
    size_t n = text->ids.n - 1, n_written;
    int error;

    w.sampler = (struct tkv_sampler){.temperature = 0.7, .state = 7};
    w.last = text->ids.ids[n];
    if (tkv_remote_create(&remote, &d->engine.model->config, &o, &d->why))
        return -1;
    run.attention = tkv_remote_attention(remote);
    error = tkv_run_feed(&run, text->ids.ids, n, &d->why);
    printf("\nAnd after reading %zu tokens with %s, the model goes on:\n\n  ...", n, rows[1].name);
    for (size_t i = n > 24 ? n - 24 : 0; i <= n; i++)
        print_token(d->engine.tokenizer, text->ids.ids[i]);
    printf("\033[1m");
    error = error ? error : tkv_run_write(&run, &w, &n_written, &d->why);
    printf("\033[0m ...\n");
    tkv_remote_destroy(&remote);
    return error;
}

/* ---- main ------------------------------------------------------------------------------------------------ */

static int run_demo(struct demo *d)
{
    if (load_model(d) || load_texts(d) || start_daemon(d))
        return -1;
    if (tkv_scorer_init(&d->scorer, &d->engine, d->texts, d->o.n_texts, &d->why) || run_rows(d) ||
        write_json(d))
        return -1;
    return speak(d);
}

static void release(struct demo *d)
{
    tkv_scorer_deinit(&d->scorer);
    for (size_t i = 0; d->texts && i < d->o.n_texts; i++)
        tkv_recall_deinit(&d->texts[i]);
    free(d->texts);
    tkv_ids_deinit(&d->prose);
    tkv_engine_deinit(&d->engine);
}

int main(int argc, char **argv)
{
    struct demo d = {0};
    int status = read_options(&d.o, argc, argv);
    int stopped;

    if (status >= 0)
        return status;
    status = run_demo(&d) ? EXIT_FAILURE : EXIT_SUCCESS;
    if (status)
        (void)fprintf(stderr, PROGRAM ": %s\n", d.why.text);
    stopped = tkv_spawn_stop(&d.daemon);
    if (!status && stopped) {
        (void)fprintf(stderr, PROGRAM ": trikvd ended with status %d\n", stopped);
        status = EXIT_FAILURE;
    }
    if (!status)
        printf("\nThe same rows are in %s.\n", d.o.json);
    release(&d);
    return status;
}
