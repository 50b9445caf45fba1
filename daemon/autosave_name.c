/* The names of files that nobody named: of the session's label, so that who knows that finds the file. */
#include <stdio.h>
#include <string.h>
#include <xxhash.h>

#include "daemon/autosave_priv.h"
#include "daemon/server.h"

/* So that a number and "broken." still fit. */
enum { LABEL_BYTES = 46, SHORT_BYTES = 29 };

static bool is_allowed(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' ||
           c == '_' || c == '-';
}

/* "auto.LABEL"; a label that is no name, or is long, gets its hash behind what can be shown of it. */
static void write_base(const char *label, char *base, size_t n)
{
    char text[LABEL_BYTES + 1] = "unnamed";
    const size_t label_bytes = strlen(label);
    bool is_name = label_bytes <= LABEL_BYTES;

    for (size_t i = 0; i < label_bytes && i < LABEL_BYTES; i++) {
        is_name &= is_allowed(label[i]);
        text[i] = is_allowed(label[i]) ? label[i] : '_';
        text[i + 1] = 0;
    }
    if (is_name)
        (void)snprintf(base, n, TKV_AUTOSAVE_PREFIX "%s", text);
    else
        (void)snprintf(base, n, TKV_AUTOSAVE_PREFIX "%.*s-%016llx", SHORT_BYTES, text,
                       (unsigned long long)XXH3_64bits(label, label_bytes));
}

bool tkv_autosave_is_taken(const struct tkv_server *s, uid_t uid, const char *name)
{
    for (size_t b = 0; b < TKV_SESSION_BUCKETS; b++)
        for (const struct tkv_session_entry *e = s->sessions.bucket[b]; e; e = e->next)
            if (e->uid == uid && strcmp(e->autosave.name, name) == 0)
                return true;
    for (const struct tkv_autosave_item *i = s->autosave.items; i; i = i->next)
        if (i->uid == uid && strcmp(i->name, name) == 0)
            return true;
    return false;
}

/* A label may be that of several sessions: the others' files are numbered. */
void tkv_autosave_name(struct tkv_session_entry *e)
{
    char base[TRIKV_MAX_NAME_BYTES + 1], name[TRIKV_MAX_NAME_BYTES + 16];

    if (e->autosave.name[0])
        return;
    write_base(e->label, base, sizeof(base));
    (void)snprintf(name, sizeof(name), "%s", base);
    for (unsigned k = 2; tkv_autosave_is_taken(e->server, e->uid, name); k++)
        (void)snprintf(name, sizeof(name), "%s.%u", base, k);
    memcpy(e->autosave.name, name, strlen(name) + 1);
}
