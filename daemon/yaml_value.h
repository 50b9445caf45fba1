/*
 * The values of scalars. Each getter returns false, with an error at the node that says what
 * was expected, if the text is not one; *out is then unchanged. `what` names the option.
 */
#ifndef TKV_DAEMON_YAML_VALUE_H
#define TKV_DAEMON_YAML_VALUE_H

#include "daemon/yaml.h"

bool tkv_yaml_bool(const struct tkv_yaml *y, const struct tkv_yaml_node *n, const char *what,
                   bool *out); /* true, false */
bool tkv_yaml_u32(const struct tkv_yaml *y, const struct tkv_yaml_node *n, const char *what,
                  uint32_t min, uint32_t max, uint32_t *out);

/* Finite. */
bool tkv_yaml_double(const struct tkv_yaml *y, const struct tkv_yaml_node *n, const char *what,
                     double min, double max, double *out);

/* 4096, 64KiB, 512MiB, 2GiB. */
bool tkv_yaml_bytes(const struct tkv_yaml *y, const struct tkv_yaml_node *n, const char *what,
                    uint64_t min, uint64_t max, uint64_t *out);

/* 500ms, 30s, 5min, 0. */
bool tkv_yaml_duration(const struct tkv_yaml *y, const struct tkv_yaml_node *n, const char *what,
                       uint64_t max_ms, uint64_t *out_ms);

/* The index of one of names (NULL-ended). */
bool tkv_yaml_enum(const struct tkv_yaml *y, const struct tkv_yaml_node *n, const char *what,
                   const char *const *names, uint32_t *out);

/* Text of fewer than out_bytes bytes, without control characters. */
bool tkv_yaml_text(const struct tkv_yaml *y, const struct tkv_yaml_node *n, const char *what,
                   char *out, size_t out_bytes);

/* An octal file mode such as "0660", at most 0777. */
bool tkv_yaml_mode(const struct tkv_yaml *y, const struct tkv_yaml_node *n, const char *what,
                   uint32_t *out);

#endif /* TKV_DAEMON_YAML_VALUE_H */
