/*
 * A pickle is a program for a stack machine (protocol 2). Every operation takes at least one
 * byte and makes at most one value, one stack entry and one cell for each entry that it takes, so
 * the length of the pickle bounds all of them.
 */
#include "tools/pickle.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_PICKLE_BYTES = 16 << 20 };

enum global { REBUILD_TENSOR = 1, FLOAT_STORAGE, ORDERED_DICT };

static const struct {
    const char *module, *name;
    enum global id;
} globals[] = {
    {"torch._utils", "_rebuild_tensor_v2", REBUILD_TENSOR},
    {"torch", "FloatStorage", FLOAT_STORAGE},
    {"collections", "OrderedDict", ORDERED_DICT},
};

struct machine {
    struct tkv_pickle *p;
    const uint8_t *data;
    size_t n, at;
    uint32_t n_values, n_cells; /* number 0 is not used */
    uint32_t *stack;
    size_t n_stack;
    uint32_t *memo; /* [n] */
    struct tkv_reason *why;
};

static int fail(struct machine *m, const char *what)
{
    return tkv_reason_set(m->why, "pickle: byte %zu: %s", m->at, what);
}

static struct tkv_pickle_value *value(const struct machine *m, uint32_t id)
{
    return &m->p->values[id];
}

static struct tkv_pickle_value *push_new(struct machine *m, enum tkv_pickle_kind kind)
{
    const uint32_t id = ++m->n_values;

    m->stack[m->n_stack++] = id;
    m->p->values[id].kind = kind;
    return &m->p->values[id];
}

/* Values above the last mark, or `n` of them if n is not negative: where they begin, or -1. */
static int items_from(struct machine *m, int n, size_t *from)
{
    size_t at = m->n_stack;

    if (n >= 0) {
        if (m->n_stack < (size_t)n)
            return fail(m, "the stack is empty");
        *from = m->n_stack - (size_t)n;
        for (size_t i = *from; i < m->n_stack; i++) {
            if (value(m, m->stack[i])->kind == TKV_PICKLE_MARK)
                return fail(m, "a mark where a value should be");
        }
        return 0;
    }
    while (at > 0 && value(m, m->stack[at - 1])->kind != TKV_PICKLE_MARK)
        at--;
    *from = at;
    return at ? 0 : fail(m, "no mark on the stack");
}

/* Move stack[from..] to the end of a container. */
static void add_items(struct machine *m, struct tkv_pickle_value *to, size_t from)
{
    for (size_t i = from; i < m->n_stack; i++) {
        const uint32_t cell = ++m->n_cells;

        m->p->cells[cell].value = m->stack[i];
        if (to->last)
            m->p->cells[to->last].next = cell;
        else
            to->first = cell;
        to->last = cell;
        to->n++;
    }
    m->n_stack = from;
}

/* TUPLE and TUPLE1..3. Items leave the stack first, so that the tuple has room. */
static int make_tuple(struct machine *m, int n)
{
    struct tkv_pickle_value tuple = {.kind = TKV_PICKLE_TUPLE};
    size_t from = 0;

    if (items_from(m, n, &from))
        return -1;
    add_items(m, &tuple, from);
    if (n < 0)
        m->n_stack--; /* the mark */
    *push_new(m, TKV_PICKLE_TUPLE) = tuple;
    return 0;
}

/* APPEND(S), SETITEM(S): into the container below the items. */
static int put_items(struct machine *m, int n, enum tkv_pickle_kind kind)
{
    size_t from = 0, below;

    if (items_from(m, n, &from))
        return -1;
    below = from - (n < 0 ? 1 : 0);
    if (below == 0 || value(m, m->stack[below - 1])->kind != kind)
        return fail(m, "items for something that is no container for them");
    if (kind == TKV_PICKLE_DICT && (m->n_stack - from) % 2)
        return fail(m, "a key without a value");
    add_items(m, value(m, m->stack[below - 1]), from);
    m->n_stack = below;
    return 0;
}

static const struct tkv_pickle_value *item(const struct machine *m,
                                           const struct tkv_pickle_value *v, uint32_t i)
{
    uint32_t cell = v->first;

    while (cell && i--)
        cell = m->p->cells[cell].next;
    return value(m, cell ? m->p->cells[cell].value : 0);
}

/* ('storage', FloatStorage, key, 'cpu', numbers). */
static int make_storage(struct machine *m)
{
    const struct tkv_pickle_value *tuple;
    struct tkv_pickle_value storage = {.kind = TKV_PICKLE_STORAGE};
    size_t from = 0;

    if (items_from(m, 1, &from))
        return -1;
    tuple = value(m, m->stack[from]);
    if (tuple->kind != TKV_PICKLE_TUPLE || tuple->n != 5 ||
        !tkv_pickle_text_is(item(m, tuple, 0), "storage") ||
        item(m, tuple, 1)->kind != TKV_PICKLE_GLOBAL || item(m, tuple, 1)->first != FLOAT_STORAGE ||
        item(m, tuple, 2)->kind != TKV_PICKLE_TEXT || item(m, tuple, 4)->kind != TKV_PICKLE_INT ||
        item(m, tuple, 4)->whole < 0)
        return fail(m, "a storage that is not one of float32 numbers");
    storage.text = item(m, tuple, 2)->text;
    storage.text_bytes = item(m, tuple, 2)->text_bytes;
    storage.whole = item(m, tuple, 4)->whole;
    m->n_stack = from;
    *push_new(m, TKV_PICKLE_STORAGE) = storage;
    return 0;
}

/* (storage, offset, (size,), (stride,), requires_grad, hooks). */
static int make_tensor(struct machine *m, const struct tkv_pickle_value *args,
                       struct tkv_pickle_value *tensor)
{
    const struct tkv_pickle_value *storage = item(m, args, 0), *offset = item(m, args, 1);
    const struct tkv_pickle_value *size = item(m, args, 2), *stride = item(m, args, 3);
    int64_t n;

    if (args->n != 6 || storage->kind != TKV_PICKLE_STORAGE || offset->kind != TKV_PICKLE_INT ||
        size->kind != TKV_PICKLE_TUPLE || stride->kind != TKV_PICKLE_TUPLE)
        return fail(m, "a tensor that is not made as torch makes one");
    if (size->n != 1 || stride->n != 1 || item(m, size, 0)->kind != TKV_PICKLE_INT ||
        item(m, stride, 0)->kind != TKV_PICKLE_INT || item(m, stride, 0)->whole != 1)
        return fail(m, "a tensor that is no row of numbers one after the other");
    n = item(m, size, 0)->whole;
    if (n < 0 || offset->whole < 0 || offset->whole > storage->whole ||
        storage->whole - offset->whole < n)
        return fail(m, "a tensor beyond its storage");
    *tensor = (struct tkv_pickle_value){.kind = TKV_PICKLE_TENSOR,
                                        .first = (uint32_t)(storage - m->p->values),
                                        .whole = offset->whole,
                                        .text_bytes = (size_t)n};
    return 0;
}

static int reduce(struct machine *m)
{
    struct tkv_pickle_value made = {.kind = TKV_PICKLE_DICT};
    const struct tkv_pickle_value *what, *args;
    size_t from = 0;

    if (items_from(m, 2, &from))
        return -1;
    what = value(m, m->stack[from]);
    args = value(m, m->stack[from + 1]);
    if (what->kind != TKV_PICKLE_GLOBAL || args->kind != TKV_PICKLE_TUPLE)
        return fail(m, "a call of something that is not known");
    if (what->first == REBUILD_TENSOR) {
        if (make_tensor(m, args, &made))
            return -1;
    } else if (what->first != ORDERED_DICT || args->n != 0) {
        return fail(m, "a call of something that is not known");
    }
    m->n_stack = from;
    *push_new(m, made.kind) = made;
    return 0;
}

/* Little-endian, of n <= 4 bytes; -1 at the end of the pickle. */
static int read_number(struct machine *m, size_t n, uint32_t *out)
{
    if (m->n - m->at < n)
        return fail(m, "it is cut off");
    *out = 0;
    for (size_t i = 0; i < n; i++)
        *out |= (uint32_t)m->data[m->at + i] << 8 * i;
    m->at += n;
    return 0;
}

static int push_int(struct machine *m, size_t n)
{
    uint32_t x = 0;

    if (read_number(m, n, &x))
        return -1;
    push_new(m, TKV_PICKLE_INT)->whole = n == 4 ? (int64_t)(int32_t)x : (int64_t)x;
    return 0;
}

/* Two's complement of 0 to 8 bytes. */
static int push_long(struct machine *m)
{
    uint64_t x = 0;
    uint32_t n = 0;

    if (read_number(m, 1, &n))
        return -1;
    if (n > 8 || m->n - m->at < n)
        return fail(m, "a number that is too long");
    for (uint32_t i = 0; i < n; i++)
        x |= (uint64_t)m->data[m->at + i] << 8 * i;
    if (n && n < 8 && m->data[m->at + n - 1] & 0x80)
        x |= ~UINT64_C(0) << 8 * n;
    m->at += n;
    push_new(m, TKV_PICKLE_INT)->whole = (int64_t)x;
    return 0;
}

/* IEEE, the one thing that is big-endian. */
static int push_real(struct machine *m)
{
    uint64_t bits = 0;

    if (m->n - m->at < 8)
        return fail(m, "it is cut off");
    for (size_t i = 0; i < 8; i++)
        bits = bits << 8 | m->data[m->at++];
    memcpy(&push_new(m, TKV_PICKLE_REAL)->real, &bits, sizeof(bits));
    return 0;
}

static int push_text(struct machine *m)
{
    struct tkv_pickle_value *v;
    uint32_t n = 0;

    if (read_number(m, 4, &n))
        return -1;
    if (m->n - m->at < n)
        return fail(m, "a text that is cut off");
    v = push_new(m, TKV_PICKLE_TEXT);
    v->text = (const char *)m->data + m->at;
    v->text_bytes = n;
    m->at += n;
    return 0;
}

/* A line of a GLOBAL; NULL if it does not end. */
static const char *read_line(struct machine *m, size_t *n)
{
    const uint8_t *start = m->data + m->at;
    const uint8_t *end = memchr(start, '\n', m->n - m->at);

    if (!end)
        return NULL;
    *n = (size_t)(end - start);
    m->at += *n + 1;
    return (const char *)start;
}

static bool line_is(const char *line, size_t n, const char *text)
{
    return strlen(text) == n && memcmp(line, text, n) == 0;
}

static int push_global(struct machine *m)
{
    size_t n_module = 0, n_name = 0;
    const char *module = read_line(m, &n_module);
    const char *name = module ? read_line(m, &n_name) : NULL;

    if (!name)
        return fail(m, "a name that is cut off");
    for (size_t i = 0; i < sizeof(globals) / sizeof(globals[0]); i++) {
        if (line_is(module, n_module, globals[i].module) &&
            line_is(name, n_name, globals[i].name)) {
            push_new(m, TKV_PICKLE_GLOBAL)->first = globals[i].id;
            return 0;
        }
    }
    return tkv_reason_set(m->why,
                          "pickle: byte %zu: names %.*s %.*s, which is not needed for statistics "
                          "of float32 numbers",
                          m->at, (int)(n_module < 64 ? n_module : 64), module,
                          (int)(n_name < 64 ? n_name : 64), name);
}

static int remember(struct machine *m, size_t n_bytes)
{
    uint32_t at = 0;

    if (read_number(m, n_bytes, &at))
        return -1;
    if (m->n_stack == 0 || at >= m->n)
        return fail(m, "nothing to remember, or a place too far");
    m->memo[at] = m->stack[m->n_stack - 1];
    return 0;
}

static int recall(struct machine *m, size_t n_bytes)
{
    uint32_t at = 0;

    if (read_number(m, n_bytes, &at))
        return -1;
    if (at >= m->n || !m->memo[at] || value(m, m->memo[at])->kind == TKV_PICKLE_MARK)
        return fail(m, "nothing was remembered there");
    m->stack[m->n_stack++] = m->memo[at];
    return 0;
}

static int push_plain(struct machine *m, enum tkv_pickle_kind kind, int64_t whole)
{
    push_new(m, kind)->whole = whole;
    return 0;
}

static int execute(struct machine *m, uint8_t operation)
{
    switch (operation) {
    case '}': return push_plain(m, TKV_PICKLE_DICT, 0);
    case ']': return push_plain(m, TKV_PICKLE_LIST, 0);
    case ')': return push_plain(m, TKV_PICKLE_TUPLE, 0);
    case '(': return push_plain(m, TKV_PICKLE_MARK, 0);
    case 'N': return push_plain(m, TKV_PICKLE_NONE, 0);
    case 0x88: return push_plain(m, TKV_PICKLE_BOOL, 1);
    case 0x89: return push_plain(m, TKV_PICKLE_BOOL, 0);
    case 'K': return push_int(m, 1);
    case 'M': return push_int(m, 2);
    case 'J': return push_int(m, 4);
    case 0x8a: return push_long(m);
    case 'G': return push_real(m);
    case 'X': return push_text(m);
    case 'c': return push_global(m);
    case 'q': return remember(m, 1);
    case 'r': return remember(m, 4);
    case 'h': return recall(m, 1);
    case 'j': return recall(m, 4);
    case 't': return make_tuple(m, -1);
    case 0x85: return make_tuple(m, 1);
    case 0x86: return make_tuple(m, 2);
    case 0x87: return make_tuple(m, 3);
    case 'a': return put_items(m, 1, TKV_PICKLE_LIST);
    case 'e': return put_items(m, -1, TKV_PICKLE_LIST);
    case 's': return put_items(m, 2, TKV_PICKLE_DICT);
    case 'u': return put_items(m, -1, TKV_PICKLE_DICT);
    case 'Q': return make_storage(m);
    case 'R': return reduce(m);
    default:
        return tkv_reason_set(m->why, "pickle: byte %zu: operation 0x%02x is not needed for data",
                              m->at - 1, operation);
    }
}

static int run(struct machine *m)
{
    if (m->n < 2 || m->data[0] != 0x80 || m->data[1] != 2)
        return fail(m, "want protocol 2, as torch.save writes it");
    m->at = 2;
    while (m->at < m->n) {
        const uint8_t operation = m->data[m->at++];

        if (operation == '.') {
            if (m->n_stack != 1 || m->at != m->n || value(m, m->stack[0])->kind == TKV_PICKLE_MARK)
                return fail(m, "it ends with other than one value");
            m->p->root = m->stack[0];
            return 0;
        }
        if (execute(m, operation))
            return -1;
    }
    return fail(m, "it is cut off");
}

int tkv_pickle_parse(struct tkv_pickle *p, const uint8_t *data, size_t n, struct tkv_reason *why)
{
    struct machine m = {.p = p, .data = data, .n = n, .why = why};
    int error = -1;

    *p = (struct tkv_pickle){0};
    if (n > MAX_PICKLE_BYTES)
        return tkv_reason_set(why, "pickle: %zu bytes, want at most %d", n, MAX_PICKLE_BYTES);
    p->values = calloc(n + 1, sizeof(*p->values));
    p->cells = calloc(n + 1, sizeof(*p->cells));
    m.stack = calloc(n + 1, sizeof(*m.stack));
    m.memo = calloc(n + 1, sizeof(*m.memo));
    if (p->values && p->cells && m.stack && m.memo)
        error = run(&m);
    else
        tkv_reason_set(why, "out of memory for a pickle of %zu bytes", n);
    free(m.stack);
    free(m.memo);
    if (error)
        tkv_pickle_deinit(p);
    return error;
}

void tkv_pickle_deinit(struct tkv_pickle *p)
{
    free(p->values);
    free(p->cells);
    *p = (struct tkv_pickle){0};
}

bool tkv_pickle_text_is(const struct tkv_pickle_value *v, const char *text)
{
    return v && v->kind == TKV_PICKLE_TEXT && line_is(v->text, v->text_bytes, text);
}

const struct tkv_pickle_value *tkv_pickle_get(const struct tkv_pickle *p,
                                              const struct tkv_pickle_value *dict, const char *key)
{
    const struct tkv_pickle_value *found = NULL;

    if (!dict || dict->kind != TKV_PICKLE_DICT)
        return NULL;
    for (uint32_t cell = dict->first; cell;) {
        const uint32_t next = p->cells[cell].next;

        if (tkv_pickle_text_is(&p->values[p->cells[cell].value], key))
            found = &p->values[p->cells[next].value];
        cell = p->cells[next].next;
    }
    return found;
}
