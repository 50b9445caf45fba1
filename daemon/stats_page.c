/* Writing the stats page; see proto/stats_page.h for how it is read. */
#include "daemon/stats_page.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "daemon/server.h"
#include "daemon/survey.h"
#include "proto/stats_page.h"

_Static_assert((int)TKV_N_TIERS == (int)TRIKV_STATS_TIERS, "the page has every tier");

/* Sessions of all users are in it, so it is for root and for the daemon's own user. */
static const char *make_file(const char *path, int *fd)
{
    unlink(path); /* a name with .new, from a daemon that died here */
    *fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (*fd < 0)
        return strerror(errno);
    return posix_fallocate(*fd, 0, sizeof(struct trikv_stats_page)) ? "no room" : NULL;
}

const char *tkv_stats_page_open(struct tkv_server *s, struct trikv_stats_page **page)
{
    const size_t n = sizeof(struct trikv_stats_page);
    char name[TKV_CONFIG_PATH_BYTES + 8];
    const char *wrong;
    void *p = MAP_FAILED;
    int fd = -1;

    *page = NULL;
    if (!s->config.metrics_page[0])
        return NULL;
    snprintf(name, sizeof(name), "%s.new", s->config.metrics_page);
    wrong = make_file(name, &fd);
    if (!wrong)
        p = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (!wrong && p == MAP_FAILED)
        wrong = strerror(errno);
    if (fd >= 0)
        close(fd);
    if (wrong)
        return wrong;
    *page = p;
    tkv_stats_page_write(s, p);
    if (rename(name, s->config.metrics_page) == 0)
        return NULL;
    wrong = strerror(errno);
    unlink(name);
    munmap(p, n);
    *page = NULL;
    return wrong;
}

static void write_session(struct trikv_stats_session *out, const struct tkv_session_entry *e)
{
    const struct tkv_session_stats *s = &e->stats;

    memset(out, 0, sizeof(*out));
    out->session = e->id;
    out->uid = e->uid;
    out->busy = tkv_session_is_at_work(e);
    out->n_seen = s->n_seen;
    out->n_kept = s->n_kept;
    out->resident_bytes = s->resident_bytes;
    out->fp16_bytes = s->fp16_bytes;
    memcpy(out->tier_bytes, e->tiers.bytes, sizeof(out->tier_bytes));
    out->idle_s =
        tkv_session_is_at_work(e) ? 0 : (double)(uv_now(&e->server->loop) - e->used_ms) / 1000;
    out->n_rounds = s->n_rounds;
    out->n_layers = s->n_layers;
    memcpy(out->label, e->label, strnlen(e->label, sizeof(out->label)));
}

static void write_sessions(struct trikv_stats_page *p, struct tkv_server *s)
{
    struct tkv_survey v;

    tkv_survey_take(&v, s);
    p->n_listed = v.n < TRIKV_STATS_SESSIONS ? (uint32_t)v.n : TRIKV_STATS_SESSIONS;
    for (uint32_t i = 0; i < p->n_listed; i++)
        write_session(&p->session[i], v.entry[i]);
    p->n_sessions = (uint32_t)v.n;
    p->resident_bytes = v.resident_bytes;
    p->fp16_bytes = v.fp16_bytes;
    memcpy(p->tier_bytes, v.tiers.bytes, sizeof(p->tier_bytes));
    tkv_survey_deinit(&v);
}

static void write_totals(struct trikv_stats_page *p, struct tkv_server *s)
{
    struct tkv_pool_load load = {0};

    if (s->pool)
        tkv_pool_load(s->pool, &load);
    p->boot_id = s->boot_id;
    p->updated_ms = uv_hrtime() / 1000000;
    p->started_ms = s->started_ms;
    p->state = s->pulse.stalled ? TRIKV_STATS_STALLED
               : s->draining    ? TRIKV_STATS_DRAINING
                                : TRIKV_STATS_SERVING;
    p->n_threads = s->n_threads;
    p->n_connections = s->n_clients;
    p->n_queued_jobs = load.n_queued;
    p->n_running_jobs = load.n_running;
    p->memory_cap_bytes = s->budget.cap_bytes;
    p->memory_used_bytes = atomic_load(&s->budget.used_bytes);
    p->memory_peak_bytes = atomic_load(&s->budget.peak_bytes);
    p->n_requests = s->counters.n_requests;
    p->n_errors = s->counters.n_errors;
    p->n_tokens_appended = s->counters.n_tokens_appended;
    p->n_rows_attended = s->counters.n_rows_attended;
    p->n_rounds = s->counters.n_rounds;
}

void tkv_stats_page_write(struct tkv_server *s, struct trikv_stats_page *p)
{
    const uint64_t sequence = atomic_load_explicit(&p->sequence, memory_order_relaxed);

    atomic_store_explicit(&p->sequence, sequence | 1, memory_order_relaxed);
    atomic_thread_fence(memory_order_release); /* odd before anything of the new content */
    p->magic = TRIKV_STATS_MAGIC;
    p->version = TRIKV_STATS_VERSION;
    p->page_bytes = sizeof(*p);
    p->pid = (uint32_t)getpid();
    snprintf(p->trikvd_version, sizeof(p->trikvd_version), "%s", TRIKV_VERSION);
    write_totals(p, s);
    write_sessions(p, s);
    atomic_store_explicit(&p->sequence, (sequence | 1) + 1, memory_order_release);
}

void tkv_stats_page_close(struct tkv_server *s, struct trikv_stats_page **page)
{
    if (!*page)
        return;
    unlink(s->config.metrics_page);
    munmap(*page, sizeof(struct trikv_stats_page));
    *page = NULL;
}
