/* Bounded text; see text.h. */
#include "daemon/text.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

void tkv_text_init(struct tkv_text *t, char *data, size_t cap_bytes)
{
    *t = (struct tkv_text){.data = data, .cap_bytes = cap_bytes};
}

void tkv_text_add(struct tkv_text *t, const char *format, ...)
{
    const size_t room = t->cap_bytes - t->n_bytes;
    va_list args;
    int n;

    if (t->overflow)
        return;
    va_start(args, format);
    n = vsnprintf(t->data + t->n_bytes, room, format, args);
    va_end(args);
    if (n < 0 || (size_t)n >= room)
        t->overflow = true;
    else
        t->n_bytes += (size_t)n;
}

static void add_bytes(struct tkv_text *t, const char *bytes, size_t n)
{
    if (t->overflow || n > t->cap_bytes - t->n_bytes) {
        t->overflow = true;
        return;
    }
    memcpy(t->data + t->n_bytes, bytes, n);
    t->n_bytes += n;
}

/* Bytes of the well-formed character of two or more bytes at s (RFC 3629), 0 if it is none. */
static size_t long_character(const unsigned char *s)
{
    const size_t n = s[0] >= 0xc2 && s[0] <= 0xdf   ? 2
                     : s[0] >= 0xe0 && s[0] <= 0xef ? 3
                     : s[0] >= 0xf0 && s[0] <= 0xf4 ? 4
                                                    : 0;

    for (size_t i = 1; i < n; i++) {
        if ((s[i] & 0xc0) != 0x80)
            return 0;
    }
    /* Overlong forms, surrogates, beyond U+10FFFF; C1 controls, which a terminal obeys. */
    if ((s[0] == 0xe0 && s[1] < 0xa0) || (s[0] == 0xed && s[1] > 0x9f) ||
        (s[0] == 0xf0 && s[1] < 0x90) || (s[0] == 0xf4 && s[1] > 0x8f) ||
        (s[0] == 0xc2 && s[1] < 0xa0))
        return 0;
    return n;
}

/* Each of `special` is written as the text at the same index of `as`. */
static void add_escaped(struct tkv_text *t, const char *value, const char *special,
                        const char *const *as)
{
    for (const char *s = value; *s;) {
        const unsigned char c = (unsigned char)*s;
        const char *at = strchr(special, *s);
        const size_t n = c < 0x80 ? 1 : long_character((const unsigned char *)s);

        if (at)
            add_bytes(t, as[at - special], strlen(as[at - special]));
        else if (n == 0 || c < 0x20 || c == 0x7f)
            add_bytes(t, "?", 1);
        else
            add_bytes(t, s, n);
        s += n ? n : 1;
    }
}

void tkv_text_add_clean(struct tkv_text *t, const char *value)
{
    add_escaped(t, value, "", NULL);
}

void tkv_text_add_label(struct tkv_text *t, const char *value)
{
    static const char *const as[] = {"\\\"", "\\\\"};

    add_escaped(t, value, "\"\\", as);
}

void tkv_text_add_html(struct tkv_text *t, const char *value)
{
    static const char *const as[] = {"&amp;", "&lt;", "&gt;", "&quot;", "&#39;"};

    add_escaped(t, value, "&<>\"'", as);
}
