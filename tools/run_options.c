/* What trikv-run can be told, and which of it goes together. */
#include "tools/run_options.h"

#include <getopt.h>
#include <stdio.h>
#include <string.h>
#include <sysexits.h>

#include "tools/options.h"

#define PROGRAM "trikv-run"

static const char help_text[] =
    "Usage: trikv-run [options] --text FILE | --prompt TEXT\n"
    "\n"
    "Runs a GGUF language model with its KV cache in a trikvd daemon.\n"
    "\n"
    "What to do\n"
    "  --text FILE         read a text and say how well the model predicts it\n"
    "  --prompt TEXT       continue this text\n"
    "  --generate N        tokens to write (64 with --prompt, else 0)\n"
    "  --tokens N          read at most N tokens of the text\n"
    "  --skip N            leave out the first N tokens of the text\n"
    "  --chunk N           tokens that go through the model together (256)\n"
    "  --temperature T     0 takes the likeliest token (0)\n"
    "  --seed S            of the choice of tokens (1)\n"
    "  --compare-local     also run the judge; mean KL and top-1 agreement\n"
    "  --json              one JSON object instead of text\n"
    "\n"
    "The model\n"
    "  --model GGUF        default $TRIKV_MODEL, else the model that comes with TriKV\n"
    "  --threads N         default all processors\n"
    "\n"
    "Where attention is computed\n"
    "  --local             in this process, exact float32: the judge\n"
    "  --socket PATH       of the daemon; default $TRIKV_SOCKET, /run/trikv/trikvd.sock\n"
    "  --calibrate FILE    let the daemon see the queries and write a profile made of them;\n"
    "                      its name is the file's without .yaml\n"
    "  --no-ring           steps through the socket, tensors alone through shared memory\n"
    "  --inline            all through the socket\n"
    "\n"
    "How the daemon keeps the cache (default: the profile's word, or the daemon's)\n"
    "  --profile NAME      a calibrated profile\n"
    "  --codec NAME        of keys and values: f16, int8, tq4, tq3.5, tq3, tq2.5, tq2, ...\n"
    "  --codec-k NAME      of keys\n"
    "  --codec-v NAME      of values\n"
    "  --policy NAME       none, triattention, streaming, h2o, snapkv, keydiff, default\n"
    "  --budget N          tokens kept per KV head\n"
    "  --budget-bytes N    policy default: all that the session may occupy, ...\n"
    "  --max-tokens N      ... and how many tokens it is planned for\n"
    "  --beta N            a round every N tokens\n"
    "  --recent N          newest tokens that stay\n"
    "  --pinned N          first tokens that stay\n"
    "  --mode NAME         per_layer_perhead, per_head, union\n"
    "\n"
    "  --help, --version\n";

enum option_id {
    OPT_MODEL = 256,
    OPT_TEXT,
    OPT_PROMPT,
    OPT_TOKENS,
    OPT_SKIP,
    OPT_CHUNK,
    OPT_GENERATE,
    OPT_TEMPERATURE,
    OPT_SEED,
    OPT_LOCAL,
    OPT_COMPARE,
    OPT_JSON,
    OPT_THREADS,
    OPT_HELP,
    OPT_VERSION,
    OPT_SOCKET, /* from here on: of the daemon */
    OPT_INLINE,
    OPT_NO_RING,
    OPT_CALIBRATE,
    OPT_PROFILE,
    OPT_CODEC,
    OPT_CODEC_K,
    OPT_CODEC_V,
    OPT_POLICY,
    OPT_BUDGET,
    OPT_BUDGET_BYTES,
    OPT_MAX_TOKENS,
    OPT_BETA,
    OPT_RECENT,
    OPT_PINNED,
    OPT_MODE,
};

static const struct option long_options[] = {
    {"model", required_argument, NULL, OPT_MODEL},
    {"text", required_argument, NULL, OPT_TEXT},
    {"prompt", required_argument, NULL, OPT_PROMPT},
    {"tokens", required_argument, NULL, OPT_TOKENS},
    {"skip", required_argument, NULL, OPT_SKIP},
    {"chunk", required_argument, NULL, OPT_CHUNK},
    {"generate", required_argument, NULL, OPT_GENERATE},
    {"temperature", required_argument, NULL, OPT_TEMPERATURE},
    {"seed", required_argument, NULL, OPT_SEED},
    {"local", no_argument, NULL, OPT_LOCAL},
    {"compare-local", no_argument, NULL, OPT_COMPARE},
    {"json", no_argument, NULL, OPT_JSON},
    {"threads", required_argument, NULL, OPT_THREADS},
    {"help", no_argument, NULL, OPT_HELP},
    {"version", no_argument, NULL, OPT_VERSION},
    {"socket", required_argument, NULL, OPT_SOCKET},
    {"inline", no_argument, NULL, OPT_INLINE},
    {"no-ring", no_argument, NULL, OPT_NO_RING},
    {"calibrate", required_argument, NULL, OPT_CALIBRATE},
    {"profile", required_argument, NULL, OPT_PROFILE},
    {"codec", required_argument, NULL, OPT_CODEC},
    {"codec-k", required_argument, NULL, OPT_CODEC_K},
    {"codec-v", required_argument, NULL, OPT_CODEC_V},
    {"policy", required_argument, NULL, OPT_POLICY},
    {"budget", required_argument, NULL, OPT_BUDGET},
    {"budget-bytes", required_argument, NULL, OPT_BUDGET_BYTES},
    {"max-tokens", required_argument, NULL, OPT_MAX_TOKENS},
    {"beta", required_argument, NULL, OPT_BETA},
    {"recent", required_argument, NULL, OPT_RECENT},
    {"pinned", required_argument, NULL, OPT_PINNED},
    {"mode", required_argument, NULL, OPT_MODE},
    {NULL, 0, NULL, 0},
};

static bool number(const char *name, uint64_t min, uint64_t max, uint64_t *out)
{
    return tkv_option_number(PROGRAM, name, optarg, min, max, out);
}

static bool count(const char *name, uint32_t *out)
{
    uint64_t value;

    if (!number(name, 1, INT32_MAX, &value))
        return false;
    *out = (uint32_t)value;
    return true;
}

static bool count_or_zero(const char *name, int32_t *out)
{
    uint64_t value;

    if (!number(name, 0, INT32_MAX, &value))
        return false;
    *out = (int32_t)value;
    return true;
}

static bool set_daemon_option(struct tkv_run_options *o, int id, const char *name)
{
    struct tkv_remote_options *r = &o->remote;

    if (!o->daemon_option)
        o->daemon_option = name;
    switch (id) {
    case OPT_SOCKET: r->socket = optarg; return true;
    case OPT_INLINE: r->inline_tensors = true; return true;
    case OPT_NO_RING: r->no_ring = true; return true;
    case OPT_CALIBRATE:
        r->observe = true;
        o->calibrate = optarg;
        return true;
    case OPT_PROFILE: r->profile = optarg; return true;
    case OPT_CODEC: r->codec_k = r->codec_v = optarg; return true;
    case OPT_CODEC_K: r->codec_k = optarg; return true;
    case OPT_CODEC_V: r->codec_v = optarg; return true;
    case OPT_POLICY: r->method = optarg; return true;
    case OPT_BUDGET: return count(name, &r->budget_tokens);
    case OPT_BUDGET_BYTES: return number(name, 1, UINT64_MAX / 2, &r->budget_bytes);
    case OPT_MAX_TOKENS: return count(name, &r->max_tokens);
    case OPT_BETA: return count(name, &r->beta_tokens);
    case OPT_RECENT: return count_or_zero(name, &r->recent_tokens);
    case OPT_PINNED: return count_or_zero(name, &r->pinned_tokens);
    default: r->eviction_mode = optarg; return true;
    }
}

static bool set_option(struct tkv_run_options *o, int id, const char *name)
{
    switch (id) {
    case OPT_MODEL: o->model = optarg; return true;
    case OPT_TEXT: o->text = optarg; return true;
    case OPT_PROMPT: o->prompt = optarg; return true;
    case OPT_TOKENS: return number(name, 1, INT32_MAX - 1, &o->n_tokens);
    case OPT_SKIP: return number(name, 0, INT32_MAX, &o->n_skip);
    case OPT_CHUNK: return number(name, 1, 65536, &o->n_chunk);
    case OPT_GENERATE:
        o->generate_given = true;
        return number(name, 0, INT32_MAX / 2, &o->n_generate);
    case OPT_TEMPERATURE: return tkv_option_real(PROGRAM, name, optarg, 0, 100, &o->temperature);
    case OPT_SEED: return number(name, 0, UINT64_MAX, &o->seed);
    case OPT_LOCAL: o->local = true; return true;
    case OPT_COMPARE: o->compare_local = true; return true;
    case OPT_JSON: o->json = true; return true;
    case OPT_THREADS: return number(name, 1, 1024, &o->n_threads);
    default: return set_daemon_option(o, id, name);
    }
}

static bool fits_together(const struct tkv_run_options *o)
{
    const char *wrong = NULL;

    if (!o->text == !o->prompt)
        wrong = "name either --text FILE or --prompt TEXT";
    else if (o->compare_local && (o->local || !o->text))
        wrong = "--compare-local needs --text and does not go with --local";
    else if (!o->text && (o->n_tokens || o->n_skip))
        wrong = "--tokens and --skip belong to --text";
    if (wrong)
        fprintf(stderr, PROGRAM ": %s\n", wrong);
    else if (o->local && o->daemon_option)
        fprintf(stderr, PROGRAM ": --%s does not go with --local\n", o->daemon_option);
    return !wrong && !(o->local && o->daemon_option);
}

int tkv_run_options_parse(struct tkv_run_options *o, int argc, char **argv)
{
    int index, id;

    *o = (struct tkv_run_options){
        .n_chunk = 256,
        .seed = 1,
        .remote = {.recent_tokens = -1, .pinned_tokens = -1, .normalize_scores = -1},
    };
    optind = 0; /* start anew: a test parses many command lines */
    while ((id = getopt_long(argc, argv, "", long_options, &index)) != -1) {
        if (id == OPT_HELP)
            return fputs(help_text, stdout) < 0 ? EX_IOERR : EX_OK;
        if (id == OPT_VERSION)
            return puts(PROGRAM " " TRIKV_VERSION) < 0 ? EX_IOERR : EX_OK;
        if (id == '?') /* getopt_long has named the option */
            return EX_USAGE;
        if (!set_option(o, id, long_options[index].name))
            return EX_USAGE;
    }
    if (optind < argc) {
        fprintf(stderr, PROGRAM ": unexpected argument \"%s\"; see --help\n", argv[optind]);
        return EX_USAGE;
    }
    if (!fits_together(o))
        return EX_USAGE;
    if (o->prompt && !o->generate_given)
        o->n_generate = 64;
    return -1;
}
