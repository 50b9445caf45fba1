/* Start, run and end of the daemon. */
#include "daemon/server.h"

#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sysexits.h>
#include <unistd.h>

#include "core/cpu.h"
#include "daemon/diag.h"
#include "daemon/machine.h"
#include "daemon/options.h"

enum { DRAIN_MS = 5000 };

static void raise_descriptor_limit(const struct tkv_log *log)
{
    struct rlimit r;

    if (getrlimit(RLIMIT_NOFILE, &r) < 0)
        return;
    r.rlim_cur = r.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &r) < 0)
        tkv_log(log, TKV_LOG_WARN, "msg=\"cannot raise the limit of open files\"");
}

static void take_limits(struct tkv_server *s)
{
    s->limits.max_payload_bytes = s->config.max_payload_bytes;
    s->limits.frame_timeout_ms = s->config.request_timeout_ms;
    s->limits.idle_timeout_ms = s->config.idle_timeout_ms;
    s->log.level = (enum tkv_log_level)s->config.log_level;
    s->log.format = (enum tkv_log_format)s->config.log_format;
}

static void log_lines(const struct tkv_log *log, enum tkv_log_level level,
                      const struct tkv_diag *diag)
{
    char quoted[768];

    for (size_t i = 0; i < diag->n; i++)
        tkv_log(log, level, "msg=%s", tkv_log_quote(quoted, sizeof(quoted), diag->line[i]));
}

static void load_profiles(struct tkv_server *s)
{
    struct tkv_diag diag = {0};
    struct tkv_profiles fresh = {0};

    tkv_profiles_load(&fresh, s->config.profiles_directory, &diag);
    log_lines(&s->log, TKV_LOG_ERROR, &diag);
    tkv_diag_deinit(&diag);
    tkv_profiles_deinit(&s->profiles); /* open sessions hold their own references */
    s->profiles = fresh;
    tkv_log(&s->log, TKV_LOG_INFO, "msg=\"profiles loaded\" n=%zu directory=\"%s\"", fresh.n,
            s->config.profiles_directory);
}

void tkv_server_reload(struct tkv_server *s)
{
    struct tkv_config fresh;
    struct tkv_diag diag = {0};
    const char *fixed = NULL;

    tkv_notify_reloading(&s->notify);
    if (tkv_options_config(s->options, &fresh, &diag))
        fixed = tkv_config_fixed_difference(&s->config, &fresh);
    if (fixed)
        tkv_diag_add(&diag, fresh.file, 0, 0, "%s cannot be changed while the daemon runs", fixed);
    if (diag.n) {
        s->metrics.n_reloads_failed++;
        log_lines(&s->log, TKV_LOG_ERROR, &diag);
        tkv_log(&s->log, TKV_LOG_ERROR, "msg=\"not reloaded, the old configuration stays\"");
    } else {
        s->config = fresh;
        s->metrics.n_reloads++;
        tkv_prefixes_trim(s, s->config.max_prefixes);
        take_limits(s);
        load_profiles(s);
        tkv_log(&s->log, TKV_LOG_INFO, "msg=reloaded");
    }
    tkv_diag_deinit(&diag);
    tkv_notify_send(&s->notify, "READY=1");
}

static void on_jobs_done(uv_async_t *async)
{
    struct tkv_server *const s = async->data;
    struct tkv_job *list = tkv_pool_take_done(s->pool);

    while (list) {
        struct tkv_job *const job = list;

        list = job->next;
        job->done(job);
    }
}

static void wake_loop(void *ctx)
{
    uv_async_send(ctx);
}

static void on_signal(uv_signal_t *handle, int signal)
{
    struct tkv_server *const s = handle->data;

    if (signal == SIGHUP && !s->draining) {
        tkv_server_reload(s);
    } else if (signal != SIGHUP && s->draining) {
        tkv_log(&s->log, TKV_LOG_WARN, "msg=\"second signal: leaving at once\"");
        s->abandoned = true;
        uv_stop(&s->loop);
    } else if (signal != SIGHUP) {
        tkv_server_drain(s);
    }
}

/* One that comes while the daemon starts waits until there is a handler: without one it would kill. */
static void hold_signals(int how)
{
    sigset_t set;

    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGHUP);
    pthread_sigmask(how, &set, NULL);
}

static void start_signal(struct tkv_server *s, uv_signal_t *handle, int signal)
{
    uv_signal_init(&s->loop, handle);
    handle->data = s;
    uv_signal_start(handle, on_signal, signal);
}

static void on_drain_deadline(uv_timer_t *timer)
{
    struct tkv_server *const s = timer->data;
    struct tkv_client *next;

    tkv_log(&s->log, TKV_LOG_WARN, "msg=\"drain deadline passed\" connections=%u", s->n_clients);
    for (struct tkv_client *c = s->clients; c; c = next) {
        next = c->next;
        tkv_conn_close(&c->conn, "drain deadline");
    }
}

void tkv_server_drain(struct tkv_server *s)
{
    struct tkv_client *next;

    s->draining = true;
    tkv_log(&s->log, TKV_LOG_INFO, "msg=draining connections=%u sessions=%u", s->n_clients,
            s->sessions.n);
    tkv_notify_send(&s->notify, "STOPPING=1");
    tkv_autosave_drain(s);
    tkv_listen_stop(s);
    if (s->handover.peer_fd < 0)
        tkv_listen_close(s);
    if (!s->keep.is_on)
        tkv_prefixes_trim(s, 0);
    uv_timer_start(&s->drain_deadline, on_drain_deadline, DRAIN_MS, 0);
    for (struct tkv_client *c = s->clients; c; c = next) {
        next = c->next;
        c->conn.close_after_reply = true;
        c->conn.close_reason = "daemon is shutting down";
        tkv_conn_close_if_idle(&c->conn, "daemon is shutting down");
    }
    tkv_server_check_drained(s);
}

static void close_handle(uv_handle_t *handle, void *arg)
{
    (void)arg;
    if (!uv_is_closing(handle))
        uv_close(handle, NULL);
}

void tkv_server_check_drained(struct tkv_server *s)
{
    const bool idle = s->keep.is_on ? !tkv_sessions_any_busy(&s->sessions) : !s->sessions.n;

    if (s->draining && !s->n_clients && !s->rings.n && idle && !tkv_autosave_is_busy(s))
        uv_walk(&s->loop, close_handle, NULL);
}

static void on_unused(uv_poll_t *poll, int status, int events)
{
    (void)poll;
    (void)status;
    (void)events;
}

/* libuv ends the process if it finds no memory for its table of descriptors. So the table grows now, to
 * the largest number that connections and the arenas of sessions will bring about. */
static int grow_loop_table(struct tkv_server *s)
{
    const uint64_t n = 256 + s->config.max_connections + 4 * (uint64_t)s->config.max_sessions;
    int pair[2], high;
    uv_poll_t poll;

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
        return EX_OSERR;
    high = fcntl(pair[0], F_DUPFD_CLOEXEC, n < INT_MAX ? (int)n : INT_MAX);
    if (high >= 0 && uv_poll_init(&s->loop, &poll, high) == 0) {
        uv_poll_start(&poll, UV_READABLE, on_unused);
        uv_close((uv_handle_t *)&poll, NULL);
        uv_run(&s->loop, UV_RUN_NOWAIT);
    }
    if (high >= 0)
        close(high);
    close(pair[0]);
    close(pair[1]);
    return EX_OK; /* with fewer descriptors than that the table grows later, if at all */
}

static int start_loop(struct tkv_server *s)
{
    if (uv_loop_init(&s->loop) < 0)
        return EX_OSERR;
    s->has_loop = true;
    if (grow_loop_table(s))
        return EX_OSERR;
    uv_async_init(&s->loop, &s->jobs_done, on_jobs_done);
    s->jobs_done.data = s;
    tkv_rings_init(s);
    uv_timer_init(&s->loop, &s->drain_deadline);
    s->drain_deadline.data = s;
    start_signal(s, &s->on_term, SIGTERM);
    start_signal(s, &s->on_int, SIGINT);
    start_signal(s, &s->on_hup, SIGHUP);
    hold_signals(SIG_UNBLOCK);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN); /* a file that may not grow is an error like a full disk */
    tkv_listen_start(s);
    tkv_handover_start(s);
    tkv_http_start(s);
    if (tkv_pool_create(&s->pool, s->n_threads, wake_loop, &s->jobs_done))
        return EX_OSERR;
    if (tkv_autosave_start(s))
        return EX_OSERR;
    s->started_ms = uv_now(&s->loop);
    tkv_pulse_start(s);
    return EX_OK;
}

static int open_sockets(struct tkv_server *s, struct tkv_notify_sockets *passed)
{
    const char *wrong = NULL;
    int e;

    if (!tkv_notify_take_sockets(passed, &wrong)) {
        tkv_log(&s->log, TKV_LOG_ERROR, "msg=\"LISTEN_FDS: %s\"", wrong);
        return EX_CONFIG;
    }
    e = tkv_handover_take(s, passed);
    e = e ? e : tkv_listen_open(s, passed);
    return e ? e : tkv_http_open(s, passed);
}

static int take_config(struct tkv_server *s, const struct tkv_config *config)
{
    const long n_cpus = sysconf(_SC_NPROCESSORS_ONLN);
    const uint64_t cap =
        config->memory_cap_bytes ? config->memory_cap_bytes : tkv_machine_cap_bytes("");
    unsigned flags;

    s->config = *config;
    tkv_log_init(&s->log, (enum tkv_log_level)config->log_level);
    take_limits(s);
    s->n_threads = config->n_threads ? config->n_threads : n_cpus > 0 ? (uint32_t)n_cpus : 1;
    flags = tkv_cpu_flags(config->cpu_disable[0] ? config->cpu_disable : NULL);
    tkv_kernels_init(&s->kernels, flags);
    tkv_cpu_names(flags, s->cpu, sizeof(s->cpu));
    tkv_budget_init(&s->budget, cap);
    s->arena_memory = malloc(TKV_MESSAGE_ARENA_BYTES);
    if (!s->arena_memory || tkv_foreign_create(&s->foreign) ||
        getrandom(&s->boot_id, sizeof(s->boot_id), 0) < 0)
        return EX_OSERR;
    tkv_message_arena_init(&s->arena, s->arena_memory, TKV_MESSAGE_ARENA_BYTES);
    return EX_OK;
}

int tkv_server_init(struct tkv_server *s, const struct tkv_config *config,
                    const struct tkv_options *options)
{
    struct tkv_notify_sockets passed;
    int e;

    memset(s, 0, sizeof(*s));
    s->options = options;
    s->listen_fd = -1;
    hold_signals(SIG_BLOCK);
    tkv_handover_init(&s->handover);
    tkv_notify_init(&s->notify);
    e = take_config(s, config);
    if (e)
        return e;
    raise_descriptor_limit(&s->log);
    load_profiles(s);
    s->keep.is_on = config->warm_restart && (s->notify.fd >= 0 || config->handover[0]);
    e = open_sockets(s, &passed);
    if (!e)
        e = start_loop(s);
    if (!e)
        tkv_keep_adopt(s, &passed);
    if (!e)
        tkv_autosave_restore(s);
    return e;
}

int tkv_server_run(struct tkv_server *s)
{
    tkv_log(&s->log, TKV_LOG_INFO,
            "msg=ready version=%s socket=\"%s\" memory_cap_bytes=%zu threads=%u cpu=%s",
            TRIKV_VERSION, s->config.socket, s->budget.cap_bytes, s->n_threads, s->cpu);
    tkv_notify_send(&s->notify, "READY=1");
    uv_run(&s->loop, UV_RUN_DEFAULT);
    tkv_log(&s->log, TKV_LOG_INFO, "msg=stopped");
    return s->abandoned ? EXIT_FAILURE : EX_OK;
}

void tkv_server_deinit(struct tkv_server *s)
{
    tkv_rings_deinit(s);
    tkv_autosave_stop(s);
    tkv_pool_destroy(&s->pool);
    tkv_autosave_deinit(s);
    tkv_handover_give(s);
    tkv_listen_close(s);
    tkv_keep_leave(s);
    if (s->has_loop) {
        uv_walk(&s->loop, close_handle, NULL);
        uv_run(&s->loop, UV_RUN_DEFAULT);
        uv_loop_close(&s->loop);
    }
    tkv_http_deinit(s);
    tkv_pulse_deinit(s);
    tkv_profiles_deinit(&s->profiles);
    free(s->arena_memory);
    tkv_notify_deinit(&s->notify);
    tkv_foreign_destroy(&s->foreign);
    tkv_handover_deinit(s);
}
