/* What metrics say of sessions in files, beside the totals. */
#include "daemon/openmetrics_priv.h"
#include "daemon/server.h"

static void write_by_name(struct tkv_om *w, const char *key, const char *const *names,
                          const uint64_t *counts, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        tkv_om_begin(w);
        tkv_om_label(w, key, names[i]);
        tkv_om_count(w, counts[i]);
    }
}

static void write_autosave(struct tkv_om *w, const struct tkv_autosave *a)
{
    tkv_om_family(w, "trikv_autosaved_snapshots", TKV_OM_COUNTER, NULL,
                  "Sessions written to files without being asked.");
    write_by_name(w, "when", tkv_autosave_whens, a->n_written, TKV_AUTOSAVE_N_WHEN);
    tkv_om_family(w, "trikv_autosaved_bytes", TKV_OM_COUNTER, "bytes", "Bytes of these files.");
    write_by_name(w, "when", tkv_autosave_whens, a->n_bytes, TKV_AUTOSAVE_N_WHEN);
    tkv_om_family(w, "trikv_autosaved_files_at_start", TKV_OM_COUNTER, NULL,
                  "What became of these files when the daemon started.");
    write_by_name(w, "outcome", tkv_autosave_outcomes, a->n_start, TKV_AUTOSAVE_N_OUTCOMES);
}

/* What a crash would cost now. */
static void write_debt(struct tkv_om *w, const struct tkv_server *s)
{
    struct tkv_autosave_debt debt;

    tkv_autosave_debt(s, &debt);
    tkv_om_family(w, "trikv_unsaved_sessions", TKV_OM_GAUGE, NULL,
                  "Sessions that a label or token ids lead to and that changed since their file.");
    tkv_om_begin(w);
    tkv_om_count(w, debt.n_sessions);
    tkv_om_family(w, "trikv_unsaved_oldest_seconds", TKV_OM_GAUGE, "seconds",
                  "Since when the first of them is another one than its file; 0 without any.");
    tkv_om_begin(w);
    tkv_om_number(w, debt.oldest_s);
}

void tkv_om_write_snapshots(struct tkv_om *w, const struct tkv_server *s)
{
    const struct tkv_snapshots *t = &s->snapshots;
    const uint64_t now_ms = uv_now(&s->loop);

    tkv_om_family(w, "trikv_snapshots_failed", TKV_OM_COUNTER, NULL,
                  "Snapshots that could not be written or read, by reason.");
    write_by_name(w, "reason", tkv_snapshot_failures, t->n_failed, TKV_SNAPSHOT_N_FAILURES);
    tkv_om_family(w, "trikv_snapshot_age_seconds", TKV_OM_GAUGE, "seconds",
                  "Since the last file was written; 0 if none was.");
    tkv_om_begin(w);
    tkv_om_number(w, t->any_written ? (double)(now_ms - t->written_ms) / 1000 : 0);
    write_autosave(w, &s->autosave);
    write_debt(w, s);
}
