/* Families and samples, between the files that write them. */
#ifndef TKV_DAEMON_OPENMETRICS_PRIV_H
#define TKV_DAEMON_OPENMETRICS_PRIV_H

#include "daemon/openmetrics.h"
#include "daemon/survey.h"

enum tkv_om_type { TKV_OM_GAUGE = 0, TKV_OM_COUNTER, TKV_OM_HISTOGRAM, TKV_OM_INFO };

struct tkv_om {
    struct tkv_text *text;
    bool openmetrics;
    const char *name; /* of the family being written */
    const char *suffix;
    unsigned n_labels;
};

/* unit: the end of the name that is one ("bytes"), or NULL. All samples of a family follow it. */
void tkv_om_family(struct tkv_om *w, const char *name, enum tkv_om_type type, const char *unit,
                   const char *help);

/* A sample: begin, its labels, its value. */
void tkv_om_begin(struct tkv_om *w);
void tkv_om_label(struct tkv_om *w, const char *key, const char *value);
void tkv_om_label_id(struct tkv_om *w, const char *key, uint64_t id);
void tkv_om_label_index(struct tkv_om *w, const char *key, uint64_t index);
void tkv_om_count(struct tkv_om *w, uint64_t value);
void tkv_om_number(struct tkv_om *w, double value);

/* openmetrics_daemon.c, openmetrics_snapshots.c, openmetrics_sessions.c */
void tkv_om_write_daemon(struct tkv_om *w, struct tkv_server *s, const struct tkv_survey *v,
                         size_t n_left_out);
void tkv_om_write_snapshots(struct tkv_om *w, const struct tkv_server *s); /* the rest of them */
void tkv_om_write_sessions(struct tkv_om *w, const struct tkv_survey *v, size_t n_shown);
void tkv_om_write_layers(struct tkv_om *w, const struct tkv_survey *v, size_t n_shown);

#endif /* TKV_DAEMON_OPENMETRICS_PRIV_H */
