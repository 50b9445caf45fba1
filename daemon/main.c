/* trikvd: options, configuration, then the server. The only place that decides how to exit. */
#include <stdio.h>
#include <stdlib.h>
#include <sysexits.h>
#include <unistd.h>

#include "core/cpu.h"
#include "daemon/diag.h"
#include "daemon/options.h"
#include "daemon/server.h"

/*
 * What is freed goes back to the kernel at once, and threads keep none of it: else jemalloc has
 * some MiB more than is reserved, and the memory cap is not one (tests/check_overload.c). It reads
 * this by name; another allocator does not.
 */
extern const char *malloc_conf;
__attribute__((visibility("default"))) const char *malloc_conf =
    "narenas:1,dirty_decay_ms:0,muzzy_decay_ms:0,tcache:false";

static void print_diag(const struct tkv_diag *diag)
{
    for (size_t i = 0; i < diag->n; i++)
        fprintf(stderr, "trikvd: %s\n", diag->line[i]);
}

static void print_version(void)
{
    char cpu[64];

    printf("trikvd %s (protocol %d, kernels %s)\n", TRIKV_VERSION, TRIKV_PROTOCOL_MAX,
           tkv_cpu_names(tkv_cpu_flags(NULL), cpu, sizeof(cpu)));
}

/* The configuration was read without an error; are the profiles sound too? */
static int check_profiles(const struct tkv_config *config)
{
    struct tkv_profiles profiles = {0};
    struct tkv_diag diag = {0};
    const bool good = tkv_profiles_load(&profiles, config->profiles_directory, &diag);

    print_diag(&diag);
    if (good)
        printf("configuration is sound, %zu profiles\n", profiles.n);
    tkv_diag_deinit(&diag);
    tkv_profiles_deinit(&profiles);
    return good ? EX_OK : EX_CONFIG;
}

static int serve(const struct tkv_config *config, const struct tkv_options *options)
{
    struct tkv_server *server = malloc(sizeof(*server));
    int code;

    if (!server)
        return EX_OSERR;
    code = tkv_server_init(server, config, options);
    if (code == EX_OK)
        code = tkv_server_run(server);
    /* Jobs may still use what deinit would free. */
    if (server->abandoned)
        _exit(code);
    tkv_server_deinit(server);
    free(server);
    return code;
}

static int act(const struct tkv_options *options, const struct tkv_config *config)
{
    switch (options->action) {
    case TKV_CHECK_CONFIG: return check_profiles(config);
    case TKV_DUMP_CONFIG: tkv_config_print(config, stdout); return EX_OK;
    default: return serve(config, options);
    }
}

int main(int argc, char **argv)
{
    struct tkv_options options;
    struct tkv_config config;
    struct tkv_diag diag = {0};
    char message[256];
    bool good;

    if (!tkv_options_parse(&options, argc, argv, message, sizeof(message))) {
        fprintf(stderr, "trikvd: %s\nTry 'trikvd --help'.\n", message);
        return EX_USAGE;
    }
    if (options.action == TKV_HELP || options.action == TKV_SHOW_VERSION) {
        if (options.action == TKV_HELP)
            fputs(tkv_options_help(), stdout);
        else
            print_version();
        return EX_OK;
    }
    good = tkv_options_config(&options, &config, &diag);
    print_diag(&diag);
    tkv_diag_deinit(&diag);
    return good ? act(&options, &config) : EX_CONFIG;
}
