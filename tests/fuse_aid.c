/* A FUSE server of one file, without a library; see fuse_aid.h. */
#include "tests/fuse_aid.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum { REQUEST_BYTES = FUSE_MIN_READ_BUFFER + 4096, FILE_NODE = 2 };

static void answer(int fd, const struct fuse_in_header *in, int error, const void *body, size_t n)
{
    char reply[512] = {0};
    const struct fuse_out_header out = {
        .len = (uint32_t)(sizeof(out) + n), .error = error, .unique = in->unique};

    memcpy(reply, &out, sizeof(out));
    if (n)
        memcpy(reply + sizeof(out), body, n);
    if (write(fd, reply, sizeof(out) + n) < 0)
        _exit(1);
}

static struct fuse_attr attributes(uint64_t node)
{
    return (struct fuse_attr){
        .ino = node, .nlink = 1, .mode = node == FILE_NODE ? S_IFREG | 0666 : S_IFDIR | 0777};
}

/* What may be asked by this process for the file to be opened and closed. */
static void serve_one(int fd, const struct fuse_in_header *in)
{
    const struct fuse_init_out init = {.major = 7, .minor = 31, .max_write = 4096};
    const struct fuse_attr_out attr = {.attr = attributes(in->nodeid)};
    const struct fuse_open_out opened = {.fh = 1};
    struct fuse_entry_out entry = {.nodeid = FILE_NODE, .entry_valid = 3600};

    switch (in->opcode) {
    case FUSE_INIT: answer(fd, in, 0, &init, sizeof(init)); break;
    case FUSE_LOOKUP:
        entry.attr = attributes(FILE_NODE);
        answer(fd, in, 0, &entry, sizeof(entry));
        break;
    case FUSE_GETATTR: answer(fd, in, 0, &attr, sizeof(attr)); break;
    case FUSE_OPEN: answer(fd, in, 0, &opened, sizeof(opened)); break;
    case FUSE_FLUSH:
    case FUSE_RELEASE: answer(fd, in, 0, NULL, 0); break;
    case FUSE_FORGET:
    case FUSE_BATCH_FORGET:
    case FUSE_INTERRUPT: break;
    default: answer(fd, in, -ENOSYS, NULL, 0); break;
    }
}

static void serve(int fd, pid_t friend)
{
    char *const request = malloc(REQUEST_BYTES);
    struct fuse_in_header in;

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (;;) {
        const ssize_t n = request ? read(fd, request, REQUEST_BYTES) : -1;

        if (n < (ssize_t)sizeof(in))
            _exit(0);
        memcpy(&in, request, sizeof(in));
        if (in.opcode == FUSE_INIT || in.pid == (uint32_t) friend)
            serve_one(fd, &in);
    }
}

static int mount_at(const char *directory, int fd)
{
    char options[96];

    if (unshare(CLONE_NEWNS) || mount("none", "/", "", MS_REC | MS_PRIVATE, NULL))
        return -1;
    (void)snprintf(options, sizeof(options), "fd=%d,rootmode=40000,user_id=0,group_id=0", fd);
    return mount("trikv-test", directory, "fuse", MS_NOSUID | MS_NODEV, options);
}

int fuse_aid_open(struct fuse_aid *f)
{
    char path[64];
    int fd;

    memset(f, 0, sizeof(*f));
    f->fd = -1;
    strcpy(f->directory, "/tmp/trikv-fuse-XXXXXX");
    fd = open("/dev/fuse", O_RDWR | O_CLOEXEC);
    if (fd < 0 || !mkdtemp(f->directory))
        return 0;
    if (mount_at(f->directory, fd)) {
        (void)rmdir(f->directory);
        close(fd);
        return 0;
    }
    f->server = fork();
    if (f->server == 0)
        serve(fd, getppid());
    close(fd);
    (void)snprintf(path, sizeof(path), "%s/file", f->directory);
    f->fd = open(path, O_RDWR | O_CLOEXEC);
    return f->fd >= 0;
}

void fuse_aid_close(struct fuse_aid *f)
{
    if (f->fd >= 0)
        close(f->fd);
    if (f->server > 0) {
        kill(f->server, SIGKILL);
        (void)waitpid(f->server, NULL, 0);
    }
    (void)umount2(f->directory, MNT_DETACH);
    (void)rmdir(f->directory);
}
