/* Metrics of the daemon as a whole. */
#include <dirent.h>
#include <stdio.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "daemon/dispatch.h"
#include "daemon/openmetrics_priv.h"
#include "daemon/server.h"
#include "proto/errors.h"

struct row {
    const char *name;
    enum tkv_om_type type;
    const char *unit;
    const char *help;
    uint64_t value;
};

static void write_rows(struct tkv_om *w, const struct row *rows, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        tkv_om_family(w, rows[i].name, rows[i].type, rows[i].unit, rows[i].help);
        tkv_om_begin(w);
        tkv_om_count(w, rows[i].value);
    }
}

static void write_build(struct tkv_om *w, const struct tkv_server *s)
{
    tkv_om_family(w, "trikv_build", TKV_OM_INFO, NULL, "Version, kernels and boot id.");
    tkv_om_begin(w);
    tkv_om_label(w, "version", TRIKV_VERSION);
    tkv_om_label(w, "cpu", s->cpu);
    tkv_om_label_id(w, "boot_id", s->boot_id);
    tkv_om_count(w, 1);
}

static void write_state(struct tkv_om *w, struct tkv_server *s, const struct tkv_survey *v,
                        size_t n_left_out)
{
    struct tkv_budget *const b = &s->budget;
    struct tkv_pool_load load;

    tkv_pool_load(s->pool, &load);
    const struct row rows[] = {
        {"trikv_threads", TKV_OM_GAUGE, NULL, "Worker threads.", s->n_threads},
        {"trikv_memory_cap_bytes", TKV_OM_GAUGE, "bytes", "The memory cap.", b->cap_bytes},
        {"trikv_memory_used_bytes", TKV_OM_GAUGE, "bytes", "What is reserved under the cap.",
         atomic_load(&b->used_bytes)},
        {"trikv_memory_peak_bytes", TKV_OM_GAUGE, "bytes", "The most that ever was reserved.",
         atomic_load(&b->peak_bytes)},
        {"trikv_sessions", TKV_OM_GAUGE, NULL, "Sessions, being opened or closed included.",
         s->sessions.n - s->sessions.n_of[TKV_ENTRY_PREFIX]},
        {"trikv_prefixes", TKV_OM_GAUGE, NULL, "Stored prefixes.", s->prefixes.n},
        {"trikv_sessions_limit", TKV_OM_GAUGE, NULL, "limits.sessions.", s->config.max_sessions},
        {"trikv_sessions_left_out", TKV_OM_GAUGE, NULL,
         "Sessions that did not fit into this reply.", n_left_out},
        {"trikv_connections", TKV_OM_GAUGE, NULL, "Clients connected.", s->n_clients},
        {"trikv_connections_limit", TKV_OM_GAUGE, NULL, "listen.max_connections.",
         s->config.max_connections},
        {"trikv_rings", TKV_OM_GAUGE, NULL, "Rings that are open.", s->rings.n},
        {"trikv_queue_jobs", TKV_OM_GAUGE, NULL, "Jobs that wait for a worker.", load.n_queued},
        {"trikv_running_jobs", TKV_OM_GAUGE, NULL, "Jobs that workers are at.", load.n_running},
        {"trikv_sessions_resident_bytes", TKV_OM_GAUGE, "bytes",
         "What all sessions hold, every byte counted.", v->resident_bytes},
        {"trikv_sessions_fp16_bytes", TKV_OM_GAUGE, "bytes",
         "What their tokens would take as halves, none dropped.", v->fp16_bytes},
    };

    write_rows(w, rows, sizeof(rows) / sizeof(rows[0]));
    tkv_om_family(w, "trikv_compression_ratio", TKV_OM_GAUGE, "ratio",
                  "fp16 bytes over resident bytes of all sessions; 0 without sessions.");
    tkv_om_begin(w);
    tkv_om_number(w, tkv_compression_ratio(v->fp16_bytes, v->resident_bytes));
    tkv_om_family(w, "trikv_tier_bytes", TKV_OM_GAUGE, "bytes", "Resident bytes by tier.");
    for (size_t i = 0; i < TKV_N_TIERS; i++) {
        tkv_om_begin(w);
        tkv_om_label(w, "tier", tkv_tier_names[i]);
        tkv_om_count(w, v->tiers.bytes[i]);
    }
    if (!s->pulse.pressure_file[0])
        return;
    tkv_om_family(
        w, "trikv_memory_pressure_ratio", TKV_OM_GAUGE, "ratio",
        "Share of the last 10 s in which somebody waited for memory, as the kernel says.");
    tkv_om_begin(w);
    tkv_om_number(w, s->pulse.pressure_percent / 100);
}

static void write_users(struct tkv_om *w, const struct tkv_server *s)
{
    tkv_om_family(w, "trikv_user_memory_bytes", TKV_OM_GAUGE, "bytes",
                  "What is reserved by users who are connected or have something here.");
    for (const struct tkv_quota *q = s->users; q; q = q->next) {
        char uid[16];

        snprintf(uid, sizeof(uid), "%u", (unsigned)q->uid);
        tkv_om_begin(w);
        tkv_om_label(w, "uid", uid);
        tkv_om_count(w, atomic_load(&q->budget.used_bytes));
    }
}

static void write_totals(struct tkv_om *w, const struct tkv_server *s)
{
    const struct tkv_counters *n = &s->counters;
    const struct tkv_metrics *m = &s->metrics;
    const struct row rows[] = {
        {"trikv_connections_accepted", TKV_OM_COUNTER, NULL, "Connections since the start.",
         s->n_clients_ever},
        {"trikv_bad_frames", TKV_OM_COUNTER, NULL, "Frames that could not be trusted.",
         n->n_bad_frames},
        {"trikv_appended_tokens", TKV_OM_COUNTER, NULL, "Tokens appended, per layer.",
         n->n_tokens_appended},
        {"trikv_attended_rows", TKV_OM_COUNTER, NULL, "Query rows attended, per layer.",
         n->n_rows_attended},
        {"trikv_rounds", TKV_OM_COUNTER, NULL, "Rounds held.", n->n_rounds},
        {"trikv_evicted_tokens", TKV_OM_COUNTER, NULL, "Tokens dropped, per layer and KV head.",
         m->n_evicted},
        {"trikv_prefix_asked_tokens", TKV_OM_COUNTER, NULL, "Tokens looked for by OPEN.",
         s->prefixes.n_asked_tokens},
        {"trikv_prefix_found_tokens", TKV_OM_COUNTER, NULL, "Of these, those that were stored.",
         s->prefixes.n_found_tokens},
        {"trikv_prefixes_kept", TKV_OM_COUNTER, NULL, "Prefixes stored.", s->prefixes.n_kept},
        {"trikv_prefixes_evicted", TKV_OM_COUNTER, NULL,
         "Stored prefixes that had to go, for memory or for newer ones.", s->prefixes.n_evicted},
        {"trikv_sessions_evicted", TKV_OM_COUNTER, NULL, "Idle sessions that had to go for memory.",
         s->sessions.n_evicted},
        {"trikv_ring_entries", TKV_OM_COUNTER, NULL, "Entries of rings, done or failed.",
         s->rings.n_entries},
        {"trikv_ring_spins", TKV_OM_COUNTER, NULL, "Waits for an entry that came while spinning.",
         s->rings.n_spins},
        {"trikv_ring_sleeps", TKV_OM_COUNTER, NULL, "Times that the thread of a ring slept.",
         s->rings.n_sleeps},
        {"trikv_snapshots_written", TKV_OM_COUNTER, NULL, "Sessions written to files.",
         s->snapshots.n_written},
        {"trikv_snapshot_written_bytes", TKV_OM_COUNTER, "bytes", "Bytes of these files.",
         s->snapshots.n_written_bytes},
        {"trikv_snapshots_restored", TKV_OM_COUNTER, NULL, "Sessions read back from files.",
         s->snapshots.n_restored},
        {"trikv_adopted_sessions", TKV_OM_COUNTER, NULL,
         "Sessions taken over from the daemon before this one.", s->keep.n_sessions},
        {"trikv_adopted_prefixes", TKV_OM_COUNTER, NULL,
         "Stored prefixes taken over from the daemon before this one.", s->keep.n_prefixes},
        {"trikv_reloads", TKV_OM_COUNTER, NULL, "Reloads that took effect.", m->n_reloads},
        {"trikv_reloads_failed", TKV_OM_COUNTER, NULL, "Reloads that changed nothing.",
         m->n_reloads_failed},
        {"trikv_watchdog_stalls", TKV_OM_COUNTER, NULL,
         "Seconds in which work waited and no worker got on.", s->pulse.n_stalls},
        {"trikv_scrapes", TKV_OM_COUNTER, NULL, "Replies like this one.", m->n_scrapes},
        {"trikv_scrapes_refused", TKV_OM_COUNTER, NULL, "Connections for metrics refused.",
         m->n_scrapes_refused},
    };

    write_rows(w, rows, sizeof(rows) / sizeof(rows[0]));
}

static void write_requests(struct tkv_om *w, const struct tkv_metrics *m)
{
    uint16_t type = 0;
    const char *name;

    tkv_om_family(w, "trikv_requests", TKV_OM_COUNTER, NULL, "Requests by kind.");
    for (size_t i = 0; (name = tkv_dispatch_kind(i, &type)) != NULL; i++) {
        tkv_om_begin(w);
        tkv_om_label(w, "kind", name);
        tkv_om_count(w, m->n_requests[type]);
    }
    tkv_om_begin(w);
    tkv_om_label(w, "kind", "unknown");
    tkv_om_count(w, m->n_requests[0]);
}

static void write_cold(struct tkv_om *w, const struct tkv_keep *keep)
{
    tkv_om_family(w, "trikv_cold_starts", TKV_OM_COUNTER, NULL,
                  "Arenas and sessions of the daemon before this one that were not taken over.");
    for (size_t i = 0; i < TKV_N_COLD; i++) {
        tkv_om_begin(w);
        tkv_om_label(w, "reason", tkv_cold_names[i]);
        tkv_om_count(w, keep->n_cold[i]);
    }
}

static void write_lookups(struct tkv_om *w, const struct tkv_prefixes *p)
{
    tkv_om_family(w, "trikv_prefix_lookups", TKV_OM_COUNTER, NULL,
                  "OPEN with token ids, by what was found and why not more.");
    for (size_t o = TKV_PREFIX_HIT; o < TKV_PREFIX_N_OUTCOMES; o++) {
        for (size_t r = 0; r < TKV_PREFIX_N_REASONS; r++) {
            /* Which can be: a hit has no reason, the others have one, partial hits the last two. */
            if ((o == TKV_PREFIX_HIT) != (r == TKV_PREFIX_OK) ||
                (o == TKV_PREFIX_PARTIAL && r < TKV_PREFIX_IDS))
                continue;
            tkv_om_begin(w);
            tkv_om_label(w, "outcome", tkv_prefix_outcomes[o]);
            tkv_om_label(w, "reason", tkv_prefix_reasons[r]);
            tkv_om_count(w, p->n_lookups[o][r]);
        }
    }
}

static void write_errors(struct tkv_om *w, const struct tkv_metrics *m)
{
    static const int numbers[] = {
#define X(number, name, text) number,
        TRIKV_ERRORS(X)
#undef X
    };

    tkv_om_family(w, "trikv_errors", TKV_OM_COUNTER, NULL, "Requests that failed, by reason.");
    for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]) && numbers[i] < 80; i++) {
        tkv_om_begin(w);
        tkv_om_label(w, "kind", tkv_error_name(numbers[i]));
        tkv_om_count(w, m->n_errors[numbers[i]]);
    }
}

static void write_bucket(struct tkv_om *w, const char *bound, uint64_t n)
{
    w->suffix = "_bucket";
    tkv_om_begin(w);
    tkv_om_label(w, "le", bound);
    tkv_om_count(w, n);
}

static void write_histogram(struct tkv_om *w, const char *name, const char *help,
                            const struct tkv_histogram *h)
{
    uint64_t n = 0;
    char bound[32];

    tkv_om_family(w, name, TKV_OM_HISTOGRAM, "seconds", help);
    for (size_t i = 0; i < TKV_HISTOGRAM_BUCKETS; i++) {
        n += h->n[i];
        /* OpenMetrics wants a float where a Go programmer would print one: 1.0, 1e-05. */
        snprintf(bound, sizeof(bound), tkv_histogram_bounds[i] < 1 ? "%g" : "%.1f",
                 tkv_histogram_bounds[i]);
        write_bucket(w, bound, n);
    }
    write_bucket(w, "+Inf", tkv_histogram_count(h));
    w->suffix = "_sum";
    tkv_om_begin(w);
    tkv_om_number(w, h->sum_s);
    w->suffix = "_count";
    tkv_om_begin(w);
    tkv_om_count(w, tkv_histogram_count(h));
}

static uint64_t resident_bytes(void)
{
    FILE *f = fopen("/proc/self/statm", "re");
    unsigned long long pages = 0;

    if (f && fscanf(f, "%*u %llu", &pages) != 1)
        pages = 0;
    if (f)
        fclose(f);
    return pages * (uint64_t)sysconf(_SC_PAGESIZE);
}

static uint64_t open_descriptors(void)
{
    DIR *dir = opendir("/proc/self/fd");
    uint64_t n = 0;

    while (dir && readdir(dir))
        n++;
    if (dir)
        closedir(dir);
    return n > 3 ? n - 3 : 0; /* without . and .. and the one of the listing */
}

/* The names that every Prometheus client library gives these. */
static void write_process(struct tkv_om *w, const struct tkv_server *s)
{
    const double uptime_s = (double)(uv_now(&s->loop) - s->started_ms) / 1000;
    struct rusage u = {.ru_utime = {0}};
    const struct row rows[] = {
        {"process_resident_memory_bytes", TKV_OM_GAUGE, "bytes",
         "Resident memory, shared memory included.", resident_bytes()},
        {"process_open_fds", TKV_OM_GAUGE, NULL, "Open descriptors.", open_descriptors()},
    };

    getrusage(RUSAGE_SELF, &u);
    write_rows(w, rows, sizeof(rows) / sizeof(rows[0]));
    tkv_om_family(w, "process_cpu_seconds", TKV_OM_COUNTER, "seconds", "CPU time of all threads.");
    tkv_om_begin(w);
    tkv_om_number(w, (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
                         (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) * 1e-6);
    tkv_om_family(w, "process_start_time_seconds", TKV_OM_GAUGE, "seconds",
                  "When the daemon started, in Unix time.");
    tkv_om_begin(w);
    tkv_om_count(w, (uint64_t)((double)time(NULL) - uptime_s));
}

void tkv_om_write_daemon(struct tkv_om *w, struct tkv_server *s, const struct tkv_survey *v,
                         size_t n_left_out)
{
    const struct tkv_metrics *m = &s->metrics;

    write_build(w, s);
    write_state(w, s, v, n_left_out);
    write_users(w, s);
    write_totals(w, s);
    write_requests(w, m);
    write_errors(w, m);
    write_cold(w, &s->keep);
    write_lookups(w, &s->prefixes);
    tkv_om_write_snapshots(w, s);
    write_histogram(w, "trikv_attend_seconds", "Work of a request that attends, appending or not.",
                    &m->attend_s);
    write_histogram(w, "trikv_append_seconds", "Work of a request that only appends.",
                    &m->append_s);
    write_histogram(w, "trikv_round_seconds", "Work of a ROUND request.", &m->round_s);
    write_histogram(w, "trikv_queue_seconds", "Wait of a request for a worker.", &m->queue_s);
    write_process(w, s);
}
