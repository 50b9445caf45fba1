/* trikv-eval kv: every codec on recorded queries, keys and values. */
#include <dirent.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>

#include "core/cpu.h"
#include "core/kernels.h"
#include "tools/codec_quality.h"
#include "tools/eval.h"
#include "tools/team.h"

const char tkv_eval_kv_help[] =
    "trikv-eval kv DIR [--json FILE]\n"
    "\n"
    "Runs every codec on the recordings in DIR: each NAME.json with its shapes\n"
    "(n_q_heads, n_kv_heads, head_dim, n_tokens, layers) beside NAME.q.f16, NAME.k.f16\n"
    "and NAME.v.f16, little-endian halves [layer][head][token][dim], after RoPE.\n"
    "\n"
    "For each layer and codec: relative mean square error of keys and values, mean KL\n"
    "divergence and top-1 agreement of attention weights with keys coded, and relative\n"
    "error of the output with values coded.\n"
    "\n"
    "  --json FILE       write the rows here too\n";

struct eval {
    const char *folder;
    FILE *json;
    size_t n_rows;
    struct tkv_kernels kn;
    struct tkv_team *team;
    struct tkv_reason why;
};

static void print_row(struct eval *e, const char *name, const char *codec, const char *layer,
                      const struct tkv_codec_quality *q)
{
    printf("%-8s %-12s %5s %6.3f %9.5f %9.5f %9.5f %6.1f%% %9.5f\n", name, codec, layer, q->bits,
           q->k_rel_mse, q->v_rel_mse, q->kl, q->top1, q->out_error);
    (void)fflush(stdout);
    if (e->json)
        (void)fprintf(e->json,
                      "%s\n  {\"recording\": \"%s\", \"codec\": \"%s\", \"layer\": \"%s\", "
                      "\"bits\": %.4f, \"k_rel_mse\": %.6f, \"v_rel_mse\": %.6f, \"kl\": %.6f, "
                      "\"top1\": %.3f, \"out_error\": %.6f}",
                      e->n_rows ? "," : "", name, codec, layer, q->bits, q->k_rel_mse, q->v_rel_mse,
                      q->kl, q->top1, q->out_error);
    e->n_rows++;
}

static void add(struct tkv_codec_quality *sum, const struct tkv_codec_quality *q, double weight)
{
    sum->bits += q->bits * weight;
    sum->k_rel_mse += q->k_rel_mse * weight;
    sum->v_rel_mse += q->v_rel_mse * weight;
    sum->kl += q->kl * weight;
    sum->top1 += q->top1 * weight;
    sum->out_error += q->out_error * weight;
}

static int run_codec(struct eval *e, const char *name, const struct tkv_recorded *r,
                     const struct tkv_codec *codec, struct tkv_coder *coder)
{
    const char *text = tkv_coder_init(coder, codec, r->head_dim, TKV_ROTATION_SEED);
    struct tkv_codec_quality mean = {0};

    if (text)
        return tkv_reason_set(&e->why, "%s, codec %s: %s", name, codec->name, text);
    for (uint32_t i = 0; i < r->n_layers; i++) {
        struct tkv_codec_quality q;
        char layer[16];

        if (tkv_codec_quality(r, i, coder, &e->kn, tkv_team_exec(e->team), &q, &e->why))
            return -1;
        (void)snprintf(layer, sizeof(layer), "%u", i);
        print_row(e, name, codec->name, layer, &q);
        add(&mean, &q, 1.0 / r->n_layers);
    }
    print_row(e, name, codec->name, "mean", &mean);
    return 0;
}

static int run_recording(struct eval *e, const char *file)
{
    struct tkv_coder *coder = malloc(sizeof(*coder));
    struct tkv_recorded r;
    char path[4096], name[256];
    int error;

    (void)snprintf(path, sizeof(path), "%s/%s", e->folder, file);
    (void)snprintf(name, sizeof(name), "%.*s", (int)(strlen(file) - strlen(".json")), file);
    error = tkv_recorded_init(&r, path, &e->why);
    if (!error && !coder)
        error = tkv_reason_set(&e->why, "out of memory");
    for (const struct tkv_codec *c = tkv_codecs; !error && c->name; c++)
        error = run_codec(e, name, &r, c, coder);
    tkv_recorded_deinit(&r);
    free(coder);
    return error;
}

static int is_json(const struct dirent *d)
{
    const size_t n = strlen(d->d_name);

    return n > strlen(".json") && strcmp(d->d_name + n - strlen(".json"), ".json") == 0;
}

static int run_folder(struct eval *e)
{
    struct dirent **files = NULL;
    const int n = scandir(e->folder, &files, is_json, alphasort);
    int error = 0;

    if (n <= 0)
        error = tkv_reason_set(&e->why, "no recording (NAME.json) in %s", e->folder);
    printf("%-8s %-12s %5s %6s %9s %9s %9s %7s %9s\n", "file", "codec", "layer", "bits", "K mse",
           "V mse", "KL", "top-1", "out err");
    for (int i = 0; i < n; i++) {
        error = error ? error : run_recording(e, files[i]->d_name);
        free(files[i]);
    }
    free(files);
    return error;
}

static int run_kv(struct eval *e, const char *json)
{
    int error;

    tkv_kernels_init(&e->kn, tkv_cpu_flags(getenv("TRIKV_CPU_DISABLE")));
    if (tkv_team_create(&e->team, tkv_team_default_threads(), &e->why))
        return -1;
    if (json) {
        e->json = fopen(json, "w");
        if (!e->json)
            return tkv_reason_set(&e->why, "cannot write %s", json);
        (void)fprintf(e->json, "{\"rows\": [");
    }
    error = run_folder(e);
    if (e->json) {
        (void)fprintf(e->json, "\n]}\n");
        if (fclose(e->json) && !error)
            error = tkv_reason_set(&e->why, "cannot write %s", json);
    }
    return error;
}

int tkv_eval_kv(int argc, char **argv)
{
    static const struct option options[] = {{"json", required_argument, NULL, 'j'},
                                            {"help", no_argument, NULL, 'h'},
                                            {NULL, 0, NULL, 0}};
    struct eval e = {0};
    const char *json = NULL;
    int c, error;

    while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (c) {
        case 'j': json = optarg; break;
        case 'h': return fputs(tkv_eval_kv_help, stdout) < 0 ? EX_IOERR : EX_OK;
        default: return EX_USAGE;
        }
    }
    if (argc - optind != 1) {
        (void)fprintf(stderr, TKV_EVAL_PROGRAM ": expected: kv DIR (--help)\n");
        return EX_USAGE;
    }
    e.folder = argv[optind];
    error = run_kv(&e, json);
    tkv_team_destroy(&e.team);
    if (error)
        (void)fprintf(stderr, TKV_EVAL_PROGRAM ": %s\n", e.why.text);
    return error ? EXIT_FAILURE : EXIT_SUCCESS;
}
