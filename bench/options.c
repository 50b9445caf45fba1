#include "bench/options.h"

#include <getopt.h>
#include <stdio.h>
#include <string.h>

#include "core/codec.h"
#include "tools/options.h"

const char tkv_bench_option_help[] =
    "  --head-dim D     of keys and values (128)\n"
    "  --tokens N       tokens in the cache; appliance: tokens that stream through it\n"
    "  --kv-heads K     KV heads of a layer (8)\n"
    "  --group G        query heads for each KV head (4)\n"
    "  --rope-dim R     attend: of head-dim so many carry the position, the rest is a latent "
    "(MLA)\n"
    "  --layers L       layers of a session\n"
    "  --codec C        fp16, int8, tq4, tq3.5, tq3, tq2.5, tq2, or any other trikvd knows\n"
    "  --input T        encode: what vectors come as: f32, f16 or bf16 (f32)\n"
    "  --budget B       appliance: tokens kept (4096)\n"
    "  --work W         work: attend, encode or round\n"
    "  --times N        work: how often (1)\n"
    "  --threads T      (1)\n"
    "  --seconds S      how long to measure each thing (2)\n"
    "  --resident       attend: one layer again and again, so that it may stay in the caches\n"
    "  --disable LIST   instruction sets not to use, as avx512,avx2 ($TRIKV_CPU_DISABLE)\n"
    "  --alone          no comparison with other codecs, plain C and other formats\n"
    "  --json           for programs\n";

enum {
    OPT_HELP = 1,
    OPT_DIM,
    OPT_TOKENS,
    OPT_KV,
    OPT_GROUP,
    OPT_LAYERS,
    OPT_CODEC,
    OPT_BUDGET,
    OPT_WORK,
    OPT_TIMES
};
enum {
    OPT_THREADS = 20,
    OPT_SECONDS,
    OPT_RESIDENT,
    OPT_ALONE,
    OPT_JSON,
    OPT_IN,
    OPT_OUT,
    OPT_DISABLE,
    OPT_ROPE,
    OPT_INPUT
};

static const struct option long_options[] = {
    {"help", no_argument, NULL, OPT_HELP},
    {"head-dim", required_argument, NULL, OPT_DIM},
    {"tokens", required_argument, NULL, OPT_TOKENS},
    {"kv-heads", required_argument, NULL, OPT_KV},
    {"group", required_argument, NULL, OPT_GROUP},
    {"rope-dim", required_argument, NULL, OPT_ROPE},
    {"layers", required_argument, NULL, OPT_LAYERS},
    {"codec", required_argument, NULL, OPT_CODEC},
    {"input", required_argument, NULL, OPT_INPUT},
    {"budget", required_argument, NULL, OPT_BUDGET},
    {"work", required_argument, NULL, OPT_WORK},
    {"times", required_argument, NULL, OPT_TIMES},
    {"threads", required_argument, NULL, OPT_THREADS},
    {"seconds", required_argument, NULL, OPT_SECONDS},
    {"resident", no_argument, NULL, OPT_RESIDENT},
    {"alone", no_argument, NULL, OPT_ALONE},
    {"json", no_argument, NULL, OPT_JSON},
    {"disable", required_argument, NULL, OPT_DISABLE},
    {"in", required_argument, NULL, OPT_IN},
    {"out", required_argument, NULL, OPT_OUT},
    {NULL, 0, NULL, 0},
};

static bool take_codec(struct tkv_bench_options *o)
{
    o->codec = strcmp(optarg, "fp16") ? optarg : "f16";
    if (tkv_codec_by_name(o->codec))
        return true;
    (void)fprintf(stderr, "%s: --codec: \"%s\" is not a codec\n", TKV_BENCH_PROGRAM, optarg);
    return false;
}

static bool take_input(struct tkv_bench_options *o)
{
    static const char *const names[] = {[TKV_F32] = "f32", [TKV_F16] = "f16", [TKV_BF16] = "bf16"};

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        if (!strcmp(optarg, names[i])) {
            o->input = (enum tkv_dtype)i;
            return true;
        }
    (void)fprintf(stderr, "%s: --input: \"%s\", expected f32, f16 or bf16\n", TKV_BENCH_PROGRAM,
                  optarg);
    return false;
}

static bool take_count(const char *name, uint64_t max, uint32_t *out)
{
    uint64_t n;

    if (!tkv_option_number(TKV_BENCH_PROGRAM, name, optarg, 1, max, &n))
        return false;
    *out = (uint32_t)n;
    return true;
}

static bool take_dim(struct tkv_bench_options *o)
{
    if (!take_count("head-dim", TKV_MAX_HEAD_DIM, &o->head_dim))
        return false;
    if (o->head_dim >= TKV_MIN_HEAD_DIM && o->head_dim % 2 == 0)
        return true;
    (void)fprintf(stderr, "%s: --head-dim: %u, expected an even number from %d to %d\n",
                  TKV_BENCH_PROGRAM, o->head_dim, TKV_MIN_HEAD_DIM, TKV_MAX_HEAD_DIM);
    return false;
}

static bool take(struct tkv_bench_options *o, int option)
{
    switch (option) {
    case OPT_DIM: return take_dim(o);
    case OPT_KV: return take_count("kv-heads", 64, &o->kv_heads);
    case OPT_GROUP: return take_count("group", TKV_MAX_GROUP, &o->group);
    case OPT_ROPE: return take_count("rope-dim", TKV_MAX_HEAD_DIM, &o->rope_dim);
    case OPT_LAYERS: return take_count("layers", 512, &o->layers);
    case OPT_THREADS: return take_count("threads", 1024, &o->threads);
    case OPT_CODEC: return take_codec(o);
    case OPT_INPUT: return take_input(o);
    case OPT_WORK: o->work = optarg; return true;
    case OPT_TIMES: return take_count("times", 1000, &o->times);
    case OPT_TOKENS:
        return tkv_option_number(TKV_BENCH_PROGRAM, "tokens", optarg, 1, 1 << 24, &o->tokens);
    case OPT_BUDGET:
        return tkv_option_number(TKV_BENCH_PROGRAM, "budget", optarg, 512, 1 << 20, &o->budget);
    case OPT_SECONDS:
        return tkv_option_real(TKV_BENCH_PROGRAM, "seconds", optarg, 0, 3600, &o->seconds);
    case OPT_RESIDENT: o->resident = true; return true;
    case OPT_ALONE: o->alone = true; return true;
    case OPT_JSON: o->json = true; return true;
    case OPT_DISABLE: o->disable = optarg; return true;
    case OPT_IN: o->in = optarg; return true;
    case OPT_OUT: o->out = optarg; return true;
    default: return false;
    }
}

enum tkv_bench_parsed tkv_bench_parse(struct tkv_bench_options *o, int argc, char **argv)
{
    int option;

    optind = 0; /* glibc: begin anew, since a report parses many lines */
    while ((option = getopt_long(argc, argv, "", long_options, NULL)) != -1) {
        if (option == OPT_HELP)
            return TKV_PARSED_HELP;
        if (!take(o, option))
            return TKV_PARSED_WRONG;
    }
    if (optind == argc)
        return TKV_PARSED;
    (void)fprintf(stderr, "%s: \"%s\": no argument is expected\n", TKV_BENCH_PROGRAM, argv[optind]);
    return TKV_PARSED_WRONG;
}
