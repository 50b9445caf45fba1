/* Collecting what observers are shown of sessions. */
#include "daemon/survey.h"

#include <stdlib.h>

#include "daemon/server.h"

const char *const tkv_tier_names[TKV_N_TIERS] = {"pinned",      "tail",      "cold_keys",
                                                 "cold_values", "cold_meta", "other"};

void tkv_tiers_of_layer(const struct tkv_layer_stats *l, struct tkv_tiers *out)
{
    *out = (struct tkv_tiers){.bytes = {[TKV_TIER_PINNED] = l->pinned_bytes,
                                        [TKV_TIER_TAIL] = l->tail_bytes,
                                        [TKV_TIER_COLD_KEYS] = l->cold_bytes_k,
                                        [TKV_TIER_COLD_VALUES] = l->cold_bytes_v,
                                        [TKV_TIER_COLD_META] = l->cold_bytes_meta}};
}

static int by_id(const void *a, const void *b)
{
    const struct tkv_session_entry *const *x = a, *const *y = b;

    return ((*x)->id > (*y)->id) - ((*x)->id < (*y)->id);
}

static void add_entry(struct tkv_survey *v, struct tkv_session_entry *e)
{
    const struct tkv_session_stats *stats = tkv_sessions_stats(e);

    v->entry[v->n++] = e;
    v->resident_bytes += stats->resident_bytes;
    v->fp16_bytes += stats->fp16_bytes;
    for (size_t i = 0; i < TKV_N_TIERS; i++)
        v->tiers.bytes[i] += e->tiers.bytes[i];
}

void tkv_survey_take(struct tkv_survey *v, struct tkv_server *s)
{
    const struct tkv_sessions *t = &s->sessions;

    *v = (struct tkv_survey){.entry = calloc(t->n + 1, sizeof(struct tkv_session_entry *))};
    for (size_t b = 0; v->entry && b < TKV_SESSION_BUCKETS; b++) {
        for (struct tkv_session_entry *e = t->bucket[b]; e; e = e->next) {
            if (e->session && !e->doomed)
                add_entry(v, e);
        }
    }
    if (v->n)
        qsort(v->entry, v->n, sizeof(struct tkv_session_entry *), by_id);
}

void tkv_survey_deinit(struct tkv_survey *v)
{
    free(v->entry);
    *v = (struct tkv_survey){.n = 0};
}

double tkv_compression_ratio(uint64_t fp16_bytes, uint64_t resident_bytes)
{
    return resident_bytes ? (double)fp16_bytes / (double)resident_bytes : 0;
}
