/* The listening socket: ours, or one that the service manager made. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sysexits.h>
#include <unistd.h>

#include "daemon/server.h"

enum {
    BACKLOG = 128,
    ACCEPTS_PER_TURN = 16,
    PAUSE_MS = 100, /* after accept has failed for want of descriptors or memory */
};

/* A socket file that nobody listens on is left from a crash: it may be replaced. */
static bool somebody_listens(const struct sockaddr_un *address)
{
    const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    bool answer;

    if (fd < 0)
        return true;
    answer =
        connect(fd, (const struct sockaddr *)address, sizeof(*address)) == 0 || errno == EAGAIN;
    close(fd);
    return answer;
}

static const char *remove_stale(const struct sockaddr_un *address)
{
    struct stat s;

    if (lstat(address->sun_path, &s) < 0)
        return errno == ENOENT ? NULL : strerror(errno);
    if (!S_ISSOCK(s.st_mode))
        return "there is a file of that name that is no socket";
    if (somebody_listens(address))
        return "another daemon listens there";
    return unlink(address->sun_path) < 0 ? strerror(errno) : NULL;
}

const char *tkv_listen_unix(int fd, const char *path, uint32_t mode, bool *made_file)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    const size_t length = strlen(path);
    const char *wrong;
    mode_t old_mask;
    int bound;

    if (length >= sizeof(address.sun_path))
        return "the path is longer than 107 bytes";
    memcpy(address.sun_path, path, length + 1);
    wrong = remove_stale(&address);
    if (wrong)
        return wrong;
    old_mask = umask(0177); /* nobody connects before the mode is set */
    bound = bind(fd, (const struct sockaddr *)&address, sizeof(address));
    umask(old_mask);
    if (bound < 0)
        return strerror(errno);
    *made_file = true;
    if (chmod(path, mode) < 0 || listen(fd, BACKLOG) < 0)
        return strerror(errno);
    return NULL;
}

int tkv_listen_open(struct tkv_server *s, const struct tkv_notify_sockets *passed)
{
    const char *wrong;

    s->listen_fd = passed->main_fd;
    if (s->listen_fd >= 0)
        return EX_OK;
    s->listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    wrong = s->listen_fd < 0 ? strerror(errno)
                             : tkv_listen_unix(s->listen_fd, s->config.socket,
                                               s->config.socket_mode, &s->owns_socket);
    if (!wrong)
        return EX_OK;
    tkv_log(&s->log, TKV_LOG_ERROR, "msg=\"cannot listen\" socket=\"%s\" why=\"%s\"",
            s->config.socket, wrong);
    return EX_UNAVAILABLE;
}

static void on_connection(uv_poll_t *poll, int status, int events);

static void on_pause_over(uv_timer_t *timer)
{
    struct tkv_server *const s = timer->data;

    if (!s->draining)
        uv_poll_start(&s->listen_poll, UV_READABLE, on_connection);
}

static void on_connection(uv_poll_t *poll, int status, int events)
{
    struct tkv_server *const s = poll->data;

    (void)events;
    for (int i = 0; status == 0 && i < ACCEPTS_PER_TURN; i++) {
        const int fd = accept4(s->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

        if (fd >= 0) {
            tkv_client_accept(s, fd);
        } else if (errno == EAGAIN) {
            return;
        } else if (errno != ECONNABORTED && errno != EINTR) {
            tkv_log(&s->log, TKV_LOG_ERROR, "msg=\"accept failed\" why=\"%s\"", strerror(errno));
            uv_poll_stop(&s->listen_poll); /* it would fail again at once */
            uv_timer_start(&s->accept_pause, on_pause_over, PAUSE_MS, 0);
            return;
        }
    }
}

void tkv_listen_start(struct tkv_server *s)
{
    uv_timer_init(&s->loop, &s->accept_pause);
    s->accept_pause.data = s;
    uv_poll_init(&s->loop, &s->listen_poll, s->listen_fd);
    s->listen_poll.data = s;
    s->has_listener = true;
    uv_poll_start(&s->listen_poll, UV_READABLE, on_connection);
}

void tkv_listen_stop(struct tkv_server *s)
{
    if (s->has_listener) {
        uv_close((uv_handle_t *)&s->listen_poll, NULL);
        uv_close((uv_handle_t *)&s->accept_pause, NULL);
    }
    s->has_listener = false;
}

void tkv_listen_close(struct tkv_server *s)
{
    tkv_listen_stop(s);
    if (s->owns_socket)
        unlink(s->config.socket);
    s->owns_socket = false;
    if (s->listen_fd >= 0)
        close(s->listen_fd);
    s->listen_fd = -1;
}
