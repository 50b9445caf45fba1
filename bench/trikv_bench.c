/*
 * trikv-bench: how fast TriKV is on this machine, each thing alone and beside what it is to be
 * compared with, measured in one run. What is measured and how is in the files of the commands.
 */
#include <stdio.h>
#include <string.h>
#include <sysexits.h>

#include "bench/commands.h"

static const struct tkv_bench_command commands[] = {
    {.name = "attend",
     .summary = "attention of one new token over a cache of codes",
     .run = tkv_bench_attend,
     .defaults = {.head_dim = 128,
                  .group = 4,
                  .kv_heads = 8,
                  .threads = 1,
                  .tokens = 32768,
                  .codec = "tq4",
                  .seconds = 2}},
    {.name = "accuracy",
     .summary = "how far attention from codes is from exact attention on what they stand for",
     .run = tkv_bench_accuracy,
     .defaults = {.head_dim = 128, .group = 4, .tokens = 131072, .codec = "tq4"}},
    {.name = "encode",
     .summary = "vectors to codes",
     .run = tkv_bench_encode,
     .defaults = {.head_dim = 128, .threads = 1, .codec = "tq4", .seconds = 2}},
    {.name = "round",
     .summary = "a TriAttention round: score, select, rebuild",
     .run = tkv_bench_round,
     .defaults = {.head_dim = 128,
                  .group = 4,
                  .kv_heads = 8,
                  .layers = 36,
                  .threads = 1,
                  .tokens = 2048,
                  .codec = "tq4",
                  .seconds = 2}},
    {.name = "score",
     .summary = "TriAttention scores of the cached keys of one head",
     .run = tkv_bench_score,
     .defaults = {.head_dim = 128, .group = 1, .tokens = 8192, .codec = "tq4", .seconds = 1}},
    {.name = "ipc",
     .summary = "a small request through the daemon, beside bare exchanges",
     .run = tkv_bench_ipc,
     .defaults = {.tokens = 8192},
     .flat = true},
    {.name = "session",
     .summary = "opening, forking, going back in, and closing a long session",
     .run = tkv_bench_session,
     .defaults = {.head_dim = 128,
                  .group = 4,
                  .kv_heads = 8,
                  .layers = 36,
                  .threads = 1,
                  .tokens = 131072,
                  .codec = "tq4-paper",
                  .seconds = 1},
     .flat = true},
    {.name = "snapshot",
     .summary = "a session to a file and back, and what others wait meanwhile",
     .run = tkv_bench_snapshot,
     .defaults = {.head_dim = 128,
                  .group = 4,
                  .kv_heads = 8,
                  .layers = 36,
                  .threads = 2,
                  .tokens = 8192,
                  .codec = "tq4",
                  .seconds = 2},
     .flat = true},
    {.name = "appliance",
     .summary = "Qwen3-8B's geometry, a long text, a budget, through the daemon",
     .run = tkv_bench_appliance,
     .defaults = {.threads = 1, .tokens = 131072, .budget = 4096, .codec = "tq3.5"}},
    {.name = "model",
     .summary = "a language model, its cache in the daemon, beside exact attention",
     .run = tkv_bench_model,
     .defaults = {.threads = 2, .tokens = 2048, .codec = "tq4", .seconds = 1},
     .flat = true},
    {.name = "work",
     .summary = "one thing, --times often, for programs that count instructions",
     .run = tkv_bench_work,
     .defaults = {.head_dim = 128,
                  .group = 4,
                  .kv_heads = 1,
                  .threads = 1,
                  .tokens = 1024,
                  .codec = "tq4",
                  .work = "attend",
                  .times = 1}},
    {.name = "memory",
     .summary = "how fast this machine reads",
     .run = tkv_bench_memory,
     .defaults = {.threads = 1, .seconds = 2}},
};

enum { N_COMMANDS = sizeof(commands) / sizeof(commands[0]) };

const struct tkv_bench_command *tkv_bench_find(const char *name)
{
    for (size_t i = 0; i < N_COMMANDS; i++)
        if (strcmp(commands[i].name, name) == 0)
            return &commands[i];
    return NULL;
}

static void print_help(FILE *out)
{
    (void)fprintf(out, "Usage: %s COMMAND [options]\n\nCommands:\n", TKV_BENCH_PROGRAM);
    for (size_t i = 0; i < N_COMMANDS; i++)
        (void)fprintf(out, "  %-16s %s\n", commands[i].name, commands[i].summary);
    (void)fprintf(out,
                  "  %-16s fill a template with tables: --in TEMPLATE --out FILE\n\n"
                  "Options, for the commands that have a use for them:\n%s\n"
                  "$TRIKV_CPU_DISABLE names instruction sets not to use, $TRIKV_BIN the trikvd to "
                  "start.\n",
                  "report", tkv_bench_option_help);
}

static int fail(const struct tkv_reason *why)
{
    (void)fprintf(stderr, "%s: %s\n", TKV_BENCH_PROGRAM, why->text);
    return EX_SOFTWARE;
}

static int run_command(const struct tkv_bench_command *c, const struct tkv_bench_options *o)
{
    struct tkv_record record = {0};
    struct tkv_reason why = {{0}};

    if (c->run(o, &record, &why))
        return fail(&why);
    if (o->json) {
        tkv_record_print_json(&record, c->flat, stdout);
    } else {
        (void)printf("%s %s: %s\n", TKV_BENCH_PROGRAM, c->name, c->summary);
        tkv_record_print_text(&record, stdout);
    }
    return EX_OK;
}

static int run_report(const struct tkv_bench_options *o)
{
    struct tkv_reason why = {{0}};

    return tkv_bench_report(o, &why) ? fail(&why) : EX_OK;
}

int main(int argc, char **argv)
{
    const struct tkv_bench_command *c = argc > 1 ? tkv_bench_find(argv[1]) : NULL;
    const bool report = argc > 1 && strcmp(argv[1], "report") == 0;
    struct tkv_bench_options o = {0};

    if (argc > 1 && strcmp(argv[1], "--help") == 0) {
        print_help(stdout);
        return EX_OK;
    }
    if (argc > 1 && strcmp(argv[1], "--version") == 0) {
        (void)printf("%s %s\n", TKV_BENCH_PROGRAM, TRIKV_VERSION);
        return EX_OK;
    }
    if (!c && !report) {
        print_help(stderr);
        return EX_USAGE;
    }
    if (c)
        o = c->defaults;
    switch (tkv_bench_parse(&o, argc - 1, argv + 1)) {
    case TKV_PARSED: break;
    case TKV_PARSED_HELP: print_help(stdout); return EX_OK;
    default: return EX_USAGE;
    }
    return report ? run_report(&o) : run_command(c, &o);
}
