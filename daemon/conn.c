/* The life of a connection: states, timers, events. The bytes themselves are read
 * in conn_read.c and written in conn_write.c. */
#include "daemon/conn.h"

#include <errno.h>
#include <sys/socket.h>
#include <unistd.h>

#include "daemon/conn_priv.h"
#include "daemon/message.h"
#include "proto/errors.h"

enum { ERROR_REPLY_BYTES = 512 }; /* of message: a report's text and a few bytes */

static void on_timer(uv_timer_t *timer)
{
    static const char *const reason[] = {
        [TKV_TIMER_OFF] = "timer",
        [TKV_TIMER_IDLE] = "idle too long",
        [TKV_TIMER_FRAME] = "frame not complete in time",
        [TKV_TIMER_REPLY] = "reply not taken in time",
    };
    struct tkv_conn *c = timer->data;

    if (c->timer_for == TKV_TIMER_IDLE && c->ops->active && c->ops->active(c))
        uv_timer_start(&c->timer, on_timer, c->limits->idle_timeout_ms, 0);
    else
        tkv_conn_close(c, reason[c->timer_for]);
}

/* The timer of a purpose starts once and is not pushed back by progress: a peer that sends a
 * byte now and then is cut off like one that sends none. */
void tkv_conn_set_timer(struct tkv_conn *c, enum tkv_conn_timer purpose)
{
    const uint64_t ms =
        purpose == TKV_TIMER_IDLE ? c->limits->idle_timeout_ms : c->limits->frame_timeout_ms;

    if (c->timer_for == purpose)
        return;
    c->timer_for = purpose;
    if (purpose == TKV_TIMER_OFF || ms == 0)
        uv_timer_stop(&c->timer);
    else
        uv_timer_start(&c->timer, on_timer, ms, 0);
}

static void on_event(uv_poll_t *poll, int status, int events)
{
    struct tkv_conn *c = poll->data;

    if (status < 0) {
        tkv_conn_close(c, "poll error");
        return;
    }
    switch (c->state) {
    case TKV_CONN_READING: tkv_conn_read(c); break;
    case TKV_CONN_BUSY:
        if (events & UV_DISCONNECT)
            tkv_conn_close(c, "peer left before its answer");
        else
            tkv_conn_arm(c, UV_DISCONNECT); /* the next request waits in the socket */
        break;
    case TKV_CONN_WRITING:
        if (events & UV_WRITABLE)
            tkv_conn_write(c);
        else if (events & UV_DISCONNECT)
            tkv_conn_close(c, "peer left before its answer");
        break;
    case TKV_CONN_CLOSING: break;
    }
}

void tkv_conn_arm(struct tkv_conn *c, int events)
{
    if (c->poll_events == events)
        return;
    c->poll_events = events;
    if (uv_poll_start(&c->poll, events, on_event) < 0)
        tkv_conn_close(c, "poll error");
}

int tkv_conn_init(struct tkv_conn *c, const struct tkv_conn_shared *shared, int fd,
                  struct tkv_budget *budget)
{
    struct ucred cred = {.pid = 0, .uid = (uid_t)-1};
    socklen_t n = sizeof(cred);
    int e;

    *c = (struct tkv_conn){.ops = shared->ops,
                           .limits = shared->limits,
                           .foreign = shared->foreign,
                           .budget = budget,
                           .fd = fd};
    c->in_fd = -1;
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &n) < 0)
        return uv_translate_sys_error(errno);
    c->peer_pid = cred.pid;
    c->peer_uid = cred.uid;
    /* So that an error can be told even when the cap is reached. */
    if (!tkv_buffer_need(&c->out_message, budget, ERROR_REPLY_BYTES))
        return UV_ENOMEM;
    e = uv_poll_init(shared->loop, &c->poll, fd);
    if (e < 0) {
        tkv_conn_deinit(c);
        return e;
    }
    uv_timer_init(shared->loop, &c->timer);
    c->poll.data = c;
    c->timer.data = c;
    c->n_handles = 2;
    tkv_conn_set_timer(c, TKV_TIMER_FRAME); /* the first frame has no idle time before it */
    tkv_conn_arm(c, UV_READABLE | UV_DISCONNECT);
    return 0;
}

void tkv_conn_next_frame(struct tkv_conn *c)
{
    if (c->in_fd >= 0)
        tkv_foreign_close(c->foreign, c->in_fd);
    c->in_fd = -1;
    c->n_got_bytes = 0;
    c->refusal.error = TRIKV_OK;
    c->message_dropped = false;
    tkv_buffer_trim(&c->payload, c->budget);
    if (c->close_after_reply) {
        tkv_conn_close(c, c->close_reason ? c->close_reason : "bad frame");
        return;
    }
    c->state = TKV_CONN_READING;
    tkv_conn_set_timer(c, TKV_TIMER_IDLE);
    tkv_conn_arm(c, UV_READABLE | UV_DISCONNECT);
    if (c->ops->served)
        c->ops->served(c);
}

static void on_handle_closed(uv_handle_t *handle)
{
    struct tkv_conn *c = handle->data;

    if (--c->n_handles == 0)
        c->ops->closed(c);
}

void tkv_conn_close(struct tkv_conn *c, const char *reason)
{
    if (c->state == TKV_CONN_CLOSING)
        return;
    c->state = TKV_CONN_CLOSING;
    c->close_reason = reason;
    uv_close((uv_handle_t *)&c->poll, on_handle_closed);
    uv_close((uv_handle_t *)&c->timer, on_handle_closed);
    tkv_foreign_hang_up(c->foreign, c->fd);
    if (c->in_fd >= 0)
        tkv_foreign_close(c->foreign, c->in_fd);
    tkv_conn_close_out_fds(c);
    c->fd = c->in_fd = -1;
}

void tkv_conn_close_if_idle(struct tkv_conn *c, const char *reason)
{
    if (c->state == TKV_CONN_READING && c->n_got_bytes == 0)
        tkv_conn_close(c, reason);
}

void tkv_conn_deinit(struct tkv_conn *c)
{
    tkv_buffer_free(&c->message, c->budget);
    tkv_buffer_free(&c->payload, c->budget);
    tkv_buffer_free(&c->out_message, c->budget);
}
