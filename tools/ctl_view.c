/* Getting a view of the daemon; see ctl_view.h. */
#include "tools/ctl_view.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "client/request.h"
#include "client/trikv.h"
#include "proto/frame.h"
#include "proto/trikv.pb-c.h"

enum { MAX_TRIES = 1000 };

/* Taken whole, or, if the daemon died while it wrote, as it was left. */
static void copy_page(const struct trikv_stats_page *page, struct trikv_stats_page *out)
{
    for (int i = 0; i < MAX_TRIES; i++) {
        const uint64_t before = atomic_load_explicit(&page->sequence, memory_order_acquire);

        memcpy((void *)out, (const void *)page, sizeof(*out));
        atomic_thread_fence(memory_order_acquire);
        if (before % 2 == 0 &&
            atomic_load_explicit(&page->sequence, memory_order_relaxed) == before)
            return;
        if (i > 10)
            sched_yield();
    }
}

static int check_page(struct trikv_stats_page *p)
{
    if (p->magic != TRIKV_STATS_MAGIC || p->version != TRIKV_STATS_VERSION ||
        p->page_bytes != sizeof(*p) || p->n_listed > TRIKV_STATS_SESSIONS)
        return EPROTO;
    p->trikvd_version[sizeof(p->trikvd_version) - 1] = 0;
    for (uint32_t i = 0; i < p->n_listed; i++)
        p->session[i].label[sizeof(p->session[i].label) - 1] = 0;
    return 0;
}

int ctl_view_read_page(const char *path, struct trikv_stats_page *out)
{
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat s;
    void *page;

    if (fd < 0)
        return errno;
    if (fstat(fd, &s) < 0 || !S_ISREG(s.st_mode) || (size_t)s.st_size != sizeof(*out)) {
        close(fd);
        return EPROTO;
    }
    page = mmap(NULL, sizeof(*out), PROT_READ, MAP_SHARED, fd, 0);
    close(fd);
    if (page == MAP_FAILED)
        return errno;
    copy_page(page, out);
    munmap(page, sizeof(*out));
    return check_page(out);
}

static int ask(struct trikv_client *c, struct tkv_request *r, uint16_t type,
               const ProtobufCMessageDescriptor *reply_type)
{
    r->type = type;
    r->reply_type = reply_type;
    return tkv_request_run(c, r);
}

static void take_daemon(struct trikv_stats_page *out, const Trikv__DaemonStats *s)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    out->boot_id = s->boot_id;
    out->updated_ms = (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
    out->started_ms = out->updated_ms - (uint64_t)(s->uptime_s * 1000);
    out->n_threads = s->n_threads;
    out->n_connections = s->n_connections;
    out->memory_cap_bytes = s->memory_cap_bytes;
    out->memory_used_bytes = s->memory_used_bytes;
    out->memory_peak_bytes = s->memory_peak_bytes;
    out->n_requests = s->n_requests;
    out->n_errors = s->n_errors;
    out->n_tokens_appended = s->n_tokens_appended;
    out->n_rows_attended = s->n_rows_attended;
    out->n_rounds = s->n_rounds;
    snprintf(out->trikvd_version, sizeof(out->trikvd_version), "%s", s->version);
}

static void take_session(struct trikv_stats_page *out, const Trikv__SessionStats *s)
{
    struct trikv_stats_session *const x = &out->session[out->n_listed++];

    x->session = s->session;
    x->uid = s->uid;
    x->n_seen = s->n_seen;
    x->n_kept = s->n_kept;
    x->resident_bytes = s->resident_bytes;
    x->fp16_bytes = s->fp16_bytes;
    x->idle_s = s->idle_s;
    x->n_rounds = s->n_rounds;
    x->n_layers = s->n_layers;
    snprintf(x->label, sizeof(x->label), "%s", s->label);
    out->resident_bytes += s->resident_bytes;
    out->fp16_bytes += s->fp16_bytes;
}

int ctl_view_ask(struct trikv_client *c, struct trikv_stats_page *out)
{
    struct tkv_request r = TKV_REQUEST_INIT;
    int e = ask(c, &r, TRIKV_DAEMON_STATS, &trikv__daemon_stats__descriptor);

    memset((void *)out, 0, sizeof(*out));
    if (!e)
        take_daemon(out, (const Trikv__DaemonStats *)r.reply);
    tkv_request_deinit(&r);
    if (e)
        return e;
    r = (struct tkv_request)TKV_REQUEST_INIT;
    e = ask(c, &r, TRIKV_SESSION_LIST, &trikv__session_list_reply__descriptor);
    if (!e) {
        const Trikv__SessionListReply *m = (const Trikv__SessionListReply *)r.reply;

        out->n_sessions = m->sessions_total;
        for (size_t i = 0; i < m->n_sessions && i < TRIKV_STATS_SESSIONS; i++)
            take_session(out, m->sessions[i]);
    }
    tkv_request_deinit(&r);
    return e;
}
