/* The fake daemon's mechanics: socket, thread, frames. What it says is the test's. */
#include "tests/fake.h"

#include <assert.h>
#include <dirent.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { PATIENCE_MS = 5000 };

void fake_init(struct fake *f)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    const char *made;
    int n;

    memset(f, 0, sizeof(*f));
    strcpy(f->directory, "/tmp/trikv-fake-XXXXXX");
    made = mkdtemp(f->directory);
    assert(made);
    n = snprintf(f->path, sizeof(f->path), "%s/s", made);
    memcpy(a.sun_path, f->path, (size_t)n + 1);
    f->listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    n = bind(f->listen_fd, (const struct sockaddr *)&a, sizeof(a));
    assert(n == 0);
    n = listen(f->listen_fd, 1);
    assert(n == 0);
}

void fake_deinit(struct fake *f)
{
    close(f->listen_fd);
    unlink(f->path);
    rmdir(f->directory);
    memset(f, 0, sizeof(*f));
}

static void *serve_one(void *arg)
{
    struct fake *f = arg;
    struct pollfd p = {.fd = f->listen_fd, .events = POLLIN};
    int fd;

    if (poll(&p, 1, PATIENCE_MS) <= 0)
        return NULL;
    fd = accept4(f->listen_fd, NULL, NULL, SOCK_CLOEXEC);
    if (fd < 0)
        return NULL;
    f->serve(fd, f->arg);
    close(fd);
    return NULL;
}

void fake_start(struct fake *f, fake_serve *serve, void *arg)
{
    int error;

    f->serve = serve;
    f->arg = arg;
    error = pthread_create(&f->thread, NULL, serve_one, f);
    assert(!error);
}

void fake_join(struct fake *f)
{
    pthread_join(f->thread, NULL);
}

static bool read_all(int fd, void *data, size_t n, int *got_fd)
{
    char *p = data;

    while (n > 0) {
        union {
            struct cmsghdr align;
            char bytes[CMSG_SPACE(sizeof(int))];
        } control;
        struct iovec iov = {.iov_base = p, .iov_len = n};
        struct msghdr m = {.msg_iov = &iov,
                           .msg_iovlen = 1,
                           .msg_control = control.bytes,
                           .msg_controllen = sizeof(control.bytes)};
        const ssize_t r = recvmsg(fd, &m, MSG_CMSG_CLOEXEC);
        const struct cmsghdr *c = CMSG_FIRSTHDR(&m);

        if (r <= 0)
            return false;
        if (c && c->cmsg_type == SCM_RIGHTS && got_fd)
            memcpy(got_fd, CMSG_DATA(c), sizeof(int));
        p += r;
        n -= (size_t)r;
    }
    return true;
}

bool fake_read(int fd, struct fake_request *q)
{
    const char *why;

    q->payload = NULL;
    q->fd = -1;
    if (!read_all(fd, &q->frame, sizeof(q->frame), &q->fd))
        return false;
    assert(tkv_frame_check(&q->frame, UINT64_C(1) << 30, &why) == 0);
    if (!read_all(fd, q->message, q->frame.header_bytes + tkv_frame_padding(q->frame.header_bytes),
                  NULL))
        return false;
    assert(tkv_frame_check_message(&q->frame, q->message, &why) == 0);
    q->payload = calloc(1, q->frame.payload_bytes + 1);
    return read_all(fd, q->payload, q->frame.payload_bytes, NULL);
}

void fake_request_deinit(struct fake_request *q)
{
    free(q->payload);
    if (q->fd >= 0)
        close(q->fd);
    q->payload = NULL;
    q->fd = -1;
}

struct fake_frame fake_frame_of(uint16_t type, uint64_t sequence, const ProtobufCMessage *message,
                                const void *payload, size_t payload_bytes)
{
    const size_t n = message ? protobuf_c_message_get_packed_size(message) : 0;
    const size_t padded = n + tkv_frame_padding((uint32_t)n);
    struct trikv_frame h = {.type = type,
                            .sequence = sequence,
                            .header_bytes = (uint32_t)n,
                            .payload_bytes = payload_bytes};
    struct fake_frame f = {.n_bytes = sizeof(h) + padded + payload_bytes};

    f.bytes = calloc(1, f.n_bytes);
    assert(f.bytes);
    if (message)
        protobuf_c_message_pack(message, f.bytes + sizeof(h));
    if (payload_bytes)
        memcpy(f.bytes + sizeof(h) + padded, payload, payload_bytes);
    memcpy(f.bytes, &h, sizeof(h));
    fake_frame_reseal(&f);
    return f;
}

void fake_frame_reseal(struct fake_frame *f)
{
    struct trikv_frame h;
    struct trikv_frame sealed;

    memcpy(&h, f->bytes, sizeof(h));
    sealed = h;
    /* The checksum covers what is there, even where the header lies about its length. */
    if (sealed.header_bytes > f->n_bytes - sizeof(h))
        sealed.header_bytes = (uint32_t)(f->n_bytes - sizeof(h));
    tkv_frame_seal(&sealed, f->bytes + sizeof(h));
    sealed.header_bytes = h.header_bytes;
    memcpy(f->bytes, &sealed, sizeof(sealed));
}

bool fake_send(int fd, const void *bytes, size_t n, int pass_fd, unsigned n_fds)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(3 * sizeof(int))];
    } control;
    struct iovec iov = {.iov_base = (void *)(uintptr_t)bytes, .iov_len = n};
    struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1};

    if (n_fds > 0) {
        struct cmsghdr *c;

        memset(&control, 0, sizeof(control));
        m.msg_control = control.bytes;
        m.msg_controllen = CMSG_SPACE(n_fds * sizeof(int));
        c = CMSG_FIRSTHDR(&m);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(n_fds * sizeof(int));
        for (unsigned i = 0; i < n_fds; i++)
            memcpy(CMSG_DATA(c) + i * sizeof(int), &pass_fd, sizeof(int));
    }
    while (n > 0) {
        const ssize_t r = sendmsg(fd, &m, MSG_NOSIGNAL);

        if (r <= 0)
            return false;
        m.msg_control = NULL;
        m.msg_controllen = 0;
        n -= (size_t)r;
        iov.iov_base = (char *)iov.iov_base + r;
        iov.iov_len = n;
    }
    return true;
}

bool fake_reply(int fd, uint16_t type, uint64_t sequence, const ProtobufCMessage *message)
{
    struct fake_frame f = fake_frame_of(type, sequence, message, NULL, 0);
    const bool sent = fake_send(fd, f.bytes, f.n_bytes, -1, 0);

    free(f.bytes);
    return sent;
}

unsigned fake_count_fds(void)
{
    DIR *d = opendir("/proc/self/fd");
    unsigned n = 0;

    assert(d);
    while (readdir(d))
        n++;
    closedir(d);
    return n;
}
