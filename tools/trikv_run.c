/*
 * trikv-run: a language model reads a text, or writes one, with its KV cache in a
 * running trikvd, or in this process as the exact judge.
 */
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>
#include <unistd.h>

#include "tools/attention_local.h"
#include "tools/run_options.h"
#include "tools/runner.h"

#define PROGRAM "trikv-run"

/* Everything of a run that has to be given back. */
struct session {
    const struct tkv_run_options *o;
    char model_path[PATH_MAX];
    struct tkv_engine engine;
    struct tkv_local *local;
    struct tkv_remote *remote;
    struct tkv_ids ids;
    struct tkv_run run;
    size_t n_text_bytes; /* behind the scored tokens */
    size_t n_written;
    uint64_t n_calibrated;
    struct trikv_stats stats;
};

static void deinit(struct session *s)
{
    tkv_remote_destroy(&s->remote);
    tkv_local_destroy(&s->local);
    tkv_ids_deinit(&s->ids);
    tkv_engine_deinit(&s->engine);
}

static void show_progress(void *ctx, size_t done, size_t total)
{
    const struct tkv_run *r = ctx;

    if (!isatty(STDERR_FILENO))
        return;
    fprintf(stderr, "\r%zu of %zu tokens, %.0f tokens/s%s", done, total,
            r->seconds > 0 ? (double)r->position / r->seconds : 0.0, done == total ? "\n" : "");
}

/* Drops the tokens of a text that were not asked for, but not the start token. */
static int cut_ids(struct session *s, struct tkv_reason *why)
{
    const size_t n_start = s->ids.n && s->ids.ids[0] == tkv_tokenizer_bos(s->engine.tokenizer);
    const size_t have = s->ids.n - n_start, skip = (size_t)s->o->n_skip;
    size_t n = have > skip ? have - skip : 0;

    if (s->o->n_tokens && n > s->o->n_tokens)
        n = (size_t)s->o->n_tokens;
    if (n_start + n < 2)
        return tkv_reason_set(why, "%s: %zu tokens, of which %zu are skipped: nothing to read",
                              s->o->text, have, skip);
    memmove(s->ids.ids + n_start, s->ids.ids + n_start + skip, n * sizeof(*s->ids.ids));
    s->ids.n = n_start + n;
    for (size_t i = 1; i < s->ids.n; i++)
        s->n_text_bytes += tkv_tokenizer_bytes(s->engine.tokenizer, s->ids.ids[i]).n_bytes;
    return 0;
}

static int read_input(struct session *s, struct tkv_reason *why)
{
    const struct tkv_run_options *o = s->o;
    size_t n_bytes = 0;
    char *text = NULL;
    int error;

    if (o->prompt) {
        error = tkv_tokenizer_encode(s->engine.tokenizer, o->prompt, strlen(o->prompt),
                                     TKV_ENCODE_START | TKV_ENCODE_CONTROL, &s->ids, why);
        if (!error && !s->ids.n)
            error = tkv_reason_set(why, "--prompt: the text has no tokens");
        return error;
    }
    if (tkv_engine_read_text(o->text, &text, &n_bytes, why))
        return -1;
    error =
        tkv_tokenizer_encode(s->engine.tokenizer, text, n_bytes, TKV_ENCODE_START, &s->ids, why);
    free(text);
    return error ? error : cut_ids(s, why);
}

static int open_attention(struct session *s, struct tkv_reason *why)
{
    const struct tkv_model *m = s->engine.model;
    struct tkv_remote_options remote = s->o->remote;

    if ((s->o->local || s->o->compare_local) &&
        tkv_local_create(&s->local, m->config.n_layers, &m->config.shape, &m->math, m->exec, why))
        return -1;
    remote.chunk_tokens = (size_t)s->o->n_chunk;
    remote.label = PROGRAM;
    if (!s->o->local && tkv_remote_create(&s->remote, &m->config, &remote, why))
        return -1;
    s->run.attention =
        s->o->local ? tkv_local_attention(s->local) : tkv_remote_attention(s->remote);
    if (s->o->compare_local)
        s->run.judge = tkv_local_attention(s->local);
    return 0;
}

static int start(struct session *s, struct tkv_reason *why)
{
    const struct tkv_run_options *o = s->o;

    if (o->model)
        snprintf(s->model_path, sizeof(s->model_path), "%s", o->model);
    else if (tkv_engine_default_path(s->model_path, sizeof(s->model_path), why))
        return -1;
    if (tkv_engine_init(&s->engine, s->model_path, (unsigned)o->n_threads, (size_t)o->n_chunk,
                        why) ||
        read_input(s, why) || open_attention(s, why))
        return -1;
    s->run.engine = &s->engine;
    s->run.chunk_tokens = (size_t)o->n_chunk;
    s->run.progress = show_progress;
    s->run.progress_ctx = &s->run;
    return 0;
}

static void emit(void *ctx, int32_t id)
{
    const struct session *s = ctx;
    const struct tkv_text bytes = tkv_tokenizer_bytes(s->engine.tokenizer, id);

    fwrite(bytes.data, 1, bytes.n_bytes, s->o->json ? stderr : stdout);
    fflush(s->o->json ? stderr : stdout);
}

/* The last token of the input is fed by the writing, so that its prediction is at hand. */
static int execute(struct session *s, struct tkv_reason *why)
{
    const struct tkv_run_options *o = s->o;
    struct tkv_writing w = {.last = s->ids.ids[s->ids.n - 1],
                            .n = (size_t)o->n_generate,
                            .sampler = {o->temperature, o->seed},
                            .emit = emit,
                            .ctx = s};
    int error;

    if (o->text)
        error = tkv_run_score(&s->run, s->ids.ids, s->ids.n, NULL, why);
    else
        error = tkv_run_feed(&s->run, s->ids.ids, s->ids.n - 1, why);
    if (!error && w.n) {
        if (o->prompt && !o->json)
            fputs(o->prompt, stdout);
        error = tkv_run_write(&s->run, &w, &s->n_written, why);
        if (!o->json)
            putchar('\n');
    }
    if (!error && s->remote)
        error = tkv_remote_stats(s->remote, &s->stats, why);
    if (!error && o->calibrate)
        error = tkv_remote_calibrate(s->remote, &s->engine.model->config, o->calibrate,
                                     &s->n_calibrated, why);
    return error;
}

/* Nats a token, and what follows from it. */
struct result {
    double nats, bits_per_byte, tokens_per_s, written_per_s, kl, top1;
};

static struct result summarise(const struct session *s)
{
    const struct tkv_metrics *m = &s->run.metrics;
    struct result r = {0};

    if (m->n_tokens)
        r.nats = m->loss / (double)m->n_tokens;
    if (s->n_text_bytes)
        r.bits_per_byte = m->loss / M_LN2 / (double)s->n_text_bytes;
    if (s->run.seconds > 0)
        r.tokens_per_s = (double)s->run.position / s->run.seconds;
    if (s->run.seconds_writing > 0)
        r.written_per_s = (double)s->n_written / s->run.seconds_writing;
    if (m->n_compared) {
        r.kl = m->kl / (double)m->n_compared;
        r.top1 = (double)m->n_same_top1 / (double)m->n_compared;
    }
    return r;
}

static void print_text(const struct session *s)
{
    const struct tkv_metrics *m = &s->run.metrics;
    const struct result r = summarise(s);
    FILE *out = s->o->text ? stdout : stderr; /* a continuation stays alone on stdout */

    if (m->n_tokens)
        fprintf(out, "tokens %zu  nats/token %.6f  perplexity %.4f  bits/byte %.4f\n", m->n_tokens,
                r.nats, exp(r.nats), r.bits_per_byte);
    if (m->n_compared)
        fprintf(out, "against local: mean KL %.3e  top-1 agreement %.3f %%\n", r.kl, 100 * r.top1);
    fprintf(out, "%d tokens in %.2f s, %.1f tokens/s\n", s->run.position, s->run.seconds,
            r.tokens_per_s);
    if (s->n_written)
        fprintf(out, "%zu of them written, %.1f tokens/s\n", s->n_written, r.written_per_s);
    if (s->remote)
        fprintf(out,
                "daemon: seen %llu  kept %.1f  resident %llu bytes (fp16: %llu)  bits K %.3f "
                "V %.3f  rounds %u\n",
                (unsigned long long)s->stats.n_seen, s->stats.n_kept,
                (unsigned long long)s->stats.resident_bytes,
                (unsigned long long)s->stats.fp16_bytes, s->stats.bits_k, s->stats.bits_v,
                s->stats.n_rounds);
    if (s->o->calibrate)
        fprintf(out, "%s: calibrated on %llu tokens\n", s->o->calibrate,
                (unsigned long long)s->n_calibrated);
}

static void print_json_string(const char *text)
{
    putchar('"');
    for (const char *c = text; *c; c++) {
        if (*c == '"' || *c == '\\')
            printf("\\%c", *c);
        else if ((unsigned char)*c < 0x20)
            printf("\\u%04x", (unsigned)*c);
        else
            putchar(*c);
    }
    putchar('"');
}

static void print_json(const struct session *s)
{
    const struct tkv_metrics *m = &s->run.metrics;
    const struct result r = summarise(s);

    printf("{\"model\": ");
    print_json_string(s->model_path);
    printf(", \"attention\": \"%s\", \"tokens\": %d, \"seconds\": %.3f, \"tokens_per_s\": %.2f",
           s->o->local ? "local" : "daemon", s->run.position, s->run.seconds, r.tokens_per_s);
    if (m->n_tokens)
        printf(", \"scored\": %zu, \"nats_per_token\": %.8f, \"perplexity\": %.6f, "
               "\"bits_per_byte\": %.6f",
               m->n_tokens, r.nats, exp(r.nats), r.bits_per_byte);
    if (m->n_compared)
        printf(", \"kl\": %.6e, \"top1\": %.6f", r.kl, r.top1);
    if (s->remote)
        printf(", \"tokens_seen\": %llu, \"tokens_kept\": %.2f, \"resident_bytes\": %llu, "
               "\"fp16_bytes\": %llu, \"bits_k\": %.4f, \"bits_v\": %.4f, \"rounds\": %u",
               (unsigned long long)s->stats.n_seen, s->stats.n_kept,
               (unsigned long long)s->stats.resident_bytes, (unsigned long long)s->stats.fp16_bytes,
               s->stats.bits_k, s->stats.bits_v, s->stats.n_rounds);
    printf(", \"written\": %zu, \"written_per_s\": %.2f}\n", s->n_written, r.written_per_s);
}

static int run(const struct tkv_run_options *o)
{
    struct session s = {.o = o};
    struct tkv_reason why = {""};
    const int error = start(&s, &why) || execute(&s, &why);

    if (error)
        fprintf(stderr, PROGRAM ": %s\n", why.text);
    else if (o->json)
        print_json(&s);
    else
        print_text(&s);
    deinit(&s);
    if (!error && (fflush(stdout) || ferror(stdout)))
        return EX_IOERR;
    return error ? EXIT_FAILURE : EX_OK;
}

int main(int argc, char **argv)
{
    struct tkv_run_options o;
    const int status = tkv_run_options_parse(&o, argc, argv);

    return status >= 0 ? status : run(&o);
}
