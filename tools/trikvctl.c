/*
 * trikvctl: look at a running trikvd, and drop sessions. One command, one request.
 * Exit status: 0 done, 1 the request failed, 64 wrong usage, 69 no daemon.
 */
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>
#include <time.h>

#include "client/trikv.h"
#include "tools/ctl_commands.h"
#include "tools/ctl_profile.h"

static const char help[] =
    "Usage: trikvctl [OPTION]... COMMAND\n"
    "\n"
    "  ping              is the daemon there, and how fast\n"
    "  info              version, kernels, limits\n"
    "  stats             memory, sessions and work since the start\n"
    "  sessions          your sessions (all of them for root)\n"
    "  prefixes          sessions that ended, stored for others that begin the same\n"
    "  session show ID   one session, layer by layer\n"
    "                    --gate: what a round would drop now, and what the coherence\n"
    "                    gate says to it; nothing is changed\n"
    "  drop ID           end a session, its client gets an error at its next request; or\n"
    "                    forget a stored prefix\n"
    "  snapshot ID NAME  write a session to a file of the daemon's\n"
    "  snapshots         what was written so\n"
    "  snapshots delete NAME\n"
    "                    remove one\n"
    "  restore NAME      read one and store it as a prefix\n"
    "  profiles          the calibrated models the daemon knows\n"
    "  config            the configuration in force, as YAML\n"
    "  profile ...       check, show or compare profile files (see profile --help)\n"
    "  top               watch it live; q leaves. Works while the daemon hangs, if it\n"
    "                    keeps a stats page (trikvd --stats-page)\n"
    "  doctor            what this machine offers a daemon, and what to change\n"
    "\n"
    "      --json              one JSON object, for scripts (not top)\n"
    "      --page FILE         top: the stats page, default $TRIKV_STATS_PAGE, else\n"
    "                          /run/trikvd/stats\n"
    "  -1, --once              top: print one view and leave\n"
    "  -s, --socket PATH       default $TRIKV_SOCKET, else /run/trikv/trikvd.sock\n"
    "  -t, --timeout SECONDS   of every request, default 5\n"
    "  -h, --help\n"
    "  -V, --version\n"
    "\n"
    "Exit status: 0 done, 1 request failed, 64 wrong usage, 69 no daemon.\n";

struct command {
    const char *words[2]; /* second NULL: there is none */
    bool takes_session;
    bool takes_name;
    bool alone; /* works without a daemon, or connects itself */
    int (*run)(const struct ctl_context *x);
};

static const struct command commands[] = {
    {{"ping", NULL}, false, false, false, ctl_ping},
    {{"info", NULL}, false, false, false, ctl_info},
    {{"stats", NULL}, false, false, false, ctl_stats},
    {{"sessions", NULL}, false, false, false, ctl_sessions},
    {{"prefixes", NULL}, false, false, false, ctl_prefixes},
    {{"session", "show"}, true, false, false, ctl_session_show},
    {{"drop", NULL}, true, false, false, ctl_drop},
    {{"snapshot", NULL}, true, true, false, ctl_snapshot},
    {{"snapshots", "delete"}, false, true, false, ctl_snapshot_delete},
    {{"snapshots", NULL}, false, false, false, ctl_snapshots},
    {{"restore", NULL}, false, true, false, ctl_restore},
    {{"profiles", NULL}, false, false, false, ctl_profiles},
    {{"config", NULL}, false, false, false, ctl_config},
    {{"top", NULL}, false, false, true, ctl_top},
    {{"doctor", NULL}, false, false, true, ctl_doctor},
};

struct arguments {
    struct ctl_context context;
    uint32_t timeout_ms;
    const struct command *command;
};

static int wrong_usage(const char *what, const char *value)
{
    if (what)
        fprintf(stderr, "trikvctl: %s%s%s\n", what, value ? ": " : "", value ? value : "");
    fputs("Try 'trikvctl --help'.\n", stderr);
    return EX_USAGE;
}

static bool read_timeout(const char *text, uint32_t *ms)
{
    char *end;
    const double s = strtod(text, &end);

    if (end == text || *end || !(s >= 0.001 && s <= 86400))
        return false;
    *ms = (uint32_t)(s * 1000);
    return true;
}

static bool read_session(const char *text, uint64_t *id)
{
    char *end;

    if (strspn(text, "0123456789abcdefABCDEFxX") != strlen(text) || !*text)
        return false;
    errno = 0;
    *id = strtoull(text, &end, 16);
    return *end == '\0' && errno == 0;
}

static const struct command *find_command(char **words, int n_words, int *n_used)
{
    for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++) {
        const struct command *c = &commands[i];

        *n_used = c->words[1] ? 2 : 1;
        if (n_words >= *n_used && strcmp(words[0], c->words[0]) == 0 &&
            (!c->words[1] || strcmp(words[1], c->words[1]) == 0))
            return c;
    }
    return NULL;
}

static int read_command(char **words, int n_words, struct arguments *a)
{
    int n_used;

    if (n_words == 0)
        return wrong_usage("which command?", NULL);
    a->command = find_command(words, n_words, &n_used);
    if (!a->command)
        return wrong_usage("unknown command", words[0]);
    if (a->command->takes_session) {
        if (n_used == n_words)
            return wrong_usage("which session?", NULL);
        if (!read_session(words[n_used], &a->context.session))
            return wrong_usage("not a session id (hexadecimal)", words[n_used]);
        n_used++;
    }
    if (a->command->takes_name) {
        if (n_used == n_words)
            return wrong_usage("which name?", NULL);
        a->context.name = words[n_used++];
    }
    return n_used < n_words ? wrong_usage("unexpected argument", words[n_used]) : 0;
}

/* 0: go on; -1: done; else the exit status. */
static int read_options(int argc, char **argv, struct arguments *a)
{
    static const struct option options[] = {{"json", no_argument, NULL, 'j'},
                                            {"socket", required_argument, NULL, 's'},
                                            {"timeout", required_argument, NULL, 't'},
                                            {"help", no_argument, NULL, 'h'},
                                            {"version", no_argument, NULL, 'V'},
                                            {"page", required_argument, NULL, 'p'},
                                            {"once", no_argument, NULL, '1'},
                                            {"gate", no_argument, NULL, 'g'},
                                            {NULL, 0, NULL, 0}};

    for (int o; (o = getopt_long(argc, argv, "s:t:hV1", options, NULL)) != -1;) {
        switch (o) {
        case 'j': a->context.json = true; break;
        case 's': a->context.socket = optarg; break;
        case 'p': a->context.page = optarg; break;
        case '1': a->context.once = true; break;
        case 'g': a->context.gate = true; break;
        case 't':
            if (!read_timeout(optarg, &a->timeout_ms))
                return wrong_usage("--timeout wants seconds, 0.001 to 86400", optarg);
            break;
        case 'h': fputs(help, stdout); return -1;
        case 'V': puts("trikvctl " TRIKV_VERSION); return -1;
        default: return wrong_usage(NULL, NULL); /* getopt has named the option */
        }
    }
    return read_command(argv + optind, argc - optind, a);
}

static double seconds_now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static int fail(struct trikv_client *c, int error)
{
    const char *text = trikv_last_error(c);

    fprintf(stderr, "trikvctl: %s%s%s\n", trikv_error_text(error), text[0] ? ": " : "", text);
    return error;
}

static int run(struct arguments *a)
{
    const struct trikv_options o = {.size = sizeof(o),
                                    .socket = a->context.socket,
                                    .timeout_ms = a->timeout_ms,
                                    .name = "trikvctl"};
    const double start_s = seconds_now();
    struct trikv_client *c = NULL;
    int status = EXIT_SUCCESS;
    int e;

    a->context.options = &o;
    if (a->command->alone)
        return a->command->run(&a->context) ? EXIT_FAILURE : EXIT_SUCCESS;
    e = trikv_connect(&c, &o);

    if (e) {
        fail(c, e);
        status = EX_UNAVAILABLE;
    } else {
        a->context.client = c;
        a->context.connect_s = seconds_now() - start_s;
        e = a->command->run(&a->context);
        if (e) {
            fail(c, e);
            status = EXIT_FAILURE;
        }
    }
    trikv_disconnect(&c);
    return status;
}

int main(int argc, char **argv)
{
    struct arguments a = {.timeout_ms = 5000};
    int status;

    if (argc > 1 && strcmp(argv[1], "profile") == 0)
        return ctl_profile(argc - 1, argv + 1);
    status = read_options(argc, argv, &a);
    if (status == 0)
        status = run(&a);
    if (status == -1)
        status = EXIT_SUCCESS;
    if (fflush(stdout) || ferror(stdout)) {
        fprintf(stderr, "trikvctl: cannot write: %s\n", strerror(errno));
        status = EXIT_FAILURE;
    }
    return status;
}
