/* A configuration as text, and two of them compared. */
#include <inttypes.h>
#include <string.h>

#include "daemon/config_priv.h"

enum { NOTE_COLUMN = 44 };

/* With the largest unit that divides it. */
static void format_bytes(uint64_t bytes, char *buf, size_t n)
{
    static const char *const unit[] = {"", "KiB", "MiB", "GiB"};
    unsigned i = 0;

    while (i < 3 && bytes && bytes % 1024 == 0) {
        bytes /= 1024;
        i++;
    }
    snprintf(buf, n, "%" PRIu64 "%s", bytes, unit[i]);
}

static void format_duration(uint64_t ms, char *buf, size_t n)
{
    if (ms == 0)
        snprintf(buf, n, "0");
    else if (ms % 60000 == 0)
        snprintf(buf, n, "%" PRIu64 "min", ms / 60000);
    else if (ms % 1000 == 0)
        snprintf(buf, n, "%" PRIu64 "s", ms / 1000);
    else
        snprintf(buf, n, "%" PRIu64 "ms", ms);
}

/* In double quotes, so that every path reads back as it was. */
static void format_text(const char *text, char *buf, size_t n)
{
    size_t at = 0;

    buf[at++] = '"';
    for (; *text && at + 4 < n; text++) {
        if (*text == '"' || *text == '\\')
            buf[at++] = '\\';
        buf[at++] = *text;
    }
    buf[at++] = '"';
    buf[at] = 0;
}

const char *tkv_config_format(const struct tkv_config *c, const struct tkv_option *o, char *buf,
                              size_t n)
{
    const void *const field = (const char *)c + o->offset;
    const uint32_t *const u32 = field;
    const uint64_t *const u64 = field;

    switch (o->type) {
    case TKV_OPTION_TEXT: format_text(field, buf, n); break;
    case TKV_OPTION_MODE: snprintf(buf, n, "\"%04o\"", *u32); break;
    case TKV_OPTION_U32: snprintf(buf, n, "%u", *u32); break;
    case TKV_OPTION_CAP:
        if (*u64 == 0)
            snprintf(buf, n, "auto");
        else
            format_bytes(*u64, buf, n);
        break;
    case TKV_OPTION_BYTES: format_bytes(*u64, buf, n); break;
    case TKV_OPTION_DURATION: format_duration(*u64, buf, n); break;
    case TKV_OPTION_ENUM: snprintf(buf, n, "%s", o->names[*u32]); break;
    case TKV_OPTION_CODEC: snprintf(buf, n, "%s", tkv_codec_by_id(*u32)->name); break;
    case TKV_OPTION_BOOL: snprintf(buf, n, "%s", *(const bool *)field ? "true" : "false"); break;
    }
    return buf;
}

static void print_origin(const struct tkv_config *c, const struct tkv_config_origin *origin,
                         FILE *out)
{
    switch (origin->source) {
    case TKV_FROM_DEFAULT: fputs("default", out); break;
    case TKV_FROM_FILE: fprintf(out, "%s:%u", c->file, origin->line); break;
    case TKV_FROM_COMMAND_LINE: fputs("command line", out); break;
    }
}

/* Blanks that bring the notes about origins under each other. */
static int width(const char *key, const char *value)
{
    const size_t n = strlen(key) + strlen(value);

    return n < NOTE_COLUMN ? (int)(NOTE_COLUMN - n) : 0;
}

void tkv_config_print(const struct tkv_config *c, FILE *out)
{
    const char *section = "";
    char value[2 * TKV_CONFIG_PATH_BYTES + 8];

    for (size_t i = 0; i < tkv_config_n_options(); i++) {
        const struct tkv_option *o = &tkv_config_options[i];
        const char *const dot = strchr(o->name, '.');
        const size_t length = (size_t)(dot - o->name);

        if (strncmp(section, o->name, length + 1) != 0)
            fprintf(out, "%.*s:\n", (int)length, o->name);
        section = o->name;
        tkv_config_format(c, o, value, sizeof(value));
        fprintf(out, "  %s: %s%*s # ", dot + 1, value, width(dot + 1, value), "");
        print_origin(c, &c->origin[i], out);
        fputc('\n', out);
    }
}

static bool same(const struct tkv_config *a, const struct tkv_config *b, const struct tkv_option *o)
{
    char x[2 * TKV_CONFIG_PATH_BYTES + 8], y[sizeof(x)];

    return strcmp(tkv_config_format(a, o, x, sizeof(x)), tkv_config_format(b, o, y, sizeof(y))) ==
           0;
}

const char *tkv_config_fixed_difference(const struct tkv_config *a, const struct tkv_config *b)
{
    for (size_t i = 0; i < tkv_config_n_options(); i++) {
        if (!tkv_config_options[i].reloadable && !same(a, b, &tkv_config_options[i]))
            return tkv_config_options[i].name;
    }
    return NULL;
}

bool tkv_config_equal(const struct tkv_config *a, const struct tkv_config *b)
{
    for (size_t i = 0; i < tkv_config_n_options(); i++) {
        if (!same(a, b, &tkv_config_options[i]))
            return false;
    }
    return true;
}
