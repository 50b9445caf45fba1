/* The beat of the daemon, and whether its workers still follow. */
#include "daemon/pulse.h"

#include "daemon/machine.h"
#include "daemon/server.h"
#include "daemon/stats_page.h"

enum {
    BEAT_MS = 1000,
    /* A worker shows progress at every KV head and every job. The longest piece known, a head of a
     * prefill of a million tokens on a slow board, takes seconds, not half a minute. */
    STALL_MS = 30000,
};

static void remember(struct tkv_server *s)
{
    const struct tkv_history_item item = {
        .at_ms = uv_now(&s->loop),
        .n_requests = s->counters.n_requests,
        .n_errors = s->counters.n_errors,
        .n_tokens = s->counters.n_tokens_appended,
        .n_rows = s->counters.n_rows_attended,
        .memory_used_bytes = atomic_load(&s->budget.used_bytes),
    };

    tkv_metrics_remember(&s->metrics, &item);
}

bool tkv_pulse_stalled(struct tkv_pulse *p, const struct tkv_pool_load *load, uint64_t now_ms)
{
    if (load->progress != p->last_progress || (!load->n_queued && !load->n_running))
        p->moved_ms = now_ms;
    p->last_progress = load->progress;
    return now_ms - p->moved_ms >= STALL_MS;
}

static void check_workers(struct tkv_server *s)
{
    struct tkv_pulse *const p = &s->pulse;
    struct tkv_pool_load load;
    bool stalled;

    tkv_pool_load(s->pool, &load);
    stalled = tkv_pulse_stalled(p, &load, uv_now(&s->loop));
    if (stalled && !p->stalled)
        tkv_log(&s->log, TKV_LOG_ERROR, "msg=\"workers do not get on\" queued=%u running=%u",
                load.n_queued, load.n_running);
    p->stalled = stalled;
    p->n_stalls += stalled;
}

/* What is only lent is given up before others suffer. */
static void look_at_pressure(struct tkv_server *s)
{
    struct tkv_pulse *const p = &s->pulse;
    const uint32_t limit = s->config.memory_pressure;

    if (!p->pressure_file[0] || !tkv_machine_pressure(p->pressure_file, &p->pressure_percent))
        return;
    if (limit && p->pressure_percent >= limit && s->prefixes.oldest && !s->draining) {
        tkv_log(&s->log, TKV_LOG_INFO, "msg=\"a stored prefix goes\" memory_pressure=%.1f%%",
                p->pressure_percent);
        tkv_prefixes_evict(s->prefixes.oldest);
    }
}

static void on_beat(uv_timer_t *timer)
{
    struct tkv_server *const s = timer->data;

    tkv_rings_beat(s);
    remember(s);
    check_workers(s);
    look_at_pressure(s);
    if (s->pulse.page)
        tkv_stats_page_write(s, s->pulse.page);
    if (s->pulse.watchdog_ms && !s->pulse.stalled)
        tkv_notify_send(&s->notify, "WATCHDOG=1");
}

void tkv_pulse_start(struct tkv_server *s)
{
    struct tkv_pulse *const p = &s->pulse;
    const char *wrong = tkv_stats_page_open(s, &p->page);
    uint64_t beat_ms = BEAT_MS;

    if (wrong)
        tkv_log(&s->log, TKV_LOG_WARN, "msg=\"no stats page\" file=\"%s\" why=\"%s\"",
                s->config.metrics_page, wrong);
    p->watchdog_ms = tkv_notify_watchdog_ms();
    if (p->watchdog_ms && p->watchdog_ms / 2 < beat_ms)
        beat_ms = p->watchdog_ms / 2 ? p->watchdog_ms / 2 : 1;
    if (!tkv_machine_find_pressure("", p->pressure_file, sizeof(p->pressure_file)))
        p->pressure_file[0] = 0;
    p->moved_ms = uv_now(&s->loop);
    uv_timer_init(&s->loop, &p->timer);
    p->timer.data = s;
    uv_timer_start(&p->timer, on_beat, beat_ms, beat_ms);
    remember(s);
}

void tkv_pulse_deinit(struct tkv_server *s)
{
    tkv_stats_page_close(s, &s->pulse.page);
}
