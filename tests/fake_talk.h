/* The usual dialog between libtrikv and a fake daemon, for tests that spoil one part of it. */
#ifndef TKV_TESTS_FAKE_TALK_H
#define TKV_TESTS_FAKE_TALK_H

#include "client/trikv.h"
#include "tests/fake.h"

/* The geometry of the sessions that fake_open_on opens. */
enum { N_Q = 2, N_KV = 1, DIM = 8 };

/* The fake of a test group, and the group's setup and teardown. */
extern struct fake fake;
int fake_setup(void **state);
int fake_teardown(void **state);

/* In the fake's thread: answer HELLO; HELLO and OPEN; OPEN (whose request the caller releases). */
struct fake_frame fake_hello_frame(void);
bool fake_answer_hello(int fd);
bool fake_prepare(int fd);
bool fake_answer_open(int fd, struct fake_request *q);

/* Send `frame` as the answer to the first request, or the first after OPEN, and close. */
struct fake_raw {
    struct fake_frame frame;
    size_t n_bytes; /* of the frame, to cut it short */
    int pass_fd;
    unsigned n_fds;
    bool after_open;
};
void fake_serve_raw(int fd, void *arg);

/* In the test: connect; open a session of two layers; both, which must succeed. */
int fake_connect(struct trikv_client **c, uint32_t timeout_ms, size_t staging_bytes);
int fake_open_on(struct trikv_client *c, struct trikv_session **s);
void fake_open_session(struct trikv_client **c, struct trikv_session **s, uint32_t timeout_ms,
                       size_t staging_bytes);

/* Overwrite a field of a frame; it must be sealed again. */
void fake_set_u16(struct fake_frame *f, size_t at, uint16_t x);
void fake_set_u32(struct fake_frame *f, size_t at, uint32_t x);
void fake_set_u64(struct fake_frame *f, size_t at, uint64_t x);

#endif /* TKV_TESTS_FAKE_TALK_H */
