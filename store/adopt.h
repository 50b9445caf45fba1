/*
 * Taking over what another process has left: an arena, and the sessions that it kept there
 * (tkv_session_keep). What is found is checked like a peer's message; an error of one session
 * leaves the others. One thread.
 */
#ifndef TKV_STORE_ADOPT_H
#define TKV_STORE_ADOPT_H

#include "store/image.h"
#include "store/session.h"

struct tkv_adoption;

/* fd stays the caller's. */
int tkv_adoption_begin(struct tkv_adoption **adoption, int fd, struct tkv_budget *budget,
                       const struct tkv_kernels *kn, struct tkv_report *why);

/* A session before it is made. The views are valid until the next one is looked at. */
struct tkv_adopted {
    struct tkv_image_config *config; /* see there who fills what into it */
    const void *note;
    size_t note_bytes;
    const uint32_t *ids;
    uint32_t n_ids;
};

/* The next session: 0 and *found, or 0 and not; or what is wrong with it, and the next call goes on. */
int tkv_adoption_next(struct tkv_adoption *a, bool *found, struct tkv_adopted *out,
                      struct tkv_report *why);

/* Make it, kept as before. Not to be used before end. */
int tkv_adoption_take(struct tkv_adoption *a, struct tkv_session **session, struct tkv_report *why);

/* The session that was found last is not wanted: it is not found again. */
void tkv_adoption_refuse(struct tkv_adoption *a);

/* What no session refers to is given back. */
void tkv_adoption_end(struct tkv_adoption **adoption);

/* The arena's name, as tkv_session_arena_id says it. */
uint64_t tkv_adoption_arena_id(const struct tkv_adoption *a);

#endif /* TKV_STORE_ADOPT_H */
