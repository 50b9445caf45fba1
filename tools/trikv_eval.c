/* trikv-eval: what compression does to quality, measured. Leaves the work to its commands. */
#include <stdio.h>
#include <string.h>
#include <sysexits.h>

#include "tools/eval.h"

static const struct {
    const char *name;
    int (*run)(int argc, char **argv);
} commands[] = {{"frontier", tkv_eval_frontier}, {"kv", tkv_eval_kv}};

static int help(void)
{
    const int wrong = printf("Usage: %s\n%s\n  --help, --version\n", tkv_eval_frontier_help,
                             tkv_eval_kv_help) < 0;

    return wrong ? EX_IOERR : EX_OK;
}

int main(int argc, char **argv)
{
    const char *command = argc > 1 ? argv[1] : "";

    if (strcmp(command, "--help") == 0)
        return help();
    if (strcmp(command, "--version") == 0)
        return puts(TKV_EVAL_PROGRAM " " TRIKV_VERSION) < 0 ? EX_IOERR : EX_OK;
    for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++)
        if (strcmp(command, commands[i].name) == 0)
            return commands[i].run(argc - 1, argv + 1);
    (void)fprintf(stderr, TKV_EVAL_PROGRAM ": expected a command: frontier or kv (--help)\n");
    return EX_USAGE;
}
