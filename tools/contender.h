/*
 * What takes part in a comparison at equal resident bytes: a policy with the codec that belongs to
 * it, and the settings that make it as large as it may be.
 */
#ifndef TKV_TOOLS_CONTENDER_H
#define TKV_TOOLS_CONTENDER_H

#include "core/codec.h"
#include "tools/replay.h"

struct tkv_contender {
    char name[48];      /* as it was asked for */
    char method[32];    /* of the daemon */
    char allocator[16]; /* of its budgets, "": its usual one */
    const char *codec;  /* of keys and values; NULL: what the method says itself */
    bool planned;       /* takes its budget in bytes, and plans it for a number of tokens */
    bool fixed;         /* keeps every token: it has one size, whatever is asked for */
};

/*
 * From a name: "fp16" and the names of codecs keep every token; any other is a method of the
 * daemon, which knows best whether there is one, with "+ALLOCATOR" and ":CODEC" behind it or its
 * usual ones.
 * 0, or -1 with a text.
 */
int tkv_contender_parse(struct tkv_contender *c, const char *name, struct tkv_reason *why);

/* The options of a session of it without a budget; `base` names socket, profile and chunk. */
struct tkv_remote_options tkv_contender_options(const struct tkv_contender *c,
                                                const struct tkv_remote_options *base);

/* Whether the daemon opens such a session for this model: 0, or -1 with what it said. */
int tkv_contender_check(const struct tkv_contender *c, const struct tkv_engine *engine,
                        const struct tkv_remote_options *base, struct tkv_reason *why);

/*
 * Settings with which a session that has read the recording is as large as it can be
 * without being over target_bytes; *found is that session's replay with attention. 0, or -1 with a
 * text if there are none, or if the daemon refuses them.
 */
int tkv_contender_fit(const struct tkv_contender *c, const struct tkv_recording *r,
                      double target_bytes, struct tkv_remote_options *o, struct tkv_replayed *found,
                      struct tkv_reason *why);

/* Take back what makes a session `excess_bytes` smaller; false if nothing is left to take. */
bool tkv_contender_shrink(struct tkv_remote_options *o, const struct tkv_replayed *found,
                          double excess_bytes);

#endif /* TKV_TOOLS_CONTENDER_H */
