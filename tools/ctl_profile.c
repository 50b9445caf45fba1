/* Command line, check and show. What two profiles have different is in profile_diff.c. */
#include "tools/ctl_profile.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>

#include "daemon/diag.h"
#include "daemon/profile.h"
#include "tools/ctl_text.h"
#include "tools/options.h"
#include "tools/profile_diff.h"
#include "tools/profile_fit.h"
#include "tools/profile_plot.h"
#include "tools/profile_write.h"

#define PROGRAM "trikvctl profile"

static const char help[] =
    "Usage: trikvctl profile check FILE... [what it must fit]\n"
    "       trikvctl profile show FILE [--heads] [--json] [--svg PICTURE.svg]\n"
    "       trikvctl profile diff FILE FILE [--json] [--heads]\n"
    "\n"
    "check: is the profile sound, and does it fit\n"
    "      --model GGUF            this model: geometry, rope, fingerprint; or by hand\n"
    "      --n-layers N  --n-q-heads N  --n-kv-heads N  --head-dim N  --rope-theta T\n"
    "      --fingerprint F\n"
    "show: what it says, and how concentrated queries are, by layer\n"
    "      --heads                 by query head, too\n"
    "      --svg FILE              a picture, by layer and band and by layer and head\n"
    "diff: fields that differ, and the heads whose statistics moved most\n"
    "      --heads                 all heads\n"
    "\n"
    "Exit status: 0 sound and fits, or equal; 1 not; 64 wrong usage.\n";

struct arguments {
    struct tkv_profile_wish wish;
    const char *svg;
    bool json, heads;
    char **files;
    int n_files;
};

enum option_id {
    OPT_MODEL = 256,
    OPT_LAYERS,
    OPT_Q_HEADS,
    OPT_KV_HEADS,
    OPT_DIM,
    OPT_THETA,
    OPT_FINGERPRINT,
    OPT_SVG,
    OPT_JSON,
    OPT_HEADS,
    OPT_HELP,
};

static bool count(const char *name, uint32_t *out)
{
    uint64_t value;

    if (!tkv_option_number(PROGRAM, name, optarg, 1, UINT32_MAX, &value))
        return false;
    *out = (uint32_t)value;
    return true;
}

static bool set_option(struct arguments *a, int id, const char *name)
{
    switch (id) {
    case OPT_MODEL: a->wish.model = optarg; return true;
    case OPT_LAYERS: return count(name, &a->wish.n_layers);
    case OPT_Q_HEADS: return count(name, &a->wish.n_q_heads);
    case OPT_KV_HEADS: return count(name, &a->wish.n_kv_heads);
    case OPT_DIM: return count(name, &a->wish.head_dim);
    case OPT_THETA: return tkv_option_real(PROGRAM, name, optarg, 1, 1e30, &a->wish.theta);
    case OPT_FINGERPRINT: a->wish.fingerprint = optarg; return true;
    case OPT_SVG: a->svg = optarg; return true;
    case OPT_JSON: a->json = true; return true;
    default: a->heads = true; return true;
    }
}

static struct tkv_profile *load(const char *file)
{
    struct tkv_diag diag = {0};
    struct tkv_profile *p = tkv_profile_load(file, &diag);

    for (size_t i = 0; i < diag.n; i++)
        fprintf(stderr, "%s\n", diag.line[i]);
    tkv_diag_deinit(&diag);
    return p;
}

static int check(const struct arguments *a)
{
    int status = EX_OK;

    for (int i = 0; i < a->n_files; i++) {
        struct tkv_profile *p = load(a->files[i]);
        struct tkv_reason why = {""};

        if (!p || tkv_profile_fit(p, &a->wish, &why)) {
            status = EXIT_FAILURE;
            if (p)
                fprintf(stderr, "%s: %s\n", a->files[i], why.text);
        } else {
            printf("%s: sound%s\n", a->files[i], tkv_profile_wishes(&a->wish) ? ", fits" : "");
        }
        tkv_profile_unref(&p);
    }
    return status;
}

static void describe(struct ctl_record *r, const struct tkv_profile *p)
{
    const struct tkv_shape *s = &p->shape;

    ctl_add_text(r, "name", "profile", p->name);
    ctl_add_text(r, "architecture", "architecture", p->architecture);
    ctl_add_text(r, "fingerprint", "fingerprint", p->fingerprint);
    ctl_add_count(r, "n_layers", "layers", CTL_COUNT, p->n_layers);
    ctl_add_count(r, "n_q_heads", "query heads", CTL_COUNT, s->n_q_heads);
    ctl_add_count(r, "n_kv_heads", "KV heads", CTL_COUNT, s->n_kv_heads);
    ctl_add_count(r, "head_dim_k", "dim K", CTL_COUNT, s->head_dim_k);
    ctl_add_count(r, "head_dim_v", "dim V", CTL_COUNT, s->head_dim_v);
    if (p->has_rope) {
        ctl_add_number(r, "rope_theta", "rope base", CTL_NUMBER, p->rope_params.theta);
        ctl_add_count(r, "rotary_dim", "rotary dim", CTL_COUNT, p->rope_params.rotary_dim);
        ctl_add_text(r, "rope_layout", "rope layout", tkv_rope_layout_names[p->rope_params.layout]);
        ctl_add_text(r, "rope_scaling", "rope scaling",
                     tkv_rope_scaling_names[p->rope_params.scaling]);
    }
    ctl_add_text(r, "method", "method", tkv_method_names[p->policy.method]);
    ctl_add_count(r, "budget", "budget", CTL_COUNT, p->policy.budget_tokens);
    ctl_add_count(r, "has_statistics", "statistics", CTL_BOOL, p->n_statistics > 0);
}

/* Of a layer: its concentration, its heads' extremes, and the share of sharp bands. */
static void describe_layer(struct ctl_record *r, const struct tkv_profile *p, uint32_t layer)
{
    const uint32_t n_bands = p->shape.head_dim_k / 2;
    double low = 1, high = 0;
    uint32_t n_sharp = 0;

    for (uint32_t h = 0; h < p->shape.n_q_heads; h++) {
        const double head = tkv_profile_head_r(p, layer, h);

        low = head < low ? head : low;
        high = head > high ? head : high;
        n_sharp += tkv_profile_sharp_bands(p, layer, h);
    }
    ctl_add_count(r, "layer", "layer", CTL_COUNT, layer);
    ctl_add_number(r, "r", "R", CTL_NUMBER, tkv_profile_layer_r(p, layer));
    ctl_add_number(r, "r_lowest", "lowest head", CTL_NUMBER, low);
    ctl_add_number(r, "r_highest", "highest head", CTL_NUMBER, high);
    ctl_add_number(r, "share_above_095", "bands over 0.95", CTL_NUMBER,
                   (double)n_sharp / (p->shape.n_q_heads * n_bands));
}

static void print_head_rows(const struct tkv_profile *p)
{
    puts("\nR by query head, in hundredths");
    for (uint32_t l = 0; l < p->n_layers; l++) {
        printf("%5u ", l);
        for (uint32_t h = 0; h < p->shape.n_q_heads; h++)
            printf(" %3.0f", 100 * tkv_profile_head_r(p, l, h));
        putchar('\n');
    }
}

static void print_json(const struct tkv_profile *p, const struct ctl_record *r,
                       const struct ctl_record *layers)
{
    putchar('{');
    ctl_json_members(stdout, r);
    fputs(", \"layers\":\n", stdout);
    ctl_json_array(stdout, layers, p->n_statistics ? p->n_layers : 0);
    fputs(", \"r_by_head\": [", stdout);
    for (uint32_t l = 0; p->n_statistics && l < p->n_layers; l++) {
        for (uint32_t h = 0; h < p->shape.n_q_heads; h++)
            printf("%s%.6f", h ? ", " : l ? ",\n[" : "[", tkv_profile_head_r(p, l, h));
        putchar(']');
    }
    puts("]}");
}

static int print_profile(const struct arguments *a, const struct tkv_profile *p)
{
    struct ctl_record r = {.n_fields = 0};
    struct ctl_record *layers = calloc(p->n_layers, sizeof(*layers));

    if (!layers) {
        fputs(PROGRAM ": out of memory\n", stderr);
        return EXIT_FAILURE;
    }
    describe(&r, p);
    for (uint32_t l = 0; p->n_statistics && l < p->n_layers; l++)
        describe_layer(&layers[l], p, l);
    if (a->json) {
        print_json(p, &r, layers);
    } else {
        ctl_print_record(stdout, &r);
        if (p->n_statistics) {
            putchar('\n');
            ctl_print_table(stdout, layers, p->n_layers);
            if (a->heads)
                print_head_rows(p);
        }
    }
    free(layers);
    return EX_OK;
}

static void plot(const void *profile, FILE *out)
{
    tkv_profile_plot(out, profile);
}

static int show(const struct arguments *a)
{
    struct tkv_profile *p = load(a->files[0]);
    struct tkv_reason why;
    int status = p ? print_profile(a, p) : EXIT_FAILURE;

    if (p && a->svg && !p->n_statistics) {
        fprintf(stderr, "%s: has no statistics, so no picture\n", a->files[0]);
        status = EXIT_FAILURE;
    } else if (p && a->svg && tkv_write_file(a->svg, plot, p, &why)) {
        fprintf(stderr, PROGRAM ": %s\n", why.text);
        status = EXIT_FAILURE;
    }
    tkv_profile_unref(&p);
    return status;
}

static int diff(const struct arguments *a)
{
    struct tkv_profile *p = load(a->files[0]), *q = load(a->files[1]);
    int status = EXIT_FAILURE;

    if (p && q)
        status = tkv_profile_diff(stdout, p, q, a->json, a->heads) ? EXIT_FAILURE : EX_OK;
    tkv_profile_unref(&p);
    tkv_profile_unref(&q);
    return status;
}

static int wrong_usage(const char *text)
{
    fprintf(stderr, PROGRAM ": %s\nTry 'trikvctl profile --help'.\n", text);
    return EX_USAGE;
}

static int run(const char *verb, const struct arguments *a)
{
    if (strcmp(verb, "check") == 0)
        return a->n_files ? check(a) : wrong_usage("check: which files?");
    if (strcmp(verb, "show") == 0)
        return a->n_files == 1 ? show(a) : wrong_usage("show: want one file");
    if (strcmp(verb, "diff") == 0)
        return a->n_files == 2 ? diff(a) : wrong_usage("diff: want two files");
    return wrong_usage("want check, show or diff");
}

int ctl_profile(int argc, char **argv)
{
    static const struct option options[] = {
        {"model", required_argument, NULL, OPT_MODEL},
        {"n-layers", required_argument, NULL, OPT_LAYERS},
        {"n-q-heads", required_argument, NULL, OPT_Q_HEADS},
        {"n-kv-heads", required_argument, NULL, OPT_KV_HEADS},
        {"head-dim", required_argument, NULL, OPT_DIM},
        {"rope-theta", required_argument, NULL, OPT_THETA},
        {"fingerprint", required_argument, NULL, OPT_FINGERPRINT},
        {"svg", required_argument, NULL, OPT_SVG},
        {"json", no_argument, NULL, OPT_JSON},
        {"heads", no_argument, NULL, OPT_HEADS},
        {"help", no_argument, NULL, OPT_HELP},
        {NULL, 0, NULL, 0}};
    struct arguments a = {0};
    int id, index, status;

    optind = 0; /* start anew: trikvctl has read its own */
    while ((id = getopt_long(argc, argv, "", options, &index)) != -1) {
        if (id == OPT_HELP)
            return fputs(help, stdout) < 0 ? EX_IOERR : EX_OK;
        if (id == '?' || !set_option(&a, id, options[index].name))
            return EX_USAGE;
    }
    if (optind == argc)
        return wrong_usage("want check, show or diff");
    a.files = argv + optind + 1;
    a.n_files = argc - optind - 1;
    status = run(argv[optind], &a);
    if (fflush(stdout) || ferror(stdout)) {
        fprintf(stderr, PROGRAM ": cannot write: %s\n", strerror(errno));
        return EXIT_FAILURE;
    }
    return status;
}
