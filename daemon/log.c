/* Log lines, each written with one call so that lines of several processes do not mix. */
#include "daemon/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "daemon/text.h"

enum { LINE_BYTES = 1024 };

const char *const tkv_log_level_names[] = {"error", "warn", "info", "debug", NULL};
const char *const tkv_log_format_names[] = {"logfmt", "json", NULL};

/* $JOURNAL_STREAM names the device and inode of the stream that goes to the journal; only
 * if stderr is that very stream does the journal read it. */
static bool stderr_is_journal(void)
{
    const char *stream = getenv("JOURNAL_STREAM");
    unsigned long long dev, ino;
    struct stat s;

    return stream && sscanf(stream, "%llu:%llu", &dev, &ino) == 2 &&
           fstat(STDERR_FILENO, &s) == 0 && s.st_dev == dev && s.st_ino == ino;
}

void tkv_log_init(struct tkv_log *log, enum tkv_log_level level)
{
    log->level = level;
    log->journal = stderr_is_journal();
}

/* The journal has its own clock; a plain log needs the time. */
static size_t begin_line(const struct tkv_log *log, enum tkv_log_level level, char *line, size_t n)
{
    const time_t now = time(NULL);
    size_t used = 0;
    struct tm utc;

    if (!log->journal)
        used = strftime(line, n, "ts=%Y-%m-%dT%H:%M:%SZ ", gmtime_r(&now, &utc));
    return used + (size_t)snprintf(line + used, n - used, "level=%s ", tkv_log_level_names[level]);
}

/* The text of a value: what stands between its quotes, or up to the next blank. */
static const char *value_end(const char *value, bool quoted)
{
    while (*value && *value != (quoted ? '"' : ' '))
        value += quoted && value[0] == '\\' && value[1] ? 2 : 1;
    return value;
}

/* As JSON writes one: no sign but a minus, no leading zeros, no exponent. */
static bool is_number(const char *value, size_t n)
{
    size_t i = n && value[0] == '-';
    const size_t first = i;

    while (i < n && value[i] >= '0' && value[i] <= '9')
        i++;
    if (i == first || (value[first] == '0' && i > first + 1))
        return false;
    if (i < n && value[i] == '.' && i + 1 < n)
        for (i++; i < n && value[i] >= '0' && value[i] <= '9';)
            i++;
    return i == n;
}

/* The escapes of a quoted logfmt value, \" and \\, are those of JSON. */
static void add_pair(struct tkv_text *t, const char *key, size_t key_bytes, const char *value,
                     size_t value_bytes)
{
    char copy[LINE_BYTES];
    const bool number = is_number(value, value_bytes);

    tkv_text_add(t, "%s\"%.*s\":%s", t->n_bytes > 1 ? "," : "", (int)key_bytes, key,
                 number ? "" : "\"");
    snprintf(copy, sizeof(copy), "%.*s", (int)value_bytes, value);
    tkv_text_add_clean(t, copy);
    if (!number)
        tkv_text_add(t, "\"");
}

size_t tkv_log_json(const char *logfmt, char *buf, size_t n)
{
    struct tkv_text t;
    size_t whole = 1;

    tkv_text_init(&t, buf, n - 2); /* room for the brace and a NUL */
    tkv_text_add(&t, "{");
    while (!t.overflow && *logfmt) {
        const size_t key_bytes = strcspn(logfmt, "= ");
        const char *value = logfmt + key_bytes + 1;
        const bool quoted = logfmt[key_bytes] && *value == '"';
        const char *end;

        if (logfmt[key_bytes] != '=') {
            logfmt += key_bytes + (logfmt[key_bytes] != 0); /* a blank, or a word that is no pair */
            continue;
        }
        value += quoted;
        end = value_end(value, quoted);
        add_pair(&t, logfmt, key_bytes, value, (size_t)(end - value));
        whole = t.overflow ? whole : t.n_bytes;
        logfmt = end + (quoted && *end);
    }
    buf[whole] = '}';
    buf[whole + 1] = 0;
    return whole + 1;
}

/* A line that is cut inside a quoted value may end in half an escape. */
static void format_line(const struct tkv_log *log, enum tkv_log_level level, char *line,
                        const char *format, va_list args)
{
    size_t n = begin_line(log, level, line, LINE_BYTES), n_slashes = 0;
    const int wrote = vsnprintf(line + n, LINE_BYTES - n, format, args);

    n += wrote < 0 ? 0 : (size_t)wrote;
    if (n < LINE_BYTES)
        return;
    n = LINE_BYTES - 1;
    while (n_slashes < n && line[n - n_slashes - 1] == '\\')
        n_slashes++;
    line[n - n_slashes % 2] = 0;
}

void tkv_log(const struct tkv_log *log, enum tkv_log_level level, const char *format, ...)
{
    static const char priority[] = {'3', '4', '6', '7'}; /* syslog(3), as the journal reads it */
    char line[LINE_BYTES], out[2 * LINE_BYTES + 8];
    size_t n = 0;
    va_list args;

    if (level > log->level)
        return;
    va_start(args, format);
    format_line(log, level, line, format, args);
    va_end(args);
    if (log->journal)
        n = (size_t)snprintf(out, sizeof(out), "<%c>", priority[level]);
    if (log->format == TKV_LOG_JSON)
        n += tkv_log_json(line, out + n, sizeof(out) - n - 1);
    else
        n += (size_t)snprintf(out + n, sizeof(out) - n - 1, "%s", line);
    out[n++] = '\n';
    fwrite(out, 1, n, stderr);
}

const char *tkv_log_quote(char *buf, size_t n, const char *text)
{
    size_t at = 0;

    buf[at++] = '"';
    for (; *text && at + 4 < n; text++) {
        const unsigned char c = (unsigned char)*text;

        if (c == '"' || c == '\\')
            buf[at++] = '\\';
        buf[at++] = c < 0x20 || c == 0x7f ? '?' : *text;
    }
    buf[at++] = '"';
    buf[at] = 0;
    return buf;
}
