/* Command-line options; those that set a configuration option override the file. */
#include "daemon/options.h"

#include <getopt.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "daemon/config.h"

#define DEFAULT_CONFIG TRIKV_SYSCONFDIR "/trikv/trikvd.yaml"

static const char help[] =
    "Usage: trikvd [OPTION]...\n"
    "Keep the KV caches of language models compressed in memory and serve attention on them.\n"
    "\n"
    "      --config FILE      read FILE (default " DEFAULT_CONFIG ", if it is there)\n"
    "      --socket PATH      listen on PATH                      (listen.socket)\n"
    "      --memory-cap SIZE  bytes of memory to use, as 512MiB   (memory.cap)\n"
    "      --threads N        worker threads                      (workers.threads)\n"
    "      --log-level LEVEL  error, warn, info or debug          (log.level)\n"
    "      --metrics PATH     serve metrics and status on PATH    (metrics.socket)\n"
    "      --stats-page FILE  keep FILE up to date for top        (metrics.page)\n"
    "      --profiles DIR     read profiles from DIR              (profiles.directory)\n"
    "      --handover PATH    take over from the daemon there, later hand over there\n"
    "                                                         (restart.handover)\n"
    "      --check-config     check configuration and profiles; exit with 0 or 78\n"
    "      --dump-config      print the effective configuration and where it comes from\n"
    "      --help             print this\n"
    "      --version          print version and instruction sets in use\n"
    "\n"
    "Signals: TERM and INT finish what is in flight and exit, HUP reads configuration and\n"
    "profiles again.\n";

/* Values of struct option.val: plain options and, from OVERRIDE on, an index of `overrides`. */
enum { CONFIG = 1, CHECK, DUMP, HELP, VERSION, OVERRIDE };

static const char *const overrides[] = {"listen.socket", "memory.cap",         "workers.threads",
                                        "log.level",     "profiles.directory", "metrics.socket",
                                        "metrics.page",  "restart.handover"};

static const struct option long_options[] = {
    {"config", required_argument, NULL, CONFIG},
    {"check-config", no_argument, NULL, CHECK},
    {"dump-config", no_argument, NULL, DUMP},
    {"help", no_argument, NULL, HELP},
    {"version", no_argument, NULL, VERSION},
    {"socket", required_argument, NULL, OVERRIDE},
    {"memory-cap", required_argument, NULL, OVERRIDE + 1},
    {"threads", required_argument, NULL, OVERRIDE + 2},
    {"log-level", required_argument, NULL, OVERRIDE + 3},
    {"profiles", required_argument, NULL, OVERRIDE + 4},
    {"metrics", required_argument, NULL, OVERRIDE + 5},
    {"stats-page", required_argument, NULL, OVERRIDE + 6},
    {"handover", required_argument, NULL, OVERRIDE + 7},
    {NULL, 0, NULL, 0},
};

const char *tkv_options_help(void)
{
    return help;
}

static bool take(struct tkv_options *o, int option)
{
    switch (option) {
    case CONFIG: o->config_file = optarg; return true;
    case CHECK: o->action = TKV_CHECK_CONFIG; return true;
    case DUMP: o->action = TKV_DUMP_CONFIG; return true;
    case HELP: o->action = TKV_HELP; return true;
    case VERSION: o->action = TKV_SHOW_VERSION; return true;
    default: break;
    }
    if (o->n_overrides == TKV_MAX_OVERRIDES)
        return false;
    o->override[o->n_overrides].option = overrides[option - OVERRIDE];
    o->override[o->n_overrides++].value = optarg;
    return true;
}

bool tkv_options_parse(struct tkv_options *o, int argc, char **argv, char *message,
                       size_t message_bytes)
{
    int option;

    *o = (struct tkv_options){0};
    optind = 1;
    opterr = 0;
    while ((option = getopt_long(argc, argv, ":", long_options, NULL)) != -1) {
        if (option == ':' || option == '?') {
            snprintf(message, message_bytes, "%s: %s", argv[optind - 1],
                     option == ':' ? "wants a value" : "is not an option, or its value is wrong");
            return false;
        }
        if (!take(o, option)) {
            snprintf(message, message_bytes, "more than %d settings", TKV_MAX_OVERRIDES);
            return false;
        }
        if (o->action == TKV_HELP || o->action == TKV_SHOW_VERSION)
            return true;
    }
    if (optind < argc) {
        snprintf(message, message_bytes, "%s: no argument is expected", argv[optind]);
        return false;
    }
    return true;
}

bool tkv_options_config(const struct tkv_options *o, struct tkv_config *c, struct tkv_diag *diag)
{
    bool good = true;

    tkv_config_init(c);
    if (o->config_file)
        good = tkv_config_load(c, o->config_file, diag);
    else if (access(DEFAULT_CONFIG, F_OK) == 0)
        good = tkv_config_load(c, DEFAULT_CONFIG, diag);
    for (size_t i = 0; i < o->n_overrides; i++)
        good &= tkv_config_set(c, o->override[i].option, o->override[i].value, diag);
    return good && tkv_config_check(c, diag);
}
