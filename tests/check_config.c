/* Configuration: what is right is read, printed and read again; every wrong one gives an
 * error with file, line, column and what was wanted. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/config_priv.h"

static unsigned n_malformed; /* configurations that were refused as they should */

static bool parse(const char *text, size_t n, struct tkv_config *c, struct tkv_diag *diag)
{
    memset(diag, 0, sizeof(*diag));
    tkv_config_init(c);
    return tkv_config_parse(c, "x.yaml", text, n, diag) && tkv_config_check(c, diag);
}

static bool has_line(const struct tkv_diag *diag, const char *start, const char *part)
{
    for (size_t i = 0; i < diag->n; i++) {
        if (strncmp(diag->line[i], start, strlen(start)) == 0 && strstr(diag->line[i], part))
            return true;
    }
    return false;
}

/* The text is refused, and one of its errors begins with "x.yaml:place: " and holds part. */
static void refuse_n(const char *text, size_t n, const char *place, const char *part)
{
    struct tkv_config c;
    struct tkv_diag diag;
    const bool good = parse(text, n, &c, &diag);
    char start[64];

    snprintf(start, sizeof(start), "x.yaml:%s: ", place);
    if (good || !has_line(&diag, start, part))
        fail_msg("want \"%s...%s\", got %s \"%s\" for:\n%.*s", start, part,
                 good ? "no error" : "error", diag.n ? diag.line[0] : "", (int)n, text);
    tkv_diag_deinit(&diag);
    n_malformed++;
}

static void refuse(const char *text, const char *place, const char *part)
{
    refuse_n(text, strlen(text), place, part);
}

static const char *const wrong_text[] = {"[a, b]", "{a: b}", "\"a\\u0001b\"", NULL};
static const char *const wrong_u32[] = {"-1",  "1.5", "abc", "99999999999", "\"5\"", "[1]", "0x10",
                                        "1e3", "{}",  "''",  "+1",          "1 2",   NULL};
static const char *const wrong_bytes[] = {
    "12XB",  "-1",   "1.5MiB",    "99999999999999999999",    "[1]",
    "1 MiB", "1mib", "\"64MiB\"", "18446744073709551615GiB", "1",
    NULL};
static const char *const wrong_duration[] = {
    "5x", "-1s", "99999999999min", "1h", "[1]", "1.5s", "s", "30", NULL};
static const char *const wrong_enum[] = {"bogus", "[a]", "5", "''", "INFO", NULL};
static const char *const wrong_bool[] = {"yes", "1", "\"true\"", "[true]", "True", "~", NULL};
static const char *const wrong_mode[] = {"999", "8", "7777", "abc", "[1]", "-660", "''", NULL};

static const char *const *wrong_values(enum tkv_option_type type)
{
    switch (type) {
    case TKV_OPTION_TEXT: return wrong_text;
    case TKV_OPTION_U32: return wrong_u32;
    case TKV_OPTION_BYTES:
    case TKV_OPTION_CAP: return wrong_bytes;
    case TKV_OPTION_DURATION: return wrong_duration;
    case TKV_OPTION_BOOL: return wrong_bool;
    case TKV_OPTION_MODE: return wrong_mode;
    default: return wrong_enum;
    }
}

/* Every option with every kind of wrong value. */
static void check_wrong_values(void **state)
{
    (void)state;
    for (size_t i = 0; i < tkv_config_n_options(); i++) {
        const struct tkv_option *o = &tkv_config_options[i];
        const char *const dot = strchr(o->name, '.');

        for (const char *const *v = wrong_values(o->type); *v; v++) {
            char text[256], place[32];

            if (strcmp(*v, "1") == 0 && o->min <= 1)
                continue; /* small enough for the others of its kind, not for this one */
            snprintf(text, sizeof(text), "# a comment\n%.*s:\n  %s: %s\n", (int)(dot - o->name),
                     o->name, dot + 1, *v);
            snprintf(place, sizeof(place), "3:%zu", 3 + strlen(dot + 1) + 2);
            refuse(text, place, o->name);
        }
    }
}

/* A letter too many in every key: told where, and what was probably meant. */
static void check_unknown_keys(void **state)
{
    (void)state;
    for (size_t i = 0; i < tkv_config_n_options(); i++) {
        const char *const name = tkv_config_options[i].name, *const dot = strchr(name, '.');
        char text[256], part[128];

        snprintf(text, sizeof(text), "%.*s:\n  %sx: 1\n", (int)(dot - name), name, dot + 1);
        snprintf(part, sizeof(part), "did you mean \"%s\"", dot + 1);
        refuse(text, "2:3", part);
        snprintf(text, sizeof(text), "%.*s:\n  %s: %s\n  %s: 1\n", (int)(dot - name), name, dot + 1,
                 *tkv_config_options[i].initial ? tkv_config_options[i].initial : "\"\"", dot + 1);
        refuse(text, "3:3", "is already there, in line 2");
    }
}

struct malformed {
    const char *text;
    const char *place;
    const char *part;
};

static const struct malformed documents[] = {
    {"hello", "1:1", "want a mapping"},
    {"- a\n- b\n", "1:1", "want a mapping"},
    {"listn:\n  socket: x\n", "1:1", "did you mean \"listen\""},
    {"zzzzzzz: 1\n", "1:1", "unknown key \"zzzzzzz\""},
    {"limits: 5\n", "1:9", "limits: want a mapping"},
    {"limits: [a]\n", "1:9", "limits: want a mapping"},
    {"limits: &a {}\n", "1:9", "anchors"},
    {"limits: *a\n", "1:9", "aliases"},
    {"limits: !x {}\n", "1:9", "tags"},
    {"log: {level: !!str info}\n", "1:14", "tags"},
    {"log: {level: &x info}\n", "1:14", "anchors"},
    {"? [a]\n: b\n", "1:3", "a key must be"},
    {"? {a: b}\n: c\n", "1:3", "a key must be"},
    {"log: {level: info}\n---\nlog: {}\n", "2:1", "second document"},
    {"%YAML 1.1\n---\nlog: {}\n", "1:1", "directives"},
    {"%TAG ! tag:x,2000:\n---\nlog: {}\n", "1:1", "directives"},
    {"log:\n\tlevel: info\n", "2:1", "found character that cannot start any token"},
    {"log: {level: info\n", "2:1", "did not find expected"},
    {"log: [level\n", "2:1", "did not find expected"},
    {"log: \"info\n", "2:1", "unexpected end"},
    {"log: 'info\n", "2:1", "unexpected end"},
    {"log:\n  level: info\n limits: {}\n", "3:2", "did not find expected"},
    {"a: b: c\n", "1:5", "mapping values are not allowed"},
    {"log: }\n", "1:6", "did not find expected"},
    {"log: @x\n", "1:6", "cannot start any token"},
    {"log: `x\n", "1:6", "cannot start any token"},
    {"log: {level: \"a\\qb\"}\n", "1:16", "escape"},
    {"log: {level: \"a\\0b\"}\n", "1:14", "NUL"},
    {"defaults: {budget: 100, recent: 128}\n", "1:12", "defaults.pinned + defaults.recent"},
    {"defaults:\n  codec_v: tq4-qjl\n", "2:3", "keys only"},
    {"workers:\n  cpu_disable: sse9\n", "2:3", "avx2,avxvnni,avx512,avx512vnni,neon,dotprod"},
    {"workers:\n  cpu_disable: \"avx2,\"\n", "2:3", "avx2,avxvnni,avx512,avx512vnni,neon,dotprod"},
    {"limits:\n  request_timeout: 0\n", "2:20", "at least 10ms"},
    {"limits:\n  request_timeout: 25000min\n", "2:20", "at most"},
    {"memory:\n  cap: 1KiB\n", "2:8", "1048576"},
    {"limits:\n  payload: 17GiB\n", "2:12", "limits.payload"},
    {"listen:\n  max_connections: 0\n", "2:20", "from 1 to"},
    {"log: {level: info, level: warn}\n", "1:20", "already there"},
    {"log: {}\nlog: {}\n", "2:1", "already there"},
};

static void check_documents(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(documents) / sizeof(documents[0]); i++)
        refuse(documents[i].text, documents[i].place, documents[i].part);
}

/* Errors that C strings cannot hold, or that have no line. */
static void check_bytes(void **state)
{
    char *deep = calloc(1, 200), *wide = calloc(6000, 12);
    size_t n = 0;

    (void)state;
    refuse_n("log:\n  level: in\0fo\n", 20, "2:12", "control characters");
    refuse("log:\n  level: \xff\xfe\n", "2:10", "byte value");
    refuse("log:\n  level: \xc0\xaf\n", "2:10", "byte value");
    refuse("log:\n  level: \xed\xa0\x80\n", "2:10", "byte value");
    refuse("log:\n  level: \x01\n", "2:10", "control characters");
    memset(deep, '[', 40);
    refuse(deep, "1:33", "deeper than 32");
    for (int i = 0; i < 5000; i++)
        n += (size_t)sprintf(wide + n, "k%d: 1\n", i);
    refuse_n(wide, n, "4097:1", "more than 4096 keys");
    free(deep);
    free(wide);
}

/* All errors of a file are told, not only the first. */
static void check_all_errors(void **state)
{
    static const char text[] = "listen:\n  sokcet: /x\n  mode: 999\nlimits:\n  payload: 12XB\n"
                               "  sessions: none\nmemory:\n  cap: 5\n";
    struct tkv_config c;
    struct tkv_diag diag;

    (void)state;
    assert_false(parse(text, strlen(text), &c, &diag));
    assert_int_equal(diag.n, 5);
    assert_true(has_line(&diag, "x.yaml:2:3: ", "did you mean \"socket\""));
    assert_true(has_line(&diag, "x.yaml:8:8: ", "memory.cap"));
    tkv_diag_deinit(&diag);
}

/* The file we ship says what the program does without one. */
static void check_shipped(void **state)
{
    struct tkv_config shipped, built_in;
    struct tkv_diag diag = {0};

    (void)state;
    tkv_config_init(&shipped);
    tkv_config_init(&built_in);
    if (!tkv_config_load(&shipped, "conf/trikvd.yaml", &diag))
        fail_msg("%s", diag.line[0]);
    assert_true(tkv_config_equal(&shipped, &built_in));
    for (size_t i = 0; i < tkv_config_n_options(); i++) {
        if (shipped.origin[i].source != TKV_FROM_FILE)
            fail_msg("conf/trikvd.yaml does not have %s", tkv_config_options[i].name);
    }
}

static void check_good_values(void **state)
{
    static const char text[] =
        "listen: {socket: /a/b, mode: 600, max_connections: 5}\n"
        "memory: {cap: 2GiB}\nlimits:\n  payload: 65536\n  idle_timeout: 5min\n"
        "  request_timeout: 250ms\nlog:\nprofiles: {directory: \"with \\\" quote\"}\n"
        "defaults: {codec_k: tq3-qjl, normalize_scores: false, method: triattention}\n";
    struct tkv_config c;
    struct tkv_diag diag;

    (void)state;
    if (!parse(text, strlen(text), &c, &diag))
        fail_msg("%s", diag.line[0]);
    assert_string_equal(c.socket, "/a/b");
    assert_int_equal(c.socket_mode, 0600);
    assert_int_equal(c.max_connections, 5);
    assert_int_equal(c.memory_cap_bytes, UINT64_C(2) << 30);
    assert_int_equal(c.max_payload_bytes, 65536);
    assert_int_equal(c.idle_timeout_ms, 300000);
    assert_int_equal(c.request_timeout_ms, 250);
    assert_string_equal(c.profiles_directory, "with \" quote");
    assert_int_equal(c.defaults.codec_k, TKV_CODEC_TQ3_QJL);
    assert_false(c.defaults.normalize_scores);
    assert_int_equal(c.max_sessions, 256);
}

/* What --dump-config prints reads back to the same values. */
static void check_print(void **state)
{
    struct tkv_config c, back;
    struct tkv_diag diag = {0};
    char *text = NULL;
    size_t n;
    FILE *out = open_memstream(&text, &n);

    (void)state;
    assert_non_null(out);
    tkv_config_init(&c);
    assert_true(tkv_config_set(&c, "memory.cap", "3MiB", &diag));
    assert_true(tkv_config_set(&c, "profiles.directory", "a \"b\" \\ c # d", &diag));
    assert_true(tkv_config_set(&c, "limits.idle_timeout", "1500ms", &diag));
    assert_true(tkv_config_set(&c, "defaults.codec_v", "tq2.5-paper", &diag));
    tkv_config_print(&c, out);
    fclose(out);
    assert_non_null(strstr(text, "# command line"));
    if (!parse(text, n, &back, &diag))
        fail_msg("%s in\n%s", diag.line[0], text);
    assert_true(tkv_config_equal(&c, &back));
    assert_string_equal(back.profiles_directory, "a \"b\" \\ c # d");
    tkv_config_init(&back);
    assert_false(tkv_config_equal(&c, &back));
    assert_string_equal(tkv_config_fixed_difference(&c, &back), "memory.cap");
    assert_true(tkv_config_set(&back, "memory.cap", "3MiB", &diag));
    assert_null(tkv_config_fixed_difference(&c, &back));
    assert_false(tkv_config_set(&back, "memory.cap", "much", &diag));
    assert_true(has_line(&diag, "command line: memory.cap", "512MiB"));
    tkv_diag_deinit(&diag);
    free(text);
}

static void check_count(void **state)
{
    (void)state;
    print_message("%u malformed configurations\n", n_malformed);
    assert_true(n_malformed >= 200);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(check_wrong_values), cmocka_unit_test(check_unknown_keys),
        cmocka_unit_test(check_documents),    cmocka_unit_test(check_bytes),
        cmocka_unit_test(check_all_errors),   cmocka_unit_test(check_shipped),
        cmocka_unit_test(check_good_values),  cmocka_unit_test(check_print),
        cmocka_unit_test(check_count),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
