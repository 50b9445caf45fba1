/* The file of a ring as a client made it: its header, and entries that are done on a real session. */
#include "tests/fuzz/fuzz.h"

#include <string.h>

#include "core/cpu.h"
#include "core/kernels.h"
#include "daemon/ring.h"
#include "proto/errors.h"
#include "store/budget.h"

enum { FILE_BYTES = 64 << 10, MAX_ENTRIES = 16 };

static struct tkv_kernels kernels;
static struct tkv_budget budget;

static struct tkv_session *make_session(void)
{
    const struct tkv_layer_config layer = {
        .shape = {.n_q_heads = 2, .n_kv_heads = 1, .head_dim_k = 16, .head_dim_v = 16},
        .attn = {.scale = 0.25f},
        .codec_k = tkv_codec_by_name("tq4"),
        .codec_v = tkv_codec_by_name("tq4"),
        .budget_tokens = 64,
    };
    const struct tkv_session_config c = {
        .n_layers = 1, .layers = &layer, .beta_tokens = 64, .recent_tokens = 16};
    struct tkv_session *s = NULL;
    struct tkv_report why;

    if (tkv_session_create(&s, &c, &budget, &kernels, &why))
        abort();
    return s;
}

/* What a step points to lies in the file, behind everything that is not a tensor. */
static void check_place(const struct tkv_ring_view *v, const void *p, size_t n)
{
    const uint8_t *const at = p;

    if (p && (at < v->base + tkv_ring_tensors_at(v->n_entries) || at + n > v->base + v->bytes))
        abort();
}

static void check_step(const struct tkv_ring_view *v, const struct tkv_session *s,
                       const struct tkv_step *step, const uint32_t *token_ids)
{
    struct tkv_step_bytes b;

    if (tkv_session_step_bytes(s, step->layer, step->n_tokens, step->dtype, &b, NULL))
        abort();
    check_place(v, step->positions, step->n_tokens * sizeof(int32_t));
    check_place(v, token_ids, step->n_tokens * sizeof(uint32_t));
    check_place(v, step->k, b.k);
    check_place(v, step->v, b.v);
    check_place(v, step->q, b.q);
    check_place(v, step->out, b.out);
    check_place(v, step->lse, b.lse);
}

static void do_step(const struct tkv_ring_view *v, struct tkv_session *s,
                    const struct trikv_ring_entry *e)
{
    struct tkv_report why = {0};
    const uint32_t *token_ids = NULL;
    struct tkv_step step;
    int error = tkv_ring_check_entry(e, &why);

    if (!error && e->op != TRIKV_RING_NOTHING) {
        error = tkv_ring_step(v, e, s, &step, &token_ids, &why);
        if (!error) {
            check_step(v, s, &step, token_ids);
            error = e->op == TRIKV_RING_APPEND   ? tkv_session_append(s, &step, NULL, &why)
                    : e->op == TRIKV_RING_ATTEND ? tkv_session_attend(s, &step, NULL, &why)
                                                 : tkv_session_append_attend(s, &step, NULL, &why);
            if (!error)
                fuzz_reached();
        }
    }
    if (error && (why.error != error || why.text[0] == '\0'))
        abort();
}

static void run(const uint8_t *data, size_t n)
{
    static _Alignas(64) uint8_t file[FILE_BYTES];
    struct tkv_ring_view v = {.base = file, .bytes = FILE_BYTES};
    struct trikv_ring_header h;
    struct tkv_session *s;

    memset(file, 0x11, sizeof(file));
    memcpy(file, data, n < sizeof(file) ? n : sizeof(file));
    memcpy(&h, file, sizeof(h));
    if (tkv_ring_check_header(&h, FILE_BYTES, NULL))
        return;
    v.n_entries = h.n_entries;
    s = make_session();
    for (uint32_t i = 0; i < h.n_entries && i < MAX_ENTRIES; i++) {
        struct trikv_ring_entry e;

        tkv_ring_copy_entry(&e, file + sizeof(struct trikv_ring_shared) + i * sizeof(e));
        do_step(&v, s, &e);
    }
    tkv_session_destroy(&s);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    if (budget.cap_bytes == 0) {
        tkv_kernels_init(&kernels, tkv_cpu_flags(NULL));
        tkv_budget_init(&budget, 64 << 20);
    }
    if (n >= sizeof(struct trikv_ring_shared))
        run(data, n);
    return 0;
}
