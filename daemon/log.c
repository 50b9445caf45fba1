/* Log lines, each written with one call so that lines of several processes do not mix. */
#include "daemon/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { LINE_BYTES = 1024 };

const char *const tkv_log_level_names[] = {"error", "warn", "info", "debug", NULL};

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

/* The journal has its own clock and reads a priority; a plain log needs the time. */
static size_t begin_line(const struct tkv_log *log, enum tkv_log_level level, char *line, size_t n)
{
    static const char priority[] = {'3', '4', '6', '7'}; /* syslog(3) */
    const time_t now = time(NULL);
    struct tm utc;

    if (log->journal)
        return (size_t)snprintf(line, n, "<%c>", priority[level]);
    return strftime(line, n, "ts=%Y-%m-%dT%H:%M:%SZ ", gmtime_r(&now, &utc));
}

void tkv_log(const struct tkv_log *log, enum tkv_log_level level, const char *format, ...)
{
    char line[LINE_BYTES];
    size_t n;
    va_list args;
    int wrote;

    if (level > log->level)
        return;
    n = begin_line(log, level, line, sizeof(line));
    n += (size_t)snprintf(line + n, sizeof(line) - n, "level=%s ", tkv_log_level_names[level]);
    va_start(args, format);
    wrote = vsnprintf(line + n, sizeof(line) - n - 1, format, args);
    va_end(args);
    n += wrote < 0 ? 0 : (size_t)wrote;
    if (n > sizeof(line) - 2)
        n = sizeof(line) - 2;
    line[n++] = '\n';
    fwrite(line, 1, n, stderr);
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
