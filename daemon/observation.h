/*
 * What a session has seen of its model's queries: sums of which CALIBRATE makes the statistics
 * of a profile. Loop thread, or the one job that works on the session.
 */
#ifndef TKV_DAEMON_OBSERVATION_H
#define TKV_DAEMON_OBSERVATION_H

#include "core/rope.h"
#include "daemon/profile_text.h"
#include "proto/report.h"

struct tkv_budget;
struct tkv_kernels;
struct tkv_observation;
struct tkv_session;
struct tkv_step;

/* Sums for all layers of a session, which a profile must be able to describe: one shape. Counted in
 * the budget. 0, or an error with *o NULL. */
int tkv_observation_create(struct tkv_observation **o, const struct tkv_session *session,
                           const struct tkv_rope_params *rope, struct tkv_budget *budget,
                           struct tkv_report *why);
void tkv_observation_destroy(struct tkv_observation **o, struct tkv_budget *budget);

/* 0 for NULL. */
size_t tkv_observation_bytes(const struct tkv_observation *o);

/* Add step->q of a layer: after RoPE, at step->positions, or before. Checked before
 * anything changes. */
int tkv_observation_add(struct tkv_observation *o, const struct tkv_step *step, bool before_rope,
                        const struct tkv_kernels *kn, const struct tkv_exec *exec,
                        struct tkv_report *why);
uint64_t tkv_observation_n_tokens(const struct tkv_observation *o, uint32_t layer);

/* Take the names of a profile to be (copied, checked) and see whether every layer has queries. */
int tkv_observation_name(struct tkv_observation *o, const char *name, const char *architecture,
                         const char *fingerprint, struct tkv_report *why);

/* Room that printing needs, and the text of the profile in memory[room]; *n_bytes of it. */
size_t tkv_observation_room(const struct tkv_observation *o);
int tkv_observation_print(const struct tkv_observation *o, void *memory, size_t *n_bytes,
                          struct tkv_report *why);

/* Observed tokens of the layer that has the fewest. */
uint64_t tkv_observation_fewest(const struct tkv_observation *o, uint32_t *layer);

#endif /* TKV_DAEMON_OBSERVATION_H */
