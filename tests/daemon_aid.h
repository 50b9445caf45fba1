/* A real trikvd on a private socket in a temporary directory. */
#ifndef TKV_TESTS_DAEMON_AID_H
#define TKV_TESTS_DAEMON_AID_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct daemon_aid {
    pid_t pid;
    char directory[64];
    char socket[96];
    char config[96]; /* the file, which tests may rewrite */
    char log[96];    /* its stderr */
};

/* Start with this configuration text (listen.socket and profiles.directory are added on the command
 * line); asserts that it answers. The program is $TRIKV_BIN/trikvd, else ../bin/trikvd beside
 * the test. */
void daemon_start(struct daemon_aid *d, const char *config_text);

/* Send the signal and wait; the exit status as waitpid gives it. Removes the directory. */
int daemon_stop(struct daemon_aid *d, int signal);

bool daemon_alive(const struct daemon_aid *d);
void daemon_write_config(const struct daemon_aid *d, const char *text);

/* For a group of tests: one daemon with small limits, its state a struct daemon_aid, its directory
 * open to other users; and a connection to it that has said hello. */
int daemon_set_up(void **state);
int daemon_tear_down(void **state);
int daemon_hello(void **state);

/* True once the log has this text; waits for it up to a second. */
bool daemon_logged(const struct daemon_aid *d, const char *text);

/* How many descriptors the daemon has open. */
unsigned daemon_fds(const struct daemon_aid *d);

/* What a daemon holds, the connection that asks included. */
struct daemon_rest {
    uint64_t memory_bytes;
    unsigned n_fds;
    uint32_t n_connections;
    uint32_t n_sessions;
};

/* Right now, asked by this connection. */
struct daemon_rest daemon_holds(const struct daemon_aid *d, int fd);
bool daemon_rest_same(const struct daemon_rest *a, const struct daemon_rest *b);

/* Of a daemon that has come to rest: waits until this stays the same. */
struct daemon_rest daemon_rest_of(const struct daemon_aid *d);

/* The daemon lives, serves a good client, and holds again what it held before: what is on its way
 * out has some seconds. */
void daemon_check_well(const struct daemon_aid *d, const struct daemon_rest *before);

/* The path of the trikvd program. */
void daemon_program(char *path, size_t n);

void sleep_ms(unsigned ms);

#endif /* TKV_TESTS_DAEMON_AID_H */
