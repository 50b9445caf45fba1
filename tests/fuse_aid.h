/* A file whose server answers this process and nobody else: whoever else asks for it waits. */
#ifndef TKV_TESTS_FUSE_AID_H
#define TKV_TESTS_FUSE_AID_H

#include <sys/types.h>

struct fuse_aid {
    char directory[32];
    pid_t server;
    int fd; /* of the file */
};

/* False if this machine or user cannot mount; this process then has mounts of its own all the same. */
int fuse_aid_open(struct fuse_aid *f);

/* Ends the server: those who wait are told. */
void fuse_aid_close(struct fuse_aid *f);

#endif /* TKV_TESTS_FUSE_AID_H */
