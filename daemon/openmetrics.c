/* The two text formats, and how much of all there is to say fits. */
#include "daemon/openmetrics.h"

#include <inttypes.h>

#include "daemon/openmetrics_priv.h"
#include "daemon/server.h"

void tkv_om_family(struct tkv_om *w, const char *name, enum tkv_om_type type, const char *unit,
                   const char *help)
{
    static const char *const types[] = {"gauge", "counter", "histogram", "info"};
    static const char *const suffixes[] = {"", "_total", "", "_info"};
    /* The old format names what samples are called, the new one what they belong to. */
    const char *const suffix = w->openmetrics ? "" : suffixes[type];

    w->name = name;
    w->suffix = suffixes[type];
    tkv_text_add(w->text, "# TYPE %s%s %s\n", name, suffix,
                 type == TKV_OM_INFO && !w->openmetrics ? "gauge" : types[type]);
    if (unit && w->openmetrics)
        tkv_text_add(w->text, "# UNIT %s %s\n", name, unit);
    tkv_text_add(w->text, "# HELP %s%s %s\n", name, suffix, help);
}

void tkv_om_begin(struct tkv_om *w)
{
    w->n_labels = 0;
    tkv_text_add(w->text, "%s%s", w->name, w->suffix);
}

static void begin_label(struct tkv_om *w, const char *key)
{
    tkv_text_add(w->text, "%s%s=\"", w->n_labels ? "," : "{", key);
    w->n_labels++;
}

void tkv_om_label(struct tkv_om *w, const char *key, const char *value)
{
    begin_label(w, key);
    tkv_text_add_label(w->text, value);
    tkv_text_add(w->text, "\"");
}

void tkv_om_label_id(struct tkv_om *w, const char *key, uint64_t id)
{
    begin_label(w, key);
    tkv_text_add(w->text, "%016" PRIx64 "\"", id);
}

void tkv_om_label_index(struct tkv_om *w, const char *key, uint64_t index)
{
    begin_label(w, key);
    tkv_text_add(w->text, "%" PRIu64 "\"", index);
}

void tkv_om_count(struct tkv_om *w, uint64_t value)
{
    tkv_text_add(w->text, "%s %" PRIu64 "\n", w->n_labels ? "}" : "", value);
}

void tkv_om_number(struct tkv_om *w, double value)
{
    tkv_text_add(w->text, "%s %.12g\n", w->n_labels ? "}" : "", value);
}

/* Only the session that was asked for, if one was. */
static void narrow(struct tkv_survey *v, uint64_t session)
{
    size_t n = 0;

    for (size_t i = 0; i < v->n; i++) {
        if (!session || v->entry[i]->id == session)
            v->entry[n++] = v->entry[i];
    }
    v->n = n;
}

void tkv_openmetrics_write(struct tkv_server *s, const struct tkv_http_request *r,
                           struct tkv_text *t)
{
    struct tkv_om w = {.text = t, .openmetrics = r->openmetrics};
    struct tkv_survey v;
    size_t n_shown;

    tkv_survey_take(&v, s);
    narrow(&v, r->session);
    n_shown = v.n;
    for (;;) {
        tkv_text_init(t, t->data, t->cap_bytes);
        tkv_om_write_daemon(&w, s, &v, v.n - n_shown);
        if (n_shown)
            tkv_om_write_sessions(&w, &v, n_shown);
        if (n_shown && r->layers)
            tkv_om_write_layers(&w, &v, n_shown);
        if (r->openmetrics)
            tkv_text_add(t, "# EOF\n");
        if (!t->overflow || !n_shown)
            break;
        n_shown /= 2;
    }
    tkv_survey_deinit(&v);
}
