/* Shares of the memory; see quota.h. */
#include "daemon/quota.h"

#include <assert.h>
#include <stddef.h>

#include "daemon/server.h"
#include "proto/errors.h"

static size_t cap_of(uint64_t limit_bytes, const struct tkv_server *s)
{
    return limit_bytes && limit_bytes < s->budget.cap_bytes ? (size_t)limit_bytes
                                                            : s->budget.cap_bytes;
}

static struct tkv_quota *create(struct tkv_server *s, uid_t uid)
{
    struct tkv_quota *q = tkv_budget_alloc(&s->budget, sizeof(*q));

    if (q) {
        q->server = s;
        q->uid = uid;
        q->n_refs = 1;
    }
    return q;
}

struct tkv_quota *tkv_quota_of_user(struct tkv_server *s, uid_t uid)
{
    struct tkv_quota *q = s->users;

    while (q && q->uid != uid)
        q = q->next;
    if (q)
        return tkv_quota_ref(q);
    q = create(s, uid);
    if (q) {
        tkv_budget_init_part(&q->budget, cap_of(s->config.user_memory_bytes, s), &s->budget);
        q->next = s->users;
        s->users = q;
    }
    return q;
}

struct tkv_quota *tkv_quota_of_family(struct tkv_quota *user)
{
    struct tkv_server *const s = user->server;
    struct tkv_quota *q = create(s, user->uid);

    if (q) {
        q->user = tkv_quota_ref(user);
        tkv_budget_init_part(&q->budget, cap_of(s->config.session_memory_bytes, s), &user->budget);
    }
    return q;
}

struct tkv_quota *tkv_quota_ref(struct tkv_quota *q)
{
    q->n_refs++;
    return q;
}

static void remove_user(struct tkv_quota *q)
{
    struct tkv_quota **at = &q->server->users;

    while (*at != q)
        at = &(*at)->next;
    *at = q->next;
}

void tkv_quota_unref(struct tkv_quota **quota)
{
    struct tkv_quota *q = *quota;

    *quota = NULL;
    if (!q || --q->n_refs)
        return;
    assert(atomic_load(&q->budget.used_bytes) == 0);
    if (q->user)
        tkv_quota_unref(&q->user);
    else
        remove_user(q);
    tkv_budget_free(&q->server->budget, q, sizeof(*q));
}

bool tkv_quota_explain(struct tkv_quota *q, struct tkv_report *why)
{
    struct tkv_budget *const b = &q->budget;
    const bool refused = atomic_exchange(&b->refused, false);
    const struct tkv_report first = *why;

    if (!refused || b->cap_bytes == q->server->budget.cap_bytes)
        return false;
    if (q->user)
        tkv_fail(why, TRIKV_E_QUOTA,
                 "the session and its forks hold %zu bytes, limits.session_memory is %zu: %s",
                 atomic_load(&b->used_bytes), b->cap_bytes, first.text);
    else
        tkv_fail(why, TRIKV_E_QUOTA, "user %u holds %zu bytes, limits.user_memory is %zu: %s",
                 (unsigned)q->uid, atomic_load(&b->used_bytes), b->cap_bytes, first.text);
    return true;
}
