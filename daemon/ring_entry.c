/* From an entry of a ring to a step of a session: nothing in it is believed. */
#include "daemon/ring.h"
#include "proto/errors.h"

/* A tensor that the op wants, or does not, and where the entry says that it is. */
struct part {
    const char *name;
    uint32_t at;
    size_t bytes;
    bool wanted;
    bool needed;
    uint8_t **to;
};

enum { FETCHED_BYTES = 1024, LINE_BYTES = 64 };

/* Another processor wrote it a moment ago: ask for the beginning of all tensors at once. */
static void fetch(const uint8_t *p, size_t n)
{
    for (size_t at = 0; at < n && at < FETCHED_BYTES; at += LINE_BYTES)
        __builtin_prefetch(p + at);
}

static int find_part(const struct tkv_ring_view *v, const struct part *p, struct tkv_report *why)
{
    int e;

    if (p->at == 0)
        return p->needed ? tkv_fail(why, TRIKV_E_ARGUMENT, "ring entry: %s is missing", p->name)
                         : TRIKV_OK;
    if (!p->wanted)
        return tkv_fail(why, TRIKV_E_ARGUMENT, "ring entry: %s is not for this op", p->name);
    e = tkv_ring_check_range(p->at, p->bytes, v->n_entries, v->bytes, p->name, why);
    if (e)
        return e;
    *p->to = v->base + (uint64_t)p->at * TRIKV_RING_ALIGN;
    fetch(*p->to, p->bytes);
    return TRIKV_OK;
}

int tkv_ring_step(const struct tkv_ring_view *v, const struct trikv_ring_entry *e,
                  const struct tkv_session *s, struct tkv_step *step, const uint32_t **token_ids,
                  struct tkv_report *why)
{
    const bool appends = e->op == TRIKV_RING_APPEND || e->op == TRIKV_RING_APPEND_ATTEND;
    const bool attends = e->op == TRIKV_RING_ATTEND || e->op == TRIKV_RING_APPEND_ATTEND;
    uint8_t *positions = NULL, *ids = NULL;
    uint8_t *k = NULL, *v_ = NULL, *q = NULL, *out = NULL, *lse = NULL;
    struct tkv_step_bytes b = {0};
    int error = tkv_session_step_bytes(s, e->layer, e->n_tokens, (enum tkv_dtype)e->dtype, &b, why);
    const bool has_values = appends && b.v > 0; /* latents have none */
    const struct part parts[] = {
        {"positions", e->positions, e->n_tokens * sizeof(int32_t), true, false, &positions},
        {"token ids", e->token_ids, e->n_tokens * sizeof(uint32_t), appends, false, &ids},
        {"K", e->k, b.k, appends, appends, &k},
        {"V", e->v, b.v, has_values, has_values, &v_},
        {"Q", e->q, b.q, attends, attends, &q},
        {"O", e->out, b.out, attends, attends, &out},
        {"LSE", e->lse, b.lse, attends, false, &lse},
    };

    for (size_t i = 0; !error && i < sizeof(parts) / sizeof(parts[0]); i++)
        error = find_part(v, &parts[i], why);
    if (error)
        return error;
    *token_ids = (const uint32_t *)(const void *)ids;
    *step = (struct tkv_step){
        .layer = e->layer,
        .n_tokens = e->n_tokens,
        .dtype = (enum tkv_dtype)e->dtype,
        .positions = (const int32_t *)(const void *)positions,
        .k = k,
        .v = v_,
        .q = q,
        .out = (float *)(void *)out,
        .lse = (float *)(void *)lse,
    };
    return TRIKV_OK;
}
