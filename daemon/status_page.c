/* The status page: tiles, tier bars, sessions, latencies. */
#include "daemon/status_page.h"

#include <inttypes.h>
#include <stdio.h>
#include <unistd.h>

#include "daemon/profile.h"
#include "daemon/server.h"
#include "daemon/status_style.h"
#include "daemon/survey.h"

enum { MAX_ROWS = 200, SPARK_HEIGHT = 34, RATE_SECONDS = 5 };

static void add_bytes(struct tkv_text *t, uint64_t bytes)
{
    static const char *const unit[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    double x = (double)bytes;
    size_t i = 0;

    for (; x >= 1023.95 && i < 4; i++)
        x /= 1024;
    tkv_text_add(t, i ? "%.1f&nbsp;%s" : "%.0f&nbsp;%s", x, unit[i]);
}

/* Large numbers with one digit after the point and a letter. */
static void add_number(struct tkv_text *t, double x)
{
    static const char *const unit[] = {"", "k", "M", "G", "T"};
    size_t i = 0;

    for (; x >= 9999.5 && i < 4; i++)
        x /= 1000;
    tkv_text_add(t, i ? "%.1f%s" : "%.0f%s", x, unit[i]);
}

static void add_seconds(struct tkv_text *t, double s)
{
    const uint64_t n = (uint64_t)s;

    if (s < 1e-3)
        tkv_text_add(t, "%.0f&nbsp;µs", s * 1e6);
    else if (s < 1)
        tkv_text_add(t, "%.1f&nbsp;ms", s * 1e3);
    else if (s < 120)
        tkv_text_add(t, "%.0f&nbsp;s", s);
    else if (s < 7200)
        tkv_text_add(t, "%" PRIu64 "&nbsp;min", n / 60);
    else if (s < 172800)
        tkv_text_add(t, "%" PRIu64 "&nbsp;h %" PRIu64 "&nbsp;min", n / 3600, n / 60 % 60);
    else
        tkv_text_add(t, "%" PRIu64 "&nbsp;d %" PRIu64 "&nbsp;h", n / 86400, n / 3600 % 24);
}

static double tokens_of(const struct tkv_history_item *item)
{
    return (double)item->n_tokens;
}

static double rows_of(const struct tkv_history_item *item)
{
    return (double)item->n_rows;
}

typedef double (*total_fn)(const struct tkv_history_item *item);

/* Per second, between `ago` and `span` items before it; 0 where the history does not reach. */
static double rate(const struct tkv_metrics *m, total_fn total, size_t ago, size_t span)
{
    const struct tkv_history_item *to = tkv_metrics_history(m, ago);
    const struct tkv_history_item *from = tkv_metrics_history(m, ago + span);

    if (!to || !from || to->at_ms <= from->at_ms)
        return 0;
    return (total(to) - total(from)) * 1000 / (double)(to->at_ms - from->at_ms);
}

static void add_curve(struct tkv_text *t, const struct tkv_metrics *m, total_fn total, double most,
                      bool filled)
{
    const size_t n = TKV_HISTORY_SECONDS - 1;

    tkv_text_add(t, filled ? "<path class=a d=\"M0 %d" : "<path d=\"M0 %d", SPARK_HEIGHT);
    for (size_t i = 0; i < n; i++)
        tkv_text_add(t, "L%zu %.1f", i, SPARK_HEIGHT * (1 - rate(m, total, n - 1 - i, 1) / most));
    tkv_text_add(t, filled ? "L%zu %dZ\"/>" : "\"/>", n - 1, SPARK_HEIGHT);
}

/* The rate of each of the last two minutes' seconds, as high as the highest. */
static void add_sparkline(struct tkv_text *t, const struct tkv_metrics *m, total_fn total)
{
    double most = 1;

    for (size_t i = 0; i + 1 < TKV_HISTORY_SECONDS; i++) {
        const double r = rate(m, total, i, 1);

        most = r > most ? r : most;
    }
    tkv_text_add(t, "<svg viewBox=\"0 0 %d %d\" preserveAspectRatio=\"none\" aria-hidden=true>",
                 TKV_HISTORY_SECONDS - 2, SPARK_HEIGHT);
    add_curve(t, m, total, most, true);
    add_curve(t, m, total, most, false);
    tkv_text_add(t, "</svg>");
}

/* Segments of a bar, as shares of `whole`. */
static void add_tier_bar(struct tkv_text *t, const struct tkv_tiers *tiers, uint64_t whole)
{
    tkv_text_add(t, "<div class=bar>");
    for (size_t i = 0; whole && i < TKV_N_TIERS; i++) {
        if (tiers->bytes[i])
            tkv_text_add(t, "<i class=k%zu style=\"width:%.2f%%\" title=\"%s\"></i>", i,
                         100 * (double)tiers->bytes[i] / (double)whole, tkv_tier_names[i]);
    }
    tkv_text_add(t, "</div>");
}

static void add_head(struct tkv_text *t, const struct tkv_server *s)
{
    char host[65] = "";

    gethostname(host, sizeof(host) - 1);
    tkv_text_add(t, "<!doctype html><html lang=en><head><meta charset=utf-8>"
                    "<meta name=viewport content=\"width=device-width,initial-scale=1\">"
                    "<meta http-equiv=refresh content=2><title>TriKV on ");
    tkv_text_add_html(t, host);
    tkv_text_add(t, "</title><style>%s</style></head><body><main><header>", status_style);
    tkv_text_add(t, "<h1>Tri<b>KV</b></h1><span class=dim>%s on ", TRIKV_VERSION);
    tkv_text_add_html(t, host);
    tkv_text_add(t, "</span><span class=grow></span><span class=dim>up ");
    add_seconds(t, (double)(uv_now(&s->loop) - s->started_ms) / 1000);
    tkv_text_add(t, " &middot; %u threads &middot; ", s->n_threads);
    tkv_text_add_html(t, s->cpu);
    tkv_text_add(t, "</span><span class=\"pill%s\">%s</span></header>",
                 s->draining || s->pulse.stalled ? " bad" : "",
                 s->draining        ? "draining"
                 : s->pulse.stalled ? "stalled"
                                    : "serving");
}

static void add_memory_tile(struct tkv_text *t, const struct tkv_server *s)
{
    const uint64_t used = atomic_load(&s->budget.used_bytes);

    tkv_text_add(t, "<div class=card><h2>Memory</h2><p class=big>");
    add_bytes(t, used);
    tkv_text_add(t, "</p><p class=dim>of ");
    add_bytes(t, s->budget.cap_bytes);
    tkv_text_add(t, ", peak ");
    add_bytes(t, atomic_load(&s->budget.peak_bytes));
    tkv_text_add(t, "</p><div class=bar><i class=k2 style=\"width:%.2f%%\"></i></div></div>",
                 100 * (double)used / (double)s->budget.cap_bytes);
}

static void add_ratio_tile(struct tkv_text *t, const struct tkv_survey *v)
{
    tkv_text_add(t, "<div class=card><h2>Compression</h2><p class=big>");
    if (v->resident_bytes)
        tkv_text_add(t, "%.1f<small>&nbsp;&times;</small>",
                     tkv_compression_ratio(v->fp16_bytes, v->resident_bytes));
    else
        tkv_text_add(t, "&ndash;");
    tkv_text_add(t, "</p><p class=dim>");
    add_bytes(t, v->fp16_bytes);
    tkv_text_add(t, " of fp16 in ");
    add_bytes(t, v->resident_bytes);
    tkv_text_add(t, "</p><div class=bar><i class=k4 style=\"width:%.2f%%\"></i></div></div>",
                 v->fp16_bytes ? 100 * (double)v->resident_bytes / (double)v->fp16_bytes : 0.0);
}

static void add_rate_tile(struct tkv_text *t, const struct tkv_metrics *m, const char *title,
                          total_fn total)
{
    const size_t span = m->n_history > RATE_SECONDS ? RATE_SECONDS : (size_t)m->n_history - 1;

    tkv_text_add(t, "<div class=card><h2>%s</h2><p class=big>", title);
    add_number(t, rate(m, total, 0, span));
    tkv_text_add(t, "<small>&nbsp;/s in all layers</small></p>");
    add_sparkline(t, m, total);
    tkv_text_add(t, "</div>");
}

static void add_tiers(struct tkv_text *t, const struct tkv_survey *v)
{
    static const char *const names[] = {"pinned",      "tail",           "cold keys",
                                        "cold values", "cold positions", "tables and slack"};

    tkv_text_add(t, "<div class=\"card wide\"><h2>Where the bytes are</h2>");
    add_tier_bar(t, &v->tiers, v->resident_bytes);
    tkv_text_add(t, "<div class=key>");
    for (size_t i = 0; i < TKV_N_TIERS; i++) {
        tkv_text_add(t, "<span><i class=k%zu></i>%s <span class=dim>", i, names[i]);
        add_bytes(t, v->tiers.bytes[i]);
        tkv_text_add(t, "</span></span>");
    }
    tkv_text_add(t, "</div></div>");
}

static void add_session(struct tkv_text *t, const struct tkv_session_entry *e, uint64_t most_bytes)
{
    const struct tkv_session_stats *x = &e->stats;
    const double idle_s = (double)(uv_now(&e->server->loop) - e->used_ms) / 1000;

    tkv_text_add(t, "<tr><td class=l><code>%" PRIx64 "</code></td><td class=\"l name\">", e->id);
    tkv_text_add_html(t, e->label[0] ? e->label : "–");
    tkv_text_add(t, "</td><td class=\"l dim\">");
    tkv_text_add_html(t, e->profile ? e->profile->name : tkv_method_names[e->method]);
    tkv_text_add(t, "</td><td class=\"l tiers\">");
    add_tier_bar(t, &e->tiers, most_bytes);
    tkv_text_add(t, "</td><td>");
    add_bytes(t, x->resident_bytes);
    tkv_text_add(t, "</td><td>%.1f&times;</td><td>",
                 tkv_compression_ratio(x->fp16_bytes, x->resident_bytes));
    add_number(t, (double)x->n_seen);
    tkv_text_add(t, "</td><td>");
    add_number(t, x->n_kept);
    tkv_text_add(t, "</td><td>%.2f / %.2f</td><td>%u</td><td>", x->bits_k, x->bits_v, x->n_rounds);
    if (tkv_session_is_at_work(e) || idle_s < 1)
        tkv_text_add(t, "active");
    else
        add_seconds(t, idle_s);
    tkv_text_add(t, "</td></tr>");
}

static void add_sessions(struct tkv_text *t, const struct tkv_survey *v)
{
    uint64_t most_bytes = 0;

    for (size_t i = 0; i < v->n; i++) {
        if (v->entry[i]->stats.resident_bytes > most_bytes)
            most_bytes = v->entry[i]->stats.resident_bytes;
    }
    tkv_text_add(t, "<div class=\"card wide\"><h2>Sessions &middot; %zu</h2>", v->n);
    if (v->n)
        tkv_text_add(t, "<table><tr><th class=l>id<th class=l>label<th class=l>profile"
                        "<th class=l>tiers<th>resident<th>ratio<th>seen<th>kept"
                        "<th>bits k / v<th>rounds<th>idle</tr>");
    for (size_t i = 0; i < v->n && i < MAX_ROWS; i++)
        add_session(t, v->entry[i], most_bytes);
    tkv_text_add(t, v->n ? "</table>" : "<p class=dim>Nobody keeps a cache here right now.</p>");
    if (v->n > MAX_ROWS)
        tkv_text_add(t, "<p class=dim>and %zu more</p>", v->n - MAX_ROWS);
    tkv_text_add(t, "</div>");
}

static void add_latency(struct tkv_text *t, const char *name, const struct tkv_histogram *h)
{
    static const double quantiles[] = {0.5, 0.9, 0.99};
    const uint64_t n = tkv_histogram_count(h);

    tkv_text_add(t, "<tr><td class=l>%s</td><td>", name);
    add_number(t, (double)n);
    for (size_t i = 0; i < sizeof(quantiles) / sizeof(quantiles[0]); i++) {
        tkv_text_add(t, "</td><td>");
        if (n)
            add_seconds(t, tkv_histogram_quantile(h, quantiles[i]));
        else
            tkv_text_add(t, "&ndash;");
    }
    tkv_text_add(t, "</td></tr>");
}

static void add_latencies(struct tkv_text *t, const struct tkv_metrics *m)
{
    tkv_text_add(t,
                 "<div class=card><h2>Time of requests since the start</h2><table><tr>"
                 "<th class=l>what<th>requests<th>half under<th>90 %% under<th>99 %% under</tr>");
    add_latency(t, "attend, with append", &m->attend_s);
    add_latency(t, "append alone", &m->append_s);
    add_latency(t, "round, asked for", &m->round_s);
    add_latency(t, "waiting for a worker", &m->queue_s);
    tkv_text_add(t, "</table></div>");
}

static void add_fact(struct tkv_text *t, const char *name, uint64_t value)
{
    tkv_text_add(t, "<tr><td class=l>%s</td><td>", name);
    add_number(t, (double)value);
    tkv_text_add(t, "</td></tr>");
}

static void add_facts(struct tkv_text *t, const struct tkv_server *s)
{
    tkv_text_add(t, "<div class=card><h2>Requests</h2><table><tr><th class=l>what<th>count</tr>");
    add_fact(t, "requests", s->counters.n_requests);
    add_fact(t, "errors", s->counters.n_errors);
    add_fact(t, "connections now", s->n_clients);
    add_fact(t, "rounds", s->counters.n_rounds);
    tkv_text_add(t, "</table></div>");
}

void tkv_status_page_write(struct tkv_server *s, struct tkv_text *t)
{
    struct tkv_survey v;

    tkv_survey_take(&v, s);
    add_head(t, s);
    tkv_text_add(t, "<div class=grid>");
    add_memory_tile(t, s);
    add_ratio_tile(t, &v);
    add_rate_tile(t, &s->metrics, "Tokens appended", tokens_of);
    add_rate_tile(t, &s->metrics, "Rows attended", rows_of);
    tkv_text_add(t, "</div>");
    add_tiers(t, &v);
    add_sessions(t, &v);
    tkv_text_add(t, "<div class=two>");
    add_latencies(t, &s->metrics);
    add_facts(t, s);
    tkv_text_add(t, "</div></main></body></html>\n");
    tkv_survey_deinit(&v);
}
