/*
 * What the file does not say must be said on the command line, what both say must agree:
 * a wrong theta or group gives scores that are wrong and look right.
 */
#include "tools/import_command.h"

#include <getopt.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>

#include "daemon/profile.h"
#include "tools/gguf.h"
#include "tools/import.h"
#include "tools/options.h"
#include "tools/profile_write.h"

#define PROGRAM "trikv-calibrate import"

/* Relative: frequencies are rounded to float, in an order of steps that is each maker's own. */
#define MAX_FREQUENCY_ERROR 1e-4

static const char help_text[] =
    "Usage: trikv-calibrate import [options] FILE --output PROFILE.yaml\n"
    "\n"
    "Makes a profile of published query statistics: the .pt files of TriAttention, the TRIA\n"
    "files of triattention-ggml and of llama-cpp-triattention, or arrays of numpy (.npz).\n"
    "What the file does not say has to be said; what both say must agree.\n"
    "\n"
    "  --output FILE              the profile; its name is the file's name without .yaml\n"
    "  --n-kv-heads N             KV heads of a layer\n"
    "  --rope-theta T             base of the rotary embedding\n"
    "  --rope-layout NAME         half, interleaved\n"
    "  --rope-scaling NAME        none, linear, llama3, yarn (none), and what it needs:\n"
    "  --rope-factor X            --rope-low-freq-factor X  --rope-high-freq-factor X\n"
    "  --rope-original-context N  --rope-beta-fast X        --rope-beta-slow X\n"
    "  --rope-attention-factor X  --rope-no-truncate\n"
    "  --n-layers N --n-q-heads N FILE is float32 numbers alone, [layer][query head]\n"
    "                             [mean_re, mean_im, mean_abs][band], of this geometry\n"
    "  --head-dim N               of keys, if more than the file's dimensions that are turned\n"
    "  --head-dim-v N             of values, if not the same\n"
    "  --skip-empty-layers        leave out layers without statistics (hybrid models)\n"
    "  --architecture NAME        shown (unknown)\n"
    "  --fingerprint F            of the model, or none (none)\n"
    "  --tokens N                 the statistics were made on (0: not known)\n"
    "  --source TEXT              where the file is from: a comment\n"
    "  --help, --version\n";

struct options {
    const char *file, *output, *architecture, *fingerprint, *source;
    const char *layout, *scaling; /* NULL: not said */
    struct tkv_rope_params rope;  /* 0: not said */
    uint32_t n_layers, n_q_heads; /* of raw numbers; 0: the file says */
    uint32_t n_kv_heads, head_dim, head_dim_v;
    uint64_t n_tokens;
    bool skip_empty, no_truncate;
    char name[NAME_MAX + 1];
};

enum option_id {
    OPT_OUTPUT = 256,
    OPT_KV,
    OPT_THETA,
    OPT_LAYOUT,
    OPT_SCALING,
    OPT_FACTOR,
    OPT_LOW,
    OPT_HIGH,
    OPT_CONTEXT,
    OPT_FAST,
    OPT_SLOW,
    OPT_ATTENTION,
    OPT_NO_TRUNCATE,
    OPT_LAYERS,
    OPT_HEADS,
    OPT_DIM,
    OPT_DIM_V,
    OPT_SKIP,
    OPT_ARCHITECTURE,
    OPT_FINGERPRINT,
    OPT_TOKENS,
    OPT_SOURCE,
    OPT_HELP,
    OPT_VERSION,
};

static const struct option long_options[] = {
    {"output", required_argument, NULL, OPT_OUTPUT},
    {"n-kv-heads", required_argument, NULL, OPT_KV},
    {"rope-theta", required_argument, NULL, OPT_THETA},
    {"rope-layout", required_argument, NULL, OPT_LAYOUT},
    {"rope-scaling", required_argument, NULL, OPT_SCALING},
    {"rope-factor", required_argument, NULL, OPT_FACTOR},
    {"rope-low-freq-factor", required_argument, NULL, OPT_LOW},
    {"rope-high-freq-factor", required_argument, NULL, OPT_HIGH},
    {"rope-original-context", required_argument, NULL, OPT_CONTEXT},
    {"rope-beta-fast", required_argument, NULL, OPT_FAST},
    {"rope-beta-slow", required_argument, NULL, OPT_SLOW},
    {"rope-attention-factor", required_argument, NULL, OPT_ATTENTION},
    {"rope-no-truncate", no_argument, NULL, OPT_NO_TRUNCATE},
    {"n-layers", required_argument, NULL, OPT_LAYERS},
    {"n-q-heads", required_argument, NULL, OPT_HEADS},
    {"head-dim", required_argument, NULL, OPT_DIM},
    {"head-dim-v", required_argument, NULL, OPT_DIM_V},
    {"skip-empty-layers", no_argument, NULL, OPT_SKIP},
    {"architecture", required_argument, NULL, OPT_ARCHITECTURE},
    {"fingerprint", required_argument, NULL, OPT_FINGERPRINT},
    {"tokens", required_argument, NULL, OPT_TOKENS},
    {"source", required_argument, NULL, OPT_SOURCE},
    {"help", no_argument, NULL, OPT_HELP},
    {"version", no_argument, NULL, OPT_VERSION},
    {NULL, 0, NULL, 0},
};

static bool count(const char *name, uint64_t max, uint32_t *out)
{
    uint64_t value;

    if (!tkv_option_number(PROGRAM, name, optarg, 1, max, &value))
        return false;
    *out = (uint32_t)value;
    return true;
}

static bool real(const char *name, double min, double max, double *out)
{
    return tkv_option_real(PROGRAM, name, optarg, min, max, out);
}

static bool set_rope(struct options *o, int id, const char *name)
{
    struct tkv_rope_params *r = &o->rope;

    switch (id) {
    case OPT_THETA: return real(name, 1.0000001, 1e30, &r->theta);
    case OPT_LAYOUT: o->layout = optarg; return true;
    case OPT_SCALING: o->scaling = optarg; return true;
    case OPT_FACTOR: return real(name, 1, 1e9, &r->factor);
    case OPT_LOW: return real(name, 1e-9, 1e9, &r->low_freq_factor);
    case OPT_HIGH: return real(name, 1e-9, 1e9, &r->high_freq_factor);
    case OPT_CONTEXT: return count(name, 1 << 30, &r->original_context);
    case OPT_FAST: return real(name, 1e-9, 1e9, &r->beta_fast);
    case OPT_SLOW: return real(name, 1e-9, 1e9, &r->beta_slow);
    case OPT_ATTENTION: return real(name, 1e-9, 1e9, &r->attention_factor);
    default: o->no_truncate = true; return true;
    }
}

static bool set_option(struct options *o, int id, const char *name)
{
    switch (id) {
    case OPT_OUTPUT: o->output = optarg; return true;
    case OPT_KV: return count(name, TRIKV_MAX_HEADS, &o->n_kv_heads);
    case OPT_LAYERS: return count(name, TRIKV_MAX_LAYERS, &o->n_layers);
    case OPT_HEADS: return count(name, TRIKV_MAX_HEADS, &o->n_q_heads);
    case OPT_DIM: return count(name, TKV_MAX_HEAD_DIM, &o->head_dim);
    case OPT_DIM_V: return count(name, TKV_MAX_HEAD_DIM, &o->head_dim_v);
    case OPT_SKIP: o->skip_empty = true; return true;
    case OPT_ARCHITECTURE: o->architecture = optarg; return true;
    case OPT_FINGERPRINT: o->fingerprint = optarg; return true;
    case OPT_TOKENS: return tkv_option_number(PROGRAM, name, optarg, 0, UINT32_MAX, &o->n_tokens);
    case OPT_SOURCE: o->source = optarg; return true;
    default: return set_rope(o, id, name);
    }
}

static int wrong_usage(const char *text)
{
    fprintf(stderr, PROGRAM ": %s; see --help\n", text);
    return EX_USAGE;
}

/* -1: run; otherwise the exit status. */
static int parse_options(struct options *o, int argc, char **argv)
{
    struct tkv_reason why;
    int index, id;

    optind = 0; /* start anew: a test parses many command lines */
    while ((id = getopt_long(argc, argv, "", long_options, &index)) != -1) {
        if (id == OPT_HELP)
            return fputs(help_text, stdout) < 0 ? EX_IOERR : EX_OK;
        if (id == OPT_VERSION)
            return puts("trikv-calibrate " TRIKV_VERSION) < 0 ? EX_IOERR : EX_OK;
        if (id == '?' || !set_option(o, id, long_options[index].name))
            return EX_USAGE;
    }
    if (argc - optind != 1)
        return wrong_usage(optind < argc ? "more than one file" : "which file?");
    o->file = argv[optind];
    if (!o->output)
        return wrong_usage("--output is missing");
    if (tkv_profile_name_of(o->output, o->name, sizeof(o->name), &why))
        return wrong_usage(why.text);
    if (!o->n_layers != !o->n_q_heads)
        return wrong_usage("--n-layers and --n-q-heads go together");
    if (o->layout && strcmp(o->layout, "half") != 0 && strcmp(o->layout, "interleaved") != 0)
        return wrong_usage("--rope-layout: want half or interleaved");
    if (o->scaling && tkv_name_index(tkv_rope_scaling_names, o->scaling) < 0)
        return wrong_usage("--rope-scaling: want none, linear, llama3 or yarn");
    return -1;
}

static bool differ(double a, double b)
{
    return a < b || a > b;
}

static int settle_theta(const struct options *o, const struct tkv_import *im, double *theta,
                        struct tkv_reason *why)
{
    *theta = o->rope.theta > 0 ? o->rope.theta : im->rope.theta;
    if (o->rope.theta > 0 && im->rope.theta > 0 && !im->theta_is_default &&
        differ(o->rope.theta, im->rope.theta))
        return tkv_reason_set(why, "rope.theta: the file says %.9g, --rope-theta %.9g",
                              im->rope.theta, o->rope.theta);
    if (o->rope.theta > 0)
        return 0;
    if (im->theta_is_default)
        return tkv_reason_set(why,
                              "rope.theta: the file says %.9g, which its writer also puts when it "
                              "does not know the model's: give --rope-theta",
                              im->rope.theta);
    return *theta > 0 ? 0
                      : tkv_reason_set(why, "rope.theta: the file does not say: give --rope-theta");
}

static int settle_group(const struct options *o, const struct tkv_import *im,
                        struct tkv_shape *shape, struct tkv_reason *why)
{
    const uint32_t n = o->n_kv_heads ? o->n_kv_heads : im->n_kv_heads;

    if (o->n_kv_heads && im->n_kv_heads && o->n_kv_heads != im->n_kv_heads)
        return tkv_reason_set(why, "n_kv_heads: the file says %u, --n-kv-heads %u", im->n_kv_heads,
                              o->n_kv_heads);
    if (!n)
        return tkv_reason_set(why, "n_kv_heads: the file does not say: give --n-kv-heads");
    if (im->n_q_heads % n || im->n_q_heads / n > TKV_MAX_GROUP)
        return tkv_reason_set(
            why, "n_kv_heads: %u, want a divisor of n_q_heads %u, groups of at most %d", n,
            im->n_q_heads, TKV_MAX_GROUP);
    *shape = (struct tkv_shape){.n_q_heads = im->n_q_heads, .n_kv_heads = n};
    return 0;
}

/* The file has the bands that are turned; a head may have more dimensions. */
static int settle_dims(const struct options *o, const struct tkv_import *im,
                       struct tkv_shape *shape, struct tkv_reason *why)
{
    const uint32_t rotary = 2 * im->n_bands;

    shape->head_dim_k = o->head_dim ? o->head_dim : im->head_dim ? im->head_dim : rotary;
    shape->head_dim_v = o->head_dim_v ? o->head_dim_v : shape->head_dim_k;
    if (shape->head_dim_k < rotary)
        return tkv_reason_set(why, "head_dim: %u, but the file has %u bands of 2 dimensions",
                              shape->head_dim_k, im->n_bands);
    return 0;
}

/* A file that says how its bands turn knows theta and scaling, though not by name. */
static int check_frequencies(const struct tkv_import *im, const struct tkv_rope *rope,
                             struct tkv_reason *why)
{
    for (uint32_t f = 0; im->has_inv_freq && f < im->n_bands; f++) {
        const double own = (double)im->inv_freq[f], said = (double)rope->inv_freq[f];

        if (!(fabs(own - said) <= MAX_FREQUENCY_ERROR * said))
            return tkv_reason_set(
                why,
                "rope: band %u turns by %.7g a token in the file, but by %.7g with "
                "what is said of theta and scaling",
                f, own, said);
    }
    return 0;
}

/* The scaling of the file, or of the command line, all of it: no mixture. */
static int settle_rope(const struct options *o, const struct tkv_import *im, uint32_t head_dim,
                       struct tkv_rope_params *p, struct tkv_reason *why)
{
    const enum tkv_rope_layout layout =
        o->layout && strcmp(o->layout, "interleaved") == 0 ? TKV_ROPE_INTERLEAVED : TKV_ROPE_HALF;
    struct tkv_rope rope;
    const char *wrong;

    *p = im->has_scaling && !o->scaling ? im->rope : o->rope;
    if (o->scaling) {
        p->scaling = (enum tkv_rope_scaling)tkv_name_index(tkv_rope_scaling_names, o->scaling);
        p->no_truncate = o->no_truncate;
    }
    if (im->has_scaling && o->scaling && p->scaling != im->rope.scaling)
        return tkv_reason_set(why, "rope.scaling: the file says %s, --rope-scaling %s",
                              tkv_rope_scaling_names[im->rope.scaling], o->scaling);
    if (!im->has_layout && !o->layout)
        return tkv_reason_set(why, "rope.layout: the file does not say: give --rope-layout");
    if (im->has_layout && o->layout && layout != im->rope.layout)
        return tkv_reason_set(why, "rope.layout: the file says %s, --rope-layout %s",
                              tkv_rope_layout_names[im->rope.layout], o->layout);
    p->layout = o->layout ? layout : im->rope.layout;
    p->head_dim = head_dim;
    p->rotary_dim = 2 * im->n_bands;
    if (settle_theta(o, im, &p->theta, why))
        return -1;
    wrong = tkv_rope_init(&rope, p);
    if (wrong)
        return tkv_reason_set(why, "rope: %s", wrong);
    return check_frequencies(im, &rope, why);
}

static bool is_empty(const struct tkv_import *im, size_t layer)
{
    for (size_t h = 0; h < im->n_q_heads; h++) {
        const float *abs = tkv_import_head(im, layer, h) + 2 * im->n_bands;

        for (uint32_t f = 0; f < im->n_bands; f++) {
            if (abs[f] > 0)
                return false;
        }
    }
    return true;
}

/* Statistics in the profile's geometry: bands that are not turned have none, so they are zero and
 * take no part in scores. Returns how many layers there are. */
static uint32_t lay_out(const struct tkv_import *im, uint32_t n_bands, bool skip_empty, float *to)
{
    uint32_t n_layers = 0;

    for (size_t l = 0; l < im->n_layers; l++) {
        if (skip_empty && is_empty(im, l))
            continue;
        n_layers++;
        for (size_t h = 0; h < im->n_q_heads; h++) {
            const float *from = tkv_import_head(im, l, h);

            for (size_t i = 0; i < 3; i++, to += n_bands)
                memcpy(to, from + i * im->n_bands, im->n_bands * sizeof(*to));
        }
    }
    return n_layers;
}

static void report(const struct options *o, const struct tkv_import *im,
                   const struct tkv_profile_facts *f)
{
    const struct tkv_shape *s = &f->shape;

    printf("%s: %s%s%s: %u layers, %u query heads, %u KV heads, %u bands, rope theta %.9g, "
           "scaling %s\n",
           o->output, im->format, *im->model ? ", " : "", im->model, f->n_layers, s->n_q_heads,
           s->n_kv_heads, im->n_bands, f->rope.theta, tkv_rope_scaling_names[f->rope.scaling]);
    if (im->n_empty_layers && !o->skip_empty)
        fprintf(stderr,
                PROGRAM ": note: %u of %u layers have no statistics; if those have no KV cache, "
                        "--skip-empty-layers leaves them out\n",
                im->n_empty_layers, im->n_layers);
}

static int write_profile(const struct options *o, const struct tkv_import *im,
                         struct tkv_profile_facts *f, struct tkv_reason *why)
{
    const uint32_t n_bands = f->shape.head_dim_k / 2;
    const size_t per_layer = (size_t)im->n_q_heads * 3 * n_bands;
    float *statistics = calloc(im->n_layers * per_layer, sizeof(*statistics));
    char file_note[PATH_MAX], source_note[512];
    int error;

    if (!statistics)
        return tkv_reason_set(why, "out of memory for %zu numbers", im->n_layers * per_layer);
    f->n_layers = lay_out(im, n_bands, o->skip_empty, statistics);
    f->statistics = statistics;
    f->n_statistics = f->n_layers * per_layer;
    tkv_profile_note(file_note, sizeof(file_note), "file", o->file);
    snprintf(source_note, sizeof(source_note), "source: %s", o->source ? o->source : "not said");
    f->notes[0] = "Written by trikv-calibrate import.";
    f->notes[1] = file_note;
    f->notes[2] = source_note;
    error = tkv_profile_write(o->output, f, why);
    if (!error)
        report(o, im, f);
    free(statistics);
    return error;
}

static int run(const struct options *o, struct tkv_reason *why)
{
    struct tkv_profile_facts f = {.name = o->name,
                                  .architecture = o->architecture ? o->architecture : "unknown",
                                  .fingerprint = o->fingerprint ? o->fingerprint : "none",
                                  .n_tokens = o->n_tokens};
    struct tkv_import im;
    int error;

    if (tkv_import_read(&im, o->file, o->n_layers, o->n_q_heads, why))
        return -1;
    error = settle_group(o, &im, &f.shape, why) || settle_dims(o, &im, &f.shape, why) ||
            settle_rope(o, &im, f.shape.head_dim_k, &f.rope, why) || write_profile(o, &im, &f, why);
    tkv_import_deinit(&im);
    return error;
}

int tkv_import_command(int argc, char **argv)
{
    struct options o = {0};
    struct tkv_reason why = {""};
    const int status = parse_options(&o, argc - 1, argv + 1);

    if (status >= 0)
        return status;
    if (run(&o, &why) == 0)
        return fflush(stdout) || ferror(stdout) ? EX_IOERR : EX_OK;
    fprintf(stderr, PROGRAM ": %s\n", why.text);
    return EXIT_FAILURE;
}
