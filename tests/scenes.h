/* Sessions of every method and every kind of codec, for tests of what must hold for all of them. */
#ifndef TKV_TESTS_SCENES_H
#define TKV_TESTS_SCENES_H

#include "tests/session_aid.h"

enum { N_SCENES = 25 };

const char *scene_name(size_t scene);

/* With a rollback of 16 tokens; close frees what open allocated. */
void scene_open(struct aid *a, size_t scene);
/* All but the session itself, of another shape; a NULL shape: the usual one. */
void scene_configure(struct aid *a, size_t scene, const struct tkv_shape *shape);
/* Of a shape whose tokens are long enough for all of them. */
void scene_most(struct aid *a);
void scene_close(struct aid *a);

/* Tokens that a session can take at once. */
uint32_t scene_step(const struct aid *a);
void scene_feed(struct aid *a, struct tkv_session *s, const struct aid_tokens *t, uint32_t first,
                uint32_t n);

#endif /* TKV_TESTS_SCENES_H */
