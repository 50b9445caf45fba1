/* The matrix: contexts outermost, since windows and recording are made once for each. */
#include "tools/frontier.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/cpu.h"
#include "tools/spawn.h"

enum { CHUNK_TOKENS = 128, MAX_TRIES = 8 };

/* What the rows of one context share. */
struct lab {
    struct tkv_frontier *f;
    struct tkv_remote_options base;
    struct tkv_spawn daemon;
    struct tkv_ids prose;
    struct tkv_windows windows;
    struct tkv_recording recording;
    double fp16_bytes;
    struct tkv_reason *why;
};

static double now_seconds(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- preparation ------------------------------------------------------------------------------------- */

static void ask_machine(struct tkv_frontier_machine *m, unsigned n_threads)
{
    FILE *f = fopen("/proc/cpuinfo", "r");
    char line[256];

    m->n_threads = n_threads ? n_threads : tkv_team_default_threads();
    (void)tkv_cpu_names(tkv_cpu_flags(getenv("TRIKV_CPU_DISABLE")), m->features,
                        sizeof(m->features));
    (void)strcpy(m->name, "unknown processor");
    while (f && fgets(line, sizeof(line), f))
        if (sscanf(line, "model name : %127[^\n]", m->name) == 1)
            break;
    if (f)
        (void)fclose(f);
}

static int load_model(struct lab *lab)
{
    struct tkv_frontier *f = lab->f;

    if (f->o->model)
        (void)snprintf(f->model_path, sizeof(f->model_path), "%s", f->o->model);
    else if (tkv_engine_default_path(f->model_path, sizeof(f->model_path), lab->why))
        return -1;
    ask_machine(&f->machine, (unsigned)f->o->n_threads);
    return tkv_engine_init(&f->engine, f->model_path, f->machine.n_threads, CHUNK_TOKENS, lab->why);
}

static int load_prose(struct lab *lab)
{
    const struct tkv_frontier_options *o = lab->f->o;
    char *text = NULL;
    size_t n_bytes;
    int error = tkv_engine_read_text(o->text, &text, &n_bytes, lab->why);

    error = error ? error
                  : tkv_tokenizer_encode(lab->f->engine.tokenizer, text, n_bytes, 0, &lab->prose,
                                         lab->why);
    free(text);
    lab->f->n_prose = lab->prose.n;
    for (size_t i = 0; !error && i < o->n_contexts; i++)
        if (lab->prose.n < o->contexts[i])
            error = tkv_reason_set(lab->why, "%s has %zu tokens, a context of %zu needs as many",
                                   o->text, lab->prose.n, (size_t)o->contexts[i]);
    return error;
}

static int start_daemon(struct lab *lab)
{
    const struct tkv_frontier_options *o = lab->f->o;
    const char *arguments[8] = {"--profiles", o->profiles, "--log-level", "error"};
    char path[4096], profiles[4096];

    if (!o->profiles) {
        tkv_engine_default_profiles(profiles, sizeof(profiles));
        arguments[1] = profiles;
    }
    if (o->config) {
        arguments[4] = "--config";
        arguments[5] = o->config;
    }
    tkv_spawn_daemon_path(path, sizeof(path));
    return tkv_spawn_start(&lab->daemon, o->daemon ? o->daemon : path, arguments, lab->why);
}

/* fp16 is what all others are compared with: it comes first, asked for or not. */
static int parse_policies(struct lab *lab)
{
    const struct tkv_frontier_options *o = lab->f->o;
    struct tkv_frontier *f = lab->f;
    int error = tkv_contender_parse(&f->contenders[f->n_contenders++], "fp16", lab->why);

    for (size_t i = 0; !error && i < o->n_policies; i++)
        if (strcmp(o->policies[i], "fp16") != 0)
            error =
                tkv_contender_parse(&f->contenders[f->n_contenders++], o->policies[i], lab->why);
    return error;
}

static int check_named(struct lab *lab)
{
    struct tkv_frontier *f = lab->f;

    for (size_t i = 0; f->o->policies_named && i < f->n_contenders; i++)
        if (tkv_contender_check(&f->contenders[i], &f->engine, &lab->base, lab->why))
            return -1;
    return 0;
}

/* ---- rows ---------------------------------------------------------------------------------------------- */

static void print_heading(const struct lab *lab, size_t context)
{
    printf("\ncontext %zu, %zu windows of %zu texts; fp16 is %.0f bytes\n\n", context,
           lab->windows.n_windows, lab->windows.n_texts, lab->fp16_bytes);
    printf("%-18s %6s %6s %8s %6s %8s %8s %6s %7s %7s %7s %7s %6s %6s\n", "policy", "target",
           "ratio", "resident", "kept", "ppl", "KL", "top-1", "recall", "unseen", "list", "repeat",
           "mass", "tok/s");
}

static void print_row(const struct tkv_frontier_row *row)
{
    const struct tkv_outcome *o = &row->outcome;
    const char *name = row->policy->name;

    if (row->error[0]) {
        printf("%-18s %5.1fx %s\n", name, row->target_ratio, row->error);
        return;
    }
    printf(
        "%-18s %5.1fx %5.2fx %8.0f %6.0f %8.3f %8.5f %5.1f%% %6.1f%% %6.1f%% %6.1f%% %7.3f %5.1f%% "
        "%6.0f\n",
        name, row->target_ratio, tkv_frontier_ratio(row), o->resident_bytes, o->tokens_kept,
        tkv_outcome_spread(o, TKV_PERPLEXITY).mean, tkv_outcome_spread(o, TKV_KL).mean,
        tkv_outcome_spread(o, TKV_TOP1).mean, tkv_outcome_spread(o, TKV_RECALL).mean,
        tkv_outcome_spread(o, TKV_RECALL_UNSEEN).mean, tkv_outcome_spread(o, TKV_RECALL_LIST).mean,
        tkv_outcome_spread(o, TKV_REPEAT_NATS).mean, 100 * row->replayed.mass, o->tokens_per_s);
    (void)fflush(stdout);
}

/* Blocks are the same for equally long texts, but a policy may let sizes depend on what it
 * reads: if one text comes out too large, all are read again with less. */
static int score(struct lab *lab, struct tkv_frontier_row *row, double limit_bytes,
                 struct tkv_reason *why)
{
    bool over;

    for (int i = 0; i < MAX_TRIES; i++) {
        if (tkv_windows_score(&lab->windows, &row->settings, limit_bytes, &row->outcome, &over,
                              why))
            return -1;
        if (!over)
            return i ? tkv_recording_replay(&lab->recording, &row->settings, true, &row->replayed,
                                            why)
                     : 0;
        if (!tkv_contender_shrink(&row->settings, &row->replayed,
                                  row->outcome.resident_bytes - limit_bytes))
            break;
    }
    return tkv_reason_set(why, "%.0f bytes are out of reach", limit_bytes);
}

static int fill_row(struct lab *lab, struct tkv_frontier_row *row, struct tkv_reason *why)
{
    const double limit = row->policy->fixed ? 0 : lab->fp16_bytes / row->target_ratio;

    row->settings = tkv_contender_options(row->policy, &lab->base);
    if (tkv_contender_fit(row->policy, &lab->recording, limit, &row->settings, &row->replayed, why))
        return -1;
    return score(lab, row, limit, why);
}

static int run_row(struct lab *lab, const struct tkv_contender *c, size_t context, double ratio)
{
    struct tkv_frontier *f = lab->f;
    struct tkv_frontier_row *row = &f->rows[f->n_rows++];
    struct tkv_reason why = {""};

    *row = (struct tkv_frontier_row){.policy = c, .context = context, .target_ratio = ratio};
    if (fill_row(lab, row, &why)) {
        (void)snprintf(row->error, sizeof(row->error), "%s", why.text);
        f->n_failed++;
        if (!lab->windows.has_reference) /* without fp16 there is nothing to compare with */
            return tkv_reason_set(lab->why, "%s: %.300s", c->name, why.text);
    }
    print_row(row);
    return 0;
}

static int make_windows(struct lab *lab, size_t context)
{
    const struct tkv_frontier_options *o = lab->f->o;
    const struct tkv_windows_options w = {
        .prose = lab->prose.ids,
        .n_prose = lab->prose.n,
        .n_tokens = context,
        .n_windows = o->n_windows,
        .needles = o->needles,
        .seed = o->seed,
    };
    const struct tkv_model_config *c = &lab->f->engine.model->config;
    const struct tkv_remote_options exact =
        tkv_contender_options(&lab->f->contenders[0], &lab->base);

    lab->fp16_bytes = 2.0 * (double)context * c->n_layers * c->shape.n_kv_heads *
                      (c->shape.head_dim_k + c->shape.head_dim_v);
    if (tkv_windows_init(&lab->windows, &lab->f->engine, &w, lab->why))
        return -1;
    lab->f->overlap = lab->f->overlap || lab->windows.overlap;
    return tkv_recording_init(&lab->recording, &lab->f->engine, lab->windows.texts[0].ids.ids,
                              context, &exact, lab->why);
}

static int run_context(struct lab *lab, size_t context)
{
    const struct tkv_frontier *f = lab->f;
    int error = make_windows(lab, context);

    if (!error)
        print_heading(lab, context);
    for (size_t i = 0; !error && i < f->n_contenders; i++) {
        const struct tkv_contender *c = &f->contenders[i];

        if (c->fixed)
            error = run_row(lab, c, context, i == 0 ? 1 : 0);
        for (size_t j = 0; !error && !c->fixed && j < f->o->n_ratios; j++)
            error = run_row(lab, c, context, f->o->ratios[j]);
    }
    tkv_recording_deinit(&lab->recording);
    tkv_windows_deinit(&lab->windows);
    return error;
}

static int run_all(struct lab *lab)
{
    struct tkv_frontier *f = lab->f;
    const size_t n = f->o->n_contexts * (f->o->n_policies + 1) * (f->o->n_ratios + 1);

    f->rows = calloc(n, sizeof(*f->rows));
    if (!f->rows)
        return tkv_reason_set(lab->why, "out of memory for %zu rows", n);
    for (size_t i = 0; i < f->o->n_contexts; i++)
        if (run_context(lab, f->o->contexts[i]))
            return -1;
    return 0;
}

int tkv_frontier_run(struct tkv_frontier *f, const struct tkv_frontier_options *o,
                     struct tkv_reason *why)
{
    const double start = now_seconds();
    struct lab lab = {.f = f, .why = why};
    int error;

    *f = (struct tkv_frontier){.o = o, .start = time(NULL)};
    error = parse_policies(&lab) || load_model(&lab) || load_prose(&lab) || start_daemon(&lab);
    lab.base = (struct tkv_remote_options){
        .socket = lab.daemon.socket, .chunk_tokens = CHUNK_TOKENS, .profile = o->profile};
    error = error || check_named(&lab) || run_all(&lab);
    tkv_ids_deinit(&lab.prose);
    if (tkv_spawn_stop(&lab.daemon) && !error)
        error = tkv_reason_set(why, "trikvd did not end well");
    f->seconds = now_seconds() - start;
    return error ? -1 : 0;
}

void tkv_frontier_deinit(struct tkv_frontier *f)
{
    tkv_engine_deinit(&f->engine);
    free(f->rows);
    *f = (struct tkv_frontier){0};
}

double tkv_frontier_ratio(const struct tkv_frontier_row *row)
{
    return row->outcome.fp16_bytes / row->outcome.resident_bytes;
}
