/* Every option of the daemon: what it is called, what it may be, what it is if nobody says. */
#include <string.h>

#include "daemon/config_priv.h"

#define AT(field) offsetof(struct tkv_config, field)

/* The field of a policy default has this form in every row. */
#define TOKENS(key, field, least, most, initial)                                              \
    {                                                                                         \
        "defaults." key, TKV_OPTION_U32, true, AT(defaults.field), least, most, NULL, initial \
    }

const struct tkv_option tkv_config_options[] = {
    {"listen.socket", TKV_OPTION_TEXT, false, AT(socket), 1, TKV_CONFIG_SOCKET_BYTES, NULL,
     "/run/trikv/trikvd.sock"},
    {"listen.mode", TKV_OPTION_MODE, false, AT(socket_mode), 0, 0777, NULL, "0660"},
    {"listen.max_connections", TKV_OPTION_U32, true, AT(max_connections), 1, 65536, NULL, "64"},
    {"memory.cap", TKV_OPTION_CAP, false, AT(memory_cap_bytes), 1 << 20, UINT64_C(1) << 46, NULL,
     "auto"},
    {"memory.pressure", TKV_OPTION_U32, true, AT(memory_pressure), 0, 100, NULL, "10"},
    {"limits.payload", TKV_OPTION_BYTES, true, AT(max_payload_bytes), 64 << 10, UINT64_C(1) << 34,
     NULL, "256MiB"},
    {"limits.sessions", TKV_OPTION_U32, true, AT(max_sessions), 1, 65536, NULL, "256"},
    {"limits.sessions_per_connection", TKV_OPTION_U32, true, AT(max_sessions_per_connection), 1,
     65536, NULL, "64"},
    {"limits.request_timeout", TKV_OPTION_DURATION, true, AT(request_timeout_ms), 10, 86400000,
     NULL, "30s"},
    {"limits.idle_timeout", TKV_OPTION_DURATION, true, AT(idle_timeout_ms), 0, 86400000, NULL, "0"},
    {"limits.user_memory", TKV_OPTION_CAP, false, AT(user_memory_bytes), 1 << 20, UINT64_C(1) << 46,
     NULL, "auto"},
    {"limits.session_memory", TKV_OPTION_CAP, false, AT(session_memory_bytes), 1 << 20,
     UINT64_C(1) << 46, NULL, "auto"},
    {"limits.evict_idle_after", TKV_OPTION_DURATION, true, AT(evict_idle_ms), 0, 86400000, NULL,
     "10min"},
    {"prefix.entries", TKV_OPTION_U32, true, AT(max_prefixes), 0, 4096, NULL, "64"},
    {"prefix.across_users", TKV_OPTION_BOOL, true, AT(prefix_across_users), 0, 0, NULL, "false"},
    {"snapshot.directory", TKV_OPTION_TEXT, false, AT(snapshot_directory), 0, TKV_CONFIG_PATH_BYTES,
     NULL, ""},
    {"snapshot.max_bytes_per_day", TKV_OPTION_BYTES, true, AT(snapshot_day_bytes), 0,
     UINT64_C(1) << 50, NULL, "0"},
    {"snapshot.every", TKV_OPTION_DURATION, true, AT(snapshot_every_ms), 0, 86400000, NULL, "0"},
    {"snapshot.on_stop", TKV_OPTION_BOOL, true, AT(snapshot_on_stop), 0, 0, NULL, "false"},
    {"snapshot.restore_on_start", TKV_OPTION_BOOL, false, AT(snapshot_restore), 0, 0, NULL,
     "false"},
    {"snapshot.deadline", TKV_OPTION_DURATION, true, AT(snapshot_deadline_ms), 10, 600000, NULL,
     "10s"},
    {"restart.warm", TKV_OPTION_BOOL, false, AT(warm_restart), 0, 0, NULL, "true"},
    {"restart.handover", TKV_OPTION_TEXT, false, AT(handover), 0, TKV_CONFIG_SOCKET_BYTES, NULL,
     ""},
    {"restart.grace", TKV_OPTION_DURATION, true, AT(grace_ms), 0, 86400000, NULL, "60s"},
    {"workers.threads", TKV_OPTION_U32, false, AT(n_threads), 0, 1024, NULL, "0"},
    {"workers.cpu_disable", TKV_OPTION_TEXT, false, AT(cpu_disable), 0, 64, NULL, ""},
    {"workers.ring_spin_us", TKV_OPTION_U32, true, AT(ring_spin_us), 0, 1000, NULL, "50"},
    {"log.level", TKV_OPTION_ENUM, true, AT(log_level), 0, 0, tkv_log_level_names, "info"},
    {"log.format", TKV_OPTION_ENUM, true, AT(log_format), 0, 0, tkv_log_format_names, "logfmt"},
    {"metrics.socket", TKV_OPTION_TEXT, false, AT(metrics_socket), 0, TKV_CONFIG_SOCKET_BYTES, NULL,
     ""},
    {"metrics.mode", TKV_OPTION_MODE, false, AT(metrics_mode), 0, 0777, NULL, "0660"},
    {"metrics.listen", TKV_OPTION_TEXT, false, AT(metrics_listen), 0, 64, NULL, ""},
    {"metrics.page", TKV_OPTION_TEXT, false, AT(metrics_page), 0, TKV_CONFIG_PATH_BYTES, NULL, ""},
    {"profiles.directory", TKV_OPTION_TEXT, true, AT(profiles_directory), 1, TKV_CONFIG_PATH_BYTES,
     NULL, TRIKV_SYSCONFDIR "/trikv/profiles"},
    {"defaults.codec_k", TKV_OPTION_CODEC, true, AT(defaults.codec_k), 0, 0, NULL, "tq4"},
    {"defaults.codec_v", TKV_OPTION_CODEC, true, AT(defaults.codec_v), 0, 0, NULL, "tq4"},
    {"defaults.method", TKV_OPTION_ENUM, true, AT(defaults.method), 0, 0, tkv_method_names, "none"},
    TOKENS("budget", budget_tokens, 1, TKV_MAX_POLICY_TOKENS, "2048"),
    TOKENS("beta", beta_tokens, 1, TKV_MAX_POLICY_TOKENS, "128"),
    TOKENS("recent", recent_tokens, 0, TKV_MAX_POLICY_TOKENS, "128"),
    TOKENS("pinned", pinned_tokens, 0, TKV_MAX_POLICY_TOKENS, "4"),
    TOKENS("rollback", rollback_tokens, 0, TKV_MAX_POLICY_TOKENS, "0"),
    {"defaults.eviction_mode", TKV_OPTION_ENUM, true, AT(defaults.eviction_mode), 0, 0,
     tkv_eviction_mode_names, "per_layer_perhead"},
    {"defaults.normalize_scores", TKV_OPTION_BOOL, true, AT(defaults.normalize_scores), 0, 0, NULL,
     "true"},
    {"defaults.aggregation", TKV_OPTION_ENUM, true, AT(defaults.aggregation), 0, 0,
     tkv_aggregation_names, "mean"},
    TOKENS("offset_max", offset_max, 1, TKV_MAX_OFFSET, "65536"),
};

_Static_assert(sizeof(tkv_config_options) / sizeof(tkv_config_options[0]) <= TKV_CONFIG_MAX_OPTIONS,
               "every option has an origin");

size_t tkv_config_n_options(void)
{
    return sizeof(tkv_config_options) / sizeof(tkv_config_options[0]);
}

const struct tkv_option *tkv_config_find_option(const char *name)
{
    for (size_t i = 0; i < tkv_config_n_options(); i++) {
        if (strcmp(tkv_config_options[i].name, name) == 0)
            return &tkv_config_options[i];
    }
    return NULL;
}
