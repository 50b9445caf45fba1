/* The real trikvd for a test, and sessions on it through libtrikv. */
#ifndef TKV_TESTS_SERVICE_H
#define TKV_TESTS_SERVICE_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "client/trikv.h"

enum { SERVICE_LAYERS = 3, SERVICE_TOKENS = 400 };

/* Setup and teardown of a cmocka group: one daemon, on a private socket. Programs are
 * taken from $TRIKV_BIN, else from ../bin beside the folder of the test. */
int service_start(void **state);
int service_stop(void **state);

/* The path of a program of this build, and the socket of the daemon that was started. */
void service_program(const char *name, char *path, size_t n);
const char *service_socket(void);
pid_t service_pid(void);

/* These fail the test that calls them if they do not succeed. */
struct trikv_client *service_connect(size_t staging_bytes);
struct trikv_session *service_open(struct trikv_client *c, const char *codec);

/* Layers that differ in everything that layers may differ in, and a session's options: no
 * eviction, 4 pinned and 64 recent tokens, a round every 64. */
extern const struct trikv_layer service_layers[SERVICE_LAYERS];
struct trikv_session_options service_options(const char *codec);

/* All tokens of one layer, and what came back. */
struct service_data {
    const struct trikv_layer *layer;
    int32_t positions[SERVICE_TOKENS];
    float *k;
    float *v;
    float *q;
    float *out;
    float *lse;
};

void service_data_init(struct service_data *d, uint32_t layer);
void service_data_deinit(struct service_data *d);

/* A step of n tokens from token `at` on. */
struct trikv_step service_step(const struct service_data *d, uint32_t layer, size_t at, size_t n);

/* append_attend everything of a layer, in requests of `chunk` tokens. */
void service_feed(struct trikv_client *c, struct trikv_session *s, struct service_data *d,
                  uint32_t layer, size_t chunk);

#endif /* TKV_TESTS_SERVICE_H */
