/* Closing what peers sent; see foreign.h. */
#include "daemon/foreign.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    MAX_THREADS = 8,
    MAX_WAITING = 1024, /* one more stays open: better than to wait for it */
    STACK_BYTES = 256 << 10,
};

struct tkv_foreign {
    pthread_mutex_t lock;
    bool ended; /* the last thread frees this */
    unsigned n_threads;
    unsigned n_waiting;
    int waiting[MAX_WAITING];
};

int tkv_foreign_create(struct tkv_foreign **f)
{
    *f = calloc(1, sizeof(**f));
    if (*f && pthread_mutex_init(&(*f)->lock, NULL)) {
        free(*f);
        *f = NULL;
    }
    return *f ? 0 : -1;
}

static void release(struct tkv_foreign *f)
{
    (void)pthread_mutex_destroy(&f->lock);
    free(f);
}

void tkv_foreign_destroy(struct tkv_foreign **foreign)
{
    struct tkv_foreign *const f = *foreign;
    bool last;

    *foreign = NULL;
    if (!f)
        return;
    (void)pthread_mutex_lock(&f->lock);
    f->ended = true;
    last = f->n_threads == 0;
    (void)pthread_mutex_unlock(&f->lock);
    if (last)
        release(f);
}

static void drain(struct tkv_foreign *f, int fd)
{
    char sink[4096];
    ssize_t n;

    do {
        n = tkv_foreign_recv(f, fd, sink, sizeof(sink));
    } while (n > 0 || (n < 0 && errno == EINTR));
}

/* On a thread: here it may take its time, though with what can be done against it. */
static void dispose(struct tkv_foreign *f, int fd)
{
    const struct linger none = {0};
    int domain = AF_UNSPEC;
    socklen_t n = sizeof(domain);

    (void)setsockopt(fd, SOL_SOCKET, SO_LINGER, &none, sizeof(none));
    if (getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &n) == 0 && domain == AF_UNIX)
        drain(f, fd);
    close(fd);
}

static void *dispose_all(void *arg)
{
    struct tkv_foreign *const f = arg;
    bool last;

    (void)pthread_mutex_lock(&f->lock);
    while (f->n_waiting > 0) {
        const int fd = f->waiting[--f->n_waiting];

        (void)pthread_mutex_unlock(&f->lock);
        dispose(f, fd);
        (void)pthread_mutex_lock(&f->lock);
    }
    last = --f->n_threads == 0 && f->ended;
    (void)pthread_mutex_unlock(&f->lock);
    if (last)
        release(f);
    return NULL;
}

/* With every signal blocked: they belong to the loop. */
static bool start_thread(struct tkv_foreign *f)
{
    pthread_attr_t attributes;
    sigset_t all, old;
    pthread_t thread;
    int e;

    if (pthread_attr_init(&attributes))
        return false;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    e = pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    e = e ? e : pthread_attr_setstacksize(&attributes, STACK_BYTES);
    e = e ? e : pthread_create(&thread, &attributes, dispose_all, f);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    (void)pthread_attr_destroy(&attributes);
    return e == 0;
}

void tkv_foreign_close(struct tkv_foreign *f, int fd)
{
    bool more;

    if (fcntl(fd, F_GET_SEALS) >= 0) { /* memory: nobody to wait for */
        close(fd);
        return;
    }
    (void)pthread_mutex_lock(&f->lock);
    if (f->n_waiting < MAX_WAITING)
        f->waiting[f->n_waiting++] = fd;
    more = f->n_threads < MAX_THREADS;
    f->n_threads += more;
    (void)pthread_mutex_unlock(&f->lock);
    if (more && !start_thread(f)) { /* the next one tries again */
        (void)pthread_mutex_lock(&f->lock);
        f->n_threads--;
        (void)pthread_mutex_unlock(&f->lock);
    }
}

static void close_all(struct tkv_foreign *f, struct msghdr *msg)
{
    for (struct cmsghdr *h = CMSG_FIRSTHDR(msg); h; h = CMSG_NXTHDR(msg, h)) {
        const size_t n = (h->cmsg_len - CMSG_LEN(0)) / sizeof(int);

        for (size_t i = 0; h->cmsg_level == SOL_SOCKET && h->cmsg_type == SCM_RIGHTS && i < n;
             i++) {
            int fd;

            memcpy(&fd, CMSG_DATA(h) + i * sizeof(fd), sizeof(fd));
            tkv_foreign_close(f, fd);
        }
    }
}

ssize_t tkv_foreign_recv(struct tkv_foreign *f, int fd, void *bytes, size_t n)
{
    struct tkv_foreign_control control;
    struct iovec iov = {bytes, n};
    struct msghdr msg = {.msg_iov = &iov,
                         .msg_iovlen = 1,
                         .msg_control = &control,
                         .msg_controllen = sizeof(control)};
    const ssize_t got = recvmsg(fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);

    if (got >= 0)
        close_all(f, &msg);
    return got;
}

void tkv_foreign_hang_up(struct tkv_foreign *f, int fd)
{
    (void)shutdown(fd, SHUT_RD); /* from here on nothing more comes */
    drain(f, fd);
    close(fd);
}
