/*
 * A stand-in for the service manager: passes a listening socket to trikvd, holds the descriptors that it
 * stores, and gives them to the next one.
 */
#ifndef TKV_TESTS_MANAGER_H
#define TKV_TESTS_MANAGER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum { MANAGER_MAX_FDS = 256 };

struct manager {
    char folder[64];
    char socket[96]; /* that clients connect to */
    char config[96];
    char log[96];
    int listener, notify;
    pid_t pid; /* 0: none runs */
    bool is_ready;
    bool is_deaf; /* stores nothing */
    struct {
        char name[64];
        int fd;
    } kept[MANAGER_MAX_FDS];
    size_t n_kept;
};

/* Fails the test that calls it if it cannot. */
void manager_init(struct manager *m, const char *config_text);
void manager_deinit(struct manager *m);

/* Start trikvd with all that is kept, and wait until it is ready: how long that took, in us. */
uint64_t manager_start(struct manager *m);

/* Hear what the daemon says for so long, or (ms 0) what it has said. */
void manager_listen(struct manager *m, int ms);

/* End it by this signal; returns its status. What it said before is heard. */
int manager_stop(struct manager *m, int signal);

bool manager_logged(const struct manager *m, const char *text);

#endif /* TKV_TESTS_MANAGER_H */
