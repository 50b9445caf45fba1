/* Between the files of the profile reader. */
#ifndef TKV_DAEMON_PROFILE_PRIV_H
#define TKV_DAEMON_PROFILE_PRIV_H

#include "daemon/profile.h"
#include "daemon/yaml_value.h"

struct tkv_profile_reader {
    struct tkv_profile *p;
    const struct tkv_yaml *y;
    bool good; /* no error so far */
};

/* A part that is a mapping with these keys; NULL, after an error, if not (or if it is
 * absent and not needed). */
const struct tkv_yaml_node *tkv_profile_part(struct tkv_profile_reader *r,
                                             const struct tkv_yaml_node *map, const char *what,
                                             const char *key, const char *const *names,
                                             bool needed);

/* A whole number, or one of names; true if it is there and right. An absent one is an error if
 * needed. */
bool tkv_profile_number(struct tkv_profile_reader *r, const struct tkv_yaml_node *map,
                        const char *what, const char *key, bool needed, uint32_t min, uint32_t max,
                        uint32_t *out);
bool tkv_profile_choice(struct tkv_profile_reader *r, const struct tkv_yaml_node *map,
                        const char *what, const char *key, bool needed, const char *const *names,
                        uint32_t *out);

/* policy, after the model. */
void tkv_profile_read_policy(struct tkv_profile_reader *r);

/* Read the statistics mapping into *p, whose geometry and rope are known. */
bool tkv_profile_read_errors(struct tkv_profile *p, const struct tkv_yaml *y,
                             const struct tkv_yaml_node *map);
bool tkv_profile_read_statistics(struct tkv_profile *p, const struct tkv_yaml *y,
                                 const struct tkv_yaml_node *map, const char *directory);

/* The value of a key that must be there; else an error at the mapping, and NULL. */
const struct tkv_yaml_node *tkv_profile_need(const struct tkv_yaml *y,
                                             const struct tkv_yaml_node *map, const char *what,
                                             const char *key);

#endif /* TKV_DAEMON_PROFILE_PRIV_H */
