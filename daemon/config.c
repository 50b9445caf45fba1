/* Reading values into a configuration, and checking it as a whole. */
#include "daemon/config.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "core/cpu.h"
#include "daemon/config_priv.h"
#include "daemon/loopback.h"

enum { MAX_SECTION_KEYS = TKV_CONFIG_MAX_OPTIONS };

static bool read_text(const struct tkv_yaml *y, const struct tkv_yaml_node *n,
                      const struct tkv_option *o, char *field)
{
    if (n->kind == TKV_YAML_SCALAR && n->text_bytes < o->min) {
        tkv_yaml_error(y, n, "%s: must not be empty", o->name);
        return false;
    }
    return tkv_yaml_text(y, n, o->name, field, o->max);
}

static bool read_codec(const struct tkv_yaml *y, const struct tkv_yaml_node *n,
                       const struct tkv_option *o, uint32_t *field)
{
    const char *names[64];
    size_t n_names = 0;
    uint32_t index;

    for (; tkv_codecs[n_names].name; n_names++)
        names[n_names] = tkv_codecs[n_names].name;
    assert(n_names < sizeof(names) / sizeof(names[0]));
    names[n_names] = NULL;
    if (!tkv_yaml_enum(y, n, o->name, names, &index))
        return false;
    *field = tkv_codecs[index].id;
    return true;
}

static bool read_duration(const struct tkv_yaml *y, const struct tkv_yaml_node *n,
                          const struct tkv_option *o, uint64_t *field)
{
    uint64_t ms;

    if (!tkv_yaml_duration(y, n, o->name, o->max, &ms))
        return false;
    if (ms < o->min) {
        tkv_yaml_error(y, n, "%s: want at least %llums, got %llums", o->name,
                       (unsigned long long)o->min, (unsigned long long)ms);
        return false;
    }
    *field = ms;
    return true;
}

static bool read_option(const struct tkv_yaml *y, const struct tkv_yaml_node *n,
                        const struct tkv_option *o, struct tkv_config *c)
{
    void *const field = (char *)c + o->offset;

    switch (o->type) {
    case TKV_OPTION_TEXT: return read_text(y, n, o, field);
    case TKV_OPTION_MODE: return tkv_yaml_mode(y, n, o->name, field);
    case TKV_OPTION_U32:
        return tkv_yaml_u32(y, n, o->name, (uint32_t)o->min, (uint32_t)o->max, field);
    case TKV_OPTION_CAP:
        if (n->kind == TKV_YAML_SCALAR && strcmp(n->text, "auto") == 0) {
            *(uint64_t *)field = 0;
            return true;
        }
        return tkv_yaml_bytes(y, n, o->name, o->min, o->max, field);
    case TKV_OPTION_BYTES: return tkv_yaml_bytes(y, n, o->name, o->min, o->max, field);
    case TKV_OPTION_DURATION: return read_duration(y, n, o, field);
    case TKV_OPTION_ENUM: return tkv_yaml_enum(y, n, o->name, o->names, field);
    case TKV_OPTION_CODEC: return read_codec(y, n, o, field);
    case TKV_OPTION_BOOL: return tkv_yaml_bool(y, n, o->name, field);
    }
    return false;
}

/* A value that does not stand in a file, as if it did. */
static bool set_text(struct tkv_config *c, const struct tkv_option *o, const char *from,
                     const char *value, struct tkv_diag *diag)
{
    const struct tkv_yaml y = {.file = from, .diag = diag};
    const struct tkv_yaml_node n = {.kind = TKV_YAML_SCALAR,
                                    .text = (char *)(uintptr_t)value, /* it is only read */
                                    .text_bytes = strlen(value)};

    return read_option(&y, &n, o, c);
}

void tkv_config_init(struct tkv_config *c)
{
    struct tkv_diag diag = {0};

    memset(c, 0, sizeof(*c));
    c->defaults.said = TKV_POLICY_ALL;
    for (size_t i = 0; i < tkv_config_n_options(); i++)
        set_text(c, &tkv_config_options[i], "default", tkv_config_options[i].initial, &diag);
    assert(diag.n == 0); /* the table is right */
    tkv_diag_deinit(&diag);
}

bool tkv_config_set(struct tkv_config *c, const char *option, const char *value,
                    struct tkv_diag *diag)
{
    const struct tkv_option *o = tkv_config_find_option(option);

    assert(o);
    c->origin[o - tkv_config_options] = (struct tkv_config_origin){.source = TKV_FROM_COMMAND_LINE};
    return set_text(c, o, "command line", value, diag);
}

/* The distinct sections, or the keys of one section, in the order of the table. */
static void list_names(const char *section, const char **names, char (*memory)[64])
{
    size_t n = 0;

    for (size_t i = 0; i < tkv_config_n_options(); i++) {
        const char *const name = tkv_config_options[i].name;
        const size_t length = (size_t)(strchr(name, '.') - name);

        if (section) {
            if (strlen(section) == length && memcmp(name, section, length) == 0)
                names[n++] = name + length + 1;
        } else if (n == 0 || strncmp(names[n - 1], name, length) != 0 || names[n - 1][length]) {
            memcpy(memory[n], name, length);
            memory[n][length] = 0;
            names[n] = memory[n];
            n++;
        }
    }
    names[n] = NULL;
}

static bool read_key(struct tkv_config *c, const struct tkv_yaml *y, const char *section,
                     const struct tkv_yaml_node *n)
{
    const struct tkv_option *o;
    char name[160];

    snprintf(name, sizeof(name), "%s.%.64s", section, n->key->text);
    o = tkv_config_find_option(name);
    if (!o)
        return false; /* check_keys has told */
    c->origin[o - tkv_config_options] = (struct tkv_config_origin){
        .source = TKV_FROM_FILE, .line = n->key->line, .column = n->key->column};
    return read_option(y, n, o, c);
}

static bool read_section(struct tkv_config *c, const struct tkv_yaml *y,
                         const struct tkv_yaml_node *section)
{
    const char *keys[MAX_SECTION_KEYS + 1];
    const char *const name = section->key->text;
    bool good;

    list_names(name, keys, NULL);
    if (!keys[0])
        return false;
    if (section->kind == TKV_YAML_SCALAR && !section->quoted && section->text_bytes == 0)
        return true; /* a section whose options are all commented out */
    good = tkv_yaml_check_keys(y, section, name, keys);
    if (section->kind != TKV_YAML_MAPPING)
        return false;
    for (const struct tkv_yaml_node *n = section->first; n; n = n->next)
        good &= read_key(c, y, name, n);
    return good;
}

static bool read_tree(struct tkv_config *c, const struct tkv_yaml *y)
{
    const char *sections[MAX_SECTION_KEYS + 1];
    char memory[MAX_SECTION_KEYS][64];
    bool good;

    if (!y->root)
        return true; /* an empty file changes nothing */
    list_names(NULL, sections, memory);
    good = tkv_yaml_check_keys(y, y->root, "configuration", sections);
    if (y->root->kind != TKV_YAML_MAPPING)
        return false;
    for (const struct tkv_yaml_node *n = y->root->first; n; n = n->next)
        good &= read_section(c, y, n);
    return good;
}

bool tkv_config_parse(struct tkv_config *c, const char *name, const char *text, size_t n,
                      struct tkv_diag *diag)
{
    struct tkv_yaml y;
    bool good = tkv_yaml_parse(&y, name, text, n, diag);

    snprintf(c->file, sizeof(c->file), "%s", name);
    good &= read_tree(c, &y);
    tkv_yaml_deinit(&y);
    return good;
}

bool tkv_config_load(struct tkv_config *c, const char *file, struct tkv_diag *diag)
{
    char *text;
    size_t n;
    bool good;

    if (!tkv_yaml_read_file(file, TKV_MAX_CONFIG_FILE_BYTES, &text, &n, diag))
        return false;
    good = tkv_config_parse(c, file, text, n, diag);
    free(text);
    return good;
}

static void fail_option(const struct tkv_config *c, const char *option, const char *text,
                        struct tkv_diag *diag)
{
    const struct tkv_option *o = tkv_config_find_option(option);
    const struct tkv_config_origin *origin = &c->origin[o - tkv_config_options];

    tkv_diag_add(diag, origin->source == TKV_FROM_FILE ? c->file : "command line", origin->line,
                 origin->column, "%s: %s", option, text);
}

/* "avx512,avx2": a name that is misspelt would silently switch nothing off. */
static bool check_cpu_names(const char *list, const char *known)
{
    char copy[64], all[72], item[72], *rest = copy, *name;

    memcpy(copy, list, sizeof(copy));
    snprintf(all, sizeof(all), ",%s,", known);
    while (*list && (name = strsep(&rest, ","))) {
        snprintf(item, sizeof(item), ",%s,", name);
        if (!*name || !strstr(all, item))
            return false;
    }
    return true;
}

static void check_cpu_disable(const struct tkv_config *c, struct tkv_diag *diag)
{
    char known[64], text[128];

    tkv_cpu_names(~0u, known, sizeof(known));
    if (check_cpu_names(c->cpu_disable, known))
        return;
    snprintf(text, sizeof(text), "want names with commas, from: %s", known);
    fail_option(c, "workers.cpu_disable", text, diag);
}

static void check_metrics(const struct tkv_config *c, struct tkv_diag *diag)
{
    struct sockaddr_storage address;
    socklen_t n;

    if (c->metrics_listen[0] && !tkv_loopback_parse(c->metrics_listen, &address, &n))
        fail_option(c, "metrics.listen",
                    "want an address of this machine alone, as 127.0.0.1:9464 or [::1]:9464", diag);
    if (c->metrics_socket[0] && strcmp(c->metrics_socket, c->socket) == 0)
        fail_option(c, "metrics.socket", "is listen.socket, where clients connect", diag);
    if (c->metrics_page[0] && c->metrics_page[0] != '/')
        fail_option(c, "metrics.page", "want an absolute path", diag);
}

bool tkv_config_check(const struct tkv_config *c, struct tkv_diag *diag)
{
    const struct tkv_policy *d = &c->defaults;
    const size_t n_before = diag->n;

    if (d->budget_tokens <= d->pinned_tokens + d->recent_tokens)
        fail_option(c, "defaults.budget", "must be larger than defaults.pinned + defaults.recent",
                    diag);
    if (tkv_codec_by_id(d->codec_v)->qjl)
        fail_option(c, "defaults.codec_v", "a qjl codec is for keys only", diag);
    check_cpu_disable(c, diag);
    check_metrics(c, diag);
    return diag->n == n_before;
}
