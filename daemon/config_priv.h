/* The table of options, between the files of the configuration. */
#ifndef TKV_DAEMON_CONFIG_PRIV_H
#define TKV_DAEMON_CONFIG_PRIV_H

#include "daemon/config.h"
#include "daemon/yaml_value.h"

enum tkv_option_type {
    TKV_OPTION_TEXT,
    TKV_OPTION_MODE,
    TKV_OPTION_U32,
    TKV_OPTION_BYTES,
    TKV_OPTION_CAP, /* bytes, or auto = 0 */
    TKV_OPTION_DURATION,
    TKV_OPTION_ENUM,
    TKV_OPTION_CODEC,
    TKV_OPTION_BOOL,
};

struct tkv_option {
    const char *name; /* section.key */
    enum tkv_option_type type;
    bool reloadable;
    size_t offset; /* of the field in struct tkv_config */
    uint64_t min;
    uint64_t max; /* text: bytes with the final NUL */
    const char *const *names;
    const char *initial; /* the default, as it would stand in a file */
};

extern const struct tkv_option tkv_config_options[];
size_t tkv_config_n_options(void);
const struct tkv_option *tkv_config_find_option(const char *name);

/* The value of an option in *c as it would stand in a file, in buf[n]; returns buf. */
const char *tkv_config_format(const struct tkv_config *c, const struct tkv_option *o, char *buf,
                              size_t n);

#endif /* TKV_DAEMON_CONFIG_PRIV_H */
