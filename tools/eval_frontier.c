/* trikv-eval frontier: the command line of the quality lab (tools/frontier.h). */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>

#include "tools/eval.h"
#include "tools/frontier.h"
#include "tools/options.h"

const char tkv_eval_frontier_help[] =
    "trikv-eval frontier --text FILE --ratios 8,16 --json OUT [options]\n"
    "\n"
    "Compares policies at equal resident bytes. A language model reads windows of a text,\n"
    "and of the text with facts, lists and passages that are asked for again, its cache\n"
    "in a trikvd of its own; every policy has the settings that make its sessions as large as\n"
    "they may be: the cache as halves, over the ratio.\n"
    "\n"
    "  --text FILE       prose that the model has not seen\n"
    "  --ratios LIST     fp16 bytes over resident bytes (8,16)\n"
    "  --json OUT        rows: policy, target_ratio, ratio, recall, perplexity, kl, ...\n"
    "  --html OUT        a report with plots, in one file\n"
    "  --model GGUF      default $TRIKV_MODEL, else the model that comes with TriKV\n"
    "  --context LIST    tokens of a text (2048)\n"
    "  --windows N       stretches of the text, each measured alone (2)\n"
    "  --policies LIST   default,triattention,streaming,h2o,snapkv; a policy may name its\n"
    "                    codec (h2o:f16; else tq4) and who shares its budgets\n"
    "                    (h2o+adaptive); a codec alone keeps all tokens (tq3)\n"
    "  --needles         another text in each window, with one fact in it\n"
    "  --seed N          of facts, words and places (1)\n"
    "  --profile NAME    of the model (trikv-ref-6m)\n"
    "  --profiles DIR    where it is\n"
    "  --daemon PATH     the trikvd to start (trikvd beside this program)\n"
    "  --config FILE     its configuration (built-in defaults)\n"
    "  --threads N       of the model; default all processors\n";

static const struct option long_options[] = {{"text", required_argument, NULL, 't'},
                                             {"ratios", required_argument, NULL, 'r'},
                                             {"json", required_argument, NULL, 'j'},
                                             {"html", required_argument, NULL, 'H'},
                                             {"model", required_argument, NULL, 'm'},
                                             {"context", required_argument, NULL, 'n'},
                                             {"windows", required_argument, NULL, 'w'},
                                             {"policies", required_argument, NULL, 'p'},
                                             {"needles", no_argument, NULL, 'N'},
                                             {"seed", required_argument, NULL, 's'},
                                             {"profile", required_argument, NULL, 'P'},
                                             {"profiles", required_argument, NULL, 'D'},
                                             {"daemon", required_argument, NULL, 'd'},
                                             {"config", required_argument, NULL, 'c'},
                                             {"threads", required_argument, NULL, 'T'},
                                             {"help", no_argument, NULL, 'h'},
                                             {NULL, 0, NULL, 0}};

static bool set_policies(struct tkv_frontier_options *o, char *list)
{
    o->n_policies = 0;
    for (char *rest = list, *name; (name = strsep(&rest, ","));) {
        /* one place is left for fp16, which always takes part */
        if (o->n_policies == TKV_MAX_POLICIES - 1) {
            (void)fprintf(stderr, TKV_EVAL_PROGRAM ": --policies: at most %d\n",
                          TKV_MAX_POLICIES - 1);
            return false;
        }
        o->policies[o->n_policies++] = name;
    }
    return true;
}

static bool set_ratios(struct tkv_frontier_options *o, char *list)
{
    o->n_ratios = 0;
    for (char *rest = list, *text; (text = strsep(&rest, ","));) {
        if (o->n_ratios == TKV_MAX_RATIOS) {
            (void)fprintf(stderr, TKV_EVAL_PROGRAM ": --ratios: at most %d\n", TKV_MAX_RATIOS);
            return false;
        }
        if (!tkv_option_real(TKV_EVAL_PROGRAM, "ratios", text, 1, 1000, &o->ratios[o->n_ratios++]))
            return false;
    }
    return true;
}

static bool set_contexts(struct tkv_frontier_options *o, char *list)
{
    o->n_contexts = 0;
    for (char *rest = list, *text; (text = strsep(&rest, ","));) {
        if (o->n_contexts == TKV_MAX_CONTEXTS) {
            (void)fprintf(stderr, TKV_EVAL_PROGRAM ": --context: at most %d\n", TKV_MAX_CONTEXTS);
            return false;
        }
        if (!tkv_option_number(TKV_EVAL_PROGRAM, "context", text, 512, 1 << 20,
                               &o->contexts[o->n_contexts++]))
            return false;
    }
    return true;
}

static bool set_option(struct tkv_frontier_options *o, int c, const char *name)
{
    switch (c) {
    case 't': o->text = optarg; return true;
    case 'r': return set_ratios(o, optarg);
    case 'j': o->json = optarg; return true;
    case 'H': o->html = optarg; return true;
    case 'm': o->model = optarg; return true;
    case 'n': return set_contexts(o, optarg);
    case 'p': o->policies_named = true; return set_policies(o, optarg);
    case 'N': o->needles = true; return true;
    case 'P': o->profile = optarg; return true;
    case 'D': o->profiles = optarg; return true;
    case 'd': o->daemon = optarg; return true;
    case 'c': o->config = optarg; return true;
    case 'w':
        return tkv_option_number(TKV_EVAL_PROGRAM, name, optarg, 1, TKV_MAX_WINDOWS, &o->n_windows);
    case 's': return tkv_option_number(TKV_EVAL_PROGRAM, name, optarg, 0, UINT32_MAX, &o->seed);
    default: return tkv_option_number(TKV_EVAL_PROGRAM, name, optarg, 1, 1024, &o->n_threads);
    }
}

/* -1 to go on, else the exit status. `policies` is written to. */
static int read_options(struct tkv_frontier_options *o, char *policies, int argc, char **argv)
{
    int c, index = 0;

    *o = (struct tkv_frontier_options){.profile = "trikv-ref-6m",
                                       .n_ratios = 2,
                                       .ratios = {8, 16},
                                       .n_contexts = 1,
                                       .contexts = {2048},
                                       .n_windows = 2,
                                       .seed = 1};
    (void)set_policies(o, policies);
    while ((c = getopt_long(argc, argv, "", long_options, &index)) != -1) {
        if (c == 'h')
            return fputs(tkv_eval_frontier_help, stdout) < 0 ? EX_IOERR : EX_OK;
        if (c == '?' || !set_option(o, c, long_options[index].name))
            return EX_USAGE;
    }
    if (optind < argc || !o->text || !o->json) {
        (void)fprintf(stderr, TKV_EVAL_PROGRAM ": expected: frontier --text FILE --json OUT "
                                               "(--help)\n");
        return EX_USAGE;
    }
    return -1;
}

static int write_file(const char *path, const struct tkv_frontier *f,
                      void (*write)(const struct tkv_frontier *f, FILE *out),
                      struct tkv_reason *why)
{
    FILE *out = path ? fopen(path, "w") : NULL;
    int error;

    if (!path)
        return 0;
    if (!out)
        return tkv_reason_set(why, "cannot write %s", path);
    write(f, out);
    error = ferror(out);
    return fclose(out) || error ? tkv_reason_set(why, "cannot write %s", path) : 0;
}

static int run(struct tkv_frontier *f, const struct tkv_frontier_options *o, struct tkv_reason *why)
{
    if (tkv_frontier_run(f, o, why) || write_file(o->json, f, tkv_frontier_write_json, why) ||
        write_file(o->html, f, tkv_frontier_write_html, why))
        return -1;
    printf("\n%zu rows in %.1f s: %s%s%s\n", f->n_rows, f->seconds, o->json, o->html ? ", " : "",
           o->html ? o->html : "");
    if (f->n_failed)
        return tkv_reason_set(why, "%zu of %zu rows could not be run (their reasons stand above)",
                              f->n_failed, f->n_rows);
    return 0;
}

int tkv_eval_frontier(int argc, char **argv)
{
    char policies[] = "default,triattention,streaming,h2o,snapkv";
    struct tkv_frontier_options o;
    struct tkv_frontier f = {0};
    struct tkv_reason why = {""};
    const int status = read_options(&o, policies, argc, argv);
    int error;

    if (status >= 0)
        return status;
    error = run(&f, &o, &why);
    tkv_frontier_deinit(&f);
    if (error)
        (void)fprintf(stderr, TKV_EVAL_PROGRAM ": %s\n", why.text);
    return error ? EXIT_FAILURE : EXIT_SUCCESS;
}
